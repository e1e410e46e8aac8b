"""What a graph computes from the shape of its tiles: anchors, points, and the border of the tile.

No table of a tile's size is part of a graph, so that one file takes tiles of any size, and a backend that fixes the
shape when it loads the model computes these values once.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tinydet.geometry.anchors import AnchorDesign
from tinydet.geometry.points import PointDesign

EMPTY = -1e4  # logit or score of an empty slot, below any score floor and within FP16


class Priors(nn.Module):
    """Anchors (A, 4) or points (A, 2) of every level, finest first, in pixels of the tile.

    They are those of `AnchorDesign.grid_anchors` and `PointDesign.points`, to the bit.

    Raises:
        ValueError: the levels of the design are not those of padded convolutions.
    """

    def __init__(self, design: AnchorDesign | PointDesign) -> None:
        super().__init__()
        self.strides = design.strides
        for i, stride in enumerate(design.strides):
            cell = torch.from_numpy(_first_cell(design, i))
            axes = torch.arange(cell.shape[1]) % 2  # 0 where a coordinate is x
            self.register_buffer(f"cell{i}", cell)
            self.register_buffer(f"right{i}", stride * (1.0 - axes))
            self.register_buffer(f"down{i}", stride * axes.float())

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> (rows * columns * A, 4 or 2) of each level; rows vary slowest, then columns.

        Call it before the network runs: an export then takes the sizes of feature maps, too, from here, and a runtime
        that knows the size of the tile computes them when it loads the graph.
        """
        found = []
        for i, stride in enumerate(self.strides):
            rows, columns = ((side + stride - 1) // stride for side in images.shape[2:])
            cell = getattr(self, f"cell{i}")
            right, down = (
                torch.arange(count, device=cell.device, dtype=torch.float32).unsqueeze(1) * step
                for count, step in ((columns, getattr(self, f"right{i}")), (rows, getattr(self, f"down{i}")))
            )
            corners = (down[:, None] + right).unsqueeze(2)
            found.append((corners + cell).flatten(0, 2))
        return found


def clipped(boxes: Tensor, images: Tensor) -> Tensor:
    """Return boxes (..., 4) xyxy cut to the tile of images (N, C, H, W)."""
    x = torch.tensor((1.0, 0.0, 1.0, 0.0), device=boxes.device)
    border = x * images.shape[3] + (1.0 - x) * images.shape[2]
    return torch.minimum(boxes.clamp(min=0.0), border)


def best(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the largest `count` of each row of values (N, M), descending, and their indices: (N, count) each.

    If a tile has fewer, values of `EMPTY` with the index 0 follow, so that shapes do not depend on the tile.
    """
    known = values.shape[1]  # not a number while a graph for any tile is traced
    if isinstance(known, int) and known >= count:
        kept, index = values.topk(count, dim=1)
        return kept, index
    kept, index = F.pad(values, (0, count), value=EMPTY).topk(count, dim=1)
    return kept, torch.where(kept > EMPTY, index, 0)


def _first_cell(design: AnchorDesign | PointDesign, level: int) -> NDArray[np.float32]:
    """Return the anchors or the point of the first cell of a level."""
    if isinstance(design, AnchorDesign):
        if design.grid != "ceil":
            raise ValueError(f"a graph has the cells of padded convolutions, not those of the rule {design.grid!r}")
        return design.first_cell(level)
    return design.points(1, 1)[level]
