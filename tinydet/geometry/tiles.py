"""Cover an image with the fewest tiles of one size that overlap by a given number of pixels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

COARSEST_CELL = 64  # stride of P6, in pixels
MOST_TILES = 10_000_000  # of one run: days of work, and gigabytes for the list of tiles
MORE_TILES = "raise the limit with --max-tiles"


def check_tile_count(count: int, limit: int = MOST_TILES, *, what: str, remedy: str = "") -> None:
    """Check the number of tiles before they are listed and processed.

    Args:
        what: what is cut into tiles.
        remedy: how to raise the limit, if that is possible.

    Raises:
        ValueError: there are more than `limit`.
    """
    if count > limit:
        ways = "take larger tiles, a smaller overlap or a smaller scale" + (f", or {remedy}" if remedy else "")
        raise ValueError(f"{what}: {count:,} tiles, more than {limit:,}; {ways}")


@dataclass(frozen=True, slots=True)
class Tile:
    """A rectangle of an image, in its pixels. `index` counts row by row."""

    index: int
    row: int
    column: int
    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class TileGrid:
    """Tiles over an image of `width` x `height` pixels.

    An object no larger than `overlap` lies whole inside at least one tile. No grid of fewer tiles has this property.

    All tiles have the same size: `tile` pixels, or the size of the image where it is smaller. They are spaced about
    evenly, so adjacent tiles share `overlap` pixels or more. If `tile - overlap` is a multiple of 64, so are the edges
    of all tiles except the last of a row or column.
    """

    width: int
    height: int
    tile: int
    overlap: int

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise ValueError(f"expected an image of at least 1x1 pixels, got {self.width}x{self.height}")
        if not 0 <= self.overlap < self.tile:
            raise ValueError(
                f"the overlap must be at least 0 and smaller than the tile of {self.tile}, got {self.overlap}"
            )

    @cached_property
    def xs(self) -> tuple[int, ...]:
        """Left edge of each column."""
        return _starts(self.width, self.tile, self.overlap)

    @cached_property
    def ys(self) -> tuple[int, ...]:
        """Upper edge of each row."""
        return _starts(self.height, self.tile, self.overlap)

    @cached_property
    def columns(self) -> int:
        return _steps(self.width, self.tile, self.overlap) + 1

    @cached_property
    def rows(self) -> int:
        return _steps(self.height, self.tile, self.overlap) + 1

    @cached_property
    def tile_width(self) -> int:
        return min(self.tile, self.width)

    @cached_property
    def tile_height(self) -> int:
        return min(self.tile, self.height)

    @cached_property
    def tiles(self) -> tuple[Tile, ...]:
        """All tiles, row by row, from left to right."""
        return tuple(self.at(row, column) for row in range(self.rows) for column in range(self.columns))

    def at(self, row: int, column: int) -> Tile:
        """Return one tile."""
        index = row * self.columns + column
        return Tile(index, row, column, self.xs[column], self.ys[row], self.tile_width, self.tile_height)

    def __len__(self) -> int:
        return self.rows * self.columns

    def bounds(self, indices: NDArray[np.integer[Any]]) -> NDArray[np.float64]:
        """Return the corners of the tiles with these indices, (N, 4) xyxy."""
        x = np.asarray(self.xs, np.float64)[indices % self.columns]
        y = np.asarray(self.ys, np.float64)[indices // self.columns]
        corners: NDArray[np.float64] = np.stack([x, y, x + self.tile_width, y + self.tile_height], axis=1)
        return corners


def _steps(length: int, tile: int, overlap: int) -> int:
    """Return the number of tiles after the first one in a row or column."""
    return -(-max(length - tile, 0) // (tile - overlap))


def _starts(length: int, tile: int, overlap: int) -> tuple[int, ...]:
    """Space tiles evenly, then move them left to multiples of `align` as far as the overlap to their right allows."""
    if length <= tile:
        return (0,)
    last, stride, steps = length - tile, tile - overlap, _steps(length, tile, overlap)
    # An object then falls on the same cells of the feature pyramid in all its tiles, and gets the same box.
    align = math.gcd(stride, COARSEST_CELL)
    starts = [max(i * last // steps // align, -((last - (steps - i) * stride) // -align)) * align for i in range(steps)]
    return (*starts, last)
