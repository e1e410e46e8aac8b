"""Multi-level RoIAlign from gathers: no plugin, no control flow, all proposals of a batch at once.

The ONNX operator RoiAlign is a plugin in TensorRT and missing in TensorRT-RTX, and torchvision's choice of a level is
exported as an `If`. GridSample would work, but its results were wrong in TensorRT 11.1 (NVIDIA/TensorRT#4813).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVEL_EPSILON = 1e-6  # torchvision's: a box with exactly the side at which a level begins belongs to that level


class GatheredRoIAlign(nn.Module):
    """torchvision's `MultiScaleRoIAlign`, channels last, equal up to rounding.

    All levels of all images form one table of cells, so that a proposal of any level is a set of places in it. A bin is
    the mean of its samples, and a sample interpolates four cells; rows and columns are weighted separately, then
    multiplied.

    Args:
        first_level: number of the finest level, whose stride is 2 ** first_level; each further level is half as fine.
        levels: number of levels.
        size: bins per side.
        sampling: samples per side of a bin.
        canonical_scale: side in pixels of the boxes that `canonical_level` is for (FPN, Eq. 1).
        aligned: False: as torchvision's detectors pool, half a cell off, and no box smaller than a cell.
    """

    finer: Tensor
    scales: Tensor
    starts: Tensor
    smallest_areas: Tensor
    places: Tensor

    def __init__(
        self,
        *,
        first_level: int,
        levels: int,
        size: int,
        sampling: int,
        canonical_scale: float,
        canonical_level: int,
        aligned: bool,
    ) -> None:
        super().__init__()
        self.size, self.taps, self.aligned = size, 2 * sampling, aligned
        numbers = range(first_level, first_level + levels)
        # Cells of each level per cell of the coarsest, along an axis; and in all finer levels together.
        finer = [1 << (levels - 1 - i) for i in range(levels)]
        self.register_buffer("finer", torch.tensor(finer))
        self.register_buffer("starts", torch.tensor([sum(f * f for f in finer[:i]) for i in range(levels)]))
        self.all_cells = sum(f * f for f in finer)
        self.register_buffer("scales", torch.tensor([2.0**-number for number in numbers]))
        # floor(canonical_level + log2(side / canonical_scale) + epsilon), as bounds on the area, without a division.
        bounds = [canonical_scale * 2.0 ** (number - canonical_level - LEVEL_EPSILON) for number in numbers[1:]]
        self.register_buffer("smallest_areas", torch.tensor([bound**2 for bound in bounds]))
        samples = torch.arange(size * sampling)
        self.register_buffer("places", (samples + 0.5) / (size * sampling))  # relative position along a box

    def forward(self, features: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """(N, C, rows, columns) of each level, finest first; (N, R, 4) xyxy in tile pixels -> (N, R, size, size, C).

        Each level has twice the rows and columns of the next.
        """
        table = torch.cat([level.flatten(2).transpose(1, 2) for level in features], dim=1).flatten(0, 1)
        rows_of_coarsest, columns_of_coarsest = features[-1].shape[2:]
        heights, widths = self.finer * rows_of_coarsest, self.finer * columns_of_coarsest
        area = rows_of_coarsest * columns_of_coarsest
        x0, y0, x1, y1 = boxes.unbind(-1)
        level = ((x1 - x0) * (y1 - y0)).unsqueeze(-1).ge(self.smallest_areas).sum(dim=-1)
        columns, of_columns = self._taps(x0, x1, level, widths)
        rows, of_rows = self._taps(y0, y1, level, heights)
        image = torch.arange(boxes.shape[0], device=boxes.device) * (self.all_cells * area)
        first = (image.unsqueeze(1) + _look_up(self.starts * area, level))[:, :, None, None]
        rows = first + rows * _look_up(widths, level)[:, :, None, None]
        pooled = torch.zeros((), device=boxes.device)
        for row, of_row in zip(rows.unbind(-1), of_rows.unbind(-1), strict=True):
            for column, of_column in zip(columns.unbind(-1), of_columns.unbind(-1), strict=True):
                weight = of_row.unsqueeze(3) * of_column.unsqueeze(2)
                cells = F.embedding(row.unsqueeze(3) + column.unsqueeze(2), table)
                pooled = pooled + cells.float() * weight.unsqueeze(4)
        return pooled

    def _taps(self, low: Tensor, high: Tensor, level: Tensor, sides: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cells that make up each bin along one axis, and their weights: (N, R, size, taps) each.

        Args:
            sides: (levels,) cells of each level along the axis.
        """
        scale, side = _look_up(self.scales, level), _look_up(sides.float(), level).unsqueeze(2)
        offset = 0.5 if self.aligned else 0.0
        start, end = low * scale - offset, high * scale - offset
        extent = end - start if self.aligned else (end - start).clamp(min=1.0)
        at = start.unsqueeze(2) + extent.unsqueeze(2) * self.places
        inside = ((at >= -1.0) & (at <= side)).float()
        at = torch.minimum(at.clamp(min=0.0), side - 1.0)
        cell = at.floor()
        rest = at - cell
        share = inside * (2 / self.taps)  # the samples of a bin are averaged
        cells = torch.stack([cell, torch.minimum(cell + 1.0, side - 1.0)], dim=-1)
        weights = torch.stack([(1.0 - rest) * share, rest * share], dim=-1)
        shape = (*low.shape, self.size, self.taps)
        return cells.to(torch.int64).reshape(shape), weights.reshape(shape)


def _look_up(values: Tensor, index: Tensor) -> Tensor:
    """Return values[index] as one Gather."""
    return values.index_select(0, index.flatten()).view_as(index)
