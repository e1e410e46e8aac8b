"""Names of detectors, backbones and fusion modes. Importing this module does not import torch.

A new detector is one file in this folder, one row in `DETECTORS` and one test file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from tinydet._internal.options import check_values, option
from tinydet.geometry.anchors import AnchorSizes, Pyramid, octaves
from tinydet.spec import NMS_ROUNDS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tinydet.models.detector import Detector

Backbone = Literal["resnet18", "resnet34", "resnet50", "resnet101", "mobilenet_v2", "mobilenet_v3_large"]
BACKBONES: tuple[Backbone, ...] = get_args(Backbone)
Norm = Literal["frozen", "batch", "group"]
NORMS: tuple[Norm, ...] = get_args(Norm)
# fixed: given or computed (S-alpha). one, three: learned scalars. channel: one learned factor per channel. attention:
# computed from the features. Learned factors start at the given alpha, attention at 1.
Fusion = Literal["fixed", "one", "three", "channel", "attention"]
FUSIONS: tuple[Fusion, ...] = get_args(Fusion)
HeadInit = Literal["paper", "he"]
RoIAlignRule = Literal["torchvision", "aligned"]
LevelOf = Callable[["NDArray[np.float64]", "NDArray[np.int64]"], "NDArray[np.intp]"]


@dataclass(frozen=True)
class NoOptions:
    """A detector without options of its own."""


@dataclass(frozen=True)
class DetectorInfo:
    """What the rest of tinydet needs to know about a detector without importing torch.

    Attributes:
        label: name for people.
        load: imports and returns the class.
        options: dataclass of the detector's own options, each declared with `option`.
        pyramid: levels, strides and fused edges.
        anchors: sizes and ratios; None for a detector without anchors.
        level_of: (M, 4) boxes xyxy and (M, 2) widths and heights of their images, in input pixels -> (M,) number of the
            level that learns each box, 0 is the finest: what S-alpha counts. None: the level of the best anchor.
        recipe: training defaults per preset that differ from the preset's.
        coco_weights: name of the torchvision weights enum with published COCO weights, `ENUM.MEMBER`.
        nms_rounds: rounds of suppression among proposals in the exported graph; 0 for a detector without proposals.
    """

    label: str
    load: Callable[[], type[Detector]]
    pyramid: Pyramid
    options: type[Any] = NoOptions
    anchors: AnchorSizes | None = None
    level_of: LevelOf | None = None
    recipe: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    coco_weights: str = ""
    nms_rounds: int = 0

    @property
    def design(self) -> Pyramid:
        """The levels as the network uses them, with their anchors if it has some."""
        return self.anchors.design() if self.anchors is not None else self.pyramid

    @property
    def option_names(self) -> tuple[str, ...]:
        return tuple(each.name for each in dataclasses.fields(self.options))


@dataclass(frozen=True)
class RetinaNetOptions:
    """Options of RetinaNet."""

    head_convs: int = option(4, "3x3 convolutions in each head tower (default %(default)s)", choices=(1, 2, 3, 4))
    head_init: HeadInit = option(
        "paper",
        "initialization of the head towers: N(0, 0.01) as in the paper, or He, which thin towers need (default "
        "%(default)s)",
        choices=("paper", "he"),
    )


@dataclass(frozen=True)
class FasterRCNNOptions:
    """Options of Faster R-CNN."""

    straddling: bool = option(
        False, "also train on anchors that cross the border of the tile, as torchvision does (default: ignore them)"
    )
    roi_rule: RoIAlignRule = option(
        "torchvision",
        "RoIAlign variant: aligned omits torchvision's half-pixel shift and its minimum size of one cell (default "
        "%(default)s)",
        choices=("torchvision", "aligned"),
        flag="--roi-align",
    )
    canonical_scale: int = option(
        224,
        "side in pixels of proposals that are pooled from P4; those below half of it are pooled from P2 (default "
        "%(default)s)",
        metavar="PX",
    )


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


def _retinanet() -> type[Detector]:
    from tinydet.models.retinanet import RetinaNet

    return RetinaNet


def _retinanet_p3p7() -> type[Detector]:
    from tinydet.models.retinanet import RetinaNetP3P7

    return RetinaNetP3P7


def _faster_rcnn() -> type[Detector]:
    from tinydet.models.faster_rcnn import FasterRCNN

    return FasterRCNN


_THIN_HEAD = {"small": {"head_convs": 2, "head_init": "he"}}

DETECTORS: dict[str, DetectorInfo] = {
    "retinanet": DetectorInfo(
        label="RetinaNet",
        load=_retinanet,
        options=RetinaNetOptions,
        pyramid=RETINANET_ANCHORS,
        anchors=RETINANET_ANCHORS,
        recipe=_THIN_HEAD,
        coco_weights="RetinaNet_ResNet50_FPN_Weights.COCO_V1",
    ),
    "retinanet-p3p7": DetectorInfo(
        label="RetinaNet on P3-P7",
        load=_retinanet_p3p7,
        options=RetinaNetOptions,
        pyramid=RETINANET_P3P7_ANCHORS,
        anchors=RETINANET_P3P7_ANCHORS,
        recipe=_THIN_HEAD,
        coco_weights="RetinaNet_ResNet50_FPN_Weights.COCO_V1",
    ),
    "faster_rcnn": DetectorInfo(
        label="Faster R-CNN",
        load=_faster_rcnn,
        options=FasterRCNNOptions,
        pyramid=FASTER_RCNN_ANCHORS,
        anchors=FASTER_RCNN_ANCHORS,
        recipe={"paper": {"lr": 0.01}},  # the released Faster R-CNN learns at twice the rate of RetinaNet
        coco_weights="FasterRCNN_ResNet50_FPN_Weights.COCO_V1",
        nms_rounds=NMS_ROUNDS,
    ),
}


def detector_info(name: str) -> DetectorInfo:
    """Return the row of a detector.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in DETECTORS:
        raise ValueError(f"unknown detector {name!r}; choose one of: {', '.join(DETECTORS)}")
    return DETECTORS[name]


def detector_options(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return all options of a detector: the given ones, and defaults for the others.

    Raises:
        ValueError: the detector is unknown, has no such option, or a value is out of range.
    """
    info = detector_info(name)
    if foreign := sorted(given.keys() - set(info.option_names)):
        raise ValueError(f"{name} has no option {foreign[0]!r}; it has: {', '.join(info.option_names) or 'none'}")
    options = info.options(**given)
    check_values(options)
    return dataclasses.asdict(options)


def anchors_of(name: str) -> AnchorSizes:
    """Return the anchors of a detector.

    Raises:
        ValueError: the name is unknown, or the detector has no anchors.
    """
    anchors = detector_info(name).anchors
    if anchors is None:
        raise ValueError(f"{name} has no anchors")
    return anchors
