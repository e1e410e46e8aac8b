"""Locks between processes, on every platform.

The system releases a lock when the process that holds it ends, however it ends. A file system without locks is used
without them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import lock_descriptor

NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS})  # of a file system, or of Python, without locks


def lock_path(path: Path) -> Path:
    """Return the hidden file `.NAME.lock` next to a path; a hash stands for a name that is too long."""
    name = path.name if len(path.name.encode()) < 240 else hashlib.sha256(path.name.encode()).hexdigest()
    return path.with_name(f".{name.removeprefix('.')}.lock")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Create and lock the file `path` for the duration of the block, then remove it.

    A file that a killed process left behind does not block anything.

    Raises:
        BlockingIOError: another process holds the lock.
        OSError: the file cannot be created.
    """
    lock = _open_locked(path)
    try:
        yield
    finally:
        if os.name == "nt":  # an open file cannot be removed
            os.close(lock)
            with contextlib.suppress(OSError):  # another process has opened it meanwhile, and removes it
                path.unlink(missing_ok=True)
        else:  # removed while it is locked, so that no other process can hold a lock on the removed file
            path.unlink(missing_ok=True)
            os.close(lock)


def lock_file(descriptor: int, *, blocking: bool = True) -> None:
    """Lock an open file until it is closed, in this process and in those that inherited it.

    Raises:
        BlockingIOError: another process holds the lock, and `blocking` is False.
    """
    try:
        if not lock_descriptor(descriptor, blocking=blocking):
            raise BlockingIOError(errno.EAGAIN, "another process holds the lock")
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise


def _open_locked(path: Path) -> int:
    while True:
        lock = os.open(path, os.O_CREAT | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            lock_file(lock, blocking=False)
        except OSError:
            os.close(lock)
            raise
        if _is_open_file(lock, path):
            return lock
        os.close(lock)  # its previous owner removed it after we opened it


def _is_open_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
