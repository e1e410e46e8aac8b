"""Files that are whole or absent: write beside, then rename."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

NOT_WRITTEN = "was not written"

STEM = 40  # characters of a file's stem that its temporary name keeps


@contextmanager
def atomic_path(path: Path, *, part: bool = False) -> Iterator[Path]:
    """A temporary path in the folder of `path`, with its suffix, renamed to `path` when the block succeeds.

    On any exception (a full disk, Ctrl-C) the temporary file is removed and an older `path` stays as it was. A
    symbolic link stays a link: its target is replaced. A device or a pipe (/dev/null, /dev/stdout) is written directly.

    Args:
        part: for what is written for hours. The temporary file always has the same name, `.NAME.part.SUFFIX`, so that
            of a killed process it is the next run that takes it over, and nothing is left behind; two processes do not
            write it at once.

    Raises:
        OSError: naming `path` and the rule, where the folder is missing, the file cannot be written, or another process
            is writing it.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file to write")
    if path.exists() and not path.is_file():
        yield path
        return
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {target.parent} does not exist; create it or name another output")
    name = f"{target.stem}.part" if part else f"{target.stem[:STEM]}.{secrets.token_hex(4)}"
    temporary = target.with_name(f".{name}{target.suffix}")
    try:
        # Created here, with the umask's permissions, so that a folder without write access is found before the work.
        created = os.open(temporary, os.O_CREAT | os.O_WRONLY | (0 if part else os.O_EXCL), 0o666)
    except OSError as error:
        raise _not_written(path, target, temporary, error) from error
    with os.fdopen(created, "wb") as lock:
        if part:
            _take_over(lock, temporary, path)
        else:
            lock.close()
        try:
            yield temporary
            with temporary.open("rb+") as written:
                os.fsync(written.fileno())
            if target.exists():
                temporary.chmod(target.stat().st_mode & 0o777)
            temporary.replace(target)
        except BaseException as error:  # after success the name is free, for whoever writes `path` next
            temporary.unlink(missing_ok=True)
            if not isinstance(error, OSError):
                raise
            if part and (error.errno is None or NOT_WRITTEN in str(error)):
                raise  # another file's fault, in hours of work; its message says all
            raise _not_written(path, target, temporary, error) from error


def remove_leftovers(path: Path) -> list[Path]:
    """Remove the temporary files of `atomic_path` that killed processes left beside `path`; returns them.

    Only for a program that knows itself alone to write `path`. Names of more than 40 characters are cut in temporary
    ones and could be another file's: these are left.
    """
    target = Path(os.path.realpath(path))
    if len(target.stem) > STEM:
        return []
    temporary = re.compile(re.escape(f".{target.stem}.") + "[0-9a-f]{8}" + re.escape(target.suffix))
    found = [other for other in target.parent.iterdir() if temporary.fullmatch(other.name) and other.is_file()]
    for other in found:
        other.unlink(missing_ok=True)
    return found


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, *, indent: int | None = 1) -> None:
    """Write `value` as strict JSON, atomically.

    Raises:
        ValueError: naming `path`, where `value` holds a NaN or an infinity, which JSON does not have.
    """
    try:
        text = json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False)
    except ValueError as error:
        raise ValueError(f"{path} was not written: {error}") from error
    write_text(path, text + "\n")


def _not_written(path: Path, target: Path, temporary: Path, error: OSError) -> OSError:
    reason = error.strerror or str(error)
    if error.filename is not None and str(error.filename) != str(temporary):
        reason = f"{error.filename}: {reason}"  # another file's fault, met while writing this one
    kept = "; the older file is unchanged" if target.exists() else ""
    return OSError(error.errno, f"{path} {NOT_WRITTEN} ({reason}){kept}")


def _take_over(lock: BinaryIO, temporary: Path, path: Path) -> None:
    """Make a temporary file ours, and empty; it may be another process's, dead or alive."""
    with contextlib.suppress(BlockingIOError, FileNotFoundError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock.fileno()), temporary.stat()):  # not renamed by the other one meanwhile
            lock.truncate(0)
            return
    raise OSError(errno.EBUSY, f"{path} {NOT_WRITTEN}: another run is writing it; wait for it, or stop it")
