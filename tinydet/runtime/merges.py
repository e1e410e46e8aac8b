"""Merges that make new boxes or scores of those that overlap: what other tools do, to compare with.

Each takes whole groups of boxes (`separate_groups`), best first, and what it makes of one depends on no other.

"nmm": of boxes that share more than half of the smaller one the best takes in the others (SAHI's greedy
non-maximum merging with its measure IOS). "wbf": weighted boxes fusion (Solovyev et al., 2021) with one weight for all
boxes. "soft-nms": Gaussian (Bodla et al., 2017).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinydet.geometry.boxes import Boxes, area, intersection, iou_of_pairs
from tinydet.geometry.groups import Indices, hulls
from tinydet.geometry.nms import conflicts, resolve

Scores = NDArray[np.float32]

NMM_SHARED = 0.5  # of the smaller box; SAHI's default
WBF_IOU = 0.55  # the paper's, and the default of its authors' package
SOFT_SIGMA = 0.5  # the paper's


class Fused(NamedTuple):
    """What became of a set of boxes.

    Attributes:
        corners: (M, 4).
        scores: (M,).
        source: (M,) the best of the boxes that each was made of.
    """

    corners: Boxes
    scores: Scores
    source: Indices


def fuse(merge: str, corners: Boxes, scores: Scores, group: Indices, least: float = 0.0) -> Fused:
    """Apply a merge to boxes that come best first.

    Args:
        merge: "nmm", "wbf" or "soft-nms".
        corners: (N, 4) xyxy.
        scores: (N,) descending.
        group: (N,) boxes of different groups do not meet.
        least: boxes whose score falls below it are left out.
    """
    if merge == "nmm":
        return _taken_in(corners, scores, group)
    one_group = {"wbf": _weighted, "soft-nms": _decayed}[merge]
    order = np.argsort(group, kind="stable")
    _, starts, counts = np.unique(group[order], return_index=True, return_counts=True)
    alone = order[starts[counts == 1]]
    parts = [Fused(corners[alone], scores[alone], alone)]
    for start, count in zip(starts[counts > 1].tolist(), counts[counts > 1].tolist(), strict=True):
        members = order[start : start + count]
        fused = one_group(corners[members], scores[members])
        parts.append(fused._replace(source=members[fused.source]))
    found = np.concatenate([part.corners for part in parts])
    values = np.concatenate([part.scores for part in parts])
    source = np.concatenate([part.source for part in parts])
    stays = values >= least
    return Fused(found[stays], values[stays], source[stays])


def _taken_in(corners: Boxes, scores: Scores, group: Indices) -> Fused:
    better, worse = conflicts(corners, 0.0, same=group)
    smaller = np.minimum(area(corners[better]), area(corners[worse]))
    alike = area(intersection(corners[better], corners[worse])) > NMM_SHARED * smaller
    better, worse = better[alike], worse[alike]
    kept = resolve(better, worse, np.zeros(len(corners), np.bool_)).kept
    taker = np.arange(len(corners))
    taken = kept[better]
    taker[~kept] = len(corners)
    np.minimum.at(taker, worse[taken], better[taken])
    source, around = hulls(corners, taker)
    return Fused(around, scores[source], source)


def _weighted(corners: Boxes, scores: Scores) -> Fused:
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


def _decayed(corners: Boxes, scores: Scores) -> Fused:
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
