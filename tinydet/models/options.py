"""Options, names and anchors of the detectors. Importing this module does not import torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from tinydet._internal.arguments import number, side, whole
from tinydet._internal.options import check_values
from tinydet._internal.options import option as option  # for detectors of users
from tinydet.geometry.anchors import AnchorSizes, octaves
from tinydet.geometry.points import PointDesign

TORCHVISION_BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101", "mobilenet_v2", "mobilenet_v3_large")
Norm = Literal["frozen", "batch", "group"]
NORMS: tuple[Norm, ...] = get_args(Norm)
# fixed: given or computed (S-alpha). one, three: learned scalars. channel: one learned factor per channel. attention:
# computed from the features. Learned factors start at the given alpha, attention at 1.
Fusion = Literal["fixed", "one", "three", "channel", "attention"]
FUSIONS: tuple[Fusion, ...] = get_args(Fusion)
HeadInit = Literal["paper", "he"]
TILE_MULTIPLE = 32  # pixels; the stride of C5, so that every fused level is exactly twice the next
RoIAlignRule = Literal["torchvision", "aligned"]
Assignment = Literal["iou", "nwd", "rfd", "dotd"]
ASSIGNMENTS: tuple[Assignment, ...] = get_args(Assignment)
WithoutPoint = Literal["nearest", "none"]
PointAssignment = Literal["points", "iou", "nwd", "rfd", "dotd"]
MAX_RANK = 100
SIMILARITY_THRESHOLDS = (0.7, 0.3)  # of nwd, rfd and dotd, as in the code released with NWD


@dataclass(frozen=True)
class Architecture:
    """The network of trained weights.

    Attributes:
        detector, options: its name, and the values of its own options.
        tile, overlap: of its training, in pixels; None: unknown.
        preset: of its training; None: unknown.
    """

    detector: str
    backbone: str
    channels: int
    options: Mapping[str, Any] = field(default_factory=dict)
    tile: int | None = None
    overlap: int | None = None
    preset: str | None = None


@dataclass(frozen=True)
class NoOptions:
    """A detector without options of its own."""


@dataclass(frozen=True)
class AssignOptions:
    """Which anchors learn which objects: options of every detector whose anchors are assigned by similarity.

    A subclass is the `options` of a detector, which passes them to `tinydet.models.assign.build.build_assigner`.

    Attributes:
        iou_thresholds: foreground and background of the detector's published rule.

    Raises:
        ValueError: an option is invalid, or background reaches above foreground.
    """

    iou_thresholds: ClassVar[tuple[float, float]] = (0.5, 0.4)

    assign: Assignment = option(
        "iou",
        "similarity that decides which anchors, or points of FCOS, learn which objects; nwd, rfd and dotd do not "
        "vanish for objects of a few pixels; points: the published rule of FCOS (default: %(default)s)",
        choices=ASSIGNMENTS,
    )
    assign_rank: int = option(
        0,
        "each object is learned by the K anchors or points most similar to it; 0: by all anchors above a threshold "
        "(default: %(default)s)",
        metavar="K",
        parse=whole(0, MAX_RANK),
    )
    assign_background: float | None = option(
        None,
        "anchors whose similarity to every object is below T are background; the others that learn no object are "
        "ignored (default: 0.3; RetinaNet with iou and no rank: 0.4)",
        metavar="T",
        parse=number(0, 1, above=True),
    )

    def __post_init__(self) -> None:
        check_values(self)
        foreground, background = self.thresholds
        if not self.assign_rank and background > foreground:
            raise ValueError(
                f"--assign-background {background:g} is above {foreground:g}, from which an anchor learns an object by "
                f"--assign {self.assign}; choose at most {foreground:g}, or --assign-rank K"
            )

    @property
    def thresholds(self) -> tuple[float, float]:
        """Foreground and background threshold; by rank only the second counts."""
        return thresholds_of(self.assign, self.assign_rank, self.assign_background, self.iou_thresholds)


def thresholds_of(
    assign: Assignment, rank: int, background: float | None, iou_thresholds: tuple[float, float]
) -> tuple[float, float]:
    """Return foreground and background threshold of an assignment; `background` replaces the default of the second."""
    chosen = iou_thresholds if assign == "iou" and not rank else SIMILARITY_THRESHOLDS
    return chosen[0], chosen[1] if background is None else background


@dataclass(frozen=True)
class HeadOptions:
    """Options of a head of two towers."""

    head_convs: int = option(4, "3x3 convolutions in each head tower (default: %(default)s)", choices=(1, 2, 3, 4))
    head_init: HeadInit = option(
        "paper",
        "initialization of the head towers: N(0, 0.01) as in the paper, or He, which thin towers need (default: "
        "%(default)s)",
        choices=("paper", "he"),
    )


@dataclass(frozen=True)
class RetinaNetOptions(HeadOptions, AssignOptions):
    """Options of RetinaNet."""


@dataclass(frozen=True)
class FCOSOptions(HeadOptions, AssignOptions):
    """Options of FCOS.

    Raises:
        ValueError: a similarity without a rank, or the reverse.
    """

    assign: PointAssignment = option(  # type: ignore[assignment]
        "points",
        "points: each point learns the smallest object that it is inside, as published; iou, nwd, rfd, dotd: each "
        "object is learned by the --assign-rank points whose squares are most similar to it (default: %(default)s)",
        choices=("points", *ASSIGNMENTS),
    )
    center_radius: float = option(
        1.5,
        "by --assign points, only points less than R strides from the center of an object, in x and in y, learn it; 0: "
        "all points inside its box (default: %(default)s)",
        metavar="R",
        parse=number(0, 1000),
    )
    without_point: WithoutPoint = option(
        "nearest",
        "nearest: an object that no point would learn by --assign points is learned by its nearest point; none: it is "
        "not learned (default: %(default)s)",
        choices=("nearest", "none"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.assign == "points" and (self.assign_rank or self.assign_background is not None):
            raise ValueError(
                "--assign points uses neither --assign-rank nor --assign-background; leave them out, or choose a "
                "similarity, such as --assign nwd"
            )
        if self.assign != "points" and not self.assign_rank:
            raise ValueError(
                f"--assign {self.assign} needs the number of points that learn each object, such as --assign-rank 3"
            )


@dataclass(frozen=True)
class FCOSP3P7Options(FCOSOptions):
    """Options of FCOS on P3..P7."""

    center_radius: float = option(0.0, "as for fcos (default: %(default)s)", metavar="R", parse=number(0, 1000))
    without_point: WithoutPoint = option("none", "as for fcos (default: %(default)s)", choices=("nearest", "none"))


@dataclass(frozen=True)
class FasterRCNNOptions(AssignOptions):
    """Options of Faster R-CNN."""

    iou_thresholds: ClassVar[tuple[float, float]] = (0.7, 0.3)

    straddling: bool = option(
        False,
        "also train on anchors that cross the border of the tile, as torchvision does (default: ignore them; "
        "Libra R-CNN trains on them)",
    )
    roi_rule: RoIAlignRule = option(
        "torchvision",
        "RoIAlign variant: aligned omits torchvision's half-pixel shift and its minimum size of one cell (default: "
        "%(default)s)",
        choices=("torchvision", "aligned"),
        flag="--roi-align",
    )
    canonical_scale: int = option(
        224,
        "side in pixels of proposals that are pooled from P4; those below half of it are pooled from P2 (default: "
        "%(default)s)",
        metavar="PX",
        parse=side,
    )


@dataclass(frozen=True)
class LibraRCNNOptions(FasterRCNNOptions):
    """Options of Libra R-CNN: those of Faster R-CNN, with another default."""

    straddling: bool = option(True, "do not train on anchors that cross the border of the tile")


_RETINANET_SIZES = tuple(octaves(base) for base in (8.0, 16.0, 32.0, 64.0, 128.0))
_RETINANET_RATIOS = (0.5, 1.0, 2.0)
RETINANET_ANCHORS = AnchorSizes(sizes=_RETINANET_SIZES, ratios=_RETINANET_RATIOS)
RETINANET_P3P7_ANCHORS = AnchorSizes(
    sizes=_RETINANET_SIZES,
    ratios=_RETINANET_RATIOS,
    levels=("P3", "P4", "P5", "P6", "P7"),
    strides=(8, 16, 32, 64, 128),
    unfused=2,
)
FASTER_RCNN_ANCHORS = AnchorSizes(sizes=((8.31,), (12.5,), (18.55,), (30.23,), (60.41,)), ratios=(0.5, 1.3, 2.0))
# The ranges hold the largest distance from a point to a side; the first has no lower end, the last no upper one.
FCOS_POINTS = PointDesign(ranges=((-1, 16), (16, 32), (32, 64), (64, 128), (128, math.inf)), radius=1.5)
FCOS_P3P7_POINTS = PointDesign(
    ranges=((-1, 64), (64, 128), (128, 256), (256, 512), (512, math.inf)),
    levels=("P3", "P4", "P5", "P6", "P7"),
    strides=(8, 16, 32, 64, 128),
    unfused=2,
)


def center_radius_of(design: PointDesign, radius: float) -> PointDesign:
    """Return the design with the center region of the option `center_radius`, in strides; 0: the whole box."""
    return dataclasses.replace(design, radius=radius or None)
