"""Uploads: files that clients sent, each in a folder of its own, within a quota."""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tinydet._internal.console import plural
from tinydet.serve.errors import ServiceError, not_found

LONGEST = 200  # bytes of a name in UTF-8; file systems allow 255, with the suffixes of parts and results
NAME_RULE = (
    f'the name of a file, up to {LONGEST} bytes without / \\ : * ? " < > | and without a dot or space at its ends'
)
_NO_NAME = re.compile(r"""^[\s.]|[/\\:*?"<>|]|[\s.]$""")
PART = ".part"  # in the folder of an upload that is not complete


def is_name(text: str) -> bool:
    """Return whether a client may name a file so: in any script, and on any system.

    >>> [is_name(name) for name in ("Straße & Söhne [1].tif", "हिन्दी.jpg", "..", "a/b", "a\\n", "é" * 101)]
    [True, True, False, False, False, False]
    """
    return text.isprintable() and 0 < len(text.encode()) <= LONGEST and _NO_NAME.search(text) is None


class Uploads:
    """A folder of uploads. Methods may be called from any thread.

    Every file is alone in its folder, so that it cannot become the sidecar of another one.

    Attributes:
        folder: uploads/NAME/NAME.
    """

    def __init__(self, folder: Path, *, limit: int, quota: int) -> None:
        """
        Args:
            limit: bytes of one upload.
            quota: bytes of all uploads.
        """
        self.folder, self._limit, self._quota = folder, limit, quota
        self._lock = threading.Lock()
        self._receiving: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)
        for each in folder.iterdir():
            if each.is_dir() and not (each / each.name).is_file():
                shutil.rmtree(each, ignore_errors=True)  # not complete when the last process ended
            else:
                for part in each.iterdir():
                    if part.name != each.name:
                        part.unlink(missing_ok=True)
        self._used = sum(path.stat().st_size for path in self.paths())

    @property
    def used(self) -> int:
        """Bytes of all uploads, complete or not."""
        return self._used

    def paths(self) -> list[Path]:
        """Return the files, sorted by name."""
        return [each / each.name for each in sorted(self.folder.iterdir()) if (each / each.name).is_file()]

    def path(self, name: str) -> Path:
        """Return the file of an upload.

        Raises:
            ServiceError: 404.
        """
        path = self.folder / name / name
        if not is_name(name) or not path.is_file():
            raise not_found("upload", name)
        return path

    @contextmanager
    def receive(self, name: str, length: int | None) -> Iterator[Upload]:
        """Receive an upload. It replaces one of the same name when the block ends without an exception.

        Args:
            length: bytes that the client announces; None if it does not.

        Raises:
            ServiceError: 400 for the name, 409 while another client sends this name, 413 for too many bytes.
        """
        if not is_name(name):
            raise ServiceError(400, f"expected {NAME_RULE}")
        with self._lock:
            if name in self._receiving:
                raise ServiceError(409, f"{name} is being uploaded by another request")
            self._receiving.add(name)
        folder = self.folder / name
        part = folder / f"{name[:100]}{PART}"
        upload = Upload(self, part)
        try:
            self._check(length or 0, length or 0)
            folder.mkdir(exist_ok=True)
            with part.open("wb") as file:
                upload.file = file
                yield upload
                file.flush()
                os.fsync(file.fileno())
            target = folder / name
            with self._lock:
                replaced = target.stat().st_size if target.is_file() else 0
                part.replace(target)
                self._used -= replaced
            upload.kept = True
        finally:
            with self._lock:
                self._receiving.discard(name)
                if not upload.kept:
                    self._used -= upload.bytes
                    part.unlink(missing_ok=True)
                    if not (folder / name).is_file():
                        shutil.rmtree(folder, ignore_errors=True)

    def delete(self, name: str) -> None:
        """Remove an upload. Raises ServiceError 404 if there is none of this name."""
        path = self.path(name)
        with self._lock:
            size = path.stat().st_size
            shutil.rmtree(path.parent, ignore_errors=True)
            self._used -= size

    def take(self, count: int, received: int) -> None:
        """Count bytes of an upload.

        Raises:
            ServiceError: 413 if they are too many.
        """
        self._check(received, count)
        with self._lock:
            self._used += count

    def _check(self, received: int, more: int) -> None:
        if received > self._limit:
            raise ServiceError(413, f"an upload may have at most {plural(self._limit, 'byte')} here")
        if self._used + more > self._quota:
            raise ServiceError(
                413, f"all uploads together may have at most {plural(self._quota, 'byte')} here, and {self._used} are "
                "in use; delete uploads that you no longer need"
            )  # fmt: skip


class Upload:
    """An upload that is being received.

    Attributes:
        part: the file while it is not complete.
        bytes: received so far.
    """

    def __init__(self, uploads: Uploads, part: Path) -> None:
        self._uploads, self.part = uploads, part
        self.file: BinaryIO | None = None
        self.bytes = 0
        self.kept = False

    def write(self, block: bytes) -> None:
        """Append a block.

        Raises:
            ServiceError: 413 if the upload, or all of them, become too large.
        """
        assert self.file is not None
        self._uploads.take(len(block), self.bytes + len(block))
        self.bytes += len(block)
        self.file.write(block)

    def flush(self) -> None:
        """Make what was received readable at `part`."""
        assert self.file is not None
        self.file.flush()
