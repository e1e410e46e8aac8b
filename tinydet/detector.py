"""Which detector a checkpoint holds, and how it is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tinydet.backbone import Norm
from tinydet.fpn import Fusion
from tinydet.retinanet import HeadInit, RetinaNet

DETECTORS = ("retinanet",)

# Pixels are normalised as torchvision's ImageNet weights expect; in 0..255, RGB.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class DetectorConfig:
    """All that shapes the network. The value of alpha is not here: it lies in the pyramid, with the weights."""

    backbone: str = "resnet50"
    channels: int = 256
    head_convs: int = 4
    head_init: HeadInit = "paper"
    norm: Norm = "frozen"
    classes: int = 1
    detector: str = "retinanet"
    fusion: Fusion = "fixed"


def build_detector(config: DetectorConfig, alpha: Sequence[float] | None = None) -> RetinaNet:
    """The detector with random weights.

    Raises:
        ValueError: for an unknown detector or backbone.
    """
    match config.detector:
        case "retinanet":
            return RetinaNet(
                config.backbone,
                config.classes,
                channels=config.channels,
                head_convs=config.head_convs,
                head_init=config.head_init,
                alpha=alpha,
                fusion=config.fusion,
                norm=config.norm,
            )
        case other:
            raise ValueError(f"unknown detector {other!r}; one of: {', '.join(DETECTORS)}")
