"""`--tile auto`: choose the tile of a model from the size of its objects, the overlap and the free memory."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from tinydet.geometry.tiles import COARSEST_CELL
from tinydet.runtime.memory import free_memory
from tinydet.runtime.plan import default_overlap
from tinydet.runtime.stitch import EDGE
from tinydet.spec import ModelSpec

ADDED = 0.25  # of the pixels of a scene: what the overlap of tiles may add to the work
BYTES_PER_PIXEL = 1024  # of a tile, of all activations that exist at once; see benchmarks/any_tile.py
MEMORY_SHARE = 0.5  # of the free memory
SMALLEST, LARGEST = 320, 2048  # pixels; below, objects lack their surroundings; above, the overlap adds little

logger = logging.getLogger("tinydet.runtime")


class AutoTile:
    """Chooses the tile of a model, when it is opened, and logs why.

    The smallest tile is taken at which the overlap adds no more than a quarter to the pixels of a scene, and that is at
    least twice the overlap. Larger tiles would save little, and hold more objects than a model may return for a tile.
    A tile that holds the largest scene whole is enough.

    Args:
        overlap: pixels that tiles share; None: as much as the largest objects of the model need, see `auto_overlap`.
        batch: tiles that the model runs at once.
        longest: side of the largest scene, as the model sees it; None if unknown.
        memory: free memory in bytes; None: that of this machine.
    """

    def __init__(
        self, overlap: int | None = None, *, batch: int = 4, longest: int | None = None, memory: int | None = None
    ) -> None:
        self.overlap, self.batch, self.longest = overlap, batch, longest
        self.memory = free_memory() if memory is None else memory
        self._logged = ""

    def __call__(self, spec: ModelSpec) -> int:
        """Return the tile for a model."""
        if spec.tile_multiple:
            step = spec.tile_multiple
            tiles: Sequence[int] = range(min(SMALLEST, spec.tile) // step * step, max(LARGEST, spec.tile) + 1, step)
            choice = f"any multiple of {step}"
        else:
            tiles = sorted(spec.tiles)
            choice = ", ".join(map(str, tiles)) if len(tiles) > 1 else "only this one"
        overlaps = [self._overlap(spec, tile) for tile in tiles]
        memory = self.memory // max(1, min(self.batch, spec.max_batch))
        tile = choose_tile(tiles, overlaps, memory)
        whole = next((each for each in tiles if self.longest is not None and each >= self.longest), None)
        if whole is not None and whole <= tile:
            tile, why = whole, "it holds the largest scene whole"
        else:
            overlap = self._overlap(spec, tile)
            largest = None if self.overlap is not None or spec.object_sizes is None else spec.object_sizes[2]
            objects = "" if largest is None else f" for objects of up to {largest:.0f}"
            why = f"tiles share {overlap} pixels{objects}, which adds {added(tile, overlap):.0%} to the work"
        line = f"--tile auto: {tile} pixels (the model takes {choice}): {why}"
        if line != self._logged:  # a second backend may open the same model
            logger.info(line)
        self._logged = line
        return tile

    def _overlap(self, spec: ModelSpec, tile: int) -> int:
        return auto_overlap(spec, tile) if self.overlap is None else self.overlap


def auto_overlap(spec: ModelSpec, tile: int) -> int:
    """Return the overlap of a scan whose tile was chosen, where none is given: what the largest objects need."""
    return default_overlap(tile) if spec.object_sizes is None else fitting_overlap(spec.object_sizes[2], tile)


def fitting_overlap(largest: float, tile: int) -> int:
    """Return the smallest overlap at which some tile contains an object of `largest` pixels, clear of its edges.

    The overlap is rounded up to align tiles with the cells of the feature pyramid. It is at most half a tile; larger
    objects are left to the coarse pass.

    >>> fitting_overlap(40, 640), fitting_overlap(12, 640), fitting_overlap(400, 640)
    (64, 64, 320)
    """
    needed = math.ceil(largest + 3 * EDGE)
    aligned = tile - (tile - needed) // COARSEST_CELL * COARSEST_CELL
    return min(aligned if needed < tile else tile, max(tile // 2, 1))


def choose_tile(tiles: Sequence[int], overlaps: Sequence[int], memory: int | None = None) -> int:
    """Return the smallest tile whose overlap adds no more than `ADDED`; else the largest that fits in the memory.

    >>> tiles = range(64, 2049, 64)
    >>> choose_tile(tiles, [64] * 32), choose_tile(tiles, [20] * 32), choose_tile([640, 1024], [300, 300])
    (640, 192, 1024)

    Args:
        tiles: ascending.
        overlaps: the overlap of a scan with each of them.
        memory: free bytes for each tile of a batch; None: enough.
    """
    fitting = [tile for tile in tiles if memory is None or tile**2 * BYTES_PER_PIXEL <= MEMORY_SHARE * memory]
    fitting = fitting or [tiles[0]]
    cheap = (tile for tile, overlap in zip(fitting, overlaps, strict=False) if added(tile, overlap) <= ADDED)
    return next(cheap, fitting[-1])


def added(tile: int, overlap: int) -> float:
    """Return what an overlap adds to the pixels of a large scene, as a share of them.

    >>> round(added(640, 128), 4)
    0.5625
    """
    return math.inf if overlap >= tile else (tile / (tile - overlap)) ** 2 - 1
