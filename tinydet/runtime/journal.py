"""A journal of what a run has found so far, on disk. A resumed run gives the same result as an uninterrupted one.

A journal is one file per scene. Its first line is JSON that identifies the run; then comes one record per batch, or per
frame of a video, each appended in one write and followed by a checksum. Whatever ends the process, only the record that
was being written is lost; it is removed when the journal is opened again.

A journal in an object store is a local file whose new records are uploaded every 20 seconds, see `segments`.
"""

from __future__ import annotations

import json
import os
import struct
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.input_files import check_file
from tinydet._internal.json_files import parse_json
from tinydet._internal.locks import lock_path, locked
from tinydet._internal.segments import SegmentedFile
from tinydet._internal.stores import StorePath
from tinydet.runtime.detections import Detections

FORMAT = 3
HEAD = struct.Struct("<4sII")  # mark, length, checksum
COUNTS = struct.Struct("<IIIIIII")  # tiles, empty, filtered, boxes, saturated, index of the pass, unfamiliar
FRAME_HEAD = struct.Struct("<qdII")  # index, seconds, bytes of the clock, boxes
BEGINNING = b'{"format": '  # of the first line
INTERVAL = 20.0  # seconds between uploads; what was found since is lost if the process is killed
BATCH, FRAME, DONE, FAILED = b"tile", b"fram", b"done", b"fail"


T = TypeVar("T")


def _no_tiles() -> NDArray[np.int64]:
    return np.zeros(0, np.int64)


@dataclass(frozen=True)
class BatchRecord:
    """Detections of some tiles of a scene, before they are stitched.

    Attributes:
        tiles, empty, filtered: indices of tiles that were run, have no data, or were rejected by the tile filter.
        detections: boxes float64, in scene pixels; with the column `tile`.
        saturated: number of tiles that had more boxes than the model has slots.
        pass_index: position of the pass in `ScanPlan.passes`; each pass counts its own tiles.
        unfamiliar: number of tiles that were run because the tile filter does not know images like them.
    """

    tiles: NDArray[np.int64] = field(default_factory=_no_tiles)
    empty: NDArray[np.int64] = field(default_factory=_no_tiles)
    filtered: NDArray[np.int64] = field(default_factory=_no_tiles)
    detections: Detections = field(default_factory=Detections.empty)
    saturated: int = 0
    pass_index: int = 0
    unfamiliar: int = 0

    @property
    def finished(self) -> NDArray[np.int64]:
        """Indices of all tiles that need not be processed again."""
        return np.concatenate([self.tiles, self.empty, self.filtered])

    def to_bytes(self) -> bytes:
        found = self.detections
        lengths = len(self.tiles), len(self.empty), len(self.filtered), len(found)
        counts = COUNTS.pack(*lengths, self.saturated, self.pass_index, self.unfamiliar)
        sources, boxes = found.tiles.astype(np.int64), found.boxes.astype(np.float64)
        arrays = (self.tiles, self.empty, self.filtered, sources, boxes, found.scores, found.labels)
        return counts + b"".join(array.tobytes() for array in arrays)

    @classmethod
    def from_bytes(cls, data: bytes) -> BatchRecord:
        tiles, empty, filtered, boxes, saturated, pass_index, unfamiliar = COUNTS.unpack_from(data)
        position = COUNTS.size

        def take(count: int, dtype: type[Any]) -> NDArray[Any]:
            nonlocal position
            array = np.frombuffer(data, dtype, count, position)
            position += array.nbytes
            return array

        indices = take(tiles, np.int64), take(empty, np.int64), take(filtered, np.int64)
        sources, corners = take(boxes, np.int64), take(4 * boxes, np.float64).reshape(-1, 4)
        detections = Detections(corners, take(boxes, np.float32), take(boxes, np.int32), {"tile": sources})
        return cls(*indices, detections, saturated, pass_index, unfamiliar)


@dataclass(frozen=True)
class FrameRecord:
    """Detections of a frame of a video.

    Attributes:
        index, seconds: as in `video.Frame`.
        clock: time at which a live source delivered the frame, in ISO 8601; else empty.
        detections: in pixels of the frame.
        motion: (2, 3) of the camera since the previous frame, see `tracking`; None if objects are not tracked.
    """

    index: int
    seconds: float
    clock: str
    detections: Detections
    motion: NDArray[np.float64] | None = None

    def to_bytes(self) -> bytes:
        clock, found = self.clock.encode(), self.detections
        arrays = (
            found.boxes.astype(np.float32),
            found.scores,
            found.labels,
            found.tiles.astype(np.int32),
            found.seam_distance.astype(np.float32),
            found.passes.astype(np.int32),
        )
        head = FRAME_HEAD.pack(self.index, self.seconds, len(clock), len(found))
        motion = b"" if self.motion is None else self.motion.astype(np.float64).tobytes()
        return head + clock + b"".join(array.tobytes() for array in arrays) + motion

    @classmethod
    def from_bytes(cls, data: bytes) -> FrameRecord:
        index, seconds, clock_bytes, count = FRAME_HEAD.unpack_from(data)
        position = FRAME_HEAD.size + clock_bytes
        clock = data[FRAME_HEAD.size : position].decode()
        boxes = np.frombuffer(data, np.float32, 4 * count, position).reshape(-1, 4)
        rows = np.frombuffer(data, np.int32, 5 * count, position + boxes.nbytes).reshape(5, -1)
        columns = {"tile": rows[2], "pass": rows[4], "seam_distance": rows[3].view(np.float32)}
        rest = data[position + boxes.nbytes + rows.nbytes :]
        motion = np.frombuffer(rest, np.float64).reshape(2, 3) if rest else None
        return cls(index, seconds, clock, Detections(boxes, rows[0].view(np.float32), rows[1], columns), motion)


