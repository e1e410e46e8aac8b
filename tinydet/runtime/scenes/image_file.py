"""Decode image files at once: with Pillow, or with OpenCV where Pillow would reduce more than 8 bits to 8.

The first bytes decide the format, not the suffix. The claimed size and the end of a file are checked before decoding.
Whatever the decoder, the pixels are those of Pillow's `ImageOps.exif_transpose(image).convert("RGB")`, but
values of more than 8 bits are kept.
"""

from __future__ import annotations

import functools
import io
import logging
import os
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import cv2
import numpy as np

from tinydet._internal.errors import reason
from tinydet._internal.extras import needs_extra
from tinydet._internal.input_files import check_file
from tinydet._internal.opencv_log import silent_opencv
from tinydet._internal.shell import command_line
from tinydet.runtime.scenes.pixels import Pixels, upright
from tinydet.runtime.scenes.signatures import HEAD, JPEG_MARKER

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

MAX_DECODED = 1 << 28  # pixels; larger files are read by windows
MAX_ENCODED = 1 << 29  # bytes; larger files are read by windows
MAX_DENSITY = 8400  # pixels per byte: 8 pixels per byte of a bilevel image, which deflate shrinks by at most 1032
MANY_PIXELS = 1 << 26  # smaller images are not checked
STRIP = 32  # rows
BLOCK = 1 << 20  # bytes that are searched for markers at a time
ORIENTATION = 0x0112  # EXIF tag
HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"mif2", b"msf1"})

_END_OF_JPEG = b"\xff\xd9"
# Data that differs from the zeros a decoder assumes when it runs out of data. It may expect any of eight restart
# markers, and skips the two after the expected one.
_FILLERS = [
    b"".join(bytes(range(0xFE, 0, -step)) * step + bytes([0xFF, 0xD0 + n % 8]) for n in range(first, first + 8))
    for first, step in ((0, 1), (4, 67))
]
_PNG_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"acTL", b"fcTL", b"fdAT", b"IDAT", b"IEND"})  # for the pixels
_NETPBM = re.compile(rb"P([1-6fF])(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d+)(?:\s|#[^\n]*\n)+(\d*)")
_PAM = re.compile(rb"^(WIDTH|HEIGHT|DEPTH|MAXVAL)\s+(\d+)", re.MULTILINE)

logger = logging.getLogger("tinydet.runtime.scenes")


@dataclass(frozen=True)
class Header:
    """Header of an image file.

    Attributes:
        format: "JPEG", "PNG", ...
        width, height: in pixels, as stored.
        orientation: of EXIF, 1 to 8.
    """

    format: str
    width: int
    height: int
    orientation: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """Width and height once the orientation is applied."""
        return (self.height, self.width) if self.orientation > 4 else (self.width, self.height)


def image_format(head: bytes) -> str | None:
    """Return the format of a file that is decoded at once, from its first HEAD bytes; None if GDAL may know it."""
    if head.startswith(b"\xff\xd8"):
        return "JPEG"
    if head.startswith(b"\x89PNG"):
        return "PNG"
    if head.startswith(b"GIF8"):
        return "GIF"
    if head.startswith(b"BM") and head[14:18] in (bytes([n, 0, 0, 0]) for n in (12, 16, 40, 52, 56, 64, 108, 124)):
        return "BMP"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        brands = {head[i : i + 4] for i in range(8, min(int.from_bytes(head[:4], "big"), len(head)), 4)}
        return "AVIF" if brands & {b"avif", b"avis"} else "HEIF" if brands & HEIF_BRANDS else None
    if head.startswith(b"\x59\xa6\x6a\x95"):
        return "SUN"
    if head.startswith((b"#?RADIANCE", b"#?RGBE")):
        return "HDR"
    if head.startswith(b"\x76\x2f\x31\x01"):
        return "EXR"
    if head.startswith(b"P7\n"):
        return "PAM"
    if found := _NETPBM.match(head[:HEAD]):
        has_more_bits = found[1] not in b"14" and int(found[4] or 0) > 255
        return "PFM" if found[1] in b"fF" else "PNM16" if has_more_bits else "PPM"
    return None


def read_bytes(path: Path) -> bytes | None:
    """Read a file; None if it is read by windows because of its format or its size.

    Raises:
        ValueError: the file is empty.
        OSError: the file is missing, unreadable or a folder.
    """
    check_file(path)
    with path.open("rb") as file:
        head = file.read(HEAD)
        if not head:
            raise ValueError(f"{path} is empty (0 bytes); get the file again")
        if image_format(head) is None or path.stat().st_size > MAX_ENCODED:
            return None
        return head + file.read()


