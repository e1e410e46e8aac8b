"""The network of a tile filter, its inference graph, and its checkpoint `model.filter.pth`.

A tile filter predicts from a reduced tile where objects can be, in cells of `CELL` pixels, and whether the tile is
unlike the training images. `tinydet.spec.FilterRecord` describes its outputs, which are those of any exported model.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tinydet._internal.atomic import atomic_path
from tinydet._internal.json_files import checked
from tinydet._internal.shell import tinydet_command
from tinydet.models.backbone import PixelNorm
from tinydet.models.checkpoint import FILTER_FORMAT, current_versions
from tinydet.models.graphs.one_stage import BestBoxes
from tinydet.models.tensor_files import read_tensors, unusable_tensor
from tinydet.runtime.backends import TileOutputs
from tinydet.runtime.tile_filter import CELL
from tinydet.spec import FilterRecord, ModelSpec

NAME = "tile_filter"  # as `ModelSpec.detector`
CLASSES = ("object", "unfamiliar")
STRIDE = 8  # of the last layer, in pixels of a reduced tile
CHANNELS = (16, 24, 48)
BLOCKS = 2
STEEPNESS = 4.0  # of the score of an unfamiliar tile, as a function of the logarithm of its distance
DECISION = 0.5  # threshold of both classes after `TileFilterNetwork.calibrate`
SMALLEST_VARIANCE = 1e-3  # of a direction of the features, relative to the largest; smaller ones are noise


class TileFilterNetwork(nn.Module):
    """A small convolutional network on reduced tiles: about 60 million multiplications for a tile of 320 pixels.

    Attributes:
        pixels: normalization of the pixels.
        limit: distance of the features of a tile from those of the training tiles at which it counts as unfamiliar.
    """

    mean: Tensor
    std: Tensor
    center: Tensor
    whitening: Tensor
    limit: Tensor

    def __init__(self, pixels: PixelNorm) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(pixels.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(pixels.std).view(1, 3, 1, 1))
        self.stem = nn.Sequential(
            *(Convolution(c, d, stride=2) for c, d in zip((3, *CHANNELS[:-1]), CHANNELS, strict=True))
        )
        self.blocks = nn.ModuleList(Block(CHANNELS[-1]) for _ in range(BLOCKS))
        self.head = nn.Conv2d(CHANNELS[-1], 1, 1)
        nn.init.constant_(cast(Tensor, self.head.bias), -3.0)  # most cells are empty
        size = CHANNELS[-1] + 4
        self.register_buffer("center", torch.zeros(size))
        self.register_buffer("whitening", torch.eye(size))
        self.register_buffer("limit", torch.ones(()))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, H, W, 3) uint8 RGB, sides multiples of `CELL` -> logits of the cells and the features of the tiles.

        Returns:
            (N, H / CELL, W / CELL), and (N, F): means of the last layer, brightness, and the logarithms of contrast,
            detail and chroma.
        """
        # Cast first: TensorRT's parser refuses a Transpose of uint8.
        raw = images.float().permute(0, 3, 1, 2)
        features = self.stem((raw - self.mean) / self.std)
        for block in self.blocks:
            features = block(features)
        cells = F.max_pool2d(self.head(features), CELL // STRIDE)
        return cells.squeeze(1), torch.cat([features.mean((2, 3)), _look(raw)], dim=1)

    def strangeness(self, features: Tensor) -> Tensor:
        """(N, F) -> (N,) distance from the training tiles, relative to the limit; 1 or more is unfamiliar."""
        # A product and a sum: an INT8 conversion quantizes matrix products.
        deviation = ((features - self.center).unsqueeze(1) * self.whitening).sum(2)
        return deviation.square().mean(1).clamp(min=1e-12).sqrt() / self.limit

    def fit_familiar(self, features: Tensor) -> None:
        """Learn what is familiar from the features (M, F) of training tiles: mean and covariance."""
        values = features.double()
        center = values.mean(0)
        covariance = (values - center).T @ (values - center) / max(len(values) - 1, 1)
        scale = covariance.diagonal().clamp(min=1e-12).sqrt()
        variances, directions = torch.linalg.eigh(covariance / scale[:, None] / scale)
        floor = SMALLEST_VARIANCE * float(variances.max().clamp(min=1e-12))
        whitening = directions.T / (variances.clamp(min=floor).sqrt()[:, None] * scale)
        self.center.copy_(center)
        self.whitening.copy_(whitening)
        self.limit.fill_(1.0)

    def calibrate(self, object_score: float, distance: float) -> None:
        """Change the scores so that both classes have the threshold `DECISION`.

        Args:
            object_score: the lowest score of a cell for which a tile is kept, above 0 and below 1.
            distance: `strangeness` from which on a tile is unfamiliar.
        """
        with torch.no_grad():
            cast(Tensor, self.head.bias).sub_(math.log(object_score / (1 - object_score)))
            self.limit.mul_(distance)


class Convolution(nn.Sequential):
    """A 3x3 convolution, normalization and ReLU."""

    def __init__(self, channels: int, out: int, *, stride: int) -> None:
        convolution = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        super().__init__(convolution, nn.BatchNorm2d(out), nn.ReLU())


class Block(nn.Module):
    """A residual block that sees 2 cells in each direction: depthwise 5x5, then 1x1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 5, padding=2, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = F.relu(features + self.layers(features))
        return result


class FilterGraph(nn.Module):
    """The graph of a deployed tile filter: reduced uint8 tiles in, cells as boxes out. Wraps a folded copy.

    Attributes:
        strides: of the cells, in pixels of a reduced tile.
    """

    strides = (CELL,)
    corners: Tensor
    right: Tensor
    down: Tensor

    def __init__(self, network: TileFilterNetwork, spec: ModelSpec) -> None:
        super().__init__()
        self.network = folded(network)
        self.best = BestBoxes(spec)
        self.register_buffer("corners", torch.tensor((0.0, 0.0, CELL, CELL)))
        self.register_buffer("right", torch.tensor((CELL, 0.0, CELL, 0.0)))
        self.register_buffer("down", torch.tensor((0.0, CELL, 0.0, CELL)))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(N, H, W, 3) uint8 RGB -> boxes, scores, labels, candidates; see `TileOutputs`."""
        count, height, width = images.shape[:3]
        rows, columns = height // CELL, width // CELL
        across = torch.arange(columns, device=images.device, dtype=torch.float32).unsqueeze(1) * self.right
        along = torch.arange(rows, device=images.device, dtype=torch.float32).unsqueeze(1) * self.down
        boxes = (along[:, None] + across).flatten(0, 1) + self.corners  # (cells, 4)
        cells, features = self.network(images)
        whole = boxes[-1:] * torch.tensor((0.0, 0.0, 1.0, 1.0), device=boxes.device)
        distance = STEEPNESS * self.network.strangeness(features).log()
        logits = torch.cat([cells.flatten(1), distance.unsqueeze(1)], dim=1)
        every = torch.cat([boxes, whole]).unsqueeze(0).expand(count, -1, -1)
        labels = torch.zeros_like(logits, dtype=torch.int32)
        labels = torch.cat([labels[:, :-1], labels[:, -1:] + 1], dim=1)
        return (*self.best([every], [logits], [labels]), self.best.candidates(logits))


class TorchFilter:
    """A tile filter behind the runtime's `Backend` protocol."""

    def __init__(self, network: TileFilterNetwork, spec: ModelSpec) -> None:
        self.spec = spec
        self.name = f"torch {torch.__version__} on cpu"
        self._graph = FilterGraph(network, spec).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def run(self, images: NDArray[np.uint8]) -> TileOutputs:
        """Run the filter on reduced tiles (N, T, T, 3), uint8 RGB."""
        return TileOutputs(*(output.numpy() for output in self._graph(torch.from_numpy(np.ascontiguousarray(images)))))


@dataclass(frozen=True)
class FilterCheckpoint:
    """A trained tile filter and its provenance.

    Attributes:
        weights: its state dict.
        spec: of its exported form, with the record of its calibration.
        config: the training configuration, and where its data were (`train_data`, `val_data`).
    """

    weights: dict[str, Tensor]
    spec: ModelSpec
    config: dict[str, Any]

    def build(self) -> TileFilterNetwork:
        """Build the network with its weights, in eval mode."""
        network = TileFilterNetwork(PixelNorm())
        network.load_state_dict(self.weights)
        return network.eval()


def folded(network: TileFilterNetwork) -> TileFilterNetwork:
    """Return a copy in eval mode without normalizations, which are folded into the convolutions."""
    copied = copy.deepcopy(network).eval().requires_grad_(False)
    for module in list(copied.modules()):
        if isinstance(module, nn.Sequential):
            for i in reversed(range(1, len(module))):
                if isinstance(module[i], nn.BatchNorm2d):
                    module[i - 1] = fuse_conv_bn_eval(cast(nn.Conv2d, module[i - 1]), cast(nn.BatchNorm2d, module[i]))
                    del module[i]
    return copied


def save_filter(checkpoint: FilterCheckpoint, path: Path) -> None:
    """Write atomically: a full disk or Ctrl-C leaves an older file unchanged."""
    values = {"weights": checkpoint.weights, "spec": checkpoint.spec.to_json(), "config": checkpoint.config}
    with atomic_path(path) as temporary:
        torch.save({"format": FILTER_FORMAT, **values}, temporary)


def is_filter(path: Path) -> bool:
    """Return whether a file is a checkpoint of a tile filter. Raise ValueError if it is not a checkpoint at all."""
    values = read_tensors(path, "name a checkpoint of tinydet")
    return isinstance(values, dict) and values.get("format") == FILTER_FORMAT


def load_filter(path: Path) -> FilterCheckpoint:
    """Load a checkpoint of a tile filter without executing anything in it.

    Raises:
        ValueError: the file is missing, truncated, foreign, or would run code; a field is missing or out of range.
    """
    remedy = f"train it again: {tinydet_command('train', '--filter', 'model.pth')}"
    values = read_tensors(path, remedy)
    if not isinstance(values, dict) or values.get("format") != FILTER_FORMAT:
        raise ValueError(f"{path}: not a tile filter; {remedy}")
    spec = ModelSpec.from_json(str(values.get("spec", "")), source=path)
    checkpoint = checked(_Stored, values, source=path, what="tile filter", remedy=remedy)
    found = FilterCheckpoint(checkpoint.weights, spec, checkpoint.config)
    if fault := unusable_tensor(found.weights):
        raise ValueError(f"{path}: {fault}; {remedy}")
    try:
        if spec.tile_filter is None or spec.classes != CLASSES:
            raise ValueError("its description is not that of a tile filter")
        found.build()
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path}: not a usable tile filter ({str(error).splitlines()[0]}); {remedy}") from error
    return found


