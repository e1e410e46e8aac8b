"""InferenceGraph: a trained detector as one graph of fixed shapes, uint8 tiles in, boxes out, alpha folded."""

from __future__ import annotations

import copy
import math
from typing import TypeVar

import torch
from torch import Tensor, nn

from tinydet.models.box_coder import decode
from tinydet.models.detector import PIXEL_MEAN, PIXEL_STD
from tinydet.models.faster_rcnn import FasterRCNN
from tinydet.models.fpn import FusionFPN, fold_alpha
from tinydet.models.retinanet import RetinaNet
from tinydet.spec import ModelSpec

MAX_TOPK = 3840  # TensorRT's TopK takes k <= 3840

DetectorType = TypeVar("DetectorType", RetinaNet, FasterRCNN)


class InferenceGraph(nn.Module):
    """Normalise, detect, decode in float32, keep the best K boxes of each tile. No plugin, no data-dependent shape.

    Wraps a copy of the detector, in eval mode; the detector does not know that export exists. Each anchor proposes
    its best class only.

    Args:
        fold: dissolve alpha into the convolutions. False keeps the graph as trained, for comparison; attention, whose
            factors depend on the image, is kept anyway.

    Raises:
        ValueError: where the spec asks for what no runtime takes.
    """

    anchors: Tensor

    def __init__(self, detector: RetinaNet, spec: ModelSpec, *, fold: bool = True) -> None:
        super().__init__()
        if not 0 < spec.max_detections <= MAX_TOPK:
            raise ValueError(f"max_detections must be 1..{MAX_TOPK} (TensorRT's TopK), got {spec.max_detections}")
        self.detector = deployed(detector, spec, fold=fold)
        self.pixels = Pixels()
        self.max_detections = spec.max_detections
        # Compared before the sigmoid, so that only what is kept is squashed.
        self.logit_floor = math.log(spec.score_floor / (1 - spec.score_floor))
        levels = [torch.from_numpy(a) for a in detector.design.grid_anchors(spec.tile, spec.tile)]
        self.level_sizes = [len(level) for level in levels]
        self.register_buffer("anchors", torch.cat(levels))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(N, T, T, 3) uint8 RGB -> boxes (N, K, 4) xyxy in tile pixels, scores (N, K) descending, labels (N, K)
        int32 with -1 for an empty slot, candidates (N,) int32: boxes over the score floor before the cut to K."""
        outputs = self.detector(self.pixels(images))
        boxes, logits, labels = [], [], []
        candidates = torch.zeros(images.shape[0], dtype=torch.int32, device=images.device)
        for level_logits, deltas, anchors in zip(
            outputs.logits, outputs.deltas, self.anchors.split(self.level_sizes), strict=True
        ):
            best, label = level_logits.float().max(dim=2)
            candidates = candidates + (best > self.logit_floor).to(torch.int32).sum(dim=1, dtype=torch.int32)
            kept, index = best.topk(min(self.max_detections, best.shape[1]), dim=1)
            logits.append(kept)
            labels.append(label.gather(1, index))
            index = index.unsqueeze(2).expand(-1, -1, 4)
            boxes.append(
                decode(deltas.float().gather(1, index), anchors.expand(images.shape[0], -1, -1).gather(1, index))
            )
        kept, index = torch.cat(logits, dim=1).topk(self.max_detections, dim=1)
        filled = kept > self.logit_floor
        all_boxes = torch.cat(boxes, dim=1).gather(1, index.unsqueeze(2).expand(-1, -1, 4))
        all_labels = torch.cat(labels, dim=1).gather(1, index).to(torch.int32)
        return (
            torch.where(filled.unsqueeze(2), all_boxes, 0.0),
            torch.where(filled, kept.sigmoid(), 0.0),
            torch.where(filled, all_labels, -1),
            candidates,
        )


class Pixels(nn.Module):
    """(N, T, T, 3) uint8 RGB -> (N, 3, T, T) as the backbone takes them."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(PIXEL_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(PIXEL_STD).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        # Cast first: TensorRT's parser refuses a Transpose of uint8.
        return (images.float().permute(0, 3, 1, 2) - self.mean) / self.std


def deployed(detector: DetectorType, spec: ModelSpec, *, fold: bool = True) -> DetectorType:
    """A copy in eval mode, alpha folded into its convolutions; attention, whose factors depend on the image, is kept.

    Raises:
        ValueError: where the pyramid does not divide the spec's tile.
    """
    if spec.tile % 32 or spec.tile < 64:
        raise ValueError(
            f"the tile must be a multiple of 32 (the coarsest fused level) and at least 64, got {spec.tile}"
        )
    ready = copy.deepcopy(detector).eval().requires_grad_(False)
    if fold and isinstance(ready.fpn, FusionFPN) and ready.fpn.fusion != "attention":
        ready.fpn = fold_alpha(ready.fpn)
    return ready
