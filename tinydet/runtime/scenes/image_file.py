"""Decode image files with OpenCV. Truncated and oversized files are detected from their bytes, before decoding."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import cv2
import numpy as np

from tinydet.runtime.scenes.pixels import Pixels

MAX_DECODED = 1 << 28  # pixels; larger files are read by windows
MAX_ENCODED = 1 << 29  # bytes; larger files are read by windows


def read_bytes(path: Path) -> bytes:
    """Read a file; only its first bytes if it is read by windows in any case.

    Raises:
        ValueError: the file is empty.
        OSError: the file is missing, unreadable or a folder.
    """
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name an image file")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; check the path")
    with path.open("rb") as file:
        head = file.read(16)
        if not head:
            raise ValueError(f"{path} is empty (0 bytes); get the file again")
        return head if _is_raster_format(head) or path.stat().st_size > MAX_ENCODED else head + file.read()


def needs_windows(path: Path, data: bytes) -> bool:
    """Return whether a file must be read by windows rather than decoded at once, from the bytes of `read_bytes`.

    Raises:
        ValueError: a JPEG or PNG is truncated. OpenCV may fill the missing part with gray instead of failing.
    """
    if _is_raster_format(data) or path.stat().st_size > MAX_ENCODED:
        return True
    if data.startswith(b"\xff\xd8"):
        width, height = _jpeg_size(path, data)
    elif data.startswith(b"\x89PNG"):
        width, height = _png_size(path, data)
    elif data.startswith(b"GIF8") and len(data) > 10:
        width, height = struct.unpack_from("<HH", data, 6)  # OpenCV would allocate 6 GB for 50 bytes of 40000x20000
    else:
        return False
    return width * height > MAX_DECODED


def check_fits_in_memory(path: Path, width: int, height: int) -> None:
    """Check the number of pixels of an image that is to be read whole.

    Raises:
        ValueError: there are more than MAX_DECODED.
    """
    if width * height > MAX_DECODED:
        raise ValueError(f"{path}: {width}x{height} pixels are too many to hold at once; cut it into tiles")


def decode(path: Path, data: bytes) -> tuple[Pixels, Pixels | None]:
    """Decode an image to (H, W, 3) RGB or (H, W), and the alpha (H, W) of a PNG that is not fully opaque.

    Raises:
        ValueError: the data is damaged, or not an image.
    """
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    encoded = np.frombuffer(data, np.uint8)
    alpha = None
    try:
        # These flags apply the EXIF orientation and keep 16 bits.
        bgr = cv2.imdecode(encoded, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
        if bgr is not None and data.startswith(b"\x89PNG") and data[25] in (4, 6):  # grayscale or RGB with alpha
            unchanged = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
            alpha = None if unchanged is None else unchanged[..., -1]
    except cv2.error as error:
        raise ValueError(f"{path}: OpenCV cannot decode it ({error.err or error}); get the file again") from error
    finally:
        cv2.utils.logging.setLogLevel(level)
    if bgr is None:
        raise ValueError(f"{path}: damaged, or not an image that OpenCV reads; get the file again or convert it to PNG")
    # IMREAD_UNCHANGED does not apply the EXIF orientation, so the alpha of a rotated image does not match its pixels.
    usable = alpha is not None and alpha.shape == bgr.shape[:2] and b"eXIf" not in data[:4096] and not alpha.all()
    return cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), alpha if usable else None


def _is_raster_format(head: bytes) -> bool:
    """Return whether a file is a TIFF, a BigTIFF, or JPEG 2000 (codestream or JP2)."""
    return head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"\xff\x4f\xff\x51") or head[4:8] == b"jP  "


_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7\x01])")  # neither a stuffed zero nor a restart


def _jpeg_size(path: Path, data: bytes) -> tuple[int, int]:
    """Return (width, height) of a JPEG that has its end marker. Thumbnails inside segments are skipped."""
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
    """Return (width, height) of a PNG that has its last chunk."""
    position = 8
    while position + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        position += 12 + length
        if kind == b"IEND" and position <= len(data):
            width, height = struct.unpack_from(">II", data, 16)
            return int(width), int(height)
    raise ValueError(f"{path}: truncated PNG, its {len(data)} bytes have no last chunk; get the file again")