def read_header(path: Path, file: BinaryIO) -> Header | None:
    """Read the header of an open file, without its pixels; None if GDAL reads it, or if its header is damaged.

    Raises:
        ValueError: the file needs a library that is not installed.
    """
    kind = image_format(file.read(HEAD))
    file.seek(0)
    if kind is None:
        return None
    if kind in ("HDR", "EXR", "PAM", "PFM", "PNM16"):
        return _header_by_pattern(kind, file.read(HEAD))
    try:
        if kind == "PNG":
            return _png_header(file)
        with open_with_pillow(path, kind, file) as image:
            return Header(kind, *image.size, _orientation(image.info.get("exif", b"")))
    except ModuleNotFoundError as error:
        raise ValueError(str(error)) from error
    except Exception:  # Pillow raises errors of any class for a damaged header; decoding the file reports it
        return None


def needs_windows(path: Path, data: bytes, header: Header | None) -> bool:
    """Return whether an image has too many pixels to decode it at once.

    Raises:
        ValueError: the image claims more pixels than its bytes can hold, or is truncated.
    """
    if header is None:
        return False
    check_density(path, header.width, header.height, len(data))
    if header.width * header.height <= MAX_DECODED:
        return False
    has_end = (header.format != "JPEG" or _Scans(data).has_end) and (header.format != "PNG" or _png_has_end(data))
    if not has_end:  # GDAL would fill missing rows with gray or black
        raise ValueError(
            f"{path}: truncated {header.format}, its {len(data)} bytes have no end marker; get the file again"
        )
    return True


def check_density(path: Path, width: int, height: int, n_bytes: int) -> None:
    """Check that an image does not claim more pixels than its bytes can hold.

    Raises:
        ValueError: it does.
    """
    if width * height > max(MANY_PIXELS, MAX_DENSITY * n_bytes):
        raise ValueError(
            f"{path}: damaged or truncated, it claims {width}x{height} pixels, which its {n_bytes} bytes cannot hold; "
            "get the file again"
        )


def check_fits_in_memory(path: Path, width: int, height: int) -> None:
    """Check the number of pixels of an image that is to be read whole.

    Raises:
        ValueError: there are more than MAX_DECODED.
    """
    if width * height > MAX_DECODED:
        raise ValueError(f"{path}: {width}x{height} pixels are too many to hold at once; cut it into tiles")


def decode(path: Path, data: bytes, header: Header | None) -> tuple[Pixels, Pixels | None]:
    """Decode an image to upright (H, W, 3) RGB, and its alpha (H, W) if it is not fully opaque.

    Args:
        header: from `read_header`; None if the header is damaged.

    Raises:
        ValueError: the data is truncated or damaged, not an image, or needs a library that is not installed.
    """
    kind = header.format if header is not None else image_format(data[:HEAD])
    frames, rgb, alpha = 1, None, None
    if kind == "JPEG":
        rgb, frames = _decode_jpeg(path, data)
    elif kind == "PNG":
        rgb, alpha, frames = _decode_png(path, data)
    elif kind == "PAM":
        rgb, alpha = _decode_pam(path, data)
    elif kind in ("HDR", "EXR", "PFM", "PNM16"):
        if kind == "EXR" and os.environ.get("OPENCV_IO_ENABLE_OPENEXR", "0") in ("", "0"):
            raise ValueError(
                f"{path}: OpenCV reads OpenEXR files only if the environment has OPENCV_IO_ENABLE_OPENEXR=1; "
                "set it, or convert the file to TIFF"
            )
        rgb = _decode_with_opencv(path, data + b"\n")  # a text file of numbers may end in the last digit
    elif kind is not None:
        try:
            rgb, alpha, frames = _decode_with_pillow(path, kind, data)
        except ModuleNotFoundError as error:
            raise ValueError(str(error)) from error
        except Exception as error:  # Pillow raises errors of any class
            raise ValueError(f"{path}: damaged or truncated {kind} ({reason(error)}); get the file again") from error
    if rgb is None:
        raise ValueError(f"{path}: damaged, or not an image that OpenCV reads; get the file again or convert it to PNG")
    if header is not None and rgb.shape[:2] != (header.height, header.width):
        claim = f"claims {header.width}x{header.height} pixels, but has {rgb.shape[1]}x{rgb.shape[0]}"
        raise ValueError(f"{path}: damaged, {claim}; get the file again")
    if frames != 1:
        _report_frames(path, kind or "", frames)
    if alpha is not None and (alpha.shape != rgb.shape[:2] or alpha.all()):
        alpha = None
    orientation = header.orientation if header is not None else 1
    return upright(rgb, orientation), None if alpha is None else upright(alpha, orientation)


