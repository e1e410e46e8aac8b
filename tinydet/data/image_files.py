"""List the image files of a folder, and read their sizes, from the header if possible."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from tinydet._internal.input_files import check_file
from tinydet.runtime.scenes import open_scene
from tinydet.runtime.scenes.folders import SYSTEM
from tinydet.runtime.scenes.image_file import read_header
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

    Reads the header, so a file that is truncated after its header is not noticed. Rasters and files with a damaged
    header are opened.

    Raises:
        ValueError, OSError: as `open_scene`.
    """
    check_file(path)
    with path.open("rb") as file:
        header = read_header(path, file)
    if header is not None:
        return header.size
    with open_scene(path) as scene:
        return scene.width, scene.height
