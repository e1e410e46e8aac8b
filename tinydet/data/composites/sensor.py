"""The lens, sensor and image processor of a camera, from light to a JPEG file."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from tinydet.data.scenery.colors import Image


def develop(rng: np.random.Generator, image: Image, size: tuple[int, int], haze: Image | None = None) -> bytes:
    """Return a JPEG file of `size` (width, height) of a scene: haze, tone, blur, resolution, sharpening, noise.

    Args:
        image: (h, w, 3) RGB, 0 to 255; smaller than `size` for a camera of a lower resolution.
        haze: (h, w), 0 to 1, fraction of the light that comes from the air.
    """
    picture = image if haze is None else image + haze[..., None] * (np.array((198, 206, 216), np.float32) - image)
    picture = _tone(rng, picture)
    picture = _blur(rng, picture)
    if (picture.shape[1], picture.shape[0]) != size:
        larger = picture.shape[1] < size[0]
        method = cv2.INTER_CUBIC if larger else cv2.INTER_AREA
        picture = np.asarray(cv2.resize(picture, size, interpolation=method), np.float32)
    noise = rng.choice((0.0, rng.uniform(0.4, 2.5), rng.uniform(2.5, 7)), p=(0.35, 0.5, 0.15))
    if noise:
        picture = picture + _noise(rng, picture.shape, float(noise))
    if rng.random() < 0.55:
        strength, radius = rng.uniform(0.2, 1.0), rng.uniform(0.6, 1.6)
        picture = picture + np.float32(strength) * (picture - cv2.GaussianBlur(picture, (0, 0), radius))
    pixels = np.clip(picture, 0, 255).astype(np.uint8)[..., ::-1]
    if rng.random() < 0.35:  # a frame of a video, or a copy of a copy
        shift = int(rng.integers(0, 8))
        padded = np.asarray(cv2.copyMakeBorder(pixels, shift, 0, shift, 0, cv2.BORDER_REFLECT), np.uint8)
        first = cv2.imdecode(_encoded(padded, int(rng.integers(45, 90))), cv2.IMREAD_COLOR)
        pixels = np.asarray(first, np.uint8)[shift:, shift:]
    return _encoded(pixels, int(rng.integers(62, 97))).tobytes()


def _encoded(pixels: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    _, content = cv2.imencode(".jpg", np.ascontiguousarray(pixels), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(content, np.uint8)


def _tone(rng: np.random.Generator, image: Image) -> Image:
    """Vary exposure, contrast, white balance and saturation."""
    exposure, contrast = np.exp(rng.normal(0, 0.12)), np.exp(rng.normal(0.02, 0.12))
    balance = (1 + rng.normal(0, 0.035) * np.array((1, 0, -1)) + rng.normal(0, 0.015, 3)).astype(np.float32)
    picture = image * (np.float32(exposure) * balance)
    middle = np.float32(min(max(float(picture.mean()), 60), 150))
    picture = middle + (picture - middle) * np.float32(contrast)
    gray = (picture @ np.array((0.3, 0.59, 0.11), np.float32))[..., None]
    saturation = np.float32(np.exp(rng.normal(0, 0.15)) * (0.0 if rng.random() < 0.01 else 1.0))
    return np.asarray(gray + (picture - gray) * saturation, np.float32)


def _blur(rng: np.random.Generator, image: Image) -> Image:
    """Apply the blur of the lens, motion blur and chromatic shift."""
    sigma = rng.choice((0.0, rng.uniform(0.3, 0.6), rng.uniform(0.6, 1.0)), p=(0.35, 0.5, 0.15))
    if sigma:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), float(sigma)), np.float32)
    if rng.random() < 0.06:
        length, angle = rng.uniform(1.5, 4), rng.uniform(0, np.pi)
        kernel = np.zeros((9, 9), np.uint8)
        reach = np.array((np.cos(angle), np.sin(angle))) * length / 2
        start, end = (np.rint((4 + sign * reach) * 16).astype(int).tolist() for sign in (-1, 1))
        cv2.line(kernel, start, end, (255,), 1, cv2.LINE_AA, 4)
        image = np.asarray(cv2.filter2D(image, -1, kernel.astype(np.float32) / max(1, int(kernel.sum()))), np.float32)
    if rng.random() < 0.3:
        height, width = image.shape[:2]
        shifted = [image[..., 0], image[..., 1], image[..., 2]]
        offset = rng.uniform(-0.5, 0.5, 2)
        for channel, sign in ((0, 1), (2, -1)):
            move = np.array(((1, 0, sign * offset[0]), (0, 1, sign * offset[1])))
            shifted[channel] = np.asarray(
                cv2.warpAffine(shifted[channel], move, (width, height), borderMode=cv2.BORDER_REPLICATE), np.float32
            )
        image = np.stack(shifted, axis=-1)
    return image


def _noise(rng: np.random.Generator, shape: tuple[int, ...], level: float) -> Image:
    """Return noise of brightness and, coarser, of color."""
    grain = rng.standard_normal((shape[0], shape[1], 1), np.float32) * np.float32(level)
    half = rng.standard_normal(((shape[0] + 1) // 2, (shape[1] + 1) // 2, 3), np.float32) * np.float32(0.5 * level)
    return np.asarray(grain + cv2.resize(half, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR), np.float32)
