"""The feature pyramid with a fusion factor (Eq. 1), and the same pyramid with the factor folded away.

    P'_i = inner_i(C_i) + alpha_i * upsample(P'_{i+1})        P_i = layer_i(P'_i)        P6 = P5 subsampled

The merged feature P' is what travels down, so the factors multiply along the way.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FUSED_EDGES = ("P3->P2", "P4->P3", "P5->P4")


class PlainFPN(nn.Module):
    """The conventional pyramid: C2..C5 in, P2..P6 out, finest first; `channels` maps on each level.

    Weights start as in the FPN paper's code: kaiming_uniform(a=1), biases 0. Inputs must have sides that are
    multiples of 32, so that every level is exactly twice the next.

    Args:
        edges: for each fused edge, finest first, whether it is there. An edge with alpha = 0 is deleted.
    """

    edges: tuple[bool, ...]

    def __init__(self, in_channels: Sequence[int], channels: int, edges: Sequence[bool] = (True, True, True)) -> None:
        super().__init__()
        if len(edges) != len(in_channels) - 1:
            raise ValueError(f"{len(in_channels)} levels have {len(in_channels) - 1} fused edges, got {tuple(edges)}")
        self.edges = tuple(edges)
        self.inner = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in in_channels)
        self.layer = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)
        for conv in (*_convolutions(self.inner), *_convolutions(self.layer)):
            nn.init.kaiming_uniform_(conv.weight, a=1)
            nn.init.zeros_(_bias(conv))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """(B, c_i, H / 2^i, W / 2^i) for C2..C5 -> (B, channels, same sizes) for P2..P5, then P6 at half of P5."""
        merged = self.inner[-1](features[-1])
        outputs = [self.layer[-1](merged)]
        for i in reversed(range(len(features) - 1)):
            lateral = self.inner[i](features[i])
            merged = self.merge(i, lateral, merged) if self.edges[i] else lateral
            outputs.insert(0, self.layer[i](merged))
        outputs.append(F.max_pool2d(outputs[-1], kernel_size=1, stride=2))
        return outputs

    def merge(self, i: int, lateral: Tensor, deeper: Tensor) -> Tensor:
        return lateral + F.interpolate(deeper, scale_factor=2.0, mode="nearest")


class FusionFPN(PlainFPN):
    """The pyramid whose deeper level is weighed by alpha, a buffer that travels with the weights.

    Loading is strict: weights of a plain pyramid lack `alpha` and are refused, and the reverse.

    Args:
        alpha: one factor for each fused edge, finest first: P3->P2, P4->P3, P5->P4. None: 1 everywhere.
    """

    alpha: Tensor

    def __init__(self, in_channels: Sequence[int], channels: int, alpha: Sequence[float] | None = None) -> None:
        super().__init__(in_channels, channels, edges=(True,) * (len(in_channels) - 1))
        factors = tuple(alpha) if alpha is not None else (1.0,) * (len(in_channels) - 1)
        if len(factors) != len(in_channels) - 1:
            raise ValueError(
                f"{len(in_channels)} levels have {len(in_channels) - 1} fused edges, "
                f"but alpha has {len(factors)} values: {factors}"
            )
        self.register_buffer("alpha", torch.tensor(factors, dtype=torch.float32))

    def merge(self, i: int, lateral: Tensor, deeper: Tensor) -> Tensor:
        return lateral + self.alpha[i] * F.interpolate(deeper, scale_factor=2.0, mode="nearest")


@torch.no_grad()
def fold_alpha(fpn: FusionFPN) -> PlainFPN:
    """A plain pyramid with the same outputs: alpha dissolved into the convolutions (paper section 3.3).

    Scaled merged features Q_i = s_i P'_i obey the plain recursion when s_{i+1} = s_i alpha_i, so inner_i is
    multiplied by s_i (weights and bias) and the weights of layer_i are divided by it. One power of two is free;
    it is chosen to keep the smallest weight scale as large as can be, for FP16. Computed in float64, rounded
    once; exact where every alpha is a power of two. An edge with alpha = 0 is deleted and the scales start anew.
    """
    alpha = fpn.alpha.double().tolist()
    inner, layer = _convolutions(fpn.inner), _convolutions(fpn.layer)
    folded = PlainFPN([conv.in_channels for conv in inner], layer[0].out_channels, edges=[a != 0.0 for a in alpha])
    folded.to(device=inner[0].weight.device, dtype=inner[0].weight.dtype)
    folded.train(fpn.training)
    new_inner, new_layer = _convolutions(folded.inner), _convolutions(folded.layer)
    for group in _connected_levels(alpha):
        scales = [1.0]
        for i in group[:-1]:
            scales.append(scales[-1] * alpha[i])
        free = _best_power_of_two([inner[i].weight for i in group], [layer[i].weight for i in group], scales)
        for i, s in zip(group, scales, strict=True):
            scale = free * s
            new_inner[i].weight.copy_(inner[i].weight.double() * scale)
            _bias(new_inner[i]).copy_(_bias(inner[i]).double() * scale)
            new_layer[i].weight.copy_(layer[i].weight.double() / scale)
            _bias(new_layer[i]).copy_(_bias(layer[i]))
    return folded


def _connected_levels(alpha: Sequence[float]) -> list[list[int]]:
    """Runs of level indices that are joined by edges with alpha != 0."""
    groups = [[0]]
    for i, a in enumerate(alpha):
        if a == 0.0:
            groups.append([])
        groups[-1].append(i + 1)
    return groups


def _best_power_of_two(inner: Sequence[Tensor], layer: Sequence[Tensor], scales: Sequence[float]) -> float:
    """The g = 2^k that maximises the smallest root mean square of the scaled weights."""

    inner_size, layer_size = ([float(w.double().square().mean().sqrt()) for w in side] for side in (inner, layer))

    def smallest(g: float) -> float:
        up = [size * abs(g * s) for size, s in zip(inner_size, scales, strict=True)]
        down = [size / abs(g * s) for size, s in zip(layer_size, scales, strict=True)]
        return min(*up, *down)

    return max((2.0**k for k in sorted(range(-30, 31), key=abs)), key=smallest)


def _convolutions(modules: nn.ModuleList) -> list[nn.Conv2d]:
    return [module for module in modules if isinstance(module, nn.Conv2d)]


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias
