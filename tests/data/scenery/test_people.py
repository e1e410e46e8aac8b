from __future__ import annotations

import numpy as np
import pytest

from tinydet.data.scenery.ground import draw_ground
from tinydet.data.scenery.people import _attraction, place_people
from tinydet.data.scenery.sprites import Sprite
from tinydet.data.scenery.view import choose_view


@pytest.fixture(scope="module")
def figures() -> list[Sprite]:
    """People of many scenes, as separate sprites without occlusion."""
    sprites = []
    for seed in range(25):
        generator = np.random.default_rng(seed)
        view = choose_view(generator, 256, 256)
        ground = draw_ground(generator, generator, view)
        sprites += [sprite for sprite in place_people(generator, view, ground, 400) if sprite.is_person]
    return sprites


def test_people_are_3_to_24_pixels_tall_and_mostly_tiny(figures: list[Sprite]) -> None:
    x1, y1, x2, y2 = np.array([figure.box for figure in figures]).T
    heights, sizes = y2 - y1, np.sqrt((x2 - x1) * (y2 - y1))
    assert len(figures) > 300
    assert heights.min() >= 3
    assert heights.max() <= 24
    assert 7.5 <= np.median(sizes) <= 10.5
    assert (sizes < 4).any()
    assert (sizes > 16).any()


def test_the_box_is_tight_around_its_person(figures: list[Sprite]) -> None:
    for figure in figures:
        rows, columns = (np.flatnonzero(figure.coverage.any(axis=axis)) for axis in (1, 0))
        x1, y1, x2, y2 = figure.box
        touched = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)  # in whole pixels
        box = (x1 - figure.left, y1 - figure.top, x2 - figure.left, y2 - figure.top)
        assert touched == (np.floor(box[0]), np.floor(box[1]), np.ceil(box[2]), np.ceil(box[3]))


def test_people_gather_at_attractive_positions() -> None:
    ratios = []
    for seed in range(12):
        generator = np.random.default_rng(seed)
        view = choose_view(generator, 256, 256)
        ground = draw_ground(generator, generator, view)
        people = [sprite for sprite in place_people(generator, view, ground, 800) if sprite.is_person]
        chosen = np.mean([_attraction(ground, view, *sprite.base) for sprite in people])
        anywhere = np.mean([_attraction(ground, view, x, y) for x in range(0, 256, 8) for y in range(0, 256, 8)])
        ratios.append(chosen / anywhere)
    assert np.mean(ratios) > 1.15
