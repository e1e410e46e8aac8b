"""Greedy matching as the evaluators do it, for all images at once.

The evaluators walk an image's detections from the best score down; each takes the best object still free. Here a
detection is settled as soon as nobody before it can still want the object that it wants most. All detections that
are, are settled together; each round settles at least the best open detection of every knot of overlaps, so a few
rounds do for any number of images. The result is the same, ties included.
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
    """What each detection takes.

    Args:
        detection: (P,) of each pair; ascending, and lower is served first.
        target: (P,) of each pair; within a detection, most wanted first.
        shared: (M,) objects that any number of detections may take.
        detections: how many there are.
        fallback: (N,) an object that a detection without any free one takes although it may be taken, and so
            keeps from later ones; -1 for none.

    Returns:
        (N,) the object taken from the pairs; -1 for none (or the fallback).
    """
    taken = np.full(detections, -1, np.int64)
    taken_by = np.full(len(shared), detections, np.int64)  # the first to take an object; later ones find it gone
    if fallback is not None:
        fallback = fallback.copy()
        given = np.flatnonzero(fallback >= 0)
        fallback[given[shared[fallback[given]]]] = -1  # taking a shared one keeps nobody from it
        idle = fallback >= 0
        idle[detection] = False
        _take_first(taken_by, fallback[idle], np.flatnonzero(idle))
    while True:
        free = taken_by[target] > detection
        if not free.all():
            open_ = np.zeros(detections, bool)
            open_[detection[free]] = True
            lost = detection[~free]
            detection, target = detection[free], target[free]
            if fallback is not None:
                lost = lost[~open_[lost] & (fallback[lost] >= 0)]
                if len(lost):
                    _take_first(taken_by, fallback[lost], lost)
                    continue  # others may have lost what these took
        if not len(detection):
            return taken
        top = np.r_[True, detection[1:] != detection[:-1]]
        claim = np.full(len(shared), detections, np.int64)
        claim[target[::-1]] = detection[::-1]  # the last write wins: the first detection that may want it
        if fallback is not None:
            waiting = detection[top]
            waiting = waiting[fallback[waiting] >= 0]
            _take_first(claim, fallback[waiting], waiting)
        settled = top & (shared[target] | (claim[target] == detection))
        winner, prize = detection[settled], target[settled]
        taken[winner] = prize
        exclusive = ~shared[prize]
        taken_by[prize[exclusive]] = winner[exclusive]
        unsettled = taken[detection] < 0
        detection, target = detection[unsettled], target[unsettled]


def _take_first(taken_by: NDArray[np.int64], target: NDArray[np.int64], detection: NDArray[np.int64]) -> None:
    """Note each detection at its target, unless an earlier one stands there."""
    np.minimum.at(taken_by, target, detection)
