"""The K most similar anchors of each object, without the matrix of all pairs. numpy only.

For one anchor shape, similarity falls with the distance of the centers on each axis. So the anchor that is i-th in its
row and k-th in its column, counted from the nearest, has i * k anchors that are at least as similar, itself included,
and only those with i * k up to K are compared: for K = 1 one per shape and level.

`tinydet.salpha.parity` has a stricter rule for the one anchor of highest IoU: bit for bit the float32 result of other
code.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinydet.geometry.anchors import AnchorDesign
from tinydet.geometry.similarity import SIMILARITIES

EQUAL = 1e-9  # relative difference of similarities, and of distances in cells, below which they are equal
_DECIMALS = 9  # of distances in cells that are equal, likewise
_PAIRS = 1 << 18  # compared at a time


class RankedAnchors(NamedTuple):
    """The K most similar anchors of each of M objects, best first; of equally similar ones the first.

    Attributes:
        level: (M, K) number of the level, 0 is the finest.
        anchor: (M, K) index into the concatenated `grid_anchors` of the object's image.
        similarity: (M, K) from 0 to 1; -inf where the image has fewer anchors.
    """

    level: NDArray[np.intp]
    anchor: NDArray[np.int64]
    similarity: NDArray[np.float64]


def ranked_anchors(
    design: AnchorDesign,
    boxes: NDArray[np.float64],
    sizes: NDArray[np.int64],
    image_index: NDArray[np.int64],
    rank: int,
    similarity: str,
) -> RankedAnchors:
    """Return the `rank` most similar anchors of each object, over all anchors of all levels of its image.

    Anchors that contain a box have the same IoU with it at different distances. Of these the nearest are found, not the
    first.

    Args:
        boxes: (M, 4) xyxy in pixels of their image.
        sizes: (I, 2) width and height of every image.
        image_index: (M,) image of each box.
        similarity: a key of `SIMILARITIES`.
    """
    nth = np.array([(i, k) for i in range(rank) for k in range(rank) if (i + 1) * (k + 1) <= rank]).T
    step = max(_PAIRS // (nth.shape[1] * sum(map(len, design.shapes))), 1)
    parts = [RankedAnchors(np.empty((0, rank), np.intp), np.empty((0, rank), np.int64), np.empty((0, rank)))]
    # The similarities of boxes of no extent may be undefined or infinitely small: any anchor is as good.
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for start in range(0, len(boxes), step):
            size = sizes[image_index[start : start + step]]
            parts.append(_of_chunk(design, boxes[start : start + step], size, nth, rank, similarity))
    return RankedAnchors(*map(np.concatenate, zip(*parts, strict=True)))


def count_ranked(
    design: AnchorDesign,
    boxes: NDArray[np.float64],
    sizes: NDArray[np.int64],
    image_index: NDArray[np.int64],
    rank: int,
    similarity: str,
) -> tuple[int, ...]:
    """Count the anchors of each level that are among the `rank` most similar ones of at least one object.

    Anchors of similarity 0 do not count, and an anchor of several objects counts once. These are the positive anchors
    of training by rank, with one exception: there, an object that loses all its anchors to more similar objects gets
    one that is still free. Arguments are those of `ranked_anchors`.
    """
    found = ranked_anchors(design, boxes, sizes, image_index, rank, similarity)
    similar = found.similarity > 0
    image = np.broadcast_to(image_index[:, None], similar.shape)
    return count_distinct(found.level[similar], found.anchor[similar], image[similar], len(design.levels))


def count_distinct(
    level: NDArray[np.intp], anchor: NDArray[np.int64], image_index: NDArray[np.int64], levels: int
) -> tuple[int, ...]:
    """Count anchors by level, each once per image. The arrays are parallel; `anchor` is counted within its image."""
    _, first = np.unique(image_index * (anchor.max(initial=0) + 1) + anchor, return_index=True)
    return tuple(np.bincount(level[first], minlength=levels).tolist())


def _of_chunk(
    design: AnchorDesign,
    boxes: NDArray[np.float64],
    sizes: NDArray[np.int64],
    nth: NDArray[np.intp],
    rank: int,
    similarity: str,
) -> RankedAnchors:
    """`ranked_anchors` of (m, 4) boxes in images of `sizes` (m, 2). `nth`: (2, T) column and row, by nearness."""
    if design.inclusive:
        boxes = boxes + np.array([0, 0, 1, 1])
    similarities, anchors, levels = [], [], []
    first_of_level = np.zeros((len(boxes), 1), np.int64)
    for level, shapes in enumerate(design.shapes):
        grid = design.level_grid(sizes[:, 1], sizes[:, 0], level)
        first = design.offset * design.strides[level]
        column, outside_x = _nearest(boxes[:, 0::2].mean(axis=1), first, grid.stride_x, grid.columns, rank)
        row, outside_y = _nearest(boxes[:, 1::2].mean(axis=1), first, grid.stride_y, grid.rows, rank)
        column, row, outside = column[:, nth[0]], row[:, nth[1]], outside_x[:, nth[0]] | outside_y[:, nth[1]]
        center = first + np.stack([column * grid.stride_x[:, None], row * grid.stride_y[:, None]] * 2, axis=2)
        cell = row * grid.columns[:, None] + column
        for number, (width, height) in enumerate(shapes):
            half = np.array([width, height]) / 2
            value = SIMILARITIES[similarity](boxes[:, None], center + np.concatenate([-half, half]))
            similarities.append(np.where(outside, -np.inf, np.nan_to_num(value, nan=0.0)))
            anchors.append(first_of_level + cell * len(shapes) + number)
            levels += [level] * nth.shape[1]
        first_of_level = first_of_level + (grid.rows * grid.columns * len(shapes))[:, None]
    anchor, remaining = np.concatenate(anchors, axis=1), np.concatenate(similarities, axis=1)
    chosen = np.empty((len(boxes), rank), np.intp)
    value = np.empty((len(boxes), rank))
    for number in range(rank):
        highest = remaining.max(axis=1)
        equal = remaining >= (highest * (1 - EQUAL))[:, None]
        best = np.where(equal, anchor, np.iinfo(np.int64).max).argmin(axis=1)
        remaining[np.arange(len(boxes)), best] = -np.inf
        chosen[:, number], value[:, number] = best, highest
    return RankedAnchors(np.asarray(levels)[chosen], np.take_along_axis(anchor, chosen, axis=1), value)


def _nearest(
    center: NDArray[np.float64], first: float, stride: NDArray[np.int64], cells: NDArray[np.int64], rank: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the `rank` cells of one axis nearest to each center, and which of them do not exist: (m, rank) each.

    The nearest is first, and of two equally near ones the lower.
    """
    place = (center - first) / stride
    nearest = np.clip(np.ceil(place - 0.5 - EQUAL), 0, np.maximum(cells - 1, 0))
    cell = nearest[:, None] + np.arange(1 - rank, rank)
    outside = (cell < 0) | (cell >= cells[:, None])
    distance = np.where(outside, np.inf, np.abs(cell - place[:, None]).round(_DECIMALS))
    order = np.argsort(distance, axis=1, kind="stable")[:, :rank]
    return np.take_along_axis(cell, order, axis=1).astype(np.int64), np.take_along_axis(outside, order, axis=1)
