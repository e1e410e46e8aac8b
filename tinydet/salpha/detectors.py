"""What S-alpha counts for a detector, with its options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.arguments import quoted
from tinydet.geometry.anchors import AnchorDesign, Layout, Pyramid
from tinydet.models.registry import CountRule, LevelStatistic, detector_info, detector_options
from tinydet.salpha.counting import count_levels
from tinydet.salpha.inputs import Inputs
from tinydet.salpha.parity import count_distinct_anchors, released_clipping

Boxes = NDArray[np.float64]
Whole = NDArray[np.int64]


@dataclass(frozen=True)
class Counting:
    """A statistic of one detector.

    Attributes:
        design: its levels; with anchors if it has some.
        rule: "gt" or "anchor", as in `DetectorInfo.statistics`.
        options: all options of the detector by name.
    """

    design: Pyramid
    rule: CountRule
    statistic: LevelStatistic
    options: Mapping[str, Any] = field(default_factory=dict)

    def boxes_of(self, inputs: Inputs) -> Inputs:
        """Return the boxes that are counted: all of them; those of the authors' code for their anchors."""
        if not (isinstance(self.design, AnchorDesign) and self.design.inclusive):
            return inputs
        boxes, kept = released_clipping(inputs.boxes, inputs.sizes[inputs.image_index])
        return Inputs(boxes[kept], inputs.sizes, inputs.image_index[kept])

    def count(self, inputs: Inputs) -> tuple[int, ...]:
        """Return one count per level, finest first.

        Raises:
            ValueError: the statistic of a plugin is not one whole number per level.
        """
        return self.statistic.checked(self.statistic.counts(*inputs, self.options), self.design.levels)


def counting_of(
    detector: str,
    options: Mapping[str, Any] | None = None,
    *,
    rule: CountRule | None = None,
    layout: Layout = "tinydet",
) -> Counting:
    """Return what is counted for a registered detector.

    Args:
        options: of the detector; those that are missing have their defaults.
        rule: None: the detector's own.
        layout: of its anchors.

    Raises:
        ValueError: the detector is unknown, or it has no such option, rule or anchors.
    """
    info, options = detector_info(detector), detector_options(detector, options or {})
    statistics, design = info.statistics, info.design
    if info.anchors is not None and not statistics:
        design = info.anchors.design(layout)
        statistics = anchor_statistics(design)
    elif layout != "tinydet":
        raise ValueError(f"{detector} does not count anchors; leave --anchors out")
    if not statistics:
        raise ValueError(f"{detector} has neither anchors nor `statistics` in its registry row, which S-alpha counts")
    chosen = next(iter(statistics)) if rule is None else rule
    if chosen not in statistics:
        raise ValueError(f"{detector} cannot count by the rule {quoted(chosen)}; choose {' or '.join(statistics)}")
    return Counting(design, chosen, statistics[chosen], options)


def anchor_counting(design: AnchorDesign, rule: CountRule = "gt") -> Counting:
    """Return the statistic of a detector with these anchors."""
    return Counting(design, rule, anchor_statistics(design)[rule])


def anchor_statistics(design: AnchorDesign) -> dict[CountRule, LevelStatistic]:
    """Return the statistics of a detector with these anchors, by rule."""

    def objects(boxes: Boxes, sizes: Whole, index: Whole, options: Mapping[str, Any]) -> tuple[int, ...]:
        return count_levels(boxes, sizes, design, image_index=index)

    def anchors(boxes: Boxes, sizes: Whole, index: Whole, options: Mapping[str, Any]) -> tuple[int, ...]:
        return count_distinct_anchors(boxes, sizes, design, image_index=index)

    return {
        "gt": LevelStatistic(objects, "objects by the level of their best anchor"),
        "anchor": LevelStatistic(anchors, "distinct best anchors by level, each once per image", "anchors"),
    }
