"""Pyramid levels and anchors: which boxes each level predicts from, and where they are placed. numpy only.

`AnchorSizes` lists the sizes and aspect ratios of each level; `AnchorSizes.design` places them. In the default layout
an anchor of `size` and `ratio` = h/w has width size / sqrt(ratio) and height size * sqrt(ratio), is not rounded, and is
centered on its cell. The layouts of torchvision and of the authors' code exist for parity: both round the
sides, and torchvision centers anchors on the corner of the cell.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

GridRule = Literal["ceil", "floor", "torchvision"]
Layout = Literal["tinydet", "torchvision", "released"]
Shape = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Pyramid:
    """The levels a detector predicts from, finest first.

    Attributes:
        levels: names such as P2.
        strides: pixels between neighboring cells, per level.
        unfused: number of coarsest levels outside the top-down path: 1 for P6, 2 for P6 and P7.
    """

    levels: tuple[str, ...] = ("P2", "P3", "P4", "P5", "P6")
    strides: tuple[int, ...] = (4, 8, 16, 32, 64)
    unfused: int = 1

    @property
    def edges(self) -> tuple[str, ...]:
        """Names of the fused edges, finest first, from the deeper level to the finer one: P3->P2, P4->P3, P5->P4."""
        fused = self.levels[: len(self.levels) - self.unfused]
        return tuple(f"{deeper}->{finer}" for finer, deeper in itertools.pairwise(fused))


class LevelGrid(NamedTuple):
    """Cells of one level; each field broadcasts like the image sizes that it was asked for."""

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    stride_y: NDArray[np.int64]
    stride_x: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class AnchorDesign(Pyramid):
    """The anchors of every level, finest first.

    Attributes:
        shapes: (width, height) in pixels of each anchor of a cell, per level.
        offset: center of the first cell, in strides from the corner of the image.
        grid: how many cells a level has. "ceil": cells cover the image, like feature maps of padded convolutions.
            "floor": as the authors' code counts them. "torchvision": the image is first padded to a multiple of 32;
            where that is not a multiple of a stride, the stride becomes padded // cells (480 pixels have 8 cells of
            P6, 60 pixels apart).
        inclusive: the last pixel belongs to a box, which is x2 - x1 + 1 wide, as in the authors' code.

    Raises:
        ValueError: levels, strides and shapes do not agree or are not positive.
    """

    shapes: tuple[tuple[Shape, ...], ...]
    offset: float = 0.5
    grid: GridRule = "ceil"
    inclusive: bool = False

    def __post_init__(self) -> None:
        if not len(self.levels) == len(self.strides) == len(self.shapes) > 0:
            raise ValueError(
                f"an anchor design needs one stride and one set of shapes for each level, but has {len(self.levels)} "
                f"levels, {len(self.strides)} strides and {len(self.shapes)} sets of shapes"
            )
        for level, stride, shapes in zip(self.levels, self.strides, self.shapes, strict=True):
            if stride < 1 or not shapes or any(not (0 < side < math.inf) for shape in shapes for side in shape):
                raise ValueError(f"level {level}: stride and anchor sides must be positive, got {stride} and {shapes}")

    @classmethod
    def from_sizes(
        cls,
        sizes: Sequence[Sequence[float]],
        ratios: Sequence[float],
        levels: tuple[str, ...] = ("P2", "P3", "P4", "P5", "P6"),
        strides: tuple[int, ...] = (4, 8, 16, 32, 64),
        unfused: int = 1,
    ) -> AnchorDesign:
        """Build unrounded, centered anchors of `sizes` (per level) times `ratios` (h/w); the ratios vary fastest."""
        shapes = tuple(
            tuple((size / math.sqrt(ratio), size * math.sqrt(ratio)) for size in of_level for ratio in ratios)
            for of_level in sizes
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
        """Build a design from the anchors of the first cell of every level: xyxy in image pixels, as other code has
        them.

        Raises:
            ValueError: the anchors do not share one center, in strides.
        """
        if len(cells) != len(strides):
            raise ValueError(
                f"each level needs its anchors and its stride, got {len(cells)} and {len(strides)} of them"
            )
        corners = [np.asarray(of_level, np.float64).reshape(-1, 4) for of_level in cells]
        last = 1.0 if inclusive else 0.0
        centers = [(c[:, :2] + c[:, 2:] + last) / 2 / stride for c, stride in zip(corners, strides, strict=True)]
        offset = round(float(np.concatenate(centers).mean()), 6)
        if not all(np.allclose(center, offset, atol=1e-5) for center in centers):
            raise ValueError(
                f"all anchors of a design must share one center; in strides from the corner, these have {centers}"
            )
        shapes = tuple(tuple((float(x2 - x1 + last), float(y2 - y1 + last)) for x1, y1, x2, y2 in c) for c in corners)
        return cls(shapes=shapes, levels=levels, strides=strides, offset=offset, grid=grid, inclusive=inclusive)

    def cell_anchors(self, level: int) -> NDArray[np.float64]:
        """Anchors of one cell of level number `level` (0 is the finest): (A, 4), xyxy about the cell's center."""
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


