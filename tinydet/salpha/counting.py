"""The fusion factor S-alpha: boxes -> objects for each level -> alpha (the paper's Algorithm 1 and Eq. 2).

An object belongs to the level that holds its best anchor, the one of highest IoU, however low. The dense way is an IoU
matrix of all objects and all anchors; here is a closed form. For one anchor shape the IoU grows with the overlap, and
the overlap is a product of one function of the column and one of the row. So the best cell is the one nearest to the
object on each axis, and one candidate for each anchor of a cell is enough. The rest of this file makes the answer the
dense one's to the bit, ties and rounding included.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tinydet.geometry.anchors import AnchorDesign, LevelGrid
from tinydet.geometry.boxes import iou_by_coordinates

CountRule = Literal["gt", "anchor"]

ALPHA_RANGE = (0.2, 2.0)  # Not in the paper; the authors' code clamps so. Empty levels would give 0 or inf.
FEW_OBJECTS = 20  # An edge with fewer on both of its sides has no evidence to speak of.


class BestAnchors(NamedTuple):
    """The anchor of highest IoU for each of M objects.

    Attributes:
        level: (M,) number of its level, 0 is the finest.
        iou: (M,) float32; 0 where no anchor overlaps the object, which is then given to the first anchor.
        anchor: (M,) index into the concatenated `grid_anchors` of the object's image.
    """

    level: NDArray[np.int64]
    iou: NDArray[np.float32]
    anchor: NDArray[np.int64]


@dataclass(frozen=True)
class FusionStatistics:
    """How the objects of a data set spread over the levels, and the fusion factors that follow. Finest first.

    Attributes:
        counts: objects for each level.
        boxes: objects counted; more than `sum(counts)` where distinct anchors were counted.
        images: network inputs counted.
        seconds: that counting took.
        levels: names, parallel to `counts`.
        count: the rule, see `count_levels`.
        alpha_range: the clamp.

    Raises:
        ValueError: as `estimate_alpha` does, and where levels and counts are not parallel.
    """

    counts: tuple[int, ...]
    boxes: int
    images: int
    seconds: float
    levels: tuple[str, ...] = ("P2", "P3", "P4", "P5", "P6")
    count: CountRule = "gt"
    alpha_range: tuple[float, float] = ALPHA_RANGE

    def __post_init__(self) -> None:
        if len(self.levels) != len(self.counts):
            raise ValueError(f"each level has one count, got levels {self.levels} and counts {self.counts}")
        estimate_alpha(self.counts, self.alpha_range)

    @property
    def edges(self) -> tuple[str, ...]:
        """Names of the fused edges, from the deeper level to the finer one."""
        return tuple(f"{deeper}->{finer}" for finer, deeper in zip(self.levels[:-2], self.levels[1:-1], strict=True))

    @property
    def alpha_raw(self) -> tuple[float | None, ...]:
        return raw_alpha(self.counts)

    @property
    def alpha(self) -> tuple[float, ...]:
        return estimate_alpha(self.counts, self.alpha_range)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader of the factors should know, a plain sentence each; empty for a healthy tiny data set."""
        return tuple(_warnings(self))

    def to_json(self) -> dict[str, Any]:
        """For a JSON file: counts by level and factors by edge; a raw factor that does not exist is None."""
        return {
            "counts": dict(zip(self.levels, self.counts, strict=True)),
            "alpha_raw": dict(zip(self.edges, self.alpha_raw, strict=True)),
            "alpha": dict(zip(self.edges, self.alpha, strict=True)),
            "boxes": self.boxes,
            "images": self.images,
            "seconds": self.seconds,
            "rule": {"count": self.count, "alpha_range": list(self.alpha_range)},
            "warnings": list(self.warnings),
        }


def estimate_alpha(counts: Sequence[int], alpha_range: tuple[float, float] = ALPHA_RANGE) -> tuple[float, ...]:
    """Fusion factors from object counts, finest first: alpha_i = N_{i+1} / N_i (Eq. 2), clamped to `alpha_range`.

    The last level has no edge, so its objects join its neighbour's in the last ratio. Without objects on either side of
    an edge (0/0) the factor is a conventional FPN's, 1; without objects on the finer side alone, the upper bound.

    >>> estimate_alpha((1000, 400, 100, 20, 10))
    (0.4, 0.25, 0.3)
    >>> estimate_alpha((1000, 0, 0, 0, 0)), estimate_alpha((0, 50, 200, 0, 0))
    ((0.2, 1.0, 1.0), (2.0, 2.0, 0.2))

    Raises:
        ValueError: for fewer than three levels, negative counts or a range that is not one.
    """
    low, high = alpha_range
    if not (0 <= low <= high < math.inf):
        raise ValueError(f"an alpha range is LOW,HIGH with 0 <= LOW <= HIGH, got {low},{high}; the default is 0.2,2.0")
    factors = []
    for finer, deeper in _edge_counts(counts):
        ratio = deeper / finer if finer else (math.inf if deeper else 1.0)
        factors.append(min(max(ratio, low), high))
    return tuple(factors)


