"""Scoring protocols: stock COCO, the TinyPerson benchmark with every quirk, and its relatives.

A protocol is data: size ranges, IoU thresholds, detection limits, and one switch for each quirk of the published
evaluators (`cocoeval.py` and `eval_MR_multisetup.py` of ucas-vg/TinyBenchmark and their successors in yinglang/huicv).
The S-alpha paper reports `tinyperson`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

IOUS = (0.25, 0.5, 0.75)
_WIDE = 1e5**2

# Areas in square pixels, inclusive at both ends: an object of exactly 64 px² is both tiny1 and tiny2.
_TINY_AREAS = {
    "all": (1.0, _WIDE),
    "tiny": (1.0, 20.0**2),  # from 1 px, although the paper says 2
    "tiny1": (1.0, 8.0**2),
    "tiny2": (8.0**2, 12.0**2),
    "tiny3": (12.0**2, 20.0**2),
    "small": (20.0**2, 32.0**2),
    "reasonable": (32.0**2, _WIDE),
}


@dataclass(frozen=True)
class PrecisionRules:
    """Rules of average precision.

    IoD is the intersection of a detection and an annotation over the detection's area.

    Attributes:
        areas: size ranges of the annotation area in square pixels, inclusive; objects outside are ignored.
        ious: IoU thresholds.
        max_detections: number of best detections per image and category that take part.
        ignore_flag: `ignore` makes an annotation an ignore region, as `iscrowd` does; stock COCO reads only `iscrowd`.
        ignore_uncertain: `uncertain` makes an annotation an ignore region.
        iod: ignore an unmatched detection if its IoD with an ignored annotation reaches the IoU threshold. Objects
            outside the size range are ignored annotations too.
        iod_stricter: that threshold is 2t/(1+t) instead of t.
        iod_twice_for_crowds: apply the conversion from IoU to IoD to the overlap with a crowd, which is already an IoD.
        id_zero_matches: an object with the annotation id 0 can be found; the evaluators read 0 as "no match".
    """

    areas: Mapping[str, tuple[float, float]]
    ious: tuple[float, ...]
    max_detections: int
    ignore_flag: bool
    ignore_uncertain: bool
    iod: bool
    iod_stricter: bool
    iod_twice_for_crowds: bool
    id_zero_matches: bool


@dataclass(frozen=True)
class Setup:
    """One row of a miss-rate table: objects by size in pixels and by visible share, both inclusive."""

    size: tuple[float, float]
    visible: tuple[float, float] = (0.65, _WIDE)


@dataclass(frozen=True)
class MissRateRules:
    """Rules of the log-average miss rate over nine points, 0.01 to 1 false positives per image.

    Attributes:
        setups: the objects that count for each row; all others are ignored.
        by_height: sizes are heights, not sqrt(area).
        reads_vis_bbox: also read the visible share from `vis_bbox`, which the published files of CityPersons have; the
            original evaluator reads only `vis_ratio` and `vis`.
        ious: IoU thresholds.
        max_detections: number of best detections per image and category that take part.
        ignore_uncertain: `uncertain` makes an annotation an ignore region.
        iod_twice: apply the conversion from IoU to IoD to the overlap with an ignored annotation, which is already an
            IoD, and ignore an unmatched detection where the result exceeds 0.5, whatever the IoU threshold.
        id_zero_matches: an object with the annotation id 0 can be found.
        wrap_first_point: where the first false positive already exceeds a point (fewer than 100 images), read the
            recall at index -1, which is the final recall, instead of 0.
    """

    setups: Mapping[str, Setup]
    by_height: bool
    reads_vis_bbox: bool
    ious: tuple[float, ...]
    max_detections: int
    ignore_uncertain: bool
    iod_twice: bool
    id_zero_matches: bool
    wrap_first_point: bool


@dataclass(frozen=True)
class Protocol:
    """A named set of rules; None for a quantity that the protocol does not measure."""

    name: str
    summary: str
    precision: PrecisionRules | None
    miss_rate: MissRateRules | None


_TINYPERSON_AP = PrecisionRules(
    areas=_TINY_AREAS,
    ious=IOUS,
    max_detections=200,
    ignore_flag=True,
    ignore_uncertain=True,
    iod=True,
    iod_stricter=False,
    iod_twice_for_crowds=True,
    id_zero_matches=False,
)
_TINYPERSON_MR = MissRateRules(
    setups={
        "tiny": Setup((2.0, 20.0)),
        "tiny1": Setup((2.0, 8.0)),
        "tiny2": Setup((8.0, 12.0)),
        "tiny3": Setup((12.0, 20.0)),
        "small": Setup((20.0, 32.0)),
        "All": Setup((-1.0, _WIDE)),
    },
    by_height=False,
    reads_vis_bbox=False,
    ious=IOUS,
    max_detections=1000,
    ignore_uncertain=True,
    iod_twice=True,
    id_zero_matches=False,
    wrap_first_point=True,
)

_ALL = (
    Protocol(
        "coco",
        "stock pycocotools matching at the TinyPerson size ranges, 1500 detections per image",
        PrecisionRules(
            areas={**_TINY_AREAS, "all": (0.0, _WIDE)},
            ious=IOUS,
            max_detections=1500,  # stock is 100, fewer than the objects in a crowded image
            ignore_flag=False,
            ignore_uncertain=False,
            iod=False,
            iod_stricter=False,
            iod_twice_for_crowds=False,
            id_zero_matches=False,  # as in pycocotools
        ),
        None,
    ),
    Protocol(
        "tinyperson", "the TinyPerson benchmark, bit for bit; the paper's numbers", _TINYPERSON_AP, _TINYPERSON_MR
    ),
    Protocol(
        "tinyperson-fixed",
        "tinyperson without its bugs: annotation id 0, recall at index -1, IoD of an IoD",
        dataclasses.replace(_TINYPERSON_AP, iod_twice_for_crowds=False, id_zero_matches=True),
        dataclasses.replace(_TINYPERSON_MR, iod_twice=False, id_zero_matches=True, wrap_first_point=False),
    ),
    Protocol(
        "tinyperson-mmdet",
        "tinyperson as in the authors' mmdetection config: 1000 detections per image",
        dataclasses.replace(_TINYPERSON_AP, max_detections=1000),
        _TINYPERSON_MR,
    ),
    Protocol(
        "tinyperson-huicv",
        "tinyperson as in their script evaluate_tiny.py: IoD threshold 2t/(1+t)",
        dataclasses.replace(_TINYPERSON_AP, iod_stricter=True),
        _TINYPERSON_MR,
    ),
    Protocol(
        "citypersons",
        "CityPersons miss rate: by height and visible share, IoU 0.50 and 0.75",
        None,
        dataclasses.replace(
            _TINYPERSON_MR,
            setups={
                "Reasonable": Setup((50.0, _WIDE)),
                "Small": Setup((50.0, 75.0)),  # Reasonable_small in its code
                "Heavy": Setup((50.0, _WIDE), (0.2, 0.65)),  # Reasonable_occ=heavy
                "All": Setup((20.0, _WIDE), (0.2, _WIDE)),
            },
            by_height=True,
            reads_vis_bbox=True,
            ious=(0.5, 0.75),
            ignore_uncertain=False,
            iod_twice=False,
        ),
    ),
)
PROTOCOLS: Mapping[str, Protocol] = {protocol.name: protocol for protocol in _ALL}


def choose_protocol(
    name: str, *, iod: bool = True, keep_uncertain: bool = False, max_detections: int | None = None
) -> Protocol:
    """Return a protocol by name, with its switches.

    Args:
        iod: False disables every rule that ignores a detection because of its IoD with an ignored annotation.
        keep_uncertain: count uncertain annotations as objects to find.
        max_detections: number of best detections per image and category that count for average precision; None for the
            protocol's own limit.

    Raises:
        ValueError: an unknown name, or a limit below 1.
    """
    if name not in PROTOCOLS:
        raise ValueError(f"unknown protocol {name!r}; choose from {', '.join(PROTOCOLS)}")
    if max_detections is not None and max_detections < 1:
        raise ValueError(f"max_detections is {max_detections}; keep at least 1 detection per image")
    protocol = PROTOCOLS[name]
    precision, miss_rate = protocol.precision, protocol.miss_rate
    if precision is not None:
        precision = dataclasses.replace(
            precision,
            iod=precision.iod and iod,
            ignore_uncertain=precision.ignore_uncertain and not keep_uncertain,
            max_detections=precision.max_detections if max_detections is None else max_detections,
        )
    if miss_rate is not None:
        miss_rate = dataclasses.replace(
            miss_rate,
            iod_twice=miss_rate.iod_twice and iod,
            ignore_uncertain=miss_rate.ignore_uncertain and not keep_uncertain,
        )
    return dataclasses.replace(protocol, precision=precision, miss_rate=miss_rate)
