"""Which detections and objects overlap, and by how much: sparse, in float64, with the arithmetic of pycocotools."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

CHUNK = 1 << 20  # candidate pairs looked at together; bounds memory where thousands of boxes share one image


class Overlaps(NamedTuple):
    """Pairs with a common area, sorted by detection, then by object.

    Attributes:
        detection, target: (P,) indices.
        iou: (P,) intersection over union.
        share: (P,) intersection over the detection's area, which is pycocotools' IoU with a crowd.
    """

    detection: NDArray[np.int64]
    target: NDArray[np.int64]
    iou: NDArray[np.float64]
    share: NDArray[np.float64]


def find_overlaps(
    boxes: NDArray[np.float64],
    group: NDArray[np.int64],
    targets: NDArray[np.float64],
    target_group: NDArray[np.int64],
) -> Overlaps:
    """All overlapping pairs of one group (an image and category).

    Objects are searched in classes of width (powers of two), so that one wide ignore region does not make a
    candidate of every object: within a class, only those in a detection's column come into question.

    Args:
        boxes: (N, 4) x, y, width, height of detections.
        group: (N,) ascending.
        targets: (M, 4) x, y, width, height of objects.
        target_group: (M,) ascending.
    """
    none = np.zeros(0, np.int64)
    found = [Overlaps(none, none, np.zeros(0), np.zeros(0))]
    found += [_overlapping(boxes, targets, *pair) for pair in candidate_pairs(boxes, group, targets, target_group)]
    detection = np.concatenate([part.detection for part in found])
    target = np.concatenate([part.target for part in found])
    iou = np.concatenate([part.iou for part in found])
    share = np.concatenate([part.share for part in found])
    order = np.lexsort((target, detection))
    return Overlaps(detection[order], target[order], iou[order], share[order])


def candidate_pairs(
    boxes: NDArray[np.float64],
    group: NDArray[np.int64],
    targets: NDArray[np.float64],
    target_group: NDArray[np.int64],
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Chunks of pairs that share a group and a column of pixels: every pair that overlaps, and some that do not.

    Arguments as for `find_overlaps`.
    """
    if not len(boxes) or not len(targets):
        return
    # Everything below only has to include each true pair, so absurd coordinates may be cut off.
    left, right = _column(boxes)
    start, _ = _column(targets)
    widths = np.clip(targets[:, 2], 0.0, 1e12)
    low = min(left.min(), start.min())
    spacing = 3 * (max(right.max(), start.max() + widths.max()) - low + widths.max() + 1.0)
    # One axis for all groups: group g lives in [g * spacing, (g + 1) * spacing).
    origin, target_origin = group * spacing - low, target_group * spacing - low
    slack = 8 * np.spacing(max(origin[-1], target_origin[-1]) + spacing)
    classes = np.frexp(widths)[1]
    for size in np.unique(classes):
        members = np.flatnonzero(classes == size)
        keys = target_origin[members] + start[members]
        order = np.argsort(keys, kind="stable")
        keys, members = keys[order], members[order]
        first = np.searchsorted(keys, origin + left - widths[members].max() - slack, side="left")
        last = np.searchsorted(keys, origin + right + slack, side="right")
        counts = np.maximum(last - first, 0)
        ends = np.cumsum(counts)
        cuts = np.searchsorted(ends, np.arange(CHUNK, max(ends[-1], 1) + CHUNK, CHUNK), side="left") + 1
        for begin, end in zip(np.r_[0, cuts[:-1]], np.minimum(cuts, len(boxes)), strict=True):
            many = counts[begin:end]
            detection = np.repeat(np.arange(begin, end), many)
            offset = np.arange(many.sum()) - np.repeat(np.cumsum(many) - many, many)
            yield detection, members[first[detection] + offset]


def _overlapping(
    boxes: NDArray[np.float64],
    targets: NDArray[np.float64],
    detection: NDArray[np.int64],
    target: NDArray[np.int64],
) -> Overlaps:
    """Those of the candidate pairs that overlap. The order of operations is that of bbIou in maskApi.c."""
    ax, ay, aw, ah = boxes.T
    bx, by, bw, bh = targets.T
    width = np.minimum((aw + ax)[detection], (bw + bx)[target]) - np.maximum(ax[detection], bx[target])
    height = np.minimum((ah + ay)[detection], (bh + by)[target]) - np.maximum(ay[detection], by[target])
    common = np.flatnonzero((width > 0) & (height > 0))
    detection, target = detection[common], target[common]
    with np.errstate(over="ignore", invalid="ignore"):  # a diverged detector's boxes: areas beyond float64 overlap by 0
        intersection = width[common] * height[common]
        area = (aw * ah)[detection]
        union = area + (bw * bh)[target] - intersection
        return Overlaps(detection, target, intersection / union, intersection / area)


def _column(boxes: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Left and right edges, within +-1e12 pixels."""
    left = np.clip(boxes[:, 0], -1e12, 1e12)
    return left, np.clip(boxes[:, 0] + np.maximum(boxes[:, 2], 0.0), -1e12, 1e12)
