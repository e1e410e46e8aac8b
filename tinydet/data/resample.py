"""Image resizing without aliasing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Filter = Literal["area", "bilinear", "lanczos"]
FILTERS: tuple[Filter, ...] = ("area", "bilinear", "lanczos")


def resample(pixels: NDArray[np.uint8], width: int, height: int, filter: Filter = "area") -> NDArray[np.uint8]:
    """Resize pixels (H, W, 3) to (height, width, 3).

    Args:
        filter: "area" averages the source pixels that each new pixel covers (INTER_AREA of OpenCV) and enlarges by
            linear interpolation. "bilinear" and "lanczos" scale their kernel with the reduction factor, so every source
            pixel contributes. They match the filters of Pillow (ANTIALIAS in old versions is lanczos), not those of
            OpenCV.

    Raises:
        ValueError: unknown filter, or a side below one pixel.
    """
    if width < 1 or height < 1:
        raise ValueError(f"expected at least 1x1 pixels, got {width}x{height}")
    if pixels.shape[:2] == (height, width):
        return pixels
    if filter == "area":
        shrinks = width <= pixels.shape[1] and height <= pixels.shape[0]
        resized = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        return np.asarray(resized, np.uint8).reshape(height, width, pixels.shape[2])
    if filter not in _KERNELS:
        raise ValueError(f"the filter must be one of {', '.join(FILTERS)}, not {filter!r}")
    return _resample_rows(_resample_rows(pixels.swapaxes(0, 1), width, filter).swapaxes(0, 1), height, filter)


def _resample_rows(pixels: NDArray[np.uint8], length: int, filter: Filter) -> NDArray[np.uint8]:
    """Resize pixels (H, W, C) to (length, W, C)."""
    if length == len(pixels):
        return pixels
    kernel, radius = _KERNELS[filter]
    step = len(pixels) / length
    stretch = max(step, 1.0)
    center = (np.arange(length) + 0.5) * step
    first = np.floor(center - radius * stretch).astype(int)
    result = np.zeros((length, *pixels.shape[1:]), np.float32)
    taps = [first + n for n in range(int(np.ceil(2 * radius * stretch)) + 1)]
    weights = [kernel((tap + 0.5 - center) / stretch) * ((tap >= 0) & (tap < len(pixels))) for tap in taps]
    total = np.sum(weights, axis=0)  # smaller at the border, where taps outside the image have weight 0
    for tap, weight in zip(taps, weights, strict=True):
        normalized = (weight / total).astype(np.float32).reshape(-1, 1, 1)
        result += normalized * pixels[tap.clip(0, len(pixels) - 1)]
    return np.rint(result).clip(0, 255).astype(np.uint8)


def _triangle(x: NDArray[np.float64]) -> NDArray[np.float64]:
    weights: NDArray[np.float64] = np.maximum(1 - np.abs(x), 0)
    return weights


def _lanczos3(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)


_KERNELS: dict[Filter, tuple[Callable[[NDArray[np.float64]], NDArray[np.float64]], float]] = {
    "bilinear": (_triangle, 1.0),
    "lanczos": (_lanczos3, 3.0),
}  # kernel and its radius in pixels
