"""The whole graph of a deployed model: uint8 tiles in, boxes out, alpha folded."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from tinydet.models.backbone import Backbone
from tinydet.models.detector import Detector
from tinydet.models.folding import fold_alpha
from tinydet.models.fpn import FPN
from tinydet.models.registry import detector_info
from tinydet.spec import ModelSpec


class InferenceGraph(nn.Module):
    """Normalize tiles and run `detector.inference(spec)`. No plugin, no shape that depends on the image.

    Wraps a copy of the detector in eval mode; the detector does not know that export exists.

    Args:
        fold: fold alpha into the convolutions. False keeps the pyramid as trained, for comparison. Attention, whose
            factors depend on the image, is always kept.

    Attributes:
        strides: of the levels of the detector, finest first.

    Raises:
        ValueError: the tile or another value of the spec does not suit the detector.
    """

    def __init__(self, detector: Detector, spec: ModelSpec, *, fold: bool = True) -> None:
        super().__init__()
        detector_info(spec.detector).check_tile(spec.tile, "the tile")
        ready = copy.deepcopy(detector).eval().requires_grad_(False)
        if fold and isinstance(ready.fpn, FPN) and ready.fpn.fusion != "attention":
            ready.fpn = fold_alpha(ready.fpn)
        self.strides = ready.design.strides
        self.pixels = Pixels(ready.backbone)
        self.network = ready.inference(spec)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(N, H, W, 3) uint8 RGB, sides multiples of the detector's -> the outputs of `Detector.inference`."""
        outputs: tuple[Tensor, ...] = self.network(self.pixels(images))
        return outputs


class Pixels(nn.Module):
    """(N, H, W, 3) uint8 RGB -> (N, 3, H, W) normalized as the backbone expects."""

    mean: Tensor
    std: Tensor

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.register_buffer("mean", backbone.pixel_mean.detach().clone().view(1, 3, 1, 1))
        self.register_buffer("std", backbone.pixel_std.detach().clone().view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        # Cast first: TensorRT's parser refuses a Transpose of uint8.
        return (images.float().permute(0, 3, 1, 2) - self.mean) / self.std
