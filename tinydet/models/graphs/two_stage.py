"""Inference of Faster R-CNN in fixed shapes: proposals, suppression among them, RoIAlign and box head; no plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tinydet.geometry.anchors import Pyramid
from tinydet.models.box_coder import decode
from tinydet.models.graphs.cluster_nms import cluster_nms
from tinydet.models.graphs.one_stage import MAX_TOPK, SMALLEST_DETECTION
from tinydet.models.graphs.roi_align import GatheredRoIAlign
from tinydet.models.graphs.tile_shape import EMPTY, Priors, best, clipped
from tinydet.spec import ModelSpec

if TYPE_CHECKING:
    from torchvision.ops import MultiScaleRoIAlign

    from tinydet.models.faster_rcnn import FasterRCNN

PROPOSAL_CODER_WEIGHTS = (1.0, 1.0, 1.0, 1.0)  # torchvision's and the authors' code's
SMALLEST_PROPOSAL = 1e-3  # pixels; thinner boxes are dropped after clipping, as in torchvision


class ProposalInference(nn.Module):
    """Proposals of a tile and the output of the box head for each, in fixed shapes.

    Suppression among the proposals is part of the network: see `cluster_nms`.

    Args:
        detector: a `FasterRCNN` made for this purpose; the layout of its first fully connected layer is changed.

    Attributes:
        proposals: number of proposals of a tile; classes: without the background; slots: boxes that are returned.

    Raises:
        ValueError: the spec has no rounds of suppression.
    """

    def __init__(self, detector: FasterRCNN, spec: ModelSpec) -> None:
        super().__init__()
        if spec.nms_rounds < 1:
            raise ValueError(f"nms_rounds must be 1 or more for a detector with proposals, got {spec.nms_rounds}")
        self.detector = detector
        self.slots, self.score_floor, self.rounds = spec.max_detections, spec.score_floor, spec.nms_rounds
        design, rpn = self.detector.design, self.detector.rpn
        self.priors = Priors(design)
        self.kept_of_level = rpn.pre_nms_top_n()
        self.proposals = min(rpn.post_nms_top_n(), self.kept_of_level * len(design.levels))
        head = self.detector.roi_heads
        self.classes = head.box_predictor.cls_score.out_features - 1
        align = head.box_roi_pool
        self.align = gathered(align, design)
        # Pooled features are channels last; the first layer is reordered accordingly, which saves a transpose.
        first = head.box_head.fc6
        bins = align.output_size[0] * align.output_size[1]
        first.weight = nn.Parameter(
            first.weight.unflatten(1, (-1, bins)).transpose(1, 2).flatten(1).contiguous(), requires_grad=False
        )

    def _box_features(self, levels: list[Tensor], proposals: Tensor) -> Tensor:
        """(N, R, 4) proposals -> (N * R, F) the output of the box head."""
        pooled = self.align(levels[:-1], proposals)
        hidden: Tensor = self.detector.roi_heads.box_head(pooled.flatten(0, 1))
        return hidden

    def _propose(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Return the proposals and the levels that they come from.

        Boxes (N, R, 4) xyxy in tile pixels, best first; (N, R) which exist; (N,) how many did not settle.
        """
        priors = self.priors(images)  # first: see `Priors.forward`
        levels = list(self.detector.pyramid(images).values())
        rpn = self.detector.rpn
        logits, codes, anchors = [], [], []
        for objectness, deltas, of_level in zip(*rpn.head(levels), priors, strict=True):
            # Cells, then the shapes of a cell: the order of the anchors.
            flat = objectness.permute(0, 2, 3, 1).flatten(1)
            offsets = deltas.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3)
            kept, index = best(flat, self.kept_of_level)
            logits.append(kept)
            codes.append(offsets.gather(1, index.unsqueeze(2).expand(-1, -1, 4)))
            anchors.append(F.embedding(index, of_level))
        boxes = clipped(decode(torch.cat(codes, dim=1), torch.cat(anchors, dim=1), PROPOSAL_CODER_WEIGHTS), images)
        every = torch.cat(logits, dim=1)
        valid = (every > EMPTY) & wide(boxes, SMALLEST_PROPOSAL)
        # All levels have as many boxes, so one pass suppresses in each of them: a fifth of the nodes.
        size = self.kept_of_level
        settled, changed = cluster_nms(boxes.reshape(-1, size, 4), valid.reshape(-1, size), rpn.nms_thresh, self.rounds)
        unconverged = changed.reshape(-1, len(logits)).sum(dim=1, dtype=torch.int32)
        kept, index = torch.where(settled.reshape(-1, size * len(logits)), every, EMPTY).topk(self.proposals, dim=1)
        chosen = boxes.gather(1, index.unsqueeze(2).expand(-1, -1, 4))
        return chosen, kept > EMPTY, unconverged, levels