class RecordStore(Protocol):
    """Stores the records of a scene's tiles. Tiles that it has a record of are not run again."""

    def records(self, pass_index: int = 0) -> Iterator[BatchRecord]:
        """Yield the stored records of one pass."""
        ...

    def append(self, record: BatchRecord) -> None:
        """Store the record of a batch."""
        ...


class OtherRunError(ValueError):
    """A journal belongs to another scene, model or set of options."""


class StoredJournal:
    """A journal that is only read: no lock, and no file that stays open.

    Attributes:
        path: the file, or the prefix in a store; need not exist.
        outputs: hash of each file that was written when the scene was completed; None if it is not complete.
        counts: what `Journal.finish` was given with them.
        failure: why the scene could not be read any further, if that was the last that happened; else empty.
    """

    def __init__(self, path: Path, identity: dict[str, Any], *, local: Path | None = None) -> None:
        """
        Args:
            identity: as for `Journal`.
            local: a copy of a journal in a store, to read instead.

        Raises:
            ValueError: the journal has another identity, or the file is not a journal.
            OSError: it cannot be read.
        """
        self.path = path
        self._local = path if local is None else local
        self.outputs: dict[str, str] | None = None
        self.counts: dict[str, Any] = {}
        self.failure = ""
        self._identity: dict[str, Any] = {"format": FORMAT, **json.loads(json.dumps(identity))}
        self._start = self._end = 0
        if self._local.exists():
            check_file(self._local, "move it away")
            self._read_file()

    def records(self, pass_index: int = 0) -> Iterator[BatchRecord]:
        """Yield the records of one pass, one at a time."""
        return (record for record in self._all() if record.pass_index == pass_index)

    def tiles(self) -> int:
        """Return the number of finished tiles in all passes."""
        return sum(len(record.finished) for record in self._all())

    def frames(self) -> Iterator[FrameRecord]:
        """Yield the records of a video's frames, in their order."""
        return (self._parse(FrameRecord.from_bytes, data) for mark, data in self._marked() if mark == FRAME)

    def _all(self) -> Iterator[BatchRecord]:
        return (self._parse(BatchRecord.from_bytes, data) for mark, data in self._marked() if mark == BATCH)

    def _parse(self, parse: Callable[[bytes], T], data: bytes) -> T:
        """Parse a record. Its checksum is right, so only another program can have written an invalid one."""
        try:
            return parse(data)
        except (ValueError, struct.error, OverflowError) as error:
            raise ValueError(f"{self.path}: a damaged record ({error}); start again without --resume") from error

    def _marked(self) -> Iterator[tuple[bytes, bytes]]:
        if not self._start:
            return
        with self._local.open("rb") as file:
            file.seek(self._start)
            yield from _records(file)

    def _read_file(self) -> None:
        """Check the identity, and find the end of the last intact record and what the last of each kind says."""
        with self._local.open("rb") as file:
            line = file.readline(1 << 20)
            if not line.endswith(b"\n") and line[: len(BEGINNING)] == BEGINNING[: len(line)]:
                return  # the process ended while writing the first line: no record exists
            self._check_identity(line)
            self._start = self._end = len(line)
            for mark, data in _records(file):
                self._end = file.tell()
                if mark == DONE:
                    self.outputs, self.counts = self._parse(_completion, data)
                self.failure = data.decode(errors="replace") if mark == FAILED else ""

    def _check_identity(self, line: bytes) -> None:
        remedy = "it is not a journal of an interrupted run; move it away"
        written = parse_json(line, source=self.path, remedy=remedy)
        if not isinstance(written, dict):
            raise ValueError(f"{self.path}: {remedy}")
        different = [key for key in {**written, **self._identity} if written.get(key) != self._identity.get(key)]
        if different:
            was = ", ".join(f"{key} was {_short(written.get(key))}" for key in sorted(different))
            raise OtherRunError(
                f"{self.path} belongs to a run with other settings ({was}); use the same ones, or start again without "
                "--resume; if the scene was replaced, delete this file"
            )


