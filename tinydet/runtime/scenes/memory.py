"""Open images that are in memory: encoded bytes, binary files and Pillow images, with the pixels of their files."""

from __future__ import annotations

import io
import tempfile
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from tinydet._internal.errors import name_failures, reason
from tinydet._internal.names import printable
from tinydet.runtime.scenes.image_file import ORIENTATION, decode, image_format, needs_windows, read_header
from tinydet.runtime.scenes.pixels import Image, Pixels, select_bands, upright
from tinydet.runtime.scenes.raster import RasterScene
from tinydet.runtime.scenes.scene import ArrayScene, Scene
from tinydet.runtime.scenes.signatures import HEAD

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

Encoded = bytes | bytearray | memoryview

_PILLOW = threading.Lock()  # an image is decoded when its pixels are first needed, by one thread at a time


def open_bytes(data: Encoded, name: str, stretch: tuple[float, float], bands: Sequence[int] | None = None) -> Scene:
    """Open the content of an image file.

    Formats that are read by windows are written to a temporary file, which is removed when the scene is closed.

    Raises:
        ValueError, ModuleNotFoundError: as `open_scene`. Names `name`.
    """
    data, path = bytes(data), Path(printable(name))
    if not data:
        raise ValueError(f"{name}: no bytes; expected the content of an image file, read from its beginning")
    with name_failures(name, "read"):
        if image_format(data[:HEAD]) is not None:
            header = read_header(path, io.BytesIO(data))
            if not needs_windows(path, data, header):
                pixels, alpha = decode(path, data, header)
                return ArrayScene(str(path), select_bands(pixels, bands, name), stretch, alpha)
        return _TemporaryRaster(data, path, stretch, bands)


def read_all(file: Any) -> bytes:
    """Return the rest of a binary file.

    Raises:
        TypeError: it is a text file.
        ValueError: it is closed.
    """
    if getattr(file, "closed", False):
        raise ValueError(f"{name_of_file(file)}: the file is closed; detect inside its `with` block")
    data = file.read()
    if not isinstance(data, bytes | bytearray | memoryview):
        raise TypeError(f"{name_of_file(file)}: a text file; open it as binary, with mode 'rb'")
    return bytes(data)


def name_of_file(file: BinaryIO) -> str:
    """Return the name of an open file, or "file"."""
    name = getattr(file, "name", None)
    return name if isinstance(name, str) and name else "file"


def open_pillow(image: PillowImage, stretch: tuple[float, float], bands: Sequence[int] | None = None) -> Scene:
    """Open a Pillow image of any mode: upright, with palettes applied; more than 8 bits are stretched.

    Raises:
        ValueError: the image is damaged, or Pillow cannot convert its mode to RGB.
    """
    name = getattr(image, "filename", "") or "image"
    name = printable(Path(str(name)).name)
    try:
        with _PILLOW:
            pixels, alpha = _pixels(image)
        orientation = _orientation(image)
    except Exception as error:  # Pillow raises errors of any class
        raise ValueError(f"{name}: cannot be read ({reason(error)}); get it again or convert it to RGB") from error
    if alpha is not None:
        alpha = None if alpha.all() else upright(alpha, orientation)
    return ArrayScene(name, select_bands(upright(pixels, orientation), bands, name), stretch, alpha)


def is_pillow(value: object) -> bool:
    """Return whether a value is a Pillow image."""
    from PIL import Image

    return isinstance(value, Image.Image)


def _pixels(image: PillowImage) -> tuple[Pixels, Pixels | None]:
    """Return the pixels (H, W) or (H, W, 3) and the alpha (H, W) of an image as it is stored."""
    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        return values.astype(values.dtype.newbyteorder("=")), None
    if image.mode == "I":
        values = np.asarray(image)
        is_16_bit = values.size and values.min() >= 0 and values.max() < 1 << 16
        return (values.astype(np.uint16) if is_16_bit else values), None
    if image.mode == "F":
        return np.asarray(image), None
    if image.has_transparency_data:
        rgba = np.asarray(image.convert("RGBA"))
        return np.ascontiguousarray(rgba[..., :3]), rgba[..., 3]
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB")), None


def _orientation(image: PillowImage) -> int:
    """Return the orientation of the image's EXIF data, 1 to 8; 1 if it has none or is damaged."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged tags
            value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # Pillow raises errors of any class
        return 1
    return value if value in range(1, 9) else 1


class _TemporaryRaster(Scene):
    """A raster in a temporary file."""

    def __init__(self, data: bytes, path: Path, stretch: tuple[float, float], bands: Sequence[int] | None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="tinydet-")
        file = Path(self._folder.name) / (path.name[-100:] or "image")
        try:
            file.write_bytes(data)
            self._raster: Scene = RasterScene(file, stretch, bands)
        except BaseException as error:
            self._folder.cleanup()
            if isinstance(error, ValueError):
                raise ValueError(str(error).replace(str(file), str(path))) from error
            raise
        self.name = path.name or str(path)
        self.width, self.height, self.gsd = self._raster.width, self._raster.height, self._raster.gsd

    def is_empty(self, x: int, y: int, width: int, height: int) -> bool:
        return self._raster.is_empty(x, y, width, height)

    def reopen(self) -> Scene | None:
        return self._raster.reopen()

    def close(self) -> None:
        self._raster.close()
        self._folder.cleanup()

    def _read(self, x: int, y: int, width: int, height: int, size: tuple[int, int]) -> Image:
        return self._raster.read(x, y, width, height, size)
