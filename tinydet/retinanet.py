"""RetinaNet on P2..P6 for tiny objects: "RetinaNet with dagger" of the paper, "Adaptive RetinaNet" of its code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor, nn
from torchvision.models.detection.retinanet import RetinaNetHead

from tinydet.anchors import RETINANET, AnchorDesign
from tinydet.backbone import Backbone, Norm
from tinydet.fpn import Fusion, FusionFPN, PlainFPN

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
        fusion: where the factors come from, see `tinydet.fpn.Fusion`.
    """

    design: AnchorDesign = RETINANET

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
        self.fpn: PlainFPN = FusionFPN(self.backbone.channels, channels, alpha, fusion=fusion)
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
        levels = self.fpn(features)
        return HeadOutputs(
            [self.head.classification_head([level]) for level in levels],
            [self.head.regression_head([level]) for level in levels],
        )
