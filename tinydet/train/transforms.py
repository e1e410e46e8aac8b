"""Augmentation beyond the paper's horizontal flip, for images taken from above and under changing light.

Every random draw comes from the generator of the sample, so from (seed, epoch, index). torchvision's own random
transforms draw from torch's global generator, which the reading thread would share with the training thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms.v2 import functional as F

from tinydet.data.samples import Sample, clip_to_tile, flip_horizontally, objects_and_regions
from tinydet.geometry.tiles import Tile
from tinydet.train.config import AUGMENTATIONS

SCALES = (0.5, 2.0)  # log-uniform
LEAST_SIDE = 2.0  # pixels; a smaller object is ignored
# As strong as in torchvision's SSD: factors for brightness, contrast and saturation, and a shift of the hue.
BRIGHTNESS, CONTRAST, SATURATION, HUE = (0.875, 1.125), (0.5, 1.5), (0.5, 1.5), (-0.05, 0.05)

Transform = Callable[[Sample, np.random.Generator], Sample]


@dataclass(frozen=True)
class Augment:
    """A `TrainingTiles.transform`: scale jitter with a crop, vertical flip, rotation, photometric distortion.

    Args:
        kinds: some of `AUGMENTATIONS`.
        size: largest side of a sample; larger ones are cropped to it at random.

    Raises:
        ValueError: unknown kind.
    """

    kinds: tuple[str, ...]
    size: int

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in AUGMENTATIONS]
        if unknown:
            raise ValueError(f"unknown augmentation {unknown[0]!r}; choose from {', '.join(AUGMENTATIONS)}")

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if "scale" in self.kinds:
            low, high = np.log(SCALES)
            sample = crop(resize(sample, float(np.exp(rng.uniform(low, high)))), self.size, rng)
        if "vflip" in self.kinds and rng.random() < 0.5:
            sample = turn(flip_horizontally(sample), 2)
        if "rotate" in self.kinds:
            sample = turn(sample, int(rng.integers(4)))
        if "photometric" in self.kinds:
            sample = Sample(distort(sample.pixels, rng), sample.boxes, sample.labels, sample.regions)
        return sample


def chain(transforms: Sequence[Transform]) -> Transform | None:
    """Compose transforms in order; None if there are none."""
    if not transforms:
        return None

    def do(sample: Sample, rng: np.random.Generator) -> Sample:
        for transform in transforms:
            sample = transform(sample, rng)
        return sample

    return do


def resize(sample: Sample, scale: float) -> Sample:
    """Resize a sample by `scale`, antialiased; objects that become too small are ignored."""
    height, width = sample.pixels.shape[:2]
    new = max(round(height * scale), 1), max(round(width * scale), 1)
    pixels = F.resize(_tensor(sample.pixels), list(new), antialias=True).permute(1, 2, 0).contiguous().numpy()
    factors = np.tile(np.array([new[1] / width, new[0] / height], np.float32), 2)
    boxes, regions = sample.boxes * factors, sample.regions * factors
    kept = ((boxes[:, 2:] - boxes[:, :2]) >= LEAST_SIDE).all(axis=1)
    return Sample(pixels, boxes[kept], sample.labels[kept], np.concatenate([regions, boxes[~kept]]))


def crop(sample: Sample, size: int, rng: np.random.Generator) -> Sample:
    """Cut a window of at most `size` x `size` pixels; a sliver of an object is ignored, as in `TrainingTiles`."""
    height, width = sample.pixels.shape[:2]
    x, y = (int(rng.integers(max(side - size, 0) + 1)) for side in (width, height))
    window = Tile(0, 0, 0, x, y, min(width, size), min(height, size))
    every = np.concatenate([sample.boxes, sample.regions]).astype(np.float64)
    clipped, visible = clip_to_tile(every, window)
    ignore = np.arange(len(every)) >= len(sample.boxes)
    objects, regions = objects_and_regions(ignore, visible, "ignore")
    return Sample(
        sample.pixels[y : y + window.height, x : x + window.width],
        clipped[objects].astype(np.float32),
        sample.labels[objects[: len(sample.boxes)]],
        clipped[regions].astype(np.float32),
    )


def turn(sample: Sample, quarters: int) -> Sample:
    """Rotate a sample counterclockwise by a number of right angles."""
    for _ in range(quarters % 4):
        width = sample.pixels.shape[1]
        sample = Sample(
            np.rot90(sample.pixels),
            _turned(sample.boxes, width),
            sample.labels,
            _turned(sample.regions, width),
        )
    return sample


def distort(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Change brightness, contrast, saturation and hue, each with probability 1/2."""
    image = _tensor(pixels)
    for change, (low, high) in (
        (F.adjust_brightness, BRIGHTNESS),
        (F.adjust_contrast, CONTRAST),
        (F.adjust_saturation, SATURATION),
        (F.adjust_hue, HUE),
    ):
        strength = float(rng.uniform(low, high))
        if rng.random() < 0.5:
            image = change(image, strength)
    changed: NDArray[np.uint8] = image.permute(1, 2, 0).contiguous().numpy()
    return changed


def _turned(boxes: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    x0, y0, x1, y1 = boxes.T
    return np.stack([y0, width - x1, y1, width - x0], axis=1)


def _tensor(pixels: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
