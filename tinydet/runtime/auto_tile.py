"""`--tile auto`: choose the tile of a model from the size of its objects, the overlap and the free memory."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

from tinydet.runtime.stitch import EDGE
from tinydet.spec import ModelSpec

ADDED = 0.25  # of the pixels of a scene: what the overlap of tiles may add to the work
# Of a tile that runs, of all activations at once. MobileNetV2 with 64 channels needs about 150 in OpenVINO
# (benchmarks/any_tile.py: batches of four, which one stream runs one by one); wider networks several times as much.
BYTES_PER_PIXEL = 1024
MEMORY_SHARE = 0.5  # of the free memory
SMALLEST, LARGEST = 320, 2048  # pixels; below, objects lack their surroundings; above, the overlap adds little
DEFAULT_OVERLAP = 128  # pixels, of models that do not state the sizes of their objects

logger = logging.getLogger("tinydet.runtime")


class AutoTile:
    """Chooses the tile of a model, when it is opened, and logs why.

    The smallest tile is taken at which the overlap adds no more than a quarter to the pixels of a scene, and that is at
    least twice the overlap. Larger tiles would save little, and hold more objects than a model may return for a tile.

    Args:
        overlap: pixels that tiles share; None: as much as the largest object of the model needs.
        batch: tiles that the model runs at once.
        memory: free memory in bytes; None: that of this machine.
    """

    def __init__(self, overlap: int | None = None, *, batch: int = 4, memory: int | None = None) -> None:
        self.overlap, self.batch = overlap, batch
        self.memory = free_memory() if memory is None else memory

    def __call__(self, spec: ModelSpec) -> int:
        """Return the tile for a model."""
        largest = None if spec.object_sizes is None else spec.object_sizes[2]
        needed = DEFAULT_OVERLAP if largest is None else math.ceil(largest + 3 * EDGE)
        overlap = needed if self.overlap is None else self.overlap
        if spec.tile_multiple:
            step = spec.tile_multiple
            tiles: Sequence[int] = range(min(SMALLEST, spec.tile) // step * step, max(LARGEST, spec.tile) + 1, step)
            choice = f"any multiple of {step}"
        else:
            tiles = sorted(spec.tiles)
            choice = ", ".join(map(str, tiles)) if len(tiles) > 1 else "only this one"
        tile = choose_tile(tiles, overlap, self.memory // max(1, min(self.batch, spec.max_batch)))
        objects = "" if largest is None else f" for objects of up to {largest:.0f}"
        logger.info(
            f"--tile auto: {tile} pixels (the model takes {choice}): tiles share {overlap} pixels{objects}, which adds "
            f"{added(tile, overlap):.0%} to the work"
        )
        return tile


def choose_tile(tiles: Sequence[int], overlap: int, memory: int | None = None) -> int:
    """Return the smallest tile whose overlap adds no more than `ADDED`; else the largest that fits in the memory.

    >>> choose_tile(range(64, 2049, 64), 64), choose_tile(range(64, 2049, 64), 20), choose_tile([640, 1024], 300)
    (640, 192, 1024)

    Args:
        tiles: ascending.
        memory: free bytes for each tile of a batch; None: enough.
    """
    fitting = [tile for tile in tiles if memory is None or tile**2 * BYTES_PER_PIXEL <= MEMORY_SHARE * memory]
    fitting = fitting or [tiles[0]]
    return next((tile for tile in fitting if added(tile, overlap) <= ADDED), fitting[-1])


def added(tile: int, overlap: int) -> float:
    """Return what an overlap adds to the pixels of a large scene, as a share of them.

    >>> round(added(640, 128), 4)
    0.5625
    """
    return math.inf if overlap >= tile else (tile / (tile - overlap)) ** 2 - 1


def free_memory() -> int:
    """Return the free memory of this machine in bytes, as far as the system says; else 4 GiB."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError, IndexError):
        return 4 << 30
