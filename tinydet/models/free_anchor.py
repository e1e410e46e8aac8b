"""FreeAnchor: RetinaNet that learns which anchors of a bag find their object (Zhang et al., NeurIPS 2019).

No threshold assigns anchors. The bag of an object holds the anchors that overlap it most, and the loss asks that at
least one of them both classifies and locates it. An anchor is background to the extent that its predicted box finds no
object.
The network, its anchors and its inference are RetinaNet's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinydet.geometry.anchors import AnchorDesign
from tinydet.models.assign.ignore_regions import ignored_by_regions
from tinydet.models.assign.pairs import best_pairs
from tinydet.models.assign.similarity import IoU
from tinydet.models.batch import Batch, anchors_of
from tinydet.models.box_coder import decode, encode
from tinydet.models.distributed import sum_over_processes
from tinydet.models.losses import SMOOTH_L1_BETA
from tinydet.models.retinanet import RetinaNet

# The authors' constants.
PRIOR = 0.02  # score of every class before training
BAG = 50  # anchors in the bag of an object
FOUND = 0.6  # IoU from which a predicted box counts as finding an object
ALPHA, GAMMA = 0.5, 2.0
LOCATION_WEIGHT = 0.75
TINY = 1e-12
IOU = IoU()
MAX_PAIRS = 1 << 20  # of objects and predicted boxes that are compared at a time


class FreeAnchor(RetinaNet):
    """RetinaNet with the loss of FreeAnchor. `assigner` is not used."""

    own_tensors: ClassVar[tuple[str, ...]] = ("head.classification_head.cls_logits.bias",)

    def __init__(self, backbone: str, classes: int, **options: Any) -> None:
        super().__init__(backbone, classes, **options)
        nn.init.constant_(self.head.classification_head.cls_logits.bias, math.log(PRIOR / (1 - PRIOR)))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """See `Detector`. The loss of a bag counts for the level of its best anchor."""
        design, size = self.design, batch.size
        anchors = anchors_of(design, size, batch.images.device)
        bags = bags_of(batch.boxes, BAG, design, anchors, size)
        ignored = ignored_by_regions(batch.regions, batch.region_owner, design, size)
        outputs = self(batch.images)
        with torch.autocast(batch.images.device.type, enabled=False):
            return free_anchor_loss(
                outputs.logits, outputs.deltas, anchors, bags, batch.boxes, batch.labels, batch.owner, ignored,
                design.levels,
            )  # fmt: skip


def bags_of(boxes: Tensor, k: int, design: AnchorDesign, anchors: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the `k` anchors of highest IoU with each object, best first; ties go to the lower index.

    Where fewer anchors overlap an object, others fill its bag.

    Args:
        boxes: (M, 4) xyxy in input pixels, float32.
        anchors: (N, 4) of all levels of `design` for `size`, finest first, xyxy in input pixels.
        size: (height, width) of the input.

    Returns:
        (M, min(k, N)) indices into `anchors`.
    """
    k = min(k, len(anchors))
    objects, index, _ = best_pairs(boxes, k, design, anchors, size, IOU)
    found = torch.bincount(objects, minlength=len(boxes))
    bags = index.new_zeros(len(boxes), k)
    bags[objects, torch.arange(len(objects), device=boxes.device) - (found.cumsum(0) - found)[objects]] = index
    for row in (found < k).nonzero().flatten().tolist():  # rare: on a tiny tile, or far outside of the tile
        overlap = IOU.pairs(boxes[row].expand(len(anchors), 4), anchors)
        bags[row] = overlap.argsort(descending=True, stable=True)[:k]
    return bags


def free_anchor_loss(
    logits: Sequence[Tensor],
    deltas: Sequence[Tensor],
    anchors: Tensor,
    bags: Tensor,
    boxes: Tensor,
    labels: Tensor,
    owner: Tensor,
    ignored: Tensor,
    levels: Sequence[str],
    bag: int = BAG,
) -> dict[str, Tensor]:
    """Return the loss of the bags / objects, and of the background / (objects * bag), counted over all processes.

    Args:
        logits: (B, N_level, C) of each level, finest first; `deltas`: (B, N_level, 4).
        anchors: (N, 4) of all levels, finest first, xyxy in input pixels.
        bags: (M, K) anchors of each object, best first.
        boxes: (M, 4) objects of the batch; `labels`: (M,) their classes; `owner`: (M,) their images.
        ignored: flat indices into the (B * N) anchors of those that are not background (ignore regions).
        levels: names of the levels.
        bag: intended size of a bag, which normalizes the loss of the background.

    Returns:
        Scalars named `bags/P2`, …, by the level of the best anchor of a bag; and `background/P2`, ….
    """
    sizes = [level.shape[1] for level in logits]
    every_logit = torch.cat(list(logits), dim=1).float()
    every_delta = torch.cat(list(deltas), dim=1).float()
    images, count, classes = every_logit.shape
    objects = sum_over_processes(boxes.new_tensor(float(len(boxes))))

    of_bags = (owner[:, None] * count + bags).flatten()
    # Anchors may be in several bags. The backward pass of these gathers adds in a fixed order.
    class_logits = every_logit.flatten().gather(0, of_bags * classes + labels.repeat_interleave(bags.shape[1]))
    bag_deltas = every_delta.view(-1, 4).gather(0, of_bags[:, None].expand(-1, 4))
    encoded = encode(boxes.repeat_interleave(bags.shape[1], dim=0), anchors[bags.flatten()])
    losses = bag_losses(class_logits.view(bags.shape), bag_deltas.view(*bags.shape, 4), encoded.view(*bags.shape, 4))
    ends = torch.tensor(sizes, device=bags.device).cumsum(0)
    best_level = torch.bucketize(bags[:, 0].contiguous(), ends, right=True)
    # The term of 0 keeps the box branch in the autograd graph of a batch without objects.
    positive = every_delta.sum() * 0 + losses.new_zeros(len(sizes)).index_add(0, best_level, losses)

    found = found_probability(decode(every_delta.detach(), anchors), boxes, labels, owner, classes)
    background = background_losses(every_logit, found)
    background = background.view(-1, classes).index_fill(0, ignored, 0).view(images, count, classes)
    negative = torch.stack([part.sum() for part in background.split(sizes, dim=1)])
    positive = ALPHA * positive / objects.clamp(min=1)
    negative = (1 - ALPHA) * negative / (objects * bag).clamp(min=1)
    return {
        **{f"bags/{name}": value for name, value in zip(levels, positive.unbind(), strict=True)},
        **{f"background/{name}": value for name, value in zip(levels, negative.unbind(), strict=True)},
    }


