"""Augmentation beyond the paper's horizontal flip, for images taken from above, in other light, by another camera.

Every random draw comes from the generator of the sample, so from (seed, epoch, index). torchvision's random transforms
draw from torch's global generator instead, which the reading thread would share with the training thread. Nothing here
calls torch: operators of torch in the reading thread start a second team of OpenMP threads, which waits for the cores
that training uses and costs ten times the CPU time of the work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tinydet.data.resample import resample
from tinydet.data.samples import LEAST_SIDE, Sample, clip_to_tile, flip_horizontally, objects_and_regions
from tinydet.geometry.tiles import Tile
from tinydet.train.config import expand_bundles

SCALES = (0.5, 2.0)  # log-uniform
# As strong as in torchvision's SSD: factors for brightness, contrast and saturation, and a shift of the hue.
BRIGHTNESS, CONTRAST, SATURATION, HUE = (0.875, 1.125), (0.5, 1.5), (0.5, 1.5), (-0.05, 0.05)
LUMA = (0.299, 0.587, 0.114)  # weights of red, green and blue in the brightness of a pixel
GAMMA = (0.5, 2.0)  # log-uniform exponent of the pixel values
BLUR = (0.4, 1.5)  # pixels, sigma; beyond that, an object of a few pixels is gone
SHARPEN = (0.5, 2.0)  # weight of the difference from the blurred image
NOISE = (0.0, 10.0)  # gray levels, sigma

Pixels = NDArray[np.uint8]
Change = Callable[[Pixels, np.random.Generator], Pixels]
Transform = Callable[[Sample, np.random.Generator], Sample]


@dataclass(frozen=True)
class Augment:
    """A `TrainingTiles.transform`: geometric and photometric changes, in the order of `AUGMENTATIONS`.

    Args:
        kinds: some of `AUGMENTATIONS` or `BUNDLES`.
        size: largest side of a sample; larger ones are cropped to it at random.

    Raises:
        ValueError: unknown kind.
    """

    kinds: tuple[str, ...]
    size: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", expand_bundles(self.kinds))

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if "scale" in self.kinds:
            low, high = np.log(SCALES)
            sample = crop(resize(sample, float(np.exp(rng.uniform(low, high)))), self.size, rng)
        if "vflip" in self.kinds and rng.random() < 0.5:
            sample = turn(flip_horizontally(sample), 2)
        if "rotate" in self.kinds:
            sample = turn(sample, int(rng.integers(4)))
        changes = [change for kind, change in PHOTOMETRIC.items() if kind in self.kinds]
        return replace(sample, pixels=change_colors(sample.pixels, changes, rng)) if changes else sample


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
    """Resize a sample by `scale`, without aliasing; objects that become too small are ignored."""
    height, width = sample.pixels.shape[:2]
    new = max(round(height * scale), 1), max(round(width * scale), 1)
    pixels = resample(np.ascontiguousarray(sample.pixels), new[1], new[0])
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


def change_colors(pixels: Pixels, changes: Sequence[Change], rng: np.random.Generator) -> Pixels:
    """Apply photometric changes in order. A gray image is changed as one channel, in a fraction of the time."""
    gray = bool((pixels == pixels[..., :1]).all())
    changed = pixels[..., :1] if gray else pixels
    for change in changes:
        changed = change(changed, rng)
    return np.asarray(cv2.cvtColor(changed, cv2.COLOR_GRAY2RGB), np.uint8) if gray else changed


def distort(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Change brightness, contrast, saturation and hue, each with probability 1/2."""
    for change, (low, high) in (
        (_brighten, BRIGHTNESS),
        (_stretch, CONTRAST),
        (_saturate, SATURATION),
        (_shift_hue, HUE),
    ):
        strength = float(rng.uniform(low, high))
        if rng.random() < 0.5:
            pixels = change(pixels, strength)
    return pixels


def bend(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Raise the pixel values, scaled to 0 to 1, to a random power."""
    low, high = np.log(GAMMA)
    return _replace(pixels, 255 * (np.arange(256) / 255) ** np.exp(rng.uniform(low, high)))


def invert(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Swap dark and bright, as between the palettes white-hot and black-hot, with probability 1/2."""
    return 255 - pixels if rng.random() < 0.5 else pixels


def refocus(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Blur with probability 1/4, sharpen with probability 1/4."""
    sigma, weight, draw = rng.uniform(*BLUR), rng.uniform(*SHARPEN), rng.random()
    if draw >= 0.5:
        return pixels
    pixels = np.ascontiguousarray(pixels)
    blurred = cv2.GaussianBlur(pixels, (0, 0), sigma).reshape(pixels.shape)
    changed = blurred if draw < 0.25 else cv2.addWeighted(pixels, 1 + weight, blurred, -weight, 0)
    return np.asarray(changed, np.uint8).reshape(pixels.shape)  # OpenCV drops the axis of a single channel


def add_noise(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Add Gaussian noise of a random strength, the same in all channels, with probability 1/2."""
    sigma, draw = rng.uniform(*NOISE), rng.random()
    if draw >= 0.5:
        return pixels
    noise = np.float32(sigma) * rng.standard_normal((*pixels.shape[:2], 1), np.float32)
    noisy: Pixels = np.rint(pixels + noise).clip(0, 255).astype(np.uint8)
    return noisy


# By name; each takes and returns (H, W, 3) pixels, or (H, W, 1) of a gray image.
PHOTOMETRIC: dict[str, Change] = {
    "photometric": distort,
    "gamma": bend,
    "polarity": invert,
    "sharpness": refocus,
    "noise": add_noise,
}


def _turned(boxes: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    x0, y0, x1, y1 = boxes.T
    return np.stack([y0, width - x1, y1, width - x0], axis=1)


# The changes of `distort` equal torchvision's functions of the same purpose, up to rounding. Saturation and hue leave
# gray pixels as they are.


def _brighten(pixels: Pixels, factor: float) -> Pixels:
    return _replace(pixels, factor * np.arange(256))


def _stretch(pixels: Pixels, factor: float) -> Pixels:
    mean = pixels.mean(axis=(0, 1)) @ (LUMA if pixels.shape[2] == 3 else (1.0,))
    return _replace(pixels, mean + factor * (np.arange(256) - mean))


def _saturate(pixels: Pixels, factor: float) -> Pixels:
    if pixels.shape[2] == 1:
        return pixels
    mixing = factor * np.eye(3) + (1 - factor) * np.array([LUMA] * 3)
    return np.asarray(cv2.transform(np.ascontiguousarray(pixels), mixing), np.uint8)


def _shift_hue(pixels: Pixels, turns: float) -> Pixels:
    if pixels.shape[2] == 1:
        return pixels
    hsv = cv2.cvtColor(pixels.astype(np.float32), cv2.COLOR_RGB2HSV)  # hue in degrees
    np.add(hsv[..., 0], 360 * (turns % 1), out=hsv[..., 0])  # OpenCV wraps angles above 360, but not below 0
    shifted: Pixels = np.rint(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)).clip(0, 255).astype(np.uint8)
    return shifted


def _replace(pixels: Pixels, levels: NDArray[np.floating[Any]]) -> Pixels:
    """Replace each gray level by that of the table (256,), rounded and clipped."""
    table = np.rint(levels).clip(0, 255).astype(np.uint8)
    return np.asarray(cv2.LUT(np.ascontiguousarray(pixels), table), np.uint8).reshape(pixels.shape)
