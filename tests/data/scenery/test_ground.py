from __future__ import annotations

import numpy as np
import pytest

from tinydet.data.scenery import ground, water
from tinydet.data.scenery.ground import draw_ground
from tinydet.data.scenery.view import choose_view


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_the_strip_height_does_not_change_the_result(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw() -> list[np.ndarray]:
        colors = []
        for seed in range(8):
            generator = np.random.default_rng(seed)
            view = choose_view(generator, 130, 75)
            colors.append(draw_ground(generator, generator, view).color)
        return colors

    expected = draw()
    monkeypatch.setattr(ground, "STRIP_ROWS", rows)
    monkeypatch.setattr(water, "STRIP_ROWS", rows)
    assert all(np.array_equal(one, other) for one, other in zip(draw(), expected, strict=True))


def test_the_ground_can_be_queried_inside_and_outside_the_image() -> None:
    generator = np.random.default_rng(3)
    drawn = draw_ground(generator, generator, choose_view(generator, 64, 48))
    for y in range(48):
        for x in range(64):
            distance = drawn.shore_distance_at(x + 0.5, y + 0.5)
            assert distance == drawn.shore_distance[y, x]
            band = int((drawn.borders < distance).sum())
            assert drawn.material(x + 0.5, y + 0.5) == ("water" if distance < 0 else drawn.bands[band])
    assert drawn.shore_distance_at(-9, -9) == drawn.shore_distance[0, 0]
    assert drawn.shore_distance_at(900, 900) == drawn.shore_distance[-1, -1]
