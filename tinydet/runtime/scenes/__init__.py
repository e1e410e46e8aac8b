"""Scenes: images, rasters, arrays and video frames of any size, read window by window.

Pixels are always uint8 (H, W, 3) RGB. Training reads its images through the same functions, so that a model sees the
same pixels in training and in deployment.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Union, cast

import numpy as np

from tinydet._internal.arguments import quoted
from tinydet._internal.errors import name_failures
from tinydet._internal.names import printable
from tinydet._internal.stores import to_path
from tinydet.runtime.scenes.image_file import check_fits_in_memory, decode, needs_windows, read_bytes, read_header
from tinydet.runtime.scenes.memory import Encoded, is_pillow, name_of_file, open_bytes, open_pillow, read_all
from tinydet.runtime.scenes.pixels import Image, KeptLimits, Pixels, check_channels_last, select_bands
from tinydet.runtime.scenes.raster import RasterScene
from tinydet.runtime.scenes.scene import ArrayScene, DamagedSceneError, Scene
from tinydet.spec import STRETCH

__all__ = ["ArrayScene", "DamagedSceneError", "Image", "Pixels", "Scene", "open_scene", "read_image"]

EXPECTED = (
    "a path, the bytes of an image file, a binary file, a Pillow image, an array (H, W) or (H, W, C) in RGB or an open "
    "scene"
)


if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

SceneLike = Union["PathLike[str]", str, Encoded, BinaryIO, "PillowImage", Pixels, Scene]


def open_scene(
    source: SceneLike,
    *,
    stretch: tuple[float, float] = STRETCH,
    bands: Sequence[int] | None = None,
    limits: KeptLimits = lambda measure: measure(),
) -> Scene:
    """Open an image file, a raster of any size, or an image in memory.

    TIFF, JPEG 2000 and files of more than 2^28 pixels are read by windows through rasterio, other files at once. Of an
    object in a store that is read by windows, only the needed blocks are fetched. The EXIF orientation is applied to
    both. Masked pixels of an array have no data.

    Args:
        source: a path, or an address (`s3://`, `gs://`, `az://`, `https://`); the content of a file as bytes, or an
            open binary file, which is read from its position to its end; a Pillow image of any mode; an array (H, W) or
            (H, W, C) in RGB; or an open scene, which is returned.
        stretch: percentiles that map to 0 and 255 if pixels are wider than 8 bits; for a model, `spec.stretch`.
        bands: 1-based band indices for red, green and blue, or one for grayscale; None for the bands that the file
            marks as red, green and blue, else the first three, or the first if there are fewer than three.
        limits: for a raster wider than 8 bits that is read by windows: called with the function that measures the
            limits of its stretch, which reads all of a file without overviews; returns them.

    Raises:
        ValueError: the file is empty, truncated, damaged, not an image, or lacks a band.
        TypeError: `source` is something else.
        OSError: the file is missing or unreadable.
        ModuleNotFoundError: the file needs rasterio, which is not installed.
    """
    if isinstance(source, Scene):
        return source
    if isinstance(source, PathLike):
        source = to_path(cast(Path, source))
    if isinstance(source, np.ndarray):
        check_channels_last(source)
        return ArrayScene("array", select_bands(source, bands, "array"), stretch)
    if isinstance(source, bytes | bytearray | memoryview):
        return open_bytes(source, "bytes", stretch, bands)
    if not isinstance(source, str | Path):
        if is_pillow(source):
            return open_pillow(cast("PillowImage", source), stretch, bands)
        if not hasattr(source, "read"):
            raise TypeError(f"expected {EXPECTED}, got {quoted(source)} of type {type(source).__name__}")
        file = cast(BinaryIO, source)
        return open_bytes(read_all(file), name_of_file(file), stretch, bands)
    path = to_path(source)
    with name_failures(path, "read"):
        data = read_bytes(path)
        if data is None:
            return RasterScene(path, stretch, bands, limits)
        header = read_header(path, io.BytesIO(data))
        if needs_windows(path, data, header):
            return RasterScene(path, stretch, bands, limits)
        pixels, alpha = decode(path, data, header)
        return ArrayScene(printable(path.name), select_bands(pixels, bands, path.name), stretch, alpha)


def read_image(path: Path | str, stretch: tuple[float, float] = STRETCH) -> Image:
    """Read a whole image as uint8 (H, W, 3) RGB, with the same pixels as `open_scene`.

    Raises:
        ValueError, OSError, ModuleNotFoundError: as `open_scene`; also for an image of more than 2^28 pixels.
    """
    with open_scene(path, stretch=stretch) as scene:
        check_fits_in_memory(to_path(path), scene.width, scene.height)
        return scene.read(0, 0, scene.width, scene.height)
