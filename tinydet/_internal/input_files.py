"""Check that inputs are regular files. Opening a pipe could block forever, and a device may never end."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

from tinydet._internal.stores import StorePath, to_path
from tinydet._internal.suggestions import did_you_mean_path


def check_file(path: Path, remedy: str = "check the path") -> None:
    """Check that `path` is a regular file, or a link to one.

    Raises:
        FileNotFoundError, IsADirectoryError, OSError: it is missing, a folder, or a pipe or device. Names `path`.
    """
    if isinstance(path, StorePath):
        path.info()
        return
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file; {remedy}{did_you_mean_path(path)}") from None
    except OSError as error:
        raise OSError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    except ValueError:
        raise FileNotFoundError(f"{str(path)!r}: no such file, names contain no null character; {remedy}") from None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{path}: a folder, not a file; {remedy}")
    if not stat.S_ISREG(mode):
        raise OSError(f"{path}: a pipe or device, not a file; copy its content to a file and use that")


def read_file(path: Path, remedy: str = "check the path and its permissions") -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError: as `check_file`, or the file cannot be read. Names `path`.
    """
    path = to_path(path)
    check_file(path, remedy)
    try:
        return path.read_bytes()
    except OSError as error:
        if isinstance(path, StorePath):  # its errors are complete
            raise
        raise OSError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits; of an object in a store, what the store calls its version."""
    if isinstance(path, StorePath):
        return path.info().version
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
