"""Bit-exact parity with the dense computation and with the authors' code.

`best_anchors` returns the arg-max of torchvision's `box_iou`, which is float32, over all anchors. The closed form of
`tinydet.salpha.counting` finds the same IoU up to rounding, but not always the same anchor: a box inside an anchor (or
around it) has the same IoU with that anchor in several cells, and then rounding or the lowest index decides. So every
anchor whose IoU is within a rounding tolerance of the best is evaluated in float32, in the order of operations of
`box_iou`.

`count_distinct_anchors` and `released_clipping` are the rules of the authors' code where they differ from the paper.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tinydet.geometry.anchors import AnchorDesign, LevelGrid
from tinydet.geometry.boxes import iou_by_coordinates
from tinydet.geometry.cells import nearest_cell
from tinydet.geometry.ranked import count_distinct, ranked_anchors
from tinydet.salpha.inputs import Inputs, check_inputs


class BestAnchors(NamedTuple):
    """The anchor of highest IoU for each of M objects.

    Attributes:
        level: (M,) index of its level, 0 is the finest.
        iou: (M,) float32; 0 if no anchor overlaps the object, which is then assigned to the first anchor.
        anchor: (M,) index into the concatenated `grid_anchors` of the object's image.
    """

    level: NDArray[np.int64]
    iou: NDArray[np.float32]
    anchor: NDArray[np.int64]


def best_anchors(
    boxes: ArrayLike, sizes: ArrayLike, design: AnchorDesign, *, image_index: ArrayLike | None = None
) -> BestAnchors:
    """Return the best anchor of every object over all anchors of all levels; on ties the one of lowest index.

    The result equals, bit for bit, the arg-max of torchvision's `box_iou(boxes, torch.cat(anchors))` over
    `design.grid_anchors`. Arguments and errors are those of `tinydet.salpha.counting.count_levels`.
    """
    inputs = check_inputs(boxes, sizes, image_index, design)
    levels, ious, anchors = [np.empty(0, np.int64)], [np.empty(0, np.float32)], [np.empty(0, np.int64)]
    for chunk in _chunks(inputs, design):
        iou, anchor = _best_of_chunk(chunk)
        levels.append(np.asarray((anchor >= chunk.first_anchor[1:-1]).sum(axis=0), np.int64))
        ious.append(iou)
        anchors.append(anchor)
    return BestAnchors(np.concatenate(levels), np.concatenate(ious), np.concatenate(anchors))


def count_distinct_anchors(
    boxes: ArrayLike,
    sizes: ArrayLike,
    design: AnchorDesign,
    *,
    image_index: ArrayLike | None = None,
    similarity: str = "iou",
) -> tuple[int, ...]:
    """Count the anchors of each level that are the best of at least one object, as the authors' code does.

    An anchor counts once per image, however many objects share it. Arguments and errors are those of
    `tinydet.salpha.counting.count_levels`.
    """
    inputs = check_inputs(boxes, sizes, image_index, design)
    if similarity == "iou":
        level, _, anchor = best_anchors(boxes, sizes, design, image_index=image_index)
    else:
        found = ranked_anchors(design, *inputs, 1, similarity)
        level, anchor = found.level[:, 0], found.anchor[:, 0]
    return count_distinct(level, anchor, inputs.image_index, len(design.levels))


def released_clipping(
    boxes: NDArray[np.float64], sizes: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Clip boxes as the data loader of the authors' code does: the last pixel belongs to the box.

    Args:
        boxes: (M, 4) xyxy with x2 = x + w.
        sizes: (M, 2) width and height of each box's image.

    Returns:
        (M, 4) xyxy with x2 = x + max(w - 1, 0), at most width - 1, and (M,) True where x2 > x1 and y2 > y1; the
        authors' code drops the other boxes.
    """
    low, high = boxes[:, :2], boxes[:, 2:]
    high = low + np.maximum(high - low - 1, 0)
    clipped = np.concatenate([np.clip(low, 0, sizes - 1), np.clip(high, 0, sizes - 1)], axis=1)
    return clipped, np.asarray((clipped[:, 2:] > clipped[:, :2]).all(axis=1), bool)


def rounding_tolerance(inputs: Inputs, design: AnchorDesign) -> float:
    """Upper bound of `_tolerance`: exact IoUs that differ by more than this have the same order in float32."""
    inverse_sides = max(1 / width + 1 / height for shapes in design.shapes for width, height in shapes)
    return _IN_SPACINGS * _spacing(inputs, design) * inverse_sides + _RELATIVE


_IN_SPACINGS, _RELATIVE = 16, 8e-6  # see _tolerance
_CHUNK = 4096  # Boxes at a time: float32 arrays of (anchors of a cell, boxes) stay in a core's cache.
_MAX_TRIALS = 1 << 20  # Pairs evaluated at a time, which bounds the memory; only a single box may need more.


