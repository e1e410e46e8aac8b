from __future__ import annotations

import itertools

import numpy as np
import pytest

from tinydet.geometry.tiles import TileGrid

CASES = [
    (length, tile, overlap) for length, tile in itertools.product(range(1, 70), range(1, 13)) for overlap in range(tile)
]


def test_every_object_no_larger_than_the_overlap_lies_whole_inside_a_tile() -> None:
    for length, tile, overlap in CASES:
        starts = np.array(TileGrid(length, 1, tile, overlap).xs)
        size = min(overlap, length)
        low = np.arange(0, length - size + 0.25, 0.5)[:, None]
        inside = (starts <= low) & (low + size <= starts + min(tile, length))
        assert inside.any(axis=1).all(), (length, tile, overlap)


def test_tiles_cover_the_image_lie_inside_it_and_have_one_size() -> None:
    for length, tile, overlap in CASES:
        grid = TileGrid(length, 5, tile, overlap)
        covered = np.zeros(length, bool)
        for one in grid.tiles:
            assert one.width == grid.tile_width == min(tile, length)
            assert 0 <= one.x <= length - one.width
            covered[one.x : one.x + one.width] = True
        assert covered.all()
        assert list(grid.xs) == sorted(set(grid.xs))


def test_no_grid_of_fewer_tiles_keeps_the_overlap() -> None:
    for length, tile, overlap in CASES:
        count = TileGrid(length, 1, tile, overlap).columns
        assert count == 1 or tile + (count - 2) * (tile - overlap) < length


@pytest.mark.parametrize("length", [1152, 4096, 4100, 6175, 50000])
def test_all_tiles_but_the_last_start_on_a_cell_of_the_coarsest_level(length: int) -> None:
    starts = TileGrid(length, 640, 640, 128).xs
    assert starts[-1] == length - 640
    assert all(start % 64 == 0 for start in starts[:-1])
    assert max(np.diff(starts)) <= 512


def test_tiles_are_indexed_row_by_row() -> None:
    grid = TileGrid(100, 70, 40, 8)
    assert [tile.index for tile in grid.tiles] == list(range(len(grid)))
    assert [(tile.row, tile.column) for tile in grid.tiles] == list(
        itertools.product(range(grid.rows), range(grid.columns))
    )
    bounds = grid.bounds(np.array([tile.index for tile in grid.tiles]))
    assert bounds.tolist() == [[t.x, t.y, t.x + t.width, t.y + t.height] for t in grid.tiles]


def test_an_image_smaller_than_a_tile_has_one_tile_of_its_size() -> None:
    (tile,) = TileGrid(100, 70, 640, 128).tiles
    assert (tile.x, tile.y, tile.width, tile.height) == (0, 0, 100, 70)


@pytest.mark.parametrize("overlap", [-1, 64, 100])
def test_an_overlap_outside_the_tile_is_refused(overlap: int) -> None:
    with pytest.raises(ValueError, match=f"smaller than the tile of 64, got {overlap}"):
        TileGrid(100, 100, 64, overlap)


def test_an_image_without_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match="0x10"):
        TileGrid(0, 10, 64, 8)
