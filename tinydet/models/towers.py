"""Initialization of the towers of one-stage heads: 3x3 convolutions, one tower for classes and one for boxes."""

from __future__ import annotations

from torch import nn

from tinydet.models.options import HeadInit


def initialize_towers(init: HeadInit, *towers: nn.Module) -> None:
    """Initialize the convolutions of towers that torchvision has built.

    Args:
        init: "paper": N(0, 0.01), as torchvision has done; made for 256 channels, four thin layers of it pass almost no
            signal for hundreds of steps. "he": keeps the variance from layer to layer.
    """
    if init == "paper":
        return
    for tower in towers:
        for layer in tower.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
