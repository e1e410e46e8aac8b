"""A coarse pass for objects larger than the overlap: the scene once more, so small that they lie whole inside a tile.

Tiles that share 128 pixels show an object of 300 in parts wherever it lies across a seam. At a scale where the largest
objects are as large as the overlap, some tile sees each of them whole. Such a pass has few tiles (the square of its
scale), and what it finds enters the suppression of the full pass as known: see `stitch`.
"""

from __future__ import annotations

from dataclasses import dataclass

from tinydet.geometry.tiles import TileGrid
from tinydet.runtime.detections import Detections
from tinydet.runtime.stitch import EDGE
from tinydet.spec import ModelSpec


@dataclass(frozen=True)
class Coarse:
    """A pass at a smaller scale.

    Attributes:
        scale: resize factor of the scene in this pass.
        least: side in scene pixels; of this pass only objects larger than it count, the full pass sees the others.
    """

    scale: float
    least: float


@dataclass(frozen=True)
class CoarseChoice:
    """Whether a coarse pass is due, and in one sentence why not where objects larger than the overlap may come."""

    coarse: Coarse | None
    warning: str = ""


def plan_coarse(spec: ModelSpec, grid: TileGrid, *, overlap: int, scale: float = 1.0) -> CoarseChoice:
    """Choose the coarse pass for a model by the sizes that it learned.

    Args:
        grid: the tiles of the full pass.
        overlap: what tiles share, in pixels of the model.
        scale: of the full pass.
    """
    if len(grid) == 1 or spec.object_sizes is None:
        return CoarseChoice(None)
    smallest, _, largest = spec.object_sizes
    whole = overlap - 3 * EDGE
    if largest <= whole:
        return CoarseChoice(None)
    if whole < smallest:
        return CoarseChoice(
            None,
            f"objects of up to {largest:.0f} pixels are joined from parts where tiles meet: the overlap of {overlap} "
            f"leaves no room for a coarse pass; to see them whole: --overlap {int(largest + 3 * EDGE) + 1}",
        )
    return CoarseChoice(Coarse(scale * whole / largest, whole / scale))


def larger_than(detections: Detections, least: float) -> Detections:
    """Those with a side longer than `least` pixels."""
    sides = detections.boxes[:, 2:] - detections.boxes[:, :2]
    return detections[sides.max(axis=1, initial=0) > least]
