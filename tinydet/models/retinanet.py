"""RetinaNet on P2..P6 for tiny objects ("RetinaNet with dagger" of the paper, "Adaptive RetinaNet" of its code), and
on the conventional P3..P7 (the paper's without dagger)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from tinydet.geometry.anchors import RETINANET, RETINANET_P3P7, AnchorDesign
from tinydet.models.backbone import Backbone, Norm
from tinydet.models.batch import Batch, targets_of
from tinydet.models.fpn import Fusion, FusionFPN, PlainFPN
from tinydet.models.losses import Losses
from tinydet.models.sparse_head import deltas_at

HeadInit = Literal["paper", "he"]


class HeadOutputs(NamedTuple):
    """Raw answers per level, finest first. Anchors of a level run by rows of cells, the shapes of a cell innermost."""

    logits: list[Tensor]  # (B, rows * columns * A, C)
    deltas: list[Tensor]  # (B, rows * columns * A, 4)


class RetinaNet(nn.Module):
    """Backbone, fusion pyramid, and one head shared by the five levels.

    Args:
        classes: number of classes. There is no background channel: it would double the logits of a single class.
        channels: width of the pyramid and of the head; 256 in the paper.
        head_convs: 3x3 convolutions in each of the two towers; 4 in the paper.
        head_init: how the towers start. "paper": N(0, 0.01), made for 256 channels; four thin layers of it let nothing
            through, and hundreds of steps pass before they do. "he": variance kept from layer to layer.
        alpha: fusion factors, finest first; None: a conventional pyramid's 1.
        fusion: where the factors come from, see `tinydet.models.fpn.Fusion`.
    """

    design: AnchorDesign = RETINANET
    first_level = 0  # of the backbone's C2..C5 that the pyramid takes

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
    ) -> None:
        super().__init__()
        self.backbone = Backbone(backbone, norm=norm)
        self.fpn: PlainFPN = FusionFPN(self.backbone.channels[self.first_level :], channels, alpha, fusion=fusion)
        self.head = RetinaNetHead(channels, len(self.design.shapes[0]), classes)
        for branch in (self.head.classification_head, self.head.regression_head):
            branch.conv = branch.conv[:head_convs]  # torchvision builds four
            for layer in branch.conv.modules():
                if isinstance(layer, nn.Conv2d) and head_init == "he":
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, images: Tensor) -> HeadOutputs:
        """(B, 3, H, W) normalised RGB, H and W multiples of 32 -> logits and box offsets of every anchor."""
        return self.outputs(self.backbone(images))

    def outputs(self, features: Sequence[Tensor]) -> HeadOutputs:
        """C2..C5 of the backbone -> logits and box offsets of every anchor."""
        levels = self.pyramid(features)
        return HeadOutputs(
            [self.head.classification_head([level]) for level in levels],
            [self.head.regression_head([level]) for level in levels],
        )

    def pyramid(self, features: Sequence[Tensor]) -> list[Tensor]:
        """C2..C5 -> the levels of `design`, finest first."""
        levels: list[Tensor] = self.fpn(features)
        return levels

    def loss(self, batch: Batch) -> Losses:
        """The loss of one batch, by level. Under autocast the network alone takes part in it.

        Boxes are asked for where an anchor learns one, and nowhere else.
        """
        targets = targets_of(batch, self.design)
        levels = self.pyramid(self.backbone(batch.images))
        logits = [self.head.classification_head([level]) for level in levels]
        deltas = deltas_at(self.head.regression_head, levels, targets.matches.positive, len(self.design.shapes[0]))
        with torch.autocast(batch.images.device.type, enabled=False):
            return targets.loss(logits, deltas, batch)


class RetinaNetP3P7(RetinaNet):
    """RetinaNet on the levels that it was published with, and anchors as small as on P2..P6: the smallest anchor of a
    level is as wide as its cell. Two edges are fused, P4->P3 and P5->P4; P6 and P7 are convolutions on P5, as in
    torchvision's, whose weights fit.
    """

    design = RETINANET_P3P7
    first_level = 1

    def __init__(self, backbone: str, classes: int, *, channels: int = 256, **others: Any) -> None:
        super().__init__(backbone, classes, channels=channels, **others)
        self.extra = LastLevelP6P7(channels, channels)

    def pyramid(self, features: Sequence[Tensor]) -> list[Tensor]:
        """C2..C5 -> P3..P7."""
        *levels, _ = self.fpn(features[self.first_level :])  # what is pooled from P5 is the P6 of P2..P6
        p6 = self.extra.p6(levels[-1])
        return [*levels, p6, self.extra.p7(F.relu(p6))]
