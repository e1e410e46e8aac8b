"""Fold alpha into the convolutions of a pyramid, so that deployment needs no extra operator (paper, section 3.3)."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, FeaturePyramidNetwork

from tinydet.models.fpn import FPN, PlainFPN, first_convolution

ZERO = 1e-3  # an |alpha| below it counts as 0: its inverse would leave the range of FP16
# Root mean square of the weights of a convolution below which FP16 would round many of them to subnormals.
SMALLEST_WEIGHT = 4 * torch.finfo(torch.float16).tiny


class FoldedFPN(PlainFPN):
    """A plain pyramid made by `fold_alpha`. An edge keeps its factor where folding would leave the range of FP16.

    Args:
        kept: factors that stay in the graph, by number of the edge: scalars, or (channels, 1, 1).
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int,
        edges: Sequence[bool],
        kept: dict[int, Tensor],
        top: ExtraFPNBlock | None = None,
    ) -> None:
        super().__init__(in_channels, channels, top=top, edges=edges)
        self.kept = tuple(sorted(kept))
        for i, factor in kept.items():
            self.register_buffer(f"factor{i}", factor.float())

    def merge(self, i: int, lateral: Tensor, deeper: Tensor) -> Tensor:
        return lateral + (getattr(self, f"factor{i}") * deeper if i in self.kept else deeper)

    def to_torchvision(self) -> FeaturePyramidNetwork:
        """Return the same pyramid as a torchvision FPN, for a model that is saved or exported without tinydet.

        Raises:
            ValueError: an edge was deleted (alpha = 0) or keeps a factor.
        """
        if not all(self.edges) or self.kept:
            raise ValueError("a torchvision FPN can neither delete an edge nor keep a factor; use this module as it is")
        inner, layer = _convolutions(self.inner), _convolutions(self.layer)
        made = FeaturePyramidNetwork(
            [conv.in_channels for conv in inner], layer[0].out_channels, extra_blocks=copy.deepcopy(self.top)
        )
        for blocks, convolutions in ((made.inner_blocks, inner), (made.layer_blocks, layer)):
            for block, conv in zip(blocks, convolutions, strict=True):
                first_convolution(block).load_state_dict(conv.state_dict())
        return made.to(inner[0].weight.device).train(self.training)


@torch.no_grad()
def freeze_attention(fpn: FPN, alpha: Sequence[float]) -> FPN:
    """Return the same pyramid with fixed factors (the mean attention on a dataset) instead of attention."""
    frozen = copy.deepcopy(fpn)
    del frozen.attention
    frozen.fusion = "fixed"
    weight = first_convolution(fpn.inner[0]).weight
    frozen.register_buffer("alpha", torch.tensor(tuple(alpha), dtype=torch.float32, device=weight.device))
    return frozen


@torch.no_grad()
def fold_alpha(fpn: FPN) -> FoldedFPN:
    """Return a plain pyramid with the same outputs, alpha folded into the convolutions (paper, section 3.3).

    Scaled merged features Q_i = s_i P'_i obey the plain recursion when s_{i+1} = s_i alpha_i. So inner_i is multiplied
    by s_i (weights and bias) and the weights of layer_i are divided by it; with one factor per channel, row by row of
    inner_i and input channel by input channel of layer_i. One power of two is free (one per channel where channels
    differ) and is chosen to keep the smallest weights as large as possible, for FP16. Everything is computed in float64
    and rounded once; the result is exact where every alpha is a power of two. Batch norms in the pyramid are fused into
    their convolutions first.

    An edge with alpha = 0 is deleted, and the scales restart at 1 below it. Where even the best power of two would push
    weights below the normal range of FP16, the most extreme edge keeps its factor.

    Raises:
        ValueError: the fusion is attention, whose factor depends on the image.
    """
    if fpn.fusion == "attention":
        raise ValueError("attention computes a factor per image, which cannot be folded; freeze it first")
    inner, layer = _convolutions(fpn.inner), _convolutions(fpn.layer)
    channels, edges = layer[0].out_channels, len(inner) - 1
    alpha = fpn.alpha.detach().double().reshape(len(fpn.alpha), -1).expand(edges, channels)
    exists = [bool((a.abs() >= ZERO).any()) for a in alpha]
    # A factor of 0 in a single channel has no inverse; the factors of this edge stay in the graph.
    kept = {i for i in range(edges) if exists[i] and not bool((alpha[i].abs() >= ZERO).all())}
    while True:
        groups = _connected_levels([exists[i] and i not in kept for i in range(edges)])
        plans = [_scales(group, alpha, inner, layer) for group in groups]
        (_, margin), worst = min(zip(plans, groups, strict=True), key=lambda pair: pair[0][1])
        if margin >= 1:  # also where no edge is left to fold
            break
        kept.add(max(worst[:-1], key=lambda i: float(alpha[i].abs().log2().abs().max())))
    scales = {
        level: s
        for (of_group, _), group in zip(plans, groups, strict=True)
        for level, s in zip(group, of_group, strict=True)
    }

    factors = {i: _factor(alpha[i] * scales[i] / scales[i + 1]) for i in kept}
    folded = FoldedFPN([conv.in_channels for conv in inner], channels, exists, factors, copy.deepcopy(fpn.top))
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


