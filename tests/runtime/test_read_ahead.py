from __future__ import annotations

import numpy as np
import pytest

from tinydet.geometry.tiles import TileGrid
from tinydet.runtime.read_ahead import MAX_SKIPPED, ReadAhead
from tinydet.runtime.scenes import Scene
from tinydet.runtime.scenes.pixels import Image


class Holes(Scene):
    """The value of a pixel is the index of its tile; tiles in `empty` have no data; open handles are counted."""

    name, width, height = "holes", 640, 640

    def __init__(self, empty: set[int], open_handles: list[int] | None = None) -> None:
        self.empty, self.open_handles = empty, [] if open_handles is None else open_handles

    def is_empty(self, x: int, y: int, width: int, height: int) -> bool:
        return y // 64 * 10 + x // 64 in self.empty

    def reopen(self) -> Scene:
        self.open_handles.append(1)
        return Holes(self.empty, self.open_handles)

    def close(self) -> None:
        self.open_handles.pop()

    def _read(self, x: int, y: int, width: int, height: int, size: tuple[int, int]) -> Image:
        return np.full((size[1], size[0], 3), y // 64 * 10 + x // 64, np.uint8)


GRID = TileGrid(640, 640, 64, 0)
CASES = {
    "none": set(),
    "one": {5},
    "a row": set(range(20, 30)),
    "every other": set(range(0, 100, 2)),
    "the end": set(range(50, 100)),
    "all": set(range(100)),
    "all but the last": set(range(99)),
}


@pytest.mark.parametrize("empty", CASES.values(), ids=CASES)
@pytest.mark.parametrize("readers", [1, 3])
@pytest.mark.parametrize("batch", [1, 4, 7, 200])
def test_batches_hold_the_tiles_with_data_in_order_and_report_all_others(
    empty: set[int], readers: int, batch: int
) -> None:
    scene = Holes(empty)
    run, skipped, sizes = [], [], []
    for read in ReadAhead(scene, GRID.tiles, size=(64, 64), side=64, pad=(1, 2, 3), batch=batch, readers=readers):
        assert len(read.images) == len(read.tiles)
        assert [int(image[9, 9, 0]) for image in read.images] == [tile.index for tile in read.tiles]
        assert read.tiles or read.empty
        assert len(read.empty) <= MAX_SKIPPED + batch
        run += [tile.index for tile in read.tiles]
        skipped += [tile.index for tile in read.empty]
        if read.tiles:
            sizes.append(len(read.tiles))
    assert run == [i for i in range(100) if i not in empty]
    assert skipped == sorted(empty)
    assert all(size == batch for size in sizes[:-1])
    assert scene.open_handles == []


def test_filtered_tiles_are_reported_apart_from_empty_ones() -> None:
    reading = ReadAhead(
        Holes({3}),
        GRID.tiles[:12],
        size=(64, 64),
        side=64,
        pad=(0, 0, 0),
        batch=4,
        tile_filter=lambda pixels: int(pixels[0, 0, 0]) % 2 == 0,
    )
    reads = list(reading)
    assert [tile.index for read in reads for tile in read.filtered] == [1, 5, 7, 9, 11]
    assert [tile.index for read in reads for tile in read.empty] == [3]
    assert [[tile.index for tile in read.tiles] for read in reads] == [[0, 2, 4, 6], [8, 10]]


def test_handles_are_closed_if_the_caller_stops_early() -> None:
    scene = Holes(set())
    batches = iter(ReadAhead(scene, GRID.tiles, size=(64, 64), side=64, pad=(0, 0, 0), batch=4, readers=4))
    next(batches)
    assert len(scene.open_handles) == 3
    batches.close()  # type: ignore[attr-defined]
    assert scene.open_handles == []
