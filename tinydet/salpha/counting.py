"""Algorithm 1 of the paper in closed form: boxes -> objects per pyramid level.

An object belongs to the level of its best anchor, the anchor of highest IoU, however low that IoU is. The paper takes
the arg-max of a dense IoU matrix of all objects and all anchors. Here one candidate per anchor shape and level is
enough, because among anchors of one shape the best one is at the cell nearest to the object
(`tinydet.geometry.cells.nearest_cell`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tinydet.geometry.anchors import AnchorDesign
from tinydet.geometry.boxes import iou_from_areas, overlap_length
from tinydet.geometry.cells import nearest_cell
from tinydet.geometry.ranked import ranked_anchors
from tinydet.salpha.inputs import Inputs, check_inputs
from tinydet.salpha.parity import best_anchors, rounding_tolerance

_CHUNK = 8192  # Boxes at a time: the arrays of one chunk stay in a core's cache.


def count_levels(
    boxes: ArrayLike,
    sizes: ArrayLike,
    design: AnchorDesign,
    *,
    image_index: ArrayLike | None = None,
    similarity: str = "iou",
) -> tuple[int, ...]:
    """Count the objects of each level, finest first (Algorithm 1).

    There is no IoU threshold, and anchors may extend beyond the image. The counts equal those of torchvision's float32
    `box_iou` and `argmax` over all anchors; with another similarity see `tinydet.geometry.ranked`.

    Args:
        boxes: (M, 4) xyxy in pixels of the network's input. They are rounded to float32, as a network sees them.
        sizes: (I, 2) width and height of every input image, or (2,) for one image.
        image_index: (M,) index into `sizes` for each box; None for one image.
        similarity: of an object and an anchor, a key of `tinydet.geometry.similarity.SIMILARITIES`.

    Raises:
        ValueError: for arrays of other shapes, invalid boxes, or an image that is too small for any anchor.
    """
    inputs = check_inputs(boxes, sizes, image_index, design)
    if similarity != "iou":
        best = ranked_anchors(design, *inputs, 1, similarity).level[:, 0]
        return tuple(np.bincount(best, minlength=len(design.levels)).tolist())
    ious = best_ious(inputs, design)
    level = ious.argmax(axis=0)
    # Float32 may order levels differently if their IoUs are nearly equal: for 8 of the 343,204 boxes of VisDrone train.
    undecided = (ious >= ious.max(axis=0) - rounding_tolerance(inputs, design)).sum(axis=0) > 1
    if undecided.any():
        index = inputs.image_index[undecided]
        level[undecided] = best_anchors(inputs.boxes[undecided], inputs.sizes, design, image_index=index).level
    return tuple(np.bincount(level, minlength=len(design.levels)).tolist())


def best_ious(inputs: Inputs, design: AnchorDesign) -> NDArray[np.float64]:
    """Return the highest IoU of each box with the anchors of each level: (levels, M), -1 for a level without cells."""
    ious = np.empty((len(design.levels), len(inputs.boxes)))
    for start in range(0, len(inputs.boxes), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        width, height = inputs.sizes[inputs.image_index[chunk]].T
        x1, y1, x2, y2 = np.ascontiguousarray(inputs.boxes[chunk].T)
        if design.inclusive:
            x2, y2 = x2 + 1, y2 + 1
        area = (x2 - x1) * (y2 - y1)
        for level, shapes in enumerate(design.shapes):
            grid = design.level_grid(height, width, level)
            first = design.offset * design.strides[level]
            x = first + grid.stride_x * nearest_cell((x1 + x2) / 2, first, grid.stride_x, grid.columns)
            y = first + grid.stride_y * nearest_cell((y1 + y2) / 2, first, grid.stride_y, grid.rows)
            best = ious[level, chunk]
            best[:] = -1
            for w, h in shapes:
                intersection = _overlap(x1, x2, x, w) * _overlap(y1, y2, y, h)
                np.maximum(best, iou_from_areas(intersection, area, np.asarray(w * h)), out=best)
            best[(grid.rows == 0) | (grid.columns == 0)] = -1
    return ious


def _overlap(
    low: NDArray[np.float64], high: NDArray[np.float64], center: NDArray[np.float64], side: float
) -> NDArray[np.float64]:
    """Overlap on one axis of the intervals [low, high] with intervals of length `side` about `center`."""
    return overlap_length(low, high, center - side / 2, center + side / 2)
