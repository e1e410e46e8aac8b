"""Build image paths from names in annotation files, which must not leave the image folder."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

_DRIVE = re.compile(r"[A-Za-z]:/")


def image_name(text: str) -> str:
    r"""Return a file name with slashes as separators, without `.` and empty parts.

    >>> image_name(r".\sub\a.png"), image_name("sub/../../a.png")
    ('sub/a.png', '../a.png')
    """
    return posixpath.normpath(text.replace("\\", "/"))


def leaves_folder(name: str) -> bool:
    """Return whether a result of `image_name` is absolute or names a file outside the folder."""
    return name.startswith("/") or name == ".." or name.startswith("../") or bool(_DRIVE.match(name))


def image_file(folder: Path, name: str) -> Path:
    """Return the path of an image in a folder.

    Raises:
        ValueError: the name leaves the folder.
    """
    chosen = image_name(name)
    if leaves_folder(chosen):
        raise ValueError(f"file_name {name!r} leaves the image folder {folder}; write it relative to that folder")
    return folder / chosen
