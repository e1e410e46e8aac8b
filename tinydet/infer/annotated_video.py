"""A video with a box around each detection, with the times of the one that it was made from."""

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
from tinydet.infer.drawing import annotate
from tinydet.runtime.detections import Detections
from tinydet.runtime.scenes import Scene

CONTAINERS = (".mp4", ".mkv", ".mov")
CODECS = ("libx264", "mpeg4")  # the first that the installed FFmpeg has
TICKS = 90_000  # a second, as MPEG counts
RATE = 25  # frames a second, for the codec's planning; their times are their own
MAX_SIDE = 3840  # pixels; larger frames are shown smaller, for players and hardware decoders end about there


@contextmanager
def open_video(path: Path, width: int, height: int) -> Iterator[Callable[[Scene, Detections, float], None]]:
    """Open a video to write; inside the block, call what it gives with each frame, what was found, and its time.

    Args:
        path: `.mp4`, `.mkv` or `.mov`.
        width, height: of the video. An odd one loses its last column or row, for the codecs count in twos; frames of
            another size are stretched to it.

    Raises:
        ValueError: another suffix, or times that do not rise.
        ModuleNotFoundError: PyAV is not installed.
    """
    check_video_path(path)
    with needs_extra("video"):
        import av
    shrink = min(1.0, MAX_SIDE / max(width, height))
    size = max(2, round(width * shrink) // 2 * 2), max(2, round(height * shrink) // 2 * 2)
    codec = next(name for name in CODECS if name in av.codecs_available)
    with atomic_path(path, part=True) as temporary, av.open(str(temporary), "w") as container:
        stream: Any = container.add_stream(codec, rate=RATE)  # of one of PyAV's classes, by the codec's name
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, TICKS)
        last = -1

        def write(scene: Scene, detections: Detections, seconds: float) -> None:
            nonlocal last
            tick = round(seconds * TICKS)
            if tick <= last:
                raise ValueError(f"{path}: the frame at {seconds:.3f} s comes after one of a later time")
            last = tick
            shown = detections
            if shrink == 1 and (scene.width, scene.height) == (width, height):
                picture = scene.read(0, 0, *size).copy()  # cut, not squeezed: a box stays on its pixels
            else:
                picture = scene.read(0, 0, scene.width, scene.height, size).copy()
                across, down = size[0] / scene.width, size[1] / scene.height
                shown = replace(detections, boxes=detections.boxes * np.array([across, down, across, down], np.float32))
            annotate(picture, shown)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = tick, stream.time_base
            container.mux(stream.encode(frame))

        yield write
        container.mux(stream.encode())


def check_video_path(path: Path) -> None:
    """Refuse a suffix that is not written, before the work rather than after it."""
    if path.suffix.lower() not in CONTAINERS:
        raise ValueError(f"{path}: cannot write a video as {path.suffix!r}; use {', '.join(CONTAINERS)}")
