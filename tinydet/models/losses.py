"""Losses of the detectors. RetinaNet's is normalized as in the authors' code: over the batch, not per image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from tinydet.models.assign import Matches
from tinydet.models.box_coder import encode
from tinydet.models.distributed import sum_over_processes

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
SMOOTH_L1_BETA = 0.11
REGRESSION_WEIGHT = 4.0  # the authors' code divides the box loss by four times the positives


def total(losses: dict[str, Tensor]) -> Tensor:
    """Return the scalar to minimize: the sum of all losses."""
    return torch.stack(list(losses.values())).sum()


def of_level(losses: dict[str, Tensor], level: str) -> Tensor | None:
    """Return the sum of the losses of one pyramid level (those named `.../LEVEL`); None if there are none."""
    parts = [value for name, value in losses.items() if name.endswith(f"/{level}")]
    return torch.stack(parts).sum() if parts else None


def retinanet_loss(
    logits: Sequence[Tensor],
    deltas: Tensor,
    anchors: Tensor,
    matches: Matches,
    boxes: Tensor,
    labels: Tensor,
    ignored: Tensor,
    levels: Sequence[str],
) -> dict[str, Tensor]:
    """Focal loss / (positives + images) and smooth L1 / (4 * positives), counted over all processes.

    Args:
        logits: (B, N_level, C) of each level, finest first.
        deltas: (P, 4) box offsets of `matches.positive`.
        anchors: (N, 4) of all levels, finest first, xyxy in input pixels.
        boxes: (M, 4) objects of the batch; `labels`: (M,) their classes.
        ignored: flat indices of anchors that learn nothing besides `matches.ignored` (ignore regions).
        levels: names of the levels.

    Returns:
        Scalars named `classification/P2`, …, `regression/P2`, …: the loss by the level whose anchors cause it.
    """
    images, count = len(logits[0]), sum(level.shape[1] for level in logits)
    ignored = torch.cat([matches.ignored, ignored])
    classification = focal_loss_by_level(logits, matches.positive, labels[matches.objects], ignored)
    anchor = matches.positive % count
    encoded = encode(boxes[matches.objects], anchors[anchor])
    distance = F.smooth_l1_loss(deltas.float(), encoded, beta=SMOOTH_L1_BETA, reduction="none").sum(dim=1)
    ends = torch.tensor([level.shape[1] for level in logits], device=anchor.device).cumsum(0)
    level = torch.bucketize(anchor, ends, right=True)
    regression = distance.new_zeros(len(logits)).index_add(0, level, distance)
    positives, all_images = sum_over_processes(classification.new_tensor([len(matches.positive), images])).unbind()
    classification = classification / (positives + all_images)
    regression = regression / (REGRESSION_WEIGHT * positives.clamp(min=1))
    return {
        **{f"classification/{name}": value for name, value in zip(levels, classification.unbind(), strict=True)},
        **{f"regression/{name}": value for name, value in zip(levels, regression.unbind(), strict=True)},
    }


def focal_loss_by_level(logits: Sequence[Tensor], positive: Tensor, labels: Tensor, ignored: Tensor) -> Tensor:
    """Return the sum of the focal loss over the anchors or points of each level, float32.

    Args:
        logits: (B, N_level, C) of each level, finest first.
        positive: (P,) flat indices into the (B * N) anchors of the batch that learn an object.
        labels: (P,) class of that object.
        ignored: flat indices that learn nothing, unless they are positive. All others are background.
    """
    sizes = [level.shape[1] for level in logits]
    joined = torch.cat(list(logits), dim=1).float()
    images, count, classes = joined.shape
    targets = torch.zeros_like(joined).view(-1, classes)
    weights = joined.new_ones(images * count, 1)
    weights[ignored] = 0
    weights[positive] = 1  # an object next to an ignore region is still learned
    targets[positive, labels] = 1
    focal = sigmoid_focal_loss(joined.view(-1, classes), targets, FOCAL_ALPHA, FOCAL_GAMMA) * weights
    return torch.stack([part.sum() for part in focal.view(images, count, classes).split(sizes, dim=1)])
