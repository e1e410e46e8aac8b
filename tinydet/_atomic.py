"""Files that are whole or absent: write beside, then rename."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path in the folder of `path`, with its suffix, renamed to `path` when the block succeeds.

    On any exception (a full disk, Ctrl-C) the temporary file is removed and an older `path` stays as it was. A
    symbolic link stays a link: its target is replaced. A device or a pipe (/dev/null, /dev/stdout) is written directly.

    Raises:
        OSError: naming `path` and the rule, where the folder is missing or the file cannot be written.
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
    temporary = target.with_name(f".{target.stem[:40]}.{secrets.token_hex(4)}{target.suffix}")
    try:
        # Created here, with the umask's permissions, so that a folder without write access is found before the work.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        if target.exists():
            temporary.chmod(target.stat().st_mode & 0o777)
        temporary.replace(target)
    except OSError as error:
        reason = error.strerror or str(error)
        if error.filename is not None and str(error.filename) != str(temporary):
            reason = f"{error.filename}: {reason}"  # another file's fault, met while writing this one
        kept = "; the older file is unchanged" if target.exists() else ""
        raise OSError(error.errno, f"{path} was not written ({reason}){kept}") from error
    finally:
        temporary.unlink(missing_ok=True)


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
