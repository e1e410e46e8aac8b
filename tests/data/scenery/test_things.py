from __future__ import annotations

import numpy as np

from tinydet.data.scenery.compositing import visible_people
from tinydet.data.scenery.ground import lay_ground
from tinydet.data.scenery.things import place_things
from tinydet.data.scenery.view import choose_view


def test_things_that_are_no_people_stand_about_without_annotation() -> None:
    upright, people_sized = 0, 0
    for seed in range(8):
        generator = np.random.default_rng(seed)
        view = choose_view(generator, 256, 256)
        things = place_things(generator, view, lay_ground(generator, generator, view))
        assert not any(thing.person for thing in things)
        heights = np.array([thing.outline[3] - thing.outline[1] for thing in things if not thing.flat])
        upright += len(heights)
        people_sized += int(((heights >= 3) & (heights <= 24)).sum())
        assert visible_people(things, view) == []
    assert upright > 50
    assert people_sized > 0.5 * upright
