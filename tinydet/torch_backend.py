"""A trained detector behind the runtime's `Backend` protocol: what is validated is what is exported."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tinydet.checkpoint import load_checkpoint
from tinydet.detector import PIXEL_MEAN, PIXEL_STD, Detector
from tinydet.export.graph import InferenceGraph
from tinydet.faster_rcnn import FasterRCNN
from tinydet.fpn import FusionFPN, fold_alpha
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


def graph_of(detector: Detector, spec: ModelSpec) -> nn.Module:
    """What runs on the host's tiles: `InferenceGraph`, or for Faster R-CNN torchvision's own inference."""
    return TwoStageGraph(detector, spec) if isinstance(detector, FasterRCNN) else InferenceGraph(detector, spec)


class TwoStageGraph(nn.Module):
    """Faster R-CNN behind the contract of an exported model, with torchvision's RoIAlign and suppression inside.

    Wraps a copy of the detector in eval mode, alpha folded. Not to be exported: its inner shapes depend on the image.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, detector: FasterRCNN, spec: ModelSpec) -> None:
        super().__init__()
        if spec.tile % 32 or spec.tile < 64:
            raise ValueError(
                f"the tile must be a multiple of 32 (the coarsest fused level) and at least 64, got {spec.tile}"
            )
        if not spec.nms_in_graph:
            raise ValueError("Faster R-CNN suppresses by itself; its spec must say nms_in_graph")
        self.detector = copy.deepcopy(detector).eval().requires_grad_(False)
        if isinstance(self.detector.fpn, FusionFPN) and self.detector.fpn.fusion != "attention":
            self.detector.fpn = fold_alpha(self.detector.fpn)
        self.slots = spec.max_detections
        heads = self.detector.roi_heads
        heads.score_thresh, heads.nms_thresh = spec.score_floor, spec.nms_iou
        # All that suppression leaves, so that a tile with more than K objects is seen and counted.
        heads.detections_per_img = None
        self.register_buffer("mean", torch.tensor(PIXEL_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(PIXEL_STD).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As `InferenceGraph`: boxes (N, K, 4), scores (N, K), labels (N, K), candidates (N,), the last after
        suppression."""
        found = self.detector((images.float().permute(0, 3, 1, 2) - self.mean) / self.std)
        boxes = self.mean.new_zeros(len(found), self.slots, 4)
        scores = self.mean.new_zeros(len(found), self.slots)
        labels = torch.full((len(found), self.slots), -1, dtype=torch.int32, device=images.device)
        for i, tile in enumerate(found):
            kept = min(len(tile.scores), self.slots)
            boxes[i, :kept], scores[i, :kept] = tile.boxes[:kept], tile.scores[:kept]
            labels[i, :kept] = tile.labels[:kept].to(torch.int32)
        candidates = torch.tensor([len(tile.scores) for tile in found], dtype=torch.int32, device=images.device)
        return boxes, scores, labels, candidates


def open_checkpoint(path: Path, *, device: str = "cpu", tile: int | None = None) -> TorchBackend:
    """A checkpoint, ready to run; `tile` None: as trained.

    Raises:
        ValueError: where the file is not a tinydet checkpoint.
    """
    checkpoint = load_checkpoint(path)
    return TorchBackend(checkpoint.build(), checkpoint.spec(tile=tile), device=device)
