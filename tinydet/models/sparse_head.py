"""Run the box tower of a one-stage detector only around the positive anchors or points.

The classification loss needs every anchor, the losses of boxes only the positive ones, a few hundred per batch. So the
classification tower runs on whole levels and the box tower on patches around the cells of the positive anchors, those
of all levels as one batch. A patch is a square block of cells plus the receptive field of the tower around it. Each
convolution shrinks it by one cell per side, and cells outside the level are set to zero before every convolution, as
padding would do. The outputs equal those on whole levels up to rounding. If the patches would cost more, because there
are many objects, the tower runs on whole levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.retinanet import RetinaNetRegressionHead

BLOCK_SIDES = (4, 8, 16)  # cells; the cheapest is used
MAX_WORK = 0.7  # of the multiply-adds on whole levels; convolutions are less efficient on small patches


class Blocks(NamedTuple):
    """Square blocks of cells, sorted by level, image and position; and the position of each anchor in them.

    Attributes:
        side: side of a block in cells.
        level, image: (K,) level and image of each block.
        row, column: (K,) first row and column of each block.
        place: (P,) index of each anchor into the (K * side * side * A) anchors of the blocks.
    """

    side: int
    level: Tensor
    image: Tensor
    row: Tensor
    column: Tensor
    place: Tensor


def deltas_at(head: RetinaNetRegressionHead, levels: Sequence[Tensor], anchors: Tensor, shapes: int) -> Tensor:
    """Return the box offsets (P, 4) that `head` outputs for some anchors; see `outputs_at`."""
    convolutions = [*(m for m in head.conv.modules() if isinstance(m, nn.Conv2d)), head.bbox_reg]
    return outputs_at([(conv.weight, conv.bias) for conv in convolutions], levels, anchors, shapes)


def outputs_at(
    layers: Sequence[tuple[Tensor, Tensor]], levels: Sequence[Tensor], anchors: Tensor, shapes: int
) -> Tensor:
    """Return the outputs of some anchors after 3x3 convolutions with ReLU between them.

    Args:
        layers: weight and bias of each convolution.
        levels: features (B, C, H, W) of each level, finest first.
        anchors: (P,) indices into the (B * N) anchors of the batch, ordered by image, level, row, column and shape.
        shapes: number of anchors per cell.

    Returns:
        (P, V), where the last convolution has `shapes` * V channels.
    """
    margin = len(layers)
    values = len(layers[-1][0]) // shapes
    grids = [(level.shape[2], level.shape[3]) for level in levels]
    cells = len(levels[0]) * sum(rows * columns for rows, columns in grids)
    choices = [blocks_of(anchors, len(levels[0]), grids, shapes, side) for side in BLOCK_SIDES]
    work = [_work(layers, blocks.side) * len(blocks.level) for blocks in choices]
    cheapest = min(range(len(choices)), key=work.__getitem__)
    if work[cheapest] > MAX_WORK * cells * sum(weight.numel() for weight, _ in layers):
        whole = [_on_whole_level(layers, level).reshape(len(level), -1, values) for level in levels]
        return torch.cat(whole, dim=1).reshape(-1, values)[anchors]
    blocks = choices[cheapest]
    x, inside = patches_of(levels, blocks, margin)
    if x.device.type == "cpu" and x.dtype == torch.bfloat16:
        # For some small patches, oneDNN computes the bfloat16 gradient with reference kernels, 100 times slower.
        x, inside = x.float(), inside.float()
    with torch.autocast("cpu", enabled=False):
        for number, (weight, bias) in enumerate(layers, start=1):
            x = F.conv2d(x, weight, bias)
            if number < margin:
                x = F.relu(x) * inside[:, :, number:-number, number:-number]
    return x.permute(0, 2, 3, 1).reshape(-1, values)[blocks.place]


def blocks_of(anchors: Tensor, images: int, grids: Sequence[tuple[int, int]], shapes: int, side: int) -> Blocks:
    """Return the blocks of `side` x `side` cells that contain the cells of some anchors.

    Without anchors there is still one block, so that the tower always takes part in the autograd graph.

    Args:
        anchors: (P,) indices, see `outputs_at`.
        images: number of images in the batch.
        grids: rows and columns of each level.
    """
    counts = anchors.new_tensor([rows * columns * shapes for rows, columns in grids])
    ends = counts.cumsum(0)
    total = int(sum(rows * columns for rows, columns in grids)) * shapes
    level = torch.bucketize(anchors % total, ends, right=True)
    within = anchors % total - (ends - counts)[level]
    width = anchors.new_tensor([columns for _, columns in grids])[level]
    cell = torch.div(within, shapes, rounding_mode="floor")
    row, column = torch.div(cell, width, rounding_mode="floor"), cell % width
    block_rows, block_columns = (-(-max(grid[axis] for grid in grids) // side) for axis in (0, 1))
    per_level = block_rows * block_columns
    image = torch.div(anchors, total, rounding_mode="floor")
    block = torch.div(row, side, rounding_mode="floor") * block_columns + torch.div(column, side, rounding_mode="floor")
    keys, number = ((level * images + image) * per_level + block).unique(return_inverse=True)
    if not len(keys):
        keys = keys.new_zeros(1)
    level_and_image = torch.div(keys, per_level, rounding_mode="floor")
    block = keys % per_level
    return Blocks(
        side,
        torch.div(level_and_image, images, rounding_mode="floor"),
        level_and_image % images,
        torch.div(block, block_columns, rounding_mode="floor") * side,
        block % block_columns * side,
        ((number * side + row % side) * side + column % side) * shapes + within % shapes,
    )


def patches_of(levels: Sequence[Tensor], blocks: Blocks, margin: int) -> tuple[Tensor, Tensor]:
    """Cut the blocks with `margin` cells around them out of the levels.

    Returns:
        Features (K, C, S, S), zero outside the level; and (K, 1, S, S), 1 inside the level and 0 outside.
    """
    steps = torch.arange(-margin, blocks.side + margin, device=blocks.row.device)
    parts, insides = [], []
    for number, level in enumerate(levels):
        chosen = blocks.level == number
        y, x = blocks.row[chosen][:, None] + steps, blocks.column[chosen][:, None] + steps
        (rows, columns), channels = level.shape[2:], level.shape[1]
        insides.append(((y >= 0) & (y < rows))[:, :, None] & ((x >= 0) & (x < columns))[:, None, :])
        first = blocks.image[chosen][:, None, None] * rows + y.clamp(0, rows - 1)[:, :, None]
        index = (first * columns + x.clamp(0, columns - 1)[:, None, :]).reshape(-1, 1).expand(-1, channels)
        cells = level.permute(0, 2, 3, 1).reshape(-1, channels)
        # The backward pass of a gather with an expanded index adds in a fixed order, so that runs with overlapping
        # patches are reproducible.
        parts.append(cells.gather(0, index).view(-1, len(steps), len(steps), channels))
    inside = torch.cat(insides)[:, None].to(levels[0].dtype)
    return torch.cat(parts).permute(0, 3, 1, 2) * inside, inside


def _on_whole_level(layers: Sequence[tuple[Tensor, Tensor]], level: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W, channels of the last convolution)."""
    *tower, last = layers
    for weight, bias in tower:
        level = F.relu(F.conv2d(level, weight, bias, padding=1))
    return F.conv2d(level, *last, padding=1).permute(0, 2, 3, 1)


def _work(layers: Sequence[tuple[Tensor, Tensor]], side: int) -> int:
    """Return the multiply-adds of one patch."""
    sides = range(side + 2 * (len(layers) - 1), side - 1, -2)
    return sum(s * s * weight.numel() for s, (weight, _) in zip(sides, layers, strict=True))
