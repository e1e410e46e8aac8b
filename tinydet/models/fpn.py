"""The feature pyramid with a fusion factor (Eq. 1), and the same pyramid with the factor folded away.

    P'_i = inner_i(C_i) + alpha_i * upsample(P'_{i+1})        P_i = layer_i(P'_i)        P6 = P5 subsampled

The merged feature P' is what travels down, so the factors multiply along the way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# fixed: given or counted (S-alpha). one, three: learned scalars. channel: learned for each channel. attention: from the
# features themselves. All start at the given alpha, the last at 1.
Fusion = Literal["fixed", "one", "three", "channel", "attention"]
FUSIONS: tuple[Fusion, ...] = get_args(Fusion)

ZERO = 1e-3  # an |alpha| below it is taken for 0: its inverse would leave the range of FP16
# Root mean square of the weights of a convolution below which FP16 would round a good part of them to subnormals.
SMALLEST_WEIGHT = 4 * torch.finfo(torch.float16).tiny


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
            if self.edges[i]:
                merged = self.merge(i, lateral, F.interpolate(merged, scale_factor=2.0, mode="nearest"))
            else:
                merged = lateral
            outputs.insert(0, self.layer[i](merged))
        outputs.append(F.max_pool2d(outputs[-1], kernel_size=1, stride=2))
        return outputs

    def merge(self, i: int, lateral: Tensor, deeper: Tensor) -> Tensor:
        return lateral + deeper


class FoldedFPN(PlainFPN):
    """A plain pyramid that came out of `fold_alpha`; where folding would leave FP16's range an edge keeps a factor.

    Args:
        kept: factors that stay in the graph, by number of the edge: scalars, or (channels, 1, 1).
    """

    def __init__(
        self, in_channels: Sequence[int], channels: int, edges: Sequence[bool], kept: dict[int, Tensor]
    ) -> None:
        super().__init__(in_channels, channels, edges)
        self.kept = tuple(sorted(kept))
        for i, factor in kept.items():
            self.register_buffer(f"factor{i}", factor.float())

    def merge(self, i: int, lateral: Tensor, deeper: Tensor) -> Tensor:
        return lateral + (getattr(self, f"factor{i}") * deeper if i in self.kept else deeper)


class FusionFPN(PlainFPN):
    """The pyramid whose deeper level is weighed by alpha; alpha travels with the weights.

    Loading is strict: weights of a plain pyramid lack `alpha` and are refused, and the reverse.

    Args:
        alpha: one factor for each fused edge, finest first: P3->P2, P4->P3, P5->P4. None: 1 everywhere. Learned
            factors start there.
        fusion: where the factors come from, see `Fusion`. "fixed" keeps them in a buffer, (3,); "one", "three" and
            "channel" in a parameter, (1,), (3,) and (3, channels); "attention" has none, but a small network for
            each edge.
    """

    alpha: Tensor

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        alpha: Sequence[float] | None = None,
        *,
        fusion: Fusion = "fixed",
    ) -> None:
        super().__init__(in_channels, channels, edges=(True,) * (len(in_channels) - 1))
        factors = tuple(alpha) if alpha is not None else (1.0,) * (len(in_channels) - 1)
        if len(factors) != len(in_channels) - 1:
            raise ValueError(
                f"{len(in_channels)} levels have {len(in_channels) - 1} fused edges, "
                f"but alpha has {len(factors)} values: {factors}"
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
                raise ValueError(f"unknown fusion {other!r}; one of: {', '.join(FUSIONS)}")

    def merge(self, i: int, lateral: Tensor, deeper: Tensor) -> Tensor:
        return lateral + self.factor(i, lateral, deeper) * deeper

    def factor(self, i: int, lateral: Tensor, deeper: Tensor) -> Tensor:
        """What edge `i` is weighed by: a scalar, (C, 1, 1), or (B, 1, 1, 1)."""
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
    """atten-alpha of one edge: a factor for each image, from what both levels hold.

    The paper's Fig. 6 is not public; this is our design. Both features are averaged over the image; two layers make one
    number of the means; 2 * sigmoid bounds it. The last layer starts at zero, so that every factor starts at 1.
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
def initialise_sigma_power(fpn: PlainFPN, sigma: float) -> None:
    """The sigma-power initialisation of section 3.3: inner_i times sigma^(i-2), the weights of layer_i divided by it.

    With alpha = 1 the pyramid then starts as one with alpha = sigma would, but it does not learn like it: the rates of
    these convolutions would have to be scaled too.
    """
    if not sigma > 0:
        raise ValueError(f"sigma must be above 0, got {sigma}")
    for level, (inner, layer) in enumerate(zip(_convolutions(fpn.inner), _convolutions(fpn.layer), strict=True)):
        inner.weight.mul_(sigma**level)
        _bias(inner).mul_(sigma**level)
        layer.weight.div_(sigma**level)


@torch.no_grad()
def freeze_attention(fpn: FusionFPN, alpha: Sequence[float]) -> FusionFPN:
    """The same pyramid with fixed factors (the mean of what attention gave on a data set) in place of attention."""
    inner, layer = _convolutions(fpn.inner), _convolutions(fpn.layer)
    frozen = FusionFPN([conv.in_channels for conv in inner], layer[0].out_channels, alpha)
    weights = {key: value for key, value in fpn.state_dict().items() if not key.startswith(("attention.", "alpha"))}
    frozen.load_state_dict({**weights, "alpha": frozen.alpha})
    return frozen.to(inner[0].weight.device).train(fpn.training)


