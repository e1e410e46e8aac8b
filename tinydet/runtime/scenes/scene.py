"""Scenes: one way to read windows of an image, however it is stored and however large it is.

Pixels always arrive as uint8 (H, W, 3) RGB. Training reads its images by the same functions, so that a model meets the
pixels that it learned from.
"""

from __future__ import annotations

import re
import struct
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tinydet.runtime.scenes.pixels import STRETCH, Image, Pixels, check_bands, resized, to_rgb8

MAX_DECODED = 1 << 28  # pixels; larger files are read by windows, never whole
MAX_ENCODED = 1 << 29  # bytes of a file that is decoded at once


class DamagedSceneError(ValueError):
    """A scene that cannot be read, or not to its end."""


class Scene(ABC):
    """An image to read windows from. Not for two threads at once; a context manager.

    Attributes:
        name: for people.
        width, height: in pixels.
        gsd: metres for each pixel, where the file says so.
    """

    name: str
    width: int
    height: int
    gsd: float | None = None

    def read(self, x: int, y: int, width: int, height: int, size: tuple[int, int] | None = None) -> Image:
        """The window as uint8 (height, width, 3) RGB; with `size` (width, height) averaged, or interpolated, to that.

        Raises:
            ValueError: where the window leaves the scene, or the file is damaged there.
        """
        if width < 1 or height < 1 or x < 0 or y < 0 or x + width > self.width or y + height > self.height:
            raise ValueError(
                f"{self.name}: no window {width}x{height} at ({x}, {y}) in {self.width}x{self.height} pixels"
            )
        return self._read(x, y, width, height, size or (width, height))

    @abstractmethod
    def _read(self, x: int, y: int, width: int, height: int, size: tuple[int, int]) -> Image: ...

    def is_empty(self, x: int, y: int, width: int, height: int) -> bool:
        """Whether no pixel of the window has data, so that there is nothing to find: all are nodata or transparent."""
        return False

    def another(self) -> Scene | None:
        """The same scene for one more thread, to be closed like this one; None where a single thread must read it."""
        return None

    def close(self) -> None:  # noqa: B027 - pixels in memory have nothing to close
        """Give the file back."""

    def __enter__(self) -> Scene:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_scene(
    source: Path | str | Pixels | Scene,
    *,
    stretch: tuple[float, float] = STRETCH,
    bands: Sequence[int] | None = None,
) -> Scene:
    """A scene from an image file, a raster of any size, or an array (H, W) or (H, W, C), RGB.

    TIFF and JPEG 2000, and files of more than 2^28 pixels, are read by windows through rasterio; the others are
    decoded at once. Both are turned as their EXIF orientation says. Masked pixels of an array are without data.

    Args:
        stretch: percentiles that map to 0 and 255 where pixels are wider than 8 bits; of a model, `spec.stretch`.
        bands: the bands for red, green and blue, or one for grey, counted from 1; None for those that the file names
            so, else the first three, or the first where there are less.

    Raises:
        ValueError: the file is empty, truncated, damaged, no image, or has no such band.
        OSError: it is missing or may not be read.
        ModuleNotFoundError: it needs rasterio, which is not installed.
    """
    if isinstance(source, Scene):
        return source
    if isinstance(source, np.ndarray):
        return _ArrayScene("array", _picked(source, bands, "array"), stretch)
    path = Path(source)
    data = _contents(path)
    if _is_raster(path, data):
        from tinydet.runtime.scenes.raster import RasterScene  # which builds on this module

        return RasterScene(path, stretch, bands)
    pixels, alpha = _decode(path, data)
    return _ArrayScene(path.name, _picked(pixels, bands, path.name), stretch, alpha)


def read_image(path: Path | str, stretch: tuple[float, float] = STRETCH) -> Image:
    """A whole image as uint8 (H, W, 3) RGB, the same pixels that `open_scene` gives.

    Raises:
        ValueError, OSError, ModuleNotFoundError: as `open_scene`, and for an image of more than 2^28 pixels.
    """
    with open_scene(path, stretch=stretch) as scene:
        if scene.width * scene.height > MAX_DECODED:
            raise ValueError(
                f"{path}: {scene.width}x{scene.height} pixels are too many to hold at once; cut it into tiles"
            )
        return scene.read(0, 0, scene.width, scene.height)


