"""The command `tinydet salpha`: count the objects of each pyramid level in a data set and derive alpha from them.

No image is opened and no network is run: the fusion factor follows from boxes, image sizes and anchors.
"""

from __future__ import annotations

import time
from itertools import groupby
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinydet.data.coco import Dataset
from tinydet.data.samples import VISIBLE, TrainingTiles, clip_to_tile
from tinydet.geometry.anchors import AnchorDesign
from tinydet.runtime.scan import OVERLAP, plan_tiles
from tinydet.salpha.counting import ALPHA_RANGE, CountRule, FusionStatistics, count_levels, released_clipping


def statistics_of(
    dataset: Dataset,
    design: AnchorDesign,
    *,
    tile: int | None = None,
    overlap: int = OVERLAP,
    scale: float = 1.0,
    flip: bool = False,
    count: CountRule = "gt",
    alpha_range: tuple[float, float] = ALPHA_RANGE,
) -> FusionStatistics:
    """Fusion statistics of a data set on what the network sees. Ignore regions are not counted.

    Args:
        tile: side of the square tiles that images are cut into; None: whole images. Tiles count as images, and an
            object counts in each tile that shows enough of it, as in training.
        overlap: of the tiles, in pixels of the rescaled image.
        scale: resize factor of the images, before tiles are cut.
        flip: count every input and its mirror image.
        count: see `tinydet.salpha.counting.count_levels`.
        alpha_range: clamp of alpha.

    Raises:
        ValueError: for a scale that is not positive, an overlap that is not smaller than the tile, a bad `alpha_range`.
    """
    start = time.perf_counter()
    inputs = _inputs(dataset, tile, overlap, scale)
    if flip:
        inputs = _with_mirror_images(inputs)
    return _count(inputs, design, count, alpha_range, start)


def statistics_of_tiles(
    tiles: TrainingTiles,
    design: AnchorDesign,
    *,
    count: CountRule = "gt",
    alpha_range: tuple[float, float] = ALPHA_RANGE,
) -> FusionStatistics:
    """Fusion statistics on the tiles of training, however they are cut; what is done to their pixels is not seen.

    Raises:
        ValueError: for a bad `alpha_range`.
    """
    start = time.perf_counter()
    boxes: list[NDArray[np.float64]] = []
    index: list[NDArray[np.int64]] = []
    for number in range(len(tiles)):
        clipped, objects, _ = tiles.shown(number)
        boxes.append(clipped[objects])
        index.append(np.full(int(objects.sum()), number))
    sizes = np.array([(tile.width, tile.height) for _, tile in tiles.tiles], np.int64)
    return _count(_Inputs(np.concatenate(boxes), sizes, np.concatenate(index)), design, count, alpha_range, start)


def _count(
    inputs: _Inputs, design: AnchorDesign, count: CountRule, alpha_range: tuple[float, float], start: float
) -> FusionStatistics:
    boxes, sizes, index = inputs
    if design.inclusive:
        boxes, kept = released_clipping(boxes, sizes[index])
        boxes, index = boxes[kept], index[kept]
    counts = count_levels(boxes, sizes, design, image_index=index, count=count)
    seconds = time.perf_counter() - start
    # P6 has no edge, and P7 beside it neither: they count as one.
    first = len(counts) - design.unfused
    counts = (*counts[:first], sum(counts[first:]))
    levels = (*design.levels[:first], "+".join(design.levels[first:]))
    return FusionStatistics(counts, len(boxes), len(sizes), seconds, levels, count, alpha_range)


class _Inputs(NamedTuple):
    """What the network sees, one input image after the other."""

    boxes: NDArray[np.float64]  # (M, 4) xyxy in pixels of the input
    sizes: NDArray[np.int64]  # (I, 2) width and height of every input
    image_index: NDArray[np.int64]  # (M,) input of each box


def _inputs(dataset: Dataset, tile: int | None, overlap: int, scale: float) -> _Inputs:
    sizes = np.array([(image.width, image.height) for image in dataset.images], np.int64)
    boxes, index = dataset.boxes[dataset.objects], dataset.image_index[dataset.objects]
    if tile is not None:
        return _tiles(boxes, sizes, index, tile, overlap, scale)
    if not 0 < scale < np.inf:
        raise ValueError(f"the scale is an image resize factor above 0 (0.5 = half), got {scale}")
    rescaled = np.maximum(np.round(sizes * scale), 1).astype(np.int64)
    return _Inputs(boxes * np.tile((rescaled / sizes)[index], 2), rescaled, index)


def _tiles(
    boxes: NDArray[np.float64],
    sizes: NDArray[np.int64],
    index: NDArray[np.int64],
    tile: int,
    overlap: int,
    scale: float,
) -> _Inputs:
    """The tiles that inference cuts, with the objects that training gives them."""
    parts: list[tuple[NDArray[np.float64], NDArray[np.int64]]] = []
    inputs = 0
    for width, height in np.unique(sizes, axis=0).tolist():  # one plan for all images of a size
        images = np.flatnonzero((sizes == (width, height)).all(axis=1))
        rank = np.full(len(sizes), -1)
        rank[images] = np.arange(len(images))
        here = np.flatnonzero(rank[index] >= 0)
        plan = plan_tiles(width, height, tile=tile, overlap=overlap, scale=scale)
        for top, row in groupby(plan.grid.tiles, key=lambda window: window.y):
            # A row at a time, so that a tile of a large image is not asked about the boxes of all others.
            bottom = top + plan.grid.tile_height
            near = here[(boxes[here, 3] > top) & (boxes[here, 1] < bottom)]
            for window in row:
                beside = near[(boxes[near, 2] > window.x) & (boxes[near, 0] < window.x + window.width)]
                clipped, visible = clip_to_tile(boxes[beside], window)
                shown = visible >= VISIBLE
                of_tile = inputs + rank[index[beside[shown]]] * len(plan.grid) + window.index
                parts.append((clipped[shown] * plan.scale, of_tile))
        inputs += len(images) * len(plan.grid)
    in_tiles, tile_index = (np.concatenate(column) for column in zip(*parts, strict=True))
    return _Inputs(in_tiles, np.full((inputs, 2), tile), tile_index)  # smaller images are padded to a tile


def _with_mirror_images(inputs: _Inputs) -> _Inputs:
    boxes, sizes, index = inputs
    mirrored = boxes.copy()
    mirrored[:, [2, 0]] = sizes[index, :1] - boxes[:, [0, 2]]
    both = np.concatenate([boxes, mirrored])
    return _Inputs(both, np.concatenate([sizes, sizes]), np.concatenate([index, index + len(sizes)]))
