"""What S-alpha counts for a detector, with its options."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.arguments import quoted
from tinydet._internal.options import add_options, flag_of
from tinydet.geometry.anchors import AnchorDesign, Layout, Pyramid
from tinydet.models.level_statistics import CountRule, LevelStatistic
from tinydet.models.registry import (
    DETECTORS,
    DetectorInfo,
    check_option_names,
    detector_info,
    detector_options,
)
from tinydet.salpha.counting import count_levels
from tinydet.salpha.inputs import Inputs
from tinydet.salpha.parity import count_distinct_anchors, released_clipping

Boxes = NDArray[np.float64]
Whole = NDArray[np.int64]
_SIMILARITIES = {"iou": "IoU", "nwd": "NWD", "rfd": "RFD", "dotd": "DotD"}


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

    @property
    def sizes(self) -> bool:
        """Whether the counts depend on the sizes of the objects: DotD compares centers alone."""
        return "assign" not in self.statistic.options or self.options["assign"] != "dotd"

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
    design, statistics = _statistics(info, options, layout)
    if layout != "tinydet" and not isinstance(design, AnchorDesign):
        raise ValueError(f"{detector} does not count anchors; leave --anchors out")
    if not statistics:
        raise ValueError(f"{detector} has neither anchors nor `statistics` in its registry row, which S-alpha counts")
    chosen = next(iter(statistics)) if rule is None else rule
    if chosen not in statistics:
        raise ValueError(f"{detector} cannot count by the rule {quoted(chosen)}; choose {' or '.join(statistics)}")
    return Counting(design, chosen, statistics[chosen], options)


def anchor_counting(design: AnchorDesign, rule: CountRule = "gt", similarity: str | None = None) -> Counting:
    """Return the statistic of a detector with these anchors; see `anchor_statistics`."""
    options = {} if similarity is None else {"assign": similarity}
    return Counting(design, rule, anchor_statistics(design, similarity)[rule], options)


def anchor_statistics(design: AnchorDesign, similarity: str | None = None) -> dict[CountRule, LevelStatistic]:
    """Return the statistics of a detector with these anchors, by rule.

    Args:
        similarity: its option `assign`; None: it has no such option and assigns by IoU.
    """
    kind = similarity or "iou"
    names = () if similarity is None else ("assign",)

    def objects(boxes: Boxes, sizes: Whole, index: Whole, _: Mapping[str, Any]) -> tuple[int, ...]:
        return count_levels(boxes, sizes, design, image_index=index, similarity=kind)

    def anchors(boxes: Boxes, sizes: Whole, index: Whole, _: Mapping[str, Any]) -> tuple[int, ...]:
        return count_distinct_anchors(boxes, sizes, design, image_index=index, similarity=kind)

    best = f"the best anchor of an object, the one of highest {_SIMILARITIES[kind]}, is among those that learn it"
    return {
        "gt": LevelStatistic(
            objects, "objects by the level of their best anchor", f"{best}, so its level does", options=names
        ),
        "anchor": LevelStatistic(
            anchors,
            "distinct best anchors by level, each once per image",
            f"{best}; objects that share a best anchor count once",
            "anchor",
            names,
        ),
    }


def add_counted_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of detectors that change what is counted."""
    for info in DETECTORS.values():
        add_options(parser, info.options, group="what the detector learns", only=_counted(info))


def counting_from(
    args: argparse.Namespace, *, rule: CountRule | None = None, layout: Layout = "tinydet"
) -> tuple[Counting, dict[str, Any]]:
    """Return what is counted for `args.detector`, and the options of `add_counted_options` that were given.

    Raises:
        ValueError: the detector has no such option, or it does not change what is counted; as for `counting_of`.
    """
    names = dict.fromkeys(name for info in DETECTORS.values() for name in _counted(info))
    given = {name: getattr(args, name) for name in names if hasattr(args, name)}
    check_option_names(args.detector, given)
    counting = counting_of(args.detector, given, rule=rule, layout=layout)
    if idle := [name for name in given if name not in counting.statistic.options]:
        flags = {each.name: flag_of(each) for each in dataclasses.fields(detector_info(args.detector).options)}
        raise ValueError(f"{flags[idle[0]]} does not change the count of {counting.statistic.text}; leave it out")
    return counting, given


def _statistics(
    info: DetectorInfo, options: Mapping[str, Any], layout: Layout = "tinydet"
) -> tuple[Pyramid, Mapping[CountRule, LevelStatistic]]:
    """Return the levels and statistics of a detector: those of its row, else those of its anchors."""
    if info.statistics or info.anchors is None:
        return info.pyramid, info.statistics
    design = info.anchors.design(layout)
    return design, anchor_statistics(design, options.get("assign"))


def _counted(info: DetectorInfo) -> tuple[str, ...]:
    """Names of the options of a detector that change what is counted by any of its rules."""
    _, statistics = _statistics(info, dataclasses.asdict(info.options()))
    return tuple(dict.fromkeys(name for each in statistics.values() for name in each.options))
