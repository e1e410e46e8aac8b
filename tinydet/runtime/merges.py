"""Merge methods of other tools, for comparison. They create new boxes or scores from boxes that overlap.

Each processes whole groups of boxes (`separate_groups`) by descending score, and groups do not affect each other.

"nmm": among boxes that share more than half of the smaller one, the best is extended to cover the others (SAHI's greedy
non-maximum merging with its IOS metric). "wbf": weighted boxes fusion (Solovyev et al., 2021) with equal weights.
"soft-nms": Gaussian Soft-NMS (Bodla et al., 2017).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinydet.geometry.boxes import Boxes, area, intersection, iou_of_pairs
from tinydet.geometry.groups import Indices, hulls
from tinydet.geometry.nms import conflicts, resolve

Scores = NDArray[np.float32]

NMM_SHARED = 0.5  # share of the smaller box's area; SAHI's default
WBF_IOU = 0.55  # as in the paper, and the default of its authors' package
SOFT_SIGMA = 0.5  # as in the paper


class Fused(NamedTuple):
    """Merged boxes.

    Attributes:
        corners: (M, 4) xyxy.
        scores: (M,).
        source: (M,) index of the best of the boxes that each box was made from.
    """

    corners: Boxes
    scores: Scores
    source: Indices


def fuse(merge: str, corners: Boxes, scores: Scores, group: Indices, min_score: Scores | None = None) -> Fused:
    """Merge boxes within groups.

    Args:
        merge: "nmm", "wbf" or "soft-nms".
        corners: (N, 4) xyxy.
        scores: (N,) descending.
        group: (N,) boxes of different groups do not affect each other.
        min_score: (N,) boxes whose new score is lower are dropped; None for none.
    """
    if merge == "nmm":
        return _non_maximum_merging(corners, scores, group)
    one_group = {"wbf": _weighted_boxes_fusion, "soft-nms": _soft_nms}[merge]
    order = np.argsort(group, kind="stable")
    _, starts, counts = np.unique(group[order], return_index=True, return_counts=True)
    alone = order[starts[counts == 1]]
    parts = [Fused(corners[alone], scores[alone], alone)]
    for start, count in zip(starts[counts > 1].tolist(), counts[counts > 1].tolist(), strict=True):
        members = order[start : start + count]
        fused = one_group(corners[members], scores[members])
        parts.append(fused._replace(source=members[fused.source]))
    fused_corners = np.concatenate([part.corners for part in parts])
    fused_scores = np.concatenate([part.scores for part in parts])
    source = np.concatenate([part.source for part in parts])
    stays = np.ones(len(source), np.bool_) if min_score is None else fused_scores >= min_score[source]
    return Fused(fused_corners[stays], fused_scores[stays], source[stays])


def _non_maximum_merging(corners: Boxes, scores: Scores, group: Indices) -> Fused:
    better, worse = conflicts(corners, 0.0, same=group)
    smaller = np.minimum(area(corners[better]), area(corners[worse]))
    overlapping = area(intersection(corners[better], corners[worse])) > NMM_SHARED * smaller
    better, worse = better[overlapping], worse[overlapping]
    kept = resolve(better, worse, np.zeros(len(corners), np.bool_)).kept
    target = np.arange(len(corners))  # the box that each box is merged into
    merged = kept[better]
    target[~kept] = len(corners)
    np.minimum.at(target, worse[merged], better[merged])
    source, merged_corners = hulls(corners, target)
    return Fused(merged_corners, scores[source], source)


def _weighted_boxes_fusion(corners: Boxes, scores: Scores) -> Fused:
    weights = np.maximum(scores.astype(np.float64), np.finfo(np.float32).tiny)
    sums, fused = np.zeros_like(corners), np.zeros_like(corners)
    total, members = np.zeros(len(corners)), np.zeros(len(corners))
    source: list[int] = []
    for i, (box, weight) in enumerate(zip(corners, weights.tolist(), strict=True)):
        iou = iou_of_pairs(fused[: len(source)], box)
        cluster = int(iou.argmax()) if len(source) else 0
        if not source or iou[cluster] <= WBF_IOU:
            cluster = len(source)
            source.append(i)
        sums[cluster] += weight * box
        total[cluster] += weight
        members[cluster] += 1
        fused[cluster] = sums[cluster] / total[cluster]
    clusters = slice(len(source))
    mean = (total[clusters] / members[clusters]).astype(np.float32)
    return Fused(fused[clusters], mean, np.array(source, np.int64))


def _soft_nms(corners: Boxes, scores: Scores) -> Fused:
    left = scores.astype(np.float64)
    final = np.zeros(len(corners))
    source: list[int] = []
    for _ in range(len(corners)):
        best = int(left.argmax())
        source.append(best)
        final[best] = left[best]
        left *= np.exp(-(iou_of_pairs(corners, corners[best]) ** 2) / SOFT_SIGMA)
        left[best] = -np.inf
    order = np.array(source, np.int64)
    return Fused(corners[order], final[order].astype(np.float32), order)
