"""torchvision's own inference of a Faster R-CNN behind the contract of an exported model, to compare with."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from tinydet.models.faster_rcnn import FasterRCNN
from tinydet.models.folding import fold_alpha
from tinydet.models.graphs.inference import Pixels
from tinydet.spec import ModelSpec


class TorchvisionGraph(nn.Module):
    """torchvision's proposals, RoIAlign and box head; overlapping boxes are left to the runtime, as in all models."""

    def __init__(self, detector: FasterRCNN, spec: ModelSpec, *, fold: bool = True) -> None:
        super().__init__()
        self.detector = copy.deepcopy(detector).eval()
        if fold:
            self.detector.fpn = fold_alpha(self.detector.fpn)
        self.pixels = Pixels(self.detector.backbone)
        self.slots = spec.max_detections
        heads = self.detector.roi_heads
        heads.score_thresh, heads.nms_thresh = spec.score_floor, math.inf
        heads.detections_per_img = None  # all of them, so that a tile with more than K is seen and counted

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Boxes (N, K, 4), scores (N, K), labels (N, K), candidates (N,)."""
        found = self.detector(self.pixels(images))
        boxes = torch.zeros(len(found), self.slots, 4)
        scores = torch.zeros(len(found), self.slots)
        labels = torch.full((len(found), self.slots), -1, dtype=torch.int32)
        for i, tile in enumerate(found):
            kept = min(len(tile.scores), self.slots)
            boxes[i, :kept], scores[i, :kept] = tile.boxes[:kept], tile.scores[:kept]
            labels[i, :kept] = tile.labels[:kept].to(torch.int32)
        return boxes, scores, labels, torch.tensor([len(tile.scores) for tile in found], dtype=torch.int32)
