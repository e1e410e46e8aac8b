"""Overlap and scale chosen from the object sizes that a model learned; the size of scenes; memory and time."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tinydet._internal.arguments import quoted
from tinydet.runtime.auto_tile import fitting_overlap
from tinydet.runtime.backends import Backend
from tinydet.runtime.read_ahead import AHEAD
from tinydet.runtime.scenes import Scene, open_scene
from tinydet.runtime.scenes.raster import RASTER_CACHE, RasterScene
from tinydet.runtime.scenes.sources import Source, spread
from tinydet.runtime.scenes.video import Video
from tinydet.spec import ModelSpec

SCALE_RANGE = (1 / 16, 4.0)  # beyond it, a resized image shows nothing that the model learned
MANY = 16  # batches of a scene, or frames of a video, above which one batch is timed to predict the duration
SCALE_TOLERANCE = 0.1  # a scale closer to 1 changes the objects less than their sizes vary anyway


def choose_overlap(spec: ModelSpec) -> int:
    """Return the overlap that the largest learned objects (99 %) need, see `fitting_overlap`.

    >>> choose_overlap(ModelSpec(("person",), (1,), "retinanet", "any", tile=640, object_sizes=(4, 12, 40)))
    64

    Raises:
        ValueError: the model does not state its object sizes.
    """
    return fitting_overlap(_object_sizes(spec, "--overlap")[2], spec.tile)


def choose_scale(spec: ModelSpec, typical: float) -> float:
    """Return the resize factor that brings objects of `typical` pixels to the model's median object size.

    >>> choose_scale(ModelSpec(("person",), (1,), "retinanet", "any", tile=640, object_sizes=(4, 12, 40)), 24.0)
    0.5

    Raises:
        ValueError: the model does not state its object sizes, or `typical` is not a positive number.
    """
    if not (math.isfinite(typical) and typical > 0):
        raise ValueError(f"the object size must be a number above 0, got {typical}")
    scale = min(max(_object_sizes(spec, "--scale")[1] / typical, SCALE_RANGE[0]), SCALE_RANGE[1])
    return 1.0 if abs(scale - 1) <= SCALE_TOLERANCE else float(f"{scale:.3g}")


def longest_side(sources: Sequence[Source], scale: float) -> int | None:
    """Return the longest side of the largest scene, as the model sees it; None if that is unknown, as of a stream.

    Up to 8 scenes are looked at, evenly spread. A scene that cannot be read is left out; the run reports it.
    """
    longest = 0
    for source in spread(sources):
        if source.moving and not source.path.is_file():
            return None
        size = source.size
        if size is None:
            try:
                with Video(source.location) if source.moving else open_scene(source.path) as scene:
                    size = scene.width, scene.height
            except (ValueError, OSError, ImportError):
                continue
        longest = max(longest, math.ceil(max(size) * scale))
    return longest or None


def object_pixels(size: str, gsd: float | None, name: str) -> float:
    """Convert an object size, `24` (pixels) or `0.6m` (meters), to pixels of a scene.

    >>> object_pixels("0.6m", 0.05, "scene.tif")
    12.0

    Args:
        gsd: ground sample distance of the scene in meters per pixel; None if unknown.
        name: name of the scene, for error messages.

    Raises:
        ValueError: the size is malformed or not positive, or is in meters while `gsd` is unknown or not positive.
    """
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*(m|px)?", size.strip())
    if match is None or not 0 < float(match[1]) <= 1e6:
        raise ValueError(f"the object size must be given as 24 (pixels) or 0.6m (meters), got {quoted(size)}")
    if match[2] != "m":
        return float(match[1])
    if gsd is None:
        raise ValueError(f"{name} does not state its ground sample distance; give it in meters per pixel: --gsd 0.05")
    if not (math.isfinite(gsd) and gsd > 0):
        raise ValueError(f"the ground sample distance must be a number of meters above 0, got {gsd}")
    return round(float(match[1]) / gsd, 6)


def expected_memory(scene: Scene, spec: ModelSpec, batch: int) -> int:
    """Return the expected memory of this process during a scan, in bytes: present use, tile buffers, raster cache."""
    tiles = (AHEAD + 2) * batch * spec.tile**2 * 3
    cache = min(RASTER_CACHE, scene.width * scene.height * 3) if isinstance(scene, RasterScene) else 0
    return resident_bytes() + tiles + cache


def resident_bytes() -> int:
    """Return the resident memory of this process in bytes; 0 if the system does not report it."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * 4096


def seconds_per_batch(backend: Backend, batch: int) -> float:
    """Return the seconds that the model takes for a batch, measured after one warm-up run."""
    tile = backend.spec.tile
    images = np.zeros((batch, tile, tile, 3), np.uint8)
    backend.run(images)
    began = time.perf_counter()
    backend.run(images)
    return time.perf_counter() - began


def _object_sizes(spec: ModelSpec, flag: str) -> tuple[float, float, float]:
    if spec.object_sizes is None:
        raise ValueError(f"the model does not state its object sizes; give {flag} a number instead of auto")
    return spec.object_sizes
