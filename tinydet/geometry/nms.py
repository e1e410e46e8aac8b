"""Exact greedy non-maximum suppression, in about linear time.

If two boxes have an IoU above t, the longer side of one is less than 1/t times that of the other, and their centers are
closer than (1 - t) / (1 + t) times the mean of these sides. So boxes are sorted into cells of that size, for each power
of two of their size, and compared with the boxes in the cells around their own. All steps are array operations, except
for chains in which the verdict on each box depends on the one before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinydet.geometry.boxes import iou_from_areas, overlap_length

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]
Mask = NDArray[np.bool_]

PAIRS_AT_ONCE = 1 << 24  # if boxes are denser, the better half is processed first: it suppresses most of the others
PAIRS_IN_MEMORY = 1 << 20
MARGIN = 1e-4  # relative; the bounds above hold for real numbers, but IoU is computed in floats
ROUNDS = 64  # array operations along chains, before long chains are resolved box by box
FEW = 1 << 14  # up to this many boxes, one cell size for all is tried first, because short arrays cost mostly overhead
FEW_PAIRS = 16  # candidate pairs per box above which cells of several sizes are faster
ROW = 1 << 32  # difference of the keys of two vertically adjacent cells
FAR = 1 << 30  # cells beyond this are treated as one cell: slower, but correct


@dataclass(frozen=True)
class Verdict:
    """Masks over boxes. The others are suppressed.

    Attributes:
        kept: boxes that are certainly kept.
        undecided: boxes whose verdict depends on pairs that are still missing.
    """

    kept: Mask
    undecided: Mask


def suppress(boxes: Floats, scores: Floats, iou_threshold: float, *, same: Integers | None = None) -> NDArray[np.int64]:
    """Greedy NMS: of two boxes with an IoU above the threshold, keep the better one. Equal to torchvision's `nms`.

    Args:
        boxes: (N, 4) xyxy, float32 or float64; IoU is computed in this type.
        scores: (N,); of boxes with equal scores, the earlier one is better.
        iou_threshold: in [0, 1].
        same: (N,) group numbers; boxes of different groups (classes, tiles) do not suppress each other.

    Returns:
        Indices of the kept boxes, by descending score.

    Raises:
        ValueError: the shapes do not match, or a value is NaN or infinite.
    """
    boxes, scores = np.asarray(boxes), np.asarray(scores)
    if scores.ndim != 1 or boxes.shape != (len(scores), 4):
        raise ValueError(f"expected boxes (N, 4) and scores (N,), got {boxes.shape} and {scores.shape}")
    if not np.isfinite(scores).all():
        raise ValueError("a score is NaN or infinite; the model's output is invalid")
    order = np.argsort(-scores, kind="stable")
    neighbors = _NeighborSearch(boxes[order], iou_threshold, None if same is None else np.asarray(same)[order], None)

    alive = np.ones(len(boxes), np.bool_)
    pending = np.flatnonzero(neighbors.solid)
    while pending.size:
        head = pending
        joins = neighbors.within(head)
        while sum(join.pairs for join in joins) > PAIRS_AT_ONCE and len(head) > 1:
            head = head[: len(head) // 2]
            joins = neighbors.within(head)
        better, worse = neighbors.conflicts(joins)
        alive &= resolve(better, worse, np.zeros(len(boxes), np.bool_)).kept

        pending = pending[len(head) :]
        if pending.size:
            alive[neighbors.conflicts(neighbors.between(head[alive[head]], pending))[1]] = False
            pending = pending[alive[pending]]
    return order[alive]


def conflicts(
    boxes: Floats, iou_threshold: float, *, same: Integers | None = None, apart: Integers | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the pairs of boxes with an IoU above the threshold, as two arrays of indices, the smaller index first.

    Args:
        boxes, iou_threshold, same: as for `suppress`.
        apart: (N,) group numbers; boxes of one group (tile) are not paired.
    """
    neighbors = _NeighborSearch(boxes, iou_threshold, same, apart)
    return neighbors.conflicts(neighbors.within(np.flatnonzero(neighbors.solid)))


