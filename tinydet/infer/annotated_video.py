"""Write a video with its detections drawn on it, at the time stamps of the source."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from tinydet._internal.atomic import atomic_path
from tinydet._internal.extras import needs_extra
from tinydet.runtime.detections import Detections
from tinydet.runtime.drawing import annotate
from tinydet.runtime.scenes import Scene

CONTAINERS = (".mp4", ".mkv", ".mov")
CODECS = ("libx264", "mpeg4")  # in order of preference; the installed FFmpeg may lack the first
TICKS = 90_000  # per second, the time base of MPEG
RATE = 25  # frames per second, a hint for the codec; every frame has its own time stamp
MAX_SIDE = 3840  # pixels; larger frames are shrunk, because most players and hardware decoders support no more


@contextmanager
def open_video(path: Path, width: int, height: int) -> Iterator[Callable[[Scene, Detections, float], None]]:
    """Open a video for writing. The block receives a function to call with each frame, its detections and its seconds.

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

        def write(scene: Scene, detections: Detections, seconds: float) -> None:
            nonlocal last
            tick = round(seconds * TICKS)
            if tick <= last:
                raise ValueError(f"{path}: the frame at {seconds:.3f} s is not later than the one before")
            last = tick
            shown = detections
            if shrink == 1 and (scene.width, scene.height) == (width, height) and min(width, height) > 1:
                image = scene.read(0, 0, *size).copy()  # cropped, not resized: boxes stay on their pixels
            else:
                image = scene.read(0, 0, scene.width, scene.height, size).copy()
                x, y = size[0] / scene.width, size[1] / scene.height
                shown = replace(detections, boxes=detections.boxes * np.array([x, y, x, y], np.float32))
            annotate(image, shown)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = tick, stream.time_base
            container.mux(stream.encode(frame))

        yield write
        container.mux(stream.encode())


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
