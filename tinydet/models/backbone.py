"""Backbones from torchvision that give C2..C5 (strides 4, 8, 16, 32), with their normalisation frozen or learned."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models._utils import IntermediateLayerGetter

Norm = Literal["frozen", "batch", "group"]
GROUPS = 32  # of group norm, or the most that divide a layer's channels

# Pixels are normalised as torchvision's ImageNet weights expect; in 0..255, RGB.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class _Design:
    """How a torchvision classifier becomes a backbone: its builder, the layers that give C2..C5, their channels."""

    build: Callable[..., nn.Module]
    weights: models.Weights
    layers: tuple[str, str, str, str]
    channels: tuple[int, int, int, int]
    body: str = ""  # attribute that holds the layers
    eps: float = 1e-5


_RESNET_LAYERS = ("layer1", "layer2", "layer3", "layer4")
_BASIC, _BOTTLENECK = (64, 128, 256, 512), (256, 512, 1024, 2048)
# The inverted residuals that end each stride, without the last 1x1 convolution: it serves the classifier.
_DESIGNS = {
    "resnet18": _Design(models.resnet18, models.ResNet18_Weights.DEFAULT, _RESNET_LAYERS, _BASIC),
    "resnet34": _Design(models.resnet34, models.ResNet34_Weights.DEFAULT, _RESNET_LAYERS, _BASIC),
    # V1: the weights that detectors are trained from; V2's recipe transfers worse at a frozen batch norm.
    "resnet50": _Design(models.resnet50, models.ResNet50_Weights.IMAGENET1K_V1, _RESNET_LAYERS, _BOTTLENECK),
    "resnet101": _Design(models.resnet101, models.ResNet101_Weights.IMAGENET1K_V1, _RESNET_LAYERS, _BOTTLENECK),
    "mobilenet_v2": _Design(
        models.mobilenet_v2,
        models.MobileNet_V2_Weights.IMAGENET1K_V1,
        ("3", "6", "13", "17"),
        (24, 32, 96, 320),
        "features",
    ),
    "mobilenet_v3_large": _Design(
        models.mobilenet_v3_large,
        models.MobileNet_V3_Large_Weights.IMAGENET1K_V1,
        ("3", "6", "12", "15"),
        (24, 40, 112, 160),
        "features",
        eps=1e-3,
    ),
}
BACKBONES = tuple(_DESIGNS)


class FrozenBatchNorm(nn.BatchNorm2d):
    """Batch norm with fixed statistics and a fixed affine part.

    torchvision's `FrozenBatchNorm2d` computes the same, but in float32 outside the fused kernel: under bfloat16
    autocast a MobileNetV2 trains in half the time with this one.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> FrozenBatchNorm:
        return super().train(False)


class GroupNorm(nn.GroupNorm):
    """Group norm with the signature of a batch norm: 32 groups, or the most that divide the channels."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(math.gcd(GROUPS, channels), channels, eps=eps)


class Backbone(nn.Module):
    """C2..C5 of a torchvision network.

    Args:
        name: one of `BACKBONES`.
        norm: "frozen" fixes batch statistics and affine parameters (with pretrained weights), "batch" learns them,
            "group" needs no batch.
    """

    def __init__(self, name: str, *, norm: Norm = "frozen") -> None:
        super().__init__()
        if name not in _DESIGNS:
            raise ValueError(f"unknown backbone {name!r}; one of: {', '.join(BACKBONES)}")
        design = _DESIGNS[name]
        self.channels = design.channels
        layer = {"frozen": FrozenBatchNorm, "batch": nn.BatchNorm2d, "group": GroupNorm}[norm]
        network = design.build(weights=None, norm_layer=functools.partial(layer, eps=design.eps))
        body = getattr(network, design.body) if design.body else network
        self.body = IntermediateLayerGetter(body, {key: f"C{i}" for i, key in enumerate(design.layers, start=2)})

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalised RGB -> C2..C5, (B, c_i, H / 2^i, W / 2^i)."""
        return list(self.body(images).values())

    def freeze(self, stages: int) -> None:
        """Stop training of the first `stages` stages: 0 none, 1 the stem, 2 the stem and all that gives C2."""
        names = list(self.body)
        if isinstance(next(iter(self.body.values())), nn.Conv2d):  # a ResNet: its stem has several entries
            first_stage = names.index(_RESNET_LAYERS[0])
            end = {0: 0, 1: first_stage, 2: first_stage + 1}[stages]
        else:
            end = {0: 0, 1: 1, 2: names.index(next(k for k, v in self.body.return_layers.items() if v == "C2")) + 1}[
                stages
            ]
        for module in list(self.body.values())[:end]:
            module.requires_grad_(False)


def load_pretrained(backbone: Backbone, name: str, weights: str | Path) -> None:
    """Fill `backbone` with ImageNet weights: "default" downloads torchvision's, a path reads such a file.

    Raises:
        ValueError: where the download fails, the file is not a state dict, or does not fit `name`.
    """
    design = _DESIGNS[name]
    if str(weights) == "default":
        try:
            state = design.weights.get_state_dict(progress=True, check_hash=True)
        except (URLError, OSError, RuntimeError) as error:
            raise ValueError(
                f"the ImageNet weights of {name} could not be downloaded ({getattr(error, 'reason', error)}); "
                "name a local copy with --weights-backbone FILE, or start from random ones with --weights-backbone none"
            ) from error
        origin = "torchvision's weights"
    else:
        origin = str(weights)
        if not Path(weights).is_file():
            raise ValueError(
                f"{origin}: no such file; --weights-backbone takes default, none or a file of torchvision weights"
            )
        try:
            state = torch.load(weights, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many types for a file that is not one of its own
            raise ValueError(f"{origin}: not a file of weights ({type(error).__name__})") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{origin}: expected a state dict of tensors, as torchvision saves them")
    prefix = f"{design.body}." if design.body else ""
    wanted = backbone.body.state_dict()
    if any(isinstance(module, GroupNorm) for module in backbone.modules()):
        raise ValueError(
            f"{origin}: trained with batch norm, whose statistics group norm has no place for; "
            "use --norm frozen or batch, or start from random weights with --weights-backbone none"
        )
    found = {key: state[prefix + key] for key in wanted if prefix + key in state}
    wrong = [key for key in wanted if key not in found or found[key].shape != wanted[key].shape]
    if wrong:
        raise ValueError(
            f"{origin}: does not fit {name}: {len(wrong)} of {len(wanted)} tensors are missing or of another shape, "
            f"e.g. {wrong[0]}; name weights of that network, or another --backbone"
        )
    backbone.body.load_state_dict(found)
