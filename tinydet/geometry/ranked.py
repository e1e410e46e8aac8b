"""The anchors that are among the K most similar ones of some object, without the matrix of all pairs. numpy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinydet.geometry.anchors import AnchorDesign
from tinydet.geometry.similarity import SIMILARITIES

_PAIRS = 1 << 20  # compared at a time
_DECIMALS = 9  # similarities that agree in these are equal


def count_ranked(
    design: AnchorDesign,
    boxes: NDArray[np.float64],
    sizes: NDArray[np.int64],
    image_index: NDArray[np.int64],
    rank: int,
    similarity: str,
) -> tuple[int, ...]:
    """Count the anchors of each level that are among the `rank` most similar ones of at least one object.

    Of equally similar anchors the first ones count; anchors of similarity 0 do not. An anchor of several objects counts
    once. These are the anchors that training by rank makes positive, except for the one that an object gets there in
    exchange for `rank` anchors which are all more similar to others.

    For one shape, similarity falls with the distance of the centers on each axis. So the anchor that is i-th in its row
    and k-th in its column, counted from the nearest, has i * k anchors that are at least as similar, itself included,
    and only those with i * k up to `rank` are compared.

    Args:
        boxes: (M, 4) xyxy in pixels of their image.
        sizes: (I, 2) width and height of every image.
        image_index: (M,) image of each box.
        similarity: a key of `SIMILARITIES`.
    """
    nth = np.array([(i, k) for i in range(rank) for k in range(rank) if (i + 1) * (k + 1) <= rank]).T
    step = max(_PAIRS // (nth.shape[1] * sum(map(len, design.shapes))), 1)
    chosen = [np.zeros((2, 0), np.int64)]
    for start in range(0, len(boxes), step):
        image = image_index[start : start + step]
        anchor = _best(design, boxes[start : start + step], sizes[image], nth, rank, similarity)
        found = np.stack([np.broadcast_to(image[:, None], anchor.shape), anchor])
        chosen.append(found[:, anchor >= 0])
    image, anchor = np.unique(np.concatenate(chosen, axis=1), axis=1)
    last = np.cumsum(_anchors(design, sizes), axis=1)  # (I, levels)
    level = (anchor[:, None] >= last[image]).sum(axis=1)
    return tuple(np.bincount(level, minlength=len(design.levels)).tolist())


def _best(
    design: AnchorDesign,
    boxes: NDArray[np.float64],
    sizes: NDArray[np.int64],
    nth: NDArray[np.int64],
    rank: int,
    similarity: str,
) -> NDArray[np.int64]:
    """Return the `rank` best anchors of each box in the order of all anchors of its image: (m, rank), -1 for none."""
    starts = np.cumsum(_anchors(design, sizes), axis=1) - _anchors(design, sizes)
    anchors, similarities = [], []
    for level, shapes in enumerate(design.shapes):
        grid = design.level_grid(sizes[:, 1], sizes[:, 0], level)
        first = design.offset * design.strides[level]
        column, outside_x = _nearest(boxes[:, 0::2].mean(axis=1), first, grid.stride_x, grid.columns, rank)
        row, outside_y = _nearest(boxes[:, 1::2].mean(axis=1), first, grid.stride_y, grid.rows, rank)
        column, row, outside = column[:, nth[0]], row[:, nth[1]], outside_x[:, nth[0]] | outside_y[:, nth[1]]
        center = first + np.stack([column * grid.stride_x[:, None], row * grid.stride_y[:, None]] * 2, axis=2)
        for number, (width, height) in enumerate(shapes):
            half = np.array([width, height]) / 2
            with np.errstate(divide="ignore", invalid="ignore"):
                value = SIMILARITIES[similarity](boxes[:, None], center + np.concatenate([-half, half]))
            similarities.append(np.where(outside, -1.0, np.nan_to_num(value, nan=0.0)).round(_DECIMALS))
            cell = row * grid.columns[:, None] + column
            anchors.append(starts[:, level, None] + cell * len(shapes) + number)
    anchor, value = np.concatenate(anchors, axis=1), np.concatenate(similarities, axis=1)
    order = np.lexsort((anchor, -value), axis=1)[:, :rank]
    best = np.take_along_axis(np.where(value > 0, anchor, -1), order, axis=1)
    return np.asarray(best, np.int64)


def _nearest(
    center: NDArray[np.float64], first: float, stride: NDArray[np.int64], cells: NDArray[np.int64], rank: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the `rank` cells of one axis nearest to each center, nearest first: (m, rank), and which do not exist."""
    place = (center - first) / stride
    nearest = np.clip(np.round(place), 0, cells - 1)
    cell = nearest[:, None] + np.arange(-rank, rank + 1)
    outside = (cell < 0) | (cell >= cells[:, None])
    order = np.argsort(np.where(outside, np.inf, np.abs(cell - place[:, None])), axis=1, kind="stable")[:, :rank]
    return np.take_along_axis(cell, order, axis=1).astype(np.int64), np.take_along_axis(outside, order, axis=1)


def _anchors(design: AnchorDesign, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of anchors of each level for images of `sizes` (I, 2): (I, levels)."""
    grids = [design.level_grid(sizes[:, 1], sizes[:, 0], level) for level in range(len(design.levels))]
    counts = [grid.rows * grid.columns * len(shapes) for grid, shapes in zip(grids, design.shapes, strict=True)]
    return np.stack(counts, axis=1)
