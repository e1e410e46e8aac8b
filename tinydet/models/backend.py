"""A trained detector behind the runtime's `Backend` protocol: what is validated is what is exported."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tinydet.models.checkpoint import load_checkpoint
from tinydet.models.detector import Detector
from tinydet.models.faster_rcnn import FasterRCNN
from tinydet.models.graphs.one_stage import InferenceGraph, Pixels, deployed
from tinydet.runtime.backends import TileOutputs
from tinydet.spec import ModelSpec


class TorchBackend:
    """Runs the graph of a detector in torch.

    Args:
        autocast: run the convolutions in bfloat16; decode stays in float32. For validation while training.
    """

    def __init__(self, detector: Detector, spec: ModelSpec, *, device: str = "cpu", autocast: bool = False) -> None:
        self.spec = spec
        self.name = f"torch {torch.__version__} on {device}" + (" (bfloat16)" if autocast else "")
        self._device = torch.device(device)
        self._autocast = autocast
        self._graph = graph_of(detector, spec).to(self._device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def run(self, images: npt.NDArray[np.uint8]) -> TileOutputs:
        """(N, T, T, 3) uint8 RGB tiles -> boxes in tile pixels, scores, labels, candidates."""
        tiles = torch.from_numpy(np.ascontiguousarray(images)).to(self._device)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            boxes, scores, labels, candidates = self._graph(tiles)
        return TileOutputs(boxes.cpu().numpy(), scores.cpu().numpy(), labels.cpu().numpy(), candidates.cpu().numpy())


def graph_of(detector: Detector, spec: ModelSpec, *, fold: bool = True) -> nn.Module:
    """What runs on the host's tiles: `InferenceGraph`, or for Faster R-CNN torchvision's own inference.

    Args:
        fold: dissolve alpha into the convolutions, as an exported model has it.
    """
    if isinstance(detector, FasterRCNN):
        return TorchvisionGraph(detector, spec, fold=fold)
    return InferenceGraph(detector, spec, fold=fold)


class TorchvisionGraph(nn.Module):
    """Faster R-CNN behind the contract of an exported model, with torchvision's RoIAlign and proposals inside.

    Wraps a copy of the detector in eval mode. Not to be exported: its inner shapes depend on the image. Overlaps are
    left to the runtime, as in all models: see `tinydet.models.graphs.two_stage`, which is compared with this.
    """

    def __init__(self, detector: FasterRCNN, spec: ModelSpec, *, fold: bool = True) -> None:
        super().__init__()
        self.detector = deployed(detector, spec, fold=fold)
        self.pixels = Pixels()
        self.slots = spec.max_detections
        heads = self.detector.roi_heads
        heads.score_thresh, heads.nms_thresh = spec.score_floor, math.inf
        # All of them, so that a tile with more than K is seen and counted.
        heads.detections_per_img = None

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As `InferenceGraph`: boxes (N, K, 4), scores (N, K), labels (N, K), candidates (N,)."""
        found = self.detector(self.pixels(images))
        device = images.device
        boxes = torch.zeros(len(found), self.slots, 4, device=device)
        scores = torch.zeros(len(found), self.slots, device=device)
        labels = torch.full((len(found), self.slots), -1, dtype=torch.int32, device=device)
        for i, tile in enumerate(found):
            kept = min(len(tile.scores), self.slots)
            boxes[i, :kept], scores[i, :kept] = tile.boxes[:kept], tile.scores[:kept]
            labels[i, :kept] = tile.labels[:kept].to(torch.int32)
        candidates = torch.tensor([len(tile.scores) for tile in found], dtype=torch.int32, device=device)
        return boxes, scores, labels, candidates


def open_checkpoint(path: Path, *, device: str = "cpu", tile: int | None = None) -> TorchBackend:
    """A checkpoint, ready to run; `tile` None: as trained.

    Raises:
        ValueError: where the file is not a tinydet checkpoint.
    """
    checkpoint = load_checkpoint(path)
    return TorchBackend(checkpoint.build(), checkpoint.spec(tile=tile), device=device)
