"""Fusion statistics of a dataset, on whole images or on tiles.

No image is opened and no network is run: the fusion factors follow from boxes, image sizes and anchors.
"""

from __future__ import annotations

import time

import numpy as np
from numpy.typing import NDArray

from tinydet.data.coco import Dataset
from tinydet.data.samples import MIN_VISIBILITY, TrainingTiles, clip_to_tile
from tinydet.geometry.tiles import MORE_TILES, MOST_TILES, check_tile_count
from tinydet.runtime.plan import OVERLAP, plan_tiles
from tinydet.salpha.detectors import Counting
from tinydet.salpha.factors import ALPHA_RANGE, FusionStatistics
from tinydet.salpha.inputs import Inputs


def statistics_of(
    dataset: Dataset,
    counting: Counting,
    *,
    tile: int | None = None,
    overlap: int = OVERLAP,
    scale: float = 1.0,
    flip: bool = False,
    alpha_range: tuple[float, float] = ALPHA_RANGE,
    max_tiles: int = MOST_TILES,
) -> FusionStatistics:
    """Compute the fusion statistics of a dataset on the images or tiles that a network receives.

    Ignore regions are not counted.

    Args:
        counting: what is counted, see `counting_of`.
        tile: side of the square tiles that images are cut into; None for whole images. Each tile counts as an image,
            and an object counts in every tile that shows enough of it, as in training.
        overlap: of neighboring tiles, in pixels of the resized image.
        scale: resize factor of the images, applied before tiles are cut.
        flip: also count the mirror image of every input.
        alpha_range: lower and upper bound of alpha.
        max_tiles: refuse more tiles than this.

    Raises:
        ValueError: for a scale that is not positive, an overlap that is not smaller than the tile, an invalid
            `alpha_range` or more than `max_tiles` tiles.
    """
    start = time.perf_counter()
    inputs = _inputs(dataset, tile, overlap, scale, max_tiles)
    if flip:
        inputs = _with_mirror_images(inputs)
    return _statistics(inputs, counting, alpha_range, start)


def statistics_of_tiles(
    tiles: TrainingTiles,
    counting: Counting,
    *,
    alpha_range: tuple[float, float] = ALPHA_RANGE,
) -> FusionStatistics:
    """Compute the fusion statistics of training tiles as they are cut, before any flip or transform.

    Args:
        counting, alpha_range: as for `statistics_of`.

    Raises:
        ValueError: for an invalid `alpha_range`.
    """
    start = time.perf_counter()
    boxes: list[NDArray[np.float64]] = []
    index: list[NDArray[np.int64]] = []
    for number in range(len(tiles)):
        clipped, objects, _ = tiles.boxes_in(number)
        boxes.append(clipped[objects])
        index.append(np.full(int(objects.sum()), number))
    sizes = np.array([(tile.width, tile.height) for tile in tiles.tiles], np.int64)
    inputs = Inputs(np.concatenate(boxes), sizes, np.concatenate(index))
    return _statistics(inputs, counting, alpha_range, start)


def _statistics(inputs: Inputs, counting: Counting, alpha_range: tuple[float, float], start: float) -> FusionStatistics:
    inputs, design = counting.boxes_of(inputs), counting.design
    counts = counting.count(inputs)
    seconds = time.perf_counter() - start
    # P6 has no edge, and neither has P7 if there is one: their objects are counted together.
    first = len(counts) - design.unfused
    return FusionStatistics(
        (*counts[:first], sum(counts[first:])),
        len(inputs.boxes),
        len(inputs.sizes),
        seconds,
        (*design.levels[:first], "+".join(design.levels[first:])),
        counting.rule,
        alpha_range,
        counting.statistic.text,
        counting.statistic.unit,
        counting.sizes,
    )


def _inputs(dataset: Dataset, tile: int | None, overlap: int, scale: float, max_tiles: int) -> Inputs:
    sizes = np.array([(image.width, image.height) for image in dataset.images], np.int64)
    boxes, index = dataset.boxes[dataset.objects], dataset.image_index[dataset.objects]
    if tile is not None:
        return _tiles(boxes, sizes, index, tile, overlap, scale, max_tiles)
    if not 0 < scale < np.inf:
        raise ValueError(f"the scale is an image resize factor above 0 (0.5 = half), got {scale}")
    resized = np.maximum(np.round(sizes * scale), 1).astype(np.int64)
    return Inputs(boxes * np.tile((resized / sizes)[index], 2), resized, index)


def _tiles(
    boxes: NDArray[np.float64],
    sizes: NDArray[np.int64],
    index: NDArray[np.int64],
    tile: int,
    overlap: int,
    scale: float,
    max_tiles: int,
) -> Inputs:
    """The tiles that inference cuts, with the objects that training assigns to them."""
    parts = [(np.zeros((0, 4)), np.zeros(0, np.int64))]
    inputs = 0
    plans = {  # images of one size share one plan
        (width, height): plan_tiles(width, height, tile=tile, overlap=overlap, scale=scale)
        for width, height in np.unique(sizes, axis=0).tolist()
    }
    count = sum(len(plans[width, height].grid) for width, height in sizes.tolist())
    check_tile_count(count, max_tiles, what="the dataset", remedy=MORE_TILES)
    for (width, height), plan in plans.items():
        images = np.flatnonzero((sizes == (width, height)).all(axis=1))
        rank = np.full(len(sizes), -1)  # of an image among those of this size
        rank[images] = np.arange(len(images))
        of_size = np.flatnonzero(rank[index] >= 0)
        # Visit only tiles that a box touches: a large image has millions of others.
        grid, xs, ys = plan.grid, np.array(plan.grid.xs), np.array(plan.grid.ys)
        for row in _touched(ys, grid.tile_height, boxes[of_size][:, [1, 3]]).tolist():
            top, bottom = ys[row], ys[row] + grid.tile_height
            in_row = of_size[(boxes[of_size, 3] > top) & (boxes[of_size, 1] < bottom)]
            for column in _touched(xs, grid.tile_width, boxes[in_row][:, [0, 2]]).tolist():
                piece = grid.at(row, column)
                overlapping = in_row[(boxes[in_row, 2] > piece.x) & (boxes[in_row, 0] < piece.x + piece.width)]
                clipped, visible = clip_to_tile(boxes[overlapping], piece)
                shown = visible >= MIN_VISIBILITY
                of_tile = inputs + rank[index[overlapping[shown]]] * len(grid) + piece.index
                parts.append((clipped[shown] * plan.scale, of_tile))
        inputs += len(images) * len(plan.grid)
    in_tiles, tile_index = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Inputs(in_tiles, np.full((inputs, 2), tile), tile_index)  # smaller images are padded to a tile


def _touched(starts: NDArray[np.int64], length: int, intervals: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return which of the intervals of one length that begin at `starts` overlap any of `intervals` (N, 2)."""
    changes = np.zeros(len(starts) + 1, np.int64)
    np.add.at(changes, np.searchsorted(starts, intervals[:, 0] - length, "right"), 1)
    np.add.at(changes, np.searchsorted(starts, intervals[:, 1], "left"), -1)
    return np.flatnonzero(np.cumsum(changes[:-1]) > 0)


def _with_mirror_images(inputs: Inputs) -> Inputs:
    boxes, sizes, index = inputs
    mirrored = boxes.copy()
    mirrored[:, [2, 0]] = sizes[index, :1] - boxes[:, [0, 2]]
    both = np.concatenate([boxes, mirrored])
    return Inputs(both, np.concatenate([sizes, sizes]), np.concatenate([index, index + len(sizes)]))
