"""Image files of a folder, and their sizes, read from the header if possible."""

from __future__ import annotations

import os
import struct
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO

from tinydet._internal.input_files import check_file
from tinydet.runtime.scenes import open_scene
from tinydet.runtime.scenes.folders import SYSTEM
from tinydet.runtime.scenes.sources import IMAGES


def list_images(folder: Path) -> list[Path]:
    """Return the image files of a folder, by suffix, as `list_files`."""
    return list_files(folder, IMAGES)


def list_files(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Return the files of a folder and its subfolders that have one of the suffixes, in any letter case.

    They are sorted and relative to the folder. Links to folders are followed, each folder once. Hidden files and those
    of operating systems are left out, such as the `._name` and `__MACOSX` of macOS. Unlike `files_in`, every name
    counts: labels of two images may be links to one file, and a broken link is an error when it is read.

    Raises:
        OSError: a folder cannot be read.
    """

    def fail(error: OSError) -> None:
        raise error

    found: list[Path] = []
    seen = set(map(str, Path(os.path.realpath(folder)).parents))  # a link to a folder above closes a cycle
    for parent, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in SYSTEM)
        place = os.path.realpath(parent)
        if place in seen:
            folders.clear()
            continue
        seen.add(place)
        relative = Path(parent).relative_to(folder)
        found.extend(relative / n for n in names if not n.startswith(".") and Path(n).suffix.lower() in suffixes)
    return sorted(found)


def image_size(path: Path) -> tuple[int, int]:
    """Return the width and height that `tinydet.runtime.scenes.read_image` gives, with EXIF orientation applied.

    Reads the header of JPEG and PNG files, so a file that is truncated after its header is not noticed. Other files
    are opened.

    Raises:
        ValueError, OSError: as `open_scene`.
    """
    check_file(path)
    with path.open("rb") as file:
        signature = file.read(8)
        size = None
        try:
            if signature.startswith(b"\xff\xd8"):
                size = _jpeg(file)
            if signature == b"\x89PNG\r\n\x1a\n":
                size = _png(file)
        except struct.error:  # truncated header; opening the file reports it
            pass
    if size is not None:
        return size
    with open_scene(path) as scene:
        return scene.width, scene.height


def _jpeg(file: BinaryIO) -> tuple[int, int] | None:
    """Read the size from a JPEG header, None if it is not found."""
    file.seek(2)
    transposed = False
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
            return (height, width) if transposed else (width, height)
        content = file.read(length - 2) if marker == 0xE1 else b""
        if content.startswith(b"Exif\0\0"):
            transposed = 5 <= _orientation(content[6:]) <= 8
        elif marker != 0xE1:
            file.seek(length - 2, 1)


def _png(file: BinaryIO) -> tuple[int, int] | None:
    """Read the size from a PNG header, None if it is not found or an EXIF chunk may rotate the image."""
    width, height = struct.unpack(">8xII", file.read(16))
    file.seek(5 + 4, 1)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"eXIf":  # may rotate the image; left to the decoder
            return None
        if kind == b"IEND":
            return width, height
        file.seek(length + 4, 1)
    return None


def _orientation(exif: bytes) -> int:
    """Return the orientation (tag 0x0112 of the first directory of a TIFF header), 1 by default."""
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
