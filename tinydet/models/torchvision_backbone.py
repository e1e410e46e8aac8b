"""Torchvision networks as backbones, with a choice of normalization."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

from torch import Tensor, nn
from torchvision import models
from torchvision.models._utils import IntermediateLayerGetter

from tinydet.models.backbone import Backbone, FrozenBatchNorm, GroupNorm, refuse_group_norm
from tinydet.models.options import Norm
from tinydet.models.tensor_files import as_state_dict, read_tensors


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


class TorchvisionBackbone(Backbone):
    """A torchvision network that outputs C2..C5.

    Args:
        name: one of the keys of `tinydet.models.backbone_registry.BACKBONES` that torchvision has.
        norm: "frozen" is batch norm with fixed statistics and affine parameters, for pretrained weights; "batch" learns
            them; "group" is group norm, which does not depend on the batch.
    """

    def __init__(self, name: str, *, norm: Norm = "frozen") -> None:
        source = _SOURCES[name]
        super().__init__(source.channels, stored=False)
        self.name = name
        layer = {"frozen": FrozenBatchNorm, "batch": nn.BatchNorm2d, "group": GroupNorm}[norm]
        model = source.build(weights=None, norm_layer=functools.partial(layer, eps=source.eps))
        body = getattr(model, source.body) if source.body else model
        self.body = IntermediateLayerGetter(body, {key: f"C{i}" for i, key in enumerate(source.layers, start=2)})

    def forward(self, images: Tensor) -> list[Tensor]:
        return list(self.body(images).values())

    def freeze(self, stages: int) -> None:
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

    def load_weights(self, weights: str) -> None:
        source = _SOURCES[self.name]
        if weights == "default":
            try:
                state = source.weights.get_state_dict(progress=True, check_hash=True)
            except (URLError, OSError, RuntimeError) as error:
                raise ValueError(
                    f"the ImageNet weights of {self.name} could not be downloaded ({getattr(error, 'reason', error)}); "
                    "name a local copy with --weights-backbone FILE, or start from random weights with "
                    "--weights-backbone none"
                ) from error
            origin = "torchvision's weights"
        else:
            origin = weights
            state = read_tensors(Path(weights), "copy it again")
        state = as_state_dict(state, origin)
        prefix = f"{source.body}." if source.body else ""
        expected = self.body.state_dict()
        refuse_group_norm(self, origin)
        found = {key: state[prefix + key] for key in expected if prefix + key in state}
        wrong = [key for key in expected if key not in found or found[key].shape != expected[key].shape]
        if wrong:
            raise ValueError(
                f"{origin}: does not fit {self.name}: {len(wrong)} of {len(expected)} tensors are missing or have "
                f"another shape, e.g. {wrong[0]}; choose weights of this network, or another --backbone"
            )
        self.body.load_state_dict(found)
