"""Boxes and sizes of the images that a network receives: what counting needs of a dataset, checked once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tinydet.geometry.anchors import AnchorDesign


class Inputs(NamedTuple):
    """I network inputs (images or tiles) with M boxes."""

    boxes: NDArray[np.float64]  # (M, 4) xyxy in pixels of the input
    sizes: NDArray[np.int64]  # (I, 2) width and height of every input
    image_index: NDArray[np.int64]  # (M,) input of each box


def check_inputs(boxes: ArrayLike, sizes: ArrayLike, image_index: ArrayLike | None, design: AnchorDesign) -> Inputs:
    """Return arrays of the documented shapes, with boxes rounded to float32 as a network sees them.

    Args:
        boxes: (M, 4) xyxy in pixels of the network's input.
        sizes: (I, 2) width and height of every input, or (2,) for one input.
        image_index: (M,) index into `sizes` for each box; None for one input.

    Raises:
        ValueError: for arrays of other shapes, invalid boxes, or an input that is too small for any anchor.
    """
    rows = np.asarray(boxes, np.float32).astype(np.float64)
    if rows.size == 0:
        rows = rows.reshape(0, 4)
    if rows.ndim != 2 or rows.shape[1] != 4:
        raise ValueError(f"boxes must be (M, 4) xyxy, got an array of shape {rows.shape}")
    if not np.isfinite(rows).all() or (rows[:, 2:] < rows[:, :2]).any():
        raise ValueError("boxes must be finite xyxy with x2 >= x1 and y2 >= y1; correct or remove the others")
    size = np.asarray(sizes, np.int64).reshape(-1, 2)
    if image_index is None:
        if len(size) != 1:
            raise ValueError(f"{len(size)} image sizes need an image_index that assigns each box to an image")
        image_index = np.zeros(len(rows), np.int64)
    index = np.asarray(image_index, np.int64)
    if index.shape != (len(rows),) or (len(index) and not 0 <= index.min() <= index.max() < len(size)):
        raise ValueError(f"image_index must give each of {len(rows)} boxes one of {len(size)} images")
    cells = np.zeros(len(size), np.int64)
    for level in range(len(design.levels)):
        grid = design.level_grid(size[:, 1], size[:, 0], level)
        cells += grid.rows * grid.columns
    if (cells <= 0).any():
        width, height = size[cells.argmin()]
        raise ValueError(
            f"an image of {width}x{height} pixels has no anchor on strides {design.strides}; remove or enlarge it"
        )
    return Inputs(rows, size, index)
