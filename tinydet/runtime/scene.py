"""Scenes: one way to read windows of an image, however it is stored and however large it is.

Pixels always arrive as uint8 (H, W, 3) RGB. Training reads its images by the same functions, so that a model meets the
pixels that it learned from.
"""

from __future__ import annotations

import logging
import os
import re
import struct
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tinydet._extras import needs_extra

Pixels = NDArray[np.generic]
Image = NDArray[np.uint8]

STRETCH = (0.5, 99.5)  # percentiles that map to 0 and 255 where pixels are wider than 8 bits
MAX_DECODED = 1 << 28  # pixels; larger files are read by windows, never whole
MAX_WINDOW = 1 << 24  # pixels of a raster that are read in full before they are averaged
RASTER_CACHE = 1 << 28  # bytes, for a row of tiles over 50 000 pixels; by itself GDAL takes 5 % of all memory
SAMPLE = 1 << 22  # pixels from which percentiles are taken

logging.getLogger("rasterio").addHandler(logging.NullHandler())  # its errors reach the user as ours, in one line


@dataclass(frozen=True)
class Limits:
    """Values of each band that map to 0 and 255."""

    low: tuple[float, ...]
    high: tuple[float, ...]


class Scene(ABC):
    """An image to read windows from. Not for two threads at once; a context manager."""

    name: str
    width: int
    height: int

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

    def close(self) -> None:  # noqa: B027 - pixels in memory have nothing to close
        """Give the file back."""

    def __enter__(self) -> Scene:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_scene(source: Path | str | Pixels | Scene, *, stretch: tuple[float, float] = STRETCH) -> Scene:
    """A scene from an image file, a raster of any size, or an array (H, W) or (H, W, C), RGB.

    TIFF and JPEG 2000, and files of more than 2^28 pixels, are read by windows through rasterio; the others are
    decoded at once, turned as their EXIF orientation says.

    Args:
        stretch: percentiles that map to 0 and 255 where pixels are wider than 8 bits; of a model, `spec.stretch`.

    Raises:
        ValueError: the file is empty, truncated, damaged or no image.
        OSError: it is missing or may not be read.
        ModuleNotFoundError: it needs rasterio, which is not installed.
    """
    if isinstance(source, Scene):
        return source
    if isinstance(source, np.ndarray):
        return _ArrayScene("array", to_rgb8(source, stretch))
    path = Path(source)
    data = _contents(path)
    if _is_raster(path, data):
        return _RasterScene(path, stretch)
    return _ArrayScene(path.name, to_rgb8(_decode(path, data), stretch))


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


def measure_limits(pixels: Pixels, percentiles: tuple[float, float] = STRETCH) -> Limits:
    """The percentiles of each band of (H, W) or (H, W, C) pixels; NaN and masked pixels do not count."""
    if not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise ValueError(f"the percentiles of a stretch rise within [0, 100], got {percentiles}")
    bands = pixels if pixels.ndim == 3 else pixels[..., None]
    step = max(1, round((bands.shape[0] * bands.shape[1] / SAMPLE) ** 0.5))
    limits = []
    for band in np.moveaxis(bands[::step, ::step], -1, 0):
        values = np.ma.compressed(np.ma.masked_invalid(band, copy=False))
        limits.append(np.percentile(values, percentiles) if values.size else np.zeros(2))
    return Limits(tuple(float(low) for low, _ in limits), tuple(float(high) for _, high in limits))


def to_rgb8(pixels: Pixels, stretch: tuple[float, float] | Limits = STRETCH) -> Image:
    """Pixels (H, W) or (H, W, C) of any number type as uint8 (H, W, 3) RGB.

    One band is grey; the second of two and all after the third are dropped (alpha). 8-bit values stay as they are.
    Others are stretched, each band by its own limits: by their percentiles in these pixels, or by given `Limits`.

    Raises:
        ValueError: for another shape or type.
    """
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or 0 in pixels.shape or pixels.dtype.kind not in "uifb":
        raise ValueError(f"expected an image (H, W) or (H, W, bands) of numbers, got {pixels.shape} {pixels.dtype}")
    pixels = pixels[..., :3] if pixels.shape[2] > 2 else pixels[..., :1]
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8) * np.uint8(255)
    if pixels.dtype != np.uint8:
        pixels = _stretched(pixels, stretch if isinstance(stretch, Limits) else measure_limits(pixels, stretch))
    rgb = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
    return np.ascontiguousarray(rgb, np.uint8)


class _ArrayScene(Scene):
    """Pixels in memory."""

    def __init__(self, name: str, pixels: Image) -> None:
        self.name, self._pixels = name, pixels
        self.height, self.width = pixels.shape[:2]

    def _read(self, x: int, y: int, width: int, height: int, size: tuple[int, int]) -> Image:
        return _resized(self._pixels[y : y + height, x : x + width], size)


