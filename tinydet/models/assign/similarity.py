"""Similarities of objects and anchors for the assigners. `tinydet.geometry.similarity` has the formulas in numpy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tinydet.geometry.similarity import DOTD_SCALE, EPS, NWD_SCALE
from tinydet.models.assign import Similarity

_SLACK = 1e-5  # relative; similarities are float32


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class NWD:
    """Normalized Wasserstein distance: exp(-W2 / scale). It falls slowly, whatever the size of the object."""

    scale: float = NWD_SCALE  # pixels

    def pairs(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        shift, sides, anchor_sides = _differences(boxes, anchors)
        squared = shift.square().sum(1) + EPS + (sides - anchor_sides).square().sum(1) / 4
        return torch.exp(-squared.sqrt() / self.scale)

    def reach(self, sizes: Tensor, shapes: Tensor, least: Tensor) -> Tensor:
        return _disc(self.scale, least, (sizes - shapes).double().square().sum(2) / 4)


@dataclass(frozen=True)
class DotD:
    """Dot distance: exp(-distance of the centers / scale). All anchors of a cell are equally similar."""

    scale: float = DOTD_SCALE  # pixels

    def pairs(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        shift, _, _ = _differences(boxes, anchors)
        return torch.exp(-(shift.square().sum(1) + EPS).sqrt() / self.scale)

    def reach(self, sizes: Tensor, shapes: Tensor, least: Tensor) -> Tensor:
        return _disc(self.scale, least, least.new_zeros(len(sizes), len(shapes), dtype=torch.float64))


@dataclass(frozen=True)
class RFD:
    """Receptive field distance of RFLA: 1 / (1 + KL), KL the divergence of the anchor's Gaussian from the object's."""

    def pairs(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        shift, sides, anchor_sides = _differences(boxes, anchors)
        ratio = (anchor_sides / sides).square()
        return 1 / (1 + (ratio - ratio.log() - 1 + 4 * (shift / sides).square()).sum(1) / 2)

    def reach(self, sizes: Tensor, shapes: Tensor, least: Tensor) -> Tensor:
        ratio = (shapes / sizes).double().square()
        of_shape = (ratio - ratio.log() - 1).sum(2)
        left = 2 * (1 / least.double() - 1) * (1 + _SLACK) + _SLACK - of_shape  # for 4 * (shift / sides)^2
        return torch.where(left[:, :, None] >= 0, sizes / 2 * left.clamp(min=0).sqrt()[:, :, None], -1.0)


@dataclass(frozen=True)
class SimD:
    """Similarity distance: center and size differences relative to the summed sizes, weighted by `factors` (x, y)."""

    factors: tuple[float, float]

    def pairs(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        shift, sides, anchor_sides = _differences(boxes, anchors)
        weight = boxes.new_tensor(self.factors) / (sides + anchor_sides)
        return torch.exp(-((weight * shift).norm(dim=1) + (weight * (sides - anchor_sides)).norm(dim=1)))

    def reach(self, sizes: Tensor, shapes: Tensor, least: Tensor) -> Tensor:
        unit = (sizes + shapes).double() / sizes.new_tensor(self.factors)  # pixels per unit of distance
        left = -least.double().log() + _SLACK - ((sizes - shapes) / unit).norm(dim=2)
        return torch.where(left[:, :, None] >= 0, unit * left.clamp(min=0)[:, :, None] * (1 + _SLACK), -1.0)


SIMILARITIES: Mapping[str, Similarity] = {"iou": IoU(), "nwd": NWD(), "rfd": RFD(), "dotd": DotD()}


def _differences(boxes: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(P, 4) and (P, 4) -> center differences, sides of the boxes, sides of the anchors, each (P, 2)."""
    shift = ((boxes[:, :2] + boxes[:, 2:]) - (anchors[:, :2] + anchors[:, 2:])) / 2
    return shift, boxes[:, 2:] - boxes[:, :2], anchors[:, 2:] - anchors[:, :2]


def _disc(scale: float, least: Tensor, of_shape: Tensor) -> Tensor:
    """Return the `reach` of exp(-sqrt(squared distance + of_shape) / scale), the same on both axes."""
    radius = -scale * least.double().log() + scale * _SLACK  # (M, 1)
    squared = radius.square() - of_shape * (1 - _SLACK)
    return torch.where(squared >= 0, squared.clamp(min=0).sqrt(), -1.0)[:, :, None].expand(-1, -1, 2)
