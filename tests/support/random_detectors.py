"""Detectors of other frameworks with random weights, biased so that they report boxes."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

# For documents: what runs in place of published weights.
USE_SSD = {
    "net = fasterrcnn_resnet50_fpn(weights=weights).eval()": "net = __import__('random_detectors').torchvision_ssd()",
}
LIKELY = 2.0  # logit of the first class


def torchvision_ssd() -> Any:
    """torchvision's SSDlite with the 91 classes of COCO. It finds persons everywhere."""
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large

    torch.manual_seed(0)
    net = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=91, detections_per_img=20)
    for module in net.head.classification_head.module_list:
        module[-1].bias.data.view(-1, 91)[:, 1] = 3 * LIKELY
    return net.eval()


def save_yolo(path: Path) -> None:
    """Write the weights of an Ultralytics YOLO11n."""
    ultralytics = importlib.import_module("ultralytics")
    torch.manual_seed(0)
    yolo = ultralytics.YOLO("yolo11n.yaml")
    for branch in yolo.model.model[-1].cv3:
        branch[-1].bias.data[0] = LIKELY
    yolo.save(path)


def save_rtdetr(folder: Path) -> None:
    """Write the weights, the configuration and the image processor of a small RT-DETR of Transformers."""
    transformers = importlib.import_module("transformers")
    torch.manual_seed(0)
    config = transformers.RTDetrConfig(encoder_layers=1, decoder_layers=1, num_queries=30, num_labels=80)
    net = transformers.RTDetrForObjectDetection(config)
    for name, parameter in net.named_parameters():
        if "class_embed" in name and name.endswith("bias"):
            parameter.data[0] = LIKELY
    net.save_pretrained(folder)
    transformers.RTDetrImageProcessor().save_pretrained(folder)
