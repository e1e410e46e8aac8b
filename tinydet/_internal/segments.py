"""A file in an object store that grows: a prefix of numbered objects, each written once.

An object cannot be appended to, so every addition is a new object, created on the condition that it does not exist. Of
two processes that add to one file, one is so refused. Each object begins with a hash of the one before, so that objects
of different runs never mix.
"""

from __future__ import annotations

import hashlib

from tinydet._internal.stores import StorePath

CHAIN = 16  # bytes of the hash


class SegmentedFile:
    """A file as a sequence of objects in a store."""

    def __init__(self, path: StorePath) -> None:
        self._path = path
        self._next, self._last = 0, bytes(CHAIN)

    def read(self) -> bytes:
        """Return the whole content, and remove objects that do not belong to it. Further content comes after it."""
        content = []
        found = {each.name: each for each in self._path.files()}
        while (path := found.pop(f"{self._next:08d}", None)) is not None:
            data = path.read_bytes()
            if data[:CHAIN] != self._last:
                path.unlink(missing_ok=True)
                break
            content.append(data[CHAIN:])
            self._advance(data)
        for path in found.values():
            path.unlink(missing_ok=True)
        return b"".join(content)

    def append(self, data: bytes) -> None:
        """Add content.

        Raises:
            FileExistsError: another process has added some.
        """
        data = self._last + data
        (self._path / f"{self._next:08d}").create(data)
        self._advance(data)

    def remove(self) -> None:
        """Remove all objects."""
        for path in reversed(self._path.files()):
            path.unlink(missing_ok=True)
        self._next, self._last = 0, bytes(CHAIN)

    def _advance(self, data: bytes) -> None:
        self._next, self._last = self._next + 1, hashlib.sha256(data).digest()[:CHAIN]
