"""Faster R-CNN on P2..P6 for tiny objects, composed from torchvision's parts around our pyramid and anchors.

torchvision's `GeneralizedRCNNTransform` is left out: tiles come normalised and padded, and are never resized. Names of
the parts are torchvision's, so that its weights fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign, box_iou, roi_align
from torchvision.ops.poolers import LevelMapper

from tinydet.geometry.anchors import FASTER_RCNN, AnchorDesign
from tinydet.models.backbone import Backbone, Norm
from tinydet.models.batch import Batch, anchors_of
from tinydet.models.distributed import process_count
from tinydet.models.fpn import Fusion, FusionFPN, PlainFPN
from tinydet.models.losses import TwoStageLosses

# The released configuration; 2000 and 1000 proposals are kept before and after suppression in training and at test.
RPN_FOREGROUND, RPN_BACKGROUND, RPN_SAMPLES, RPN_POSITIVES = 0.7, 0.3, 256, 0.5
PROPOSALS = {"training": 2000, "testing": 1000}
PROPOSAL_NMS = 0.7
ROI_IOU, ROI_SAMPLES, ROI_POSITIVES = 0.5, 512, 0.25
ROI_LEVELS = ("P2", "P3", "P4", "P5")
ROI_SIZE, ROI_SAMPLING = 7, 2
CANONICAL_SCALE, CANONICAL_LEVEL = 224, 4  # a proposal of 224 x 224 is pooled from P4 (FPN, Eq. 1)

RoIAlignRule = Literal["torchvision", "aligned"]
ROI_ALIGN_RULES: tuple[RoIAlignRule, ...] = get_args(RoIAlignRule)


class TileDetections(NamedTuple):
    """What was found on one tile: (N, 4) xyxy in its pixels, (N,) scores, descending, (N,) class indices from 0."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class FasterRCNN(nn.Module):
    """Backbone, fusion pyramid, proposals from P2..P6, and a box head on what RoIAlign takes from P2..P5.

    Args:
        classes: number of classes, without the background.
        channels: width of the pyramid; the box head is four times as wide, 1024 in the paper.
        alpha, fusion: see `tinydet.models.fpn.FusionFPN`.
        straddling: whether anchors that cross the tile's border learn. The released code leaves them out; torchvision
            does not.
        roi_rule: "torchvision" pools as torchvision's detectors do, which is half a pixel of the level off (two image
            pixels on P2) and takes no proposal for smaller than a cell; "aligned" does neither.
        canonical_scale: side of the proposals that P4 is for, in pixels. With 224 all below 112 are pooled from P2.
        design: the anchors; others than ours are for parity.
        score_floor: detections below it are dropped; `nms_iou`: above it two of a class are the same object.
        max_detections: kept for a tile.
    """

    def __init__(
        self,
        backbone: str,
        classes: int,
        *,
        channels: int = 256,
        alpha: Sequence[float] | None = None,
        fusion: Fusion = "fixed",
        norm: Norm = "frozen",
        straddling: bool = False,
        roi_rule: RoIAlignRule = "torchvision",
        canonical_scale: int = CANONICAL_SCALE,
        design: AnchorDesign = FASTER_RCNN,
        score_floor: float = 0.05,
        nms_iou: float = 0.5,
        max_detections: int = 1000,
    ) -> None:
        super().__init__()
        if roi_rule not in ROI_ALIGN_RULES:
            raise ValueError(f"unknown RoIAlign rule {roi_rule!r}; one of: {', '.join(ROI_ALIGN_RULES)}")
        self.design = design
        self.backbone = Backbone(backbone, norm=norm)
        self.fpn: PlainFPN = FusionFPN(self.backbone.channels, channels, alpha, fusion=fusion)
        self.rpn = _ProposalNetwork(
            _Anchors(design),
            _ProposalHead(channels, len(design.shapes[0])),
            RPN_FOREGROUND,
            RPN_BACKGROUND,
            RPN_SAMPLES,
            RPN_POSITIVES,
            pre_nms_top_n=PROPOSALS,
            post_nms_top_n=PROPOSALS,
            nms_thresh=PROPOSAL_NMS,
        )
        self.rpn.straddling = straddling
        align = AlignedRoIAlign if roi_rule == "aligned" else MultiScaleRoIAlign
        self.roi_heads = RoIHeads(
            align(list(ROI_LEVELS), ROI_SIZE, ROI_SAMPLING, canonical_scale=canonical_scale),
            TwoMLPHead(channels * ROI_SIZE**2, 4 * channels),
            _BoxPredictor(4 * channels, classes + 1),
            ROI_IOU,
            ROI_IOU,
            ROI_SAMPLES,
            ROI_POSITIVES,
            None,  # torchvision's coder weights, which are the released ones
            score_floor,
            nms_iou,
            max_detections,
        )

    def forward(self, images: Tensor) -> list[TileDetections]:
        """(B, 3, H, W) normalised RGB, H and W multiples of 32 -> the objects of each image, overlaps suppressed."""
        features = self.pyramid(images)
        size = (images.shape[2], images.shape[3])
        sizes = [size] * len(images)
        proposals, _ = self.rpn(ImageList(images, sizes), features)
        found, _ = self.roi_heads(features, proposals, sizes)
        return [TileDetections(each["boxes"], each["scores"], each["labels"] - 1) for each in found]

    def pyramid(self, images: Tensor) -> dict[str, Tensor]:
        """The levels of `design` by name, finest first."""
        return dict(zip(self.design.levels, self.fpn(self.backbone(images)), strict=True))

    def loss(self, batch: Batch) -> TwoStageLosses:
        """The losses of one batch. Which anchors and proposals they sample is drawn from torch's generator.

        As in `RetinaNet`, an anchor or a proposal that is centred in an ignore region is no background. They are means
        over samples, so that the share of one of several processes is its mean divided by their number.
        """
        return TwoStageLosses(*(part / process_count() for part in self._losses(batch)))

    def _losses(self, batch: Batch) -> TwoStageLosses:
        features = self.pyramid(batch.images)
        targets = _targets(batch)
        proposals, of_anchors = self.rpn(ImageList(batch.images, list(batch.sizes)), features, targets)
        proposals = [_outside_regions(p, t["regions"], t["boxes"]) for p, t in zip(proposals, targets, strict=True)]
        if not any(len(p) + len(t["boxes"]) for p, t in zip(proposals, targets, strict=True)):
            # Zero, with a gradient of zero for every parameter: other processes may have proposals.
            nothing = torch.stack([p.sum() for p in self.roi_heads.parameters()]).sum() * 0
            return TwoStageLosses(of_anchors["loss_objectness"], of_anchors["loss_rpn_box_reg"], nothing, nothing)
        # The padded size: RoIAlign derives the strides from it.
        _, of_proposals = self.roi_heads(features, proposals, [batch.size] * len(batch.sizes), targets)
        return TwoStageLosses(
            of_anchors["loss_objectness"],
            of_anchors["loss_rpn_box_reg"],
            of_proposals["loss_classifier"],
            of_proposals["loss_box_reg"],
        )


