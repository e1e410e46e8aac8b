"""Boxes as the network sees them: offsets from anchors, in and out."""

from __future__ import annotations

import math

import torch
from torch import Tensor

CODER_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # of the released code
MAX_LOG_SIZE = math.log(1000 / 16)  # beyond it exp() only makes nonsense (Detectron)


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """(N, 4) xyxy boxes as (dx, dy, dw, dh) relative to (N, 4) xyxy anchors: Fast R-CNN's, times `CODER_WEIGHTS`."""
    size = anchors[:, 2:] - anchors[:, :2]
    centre = anchors[:, :2] + 0.5 * size
    box_size = boxes[:, 2:] - boxes[:, :2]
    box_centre = boxes[:, :2] + 0.5 * box_size
    offsets = torch.cat([(box_centre - centre) / size, torch.log(box_size / size)], dim=1)
    return offsets * offsets.new_tensor(CODER_WEIGHTS)


def decode(deltas: Tensor, anchors: Tensor, weights: tuple[float, float, float, float] = CODER_WEIGHTS) -> Tensor:
    """The inverse of `encode`, for any leading shape (..., 4); sizes are capped at `MAX_LOG_SIZE`."""
    dx, dy, dw, dh = (d if w == 1 else d / w for d, w in zip(deltas.unbind(-1), weights, strict=True))
    x0, y0, x1, y1 = anchors.unbind(-1)
    w, h = x1 - x0, y1 - y0
    cx = x0 + 0.5 * w + dx * w
    cy = y0 + 0.5 * h + dy * h
    half_w = 0.5 * w * torch.exp(torch.clamp(dw, max=MAX_LOG_SIZE))
    half_h = 0.5 * h * torch.exp(torch.clamp(dh, max=MAX_LOG_SIZE))
    return torch.stack([cx - half_w, cy - half_h, cx + half_w, cy + half_h], dim=-1)
