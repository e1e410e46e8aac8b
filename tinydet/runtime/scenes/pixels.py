"""Convert pixels of any number type to the uint8 RGB that a model takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from tinydet.spec import STRETCH

Pixels = NDArray[np.generic]
T = TypeVar("T", bound=np.generic)
Image = NDArray[np.uint8]

SAMPLE = 1 << 22  # number of pixels from which percentiles are computed


@dataclass(frozen=True)
class Limits:
    """For each band, the values that map to 0 (`low`) and 255 (`high`)."""

    low: tuple[float, ...]
    high: tuple[float, ...]


KeptLimits = Callable[[Callable[[], Limits]], Limits]  # returns limits, kept ones or those that the argument measures


def measure_limits(pixels: Pixels, percentiles: tuple[float, float] = STRETCH) -> Limits:
    """Compute the percentiles of each band of (H, W) or (H, W, C) pixels, without NaN and masked pixels.

    Raises:
        ValueError: the percentiles are not increasing, or outside [0, 100].
    """
    if not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise ValueError(f"the percentiles of a stretch increase within [0, 100], got {percentiles}")
    bands = pixels if pixels.ndim == 3 else pixels[..., None]
    step = max(1, round((bands.shape[0] * bands.shape[1] / SAMPLE) ** 0.5))
    limits = []
    for band in np.moveaxis(bands[::step, ::step], -1, 0):
        values = np.ma.compressed(np.ma.masked_invalid(band, copy=False))
        limits.append(np.percentile(values, percentiles) if values.size else np.zeros(2))
    return Limits(tuple(float(low) for low, _ in limits), tuple(float(high) for _, high in limits))


def to_rgb8(pixels: Pixels, stretch: tuple[float, float] | Limits = STRETCH) -> Image:
    """Convert pixels (H, W) or (H, W, C) of any number type to uint8 (H, W, 3) RGB.

    One band is grayscale. The second of two bands and all bands after the third are dropped (alpha). 8-bit values are
    kept. Other types are stretched, each band between its own limits: `stretch`, or these percentiles of the pixels.

    Raises:
        ValueError: the pixels have another shape, or are not numbers.
    """
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or 0 in pixels.shape or pixels.dtype.kind not in "uifb":
        raise ValueError(f"expected an image (H, W) or (H, W, bands) of numbers, got {pixels.shape} {pixels.dtype}")
    pixels = pixels[..., :3] if pixels.shape[2] > 2 else pixels[..., :1]
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8) * np.uint8(255)
    if pixels.dtype != np.uint8:
        pixels = _stretch(pixels, stretch if isinstance(stretch, Limits) else measure_limits(pixels, stretch))
    rgb = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
    return np.ascontiguousarray(rgb, np.uint8)


def check_channels_last(pixels: Pixels) -> None:
    """Check that an array is not (C, H, W), which would be taken for an image of C rows.

    Raises:
        ValueError: it has at most four rows and more bands than that.
    """
    if pixels.ndim == 3 and pixels.shape[0] <= 4 < pixels.shape[2]:
        raise ValueError(
            f"expected an image (H, W) or (H, W, C), got {pixels.shape} with the channels first; "
            "use image.transpose(1, 2, 0)"
        )


class BandsError(ValueError):
    """A selection of bands that a scene does not have."""


def check_bands(bands: Sequence[int], available: int, name: str) -> None:
    """Check a selection of bands, counted from 1, for a scene of `available` bands.

    Raises:
        BandsError: there are not one or three, or one does not exist. Names the scene.
    """
    if len(bands) not in (1, 3) or not all(1 <= band <= available for band in bands):
        raise BandsError(
            f"{name}: bands are one (grayscale) or three (red, green, blue) of 1 to {available}, got "
            f"{','.join(map(str, bands))}"
        )


def select_bands(pixels: Pixels, bands: Sequence[int] | None, name: str) -> Pixels:
    """Return the selected bands of (H, W) or (H, W, C) pixels; all for None. Raise BandsError as `check_bands`."""
    if bands is None:
        return pixels
    check_bands(bands, pixels.shape[2] if pixels.ndim == 3 else 1, name)
    return pixels.reshape(*pixels.shape[:2], -1)[..., [band - 1 for band in bands]]


def upright(stored: NDArray[T], orientation: int) -> NDArray[T]:
    """Apply an EXIF orientation, 1 to 8, to pixels (H, W) or (H, W, C) as they are stored."""
    if orientation in (2, 3, 7, 8):
        stored = stored[:, ::-1]
    if orientation in (3, 4, 6, 7):
        stored = stored[::-1]
    return np.ascontiguousarray(stored.swapaxes(0, 1) if orientation > 4 else stored)


def wide_float(dtype: np.dtype[Any]) -> type[np.floating]:
    """Return a float type that distinguishes the values of a type: float32 or float64."""
    return np.float32 if dtype.itemsize <= 2 or dtype == np.float32 else np.float64


def resize(pixels: Image, size: tuple[int, int]) -> Image:
    """Resize to `size` (width, height), by averaging if neither side grows, else by bilinear interpolation."""
    height, width = pixels.shape[:2]
    if (width, height) == size:
        return pixels
    shrinks = size[0] <= width and size[1] <= height
    result = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.asarray(result, np.uint8)


def _stretch(pixels: Pixels, limits: Limits) -> Image:
    """Map each band linearly from its limits to 0 and 255; NaN becomes 0."""
    low, high = (np.asarray(side, wide_float(pixels.dtype)) for side in (limits.low, limits.high))
    span = np.where(high > low, high - low, 1)
    with np.errstate(invalid="ignore", over="ignore"):  # infinite numbers
        scaled = np.clip((pixels.astype(low.dtype) - low) / span, 0, 1) * 255 + 0.5
    result: Image = np.nan_to_num(scaled, nan=0.0).astype(np.uint8)
    return result