@dataclass(frozen=True, kw_only=True)
class AnchorSizes(Pyramid):
    """Anchor sizes and aspect ratios, before they are placed on a grid.

    Attributes:
        sizes: sqrt(width * height) in pixels of the anchors of each level.
        ratios: height / width, shared by all levels.
    """

    sizes: tuple[tuple[float, ...], ...]
    ratios: tuple[float, ...]

    def design(self, layout: Layout = "tinydet") -> AnchorDesign:
        """Place the anchors.

        Args:
            layout: "tinydet": unrounded and centered; ratios vary fastest. "torchvision": as its AnchorGenerator does,
                corners rounded to whole pixels (8 pixels at ratio 0.5 become 12 x 6), centered on the corner of the
                cell. "released": as the paper's authors do, a box of the size of a cell gets each ratio, is rounded to
                whole pixels, then scaled. In the last two the ratios vary slowest.
        """
        place = {"tinydet": self._centered, "torchvision": self._torchvision, "released": self._released}
        if layout not in place:
            raise ValueError(f"unknown anchor layout {layout!r}; choose one of: {', '.join(place)}")
        return place[layout]()

    def _centered(self) -> AnchorDesign:
        return AnchorDesign.from_sizes(self.sizes, self.ratios, self.levels, self.strides, self.unfused)

    def _torchvision(self) -> AnchorDesign:
        heights = np.sqrt(np.asarray(self.ratios, np.float32))[:, None]
        shapes = []
        for sizes in self.sizes:
            scales = np.asarray(sizes, np.float32)[None, :]
            half_w, half_h = np.round(1 / heights * scales / 2).ravel(), np.round(heights * scales / 2).ravel()
            shapes.append(tuple((2 * float(w), 2 * float(h)) for w, h in zip(half_w, half_h, strict=True)))
        return AnchorDesign(
            shapes=tuple(shapes),
            levels=self.levels,
            strides=self.strides,
            unfused=self.unfused,
            offset=0.0,
            grid="torchvision",
        )

    def _released(self) -> AnchorDesign:
        shapes = []
        for sizes, stride in zip(self.sizes, self.strides, strict=True):
            widths = [round(stride / math.sqrt(ratio)) for ratio in self.ratios]
            units = [(width, round(width * ratio)) for width, ratio in zip(widths, self.ratios, strict=True)]
            shapes.append(tuple((w * size / stride, h * size / stride) for w, h in units for size in sizes))
        return AnchorDesign(
            shapes=tuple(shapes),
            levels=self.levels,
            strides=self.strides,
            unfused=self.unfused,
            grid="floor",
            inclusive=True,
        )


def octaves(base: float) -> tuple[float, float, float]:
    """Three sizes per octave, starting at `base` pixels, as in RetinaNet."""
    return base, base * 2 ** (1 / 3), base * 2 ** (2 / 3)
