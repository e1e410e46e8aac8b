"""Greedy matching of detections to objects, as the evaluators do it, for all images at once.

The evaluators walk through an image's detections by descending score, and each detection takes the best object that is
still free. Here a detection is settled as soon as no earlier detection can still want its first choice. Each round
settles all such detections together, at least the best open one of every cluster of overlapping boxes, so a few rounds
suffice for any number of images. The result is the same, ties included.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def match_greedily(
    detection: NDArray[np.int64],
    target: NDArray[np.int64],
    shared: NDArray[np.bool_],
    detections: int,
    fallback: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Return the object that each detection takes.

    Args:
        detection: (P,) detection of each pair, ascending; a lower index chooses first.
        target: (P,) object of each pair; within a detection, in order of preference.
        shared: (M,) objects that any number of detections may take.
        detections: N, the number of detections.
        fallback: (N,) the object that a detection takes if none of its pairs is free, even if it is already taken;
            later detections can then no longer take it. -1 for none.

    Returns:
        (N,) the object taken from the pairs; -1 for none, or for the fallback.
    """
    taken = np.full(detections, -1, np.int64)
    taken_by = np.full(len(shared), detections, np.int64)  # the first detection to take an object
    if fallback is not None:
        fallback = fallback.copy()
        given = np.flatnonzero(fallback >= 0)
        fallback[given[shared[fallback[given]]]] = -1  # taking a shared object keeps no other detection from it
        without_pair = fallback >= 0
        without_pair[detection] = False
        _take_first(taken_by, fallback[without_pair], np.flatnonzero(without_pair))
    while True:
        free = taken_by[target] > detection
        if not free.all():
            has_choice = np.zeros(detections, bool)
            has_choice[detection[free]] = True
            lost = detection[~free]
            detection, target = detection[free], target[free]
            if fallback is not None:
                lost = lost[~has_choice[lost] & (fallback[lost] >= 0)]
                if len(lost):
                    _take_first(taken_by, fallback[lost], lost)
                    continue  # other detections may have lost what these took
        if not len(detection):
            return taken
        first_choice = np.r_[True, detection[1:] != detection[:-1]]
        claim = np.full(len(shared), detections, np.int64)
        claim[target[::-1]] = detection[::-1]  # the last write wins: the first detection that may want the object
        if fallback is not None:
            waiting = detection[first_choice]
            waiting = waiting[fallback[waiting] >= 0]
            _take_first(claim, fallback[waiting], waiting)
        settled = first_choice & (shared[target] | (claim[target] == detection))
        winner, prize = detection[settled], target[settled]
        taken[winner] = prize
        exclusive = ~shared[prize]
        taken_by[prize[exclusive]] = winner[exclusive]
        nms_not_converged = taken[detection] < 0
        detection, target = detection[nms_not_converged], target[nms_not_converged]


def _take_first(taken_by: NDArray[np.int64], target: NDArray[np.int64], detection: NDArray[np.int64]) -> None:
    """Record each detection at its target, unless an earlier one is recorded there."""
    np.minimum.at(taken_by, target, detection)
