"""List the files of folders and glob patterns. Links are followed, and a file reached twice is listed once."""

from __future__ import annotations

import fnmatch
import glob
import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tinydet._internal.console import plural
from tinydet._internal.names import printable

logger = logging.getLogger("tinydet.runtime")

SYSTEM = frozenset({"@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "__MACOSX", "Thumbs.db"})


def files_in(folder: Path) -> list[Path]:
    """Return the files of a folder and its subfolders, sorted.

    Linked folders are followed. Hidden files and folders (`.DS_Store`, `._photo.jpg`) and those of operating systems
    (`@eaDir`, `Thumbs.db`) are ignored. Subfolders that cannot be listed and links without a target are logged.

    Raises:
        OSError: the folder itself cannot be listed.
    """
    linked: list[Path] = []
    found = sorted(_walk(folder, linked))
    # If a file is reached in several ways, its own name is preferred to that of a link.
    kept = distinct([*found, *sorted(linked)])
    if doubles := len(found) + len(linked) - len(kept):
        logger.warning(f"{printable(folder)}: {doubles_text(doubles)}")
    return sorted(kept)


def files_matching(pattern: str) -> list[Path]:
    """Return the files that match a pattern of `glob`, sorted; `**` stands for any number of folders.

    Folders at the beginning of the pattern that exist under exactly this name are not read as patterns:
    `flight[1]/*.png`.
    """
    parts = Path(pattern).parts
    root = Path()
    while parts and (not glob.has_magic(parts[0]) or (root / parts[0]).is_dir()):
        root, parts = root / parts[0], parts[1:]
    deep = parts.index("**") if "**" in parts else len(parts)
    tops = sorted(map(Path, glob.glob(str(Path(glob.escape(str(root)), *parts[:deep])))))
    if deep == len(parts):
        return [path for path in tops if path.is_file()]
    # `glob` would follow a link to a parent folder again and again.
    below = ((top, path) for top in tops if top.is_dir() for path in files_in(top))
    return sorted(distinct(path for top, path in below if _matches(path.relative_to(top).parts, parts[deep:])))


def distinct(paths: Iterable[Path]) -> list[Path]:
    """Drop paths to the same file as an earlier path, through a symbolic or hard link."""
    kept: dict[tuple[int, int] | Path, Path] = {}
    for path in paths:
        kept.setdefault(file_key(path), path)
    return list(kept.values())


def doubles_text(count: int) -> str:
    """Describe how many names of files already listed under another name were left out."""
    return f"left out {plural(count, 'link')} to files that are read under another name"


def file_key(path: Path) -> tuple[int, int] | Path:
    """Return a key that is equal for all names of one file; the path itself if the file has just vanished."""
    try:
        state = path.stat()
    except OSError:
        return path
    return state.st_dev, state.st_ino


def _walk(folder: Path, linked: list[Path]) -> Iterator[Path]:
    """Yield the files reached without a link; append the others to `linked`."""
    pending, links = [folder], deque[Path]()
    # A link to a folder above closes a cycle.
    seen = {file_key(above) for above in Path(os.path.realpath(folder)).parents}
    while pending or links:
        is_linked = not pending
        current = links.popleft() if is_linked else pending.pop()
        if (key := file_key(current)) in seen:
            continue  # a cycle, or a second link
        seen.add(key)
        try:
            with os.scandir(current) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except OSError as error:
            if current == folder:
                raise
            logger.warning(f"{printable(current)}: this folder cannot be listed and was left out ({error.strerror})")
            continue
        for entry in entries:
            if entry.name.startswith(".") or entry.name in SYSTEM:
                continue
            path = current / entry.name
            try:
                is_folder, is_file, is_link = entry.is_dir(), entry.is_file(), entry.is_symlink()
            except OSError:  # a cycle of links
                is_folder, is_file, is_link = False, False, True
            if is_folder:
                # Links wait, and so do the folders below them: the shortest names come first.
                (links if is_link or is_linked else pending).append(path)
            elif is_file:
                if is_link or is_linked:
                    linked.append(path)
                else:
                    yield path
            elif is_link:
                logger.warning(f"{printable(path)}: this link has no target and was left out")


def _matches(names: Sequence[str], parts: Sequence[str]) -> bool:
    """Return whether a path matches a pattern, name by name."""
    if not parts:
        return not names
    if parts[0] == "**":
        return _matches(names, parts[1:]) or (bool(names) and _matches(names[1:], parts))
    return bool(names) and fnmatch.fnmatchcase(names[0], parts[0]) and _matches(names[1:], parts[1:])