def bag_losses(logits: Tensor, deltas: Tensor, encoded: Tensor) -> Tensor:
    """Return -ln of the probability of each bag: the mean of its anchors' m, weighted with 1 / (1 - m).

    m is the product of the class score and exp(-weighted smooth L1). Logarithms are used throughout: anchors far from
    a tiny object have an m of 1e-30 and less.

    Args:
        logits: (M, K) of the object's class; `deltas`: (M, K, 4) predicted; `encoded`: (M, K, 4) those of the object.

    Returns:
        (M,)
    """
    distance = F.smooth_l1_loss(deltas, encoded, beta=SMOOTH_L1_BETA, reduction="none").sum(dim=2)
    log_match = F.logsigmoid(logits) - LOCATION_WEIGHT * distance
    log_weight = -torch.log((-torch.expm1(log_match)).clamp(min=TINY))
    return log_weight.logsumexp(dim=1) - (log_weight + log_match).logsumexp(dim=1)


def background_losses(logits: Tensor, found: Tensor) -> Tensor:
    """Return p^2 * -ln(1 - p) of every anchor and class, where p is the score times (1 - `found`).

    -ln(1 - p) is written with softplus, since 1 - p can be 0 in float32, and is at most 27.6 (a p of 1 - 1e-12).
    """
    p = logits.sigmoid() * (1 - found)
    surprise = F.softplus(logits) - F.softplus(logits + found.log())
    return p**GAMMA * surprise.clamp(max=-math.log(TINY))


@torch.no_grad()
def found_probability(predicted: Tensor, boxes: Tensor, labels: Tensor, owner: Tensor, classes: int) -> Tensor:
    """Return to what extent each predicted box finds an object of each class: 1 for its best box, 0 if IoU <= `FOUND`.

    Args:
        predicted: (B, N, 4) boxes of all anchors, xyxy in input pixels, not clipped.

    Returns:
        (B, N, C)
    """
    images, count = predicted.shape[:2]
    result = predicted.new_zeros(images * count * classes)
    for image in range(images):
        objects = (owner == image).nonzero().flatten()
        if not len(objects):
            continue
        which, box, overlap = overlapping_pairs(boxes[objects], predicted[image], FOUND)
        best = overlap.new_zeros(len(objects)).scatter_reduce_(0, which, overlap, "amax")[which]
        share = (overlap - FOUND) / (best - FOUND)  # overlap > FOUND, so never 0 / 0
        index = (image * count + box) * classes + labels[objects][which]
        result.scatter_reduce_(0, index, share, "amax")
    return result.view(images, count, classes)


def overlapping_pairs(boxes: Tensor, predicted: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return object, predicted box and IoU of all pairs with an IoU above `threshold`.

    For such an IoU the centers may differ by at most w * (1 - threshold) / (2 * threshold) in x, where w is the width
    of the object, and likewise in y. So predicted boxes are sorted by x, and each object is compared with a range.

    Args:
        boxes: (M, 4) and `predicted`: (N, 4), xyxy.
    """
    x, order = ((predicted[:, 0] + predicted[:, 2]) / 2).sort()
    predicted = predicted[order]
    y = (predicted[:, 1] + predicted[:, 3]) / 2
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    reach = (boxes[:, 2:] - boxes[:, :2]) * ((1 - threshold) / (2 * threshold)) * 1.001 + 1e-3  # rounding
    first = torch.searchsorted(x, center[:, 0] - reach[:, 0])
    counts = torch.searchsorted(x, center[:, 0] + reach[:, 0], right=True) - first
    found = []
    for part in torch.arange(len(boxes), device=boxes.device).split(_parts(counts)):
        number = counts[part]
        objects = part.repeat_interleave(number)
        within = torch.arange(len(objects), device=boxes.device) - (number.cumsum(0) - number).repeat_interleave(number)
        index = first[objects] + within
        near = (y[index] - center[objects, 1]).abs() <= reach[objects, 1]
        objects, index = objects[near], index[near]
        overlap = IOU.pairs(boxes[objects], predicted[index])
        above = overlap > threshold
        found.append((objects[above], order[index[above]], overlap[above]))
    objects, index, overlap = (torch.cat(parts) for parts in zip(*found, strict=True))
    return objects, index, overlap


def _parts(counts: Tensor) -> list[int]:
    """Divide objects with `counts` pairs into parts of about `MAX_PAIRS` pairs; return their numbers of objects."""
    part = torch.div(counts.cumsum(0), MAX_PAIRS, rounding_mode="floor")
    sizes: list[int] = part.unique_consecutive(return_counts=True)[1].tolist()
    return sizes
