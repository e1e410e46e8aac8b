"""Tiles read ahead of the model: threads with a handle each, into buffers that go round.

Memory holds a few batches, whatever the size of the scene. Batches are made of the tiles in their order, however the
threads are timed, so that a run can be repeated exactly.
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
READERS = 2  # threads, where the scene lets itself be read by more than one
PASSED_AT_ONCE = 64  # tiles without a picture that are told together

Outcome = Literal["seen", "empty", "plain"]


@dataclass(frozen=True)
class Batch:
    """Tiles to run, and those that were passed over on the way to them.

    Attributes:
        tiles: with a picture each; none where a long stretch was passed over.
        images: (N, T, T, 3), valid until the next batch is asked for.
        empty: tiles without a pixel of data.
        plain: tiles that `worth` refused.
    """

    tiles: list[Tile]
    images: Image
    empty: list[Tile]
    plain: list[Tile]


class ReadAhead:
    """Iterates over batches of tiles; to be used once."""

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
        worth: Callable[[Image], bool] | None = None,
    ) -> None:
        """
        Args:
            size: (width, height) that the picture of a tile has in the model's input; the rest is `pad`.
            side: T, of the model's input.
            batch: tiles in each but the last.
            readers: threads at most.
            worth: whether a picture is worth running; None runs all that have data.
        """
        self._scene, self._tiles, self._batch, self._worth = scene, tiles, batch, worth
        self._width, self._height = size
        slots = min((AHEAD + 1) * batch, -(-len(tiles) // batch) * batch)
        # They go round: fresh memory costs more than copying a tile into it. The padding stays as it is.
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
        passed: dict[Outcome, list[Tile]] = {"empty": [], "plain": []}
        while True:
            # A batch's worth at a time: handing over costs as much as copying a tile does.
            while free and (len(free) >= self._batch or not pending):
                some = list(islice(ahead, min(self._batch, len(free))))
                if not some:
                    break
                places = [free.popleft() for _ in some]
                pending.append((some, places, pool.submit(self._read, handles, some, places)))
            if not pending:
                break
            some, places, future = pending.popleft()
            for tile, slot, outcome in zip(some, places, future.result(), strict=True):
                if outcome == "seen":
                    tiles.append(tile)
                    slots.append(slot)
                else:
                    passed[outcome].append(tile)
                    free.append(slot)
                if len(tiles) == self._batch:
                    yield Batch(tiles, self._pictures(slots), passed["empty"], passed["plain"])
                    free.extend(slots)
                    tiles, slots, passed = [], [], {"empty": [], "plain": []}
            if sum(map(len, passed.values())) >= PASSED_AT_ONCE:
                yield Batch([], self._buffer[:0], passed["empty"], passed["plain"])
                passed = {"empty": [], "plain": []}
        if tiles or any(passed.values()):
            yield Batch(tiles, self._pictures(slots), passed["empty"], passed["plain"])

    def _read(self, handles: SimpleQueue[Scene], tiles: list[Tile], slots: list[int]) -> list[Outcome]:
        scene = handles.get()
        try:
            return [self._read_tile(scene, tile, slot) for tile, slot in zip(tiles, slots, strict=True)]
        finally:
            handles.put(scene)

    def _read_tile(self, scene: Scene, tile: Tile, slot: int) -> Outcome:
        if scene.is_empty(tile.x, tile.y, tile.width, tile.height):
            return "empty"
        picture = self._buffer[slot, : self._height, : self._width]
        picture[:] = scene.read(tile.x, tile.y, tile.width, tile.height, (self._width, self._height))
        return "seen" if self._worth is None or self._worth(picture) else "plain"

    def _pictures(self, slots: list[int]) -> NDArray[np.uint8]:
        """The buffers of a batch: themselves where they lie side by side, else a copy."""
        if not slots:
            return self._buffer[:0]
        if slots == list(range(slots[0], slots[0] + len(slots))):
            return self._buffer[slots[0] : slots[0] + len(slots)]
        if self._gathered is None:
            self._gathered = np.empty_like(self._buffer[: self._batch])
        return np.take(self._buffer, slots, axis=0, out=self._gathered[: len(slots)], mode="clip")

    def _handles(self) -> tuple[SimpleQueue[Scene], list[Scene]]:
        """The scene and what it gives for further threads; of these, the ones to close."""
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
