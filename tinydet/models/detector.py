"""Which detector a checkpoint holds, and how it is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from tinydet.geometry.anchors import DESIGNS
from tinydet.models.backbone import PIXEL_MEAN as PIXEL_MEAN
from tinydet.models.backbone import PIXEL_STD as PIXEL_STD
from tinydet.models.backbone import Norm
from tinydet.models.faster_rcnn import CANONICAL_SCALE, FasterRCNN, RoIAlignRule
from tinydet.models.fpn import Fusion
from tinydet.models.retinanet import HeadInit, RetinaNet, RetinaNetP3P7

DETECTORS = tuple(DESIGNS)
Detector: TypeAlias = RetinaNet | FasterRCNN


@dataclass(frozen=True)
class DetectorConfig:
    """All that shapes the network. The value of alpha is not here: it lies in the pyramid, with the weights.

    `head_convs` and `head_init` are RetinaNet's; `straddling`, `roi_rule` and `canonical_scale` Faster R-CNN's.
    """

    backbone: str = "resnet50"
    channels: int = 256
    head_convs: int = 4
    head_init: HeadInit = "paper"
    norm: Norm = "frozen"
    classes: int = 1
    detector: str = "retinanet"
    fusion: Fusion = "fixed"
    straddling: bool = False
    roi_rule: RoIAlignRule = "torchvision"
    canonical_scale: int = CANONICAL_SCALE


def build_detector(config: DetectorConfig, alpha: Sequence[float] | None = None) -> Detector:
    """The detector with random weights.

    Raises:
        ValueError: for an unknown detector or backbone.
    """
    match config.detector:
        case "retinanet" | "retinanet-p3p7":
            return (RetinaNet if config.detector == "retinanet" else RetinaNetP3P7)(
                config.backbone,
                config.classes,
                channels=config.channels,
                head_convs=config.head_convs,
                head_init=config.head_init,
                alpha=alpha,
                fusion=config.fusion,
                norm=config.norm,
            )
        case "faster_rcnn":
            return FasterRCNN(
                config.backbone,
                config.classes,
                channels=config.channels,
                alpha=alpha,
                fusion=config.fusion,
                norm=config.norm,
                straddling=config.straddling,
                roi_rule=config.roi_rule,
                canonical_scale=config.canonical_scale,
            )
        case other:
            raise ValueError(f"unknown detector {other!r}; one of: {', '.join(DETECTORS)}")
