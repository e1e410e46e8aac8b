"""The max-IoU rule without the IoU matrix.

An anchor of a level can reach the similarity that matters only from cells near the object. So for each object and
anchor shape the rows and columns that qualify are computed, and only those anchors are compared: a few dozen per object
instead of all 245 520 of a 640x512 tile. The result is that of torchvision's `Matcher` on the dense matrix, with one
exception: the best anchor of a tiny object, below the background threshold, may overlap a neighbor slightly more.
torchvision gives it to the neighbor, and no anchor learns the tiny object; here it learns the tiny object.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tinydet.geometry.anchors import AnchorDesign
from tinydet.geometry.cells import nearest_cell
from tinydet.models.assign import Matches, Similarity
from tinydet.models.assign.similarity import IoU

IOU = IoU()


@dataclass(frozen=True)
class MaxIoUAssigner:
    """RetinaNet's rule, with low-quality matches.

    An anchor learns the object of highest similarity if that is at least `foreground`, or if the anchor is the best of
    an object. Between the thresholds it is ignored, below `background` it is background.
    """

    foreground: float = 0.5
    background: float = 0.4
    similarity: Similarity = IOU

    def __post_init__(self) -> None:
        if not 0 < self.background <= self.foreground <= 1:
            raise ValueError(
                "thresholds must satisfy 0 < background <= foreground <= 1, "
                f"got {self.background} and {self.foreground}"
            )

    def __call__(
        self, boxes: Tensor, owner: Tensor, design: AnchorDesign, anchors: Tensor, size: tuple[int, int]
    ) -> Matches:
        """See `Assigner`."""
        grid = cells_of(design, size)
        counts = [rows * columns * len(shapes) for (rows, columns), shapes in zip(grid, design.shapes, strict=True)]
        starts = [sum(counts[:level]) for level in range(len(counts))]
        best = _best_similarity(boxes, design, anchors, grid, starts, self.similarity)
        least = torch.minimum(best * (1 - 1e-5), best.new_tensor(self.background * (1 - 1e-5)))
        pairs = [
            _close_pairs(boxes, least, design, anchors[start : start + count], level, cells, self.similarity)
            for level, (cells, count, start) in enumerate(zip(grid, counts, starts, strict=True))
        ]
        objects = torch.cat([pair[0] for pair in pairs])
        index = torch.cat([pair[1] + start for pair, start in zip(pairs, starts, strict=True)])
        similarities = torch.cat([pair[2] for pair in pairs])
        return _resolve(
            objects,
            index + owner[objects] * len(anchors),
            similarities,
            len(boxes),
            self.foreground,
            self.background,
        )


def cells_of(design: AnchorDesign, size: tuple[int, int]) -> list[tuple[int, int]]:
    """Return rows and columns of each level for an input of `size` (height, width)."""
    return [(-(-size[0] // stride), -(-size[1] // stride)) for stride in design.strides]


def ignored_by_regions(regions: Tensor, owner: Tensor, design: AnchorDesign, size: tuple[int, int]) -> Tensor:
    """Return the flat indices of the anchors centered in an ignore region: they learn nothing.

    Args:
        regions: (R, 4) xyxy in input pixels.
        owner: (R,) index of the image that each region belongs to.
    """
    grid = cells_of(design, size)
    per_image = sum(rows * columns * len(shapes) for (rows, columns), shapes in zip(grid, design.shapes, strict=True))
    found = []
    start = 0
    for (rows, columns), stride, shapes in zip(grid, design.strides, design.shapes, strict=True):
        x = (torch.arange(columns, device=regions.device) + design.offset) * stride
        y = (torch.arange(rows, device=regions.device) + design.offset) * stride
        inside_x = (x >= regions[:, None, 0]) & (x < regions[:, None, 2])
        inside_y = (y >= regions[:, None, 1]) & (y < regions[:, None, 3])
        region, row, column = (inside_y[:, :, None] & inside_x[:, None, :]).nonzero(as_tuple=True)
        cell = (row * columns + column) * len(shapes) + start + owner[region] * per_image
        found.append((cell[:, None] + torch.arange(len(shapes), device=regions.device)).flatten())
        start += rows * columns * len(shapes)
    indices: Tensor = torch.cat(found).unique()
    return indices


def _best_similarity(
    boxes: Tensor,
    design: AnchorDesign,
    anchors: Tensor,
    grid: list[tuple[int, int]],
    starts: list[int],
    similarity: Similarity,
) -> Tensor:
    """(M,) the highest similarity of each object with any anchor: per shape, that of the cell nearest to the center."""
    best = boxes.new_zeros(len(boxes))
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    for level, (rows, columns) in enumerate(grid):
        stride = design.strides[level]
        column = nearest_cell(center[:, 0], design.offset * stride, stride, columns)
        row = nearest_cell(center[:, 1], design.offset * stride, stride, rows)
        first = (row * columns + column).long() * len(design.shapes[level]) + starts[level]
        for shape in range(len(design.shapes[level])):
            best = torch.maximum(best, similarity.pairs(boxes, anchors[first + shape]))
    return best


def _close_pairs(
    boxes: Tensor,
    least: Tensor,
    design: AnchorDesign,
    anchors: Tensor,
    level: int,
    cells: tuple[int, int],
    similarity: Similarity,
) -> tuple[Tensor, Tensor, Tensor]:
    """Object, anchor of the level, and similarity of all pairs of this level with a similarity >= least[object]."""
    stride, offset, (rows, columns) = design.strides[level], design.offset, cells
    shapes = boxes.new_tensor(design.shapes[level])  # (A, 2)
    size = boxes[:, 2:] - boxes[:, :2]
    distance = similarity.reach(size[:, None], shapes, least[:, None])
    obj, shape = (distance >= 0).all(2).nonzero(as_tuple=True)
    reach = distance[obj, shape]
    center = ((boxes[:, :2] + boxes[:, 2:]) / 2).double()[obj]
    limit = torch.tensor([columns - 1, rows - 1], device=boxes.device)
    first = ((center - reach) / stride - offset - 1e-4).ceil().long().clamp(min=0)
    last = torch.minimum(((center + reach) / stride - offset + 1e-4).floor().long(), limit)
    extent = (last - first + 1).clamp(min=0)  # (pairs, 2) columns and rows of the window
    count = extent.prod(1)
    pair = torch.repeat_interleave(torch.arange(len(obj), device=boxes.device), count)
    within = torch.arange(len(pair), device=boxes.device) - torch.repeat_interleave(count.cumsum(0) - count, count)
    width = extent[pair, 0]
    row = first[pair, 1] + torch.div(within, width, rounding_mode="floor")
    column = first[pair, 0] + within % width
    obj, index = obj[pair], (row * columns + column) * len(shapes) + shape[pair]
    found = similarity.pairs(boxes[obj], anchors[index])
    keep = found >= least[obj]
    return obj[keep], index[keep], found[keep]


def _resolve(
    objects: Tensor, anchors: Tensor, similarities: Tensor, count: int, foreground: float, background: float
) -> Matches:
    """Turn pairs into roles: the best object of each anchor, the best anchors of each object."""
    anchor, inverse = anchors.unique(return_inverse=True)
    highest = similarities.new_zeros(len(anchor)).scatter_reduce_(0, inverse, similarities, "amax")
    first = objects.new_full((len(anchor),), count)  # on ties the first object, as torch's max over rows
    at_highest = similarities == highest[inverse]
    first.scatter_reduce_(0, inverse[at_highest], objects[at_highest], "amin")
    best_of_object = similarities.new_zeros(count).scatter_reduce_(0, objects, similarities, "amax")
    low_quality = torch.zeros(len(anchor), dtype=torch.bool, device=similarities.device)
    low_quality[inverse[similarities == best_of_object[objects]]] = True
    positive = (highest >= foreground) | low_quality
    ignored = ~positive & (highest >= background)
    return Matches(anchor[positive], first[positive], anchor[ignored])
