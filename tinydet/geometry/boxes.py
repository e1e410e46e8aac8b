"""Boxes against boxes, pair by pair, and groups of boxes that belong together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinydet.geometry.nms import conflicts

Boxes = NDArray[np.float64]
Indices = NDArray[np.int64]


def area(boxes: Boxes) -> NDArray[np.float64]:
    """Of each box (..., 4) xyxy; 0 for one that is inside out."""
    sides = np.maximum(boxes[..., 2:] - boxes[..., :2], 0)
    result: NDArray[np.float64] = sides[..., 0] * sides[..., 1]
    return result


def intersection(one: Boxes, two: Boxes) -> Boxes:
    """What each pair (broadcast) has in common; inside out where that is nothing."""
    lower, upper = np.maximum(one[..., :2], two[..., :2]), np.minimum(one[..., 2:], two[..., 2:])
    return np.concatenate([lower, upper], axis=-1)


def iou_of_pairs(one: Boxes, two: Boxes) -> NDArray[np.float64]:
    """Intersection over union of each pair (broadcast)."""
    inner = area(intersection(one, two))
    result: NDArray[np.float64] = inner / np.maximum(area(one) + area(two) - inner, np.finfo(np.float64).tiny)
    return result


def components(count: int, first: Indices, second: Indices) -> Indices:
    """For each of `count` things the smallest index that links lead to.

    >>> components(5, np.array([3, 1]), np.array([4, 3])).tolist()
    [0, 1, 2, 1, 1]
    """
    group = np.arange(count)
    while True:
        least = group.copy()
        low = np.minimum(group[first], group[second])
        np.minimum.at(least, first, low)
        np.minimum.at(least, second, low)
        least = least[least]
        if np.array_equal(least, group):
            return group
        group = least


def hulls(boxes: Boxes, group: Indices) -> tuple[Indices, Boxes]:
    """The first member of each group, and the box around all of its members."""
    _, first, which = np.unique(group, return_index=True, return_inverse=True)
    corners = boxes[first]
    np.minimum.at(corners[:, :2], which, boxes[:, :2])
    np.maximum.at(corners[:, 2:], which, boxes[:, 2:])
    return first, corners


def separate_groups(boxes: Boxes, kind: Indices) -> Indices:
    """Groups of boxes whose hulls do not meet: a box made of those of one group overlaps none made of another's.

    Args:
        kind: (N,) boxes of different kinds never meet.

    Returns:
        (N,) the index of the first box of each box's group.
    """
    group = np.arange(len(boxes))
    while True:
        first, corners = hulls(boxes, group)
        one, two = conflicts(corners, 0.0, same=kind[first])
        if not one.size:
            return group
        place = np.searchsorted(first, group)  # groups are named by their first member, so both ascend
        group = first[components(len(first), one, two)[place]]
