"""Greedy non-maximum suppression in fixed shapes: rounds of one matrix product each, exact once they settle.

The ONNX operator NonMaxSuppression returns a data-dependent number of boxes, which TensorRT-RTX does not build and
TensorRT runs slowly. The idea is Cluster-NMS (Zheng et al., 2020).
"""

from __future__ import annotations

import torch
from torch import Tensor


def cluster_nms(
    boxes: Tensor, valid: Tensor, iou: float, rounds: int, labels: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return what greedy suppression keeps, if the rounds are enough.

    In each round a box is kept unless a better box that the previous round kept overlaps it by more than `iou`. The
    first round is right about the best box; each round is right about all boxes before the first one that the next
    round changes. So a round that changes nothing is the final result. The number of rounds needed is the length of the
    longest chain of boxes that suppress, or spare, each other.

    Args:
        boxes: (N, M, 4) xyxy, best first.
        valid: (N, M) bool, which of them exist; the others suppress nothing and are not kept.
        labels: (N, M) class of each; boxes suppress those of their class only. None: one class.

    Returns:
        (N, M) bool, the kept boxes; (N,) int32, how many the last round still changed: 0 proves the result.
    """
    x0, y0, x1, y1 = boxes.unbind(-1)
    width = torch.minimum(x1[:, :, None], x1[:, None]) - torch.maximum(x0[:, :, None], x0[:, None])
    height = torch.minimum(y1[:, :, None], y1[:, None]) - torch.maximum(y0[:, :, None], y0[:, None])
    common = width.clamp(min=0) * height.clamp(min=0)
    area = (x1 - x0) * (y1 - y0)
    rank = torch.arange(boxes.shape[1], device=boxes.device)
    better = rank[:, None] > rank  # the column is better than the row
    if labels is not None:
        better = better & (labels[:, :, None] == labels[:, None])
    suppresses = ((common / (area[:, :, None] + area[:, None] - common) > iou) & better).float()
    exists = valid.float().unsqueeze(2)
    kept = before = exists
    for _ in range(rounds):
        before = kept
        # A sum of ones: exact in any precision that can count to M.
        kept = torch.where(suppresses @ before < 0.5, exists, 0.0)
    return kept.squeeze(2) > 0, (kept != before).sum(dim=(1, 2), dtype=torch.int32)