class _ArrayScene(Scene):
    """Pixels in memory; any number of threads may read it."""

    def __init__(self, name: str, pixels: Pixels, stretch: tuple[float, float], alpha: Pixels | None = None) -> None:
        self.name = name
        self._has_data: NDArray[Any] | None = None if alpha is None else np.not_equal(alpha, 0)
        if np.ma.isMaskedArray(pixels):
            mask = np.ma.getmaskarray(pixels).reshape(*pixels.shape[:2], -1)
            self._has_data = np.asarray(~mask.all(axis=2))
            if pixels.dtype != np.uint8:
                pixels = np.ma.filled(pixels.astype(np.float32), np.nan)
        self._pixels = to_rgb8(np.asarray(pixels), stretch)
        self.height, self.width = self._pixels.shape[:2]

    def is_empty(self, x: int, y: int, width: int, height: int) -> bool:
        return self._has_data is not None and not self._has_data[y : y + height, x : x + width].any()

    def another(self) -> Scene:
        return self

    def _read(self, x: int, y: int, width: int, height: int, size: tuple[int, int]) -> Image:
        return resized(self._pixels[y : y + height, x : x + width], size)


def _picked(pixels: Pixels, bands: Sequence[int] | None, name: str) -> Pixels:
    """The chosen bands of (H, W) or (H, W, C) pixels."""
    if bands is None:
        return pixels
    check_bands(bands, pixels.shape[2] if pixels.ndim == 3 else 1, name)
    return pixels.reshape(*pixels.shape[:2], -1)[..., [band - 1 for band in bands]]


def _contents(path: Path) -> bytes:
    """The bytes of a file, or the first of one that is read by windows anyway."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name an image file")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; check the path")
    with path.open("rb") as file:
        head = file.read(16)
        if not head:
            raise ValueError(f"{path} is empty (0 bytes); get the file again")
        return head if _is_windowed(head) or path.stat().st_size > MAX_ENCODED else head + file.read()


def _is_windowed(head: bytes) -> bool:
    """TIFF, BigTIFF, or JPEG 2000 in either wrapping."""
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"\xff\x4f\xff\x51") or head[4:8] == b"jP  "


def _is_raster(path: Path, data: bytes) -> bool:
    """Whether to read by windows. A JPEG or PNG is checked on the way: OpenCV may fill up a truncated one with grey."""
    if _is_windowed(data) or path.stat().st_size > MAX_ENCODED:
        return True
    if data.startswith(b"\xff\xd8"):
        width, height = _jpeg_size(path, data)
    elif data.startswith(b"\x89PNG"):
        width, height = _png_size(path, data)
    elif data.startswith(b"GIF8") and len(data) > 10:
        width, height = struct.unpack_from("<HH", data, 6)  # OpenCV would take 6 GB for 50 bytes that claim 40000x20000
    else:
        return False
    return width * height > MAX_DECODED


def _decode(path: Path, data: bytes) -> tuple[Pixels, Pixels | None]:
    """(H, W, 3) RGB or (H, W), and the alpha of a PNG that is not opaque throughout."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    encoded = np.frombuffer(data, np.uint8)
    alpha = None
    try:
        # Flags that apply the EXIF orientation and keep 16 bits.
        bgr = cv2.imdecode(encoded, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
        if bgr is not None and data.startswith(b"\x89PNG") and data[25] in (4, 6):  # grey or RGB with alpha
            whole = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
            alpha = None if whole is None else whole[..., -1]
    except cv2.error as error:
        raise ValueError(f"{path}: OpenCV cannot decode it ({error.err or error}); get the file again") from error
    finally:
        cv2.utils.logging.setLogLevel(level)
    if bgr is None:
        raise ValueError(f"{path}: damaged, or not an image that OpenCV reads; get the file again or convert it to PNG")
    # Turned by an orientation, the alpha would lie elsewhere: better no tile is skipped than a wrong one.
    usable = alpha is not None and alpha.shape == bgr.shape[:2] and b"eXIf" not in data[:4096] and not alpha.all()
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), alpha if usable else None


_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7\x01])")  # not a stuffed zero, nor a restart


def _jpeg_size(path: Path, data: bytes) -> tuple[int, int]:
    """(width, height) of a JPEG that has its end marker; thumbnails inside its segments are stepped over."""
    size, position = (0, 0), 2
    while found := _MARKER.search(data, position):
        marker, position = found[1][0], found.end()
        if marker == 0xD9:
            return size
        if position + 2 > len(data):
            break
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and position + 7 <= len(data):
            height, width = struct.unpack_from(">HH", data, position + 3)
            size = width, height
        position += struct.unpack_from(">H", data, position)[0]
    raise ValueError(f"{path}: truncated JPEG, its {len(data)} bytes have no end marker; get the file again")


def _png_size(path: Path, data: bytes) -> tuple[int, int]:
    """(width, height) of a PNG that has its last chunk."""
    position = 8
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        position += 12 + length
        if kind == b"IEND" and position <= len(data):
            width, height = struct.unpack_from(">II", data, 16)
            return int(width), int(height)
    raise ValueError(f"{path}: truncated PNG, its {len(data)} bytes have no last chunk; get the file again")