def raw_alpha(counts: Sequence[int]) -> tuple[float | None, ...]:
    """The ratios of `estimate_alpha` before any clamp; None where the finer level has no objects.

    >>> raw_alpha((1000, 40, 0, 0, 0))
    (0.04, 0.0, None)
    """
    return tuple(deeper / finer if finer else None for finer, deeper in _edge_counts(counts))


def count_levels(
    boxes: ArrayLike,
    sizes: ArrayLike,
    design: AnchorDesign,
    *,
    image_index: ArrayLike | None = None,
    count: CountRule = "gt",
) -> tuple[int, ...]:
    """Objects for each level, finest first (Algorithm 1). No IoU threshold; anchors reach over the image's border.

    Args:
        boxes: (M, 4) xyxy, pixels of the network's input. They are compared in float32, as the network would.
        sizes: (I, 2) width and height of every input image, or (2,) for one size.
        image_index: (M,) index into `sizes` for each box; may be left out for one size.
        count: "gt" counts every object (the paper's text). "anchor" counts anchors that are best for some object, each
            once in an image however many objects share it (the authors' code).

    Raises:
        ValueError: for boxes or sizes that are not such, or an image too small for any anchor.
    """
    if count not in ("gt", "anchor"):
        raise ValueError(f"unknown counting rule {count!r}; choose gt or anchor")
    problem = _problem(boxes, sizes, design, image_index)
    total = np.zeros(len(design.levels), np.int64)
    if count == "gt":
        for part in _parts(problem):
            total += np.bincount(_levels(part), minlength=len(total))
    else:
        best = _best(problem)
        marked = problem.image_index * int(problem.first_anchor[-1].max(initial=0)) + best.anchor
        total += np.bincount(best.level[np.unique(marked, return_index=True)[1]], minlength=len(total))
    return tuple(total.tolist())


def best_anchors(
    boxes: ArrayLike, sizes: ArrayLike, design: AnchorDesign, *, image_index: ArrayLike | None = None
) -> BestAnchors:
    """The best anchor of every object, over all anchors of all levels; the first of several equals.

    The same to the bit as the arg-max of torchvision's `box_iou(boxes, torch.cat(anchors))` over `design.grid_anchors`.
    Arguments and errors as in `count_levels`.
    """
    return _best(_problem(boxes, sizes, design, image_index))


