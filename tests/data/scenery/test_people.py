from __future__ import annotations

import numpy as np
import pytest

from tinydet.data.scenery.ground import lay_ground
from tinydet.data.scenery.people import _pull, place_people
from tinydet.data.scenery.sprites import Sprite
from tinydet.data.scenery.view import choose_view


@pytest.fixture(scope="module")
def figures() -> list[Sprite]:
    """People of many scenes, each alone, none of them hidden by another."""
    sprites = []
    for seed in range(25):
        generator = np.random.default_rng(seed)
        view = choose_view(generator, 256, 256)
        ground = lay_ground(generator, generator, view)
        sprites += [sprite for sprite in place_people(generator, view, ground, 400) if sprite.person]
    return sprites


def test_people_are_of_3_to_24_pixels_and_mostly_tiny(figures: list[Sprite]) -> None:
    x1, y1, x2, y2 = np.array([figure.outline for figure in figures]).T
    heights, sizes = y2 - y1, np.sqrt((x2 - x1) * (y2 - y1))
    assert len(figures) > 300
    assert heights.min() >= 3
    assert heights.max() <= 24
    assert 7.5 <= np.median(sizes) <= 10.5
    assert (sizes < 4).any()
    assert (sizes > 16).any()


def test_an_outline_is_tight_around_its_person(figures: list[Sprite]) -> None:
    for figure in figures:
        rows, columns = (np.flatnonzero(figure.cover.any(axis=axis)) for axis in (1, 0))
        x1, y1, x2, y2 = figure.outline
        touched = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)  # of whole pixels
        box = (x1 - figure.left, y1 - figure.top, x2 - figure.left, y2 - figure.top)
        assert touched == (np.floor(box[0]), np.floor(box[1]), np.ceil(box[2]), np.ceil(box[3]))


def test_people_gather_where_people_like_to_be() -> None:
    ratios = []
    for seed in range(12):
        generator = np.random.default_rng(seed)
        view = choose_view(generator, 256, 256)
        ground = lay_ground(generator, generator, view)
        people = [sprite for sprite in place_people(generator, view, ground, 800) if sprite.person]
        chosen = np.mean([_pull(ground, view, *sprite.base) for sprite in people])
        anywhere = np.mean([_pull(ground, view, x, y) for x in range(0, 256, 8) for y in range(0, 256, 8)])
        ratios.append(chosen / anywhere)
    assert np.mean(ratios) > 1.15
