"""Inference of anchor-based one-stage detectors in fixed shapes: decode and keep the best boxes of a tile."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinydet.geometry.anchors import AnchorDesign
from tinydet.models.box_coder import decode
from tinydet.models.graphs.tile_shape import Priors, best
from tinydet.spec import ModelSpec

MAX_TOPK = 3840  # TensorRT's TopK takes k <= 3840 (NVIDIA/TensorRT#4244)
SMALLEST_DETECTION = 1e-2  # pixels; thinner boxes are dropped, as in torchvision


class AnchorInference(nn.Module):
    """Decode in float32 and keep the best K boxes of each tile. Each anchor proposes its best class only.

    Args:
        detector: module whose output has `logits` (N, A_level, C) and `deltas` (N, A_level, 4) per level.
        design: its anchors.
    """

    def __init__(self, detector: nn.Module, design: AnchorDesign, spec: ModelSpec) -> None:
        super().__init__()
        self.detector = detector
        self.best = BestBoxes(spec)
        self.priors = Priors(design)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(N, 3, T, T) normalized RGB -> boxes, scores, labels, candidates; see `Detector.inference`."""
        priors = self.priors(images)  # first: see `Priors.forward`
        outputs = self.detector(images)
        codes, logits, labels = [], [], []
        candidates = torch.zeros(images.shape[0], dtype=torch.int32, device=images.device)
        for level_logits, deltas, anchors in zip(outputs.logits, outputs.deltas, priors, strict=True):
            scored, label = level_logits.float().max(dim=2)
            candidates = candidates + self.best.candidates(scored)
            kept, index = best(scored, self.best.slots)
            logits.append(kept)
            labels.append(label.gather(1, index))
            chosen = deltas.float().gather(1, index.unsqueeze(2).expand(-1, -1, 4))
            codes.append(torch.cat([chosen, F.embedding(index, anchors)], dim=2))
        # Only the boxes that are kept are decoded; a decoder for each level would add 170 nodes.
        return (*self.best(codes, logits, labels, decode=_decode_codes), candidates)


def _decode_codes(codes: Tensor) -> Tensor:
    """Deltas and the anchor that they belong to, (N, K, 8) -> boxes (N, K, 4)."""
    return decode(codes[..., :4], codes[..., 4:])


class BestBoxes(nn.Module):
    """Keep the best K boxes of each tile by their logits or scores, above the score floor.

    Args:
        logits: whether boxes come with logits. They are compared before the sigmoid, so that the sigmoid is computed
            for kept boxes only. False: they come with scores.
    """

    def __init__(self, spec: ModelSpec, *, logits: bool = True) -> None:
        super().__init__()
        self.slots = spec.max_detections
        self.logits = logits
        self.floor = math.log(spec.score_floor / (1 - spec.score_floor)) if logits else spec.score_floor

    def candidates(self, logits: Tensor) -> Tensor:
        """(N, M) -> (N,) int32, how many are above the score floor."""
        return (logits > self.floor).to(torch.int32).sum(dim=1, dtype=torch.int32)

    def forward(
        self,
        boxes: Sequence[Tensor],
        logits: Sequence[Tensor],
        labels: Sequence[Tensor],
        *,
        decode: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Parts of (N, M_i, 4), (N, M_i), (N, M_i) -> boxes (N, K, 4), scores (N, K) and labels (N, K) int32.

        Args:
            decode: converts codes (N, K, D) to boxes; `boxes` are then parts of (N, M_i, D).
        """
        kept, index = best(torch.cat(list(logits), dim=1), self.slots)
        codes = torch.cat(list(boxes), dim=1)
        best_boxes = codes.gather(1, index.unsqueeze(2).expand(-1, -1, codes.shape[2]))
        if decode is not None:
            best_boxes = decode(best_boxes)
        best_labels = torch.cat(list(labels), dim=1).gather(1, index).to(torch.int32)
        filled = kept > self.floor
        return (
            torch.where(filled.unsqueeze(2), best_boxes, 0.0),
            torch.where(filled, kept.sigmoid() if self.logits else kept, 0.0),
            torch.where(filled, best_labels, -1),
        )
