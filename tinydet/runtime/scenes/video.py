"""Read videos and live streams frame by frame; each frame is a scene with its time stamp.

A file yields every requested frame. A live source yields the newest frame: frames that arrive while the model is busy
are dropped and counted, so that detections do not lag behind. A live source that breaks is reopened.
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
from tinydet.runtime.scenes.scene import ArrayScene, DamagedSceneError, Scene
from tinydet.runtime.scenes.sources import is_live

TIMEOUT = 5.0  # seconds without data after which a source is considered broken
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0  # seconds between attempts to reopen a live source
READ_AHEAD = 2  # frames of a file that are decoded in advance


class LostStreamError(OSError):
    """A live source that broke and could not be reopened."""


@dataclass(frozen=True)
class Frame:
    """A frame of a video.

    Attributes:
        scene: the pixels, upright.
        index: number of the frame in the source, from 0; skipped and dropped frames count.
        seconds: time since the first frame, from the time stamps of the source.
        clock: time of arrival (UTC) for a live source, else None.
    """

    scene: Scene
    index: int
    seconds: float
    clock: datetime | None = None


class Video:
    """The frames of a video file, a URL or a webcam. A context manager that is iterated once.

    Attributes:
        name: the location.
        width, height: size of the first video stream as it is stored, before rotation.
        rate: frames per second.
        frames: number of frames that will be yielded; 0 if the source does not say.
        live: whether frames are dropped to keep up with the source.
        dropped: number of frames of a live source dropped so far.
        reconnects: number of times that a live source was reopened so far.
    """

    def __init__(self, location: str, *, every: int = 1, live: bool | None = None, reconnect: float = 30.0) -> None:
        """
        Args:
            location: a path, a URL, or `/dev/videoN` or N for a webcam.
            every: yield every n-th frame.
            live: None to decide from the location: webcams and streaming protocols are live.
            reconnect: seconds for which to try to reopen a live source that broke; 0 to end instead.

        Raises:
            ValueError: the source is not a video, or `every` is below 1.
            OSError: the source is missing or does not respond.
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
        self._open_options: dict[str, Any] = {"timeout": TIMEOUT}
        self._location = f"/dev/video{location}" if location.isdecimal() else location
        if device:
            self._open_options["format"] = "v4l2"
        if scheme in ("rtsp", "rtsps"):
            self._open_options["options"] = {"rtsp_transport": "tcp"}  # UDP would lose packets, and with them objects
        self._container = self._open()
        stream = self._container.streams.video[0]
        self.width, self.height = stream.codec_context.width, stream.codec_context.height
        self.rate = Fraction(stream.average_rate or stream.guessed_rate or 25)
        self.frames = 0 if self.live else -(-stream.frames // every)
        self.dropped = self.reconnects = 0
        self._closed = threading.Event()

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames in order, while a thread decodes ahead.

        Raises:
            ValueError: the file is damaged.
            LostStreamError: a live source sends nothing for longer than `reconnect`.
        """
        newest = _NewestFrame() if self.live else None
        frames = newest or _FrameQueue()
        thread = threading.Thread(target=self._decode, args=(frames,), name="tinydet-video", daemon=True)
        thread.start()
        try:
            while (frame := frames.get()) is not None:
                if newest is not None:
                    self.dropped = newest.dropped
                yield frame
        finally:
            self._closed.set()
            frames.close()
            thread.join()

    def close(self) -> None:
        """Close the source."""
        self._closed.set()
        self._container.close()

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> Any:
        try:
            container = self._av.open(self._location, **self._open_options)
        except (self._av.error.FFmpegError, OSError) as error:
            readable = Path(self._location).is_file() and not isinstance(error, PermissionError)
            kind = DamagedSceneError if readable else OSError
            raise kind(f"{self.name}: cannot be opened as a video ({_reason(error)})") from error
        if not container.streams.video:
            container.close()
            raise DamagedSceneError(f"{self.name} has no video stream; name another file")
        container.streams.video[0].thread_type = "SLICE" if self.live else "AUTO"  # frame threading adds latency
        return container

    def _decode(self, frames: _FrameQueue) -> None:
        """Put frames into the queue until the source ends. Runs in a thread."""
        try:
            for frame in self._live_frames() if self.live else self._decoded_frames(0, 0.0):
                frames.put(frame)
        except _QueueClosed:
            return
        except BaseException as error:  # raised again in the thread that takes the frames
            frames.put(error)
            return
        frames.put(None)

    def _decoded_frames(self, index: int, offset: float) -> Iterator[Frame]:
        """Yield the frames of the open container, numbered from `index`, with times from `offset` seconds."""
        first = None
        seconds = offset
        try:
            with closing(self._container.decode(video=0)) as decoded:
                for frame in decoded:
                    stamp = index / float(self.rate) if frame.time is None else frame.time
                    first = stamp if first is None else first
                    seconds = offset + stamp - first
                    if index % self._every == 0:
                        clock = datetime.now(timezone.utc) if self.live else None
                        yield Frame(_scene(frame, f"{self.name}#{index}"), index, seconds, clock)
                    index += 1
                    if self._closed.is_set():
                        return
        except self._av.error.FFmpegError as error:
            kind = OSError if self.live else DamagedSceneError
            raise kind(f"{self.name}: broken after {seconds:.1f} s ({_reason(error)}); get it again") from error

    def _live_frames(self) -> Iterator[Frame]:
        """Yield the frames of a live source, reopening it when it breaks."""
        started = last = time.monotonic()
        index, seconds, pause = 0, 0.0, FIRST_PAUSE
        problem = "it ended"
        while True:
            try:
                # A reopened source restarts its time stamps: continue from the clock, without going backwards.
                offset = max(seconds, time.monotonic() - started) if index else 0.0
                for frame in self._decoded_frames(index, offset):
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
                        f"{self.name}: no frame for {self._reconnect:.0f} s ({problem}); check the source"
                    )
                self._closed.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                try:
                    self._container.close()
                    self._container = self._open()
                    self.reconnects += 1
                    break
                except (OSError, ValueError) as error:
                    problem = str(error)


class _QueueClosed(Exception):
    """The consumer has stopped taking frames."""


class _FrameQueue:
    """Passes frames from the decoding thread to the consumer; None marks the end. Errors are raised by `get`."""

    def __init__(self) -> None:
        self._items: deque[Frame | BaseException | None] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, item: Frame | BaseException | None) -> None:
        with self._changed:
            if isinstance(item, Frame):
                self._make_room()
                if self._closed:
                    raise _QueueClosed
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
        """Wait until fewer than READ_AHEAD frames are queued."""
        while len(self._items) >= READ_AHEAD and not self._closed:
            self._changed.wait()


class _NewestFrame(_FrameQueue):
    """Keeps only the newest frame and counts those that it drops."""

    def __init__(self) -> None:
        super().__init__()
        self.dropped = 0

    def _make_room(self) -> None:
        self.dropped += len(self._items)
        self._items.clear()


def _scene(frame: Any, name: str) -> Scene:
    pixels: Image = frame.to_ndarray(format="rgb24")
    if frame.rotation:
        pixels = np.ascontiguousarray(np.rot90(pixels, frame.rotation // 90))
    return ArrayScene(name, pixels)


def _reason(error: BaseException) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())