def filter_spec(
    record: FilterRecord, tile: int, *, pad: tuple[int, int, int], stretch: tuple[float, float], **changes: Any
) -> ModelSpec:
    """Return the spec of the exported form of a tile filter.

    Args:
        tile: side of a reduced tile, in pixels.
        changes: other fields.
    """
    spec = ModelSpec(
        classes=CLASSES,
        category_ids=(1, 2),
        detector=NAME,
        backbone=f"{len(CHANNELS)} stages, {CHANNELS[-1]} channels",
        tile=tile,
        tile_multiple=CELL,
        max_detections=(tile // CELL) ** 2 + 1,
        nms_in_graph=True,
        pad=pad,
        stretch=stretch,
        thresholds=(DECISION, DECISION),
        operating_point=f"recall {record.recall} of the objects",
        tile_filter=record,
        versions=current_versions(),
    )
    return dataclasses.replace(spec, **changes)


@dataclass(frozen=True)
class _Stored:
    """The plain part of a checkpoint."""

    weights: dict[str, Any]
    config: dict[str, Any]


def _look(raw: Tensor) -> Tensor:
    """(N, 3, H, W) pixels, 0 to 255 -> (N, 4) brightness, and the logarithms of contrast, detail and chroma."""
    gray = raw.mean(1, keepdim=True)
    brightness = gray.mean((1, 2, 3))
    contrast = (gray - brightness[:, None, None, None]).abs().mean((1, 2, 3))
    detail = (gray - F.avg_pool2d(gray, 3, 1, 1, count_include_pad=False)).abs().mean((1, 2, 3))
    chroma = (raw[:, :2] - raw[:, 1:]).abs().mean((1, 2, 3))
    return torch.stack([brightness / 64, *((value + 1).log() for value in (contrast, detail, chroma))], dim=1)
