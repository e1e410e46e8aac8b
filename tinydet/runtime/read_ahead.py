"""Read tiles ahead of the model: several threads, each with its own handle, fill a ring of buffers.

Memory holds a few batches, whatever the size of the scene. Batches contain the tiles in their order, independent of
thread timing, so a run is reproducible.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from queue import SimpleQueue
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tinydet.geometry.tiles import Tile
from tinydet.runtime.scenes import Scene
from tinydet.runtime.scenes.pixels import Image

AHEAD = 2  # batches that are read while one runs
READERS = 2  # default number of threads
MAX_SKIPPED = 64  # skipped tiles are reported in groups of about this size

TileFilter = Callable[[Image], bool]  # pixels (H, W, 3) of a tile -> whether the model must run on it
Outcome = Literal["read", "empty", "filtered"]


@dataclass(frozen=True)
class Batch:
    """Tiles to run, and the tiles that were skipped on the way to them.

    Attributes:
        tiles: tiles to run; none after a long run of skipped tiles.
        images: (N, T, T, 3), one per tile to run; valid until the next batch is requested.
        empty: skipped tiles without a pixel of data.
        filtered: skipped tiles that the tile filter rejected.
    """

    tiles: list[Tile]
    images: Image
    empty: list[Tile]
    filtered: list[Tile]


class ReadAhead:
    """Iterator over batches of tiles; for one use."""

    def __init__(
        self,
        scene: Scene,
        tiles: Sequence[Tile],
        *,
        size: tuple[int, int],
        side: int,
        pad: tuple[int, int, int],
        batch: int,
        readers: int = READERS,
        tile_filter: TileFilter | None = None,
    ) -> None:
        """
        Args:
            size: (width, height) of a tile's content in the model's input; the rest is `pad`.
            side: T, side of the model's input.
            pad: RGB.
            batch: tiles per batch; the last one may be smaller.
            readers: maximum number of threads.
            tile_filter: tiles for which it returns False are skipped; None runs all tiles that have data.
        """
        self._scene, self._tiles, self._batch, self._tile_filter = scene, tiles, batch, tile_filter
        self._width, self._height = size
        slots = min((AHEAD + 1) * batch, -(-len(tiles) // batch) * batch)
        # Buffers are reused: allocating memory costs more than copying a tile into it. Only the content is overwritten.
        self._buffer = np.empty((slots, side, side, 3), np.uint8)
        self._buffer[:, self._height :] = pad
        self._buffer[:, :, self._width :] = pad
        self._gathered: Image | None = None
        self._readers = readers

    def __iter__(self) -> Iterator[Batch]:
        handles, opened = self._handles()
        pool = ThreadPoolExecutor(handles.qsize(), thread_name_prefix="tinydet-read")
        try:
            yield from self._batches(pool, handles)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            for scene in opened:
                scene.close()

    def _batches(self, pool: ThreadPoolExecutor, handles: SimpleQueue[Scene]) -> Iterator[Batch]:
        free = deque(range(len(self._buffer)))
        ahead = iter(self._tiles)
        pending: deque[tuple[list[Tile], list[int], Future[list[Outcome]]]] = deque()
        tiles: list[Tile] = []
        slots: list[int] = []
        skipped: dict[Outcome, list[Tile]] = {"empty": [], "filtered": []}
        while True:
            # Submit a whole batch at a time: submitting costs as much as copying a tile.
            while free and (len(free) >= self._batch or not pending):
                submitted = list(islice(ahead, min(self._batch, len(free))))
                if not submitted:
                    break
                targets = [free.popleft() for _ in submitted]
                pending.append((submitted, targets, pool.submit(self._read, handles, submitted, targets)))
            if not pending:
                break
            submitted, targets, future = pending.popleft()
            for tile, slot, outcome in zip(submitted, targets, future.result(), strict=True):
                if outcome == "read":
                    tiles.append(tile)
                    slots.append(slot)
                else:
                    skipped[outcome].append(tile)
                    free.append(slot)
                if len(tiles) == self._batch:
                    yield Batch(tiles, self._images(slots), skipped["empty"], skipped["filtered"])
                    free.extend(slots)
                    tiles, slots, skipped = [], [], {"empty": [], "filtered": []}
            if sum(map(len, skipped.values())) >= MAX_SKIPPED:
                yield Batch([], self._buffer[:0], skipped["empty"], skipped["filtered"])
                skipped = {"empty": [], "filtered": []}
        if tiles or any(skipped.values()):
            yield Batch(tiles, self._images(slots), skipped["empty"], skipped["filtered"])

    def _read(self, handles: SimpleQueue[Scene], tiles: list[Tile], slots: list[int]) -> list[Outcome]:
        scene = handles.get()
        try:
            return [self._read_tile(scene, tile, slot) for tile, slot in zip(tiles, slots, strict=True)]
        finally:
            handles.put(scene)

    def _read_tile(self, scene: Scene, tile: Tile, slot: int) -> Outcome:
        if scene.is_empty(tile.x, tile.y, tile.width, tile.height):
            return "empty"
        content = self._buffer[slot, : self._height, : self._width]
        content[:] = scene.read(tile.x, tile.y, tile.width, tile.height, (self._width, self._height))
        return "read" if self._tile_filter is None or self._tile_filter(content) else "filtered"

    def _images(self, slots: list[int]) -> NDArray[np.uint8]:
        """Return the buffers of a batch: a view if they are contiguous, else a copy."""
        if not slots:
            return self._buffer[:0]
        if slots == list(range(slots[0], slots[0] + len(slots))):
            return self._buffer[slots[0] : slots[0] + len(slots)]
        if self._gathered is None:
            self._gathered = np.empty_like(self._buffer[: self._batch])
        return np.take(self._buffer, slots, axis=0, out=self._gathered[: len(slots)], mode="clip")

    def _handles(self) -> tuple[SimpleQueue[Scene], list[Scene]]:
        """Return a handle of the scene for each thread, and those of them that must be closed."""
        handles: SimpleQueue[Scene] = SimpleQueue()
        handles.put(self._scene)
        opened: list[Scene] = []
        for _ in range(min(self._readers, len(self._tiles)) - 1):
            more = self._scene.reopen()
            if more is None:
                break
            handles.put(more)
            if more is not self._scene:
                opened.append(more)
        return handles, opened
