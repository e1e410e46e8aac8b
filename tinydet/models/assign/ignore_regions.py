"""Anchors and points in ignore regions, where objects are not annotated. Every detector leaves them out of its loss."""

from __future__ import annotations

import torch
from torch import Tensor

from tinydet.geometry.anchors import AnchorDesign
from tinydet.models.assign.pairs import levels_of


def ignored_by_regions(regions: Tensor, owner: Tensor, design: AnchorDesign, size: tuple[int, int]) -> Tensor:
    """Return the flat indices of the anchors centered in an ignore region: they learn nothing.

    Args:
        regions: (R, 4) xyxy in input pixels.
        owner: (R,) index of the image that each region belongs to.
    """
    levels = levels_of(design, size)
    per_image = sum(level.rows * level.columns * len(level.shapes) for level in levels)
    found = []
    for level in levels:
        x = (torch.arange(level.columns, device=regions.device) + design.offset) * level.stride
        y = (torch.arange(level.rows, device=regions.device) + design.offset) * level.stride
        inside_x = (x >= regions[:, None, 0]) & (x < regions[:, None, 2])
        inside_y = (y >= regions[:, None, 1]) & (y < regions[:, None, 3])
        region, row, column = (inside_y[:, :, None] & inside_x[:, None, :]).nonzero(as_tuple=True)
        cell = (row * level.columns + column) * len(level.shapes) + level.start + owner[region] * per_image
        found.append((cell[:, None] + torch.arange(len(level.shapes), device=regions.device)).flatten())
    indices: Tensor = torch.cat(found).unique()
    return indices
