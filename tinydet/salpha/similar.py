"""The best anchor of each object by another similarity than IoU, in closed form.

Of the anchors of one shape the one nearest to the object's center has the highest NWD, DotD and RFD, as it has the
highest IoU: all three fall with the distance of the centers on each axis. So one candidate per shape and level is
compared, in float64. Equal candidates differ by rounding, so those within a relative 1e-9 of the best count as equal,
and the lowest index among them wins. For IoU `tinydet.salpha.parity` has the stricter rule: bit for bit the float32
result of other code.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinydet.geometry.anchors import AnchorDesign
from tinydet.geometry.similarity import SIMILARITIES, PairSimilarity
from tinydet.salpha.inputs import Inputs

EQUAL = 1e-9  # relative difference of similarities, and of distances in cells, below which they are equal
_CHUNK = 8192  # boxes at a time


def most_similar(inputs: Inputs, design: AnchorDesign, similarity: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return level and index of the best anchor of each object, over all anchors of all levels of its image.

    Args:
        similarity: a key of `SIMILARITIES`.

    Returns:
        (M,) level, 0 is the finest, and (M,) index into the concatenated `grid_anchors` of the object's image.
    """
    levels, anchors = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    # The similarities of tiny boxes of no extent may be undefined or infinitely small: any anchor is as good.
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for start in range(0, len(inputs.boxes), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            size = inputs.sizes[inputs.image_index[chunk]]
            level, anchor = _of_chunk(inputs.boxes[chunk], size, design, SIMILARITIES[similarity])
            levels.append(level)
            anchors.append(anchor)
    return np.concatenate(levels), np.concatenate(anchors)


def _of_chunk(
    boxes: NDArray[np.float64], sizes: NDArray[np.int64], design: AnchorDesign, pairs: PairSimilarity
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`most_similar` of (m, 4) boxes in images of `sizes` (m, 2), width and height."""
    if design.inclusive:
        boxes = boxes + np.array([0, 0, 1, 1])
    similarities, levels, anchors = [], [], []
    first_of_level = np.zeros(len(boxes), np.int64)
    for level, shapes in enumerate(design.shapes):
        grid = design.level_grid(sizes[:, 1], sizes[:, 0], level)
        first = design.offset * design.strides[level]
        column = _nearest(boxes[:, 0::2].mean(axis=1), first, grid.stride_x, grid.columns)
        row = _nearest(boxes[:, 1::2].mean(axis=1), first, grid.stride_y, grid.rows)
        center = np.stack([first + column * grid.stride_x, first + row * grid.stride_y] * 2, axis=1)
        empty = (grid.rows == 0) | (grid.columns == 0)
        for number, (width, height) in enumerate(shapes):
            half = np.array([width, height]) / 2
            found = np.nan_to_num(pairs(boxes, center + np.concatenate([-half, half])), nan=0.0)
            similarities.append(np.where(empty, -1.0, found))
            levels.append(level)
            anchors.append(first_of_level + (row * grid.columns + column) * len(shapes) + number)
        first_of_level = first_of_level + grid.rows * grid.columns * len(shapes)
    values = np.stack(similarities)
    equal = values >= values.max(axis=0) * (1 - EQUAL)
    chosen = equal.argmax(axis=0)
    return np.asarray(levels, np.int64)[chosen], np.stack(anchors)[chosen, np.arange(len(boxes))]


def _nearest(
    center: NDArray[np.float64], first: float, stride: NDArray[np.int64], cells: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the cell of one axis that is nearest to `center`; of two equally near ones the first."""
    place = np.ceil((center - first) / stride - 0.5 - EQUAL)
    return np.clip(place, 0, np.maximum(cells - 1, 0)).astype(np.int64)