@functools.lru_cache(maxsize=1 << 14)
def warn_once(message: str) -> None:
    """Log a warning about a file once, even if the file is opened repeatedly."""
    logger.warning(message)


def _report_frames(path: Path, kind: str, frames: int) -> None:
    way = command_line("ffmpeg", "-i", path, "frames.mp4")
    if kind == "HEIF":
        way = "convert it to JPEG files"
    elif kind == "JPEG" and frames:
        way = f"{command_line('exiftool', '-b', '-MPImage2', path)} > second.jpg"
    elif kind == "JPEG":
        way = command_line("ffmpeg", "-f", "mjpeg", "-i", path, "frames.mp4")
    rest = "the other one is" if frames == 2 else f"the other {frames - 1} are" if frames else "the others are"
    warn_once(
        f"{path} holds {frames or 'several'} frames; the first is read and {rest} left out. To extract them: {way}"
    )


def _orientation(exif: bytes) -> int:
    """Return the orientation of an EXIF block, 1 if it has none or is damaged."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about damaged tags
            tags = Image.Exif()
            tags.load(exif)
            value = tags.get(ORIENTATION, 1)
    except Exception:  # Pillow raises errors of any class; viewers ignore a damaged block
        return 1
    return value if value in range(1, 9) else 1


def open_with_pillow(path: Path, kind: str, file: BinaryIO) -> ImageFile:
    """Open a file with the plugin of Pillow for its format, without Pillow's own limit of pixels.

    Raises:
        ModuleNotFoundError: the plugin is not installed.
        Exception: the header is damaged.
    """
    from PIL import (  # noqa: F401 - each registers its format
        AvifImagePlugin,
        BmpImagePlugin,
        GifImagePlugin,
        Image,
        JpegImagePlugin,
        MpoImagePlugin,
        PngImagePlugin,
        PpmImagePlugin,
        SunImagePlugin,
        WebPImagePlugin,
    )

    if kind == "HEIF" and kind not in Image.OPEN:
        try:
            with needs_extra("heif"):
                import pillow_heif
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{path} is a HEIC or HEIF image. {error}, or convert the image to JPEG or PNG", name=error.name
            ) from None
        pillow_heif.register_heif_opener()
    factory: Any = Image.OPEN[kind][0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a damaged index of an MPO: its first image is read
        image: ImageFile = factory(file, "")
        return image


def _decode_with_pillow(path: Path, kind: str, data: bytes) -> tuple[Pixels, Pixels | None, int]:
    """Decode the first image of a file to RGB and its alpha, if it has one; also return the number of images.

    Raises:
        ModuleNotFoundError: the plugin for the format is not installed.
        Exception: the data is damaged.
    """
    with open_with_pillow(path, kind, io.BytesIO(data)) as image:
        frames = getattr(image, "n_frames", 1)
        image.seek(0)
        if image.has_transparency_data:
            rgba = np.asarray(image.convert("RGBA"))
            return np.ascontiguousarray(rgba[..., :3]), rgba[..., 3], frames
        if image.mode != "RGB":
            return np.array(image.convert("RGB")), None, frames
        return _pixels_of(image), None, frames


def _pixels_of(image: ImageFile) -> Pixels:
    """Return the pixels (H, W, 3) of an image of mode RGB.

    Pillow stores four bytes per pixel; handing out all of them is three times as fast as handing out three. A strip of
    a few rows stays in the processor's cache between the copies, which halves the time again.
    """
    image.load()
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, STRIP):
        strip = image.crop((0, top, image.width, min(top + STRIP, image.height)))
        stored = np.frombuffer(strip.tobytes("raw", "RGBX"), np.uint8).reshape(strip.height, strip.width, 4)
        cv2.cvtColor(stored, cv2.COLOR_RGBA2RGB, dst=pixels[top : top + STRIP])
    return pixels


def _decode_with_opencv(path: Path, data: bytes) -> Pixels | None:
    """Decode an image as stored, at its own bit depth, to RGB; None if it is not an image.

    Raises:
        ValueError: the data is damaged.
    """
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        with silent_opencv():
            found = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ValueError(f"{path}: OpenCV cannot decode it ({error.err or error}); get the file again") from error
    return None if found is None else cv2.cvtColor(found, cv2.COLOR_BGR2RGB)


def _header_by_pattern(kind: str, head: bytes) -> Header | None:
    """Read the size of a format that only OpenCV reads."""
    if kind == "PAM":
        sizes = dict(_PAM.findall(head[: head.find(b"ENDHDR")]))
        size = sizes.get(b"WIDTH"), sizes.get(b"HEIGHT")
        return Header(kind, int(size[0]), int(size[1])) if size[0] and size[1] else None
    if kind == "EXR":
        start = head.find(b"dataWindow\0box2i\0") + 21
        if start < 21 or start + 16 > len(head):
            return None
        x1, y1, x2, y2 = struct.unpack_from("<4i", head, start)
        return Header(kind, x2 - x1 + 1, y2 - y1 + 1)
    if kind == "HDR":
        found = re.search(rb"-Y (\d+) \+X (\d+)", head)
        return Header(kind, int(found[2]), int(found[1])) if found else None
    found = _NETPBM.match(head)
    return Header(kind, int(found[2]), int(found[3])) if found else None


def _decode_pam(path: Path, data: bytes) -> tuple[Pixels, Pixels | None]:
    """Decode a PAM, which Pillow does not read, and OpenCV with red and blue exchanged.

    Raises:
        ValueError: the header is damaged or pixels are missing.
    """
    try:
        start = data.index(b"ENDHDR\n") + 7
        values = {name: int(value) for name, value in _PAM.findall(data[:start])}
        top, shape = values[b"MAXVAL"], (values[b"HEIGHT"], values[b"WIDTH"], values[b"DEPTH"])
        count = shape[0] * shape[1] * shape[2]
        if not count:
            raise ValueError(f"{shape[1]}x{shape[0]} pixels")
        samples = np.frombuffer(data, np.uint8 if top < 256 else ">u2", count, start).reshape(shape)
        if top < 255:
            samples = np.minimum(np.rint(samples / top * 255), 255).astype(np.uint8)
    except (ValueError, KeyError, ArithmeticError) as error:
        raise ValueError(f"{path}: damaged or truncated PAM ({reason(error)}); get the file again") from error
    samples = samples.astype(samples.dtype.newbyteorder("="))
    colors = samples[..., :3] if shape[2] > 2 else samples[..., [0, 0, 0]]
    return colors, samples[..., -1] if shape[2] in (2, 4) else None


def _decode_jpeg(path: Path, data: bytes) -> tuple[Pixels, int]:
    """Decode a JPEG to RGB as stored; also return how many images of its size it holds, 0 for several without an index.

    Raises:
        ValueError: the file is damaged, or rows are missing.
    """
    scans = _Scans(data)
    if not scans.has_end:
        data = _complete_jpeg(path, data, scans)
    has_index = b"MPF\0" in data[: scans.start]
    try:
        rgb, _, frames = _decode_with_pillow(path, "JPEG", data)
        if has_index:
            frames = _count_images(path, data)
    except Exception as error:  # Pillow raises errors of any class
        raise ValueError(f"{path}: damaged JPEG ({reason(error)}); get the file again") from error
    # libjpeg leaves missing blocks gray.
    if scans.has_end and (rgb[-1, -1] == 128).all() and not _has_all_rows(path, data[: scans.stop]):
        raise ValueError(f"{path}: truncated JPEG, rows are missing before its end marker; get the file again")
    following = data[scans.stop + 2 :] if scans.has_end and not has_index else b""
    if following.startswith(b"\xff\xd8\xff") and _Scans(following).size == scans.size:
        frames = 0  # Motion JPEG
    return rgb, frames


def _count_images(path: Path, data: bytes) -> int:
    """Count the images of an MPO that have the size of the first; others are previews and gain maps."""
    frames = 1
    with open_with_pillow(path, "JPEG", io.BytesIO(data)) as image:
        size = image.size
        for n in range(1, getattr(image, "n_frames", 1)):
            try:
                image.seek(n)
            except Exception:  # an index that points to no image
                break
            frames += image.size == size
    return frames


class _Scans:
    """The segments of a JPEG. Thumbnails inside segments are skipped.

    Attributes:
        size: width and height, 0 if the header is missing.
        start: position after the header of the first scan.
        stop: position of the end marker. If it is missing, the position at which the image ends at the latest: at the
            first marker after the scans that it needs, where another image begins, or at the end of the data.
        has_end: whether the end marker follows.
        missing: (component, coefficient) pairs that no scan refines to full precision: a truncated progressive JPEG.
    """

    def __init__(self, data: bytes) -> None:
        self.size, self.start, self.stop, self.has_end = (0, 0), len(data), len(data), False
        self.missing: set[tuple[int, int]] = set()
        position = 2
        while found := JPEG_MARKER.search(data, _skip_coded(data, position)):
            marker, position = found[1][0], found.end()
            if any(self.size) and not self.missing:
                self.stop = min(self.stop, found.start())
            if marker in (0xD8, 0xD9):
                self.has_end = marker == 0xD9
                self.stop = found.start() if self.has_end else min(self.stop, found.start())
                return
            if position + 2 > len(data):
                return
            segment = data[position : position + int.from_bytes(data[position : position + 2], "big")]
            if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and len(segment) > 7 and not any(self.size):
                self.size = int.from_bytes(segment[5:7], "big"), int.from_bytes(segment[3:5], "big")
                self.missing = {(name, k) for name in segment[8::3] for k in range(64)}
            if marker == 0xDA and len(segment) > 5:
                self.start = min(self.start, position + len(segment))
                first, last, precision = segment[-3:]
                if precision & 15 == 0:
                    names = segment[3 : 3 + 2 * segment[2] : 2]
                    self.missing -= {(name, k) for name in names for k in range(first, last + 1)}
            position += max(len(segment), 2)


def _skip_coded(data: bytes, position: int) -> int:
    """Return a position up to which there is no marker: ten times as fast as a regular expression in coded pixels."""
    while position < len(data):
        block = np.frombuffer(data, np.uint8, min(BLOCK, len(data) - position), position)
        places = np.flatnonzero(block[:-1] == 0xFF)
        after = block[places + 1]
        places = places[(after > 1) & ((after < 0xD0) | (after > 0xD7))]  # also before an 0xFF that fills up
        if len(places):
            return position + int(places[0])
        if len(block) < BLOCK:
            return position
        position += BLOCK - 1
    return position


def _complete_jpeg(path: Path, data: bytes, scans: _Scans) -> bytes:
    """Append the missing end marker of a JPEG whose rows are all there.

    Zeros at the end may be a part of the file that was never written.

    Raises:
        ValueError: rows are missing.
    """
    kept = data[: scans.stop]
    if kept.endswith((bytes(8), b"\xff" * 8)):
        kept = kept.rstrip(b"\0\xff")
    kept = kept.rstrip(b"\xff")  # the first half of a marker
    if not any(scans.size) or scans.missing or not _has_all_rows(path, kept):
        raise ValueError(
            f"{path}: truncated JPEG, its {len(data)} bytes have no end marker and rows are missing; get the file again"
        )
    warn_once(f"{path}: the JPEG has no end marker, but all of its rows are there; it is read")
    return kept + _END_OF_JPEG


def _has_all_rows(path: Path, kept: bytes) -> bool:
    """Return whether a JPEG without its end marker has all of its rows.

    It has if bytes that follow have no influence on the pixels: libjpeg takes them for the missing part of a scan, or
    continues with gray if there are none.
    """
    try:
        images = (_decode_with_pillow(path, "JPEG", kept + filler + _END_OF_JPEG)[0] for filler in (b"", *_FILLERS))
        first = next(images)
        return all(np.array_equal(first, image) for image in images)
    except Exception:  # Pillow raises errors of any class
        return False


def _png_chunks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Yield the kind and length of each chunk of a PNG with the file at its content."""
    position = 8
    while True:
        file.seek(position)
        head = file.read(8)
        if len(head) < 8:
            return
        length, kind = struct.unpack(">I4s", head)
        yield kind, length
        position += 12 + length


