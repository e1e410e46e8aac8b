"""Pictures made smaller without aliasing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Filter = Literal["area", "bilinear", "lanczos"]
FILTERS: tuple[Filter, ...] = ("area", "bilinear", "lanczos")


def resample(pixels: NDArray[np.uint8], width: int, height: int, kind: Filter = "area") -> NDArray[np.uint8]:
    """Pixels (H, W, 3) as (height, width, 3).

    "area" is the mean of the pixels that a new one covers (OpenCV's INTER_AREA); to enlarge it interpolates. "bilinear"
    and "lanczos" widen their kernel by the factor of reduction, so that no pixel is passed over; Pillow does the same
    under these names (its old ANTIALIAS is lanczos), and OpenCV does not.

    Raises:
        ValueError: for another filter, or less than one pixel.
    """
    if width < 1 or height < 1:
        raise ValueError(f"expected at least 1x1 pixels, got {width}x{height}")
    if pixels.shape[:2] == (height, width):
        return pixels
    if kind == "area":
        shrinks = width <= pixels.shape[1] and height <= pixels.shape[0]
        resized = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        return np.asarray(resized, np.uint8).reshape(height, width, pixels.shape[2])
    if kind not in _KERNELS:
        raise ValueError(f"pictures are resampled by {', '.join(FILTERS)}, not {kind!r}")
    return _resample_rows(_resample_rows(pixels.swapaxes(0, 1), width, kind).swapaxes(0, 1), height, kind)


def _resample_rows(pixels: NDArray[np.uint8], length: int, kind: Filter) -> NDArray[np.uint8]:
    """(H, W, C) as (length, W, C)."""
    if length == len(pixels):
        return pixels
    kernel, reach = _KERNELS[kind]
    step = len(pixels) / length
    widen = max(step, 1.0)
    centre = (np.arange(length) + 0.5) * step
    first = np.floor(centre - reach * widen).astype(int)
    result = np.zeros((length, *pixels.shape[1:]), np.float32)
    taps = [first + n for n in range(int(np.ceil(2 * reach * widen)) + 1)]
    weights = [kernel((tap + 0.5 - centre) / widen) * ((tap >= 0) & (tap < len(pixels))) for tap in taps]
    total = np.sum(weights, axis=0)  # pixels beyond the border count for nothing
    for tap, weight in zip(taps, weights, strict=True):
        share = (weight / total).astype(np.float32).reshape(-1, 1, 1)
        result += share * pixels[tap.clip(0, len(pixels) - 1)]
    return np.rint(result).clip(0, 255).astype(np.uint8)


def _triangle(x: NDArray[np.float64]) -> NDArray[np.float64]:
    weights: NDArray[np.float64] = np.maximum(1 - np.abs(x), 0)
    return weights


def _lanczos3(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)


_KERNELS: dict[Filter, tuple[Callable[[NDArray[np.float64]], NDArray[np.float64]], float]] = {
    "bilinear": (_triangle, 1.0),
    "lanczos": (_lanczos3, 3.0),
}  # with the distance at which they end
