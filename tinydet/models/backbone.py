"""Torchvision networks as backbones that output C2..C5 (strides 4, 8, 16, 32), with a choice of normalization."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

from torch import Tensor, nn
from torchvision import models
from torchvision.models._utils import IntermediateLayerGetter

from tinydet.models.options import BACKBONES, Norm
from tinydet.models.tensor_files import as_state_dict, read_tensors

GROUPS = 32  # of group norm

# Normalization of RGB pixels in 0..255 that torchvision's ImageNet weights expect.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class _Source:
    """A torchvision classifier and what makes it a backbone.

    Attributes:
        weights: default ImageNet weights.
        layers: names of the layers that output C2..C5; `channels`: their channels.
        body: name of the submodule that contains the layers; empty if the classifier itself does.
        eps: epsilon of its batch norm.
    """

    build: Callable[..., nn.Module]
    weights: models.Weights
    layers: tuple[str, str, str, str]
    channels: tuple[int, int, int, int]
    body: str = ""
    eps: float = 1e-5


_RESNET_LAYERS = ("layer1", "layer2", "layer3", "layer4")
_BASIC, _BOTTLENECK = (64, 128, 256, 512), (256, 512, 1024, 2048)
# In the MobileNets, the last inverted residual of each stride. The final 1x1 convolution serves only the classifier.
_SOURCES = {
    "resnet18": _Source(models.resnet18, models.ResNet18_Weights.DEFAULT, _RESNET_LAYERS, _BASIC),
    "resnet34": _Source(models.resnet34, models.ResNet34_Weights.DEFAULT, _RESNET_LAYERS, _BASIC),
    # V1, as usual for detectors: the V2 weights transfer worse with frozen batch norm.
    "resnet50": _Source(models.resnet50, models.ResNet50_Weights.IMAGENET1K_V1, _RESNET_LAYERS, _BOTTLENECK),
    "resnet101": _Source(models.resnet101, models.ResNet101_Weights.IMAGENET1K_V1, _RESNET_LAYERS, _BOTTLENECK),
    "mobilenet_v2": _Source(
        models.mobilenet_v2,
        models.MobileNet_V2_Weights.IMAGENET1K_V1,
        ("3", "6", "13", "17"),
        (24, 32, 96, 320),
        "features",
    ),
    "mobilenet_v3_large": _Source(
        models.mobilenet_v3_large,
        models.MobileNet_V3_Large_Weights.IMAGENET1K_V1,
        ("3", "6", "12", "15"),
        (24, 40, 112, 160),
        "features",
        eps=1e-3,
    ),
}


class FrozenBatchNorm(nn.BatchNorm2d):
    """Batch norm with fixed statistics and a fixed affine part.

    torchvision's `FrozenBatchNorm2d` computes the same, but in float32 and without the fused kernel: under bfloat16
    autocast, a MobileNetV2 trains twice as fast with this class.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.requires_grad_(False)

    def train(self, mode: bool = True) -> FrozenBatchNorm:
        return super().train(False)


class GroupNorm(nn.GroupNorm):
    """Group norm with the signature of batch norm. 32 groups, or their greatest common divisor with the channels."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(math.gcd(GROUPS, channels), channels, eps=eps)


class Backbone(nn.Module):
    """A torchvision network that outputs C2..C5.

    Args:
        name: one of `BACKBONES`.
        norm: "frozen" is batch norm with fixed statistics and affine parameters, for pretrained weights; "batch" learns
            them; "group" is group norm, which does not depend on the batch.

    Raises:
        ValueError: unknown name.
    """

    def __init__(self, name: str, *, norm: Norm = "frozen") -> None:
        super().__init__()
        if name not in _SOURCES:
            raise ValueError(f"unknown backbone {name!r}; choose one of: {', '.join(BACKBONES)}")
        source = _SOURCES[name]
        self.channels = source.channels
        layer = {"frozen": FrozenBatchNorm, "batch": nn.BatchNorm2d, "group": GroupNorm}[norm]
        model = source.build(weights=None, norm_layer=functools.partial(layer, eps=source.eps))
        body = getattr(model, source.body) if source.body else model
        self.body = IntermediateLayerGetter(body, {key: f"C{i}" for i, key in enumerate(source.layers, start=2)})

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalized RGB -> C2..C5, each (B, c_i, H / 2^i, W / 2^i)."""
        return list(self.body(images).values())

    def freeze(self, stages: int) -> None:
        """Freeze the first stages: 0 for none, 1 for the stem, 2 for the stem and the layers up to C2."""
        names = list(self.body)
        if isinstance(next(iter(self.body.values())), nn.Conv2d):  # a ResNet, whose stem has several entries
            first_stage = names.index(_RESNET_LAYERS[0])
            end = {0: 0, 1: first_stage, 2: first_stage + 1}[stages]
        else:
            end = {0: 0, 1: 1, 2: names.index(next(k for k, v in self.body.return_layers.items() if v == "C2")) + 1}[
                stages
            ]
        for module in list(self.body.values())[:end]:
            module.requires_grad_(False)


def load_pretrained(backbone: Backbone, name: str, weights: str | Path) -> None:
    """Load ImageNet weights into `backbone`.

    Args:
        name: the network, one of `BACKBONES`.
        weights: "default" to download torchvision's, or the path of a state dict as torchvision saves it.

    Raises:
        ValueError: the download failed, the file is not a state dict, or it does not fit the network.
    """
    source = _SOURCES[name]
    if str(weights) == "default":
        try:
            state = source.weights.get_state_dict(progress=True, check_hash=True)
        except (URLError, OSError, RuntimeError) as error:
            raise ValueError(
                f"the ImageNet weights of {name} could not be downloaded ({getattr(error, 'reason', error)}); "
                "name a local copy with --weights-backbone FILE, or start from random weights with "
                "--weights-backbone none"
            ) from error
        origin = "torchvision's weights"
    else:
        origin = str(weights)
        if not Path(weights).is_file():
            raise ValueError(
                f"{origin}: no such file; --weights-backbone takes default, none or a file of torchvision weights"
            )
        state = read_tensors(Path(weights), "copy it again")
    state = as_state_dict(state, origin)
    prefix = f"{source.body}." if source.body else ""
    expected = backbone.body.state_dict()
    if any(isinstance(module, GroupNorm) for module in backbone.modules()):
        raise ValueError(
            f"{origin}: trained with batch norm, whose statistics group norm cannot use; "
            "use --norm frozen or batch, or start from random weights with --weights-backbone none"
        )
    found = {key: state[prefix + key] for key in expected if prefix + key in state}
    wrong = [key for key in expected if key not in found or found[key].shape != expected[key].shape]
    if wrong:
        raise ValueError(
            f"{origin}: does not fit {name}: {len(wrong)} of {len(expected)} tensors are missing or have another "
            f"shape, e.g. {wrong[0]}; choose weights of this network, or another --backbone"
        )
    backbone.body.load_state_dict(found)
