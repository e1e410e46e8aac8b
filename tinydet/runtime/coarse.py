"""The coarse pass: scan the scene once more at a smaller scale, for objects larger than the overlap.

Tiles that share 128 pixels show only parts of a 300-pixel object wherever it crosses a seam. At a scale at which the
largest objects are as large as the overlap, some tile contains each of them whole. The pass takes half of the scale of
the full pass even if a larger scale would do, because the number of its tiles falls with the square of the scale: for
objects slightly larger than the overlap, a pass at nearly full scale would double the cost. Its detections take part in
the suppression of the full pass; see `stitch`.
"""

from __future__ import annotations

from dataclasses import dataclass

from tinydet.geometry.tiles import TileGrid
from tinydet.runtime.detections import Detections
from tinydet.runtime.stitch import EDGE
from tinydet.spec import ModelSpec

MOST_SCALE = 0.5  # of a coarse pass, relative to the full one


@dataclass(frozen=True)
class CoarsePass:
    """A pass at a smaller scale.

    Attributes:
        scale: resize factor of the scene in this pass.
        min_side: in scene pixels. Only objects with a longer side count; smaller ones are left to the full pass.
    """

    scale: float
    min_side: float


@dataclass(frozen=True)
class CoarseChoice:
    """The coarse pass for a scene, if it needs one.

    Attributes:
        coarse: None if there is no coarse pass.
        warning: one sentence if the scene needs a coarse pass but the overlap is too small for one; else empty.
    """

    coarse: CoarsePass | None
    warning: str = ""


def choose_coarse_pass(spec: ModelSpec, grid: TileGrid, *, overlap: int, scale: float = 1.0) -> CoarseChoice:
    """Choose the coarse pass by the object sizes that the model was trained on.

    Args:
        grid: tiles of the full pass.
        overlap: of the tiles, in pixels of the model's input.
        scale: of the full pass.
    """
    if len(grid) == 1 or spec.object_sizes is None:
        return CoarseChoice(None)
    smallest, _, largest = spec.object_sizes
    room = overlap - 3 * EDGE  # objects up to this size lie whole, and off the edges, inside some tile
    if largest <= room:
        return CoarseChoice(None)
    if room < smallest:
        return CoarseChoice(
            None,
            f"objects of up to {largest:.0f} pixels are joined from parts where tiles meet, because the overlap of "
            f"{overlap} leaves no room for a coarse pass; to see them whole: --overlap {int(largest + 3 * EDGE) + 1}",
        )
    # Its objects, larger than `room`, must not look smaller than those that the model has learned.
    reduction = min(room / largest, max(MOST_SCALE, smallest / room))
    return CoarseChoice(CoarsePass(scale * reduction, room / scale))


def larger_than(detections: Detections, side: float) -> Detections:
    """Select detections with a side longer than `side` pixels."""
    sides = detections.boxes[:, 2:] - detections.boxes[:, :2]
    return detections[sides.max(axis=1, initial=0) > side]
