"""Object counts per pyramid level -> fusion factors alpha (Eq. 2 of the paper)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tinydet._internal.console import plural
from tinydet.models.level_statistics import CountRule

ALPHA_RANGE = (0.2, 2.0)  # Not in the paper; the authors' code clamps so. Empty levels would give 0 or inf.
FEW_OBJECTS = 20  # A ratio of two counts with a smaller sum is too uncertain to rely on.


@dataclass(frozen=True)
class AlphaAdvice:
    """Whether to compute alpha with S-alpha (else alpha = 1 is better), and the sentence that says why."""

    salpha: bool
    text: str


@dataclass(frozen=True)
class FusionStatistics:
    """Object counts per level and the fusion factors computed from them. Levels and edges are ordered finest first.

    Attributes:
        counts: what was counted, per level.
        boxes: number of objects; `sum(counts)` if these were counted.
        images: number of network inputs, that is images or tiles.
        seconds: time spent counting.
        levels: names, parallel to `counts`.
        count: "gt" counts objects (the paper's text), "anchor" what the levels learn from (the authors' code).
        alpha_range: lower and upper bound of alpha.
        text, unit: what was counted, as in `LevelStatistic`.
        sizes: whether the counts depend on the sizes of the objects.

    Raises:
        ValueError: if `levels` and `counts` differ in length, and as `estimate_alpha` does.
    """

    counts: tuple[int, ...]
    boxes: int
    images: int
    seconds: float
    levels: tuple[str, ...] = ("P2", "P3", "P4", "P5", "P6")
    count: CountRule = "gt"
    alpha_range: tuple[float, float] = ALPHA_RANGE
    text: str = "objects by the level of their best anchor"
    unit: str = "object"
    sizes: bool = True

    def __post_init__(self) -> None:
        if len(self.levels) != len(self.counts):
            raise ValueError(f"each level has one count, got levels {self.levels} and counts {self.counts}")
        estimate_alpha(self.counts, self.alpha_range)

    @property
    def edges(self) -> tuple[str, ...]:
        """Names of the fused edges, deeper level first: P3->P2, P4->P3, P5->P4."""
        return tuple(f"{deeper}->{finer}" for finer, deeper in zip(self.levels[:-2], self.levels[1:-1], strict=True))

    @property
    def alpha_raw(self) -> tuple[float | None, ...]:
        return raw_alpha(self.counts)

    @property
    def alpha(self) -> tuple[float, ...]:
        return estimate_alpha(self.counts, self.alpha_range)

    @property
    def advice(self) -> AlphaAdvice:
        """Whether S-alpha suits these objects: the one decision that `data stats`, `salpha` and `train` report."""
        if not self.sizes:
            positions = "DotD compares centers alone, so the counts follow from positions and say nothing about sizes"
            return AlphaAdvice(False, f"{positions}; use alpha = 1, or choose alpha by a sweep")
        pairs = list(zip(self.edges, _edge_counts(self.counts), strict=True))
        if not_tiny := [edge for edge, (finer, deeper) in pairs if deeper > finer]:
            where = ", ".join(not_tiny)
            return AlphaAdvice(
                False, f"raw alpha > 1 on {where}: the objects are not tiny for this detector; use alpha = 1"
            )
        edge, (finer, deeper) = pairs[0]
        if finer + deeper < FEW_OBJECTS:
            few = f"alpha is based on only {plural(finer + deeper, self.unit)} of {edge}, fewer than {FEW_OBJECTS}"
            return AlphaAdvice(False, f"{few}; use alpha = 1")
        tiny = "raw alpha <= 1 on every edge: the objects are tiny for this detector"
        if self.clamped:
            return AlphaAdvice(True, f"{tiny}; use a small alpha, such as the limit that --salpha sets")
        return AlphaAdvice(True, f"{tiny}; use S-alpha (--salpha)")

    @property
    def clamped(self) -> bool:
        """Whether objects were counted, but no edge has alpha as counted: bounds and conventions replace all ratios."""
        pairs = zip(self.alpha_raw, self.alpha, strict=True)
        return any(self.counts) and all(raw is None or raw != alpha for raw, alpha in pairs)

    @property
    def notes(self) -> tuple[str, ...]:
        """The warnings and the advice, to be shown with the factors."""
        return (*self.warnings, self.advice.text) if self.advice.salpha else self.warnings

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reasons to distrust a factor, one sentence each; empty for a typical dataset of tiny objects."""
        return tuple(_warnings(self))

    def to_json(self) -> dict[str, Any]:
        """Return counts by level and factors by edge as JSON values; an undefined raw factor is None."""
        return {
            "counts": dict(zip(self.levels, self.counts, strict=True)),
            "alpha_raw": dict(zip(self.edges, self.alpha_raw, strict=True)),
            "alpha": dict(zip(self.edges, self.alpha, strict=True)),
            "boxes": self.boxes,
            "images": self.images,
            "seconds": self.seconds,
            "rule": {"count": self.count, "counted": self.text, "alpha_range": list(self.alpha_range)},
            "clamped_on_every_edge": self.clamped,
            "warnings": list(self.warnings),
            "advised": self.advice.salpha,
        }


