"""Smooth random noise at any scale, for ground, waves, clouds and foam."""

from __future__ import annotations

import cv2
import numpy as np

from tinydet.data.scenery.colors import Image


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cell: float, stretch: float = 1.0) -> Image:
    """Return smooth noise (height, width) with mean 0 and standard deviation about 1.

    Args:
        shape: (height, width).
        cell: height of a bump in pixels; 1 or less gives white noise.
        stretch: how many times wider than high a bump is.
    """
    if cell <= 1:
        return rng.standard_normal(shape, np.float32)
    height, width = shape
    spacing = max(1.0, cell / 2.5)  # of a coarse grid, which is blurred to get round bumps and then enlarged
    sigma = cell / 2.5 / spacing
    size = (max(4, round(height / spacing)), max(4, round(width / spacing / stretch)))
    coarse = cv2.GaussianBlur(rng.standard_normal(size, np.float32), (0, 0), sigma)
    coarse *= 2 * np.pi**0.5 * sigma  # restores the standard deviation of 1
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)
