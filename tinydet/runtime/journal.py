"""What was found so far, on disk: a run that was cut off goes on from it, and gives what an uncut one gives.

A journal is one file for one scene. It begins with a line of JSON that says what it belongs to, then holds a record for
each batch, or each frame of a video, appended in one piece and closed by a checksum. So whatever ends the process, only
the record that was being written is lost; it is cut away when the journal is opened again.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from tinydet.runtime.detections import Detections

FORMAT = 1
HEAD = struct.Struct("<4sII")  # mark, length, checksum
COUNTS = struct.Struct("<IIIIII")  # tiles, empty, plain, boxes, saturated, number of the pass
FRAME_HEAD = struct.Struct("<qdII")  # index, seconds, bytes of the clock, boxes
BEGINNING = b'{"format": '  # of the first line
BATCH, FRAME, DONE = b"tile", b"fram", b"done"


def _no_tiles() -> NDArray[np.int64]:
    return np.zeros(0, np.int64)


@dataclass(frozen=True)
class TileBoxes:
    """What some tiles of a scene gave, before tiles are joined.

    Attributes:
        tiles, empty, plain: indices of tiles that were run, had no data, or were not worth running.
        sources: (N,) int64, the tile of each box.
        boxes: (N, 4) float64, xyxy in scene pixels.
        scores: (N,) float32.
        labels: (N,) int32.
        saturated: how many of the tiles had more boxes than the model has slots.
        number: of the pass over the scene; each has tiles of its own.
    """

    tiles: NDArray[np.int64] = field(default_factory=_no_tiles)
    empty: NDArray[np.int64] = field(default_factory=_no_tiles)
    plain: NDArray[np.int64] = field(default_factory=_no_tiles)
    sources: NDArray[np.int64] = field(default_factory=_no_tiles)
    boxes: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 4)))
    scores: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    labels: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    saturated: int = 0
    number: int = 0

    @property
    def finished(self) -> NDArray[np.int64]:
        """All tiles that need not be looked at again."""
        return np.concatenate([self.tiles, self.empty, self.plain])

    def to_bytes(self) -> bytes:
        counts = COUNTS.pack(
            len(self.tiles), len(self.empty), len(self.plain), len(self.scores), self.saturated, self.number
        )
        arrays = (self.tiles, self.empty, self.plain, self.sources, self.boxes, self.scores, self.labels)
        return counts + b"".join(array.tobytes() for array in arrays)

    @classmethod
    def from_bytes(cls, data: bytes) -> TileBoxes:
        tiles, empty, plain, boxes, saturated, number = COUNTS.unpack_from(data)
        position = COUNTS.size

        def take(count: int, kind: type[Any]) -> NDArray[Any]:
            nonlocal position
            array = np.frombuffer(data, kind, count, position)
            position += array.nbytes
            return array

        return cls(
            take(tiles, np.int64),
            take(empty, np.int64),
            take(plain, np.int64),
            take(boxes, np.int64),
            take(4 * boxes, np.float64).reshape(-1, 4),
            take(boxes, np.float32),
            take(boxes, np.int32),
            saturated,
            number,
        )


@dataclass(frozen=True)
class FrameBoxes:
    """What a frame of a video gave.

    Attributes:
        index, seconds: as of a `video.Frame`.
        clock: when a live source gave it, as ISO 8601; else empty.
        detections: in its pixels.
    """

    index: int
    seconds: float
    clock: str
    detections: Detections

    def to_bytes(self) -> bytes:
        clock, of = self.clock.encode(), self.detections
        arrays = (of.boxes, of.scores, of.labels, of.tiles, of.seam_distance, of.passes)
        head = FRAME_HEAD.pack(self.index, self.seconds, len(clock), len(of))
        return head + clock + b"".join(array.tobytes() for array in arrays)

    @classmethod
    def from_bytes(cls, data: bytes) -> FrameBoxes:
        index, seconds, letters, count = FRAME_HEAD.unpack_from(data)
        position = FRAME_HEAD.size + letters
        clock = data[FRAME_HEAD.size : position].decode()
        boxes = np.frombuffer(data, np.float32, 4 * count, position).reshape(-1, 4)
        rows = np.frombuffer(data, np.int32, 5 * count, position + boxes.nbytes).reshape(5, -1)
        scores, seam = rows[0].view(np.float32), rows[3].view(np.float32)
        return cls(index, seconds, clock, Detections(boxes, scores, rows[1], rows[2], seam, rows[4]))


class TileStore(Protocol):
    """Takes what the tiles of a scene gave, and gives what is known of some of them: those are not run again."""

    def records(self, number: int = 0) -> Iterator[TileBoxes]:
        """What is known of one pass."""
        ...

    def append(self, found: TileBoxes) -> None:
        """Take what a batch gave."""
        ...


class Journal:
    """The record of one scene; a context manager.

    Attributes:
        path: of the file, which is made with the first record.
        outputs: what was written when the scene was done (path to hash); None where it is not done.
    """

    def __init__(self, path: Path, identity: dict[str, Any], *, resume: bool) -> None:
        """
        Args:
            identity: what the records depend on: the model, the scene, how it is cut. Plain JSON values.
            resume: go on from what is there; without it an older journal is put aside.

        Raises:
            ValueError: the journal is of another identity, or no journal.
            OSError: another run is writing it, or it may not be read.
        """
        self.path = path
        self.outputs: dict[str, str] | None = None
        self._identity: dict[str, Any] = {"format": FORMAT, **json.loads(json.dumps(identity))}
        self._file: BinaryIO | None = None
        self._start = 0
        if not path.exists():
            return
        if not resume:
            with path.open("rb") as older:
                _lock(older, path)
            path.unlink()
            return
        self._file = path.open("r+b", buffering=0)
        try:
            _lock(self._file, path)
            self._check()
            self._cut_torn_record()
        except BaseException:
            self.close()
            raise

    def records(self, number: int = 0) -> Iterator[TileBoxes]:
        """What earlier runs found in one pass, one record at a time."""
        return (found for found in self._all() if found.number == number)

    def tiles(self) -> int:
        """How many tiles are finished, in all passes."""
        return sum(len(found.finished) for found in self._all())

    def append(self, found: TileBoxes) -> None:
        self._append(BATCH, found.to_bytes())

    def frames(self) -> Iterator[FrameBoxes]:
        """What earlier runs found in the frames of a video, in their order."""
        return (FrameBoxes.from_bytes(data) for mark, data in self._marked() if mark == FRAME)

    def append_frame(self, found: FrameBoxes) -> None:
        self._append(FRAME, found.to_bytes())

    def finish(self, outputs: dict[str, str]) -> None:
        """Note that the scene is done, and what was written of it."""
        self.outputs = outputs
        self._append(DONE, json.dumps(outputs).encode())

    def remove(self) -> None:
        """Leave nothing behind."""
        self.close()
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _all(self) -> Iterator[TileBoxes]:
        return (TileBoxes.from_bytes(data) for mark, data in self._marked() if mark == BATCH)

    def _marked(self) -> Iterator[tuple[bytes, bytes]]:
        if self._file is None:
            return
        with self.path.open("rb") as file:
            file.seek(self._start)
            yield from _records(file)

    def _append(self, mark: bytes, data: bytes) -> None:
        if self._file is None:
            self._file = self.path.open("x+b", buffering=0)
            _lock(self._file, self.path)
        record = HEAD.pack(mark, len(data), zlib.crc32(data)) + data
        if not self._start:
            head = json.dumps(self._identity).encode() + b"\n"
            self._start, record = len(head), head + record
        piece = memoryview(record)
        while piece:
            piece = piece[self._file.write(piece) :]

    def _check(self) -> None:
        assert self._file is not None
        with self.path.open("rb") as file:
            line = file.readline(1 << 20)
        if not line.endswith(b"\n") and line[: len(BEGINNING)] == BEGINNING[: len(line)]:
            self._file.truncate(0)  # the process ended within the first line: nothing is known
            return
        self._start = len(line)
        try:
            written = json.loads(line)
            different = [key for key in {**written, **self._identity} if written.get(key) != self._identity.get(key)]
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.path}: no journal of an interrupted run; move it out of the way") from error
        if different:
            was = ", ".join(f"{key} was {_short(written.get(key))}" for key in sorted(different))
            raise ValueError(
                f"{self.path} belongs to a run with other settings ({was}); repeat them, or start anew without "
                "--resume; where the scene was replaced, remove this file"
            )

    def _cut_torn_record(self) -> None:
        assert self._file is not None
        with self.path.open("rb") as file:
            file.seek(self._start)
            end = self._start
            for mark, data in _records(file):
                end = file.tell()
                if mark == DONE:
                    self.outputs = json.loads(data)
        if self.path.stat().st_size > end:
            self._file.truncate(end)
        self._file.seek(0, os.SEEK_END)


def _records(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Sound records up to the end, or to the first that is torn."""
    while len(head := file.read(HEAD.size)) == HEAD.size:
        mark, length, checksum = HEAD.unpack(head)
        if mark not in (BATCH, FRAME, DONE):
            return
        data = file.read(length)
        if len(data) < length or zlib.crc32(data) != checksum:
            return
        yield mark, data


def _lock(file: BinaryIO, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OSError(f"{path}: another run is working on this scene; wait for it, or stop it") from error


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 40 else f"{text[:37]}..."
