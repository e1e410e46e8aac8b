"""Camera model of a synthetic scene."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from tinydet.data.scenery.colors import Image
from tinydet.data.scenery.noise import smooth_noise
from tinydet.data.scenery.view import View


def photograph(rng: np.random.Generator, image: Image, view: View) -> NDArray[np.uint8]:
    """Apply haze, exposure, lens blur, sensor noise and JPEG compression.

    Overwrites `image`, to save memory on large scenes.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    distance = np.linspace(1, 0, view.height, dtype=np.float32)[:, None] ** 2
    haze = distance * np.float32(rng.uniform(0, 0.16) * view.vertical_scale)
    brightness = smooth_noise(rng, (view.height, view.width), 60 * view.unit)  # cloud shadows
    brightness *= np.float32(0.05 * (1 - 0.5 * view.sun))
    brightness += 1
    brightness *= 1 - haze
    brightness *= np.float32(rng.normal(1.0, 0.07))
    for channel, (tint, white) in enumerate(zip(view.tint, (206, 214, 222), strict=True)):
        image[..., channel] *= brightness * np.float32(tint)
        image[..., channel] += haze * np.float32(white)
    gray, saturation = image @ np.array((0.3, 0.59, 0.11), np.float32), np.float32(1 + rng.normal(0.05, 0.12))
    for channel in range(3):
        image[..., channel] = gray + (image[..., channel] - gray) * saturation
    del brightness, gray  # free two full-size planes early: large scenes need the memory
    cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.65), dst=image)
    noise_level = np.float32(rng.uniform(1.0, 5.0))
    grain = rng.standard_normal(image.shape[:2], np.float32)
    for channel in range(3):
        image[..., channel] += (
            grain + np.float32(0.4) * rng.standard_normal(image.shape[:2], np.float32)
        ) * noise_level
    pixels = np.clip(image, 0, 255, out=image).astype(np.uint8)
    _, jpeg = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(72, 96))])
    developed = np.asarray(cv2.imdecode(jpeg, cv2.IMREAD_COLOR), np.uint8)
    return np.ascontiguousarray(developed[..., ::-1])
