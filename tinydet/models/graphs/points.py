"""Inference of detectors that predict from points, in fixed shapes: decode and keep the best boxes of a tile."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinydet.geometry.points import PointDesign
from tinydet.models.graphs.one_stage import SMALLEST_DETECTION, BestBoxes
from tinydet.models.graphs.tile_shape import EMPTY, Priors, best, clipped
from tinydet.spec import ModelSpec


class PointInference(nn.Module):
    """Decode in float32 and keep the best K boxes of each tile. Each point proposes its best class only.

    The score of a box is the root of the probability of its class times that of its centerness: the order is that of
    the product, and the scale that of a probability.

    Args:
        detector: module whose output has `logits` (N, P_level, C), `boxes` (N, P_level, 4) and `centerness`
            (N, P_level) per level.
        design: its points.
        distances: for each level, converts raw box outputs (..., 4) to distances to left, top, right, bottom in pixels.
    """

    def __init__(
        self,
        detector: nn.Module,
        design: PointDesign,
        distances: Sequence[Callable[[Tensor], Tensor]],
        spec: ModelSpec,
    ) -> None:
        super().__init__()
        self.detector = detector
        self.distances = list(distances)
        self.best = BestBoxes(spec, logits=False)
        self.priors = Priors(design)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(N, 3, T, T) normalized RGB -> boxes, scores, labels, candidates; see `Detector.inference`."""
        priors = self.priors(images)  # first: see `Priors.forward`
        outputs = self.detector(images)
        boxes, scores, labels = [], [], []
        candidates = torch.zeros(images.shape[0], dtype=torch.int32, device=images.device)
        for logits, raw, centerness, points, distances in zip(
            outputs.logits,
            outputs.boxes,
            outputs.centerness,
            priors,
            self.distances,
            strict=True,
        ):
            logit, label = logits.float().max(dim=2)
            score = (logit.sigmoid() * centerness.float().sigmoid()).sqrt()
            kept, index = best(score, self.best.slots)
            sides = distances(raw.float().gather(1, index.unsqueeze(2).expand(-1, -1, 4)))
            point = F.embedding(index, points)
            box = clipped(torch.cat([point - sides[..., :2], point + sides[..., 2:]], dim=2), images)
            visible = (box[..., 2:] - box[..., :2]).amin(dim=2) >= SMALLEST_DETECTION
            shown = torch.where(visible, kept, EMPTY)
            dropped = self.best.candidates(kept) - self.best.candidates(shown)
            candidates = candidates + self.best.candidates(score) - dropped
            boxes.append(box)
            scores.append(shown)
            labels.append(label.gather(1, index))
        return (*self.best(boxes, scores, labels), candidates)
