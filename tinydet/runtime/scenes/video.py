"""Read videos and live streams frame by frame; each frame is a scene with its time stamp.

A file yields every requested frame. A live source yields the newest frame: frames that arrive while the model is busy
are dropped and counted, so that detections do not lag behind. A live source that breaks is reopened.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.console import plural
from tinydet._internal.errors import is_outside_error, reason
from tinydet._internal.extras import needs_extra
from tinydet._internal.names import mask_secrets, printable, public_location
from tinydet.runtime.scenes.pixels import Image
from tinydet.runtime.scenes.scene import ArrayScene, DamagedSceneError, Scene
from tinydet.runtime.scenes.sources import is_live, is_stream

logger = logging.getLogger("tinydet.runtime")

TIMEOUT = 5.0  # seconds without data after which a source is considered broken
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0  # seconds between attempts to reopen a live source
READ_AHEAD = 2  # frames of a file that are decoded in advance
RATE = 25  # frames per second of a source that states none
LONGEST_GAP = 10.0  # seconds between two frames; more in MPEG-TS is a joint, as FFmpeg's -dts_delta_threshold has it
CUT = 0.9  # of the stated length; a video that ends earlier was cut off
NO_TIMESTAMPS, DISCONTINUOUS = 0x80, 0x200  # FFmpeg's AVFMT_NOTIMESTAMPS and AVFMT_TS_DISCONT
COVER = 0x400 | 0x800 | 0x100000  # FFmpeg's dispositions of attached pictures, timed thumbnails and still images
FULL_RANGE = 2  # FFmpeg's AVCOL_RANGE_JPEG
STILL_CODECS = frozenset({"apng", "bmp", "gif", "mjpeg", "png", "tiff", "webp"})
# Formats that a file may have. Others refer to more files or addresses (playlists, `concat`, `sdp`), or hold images.
FORMATS = (
    "3g2,3gp,amv,asf,av1,avi,avs2,avs3,bink,cavsvideo,cine,dhav,dirac,dv,evc,flv,gxf,h261,h263,h264,hevc,ipu,ivf,"
    "kux,live_flv,lmlm4,lxf,m4v,matroska,mjpeg,mlv,mov,mp4,mpeg,mpegts,mpegvideo,mpjpeg,mtv,mxf,nsv,nut,nuv,obu,ogg,"
    "pva,r3d,rm,rpl,smjpeg,swf,ty,vc1,vc1test,vivo,vob,vvc,webm,wtv,xmv,yuv4mpegpipe"
)


class LostStreamError(DamagedSceneError, OSError):
    """A source that cannot be reached, or a live source that broke and could not be reopened."""


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

    If a file has several video streams, the largest is read; cover images and thumbnails are not videos.

    Attributes:
        name: the location, without passwords.
        width, height: size of the video stream as it is stored, before rotation.
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
            DamagedSceneError: the source is not a video, or no frame can be decoded.
            LostStreamError: the source is missing or does not respond.
            ValueError: `every` is below 1.
            ModuleNotFoundError: PyAV is not installed.
        """
        if every < 1:
            raise ValueError(f"every n-th frame is taken with n at least 1, got {every}")
        with needs_extra("video"):
            import av
        self._av = av
        self.name = public_location(location)
        self.live = is_live(location) if live is None else live
        self._every, self._reconnect = every, reconnect
        self._location, self._open_options = _ffmpeg_arguments(location)
        self._closed = threading.Event()
        self._container, self._stream = self._open()
        context = self._stream.codec_context
        self.width, self.height = context.width, context.height
        if not (self.width and self.height):  # known after the first keyframe only
            self.width, self.height = self._size_of_first_frame()
        rates = self._stream.average_rate, self._stream.guessed_rate
        if self._container.format.flags & NO_TIMESTAMPS:  # the average is FFmpeg's default, the guess is from the codec
            rates = rates[::-1]
        self.rate = Fraction(rates[0] or rates[1] or RATE)
        self.frames = 0 if self.live else -(-self._stream.frames // every)
        self.dropped = self.reconnects = 0
        others = len([stream for stream in self._container.streams.video if not _is_cover(stream)]) - 1
        if others > 0:
            logger.info(
                f"{self.name}: {plural(others + 1, 'video stream')}; only stream {self._stream.index} "
                f"({self.width}x{self.height}) is read"
            )

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames in order, while a thread decodes ahead.

        Raises:
            DamagedSceneError: the file is damaged, or no frame can be decoded.
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

    def _open(self) -> tuple[Any, Any]:
        """Open the source. Return the container and its video stream."""
        try:
            container = self._av.open(self._location, **self._open_options)
        except Exception as error:
            if not isinstance(error, OSError | ValueError) and not is_outside_error(error):
                raise
            is_file = not is_stream(self._location) and Path(self._location.removeprefix("file:")).is_file()
            kind = DamagedSceneError if is_file else LostStreamError
            raise kind(f"{self.name}: cannot be opened as a video ({self._reason(error)})") from error
        try:
            stream = self._choose_stream(container)
        except BaseException:
            container.close()
            raise
        stream.thread_type = "SLICE" if self.live else "AUTO"  # frame threading adds latency
        return container, stream

    def _choose_stream(self, container: Any) -> Any:
        """Return the video stream to read. FFmpeg's own choice prefers a cover image that is marked as default."""
        if container.format.name.endswith("_pipe") or container.format.name in ("apng", "gif", "ico"):
            raise DamagedSceneError(f"{self.name} is an image, not a video or stream; check the address")
        streams = [stream for stream in container.streams.video if not _is_cover(stream)]
        if not streams:
            what = "only a cover image" if container.streams.video else "no video stream"
            raise DamagedSceneError(f"{self.name} has {what}; name another file")
        stream = max(streams, key=_rank)
        if stream.codec_context is None:
            codec = self._codec_name(container, stream)
            raise DamagedSceneError(
                f"{self.name}: the installed FFmpeg has no decoder for its codec, {codec}; convert it to H.264"
            )
        return stream

    def _codec_name(self, container: Any, stream: Any) -> str:
        """Return the name or code of a codec without a decoder, from FFmpeg's own description."""
        level = self._av.logging.get_level()
        self._av.logging.set_level(self._av.logging.INFO)
        try:
            text = container.dumps_format()
        finally:
            self._av.logging.set_level(level)
        found = re.search(rf"Stream #0:{stream.index}\b.*?: Video: (?:none \()?([^ ,()]+)", text)
        return printable(found[1]) if found else "unknown"

    def _size_of_first_frame(self) -> tuple[int, int]:
        """Return the width and height of the first frame. A file is reopened, a live source loses the frame."""
        with self._failures(lambda: 0.0):
            frame = next(self._decoded(), None)
        if frame is None:
            raise LostStreamError(f"{self.name}: the source ended before its first keyframe")
        size = frame.width, frame.height
        if not self.live:
            self._container.close()
            self._container, self._stream = self._open()
        return size

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
        jumps = self.live or bool(self._container.format.flags & DISCONTINUOUS)
        clock = _Clock(float(1 / self.rate), jumps=jumps)
        in_order = self._container.format.name != "avi"  # there FFmpeg numbers frames in the order of decoding
        seconds = offset
        with closing(self._decoded()) as decoded, self._failures(lambda: seconds):
            for frame in decoded:
                seconds = offset + clock.advance(_time(frame.pts if in_order else frame.dts, frame.time_base))
                if index % self._every == 0:
                    arrival = datetime.now(timezone.utc) if self.live else None
                    yield Frame(_scene(frame, f"{self.name}#{index}"), index, seconds, arrival)
                index += 1
                if self._closed.is_set():
                    return
        if not self.live and (length := self._length()) * CUT > seconds + 2 / self.rate:
            logger.warning(
                f"{self.name}: ends after {seconds:.1f} s of {length:.1f} s; it is cut off, or its header is wrong"
            )

    def _length(self) -> float:
        """Return the seconds that the header of a file states for the video stream; 0 if it does not."""
        if self._container.format.flags & DISCONTINUOUS:
            return 0.0  # a format without such a header, for which FFmpeg estimates the length
        if self._stream.duration and self._stream.time_base:
            return float(self._stream.duration * self._stream.time_base)
        only_video = len(self._container.streams) == len(self._container.streams.video)
        return (self._container.duration or 0) / self._av.time_base if only_video else 0.0

    def _decoded(self) -> Generator[Any, None, None]:
        """Decode the stream. Packets before the first keyframe, and damaged ones of a live source, are skipped."""
        count = skipped = 0
        problem = "it holds no frame"
        for packet in self._container.demux(self._stream):
            try:
                frames = packet.decode()
            except self._av.error.InvalidDataError as error:
                if count and not self.live:
                    raise
                skipped, problem = skipped + 1, self._reason(error)
                continue
            if frames and skipped and not count and not self.live:
                logger.info(f"{self.name}: {plural(skipped, 'frame')} before the first keyframe cannot be decoded")
            count += len(frames)
            yield from frames
        if not count and not self.live:
            raise DamagedSceneError(
                f"{self.name}: no frame can be decoded: it has no keyframe, or is damaged ({problem}); get it again"
            )

    @contextmanager
    def _failures(self, seconds: Callable[[], float]) -> Iterator[None]:
        """Raise errors of FFmpeg as DamagedSceneError, for a live source as LostStreamError, and name the source."""
        try:
            yield
        except Exception as error:
            if not is_outside_error(error):
                raise
            kind = LostStreamError if self.live else DamagedSceneError
            raise kind(f"{self.name}: broken after {seconds():.1f} s ({self._reason(error)}); get it again") from error

    def _reason(self, error: BaseException) -> str:
        if isinstance(error, self._av.error.ExitError):
            return f"no data for {TIMEOUT:.0f} s"
        return printable(mask_secrets(getattr(error, "strerror", None) or reason(error)))

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
                    self._container, self._stream = self._open()
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


class _Clock:
    """Converts the time stamps of a stream to seconds since its first frame.

    Where recordings were joined, time stamps restart or jump. The frame after a joint follows after one frame interval,
    and so does a frame without a time stamp.
    """

    def __init__(self, interval: float, *, jumps: bool) -> None:
        """
        Args:
            interval: seconds between two frames.
            jumps: whether a long gap is a joint; otherwise the camera paused.
        """
        self._interval, self._jumps = interval, jumps
        self._last: float | None = None
        self._offset: float | None = None  # what is subtracted from the time stamps

    def advance(self, stamp: float | None) -> float:
        """Return the seconds of the next frame."""
        expected = 0.0 if self._last is None else self._last + self._interval
        seconds = expected
        if stamp is not None:
            if self._offset is None:
                self._offset = stamp - expected
            seconds = stamp - self._offset
            if self._last is not None:
                gap = seconds - self._last
                if gap < 0 or (self._jumps and gap > LONGEST_GAP):
                    self._offset, seconds = stamp - expected, expected
        self._last = seconds
        return seconds


def _time(ticks: int | None, time_base: Fraction | None) -> float | None:
    return None if ticks is None or time_base is None else float(ticks * time_base)


def _ffmpeg_arguments(location: str) -> tuple[str, dict[str, Any]]:
    """Return the location and the options to open it with."""
    scheme, separator, rest = location.partition("://")
    if separator and is_stream(location):
        options: dict[str, Any] = {"timeout": TIMEOUT}
        if scheme.lower() in ("rtsp", "rtsps"):
            options["container_options"] = {"rtsp_transport": "tcp"}  # UDP would lose packets, and with them objects
        return f"{scheme.lower()}://{rest}", options
    if is_stream(location):
        device = f"/dev/video{location}" if location.isdecimal() else location
        return device, {"timeout": TIMEOUT, "format": "v4l2"}
    # `file:` because FFmpeg takes a name such as `concat:a|b` or `cam:1.ts` for another protocol.
    # Not `options`: before PyAV 18 they are also passed to streams, which crashes if FLV adds one.
    return f"file:{location}", {"timeout": TIMEOUT, "container_options": {"format_whitelist": FORMATS}}


def _is_cover(stream: Any) -> bool:
    """Return whether a stream is marked as a cover image, a thumbnail or another still image."""
    return bool(stream.disposition.value & COVER)


def _rank(stream: Any) -> tuple[object, ...]:
    """Return the sort key of a video stream; the largest is the best."""
    context = stream.codec_context
    if context is None:
        return (False,)
    is_still = context.name in STILL_CODECS
    return True, stream.frames != 1, not is_still, context.width * context.height, stream.disposition.value & 1


def _scene(frame: Any, name: str) -> Scene:
    # Bicubic is FFmpeg's own default; it matters for the color of formats such as 10-bit and NV12.
    # Before PyAV 17 the matrix and range of a frame are applied only if others are named for the result.
    color_range = FULL_RANGE if frame.format.name.startswith("yuvj") else frame.color_range
    pixels: Image = frame.to_ndarray(
        format="rgb24",
        interpolation="BICUBIC",
        src_colorspace=frame.colorspace,
        dst_colorspace="DEFAULT",
        src_color_range=color_range,
    )
    matrix = frame.side_data.get("DISPLAYMATRIX")
    return ArrayScene(name, pixels if matrix is None else _upright(pixels, np.frombuffer(bytes(matrix), np.int32)))


def _upright(pixels: Image, matrix: NDArray[np.int32]) -> Image:
    """Rotate and flip a frame by its display matrix (a, b, u, c, d, v, x, y, w): x' = ax + cy, y' = bx + dy."""
    a, b, c, d = (int(matrix[n]) for n in (0, 1, 3, 4))
    if abs(a) + abs(d) < abs(b) + abs(c):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])
