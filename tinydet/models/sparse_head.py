"""The box tower of RetinaNet where it is asked, and nowhere else.

Boxes are learned by a few hundred anchors of a batch; the class of every anchor is. So while the classification tower
runs over whole levels, the regression tower is run on windows about the cells of the positive anchors, those of all
levels as one batch. A window is a block of cells and as many cells around it as the tower sees: its convolutions take
away one cell on each side, and what lies outside the level is zero before every one of them, as padding would make it.
The answers are those of the whole levels to rounding; where windows would cost more, in a crowd, the whole levels are
run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.retinanet import RetinaNetRegressionHead

BLOCK_SIDES = (4, 8, 16)  # of which the cheapest is taken
WORTH = 0.7  # of the work on whole levels, at most: small windows are convolved less efficiently


class Blocks(NamedTuple):
    """Square blocks of cells, (K,) each, in the order of their levels, and where in them each anchor is found."""

    side: int
    level: Tensor
    image: Tensor
    row: Tensor  # of the first cell
    column: Tensor
    place: Tensor  # (P,) index of each anchor into the (K * side * side * A) anchors of the blocks


def deltas_at(head: RetinaNetRegressionHead, levels: Sequence[Tensor], anchors: Tensor, shapes: int) -> Tensor:
    """The box offsets (P, 4) that `head` gives for some anchors.

    Args:
        levels: (B, C, H, W) each, finest first.
        anchors: (P,) flat indices into the (B * N) anchors of the batch, by levels, rows, columns and shapes.
        shapes: anchors of a cell.
    """
    convolutions = [*(m for m in head.conv.modules() if isinstance(m, nn.Conv2d)), head.bbox_reg]
    reach = len(convolutions)  # 3x3 each
    grids = [(level.shape[2], level.shape[3]) for level in levels]
    cells = len(levels[0]) * sum(rows * columns for rows, columns in grids)
    choices = [blocks_of(anchors, len(levels[0]), grids, shapes, side) for side in BLOCK_SIDES]
    work = [_work(convolutions, blocks.side) * len(blocks.level) for blocks in choices]
    cheapest = min(range(len(choices)), key=work.__getitem__)
    if work[cheapest] > WORTH * cells * sum(conv.weight.numel() for conv in convolutions):
        answers: Tensor = head(list(levels))
        return answers.reshape(-1, 4)[anchors]
    blocks = choices[cheapest]
    x, inside = windows_of(levels, blocks, reach)
    if x.device.type == "cpu" and x.dtype == torch.bfloat16:
        # Of some small windows oneDNN takes the bfloat16 gradient with its reference kernels, a hundred times slower.
        x, inside = x.float(), inside.float()
    with torch.autocast("cpu", enabled=False):
        for layer, conv in enumerate(convolutions, start=1):
            x = F.conv2d(x, conv.weight, conv.bias)
            if layer < reach:
                x = F.relu(x) * inside[:, :, layer:-layer, layer:-layer]
    return x.permute(0, 2, 3, 1).reshape(-1, 4)[blocks.place]


def blocks_of(anchors: Tensor, images: int, grids: Sequence[tuple[int, int]], shapes: int, side: int) -> Blocks:
    """The blocks of `side` x `side` cells that hold the cells of some anchors; one where there are no anchors, so that
    the tower always takes part in the graph."""
    counts = anchors.new_tensor([rows * columns * shapes for rows, columns in grids])
    ends = counts.cumsum(0)
    total = int(sum(rows * columns for rows, columns in grids)) * shapes
    level = torch.bucketize(anchors % total, ends, right=True)
    within = anchors % total - (ends - counts)[level]
    width = anchors.new_tensor([columns for _, columns in grids])[level]
    cell = torch.div(within, shapes, rounding_mode="floor")
    row, column = torch.div(cell, width, rounding_mode="floor"), cell % width
    high, wide = (-(-max(grid[axis] for grid in grids) // side) for axis in (0, 1))
    image = torch.div(anchors, total, rounding_mode="floor")
    block = torch.div(row, side, rounding_mode="floor") * wide + torch.div(column, side, rounding_mode="floor")
    keys, number = ((level * images + image) * (high * wide) + block).unique(return_inverse=True)
    if not len(keys):
        keys = keys.new_zeros(1)
    of_image = torch.div(keys, high * wide, rounding_mode="floor")
    block = keys % (high * wide)
    return Blocks(
        side,
        torch.div(of_image, images, rounding_mode="floor"),
        of_image % images,
        torch.div(block, wide, rounding_mode="floor") * side,
        block % wide * side,
        ((number * side + row % side) * side + column % side) * shapes + within % shapes,
    )


def windows_of(levels: Sequence[Tensor], blocks: Blocks, reach: int) -> tuple[Tensor, Tensor]:
    """The blocks with `reach` cells around them, (K, C, S, S), zero outside the level; and (K, 1, S, S) what is inside.

    Rows are gathered with an expanded index, whose backward pass adds in a fixed order: overlapping windows would
    otherwise cost the reproducibility of a run.
    """
    steps = torch.arange(-reach, blocks.side + reach, device=blocks.row.device)
    parts, insides = [], []
    for number, level in enumerate(levels):
        chosen = blocks.level == number
        y, x = blocks.row[chosen][:, None] + steps, blocks.column[chosen][:, None] + steps
        (high, wide), channels = level.shape[2:], level.shape[1]
        insides.append(((y >= 0) & (y < high))[:, :, None] & ((x >= 0) & (x < wide))[:, None, :])
        of_image = blocks.image[chosen][:, None, None] * high + y.clamp(0, high - 1)[:, :, None]
        index = (of_image * wide + x.clamp(0, wide - 1)[:, None, :]).reshape(-1, 1).expand(-1, channels)
        cells = level.permute(0, 2, 3, 1).reshape(-1, channels)
        parts.append(cells.gather(0, index).view(-1, len(steps), len(steps), channels))
    inside = torch.cat(insides)[:, None].to(levels[0].dtype)
    return torch.cat(parts).permute(0, 3, 1, 2) * inside, inside


def _work(convolutions: Sequence[nn.Conv2d], side: int) -> int:
    """Multiply-adds of one window."""
    sides = range(side + 2 * (len(convolutions) - 1), side - 1, -2)
    return sum(s * s * conv.weight.numel() for s, conv in zip(sides, convolutions, strict=True))
