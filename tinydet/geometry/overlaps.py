"""Find the overlapping pairs of two sets of boxes, sparsely, in float64, with the arithmetic of pycocotools."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinydet.geometry.boxes import iou_from_areas, overlap_length
from tinydet.geometry.nms import pairs_of_ranges


class Overlaps(NamedTuple):
    """Pairs that share an area, sorted by detection, then by target.

    Attributes:
        detection, target: (P,) indices.
        iou: (P,) intersection over union.
        iod: (P,) intersection over the detection's area, which is what pycocotools uses for a crowd.
    """

    detection: NDArray[np.int64]
    target: NDArray[np.int64]
    iou: NDArray[np.float64]
    iod: NDArray[np.float64]


def find_overlaps(
    boxes: NDArray[np.float64],
    group: NDArray[np.int64],
    targets: NDArray[np.float64],
    target_group: NDArray[np.int64],
) -> Overlaps:
    """Return all pairs of a detection and a target that overlap and belong to one group (an image and a category).

    IoU follows `bbIou` in pycocotools' maskApi.c bit for bit: edges are x + w and y + h, areas are w * h.

    Args:
        boxes: (N, 4) x, y, width, height of detections.
        group: (N,) ascending.
        targets: (M, 4) x, y, width, height of targets.
        target_group: (M,) ascending.
    """
    left, top, right, bottom = _edges(boxes)
    target_left, target_top, target_right, target_bottom = _edges(targets)
    parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    with np.errstate(over="ignore", invalid="ignore"):  # a diverged model's boxes: areas beyond float64
        for detection, target in candidate_pairs(boxes, group, targets, target_group):
            width = overlap_length(left[detection], right[detection], target_left[target], target_right[target])
            height = overlap_length(top[detection], bottom[detection], target_top[target], target_bottom[target])
            overlap = width * height
            hit = np.flatnonzero(overlap > 0)
            parts.append((detection[hit], target[hit], overlap[hit]))
        detection, target, overlap = (np.concatenate(column) for column in zip(*parts, strict=True))
        order = np.lexsort((target, detection))
        detection, target, overlap = detection[order], target[order], overlap[order]
        area, target_area = (boxes[:, 2] * boxes[:, 3])[detection], (targets[:, 2] * targets[:, 3])[target]
        return Overlaps(detection, target, iou_from_areas(overlap, area, target_area), overlap / area)


def candidate_pairs(
    boxes: NDArray[np.float64],
    group: NDArray[np.int64],
    targets: NDArray[np.float64],
    target_group: NDArray[np.int64],
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield chunks of index pairs that share a group and a pixel column: every overlapping pair, and some others.

    Targets are searched by width class (powers of two). Otherwise one wide ignore region would pair every detection
    with all targets to its left. Arguments are those of `find_overlaps`.
    """
    if not len(boxes) or not len(targets):
        return
    # The search only has to include every overlapping pair, so extreme coordinates may be clipped.
    left, right = _column(boxes)
    start, _ = _column(targets)
    widths = np.clip(targets[:, 2], 0.0, 1e12)
    low = min(left.min(), start.min())
    spacing = 3 * (max(right.max(), start.max() + widths.max()) - low + widths.max() + 1.0)
    # All groups share one axis: group g occupies [g * spacing, (g + 1) * spacing).
    origin, target_origin = group * spacing - low, target_group * spacing - low
    slack = 8 * np.spacing(max(origin[-1], target_origin[-1]) + spacing)
    width_class = np.frexp(widths)[1]
    for chosen in np.unique(width_class):
        members = np.flatnonzero(width_class == chosen)
        keys = target_origin[members] + start[members]
        order = np.argsort(keys, kind="stable")
        keys, members = keys[order], members[order]
        first = np.searchsorted(keys, origin + left - widths[members].max() - slack, side="left")
        last = np.searchsorted(keys, origin + right + slack, side="right")
        for detection, place in pairs_of_ranges(first, last):
            yield detection, members[place]


def _edges(xywh: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Return x, y, x + w and y + h of boxes (N, 4), each (N,)."""
    x, y, width, height = xywh.T
    return x, y, width + x, height + y


def _column(xywh: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the left and right edges of boxes (N, 4), clipped to +-1e12 pixels."""
    left = np.clip(xywh[:, 0], -1e12, 1e12)
    return left, np.clip(xywh[:, 0] + np.maximum(xywh[:, 2], 0.0), -1e12, 1e12)
