"""Plan a scan: how often a scene is cut into tiles, and how. The plan is made once and passed on."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Protocol

from tinydet._internal.arguments import SCALES
from tinydet.geometry.tiles import MORE_TILES, TileGrid, check_tile_count
from tinydet.runtime.coarse import choose_coarse_pass
from tinydet.runtime.options import ScanOptions
from tinydet.runtime.score_calibration import score_thresholds
from tinydet.spec import ModelSpec

OVERLAP = 128  # pixels of the model's input; the default overlap of tiles that are at least twice as large


class Sized(Protocol):
    """Anything with the size of a scene: a scene, a video."""

    @property
    def width(self) -> int: ...

    @property
    def height(self) -> int: ...


@dataclass(frozen=True)
class Tiling:
    """How a scene is cut into tiles for a model.

    Attributes:
        grid: the tiles, in scene pixels.
        tile: side of the model's input.
        scale: model pixels per scene pixel. Tiles lie on whole scene pixels, so a scale near 1 may differ from the
            requested one in the third digit.
    """

    grid: TileGrid
    tile: int
    scale: float

    @property
    def content_size(self) -> tuple[int, int]:
        """(width, height) of a tile's content in the model's input; smaller than the input if the scene is."""
        return max(1, round(self.grid.tile_width * self.scale)), max(1, round(self.grid.tile_height * self.scale))


@dataclass(frozen=True)
class ScanPlan:
    """The passes over a scene, and the options that they follow from.

    Attributes:
        options: with the overlap filled in.
        full: the tiles at the requested scale.
        coarse: the tiles of a first pass at a smaller scale; None if there is no such pass.
        min_side: detections of the coarse pass count only if a side is longer than this, in scene pixels.
        warning: one sentence if the scene needs a coarse pass but the overlap is too small for one; else empty.
    """

    options: ScanOptions
    full: Tiling
    coarse: Tiling | None = None
    min_side: float = 0.0
    warning: str = ""

    @property
    def passes(self) -> tuple[Tiling, ...]:
        """All passes in the order in which they run: coarse, then full."""
        return (self.full,) if self.coarse is None else (self.coarse, self.full)

    @property
    def overlap(self) -> int:
        """Pixels that tiles share, as the model sees them."""
        assert self.options.overlap is not None  # `plan_scan` fills it in
        return self.options.overlap

    @property
    def tiles(self) -> int:
        """Number of tiles in all passes."""
        return sum(len(tiling.grid) for tiling in self.passes)

    @property
    def batches(self) -> int:
        """Number of batches in all passes, which share them."""
        return -(-self.tiles // self.options.batch)


def plan_scan(scene: Sized, spec: ModelSpec, options: ScanOptions) -> ScanPlan:
    """Plan the passes of a model over a scene.

    Raises:
        ValueError: the overlap or the scale does not fit the model's tile, there are more than `max_tiles` tiles, or
            the model has no thresholds for the score "auto".
    """
    score_thresholds(spec, options.score)  # refuses "auto" before the model runs
    overlap = default_overlap(spec.tile) if options.overlap is None else options.overlap
    full = plan_tiles(scene.width, scene.height, tile=spec.tile, overlap=overlap, scale=options.scale)
    options = dataclasses.replace(options, overlap=overlap)
    coarse, warning = options.coarse, ""
    if coarse == "auto":
        choice = choose_coarse_pass(spec, full.grid, overlap=overlap, scale=options.scale)
        coarse, warning = choice.coarse, choice.warning
    if coarse is None:
        plan = ScanPlan(options, full, warning=warning)
    else:
        first = plan_tiles(scene.width, scene.height, tile=spec.tile, overlap=overlap, scale=coarse.scale)
        plan = ScanPlan(options, full, first, coarse.min_side)
    what = f"{scene.width}x{scene.height} pixels at scale {options.scale:g}"
    check_tile_count(plan.tiles, options.max_tiles, what=what, remedy=MORE_TILES)
    return plan


def default_overlap(tile: int) -> int:
    """Return the default overlap of tiles of this side: at most half of it.

    >>> default_overlap(640), default_overlap(128)
    (128, 64)
    """
    return min(OVERLAP, tile // 2)


def plan_tiles(width: int, height: int, *, tile: int, overlap: int = OVERLAP, scale: float = 1.0) -> Tiling:
    """Cut a scene of `width` x `height` pixels into tiles that a model of `tile` pixels sees at `scale`.

    Args:
        overlap: pixels that adjacent tiles share at least, in the rescaled scene.
        scale: resize factor of the scene; 0.5 halves it.

    Raises:
        ValueError: the overlap or the scale does not fit the tile.
    """
    if not SCALES[0] <= scale <= SCALES[1]:
        raise ValueError(f"the scale is an image resize factor from {SCALES[0]:g} to {SCALES[1]:g}, got {scale}")
    if round(tile / scale) < 1:
        raise ValueError(f"tiles of {tile} pixels are less than one pixel of the scene at the scale {scale}")
    if not 0 <= overlap < tile:
        raise ValueError(
            f"the overlap must be at least 0 and smaller than the tile of {tile}, got {overlap}; "
            "use a quarter of the tile, or the size of the largest object"
        )
    side = round(tile / scale)
    return Tiling(TileGrid(width, height, side, min(math.ceil(overlap / scale), side - 1)), tile, tile / side)
