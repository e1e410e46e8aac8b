"""From a scene to its detections: read tiles ahead, run the model on batches, stitch.

Memory holds a few batches and the boxes of two rows of tiles, whatever the size of the scene. Evaluation, validation
during training and inference all use `scan`, so what is scored is what ships.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from tinydet._internal.progress import Progress
from tinydet.runtime.backends import Backend, TileOutputs, check_outputs
from tinydet.runtime.coarse import larger_than
from tinydet.runtime.detections import Detections
from tinydet.runtime.journal import BatchRecord, RecordStore
from tinydet.runtime.options import ScanOptions
from tinydet.runtime.plan import ScanPlan, Tiling, plan_scan
from tinydet.runtime.read_ahead import Batch, ReadAhead, TileFilter
from tinydet.runtime.scenes import Scene
from tinydet.runtime.stitch import Stitcher
from tinydet.spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class ScanCounts:
    """Counts over some tiles.

    Attributes:
        tiles: finished tiles in all passes, including the skipped ones.
        empty: tiles that were skipped because they have no data: all pixels are nodata or transparent.
        filtered: tiles that the tile filter rejected.
        saturated: tiles with more boxes than the model has slots, all slots above the requested score: boxes were lost.
        busy: seconds in the backend.
        unconverged: proposals whose suppression in the graph did not converge, see `TileOutputs`; only of tiles that
            this run processed, not of tiles from a journal.
    """

    tiles: int = 0
    empty: int = 0
    filtered: int = 0
    saturated: int = 0
    busy: float = 0.0
    unconverged: int = 0

    def __add__(self, other: ScanCounts) -> ScanCounts:
        names = [field.name for field in dataclasses.fields(ScanCounts)]
        return ScanCounts(**{name: getattr(self, name) + getattr(other, name) for name in names})


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
        tile_filter: as for `scan`.
        progress: called with the number of tiles that were just finished.

    Raises:
        ValueError: an option does not fit the model, the scene is damaged, or the model returns invalid outputs.
    """
    plan = plan_scan(scene, backend.spec, options or ScanOptions())
    return collect(scan(backend, scene, plan, tile_filter=tile_filter), progress)


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
    journal: RecordStore | None = None,
) -> Iterator[BatchResult]:
    """Detect the objects of a scene of any size, in bounded memory: yield them as rows of tiles are finished.

    Args:
        plan: from `plan_scan`, for this scene and the model of this backend.
        tile_filter: tiles for which it returns False are skipped; None runs all tiles that have data.
        journal: receives the record of each batch, and provides the records of earlier runs; their tiles are not run.

    Raises:
        ValueError: the scene is damaged, or the model returns invalid outputs.
    """
    spec, options = backend.spec, plan.options
    large: Detections | None = None
    for pass_index, tiling in enumerate(plan.passes):
        stitcher = Stitcher(
            tiling.grid,
            nms_iou=None if spec.nms_in_graph else spec.nms_iou,
            merge=options.merge,
            agnostic=options.agnostic,
            pixel=1 / tiling.scale,
            score=options.score,
            coarse=large,
        )
        coarse_parts = []
        for run in _run_tiles(backend, scene, plan, pass_index, tile_filter, journal):
            result = _stitch(stitcher, run)
            if tiling is plan.coarse:  # the full pass yields these, unless it finds something better
                coarse_parts.append(larger_than(result.detections, plan.min_side))
                result = dataclasses.replace(result, detections=Detections.empty())
            yield result
        large = Detections.concatenate(coarse_parts).by_score()


def nms_not_converged(proposals: int, spec: ModelSpec) -> str:
    """Say that suppression among proposals did not converge, and what to do."""
    return (
        f"{proposals} proposals still changed in the last of {spec.nms_rounds} rounds of suppression; "
        f"export with more: --nms-rounds {2 * spec.nms_rounds}"
    )


class _TileRun(NamedTuple):
    """A batch record, with the seconds that the backend took and the proposals that did not converge."""

    record: BatchRecord
    busy: float = 0.0
    unconverged: int = 0


