"""Alpha is exactly a learning-rate and weight-decay preconditioner of the plain pyramid.

SGD on W at rate r is SGD on s W at rate r s^2 with decay d / s^2; L / s the other way round. So the fused pyramid, and
a plain one that starts from its folded weights and has these rates, go through the same losses.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from tinydet.models.fpn import FPN, PlainFPN

CHANNELS, WIDTH, RATE, DECAY = (4, 5, 6, 7), 8, 0.01, 1e-3


def problem() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(2, c, 32 >> i, 32 >> i, generator=generator).double() for i, c in enumerate(CHANNELS)]
    targets = [torch.randn(2, WIDTH, 32 >> i, 32 >> i, generator=generator).double() for i in range(5)]
    return inputs, targets


def losses_of(fpn: PlainFPN, optimizer: torch.optim.Optimizer, steps: int = 30) -> list[float]:
    inputs, targets = problem()
    seen = []
    for _ in range(steps):
        loss = sum((level - target).square().mean() for level, target in zip(fpn(inputs), targets, strict=True))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(float(loss.detach()))
    return seen


@pytest.mark.parametrize("alpha", [(0.368, 0.387, 0.367), (1.1, 0.5, 1.3)])
@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_alpha_is_a_preconditioner_of_the_plain_pyramid(alpha: tuple[float, float, float], kind: str) -> None:
    torch.manual_seed(2)
    fused = FPN(CHANNELS, WIDTH, alpha, top=LastLevelMaxPool()).double()
    alphas = fused.alpha.tolist()
    scales = [1.0, alphas[0], alphas[0] * alphas[1], alphas[0] * alphas[1] * alphas[2]]
    plain = PlainFPN(CHANNELS, WIDTH, top=LastLevelMaxPool()).double()
    plain.load_state_dict({k: v for k, v in fused.state_dict().items() if k != "alpha"})
    groups = []
    with torch.no_grad():
        for inner, layer, s in zip(plain.inner, plain.layer, scales, strict=True):
            inner.weight.mul_(s)
            inner.bias.mul_(s)
            layer.weight.div_(s)
            for parameters, scale in (([inner.weight, inner.bias], s), ([layer.weight], 1 / s), ([layer.bias], 1.0)):
                if kind == "sgd":
                    groups.append({"params": parameters, "lr": RATE * scale**2, "weight_decay": DECAY / scale**2})
                else:  # a step of Adam does not grow with the gradient; its epsilon does
                    groups.append({"params": parameters, "lr": RATE * scale, "eps": 1e-12 / scale})
    if kind == "sgd":
        ours = torch.optim.SGD(groups, lr=RATE, momentum=0.9)
        reference = torch.optim.SGD(fused.parameters(), lr=RATE, momentum=0.9, weight_decay=DECAY)
    else:
        ours, reference = torch.optim.Adam(groups), torch.optim.Adam(fused.parameters(), lr=RATE, eps=1e-12)
    wanted = losses_of(fused, reference)
    assert losses_of(plain, ours) == pytest.approx(wanted, abs=1e-11)
    assert wanted[-1] < 0.9 * wanted[0]


def test_without_the_rates_it_is_another_problem() -> None:
    """Why the sigma-power initialization alone does not do what alpha does."""
    torch.manual_seed(2)
    fused = FPN(CHANNELS, WIDTH, (0.5, 0.5, 0.5), top=LastLevelMaxPool()).double()
    plain = PlainFPN(CHANNELS, WIDTH, top=LastLevelMaxPool()).double()
    plain.load_state_dict({k: v for k, v in fused.state_dict().items() if k != "alpha"})
    with torch.no_grad():
        for i, (inner, layer) in enumerate(zip(plain.inner, plain.layer, strict=True)):
            assert isinstance(inner, nn.Conv2d)
            inner.weight.mul_(0.5**i)
            inner.bias.mul_(0.5**i)
            layer.weight.div_(0.5**i)
    first = losses_of(fused, torch.optim.SGD(fused.parameters(), lr=RATE, momentum=0.9))
    second = losses_of(plain, torch.optim.SGD(plain.parameters(), lr=RATE, momentum=0.9))
    assert first[0] == pytest.approx(second[0], abs=1e-12)
    assert abs(first[-1] - second[-1]) > 1e-3