@dataclass(frozen=True)
class _Chunk:
    """m boxes with the anchor grids of their images."""

    boxes: NDArray[np.float32]  # (4, m): x1, y1, x2, y2
    grids: tuple[LevelGrid, ...]  # per level, of (m,) arrays
    first_anchor: NDArray[np.int64]  # (L + 1, m) index of each level's first anchor; the last row is their number
    cells: tuple[NDArray[np.float32], ...]  # per level (A, 4), the anchors of its first cell
    spacing: float  # of float32 numbers at the largest coordinate
    inclusive: bool  # the last pixel belongs to a box

    def take(self, which: NDArray[np.int64]) -> _Chunk:
        grids = tuple(LevelGrid(*(field[which] for field in grid)) for grid in self.grids)
        return replace(self, boxes=self.boxes[:, which], grids=grids, first_anchor=self.first_anchor[:, which])


def _chunks(inputs: Inputs, design: AnchorDesign) -> Iterator[_Chunk]:
    cells = tuple(design.first_cell(level) for level in range(len(design.levels)))
    spacing = _spacing(inputs, design)
    for start in range(0, len(inputs.boxes), _CHUNK):
        boxes = inputs.boxes[start : start + _CHUNK]
        width, height = inputs.sizes[inputs.image_index[start : start + _CHUNK]].T
        grids = tuple(design.level_grid(height, width, level) for level in range(len(design.levels)))
        anchors = [grid.rows * grid.columns * len(shapes) for grid, shapes in zip(grids, design.shapes, strict=True)]
        first_anchor = np.concatenate([np.zeros((1, len(boxes)), np.int64), np.cumsum(anchors, axis=0)])
        columns = np.ascontiguousarray(boxes.T, np.float32)
        yield _Chunk(columns, grids, first_anchor, cells, spacing, design.inclusive)


def _spacing(inputs: Inputs, design: AnchorDesign) -> float:
    """Distance between neighboring float32 numbers at the largest coordinate of any box or anchor."""
    longest = max(side for shapes in design.shapes for shape in shapes for side in shape)
    largest = max(float(inputs.sizes.max(initial=1)), float(np.abs(inputs.boxes).max(initial=1)))
    return float(np.spacing(np.float32(largest + longest)))


def _tolerance(chunk: _Chunk, ious: NDArray[np.float32], level: int) -> NDArray[np.float32]:
    """(A, m) by how much the float32 IoU with an anchor may exceed that of another although its exact IoU does not.

    Rounding shifts a side of the overlap by at most 1.5 spacings, which changes the overlap by that times the other
    side; the anchor's area changes likewise; and the union is at least the larger of both areas. One IoU is
    thus off by 5 spacings times (width + height) of the anchor over that area, and by some 20 relative roundings of its
    own. A difference of two IoUs doubles this. The constants leave a margin.
    """
    pixel = np.float32(chunk.inclusive)
    x1, y1, x2, y2 = chunk.boxes
    width, height = (chunk.cells[level][:, 2:] - chunk.cells[level][:, :2] + pixel).T
    larger_area = np.maximum((x2 - x1 + pixel) * (y2 - y1 + pixel), (width * height)[:, None])
    sides = np.float32(_IN_SPACINGS * chunk.spacing) * (width + height)
    return np.asarray(sides[:, None] / larger_area + np.float32(_RELATIVE) * np.maximum(ious, 0), np.float32)


def _best_of_chunk(chunk: _Chunk) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(m,) IoU and index of each box's best anchor, from the anchors within the tolerance of the best."""
    nearest = [_nearest_ious(chunk, level) for level in range(len(chunk.grids))]
    ious = np.concatenate(nearest)
    tolerance = np.concatenate([_tolerance(chunk, of_level, level) for level, of_level in enumerate(nearest)])
    box, shape = np.nonzero(((ious + tolerance >= ious.max(axis=0)) & (ious >= 0)).T)  # pairs, ordered by box
    boxes, cells = chunk.boxes[:, box], np.concatenate(chunk.cells)[shape].T
    per_cell = np.array([len(of_level) for of_level in chunk.cells])
    level = np.repeat(np.arange(len(per_cell)), per_cell)[shape]
    rows, columns, stride_y, stride_x = (np.stack(field)[level, box] for field in zip(*chunk.grids, strict=True))

    # For one shape the IoU is convex in the overlap: a cell that keeps a share of the IoU keeps at least that share of
    # the overlap.
    keep = 1 - np.minimum(1, 2 * tolerance[shape, box].astype(np.float64) / np.maximum(ious[shape, box], 1e-30))
    first_column, n_columns = _overlapping_cells(chunk, boxes[0::2], cells[0::2], columns, stride_x, keep)
    first_row, n_rows = _overlapping_cells(chunk, boxes[1::2], cells[1::2], rows, stride_y, keep)
    trials = n_rows * n_columns
    count = chunk.boxes.shape[1]
    if trials.sum() > _MAX_TRIALS and count > 1:
        halves = np.array_split(np.arange(count), 2)
        (iou_a, anchor_a), (iou_b, anchor_b) = (_best_of_chunk(chunk.take(half)) for half in halves)
        return np.concatenate([iou_a, iou_b]), np.concatenate([anchor_a, anchor_b])

    pair = np.repeat(np.arange(len(box)), trials)
    nth = np.arange(len(pair)) - np.repeat(np.cumsum(trials) - trials, trials)
    row, column = first_row[pair] + nth // n_columns[pair], first_column[pair] + nth % n_columns[pair]
    shift_x = (column * stride_x[pair]).astype(np.float32)
    shift_y = (row * stride_y[pair]).astype(np.float32)
    tried = _iou(boxes[:, pair], cells[:, pair], shift_x, shift_y, chunk.inclusive)
    first_of_shape = chunk.first_anchor[level, box] + shape - (np.cumsum(per_cell) - per_cell)[level]
    anchor = first_of_shape[pair] + (row * columns[pair] + column) * per_cell[level[pair]]
    return _first_highest(tried, anchor, box[pair], count)