class _Anchors(nn.Module):
    """A design's anchors in the place of torchvision's `AnchorGenerator`."""

    def __init__(self, design: AnchorDesign) -> None:
        super().__init__()
        self.design = design

    def forward(self, images: ImageList, features: Sequence[Tensor]) -> list[Tensor]:
        size = (images.tensors.shape[2], images.tensors.shape[3])
        return [anchors_of(self.design, size, images.tensors.device)] * len(images.tensors)


class _ProposalHead(RPNHead):  # type: ignore[misc]
    """Answers in float32: under autocast, boxes would be decoded in bfloat16, whose steps at 512 px are 4 px."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = super().forward(x)
        return [each.float() for each in logits], [each.float() for each in deltas]


class _BoxPredictor(FastRCNNPredictor):  # type: ignore[misc]
    """Answers in float32, as `_ProposalHead`."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, deltas = super().forward(x)
        return logits.float(), deltas.float()


class _ProposalNetwork(RegionProposalNetwork):  # type: ignore[misc]
    """torchvision's, with anchors left out of training: in ignore regions, and where they cross the tile's border."""

    straddling: bool

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict[str, Any]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        labels, boxes = super().assign_targets_to_anchors(anchors, targets)
        for label, anchor, target in zip(labels, anchors, targets, strict=True):
            label[(label == 0) & _centred_in(anchor, target["regions"])] = -1
            if not self.straddling:
                height, width = target["size"]
                inside = (anchor[:, :2] >= 0).all(1) & (anchor[:, 2] <= width) & (anchor[:, 3] <= height)
                label[~inside] = -1
        return labels, boxes

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        if not any(bool((label >= 0).any()) for label in labels):  # nothing but ignore regions: a mean over none is NaN
            return objectness.sum() * 0, pred_bbox_deltas.sum() * 0
        of_objectness, of_boxes = super().compute_loss(objectness, pred_bbox_deltas, labels, regression_targets)
        return of_objectness, of_boxes


class AlignedRoIAlign(MultiScaleRoIAlign):  # type: ignore[misc]
    """`MultiScaleRoIAlign` with `aligned=True`, which torchvision's does not offer."""

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        features = [x[name].float() for name in self.featmap_names]
        finest = round(image_shapes[0][0] / features[0].shape[2]).bit_length() - 1
        mapper = LevelMapper(finest, finest + len(features) - 1, self.canonical_scale, self.canonical_level)
        level = mapper(boxes)
        owner = torch.cat([torch.full_like(each[:, :1], i) for i, each in enumerate(boxes)])
        regions = torch.cat([owner, torch.cat(boxes)], dim=1)
        pooled = features[0].new_zeros(len(regions), features[0].shape[1], *self.output_size)
        for i, feature in enumerate(features):
            (index,) = torch.where(level == i)
            scale = 1 / 2 ** (finest + i)
            found = roi_align(feature, regions[index], self.output_size, scale, self.sampling_ratio, aligned=True)
            pooled = pooled.index_copy(0, index, found)
        return pooled


def _targets(batch: Batch) -> list[dict[str, Any]]:
    """The objects of each tile as torchvision takes them: label 0 is the background."""
    return [
        {
            "boxes": batch.boxes[batch.owner == i],
            "labels": batch.labels[batch.owner == i] + 1,
            "regions": batch.regions[batch.region_owner == i],
            "size": size,
        }
        for i, size in enumerate(batch.sizes)
    ]


def _outside_regions(proposals: Tensor, regions: Tensor, boxes: Tensor) -> Tensor:
    """The proposals that an ignore region does not hold, and those that overlap an object well enough to learn it."""
    kept = ~_centred_in(proposals, regions)
    if len(boxes) and not bool(kept.all()):
        kept |= box_iou(boxes, proposals).amax(dim=0) >= ROI_IOU
    return proposals[kept]


def _centred_in(boxes: Tensor, regions: Tensor) -> Tensor:
    """(N,) whether the centre of each box lies in any of the (R, 4) regions."""
    centre = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2
    inside = (centre >= regions[:, :2]) & (centre < regions[:, 2:])
    return inside.all(dim=2).any(dim=1)
