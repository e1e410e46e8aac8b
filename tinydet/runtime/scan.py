"""From scenes to their detections: read tiles ahead, run the model on batches, stitch.

Tiles of several scenes share batches. Memory holds a few batches and the boxes of two rows of tiles, whatever the size
of a scene. Evaluation, validation during training and inference all use `scan_scenes`, so what is scored is what ships.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.progress import Progress
from tinydet.runtime.backends import Backend, TileOutputs, check_outputs
from tinydet.runtime.coarse import larger_than
from tinydet.runtime.detections import Detections
from tinydet.runtime.journal import BatchRecord, RecordStore
from tinydet.runtime.options import ScanOptions
from tinydet.runtime.pieces import Piece
from tinydet.runtime.plan import ScanPlan, Tiling, plan_scan
from tinydet.runtime.read_ahead import Batch, ReadAhead, Segment, TileFilter, TileSet
from tinydet.runtime.scenes import Scene
from tinydet.runtime.score_calibration import calibrate, score_thresholds
from tinydet.runtime.stitch import Stitcher
from tinydet.spec import ModelSpec

T = TypeVar("T")

OPEN_PIXELS = 1 << 26  # of all scenes that are open ahead, about 200 MB; one larger scene is open alone
MOST_OPEN = 64  # scenes; each may hold the files of a raster and a journal, and macOS allows 256 files by default


@dataclass(frozen=True, kw_only=True)
class ScanCounts:
    """Counts over some tiles.

    Attributes:
        tiles: finished tiles in all passes, including the skipped ones.
        coarse: those of the coarse pass among them.
        empty: tiles that were skipped because they have no data: all pixels are nodata or transparent.
        filtered: tiles that the tile filter rejected.
        unfamiliar: tiles that were run because the tile filter does not know images like them.
        saturated: tiles with more boxes than the model has slots, all slots above the requested score: boxes were lost.
        busy: seconds in the backend.
        unconverged: proposals whose suppression in the graph did not converge, see `TileOutputs`; only of tiles that
            this run processed, not of tiles from a journal.
        cut: the score from which on no box was lost for lack of slots; -inf if none was lost, see `saturated`. Of a
            calibrated model, the calibrated score of the class for which it is highest. Only of
            tiles that this run processed.
    """

    tiles: int = 0
    coarse: int = 0
    empty: int = 0
    filtered: int = 0
    unfamiliar: int = 0
    saturated: int = 0
    busy: float = 0.0
    unconverged: int = 0
    cut: float = -np.inf

    def __add__(self, other: ScanCounts) -> ScanCounts:
        names = [field.name for field in dataclasses.fields(ScanCounts) if field.name != "cut"]
        sums = {name: getattr(self, name) + getattr(other, name) for name in names}
        return ScanCounts(**sums, cut=max(self.cut, other.cut))


@dataclass(frozen=True)
class BatchResult(ScanCounts):
    """What became final after one batch.

    Attributes:
        detections: in scene pixels, in no particular order; not necessarily from tiles of this batch.
    """

    detections: Detections


@dataclass(frozen=True)
class SceneResult(ScanCounts):
    """All detections of a scene.

    Attributes:
        detections: in scene pixels, by descending score.
        seconds: wall time.
    """

    detections: Detections
    seconds: float


def detect_scene(
    backend: Backend,
    scene: Scene,
    options: ScanOptions | None = None,
    *,
    tile_filter: TileFilter | None = None,
    progress: Progress | None = None,
) -> SceneResult:
    """Detect the objects of a scene of any size.

    Args:
        options: how to scan; None for the defaults of `ScanOptions`.
        tile_filter: as for `SceneScan`.
        progress: called with the number of tiles that were just finished.

    Raises:
        ValueError: an option does not fit the model, the scene is damaged, or the model returns invalid outputs.
    """
    plan = plan_scan(scene, backend.spec, options or ScanOptions())
    return collect(scan(backend, scene, plan, tile_filter=tile_filter), progress)


def detect_scenes(
    backend: Backend,
    scenes: Iterable[Scene | Callable[[], AbstractContextManager[Scene]]],
    options: ScanOptions | None = None,
    *,
    tile_filter: TileFilter | None = None,
    progress: Progress | None = None,
) -> Iterator[SceneResult]:
    """Detect the objects of several scenes, one after the other, as `detect_scene` does.

    Tiles of several scenes share the batches of the model, so small scenes fill them too.

    Args:
        scenes: open scenes, or functions that open one, as a context manager. A function is called ahead, in another
            thread, and its scene is closed after its result.
        options, tile_filter: as for `detect_scene`.
        progress: called with the number of tiles that were just finished.

    Raises:
        ValueError: as `detect_scene`, after the results of the scenes before.
    """
    options = options or ScanOptions()

    def open_scan(item: Scene | Callable[[], AbstractContextManager[Scene]]) -> SceneScan:
        if isinstance(item, Scene):
            return SceneScan(item, plan_scan(item, backend.spec, options), tile_filter=tile_filter)
        with ExitStack() as stack:
            scene = stack.enter_context(item())
            plan = plan_scan(scene, backend.spec, options)
            return SceneScan(scene, plan, close=stack.pop_all().close, tile_filter=tile_filter)

    with closing(scan_scenes(backend, scenes, open_scan, options)) as scans:
        for _, results in scans:
            yield collect(results, progress)


def collect(results: Iterable[BatchResult], progress: Progress | None = None) -> SceneResult:
    """Run a scan to its end and join its results."""
    start = time.perf_counter()
    parts, counts = [], ScanCounts()
    for result in results:
        parts.append(result.detections)
        counts += result
        if progress is not None:
            progress(result.tiles)
    detections = Detections.concatenate(parts).by_score()
    return SceneResult(detections, time.perf_counter() - start, **dataclasses.asdict(counts))


def scan(
    backend: Backend,
    scene: Scene,
    plan: ScanPlan,
    *,
    tile_filter: TileFilter | None = None,
    filters_coarse: bool = True,
    journal: RecordStore | None = None,
) -> Iterator[BatchResult]:
    """Detect the objects of a scene of any size, in bounded memory: yield them as rows of tiles are finished.

    Args:
        plan: from `plan_scan`, for this scene and the model of this backend.
        tile_filter, filters_coarse: as for `SceneScan`.
        journal: receives the record of each batch, and provides the records of earlier runs; their tiles are not run.

    Raises:
        ValueError: the scene is damaged, or the model returns invalid outputs.
    """
    only = SceneScan(scene, plan, journal, tile_filter=tile_filter, filters_coarse=filters_coarse)
    scans = scan_scenes(backend, [only], lambda item: item, plan.options, most=plan.tiles)
    with closing(scans):
        for _, results in scans:
            yield from results


@dataclass(frozen=True)
class SceneScan:
    """A scene that is ready to be scanned.

    Attributes:
        plan: from `plan_scan`, for this scene and the model of the backend.
        journal: as for `scan`.
        close: called when the scene is not needed any more.
        piece: the tiles to run if other processes run the others. The detections of its results are those of single
            tiles, since only the whole scene can be stitched: `scan` it with a journal that has the records of all.
        tile_filter: decides which tiles to run; None runs all that have data.
        filters_coarse: whether it decides about the tiles of a coarse pass, too.
    """

    scene: Scene
    plan: ScanPlan
    journal: RecordStore | None = None
    close: Callable[[], object] = lambda: None
    piece: Piece | None = None
    tile_filter: TileFilter | None = None
    filters_coarse: bool = True


class ScanResults:
    """Iterator over the results of one scene of `scan_scenes`; for one use."""

    def __init__(self, task: _Task[Any], results: Iterator[BatchResult]) -> None:
        self._task, self._results = task, results

    @property
    def scan(self) -> SceneScan:
        """The scene that is scanned.

        Raises:
            Exception: what opening it raised.
        """
        if self._task.error is not None:
            raise self._task.error
        assert self._task.scan is not None
        return self._task.scan

    def __iter__(self) -> Iterator[BatchResult]:
        return self._results


def scan_scenes(
    backend: Backend,
    items: Iterable[T],
    open_scan: Callable[[T], SceneScan],
    options: ScanOptions,
    *,
    most: int | None = None,
) -> Generator[tuple[T, ScanResults], None, None]:
    """Scan several scenes, one after the other: yield each item with an iterator over the results of its scene.

    Tiles of several scenes share the batches of the model. The results of a scene are those of `scan`. Each batch is
    written to the journals of its scenes before any result of it is returned. The next scenes are opened ahead, as long
    as those in memory have few pixels, so memory holds one large scene, or many small ones.

    Args:
        open_scan: opens the scene of an item. It is called in the order of the items, in other threads.
        options: for the size of a batch and the number of readers.
        most: number of tiles of all scenes, if it is known.

    An error of one scene, from `open_scan` or from reading it, is raised by its results when its turn comes; the next
    scenes can still be scanned. Results that are not requested are left out.
    """
    stream = _SceneStream(backend, items, open_scan, options, most)
    try:
        while (task := stream.first()) is not None:
            yield task.item, ScanResults(task, stream.results(task))
            stream.finish(task)
    finally:
        stream.close()


def nms_not_converged(proposals: int, spec: ModelSpec) -> str:
    """Say that suppression among proposals did not converge, and what to do."""
    return (
        f"{proposals} proposals still changed in the last of {spec.nms_rounds} rounds of suppression; "
        f"export with more: --nms-rounds {2 * spec.nms_rounds}"
    )


class _TileRun(NamedTuple):
    """A batch record, with what a journal does not hold; see `ScanCounts`."""

    record: BatchRecord
    busy: float = 0.0
    unconverged: int = 0
    cut: float = -np.inf


@dataclass(eq=False)
class _Task(Generic[T]):
    """A scene between opening and closing.

    Attributes:
        scan: None if opening failed.
        error: why opening failed.
        from_journal: per pass, the number of records that an earlier run wrote.
        left: per pass, the number of tiles without a record of an earlier run.
        sets: tiles to read.
        ready: results of tiles that were run, or the reason why no more can be read.
        is_finished: whether the caller needs no more of it; batches may still hold tiles of it.
    """

    item: T
    scan: SceneScan | None = None
    error: Exception | None = None
    from_journal: list[int] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    sets: list[TileSet] = field(default_factory=list)
    ready: deque[_TileRun | Exception] = field(default_factory=deque)
    is_finished: bool = False

    @property
    def pixels(self) -> int:
        return 0 if self.scan is None else self.scan.scene.width * self.scan.scene.height


class _SceneStream(Generic[T]):
    """Opens scenes ahead, runs batches of their tiles, and keeps the results until the turn of their scene."""

    def __init__(
        self,
        backend: Backend,
        items: Iterable[T],
        open_scan: Callable[[T], SceneScan],
        options: ScanOptions,
        most: int | None,
    ) -> None:
        self._backend, self._items, self._open_scan = backend, iter(items), open_scan
        self._readers = options.readers
        self._calls = _Calls(backend)
        self._unseen: dict[TileSet, int] = {}  # number of tiles that no batch has held yet
        self._pool = ThreadPoolExecutor(options.readers, thread_name_prefix="tinydet-open")
        self._opening: deque[tuple[T, Future[SceneScan]]] = deque()
        self._largest: int | None = None  # pixels of the largest scene so far
        self._tasks: deque[_Task[T]] = deque()
        self._unread: deque[TileSet] = deque()
        self._reader = ReadAhead(
            self._next_set,
            side=backend.spec.tile,
            pad=backend.spec.pad,
            batch=min(options.batch, backend.spec.max_batch),
            readers=options.readers,
            most=most,
        )
        self._batches = iter(self._reader)

    def first(self) -> _Task[T] | None:
        """Return the first scene that is not finished; None at the end."""
        return self._tasks[0] if self._tasks or self._take_opened(wait=True) else None

    def results(self, task: _Task[T]) -> Iterator[BatchResult]:
        """Yield the results of the first scene."""
        if task.error is not None:
            raise task.error
        assert task.scan is not None
        spec, plan = self._backend.spec, task.scan.plan
        large: Detections | None = None
        for pass_index, tiling in enumerate(plan.passes):
            if task.scan.piece is not None:
                yield from map(_unstitched, self._runs(task, task.scan, pass_index))
                continue
            stitcher = Stitcher(
                tiling.grid,
                nms_iou=None if spec.nms_in_graph else spec.nms_iou,
                merge=plan.options.merge,
                agnostic=plan.options.agnostic,
                pixel=1 / tiling.scale,
                score=score_thresholds(spec, plan.options.score),
                coarse=large,
            )
            coarse_parts = []
            for run in self._runs(task, task.scan, pass_index):
                result = _stitch(stitcher, run)
                if tiling is plan.coarse:  # the full pass yields these, unless it finds something better
                    coarse_parts.append(larger_than(result.detections, plan.min_side))
                    result = dataclasses.replace(result, detections=Detections.empty(), coarse=result.tiles)
                yield _calibrated(result, spec)
            large = Detections.concatenate(coarse_parts).by_score()

    def finish(self, task: _Task[T]) -> None:
        """Close the first scene, and read no more of it."""
        assert self._tasks[0] is task
        for tile_set in task.sets:
            self._reader.drop(tile_set)
            self._unseen.pop(tile_set, None)
            if tile_set in self._unread:
                self._unread.remove(tile_set)
        self._tasks.popleft()
        task.is_finished = True
        if task.scan is not None:
            task.scan.close()

    def close(self) -> None:
        """Stop all threads and close all scenes."""
        self._calls.close()
        self._batches.close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        for _, future in self._opening:
            if not future.cancelled() and future.exception() is None:
                future.result().close()
        for task in self._tasks:
            if task.scan is not None:
                task.scan.close()

    def _runs(self, task: _Task[T], scan: SceneScan, pass_index: int) -> Iterator[_TileRun]:
        """Yield the records of one pass: those in the journal, then those of the other tiles."""
        if scan.journal is not None:  # this run may have appended others
            for record in islice(scan.journal.records(pass_index), task.from_journal[pass_index]):
                yield _TileRun(record)
        while task.left[pass_index]:
            while not task.ready:
                self._run_batch()
            run = task.ready.popleft()
            if isinstance(run, Exception):
                raise run
            task.left[pass_index] -= len(run.record.finished)
            yield run

    def _run_batch(self) -> None:
        """Run the model on the next batch, and give each scene its part."""
        backend = self._backend
        # Ask for no batch beyond the opened scenes: the reader ends when it is asked and no scene can be opened yet.
        while self._calls.has_room and (self._calls.is_idle or self._unseen):
            self._calls.start(self._next_batch())
        segments, outputs, busy = self._calls.finish()
        first = 0
        for segment in segments:
            task, pass_index = segment.tile_set.owner
            last = first + len(segment.tiles)
            part = None if outputs is None or first == last else _rows(outputs, first, last)
            first = last
            if task.is_finished:
                continue
            if segment.tiles or segment.empty or segment.filtered:
                slots = min(backend.spec.boxes_per_tile, 0 if part is None else part.scores.shape[1])
                thresholds = score_thresholds(backend.spec, task.scan.plan.options.score)
                record = _record(part, segment, task.scan.plan.passes[pass_index], pass_index, slots, thresholds)
                if task.scan.journal is not None:
                    task.scan.journal.append(record)
                unconverged = 0 if part is None else int(part.unconverged.sum())
                cut = -np.inf if part is None else _cut(part, slots)
                task.ready.append(_TileRun(record, busy * len(segment.tiles), unconverged, cut))
            if segment.error is not None:
                task.ready.append(segment.error)

    def _next_batch(self) -> Batch:
        batch = next(self._batches)
        for segment in batch.segments:
            tile_set = segment.tile_set
            seen = len(segment.tiles) + len(segment.empty) + len(segment.filtered)
            left = self._unseen.pop(tile_set, 0) - seen
            if left > 0 and segment.error is None:
                self._unseen[tile_set] = left
        return batch

    def _next_set(self, wait: bool) -> TileSet | None:
        """Return the next tiles to read, see `ReadAhead`."""
        while not self._unread:
            if not self._take_opened(wait):
                return None
        return self._unread.popleft()

    def _take_opened(self, wait: bool) -> bool:
        """Take the next scene if it is open; return whether there was one."""
        self._open_ahead()
        if not self._opening or not (wait or self._opening[0][1].done()):
            return False
        item, future = self._opening.popleft()
        task = _Task(item)
        try:
            task.scan = future.result()
            self._plan_reading(task, task.scan)
        except Exception as error:
            task.error = error
        self._largest = max(self._largest or 0, task.pixels)
        self._tasks.append(task)
        self._unread.extend(task.sets)
        self._open_ahead()
        return True

    def _plan_reading(self, task: _Task[T], scan: SceneScan) -> None:
        """Find the tiles of a scene that have no record."""
        for pass_index, tiling in enumerate(scan.plan.passes):
            todo, known = np.ones(len(tiling.grid), np.bool_), 0
            if scan.piece is not None:
                todo[:] = False
                todo[scan.piece.tiles(scan.plan, pass_index)] = True
            if scan.journal is not None:
                for record in scan.journal.records(pass_index):
                    _check_record(record, len(todo), len(self._backend.spec.classes))
                    todo[record.finished] = False
                    known += 1
            all_tiles = tiling.grid.tiles
            tiles = all_tiles if todo.all() else tuple(all_tiles[i] for i in np.flatnonzero(todo).tolist())
            task.from_journal.append(known)
            task.left.append(len(tiles))
            if tiles:
                chosen = scan.tile_filter if scan.filters_coarse or tiling is scan.plan.full else None
                task.sets.append(TileSet(scan.scene, tiles, tiling.content_size, (task, pass_index), chosen))
                self._unseen[task.sets[-1]] = len(tiles)

    def _open_ahead(self) -> None:
        """Start to open the next scenes, while there is room for them."""
        while self._has_room():
            try:
                item = next(self._items)
            except StopIteration:
                return
            if self._tasks or self._opening or self._largest is not None:
                self._opening.append((item, self._pool.submit(self._open_scan, item)))
                continue
            future: Future[SceneScan] = Future()  # of the first scene, for which the caller waits anyway
            try:
                future.set_result(self._open_scan(item))
            except Exception as error:
                future.set_exception(error)
            self._opening.append((item, future))

    def _has_room(self) -> bool:
        if not self._tasks and not self._opening:
            return True
        if self._largest is None or len(self._opening) >= self._readers:
            return False
        pixels = sum(task.pixels for task in self._tasks) + (len(self._opening) + 1) * self._largest
        return pixels <= OPEN_PIXELS and len(self._tasks) + len(self._opening) < MOST_OPEN


class _Calls:
    """Runs the model on batches, one at a time in this thread, or several at once (`Backend.in_flight`), in order."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._most: int = getattr(backend, "in_flight", 1)
        self._pool = ThreadPoolExecutor(self._most, thread_name_prefix="tinydet-run") if self._most > 1 else None
        self._calls: deque[tuple[list[Segment], int, Callable[[], TileOutputs]]] = deque()

    @property
    def has_room(self) -> bool:
        return len(self._calls) < self._most

    @property
    def is_idle(self) -> bool:
        return not self._calls

    def start(self, batch: Batch) -> None:
        """Run the model on a batch, now or in `finish`."""
        run: Callable[[], TileOutputs] = partial(self._backend.run, batch.images)
        if self._pool is not None and len(batch.images):
            images = batch.images.copy()  # those of the batch are overwritten by the next one
            run = self._pool.submit(self._backend.run, images).result
        self._calls.append((batch.segments, len(batch.images), run))

    def finish(self) -> tuple[list[Segment], TileOutputs | None, float]:
        """Return the first batch that was started, its outputs, and the seconds per tile that this waited for them."""
        segments, count, run = self._calls[0]
        start = time.perf_counter()
        outputs = run() if count else None
        busy = (time.perf_counter() - start) / max(count, 1)
        if outputs is not None:
            check_outputs(outputs, self._backend.spec, count, name=self._backend.name)
        self._calls.popleft()  # not before: after Ctrl-C in `run`, `close` must know that it is in progress
        return segments, outputs, busy

    def close(self) -> None:
        """Give up the calls that are in progress."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            if self._calls and hasattr(self._backend, "cancel"):
                self._backend.cancel()
            self._pool.shutdown(wait=True)


def _rows(outputs: TileOutputs, first: int, last: int) -> TileOutputs:
    """Return the outputs of some tiles of a batch."""
    return TileOutputs(**{name: array[first:last] for name, array in outputs._asdict().items()})


def _cut(outputs: TileOutputs, slots: int) -> float:
    """Return the score of the last box of the tiles that had more boxes than slots, the highest; -inf without any."""
    lowest = outputs.scores[:, slots - 1][outputs.candidates > slots]
    return float(lowest.max(initial=-np.inf))


def _check_record(record: BatchRecord, tiles: int, classes: int) -> None:
    """Check a record from a journal, which another program may have written."""
    found = record.detections
    indices, finite = np.concatenate([record.finished, found.tiles]), np.isfinite(found.boxes).all()
    inside = ((indices >= 0) & (indices < tiles)).all() and ((found.labels >= 0) & (found.labels < classes)).all()
    if not (inside and finite and np.isfinite(found.scores).all()):
        raise ValueError("the journal holds impossible tiles or boxes; start again without --resume")


def _stitch(stitcher: Stitcher, run: _TileRun) -> BatchResult:
    record = run.record
    return _result(run, stitcher.add(record.finished.tolist(), record.detections))


def _unstitched(run: _TileRun) -> BatchResult:
    return _result(run, run.record.detections)


def _result(run: _TileRun, detections: Detections) -> BatchResult:
    record = run.record
    return BatchResult(
        detections,
        tiles=len(record.finished),
        empty=len(record.empty),
        filtered=len(record.filtered),
        unfamiliar=record.unfamiliar,
        saturated=record.saturated,
        busy=run.busy,
        unconverged=run.unconverged,
        cut=run.cut,
    )


def _calibrated(result: BatchResult, spec: ModelSpec) -> BatchResult:
    """Return the result with calibrated scores, if the model has a calibration."""
    if not spec.calibration:
        return result
    found = result.detections
    classes = np.arange(len(spec.classes))
    return dataclasses.replace(
        result,
        detections=dataclasses.replace(
            found, scores=calibrate(found.scores, found.labels, spec.calibration).astype(np.float32)
        ),
        cut=float(calibrate(np.full(len(classes), result.cut), classes, spec.calibration).max())
        if result.cut > -np.inf
        else result.cut,
    )


def _record(
    outputs: TileOutputs | None,
    segment: Segment,
    tiling: Tiling,
    pass_index: int,
    slots: int,
    thresholds: NDArray[np.float32],
) -> BatchRecord:
    """Convert the outputs of tiles to scene pixels, without boxes in the padding or below the scores of their class."""
    tiles, empty, filtered = (
        np.array([tile.index for tile in group], np.int64) for group in (segment.tiles, segment.empty, segment.filtered)
    )
    plain = BatchRecord(tiles, empty, filtered, pass_index=pass_index, unfamiliar=segment.unfamiliar)
    if outputs is None:
        return plain
    saturated = int(((outputs.candidates > slots) & (outputs.scores[:, slots - 1] >= thresholds.min())).sum())
    which, slot = np.nonzero((outputs.labels >= 0) & (outputs.scores >= thresholds[outputs.labels]))
    if not len(which):
        return dataclasses.replace(plain, saturated=saturated)
    content = np.array(tiling.content_size * 2, np.float64)
    size = np.array((tiling.grid.tile_width, tiling.grid.tile_height) * 2, np.float64)
    boxes = outputs.boxes[which, slot].astype(np.float64)
    boxes = np.minimum(np.maximum(boxes, 0, out=boxes), content, out=boxes)
    boxes *= size / content
    outside = (boxes[:, 2:] <= boxes[:, :2]).any(axis=1)
    if outside.any():
        which, slot, boxes = which[~outside], slot[~outside], boxes[~outside]
    boxes += np.array([(tile.x, tile.y) * 2 for tile in segment.tiles], np.float64)[which]
    detections = Detections(boxes, outputs.scores[which, slot], outputs.labels[which, slot], {"tile": tiles[which]})
    return dataclasses.replace(plain, detections=detections, saturated=saturated)
