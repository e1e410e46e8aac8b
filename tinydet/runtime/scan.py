"""From a scene to its detections: read ahead, batch, run, stitch.

Memory holds a few batches and the boxes of two rows of tiles, whatever the size of the scene. Evaluation, validation
in training and inference all go through `scan`: what is scored is what ships.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from tinydet.geometry.tiles import TileGrid
from tinydet.runtime.backends import Backend, TileOutputs
from tinydet.runtime.coarse import Coarse, larger_than, plan_coarse
from tinydet.runtime.detections import Detections
from tinydet.runtime.journal import TileBoxes, TileStore
from tinydet.runtime.read_ahead import READERS, Batch, ReadAhead
from tinydet.runtime.scenes import Scene
from tinydet.runtime.scenes.pixels import Image
from tinydet.runtime.stitch import Merge, Stitcher
from tinydet.spec import ModelSpec

OVERLAP = 128


@dataclass(frozen=True)
class SceneResult:
    """What `detect` found.

    Attributes:
        detections: in scene pixels, best first.
        tiles: how many tiles were finished, in both passes.
        saturated: tiles with more boxes than the model has slots, all slots above the asked score: boxes were lost.
        seconds: wall time.
        empty: tiles that were not run because they have no data: nodata, or transparent throughout.
        plain: tiles that were not run because `worth` refused them.
        busy: seconds in the backend.
        unconverged: proposals whose suppression in the graph had not settled, of the tiles that were run now; see
            `TileOutputs`.
    """

    detections: Detections
    tiles: int
    saturated: int
    seconds: float
    empty: int = 0
    plain: int = 0
    busy: float = 0.0
    unconverged: int = 0


@dataclass(frozen=True)
class Step:
    """What one run of the backend brought.

    Attributes:
        detections: those that became final, in scene pixels, in no particular order.
        tiles: how many were finished, the empty and plain ones with them.
        empty, plain, saturated: how many of these; see `SceneResult`.
        busy: seconds in the backend.
        unconverged: see `SceneResult`.
    """

    detections: Detections
    tiles: int
    empty: int
    plain: int
    saturated: int
    busy: float
    unconverged: int = 0


class Sized(Protocol):
    """What has the size of a scene."""

    @property
    def width(self) -> int: ...

    @property
    def height(self) -> int: ...


@dataclass(frozen=True)
class TilePlan:
    """How a scene is cut for a model.

    Attributes:
        grid: the tiles, in scene pixels.
        tile: side of the model's input.
        scale: model pixels for each scene pixel. Tiles lie on whole scene pixels, so that a scale near 1 may differ
            from the one asked for in the third digit.
    """

    grid: TileGrid
    tile: int
    scale: float


def plan_tiles(width: int, height: int, *, tile: int, overlap: int = OVERLAP, scale: float = 1.0) -> TilePlan:
    """Cut a scene of `width` x `height` pixels into tiles that a model of `tile` pixels sees at `scale`.

    Args:
        overlap: in pixels of the rescaled scene, as the model sees it.
        scale: resize factor of the scene, 0.5 = half.
    """
    if not (math.isfinite(scale) and scale > 0 and round(tile / scale) >= 1):
        raise ValueError(f"the scale is an image resize factor above 0 (0.5 = half), got {scale}")
    if not 0 <= overlap < tile:
        raise ValueError(
            f"the overlap must be at least 0 and smaller than the tile of {tile}, got {overlap}; "
            "a quarter of the tile, or the largest object, is a good one"
        )
    window = round(tile / scale)
    return TilePlan(TileGrid(width, height, window, min(math.ceil(overlap / scale), window - 1)), tile, tile / window)


def detect(
    backend: Backend,
    scene: Scene,
    *,
    overlap: int = OVERLAP,
    scale: float = 1.0,
    score: float = 0.05,
    batch: int = 4,
    merge: Merge = "seam",
    agnostic: bool = False,
    coarse: Coarse | Literal["auto"] | None = "auto",
    readers: int = READERS,
    worth: Callable[[Image], bool] | None = None,
    journal: TileStore | None = None,
    progress: Callable[[int], object] | None = None,
) -> SceneResult:
    """Find the objects of a scene of any size. What each argument means is said at `scan`.

    Args:
        progress: called with the number of tiles that were just finished (`tqdm.update` fits).

    Raises:
        ValueError: for values out of range, a damaged scene, or a model that gives NaN.
    """
    began = time.perf_counter()
    steps = scan(
        backend,
        scene,
        overlap=overlap,
        scale=scale,
        score=score,
        batch=batch,
        merge=merge,
        agnostic=agnostic,
        coarse=coarse,
        readers=readers,
        worth=worth,
        journal=journal,
    )
    found, tiles, empty, plain, saturated, busy, unconverged = [], 0, 0, 0, 0, 0.0, 0
    for step in steps:
        found.append(step.detections)
        tiles, empty, plain = tiles + step.tiles, empty + step.empty, plain + step.plain
        saturated, busy = saturated + step.saturated, busy + step.busy
        unconverged += step.unconverged
        if progress is not None:
            progress(step.tiles)
    detections = Detections.concatenate(found).by_score()
    return SceneResult(detections, tiles, saturated, time.perf_counter() - began, empty, plain, busy, unconverged)


def scan(
    backend: Backend,
    scene: Scene,
    *,
    overlap: int = OVERLAP,
    scale: float = 1.0,
    score: float = 0.05,
    batch: int = 4,
    merge: Merge = "seam",
    agnostic: bool = False,
    coarse: Coarse | Literal["auto"] | None = "auto",
    readers: int = READERS,
    worth: Callable[[Image], bool] | None = None,
    journal: TileStore | None = None,
) -> Iterator[Step]:
    """The objects of a scene of any size, handed out while it runs: a row of tiles at a time, in bounded memory.

    Args:
        overlap: pixels, in the rescaled scene, that neighbouring tiles share at least. An object no larger lies whole
            inside some tile; larger ones are joined from their parts.
        scale: resize factor of the scene, 0.5 = half. Detections are in pixels of the scene as it is.
        score: detections below it are left out.
        batch: tiles for each run of the backend, as far as it takes them.
        merge: "seam", or one of the others for comparison; see `stitch` and `fusing`.
        agnostic: boxes of different classes may be one object.
        coarse: a pass before, at a smaller scale, for the objects larger than the overlap; "auto" where the model
            learned such objects (`plan_coarse`), None for none.
        readers: threads that read the scene, each with a handle of its own, where the scene allows more than one.
        worth: whether the picture of a tile is worth running, see `gate`; None runs all that have data.
        journal: takes what each batch gave, and gives what earlier runs found; those tiles are not run again.

    Raises:
        ValueError: for values out of range, a damaged scene, or a model that gives NaN.
    """
    if not 0 <= score <= 1:
        raise ValueError(f"the score lies in [0, 1], got {score}")
    if batch < 1:
        raise ValueError(f"the batch holds at least one tile, got {batch}")
    if readers < 1:
        raise ValueError(f"a scene is read by at least one thread, got {readers}")
    spec = backend.spec
    passes = plan_passes(scene, spec, overlap=overlap, scale=scale, coarse=coarse)
    known: Detections | None = None
    for number, (plan, least) in enumerate(passes):
        stitcher = Stitcher(
            plan.grid,
            nms_iou=None if spec.nms_in_graph else spec.nms_iou,
            merge=merge,
            agnostic=agnostic,
            pixel=1 / plan.scale,
            score=score,
            known=known,
        )
        large = [Detections.empty()]
        for found, busy, rest in _tile_boxes(backend, scene, plan, number, score, batch, readers, worth, journal):
            step = _stitched(stitcher, found, busy, rest)
            if least is not None:  # what the coarse pass finds is for the full pass to hand out
                large.append(larger_than(step.detections, least))
                step = dataclasses.replace(step, detections=Detections.empty())
            yield step
        known = None if least is None else Detections.concatenate(large).by_score()


def plan_passes(
    scene: Sized,
    spec: ModelSpec,
    *,
    overlap: int = OVERLAP,
    scale: float = 1.0,
    coarse: Coarse | Literal["auto"] | None = "auto",
) -> list[tuple[TilePlan, float | None]]:
    """How often a scene is cut, and how: a coarse pass where one is due, with the side above which its objects count,
    then the full pass."""
    full = plan_tiles(scene.width, scene.height, tile=spec.tile, overlap=overlap, scale=scale)
    if coarse == "auto":
        coarse = plan_coarse(spec, full.grid, overlap=overlap, scale=scale).coarse
    if coarse is None:
        return [(full, None)]
    first = plan_tiles(scene.width, scene.height, tile=spec.tile, overlap=overlap, scale=coarse.scale)
    return [(first, coarse.least), (full, None)]


def unsettled(proposals: int, spec: ModelSpec) -> str:
    """What is wrong where suppression among proposals did not settle, and the way out."""
    return (
        f"{proposals} proposals still changed in the last of {spec.nms_rounds} rounds of suppression; "
        f"export with more: --nms-rounds {2 * spec.nms_rounds}"
    )


def _tile_boxes(
    backend: Backend,
    scene: Scene,
    plan: TilePlan,
    number: int,
    score: float,
    batch: int,
    readers: int,
    worth: Callable[[Image], bool] | None,
    journal: TileStore | None,
) -> Iterator[tuple[TileBoxes, float, int]]:
    """What the tiles of one pass give, from the journal and then from the model, with the seconds that it took and the
    proposals that it left unsettled."""
    todo = np.ones(len(plan.grid), np.bool_)
    if journal is not None:
        for found in journal.records(number):
            todo[found.finished] = False
            yield found, 0.0, 0
    tiles = plan.grid.tiles if todo.all() else tuple(plan.grid.tiles[i] for i in np.flatnonzero(todo).tolist())
    if not tiles:
        return
    reading = ReadAhead(
        scene,
        tiles,
        size=seen_size(plan),
        side=plan.tile,
        pad=backend.spec.pad,
        batch=min(batch, backend.spec.max_batch),
        readers=readers,
        worth=worth,
    )
    for read in reading:
        began = time.perf_counter()
        outputs = backend.run(read.images) if read.tiles else None
        busy = time.perf_counter() - began
        found = _on_scene(outputs, read, plan, number, score)
        if journal is not None:
            journal.append(found)
        yield found, busy, 0 if outputs is None else int(outputs.unconverged.sum())


def _stitched(stitcher: Stitcher, found: TileBoxes, busy: float, unconverged: int) -> Step:
    finished = found.finished.tolist()
    final = stitcher.add(finished, found.sources, found.boxes, found.scores, found.labels)
    return Step(final, len(finished), len(found.empty), len(found.plain), found.saturated, busy, unconverged)


def seen_size(plan: TilePlan) -> tuple[int, int]:
    """(width, height) that a tile covers of the model's input; less than all where the scene is smaller than a tile."""
    return max(1, round(plan.grid.tile_width * plan.scale)), max(1, round(plan.grid.tile_height * plan.scale))


