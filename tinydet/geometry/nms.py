"""Exact greedy non-maximum suppression, in time that grows with the boxes and not with their square.

Boxes with an IoU above t are alike: the larger side of one is less than 1/t times the other's, and their centres lie
closer than (1 - t) / (1 + t) times the mean of these sides. So boxes are sorted into cells of that size, for each
power of two of their size, and each meets those in the cells around its own. Everything is done on arrays; the only
loop over boxes is for chains in which each box hangs on the one before.
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

PAIRS_AT_ONCE = 1 << 24  # where boxes are denser the best half goes first; most of the others fall to it
PAIRS_IN_MEMORY = 1 << 20
MARGIN = 1e-4  # the bounds above hold for real numbers, IoU is computed in floats
ROUNDS = 64  # before long chains are walked box by box
FEW = 1 << 14  # boxes for which one size of cell is tried first: there arrays are so short that each step costs alike
FEW_PAIRS = 16  # for each of them, beyond which cells of several sizes are the faster way
ROW = 1 << 32  # keys of cells one above the other differ by this
FAR = 1 << 30  # cells beyond are one cell: slower, and still right


@dataclass(frozen=True)
class Verdict:
    """Masks over the boxes: kept for sure, or neither kept nor suppressed before more is known."""

    kept: Mask
    undecided: Mask


def suppress(boxes: Floats, scores: Floats, iou_threshold: float, *, same: Integers | None = None) -> NDArray[np.int64]:
    """Greedy NMS: of two boxes with an IoU above the threshold only the better one stays. Equal to torchvision's `nms`.

    Args:
        boxes: (N, 4) xyxy, float32 or float64; IoU is computed in this type.
        scores: (N,); of equal ones the earlier box is better.
        iou_threshold: in [0, 1].
        same: (N,) numbers; boxes of different numbers (classes, tiles) leave each other alone.

    Returns:
        Indices of the boxes that stay, best first.

    Raises:
        ValueError: for shapes that do not fit, and for values that are not finite.
    """
    boxes, scores = np.asarray(boxes), np.asarray(scores)
    if scores.ndim != 1 or boxes.shape != (len(scores), 4):
        raise ValueError(f"expected boxes (N, 4) and scores (N,), got {boxes.shape} and {scores.shape}")
    if not np.isfinite(scores).all():
        raise ValueError("a score is NaN or infinite; the model that made it is broken")
    order = np.argsort(-scores, kind="stable")
    neighbours = _Neighbours(boxes[order], iou_threshold, None if same is None else np.asarray(same)[order], None)

    alive = np.ones(len(boxes), np.bool_)
    pending = np.flatnonzero(neighbours.solid)
    while pending.size:
        head = pending
        joins = neighbours.within(head)
        while sum(join.pairs for join in joins) > PAIRS_AT_ONCE and len(head) > 1:
            head = head[: len(head) // 2]
            joins = neighbours.within(head)
        better, worse = neighbours.conflicts(joins)
        alive &= resolve(better, worse, np.zeros(len(boxes), np.bool_)).kept

        pending = pending[len(head) :]
        if pending.size:
            alive[neighbours.conflicts(neighbours.between(head[alive[head]], pending))[1]] = False
            pending = pending[alive[pending]]
    return order[alive]


def conflicts(
    boxes: Floats, iou_threshold: float, *, same: Integers | None = None, apart: Integers | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The pairs of boxes with an IoU above the threshold, as two arrays of indices, the smaller one first.

    Args:
        boxes, iou_threshold, same: as for `suppress`.
        apart: (N,) numbers; boxes of one number (tile) leave each other alone.
    """
    neighbours = _Neighbours(boxes, iou_threshold, same, apart)
    return neighbours.conflicts(neighbours.within(np.flatnonzero(neighbours.solid)))


