"""Anchor designs: which boxes each pyramid level predicts from, and where they lie.

An anchor of `size` and `ratio` = h/w has width size / sqrt(ratio) and height size * sqrt(ratio), is not rounded, and
sits on the centre of its cell. `torchvision_design` and `released_design` are the same sizes and ratios as torchvision
and the paper's authors lay them out: rounded, and in torchvision off the cell's centre. They exist for parity.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

GridRule = Literal["ceil", "floor", "torchvision"]
Shape = tuple[float, float]


class LevelGrid(NamedTuple):
    """Cells of one level; each field broadcasts like the image sizes that it was asked for."""

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    stride_y: NDArray[np.int64]
    stride_x: NDArray[np.int64]


@dataclass(frozen=True)
class AnchorDesign:
    """The anchors of every level, finest first.

    Attributes:
        shapes: (width, height) in pixels of each anchor of a cell, for each level.
        levels: names, for people and files.
        strides: pixels between neighbouring cells, for each level.
        offset: centre of the first cell, in strides from the image's corner.
        grid: "ceil": cells cover the image, as feature maps of padded convolutions do. "floor": as the authors' code
            counts them. "torchvision": the image is padded to a multiple of 32 first, and where that is no multiple of
            a stride, the stride becomes padded // cells (480 pixels have 8 cells of P6, 60 pixels apart).
        inclusive: the last pixel belongs to a box, which is x2 - x1 + 1 wide, as in the authors' code.
        unfused: how many of the coarsest levels are no part of the top-down path: P6, or P6 and P7.

    Raises:
        ValueError: where levels, strides and shapes do not agree or are not positive.
    """

    shapes: tuple[tuple[Shape, ...], ...]
    levels: tuple[str, ...] = ("P2", "P3", "P4", "P5", "P6")
    strides: tuple[int, ...] = (4, 8, 16, 32, 64)
    offset: float = 0.5
    grid: GridRule = "ceil"
    inclusive: bool = False
    unfused: int = 1

    def __post_init__(self) -> None:
        if not len(self.levels) == len(self.strides) == len(self.shapes) > 0:
            raise ValueError(
                f"an anchor design needs one stride and one set of shapes for each level, but has {len(self.levels)} "
                f"levels, {len(self.strides)} strides and {len(self.shapes)} sets of shapes"
            )
        for level, stride, shapes in zip(self.levels, self.strides, self.shapes, strict=True):
            if stride < 1 or not shapes or any(not (0 < side < math.inf) for shape in shapes for side in shape):
                raise ValueError(f"level {level}: stride and anchor sides must be positive, got {stride} and {shapes}")

    @property
    def edges(self) -> tuple[str, ...]:
        """Names of the fused edges, from the deeper level to the finer one: P3->P2, P4->P3, P5->P4."""
        fused = self.levels[: len(self.levels) - self.unfused]
        return tuple(f"{deeper}->{finer}" for finer, deeper in itertools.pairwise(fused))

    @classmethod
    def from_sizes(
        cls,
        sizes: Sequence[Sequence[float]],
        ratios: Sequence[float],
        levels: tuple[str, ...] = ("P2", "P3", "P4", "P5", "P6"),
        strides: tuple[int, ...] = (4, 8, 16, 32, 64),
        unfused: int = 1,
    ) -> AnchorDesign:
        """Unrounded, centred anchors of `sizes` (for each level) times `ratios` (h/w); the ratios vary fastest."""
        shapes = tuple(
            tuple((s / math.sqrt(r), s * math.sqrt(r)) for s in of_level for r in ratios) for of_level in sizes
        )
        return cls(shapes=shapes, levels=levels, strides=strides, unfused=unfused)

    @classmethod
    def from_cells(
        cls,
        cells: Sequence[Sequence[Sequence[float]]],
        strides: tuple[int, ...] = (4, 8, 16, 32, 64),
        levels: tuple[str, ...] = ("P2", "P3", "P4", "P5", "P6"),
        *,
        grid: GridRule = "ceil",
        inclusive: bool = False,
    ) -> AnchorDesign:
        """The anchors of the first cell of every level, given as xyxy in image pixels, as other code bases hold them.

        Raises:
            ValueError: where the anchors do not share one centre, in strides.
        """
        if len(cells) != len(strides):
            raise ValueError(
                f"each level needs its anchors and its stride, got {len(cells)} and {len(strides)} of them"
            )
        corners = [np.asarray(of_level, np.float64).reshape(-1, 4) for of_level in cells]
        last = 1.0 if inclusive else 0.0
        centres = [(c[:, :2] + c[:, 2:] + last) / 2 / stride for c, stride in zip(corners, strides, strict=True)]
        offset = round(float(np.concatenate(centres).mean()), 6)
        if not all(np.allclose(centre, offset, atol=1e-5) for centre in centres):
            raise ValueError(
                f"all anchors of a design must share one centre; in strides from the corner, these have {centres}"
            )
        shapes = tuple(tuple((float(x2 - x1 + last), float(y2 - y1 + last)) for x1, y1, x2, y2 in c) for c in corners)
        return cls(shapes=shapes, levels=levels, strides=strides, offset=offset, grid=grid, inclusive=inclusive)

    def cell_anchors(self, level: int) -> NDArray[np.float64]:
        """Anchors of one cell of level number `level` (0 is the finest): (A, 4), xyxy about the cell's centre."""
        half = np.asarray(self.shapes[level], np.float64) / 2
        return np.concatenate([-half, half - self.inclusive], axis=1)

    def first_cell(self, level: int) -> NDArray[np.float32]:
        """Anchors of the first cell of a level: (A, 4), xyxy in image pixels. Other cells are strides away from it."""
        return (self.cell_anchors(level) + self.offset * self.strides[level]).astype(np.float32)

    def level_grid(self, height: int | NDArray[np.int64], width: int | NDArray[np.int64], level: int) -> LevelGrid:
        """Cells of one level for one image size or for arrays of them."""
        rows, stride_y = self._cells(height, level)
        columns, stride_x = self._cells(width, level)
        return LevelGrid(rows, columns, stride_y, stride_x)

    def grid_anchors(self, height: int, width: int) -> tuple[NDArray[np.float32], ...]:
        """Anchors of every level for one input size, not clipped to it.

        Returns:
            For each level, finest first, (rows * columns * A, 4), xyxy in input pixels. Rows vary slowest and the
            anchors of a cell fastest, which is the order of the flattened head outputs.
        """
        return tuple(self._anchors(height, width, level) for level in range(len(self.levels)))

    def _anchors(self, height: int, width: int, level: int) -> NDArray[np.float32]:
        rows, columns, stride_y, stride_x = self.level_grid(height, width, level)
        shift = np.empty((int(rows), int(columns), 1, 4), np.float32)
        shift[..., 0::2] = (np.arange(int(columns)) * stride_x)[None, :, None, None]
        shift[..., 1::2] = (np.arange(int(rows)) * stride_y)[:, None, None, None]
        return (shift + self.first_cell(level)).reshape(-1, 4)

    def _cells(self, side: int | NDArray[np.int64], level: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        sides, stride = np.asarray(side, np.int64), self.strides[level]
        if self.grid == "floor":
            return sides // stride, np.full_like(sides, stride)
        if self.grid == "ceil":
            return -(-sides // stride), np.full_like(sides, stride)
        padded = -(-sides // 32) * 32
        cells = -(-padded // stride)
        return cells, padded // cells


_OCTAVES = tuple(2 ** (k / 3) for k in range(3))
_RETINANET_SIZES = tuple(tuple(base * octave for octave in _OCTAVES) for base in (8, 16, 32, 64, 128))
_SIZES = {
    "retinanet": _RETINANET_SIZES,
    "retinanet-p3p7": _RETINANET_SIZES,
    "faster_rcnn": ((8.31,), (12.5,), (18.55,), (30.23,), (60.41,)),
}
_RATIOS = {"retinanet": (0.5, 1.0, 2.0), "retinanet-p3p7": (0.5, 1.0, 2.0), "faster_rcnn": (0.5, 1.3, 2.0)}
_P3P7 = {"levels": ("P3", "P4", "P5", "P6", "P7"), "strides": (8, 16, 32, 64, 128), "unfused": 2}
_PLACES: dict[str, dict[str, Any]] = {"retinanet": {}, "retinanet-p3p7": _P3P7, "faster_rcnn": {}}

RETINANET, RETINANET_P3P7, FASTER_RCNN = (
    AnchorDesign.from_sizes(_SIZES[name], _RATIOS[name], **_PLACES[name]) for name in _SIZES
)
DESIGNS = {"retinanet": RETINANET, "retinanet-p3p7": RETINANET_P3P7, "faster_rcnn": FASTER_RCNN}


def torchvision_design(detector: str) -> AnchorDesign:
    """The sizes and ratios of a detector as torchvision's AnchorGenerator lays them out.

    Corners are rounded to whole pixels (8 pixels at ratio 0.5 become 12 x 6), centres lie on the cell's corner, the
    ratios vary slowest.
    """
    heights = np.sqrt(np.asarray(_RATIOS[_known(detector)], np.float32))[:, None]
    shapes = []
    for sizes in _SIZES[detector]:
        scales = np.asarray(sizes, np.float32)[None, :]
        half_w, half_h = np.round(1 / heights * scales / 2).ravel(), np.round(heights * scales / 2).ravel()
        shapes.append(tuple((2 * float(w), 2 * float(h)) for w, h in zip(half_w, half_h, strict=True)))
    return AnchorDesign(shapes=tuple(shapes), offset=0.0, grid="torchvision", **_PLACES[detector])


def released_design(detector: str) -> AnchorDesign:
    """The sizes and ratios of a detector as the code that the paper's authors released lays them out.

    A box of one cell's size gets each ratio, its sides rounded to whole pixels, and is then scaled. The ratios vary
    slowest.
    """
    ratios = _RATIOS[_known(detector)]
    strides = DESIGNS[detector].strides
    shapes = []
    for sizes, stride in zip(_SIZES[detector], strides, strict=True):
        widths = [round(stride / math.sqrt(ratio)) for ratio in ratios]
        units = [(width, round(width * ratio)) for width, ratio in zip(widths, ratios, strict=True)]
        shapes.append(tuple((w * size / stride, h * size / stride) for w, h in units for size in sizes))
    return AnchorDesign(shapes=tuple(shapes), grid="floor", inclusive=True, **_PLACES[detector])


def _known(detector: str) -> str:
    if detector not in _SIZES:
        raise ValueError(f"unknown detector {detector!r}; anchors are known for {', '.join(_SIZES)}")
    return detector
