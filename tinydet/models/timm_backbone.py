"""Networks of timm (PyTorch Image Models) as backbones, by name."""

from __future__ import annotations

import functools
import socket
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch
from torch import Tensor, nn

from tinydet._internal.arguments import quoted
from tinydet._internal.errors import reason
from tinydet._internal.extras import needs_extra
from tinydet._internal.suggestions import did_you_mean
from tinydet.models.backbone import Backbone, GroupNorm, PixelNorm, refuse_group_norm
from tinydet.models.options import Norm
from tinydet.models.tensor_files import as_state_dict, read_weights

STRIDES = (4, 8, 16, 32)
# Two tiles that are no squares and of different sizes, (height, width): a network that takes one size only, or shapes
# that are not the input's divided by the stride, show with them.
_TRIAL_SIZES = ((64, 96), (160, 128))


@dataclass(frozen=True)
class TimmFeatures:
    """What a network of timm outputs.

    Attributes:
        picked: indices of the features with strides 4, 8, 16 and 32.
        channels: of these features.
        channels_last: whether features are (B, H, W, C).
        pixels: normalization that its weights expect.
    """

    picked: tuple[int, ...]
    channels: tuple[int, int, int, int]
    channels_last: bool
    pixels: PixelNorm


class TimmBackbone(Backbone):
    """A network of timm that outputs C2..C5.

    The name alone decides the architecture. Nothing is downloaded, and no file is read, except by `load_weights`.

    Args:
        name: of timm's registry, with or without the tag of its weights, such as `efficientnet_lite0.ra_in1k`.
        norm: what happens to its batch norms, see `build_backbone`. Other normalization layers stay as they are.

    Raises:
        ValueError: unknown name, other strides, fixed input size, or group norm for a network without batch norm.
    """

    def __init__(self, name: str, *, norm: Norm = "frozen") -> None:
        self.features = features_of(name)
        super().__init__(self.features.channels, pixels=self.features.pixels)
        self.name, self.norm = name, norm
        self.body = _create(name)
        batch_norms = [module for module in self.body.modules() if _is_batch_norm(module)]
        if norm == "group":
            if not batch_norms:
                raise ValueError(f"timm:{name} has no batch norm that --norm group could replace; leave --norm out")
            _use_group_norm(self.body)
        elif norm == "frozen":
            for module in batch_norms:
                module.requires_grad_(False)
        self.train(self.training)

    def forward(self, images: Tensor) -> list[Tensor]:
        outputs = self.body(images)
        levels = [outputs[i] for i in self.features.picked]
        return [level.permute(0, 3, 1, 2) for level in levels] if self.features.channels_last else levels

    def train(self, mode: bool = True) -> TimmBackbone:
        super().train(mode)
        if self.norm == "frozen":
            for module in self.body.modules():
                if _is_batch_norm(module):
                    module.train(False)
        return self

    def freeze(self, stages: int) -> None:
        if not stages:
            return
        early = _before_stride_8(self.name)
        stage = _stage_of(early, [name for name, _ in self.body.named_parameters()])
        for name, parameter in self.body.named_parameters():
            if name in early and (stages == 2 or not name.startswith(stage)):
                parameter.requires_grad_(False)

    def load_weights(self, weights: str) -> None:
        if weights == "default":
            origin = f"timm's weights of {self.name}"
            refuse_group_norm(self, origin)
            fault = ""
            try:
                with _hub() as fault:
                    loaded = _create(self.name, pretrained=True)
            except Exception as error:  # of timm, of the Hub's client, or of the HTTP library that it uses
                raise ValueError(
                    f"{origin} could not be downloaded ({fault or reason(error)}); name a local copy with "
                    "--weights-backbone FILE, or start from random weights with --weights-backbone none"
                ) from error
        else:
            origin = weights
            state = as_state_dict(read_weights(Path(weights), "copy it again"), origin)
            refuse_group_norm(self, origin)
            loaded = self._from_file(state, origin)
        self.body.load_state_dict(loaded.state_dict())

    def _from_file(self, state: dict[str, Tensor], origin: str) -> nn.Module:
        """Return the network with weights in timm's names; timm itself converts those of other code bases."""
        # A first copy of the weights is all NaN: what is not NaN in the network after loading it was not in the file.
        marked = {key: torch.full_like(each, torch.nan) if each.is_floating_point() else each.clone()
                  for key, each in state.items()}  # fmt: skip
        remedy = f"choose weights of {self.name}, or another --backbone"
        try:
            probe = _create(self.name, state=marked).state_dict()
            fresh = [key for key, each in probe.items() if each.is_floating_point() and not bool(each.isnan().all())]
            if fresh:
                raise ValueError(
                    f"{origin}: does not fit {self.name}: {len(fresh)} of {len(probe)} tensors are missing, e.g. "
                    f"{fresh[0]}; {remedy}"
                )
            return _create(self.name, state=dict(state))
        except (RuntimeError, KeyError, IndexError, AttributeError, TypeError, AssertionError) as error:
            raise ValueError(f"{origin}: does not fit {self.name} ({reason(error)}); {remedy}") from error


