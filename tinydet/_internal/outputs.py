"""Check the files that a command will write, before it does any work."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tinydet._internal.stores import StorePath, is_store


def check_output_files(outputs: Iterable[Path | None], inputs: Iterable[Path | None]) -> None:
    """Check that each output can be in its folder, is not also an input, and is given only once.

    None values are skipped. Links are resolved. A folder that is missing can be created, see `created_folders`.

    Raises:
        ValueError: an output breaks one of these rules. Names it.
        OSError: a file name is invalid.
    """
    read = {os.path.realpath(path) for path in inputs if path is not None}
    written: set[str] = set()
    for path in outputs:
        if path is None:
            continue
        if not is_store(path) and path.is_dir():
            raise ValueError(f"{path} is a folder; name a file to write")
        check_folder(path.parent, path)
        with contextlib.suppress(FileNotFoundError):
            is_store(path) or path.lstat()  # fails for a name that is too long
        real = os.path.realpath(path)
        if real in read:
            raise ValueError(f"{path} is an input and would be overwritten; name another output")
        if real in written and not real.startswith("/dev/"):
            raise ValueError(f"{path} would be written twice; name another output")
        written.add(real)


def check_folder(folder: Path, output: Path | None = None) -> None:
    """Check that a folder exists or can be created: the part of its path that exists is a folder.

    Args:
        output: the file that is written to it, to name in the message; None: the folder is the output.

    Raises:
        ValueError: a part of the path is a file, or a folder in which none can be created. Names the output.
        OSError: a store does not take objects there.
    """
    if isinstance(folder, StorePath):
        _check_writable(folder)
        return
    named = folder if output is None else output
    for existing in (folder, *folder.absolute().parents):
        if existing.is_dir():
            if existing != folder and not os.access(existing, os.W_OK):
                raise ValueError(f"{named}: no folder can be created in {existing} (read-only); name another output")
            return
        if os.path.lexists(existing):
            shown = existing if existing == folder else os.path.relpath(existing)
            raise ValueError(f"{named}: {shown} is a file, not a folder; name another output")


@functools.cache
def _check_writable(folder: StorePath) -> None:
    folder.check_writable()


@contextmanager
def created_folders(folders: Iterable[Path]) -> Iterator[None]:
    """Create missing folders for the duration of the block; those that are still empty at its end are removed.

    Raises:
        OSError: a folder cannot be created.
    """
    created: list[Path] = []
    try:
        for folder in folders:
            created += make_folder(folder)
        yield
    finally:
        remove_empty(created)


def make_folder(folder: Path) -> list[Path]:
    """Create a folder and those above it that are missing; return what was created, outermost first."""
    if is_store(folder):
        return []
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    created = []
    try:
        for each in reversed(missing):
            with contextlib.suppress(FileExistsError):  # another process was faster
                each.mkdir()
                created.append(each)
    except OSError:
        remove_empty(created)
        raise
    return created


def remove_empty(folders: Iterable[Path]) -> None:
    """Remove those of the folders that are empty, the last one first."""
    for folder in reversed(list(folders)):
        with contextlib.suppress(OSError):  # it has files
            folder.rmdir()


def is_device(path: Path) -> bool:
    """Return whether a path is a device or a pipe."""
    return not is_store(path) and path.exists() and not path.is_file() and not path.is_dir()
