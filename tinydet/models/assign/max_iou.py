"""Which anchors learn which objects: IoU matching without the IoU matrix.

An anchor of a level can only reach the IoU that matters from cells near the object, so for each object and anchor
shape the rows and columns that may hold are computed and only they are compared: some tens of anchors for each
object instead of all 245 520 of a 640x512 tile. The answer is that of torchvision's `Matcher` on the dense matrix, but
for one case: the best anchor of a tiny object, below the background threshold, may overlap a neighbour a little more.
torchvision gives it to the neighbour, and the tiny object is learned by nobody; here it learns the tiny object.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tinydet.geometry.anchors import AnchorDesign


class Matches(NamedTuple):
    """Flat indices into the (B * N) anchors of a batch, N anchors an image; all other anchors are background."""

    positive: Tensor  # (P,) anchors that learn an object
    objects: Tensor  # (P,) index of that object into the boxes
    ignored: Tensor  # (I,) anchors that learn nothing


def match_anchors(
    boxes: Tensor,
    image_index: Tensor,
    design: AnchorDesign,
    anchors: Tensor,
    size: tuple[int, int],
    *,
    foreground: float = 0.5,
    background: float = 0.4,
) -> Matches:
    """Match the objects of a batch with the anchors of its images (RetinaNet's rule, low-quality matches on).

    An anchor learns the object of highest IoU if that is at least `foreground`, or if it is an object's best
    anchor; between the thresholds it is ignored.

    Args:
        boxes: (M, 4) xyxy in input pixels, float32.
        image_index: (M,) which image of the batch each belongs to.
        anchors: (N, 4) of all levels of `design` for `size`, finest first, xyxy in input pixels.
        size: (height, width) of the input.
    """
    if not 0 < background <= foreground <= 1:
        raise ValueError(f"thresholds must hold 0 < background <= foreground <= 1, got {background} and {foreground}")
    grid = [(-(-size[0] // s), -(-size[1] // s)) for s in design.strides]
    counts = [rows * columns * len(shapes) for (rows, columns), shapes in zip(grid, design.shapes, strict=True)]
    starts = [sum(counts[:level]) for level in range(len(counts))]
    best = _best_iou(boxes, design, anchors, grid, starts)
    needed = torch.minimum(best * (1 - 1e-5), best.new_tensor(background * (1 - 1e-5)))
    pairs = [
        _near(boxes, needed, design, anchors[start : start + count], level, *cells)
        for level, (cells, count, start) in enumerate(zip(grid, counts, starts, strict=True))
    ]
    objects = torch.cat([pair[0] for pair in pairs])
    index = torch.cat([pair[1] + start for pair, start in zip(pairs, starts, strict=True)])
    ious = torch.cat([pair[2] for pair in pairs])
    return _resolve(objects, index + image_index[objects] * len(anchors), ious, len(boxes), foreground, background)


def ignored_by_regions(regions: Tensor, image_index: Tensor, design: AnchorDesign, size: tuple[int, int]) -> Tensor:
    """Flat indices of the anchors that are centred in an ignore region: they learn nothing.

    Args:
        regions: (R, 4) xyxy in input pixels.
        image_index: (R,) which image of the batch each belongs to.
    """
    grid = [(-(-size[0] // s), -(-size[1] // s)) for s in design.strides]
    per_image = sum(rows * columns * len(shapes) for (rows, columns), shapes in zip(grid, design.shapes, strict=True))
    found = []
    start = 0
    for (rows, columns), stride, shapes in zip(grid, design.strides, design.shapes, strict=True):
        x = (torch.arange(columns, device=regions.device) + design.offset) * stride
        y = (torch.arange(rows, device=regions.device) + design.offset) * stride
        inside_x = (x >= regions[:, None, 0]) & (x < regions[:, None, 2])
        inside_y = (y >= regions[:, None, 1]) & (y < regions[:, None, 3])
        region, row, column = (inside_y[:, :, None] & inside_x[:, None, :]).nonzero(as_tuple=True)
        cell = (row * columns + column) * len(shapes) + start + image_index[region] * per_image
        found.append((cell[:, None] + torch.arange(len(shapes), device=regions.device)).flatten())
        start += rows * columns * len(shapes)
    indices: Tensor = torch.cat(found).unique()
    return indices


def _best_iou(
    boxes: Tensor, design: AnchorDesign, anchors: Tensor, grid: list[tuple[int, int]], starts: list[int]
) -> Tensor:
    """(M,) the highest IoU of each object with any anchor: for a shape it is at the cell nearest to the centre."""
    best = boxes.new_zeros(len(boxes))
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    for level, (rows, columns) in enumerate(grid):
        stride = design.strides[level]
        column = (centre[:, 0] / stride - design.offset).round().clamp(0, columns - 1)
        row = (centre[:, 1] / stride - design.offset).round().clamp(0, rows - 1)
        first = (row * columns + column).long() * len(design.shapes[level]) + starts[level]
        for shape in range(len(design.shapes[level])):
            best = torch.maximum(best, _pair_iou(boxes, anchors[first + shape]))
    return best


def _near(
    boxes: Tensor, needed: Tensor, design: AnchorDesign, anchors: Tensor, level: int, rows: int, columns: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Object index, anchor index within the level, and IoU of all pairs of this level with IoU >= needed[object]."""
    stride, offset = design.strides[level], design.offset
    shapes = boxes.new_tensor(design.shapes[level])  # (A, 2)
    size = boxes[:, 2:] - boxes[:, :2]
    areas = (size.prod(1)[:, None] + shapes.prod(1)).double()
    # IoU >= t means an overlap of at least t / (1 + t) of the summed areas, so on each axis at least `overlap`.
    intersection = areas * (needed / (1 + needed)).double()[:, None]
    widest = torch.minimum(size[:, None], shapes)  # (M, A, 2): the largest overlap on each axis
    overlap = intersection[:, :, None] / widest.flip(2)
    possible = (overlap <= widest * (1 + 1e-5)).all(2)
    obj, shape = possible.nonzero(as_tuple=True)
    reach = (size[obj] + shapes[shape]) / 2 - overlap[obj, shape] * (1 - 1e-5)
    centre = ((boxes[:, :2] + boxes[:, 2:]) / 2).double()[obj]
    limit = torch.tensor([columns - 1, rows - 1], device=boxes.device)
    first = ((centre - reach) / stride - offset - 1e-4).ceil().long().clamp(min=0)
    last = torch.minimum(((centre + reach) / stride - offset + 1e-4).floor().long(), limit)
    extent = (last - first + 1).clamp(min=0)  # (pairs, 2) columns and rows of the window
    cells = extent.prod(1)
    pair = torch.repeat_interleave(torch.arange(len(obj), device=boxes.device), cells)
    within = torch.arange(len(pair), device=boxes.device) - torch.repeat_interleave(cells.cumsum(0) - cells, cells)
    width = extent[pair, 0]
    row = first[pair, 1] + torch.div(within, width, rounding_mode="floor")
    column = first[pair, 0] + within % width
    obj, index = obj[pair], (row * columns + column) * len(shapes) + shape[pair]
    iou = _pair_iou(boxes[obj], anchors[index])
    keep = iou >= needed[obj]
    return obj[keep], index[keep], iou[keep]


def _pair_iou(boxes: Tensor, anchors: Tensor) -> Tensor:
    """IoU of row i with row i, in the order of operations of torchvision's `box_iou`."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    anchor_area = (anchors[:, 2] - anchors[:, 0]) * (anchors[:, 3] - anchors[:, 1])
    size = (torch.minimum(boxes[:, 2:], anchors[:, 2:]) - torch.maximum(boxes[:, :2], anchors[:, :2])).clamp(min=0)
    inter = size[:, 0] * size[:, 1]
    return inter / (area + anchor_area - inter)


def _resolve(
    objects: Tensor, anchors: Tensor, ious: Tensor, count: int, foreground: float, background: float
) -> Matches:
    """From pairs (object, anchor, IoU) to roles: the best object of each anchor, the best anchors of each object."""
    anchor, inverse = anchors.unique(return_inverse=True)
    highest = ious.new_zeros(len(anchor)).scatter_reduce_(0, inverse, ious, "amax")
    first = objects.new_full((len(anchor),), count)  # on equal IoU the first object, as torch's max over rows
    at_highest = ious == highest[inverse]
    first.scatter_reduce_(0, inverse[at_highest], objects[at_highest], "amin")
    best_of_object = ious.new_zeros(count).scatter_reduce_(0, objects, ious, "amax")
    low_quality = torch.zeros(len(anchor), dtype=torch.bool, device=ious.device)
    low_quality[inverse[ious == best_of_object[objects]]] = True
    positive = (highest >= foreground) | low_quality
    ignored = ~positive & (highest >= background)
    return Matches(anchor[positive], first[positive], anchor[ignored])
