"""Write a video with its detections drawn on it, at the time stamps of the source."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.atomic import atomic_path
from tinydet._internal.extras import needs_extra
from tinydet.runtime.detections import Detections
from tinydet.runtime.drawing import annotate, draw_trails
from tinydet.runtime.scenes import Scene

CONTAINERS = (".mp4", ".mkv", ".mov")
CODECS = ("libx264", "mpeg4")  # in order of preference; the installed FFmpeg may lack the first
TICKS = 90_000  # per second, the time base of MPEG
RATE = 25  # frames per second, a hint for the codec; every frame has its own time stamp
TRAIL = 2.0  # seconds of an object's path that are drawn behind it
MAX_SIDE = 3840  # pixels; larger frames are shrunk, because most players and hardware decoders support no more


class WriteFrame(Protocol):
    """Writes a frame with its detections. `motion` is (2, 3), see `tracking`; None if objects are not tracked."""

    def __call__(
        self, scene: Scene, detections: Detections, seconds: float, motion: NDArray[np.float64] | None = None
    ) -> None: ...


@contextmanager
def open_video(path: Path, width: int, height: int) -> Iterator[WriteFrame]:
    """Open a video for writing. The block receives a function to call with each frame, its detections and its seconds.

    Tracked objects are drawn with their number and their path, if the function also gets the motion of the camera since
    the previous frame.

    Args:
        path: `.mp4`, `.mkv` or `.mov`.
        width, height: size of the video. Codecs require even sides, so an odd side loses its last column or row. Frames
            of another size, or of a single column or row, are stretched to fit.

    Raises:
        ValueError, ModuleNotFoundError: as `check_video_path`; also for a time stamp that is not later than the one
            before.
    """
    check_video_path(path)
    with needs_extra("video"):
        import av

    shrink = min(1.0, MAX_SIDE / max(width, height))
    size = max(2, round(width * shrink) // 2 * 2), max(2, round(height * shrink) // 2 * 2)
    codec = _codec(path)
    with atomic_path(path, part=True) as temporary, av.open(str(temporary), "w") as container:
        stream: Any = container.add_stream(codec, rate=RATE)  # its class depends on the codec
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, TICKS)
        last = -1
        trails = Trails()

        def write(
            scene: Scene, detections: Detections, seconds: float, motion: NDArray[np.float64] | None = None
        ) -> None:
            nonlocal last
            tick = round(seconds * TICKS)
            if tick <= last:
                raise ValueError(f"{path}: the frame at {seconds:.3f} s is not later than the one before")
            last = tick
            shown, scale = detections, np.ones(2)
            if shrink == 1 and (scene.width, scene.height) == (width, height) and min(width, height) > 1:
                image = scene.read(0, 0, *size).copy()  # cropped, not resized: boxes stay on their pixels
            else:
                image = scene.read(0, 0, scene.width, scene.height, size).copy()
                scale = np.array([size[0] / scene.width, size[1] / scene.height])
                shown = replace(detections, boxes=detections.boxes * np.tile(scale, 2).astype(np.float32))
            if motion is not None:
                trails.update(detections, seconds, motion)
                draw_trails(image, shown, [path * scale for path in trails.paths(detections)])
            annotate(image, shown)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = tick, stream.time_base
            container.mux(stream.encode(frame))

        yield write
        container.mux(stream.encode())


class Trails:
    """The paths of tracked objects, in pixels of the newest frame."""

    def __init__(self) -> None:
        self._points: dict[int, deque[tuple[float, NDArray[np.float64]]]] = {}  # seconds and place, by track

    def update(self, detections: Detections, seconds: float, motion: NDArray[np.float64]) -> None:
        """Add the places of a frame.

        Args:
            motion: (2, 3) of the camera since the previous frame, which moves the earlier places.
        """
        for track, points in list(self._points.items()):
            moved = ((t, motion[:, :2] @ place + motion[:, 2]) for t, place in points if t >= seconds - TRAIL)
            self._points[track] = deque(moved)
            if not self._points[track]:
                del self._points[track]
        centers = (detections.boxes[:, :2].astype(np.float64) + detections.boxes[:, 2:]) / 2
        for track, center in zip(_tracks(detections), centers, strict=True):
            if track >= 0:
                self._points.setdefault(track, deque()).append((seconds, center))

    def paths(self, detections: Detections) -> list[NDArray[np.float64]]:
        """Return the path of each detection, (P, 2) from old to new; of one point for a detection without a track."""
        centers = (detections.boxes[:, :2].astype(np.float64) + detections.boxes[:, 2:]) / 2
        return [
            np.stack([place for _, place in self._points[track]]) if track in self._points else center[None]
            for track, center in zip(_tracks(detections), centers, strict=True)
        ]


def _tracks(detections: Detections) -> list[int]:
    return [-1] * len(detections) if detections.tracks is None else detections.tracks.tolist()


def check_video_path(path: Path) -> None:
    """Check that a video can be written. Call it before the work.

    Raises:
        ValueError: the suffix is not supported, or the installed FFmpeg encodes none of CODECS.
        ModuleNotFoundError: PyAV is not installed.
    """
    if path.suffix.lower() not in CONTAINERS:
        raise ValueError(f"{path}: cannot write a video as {path.suffix!r}; use {', '.join(CONTAINERS)}")
    _codec(path)


def _codec(path: Path) -> str:
    with needs_extra("video"):
        import av
    for name in CODECS:
        if name in av.codecs_available:
            return name
    raise ValueError(
        f"{path}: the FFmpeg of the installed PyAV encodes neither {' nor '.join(CODECS)}; install PyAV from a wheel: "
        "pip install --force-reinstall av"
    )
