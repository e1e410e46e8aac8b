"""The anchor designs of the registered detectors, each under the name of the first detector that has it."""

from __future__ import annotations

from tinydet.geometry.anchors import AnchorDesign
from tinydet.models.registry import DETECTORS, anchors_of

DESIGNS: dict[str, AnchorDesign] = {}
for name, info in DETECTORS.items():
    if info.anchors is not None and (design := anchors_of(name).design()) not in DESIGNS.values():
        DESIGNS[name] = design
RETINANET, RETINANET_P3P7, FASTER_RCNN = (DESIGNS[name] for name in ("retinanet", "retinanet-p3p7", "faster_rcnn"))


def torchvision_design(detector: str) -> AnchorDesign:
    return anchors_of(detector).design("torchvision")


def released_design(detector: str) -> AnchorDesign:
    return anchors_of(detector).design("released")
