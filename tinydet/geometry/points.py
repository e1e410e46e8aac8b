"""Points as in FCOS: the center of every cell of every pyramid level, and which object each of them learns. numpy only.

Training and S-alpha share this rule. Only the points in a window around each object are compared with it, so no matrix
of all objects and all points is needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tinydet.geometry.anchors import AnchorDesign, Pyramid

Range = tuple[float, float]
CHUNK = 10_000  # boxes, at least one image
_REACH = 2  # cells around an object in which its nearest points are first looked for


@dataclass(frozen=True, kw_only=True)
class PointDesign(Pyramid):
    """The points of every level, finest first, and the objects that they learn.

    The point of row i and column k of a level of stride s is (k * s + s // 2, i * s + s // 2). It may learn an object
    if it is strictly inside its box, and inside its center region if there is one, and if the largest of its distances
    to the four sides is in the range of the level, both ends included. So one object may have points on two levels. Of
    several objects a point learns the one of the smallest area, on ties the first.

    Attributes:
        ranges: per level, smallest and largest distance to the farthest side of an object, in pixels.
        radius: half the side of the center region in strides; the region is centered on the box and cut to it. None:
            the whole box.

    Raises:
        ValueError: levels, strides and ranges do not agree, or a range is empty.
    """

    ranges: tuple[Range, ...]
    radius: float | None = None

    def __post_init__(self) -> None:
        if not len(self.levels) == len(self.strides) == len(self.ranges) > 0:
            raise ValueError(
                f"points need one stride and one range for each level, but there are {len(self.levels)} levels, "
                f"{len(self.strides)} strides and {len(self.ranges)} ranges"
            )
        for level, (low, high) in zip(self.levels, self.ranges, strict=True):
            if not low < high:
                raise ValueError(f"level {level}: the range must have a low end below its high end, got {low}, {high}")
        if self.radius is not None and not self.radius > 0:
            raise ValueError(f"the radius of the center region must be above 0, got {self.radius}")

    def grids(self, sizes: ArrayLike) -> NDArray[np.int64]:
        """Return rows and columns of each level for images of `sizes` (I, 2), width and height: (I, levels, 2)."""
        sides = np.asarray(sizes, np.int64).reshape(-1, 1, 2)[..., ::-1]
        return -(-sides // np.asarray(self.strides, np.int64)[:, None])

    def points(self, height: int, width: int) -> tuple[NDArray[np.float32], ...]:
        """Return the points of each level for one input size, finest first: (rows * columns, 2) x and y in pixels."""
        found = []
        for (rows, columns), stride in zip(self.grids((width, height))[0].tolist(), self.strides, strict=True):
            y, x = np.mgrid[:rows, :columns].reshape(2, -1) * stride + stride // 2
            found.append(np.stack([x, y], axis=1).astype(np.float32))
        return tuple(found)

    def squares(self) -> AnchorDesign:
        """Return one square prior centered on each point, for rules that compare objects with priors.

        Its side is the geometric mean of the longer sides that the level is made for: twice the ends of its range.
        """
        sides = [
            2 * high / math.sqrt(2) if low <= 0 else 2 * low * math.sqrt(2) if math.isinf(high)
            else 2 * math.sqrt(low * high)
            for low, high in self.ranges
        ]  # fmt: skip
        return AnchorDesign(
            levels=self.levels,
            strides=self.strides,
            unfused=self.unfused,
            shapes=tuple(((side, side),) for side in sides),
        )

    def level_of(self, boxes: ArrayLike) -> NDArray[np.intp]:
        """Return the level whose range holds half the longer side of each box (M, 4); at a limit the finer one."""
        corners = _boxes(boxes)
        half = (corners[:, 2:] - corners[:, :2]).max(axis=1, initial=0.0) / 2
        highest = np.array([high for _, high in self.ranges[:-1]])
        level: NDArray[np.intp] = np.searchsorted(highest, half, side="left")
        return level


class PositivePoints(NamedTuple):
    """The points that learn an object, in rising order.

    Attributes:
        points: (P,) flat index into the points of all images, each image's levels finest first, rows slowest.
        level: (P,) number of the level, 0 is the finest.
        objects: (P,) index of the object.
    """

    points: NDArray[np.int64]
    level: NDArray[np.intp]
    objects: NDArray[np.intp]


def positive_points(
    design: PointDesign,
    boxes: ArrayLike,
    sizes: ArrayLike,
    image_index: ArrayLike | None = None,
    *,
    every_object: bool = False,
) -> PositivePoints:
    """Return the points that learn an object, by the rule of `PointDesign`.

    Args:
        boxes: (M, 4) xyxy in pixels of their image.
        sizes: (I, 2) width and height of every image, or (2,) for one.
        image_index: (M,) image of each box; None for one image.
        every_object: give an object without a point the nearest point of its level (`PointDesign.level_of`) that is
            not another object's only point. Smaller objects choose first.
    """
    corners = _boxes(boxes)
    image = np.zeros(len(corners), np.int64) if image_index is None else np.asarray(image_index, np.int64)
    grids = design.grids(sizes)
    cells = grids.prod(axis=2)
    starts = np.concatenate([[0], cells.ravel().cumsum()])[:-1].reshape(cells.shape)  # (I, levels)
    area = (corners[:, 2:] - corners[:, :2]).prod(axis=1)
    smallest_first = np.argsort(area, kind="stable")
    ordered, image_of = corners[smallest_first], image[smallest_first]
    found = [_candidates(design, ordered, grids[image_of, level], level) for level in range(len(design.levels))]
    place = np.concatenate([pair[0] for pair in found])
    level = np.repeat(np.arange(len(found)), [len(pair[0]) for pair in found])
    # All candidates of a point are of one level, where they are ordered by area, and `unique` returns the first.
    index = starts[image_of[place], level] + np.concatenate([pair[1] for pair in found])
    index, first = np.unique(index, return_index=True)
    positive = PositivePoints(index, level[first], smallest_first[place[first]])
    return _with_nearest(design, positive, corners, area, image, grids, starts) if every_object else positive


def count_points(
    design: PointDesign,
    boxes: ArrayLike,
    sizes: ArrayLike,
    image_index: ArrayLike | None = None,
    *,
    every_object: bool = False,
) -> tuple[int, ...]:
    """Return the number of points of each level that learn an object, finest first; see `positive_points`.

    Images are counted a few at a time, so the memory does not grow with a dataset.
    """
    corners, sides = _boxes(boxes), np.asarray(sizes, np.int64).reshape(-1, 2)
    image = np.zeros(len(corners), np.int64) if image_index is None else np.asarray(image_index, np.int64)
    order = np.argsort(image, kind="stable")  # of equal areas the first object still wins
    ends = image[order].searchsorted(np.arange(len(sides)), side="right")
    counts = np.zeros(len(design.levels), np.int64)
    first = 0
    while first < len(order):
        last = int(ends[image[order[min(first + CHUNK, len(order)) - 1]]])  # whole images
        chosen = order[first:last]
        images, index = np.unique(image[chosen], return_inverse=True)
        found = positive_points(design, corners[chosen], sides[images], index, every_object=every_object)
        counts += np.bincount(found.level, minlength=len(counts))
        first = last
    return tuple(counts.tolist())


def _boxes(boxes: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(boxes, np.float64).reshape(-1, 4)


def _candidates(
    design: PointDesign, boxes: NDArray[np.float64], grid: NDArray[np.int64], level: int
) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Return object and cell of all pairs in which a point of a level may learn an object, ordered by object.

    Args:
        grid: (M, 2) rows and columns of the level in the image of each object.
    """
    stride, (low, high) = design.strides[level], design.ranges[level]
    left_top, right_bottom = boxes[:, :2], boxes[:, 2:]
    near, far = left_top, right_bottom
    if design.radius is not None:
        center = (near + far) / 2
        near = np.maximum(near, center - design.radius * stride)
        far = np.minimum(far, center + design.radius * stride)
    # On each axis the points that are inside, and not farther than `high` from a side, are consecutive.
    first = np.floor((np.maximum(near, right_bottom - high) - stride // 2) / stride).clip(0, None)
    last = np.minimum(np.ceil((np.minimum(far, left_top + high) - stride // 2) / stride), grid[:, ::-1] - 1)
    first_point, last_point = first * stride + stride // 2, last * stride + stride // 2
    first += (first_point <= near) | (right_bottom - first_point > high)
    last -= (last_point >= far) | (last_point - left_top > high)
    extent = (last - first + 1).clip(0, None).astype(np.int64)  # (M, 2) columns and rows
    count = extent.prod(axis=1)
    objects = np.repeat(np.arange(len(boxes)), count)
    row, column = np.divmod(np.arange(len(objects)) - (count.cumsum() - count)[objects], extent[objects, 0])
    row += first[objects, 1].astype(np.int64)
    column += first[objects, 0].astype(np.int64)
    cell = row * grid[objects, 1] + column
    if low <= 0:  # every distance inside of a box is positive
        return objects, cell
    x, y = column * stride + stride // 2, row * stride + stride // 2
    x1, y1, x2, y2 = boxes[objects].T
    large = np.maximum(np.maximum(x - x1, x2 - x), np.maximum(y - y1, y2 - y)) >= low
    return objects[large], cell[large]


def _with_nearest(
    design: PointDesign,
    positive: PositivePoints,
    boxes: NDArray[np.float64],
    area: NDArray[np.float64],
    image: NDArray[np.int64],
    grids: NDArray[np.int64],
    starts: NDArray[np.int64],
) -> PositivePoints:
    """Give every object without a point the nearest one of its level that no other object depends on."""
    points_of = np.bincount(positive.objects, minlength=len(boxes))
    without = np.flatnonzero(points_of == 0)
    without = without[np.argsort(area[without], kind="stable")]
    if not len(without):
        return positive
    levels = design.level_of(boxes)
    strides = np.asarray(design.strides, np.int64)
    largest = grids[image, levels].max(axis=1)  # side of the level in cells

    def nearest(objects: NDArray[np.intp], reach: int) -> tuple[list[list[int]], list[list[int]]]:
        """Return the points around each object, nearest first, and the object that learns each by the rule or -1."""
        level = levels[objects]
        points = _nearest_points(boxes[objects], strides[level], grids[image[objects], level], reach)
        points = np.where(points < 0, -1, points + starts[image[objects], level][:, None])
        place = np.searchsorted(known, points)
        learns = known[place] == points
        owners = np.full(points.shape, -1)
        owners[learns] = positive.objects[place[learns]]
        return points.tolist(), owners.tolist()

    known = np.append(positive.points, np.iinfo(np.int64).max)  # the last ends searches for points behind the others
    added: dict[int, int] = {}  # point -> object
    spare = (points_of - 1).tolist()  # points that each object can lose
    for each, points, owners in zip(without.tolist(), *nearest(without, _REACH), strict=True):
        reach = _REACH
        while (point := _first_free(points, owners, added, spare)) < 0 and reach < largest[each]:
            reach *= 2
            (points,), (owners,) = nearest(np.array([each]), reach)
        if point >= 0:
            added[point] = each
    kept = ~np.isin(positive.points, list(added))
    given = np.array(list(added.values()), np.intp)
    joined = PositivePoints(
        np.concatenate([positive.points[kept], np.array(list(added), np.int64)]),
        np.concatenate([positive.level[kept], levels[given]]),
        np.concatenate([positive.objects[kept], given]),
    )
    order = np.argsort(joined.points)
    return PositivePoints(*(column[order] for column in joined))


def _first_free(points: list[int], owners: list[int], added: dict[int, int], spare: list[int]) -> int:
    """Return the first point that learns nothing, or an object with other points, which then has one fewer; or -1."""
    for point, owner in zip(points, owners, strict=True):
        if point < 0:
            break
        if point in added:
            continue
        if owner < 0:
            return point
        if spare[owner] > 0:
            spare[owner] -= 1
            return point
    return -1


def _nearest_points(
    boxes: NDArray[np.float64], stride: NDArray[np.int64], grid: NDArray[np.int64], reach: int
) -> NDArray[np.int64]:
    """Return the cells of one level nearest to the center of each box, nearest first: (K, N), at the end -1 for none.

    Only cells are returned that are nearer than all that are more than `reach` cells away, on either axis, from the
    nearest one. If none is that far away, all cells of the level are returned.

    Args:
        stride: (K,) of the level of each box; `grid`: (K, 2) its rows and columns.
    """
    center, cells = (boxes[:, :2] + boxes[:, 2:]) / 2, grid[:, ::-1]
    half, stride = (stride // 2)[:, None], stride[:, None]
    middle = ((center - half) / stride).round().clip(0, cells - 1).astype(np.int64)
    cell = middle[:, :, None] + np.arange(-reach, reach + 1)  # (K, 2, S): columns and rows
    inside = (cell >= 0) & (cell < cells[:, :, None])
    away = cell * stride[:, :, None] + half[:, :, None] - center[:, :, None]
    distance = np.hypot(away[:, 0, None, :], away[:, 1, :, None])  # (K, rows, columns)
    whole = np.asarray(((middle <= reach) & (middle + reach >= cells - 1)).all(axis=1))
    known = inside[:, 0, None, :] & inside[:, 1, :, None]
    known &= whole[:, None, None] | (distance < (reach + 0.5) * stride[:, :, None])
    index = cell[:, 1, :, None] * cells[:, 0, None, None] + cell[:, 0, None, :]
    order = np.where(known, distance, np.inf).reshape(len(boxes), -1).argsort(axis=1, kind="stable")
    return np.take_along_axis(np.where(known, index, -1).reshape(order.shape), order, axis=1)