def resolve(better: NDArray[np.int64], worse: NDArray[np.int64], waiting: Mask) -> Verdict:
    """Greedy suppression along pairs of boxes, some of which still wait for pairs that are not there yet.

    Args:
        better, worse: indices of the boxes of each pair. Boxes come best first, so better < worse.
        waiting: (N,) boxes that one to come may still suppress.

    Returns:
        What is certain whatever comes: a box that waits, and one that hangs on it, can be suppressed but not kept.
    """
    suppressed, undecided = np.zeros(len(waiting), np.bool_), waiting.copy()
    for _ in range(ROUNDS):
        hangs = undecided.copy()
        hangs[worse] = True
        sure = ~hangs[better]
        if not sure.any():
            break
        suppressed[worse[sure]] = True
        undecided &= ~suppressed
        live = ~(sure | suppressed[better] | suppressed[worse])
        better, worse = better[live], worse[live]
    # What is left is a long chain, or hangs on a box that waits. Best first, so each verdict is in when it is needed.
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
    """The pairs (i, j) with low[i] <= j < high[i], a bounded number at a time.

    >>> [(i.tolist(), j.tolist()) for i, j in pairs_of_ranges(np.array([5, 0, 7]), np.array([7, 0, 8]))]
    [([0, 0, 2], [5, 6, 7])]
    """
    some = np.flatnonzero(high > low)
    counts = (high - low)[some]
    ends = np.cumsum(counts)
    start = 0
    while start < len(some):
        done = int(ends[start - 1]) if start else 0
        stop = max(int(np.searchsorted(ends, done + PAIRS_IN_MEMORY, "right")), start + 1)
        chunk, n = some[start:stop], counts[start:stop]
        step = np.arange(int(n.sum())) - np.repeat(np.cumsum(n) - n, n)
        yield np.repeat(chunk, n), np.repeat(low[chunk], n) + step
        start = stop


@dataclass(frozen=True)
class _Join:
    """Each `first` meets the boxes `others[low:high]` of its row."""

    first: NDArray[np.int64]
    others: NDArray[np.int64]
    low: NDArray[np.int64]
    high: NDArray[np.int64]

    @property
    def pairs(self) -> int:
        return int((self.high - self.low).sum())


class _Neighbours:
    """Finds the pairs of boxes that conflict."""

    def __init__(self, boxes: Floats, threshold: float, same: Integers | None, apart: Integers | None) -> None:
        if not 0 <= threshold <= 1:
            raise ValueError(f"the IoU threshold lies in [0, 1], got {threshold}")
        if not np.isfinite(boxes).all():
            raise ValueError("a box is NaN or infinite; the model that made it is broken")
        self.threshold, self.same, self.apart = threshold, same, apart
        self.corners = [np.ascontiguousarray(boxes[:, i]) for i in range(4)]
        left, top, right, bottom = self.corners
        with np.errstate(over="ignore", invalid="ignore"):
            width, height = right - left, bottom - top
            self.area = width * height
            # A box without an area, or with one beyond the type, has an IoU of 0 or NaN with all others.
            self.solid = (width > 0) & (height > 0) & (self.area > 0) & np.isfinite(self.area)
            self.level = np.frexp(np.maximum(width, height))[1]  # side < 2 ** level
        self.centre_x = (left.astype(np.float64) + right) / 2
        self.centre_y = (top.astype(np.float64) + bottom) / 2
        least = threshold * (1 - MARGIN)
        self.reach = max((1 - least) / (1 + least), 0.1)
        self.levels_apart = np.inf if least == 0 else 1 - np.log2(least)

    def within(self, members: NDArray[np.int64]) -> list[_Join]:
        """Joins that hold each pair of `members` that may conflict, once."""
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
        """Joins that hold each pair of a `first` and a `second` that may conflict, once."""
        return [
            join
            for i, some in self._by_level(first).items()
            for j, others in self._by_level(second).items()
            if abs(i - j) < self.levels_apart
            for join in self._between(some, others, self.reach * (2.0**i + 2.0**j) / 2)
        ]

    def conflicts(self, joins: list[_Join]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(better, worse) of each pair that conflicts."""
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
        column, row = (np.clip(np.floor(c[members] / cell), -FAR, FAR) for c in (self.centre_x, self.centre_y))
        return row.astype(np.int64) * ROW + column.astype(np.int64)

    def _inside(self, members: NDArray[np.int64], cell: float) -> _Join:
        keys = self._keys(members, cell)
        order = keys.argsort(kind="stable")
        members, keys = members[order], keys[order]
        # To the right and below; left and above are met from the other side.
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
    """Where the sorted `keys` hold a cell with its left and right neighbour."""
    return keys.searchsorted(cells - 1, "left"), keys.searchsorted(cells + 1, "right")
