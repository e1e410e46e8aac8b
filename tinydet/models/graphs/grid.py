"""Inference of Grid R-CNN in fixed shapes: the best proposals get a box from the heat maps of their grid branch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from tinydet.models.graphs.cluster_nms import cluster_nms
from tinydet.models.graphs.one_stage import SMALLEST_DETECTION
from tinydet.models.graphs.tile_shape import clipped
from tinydet.models.graphs.two_stage import ProposalInference, gathered, wide
from tinydet.models.grid_branch import GridDecoder
from tinydet.spec import ModelSpec

if TYPE_CHECKING:
    from tinydet.models.grid_rcnn import GridRCNN

GRID_NMS = 0.3


class GridInference(ProposalInference):
    """Classify proposals, suppress overlapping ones, and run the grid branch on the best `grid_rois`.

    Each proposal has its best class only. Suppression among proposals of a class is part of the network, because the
    branch is too expensive for all of them. Detections are ordered, and dropped below the score floor, by the class
    score; the released 0.03 is replaced by the floor of the spec. Boxes are clipped to the tile. If there are more
    slots than RoIs, the others stay empty.

    Args:
        detector: a `GridRCNN` made for this purpose.

    Raises:
        ValueError: the spec has no or too many RoIs, or no rounds of suppression.
    """

    detector: GridRCNN

    def __init__(self, detector: GridRCNN, spec: ModelSpec) -> None:
        super().__init__(detector, spec)
        if not 0 < spec.grid_rois <= self.proposals:
            raise ValueError(f"grid_rois must be 1..{self.proposals} (the proposals of a tile), got {spec.grid_rois}")
        self.rois = spec.grid_rois
        self.align_rois = gathered(detector.grid_roi_pool, detector.design)
        self.decode = GridDecoder()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(N, 3, T, T) normalized RGB -> the outputs of `Detector.inference`.

        The last one, unconverged (N,) int32, counts proposals whose suppression the last round still changed, among
        all proposals or among those of a class.
        """
        proposals, exists, unconverged, levels = self._propose(images)
        logits = self.detector.roi_heads.box_predictor(self._box_features(levels, proposals))
        classes = logits.float().softmax(dim=1)[:, 1:]  # 0 is the background
        scores, labels = classes.reshape(-1, self.proposals, self.classes).max(dim=2)
        valid = (scores > self.score_floor) & exists & wide(proposals, SMALLEST_DETECTION)
        scores, order = torch.where(valid, scores, -1.0).topk(self.proposals, dim=1)
        proposals = proposals.gather(1, order.unsqueeze(2).expand(-1, -1, 4))
        labels = labels.gather(1, order)
        kept, changed = cluster_nms(proposals, scores > 0, GRID_NMS, self.rounds, labels)
        candidates = kept.sum(dim=1, dtype=torch.int32)
        scores, order = torch.where(kept, scores, -1.0).topk(self.rois, dim=1)
        rois = proposals.gather(1, order.unsqueeze(2).expand(-1, -1, 4))
        labels = labels.gather(1, order).to(torch.int32)
        pooled = self.align_rois(levels[:-1], rois).flatten(0, 1).permute(0, 3, 1, 2)
        boxes = self.decode(self.detector.grid_branch(pooled), rois.flatten(0, 1)).reshape(-1, self.rois, 4)
        filled = scores > 0
        empty = self.slots - self.rois
        return (
            F.pad(torch.where(filled.unsqueeze(2), clipped(boxes, images), 0.0), (0, 0, 0, empty)),
            F.pad(torch.where(filled, scores, 0.0), (0, empty)),
            F.pad(torch.where(filled, labels, -1), (0, empty), value=-1),
            candidates,
            unconverged + changed,
        )
