from __future__ import annotations

import numpy as np

from tinydet.data.scenery.compositing import visible_people
from tinydet.data.scenery.distractors import place_distractors
from tinydet.data.scenery.ground import draw_ground
from tinydet.data.scenery.view import choose_view


def test_distractors_have_the_size_of_people_and_no_annotation() -> None:
    upright, people_sized = 0, 0
    for seed in range(8):
        generator = np.random.default_rng(seed)
        view = choose_view(generator, 256, 256)
        distractors = place_distractors(generator, view, draw_ground(generator, generator, view))
        assert not any(sprite.is_person for sprite in distractors)
        heights = np.array([sprite.box[3] - sprite.box[1] for sprite in distractors if not sprite.flat])
        upright += len(heights)
        people_sized += int(((heights >= 3) & (heights <= 24)).sum())
        assert visible_people(distractors, view) == []
    assert upright > 50
    assert people_sized > 0.5 * upright
