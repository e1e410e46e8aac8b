"""Write files atomically: to a temporary file in the same folder, which is then renamed."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tinydet._internal.errors import reason
from tinydet._internal.locks import lock_path, locked
from tinydet._internal.outputs import check_folder, check_output_files, is_device, make_folder, remove_empty
from tinydet._internal.stores import StorePath, to_path

NOT_WRITTEN = "was not written"
PROBE = 1 << 24  # bytes; more than a library writes at once
STEM = 40  # characters of a file's stem that are kept in the temporary name


@contextmanager
def atomic_path(path: Path, *, part: bool = False) -> Iterator[Path]:
    """Yield a temporary path with the suffix of `path`, and rename it to `path` when the block succeeds.

    On any exception (a full disk, Ctrl-C) the temporary file is removed and an older `path` is left unchanged. Missing
    folders are created, and removed again on an exception. If `path` is a symbolic link, its target is replaced.
    Devices and pipes (/dev/null, /dev/stdout) are written directly. The temporary file of an object in a store is in
    the system's folder for temporary files, and is uploaded whole.

    Args:
        part: use the fixed temporary name `.NAME.part.SUFFIX`, for files that are written for hours. The next run
            overwrites what a killed process left there, and two processes cannot write the file at once.

    Raises:
        OSError: the file or its folder cannot be written, or another process is writing it. Names `path`.
    """
    path = to_path(path)
    if isinstance(path, StorePath):
        with tempfile.TemporaryDirectory(prefix="tinydet-") as folder:
            yield Path(folder) / path.name
            path.upload(Path(folder) / path.name)
        return
    if is_device(path):
        try:
            yield path
        except OSError as error:
            if error.errno is None or error.filename is not None:
                raise
            raise OSError(error.errno, error.strerror, str(path)) from error  # a broken pipe keeps its class
        return
    target = _target(path)
    created = _make_parents(target, path)
    name = f"{target.stem}.part" if part else f"{target.stem[:STEM]}.{secrets.token_hex(4)}"
    temporary = target.with_name(f".{name}{target.suffix}")
    with contextlib.ExitStack() as stack:
        stack.callback(remove_empty, created)  # after an error nothing is in them, once the lock is removed
        try:
            if part:
                stack.enter_context(locked(lock_path(temporary)))
            # Create the file now, with the permissions of the umask, to detect a read-only folder before the work.
            os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY | (os.O_TRUNC if part else os.O_EXCL), 0o666))
        except BlockingIOError:
            text = f"{path} {NOT_WRITTEN}: another run is writing it; wait for it, or stop it"
            raise OSError(errno.EBUSY, text) from None
        except OSError as error:
            raise _not_written(path, target, error, temporary, lock_path(temporary)) from error
        try:
            yield temporary
            with temporary.open("rb+") as written:
                os.fsync(written.fileno())
            if target.exists():
                temporary.chmod(target.stat().st_mode & 0o777)
            temporary.replace(target)
        except BaseException as error:  # not `finally`: after the rename, another process may use the temporary name
            with contextlib.suppress(OSError):  # the folder has become read-only
                temporary.unlink(missing_ok=True)
            if not isinstance(error, OSError):
                raise
            if part and (error.errno is None or NOT_WRITTEN in str(error)):
                raise  # the error concerns another file, and its message is complete
            raise _not_written(path, target, error, temporary) from error


@contextmanager
def claim(*outputs: Path | None, folder: bool = False, inputs: Iterable[Path | None] = ()) -> Iterator[None]:
    """Lock outputs against other processes for the duration of the block, and create the folders that they need.

    Enter it before the work, once the inputs are checked. Folders that are still empty at the end are removed.

    The lock is the hidden file `.NAME.lock` next to an output, or `.lock` in a folder that has files. It is removed at
    the end; one that a killed process leaves behind does not block anything. Devices, pipes and None are skipped.

    Args:
        folder: the outputs are folders, which may exist.
        inputs: files that the run reads.

    Raises:
        ValueError: as `check_output_files`.
        OSError: another process writes an output, or its folder is read-only. Names the output.
    """
    if not folder:
        check_output_files(outputs, inputs)
    for path in outputs if folder else ():
        if path is not None:
            check_folder(path.parent, path)
    with contextlib.ExitStack() as stack:
        for path in dict.fromkeys(outputs):
            if path is not None and not is_device(path):
                stack.callback(remove_empty, _make_parents(_target(path, folder), path))
                stack.enter_context(_claimed(path, folder))
        yield


def not_written(path: Path, file: Path, error: Exception) -> OSError:
    """Return an OSError for a library that failed to write `file`, the temporary file of `path`.

    Libraries report a full disk in many ways, and may undo what they wrote. If appending to the file fails too, the
    error has the reason of the system.
    """
    try:
        with file.open("ab") as probe:
            probe.write(bytes(PROBE))
            os.fsync(probe.fileno())
    except OSError as system:
        return OSError(system.errno, f"{path} {NOT_WRITTEN} ({system.strerror or system})")
    return OSError(f"{path} {NOT_WRITTEN} ({reason(error)})")


def remove_leftovers(path: Path) -> list[Path]:
    """Remove the temporary files of `path` that killed processes left behind, and return them.

    Use this only if no other process writes `path`. Nothing is removed for a stem of more than 40 characters:
    temporary names are truncated, so the files could belong to another path.
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
    """Write text as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, *, indent: int | None = 1) -> None:
    """Write `value` as strict JSON, atomically.

    Raises:
        ValueError: `value` contains NaN or infinity, which JSON lacks. Names `path`.
    """
    try:
        text = json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False)
    except ValueError as error:
        raise ValueError(f"{path} was not written: {error}") from error
    write_text(path, text + "\n")


def _target(path: Path, folder: bool = False) -> Path:
    """Return the path to write, with links resolved."""
    if not folder and path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file to write")
    if folder and path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{path} is a file; name a folder")
    return Path(os.path.realpath(path))


def _make_parents(target: Path, path: Path) -> list[Path]:
    """Create the folders above `target` that are missing, and return them. Raises OSError that names `path`."""
    try:
        return make_folder(target.parent)
    except OSError as error:
        raise OSError(error.errno, f"{path} {NOT_WRITTEN} ({target.parent}: {error.strerror})") from error


@contextmanager
def _claimed(path: Path, folder: bool) -> Iterator[None]:
    target = _target(path, folder)
    lock = lock_path(target)
    if folder and target.is_dir() and any(target.iterdir()):  # the folder above may be read-only
        lock = target / ".lock"
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(lock))
        except BlockingIOError:
            text = f"another run is writing {path}; wait for it, stop it, or name another output"
            raise OSError(errno.EBUSY, text) from None
        except OSError as error:
            raise _not_written(path, target, error, lock) from error
        yield


def _not_written(path: Path, target: Path, error: OSError, *own: Path) -> OSError:
    """Return the error of writing `path`, which also names the file of the error unless it is one of `own`."""
    cause = error.strerror or str(error)
    if error.filename is not None and str(error.filename) not in map(str, own):
        cause = f"{error.filename}: {cause}"  # an error of another file while writing this one
    unchanged = "; the older file is unchanged" if target.exists() else ""
    return OSError(error.errno, f"{path} {NOT_WRITTEN} ({cause}){unchanged}")
