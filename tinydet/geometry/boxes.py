"""Areas, intersections and overlaps of boxes, pair by pair.

`area`, `intersection` and `iou_of_pairs` take boxes (..., 4) xyxy; pairs broadcast. The other functions take
`Coordinates`, the same boxes as four arrays, which is faster for millions of pairs. Everything is computed in the type
of the arguments and in a fixed order of operations: results are compared with thresholds, so the last bit matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float64]
Float = TypeVar("Float", bound=np.floating[Any])
Coordinates = Sequence[NDArray[Float]]  # x1, y1, x2, y2


def area(boxes: NDArray[Float]) -> NDArray[Float]:
    """Return the area of each box; 0 for a box with a negative side.

    >>> area(np.array([[0, 0, 4, 2], [3, 3, 1, 1]], float)).tolist()
    [8.0, 0.0]
    """
    sides = np.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    result: NDArray[Float] = sides[..., 0] * sides[..., 1]
    return result


def intersection(one: NDArray[Float], two: NDArray[Float]) -> NDArray[Float]:
    """Return the box that each pair shares; it has a negative side where the pair does not overlap."""
    lower, upper = np.maximum(one[..., :2], two[..., :2]), np.minimum(one[..., 2:], two[..., 2:])
    return np.concatenate([lower, upper], axis=-1)


def iou_of_pairs(one: NDArray[Float], two: NDArray[Float]) -> NDArray[Float]:
    """Return the intersection over union of each pair; 0 for a pair without area.

    >>> iou_of_pairs(np.array([[0.0, 0, 4, 2], [0, 0, 0, 0]]), np.array([2.0, 0, 6, 2])).round(3).tolist()
    [0.333, 0.0]
    """
    overlap = area(intersection(one, two))
    union = area(one) + area(two) - overlap
    result: NDArray[Float] = overlap / np.maximum(union, np.finfo(union.dtype).tiny)
    return result


def overlap_length(
    low: NDArray[Float],
    high: NDArray[Float],
    other_low: NDArray[Float],
    other_high: NDArray[Float],
    *,
    pixel_inclusive: bool = False,
) -> NDArray[Float]:
    """Return the length that each pair of intervals shares; 0 for disjoint ones.

    Args:
        pixel_inclusive: count both border pixels: a side is x2 - x1 + 1 pixels long. The CPU suppression with which the
            TinyPerson benchmark merges sub-images, and the anchors of the authors' code, measure boxes so.
    """
    length = np.minimum(high, other_high) - np.maximum(low, other_low)
    result: NDArray[Float] = np.maximum(length + 1 if pixel_inclusive else length, 0)
    return result


def iou_from_areas(overlap: NDArray[Float], area_one: NDArray[Float], area_two: NDArray[Float]) -> NDArray[Float]:
    """Return the intersection over union for known areas; NaN where the union is 0.

    Float32 sums depend on their order: exchanging the two boxes can change the last bit.
    """
    result: NDArray[Float] = overlap / (area_one + area_two - overlap)
    return result


def iou_by_coordinates(
    one: Coordinates[Float], two: Coordinates[Float], *, pixel_inclusive: bool = False
) -> NDArray[Float]:
    """Return the intersection over union of each pair; NaN for a pair without area.

    Without `pixel_inclusive`, it equals torchvision's `box_iou` bit for bit.

    Args:
        pixel_inclusive: as for `overlap_length`.
    """
    pixel = int(pixel_inclusive)
    width = overlap_length(one[0], one[2], two[0], two[2], pixel_inclusive=pixel_inclusive)
    height = overlap_length(one[1], one[3], two[1], two[3], pixel_inclusive=pixel_inclusive)
    area_one, area_two = ((x2 - x1 + pixel) * (y2 - y1 + pixel) for x1, y1, x2, y2 in (one, two))
    return iou_from_areas(width * height, area_one, area_two)


def iod_from_iou(iou: Boxes, target_area: Boxes, detection_area: Boxes) -> Boxes:
    """Convert intersection over union to intersection over detection area, as the TinyPerson evaluators do.

    In exact arithmetic the result is intersection / detection_area. In float64 it may differ in the last bit and put an
    exact half on either side of the threshold 0.5, so scores equal the benchmark's only with this formula.
    """
    with np.errstate(divide="ignore", invalid="ignore"):  # a detection without area
        return iou / (1 + iou) * (1 + target_area / detection_area)
