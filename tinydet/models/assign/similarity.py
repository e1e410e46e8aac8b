"""Similarities of objects and anchors for the assigners."""

from __future__ import annotations

import torch
from torch import Tensor


class IoU:
    """Intersection over union, in the order of operations of torchvision's `box_iou`."""

    def pairs(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        anchor_area = (anchors[:, 2] - anchors[:, 0]) * (anchors[:, 3] - anchors[:, 1])
        size = (torch.minimum(boxes[:, 2:], anchors[:, 2:]) - torch.maximum(boxes[:, :2], anchors[:, :2])).clamp(min=0)
        intersection = size[:, 0] * size[:, 1]
        return intersection / (area + anchor_area - intersection)

    def reach(self, sizes: Tensor, shapes: Tensor, least: Tensor) -> Tensor:
        # IoU >= t means an intersection of at least t / (1 + t) of the summed areas.
        areas = (sizes.prod(2) + shapes.prod(1)).double()
        intersection = areas * (least / (1 + least)).double()
        widest = torch.minimum(sizes, shapes)  # (M, A, 2): the largest possible overlap on each axis
        overlap = intersection[:, :, None] / widest.flip(2)
        distance = (sizes + shapes) / 2 - overlap * (1 - 1e-5)
        possible = (overlap <= widest * (1 + 1e-5)).all(2, keepdim=True)
        return torch.where(possible, distance, -1.0)