def estimate_alpha(counts: Sequence[int], alpha_range: tuple[float, float] = ALPHA_RANGE) -> tuple[float, ...]:
    """Fusion factors from object counts, finest first: alpha_i = N_{i+1} / N_i (Eq. 2), clamped to `alpha_range`.

    The last level has no edge, so its objects join its neighbor's in the last ratio. Without objects on either side of
    an edge (0/0) alpha is 1, as in a conventional FPN; without objects on the finer side only, the upper bound.

    >>> estimate_alpha((1000, 400, 100, 20, 10))
    (0.4, 0.25, 0.3)
    >>> estimate_alpha((1000, 0, 0, 0, 0)), estimate_alpha((0, 50, 200, 0, 0))
    ((0.2, 1.0, 1.0), (2.0, 2.0, 0.2))

    Raises:
        ValueError: for fewer than three levels, negative counts or an invalid range.
    """
    low, high = alpha_range
    if not (0 <= low <= high < math.inf):
        raise ValueError(f"an alpha range is LOW,HIGH with 0 <= LOW <= HIGH, got {low},{high}; the default is 0.2,2.0")
    factors = []
    for finer, deeper in _edge_counts(counts):
        ratio = deeper / finer if finer else (math.inf if deeper else 1.0)
        factors.append(min(max(ratio, low), high))
    return tuple(factors)


def raw_alpha(counts: Sequence[int]) -> tuple[float | None, ...]:
    """The ratios of `estimate_alpha` before clamping; None where the finer level has no objects.

    >>> raw_alpha((1000, 40, 0, 0, 0))
    (0.04, 0.0, None)
    """
    return tuple(deeper / finer if finer else None for finer, deeper in _edge_counts(counts))


def _edge_counts(counts: Sequence[int]) -> list[tuple[int, int]]:
    """(finer, deeper) counts of each edge; the last level's are added to its neighbor's."""
    if len(counts) < 3 or any(count < 0 for count in counts):
        raise ValueError(f"fusion factors need non-negative counts of at least three levels, got {tuple(counts)}")
    deeper = [*counts[1:-2], counts[-2] + counts[-1]]
    return list(zip(counts[:-2], deeper, strict=True))


def _warnings(statistics: FusionStatistics) -> Iterator[str]:
    empty = [level for level, count in zip(statistics.levels, statistics.counts, strict=True) if level and not count]
    if empty:
        yield f"no {statistics.unit}s on {', '.join(empty)}"
    low, high = statistics.alpha_range
    unit = statistics.unit
    for edge, raw, alpha, (finer, deeper) in zip(
        statistics.edges, statistics.alpha_raw, statistics.alpha, _edge_counts(statistics.counts), strict=True
    ):
        if not finer + deeper:
            yield f"{edge}: no {unit}s on either side (0/0), so alpha = {alpha:.3g} by convention"
        elif finer + deeper < FEW_OBJECTS:
            yield f"{edge}: alpha is based on only {plural(finer + deeper, unit)}, fewer than {FEW_OBJECTS}"
        if raw is None and deeper:
            yield f"{edge}: no {unit}s on the finer side ({deeper}/0), so alpha is the upper bound, {alpha:.3g}"
        elif raw is not None and raw != alpha:
            yield f"{edge}: raw alpha {raw:.3g} is outside {low:g}..{high:g} and was clamped to {alpha:.3g}"
    if statistics.clamped:
        where = "at its lower limit" if all(alpha == low for alpha in statistics.alpha) else "clamped"
        another = "" if statistics.levels[0] == "P2" else ", or take a detector that starts at P2, such as fcos"
        yield (
            f"alpha is {where} on every edge: no ratio of {unit}s is within {low:g}..{high:g}, so the counts do not "
            "say how much to fuse; choose alpha by a sweep (--alpha), set other limits (--alpha-range)" + another
        )
    if not statistics.advice.salpha:
        yield statistics.advice.text
