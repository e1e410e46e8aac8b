"""Rasters that are larger than memory, or that only GDAL reads: windows through rasterio."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinydet._internal.extras import needs_extra
from tinydet.runtime.scenes.pixels import SAMPLE, Image, Limits, check_bands, measure_limits, resized, to_rgb8
from tinydet.runtime.scenes.scene import DamagedSceneError, Scene

MAX_WINDOW = 1 << 24  # pixels of a raster that are read in full before they are averaged
MAX_BLOCK = 1 << 28  # bytes that GDAL must decode to give a single pixel
WIDE_BLOCK = 4096  # pixels; a handle more would decode all of such a strip once more
RASTER_CACHE = 1 << 28  # bytes, for a row of tiles over 50 000 pixels; by itself GDAL takes 5 % of all memory
METRES_PER_DEGREE = 111_320.0  # of latitude
GLANCE = 32  # pixels a side of a window that is looked at before all of it

logging.getLogger("rasterio").addHandler(logging.NullHandler())  # its errors reach the user as ours, in one line


class RasterScene(Scene):
    """A file that rasterio reads by windows; turned as its EXIF orientation says.

    Of more than three bands those are taken that call themselves red, green and blue, else the first three that are
    not alpha.
    """

    def __init__(self, path: Path, stretch: tuple[float, float], bands: Sequence[int] | None = None) -> None:
        """
        Args:
            stretch: percentiles that map to 0 and 255 where pixels are wider than 8 bits, measured once, on an
                overview where the file has one.
            bands: the bands for red, green and blue, or one for grey, counted from 1.

        Raises:
            ValueError: the file is damaged, no image, or not to be read by parts.
            ModuleNotFoundError: rasterio is not installed.
        """
        try:
            with needs_extra("geo"):
                import rasterio
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"{path} is read by windows, with rasterio. {error}", name=error.name) from None
        self.name, self._path = path.name, path
        self._rasterio = rasterio
        self._file = self._opened()
        turn = self._file.tags().get("EXIF_Orientation", "1")
        self._turn = int(turn) if turn in set("12345678") else 1
        size = self._file.width, self._file.height
        self.width, self.height = size[::-1] if self._turn > 4 else size
        self._check_blocks()
        self._bands = self._chosen(bands)
        self._dtype = self._file.dtypes[self._bands[0] - 1]
        self._palette: Image | None = None
        if len(self._bands) == 1 and self._kinds()[self._bands[0] - 1] == "palette" and self._dtype == "uint8":
            colours = self._file.colormap(self._bands[0])
            self._palette = np.array([colours.get(i, (0, 0, 0))[:3] for i in range(256)], np.uint8)
        flags = self._file.mask_flag_enums
        self._has_holes = any(rasterio.enums.MaskFlags.all_valid not in of for of in flags)
        self.gsd = _ground_sample_distance(self._file)
        self._limits = Limits((0,), (255,))
        if self._dtype != "uint8":
            shrink = max(1.0, (size[0] * size[1] / SAMPLE) ** 0.5)
            overview = max(1, round(size[0] / shrink)), max(1, round(size[1] / shrink))
            self._limits = measure_limits(self._raw((0, 0, *size), overview, "nearest"), stretch)

    def another(self) -> RasterScene | None:
        """A handle of its own on the same file; None where its blocks are wide strips, which each would decode."""
        if self._file.block_shapes[0][1] > WIDE_BLOCK:
            return None
        copy = object.__new__(RasterScene)
        copy.__dict__.update(self.__dict__)
        copy._file = self._opened()
        return copy

    def is_empty(self, x: int, y: int, width: int, height: int) -> bool:
        """Whether nothing of the window has data: all pixels are nodata, masked or transparent."""
        if not self._has_holes:
            return False
        window, size = self._stored(x, y, width, height, (width, height))
        # A pixel of an overview has data only where one below it has. So a glance may say no, and never says yes.
        glance = min(size[0], GLANCE), min(size[1], GLANCE)
        return all(not self._read_file(window, of, "nearest", mask=True).any() for of in dict.fromkeys((glance, size)))

    def close(self) -> None:
        self._file.close()

    def _read(self, x: int, y: int, width: int, height: int, size: tuple[int, int]) -> Image:
        window, turned = self._stored(x, y, width, height, size)
        small = width * height <= MAX_WINDOW
        # Beyond that GDAL averages while it reads, from overviews where there are any.
        resampling = "average" if self._palette is None else "nearest"
        raw = self._raw(window, window[2:] if small else turned, resampling)
        if self._palette is not None:
            return _upright(resized(self._palette[np.ma.filled(raw[..., 0], 0)], turned), self._turn)
        filled = raw if raw.dtype == np.uint8 else np.ma.filled(raw.astype(np.float32), np.nan)
        return _upright(resized(to_rgb8(filled, self._limits), turned), self._turn)

    def _stored(
        self, x: int, y: int, width: int, height: int, size: tuple[int, int]
    ) -> tuple[tuple[int, int, int, int], tuple[int, int]]:
        """A window and its size as they lie in the file, before it is turned."""
        if self._turn > 4:
            x, y, width, height, size = y, x, height, width, size[::-1]
        if self._turn in (2, 3, 7, 8):
            x = self._file.width - x - width
        if self._turn in (3, 4, 6, 7):
            y = self._file.height - y - height
        return (x, y, width, height), size

    def _raw(self, window: tuple[int, int, int, int], size: tuple[int, int], resampling: str) -> Any:
        """(H, W, bands), masked unless 8-bit, of a window (x, y, width, height), at `size` (width, height)."""
        return np.moveaxis(self._read_file(window, size, resampling), 0, -1)

    def _read_file(
        self, window: tuple[int, int, int, int], size: tuple[int, int], resampling: str, *, mask: bool = False
    ) -> Any:
        """(bands, H, W), or with `mask` whether there is data, (H, W)."""
        rasterio = self._rasterio
        limits = {} if "GDAL_CACHEMAX" in os.environ else {"GDAL_CACHEMAX": RASTER_CACHE}
        where = {"window": rasterio.windows.Window(*window), "resampling": rasterio.enums.Resampling[resampling]}
        try:
            with rasterio.Env(**limits):
                if mask:
                    return self._file.dataset_mask(out_shape=size[::-1], **where)
                shape = (len(self._bands), size[1], size[0])
                return self._file.read(self._bands, out_shape=shape, masked=self._dtype != "uint8", **where)
        except rasterio.errors.RasterioError as error:
            x, y, width, height = window
            raise DamagedSceneError(
                f"{self._path}: damaged or truncated at ({x}, {y}), {width}x{height} pixels "
                f"({error.__cause__ or error}); get it again"
            ) from error

    def _opened(self) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", self._rasterio.errors.NotGeoreferencedWarning)
                return self._rasterio.open(self._path, sharing=False)
        except self._rasterio.errors.RasterioError as error:
            raise ValueError(f"{self._path}: damaged, or not an image ({error})") from error

    def _check_blocks(self) -> None:
        """Refuse a file of one huge strip, of which no window can be had without all of it."""
        pixel = sum(np.dtype(kind).itemsize for kind in self._file.dtypes)
        height, width = self._file.block_shapes[0]
        if height * width * pixel > MAX_BLOCK:
            raise ValueError(
                f"{self._path}: stored in blocks of {width}x{height} pixels, so that each window takes "
                f"{height * width * pixel >> 20} MiB; rewrite it: gdal_translate -co TILED=YES {self._path} tiled.tif"
            )

    def _kinds(self) -> list[str]:
        return [kind.name for kind in self._file.colorinterp]

    def _chosen(self, asked: Sequence[int] | None) -> list[int]:
        if asked is not None:
            check_bands(asked, self._file.count, self.name)
            bands = list(asked)
        else:
            kinds = self._kinds()
            bands = [i for i, kind in enumerate(kinds, 1) if kind != "alpha"]
            if all(kinds.count(colour) == 1 for colour in ("red", "green", "blue")):
                bands = [kinds.index(colour) + 1 for colour in ("red", "green", "blue")]
            bands = bands[:3] if len(bands) > 2 else bands[:1]
        if not bands or len({self._file.dtypes[i - 1] for i in bands}) != 1:
            raise ValueError(f"{self._path}: expected bands of one number type, got {self._file.dtypes}")
        if np.dtype(self._file.dtypes[bands[0] - 1]).kind == "c":
            raise ValueError(
                f"{self._path}: its numbers are complex, which no picture is; write their magnitude to another file"
            )
        return bands


def _upright(stored: Image, turn: int) -> Image:
    """Pixels as the EXIF orientation `turn`, 1 to 8, means them to be seen."""
    if turn in (2, 3, 7, 8):
        stored = stored[:, ::-1]
    if turn in (3, 4, 6, 7):
        stored = stored[::-1]
    return np.ascontiguousarray(stored.transpose(1, 0, 2) if turn > 4 else stored)


def _ground_sample_distance(file: Any) -> float | None:
    """Metres for each pixel, from the georeference; None where there is none."""
    if file.crs is None:
        return None
    step = math.sqrt(abs(file.transform.determinant))
    if file.crs.is_projected:
        return step * float(file.crs.linear_units_factor[1])
    if file.crs.is_geographic:
        latitude = (file.bounds.bottom + file.bounds.top) / 2
        return step * METRES_PER_DEGREE * math.sqrt(max(math.cos(math.radians(latitude)), 0.0))
    return None
