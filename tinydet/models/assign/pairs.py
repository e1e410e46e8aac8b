"""Similar pairs of an object and an anchor, without the (M, N) matrix.

Anchors of one shape differ only in their position, and their similarity does not grow with the distance of the centers.
So for each object and anchor shape the best anchor is at the cell nearest to the object's center, and the anchors of at
least a given similarity are in a window of cells around it, whose size follows in closed form.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tinydet.geometry.anchors import AnchorDesign
from tinydet.geometry.cells import nearest_cell
from tinydet.models.assign import Similarity

CHUNK = 1 << 18  # pairs compared at a time
ROUNDING = 1e-5  # relative; a similarity computed twice may differ by so much
_LEAST = 1e-30  # below any similarity that matters; windows of 0 may be infinite
_FAR = 1e9  # pixels


class Pairs(NamedTuple):
    """Similar pairs of an object and an anchor of its image; anchors are counted within one image."""

    objects: Tensor  # (P,)
    anchors: Tensor  # (P,)
    similarity: Tensor  # (P,)


class Level(NamedTuple):
    """One level of a design for one input size."""

    rows: int
    columns: int
    stride: int
    shapes: tuple[tuple[float, float], ...]
    start: int  # number of anchors on finer levels


def levels_of(design: AnchorDesign, size: tuple[int, int]) -> list[Level]:
    """Return the levels of a design for an input of `size` (height, width)."""
    levels, start = [], 0
    for stride, shapes in zip(design.strides, design.shapes, strict=True):
        rows, columns = -(-size[0] // stride), -(-size[1] // stride)
        levels.append(Level(rows, columns, stride, shapes, start))
        start += rows * columns * len(shapes)
    return levels


def kth_similarity(
    boxes: Tensor, design: AnchorDesign, anchors: Tensor, levels: Sequence[Level], similarity: Similarity, rank: int = 1
) -> Tensor:
    """Return a lower bound of each object's `rank`-th highest similarity with any anchor: (M,); exact for rank 1.

    It is the `rank`-th highest of the anchors at the nearest cells of each level, at least `rank` of them if the level
    has so many.
    """
    center = ((boxes[:, :2] + boxes[:, 2:]) / 2).double()
    highest = boxes.new_zeros(len(boxes), 0)
    for level in levels:
        height, width = _window(level, -(-rank // len(level.shapes)))
        row = _first_cell(center[:, 1], design.offset, level.stride, level.rows, height)
        column = _first_cell(center[:, 0], design.offset, level.stride, level.columns, width)
        within = torch.arange(height * width, device=boxes.device)
        y, x = row[:, None] + torch.div(within, width, rounding_mode="floor"), column[:, None] + within % width
        cell = (y * level.columns + x) * len(level.shapes) + level.start
        index = (cell[:, :, None] + torch.arange(len(level.shapes), device=boxes.device)).flatten(1)
        repeated = boxes.repeat_interleave(index.shape[1], dim=0)
        found = similarity.pairs(repeated, anchors[index.flatten()]).view(index.shape)
        highest = torch.cat([highest, found], dim=1)
        highest = highest.topk(min(rank, highest.shape[1]), dim=1).values
    return highest.amin(dim=1)


def similar_pairs(
    boxes: Tensor,
    least: Tensor,
    design: AnchorDesign,
    anchors: Tensor,
    levels: Sequence[Level],
    similarity: Similarity,
) -> Iterator[Pairs]:
    """Yield all pairs with a similarity of at least `least`, in chunks.

    Args:
        least: (M,) similarity by object.
        anchors: (N, 4) of one image; all images of a batch have the same.
    """
    least = least.clamp(min=_LEAST)
    size = boxes[:, 2:] - boxes[:, :2]
    center = ((boxes[:, :2] + boxes[:, 2:]) / 2).double()
    for level in levels:
        shapes = boxes.new_tensor(level.shapes)  # (A, 2)
        distance = similarity.reach(size[:, None], shapes, least[:, None])
        obj, shape = (distance >= 0).all(2).nonzero(as_tuple=True)
        reach = distance[obj, shape].clamp(max=_FAR)
        limit = torch.tensor([level.columns - 1, level.rows - 1], device=boxes.device)
        first = ((center[obj] - reach) / level.stride - design.offset - 1e-4).ceil().long().clamp(min=0)
        last = torch.minimum(((center[obj] + reach) / level.stride - design.offset + 1e-4).floor().long(), limit)
        extent = (last - first + 1).clamp(min=0)  # (windows, 2) columns and rows
        count = extent.prod(1)
        ends = count.cumsum(0)
        total = int(ends[-1]) if len(ends) else 0
        for begin in range(0, total, CHUNK):
            number = torch.arange(begin, min(begin + CHUNK, total), device=boxes.device)
            window = torch.bucketize(number, ends, right=True)
            within = number - (ends - count)[window]
            width = extent[window, 0]
            row = first[window, 1] + torch.div(within, width, rounding_mode="floor")
            column = first[window, 0] + within % width
            index = (row * level.columns + column) * len(shapes) + shape[window] + level.start
            owner = obj[window]
            found = similarity.pairs(boxes[owner], anchors[index])
            keep = found >= least[owner]
            yield Pairs(owner[keep], index[keep], found[keep])


def best_pairs(
    boxes: Tensor,
    rank: int,
    design: AnchorDesign,
    anchors: Tensor,
    size: tuple[int, int],
    similarity: Similarity,
    *,
    ties: bool = False,
) -> Pairs:
    """Return each object's `rank` most similar anchors, sorted by object, the most similar first, then by anchor.

    Anchors of similarity 0 are left out, so an object may have fewer.

    Args:
        anchors: (N, 4) of one image of `size` (height, width).
        ties: return anchors as similar as the `rank`-th, too.
    """
    levels = levels_of(design, size)
    least = kth_similarity(boxes, design, anchors, levels, similarity, min(rank, len(anchors))) * (1 - ROUNDING)
    pairs = ranked(concatenate([*similar_pairs(boxes, least, design, anchors, levels, similarity)], boxes))
    count = torch.bincount(pairs.objects, minlength=len(boxes))
    first = count.cumsum(0) - count
    kept = torch.arange(len(pairs.objects), device=count.device) - first[pairs.objects] < rank
    if ties:
        lowest = pairs.similarity.new_full((len(boxes),), torch.inf)
        lowest.scatter_reduce_(0, pairs.objects[kept], pairs.similarity[kept], "amin")
        kept |= pairs.similarity == lowest[pairs.objects]
    kept &= pairs.similarity > 0
    return Pairs(*(column[kept] for column in pairs))


def ranked(pairs: Pairs) -> Pairs:
    """Sort pairs by object, then the most similar first, then by anchor."""
    order = pairs.anchors.argsort(stable=True)
    order = order[pairs.similarity[order].argsort(descending=True, stable=True)]
    order = order[pairs.objects[order].argsort(stable=True)]
    return Pairs(*(column[order] for column in pairs))


def near_anchors(
    boxes: Tensor,
    owner: Tensor,
    background: float,
    design: AnchorDesign,
    anchors: Tensor,
    size: tuple[int, int],
    similarity: Similarity,
) -> Tensor:
    """Return for each anchor of the batch whether it is similar to some object: (B * N,) up to the last with one.

    Args:
        owner: (M,) index of the image that each object belongs to.
        background: the least similarity that counts.
    """
    images = int(owner.max()) + 1 if len(owner) else 0
    near = torch.zeros(images * len(anchors), dtype=torch.bool, device=boxes.device)
    least = boxes.new_full((len(boxes),), background)
    for pairs in similar_pairs(boxes, least, design, anchors, levels_of(design, size), similarity):
        near[pairs.anchors + owner[pairs.objects] * len(anchors)] = True
    return near


def concatenate(pairs: Sequence[Pairs], boxes: Tensor) -> Pairs:
    """Join chunks of pairs; `boxes` gives device and type where there are none."""
    nothing = torch.zeros(0, dtype=torch.long, device=boxes.device)
    columns = zip(*(Pairs(nothing, nothing, boxes.new_zeros(0)), *pairs), strict=True)
    return Pairs(*(torch.cat(column) for column in columns))


def _window(level: Level, rank: int) -> tuple[int, int]:
    """Return rows and columns of a window of at least `rank` cells, or all cells of the level."""
    side = math.isqrt(rank - 1) + 1
    height, width = min(side, level.rows), min(side, level.columns)
    width = min(level.columns, max(width, -(-rank // height)))
    height = min(level.rows, max(height, -(-rank // width)))
    return height, width


def _first_cell(center: Tensor, offset: float, stride: int, cells: int, length: int) -> Tensor:
    """Return the first of the `length` cells that are nearest to each center."""
    middle_of_first = (offset + (length - 1) / 2) * stride
    return nearest_cell(center, middle_of_first, stride, cells - length + 1).long()
