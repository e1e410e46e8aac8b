"""Read tiles ahead of the model: threads, each with its own handle, fill a ring of buffers.

The tiles come from a stream of scenes, and a batch may hold tiles of several. Memory holds a few batches, whatever the
number and the size of the scenes. Batches contain the tiles in their order, independent of thread timing, so a run is
reproducible.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tinydet.geometry.tiles import Tile
from tinydet.runtime.scenes import Scene
from tinydet.runtime.scenes.pixels import Image

AHEAD = 2  # batches that are read while one runs
READERS = 2  # default number of threads
MAX_SKIPPED = 64  # skipped tiles are reported in groups of about this size

# "unfamiliar": the tile filter does not know, so the model must run.
Outcome = Literal["read", "empty", "filtered", "unfamiliar"]
TileFilter = Callable[[Image], Outcome]  # pixels (H, W, 3) of a tile -> "read", "filtered" or "unfamiliar"


@dataclass(frozen=True, eq=False)
class TileSet:
    """Tiles to read from one scene, at one scale.

    Attributes:
        scene: a handle that no other thread uses.
        tiles: one or more.
        size: (width, height) of a tile's content in the model's input.
        owner: of the caller; not used here.
        tile_filter: decides which tiles to run; None for all that have data.
    """

    scene: Scene
    tiles: Sequence[Tile]
    size: tuple[int, int]
    owner: Any = None
    tile_filter: TileFilter | None = None


@dataclass
class Segment:
    """The part of a batch that belongs to one set of tiles.

    Attributes:
        tiles: tiles to run.
        empty: skipped tiles without a pixel of data.
        filtered: skipped tiles that the tile filter rejected.
        unfamiliar: number of the tiles to run that the tile filter does not know.
        error: why the scene cannot be read any further; its other tiles are left out.
    """

    tile_set: TileSet
    tiles: list[Tile] = field(default_factory=list)
    empty: list[Tile] = field(default_factory=list)
    filtered: list[Tile] = field(default_factory=list)
    unfamiliar: int = 0
    error: Exception | None = None


@dataclass(frozen=True)
class Batch:
    """Tiles to run, and the tiles that were skipped on the way to them.

    Attributes:
        images: (N, T, T, 3), one per tile to run, in the order of the segments; valid until the next batch is
            requested. None after a long run of skipped tiles.
        segments: in the order of the sets.
    """

    images: Image
    segments: list[Segment]


NextSet = Callable[[bool], TileSet | None]


class ReadAhead:
    """Iterator over batches of tiles; for one use."""

    def __init__(
        self,
        next_set: NextSet,
        *,
        side: int,
        pad: tuple[int, int, int],
        batch: int,
        readers: int = READERS,
        most: int | None = None,
    ) -> None:
        """
        Args:
            next_set: returns the next set of tiles. It is called with True if no batch can be filled without it. It
                returns None if there is none: with False, if there is none yet; with True, if there is none before the
                tiles that were read so far have been run.
            side: T, side of the model's input.
            pad: RGB of the pixels beyond a tile's content.
            batch: tiles per batch; the last one may be smaller.
            readers: maximum number of threads.
            most: number of all tiles, if it is known; saves memory if there are few.
        """
        self._next_set, self._batch, self._pad = next_set, batch, pad
        slots = (AHEAD + 1) * batch if most is None else min((AHEAD + 1) * batch, -(-most // batch) * batch)
        # Buffers are reused: allocating memory costs more than copying a tile into it.
        self._buffer = np.empty((slots, side, side, 3), np.uint8)
        self._padded: list[tuple[int, int] | None] = [None] * slots  # content sizes
        self._gathered: Image | None = None
        self._threads = [ThreadPoolExecutor(1, thread_name_prefix="tinydet-read") for _ in range(readers)]
        self._first_thread = 0
        self._current: _Reading | None = None  # not all of its tiles are submitted
        self._open: dict[TileSet, _Reading] = {}

    def drop(self, tile_set: TileSet) -> None:
        """Stop reading a set. Batches may still hold tiles of it that were read before."""
        reading = self._open.get(tile_set)
        if reading is not None:
            reading.dropped = True
            self._close_if_done(reading)

    def __iter__(self) -> Generator[Batch, None, None]:
        try:
            yield from self._batches()
        finally:
            for thread in self._threads:
                thread.shutdown(wait=True, cancel_futures=True)
            for reading in self._open.values():
                reading.close()

    def _batches(self) -> Generator[Batch, None, None]:
        free = deque(range(len(self._buffer)))
        pending: deque[_Submission] = deque()
        segments: list[Segment] = []
        slots: list[int] = []  # of the tiles to run, over all segments
        while True:
            # Submit a whole batch at a time: submitting costs as much as copying a tile.
            while free and (len(free) >= self._batch or not pending):
                submission = self._submit(free, wait=not pending)
                if submission is None:
                    break
                pending.append(submission)
            if not pending:
                if not segments:
                    return
                yield Batch(self._images(slots), segments)
                free.extend(slots)
                segments, slots = [], []
                continue
            submission = pending.popleft()
            outcomes, error = self._finish(submission)
            free.extend(submission.slots[len(outcomes) :])
            segment = Segment(submission.reading.tile_set)
            for tile, slot, outcome in zip(submission.tiles, submission.slots, outcomes, strict=False):
                if outcome in ("empty", "filtered"):
                    (segment.empty if outcome == "empty" else segment.filtered).append(tile)
                    free.append(slot)
                    continue
                segment.tiles.append(tile)
                segment.unfamiliar += outcome == "unfamiliar"
                slots.append(slot)
                if len(slots) == self._batch:
                    yield Batch(self._images(slots), _joined(segments, segment))
                    free.extend(slots)
                    segments, slots, segment = [], [], Segment(segment.tile_set)
            segment.error = error
            segments = _joined(segments, segment)
            if sum(len(segment.empty) + len(segment.filtered) for segment in segments) < MAX_SKIPPED:
                continue
            if len(segments) > 1:  # the results of a scene must not overtake those of an earlier one
                yield Batch(self._images(slots), segments)
                free.extend(slots)
                segments, slots = [], []
            else:
                (segment,) = segments
                yield Batch(self._buffer[:0], [Segment(segment.tile_set, [], segment.empty, segment.filtered)])
                kept = Segment(segment.tile_set, segment.tiles, unfamiliar=segment.unfamiliar, error=segment.error)
                segments = _joined([], kept)

    def _submit(self, free: deque[int], *, wait: bool) -> _Submission | None:
        """Give up to a batch of the next tiles to a thread; return None if there are none now."""
        while self._current is None or self._current.dropped:
            tile_set = self._next_set(wait)
            self._current = None if tile_set is None else _Reading(tile_set)
            if self._current is None:
                return None
            self._open[self._current.tile_set] = self._current
        reading = self._current
        if not reading.handles:
            try:
                reading.open(len(self._threads))
            except Exception as error:
                return self._failed(reading, error)
        tiles = list(islice(reading.ahead, min(self._batch, len(free))))
        slots = [free.popleft() for _ in tiles]
        handle = reading.submitted % len(reading.handles)
        thread = self._threads[(self._first_thread + handle) % len(self._threads)]
        future = thread.submit(self._read, reading, handle, tiles, slots)
        reading.submitted += 1
        reading.left -= len(tiles)
        reading.in_flight += 1
        if not reading.left:
            self._first_thread += len(reading.handles)
            self._current = None
        return _Submission(reading, tiles, slots, future)

    def _failed(self, reading: _Reading, error: Exception) -> _Submission:
        future: Future[_Outcomes] = Future()
        future.set_result(([], error))
        reading.left, reading.in_flight, self._current = 0, 1, None
        return _Submission(reading, [], [], future)

    def _finish(self, submission: _Submission) -> _Outcomes:
        """Wait for a submission; return nothing of it if its set was dropped. Close what is not needed any more."""
        reading = submission.reading
        outcomes, error = submission.future.result()
        if reading.dropped:
            outcomes, error = [], None
        elif error is not None:
            reading.dropped = True
        reading.in_flight -= 1
        self._close_if_done(reading)
        return outcomes, error

    def _close_if_done(self, reading: _Reading) -> None:
        if not reading.in_flight and (reading.dropped or not reading.left):
            del self._open[reading.tile_set]
            reading.close()

    def _read(self, reading: _Reading, handle: int, tiles: list[Tile], slots: list[int]) -> _Outcomes:
        """Read tiles into buffers. Return what became of each, up to the first error, and the error."""
        outcomes: list[Outcome] = []
        try:
            for tile, slot in zip(tiles, slots, strict=True):
                if reading.dropped:
                    break
                outcomes.append(self._read_tile(reading.tile_set, reading.handles[handle], tile, slot))
        except Exception as error:
            return outcomes, error
        return outcomes, None

    def _read_tile(self, tile_set: TileSet, scene: Scene, tile: Tile, slot: int) -> Outcome:
        if scene.is_empty(tile.x, tile.y, tile.width, tile.height):
            return "empty"
        width, height = size = tile_set.size
        if self._padded[slot] != size:  # tiles of one size overwrite only the content
            self._buffer[slot, height:] = self._pad
            self._buffer[slot, :, width:] = self._pad
            self._padded[slot] = size
        content = self._buffer[slot, :height, :width]
        content[:] = scene.read(tile.x, tile.y, tile.width, tile.height, size)
        return "read" if tile_set.tile_filter is None else tile_set.tile_filter(content)

    def _images(self, slots: list[int]) -> NDArray[np.uint8]:
        """Return the buffers of a batch: a view if they are contiguous, else a copy."""
        if not slots:
            return self._buffer[:0]
        if slots == list(range(slots[0], slots[0] + len(slots))):
            return self._buffer[slots[0] : slots[0] + len(slots)]
        if self._gathered is None:
            self._gathered = np.empty_like(self._buffer[: self._batch])
        return np.take(self._buffer, slots, axis=0, out=self._gathered[: len(slots)], mode="clip")


class _Reading:
    """A set that is being read, with a handle of its scene for each of the threads that read it.

    Attributes:
        ahead: the tiles that are not submitted yet.
        left: the number of these.
        submitted: number of submissions.
        in_flight: number of submissions that are not finished.
        dropped: whether the other tiles are not to be read.
    """

    def __init__(self, tile_set: TileSet) -> None:
        self.tile_set, self.ahead, self.left = tile_set, iter(tile_set.tiles), len(tile_set.tiles)
        self.submitted = self.in_flight = 0
        self.dropped = False
        self.handles: list[Scene] = []

    def open(self, readers: int) -> None:
        """Open the handles, which the format of the scene may limit to one."""
        scene = self.tile_set.scene
        self.handles.append(scene)
        for _ in range(min(readers, self.left) - 1):
            more = scene.reopen()
            if more is None:
                break
            self.handles.append(more)

    def close(self) -> None:
        for handle in self.handles[1:]:
            if handle is not self.tile_set.scene:
                handle.close()


@dataclass(frozen=True)
class _Submission:
    reading: _Reading
    tiles: list[Tile]
    slots: list[int]
    future: Future[_Outcomes]


_Outcomes = tuple[list[Outcome], Exception | None]


def _joined(segments: list[Segment], last: Segment) -> list[Segment]:
    """Append a segment; join it to the one before if that is of the same set, and leave it out if it says nothing."""
    if not (last.tiles or last.empty or last.filtered or last.error):
        return segments
    if not segments or segments[-1].tile_set is not last.tile_set:
        return [*segments, last]
    before = segments[-1]
    before.tiles += last.tiles
    before.empty += last.empty
    before.filtered += last.filtered
    before.unfamiliar += last.unfamiliar
    before.error = last.error
    return segments
