from __future__ import annotations

import numpy as np
import pytest

from tinydet.data.scenery import ground, water
from tinydet.data.scenery.ground import lay_ground
from tinydet.data.scenery.view import choose_view


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_how_many_rows_are_computed_at_a_time_leaves_no_trace(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def laid() -> list[np.ndarray]:
        colours = []
        for seed in range(8):
            generator = np.random.default_rng(seed)
            view = choose_view(generator, 130, 75)
            colours.append(lay_ground(generator, generator, view).colour)
        return colours

    expected = laid()
    monkeypatch.setattr(ground, "ROWS", rows)
    monkeypatch.setattr(water, "ROWS", rows)
    assert all(np.array_equal(one, other) for one, other in zip(laid(), expected, strict=True))


def test_the_ground_is_known_where_it_is_asked_for_and_beyond_the_border() -> None:
    generator = np.random.default_rng(3)
    laid = lay_ground(generator, generator, choose_view(generator, 64, 48))
    for y in range(48):
        for x in range(64):
            inland = laid.from_shore(x + 0.5, y + 0.5)
            assert inland == laid.inland[y, x]
            band = int((laid.borders < inland).sum())
            assert laid.material(x + 0.5, y + 0.5) == ("water" if inland < 0 else laid.bands[band])
    assert laid.from_shore(-9, -9) == laid.inland[0, 0]
    assert laid.from_shore(900, 900) == laid.inland[-1, -1]
