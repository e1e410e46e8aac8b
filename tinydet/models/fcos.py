"""FCOS on P2..P6 for tiny objects ("Adaptive FCOS" of the authors' code) and on P3..P7 as in the paper's tables.

Sources: Tian et al., FCOS: Fully Convolutional One-Stage Object Detection (2019); the authors' TinyBenchmark (P3..P7)
and TOV_mmdetection (P2..P6).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSRegressionHead
from torchvision.ops import generalized_box_iou_loss
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

from tinydet.geometry.points import PointDesign, positive_points
from tinydet.models.assign.build import build_assigner
from tinydet.models.assign.ignore_regions import ignored_by_regions
from tinydet.models.backbone_registry import build_backbone
from tinydet.models.batch import Batch, anchors_of
from tinydet.models.detector import Detector, ForeignWeights
from tinydet.models.distributed import sum_over_processes
from tinydet.models.fpn import FPN
from tinydet.models.graphs.points import PointInference
from tinydet.models.losses import focal_loss_by_level
from tinydet.models.options import (
    FCOS_P3P7_POINTS,
    FCOS_POINTS,
    Fusion,
    HeadInit,
    Norm,
    PointAssignment,
    WithoutPoint,
    center_radius_of,
)
from tinydet.models.sparse_head import outputs_at
from tinydet.models.towers import initialize_towers
from tinydet.spec import LARGEST_TILE, ModelSpec

GROUPS = 32  # of the group norms
MAX_LOG_DISTANCE = math.log(LARGEST_TILE)  # limit before exp()
OUTSIDE = 0.01  # pixels; stands for the distance to a side that a point lies beyond, as in RFLA


class PointOutputs(NamedTuple):
    """Raw outputs per level, finest first. Points of a level: rows slowest, then columns."""

    logits: list[Tensor]  # (B, rows * columns, C)
    boxes: list[Tensor]  # (B, rows * columns, 4), see `FCOS.distances`
    centerness: list[Tensor]  # (B, rows * columns) logits


class PointMatches(NamedTuple):
    """Which points learn which objects.

    Attributes:
        positive: (P,) flat indices into the (B * N) points of a batch, N points per image, that learn an object.
        level: (P,) number of the level of each.
        objects: (P,) index of the object into the boxes of the batch.
        distances: (P, 4) from the point to left, top, right and bottom side, in pixels; negative where it is outside.
        ignored: (I,) flat indices of points that learn nothing, not even that they are background.
    """

    positive: Tensor
    level: Tensor
    objects: Tensor
    distances: Tensor
    ignored: Tensor


class FCOSHead(nn.Module):
    """Two towers shared by all levels, and one scale of the box outputs per level; names as in torchvision."""

    def __init__(self, channels: int, classes: int, levels: int, convolutions: int, *, group_norm: bool) -> None:
        super().__init__()
        norm = functools.partial(nn.GroupNorm, groups_of(channels)) if group_norm else nn.Identity
        towers = {"num_anchors": 1, "num_convs": convolutions, "norm_layer": norm}
        self.classification_head = FCOSClassificationHead(channels, num_classes=classes, **towers)
        self.regression_head = FCOSRegressionHead(channels, **towers)
        self.scales = nn.Parameter(torch.ones(levels))


class FCOS(Detector):
    """Adaptive FCOS: P2..P6, center sampling, GIoU, and no norm in the head.

    Its P6 is subsampled from P5, where the authors' is a convolution. Distances are predicted in strides.

    Args:
        classes: number of classes; there is no background channel.
        channels: width of the pyramid and of the head; 256 in the paper.
        alpha, fusion: see `FPN`.
        norm: see `Backbone`.
        head_convs: 3x3 convolutions in each tower; 4 in the paper.
        head_init: see `initialize_towers`.
        assign, assign_rank, assign_background: "points": by the rule of `PointDesign`. Else the similarity of objects
            with the squares of the points decides, see `build_assigner`.
        center_radius: half the side of the center region in strides; 0: the whole box. See `PointDesign`.
        without_point: "nearest" gives an object without a point the nearest one, see `positive_points`.
    """

    design: PointDesign = FCOS_POINTS
    group_norm: ClassVar[bool] = False
    centerness_on_class_tower: ClassVar[bool] = False
    own_tensors: ClassVar[tuple[str, ...]] = ("head.",)  # those of another configuration have other inputs or units
    exponential: ClassVar[bool] = False  # predict the logarithm of a distance in pixels, not the distance in strides

    def __init__(
        self,
        backbone: str,
        classes: int,
        *,
        channels: int = 256,
        alpha: Sequence[float] | None = None,
        fusion: Fusion = "fixed",
        norm: Norm = "frozen",
        head_convs: int = 4,
        head_init: HeadInit = "paper",
        assign: PointAssignment = "points",
        assign_rank: int = 0,
        assign_background: float | None = None,
        center_radius: float = 1.5,
        without_point: WithoutPoint = "nearest",
    ) -> None:
        super().__init__()
        self.design = center_radius_of(self.design, center_radius)
        self.every_object = without_point == "nearest"
        self.assigner = None if assign == "points" else build_assigner(assign, assign_rank, assign_background)
        self.backbone = build_backbone(backbone, norm=norm)
        features = self.backbone.channels[self.first_level :]
        self.fpn = FPN(features, channels, alpha, fusion=fusion, top=self.extra_levels(channels))
        self.head = FCOSHead(channels, classes, len(self.design.levels), head_convs, group_norm=self.group_norm)
        initialize_towers(head_init, self.head.classification_head.conv, self.head.regression_head.conv)

    def extra_levels(self, channels: int) -> ExtraFPNBlock:
        """P6, subsampled from P5."""
        return LastLevelMaxPool()

    def forward(self, images: Tensor) -> PointOutputs:
        """(B, 3, H, W) normalized RGB, H and W multiples of 32 -> the raw outputs of every point."""
        return self.outputs(self.levels(images))

    def outputs(self, levels: Sequence[Tensor]) -> PointOutputs:
        """Run the head on the levels of the pyramid."""
        outputs = PointOutputs([], [], [])
        for level in levels:
            class_tower, box_tower = self.head.classification_head.conv(level), self.head.regression_head.conv(level)
            centered = class_tower if self.centerness_on_class_tower else box_tower
            outputs.logits.append(_by_point(self.head.classification_head.cls_logits(class_tower)))
            outputs.boxes.append(_by_point(self.head.regression_head.bbox_reg(box_tower)))
            outputs.centerness.append(_by_point(self.head.regression_head.bbox_ctrness(centered)).squeeze(2))
        return outputs

    def levels(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> the pyramid levels of `design`, finest first."""
        levels: list[Tensor] = self.fpn(self.backbone(images)[self.first_level :])
        return levels

    def distances(self, raw: Tensor, scale: Tensor | float, stride: Tensor | float) -> Tensor:
        """Decode box outputs (..., 4) to the distances to left, top, right and bottom side in pixels."""
        if self.exponential:
            return (raw * scale).clamp(max=MAX_LOG_DISTANCE).exp()
        return F.relu(raw * scale) * stride

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """See `Detector`. Boxes and centerness are learned by positive points only."""
        size, device = batch.size, batch.images.device
        matches = self.matches(batch)
        regions = ignored_by_regions(batch.regions, batch.region_owner, self.design.squares(), size)
        ignored = torch.cat([matches.ignored, regions])
        logits, raw, centerness = self.predict(self.levels(batch.images), matches.positive)
        with torch.autocast(device.type, enabled=False):
            strides = torch.tensor(self.design.strides, dtype=torch.float32, device=device)
            # (P, levels). Its products are reproducible, unlike the gradient of an index with repetitions.
            of_level = F.one_hot(matches.level, len(strides)).float()
            scale, stride = (of_level @ self.head.scales)[:, None], (of_level @ strides)[:, None]
            predicted = self.distances(raw.float(), scale, stride)
            target = centerness_targets(matches.distances, matches.objects, len(batch.boxes))
            boxes = self.box_loss(predicted, matches.distances) * target
            centered = F.binary_cross_entropy_with_logits(centerness.float(), target, reduction="none")
            classes = focal_loss_by_level(logits, matches.positive, batch.labels[matches.objects], ignored)
            counts = torch.stack([target.new_tensor(len(target)), target.new_tensor(len(batch.images)), target.sum()])
            positives, images, weight = sum_over_processes(counts).unbind()
            losses = {
                "classification": classes / self.class_count(positives, images),
                "regression": (of_level.T @ boxes) / weight.clamp(min=1e-6),
                "centerness": (of_level.T @ centered) / positives.clamp(min=1),
            }
            return {
                f"{name}/{level}": value
                for name, values in losses.items()
                for level, value in zip(self.design.levels, values.unbind(), strict=True)
            }

    def matches(self, batch: Batch) -> PointMatches:
        """Return which points of the batch learn which objects."""
        (height, width), device = batch.size, batch.boxes.device
        points = points_of(self.design, batch.size, device)
        if self.assigner is None:
            sizes = np.tile((width, height), (len(batch.images), 1))
            boxes, owner = batch.boxes.cpu().numpy(), batch.owner.cpu().numpy()
            found = positive_points(self.design, boxes, sizes, owner, every_object=self.every_object)
            positive, level, objects = (torch.from_numpy(each).to(device) for each in found)
            ignored = positive[:0]
        else:
            squares = self.design.squares()
            anchors = anchors_of(squares, batch.size, device)
            positive, objects, ignored = self.assigner(batch.boxes, batch.owner, squares, anchors, batch.size)
            counts = self.design.grids((width, height))[0].prod(axis=1)
            level = torch.bucketize(positive % len(points), torch.from_numpy(counts.cumsum()).to(device), right=True)
        point, box = points[positive % len(points)], batch.boxes[objects]
        distances = torch.cat([point - box[:, :2], box[:, 2:] - point], dim=1)
        return PointMatches(positive, level, objects, distances, ignored)

    def predict(self, levels: Sequence[Tensor], positive: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """Return the logits of every point, and box outputs (P, 4) and centerness logits (P,) of the positive ones.

        The box tower runs only around them.
        """
        head = self.head.regression_head
        *layers, boxes, centered = [
            (conv.weight, conv.bias) for conv in head.modules() if isinstance(conv, nn.Conv2d) and conv.bias is not None
        ]
        layers.append((torch.cat([boxes[0], centered[0]]), torch.cat([boxes[1], centered[1]])))
        outputs = outputs_at(layers, levels, positive, 1)
        classes = self.head.classification_head
        logits = [_by_point(classes.cls_logits(classes.conv(level))) for level in levels]
        return logits, outputs[:, :4], outputs[:, 4]

    def box_loss(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return the loss (P,) of boxes given by their distances (P, 4) in pixels: 1 - GIoU."""
        loss: Tensor = generalized_box_iou_loss(_boxes_of(predicted), _boxes_of(target))
        return loss

    def class_count(self, positives: Tensor, images: Tensor) -> Tensor:
        """Return what the sum of the class loss is divided by: the positive points, at least 1."""
        return positives.clamp(min=1)

    def inference(self, spec: ModelSpec) -> nn.Module:
        """See `Detector`. The scale of a level becomes a constant; the convolution that it scales is shared."""
        constants = zip(self.head.scales.tolist(), self.design.strides, strict=True)
        decoders = [functools.partial(self.distances, scale=scale, stride=stride) for scale, stride in constants]
        return PointInference(self, self.design, decoders, spec)

    def class_layers(self) -> dict[str, tuple[int, int]]:
        return {"head.classification_head.cls_logits": (1, 1)}


class FCOSP3P7(FCOS):
    """FCOS with the paper's configuration: group norm, centerness on the class tower, distances as exp(scale * x).

    The class loss is divided by positive points and images, and boxes are learned by -ln of their IoU, where
    intersection and union gain one pixel each. See `groups_of` for the groups of the norms.
    """

    design = FCOS_P3P7_POINTS
    first_level: ClassVar[int] = 1
    group_norm: ClassVar[bool] = True
    centerness_on_class_tower: ClassVar[bool] = True
    exponential: ClassVar[bool] = True

    def __init__(
        self,
        backbone: str,
        classes: int,
        *,
        center_radius: float = 0.0,
        without_point: WithoutPoint = "none",
        **options: Any,
    ) -> None:
        super().__init__(backbone, classes, center_radius=center_radius, without_point=without_point, **options)

    def extra_levels(self, channels: int) -> ExtraFPNBlock:
        """P6 and P7, two convolutions on P5."""
        return LastLevelP6P7(channels, channels)

    def predict(self, levels: Sequence[Tensor], positive: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """See `FCOS`. The towers run on whole levels, which group norm needs."""
        logits, boxes, centerness = self.outputs(levels)
        return logits, torch.cat(boxes, 1).flatten(0, 1)[positive], torch.cat(centerness, 1).flatten()[positive]

    def box_loss(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return the loss (P,) of boxes given by their distances (P, 4) in pixels: -ln((I + 1) / (U + 1))."""
        intersection = _area(torch.minimum(predicted, target))
        union = _area(predicted) + _area(target) - intersection
        loss: Tensor = torch.log((union + 1) / (intersection + 1))
        return loss

    def class_count(self, positives: Tensor, images: Tensor) -> Tensor:
        """Return what the sum of the class loss is divided by: positive points and images."""
        return positives + images

    @staticmethod
    def from_torchvision(weights: dict[str, Tensor]) -> ForeignWeights | None:
        """Take towers and class layer; torchvision predicts boxes in strides and centerness on the box tower."""
        if "head.regression_head.bbox_ctrness.weight" not in weights:
            return None
        new = ("head.regression_head.bbox_reg.", "head.regression_head.bbox_ctrness.")
        taken = {name: value for name, value in weights.items() if not name.startswith(new)}
        return ForeignWeights(taken, len(weights["head.classification_head.cls_logits.bias"]), FCOSP3P7.first_level)


def groups_of(channels: int) -> int:
    """Return the number of groups of a group norm: 32, or fewer that divide the channels, of two or more each.

    A group of one channel has a single value on a level of one cell, which has no variance.

    >>> groups_of(256), groups_of(64), groups_of(32), groups_of(48), groups_of(7)
    (32, 32, 16, 16, 1)
    """
    groups = math.gcd(channels, GROUPS)
    return groups if groups < channels else max(channels // 2, 1)


@functools.lru_cache(maxsize=8)
def points_of(design: PointDesign, size: tuple[int, int], device: torch.device) -> Tensor:
    """Return the (N, 2) points of all levels for a padded size, finest first, on `device`; cached."""
    with torch.inference_mode(False):  # a cached tensor must also be usable in training
        return torch.from_numpy(np.concatenate(design.points(*size))).to(device)


def centerness_targets(distances: Tensor, objects: Tensor, count: int) -> Tensor:
    """Return the centerness (P,): 1 at the center of an object, 0 at its sides.

    For a point outside its object, the distance to a side that it lies beyond counts as `OUTSIDE`. But if no point is
    inside an object, its nearest point has the target 1: no other can find the object.

    Args:
        distances: (P, 4), see `PointMatches`; `objects`: (P,) index of each point's object, below `count`.
    """
    low = torch.minimum(distances[:, :2], distances[:, 2:])
    high = torch.maximum(distances[:, :2], distances[:, 2:])
    low, high = (torch.where(each > 0, each, OUTSIDE) for each in (low, high))
    centerness = (low / high).prod(dim=1).sqrt()
    inside = (distances > 0).all(dim=1)
    with_point = torch.zeros(count, dtype=torch.bool, device=objects.device).index_fill(0, objects[inside], True)
    offset = ((distances[:, :2] - distances[:, 2:]) / 2).square().sum(dim=1)
    nearest = offset.new_full((count,), math.inf).scatter_reduce(0, objects, offset, "amin")
    only = ~with_point[objects] & (offset == nearest[objects])
    return torch.where(only, 1.0, centerness)


def _by_point(level: Tensor) -> Tensor:
    """(B, V, rows, columns) -> (B, rows * columns, V)."""
    return level.permute(0, 2, 3, 1).flatten(1, 2)


def _boxes_of(distances: Tensor) -> Tensor:
    """Distances (P, 4) to the sides -> boxes (P, 4) xyxy relative to the point."""
    return torch.cat([-distances[:, :2], distances[:, 2:]], dim=1)


def _area(distances: Tensor) -> Tensor:
    """Distances (P, 4) to the sides -> areas (P,)."""
    return (distances[:, :2] + distances[:, 2:]).clamp(min=0).prod(dim=1)
