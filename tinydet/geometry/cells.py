"""Cells of a pyramid level, one axis at a time."""

from __future__ import annotations

from typing import Any, TypeVar

ArrayT = TypeVar("ArrayT", bound=Any)  # a numpy array or a torch tensor, of floats


def nearest_cell(center: ArrayT, first: Any, stride: Any, cells: Any) -> ArrayT:
    """Return the index of the cell whose center is nearest to `center`, as a float.

    Anchors of one shape differ only in their position. Their IoU with a box grows with the overlap, which is a product
    of one function of the column and one of the row, and each is largest at the cell nearest to the box's center. So
    one candidate per shape and level replaces a search over all cells.

    >>> import numpy as np
    >>> nearest_cell(np.array([-5.0, 7.9, 8.1, 99.0]), first=4, stride=8, cells=3)
    array([0., 0., 1., 2.])

    Args:
        center: coordinates in pixels, a numpy array or a torch tensor.
        first: center of the first cell, in pixels.
        stride: pixels between neighboring cells.
        cells: number of cells on the axis, at least 1.
    """
    nearest: ArrayT = ((center - first) / stride).round().clip(0, cells - 1)
    return nearest