def _png_has_end(data: bytes) -> bool:
    with io.BytesIO(data) as file:
        return any(kind == b"IEND" and file.tell() + 4 <= len(data) for kind, _ in _png_chunks(file))


def _png_header(file: BinaryIO) -> Header | None:
    """Read the size and orientation of a PNG. EXIF may follow the pixels."""
    size, exif = None, b""
    for kind, length in _png_chunks(file):
        if kind == b"IHDR":
            size = struct.unpack(">II", file.read(8))
        elif kind == b"eXIf":
            exif = file.read(length)
        elif kind == b"IEND":
            break
    return None if size is None else Header("PNG", size[0], size[1], _orientation(exif))


def _decode_png(path: Path, data: bytes) -> tuple[Pixels | None, Pixels | None, int]:
    """Decode a PNG to RGB and its alpha, if it has one; also return the number of its frames (APNG).

    Raises:
        ValueError: the file is truncated or damaged.
    """
    before_pixels = data[: data.find(b"IDAT")]
    is_animation = b"acTL" in before_pixels
    if not is_animation and not _png_has_end(data):
        data = _complete_png(path, data)
        warn_once(f"{path}: the PNG has no end chunk, but all of its rows; it is read")
    if data[26:28] != b"\0\0":
        raise ValueError(f"{path}: damaged PNG (unknown compression); get the file again")
    has_alpha = data[25] in (4, 6) or b"tRNS" in before_pixels
    if data[24] == 16 and not (has_alpha or is_animation or data[28]):  # interlaced otherwise
        return _decode_with_opencv(path, _complete_png(path, data)), None, 1
    try:
        rgb, alpha, frames = _decode_with_pillow(path, "PNG", data)
    except Exception:  # Pillow raises errors of any class, also because of a long text
        with io.BytesIO(data) as file:
            places = [(kind, file.tell(), length) for kind, length in _png_chunks(file)]
        pixels = (data[at - 8 : at + length + 4] for kind, at, length in places if kind in _PNG_CHUNKS)
        data = data[:8] + b"".join(pixels)
        try:
            rgb, alpha, frames = _decode_with_pillow(path, "PNG", data)
        except Exception as error:
            raise ValueError(f"{path}: damaged PNG ({reason(error)}); get the file again") from error
    if is_animation:
        return rgb, alpha, frames
    if data[24] == 16:  # Pillow has reduced them to 8; OpenCV prints if there are too few rows, or too many
        return _decode_with_opencv(path, _complete_png(path, data)), alpha, frames
    # Pillow leaves missing rows empty; if the image is interlaced, at least one of the last two.
    if any((row == row[0]).all() for row in rgb[-2:]):
        _complete_png(path, data)
    return rgb, alpha, frames


