"""From boxes on tiles to boxes on the scene, a row of tiles at a time.

1. NMS inside each tile and class, where the model has none.
2. Edge-drop. A box that touches an inner edge of its tile may be a part of an object. It is dropped where another
   tile has room for all of it: that tile sees the object whole, or more of it. So of every object the largest view
   stays, and a box stays though it touches an edge if the object is too large for the overlap.
3. Suppression across tiles only, and of each tile only the one box that is most alike. Two boxes of one tile never
   suppress each other here: the detector saw both at once and told them apart, which is what keeps crowds whole.
4. Boxes that still touch an edge are parts. Where two tiles both look, their parts of one object agree; agreeing parts
   are joined to one box, and a part that agrees with a whole box gives way to it.

Boxes that a coarser pass over the scene knows already (`known`) take part as whole boxes of one further tile: parts
give way to them, and they give way to a whole box of this pass that is alike.

The outcome depends on neither the order in which tiles arrive nor on how many rows are at hand: a box leaves once
nothing that is still to come can touch it. Offsets are added in float64, nothing is rounded.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tinydet.geometry.boxes import area, intersection, iou_of_pairs
from tinydet.geometry.groups import components, hulls, separate_groups
from tinydet.geometry.nms import conflicts, pairs_of_ranges, resolve, suppress
from tinydet.geometry.tiles import TileGrid
from tinydet.runtime.detections import Detections
from tinydet.runtime.merges import fuse

Merge = Literal["seam", "nms", "nmm", "wbf", "soft-nms"]
Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]
_Found = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float32], NDArray[np.int32]]  # as `add` takes them
MERGES: tuple[Merge, ...] = get_args(Merge)

SAME_OBJECT = 0.5  # IoU of two views of one object
JITTER = 2.0  # pixels; views of a very small object may have a lower IoU, but no edge is further off than this
FAINT = 0.1  # and no IoU is lower than this
EDGE = 4.0  # pixels; a box nearer to an inner edge touches it. Room is twice this: jitter must not drop both views
KNOWN = 1 << 40  # added to the tiles of boxes that another pass knows; no grid has as many


class Stitcher:
    """Takes the boxes of each tile in any order, hands out the scene's by rows."""

    def __init__(
        self,
        grid: TileGrid,
        *,
        nms_iou: float | None,
        merge: Merge = "seam",
        agnostic: bool = False,
        pixel: float = 1.0,
        score: float = 0.0,
        known: Detections | None = None,
    ) -> None:
        """
        Args:
            grid: the tiles, in scene pixels.
            nms_iou: threshold inside a tile; None where the model has suppressed already.
            merge: "seam" as above; "nms" (plain NMS over everything) and those of `fuse` are for comparison.
            agnostic: boxes of different classes may be one object, the best of them; else classes leave each other
                alone.
            pixel: side of a pixel that the model sees, in scene pixels.
            score: what "soft-nms" brings below it is left out.
            known: boxes of a coarser pass, final among themselves, in scene pixels.
        """
        if merge not in MERGES:
            raise ValueError(f"merge is one of {', '.join(MERGES)}, got {merge!r}")
        self._grid, self._nms_iou, self._merge, self._agnostic, self._score = grid, nms_iou, merge, agnostic, score
        self._known = _Boxes.known(Detections.empty() if known is None else known)
        self._edge, self._jitter = EDGE * pixel, JITTER * pixel
        self._missing = [grid.columns] * grid.rows
        self._rows: dict[int, list[_Found]] = {}
        self._next = 0
        self._pool = _Boxes.empty()

    def add(
        self,
        tiles: Sequence[int],
        sources: NDArray[np.int64],
        boxes: NDArray[np.float64],
        scores: NDArray[np.float32],
        labels: NDArray[np.int32],
    ) -> Detections:
        """Take all boxes of some tiles; return what became final, in no particular order.

        Args:
            tiles: indices of tiles that are done, also of those without a box.
            sources: (N,) which of the grid's tiles each box is from; the boxes of one tile in the model's order.
            boxes: (N, 4) xyxy in scene pixels, inside their tiles.
            scores, labels: (N,).

        Raises:
            ValueError: for boxes or scores that are not finite.
        """
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise ValueError("the model gave boxes that are NaN or infinite; export it again and compare it with torch")
        if len(scores):
            rows = sources // self._grid.columns
            first, last = int(rows.min()), int(rows.max())
            for row in range(first, last + 1):
                of_row = slice(None) if first == last else rows == row
                pieces = sources[of_row], boxes[of_row], scores[of_row], labels[of_row]
                self._rows.setdefault(row, []).append(pieces)
        for tile in tiles:
            self._missing[tile // self._grid.columns] -= 1
        done = []
        while self._next < self._grid.rows and self._missing[self._next] == 0:
            done.append(self._finish_row())
        return done[0] if len(done) == 1 else Detections.concatenate(done)

    def _boxes(
        self,
        tile: NDArray[np.int64],
        corners: NDArray[np.float64],
        score: NDArray[np.float32],
        label: NDArray[np.int32],
    ) -> _Boxes:
        """With the distance of each box to the nearest edge of its tile that is not the scene's."""
        grid = self._grid
        column, row = tile % grid.columns, tile // grid.columns
        outer = np.stack([column == 0, row == 0, column == grid.columns - 1, row == grid.rows - 1], axis=1)
        seam = np.where(outer, np.inf, np.abs(corners - grid.bounds(tile))).min(axis=1)
        part = (seam <= self._edge) & (self._merge == "seam")
        return _Boxes(corners, score, label.astype(np.int64), tile, seam, part)

    def _finish_row(self) -> Detections:
        pieces = self._rows.pop(self._next, [])
        self._next += 1
        horizon = float(self._grid.ys[self._next]) if self._next < self._grid.rows else np.inf
        if not pieces and not len(self._pool) and not len(self._known):
            return Detections.empty()
        # A row at a time: on arrays as short as a batch's, each step costs as much as on ten times as many boxes.
        row = self._boxes(*map(np.concatenate, zip(*pieces, strict=True))) if pieces else _Boxes.empty()
        if self._nms_iou is not None:
            kind = self._kind(row)
            group = row.tile * (int(kind.max(initial=0)) + 1) + kind
            row = row[np.sort(suppress(row.corners, row.score, self._nms_iou, same=group))]
        row = row[~(row.part & self._seen_better(row.corners, row.tile))]
        pool = _Boxes.concatenate([self._pool, row])
        if len(self._known):
            above = self._known.corners[:, 1] < horizon  # the others touch nothing that is final now
            pool = _Boxes.concatenate([pool, self._known[above]])
            self._known = self._known[~above]
        settle = self._settle if self._merge in ("seam", "nms") else self._settle_clusters
        final, self._pool = settle(pool, horizon)
        return final.detections()

    def _kind(self, boxes: _Boxes) -> NDArray[np.int64]:
        """Boxes of different kinds leave each other alone."""
        return np.zeros_like(boxes.label) if self._agnostic else boxes.label

    def _seen_better(self, corners: NDArray[np.float64], tile: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Boxes that touch an edge where a tile further along the axis has room for them."""
        grid = self._grid
        across = self._has_room(corners[:, 0], corners[:, 2], grid.xs, grid.tile_width, tile % grid.columns)
        along = self._has_room(corners[:, 1], corners[:, 3], grid.ys, grid.tile_height, tile // grid.columns)
        return across | along

    def _has_room(
        self,
        low: NDArray[np.float64],
        high: NDArray[np.float64],
        starts: tuple[int, ...],
        size: int,
        own: NDArray[np.int64],
    ) -> NDArray[np.bool_]:
        """Intervals of one axis that touch an inner edge of their own tile and lie inside another one with room."""
        edges = np.asarray(starts, np.float64)
        last = len(starts) - 1
        touches = ((own > 0) & (low <= edges[own] + self._edge)) | (
            (own < last) & (high >= edges[own] + size - self._edge)
        )
        # The last tile that leaves room before the interval leaves the most behind it.
        best = np.maximum(np.searchsorted(edges, low - 2 * self._edge, "right") - 1, 0)
        result: NDArray[np.bool_] = touches & ((best == last) | (high <= edges[best] + size - 2 * self._edge))
        return result

    def _settle(self, pool: _Boxes, horizon: float) -> tuple[_Boxes, _Boxes]:
        """Split into what is final when all boxes to come lie below `horizon`, and what must wait."""
        last = pool.part.astype(np.int8)
        if self._merge == "seam":
            last = 2 * last + (pool.tile >= KNOWN)  # a coarser pass places edges less exactly
        pool = pool[np.lexsort((pool.tile, -pool.score, last))]  # whole, known, parts; best first
        waiting = pool.corners[:, 3] > horizon
        better, worse = self._alike(pool)
        both_parts = pool.part[better] & pool.part[worse]
        (whole, part), (first, second) = self._agreeing(pool)
        verdict = resolve(
            np.concatenate([better[~both_parts], whole]), np.concatenate([worse[~both_parts], part]), waiting
        )
        stays = verdict.kept | verdict.undecided
        links = stays[first] & stays[second]
        if not links.any():
            return pool[verdict.kept], pool[verdict.undecided]
        group = components(len(pool), first[links], second[links])
        held = np.zeros(len(pool), np.bool_)
        held[group[verdict.undecided]] = True
        held = held[group] & stays  # with all parts that belong to one that must wait
        final = verdict.kept & ~held
        return _joined(pool[final], group[final]), pool[held]

    def _settle_clusters(self, pool: _Boxes, horizon: float) -> tuple[_Boxes, _Boxes]:
        """As `_settle`, for merges that make new boxes: groups that cannot meet are final one at a time."""
        pool = pool[np.lexsort((pool.tile, -pool.score))]
        group = separate_groups(pool.corners, self._kind(pool))
        bottom = np.full(len(pool), -np.inf)
        np.maximum.at(bottom, group, pool.corners[:, 3])
        final = bottom[group] <= horizon
        done = pool[final]
        fused = fuse(self._merge, done.corners, done.score, group[final], self._score)
        return replace(done[fused.source], corners=fused.corners, score=fused.scores), pool[~final]

    def _alike(self, pool: _Boxes) -> Pairs:
        """Pairs of boxes that are two views of one object."""
        if self._merge == "nms":
            return conflicts(pool.corners, SAME_OBJECT, same=self._kind(pool))
        first, second = conflicts(pool.corners, FAINT, same=self._kind(pool), apart=pool.view)
        one, two = pool.corners[first], pool.corners[second]
        iou = iou_of_pairs(one, two)
        alike = (iou > SAME_OBJECT) | (np.abs(one - two).max(axis=1, initial=0) < self._jitter)
        alike &= _each_others_best(iou, first, second, pool.view)
        return first[alike], second[alike]

    def _agreeing(self, pool: _Boxes) -> tuple[Pairs, Pairs]:
        """Pairs of one object in different tiles: (whole boxes, parts of them) and (parts, other parts)."""
        parts = np.flatnonzero(pool.part)
        if not parts.size:
            return (parts, parts), (parts, parts)
        grid = self._grid
        by_tile = np.argsort(pool.tile, kind="stable")
        sorted_tiles = pool.tile[by_tile]
        pairs = [(parts[:0], parts[:0])]
        for down, right in _neighbours(grid):
            column = pool.tile[parts] % grid.columns + right
            seen = parts[(column >= 0) & (column < grid.columns)]
            other = pool.tile[seen] + down * grid.columns + right
            low, high = (np.searchsorted(sorted_tiles, other, side) for side in ("left", "right"))
            pairs += [(by_tile[i], seen[which]) for which, i in pairs_of_ranges(low, high)]
        known = np.flatnonzero(pool.tile >= KNOWN)
        if known.size:
            both = np.concatenate([known, parts])
            first, second = conflicts(pool.corners[both], 0.0, apart=pool.part[both].astype(np.int8))
            pairs.append((both[first], both[second]))
        box, part = (np.concatenate(side) for side in zip(*pairs, strict=True))
        kind = self._kind(pool)
        same = kind[box] == kind[part]
        whole = same & ~pool.part[box]
        whole[whole] = self._part_of(pool, box[whole], part[whole])
        pieces = same & pool.part[box] & (box < part) & self._side_by_side(pool.tile[box], pool.tile[part])
        pieces[pieces] = self._pieces_of_one(pool, box[pieces], part[pieces])
        return (box[whole], part[whole]), (box[pieces], part[pieces])

    def _side_by_side(self, one: NDArray[np.int64], two: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Pairs of tiles of one row or column; tiles across a corner share too little to compare parts by."""
        columns = self._grid.columns
        result: NDArray[np.bool_] = (one // columns == two // columns) | (one % columns == two % columns)
        return result

    def _part_of(self, pool: _Boxes, whole: NDArray[np.int64], part: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Pairs where the part is what its tile sees of the whole box."""
        seen = intersection(pool.corners[whole], self._grid.bounds(pool.tile[part]))
        result: NDArray[np.bool_] = iou_of_pairs(seen, pool.corners[part]) > SAME_OBJECT
        return result

    def _pieces_of_one(self, pool: _Boxes, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Pairs of parts that are each other's most alike in the area that both tiles see."""
        common = intersection(*(self._grid.bounds(pool.tile[side]) for side in (first, second)))
        one, two = (intersection(pool.corners[side], common) for side in (first, second))
        iou = iou_of_pairs(one, two)
        # A sliver at the area's edge may be anything: the object must cross the area, or half of it lie inside.
        shared = intersection(one, two)
        crosses = (shared[:, 2:] - shared[:, :2] >= common[:, 2:] - common[:, :2] - 4 * self._edge).any(axis=1)
        half = 2 * area(shared) >= np.minimum(area(pool.corners[first]), area(pool.corners[second]))
        iou = np.where(crosses | half, iou, 0)
        result: NDArray[np.bool_] = iou > SAME_OBJECT
        return result & _each_others_best(iou, first, second, pool.tile)


@dataclass(frozen=True)
class _Boxes:
    """Boxes under way, parallel arrays."""

    corners: NDArray[np.float64]
    score: NDArray[np.float32]
    label: NDArray[np.int64]
    tile: NDArray[np.int64]
    seam: NDArray[np.float64]
    part: NDArray[np.bool_]

    @classmethod
    def empty(cls) -> _Boxes:
        return cls(
            np.zeros((0, 4)),
            np.zeros(0, np.float32),
            np.zeros(0, np.int64),
            np.zeros(0, np.int64),
            np.zeros(0),
            np.zeros(0, np.bool_),
        )

    @classmethod
    def known(cls, detections: Detections) -> _Boxes:
        """What another pass found."""
        return cls(
            detections.boxes.astype(np.float64),
            detections.scores,
            detections.labels.astype(np.int64),
            detections.tiles.astype(np.int64) + KNOWN,
            detections.seam_distance.astype(np.float64),
            np.zeros(len(detections), np.bool_),
        )

    @property
    def view(self) -> NDArray[np.int64]:
        """The tile; one for all that another pass knows, for it has told these apart."""
        return np.minimum(self.tile, KNOWN)

    @classmethod
    def concatenate(cls, parts: Sequence[_Boxes]) -> _Boxes:
        if not parts:
            return cls.empty()
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def __len__(self) -> int:
        return len(self.score)

    def __getitem__(self, which: NDArray[Any]) -> _Boxes:
        return _Boxes(*(getattr(self, field.name)[which] for field in fields(self)))

    def detections(self) -> Detections:
        passes = self.tile // KNOWN
        return Detections(
            self.corners.astype(np.float32),
            self.score,
            self.label.astype(np.int32),
            (self.tile - passes * KNOWN).astype(np.int32),
            self.seam.astype(np.float32),
            passes.astype(np.int32),
        )


def _joined(boxes: _Boxes, group: NDArray[np.int64]) -> _Boxes:
    """One box for each group: around all of its members, the rest from the first, which is the best."""
    first, corners = hulls(boxes.corners, group)
    return boxes if len(first) == len(boxes) else replace(boxes[first], corners=corners)


def _neighbours(grid: TileGrid) -> list[tuple[int, int]]:
    """Steps (rows down, columns right) to all tiles that may overlap a tile."""
    down, right = _reach(grid.ys, grid.tile_height), _reach(grid.xs, grid.tile_width)
    steps = itertools.product(range(-down, down + 1), range(-right, right + 1))
    return [step for step in steps if step != (0, 0)]


def _reach(starts: tuple[int, ...], size: int) -> int:
    edges = np.asarray(starts)
    return int((np.searchsorted(edges, edges + size, "left") - 1 - np.arange(len(edges))).max())


def _each_others_best(
    iou: NDArray[np.float64], first: NDArray[np.int64], second: NDArray[np.int64], tile: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Pairs in which each box is the most alike that the other has in that tile; of equal ones the first."""
    box, other = np.concatenate([first, second]), np.concatenate([second, first])
    of = tile[other]
    order = np.lexsort((other, np.concatenate([-iou, -iou]), of, box))
    box, of = box[order], of[order]
    new = np.ones(len(box), np.bool_)
    new[1:] = (box[1:] != box[:-1]) | (of[1:] != of[:-1])
    best = np.zeros(len(box), np.bool_)
    best[order] = new
    return best[: len(iou)] & best[len(iou) :]
