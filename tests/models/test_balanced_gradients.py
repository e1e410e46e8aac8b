"""What the balanced pyramid of Libra R-CNN does to the gradients that alpha weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from tinydet.models.fpn import FPN
from tinydet.models.libra_rcnn import BalancedFeaturePyramid

ALPHA = 0.37


def norms(alpha: float, *, balanced: bool, at: str) -> list[float]:
    """Norms of the gradient of a random linear loss on the finest output, at C2..C5 or at P2..P6."""
    torch.manual_seed(0)
    fpn = FPN([8, 16, 32, 64], 32, (alpha,) * 3, top=LastLevelMaxPool())
    bfp = BalancedFeaturePyramid(32)
    features = [torch.randn(1, 8 * 2**i, 64 // 2**i, 64 // 2**i, requires_grad=True) for i in range(4)]
    levels: list[Tensor] = fpn(features)
    outputs = bfp(levels) if balanced else levels
    loss = (outputs[0] * torch.randn(outputs[0].shape)).sum()
    inputs = features if at == "C" else levels
    found = torch.autograd.grad(loss, inputs, allow_unused=True)
    return [0.0 if gradient is None else float(gradient.norm()) for gradient in found]


def test_the_loss_of_the_finest_level_passes_around_the_factors() -> None:
    """Alone the pyramid weighs the way from P2 to C2 to C5 by alpha^0 to alpha^3: docs/concepts/preconditioner.md."""
    kept = {
        balanced: [
            small / one
            for small, one in zip(
                norms(ALPHA, balanced=balanced, at="C"), norms(1, balanced=balanced, at="C"), strict=True
            )
        ]
        for balanced in (False, True)
    }
    assert kept[False] == pytest.approx([1, ALPHA, ALPHA**2, ALPHA**3], rel=1e-5)
    assert kept[True] == pytest.approx([1.00, 0.41, 0.22, 0.26], abs=0.01)


def test_it_gives_every_level_a_share_of_the_gradient_of_the_finest() -> None:
    assert norms(ALPHA, balanced=False, at="P")[1:] == [0.0] * 4
    finest, *others = norms(ALPHA, balanced=True, at="P")
    assert min(others) > 0.15 * finest
