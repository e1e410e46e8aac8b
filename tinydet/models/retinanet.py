"""RetinaNet on P2..P6 for tiny objects (RetinaNet† of the paper, "Adaptive RetinaNet" of its code) and on P3..P7."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

from tinydet.geometry.anchors import AnchorDesign
from tinydet.models.assign import Assigner
from tinydet.models.assign.build import build_assigner
from tinydet.models.assign.ignore_regions import ignored_by_regions
from tinydet.models.backbone_registry import build_backbone
from tinydet.models.batch import Batch, anchors_of
from tinydet.models.box_coder import CODER_WEIGHTS
from tinydet.models.detector import Detector, ForeignWeights
from tinydet.models.fpn import FPN
from tinydet.models.graphs.one_stage import AnchorInference
from tinydet.models.losses import retinanet_loss
from tinydet.models.options import (
    RETINANET_ANCHORS,
    RETINANET_P3P7_ANCHORS,
    Assignment,
    Fusion,
    HeadInit,
    Norm,
    RetinaNetOptions,
)
from tinydet.models.sparse_head import deltas_at
from tinydet.models.towers import initialize_towers
from tinydet.spec import ModelSpec


class HeadOutputs(NamedTuple):
    """Raw outputs per level, finest first. Anchors of a level: rows slowest, then columns, then shapes of a cell."""

    logits: list[Tensor]  # (B, rows * columns * A, C)
    deltas: list[Tensor]  # (B, rows * columns * A, 4)


class RetinaNet(Detector):
    """Backbone, fusion pyramid, and one head shared by the five levels.

    Args:
        classes: number of classes. There is no background channel: it would double the logits of a single class.
        channels: width of the pyramid and of the head; 256 in the paper.
        head_convs: 3x3 convolutions in each of the two towers; 4 in the paper.
        head_init: see `initialize_towers`.
        alpha, fusion: see `FPN`.
        norm: see `Backbone`.
        assign, assign_rank, assign_background: see `AssignOptions`.

    Attributes:
        assigner: decides which anchors learn which objects.
    """

    design: AnchorDesign = RETINANET_ANCHORS.design()

    def __init__(
        self,
        backbone: str,
        classes: int,
        *,
        channels: int = 256,
        head_convs: int = 4,
        alpha: Sequence[float] | None = None,
        fusion: Fusion = "fixed",
        head_init: HeadInit = "paper",
        norm: Norm = "frozen",
        assign: Assignment = "iou",
        assign_rank: int = 0,
        assign_background: float | None = None,
    ) -> None:
        super().__init__()
        self.backbone = build_backbone(backbone, norm=norm)
        features = self.backbone.channels[self.first_level :]
        self.fpn = FPN(features, channels, alpha, fusion=fusion, top=self.extra_levels(channels))
        self.head = RetinaNetHead(channels, len(self.design.shapes[0]), classes)
        self.assigner: Assigner = build_assigner(
            assign, assign_rank, assign_background, iou_thresholds=RetinaNetOptions.iou_thresholds
        )
        for branch in (self.head.classification_head, self.head.regression_head):
            branch.conv = branch.conv[:head_convs]  # torchvision builds four
        initialize_towers(head_init, self.head.classification_head.conv, self.head.regression_head.conv)

    def extra_levels(self, channels: int) -> ExtraFPNBlock:
        """P6, subsampled from P5."""
        return LastLevelMaxPool()

    def forward(self, images: Tensor) -> HeadOutputs:
        """(B, 3, H, W) normalized RGB, H and W multiples of 32 -> logits and box offsets of every anchor."""
        levels = self.levels(images)
        return HeadOutputs(
            [self.head.classification_head([level]) for level in levels],
            [self.head.regression_head([level]) for level in levels],
        )

    def levels(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> the pyramid levels of `design`, finest first."""
        levels: list[Tensor] = self.fpn(self.backbone(images)[self.first_level :])
        return levels

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """See `Detector`. Boxes are predicted only at the anchors that learn one."""
        design, size = self.design, batch.size
        anchors = anchors_of(design, size, batch.images.device)
        matches = self.assigner(batch.boxes, batch.owner, design, anchors, size)
        ignored = ignored_by_regions(batch.regions, batch.region_owner, design, size)
        levels = self.levels(batch.images)
        logits = [self.head.classification_head([level]) for level in levels]
        deltas = deltas_at(self.head.regression_head, levels, matches.positive, len(design.shapes[0]))
        with torch.autocast(batch.images.device.type, enabled=False):
            return retinanet_loss(logits, deltas, anchors, matches, batch.boxes, batch.labels, ignored, design.levels)

    def inference(self, spec: ModelSpec) -> nn.Module:
        return AnchorInference(self, self.design, spec)

    def class_layers(self) -> dict[str, tuple[int, int]]:
        return {"head.classification_head.cls_logits": (len(self.design.shapes[0]), 1)}

    @staticmethod
    def from_torchvision(weights: dict[str, Tensor]) -> ForeignWeights | None:
        """Reorder the anchors of a cell and apply our box coder weights (torchvision's RetinaNet codes with 1)."""
        head = "head.regression_head"
        if f"{head}.bbox_reg.weight" not in weights or f"{head}.bbox_ctrness.weight" in weights:  # FCOS
            return None
        converted = dict(weights)
        for part in ("weight", "bias"):
            key = f"head.regression_head.bbox_reg.{part}"
            boxes = _ratios_fastest(weights[key], 4)
            coder = boxes.new_tensor(CODER_WEIGHTS).repeat(len(boxes) // 4)
            converted[key] = boxes * coder.view(-1, *[1] * (boxes.dim() - 1))
            key = f"head.classification_head.cls_logits.{part}"
            converted[key] = _ratios_fastest(weights[key], len(weights[key]) // 9)
        rows = len(converted["head.classification_head.cls_logits.bias"]) // 9
        return ForeignWeights(converted, rows, RetinaNetP3P7.first_level)


class RetinaNetP3P7(RetinaNet):
    """RetinaNet on the levels it was published with, and with anchors as small as on P2..P6.

    The smallest anchor of a level is as wide as its cell. Two edges are fused, P4->P3 and P5->P4; P6 and P7 are
    convolutions on P5, as in torchvision, whose weights fit.
    """

    design = RETINANET_P3P7_ANCHORS.design()
    first_level: ClassVar[int] = 1

    def extra_levels(self, channels: int) -> ExtraFPNBlock:
        """P6 and P7, two convolutions on P5."""
        return LastLevelP6P7(channels, channels)


def _ratios_fastest(layer: Tensor, channels: int) -> Tensor:
    """Reorder three ratios times three octaves from torchvision's order (octaves fastest) to ours (ratios fastest)."""
    return layer.view(3, 3, channels, *layer.shape[1:]).transpose(0, 1).reshape(layer.shape)