def resolve(better: NDArray[np.int64], worse: NDArray[np.int64], waiting: Mask) -> Verdict:
    """Apply greedy suppression to pairs of boxes, while pairs with further boxes may still be missing.

    Args:
        better, worse: (P,) indices of the boxes of each pair. Boxes are sorted by descending score: better < worse.
        waiting: (N,) boxes that a box still to come may suppress.

    Returns:
        What is certain whatever comes. A waiting box, and a box that depends on one, can be suppressed but not kept.
    """
    suppressed, undecided = np.zeros(len(waiting), np.bool_), waiting.copy()
    for _ in range(ROUNDS):
        depends = undecided.copy()
        depends[worse] = True
        sure = ~depends[better]
        if not sure.any():
            break
        suppressed[worse[sure]] = True
        undecided &= ~suppressed
        live = ~(sure | suppressed[better] | suppressed[worse])
        better, worse = better[live], worse[live]
    # The rest are long chains, or depend on a waiting box. In this order, each verdict is known when it is needed.
    order = np.argsort(better, kind="stable")
    for i, j in zip(better[order].tolist(), worse[order].tolist(), strict=True):
        if suppressed[i]:
            continue
        if undecided[i]:
            undecided[j] = not suppressed[j]
        else:
            suppressed[j], undecided[j] = True, False
    return Verdict(kept=~suppressed & ~undecided, undecided=undecided)


