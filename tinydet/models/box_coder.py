"""Encode boxes as offsets from anchors, which the network learns, and decode them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

CODER_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # of (dx, dy, dw, dh), as in the authors' code
MAX_LOG_SIZE = math.log(1000 / 16)  # limit of dw and dh before exp(), as in Detectron


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Encode boxes (N, 4) xyxy as offsets (dx, dy, dw, dh) from anchors (N, 4) xyxy, multiplied by `CODER_WEIGHTS`.

    The parametrization of Fast R-CNN.
    """
    size = anchors[:, 2:] - anchors[:, :2]
    center = anchors[:, :2] + 0.5 * size
    box_size = boxes[:, 2:] - boxes[:, :2]
    box_center = boxes[:, :2] + 0.5 * box_size
    offsets = torch.cat([(box_center - center) / size, torch.log(box_size / size)], dim=1)
    return offsets * offsets.new_tensor(CODER_WEIGHTS)


def decode(deltas: Tensor, anchors: Tensor, weights: tuple[float, float, float, float] = CODER_WEIGHTS) -> Tensor:
    """Decode offsets (..., 4) from anchors (..., 4) xyxy to boxes (..., 4) xyxy: the inverse of `encode`.

    dw and dh are capped at `MAX_LOG_SIZE`.
    """
    dx, dy, dw, dh = (d if w == 1 else d / w for d, w in zip(deltas.unbind(-1), weights, strict=True))
    x0, y0, x1, y1 = anchors.unbind(-1)
    w, h = x1 - x0, y1 - y0
    cx = x0 + 0.5 * w + dx * w
    cy = y0 + 0.5 * h + dy * h
    half_w = 0.5 * w * torch.exp(torch.clamp(dw, max=MAX_LOG_SIZE))
    half_h = 0.5 * h * torch.exp(torch.clamp(dh, max=MAX_LOG_SIZE))
    return torch.stack([cx - half_w, cy - half_h, cx + half_w, cy + half_h], dim=-1)