def _run_tiles(
    backend: Backend,
    scene: Scene,
    plan: ScanPlan,
    pass_index: int,
    tile_filter: TileFilter | None,
    journal: RecordStore | None,
) -> Iterator[_TileRun]:
    """Yield the records of one pass: those in the journal, then those of the remaining tiles."""
    tiling, options = plan.passes[pass_index], plan.options
    todo = np.ones(len(tiling.grid), np.bool_)
    if journal is not None:
        for record in journal.records(pass_index):
            _check_record(record, len(todo), len(backend.spec.classes))
            todo[record.finished] = False
            yield _TileRun(record)
    tiles = tiling.grid.tiles if todo.all() else tuple(tiling.grid.tiles[i] for i in np.flatnonzero(todo).tolist())
    if not tiles:
        return
    batches = ReadAhead(
        scene,
        tiles,
        size=tiling.content_size,
        side=tiling.tile,
        pad=backend.spec.pad,
        batch=min(options.batch, backend.spec.max_batch),
        readers=options.readers,
        tile_filter=tile_filter,
    )
    for batch in batches:
        start = time.perf_counter()
        outputs = backend.run(batch.images) if batch.tiles else None
        busy = time.perf_counter() - start
        if outputs is not None:
            check_outputs(outputs, backend.spec, len(batch.tiles), name=backend.name)
        record = _record(outputs, batch, tiling, pass_index, options.score)
        if journal is not None:
            journal.append(record)
        yield _TileRun(record, busy, 0 if outputs is None else int(outputs.unconverged.sum()))


def _check_record(record: BatchRecord, tiles: int, classes: int) -> None:
    """Check a record from a journal, which another program may have written."""
    found = record.detections
    indices, finite = np.concatenate([record.finished, found.tiles]), np.isfinite(found.boxes).all()
    inside = ((indices >= 0) & (indices < tiles)).all() and ((found.labels >= 0) & (found.labels < classes)).all()
    if not (inside and finite and np.isfinite(found.scores).all()):
        raise ValueError("the journal holds impossible tiles or boxes; start again without --resume")


def _stitch(stitcher: Stitcher, run: _TileRun) -> BatchResult:
    record = run.record
    finished = record.finished.tolist()
    return BatchResult(
        stitcher.add(finished, record.detections),
        tiles=len(finished),
        empty=len(record.empty),
        filtered=len(record.filtered),
        saturated=record.saturated,
        busy=run.busy,
        unconverged=run.unconverged,
    )


def _record(outputs: TileOutputs | None, batch: Batch, tiling: Tiling, pass_index: int, score: float) -> BatchRecord:
    """Convert the outputs of a batch to scene pixels, without boxes in the padding or below the score."""
    tiles, empty, filtered = (
        np.array([tile.index for tile in group], np.int64) for group in (batch.tiles, batch.empty, batch.filtered)
    )
    record = BatchRecord(tiles, empty, filtered, pass_index=pass_index)
    if outputs is None:
        return record
    slots = outputs.scores.shape[1]
    saturated = int(((outputs.candidates > slots) & (outputs.scores[:, -1] >= score)).sum())
    which, slot = np.nonzero((outputs.labels >= 0) & (outputs.scores >= score))
    if not len(which):
        return dataclasses.replace(record, saturated=saturated)
    content = np.array(tiling.content_size * 2, np.float64)
    size = np.array((tiling.grid.tile_width, tiling.grid.tile_height) * 2, np.float64)
    boxes = np.clip(outputs.boxes[which, slot].astype(np.float64), 0, content) * (size / content)
    inside = ~((boxes[:, 2:] <= boxes[:, :2]).any(axis=1))
    which, slot, boxes = which[inside], slot[inside], boxes[inside]
    origin = np.array([(tile.x, tile.y) * 2 for tile in batch.tiles], np.float64)
    detections = Detections(
        boxes + origin[which], outputs.scores[which, slot], outputs.labels[which, slot], {"tile": tiles[which]}
    )
    return dataclasses.replace(record, detections=detections, saturated=saturated)