@functools.lru_cache(maxsize=64)
def features_of(name: str) -> TimmFeatures:
    """Return what a network of timm outputs, without allocating its weights.

    Raises:
        ValueError: timm has no network of this name, it lacks one of the strides 4, 8, 16 and 32, or it cannot process
            tiles of any size.
    """
    with needs_extra("timm"):
        import timm

    if not timm.is_model(name):
        hint = did_you_mean(name.partition(".")[0], timm.list_models())
        raise ValueError(f"timm {timm.__version__} has no network {quoted(name)} (timm.list_models() lists all){hint}")
    try:
        with torch.device("meta"):
            network = _create(name)
        info = cast(Any, network).feature_info
        strides, channels = info.reduction(), info.channels()
    except Exception as error:  # each architecture has its own
        raise ValueError(f"timm:{name} cannot output features ({reason(error)}); choose another --backbone") from error
    if missing := [stride for stride in STRIDES if stride not in strides]:
        raise ValueError(
            f"timm:{name} has features with strides {', '.join(map(str, strides))}; a backbone needs 4, 8, 16 and 32, "
            f"and {', '.join(map(str, missing))} is missing; choose another --backbone"
        )
    picked = tuple(len(strides) - 1 - strides[::-1].index(stride) for stride in STRIDES)
    chosen = tuple(channels[i] for i in picked)
    shapes: list[tuple[int, ...]] = []
    for height, width in _TRIAL_SIZES:
        try:
            with torch.device("meta"), torch.no_grad():
                outputs = network.eval()(torch.empty(1, 3, height, width))
        except Exception as error:
            raise ValueError(
                f"timm:{name} cannot process a tile of {width} x {height} pixels ({reason(error)}); choose another "
                "--backbone, one for images of any size"
            ) from error
        shapes += [tuple(outputs[i].shape) for i in picked]
    sizes = [(height // stride, width // stride) for height, width in _TRIAL_SIZES for stride in STRIDES]
    first = [(1, c, *size) for c, size in zip(chosen * 2, sizes, strict=True)]
    last = [(1, *size, c) for c, size in zip(chosen * 2, sizes, strict=True)]
    if shapes not in (first, last):
        shape, expected = next((a, b) for a, b in zip(shapes, first, strict=True) if a != b)
        raise ValueError(
            f"timm:{name} outputs a feature of shape {shape} where its strides promise {expected}; choose another "
            "--backbone"
        )
    config = cast(Any, network).pretrained_cfg
    pixels = PixelNorm(*(tuple(255.0 * value for value in config[part]) for part in ("mean", "std")))
    return TimmFeatures(picked, cast(Any, chosen), shapes != first, pixels)


def _before_stride_8(name: str) -> list[str]:
    """Return the parameters that C2 depends on and that run before any feature has stride 8, in the order of execution.

    The second condition is for networks such as HRNet, whose C2 also depends on all coarser stages.
    """
    features, network = features_of(name), _create(name).eval()
    names = {id(parameter): key for key, parameter in network.named_parameters()}
    height, width = _TRIAL_SIZES[0]
    stopped: list[bool] = []
    early: list[str] = []

    def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4:
            sides = output.shape[1:3] if features.channels_last else output.shape[2:]
            stopped.extend([True] * (tuple(sides) == (height // 8, width // 8)))
        if not stopped:
            early.extend(names[id(each)] for each in module.parameters(recurse=False))

    for module in network.modules():
        module.register_forward_hook(record)
    with torch.enable_grad():
        finest = network(torch.zeros(1, 3, height, width))[features.picked[0]]
    parameters = dict(network.named_parameters())
    gradients = torch.autograd.grad(finest.sum(), list(parameters.values()), allow_unused=True)
    needed = {key for key, each in zip(parameters, gradients, strict=True) if each is not None}
    return [key for key in dict.fromkeys(early) if key in needed]


def _stage_of(early: Sequence[str], names: Sequence[str]) -> str:
    """Return the prefix of the stage of C2: the module with the last of the early parameters and with no others.

    >>> _stage_of(["conv1.weight", "layer1.0.weight"], ["conv1.weight", "layer1.0.weight", "layer2.0.weight"])
    'layer1.'
    >>> _stage_of(["stem.weight", "blocks.0.weight"], ["stem.weight", "blocks.0.weight", "blocks.1.weight"])
    'blocks.0.'
    """
    parts = early[-1].split(".")
    for depth in range(1, len(parts)):
        prefix = ".".join(parts[:depth]) + "."
        if all(name in early for name in names if name.startswith(prefix)):
            return prefix
    return early[-1]


def _create(name: str, *, pretrained: bool = False, state: dict[str, Tensor] | None = None) -> nn.Module:
    """Return a network of timm that outputs its features.

    Args:
        pretrained: download its weights.
        state: weights to load instead of random ones; timm ignores those that the network does not have.
    """
    with needs_extra("timm"):
        import timm
    source: dict[str, Any] = (
        {} if state is None else {"pretrained_cfg_overlay": {"state_dict": state, "custom_load": False}}
    )
    with _quiet():
        network: nn.Module = timm.create_model(
            name, features_only=True, pretrained=pretrained or state is not None, **source
        )
    return network


@contextmanager
def _hub() -> Iterator[str]:
    """Use the local cache of the Hugging Face Hub only, without a minute of retries, if its server cannot be found.

    Yields why it cannot be found; empty if it can, or if a proxy decides about it.
    """
    with needs_extra("timm"):
        from huggingface_hub import constants
    host, fault = urlsplit(constants.ENDPOINT).hostname or "", ""
    if not getproxies():
        try:
            socket.getaddrinfo(host, 443)
        except OSError as error:
            fault = f"{host}: {error.strerror or error}"
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or bool(fault)
    try:
        yield fault
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress timm's and torch's warnings about names and defaults, which a user cannot act on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def _use_group_norm(module: nn.Module) -> None:
    """Replace every batch norm inside `module` by group norm, followed by the activation that timm puts into it."""
    for name, child in module.named_children():
        if not _is_batch_norm(child):
            _use_group_norm(child)
            continue
        assert isinstance(child, nn.BatchNorm2d)
        group = GroupNorm(child.num_features, child.eps)
        rest = [getattr(child, part) for part in ("drop", "act") if hasattr(child, part)]
        setattr(module, name, nn.Sequential(group, *rest) if rest else group)
