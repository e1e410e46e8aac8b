"""Stitch the boxes of tiles to the boxes of the scene, one row of tiles at a time.

1. NMS within each tile and class, for models without NMS in their graph.
2. Edge drop. A box that touches an inner edge of its tile may be a part of an object. It is dropped if another tile has
   room for all of it, because that tile sees the whole object, or more of it. So the largest view of each object stays,
   and a box at an edge stays if the object is too large for the overlap.
3. Suppression across tiles only; in each other tile, a box suppresses only the one most similar to it. Two boxes of one
   tile never suppress each other here: the detector saw both objects and separated them. This keeps crowds intact.
4. Boxes that still touch an edge are parts. Where two tiles overlap, their parts of one object agree; agreeing parts
   are joined, and a part that agrees with a whole box is suppressed by it.

Boxes of a coarse pass take part as whole boxes of one further tile: they suppress parts, and a similar whole box of the
full pass suppresses them.

The result depends neither on the order in which tiles arrive nor on the number of rows in memory: a box is final once
no box that is still to come can touch it. Offsets are added in float64 and nothing is rounded.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tinydet.geometry.boxes import area, intersection, iou_of_pairs
from tinydet.geometry.groups import components, hulls, separate_groups
from tinydet.geometry.nms import conflicts, pairs_of_ranges, resolve, suppress
from tinydet.geometry.tiles import TileGrid
from tinydet.runtime.detections import Detections
from tinydet.runtime.merges import fuse

Merge = Literal["seam", "nms", "nmm", "wbf", "soft-nms"]
Indices = NDArray[np.int64]
Pairs = tuple[Indices, Indices]
MERGES: tuple[Merge, ...] = get_args(Merge)

SAME_OBJECT = 0.5  # minimum IoU of two views of one object
JITTER = 2.0  # pixels; two views of a very small object may have a lower IoU if no edge differs by more than this
MIN_IOU = 0.1  # but not a lower IoU than this
ENOUGH = 1024  # boxes that are stitched at once: on a few, each array operation would cost as much as on many
EDGE = 4.0  # pixels; a box nearer to an inner edge touches it. Room means twice this: jitter must not drop both views


class Stitcher:
    """Takes the boxes of tiles in any order, and returns the boxes of the scene as rows of tiles are complete.

    Rows with few boxes wait for the next ones. The last row completes the scene.
    """

    def __init__(
        self,
        grid: TileGrid,
        *,
        nms_iou: float | None,
        merge: Merge = "seam",
        agnostic: bool = False,
        pixel: float = 1.0,
        score: float | NDArray[np.float32] = 0.0,
        coarse: Detections | None = None,
        enough: int = ENOUGH,
    ) -> None:
        """
        Args:
            grid: the tiles, in scene pixels.
            nms_iou: threshold of the NMS within a tile; None if the model has NMS in its graph.
            merge: "seam" as described above; "nms" (plain NMS over all boxes) and those of `fuse` are for comparison.
            agnostic: boxes of different classes may be one object, and the best of them stays; otherwise classes do not
                affect each other.
            pixel: side of a pixel of the model's input, in scene pixels.
            score: boxes whose score "soft-nms" reduces below this are dropped; one value, or (C,) of each class.
            coarse: final detections of a coarse pass, in scene pixels.
            enough: complete rows are stitched once they have this many boxes; it does not affect the result.
        """
        self._enough = enough
        self._grid, self._nms_iou, self._merge, self._agnostic = grid, nms_iou, merge, agnostic
        self._score = np.asarray(score, np.float32)
        self._edge, self._jitter = EDGE * pixel, JITTER * pixel
        self._missing = [grid.columns] * grid.rows
        self._rows: dict[int, list[Detections]] = {}
        self._next = 0
        self._pool = self._prepared(Detections.empty())  # boxes that a box to come may still change
        self._coarse = _whole_boxes(Detections.empty() if coarse is None else coarse)

    def add(self, tiles: Sequence[int], found: Detections) -> Detections:
        """Take all boxes of some tiles; return what became final, in no particular order.

        Args:
            tiles: indices of finished tiles, including those without a box.
            found: boxes in scene pixels, finite and inside their tiles; the column `tile` is the index of each box's
                tile. The boxes of one tile are in the order of the model.
        """
        if len(found):
            first, last = min(tiles) // self._grid.columns, max(tiles) // self._grid.columns
            for row in range(first, last + 1):
                self._rows.setdefault(row, []).append(
                    found if first == last else found[found.tiles // self._grid.columns == row]
                )
        for tile in tiles:
            self._missing[tile // self._grid.columns] -= 1
        done, arrived = self._next, 0
        while done < self._grid.rows and self._missing[done] == 0:
            arrived += sum(map(len, self._rows.get(done, ())))
            done += 1
        if done == self._next or (done < self._grid.rows and arrived < max(self._enough, len(self._pool))):
            return Detections.empty()
        return self._finish_rows(done)

    def _prepared(self, found: Detections) -> Detections:
        """Add the columns that stitching needs.

        `seam_distance` is the distance of each box to the nearest edge of its tile that is not an edge of the scene;
        `part` marks boxes that touch such an edge.
        """
        grid, tile = self._grid, found.tiles
        column, row = tile % grid.columns, tile // grid.columns
        outer = np.stack([column == 0, row == 0, column == grid.columns - 1, row == grid.rows - 1], axis=1)
        seam_distance = np.where(outer, np.inf, np.abs(found.boxes - grid.bounds(tile))).min(axis=1)
        part = (seam_distance <= self._edge) & (self._merge == "seam")
        columns = {"tile": tile, "pass": np.zeros_like(tile), "seam_distance": seam_distance, "part": part}
        return replace(found, data=columns)

    def _finish_rows(self, stop: int) -> Detections:
        """Stitch the rows of tiles before `stop`; return what became final."""
        arrived = [part for row in range(self._next, stop) for part in self._rows.pop(row, ())]
        self._next = stop
        horizon = float(self._grid.ys[self._next]) if self._next < self._grid.rows else np.inf
        if not arrived and not len(self._pool) and not len(self._coarse):
            return Detections.empty()
        row = self._prepared(Detections.concatenate(arrived))
        if self._nms_iou is not None:
            kind = self._kind(row)
            group = row.tiles * (int(kind.max(initial=0)) + 1) + kind
            row = row[np.sort(suppress(row.boxes, row.scores, self._nms_iou, same=group))]
        row = row[~(row.data["part"] & self._seen_better(row))]
        pool = Detections.concatenate([self._pool, row])
        if len(self._coarse):
            above = self._coarse.boxes[:, 1] < horizon  # the others touch nothing that becomes final now
            pool = Detections.concatenate([pool, self._coarse[above]])
            self._coarse = self._coarse[~above]
        settle = self._settle if self._merge in ("seam", "nms") else self._settle_clusters
        final, self._pool = settle(pool, horizon)
        return _as_result(final)

    def _kind(self, boxes: Detections) -> Indices:
        """Return a number for each box; boxes with different numbers do not affect each other."""
        return np.zeros(len(boxes), np.int64) if self._agnostic else boxes.labels.astype(np.int64)

    def _seen_better(self, row: Detections) -> NDArray[np.bool_]:
        """Mark boxes that touch an edge across which another tile has room for them."""
        grid, (x1, y1, x2, y2) = self._grid, row.boxes.T
        across = self._has_room(x1, x2, grid.xs, grid.tile_width, row.tiles % grid.columns)
        along = self._has_room(y1, y2, grid.ys, grid.tile_height, row.tiles // grid.columns)
        return across | along

    def _has_room(
        self,
        low: NDArray[np.float64],
        high: NDArray[np.float64],
        starts: tuple[int, ...],
        size: int,
        own: Indices,
    ) -> NDArray[np.bool_]:
        """Mark intervals on one axis that touch an inner edge of their own tile and fit into another tile with room.

        Args:
            low, high: ends of the intervals.
            starts: lower edges of the tiles.
            size: of a tile.
            own: index of each interval's tile in `starts`.
        """
        edges = np.asarray(starts, np.float64)
        last = len(starts) - 1
        touches = ((own > 0) & (low <= edges[own] + self._edge)) | (
            (own < last) & (high >= edges[own] + size - self._edge)
        )
        # Of the tiles with room before the interval, the last one has the most room behind it.
        best = np.maximum(np.searchsorted(edges, low - 2 * self._edge, "right") - 1, 0)
        result: NDArray[np.bool_] = touches & ((best == last) | (high <= edges[best] + size - 2 * self._edge))
        return result

    def _settle(self, pool: Detections, horizon: float) -> tuple[Detections, Detections]:
        """Split boxes into those that are final, given that all boxes to come lie below `horizon`, and the others."""
        last = pool.data["part"].astype(np.int8)
        if self._merge == "seam":
            last = 2 * last + pool.passes  # a coarse pass locates edges less exactly
        # Whole boxes, boxes of the coarse pass, parts; each by descending score.
        pool = pool[np.lexsort((pool.tiles, pool.passes, -pool.scores, last))]
        part = pool.data["part"]
        waiting = pool.boxes[:, 3] > horizon
        better, worse = self._similar(pool)
        both_parts = part[better] & part[worse]
        (whole, whole_part), (first, second) = self._agreeing(pool)
        verdict = resolve(
            np.concatenate([better[~both_parts], whole]), np.concatenate([worse[~both_parts], whole_part]), waiting
        )
        stays = verdict.kept | verdict.undecided
        links = stays[first] & stays[second]
        if not links.any():
            return pool[verdict.kept], pool[verdict.undecided]
        group = components(len(pool), first[links], second[links])
        held = np.zeros(len(pool), np.bool_)
        held[group[verdict.undecided]] = True
        held = held[group] & stays  # including all parts of a group with a part that must wait
        final = verdict.kept & ~held
        return _joined(pool[final], group[final]), pool[held]

    def _settle_clusters(self, pool: Detections, horizon: float) -> tuple[Detections, Detections]:
        """Like `_settle`, for merges that create new boxes: whole groups of boxes become final."""
        pool = pool[np.lexsort((pool.tiles, pool.passes, -pool.scores))]
        group = separate_groups(pool.boxes, self._kind(pool))
        bottom = np.full(len(pool), -np.inf)
        np.maximum.at(bottom, group, pool.boxes[:, 3])
        final = bottom[group] <= horizon
        done = pool[final]
        least = self._score[done.labels] if self._score.ndim else np.full(len(done), self._score)
        fused = fuse(self._merge, done.boxes, done.scores, group[final], least)
        return replace(done[fused.source], boxes=fused.corners, scores=fused.scores), pool[~final]

    def _similar(self, pool: Detections) -> Pairs:
        """Find pairs of boxes that are two views of one object."""
        if self._merge == "nms":
            return conflicts(pool.boxes, SAME_OBJECT, same=self._kind(pool))
        view = np.where(pool.passes > 0, -1, pool.tiles)  # the coarse pass is one view: it has separated its boxes
        first, second = conflicts(pool.boxes, MIN_IOU, same=self._kind(pool), apart=view)
        one, two = pool.boxes[first], pool.boxes[second]
        iou = iou_of_pairs(one, two)
        similar = (iou > SAME_OBJECT) | (np.abs(one - two).max(axis=1, initial=0) < self._jitter)
        similar &= _mutual_best(iou, first, second, view)
        return first[similar], second[similar]

    def _agreeing(self, pool: Detections) -> tuple[Pairs, Pairs]:
        """Find pairs of one object in different tiles: (whole boxes, parts of them) and (parts, other parts)."""
        is_part, tile = pool.data["part"], pool.tiles
        parts = np.flatnonzero(is_part)
        if not parts.size:
            return (parts, parts), (parts, parts)
        grid = self._grid
        full_pass = np.flatnonzero(pool.passes == 0)
        by_tile = full_pass[np.argsort(tile[full_pass], kind="stable")]
        sorted_tiles = tile[by_tile]
        pairs = [(parts[:0], parts[:0])]
        for down, right in _neighbors(grid):
            column = tile[parts] % grid.columns + right
            inside = parts[(column >= 0) & (column < grid.columns)]
            other = tile[inside] + down * grid.columns + right
            low, high = (np.searchsorted(sorted_tiles, other, side) for side in ("left", "right"))
            pairs += [(by_tile[i], inside[which]) for which, i in pairs_of_ranges(low, high)]
        coarse = np.flatnonzero(pool.passes > 0)
        if coarse.size:
            both = np.concatenate([coarse, parts])
            first, second = conflicts(pool.boxes[both], 0.0, apart=is_part[both].astype(np.int8))
            pairs.append((both[first], both[second]))
        box, part = (np.concatenate(side) for side in zip(*pairs, strict=True))
        kind = self._kind(pool)
        same = kind[box] == kind[part]
        whole = same & ~is_part[box]
        whole[whole] = self._is_part_of(pool, box[whole], part[whole])
        pieces = same & is_part[box] & (box < part) & self._side_by_side(tile[box], tile[part])
        pieces[pieces] = self._are_one_object(pool, box[pieces], part[pieces])
        return (box[whole], part[whole]), (box[pieces], part[pieces])

    def _side_by_side(self, one: Indices, two: Indices) -> NDArray[np.bool_]:
        """Mark pairs of tiles in one row or column; diagonal neighbors share too little to compare parts."""
        columns = self._grid.columns
        result: NDArray[np.bool_] = (one // columns == two // columns) | (one % columns == two % columns)
        return result

    def _is_part_of(self, pool: Detections, whole: Indices, part: Indices) -> NDArray[np.bool_]:
        """Mark pairs in which the part is what its tile shows of the whole box."""
        visible = intersection(pool.boxes[whole], self._grid.bounds(pool.tiles[part]))
        result: NDArray[np.bool_] = iou_of_pairs(visible, pool.boxes[part]) > SAME_OBJECT
        return result

    def _are_one_object(self, pool: Detections, first: Indices, second: Indices) -> NDArray[np.bool_]:
        """Mark pairs of parts that are mutually most similar in the area that both tiles show."""
        boxes, tile = pool.boxes, pool.tiles
        common = intersection(*(self._grid.bounds(tile[side]) for side in (first, second)))
        one, two = (intersection(boxes[side], common) for side in (first, second))
        iou = iou_of_pairs(one, two)
        # A sliver at the border of the area proves nothing: the object must cross the area, or lie half inside it.
        shared = intersection(one, two)
        crosses = (shared[:, 2:] - shared[:, :2] >= common[:, 2:] - common[:, :2] - 4 * self._edge).any(axis=1)
        half = 2 * area(shared) >= np.minimum(area(boxes[first]), area(boxes[second]))
        iou = np.where(crosses | half, iou, 0)
        result: NDArray[np.bool_] = iou > SAME_OBJECT
        return result & _mutual_best(iou, first, second, tile)


def _whole_boxes(coarse: Detections) -> Detections:
    """Convert the result of a coarse pass to boxes that take part in the stitching of the full pass."""
    columns = {
        "tile": coarse.tiles.astype(np.int64),
        "pass": np.ones(len(coarse), np.int64),
        "seam_distance": coarse.seam_distance.astype(np.float64),
        "part": np.zeros(len(coarse), np.bool_),
    }
    return replace(coarse, boxes=coarse.boxes.astype(np.float64), data=columns)


def _as_result(boxes: Detections) -> Detections:
    """Convert to the types and columns of a result."""
    columns = {
        "tile": boxes.tiles.astype(np.int32),
        "pass": boxes.passes.astype(np.int32),
        "seam_distance": boxes.seam_distance.astype(np.float32),
    }
    return replace(boxes, boxes=boxes.boxes.astype(np.float32), data=columns)


def _joined(boxes: Detections, group: Indices) -> Detections:
    """Join each group to one box around all of its members; all else is that of the first member, the best one."""
    first, corners = hulls(boxes.boxes, group)
    return boxes if len(first) == len(boxes) else replace(boxes[first], boxes=corners)


def _neighbors(grid: TileGrid) -> list[tuple[int, int]]:
    """Return the steps (rows down, columns right) from a tile to all tiles that may overlap it."""
    down, right = _reach(grid.ys, grid.tile_height), _reach(grid.xs, grid.tile_width)
    steps = itertools.product(range(-down, down + 1), range(-right, right + 1))
    return [step for step in steps if step != (0, 0)]


def _reach(starts: tuple[int, ...], size: int) -> int:
    edges = np.asarray(starts)
    return int((np.searchsorted(edges, edges + size, "left") - 1 - np.arange(len(edges))).max())


def _mutual_best(iou: NDArray[np.float64], first: Indices, second: Indices, view: Indices) -> NDArray[np.bool_]:
    """Mark pairs in which each box is the most similar one to the other within its view; of equal ones the first.

    Args:
        iou: (P,) of each pair.
        first, second: (P,) indices of the boxes.
        view: (N,) tile of each box.
    """
    box, other = np.concatenate([first, second]), np.concatenate([second, first])
    other_view = view[other]
    order = np.lexsort((other, np.concatenate([-iou, -iou]), other_view, box))
    box, other_view = box[order], other_view[order]
    new = np.ones(len(box), np.bool_)
    new[1:] = (box[1:] != box[:-1]) | (other_view[1:] != other_view[:-1])
    best = np.zeros(len(box), np.bool_)
    best[order] = new
    return best[: len(iou)] & best[len(iou) :]
