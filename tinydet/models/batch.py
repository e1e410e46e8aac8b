"""Training samples as the tensors of one step, and the loss of what a detector says about them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinydet.data.samples import Sample, pad_together
from tinydet.geometry.anchors import AnchorDesign
from tinydet.models.assign.max_iou import Matches, ignored_by_regions, match_anchors
from tinydet.models.backbone import PIXEL_MEAN, PIXEL_STD
from tinydet.models.losses import Losses, retinanet_loss
from tinydet.spec import PAD_VALUE

if TYPE_CHECKING:
    from tinydet.models.retinanet import HeadOutputs

PAD_MULTIPLE = 32  # the stride of C5, so that every level is exactly twice the next


@dataclass(frozen=True)
class Batch:
    """Tiles padded to one size, and what is on them; boxes are xyxy in pixels of their tile.

    Attributes:
        images: (B, 3, H, W) normalised RGB.
        boxes: (M, 4) objects of all tiles; `labels`: (M,); `owner`: (M,) the tile of each.
        regions: (R, 4) where nothing is learned; `region_owner`: (R,).
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
    samples: Sequence[Sample], device: torch.device, layout: torch.memory_format = torch.channels_last
) -> Batch:
    """Samples as one batch on `device`, padded right and below with the mean that pixels are normalised with."""
    pixels = torch.from_numpy(pad_together([s.pixels for s in samples], PAD_VALUE, PAD_MULTIPLE)).to(device)
    mean, std = (torch.tensor(value, device=device).view(1, 3, 1, 1) for value in (PIXEL_MEAN, PIXEL_STD))
    images = pixels.permute(0, 3, 1, 2).float().contiguous(memory_format=layout).sub_(mean).div_(std)
    labels = torch.from_numpy(np.concatenate([s.labels for s in samples])).to(device)
    boxes, owner = _together([s.boxes for s in samples], device)
    regions, region_owner = _together([s.regions for s in samples], device)
    sizes = tuple((s.pixels.shape[0], s.pixels.shape[1]) for s in samples)
    return Batch(images, boxes, labels, owner, regions, region_owner, sizes)


class Targets(NamedTuple):
    """What the anchors of a batch are to learn."""

    anchors: Tensor  # (N, 4) of one image
    matches: Matches
    ignored: Tensor  # flat indices of the anchors that ignore regions silence

    def loss(self, logits: Sequence[Tensor], deltas: Tensor, batch: Batch) -> Losses:
        """RetinaNet's loss, by level, from the logits of each level and the (P, 4) offsets of the positive anchors."""
        return retinanet_loss(logits, deltas, self.anchors, self.matches, batch.boxes, batch.labels, self.ignored)


def targets_of(batch: Batch, design: AnchorDesign) -> Targets:
    """The anchors of RetinaNet, matched with the objects of a batch."""
    anchors = anchors_of(design, batch.size, batch.images.device)
    matches = match_anchors(batch.boxes, batch.owner, design, anchors, batch.size)
    return Targets(anchors, matches, ignored_by_regions(batch.regions, batch.region_owner, design, batch.size))


def loss_of(outputs: HeadOutputs, batch: Batch, design: AnchorDesign) -> Losses:
    """RetinaNet's loss, by level, of answers for all anchors."""
    targets = targets_of(batch, design)
    deltas = torch.cat(outputs.deltas, dim=1).reshape(-1, 4)[targets.matches.positive]
    return targets.loss(outputs.logits, deltas, batch)


@functools.lru_cache(maxsize=8)
def anchors_of(design: AnchorDesign, size: tuple[int, int], device: torch.device) -> Tensor:
    """(N, 4) anchors of all levels for a padded size, finest first, on `device`; kept for the next step."""
    with torch.inference_mode(False):  # what is kept must serve training, whoever asked first
        return torch.from_numpy(np.concatenate(design.grid_anchors(*size))).to(device)


def _together(boxes: Sequence[NDArray[Any]], device: torch.device) -> tuple[Tensor, Tensor]:
    owner = np.repeat(np.arange(len(boxes)), [len(b) for b in boxes])
    return torch.from_numpy(np.concatenate(boxes)).to(device), torch.from_numpy(owner).to(device)
