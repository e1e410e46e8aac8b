"""Check the files that a command will write, before it does any work."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path


def check_output_files(outputs: Iterable[Path | None], inputs: Iterable[Path | None]) -> None:
    """Check that each output is in an existing folder, is not also an input, and is given only once.

    None values are skipped. Links are resolved.

    Raises:
        ValueError: an output breaks one of these rules. Names it.
        OSError: a file name is invalid.
    """
    read = {os.path.realpath(path) for path in inputs if path is not None}
    written: set[str] = set()
    for path in outputs:
        if path is None:
            continue
        if path.is_dir():
            raise ValueError(f"{path} is a folder; name a file to write")
        if not path.absolute().parent.is_dir():
            raise ValueError(f"{path}: the folder {path.parent} does not exist; create it or name another file")
        with contextlib.suppress(FileNotFoundError):
            path.lstat()  # fails for a name that is too long
        real = os.path.realpath(path)
        if real in read:
            raise ValueError(f"{path} is an input and would be overwritten; name another output")
        if real in written and not real.startswith("/dev/"):
            raise ValueError(f"{path} would be written twice; name another output")
        written.add(real)


def is_device(path: Path) -> bool:
    """Return whether a path is a device or a pipe."""
    return path.exists() and not path.is_file() and not path.is_dir()