def _on_scene(outputs: TileOutputs | None, read: Batch, plan: TilePlan, number: int, score: float) -> TileBoxes:
    """All boxes of a batch that are good enough and not in the padding, in scene pixels."""
    index, empty, plain = (
        np.array([tile.index for tile in of], np.int64) for of in (read.tiles, read.empty, read.plain)
    )
    if outputs is None:
        return TileBoxes(index, empty, plain, number=number)
    if np.isnan(outputs.scores).any():
        raise ValueError("the model gave scores that are NaN; export it again and compare it with torch")
    slots = outputs.scores.shape[1]
    saturated = int(((outputs.candidates > slots) & (outputs.scores[:, -1] >= score)).sum())
    which, slot = np.nonzero((outputs.labels >= 0) & (outputs.scores >= score))
    if not len(which):
        return TileBoxes(index, empty, plain, saturated=saturated, number=number)
    seen = np.array(seen_size(plan) * 2, np.float64)
    size = np.array((plan.grid.tile_width, plan.grid.tile_height) * 2, np.float64)
    boxes = np.clip(outputs.boxes[which, slot].astype(np.float64), 0, seen) * (size / seen)
    inside = ~((boxes[:, 2:] <= boxes[:, :2]).any(axis=1))
    which, slot, boxes = which[inside], slot[inside], boxes[inside]
    origin = np.array([(tile.x, tile.y) * 2 for tile in read.tiles], np.float64)
    scores, labels = outputs.scores[which, slot], outputs.labels[which, slot]
    if not np.isfinite(boxes).all():
        raise ValueError("the model gave boxes that are NaN or infinite; export it again and compare it with torch")
    return TileBoxes(
        index,
        empty,
        plain,
        index[which],
        boxes + origin[which],
        scores.astype(np.float32, copy=False),
        labels.astype(np.int32, copy=False),
        saturated,
        number,
    )