def _connected_levels(folds: Sequence[bool]) -> list[list[int]]:
    """Group consecutive levels that are joined by edges to fold."""
    groups = [[0]]
    for i, joined in enumerate(folds):
        if not joined:
            groups.append([])
        groups[-1].append(i + 1)
    return groups


def _scales(
    group: Sequence[int], alpha: Tensor, inner: Sequence[nn.Conv2d], layer: Sequence[nn.Conv2d]
) -> tuple[list[Tensor], float]:
    """Return the scale of each channel of each level of a group, and the FP16 margin; 1 or more is safe.

    The margin is the smallest RMS of weights after folding divided by SMALLEST_WEIGHT, or by their RMS before folding
    where that is smaller.
    """
    scales = [torch.ones_like(alpha[0])]
    for i in group[:-1]:
        scales.append(scales[-1] * alpha[i])
    # With one factor per channel each channel is examined alone: a single bad one would not show in the mean.
    whole = all(bool((alpha[i] == alpha[i, 0]).all()) for i in group[:-1])
    of_inner = torch.stack([_sizes(inner[i].weight, None if whole else 0) for i in group])  # (levels, 1 or channels)
    of_layer = torch.stack([_sizes(layer[i].weight, None if whole else 1) for i in group])
    s = torch.stack(scales).abs()
    up, down = (of_inner * s).amin(dim=0), (of_layer / s).amin(dim=0)
    # A larger scale helps one and hurts the other; the optimum is where they are equal.
    free = torch.where((up > 0) & (down > 0), 2.0 ** ((down / up).log2() / 2).round(), 1.0)
    before = torch.minimum(of_inner.amin(dim=0), of_layer.amin(dim=0)).clamp(max=SMALLEST_WEIGHT)
    room = torch.where(before > 0, torch.minimum(free * up, down / free) / before, math.inf)
    return [free * of_level for of_level in scales], float(room.min())


def _sizes(weights: Tensor, channel: int | None) -> Tensor:
    """Root mean squares in float64 of each slice along dimension `channel`; None: of the whole tensor, (1,)."""
    squares = weights.double().square()
    means = squares.mean().reshape(1) if channel is None else squares.movedim(channel, 0).flatten(1).mean(dim=1)
    return means.sqrt()


def _factor(values: Tensor) -> Tensor:
    """A scalar if all channels share it, else (channels, 1, 1)."""
    return values[0] if bool((values == values[0]).all()) else values[:, None, None]


def _convolutions(blocks: nn.ModuleList) -> list[nn.Conv2d]:
    """The convolution of each block, with a batch norm behind it fused in (in eval mode)."""
    found = []
    for block in blocks:
        conv = first_convolution(block)
        others = [module for module in block.modules() if module is not conv and not list(module.children())]
        norms = [module for module in others if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            conv = fuse_conv_bn_eval(copy.deepcopy(conv).eval(), copy.deepcopy(norm).eval())
        if len(norms) < len(others) or conv.bias is None:
            raise ValueError(f"cannot fold alpha into {block}: expected a convolution with a bias or a batch norm")
        found.append(conv)
    return found


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias
