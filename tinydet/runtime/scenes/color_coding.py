"""Convert stored raster values to gray or RGB: palettes, WhiteIsZero, 1 to 4 bits, CMYK, L*a*b*, premultiplied alpha.

GDAL returns values as stored. OpenCV and Pillow, like all viewers, return the colors that they represent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tinydet.runtime.scenes.pixels import Pixels
from tinydet.runtime.scenes.tiff_tags import CIE_LAB, ICC_LAB, ITU_LAB, TiffTags

INKS = ("cyan", "magenta", "yellow", "black")


@dataclass(frozen=True)
class ColorCoding:
    """How the values of some raster bands encode colors.

    Attributes:
        decode: converts values (H, W, bands), which may be masked, to gray (H, W, 1) or RGB (H, W, 3).
        is_8_bit: whether the result is uint8; it is stretched otherwise.
        is_linear: whether values may be averaged before decoding.
        alpha: 1-based index of the alpha band, read after the others; None if it is not needed.
    """

    decode: Callable[[Any], Any]
    is_8_bit: bool
    is_linear: bool = True
    alpha: int | None = None


def color_coding(file: Any, bands: Sequence[int], tags: TiffTags) -> ColorCoding:
    """Return the color coding of `bands` (1-based) of a rasterio dataset.

    Raises:
        ValueError: the CMYK or L*a*b* encoding is not supported.
    """
    names = [color.name for color in file.colorinterp]
    dtype = np.dtype(file.dtypes[bands[0] - 1])
    bits = int(file.tags(bands[0], ns="IMAGE_STRUCTURE").get("NBITS", 8 * dtype.itemsize))
    is_negative = is_white_zero(file) and list(bands) == [1]
    is_integer = dtype in (np.uint8, np.uint16)
    if len(bands) == 4:
        if not is_integer:
            raise ValueError(f"{file.name}: inks (CMYK) of type {dtype}; convert it to RGB")
        return ColorCoding(_from_inks, is_8_bit=True, is_linear=True)
    if tags.photometric in (CIE_LAB, ICC_LAB, ITU_LAB) and len(bands) == 3 and names[bands[0] - 1] == "undefined":
        if not is_integer or tags.photometric == ITU_LAB:
            raise ValueError(f"{file.name}: L*a*b* colors of an unknown kind; convert it to RGB")
        is_icc = tags.photometric == ICC_LAB
        return ColorCoding(lambda numbers: _from_lab(np.asarray(numbers), is_icc), is_8_bit=True)
    if names[bands[0] - 1] == "palette" and is_integer and len(bands) == 1 and not is_negative:
        colors = file.colormap(bands[0])
        palette = np.array([colors.get(i, (0, 0, 0))[:3] for i in range(1 << 8 * dtype.itemsize)], np.uint8)
        return ColorCoding(lambda numbers: palette[np.ma.getdata(numbers)[..., 0]], is_8_bit=True, is_linear=False)
    if dtype == np.uint8 and (bits < 8 or is_negative):
        top = (1 << min(bits, 8)) - 1
        levels = np.minimum(np.arange(256) * 255 / top + 0.5, 255).astype(np.uint8)
        if is_negative:
            levels = 255 - levels
        return ColorCoding(lambda numbers: levels[np.ma.getdata(numbers)], is_8_bit=True)
    if is_negative:
        return ColorCoding(_negative, is_8_bit=False)
    if tags.premultiplied and "alpha" in names and dtype.kind in "uf":
        return ColorCoding(_unmultiplied, dtype == np.uint8, alpha=names.index("alpha") + 1)
    return ColorCoding(lambda numbers: numbers, dtype == np.uint8)


def is_white_zero(file: Any) -> bool:
    """Return whether 0 is white in the first band of a rasterio dataset (TIFF's WhiteIsZero)."""
    # Only of a TIFF: GDAL 3.10 never returns from this question about a JP2 with a box of length 0.
    return bool(file.driver == "GTiff" and file.tags(ns="IMAGE_STRUCTURE").get("MINISWHITE") == "YES")


def _negative(numbers: Any) -> Any:
    """Invert values within the range of their type, keeping the mask."""
    if numbers.dtype.kind == "u":
        return np.iinfo(numbers.dtype).max - numbers
    return -1 - numbers if numbers.dtype.kind == "i" else -numbers


def _unmultiplied(numbers: Any) -> Any:
    """Divide colors (H, W, C + 1) by the alpha in the last band, rounding down as Pillow does; black without alpha."""
    values = np.ma.getdata(numbers)
    colors, alpha = values[..., :-1], values[..., -1:]
    with np.errstate(divide="ignore", invalid="ignore"):
        if values.dtype.kind == "f":
            result = np.where(alpha == 0, 0, colors / alpha).astype(values.dtype)
        else:
            top = np.iinfo(values.dtype).max
            quotient = colors.astype(np.uint64) * np.uint64(top) // np.maximum(alpha, 1).astype(np.uint64)
            result = np.where(alpha == 0, 0, np.minimum(quotient, top)).astype(values.dtype)
    return np.ma.array(result, mask=np.ma.getmaskarray(numbers)[..., :-1]) if np.ma.isMaskedArray(numbers) else result


def _from_inks(numbers: Any) -> Pixels:
    """Convert cyan, magenta, yellow and black to RGB."""
    from PIL import Image

    inks = _high_bytes(np.asarray(numbers))
    return np.array(Image.frombytes("CMYK", inks.shape[1::-1], inks.tobytes()).convert("RGB"))


def _from_lab(numbers: Pixels, is_icc: bool) -> Pixels:
    """Convert L*a*b* to RGB. L is 0 to 255 in OpenCV and ICC, where 128 is added to a and b; CIE has signed bytes."""
    lab = _high_bytes(numbers)
    if not is_icc:
        lab = lab ^ np.array([0, 128, 128], np.uint8)
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(lab), cv2.COLOR_Lab2RGB), np.uint8)


def _high_bytes(numbers: NDArray[Any]) -> NDArray[np.uint8]:
    """Reduce 16-bit values to their high bytes."""
    return (numbers >> 8 if numbers.dtype == np.uint16 else numbers).astype(np.uint8)
