"""A picture of training tiles as the network receives them: `tinydet train --preview tiles.png`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, make_grid

from tinydet._internal.atomic import atomic_path
from tinydet.data.samples import Sample, TrainingTiles, epoch_batches

TILES, COLUMNS, GAP = 8, 4, 4
OBJECT_COLOR, REGION_COLOR = "lime", "orange"


def write_preview(tiles: TrainingTiles, path: Path, *, seed: int) -> None:
    """Write the first tiles with objects of the first epoch, augmented and with their boxes, as one PNG."""
    (order,) = epoch_batches(len(tiles), max(len(tiles), 1), seed=seed, epoch=0)
    order.sort(key=lambda index: not tiles.boxes_in(index)[1].any())  # stable: tiles with objects first
    drawn = [draw_sample(tiles.sample(index, seed=seed, epoch=0)) for index in order[:TILES]]
    height, width = (max(tile.shape[axis] for tile in drawn) for axis in (1, 2))
    padded = [torch.nn.functional.pad(tile, (0, width - tile.shape[2], 0, height - tile.shape[1])) for tile in drawn]
    picture = make_grid(padded, nrow=COLUMNS, padding=GAP)
    with atomic_path(path) as temporary:
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(temporary, format="PNG")


def draw_sample(sample: Sample) -> Tensor:
    """Return the pixels of a sample, (3, H, W) uint8, with a frame one pixel wide around each box."""
    pixels = torch.from_numpy(np.ascontiguousarray(sample.pixels)).permute(2, 0, 1)
    for boxes, color in ((sample.regions, REGION_COLOR), (sample.boxes, OBJECT_COLOR)):
        if len(boxes):
            frames = torch.from_numpy(boxes + np.array([-1, -1, 0, 0], np.float32))  # outside the object
            pixels = draw_bounding_boxes(pixels, frames, colors=color)
    return pixels