class Journal(StoredJournal):
    """The journal of one scene; a context manager."""

    def __init__(self, path: Path, identity: dict[str, Any], *, resume: bool) -> None:
        """
        Args:
            path: the file, or the prefix in a store, which is created with the first record.
            identity: everything that the records depend on, such as the model, the scene and the options, as JSON
                values.
            resume: continue an existing journal; otherwise it is deleted.

        Raises:
            ValueError: the journal has another identity, or the file is not a journal.
            OSError: another run is writing the journal, or it cannot be read.
        """
        self._file: BinaryIO | None = None
        self._lock = ExitStack()
        self._remote: SegmentedFile | None = None
        self._pending, self._uploaded = bytearray(), time.monotonic()
        local = path
        try:
            if isinstance(path, StorePath):
                local = Path(self._lock.enter_context(tempfile.TemporaryDirectory(prefix="tinydet-"))) / "journal"
                self._remote = SegmentedFile(path)
                if not resume:
                    self._remote.remove()
                elif content := self._remote.read():
                    local.write_bytes(content)
            try:
                self._lock.enter_context(locked(lock_path(local)))
            except BlockingIOError as error:
                raise OSError(f"{path}: another run is processing this scene; wait for it, or stop it") from error
            if not resume and local.exists():
                check_file(local, "move it away")
                local.unlink()
            super().__init__(path, identity, local=local)
            if local.exists():
                self._file = local.open("r+b", buffering=0)
                if local.stat().st_size > self._end:
                    self._file.truncate(self._end)  # an incomplete record
                self._file.seek(0, os.SEEK_END)
        except BaseException:
            self.close()
            raise

    def append(self, record: BatchRecord) -> None:
        """Write the record of a batch."""
        self._append(BATCH, record.to_bytes())

    def append_frame(self, record: FrameRecord) -> None:
        """Write the record of a frame."""
        self._append(FRAME, record.to_bytes())

    def fail(self, why: str) -> None:
        """Record why the scene cannot be read any further."""
        self.failure = why
        self._append(FAILED, why.encode())

    def finish(self, outputs: dict[str, str], counts: dict[str, Any]) -> None:
        """Mark the scene as complete.

        Args:
            outputs: hash of each file that was written.
            counts: what was found, as JSON values.
        """
        self.outputs, self.counts = outputs, counts
        self._append(DONE, json.dumps({"outputs": outputs, "counts": counts}).encode())
        self._upload()

    def remove(self) -> None:
        """Close and delete the journal."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._pending.clear()
        self._local.unlink(missing_ok=True)
        if self._remote is not None:
            self._remote.remove()
        self._lock.close()

    def close(self) -> None:
        try:
            self._upload()
        finally:
            if self._file is not None:
                self._file.close()
                self._file = None
            self._lock.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, mark: bytes, data: bytes) -> None:
        if self._file is None:
            self._file = self._local.open("x+b", buffering=0)
        record = HEAD.pack(mark, len(data), zlib.crc32(data)) + data
        if not self._start:
            head = json.dumps(self._identity).encode() + b"\n"
            self._start, record = len(head), head + record
        rest = memoryview(record)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:  # names no file
            raise OSError(error.errno, error.strerror, str(self._local)) from error
        if self._remote is not None:
            self._pending += record
            if time.monotonic() - self._uploaded > INTERVAL:
                self._upload()

    def _upload(self) -> None:
        """Add the records since the last upload to the journal in a store."""
        if self._remote is None or not self._pending:
            return
        data, self._uploaded = bytes(self._pending), time.monotonic()
        self._pending.clear()  # also after an error: a process that lost its journal to another must not go on
        try:
            self._remote.append(data)
        except FileExistsError as error:
            raise OSError(f"{self.path}: another run is processing this scene; wait for it, or stop it") from error


def remove_journal(path: Path) -> None:
    """Delete a journal that nobody writes."""
    if isinstance(path, StorePath):
        SegmentedFile(path).remove()
    else:
        path.unlink(missing_ok=True)


def _records(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Yield intact records up to the end of the file, or up to the first incomplete one."""
    while len(head := file.read(HEAD.size)) == HEAD.size:
        mark, length, checksum = HEAD.unpack(head)
        if mark not in (BATCH, FRAME, DONE, FAILED):
            return
        if length > os.fstat(file.fileno()).st_size:  # reading would allocate as much
            return
        data = file.read(length)
        if len(data) < length or zlib.crc32(data) != checksum:
            return
        yield mark, data


def _completion(data: bytes) -> tuple[dict[str, str], dict[str, Any]]:
    found = parse_json(data, source="outputs")
    outputs, counts = (found.get(key) if isinstance(found, dict) else None for key in ("outputs", "counts"))
    if not isinstance(outputs, dict) or not all(isinstance(value, str) for value in outputs.values()):
        raise ValueError("outputs are not hashes by name")
    if not isinstance(counts, dict):
        raise ValueError("no counts")
    return outputs, counts


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 40 else f"{text[:37]}..."
