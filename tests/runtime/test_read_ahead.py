from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from tinydet.geometry.tiles import Tile, TileGrid
from tinydet.runtime.read_ahead import MAX_SKIPPED, Batch, ReadAhead, TileSet
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


def reading(*sets: TileSet, pad: tuple[int, int, int] = (0, 0, 0), **options: Any) -> Iterator[Batch]:
    waiting = list(sets)
    return iter(ReadAhead(lambda wait: waiting.pop(0) if waiting else None, side=64, pad=pad, **options))


def all_tiles(scene: Scene, tiles: Sequence[Tile] | None = None, size: tuple[int, int] = (64, 64)) -> TileSet:
    return TileSet(scene, GRID.tiles if tiles is None else tiles, size)


OUTCOMES: tuple[Any, Any] = ("read", "filtered")
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
    for batched in reading(all_tiles(scene), batch=batch, readers=readers):
        (read,) = batched.segments
        assert len(batched.images) == len(read.tiles)
        assert [int(image[9, 9, 0]) for image in batched.images] == [tile.index for tile in read.tiles]
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
    tiles = all_tiles(Holes({3}), GRID.tiles[:12])
    tiles = dataclasses.replace(tiles, tile_filter=lambda pixels: OUTCOMES[int(pixels[0, 0, 0]) % 2])
    batches = reading(tiles, batch=4)
    reads = [segment for batch in batches for segment in batch.segments]
    assert [tile.index for read in reads for tile in read.filtered] == [1, 5, 7, 9, 11]
    assert [tile.index for read in reads for tile in read.empty] == [3]
    assert [[tile.index for tile in read.tiles] for read in reads] == [[0, 2, 4, 6], [8, 10]]


@pytest.mark.parametrize("batch", [1, 4, 7])
def test_unfamiliar_tiles_are_run_and_counted_once(batch: int) -> None:
    tiles = all_tiles(Holes({3}))
    chosen = {index: ("filtered", "read", "unfamiliar")[index % 3] for index in range(100)}
    tiles = dataclasses.replace(tiles, tile_filter=lambda pixels: chosen[int(pixels[0, 0, 0])])
    reads = [segment for batch in reading(tiles, batch=batch, readers=3) for segment in batch.segments]
    assert [tile.index for read in reads for tile in read.tiles] == [i for i in range(100) if i % 3]
    assert sum(read.unfamiliar for read in reads) == sum(kind == "unfamiliar" for kind in chosen.values())
    counted = [(read.unfamiliar, sum(tile.index % 3 == 2 for tile in read.tiles)) for read in reads]
    assert all(said == found for said, found in counted)


def test_handles_are_closed_if_the_caller_stops_early() -> None:
    scene = Holes(set())
    batches = reading(all_tiles(scene), batch=4, readers=4)
    next(batches)
    assert len(scene.open_handles) == 3
    batches.close()  # type: ignore[attr-defined]
    assert scene.open_handles == []


@pytest.mark.parametrize("readers", [1, 3])
@pytest.mark.parametrize("batch", [1, 4, 7])
def test_tiles_of_several_sets_share_batches_and_keep_their_order(readers: int, batch: int) -> None:
    sets = [all_tiles(Holes({1}), GRID.tiles[: n % 5 + 1]) for n in range(20)]
    run, sizes = [], []
    for batched in reading(*sets, batch=batch, readers=readers):
        assert len(batched.images) == sum(len(segment.tiles) for segment in batched.segments)
        sizes.append(len(batched.images))
        shown = iter(batched.images)
        for segment in batched.segments:
            for tile, image in zip(segment.tiles, shown, strict=False):
                assert int(image[9, 9, 0]) == tile.index
                run.append((sets.index(segment.tile_set), tile.index))
    assert run == [(n, tile.index) for n, tiles in enumerate(sets) for tile in tiles.tiles if tile.index != 1]
    assert all(size == batch for size in sizes[:-1])


def test_a_buffer_shows_nothing_of_a_larger_tile_that_it_held_before() -> None:
    sizes = [(64, 64), (30, 50), (64, 20), (9, 9), (64, 64), (50, 30)]
    sets = [all_tiles(Holes(set()), GRID.tiles[5:6], size) for size in sizes]
    for n, batched in enumerate(reading(*sets, pad=(1, 2, 3), batch=1)):
        width, height = sizes[n]
        expected = np.full((64, 64, 3), (1, 2, 3), np.uint8)
        expected[:height, :width] = 5
        assert np.array_equal(batched.images[0], expected)


class Torn(Holes):
    """Damaged from the tile 6 on."""

    def reopen(self) -> Scene:
        self.open_handles.append(1)
        return Torn(self.empty, self.open_handles)

    def _read(self, x: int, y: int, width: int, height: int, size: tuple[int, int]) -> Image:
        if y // 64 * 10 + x // 64 >= 6:
            raise ValueError("torn")
        return super()._read(x, y, width, height, size)


@pytest.mark.parametrize("readers", [1, 3])
@pytest.mark.parametrize("batch", [1, 4, 7])
def test_a_damaged_scene_does_not_affect_the_others(readers: int, batch: int) -> None:
    torn = Torn(set())
    sets = [all_tiles(scene, GRID.tiles[:30]) for scene in (Holes(set()), torn, Holes(set()))]
    segments = [segment for batched in reading(*sets, batch=batch, readers=readers) for segment in batched.segments]
    for n, tile_set in enumerate(sets):
        mine = [segment for segment in segments if segment.tile_set is tile_set]
        count = sum(len(segment.tiles) for segment in mine)
        assert count == (6 if n == 1 else 30)
        assert [str(segment.error) for segment in mine if segment.error] == (["torn"] if n == 1 else [])
    assert torn.open_handles == []


def test_results_of_a_scene_never_overtake_those_of_an_earlier_one() -> None:
    sets = [all_tiles(Holes(set()), GRID.tiles[:3]), all_tiles(Holes(set(range(100)))), all_tiles(Holes({0}))]
    seen = [segment.tile_set for batched in reading(*sets, batch=4) for segment in batched.segments]
    assert [sets.index(tile_set) for tile_set in seen] == sorted(sets.index(tile_set) for tile_set in seen)
