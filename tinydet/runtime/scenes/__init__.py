"""Scenes: images, rasters, arrays and video frames of any size, read window by window.

Pixels are always uint8 (H, W, 3) RGB. Training reads its images through the same functions, so that a model sees the
same pixels in training and in deployment.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tinydet._internal.errors import name_failures
from tinydet._internal.names import printable
from tinydet.runtime.scenes.image_file import check_fits_in_memory, decode, needs_windows, read_bytes, read_header
from tinydet.runtime.scenes.pixels import Image, Pixels, check_bands
from tinydet.runtime.scenes.raster import RasterScene
from tinydet.runtime.scenes.scene import ArrayScene, DamagedSceneError, Scene
from tinydet.spec import STRETCH

__all__ = ["ArrayScene", "DamagedSceneError", "Image", "Pixels", "Scene", "open_scene", "read_image"]


def open_scene(
    source: Path | str | Pixels | Scene,
    *,
    stretch: tuple[float, float] = STRETCH,
    bands: Sequence[int] | None = None,
) -> Scene:
    """Open an image file, a raster of any size, or an array (H, W) or (H, W, C) in RGB.

    TIFF, JPEG 2000 and files of more than 2^28 pixels are read by windows through rasterio. Other files are decoded at
    once. The EXIF orientation is applied to both. Masked pixels of an array have no data.

    Args:
        stretch: percentiles that map to 0 and 255 if pixels are wider than 8 bits; for a model, `spec.stretch`.
        bands: 1-based band indices for red, green and blue, or one for grayscale; None for the bands that the file
            marks as red, green and blue, else the first three, or the first if there are fewer than three.

    Raises:
        ValueError: the file is empty, truncated, damaged, not an image, or lacks a band.
        OSError: the file is missing or unreadable.
        ModuleNotFoundError: the file needs rasterio, which is not installed.
    """
    if isinstance(source, Scene):
        return source
    if isinstance(source, np.ndarray):
        return ArrayScene("array", _select_bands(source, bands, "array"), stretch)
    path = Path(source)
    with name_failures(path, "read"):
        data = read_bytes(path)
        if data is None:
            return RasterScene(path, stretch, bands)
        header = read_header(path, io.BytesIO(data))
        if needs_windows(path, data, header):
            return RasterScene(path, stretch, bands)
        pixels, alpha = decode(path, data, header)
        return ArrayScene(printable(path.name), _select_bands(pixels, bands, path.name), stretch, alpha)


def read_image(path: Path | str, stretch: tuple[float, float] = STRETCH) -> Image:
    """Read a whole image as uint8 (H, W, 3) RGB, with the same pixels as `open_scene`.

    Raises:
        ValueError, OSError, ModuleNotFoundError: as `open_scene`; also for an image of more than 2^28 pixels.
    """
    with open_scene(path, stretch=stretch) as scene:
        check_fits_in_memory(Path(path), scene.width, scene.height)
        return scene.read(0, 0, scene.width, scene.height)


def _select_bands(pixels: Pixels, bands: Sequence[int] | None, name: str) -> Pixels:
    """Return the selected bands of (H, W) or (H, W, C) pixels."""
    if bands is None:
        return pixels
    check_bands(bands, pixels.shape[2] if pixels.ndim == 3 else 1, name)
    return pixels.reshape(*pixels.shape[:2], -1)[..., [band - 1 for band in bands]]
