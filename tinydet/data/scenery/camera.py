"""What a camera makes of a scene."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from tinydet.data.scenery.colours import Image
from tinydet.data.scenery.noise import smooth_noise
from tinydet.data.scenery.view import View


def photograph(rng: np.random.Generator, image: Image, view: View) -> NDArray[np.uint8]:
    """Haze, exposure, lens, sensor and compression. It works in `image`, which is of no use afterwards."""
    far = np.linspace(1, 0, view.height, dtype=np.float32)[:, None] ** 2
    haze = far * np.float32(rng.uniform(0, 0.16) * view.tilt)
    light = smooth_noise(rng, (view.height, view.width), 60 * view.unit)  # clouds
    light *= np.float32(0.05 * (1 - 0.5 * view.sun))
    light += 1
    light *= 1 - haze
    light *= np.float32(rng.normal(1.0, 0.07))
    for band, (tint, white) in enumerate(zip(view.tint, (206, 214, 222), strict=True)):
        image[..., band] *= light * np.float32(tint)
        image[..., band] += haze * np.float32(white)
    grey, vivid = image @ np.array((0.3, 0.59, 0.11), np.float32), np.float32(1 + rng.normal(0.05, 0.12))
    for band in range(3):
        image[..., band] = grey + (image[..., band] - grey) * vivid
    del light, grey  # a plane of a large scene counts
    cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.65), dst=image)
    strength = np.float32(rng.uniform(1.0, 5.0))
    grain = rng.standard_normal(image.shape[:2], np.float32)
    for band in range(3):
        image[..., band] += (grain + np.float32(0.4) * rng.standard_normal(image.shape[:2], np.float32)) * strength
    pixels = np.clip(image, 0, 255, out=image).astype(np.uint8)
    _, file = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(72, 96))])
    developed = np.asarray(cv2.imdecode(file, cv2.IMREAD_COLOR), np.uint8)
    return np.ascontiguousarray(developed[..., ::-1])