def _complete_png(path: Path, data: bytes) -> bytes:
    """Rewrite a PNG with exactly its rows and an end chunk. The end of the compressed data may be missing.

    Raises:
        ValueError: rows are missing.
    """
    try:
        with io.BytesIO(data) as file:
            chunks = [(kind, file.read(length)) for kind, length in _png_chunks(file)]
        n_bytes = _png_row_bytes(dict(chunks)[b"IHDR"])
        if not n_bytes:
            raise ValueError("no pixels")
        rows = zlib.decompressobj().decompress(
            b"".join(content for kind, content in chunks if kind == b"IDAT"), n_bytes
        )
    except (ValueError, LookupError, struct.error, zlib.error) as error:
        raise ValueError(f"{path}: truncated or damaged PNG ({reason(error)}); get the file again") from error
    if len(rows) < n_bytes:
        share = len(rows) / n_bytes
        raise ValueError(
            f"{path}: truncated PNG, its {len(data)} bytes hold {share:.0%} of its rows; get the file again"
        )
    height, is_interlaced = int.from_bytes(data[20:24], "big"), data[28]
    if not is_interlaced and max(rows[:: n_bytes // height]) > 4:
        raise ValueError(f"{path}: damaged PNG (unknown filter of a row); get the file again")
    others = [(kind, content) for kind, content in chunks if kind in (b"IHDR", b"PLTE", b"tRNS")]
    chunks = [*others, (b"IDAT", zlib.compress(rows, 0)), (b"IEND", b"")]
    return data[:8] + b"".join(_png_chunk(kind, content) for kind, content in chunks)


def _png_row_bytes(header: bytes) -> int:
    """Return the number of bytes of all rows of a PNG, each with the byte that names its filter."""
    width, height, depth, color, _, _, is_interlaced = struct.unpack(">IIBBBBB", header)
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    adam7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    total = 0
    for x, y, step_x, step_y in adam7 if is_interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - x) // step_x), -(-(height - y) // step_y)
        total += rows * (1 + -(-columns * bits // 8)) if columns > 0 and rows > 0 else 0
    return total


def _png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
