"""Decide which files the service opens, from their place, their first bytes and their header, before any decoding."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tinydet._internal.errors import name_failures
from tinydet.runtime.scenes import DamagedSceneError
from tinydet.runtime.scenes.image_file import MAX_DECODED, check_density, image_format, read_header
from tinydet.runtime.scenes.raster_access import is_vrt, open_raster
from tinydet.runtime.scenes.signatures import HEAD, media_kind
from tinydet.runtime.scenes.tiff_tags import TIFF
from tinydet.serve.errors import ServiceError

JPEG_2000 = (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")
ACCEPTED = "JPEG, PNG, TIFF, JPEG 2000, WebP, AVIF, GIF, BMP, PNM, or another format that keeps all pixels in one file"


class ImageInfo(NamedTuple):
    """Header of a scene.

    Attributes:
        width, height: in pixels, upright.
        format: such as "JPEG" or "GTiff".
        georeferenced: whether it states a coordinate system.
    """

    width: int
    height: int
    format: str
    georeferenced: bool = False


def admit(path: Path, *, name: str, max_pixels: int, allow_vrt: bool = False) -> ImageInfo:
    """Check that a file is an image that the service may open, and return its header.

    The first bytes choose what reads the file: Pillow and OpenCV for the formats of `image_format`, GDAL for TIFF and
    JPEG 2000. Formats that may refer to other files or servers are refused.

    Args:
        name: of the file, for messages.
        allow_vrt: admit a VRT under the rules of `raster_access`.

    Raises:
        ServiceError: 415 for a format that is not admitted, 422 for a damaged file, 413 for too many pixels.
    """
    try:
        info = _header(path, name, allow_vrt)
    except (DamagedSceneError, ValueError, OSError, ImportError) as error:
        if isinstance(error, ServiceError):
            raise
        raise ServiceError(422, public(str(error), path, name)) from error
    if info.width * info.height > max_pixels:
        raise ServiceError(413, f"{name}: {info.width}x{info.height} pixels exceed the limit of {max_pixels} here")
    return info


def public(message: str, path: Path, name: str) -> str:
    """Replace a path of the server in a message by the name that the client knows."""
    for shown in dict.fromkeys((str(path), str(path.resolve()))):
        message = message.replace(shown, name)
    return message


def find_below(roots: Sequence[Path], text: str) -> Path:
    """Return the file that a client names by a path: below a root, or absolute.

    Symbolic links are followed first, so one that leads out of the roots is refused.

    Raises:
        ServiceError: 404 if there is no such file below the roots, whatever else exists; 400 if it is not a path.
    """
    if not roots:
        raise ServiceError(403, "this service was started without --root, so it takes no paths; upload the scene")
    if "\0" in text or "://" in text or text.startswith("/vsi") or len(text) > 4096 or not text.strip():
        raise ServiceError(400, "path: expected the path of a file below a root")
    bases = [root.resolve() for root in roots]
    for base in bases:
        try:
            found = (base / text).resolve(strict=True)  # an absolute path replaces the root
            if (
                any(map(found.is_relative_to, bases))
                and stat.S_ISREG(found.stat().st_mode)
                and os.access(found, os.R_OK)
            ):
                return found
        except (OSError, RuntimeError, ValueError):  # missing, a loop of links, undecodable
            continue
    raise ServiceError(404, "path: there is no such file below the roots of this service")


def _header(path: Path, name: str, allow_vrt: bool) -> ImageInfo:
    with path.open("rb") as file:
        head = file.read(HEAD)
        if not head:
            raise ServiceError(422, f"{name}: an empty file")
        kind = image_format(head)
        file.seek(0)
        if kind is not None:
            with name_failures(path, "read"):
                header = read_header(path, file)
            if header is None:
                raise ServiceError(422, f"{name}: damaged {kind}")
            check_density(path, header.width, header.height, path.stat().st_size)
            if header.width * header.height <= MAX_DECODED:
                return ImageInfo(*header.size, header.format)
    is_virtual = is_vrt(head)
    if is_virtual and not (allow_vrt and path.suffix.lower() == ".vrt"):
        raise ServiceError(415, f"{name}: a VRT, which refers to other files; send the raster itself")
    if kind is None and not is_virtual and not head.startswith((*TIFF, *JPEG_2000)):
        what = "a video" if media_kind(head) == "video" else "not an image of a format that is accepted here"
        raise ServiceError(415, f"{name}: {what}; send {ACCEPTED}")
    with name_failures(path, "read"), open_raster(path) as raster:
        return ImageInfo(raster.width, raster.height, raster.driver, raster.crs is not None)
