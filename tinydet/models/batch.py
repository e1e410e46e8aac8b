"""Training samples as the tensors of one step."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinydet.data.samples import Sample, pad_together
from tinydet.geometry.anchors import AnchorDesign
from tinydet.models.backbone import PixelNorm
from tinydet.models.options import TILE_MULTIPLE


@dataclass(frozen=True)
class Batch:
    """Tiles padded to one size, and their annotations; boxes are xyxy in pixels of their tile.

    Attributes:
        images: (B, 3, H, W) normalized RGB.
        boxes: (M, 4) objects of all tiles; `labels`: (M,) their classes; `owner`: (M,) index of their tile.
        regions: (R, 4) ignore regions, in which nothing is learned; `region_owner`: (R,).
        sizes: height and width of each tile before padding.
    """

    images: Tensor
    boxes: Tensor
    labels: Tensor
    owner: Tensor
    regions: Tensor
    region_owner: Tensor
    sizes: tuple[tuple[int, int], ...]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the padded tiles."""
        return self.images.shape[2], self.images.shape[3]


def collate(
    samples: Sequence[Sample],
    device: torch.device,
    norm: PixelNorm,
    layout: torch.memory_format = torch.channels_last,
    *,
    multiple: int = TILE_MULTIPLE,
) -> Batch:
    """Collate samples into one batch on `device`; tiles are padded at the right and bottom with the mean color.

    Args:
        norm: of the backbone, `Backbone.pixels`.
        multiple: of the sides after padding, `Detector.tile_multiple`.
    """
    pixels = torch.from_numpy(pad_together([s.pixels for s in samples], norm.pad, multiple)).to(device)
    mean, std = (torch.tensor(value, device=device).view(1, 3, 1, 1) for value in norm)
    images = pixels.permute(0, 3, 1, 2).float().contiguous(memory_format=layout).sub_(mean).div_(std)
    labels = torch.from_numpy(np.concatenate([s.labels for s in samples])).to(device)
    boxes, owner = _together([s.boxes for s in samples], device)
    regions, region_owner = _together([s.regions for s in samples], device)
    sizes = tuple((s.pixels.shape[0], s.pixels.shape[1]) for s in samples)
    return Batch(images, boxes, labels, owner, regions, region_owner, sizes)


@functools.lru_cache(maxsize=8)
def anchors_of(design: AnchorDesign, size: tuple[int, int], device: torch.device) -> Tensor:
    """Return the (N, 4) anchors of all levels for a padded size, finest first, on `device`; cached."""
    with torch.inference_mode(False):  # a cached tensor must also be usable in training
        return torch.from_numpy(np.concatenate(design.grid_anchors(*size))).to(device)


def _together(boxes: Sequence[NDArray[Any]], device: torch.device) -> tuple[Tensor, Tensor]:
    owner = np.repeat(np.arange(len(boxes)), [len(b) for b in boxes])
    return torch.from_numpy(np.concatenate(boxes)).to(device), torch.from_numpy(owner).to(device)
