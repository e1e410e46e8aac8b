"""Rasters that are larger than memory, or that only GDAL reads, read by windows through rasterio."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinydet._internal.errors import name_failures, reason
from tinydet._internal.extras import needs_extra
from tinydet._internal.names import printable
from tinydet._internal.shell import command_line
from tinydet._internal.stores import StorePath
from tinydet.runtime.scenes.color_coding import INKS, color_coding, is_white_zero
from tinydet.runtime.scenes.georeference import ground_sample_distance
from tinydet.runtime.scenes.image_file import check_density, warn_once
from tinydet.runtime.scenes.pixels import (
    SAMPLE,
    Image,
    KeptLimits,
    Limits,
    check_bands,
    measure_limits,
    resize,
    to_rgb8,
    upright,
    wide_float,
)
from tinydet.runtime.scenes.raster_access import check_readable, gdal_options, open_raster
from tinydet.runtime.scenes.scene import DamagedSceneError, Scene
from tinydet.runtime.scenes.tiff_tags import FILTER_ARRAY, read_tiff_tags

MAX_WINDOW = 1 << 24  # pixels; larger windows are resampled while they are read
MAX_BLOCK = 1 << 28  # bytes that GDAL may decode for a single pixel
WIDE_BLOCK = 4096  # pixels; wider blocks would be decoded again by every additional handle
RASTER_CACHE = 1 << 28  # bytes, enough for a row of tiles across 50 000 pixels; GDAL's default is 5 % of all memory
# GDAL drivers whose files may omit blocks, or compress a uniform image to almost nothing.
SPARSE = ("GTiff", "VRT", "HFA", "NITF", "GPKG", "MBTiles", "JP2", "JPEGXL", "AVIF", "HEIF", "ECW", "MrSID")
IN_ORDER = ("PNG", "JPEG", "GIF", "BIGGIF", "WEBP")  # drivers that decode a file from its start
PREVIEW = 32  # pixels; side of the thumbnail of the mask that is checked before the full window


class RasterScene(Scene):
    """A file that is read by windows through rasterio, with its EXIF orientation applied.

    If a file has more than three bands, the ones marked red, green and blue are used, else the first three that are not
    alpha.
    """

    def __init__(
        self,
        path: Path,
        stretch: tuple[float, float],
        bands: Sequence[int] | None = None,
        limits: KeptLimits = lambda measure: measure(),
    ) -> None:
        """
        Args:
            stretch: percentiles that map to 0 and 255 if pixels are wider than 8 bits; computed once for the scene, on
                an overview if the file has one.
            bands: 1-based band indices for red, green and blue, or one for grayscale.
            limits: called with the function that measures the limits of the stretch, if the scene needs them.

        Raises:
            ValueError: the file is damaged, not an image, or stored in blocks too large to read by windows.
            ModuleNotFoundError: rasterio is not installed.
        """
        self.name, self._path = printable(path.name), path
        self._file = open_raster(path)
        try:
            with gdal_options(path):
                self._interpret(bands)
                self._measure(stretch, limits)
        except BaseException:
            self._file.close()
            raise

    def _interpret(self, bands: Sequence[int] | None) -> None:
        """Determine the size of the image, its bands and their color coding."""
        with needs_extra("geo"):
            import rasterio
        file = self._file
        if not file.count:
            way = (
                f"write one to its own file: {_extraction(file.subdatasets[0])}" if file.subdatasets else "name another"
            )
            raise ValueError(f"{self._path} holds {len(file.subdatasets)} images in no order; {way}")
        if not file.driver.startswith(SPARSE):
            files = [self._path] if isinstance(self._path, StorePath) else map(Path, file.files)
            n_bytes = sum(each.stat().st_size for each in files)
            check_density(self._path, file.width, file.height, n_bytes)
        tags = read_tiff_tags(self._path)
        if tags.is_preview or tags.photometric == FILTER_ARRAY:
            raise ValueError(f"{self._path}: a camera raw file; convert it to TIFF or JPEG")
        exif = file.tags().get("EXIF_Orientation", "1")
        self._orientation = int(exif) if exif in set("12345678") else 1
        if file.crs is None and file.transform.is_identity:  # the geotransform refers to the pixels as they are stored
            self._orientation = tags.orientation if tags.orientation > 1 else self._orientation
        self.width, self.height = (file.height, file.width) if self._orientation > 4 else (file.width, file.height)
        self._check_blocks()
        coarsest = max(file.overviews(1), default=1)
        self.has_overviews = file.width * file.height <= MAX_WINDOW * coarsest**2
        self.gsd, self.in_order = ground_sample_distance(file), file.driver in IN_ORDER
        self._has_mask = any(rasterio.enums.MaskFlags.all_valid not in flags for flags in file.mask_flag_enums)
        self._bands = [1] if bands is None and is_white_zero(file) else self._select_bands(bands)
        self._coding = color_coding(file, self._bands, tags)
        if self._coding.alpha is not None:
            self._bands = [*self._bands, self._coding.alpha]

    def _measure(self, stretch: tuple[float, float], limits: KeptLimits) -> None:
        """Compute the stretch limits of data with more than 8 bits, and log other images in the file."""
        self._limits = Limits((0,), (255,))
        size = self._file.width, self._file.height
        if not self._coding.is_8_bit:
            shrink = max(1.0, (size[0] * size[1] / SAMPLE) ** 0.5)
            overview = max(1, round(size[0] / shrink)), max(1, round(size[1] / shrink))
            self._limits = limits(lambda: measure_limits(self._raw((0, 0, *size), overview, "nearest"), stretch))
        if others := self._file.subdatasets[1:]:
            rest = "the other one is" if len(others) == 1 else f"the other {len(others)} are"
            warn_once(
                f"{self._path} holds {len(others) + 1} images or pages; the first is read and {rest} left out. To "
                f"extract them: {_extraction(others[0])}"
            )

    def reopen(self) -> RasterScene | None:
        """Return another handle on the file; None if it is stored in wide strips, which every handle would decode."""
        if self._file.block_shapes[0][1] > WIDE_BLOCK:
            return None
        copy = object.__new__(RasterScene)
        copy.__dict__.update(self.__dict__)
        copy._file = open_raster(self._path)
        return copy

    def is_empty(self, x: int, y: int, width: int, height: int) -> bool:
        if not self._has_mask:
            return False
        window, size = self._stored(x, y, width, height, (width, height))
        # A small preview settles most windows: if one of its pixels has data, so does the window. The reverse is not
        # true, so a preview without data is followed by the full mask.
        preview = min(size[0], PREVIEW), min(size[1], PREVIEW)
        sizes = dict.fromkeys((preview, size))
        return all(not self._read_file(window, each, "nearest", mask=True).any() for each in sizes)

    def close(self) -> None:
        self._file.close()

    def _read(self, x: int, y: int, width: int, height: int, size: tuple[int, int]) -> Image:
        return self._resampled(x, y, width, height, size, small=width * height <= MAX_WINDOW)

    def _preview(self, x: int, y: int, width: int, height: int, size: tuple[int, int]) -> Image:
        return self._resampled(x, y, width, height, size, small=False)

    def _resampled(self, x: int, y: int, width: int, height: int, size: tuple[int, int], *, small: bool) -> Image:
        window, stored_size = self._stored(x, y, width, height, size)
        # For larger windows GDAL averages while it reads, from overviews if the file has any.
        resampling = "average" if self._coding.is_linear else "nearest"
        raw = self._raw(window, window[2:] if small else stored_size, resampling)
        filled = raw if raw.dtype == np.uint8 else np.ma.filled(raw.astype(wide_float(raw.dtype)), np.nan)
        return upright(resize(to_rgb8(filled, self._limits), stored_size), self._orientation)

    def _stored(
        self, x: int, y: int, width: int, height: int, size: tuple[int, int]
    ) -> tuple[tuple[int, int, int, int], tuple[int, int]]:
        """Convert a window and its output size to the orientation in which the file is stored."""
        if self._orientation > 4:
            x, y, width, height, size = y, x, height, width, size[::-1]
        if self._orientation in (2, 3, 7, 8):
            x = self._file.width - x - width
        if self._orientation in (3, 4, 6, 7):
            y = self._file.height - y - height
        return (x, y, width, height), size

    def _raw(self, window: tuple[int, int, int, int], size: tuple[int, int], resampling: str) -> Any:
        """Read a window (x, y, width, height) at `size` (width, height) as (H, W, bands), masked unless 8-bit."""
        with name_failures(self._path, "read"):
            return self._coding.decode(np.moveaxis(self._read_file(window, size, resampling), 0, -1))

    def _read_file(
        self,
        window: tuple[int, int, int, int],
        size: tuple[int, int],
        resampling: str,
        *,
        mask: bool = False,
        again: bool = True,
    ) -> Any:
        """Read a window as (bands, H, W); with `mask`, where it has data as (H, W).

        Args:
            again: open an object in a store once more if it fails, because credentials and connections expire.
        """
        with needs_extra("geo"):
            import rasterio
        limits = {} if "GDAL_CACHEMAX" in os.environ else {"GDAL_CACHEMAX": RASTER_CACHE}
        where = {"window": rasterio.windows.Window(*window), "resampling": rasterio.enums.Resampling[resampling]}
        try:
            with gdal_options(self._path, **limits):
                if mask:
                    return self._file.dataset_mask(out_shape=size[::-1], **where)
                shape = (len(self._bands), size[1], size[0])
                return self._file.read(self._bands, out_shape=shape, masked=not self._coding.is_8_bit, **where)
        except rasterio.errors.RasterioError as error:
            if isinstance(self._path, StorePath) and again:
                check_readable(self._path)  # raises if the store, not the file, is the reason
                self._file.close()
                self._file = open_raster(self._path)
                return self._read_file(window, size, resampling, mask=mask, again=False)
            x, y, width, height = window
            raise DamagedSceneError(
                f"{self._path}: damaged or truncated at ({x}, {y}), {width}x{height} pixels "
                f"({reason(error.__cause__ or error)}); get it again"
            ) from error

    def _check_blocks(self) -> None:
        """Raise ValueError if the file is stored in huge blocks, as every window decodes at least one of them."""
        height, width = self._file.block_shapes[0]
        size = height * width * sum(np.dtype(kind).itemsize for kind in self._file.dtypes)
        if size > MAX_BLOCK:
            rewrite = command_line("gdal_translate", "-co", "TILED=YES", self._path, "tiled.tif")
            raise ValueError(
                f"{self._path}: stored in blocks of {width}x{height} pixels, so each window decodes at least "
                f"{size >> 20} MiB; rewrite it: {rewrite}"
            )

    def _select_bands(self, requested: Sequence[int] | None) -> list[int]:
        if requested is not None:
            check_bands(requested, self._file.count, self.name)
            bands = list(requested)
        else:
            names = [color.name for color in self._file.colorinterp]
            bands = [i for i, name in enumerate(names, 1) if name != "alpha"]
            for colors in (INKS, ("red", "green", "blue")):
                if all(names.count(color) == 1 for color in colors):
                    return [names.index(color) + 1 for color in colors]
            bands = bands[:3] if len(bands) > 2 else bands[:1]
        if not bands or len({self._file.dtypes[i - 1] for i in bands}) != 1:
            raise ValueError(f"{self._path}: expected bands of one number type, got {self._file.dtypes}")
        if np.dtype(self._file.dtypes[bands[0] - 1]).kind == "c":
            raise ValueError(
                f"{self._path}: its pixels are complex numbers, not an image; write their magnitude to another file"
            )
        return bands


def _extraction(subdataset: str) -> str:
    return command_line("gdal_translate", subdataset, "other.tif")
