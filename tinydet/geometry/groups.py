"""Groups of boxes: connected components of pairs, the box around each group, and groups that do not touch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinydet.geometry.boxes import Boxes
from tinydet.geometry.nms import conflicts

Indices = NDArray[np.int64]


def components(count: int, first: Indices, second: Indices) -> Indices:
    """Label each of `count` nodes with the smallest node of its connected component.

    Args:
        first, second: (P,) the two nodes of each edge.

    >>> components(5, np.array([3, 1]), np.array([4, 3])).tolist()
    [0, 1, 2, 1, 1]
    """
    label = np.arange(count)
    while True:
        smallest = label.copy()
        low = np.minimum(label[first], label[second])
        np.minimum.at(smallest, first, low)
        np.minimum.at(smallest, second, low)
        smallest = smallest[smallest]
        if np.array_equal(smallest, label):
            return label
        label = smallest


def hulls(boxes: Boxes, group: Indices) -> tuple[Indices, Boxes]:
    """Enclose each group of boxes.

    Args:
        boxes: (N, 4) xyxy.
        group: (N,) label of each box.

    Returns:
        (G,) the first box of each group, and (G, 4) the smallest box around its members; by ascending label.
    """
    _, first, which = np.unique(group, return_index=True, return_inverse=True)
    enclosing = boxes[first]
    np.minimum.at(enclosing[:, :2], which, boxes[:, :2])
    np.maximum.at(enclosing[:, 2:], which, boxes[:, 2:])
    return first, enclosing


def separate_groups(boxes: Boxes, kind: Indices) -> Indices:
    """Group boxes of one kind so that the enclosing boxes of two groups never overlap.

    A box made from the members of one group therefore overlaps no box made from another.

    Args:
        boxes: (N, 4) xyxy.
        kind: (N,) boxes of different kinds are never grouped.

    Returns:
        (N,) index of the first box in each box's group.
    """
    group = np.arange(len(boxes))
    while True:
        first, enclosing = hulls(boxes, group)
        one, two = conflicts(enclosing, 0.0, same=kind[first])
        if not one.size:
            return group
        place = np.searchsorted(first, group)  # a group's label is its first member, so both arrays ascend
        group = first[components(len(first), one, two)[place]]