def released_clipping(
    boxes: NDArray[np.float64], sizes: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Boxes as the loader of the authors' code hands them on: their last pixel is theirs, and inside the image.

    Args:
        boxes: (M, 4) xyxy with x2 = x + w.
        sizes: (M, 2) width and height of each box's image.

    Returns:
        (M, 4) xyxy with x2 = x + max(w - 1, 0), at most width - 1, and (M,) which of them keep x2 > x1 and y2 > y1; the
        authors' code drops the others.
    """
    low, high = boxes[:, :2], boxes[:, 2:]
    high = low + np.maximum(high - low - 1, 0)
    clipped = np.concatenate([np.clip(low, 0, sizes - 1), np.clip(high, 0, sizes - 1)], axis=1)
    return clipped, np.asarray((clipped[:, 2:] > clipped[:, :2]).all(axis=1), bool)


_PART = 4096  # Boxes at a time: float32 arrays of (anchors of a cell, 4096) stay in a core's cache.
_TRIALS = 1 << 20  # Anchors tried one by one at a time, more only for a single box; it bounds the memory.


@dataclass(frozen=True)
class _Problem:
    """Boxes and the grids of their images."""

    boxes: NDArray[np.float32]  # (M, 4)
    image_index: NDArray[np.int64]  # (M,)
    design: AnchorDesign
    cells: tuple[NDArray[np.float32], ...]  # for each level (A, 4), the anchors of its first cell
    grids: tuple[LevelGrid, ...]  # for each level, of (I,) arrays
    first_anchor: NDArray[np.int64]  # (L + 1, I): index of each level's first anchor; the last row: how many there are
    spacing: float  # of float32 at the largest coordinate


@dataclass(frozen=True)
class _Part:
    """Some boxes of a problem, with the grid of each box instead of each image."""

    problem: _Problem
    boxes: NDArray[np.float32]  # (4, m): x1, y1, x2, y2
    image_index: NDArray[np.int64]  # (m,)
    grids: tuple[LevelGrid, ...]  # for each level, of (m,) arrays


def _problem(boxes: ArrayLike, sizes: ArrayLike, design: AnchorDesign, image_index: ArrayLike | None) -> _Problem:
    rows = np.asarray(boxes, np.float32)
    if rows.size == 0:
        rows = rows.reshape(0, 4)
    if rows.ndim != 2 or rows.shape[1] != 4:
        raise ValueError(f"boxes must be (M, 4) xyxy, got an array of shape {rows.shape}")
    if not np.isfinite(rows).all() or (rows[:, 2:] < rows[:, :2]).any():
        raise ValueError("boxes must be finite xyxy with x2 >= x1 and y2 >= y1; correct or remove the others")
    size = np.asarray(sizes, np.int64).reshape(-1, 2)
    if image_index is None:
        if len(size) != 1:
            raise ValueError(f"{len(size)} image sizes need an image_index that says which box lies in which image")
        image_index = np.zeros(len(rows), np.int64)
    index = np.asarray(image_index, np.int64)
    if index.shape != (len(rows),) or (len(index) and not 0 <= index.min() <= index.max() < len(size)):
        raise ValueError(f"image_index must give each of {len(rows)} boxes one of {len(size)} images")

    width, height = size.T
    grids = tuple(design.level_grid(height, width, level) for level in range(len(design.levels)))
    anchors = [grid.rows * grid.columns * len(shapes) for grid, shapes in zip(grids, design.shapes, strict=True)]
    first = np.concatenate([np.zeros((1, len(size)), np.int64), np.cumsum(anchors, axis=0)])
    if (first[-1] <= 0).any():
        w, h = size[first[-1].argmin()]
        raise ValueError(f"an image of {w}x{h} pixels has no anchor on strides {design.strides}; remove or enlarge it")

    longest = max(side for shapes in design.shapes for shape in shapes for side in shape)
    reach = max(float(size.max(initial=1)), float(np.abs(rows).max(initial=1))) + float(longest)
    spacing = float(np.spacing(np.float32(reach)))
    cells = tuple(design.first_cell(level) for level in range(len(design.levels)))
    return _Problem(rows, index, design, cells, grids, first, spacing)


def _parts(problem: _Problem) -> Iterator[_Part]:
    for start in range(0, len(problem.boxes), _PART):
        which = slice(start, start + _PART)
        index = problem.image_index[which]
        grids = tuple(LevelGrid(*(field[index] for field in grid)) for grid in problem.grids)
        yield _Part(problem, np.ascontiguousarray(problem.boxes[which].T), index, grids)


def _some(part: _Part, which: NDArray[np.int64]) -> _Part:
    grids = tuple(LevelGrid(*(field[which] for field in grid)) for grid in part.grids)
    return _Part(part.problem, part.boxes[:, which], part.image_index[which], grids)


def _levels(part: _Part) -> NDArray[np.int64]:
    """(m,) level of each box's best anchor; one anchor at a time only where another level comes too close to call."""
    ious = [_nearest_ious(part, level) for level in range(len(part.grids))]
    best = np.stack([of_level.max(axis=0) for of_level in ious])
    levels = best.argmax(axis=0)
    could_be = np.stack([(i + _tolerance(part, i, level)).max(axis=0) for level, i in enumerate(ious)])
    unsure = np.flatnonzero((could_be >= best.max(axis=0)).sum(axis=0) > 1)
    if len(unsure):
        close = _some(part, unsure)
        levels[unsure] = _level_of(close, _best_of_part(close)[1])
    return np.asarray(levels, np.int64)


def _best(problem: _Problem) -> BestAnchors:
    levels, ious, anchors = [np.empty(0, np.int64)], [np.empty(0, np.float32)], [np.empty(0, np.int64)]
    for part in _parts(problem):
        iou, anchor = _best_of_part(part)
        levels.append(_level_of(part, anchor))
        ious.append(iou)
        anchors.append(anchor)
    return BestAnchors(np.concatenate(levels), np.concatenate(ious), np.concatenate(anchors))


def _level_of(part: _Part, anchor: NDArray[np.int64]) -> NDArray[np.int64]:
    later = part.problem.first_anchor[1:-1, part.image_index]
    return np.asarray((anchor >= later).sum(axis=0), np.int64)


def _nearest_ious(part: _Part, level: int) -> NDArray[np.float32]:
    """(A, m) IoU of each box with the anchors of the cell nearest to it; -1 where the level has no cells."""
    x1, y1, x2, y2 = part.boxes
    grid, cells = part.grids[level], part.problem.cells[level]
    shift_x = _nearest_shift(x1, x2, cells[0, 0::2], grid.columns, grid.stride_x)
    shift_y = _nearest_shift(y1, y2, cells[0, 1::2], grid.rows, grid.stride_y)
    ious = _iou(part.boxes, cells.T[:, :, None], shift_x, shift_y, part.problem.design.inclusive)
    ious[:, (grid.rows == 0) | (grid.columns == 0)] = -1
    return ious


def _tolerance(part: _Part, ious: NDArray[np.float32], level: int) -> NDArray[np.float32]:
    """(A, m) by how much the IoU of another cell, or of the same in other arithmetic, may exceed that of the nearest.

    A side of the overlap is wrong by a spacing and a half, times the other side, and so is one of the anchor; the union
    is at least the larger area. That is five spacings times the anchor's sides over it, and twice that in a difference
    of two; and some twenty roundings of the result. The rest is room to spare.
    """
    pixel = np.float32(part.problem.design.inclusive)
    x1, y1, x2, y2 = part.boxes
    width, height = (part.problem.cells[level][:, 2:] - part.problem.cells[level][:, :2] + pixel).T
    larger = np.maximum((x2 - x1 + pixel) * (y2 - y1 + pixel), (width * height)[:, None])
    sides = np.float32(16 * part.problem.spacing) * (width + height)
    return np.asarray(sides[:, None] / larger + np.float32(8e-6) * np.maximum(ious, 0), np.float32)


def _nearest_shift(
    low: NDArray[np.float32],
    high: NDArray[np.float32],
    cell: NDArray[np.float32],
    cells: NDArray[np.int64],
    stride: NDArray[np.int64],
) -> NDArray[np.float32]:
    """How far the cell nearest to a box lies from the first, on one axis; the anchors of a cell share its centre."""
    away = (low + high - (cell[0] + cell[1])) / 2
    nearest = np.clip(np.floor(away / stride + 0.5), 0, np.maximum(cells - 1, 0))
    return np.asarray(nearest * stride, np.float32)


def _iou(
    boxes: NDArray[np.float32],
    cells: NDArray[np.float32],
    shift_x: NDArray[np.float32],
    shift_y: NDArray[np.float32],
    inclusive: bool,
) -> NDArray[np.float32]:
    """IoU of boxes and shifted cell anchors, coordinates first, in float32 and operation for operation box_iou's."""
    anchors = cells[0] + shift_x, cells[1] + shift_y, cells[2] + shift_x, cells[3] + shift_y
    return iou_by_coordinates(tuple(boxes), anchors, pixel_inclusive=inclusive)


def _best_of_part(part: _Part) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(m,) IoU and index of each box's best anchor.

    The nearest cell has the highest IoU, but a box inside an anchor (or around it) has the same IoU in several cells,
    and rounding makes one of them the best in float32. So every anchor that could be it is tried: of each shape within
    the tolerance, the cells within the tolerance.
    """
    problem = part.problem
    nearest = [_nearest_ious(part, level) for level in range(len(part.grids))]
    ious = np.concatenate(nearest)
    tolerance = np.concatenate([_tolerance(part, i, level) for level, i in enumerate(nearest)])
    box, shape = np.nonzero(((ious + tolerance >= ious.max(axis=0)) & (ious >= 0)).T)  # pairs, box by box
    boxes, cells = part.boxes[:, box], np.concatenate(problem.cells)[shape].T
    per_cell = np.array([len(of_level) for of_level in problem.cells])
    level = np.repeat(np.arange(len(per_cell)), per_cell)[shape]
    rows, columns, stride_y, stride_x = (np.stack(field)[level, box] for field in zip(*part.grids, strict=True))

    # For one shape the IoU is convex in the overlap: who keeps a share of the IoU keeps at least that of the overlap.
    keep = 1 - np.minimum(1, 2 * tolerance[shape, box].astype(np.float64) / np.maximum(ious[shape, box], 1e-30))
    first_column, n_columns = _window(part, boxes[0::2], cells[0::2], columns, stride_x, keep)
    first_row, n_rows = _window(part, boxes[1::2], cells[1::2], rows, stride_y, keep)
    trials = n_rows * n_columns
    if trials.sum() > _TRIALS and len(part.image_index) > 1:
        halves = np.array_split(np.arange(len(part.image_index)), 2)
        (iou_a, anchor_a), (iou_b, anchor_b) = (_best_of_part(_some(part, half)) for half in halves)
        return np.concatenate([iou_a, iou_b]), np.concatenate([anchor_a, anchor_b])

    pair = np.repeat(np.arange(len(box)), trials)
    nth = np.arange(len(pair)) - np.repeat(np.cumsum(trials) - trials, trials)
    row, column = first_row[pair] + nth // n_columns[pair], first_column[pair] + nth % n_columns[pair]
    shift_x = (column * stride_x[pair]).astype(np.float32)
    shift_y = (row * stride_y[pair]).astype(np.float32)
    tried = _iou(boxes[:, pair], cells[:, pair], shift_x, shift_y, problem.design.inclusive)
    first_of_level = problem.first_anchor[level, part.image_index[box]]
    first_of_shape = first_of_level + shape - (np.cumsum(per_cell) - per_cell)[level]
    anchor = first_of_shape[pair] + (row * columns[pair] + column) * per_cell[level[pair]]
    return _first_highest(tried, anchor, box[pair], len(part.image_index))


def _first_highest(
    iou: NDArray[np.float32], anchor: NDArray[np.int64], box: NDArray[np.int64], boxes: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(boxes,) highest IoU for each box and the lowest anchor that has it; 0 and 0 without any. `box` ascends."""
    highest, lowest = np.zeros(boxes, np.float32), np.zeros(boxes, np.int64)
    if len(box):
        starts = np.flatnonzero(np.diff(box, prepend=-1))
        best = np.maximum.reduceat(iou, starts)
        equal = iou == np.repeat(best, np.diff(starts, append=len(box)))
        first = np.minimum.reduceat(np.where(equal, anchor, np.iinfo(np.int64).max), starts)
        highest[box[starts]] = best
        lowest[box[starts]] = np.where(best > 0, first, 0)
    return highest, lowest


def _window(
    part: _Part,
    boxes: NDArray[np.float32],
    cells: NDArray[np.float32],
    count: NDArray[np.int64],
    stride: NDArray[np.int64],
    keep: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The cells on one axis whose overlap is at least `keep` of the nearest one's: first, and how many."""
    pixel = float(part.problem.design.inclusive)
    (low, high), (left, right) = boxes.astype(np.float64), cells.astype(np.float64)
    shift = _nearest_shift(boxes[0], boxes[1], cells, count, stride)
    most = np.minimum(high, right + shift) - np.maximum(low, left + shift) + pixel
    least = most * keep - 4 * part.problem.spacing
    first = np.maximum(np.ceil((low + least - right - pixel) / stride), 0)
    last = np.minimum(np.floor((high + pixel - least - left) / stride), count - 1)
    return first.astype(np.int64), np.maximum(last - first + 1, 0).astype(np.int64)


def _edge_counts(counts: Sequence[int]) -> list[tuple[int, int]]:
    """(finer, deeper) objects of each edge; the last level's are added to its neighbour's."""
    if len(counts) < 3 or any(count < 0 for count in counts):
        raise ValueError(
            f"fusion factors need object counts, none negative, of at least three levels, got {tuple(counts)}"
        )
    deeper = [*counts[1:-2], counts[-2] + counts[-1]]
    return list(zip(counts[:-2], deeper, strict=True))


def _warnings(statistics: FusionStatistics) -> Iterator[str]:
    empty = [level for level, count in zip(statistics.levels, statistics.counts, strict=True) if not count]
    if empty:
        yield f"no object has its best anchor on {', '.join(empty)}"
    not_tiny = []
    low, high = statistics.alpha_range
    for edge, raw, alpha, (finer, deeper) in zip(
        statistics.edges, statistics.alpha_raw, statistics.alpha, _edge_counts(statistics.counts), strict=True
    ):
        if not finer + deeper:
            yield f"{edge}: no objects on either side (0/0), so alpha = {alpha:.3g}, on no evidence"
        elif finer + deeper < FEW_OBJECTS:
            objects = "object" if finer + deeper == 1 else "objects"
            yield f"{edge}: rests on {finer + deeper} {objects}, fewer than {FEW_OBJECTS}, which is little evidence"
        if raw is None and deeper:
            yield f"{edge}: no objects on the finer side ({deeper}/0), so alpha is the upper bound, {alpha:.3g}"
        elif raw is not None and raw != alpha:
            yield f"{edge}: raw alpha {raw:.3g} lies outside {low:g}..{high:g} and became {alpha:.3g}"
        if deeper > finer:
            not_tiny.append(edge)
    if not_tiny:
        yield f"raw alpha > 1 on {', '.join(not_tiny)}: not a tiny data set for these anchors, alpha = 1 advised"
