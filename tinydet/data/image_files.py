"""Picture files of a folder, and their sizes without decoding them where the header says it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from tinydet.runtime.scenes import open_scene

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".jp2", ".png", ".tif", ".tiff", ".webp"})


def list_pictures(folder: Path) -> list[Path]:
    """Files with the name of a picture, however deep in the folder, relative to it, sorted."""
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height of the pixels that `tinydet.runtime.scenes.read_image` gives, EXIF orientation applied.

    JPEG and PNG say both in their headers; other files are opened. A file cut off behind its header passes.

    Raises:
        ValueError, OSError: as `open_scene`.
    """
    with path.open("rb") as file:
        signature = file.read(8)
        size = None
        try:
            if signature.startswith(b"\xff\xd8"):
                size = _jpeg(file)
            if signature == b"\x89PNG\r\n\x1a\n":
                size = _png(file)
        except struct.error:  # cut off; opening it says so
            pass
    if size is not None:
        return size
    with open_scene(path) as scene:
        return scene.width, scene.height


def _jpeg(file: BinaryIO) -> tuple[int, int] | None:
    file.seek(2)
    turned = False
    while True:
        prefix, marker = struct.unpack(">BB", file.read(2))
        while marker == 0xFF:  # fill bytes
            (marker,) = struct.unpack(">B", file.read(1))
        if prefix != 0xFF or marker in (0xD8, 0xD9, 0xDA):
            return None
        (length,) = struct.unpack(">H", file.read(2))
        if length < 2:
            return None
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">xHH", file.read(5))
            return (height, width) if turned else (width, height)
        content = file.read(length - 2) if marker == 0xE1 else b""
        if content.startswith(b"Exif\0\0"):
            turned = 5 <= _orientation(content[6:]) <= 8
        elif marker != 0xE1:
            file.seek(length - 2, 1)


def _png(file: BinaryIO) -> tuple[int, int] | None:
    width, height = struct.unpack(">8xII", file.read(16))
    file.seek(5 + 4, 1)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"eXIf":  # it may turn the picture; the decoder knows
            return None
        if kind == b"IEND":
            return width, height
        file.seek(length + 4, 1)
    return None


def _orientation(exif: bytes) -> int:
    """The tag 0x0112 of the first directory of a TIFF header; 1 where there is none."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        for n in range(count):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", exif, start + 2 + 12 * n)
            if tag == 0x0112:
                return int(value)
    except struct.error:
        pass
    return 1
