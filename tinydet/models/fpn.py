"""The feature pyramid network with a fusion factor (Eq. 1).

    P'_i = inner_i(C_i) + alpha_i * upsample(P'_{i+1})        P_i = layer_i(P'_i)

The merged feature P' is passed down, so the factors multiply along the way. `tinydet.models.folding` folds alpha into
the convolutions for deployment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, FeaturePyramidNetwork

from tinydet.models.options import FUSIONS, Fusion


class PlainFPN(nn.Module):
    """The conventional pyramid: features of increasing stride in, one level per feature plus those of `top` out.

    Takes a sequence and returns a list, finest first; or takes a mapping and returns one, as torchvision's FPN does.
    Weights are initialized as in the FPN paper's code: kaiming_uniform(a=1), biases 0.

    Args:
        in_channels: channels of the features, finest first.
        channels: channels of every level.
        top: computes extra coarser levels from the finished ones, in torchvision's protocol (`LastLevelMaxPool`: P6 is
            P5 subsampled; `LastLevelP6P7`: two convolutions). None: no extra levels.
        edges: for each fused edge, finest first, whether it exists.
    """

    edges: tuple[bool, ...]

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        *,
        top: ExtraFPNBlock | None = None,
        edges: Sequence[bool] | None = None,
    ) -> None:
        super().__init__()
        self.edges = (True,) * (len(in_channels) - 1) if edges is None else tuple(edges)
        if len(self.edges) != len(in_channels) - 1:
            raise ValueError(f"{len(in_channels)} levels have {len(in_channels) - 1} fused edges, got {self.edges}")
        self.inner = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in in_channels)
        self.layer = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)
        self.top = top
        for conv in (*self.inner, *self.layer):
            assert isinstance(conv, nn.Conv2d) and conv.bias is not None
            nn.init.kaiming_uniform_(conv.weight, a=1)
            nn.init.zeros_(conv.bias)

    def forward(self, features: Sequence[Tensor] | Mapping[str, Tensor]) -> Any:
        """(B, c_i, H_i, W_i) per feature -> (B, channels, H_i, W_i) per level, then the levels of `top`."""
        names: list[str] = []
        inputs: list[Tensor] = []
        if isinstance(features, Mapping):
            names, inputs = list(features.keys()), list(features.values())
        else:
            inputs = list(features)
        merged = self.inner[-1](inputs[-1])
        outputs = [self.layer[-1](merged)]
        for i in reversed(range(len(inputs) - 1)):
            lateral = self.inner[i](inputs[i])
            merged = self.merge(i, lateral, _upsample(merged, lateral)) if self.edges[i] else lateral
            outputs.insert(0, self.layer[i](merged))
        if self.top is not None:
            outputs, names = self.top(outputs, inputs, names)
        return dict(zip(names, outputs, strict=True)) if isinstance(features, Mapping) else outputs

    def merge(self, i: int, lateral: Tensor, deeper: Tensor) -> Tensor:
        """Merge edge `i`: `lateral` of the finer level with the upsampled feature of the deeper one."""
        return lateral + deeper


class FPN(PlainFPN):
    """The pyramid that weighs the deeper level by alpha. Alpha is saved with the weights.

    Loading is strict: weights of a plain pyramid lack `alpha` and are refused, and vice versa.

    Use it in any torchvision detector, with equal outputs at alpha = 1 (`FPN.from_torchvision`):

        model = torchvision.models.detection.retinanet_resnet50_fpn()
        model.backbone.fpn = FPN.from_torchvision(model.backbone.fpn, alpha=(0.37, 0.39))

    Args:
        in_channels, channels, top: see `PlainFPN`.
        alpha: one factor per fused edge, finest first: P3->P2, P4->P3, P5->P4. None: 1 everywhere.
        fusion: where the factors come from, see `Fusion` in `tinydet.models.options`. "fixed" keeps them in a buffer,
            (edges,); "one", "three" and "channel" in a parameter, (1,), (edges,) and (edges, channels); "attention" has
            a small network per edge.
    """

    alpha: Tensor

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        alpha: Sequence[float] | None = None,
        *,
        fusion: Fusion = "fixed",
        top: ExtraFPNBlock | None = None,
    ) -> None:
        super().__init__(in_channels, channels, top=top)
        edges = len(in_channels) - 1
        factors = tuple(alpha) if alpha is not None else (1.0,) * edges
        if len(factors) != edges:
            raise ValueError(
                f"{len(in_channels)} levels have {edges} fused edges, but alpha has {len(factors)} values: {factors}"
            )
        self.fusion = fusion
        start = torch.tensor(factors, dtype=torch.float32)
        match fusion:
            case "fixed":
                self.register_buffer("alpha", start)
            case "one":
                self.alpha = nn.Parameter(start.mean().reshape(1))
            case "three":
                self.alpha = nn.Parameter(start)
            case "channel":
                self.alpha = nn.Parameter(start[:, None].repeat(1, channels))
            case "attention":
                self.attention = nn.ModuleList(EdgeAttention(channels) for _ in factors)
            case other:
                raise ValueError(f"unknown fusion {other!r}; choose one of: {', '.join(FUSIONS)}")

    @classmethod
    def from_torchvision(
        cls, fpn: FeaturePyramidNetwork, alpha: Sequence[float] | float = 1.0, *, fusion: Fusion = "fixed"
    ) -> FPN:
        """Build an FPN that shares the blocks of a torchvision FPN and weighs the deeper levels by alpha.

        At alpha = 1 the outputs are those of `fpn`. Takes and returns mappings as `fpn` does. Undo with
        `fold_alpha(...).to_torchvision()`.

        Args:
            alpha: one factor for all edges, or one per edge, finest first.
        """
        inner = [_without_wrapper(block) for block in fpn.inner_blocks]
        layer = [_without_wrapper(block) for block in fpn.layer_blocks]
        convolutions = [first_convolution(block) for block in (*inner, *layer)]
        in_channels = [conv.in_channels for conv in convolutions[: len(inner)]]
        factors = (float(alpha),) * (len(inner) - 1) if isinstance(alpha, int | float) else alpha
        made = cls(in_channels, convolutions[-1].out_channels, factors, fusion=fusion, top=fpn.extra_blocks)
        made.inner, made.layer = nn.ModuleList(inner), nn.ModuleList(layer)
        return made.to(convolutions[0].weight.device).train(fpn.training)

    def merge(self, i: int, lateral: Tensor, deeper: Tensor) -> Tensor:
        return lateral + self.factor(i, lateral, deeper) * deeper

    def factor(self, i: int, lateral: Tensor, deeper: Tensor) -> Tensor:
        """Return the factor of edge `i`: a scalar, (C, 1, 1) or (B, 1, 1, 1)."""
        match self.fusion:
            case "one":
                return self.alpha[0]
            case "channel":
                return self.alpha[i].view(-1, 1, 1)
            case "attention":
                attended: Tensor = self.attention[i](lateral, deeper)
                return attended
            case _:
                return self.alpha[i]


class EdgeAttention(nn.Module):
    """Attention alpha of one edge: one factor per image, computed from both levels.

    The paper's Fig. 6 gives no details and its code was not released, so this is our own design. Both features are
    averaged over the image, two layers reduce the means to one number, and 2 * sigmoid bounds it. The last layer starts
    at zero, so every factor starts at 1.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(2 * channels, max(channels // 4, 1))
        self.excite = nn.Linear(max(channels // 4, 1), 1)
        nn.init.zeros_(self.excite.weight)
        nn.init.zeros_(self.excite.bias)

    def forward(self, lateral: Tensor, deeper: Tensor) -> Tensor:
        """(B, C, H, W) each -> (B, 1, 1, 1) in 0..2."""
        means = torch.cat([lateral.mean(dim=(2, 3)), deeper.mean(dim=(2, 3))], dim=1)
        factor: Tensor = 2 * self.excite(F.relu(self.squeeze(means))).sigmoid()
        return factor[:, :, None, None]


@torch.no_grad()
def initialize_sigma_power(fpn: PlainFPN, sigma: float) -> None:
    """Apply the sigma-power initialization of section 3.3: multiply inner_i by sigma^(i-2), divide layer_i by it.

    With alpha = 1 the pyramid then starts like one with alpha = sigma, but it does not learn like it: the learning
    rates of these convolutions would have to be scaled too.
    """
    if not sigma > 0:
        raise ValueError(f"sigma must be above 0, got {sigma}")
    for level, (inner, layer) in enumerate(zip(fpn.inner, fpn.layer, strict=True)):
        assert isinstance(inner, nn.Conv2d) and isinstance(layer, nn.Conv2d) and inner.bias is not None
        inner.weight.mul_(sigma**level)
        inner.bias.mul_(sigma**level)
        layer.weight.div_(sigma**level)


def first_convolution(block: nn.Module) -> nn.Conv2d:
    """Return the convolution of a pyramid block: the block itself, or the first part of convolution and norm."""
    return next(module for module in block.modules() if isinstance(module, nn.Conv2d))


def _upsample(deeper: Tensor, finer: Tensor) -> Tensor:
    """Nearest-neighbor upsampling to the size of `finer`, by a constant factor where it is exactly twice as large."""
    if finer.shape[2] == 2 * deeper.shape[2] and finer.shape[3] == 2 * deeper.shape[3]:
        return F.interpolate(deeper, scale_factor=2.0, mode="nearest")
    return F.interpolate(deeper, size=finer.shape[2:], mode="nearest")


def _without_wrapper(block: nn.Module) -> nn.Module:
    """A convolution alone instead of a Sequential of one."""
    return block[0] if isinstance(block, nn.Sequential) and len(block) == 1 else block