class TwoStageInference(ProposalInference):
    """Proposals, RoIAlign and box head of a Faster R-CNN; no shape depends on the image.

    The outputs are those of torchvision's inference before its last suppression: every class of every proposal is a
    candidate, and the best K are kept. Overlapping boxes are left to the runtime, which suppresses exactly, per tile
    and class, and two models can be compared without rounding turning one suppressed neighbor into another.

    Raises:
        ValueError: the spec asks for more than the detector has or runtimes can keep.
    """

    class_of: Tensor

    def __init__(self, detector: FasterRCNN, spec: ModelSpec) -> None:
        super().__init__(detector, spec)
        most = min(MAX_TOPK, self.proposals * self.classes)
        if not 0 < self.slots <= most:
            raise ValueError(
                f"max_detections must be 1..{most} ({self.proposals} proposals of {self.classes} classes, and "
                f"TensorRT's TopK takes {MAX_TOPK}), got {self.slots}"
            )
        self.register_buffer("class_of", torch.arange(self.classes, dtype=torch.int32).repeat(self.proposals))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """(N, 3, T, T) normalized RGB -> the outputs of `Detector.inference`.

        The last one, unconverged (N,) int32, counts proposals whose suppression the last round still changed.
        """
        proposals, exists, unconverged, levels = self._propose(images)
        logits, deltas = self.detector.roi_heads.box_predictor(self._box_features(levels, proposals))
        shape = (-1, self.proposals, self.classes)
        scores = logits.float().softmax(dim=1)[:, 1:].reshape(shape)  # 0 is the background
        boxes = clipped(decode(deltas.float()[:, 4:].reshape(*shape, 4), proposals.unsqueeze(2)), images)
        valid = (scores > self.score_floor) & exists.unsqueeze(2) & wide(boxes, SMALLEST_DETECTION)
        candidates = valid.flatten(1).sum(dim=1, dtype=torch.int32)
        kept, index = torch.where(valid, scores, -1.0).flatten(1).topk(self.slots, dim=1)
        filled = kept > 0
        chosen = boxes.flatten(1, 2).gather(1, index.unsqueeze(2).expand(-1, -1, 4))
        labels = self.class_of.index_select(0, index.flatten()).view_as(index)
        return (
            torch.where(filled.unsqueeze(2), chosen, 0.0),
            torch.where(filled, kept, 0.0),
            torch.where(filled, labels, -1),
            candidates,
            unconverged,
        )


def gathered(align: MultiScaleRoIAlign, design: Pyramid) -> GatheredRoIAlign:
    """Return the `GatheredRoIAlign` that pools as `align` does."""
    return GatheredRoIAlign(
        first_level=design.strides[0].bit_length() - 1,
        levels=len(align.featmap_names),
        size=align.output_size[0],
        sampling=align.sampling_ratio,
        canonical_scale=align.canonical_scale,
        canonical_level=align.canonical_level,
        aligned=getattr(align, "aligned", False),
    )


def wide(boxes: Tensor, smallest: float) -> Tensor:
    """Whether both sides of each box are at least `smallest` pixels."""
    sides = boxes[..., 2:] - boxes[..., :2]
    return (sides[..., 0] >= smallest) & (sides[..., 1] >= smallest)
