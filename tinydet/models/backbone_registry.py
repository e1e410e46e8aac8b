"""The backbones by name. Importing this module does not import torch.

Torchvision's networks are rows of `BACKBONES`. A network of timm is named `timm:NAME` and needs no row. A backbone of
your own is added with `register_backbone`.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from tinydet._internal.arguments import quoted
from tinydet._internal.plugins import check_same_file
from tinydet._internal.suggestions import did_you_mean
from tinydet.models.options import TORCHVISION_BACKBONES, Norm

if TYPE_CHECKING:
    from tinydet.models.backbone import Backbone

TIMM = "timm:"
# A name of timm's own registry, with or without the tag of its weights. Names with `:` or `/` would read files or
# download from the Hugging Face Hub.
_TIMM_NAME = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)?")


class Build(Protocol):
    """Builds a backbone with random weights."""

    def __call__(self, *, norm: Norm) -> Backbone: ...


def _torchvision(name: str) -> Callable[[], Build]:
    def load() -> Build:
        from tinydet.models.torchvision_backbone import TorchvisionBackbone

        return lambda *, norm: TorchvisionBackbone(name, norm=norm)

    return load


# Name -> a function that imports and returns the class, or any callable that builds the backbone.
BACKBONES: dict[str, Callable[[], Build]] = {name: _torchvision(name) for name in TORCHVISION_BACKBONES}


def register_backbone(name: str, load: Callable[[], Build]) -> None:
    """Make a backbone available by name, to `--backbone` and to checkpoints.

    A file that is run again replaces what it registered.

    Args:
        load: imports and returns the class, which is constructed with `norm="frozen"`, "batch" or "group".

    Raises:
        ValueError: the name is taken, or not made of letters, digits, `_`, `-` and `.`.
    """
    if name in TORCHVISION_BACKBONES or not re.fullmatch(r"[\w.-]+", name):
        raise ValueError(f"backbone {quoted(name)}: the name is taken, or is not made of letters, digits, _, - and .")
    if name in BACKBONES:
        check_same_file(f"backbone {quoted(name)}", BACKBONES[name], load)
    BACKBONES[name] = load


def check_backbone(name: str) -> str:
    """Check the name of a backbone without importing torch, and return it.

    Raises:
        ValueError: the name is unknown, or is not a plain name of timm's registry.
        ModuleNotFoundError: it is a name of timm, which is not installed.
    """
    if name in BACKBONES:
        return name
    if name.startswith(TIMM):
        if not _TIMM_NAME.fullmatch(name.removeprefix(TIMM)):
            raise ValueError(
                f"backbone {quoted(name)}: expected timm: and the name of an architecture in timm, such as "
                "timm:efficientnet_lite0; tinydet loads no network from a file or from the Hugging Face Hub"
            )
        if importlib.util.find_spec("timm") is None:
            raise ModuleNotFoundError(
                f"backbone {name}: 'timm' is not installed. Run: pip install 'tinydet[timm]'", name="timm"
            )
        return name
    raise ValueError(
        f"unknown backbone {quoted(name)}, expected one of {', '.join(BACKBONES)}, a network of timm such as "
        f"timm:efficientnet_lite0, or one that a --plugin registers{did_you_mean(name, BACKBONES)}"
    )


def build_backbone(name: str, *, norm: Norm = "frozen") -> Backbone:
    """Build a backbone with random weights.

    Args:
        norm: "frozen" is batch norm with fixed statistics and affine parameters, for pretrained weights; "batch" learns
            them; "group" is group norm, which does not depend on the batch.

    Raises:
        ValueError: the name is unknown, or the network does not output the strides 4, 8, 16 and 32.
        ModuleNotFoundError: it is a network of timm, which is not installed.
    """
    check_backbone(name)
    if name in BACKBONES:
        return BACKBONES[name]()(norm=norm)
    from tinydet.models.timm_backbone import TimmBackbone

    return TimmBackbone(name.removeprefix(TIMM), norm=norm)
