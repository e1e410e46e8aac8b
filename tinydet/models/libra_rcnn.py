"""Libra R-CNN (Pang et al., CVPR 2019): Faster R-CNN with a balanced pyramid, balanced samples and a balanced box loss.

The constants and edge cases are those of mmdetection 3.3; everything else is our Faster R-CNN. The balanced pyramid
comes after the fusion of levels, so folding alpha stays exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

from tinydet.models.faster_rcnn import (
    ROI_POSITIVES,
    ROI_SAMPLES,
    RPN_POSITIVES,
    RPN_SAMPLES,
    Candidates,
    FasterRCNN,
)
from tinydet.spec import ModelSpec

GATHERED = 2  # number of the level on whose grid the levels are averaged: P4
IOU_BINS = 3
MOST_NEGATIVES = 5  # background anchors for each sampled positive
BOX_ALPHA, BOX_GAMMA, BOX_BETA = 0.5, 1.5, 1.0


class LibraRCNN(FasterRCNN):
    """Faster R-CNN whose proposals and boxes see the balanced pyramid.

    Tiles are multiples of 64 pixels, so that each level from P2 to P6 is exactly twice the next.

    Args:
        straddling: whether anchors that cross the border of the tile are trained, as in the reference.
        options: see `FasterRCNN`.

    Attributes:
        bfp: the balanced feature pyramid.
    """

    pyramid_modules: ClassVar[tuple[str, ...]] = ("fpn", "bfp")

    def __init__(
        self, backbone: str, classes: int, *, channels: int = 256, straddling: bool = True, **options: Any
    ) -> None:
        super().__init__(backbone, classes, channels=channels, straddling=straddling, **options)
        self.bfp = BalancedFeaturePyramid(channels)
        self.rpn.fg_bg_sampler = AnchorSampler(RPN_SAMPLES, RPN_POSITIVES)
        self.box_loss = _box_loss

    def pyramid(self, images: Tensor) -> dict[str, Tensor]:
        levels = super().pyramid(images)
        return dict(zip(levels, self.bfp(list(levels.values())), strict=True))

    def inference(self, spec: ModelSpec) -> nn.Module:
        self.bfp.halving = True  # this detector is a copy for the graph
        return super().inference(spec)

    def draw(self, candidates: Candidates) -> Tensor:
        """Draw positives balanced among the objects, and background balanced among IoUs."""
        positive = torch.where(candidates.labels > 0)[0]
        positive = draw_positives(positive, candidates.object_index[positive], int(ROI_SAMPLES * ROI_POSITIVES))
        negative = torch.where(candidates.labels == 0)[0]
        negative = draw_negatives(negative, candidates.best_iou, ROI_SAMPLES - len(positive))
        return torch.cat([positive, negative])


class BalancedFeaturePyramid(nn.Module):
    """Add the refined mean of all levels to each level.

    The mean is taken on the grid of the level `GATHERED`. Maps go to a coarser grid by adaptive max pooling and to a
    finer one by their nearest cell.

    Attributes:
        refine: refines the mean map, (B, C, H, W) -> the same shape; initially an identity.
        halving: each level is known to have exactly twice the rows and columns of the next, as for tiles that are
            multiples of 64 pixels; then no size is compared, which a graph for tiles of any size could not do.
    """

    halving = False

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.refine: nn.Module = NonLocal(channels)

    def forward(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """Levels (B, C, H_i, W_i), finest first, at least three -> levels of the same shapes."""
        mean = self.balanced(levels)
        return [level + self._resize(mean, level, GATHERED - i) for i, level in enumerate(levels)]

    def balanced(self, levels: Sequence[Tensor]) -> Tensor:
        """Return the refined mean of the levels on the grid of `GATHERED`."""
        grid = levels[GATHERED]
        gathered = [self._resize(level, grid, i - GATHERED) for i, level in enumerate(levels)]
        mean: Tensor = self.refine(sum(gathered[1:], gathered[0]) / len(gathered))
        return mean

    def _resize(self, source: Tensor, grid: Tensor, finer: int) -> Tensor:
        """Return `source` on the cells of `grid`, which is finer by this number of levels, or coarser if negative."""
        if not self.halving:
            return _resize(source, grid, finer=finer >= 0)
        if finer > 0:
            return F.interpolate(source, scale_factor=float(1 << finer), mode="nearest")
        return F.max_pool2d(source, 1 << -finer) if finer else source


class NonLocal(nn.Module):
    """Non-local block (Wang et al., CVPR 2018): embedded Gaussian, all channels kept, logits not divided by sqrt(C).

    The last convolution starts at 0, so the block starts as an identity.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.theta, self.phi, self.g, self.out = (nn.Conv2d(channels, channels, 1) for _ in range(4))
        for name, parameter in self.named_parameters():
            nn.init.normal_(parameter, std=0.01 if name in ("theta.weight", "phi.weight", "g.weight") else 0.0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape. Logits and softmax are computed in float32."""
        # (B, 1 head, H * W, C); torch's kernels that do not store the matrix of logits need contiguous channels
        query, key, value = (
            conv(x).float().flatten(2).transpose(1, 2).unsqueeze(1).contiguous()
            for conv in (self.theta, self.phi, self.g)
        )
        with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):
            attended = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        refined: Tensor = x + self.out(attended.transpose(2, 3).reshape(x.shape).to(x.dtype))
        return refined


def balanced_l1(
    difference: Tensor, alpha: float = BOX_ALPHA, gamma: float = BOX_GAMMA, beta: float = BOX_BETA
) -> Tensor:
    """Return the balanced L1 loss of each value (Eq. 5 to 7 of the paper).

    Its gradient grows with alpha * ln(b * d + 1) up to gamma at d = 1 and is gamma beyond; b = exp(gamma / alpha) - 1.

    >>> [round(value, 4) for value in balanced_l1(torch.tensor([0.0, 0.1, 0.5, 1.0, -2.0])).tolist()]
    [0.0, 0.0314, 0.4006, 1.0786, 2.5786]
    """
    d = difference.abs()
    b = math.exp(gamma / alpha) - 1
    near = alpha / b * (b * d + 1) * torch.log(b * d / beta + 1) - alpha * d
    return torch.where(d < beta, near, gamma * d + gamma / b - alpha * beta)


def draw_positives(positive: Tensor, object_index: Tensor, wanted: int) -> Tensor:
    """Draw at most `wanted` of the positives, about as many of each object.

    Args:
        positive: (P,) indices; `object_index`: (P,) the object of each.
    """
    if len(positive) <= wanted:
        return positive
    objects, group = object_index.unique(return_inverse=True)
    most = round(wanted / len(objects)) + 1  # half to even
    first, others = _first_of_groups(positive, group, group.new_full((len(objects),), most))
    first = _draw(first, wanted)
    return torch.cat([first, _draw(others, wanted - len(first))])


def draw_negatives(negative: Tensor, best_iou: Tensor, wanted: int) -> Tensor:
    """Draw at most `wanted` of the background candidates, about as many from each of three bins of IoU.

    Those without overlap are drawn only if there are too few others. The bins divide the range from 0 to the largest
    IoU of all candidates.

    Args:
        negative: (Q,) indices of the background candidates.
        best_iou: (R,) of all candidates.
    """
    iou = best_iou[negative]
    overlapping, apart = negative[iou > 0], negative[iou == 0]
    if len(overlapping) <= wanted:
        return torch.cat([overlapping, _draw(apart, wanted - len(overlapping))])
    width = best_iou.max() / IOU_BINS
    number = torch.stack([best_iou[overlapping] >= i * width for i in range(1, IOU_BINS + 1)]).sum(dim=0)
    most = number.new_full((IOU_BINS + 1,), wanted // IOU_BINS)
    most[IOU_BINS] = 0  # the last bin excludes its upper end
    first, others = _first_of_groups(overlapping, number, most)
    return torch.cat([first, _draw(others, wanted - len(first))])


class AnchorSampler(BalancedPositiveNegativeSampler):  # type: ignore[misc]
    """torchvision's sampler of anchors, with at most five background anchors for each positive, or five without one."""

    def __call__(self, labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """(A,) labels of each tile, 1 positive, 0 background, -1 ignored -> (A,) masks of the sampled ones."""
        positives, negatives = super().__call__(labels)
        for positive, negative in zip(positives, negatives, strict=True):
            most = MOST_NEGATIVES * max(1, int(positive.sum()))
            drawn = torch.where(negative)[0]
            negative[_draw(drawn, len(drawn))[most:]] = 0
        return positives, negatives


def _box_loss(predicted: Tensor, encoded: Tensor) -> Tensor:
    return balanced_l1(predicted - encoded).sum()


def _resize(source: Tensor, grid: Tensor, *, finer: bool) -> Tensor:
    """Return `source` on the cells of `grid`, which are at least as fine (`finer`) or at least as coarse.

    Where one size divides the other, which multiples of 64 ensure, this is one Resize or MaxPool of ONNX.
    """
    rows, columns, height, width = *source.shape[2:], *grid.shape[2:]
    if (rows, columns) == (height, width):
        return source
    if finer and height % rows == width % columns == 0:
        return F.interpolate(source, scale_factor=(height // rows, width // columns), mode="nearest")
    if finer:  # floor(i * rows / height) in whole numbers; F.interpolate rounds, so that (14 -> 46) is wrong in one row
        row, column = (
            torch.arange(to, device=source.device) * of // to for of, to in ((rows, height), (columns, width))
        )
        return source[:, :, row][:, :, :, column]
    if rows % height == columns % width == 0:
        return F.max_pool2d(source, (rows // height, columns // width))
    return F.adaptive_max_pool2d(source, (height, width))


def _draw(indices: Tensor, count: int) -> Tensor:
    """Draw `count` of the indices at random, or all if there are fewer."""
    return indices[torch.randperm(len(indices), device=indices.device)[:count]]


def _first_of_groups(indices: Tensor, group: Tensor, most: Tensor) -> tuple[Tensor, Tensor]:
    """Divide indices into at most `most[g]` of each group g, drawn at random, and the others.

    Args:
        group: (P,) number of the group of each index.
    """
    order = torch.randperm(len(indices), device=indices.device)
    group, sorting = group[order].sort(stable=True)
    rank = torch.arange(len(group), device=group.device) - torch.searchsorted(group, group)
    first = rank < most[group]
    shuffled = indices[order][sorting]
    return shuffled[first], shuffled[~first]
