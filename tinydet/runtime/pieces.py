"""Divide the tiles of scenes among processes that do not talk to each other.

Every process computes the same division from the same list of scenes. The weight of a scene is the size of its file,
so that no process opens scenes that it has no part of. Scenes are cut between rows of tiles only.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from tinydet.runtime.plan import ScanPlan


@dataclass(frozen=True)
class Span:
    """A part of one scene, in units of its weight: from `start` to below `stop`.

    Attributes:
        scene: index in the list of scenes.
        weight: of the whole scene.
    """

    scene: int
    start: int
    stop: int
    weight: int

    @property
    def whole(self) -> bool:
        """Whether it is the whole scene."""
        return self.start == 0 and self.stop == self.weight


@dataclass(frozen=True)
class Piece:
    """Consecutive tiles of a scene, counted through all passes: from `start` to below `stop`. Rows are never cut."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def tiles(self, plan: ScanPlan, pass_index: int) -> slice:
        """Return the indices of its tiles in one pass."""
        sizes = [len(tiling.grid) for tiling in plan.passes]
        before = sum(sizes[:pass_index])
        start, stop = (min(max(end - before, 0), sizes[pass_index]) for end in (self.start, self.stop))
        return slice(start, stop)


def divide(weights: Sequence[int], parts: int) -> list[list[Span]]:
    """Divide scenes among `parts` processes, each a range of about the same weight.

    Each unit of weight is in exactly one span. A scene without weight counts as 1.

    >>> divide([4, 2], 2)
    [[Span(scene=0, start=0, stop=3, weight=4)], [Span(scene=0, start=3, stop=4, weight=4), Span(scene=1, start=0, \
stop=2, weight=2)]]
    """
    weights = [max(1, weight) for weight in weights]
    total = sum(weights)
    ends = [total * part // parts for part in range(parts + 1)]
    spans: list[list[Span]] = [[] for _ in range(parts)]
    part = offset = 0
    for scene, weight in enumerate(weights):
        position = 0
        while position < weight:
            while ends[part + 1] <= offset + position:
                part += 1
            stop = min(weight, ends[part + 1] - offset)
            spans[part].append(Span(scene, position, stop, weight))
            position = stop
        offset += weight
    return spans


def piece_of(span: Span, plan: ScanPlan) -> Piece:
    """Return the tiles of a span: the rows that begin in it. All spans of a scene have all of its tiles."""
    starts = row_starts(plan)
    first, stop = (
        bisect_left(starts, end * plan.tiles, key=lambda start: start * span.weight) for end in (span.start, span.stop)
    )
    starts.append(plan.tiles)
    return Piece(starts[first], starts[stop])


def row_starts(plan: ScanPlan) -> list[int]:
    """Return the first tile of each row of tiles, counted through all passes."""
    starts: list[int] = []
    before = 0
    for tiling in plan.passes:
        starts += range(before, before + len(tiling.grid), tiling.grid.columns)
        before += len(tiling.grid)
    return starts
