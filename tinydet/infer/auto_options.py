"""What a user need not choose: overlap and scale, from the sizes of the objects that a model learned."""

from __future__ import annotations

import math
import re
import time
from pathlib import Path

import numpy as np

from tinydet.geometry.tiles import COARSEST_CELL
from tinydet.runtime.backends import Backend
from tinydet.runtime.read_ahead import AHEAD
from tinydet.runtime.scenes import Scene
from tinydet.runtime.scenes.raster import RASTER_CACHE, RasterScene
from tinydet.runtime.stitch import EDGE
from tinydet.spec import ModelSpec

SCALES = (1 / 16, 4.0)  # beyond these a picture shows nothing of what the model learned
MANY = 16  # batches of a scene, or frames of a video, for which it is worth a batch to say how long it will take
AS_IT_IS = 0.1  # a scale nearer to 1 changes less than objects differ among themselves


def choose_overlap(spec: ModelSpec) -> int:
    """The least overlap by which the largest learned object (99 %) lies whole, and off the edges, inside some tile.

    It is rounded up so that tiles lie on cells of the feature pyramid, and is no more than half a tile: larger objects
    are for the coarse pass.

    >>> choose_overlap(ModelSpec(("person",), (1,), "retinanet", "any", tile=640, object_sizes=(4, 12, 40)))
    64

    Raises:
        ValueError: the model does not say which sizes it learned.
    """
    largest = _object_sizes(spec, "--overlap")[2]
    needed = math.ceil(largest + 3 * EDGE)
    aligned = spec.tile - (spec.tile - needed) // COARSEST_CELL * COARSEST_CELL
    return min(aligned if needed < spec.tile else spec.tile, max(spec.tile // 2, 1))


def choose_scale(spec: ModelSpec, typical: float) -> float:
    """The resize factor that shows objects of `typical` pixels as large as the model's median one.

    >>> choose_scale(ModelSpec(("person",), (1,), "retinanet", "any", tile=640, object_sizes=(4, 12, 40)), 24.0)
    0.5

    Raises:
        ValueError: the model does not say which sizes it learned, or `typical` is no size.
    """
    if not (math.isfinite(typical) and typical > 0):
        raise ValueError(f"the size of an object is a length above 0, got {typical}")
    scale = min(max(_object_sizes(spec, "--scale")[1] / typical, SCALES[0]), SCALES[1])
    return 1.0 if abs(scale - 1) <= AS_IT_IS else float(f"{scale:.3g}")


def object_pixels(size: str, gsd: float | None, name: str) -> float:
    """The side of an object in pixels of a scene, from `24` (pixels) or `0.6m` (metres).

    >>> object_pixels("0.6m", 0.05, "scene.tif")
    12.0

    Args:
        gsd: metres for each pixel of the scene, if known.
        name: of the scene, for the error.

    Raises:
        ValueError: no such length, or metres in a scene of unknown scale.
    """
    match = re.fullmatch(r"([0-9]*\.?[0-9]+)\s*(m|px)?", size.strip())
    if match is None or float(match[1]) <= 0:
        raise ValueError(f"the size of an object is given as 24 (pixels) or 0.6m (metres), got {size!r}")
    if match[2] != "m":
        return float(match[1])
    if gsd is None:
        raise ValueError(f"{name} does not say how many metres a pixel covers; name them: --gsd 0.05 for 5 cm")
    if not (math.isfinite(gsd) and gsd > 0):
        raise ValueError(f"the ground sample distance is in metres above 0 for each pixel, got {gsd}")
    return round(float(match[1]) / gsd, 6)


def expected_memory(scene: Scene, spec: ModelSpec, batch: int) -> int:
    """Bytes that this process will hold while it scans: what it holds now, tiles under way, the cache of a raster."""
    tiles = (AHEAD + 2) * batch * spec.tile**2 * 3
    cache = min(RASTER_CACHE, scene.width * scene.height * 3) if isinstance(scene, RasterScene) else 0
    return resident_bytes() + tiles + cache


def resident_bytes() -> int:
    """Memory of this process; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * 4096


def seconds_per_batch(backend: Backend, batch: int) -> float:
    """How long the model takes for a batch, measured once it is warm."""
    tile = backend.spec.tile
    images = np.zeros((batch, tile, tile, 3), np.uint8)
    backend.run(images)
    began = time.perf_counter()
    backend.run(images)
    return time.perf_counter() - began


def _object_sizes(spec: ModelSpec, flag: str) -> tuple[float, float, float]:
    if spec.object_sizes is None:
        raise ValueError(f"the model does not say how large its objects are; give {flag} a number")
    return spec.object_sizes