def pairs_of_ranges(low: Integers, high: Integers) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield the pairs (i, j) with low[i] <= j < high[i], a bounded number at a time.

    >>> [(i.tolist(), j.tolist()) for i, j in pairs_of_ranges(np.array([5, 0, 7]), np.array([7, 0, 8]))]
    [([0, 0, 2], [5, 6, 7])]
    """
    nonempty = np.flatnonzero(high > low)
    counts = (high - low)[nonempty]
    ends = np.cumsum(counts)
    start = 0
    while start < len(nonempty):
        done = int(ends[start - 1]) if start else 0
        stop = max(int(np.searchsorted(ends, done + PAIRS_IN_MEMORY, "right")), start + 1)
        chunk, n = nonempty[start:stop], counts[start:stop]
        offset = np.arange(int(n.sum())) - np.repeat(np.cumsum(n) - n, n)
        yield np.repeat(chunk, n), np.repeat(low[chunk], n) + offset
        start = stop


@dataclass(frozen=True)
class _Join:
    """Candidate pairs: `first[i]` with each of `others[low[i]:high[i]]`."""

    first: NDArray[np.int64]
    others: NDArray[np.int64]
    low: NDArray[np.int64]
    high: NDArray[np.int64]

    @property
    def pairs(self) -> int:
        return int((self.high - self.low).sum())


class _NeighborSearch:
    """Finds the pairs of boxes with an IoU above the threshold."""

    def __init__(self, boxes: Floats, threshold: float, same: Integers | None, apart: Integers | None) -> None:
        if not 0 <= threshold <= 1:
            raise ValueError(f"the IoU threshold must be between 0 and 1, got {threshold}")
        if not np.isfinite(boxes).all():
            raise ValueError("a box is NaN or infinite; the model's output is invalid")
        self.threshold, self.same, self.apart = threshold, same, apart
        self.corners = [np.ascontiguousarray(boxes[:, i]) for i in range(4)]
        left, top, right, bottom = self.corners
        with np.errstate(over="ignore", invalid="ignore"):
            width, height = right - left, bottom - top
            self.area = width * height
            # A box without area, or with an area that overflows, has an IoU of 0 or NaN with all others.
            self.solid = (width > 0) & (height > 0) & (self.area > 0) & np.isfinite(self.area)
            self.level = np.frexp(np.maximum(width, height))[1]  # side < 2 ** level
        self.center_x = (left.astype(np.float64) + right) / 2
        self.center_y = (top.astype(np.float64) + bottom) / 2
        lowest = threshold * (1 - MARGIN)
        self.reach = max((1 - lowest) / (1 + lowest), 0.1)
        self.levels_apart = np.inf if lowest == 0 else 1 - np.log2(lowest)

    def within(self, members: NDArray[np.int64]) -> list[_Join]:
        """Return each pair of `members` that may conflict, once."""
        if 0 < len(members) <= FEW:
            join = self._inside(members, self.reach * 2.0 ** int(self.level[members].max()))
            if join.pairs <= FEW_PAIRS * len(members):
                return [join]
        by_level = self._by_level(members)
        joins = []
        for large, first in by_level.items():
            joins.append(self._inside(first, self.reach * 2.0**large))
            for small, second in by_level.items():
                if small < large < small + self.levels_apart:
                    joins += self._between(first, second, self.reach * (2.0**large + 2.0**small) / 2)
        return joins

    def between(self, first: NDArray[np.int64], second: NDArray[np.int64]) -> list[_Join]:
        """Return each pair of a `first` and a `second` that may conflict, once."""
        return [
            join
            for i, one in self._by_level(first).items()
            for j, two in self._by_level(second).items()
            if abs(i - j) < self.levels_apart
            for join in self._between(one, two, self.reach * (2.0**i + 2.0**j) / 2)
        ]

    def conflicts(self, joins: list[_Join]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the better and the worse box of each pair that conflicts."""
        found = [
            self._conflicting(join.first[i], join.others[j])
            for join in joins
            for i, j in pairs_of_ranges(join.low, join.high)
        ]
        if not found:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        first, second = (np.concatenate(side) for side in zip(*found, strict=True))
        return np.minimum(first, second), np.maximum(first, second)

    def _by_level(self, members: NDArray[np.int64]) -> dict[int, NDArray[np.int64]]:
        levels = self.level[members]
        return {int(level): members[levels == level] for level in np.unique(levels)}

    def _keys(self, members: NDArray[np.int64], cell: float) -> NDArray[np.int64]:
        column, row = (np.clip(np.floor(c[members] / cell), -FAR, FAR) for c in (self.center_x, self.center_y))
        return row.astype(np.int64) * ROW + column.astype(np.int64)

    def _inside(self, members: NDArray[np.int64], cell: float) -> _Join:
        keys = self._keys(members, cell)
        order = keys.argsort(kind="stable")
        members, keys = members[order], keys[order]
        # Pairs within a cell, to the right and below. Pairs to the left and above are found from the other box.
        right = np.arange(1, len(keys) + 1), keys.searchsorted(keys + 1, "right")
        ranges = zip(right, _ranges(keys, keys + ROW), strict=True)
        return _Join(np.concatenate([members, members]), members, *map(np.concatenate, ranges))

    def _between(self, first: NDArray[np.int64], second: NDArray[np.int64], cell: float) -> list[_Join]:
        if len(first) > len(second):
            first, second = second, first
        keys = self._keys(second, cell)
        order = np.argsort(keys, kind="stable")
        second, keys = second[order], keys[order]
        middle = self._keys(first, cell)
        return [_Join(first, second, *_ranges(keys, middle + row)) for row in (-ROW, 0, ROW)]

    def _conflicting(
        self, first: NDArray[np.int64], second: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if self.same is not None:
            equal = self.same[first] == self.same[second]
            first, second = first[equal], second[equal]
        if self.apart is not None:
            different = self.apart[first] != self.apart[second]
            first, second = first[different], second[different]
        left, top, right, bottom = self.corners
        width = overlap_length(left[first], right[first], left[second], right[second])
        height = overlap_length(top[first], bottom[first], top[second], bottom[second])
        with np.errstate(over="ignore"):
            iou = iou_from_areas(width * height, self.area[first], self.area[second])
        above = iou.astype(np.float64) > self.threshold  # as in torchvision: only the comparison is in double
        return first[above], second[above]


def _ranges(keys: NDArray[np.int64], cells: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find the ranges of the sorted `keys` that hold a cell and its left and right neighbors."""
    return keys.searchsorted(cells - 1, "left"), keys.searchsorted(cells + 1, "right")