def _nearest_ious(chunk: _Chunk, level: int) -> NDArray[np.float32]:
    """(A, m) IoU of each box with the anchors of the cell nearest to it; -1 if the level has no cells."""
    x1, y1, x2, y2 = chunk.boxes
    grid, cells = chunk.grids[level], chunk.cells[level]
    shift_x = _nearest_shift(x1, x2, cells[0, 0::2], grid.columns, grid.stride_x)
    shift_y = _nearest_shift(y1, y2, cells[0, 1::2], grid.rows, grid.stride_y)
    ious = _iou(chunk.boxes, cells.T[:, :, None], shift_x, shift_y, chunk.inclusive)
    ious[:, (grid.rows == 0) | (grid.columns == 0)] = -1
    return ious


def _nearest_shift(
    low: NDArray[np.float32],
    high: NDArray[np.float32],
    anchor: NDArray[np.float32],
    cells: NDArray[np.int64],
    stride: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Distance on one axis from the first cell to the cell nearest to a box; `anchor` is any interval of the first."""
    nearest = nearest_cell((low + high) / 2, (anchor[0] + anchor[1]) / 2, stride, np.maximum(cells, 1))
    return np.asarray(nearest * stride, np.float32)


def _iou(
    boxes: NDArray[np.float32],
    cells: NDArray[np.float32],
    shift_x: NDArray[np.float32],
    shift_y: NDArray[np.float32],
    inclusive: bool,
) -> NDArray[np.float32]:
    """IoU of boxes (4, ...) and cell anchors (4, ...) moved by the shifts, in float32."""
    anchors = cells[0] + shift_x, cells[1] + shift_y, cells[2] + shift_x, cells[3] + shift_y
    return iou_by_coordinates(tuple(boxes), anchors, pixel_inclusive=inclusive)


def _overlapping_cells(
    chunk: _Chunk,
    boxes: NDArray[np.float32],
    cells: NDArray[np.float32],
    count: NDArray[np.int64],
    stride: NDArray[np.int64],
    keep: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Index of the first cell on one axis whose overlap is at least `keep` of the largest, and the number of them."""
    pixel = float(chunk.inclusive)
    (low, high), (left, right) = boxes.astype(np.float64), cells.astype(np.float64)
    shift = _nearest_shift(boxes[0], boxes[1], cells, count, stride)
    largest = np.minimum(high, right + shift) - np.maximum(low, left + shift) + pixel
    smallest = largest * keep - 4 * chunk.spacing
    first = np.maximum(np.ceil((low + smallest - right - pixel) / stride), 0)
    last = np.minimum(np.floor((high + pixel - smallest - left) / stride), count - 1)
    return first.astype(np.int64), np.maximum(last - first + 1, 0).astype(np.int64)


def _first_highest(
    iou: NDArray[np.float32], anchor: NDArray[np.int64], box: NDArray[np.int64], boxes: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(boxes,) highest IoU per box and the lowest anchor index that has it; 0 and 0 if there is none. `box` ascends."""
    highest, lowest = np.zeros(boxes, np.float32), np.zeros(boxes, np.int64)
    if len(box):
        starts = np.flatnonzero(np.diff(box, prepend=-1))
        best = np.maximum.reduceat(iou, starts)
        equal = iou == np.repeat(best, np.diff(starts, append=len(box)))
        first = np.minimum.reduceat(np.where(equal, anchor, np.iinfo(np.int64).max), starts)
        highest[box[starts]] = best
        lowest[box[starts]] = np.where(best > 0, first, 0)
    return highest, lowest
