"""Points as in FCOS: the center of every cell of every pyramid level, and which object each of them learns. numpy only.

Training and S-alpha share this rule. Only the points in a window around each object are compared with it, so no matrix
of all objects and all points is needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tinydet.geometry.anchors import AnchorDesign, Pyramid

Range = tuple[float, float]
CHUNK = 10_000  # boxes, at least one image


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
    found = [_candidates(design, corners, grids[image, level], level) for level in range(len(design.levels))]
    objects = np.concatenate([pair[0] for pair in found])
    level = np.repeat(np.arange(len(found)), [len(pair[0]) for pair in found])
    index = starts[image[objects], level] + np.concatenate([pair[1] for pair in found])
    order = np.lexsort((objects, area[objects], index))
    index, first = np.unique(index[order], return_index=True)
    chosen = order[first]
    positive = PositivePoints(index, level[chosen], objects[chosen])
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
    """Return object and cell of all pairs in which a point of a level may learn an object.

    Args:
        grid: (M, 2) rows and columns of the level in the image of each object.
    """
    stride, (low, high) = design.strides[level], design.ranges[level]
    near, far = boxes[:, :2], boxes[:, 2:]
    if design.radius is not None:
        center = (near + far) / 2
        near = np.maximum(near, center - design.radius * stride)
        far = np.minimum(far, center + design.radius * stride)
    limits = grid[:, ::-1] - 1
    # A point farther than `high` from a side is of another level, so large objects need no large window here.
    nearest = np.maximum(near, boxes[:, 2:] - high)
    farthest = np.minimum(far, boxes[:, :2] + high)
    first = np.floor((nearest - stride // 2) / stride).clip(0, None)
    last = np.minimum(np.ceil((farthest - stride // 2) / stride), limits)
    extent = (last - first + 1).clip(0, None).astype(np.int64)  # (M, 2) columns and rows of the window
    count = extent.prod(axis=1)
    objects = np.repeat(np.arange(len(boxes)), count)
    within = np.arange(len(objects)) - np.repeat(count.cumsum() - count, count)
    steps = np.stack([within % extent[objects, 0], within // extent[objects, 0]], axis=1)
    cell = first[objects].astype(np.int64) + steps
    point = (cell * stride + stride // 2).astype(np.float64)
    distances = np.concatenate([point - boxes[objects, :2], boxes[objects, 2:] - point], axis=1)
    largest = distances.max(axis=1, initial=-np.inf)
    positive = (distances > 0).all(axis=1) & (low <= largest) & (largest <= high)
    positive &= ((point > near[objects]) & (point < far[objects])).all(axis=1)
    objects, cell = objects[positive], cell[positive]
    return objects, cell[:, 1] * grid[objects, 1] + cell[:, 0]


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
    levels = design.level_of(boxes)
    added: dict[int, int] = {}  # point -> object
    for each in without.tolist():
        level, of_image = int(levels[each]), int(image[each])
        stride, (rows, columns) = design.strides[level], grids[of_image, level].tolist()
        center = (boxes[each, :2] + boxes[each, 2:]) / 2
        for reach in _doubling(max(rows, columns)):
            x, y = (_near(center[axis], stride, (columns, rows)[axis], reach) for axis in (0, 1))
            distance = np.hypot(
                (x * stride + stride // 2 - center[0])[None, :], (y * stride + stride // 2 - center[1])[:, None]
            ).ravel()
            index = starts[of_image, level] + (y[:, None] * columns + x[None, :]).ravel()
            complete = len(index) == rows * columns
            # Points that are closer than this cannot be outside of the window.
            order = np.argsort(distance, kind="stable")
            order = order if complete else order[distance[order] < (reach + 0.5) * stride]
            free = (point for point in index[order].tolist() if point not in added)
            if (point := _first_free(free, positive, points_of)) is not None:
                added[point] = each
                break
    kept = ~np.isin(positive.points, list(added))
    given = list(added.values())
    points = np.concatenate([positive.points[kept], np.array(list(added), np.int64)])
    level_of = np.concatenate([positive.level[kept], levels[np.array(given, np.intp)]])
    objects = np.concatenate([positive.objects[kept], np.array(given, np.intp)])
    order = np.argsort(points)
    return PositivePoints(points[order], level_of[order], objects[order])


def _first_free(points: Iterable[int], positive: PositivePoints, points_of: NDArray[np.intp]) -> int | None:
    """Return the first point that learns nothing, or an object with other points, which then has one fewer."""
    for point in points:
        place = int(np.searchsorted(positive.points, point))
        if place == len(positive.points) or positive.points[place] != point:
            return point
        if points_of[owner := positive.objects[place]] > 1:
            points_of[owner] -= 1
            return point
    return None


def _near(center: float, stride: int, cells: int, reach: int) -> NDArray[np.int64]:
    """Return the cells of one axis at most `reach` cells from the one nearest to `center`."""
    nearest = min(max(round((center - stride // 2) / stride), 0), cells - 1)
    return np.arange(max(nearest - reach, 0), min(nearest + reach, cells - 1) + 1)


def _doubling(largest: int) -> list[int]:
    """Return 2, 4, 8, … up to the first that is at least `largest`.

    >>> _doubling(10)
    [2, 4, 8, 16]
    """
    reaches = [2]
    while reaches[-1] < largest:
        reaches.append(2 * reaches[-1])
    return reaches
