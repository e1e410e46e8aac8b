"""The contract of a backbone, and the normalization layers that backbones share."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

GROUPS = 32  # of group norm

# Normalization of RGB pixels in 0..255 that ImageNet weights expect, unless their source says otherwise.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


class PixelNorm(NamedTuple):
    """Normalization of RGB pixels in 0..255: (value - mean) / std, per channel."""

    mean: tuple[float, ...] = PIXEL_MEAN
    std: tuple[float, ...] = PIXEL_STD

    @property
    def pad(self) -> tuple[int, int, int]:
        """The RGB value that normalizes to zero, up to rounding."""
        red, green, blue = (round(value) for value in self.mean)
        return red, green, blue


class Backbone(nn.Module):
    """A network that outputs C2..C5, the features with strides 4, 8, 16 and 32.

    Args:
        channels: of C2..C5.
        pixels: normalization that the weights expect.
        stored: whether `pixels` is saved with the weights; False only if the code fixes it.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self, channels: tuple[int, int, int, int], *, pixels: PixelNorm | None = None, stored: bool = True
    ) -> None:
        super().__init__()
        self.channels = channels
        mean, std = pixels or PixelNorm()
        self.register_buffer("pixel_mean", torch.tensor(mean, dtype=torch.float32), persistent=stored)
        self.register_buffer("pixel_std", torch.tensor(std, dtype=torch.float32), persistent=stored)

    @property
    def pixels(self) -> PixelNorm:
        """The normalization of the pixels, as numbers."""
        return PixelNorm(tuple(self.pixel_mean.tolist()), tuple(self.pixel_std.tolist()))

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalized RGB, H and W multiples of 32 -> C2..C5, each (B, c_i, H / 2^i, W / 2^i)."""
        raise NotImplementedError

    def freeze(self, stages: int) -> None:
        """Freeze the first stages: 0 for none, 1 for the stem, 2 for the stem and the stage of C2."""
        raise NotImplementedError

    def load_weights(self, weights: str) -> None:
        """Load pretrained weights.

        Args:
            weights: "default" to download those that the source of the network publishes, or the path of a file.

        Raises:
            ValueError: the download failed, the file is not a state dict, or it does not fit the network.
        """
        raise NotImplementedError


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


def refuse_group_norm(backbone: Backbone, origin: str) -> None:
    """Refuse weights that were trained with batch norm for a backbone with group norm.

    Raises:
        ValueError: the backbone has group norm. Names `origin`, where the weights come from.
    """
    if any(isinstance(module, GroupNorm) for module in backbone.modules()):
        raise ValueError(
            f"{origin}: trained with batch norm, whose statistics group norm cannot use; "
            "use --norm frozen or batch, or start from random weights with --weights-backbone none"
        )
