"""Videos and live streams as scenes, one a frame, with the time that each was taken at.

A file gives every frame that is asked for, however long the work takes. A live source gives the newest one: what
comes while the model is busy is dropped and counted, so that the answer never lags behind. Where it breaks it is opened
again.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime, timezone
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from tinydet._internal.extras import needs_extra
from tinydet.runtime.scenes.pixels import Image
from tinydet.runtime.scenes.scene import DamagedSceneError, Scene, open_scene
from tinydet.runtime.scenes.sources import is_live

PATIENCE = 5.0  # seconds that a source may be silent before it counts as broken
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0  # seconds between attempts to open it again
AHEAD = 2  # frames of a file that are decoded while one is worked on


class LostStreamError(OSError):
    """A live source that does not come back."""


@dataclass(frozen=True)
class Frame:
    """One picture of a video.

    Attributes:
        scene: its pixels.
        index: counts the frames of the source from 0, those that were skipped or dropped too.
        seconds: since the first frame, by the source's own time stamps.
        clock: when it arrived (UTC), of a live source.
    """

    scene: Scene
    index: int
    seconds: float
    clock: datetime | None = None


class Video:
    """Frames of a video file, a URL, or a webcam; a context manager, to be iterated once.

    Attributes:
        name, width, height: of the first video stream, as it is stored; its frames are upright.
        frames: how many there will be; 0 where the source does not say.
        live: whether it goes on while nobody looks.
        dropped: frames of a live source that were not taken, so far.
        reconnects: how often it was opened again, so far.
    """

    def __init__(self, location: str, *, every: int = 1, live: bool | None = None, reconnect: float = 30.0) -> None:
        """
        Args:
            location: path, URL, `/dev/videoN` or N for a webcam.
            every: take the first of so many frames.
            live: None to tell from the location: a webcam, or a protocol of streams.
            reconnect: seconds for which a live source that broke is tried again; 0 ends there.

        Raises:
            ValueError: no video, or `every` below 1.
            OSError: it is missing or does not answer.
            ModuleNotFoundError: PyAV is not installed.
        """
        if every < 1:
            raise ValueError(f"every n-th frame is taken with n at least 1, got {every}")
        with needs_extra("video"):
            import av
        self._av = av
        self.name = location
        scheme = location.partition("://")[0].lower()
        device = location.startswith("/dev/video") or location.isdecimal()
        self.live = is_live(location) if live is None else live
        self._every, self._reconnect = every, reconnect
        self._open_options: dict[str, Any] = {"timeout": PATIENCE}
        self._location = f"/dev/video{location}" if location.isdecimal() else location
        if device:
            self._open_options["format"] = "v4l2"
        if scheme in ("rtsp", "rtsps"):
            self._open_options["options"] = {"rtsp_transport": "tcp"}  # UDP loses packets, and boxes with them
        self._container = self._opened()
        stream = self._container.streams.video[0]
        self.width, self.height = stream.codec_context.width, stream.codec_context.height
        self.rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
        self.frames = 0 if self.live else -(-stream.frames // every)
        self.dropped = self.reconnects = 0
        self._closed = threading.Event()

    def __iter__(self) -> Iterator[Frame]:
        """Frames in order; a thread decodes ahead.

        Raises:
            ValueError: the file is damaged.
            LostStreamError: a live source stays silent for longer than `reconnect`.
        """
        newest = _Newest() if self.live else None
        line = newest or _Line()
        thread = threading.Thread(target=self._decode, args=(line,), name="tinydet-video", daemon=True)
        thread.start()
        try:
            while (frame := line.get()) is not None:
                if newest is not None:
                    self.dropped = newest.dropped
                yield frame
        finally:
            self._closed.set()
            line.close()
            thread.join()

    def close(self) -> None:
        """Give the source back."""
        self._closed.set()
        self._container.close()

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _opened(self) -> Any:
        try:
            container = self._av.open(self._location, **self._open_options)
        except (self._av.error.FFmpegError, OSError) as error:
            there = Path(self._location).is_file() and not isinstance(error, PermissionError)
            kind = DamagedSceneError if there else OSError
            raise kind(f"{self.name}: cannot be opened as a video ({_reason(error)})") from error
        if not container.streams.video:
            container.close()
            raise DamagedSceneError(f"{self.name} has no video stream; name another file")
        container.streams.video[0].thread_type = "SLICE" if self.live else "AUTO"  # frames in flight are a delay
        return container

    def _decode(self, line: _Line) -> None:
        """Put frames into the line until the source ends, in a thread."""
        try:
            for frame in self._reconnecting() if self.live else self._decoded(0, 0.0):
                line.put(frame)
        except _LineClosed:
            return
        except BaseException as error:  # of any kind: it is raised where the frames are taken
            line.put(error)
            return
        line.put(None)

    def _decoded(self, index: int, offset: float) -> Iterator[Frame]:
        """Frames from the container as it stands; their times begin with `offset`."""
        first = None
        seconds = offset
        try:
            with closing(self._container.decode(video=0)) as frames:
                for picture in frames:
                    stamp = index / float(self.rate) if picture.time is None else picture.time
                    first = stamp if first is None else first
                    seconds = offset + stamp - first
                    if index % self._every == 0:
                        clock = datetime.now(timezone.utc) if self.live else None
                        yield Frame(_picture(picture, f"{self.name}#{index}"), index, seconds, clock)
                    index += 1
                    if self._closed.is_set():
                        return
        except self._av.error.FFmpegError as error:
            kind = OSError if self.live else DamagedSceneError
            raise kind(f"{self.name}: broken after {seconds:.1f} s ({_reason(error)}); get it again") from error

    def _reconnecting(self) -> Iterator[Frame]:
        """Frames of a live source, for as long as it comes back."""
        began = last = time.monotonic()
        index, seconds, pause = 0, 0.0, FIRST_PAUSE
        problem = "it ended"
        while True:
            try:  # its own times begin anew: they go on from the clock, and never backwards
                for frame in self._decoded(index, max(seconds, time.monotonic() - began) if index else 0.0):
                    last, pause = time.monotonic(), FIRST_PAUSE
                    index, seconds = frame.index + 1, frame.seconds
                    yield frame
                problem = "it ended"
            except OSError as error:
                problem = str(error)
            while True:
                if self._closed.is_set() or self._reconnect <= 0:
                    return
                if time.monotonic() - last > self._reconnect:
                    raise LostStreamError(
                        f"{self.name}: no frame for {self._reconnect:.0f} s ({problem}); see whether it runs"
                    )
                self._closed.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                try:
                    self._container.close()
                    self._container = self._opened()
                    self.reconnects += 1
                    break
                except (OSError, ValueError) as error:
                    problem = str(error)


class _LineClosed(Exception):
    """Nobody takes from the line any more."""


class _Line:
    """Frames on their way from one thread to another, a few at a time; the last is None, or an error."""

    length: int = AHEAD

    def __init__(self) -> None:
        self._items: deque[Frame | BaseException | None] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, item: Frame | BaseException | None) -> None:
        with self._changed:
            if isinstance(item, Frame):
                self._make_room()
                if self._closed:
                    raise _LineClosed
            self._items.append(item)
            self._changed.notify_all()

    def get(self) -> Frame | None:
        with self._changed:
            while not self._items:
                self._changed.wait()
            item = self._items.popleft()
            self._changed.notify_all()
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _make_room(self) -> None:
        while len(self._items) >= self.length and not self._closed:
            self._changed.wait()


class _Newest(_Line):
    """Only the newest frame waits; the one before it is dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.dropped = 0

    def _make_room(self) -> None:
        self.dropped += len(self._items)
        self._items.clear()


def _picture(frame: Any, name: str) -> Scene:
    pixels: Image = frame.to_ndarray(format="rgb24")
    scene = open_scene(np.ascontiguousarray(np.rot90(pixels, frame.rotation // 90)) if frame.rotation else pixels)
    scene.name = name
    return scene


def _reason(error: BaseException) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())
