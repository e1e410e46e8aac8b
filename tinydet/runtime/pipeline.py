"""From a scene to its detections: read ahead, batch, run, stitch.

Memory holds a few batches and the boxes of two rows of tiles, whatever the size of the scene. Evaluation, validation
in training and inference all go through `detect`: what is scored is what ships.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tinydet.runtime.backends import Backend, TileOutputs
from tinydet.runtime.coarse import Coarse, larger_than, plan_coarse
from tinydet.runtime.detections import Detections
from tinydet.runtime.scene import Scene
from tinydet.runtime.stitch import Merge, Stitcher
from tinydet.runtime.tiles import Tile, TileGrid
from tinydet.spec import ModelSpec

OVERLAP = 128
AHEAD = 2  # batches that are read while one runs


@dataclass(frozen=True)
class SceneResult:
    """What `detect` found.

    Attributes:
        detections: in scene pixels, best first.
        tiles: how many tiles were run, in both passes.
        saturated: tiles with more boxes than the model has slots, all slots above the asked score: boxes were lost.
        seconds: wall time.
    """

    detections: Detections
    tiles: int
    saturated: int
    seconds: float


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
    progress: Callable[[int], object] | None = None,
) -> SceneResult:
    """Find the objects of a scene of any size.

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
        progress: called with the number of tiles that were just finished (`tqdm.update` fits).

    Raises:
        ValueError: for values out of range, a damaged scene, or a model that gives NaN.
    """
    if not 0 <= score <= 1:
        raise ValueError(f"the score lies in [0, 1], got {score}")
    if batch < 1:
        raise ValueError(f"the batch holds at least one tile, got {batch}")
    began = time.perf_counter()
    spec = backend.spec
    passes = [plan_tiles(scene.width, scene.height, tile=spec.tile, overlap=overlap, scale=scale)]
    if coarse == "auto":
        coarse = plan_coarse(spec, passes[0].grid, overlap=overlap, scale=scale).coarse
    if coarse is not None:
        passes.insert(0, plan_tiles(scene.width, scene.height, tile=spec.tile, overlap=overlap, scale=coarse.scale))
    detections, known, saturated = Detections.empty(), None, 0
    for plan in passes:
        stitcher = Stitcher(
            plan.grid,
            nms_iou=None if spec.nms_in_graph else spec.nms_iou,
            merge=merge,
            agnostic=agnostic,
            pixel=1 / plan.scale,
            score=score,
            known=known,
        )
        found = []
        for tiles, images in _batches(scene, plan, spec, min(batch, spec.max_batch)):
            outputs = backend.run(images)
            sources, boxes, scores, labels = _on_scene(outputs, tiles, plan, score)
            found.append(stitcher.add([tile.index for tile in tiles], sources, boxes, scores, labels))
            slots = outputs.scores.shape[1]
            saturated += int(((outputs.candidates > slots) & (outputs.scores[:, -1] >= score)).sum())
            if progress is not None:
                progress(len(tiles))
        detections = Detections.concatenate(found).by_score()
        if coarse is not None:
            known = larger_than(detections, coarse.least)
    tiles_run = sum(len(plan.grid) for plan in passes)
    return SceneResult(detections, tiles_run, saturated, time.perf_counter() - began)


def _batches(
    scene: Scene, plan: TilePlan, spec: ModelSpec, batch: int
) -> Iterator[tuple[list[Tile], NDArray[np.uint8]]]:
    """Tiles with their pixels (N, T, T, 3), read in a thread while the caller works on the ones before."""
    shape = (batch, plan.tile, plan.tile, 3)
    # The caller uses one, AHEAD are read or wait. They go round: fresh memory costs more than copying a tile into it.
    buffers = deque(np.empty(shape, np.uint8) for _ in range(min(AHEAD + 1, -(-len(plan.grid) // batch))))
    tiles = iter(plan.grid.tiles)
    pending: deque[Future[tuple[list[Tile], NDArray[np.uint8]]]] = deque()
    reader = ThreadPoolExecutor(1, thread_name_prefix="tinydet-read")
    try:
        while True:
            while len(pending) <= AHEAD and (some := list(islice(tiles, batch))):
                buffers.rotate(-1)
                pending.append(reader.submit(_read_batch, scene, plan, some, buffers[0], spec.pad))
            if not pending:
                return
            yield pending.popleft().result()
    finally:
        reader.shutdown(wait=True, cancel_futures=True)


def _read_batch(
    scene: Scene, plan: TilePlan, tiles: list[Tile], buffer: NDArray[np.uint8], pad: tuple[int, int, int]
) -> tuple[list[Tile], NDArray[np.uint8]]:
    width, height = _seen_size(plan)
    for tile, image in zip(tiles, buffer, strict=False):
        image[:height, :width] = scene.read(tile.x, tile.y, tile.width, tile.height, (width, height))
        image[:height, width:] = pad
        image[height:] = pad
    return tiles, buffer[: len(tiles)]


def _seen_size(plan: TilePlan) -> tuple[int, int]:
    """(width, height) that a tile covers of the model's input; less than all where the scene is smaller than a tile."""
    return max(1, round(plan.grid.tile_width * plan.scale)), max(1, round(plan.grid.tile_height * plan.scale))


def _on_scene(
    outputs: TileOutputs, tiles: list[Tile], plan: TilePlan, score: float
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float32], NDArray[np.int32]]:
    """(tile index, boxes in scene pixels, score, label) of all boxes that are good enough and not in the padding."""
    if np.isnan(outputs.scores).any():
        raise ValueError("the model gave scores that are NaN; export it again and compare it with torch")
    which, slot = np.nonzero((outputs.labels >= 0) & (outputs.scores >= score))
    seen = np.array(_seen_size(plan) * 2, np.float64)
    size = np.array((plan.grid.tile_width, plan.grid.tile_height) * 2, np.float64)
    boxes = np.clip(outputs.boxes[which, slot].astype(np.float64), 0, seen) * (size / seen)
    inside = ~((boxes[:, 2:] <= boxes[:, :2]).any(axis=1))
    which, slot, boxes = which[inside], slot[inside], boxes[inside]
    origin = np.array([(tile.x, tile.y) * 2 for tile in tiles], np.float64)
    index = np.array([tile.index for tile in tiles], np.int64)
    return index[which], boxes + origin[which], outputs.scores[which, slot], outputs.labels[which, slot]
