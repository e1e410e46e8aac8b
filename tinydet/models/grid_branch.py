"""Grid R-CNN's localization (Lu et al., 2019): nine points of a box as heat maps, their targets, and decoding.

A RoI doubled about its center is a map of 56 x 56 cells. Point 3 * i + j is in column i and row j of a 3 x 3 grid on
the object's box, and is searched in a 28 x 28 part of the map, which begins at column (0, 14, 28)[i] and at row
(0, 14, 28)[j].
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 3  # points per side of the grid
POINTS = SIDE * SIDE
WHOLE, PART = 56, 28  # cells per side of the map of a doubled RoI, and of the part of it that a point sees
FIRST = (0, 14, 28)  # where the part of a point begins, by its column or row
SMALLEST_SIDE = 3.0  # pixels of a doubled RoI; a RoI with a side of at most half of it teaches no point
BRANCH_ROI_SIZE = 14  # cells per side of the pooled features
BRANCH_CONVS = 8
NORM_GROUPS_PER_POINT = 4  # 36 groups in all
POINT_PRIOR = 0.01  # probability of a cell before training

NEIGHBORS: tuple[tuple[int, ...], ...] = tuple(
    tuple(q for q in range(POINTS) if abs(p // SIDE - q // SIDE) + abs(p % SIDE - q % SIDE) == 1) for p in range(POINTS)
)
PART_OF_POINT: tuple[tuple[int, int], ...] = tuple((FIRST[p // SIDE], FIRST[p % SIDE]) for p in range(POINTS))


def point_channels(channels: int) -> int:
    """Return the channels of one point: a quarter of the pyramid's, rounded down to a multiple of 4, at least 4.

    64 at the paper's 256 channels, 16 at 64. A multiple of 4, because normalization takes four groups per point.

    >>> [point_channels(channels) for channels in (256, 64, 40, 8)]
    [64, 16, 8, 4]
    """
    return max(1, channels // (4 * NORM_GROUPS_PER_POINT)) * NORM_GROUPS_PER_POINT


class GridBranch(nn.Module):
    """Heat maps of the nine points of each RoI.

    Args:
        channels: of the pooled features.

    Attributes:
        convs: eight 3x3 convolutions, each with group normalization and ReLU; the first halves the resolution.
        first_order, second_order: add the features of neighboring points, then of their neighbors.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = POINTS * point_channels(channels)
        layers: list[nn.Module] = []
        for i in range(BRANCH_CONVS):
            conv = nn.Conv2d(width if i else channels, width, 3, stride=1 if i else 2, padding=1)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)
            layers += [conv, nn.GroupNorm(POINTS * NORM_GROUPS_PER_POINT, width), nn.ReLU(inplace=True)]
        self.convs = nn.Sequential(*layers)
        self.first_order = _PointFusion(width // POINTS)
        self.second_order = _PointFusion(width // POINTS)
        self.deconv1 = nn.ConvTranspose2d(width, width, 4, stride=2, padding=1, groups=POINTS)
        self.norm = nn.GroupNorm(POINTS, width)
        self.deconv2 = nn.ConvTranspose2d(width, POINTS, 4, stride=2, padding=1, groups=POINTS)
        for deconv, bias in ((self.deconv1, 0.0), (self.deconv2, -math.log((1 - POINT_PRIOR) / POINT_PRIOR))):
            nn.init.normal_(deconv.weight, std=0.001)
            assert deconv.bias is not None
            nn.init.constant_(deconv.bias, bias)

    def forward(self, pooled: Tensor) -> Tensor:
        """(R, C, 14, 14) -> logits (R, 9, 28, 28) float32, rows before columns."""
        return self._heat_maps(self._fused(self.convs(pooled)))

    def training_logits(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of `forward`, and those without fusion, which are trained as well."""
        points = self.convs(pooled)
        return self._heat_maps(self._fused(points)), self._heat_maps(points)

    def _fused(self, points: Tensor) -> Tensor:
        fused: Tensor = self.second_order(points, self.first_order(points, points))
        return fused

    def _heat_maps(self, points: Tensor) -> Tensor:
        logits: Tensor = self.deconv2(self.norm(self.deconv1(points)).relu())
        return logits.float()


class _PointFusion(nn.Module):
    """Add to the features of each point those of its neighbors: x_p + sum of T_qp(y_q) over the neighbors q of p.

    T_qp is a depthwise 5x5 convolution, then a 1x1 convolution, with weights of its own for each of the 24 directed
    edges. All edges run as two grouped convolutions, ordered by the point they lead to.

    Args:
        channels: of one point.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        edges = sum(map(len, NEIGHBORS))
        self.depthwise = nn.Conv2d(edges * channels, edges * channels, 5, padding=2, groups=edges * channels)
        self.pointwise = nn.Conv2d(edges * channels, edges * channels, 1, groups=edges)
        for conv in (self.depthwise, self.pointwise):
            for edge in conv.weight.detach().chunk(edges):  # each is a layer of its own
                nn.init.kaiming_normal_(edge, mode="fan_out", nonlinearity="relu")
            assert conv.bias is not None
            nn.init.zeros_(conv.bias)

    def forward(self, points: Tensor, sources: Tensor) -> Tensor:
        """(R, 9 * C, H, W) x and y -> (R, 9 * C, H, W)."""
        parts = sources.chunk(POINTS, dim=1)
        moved = self.pointwise(self.depthwise(torch.cat([parts[q] for near in NEIGHBORS for q in near], dim=1)))
        width = parts[0].shape[1]
        edges = moved.split([len(near) * width for near in NEIGHBORS], dim=1)
        sums = [part.unflatten(1, (len(near), width)).sum(dim=1) for part, near in zip(edges, NEIGHBORS, strict=True)]
        return points + torch.cat(sums, dim=1)


@torch.no_grad()
def grid_targets(rois: Tensor, boxes: Tensor) -> Tensor:
    """Return the heat maps that RoIs are trained with: 1 in the cell of a point and its four neighbors, else 0.

    The cell is truncated towards zero. A RoI with a side of at most 1.5 pixels gets only zeros.

    Args:
        rois: (R, 4) xyxy.
        boxes: (R, 4) the object of each RoI, in the same frame.

    Returns:
        (R, 9, 28, 28) float32, rows before columns.
    """
    # In float64: a RoI equal to its box has its points exactly on the border between two cells.
    rois, boxes = rois.double(), boxes.double()
    half = (rois[:, 2:] - rois[:, :2]) / 2
    start, end = rois[:, :2] - half, rois[:, 2:] + half
    side = end - start
    places = torch.stack([boxes[:, :2], (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:]], dim=2)  # (R, xy, column/row)
    cell = ((places - start.unsqueeze(2)) / side.clamp(min=1e-9).unsqueeze(2) * WHOLE).trunc()
    first = cell.new_tensor(FIRST)
    distance = (torch.arange(PART, device=cell.device) + first[:, None] - cell.unsqueeze(3)).abs()  # (R, xy, 3, 28)
    across, down = distance[:, 0], distance[:, 1]
    near = across[:, :, None, None, :] + down[:, None, :, :, None] <= 1  # (R, column, row, 28, 28)
    taught = (side > SMALLEST_SIDE).all(dim=1)
    return (near.flatten(1, 2) & taught[:, None, None, None]).float()


class GridDecoder(nn.Module):
    """Boxes from the heat maps of their points, in float32.

    A point is at the center of its best cell (the first of several), with that cell's probability. Each side of the box
    is the mean of its three points, weighted by their probabilities.
    """

    columns: Tensor
    rows: Tensor
    first_column: Tensor
    first_row: Tensor

    def __init__(self) -> None:
        super().__init__()
        cells = torch.arange(PART, dtype=torch.float32) + 0.5
        # Cells are looked up in tables: in an exported graph a division of indices is inexact in FP16.
        self.register_buffer("columns", cells.repeat(PART), persistent=False)
        self.register_buffer("rows", cells.repeat_interleave(PART), persistent=False)
        first = torch.tensor(PART_OF_POINT, dtype=torch.float32)
        self.register_buffer("first_column", first[:, 0].clone(), persistent=False)
        self.register_buffer("first_row", first[:, 1].clone(), persistent=False)

    def forward(self, logits: Tensor, rois: Tensor) -> Tensor:
        """(R, 9, 28, 28) logits and (R, 4) RoIs xyxy -> (R, 4) boxes xyxy in the frame of the RoIs, not clipped."""
        best, index = logits.float().flatten(2).max(dim=2)
        log_weight = F.logsigmoid(best).unflatten(1, (SIDE, SIDE))  # (R, column, row); a probability may round to 0
        column = self.columns.index_select(0, index.flatten()).view_as(best) + self.first_column
        row = self.rows.index_select(0, index.flatten()).view_as(best) + self.first_row
        x0, y0, x1, y1 = rois.float().unsqueeze(2).unbind(1)
        width, height = x1 - x0, y1 - y0
        x = (column / PART * width + (x0 - width / 2)).unflatten(1, (SIDE, SIDE))
        y = (row / PART * height + (y0 - height / 2)).unflatten(1, (SIDE, SIDE))
        at_column, at_row = (log_weight.softmax(dim=2) * x).sum(dim=2), (log_weight.softmax(dim=1) * y).sum(dim=1)
        return torch.stack([at_column[:, 0], at_row[:, 0], at_column[:, 2], at_row[:, 2]], dim=1)
