"""Random unevenness of any grain: of the ground, of waves, of clouds and of froth."""

from __future__ import annotations

import cv2
import numpy as np

from tinydet.data.scenery.colours import Image


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cell: float, stretch: float = 1.0) -> Image:
    """Smooth noise, mean 0 and deviation about 1, with bumps of `cell` pixels, `stretch` times wider than high."""
    if cell <= 1:
        return rng.standard_normal(shape, np.float32)
    height, width = shape
    spacing = max(1.0, cell / 2.5)  # of a coarse grid: blurred there, for a round bump, and enlarged
    sigma = cell / 2.5 / spacing
    size = (max(4, round(height / spacing)), max(4, round(width / spacing / stretch)))
    coarse = cv2.GaussianBlur(rng.standard_normal(size, np.float32), (0, 0), sigma)
    coarse *= 2 * np.pi**0.5 * sigma  # a deviation of 1 again
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)
