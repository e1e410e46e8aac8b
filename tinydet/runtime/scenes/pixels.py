"""Pixels of any number type as the uint8 RGB that a model sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.generic]
Image = NDArray[np.uint8]

STRETCH = (0.5, 99.5)  # percentiles that map to 0 and 255 where pixels are wider than 8 bits
SAMPLE = 1 << 22  # pixels from which percentiles are taken


@dataclass(frozen=True)
class Limits:
    """Values of each band that map to 0 and 255."""

    low: tuple[float, ...]
    high: tuple[float, ...]


def measure_limits(pixels: Pixels, percentiles: tuple[float, float] = STRETCH) -> Limits:
    """The percentiles of each band of (H, W) or (H, W, C) pixels; NaN and masked pixels do not count."""
    if not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise ValueError(f"the percentiles of a stretch rise within [0, 100], got {percentiles}")
    bands = pixels if pixels.ndim == 3 else pixels[..., None]
    step = max(1, round((bands.shape[0] * bands.shape[1] / SAMPLE) ** 0.5))
    limits = []
    for band in np.moveaxis(bands[::step, ::step], -1, 0):
        values = np.ma.compressed(np.ma.masked_invalid(band, copy=False))
        limits.append(np.percentile(values, percentiles) if values.size else np.zeros(2))
    return Limits(tuple(float(low) for low, _ in limits), tuple(float(high) for _, high in limits))


def to_rgb8(pixels: Pixels, stretch: tuple[float, float] | Limits = STRETCH) -> Image:
    """Pixels (H, W) or (H, W, C) of any number type as uint8 (H, W, 3) RGB.

    One band is grey; the second of two and all after the third are dropped (alpha). 8-bit values stay as they are.
    Others are stretched, each band by its own limits: by their percentiles in these pixels, or by given `Limits`.

    Raises:
        ValueError: for another shape or type.
    """
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or 0 in pixels.shape or pixels.dtype.kind not in "uifb":
        raise ValueError(f"expected an image (H, W) or (H, W, bands) of numbers, got {pixels.shape} {pixels.dtype}")
    pixels = pixels[..., :3] if pixels.shape[2] > 2 else pixels[..., :1]
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8) * np.uint8(255)
    if pixels.dtype != np.uint8:
        pixels = _stretched(pixels, stretch if isinstance(stretch, Limits) else measure_limits(pixels, stretch))
    rgb = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
    return np.ascontiguousarray(rgb, np.uint8)


class BandsError(ValueError):
    """Bands that a scene does not have."""


def check_bands(bands: Sequence[int], available: int, name: str) -> None:
    """Refuse a choice of bands, counted from 1, that a scene of `available` bands does not have.

    Raises:
        BandsError: naming the scene, the rule and the choice.
    """
    if len(bands) not in (1, 3) or not all(1 <= band <= available for band in bands):
        raise BandsError(
            f"{name}: bands are one (grey) or three (red, green, blue) of 1 to {available}, got "
            f"{','.join(map(str, bands))}"
        )


def resized(pixels: Image, size: tuple[int, int]) -> Image:
    """Averaged where `size` (width, height) is smaller in both directions, else interpolated."""
    height, width = pixels.shape[:2]
    if (width, height) == size:
        return pixels
    shrinks = size[0] <= width and size[1] <= height
    result = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.asarray(result, np.uint8)


def _stretched(pixels: Pixels, limits: Limits) -> Image:
    low, high = (np.asarray(side, np.float32) for side in (limits.low, limits.high))
    span = np.where(high > low, high - low, 1)
    scaled = np.clip((pixels.astype(np.float32) - low) / span, 0, 1) * 255 + 0.5
    result: Image = np.nan_to_num(scaled, nan=0.0).astype(np.uint8)
    return result