class _RasterScene(Scene):
    """A file that rasterio reads by windows."""

    def __init__(self, path: Path, stretch: tuple[float, float]) -> None:
        try:
            with needs_extra("geo"):
                import rasterio
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"{path} is read by windows, with rasterio. {error}", name=error.name) from None
        self.name, self._path = path.name, path
        self._rasterio = rasterio
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
                self._file = rasterio.open(path)
        except rasterio.errors.RasterioError as error:
            raise ValueError(f"{path}: damaged, or not an image ({error})") from error
        self.width, self.height = self._file.width, self._file.height
        if self._file.tags().get("EXIF_Orientation", "1") != "1":
            raise ValueError(
                f"{path}: {self.width}x{self.height} pixels with an EXIF orientation; turn the file itself first"
            )
        kinds = self._file.colorinterp
        self._bands = [i for i, kind in enumerate(kinds, 1) if kind != rasterio.enums.ColorInterp.alpha][:3]
        if not self._bands or len({self._file.dtypes[i - 1] for i in self._bands}) != 1:
            raise ValueError(f"{path}: expected bands of one number type, got {self._file.dtypes}")
        if len(self._bands) == 2:
            self._bands = self._bands[:1]
        self._dtype = self._file.dtypes[self._bands[0] - 1]
        self._palette: Image | None = None
        if kinds[0] == rasterio.enums.ColorInterp.palette and self._dtype == "uint8":
            colours = self._file.colormap(1)
            self._palette = np.array([colours.get(i, (0, 0, 0))[:3] for i in range(256)], np.uint8)
        self._limits = Limits((0,), (255,))
        if self._dtype != "uint8":
            shrink = max(1.0, (self.width * self.height / SAMPLE) ** 0.5)
            size = max(1, round(self.width / shrink)), max(1, round(self.height / shrink))
            self._limits = measure_limits(self._raw((0, 0, self.width, self.height), size, "nearest"), stretch)

    def _read(self, x: int, y: int, width: int, height: int, size: tuple[int, int]) -> Image:
        small = width * height <= MAX_WINDOW
        # Beyond that GDAL averages while it reads, from overviews where there are any.
        resampling = "average" if self._palette is None else "nearest"
        raw = self._raw((x, y, width, height), (width, height) if small else size, resampling)
        if self._palette is not None:
            return _resized(self._palette[np.ma.filled(raw[..., 0], 0)], size)
        filled = raw if raw.dtype == np.uint8 else np.ma.filled(raw.astype(np.float32), np.nan)
        return _resized(to_rgb8(filled, self._limits), size)

    def _raw(self, window: tuple[int, int, int, int], size: tuple[int, int], resampling: str) -> Any:
        """(H, W, bands), masked unless 8-bit, of a window (x, y, width, height), at `size` (width, height)."""
        rasterio = self._rasterio
        limits = {} if "GDAL_CACHEMAX" in os.environ else {"GDAL_CACHEMAX": RASTER_CACHE}
        try:
            with rasterio.Env(**limits):
                bands = self._file.read(
                    self._bands,
                    window=rasterio.windows.Window(*window),
                    out_shape=(len(self._bands), size[1], size[0]),
                    resampling=rasterio.enums.Resampling[resampling],
                    masked=self._dtype != "uint8",
                )
        except rasterio.errors.RasterioError as error:
            x, y, width, height = window
            raise ValueError(
                f"{self._path}: damaged or truncated at ({x}, {y}), {width}x{height} pixels ({error}); get it again"
            ) from error
        return np.moveaxis(bands, 0, -1)

    def close(self) -> None:
        self._file.close()


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
        return head if _is_windowed(head) else head + file.read()


def _is_windowed(head: bytes) -> bool:
    """TIFF, BigTIFF, or JPEG 2000 in either wrapping."""
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"\xff\x4f\xff\x51") or head[4:8] == b"jP  "


def _is_raster(path: Path, data: bytes) -> bool:
    """Whether to read by windows. A JPEG or PNG is checked on the way: OpenCV may fill up a truncated one with grey."""
    if _is_windowed(data):
        return True
    if data.startswith(b"\xff\xd8"):
        width, height = _jpeg_size(path, data)
    elif data.startswith(b"\x89PNG"):
        width, height = _png_size(path, data)
    else:
        return False
    return width * height > MAX_DECODED


def _decode(path: Path, data: bytes) -> Pixels:
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        # Flags that apply the EXIF orientation and keep 16 bits.
        bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error as error:
        raise ValueError(f"{path}: OpenCV cannot decode it ({error.err or error}); get the file again") from error
    finally:
        cv2.utils.logging.setLogLevel(level)
    if bgr is None:
        raise ValueError(f"{path}: damaged, or not an image that OpenCV reads; get the file again or convert it to PNG")
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)


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


def _stretched(pixels: Pixels, limits: Limits) -> Image:
    low, high = (np.asarray(side, np.float32) for side in (limits.low, limits.high))
    span = np.where(high > low, high - low, 1)
    scaled = np.clip((pixels.astype(np.float32) - low) / span, 0, 1) * 255 + 0.5
    result: Image = np.nan_to_num(scaled, nan=0.0).astype(np.uint8)
    return result


def _resized(pixels: Image, size: tuple[int, int]) -> Image:
    height, width = pixels.shape[:2]
    if (width, height) == size:
        return pixels
    shrinks = size[0] <= width and size[1] <= height
    resized = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.asarray(resized, np.uint8)