@torch.no_grad()
def fold_alpha(fpn: FusionFPN) -> FoldedFPN:
    """A plain pyramid with the same outputs: alpha dissolved into the convolutions (paper section 3.3).

    Scaled merged features Q_i = s_i P'_i obey the plain recursion when s_{i+1} = s_i alpha_i, so inner_i is
    multiplied by s_i (weights and bias) and the weights of layer_i are divided by it; for a factor of each channel,
    row by row of inner_i and input channel by input channel of layer_i. One power of two is free, or one for each
    channel where channels differ; it is chosen to keep the smallest weight scale as large as can be, for FP16. Computed
    in float64, rounded once; exact where every alpha is a power of two.

    An edge with alpha = 0 is deleted, and the scales start anew behind it. Where even the best power of two would
    bring weights below FP16's normal range, the most extreme edge keeps its factor.

    Raises:
        ValueError: for attention, whose factor depends on the image.
    """
    if fpn.fusion == "attention":
        raise ValueError("attention gives every image a factor of its own, which cannot be folded; freeze it first")
    inner, layer = _convolutions(fpn.inner), _convolutions(fpn.layer)
    channels, edges = layer[0].out_channels, len(inner) - 1
    alpha = fpn.alpha.detach().double().reshape(len(fpn.alpha), -1).expand(edges, channels)
    there = [bool((a.abs() >= ZERO).any()) for a in alpha]
    # A single dead channel has no inverse; then the factors of this edge stay in the graph.
    kept = {i for i in range(edges) if there[i] and not bool((alpha[i].abs() >= ZERO).all())}
    while True:
        groups = _connected_levels([there[i] and i not in kept for i in range(edges)])
        plans = [_scales(group, alpha, inner, layer) for group in groups]
        (_, margin), worst = min(zip(plans, groups, strict=True), key=lambda pair: pair[0][1])
        if margin >= 1:  # as it is where there is no edge to fold
            break
        kept.add(max(worst[:-1], key=lambda i: float(alpha[i].abs().log2().abs().max())))
    scales = {
        level: s
        for (of_group, _), group in zip(plans, groups, strict=True)
        for level, s in zip(group, of_group, strict=True)
    }

    factors = {i: _factor(alpha[i] * scales[i] / scales[i + 1]) for i in kept}
    folded = FoldedFPN([conv.in_channels for conv in inner], channels, there, factors)
    folded.to(device=inner[0].weight.device, dtype=inner[0].weight.dtype)
    folded.train(fpn.training)
    for level, (new_inner, new_layer) in enumerate(
        zip(_convolutions(folded.inner), _convolutions(folded.layer), strict=True)
    ):
        s = scales[level]
        new_inner.weight.copy_(inner[level].weight.double() * s[:, None, None, None])
        _bias(new_inner).copy_(_bias(inner[level]).double() * s)
        new_layer.weight.copy_(layer[level].weight.double() / s[None, :, None, None])
        _bias(new_layer).copy_(_bias(layer[level]))
    return folded


def _connected_levels(joined: Sequence[bool]) -> list[list[int]]:
    """Runs of level numbers that are joined by edges to fold."""
    groups = [[0]]
    for i, folds in enumerate(joined):
        if not folds:
            groups.append([])
        groups[-1].append(i + 1)
    return groups


def _scales(
    group: Sequence[int], alpha: Tensor, inner: Sequence[nn.Conv2d], layer: Sequence[nn.Conv2d]
) -> tuple[list[Tensor], float]:
    """The scale of each channel of each level of a group, and how much room they leave above FP16's subnormals.

    The second is the smallest size of weights against what it may be, at least 1 where all is well: SMALLEST_WEIGHT, or
    what it was before where that is less.
    """
    scales = [torch.ones_like(alpha[0])]
    for i in group[:-1]:
        scales.append(scales[-1] * alpha[i])
    # Where channels have factors of their own, each is looked at by itself: one of many would not show in the mean.
    whole = all(bool((alpha[i] == alpha[i, 0]).all()) for i in group[:-1])
    of_inner = torch.stack([_sizes(inner[i].weight, None if whole else 0) for i in group])  # (levels, 1 or channels)
    of_layer = torch.stack([_sizes(layer[i].weight, None if whole else 1) for i in group])
    s = torch.stack(scales).abs()
    up, down = (of_inner * s).amin(dim=0), (of_layer / s).amin(dim=0)
    # g makes one of them larger and the other one smaller: best where they meet.
    free = torch.where((up > 0) & (down > 0), 2.0 ** ((down / up).log2() / 2).round(), 1.0)
    before = torch.minimum(of_inner.amin(dim=0), of_layer.amin(dim=0)).clamp(max=SMALLEST_WEIGHT)
    room = torch.where(before > 0, torch.minimum(free * up, down / free) / before, math.inf)
    return [free * of_level for of_level in scales], float(room.min())


def _sizes(weights: Tensor, channel: int | None) -> Tensor:
    """Root mean squares in float64, of each slice of dimension `channel`; None: of the whole, (1,)."""
    squares = weights.double().square()
    means = squares.mean().reshape(1) if channel is None else squares.movedim(channel, 0).flatten(1).mean(dim=1)
    return means.sqrt()


def _factor(values: Tensor) -> Tensor:
    """A scalar where all channels share it, else (channels, 1, 1)."""
    return values[0] if bool((values == values[0]).all()) else values[:, None, None]


def _convolutions(modules: nn.ModuleList) -> list[nn.Conv2d]:
    return [module for module in modules if isinstance(module, nn.Conv2d)]


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias
