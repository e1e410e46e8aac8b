"""What the detectors minimise. RetinaNet's is normalised as in the released code: over the batch, not over images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from tinydet.models.assign.max_iou import Matches
from tinydet.models.box_coder import encode
from tinydet.models.distributed import over_all

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
SMOOTH_L1_BETA = 0.11
REGRESSION_WEIGHT = 4.0  # the released code divides the box loss by four times the positives


class Losses(NamedTuple):
    """The loss by the level whose anchors cause it, finest first, (L,) each."""

    classification: Tensor
    regression: Tensor

    def total(self) -> Tensor:
        """The scalar to minimise."""
        return self.classification.sum() + self.regression.sum()

    def scalars(self, levels: Sequence[str]) -> dict[str, float]:
        """Each part by name, such as `classification/P2`; `levels` are the names of the pyramid's levels."""
        return {
            f"{kind}/{level}": value
            for kind, values in self._asdict().items()
            for level, value in zip(levels, values.tolist(), strict=True)
        }


class TwoStageLosses(NamedTuple):
    """The four losses of Faster R-CNN, scalars: of the anchors, then of the proposals."""

    objectness: Tensor
    proposal_regression: Tensor
    classification: Tensor
    regression: Tensor

    def total(self) -> Tensor:
        """The scalar to minimise."""
        return self.objectness + self.proposal_regression + self.classification + self.regression

    def scalars(self, levels: Sequence[str]) -> dict[str, float]:
        """Each part by name. Proposals of all levels are judged together, so nothing is told apart by level."""
        return {kind: float(value) for kind, value in self._asdict().items()}


DetectorLosses: TypeAlias = Losses | TwoStageLosses


def retinanet_loss(
    levels: Sequence[Tensor],
    deltas: Tensor,
    anchors: Tensor,
    matches: Matches,
    boxes: Tensor,
    labels: Tensor,
    ignored: Tensor,
) -> Losses:
    """Focal loss / (positives + images) and smooth L1 / (4 * positives), counted over all processes of the run.

    Args:
        levels: (B, N_level, C) logits of each level, finest first.
        deltas: (P, 4) box offsets of `matches.positive`.
        anchors: (N, 4) of all levels, finest first, xyxy in input pixels.
        boxes: (M, 4) objects of the batch; `labels`: (M,) their classes.
        ignored: flat anchor indices that learn nothing besides `matches.ignored` (ignore regions).
    """
    sizes = [level.shape[1] for level in levels]
    logits = torch.cat(list(levels), dim=1).float()
    images, count, classes = logits.shape
    targets = torch.zeros_like(logits).view(-1, classes)
    weights = logits.new_ones(images * count, 1)
    weights[matches.ignored] = 0
    weights[ignored] = 0
    weights[matches.positive] = 1  # an object beside an ignore region is still learned
    targets[matches.positive, labels[matches.objects]] = 1
    focal = sigmoid_focal_loss(logits.view(-1, classes), targets, FOCAL_ALPHA, FOCAL_GAMMA) * weights
    by_level = torch.stack([part.sum() for part in focal.view(images, count, classes).split(sizes, dim=1)])

    anchor = matches.positive % count
    wanted = encode(boxes[matches.objects], anchors[anchor])
    distance = F.smooth_l1_loss(deltas.float(), wanted, beta=SMOOTH_L1_BETA, reduction="none").sum(dim=1)
    ends = torch.tensor(sizes, device=anchor.device).cumsum(0)
    level = torch.bucketize(anchor, ends, right=True)
    boxes_by_level = distance.new_zeros(len(sizes)).index_add(0, level, distance)
    positives, everywhere = over_all(by_level.new_tensor([len(matches.positive), images])).unbind()
    return Losses(by_level / (positives + everywhere), boxes_by_level / (REGRESSION_WEIGHT * positives.clamp(min=1)))
