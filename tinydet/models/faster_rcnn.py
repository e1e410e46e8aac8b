"""Faster R-CNN on P2..P6 for tiny objects, composed of torchvision's parts around our pyramid, anchors and losses.

torchvision's `GeneralizedRCNNTransform` is left out: tiles come normalized and padded and are never resized. Modules
have torchvision's names, so that its weights fit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead, concat_box_prediction_layers
from torchvision.ops import MultiScaleRoIAlign, box_iou, roi_align
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import LevelMapper

from tinydet.geometry.anchors import AnchorDesign
from tinydet.models.assign import Assigner
from tinydet.models.assign.build import build_assigner
from tinydet.models.assign.ignore_regions import ignored_by_regions
from tinydet.models.backbone_registry import build_backbone
from tinydet.models.batch import Batch, anchors_of
from tinydet.models.detector import Detector, ForeignWeights
from tinydet.models.distributed import sum_over_processes
from tinydet.models.fpn import FPN
from tinydet.models.graphs.two_stage import TwoStageInference
from tinydet.models.options import FASTER_RCNN_ANCHORS, Assignment, FasterRCNNOptions, Fusion, Norm, RoIAlignRule
from tinydet.spec import ModelSpec

# The released configuration. 2000 proposals in training and 1000 at test are kept before and after suppression.
RPN_SAMPLES, RPN_POSITIVES = 256, 0.5
PROPOSALS = {"training": 2000, "testing": 1000}
PROPOSAL_NMS = 0.7
ROI_IOU, ROI_SAMPLES, ROI_POSITIVES = 0.5, 512, 0.25
ROI_LEVELS = ("P2", "P3", "P4", "P5")
ROI_SIZE, ROI_SAMPLING = 7, 2
SMOOTH_L1_BETA = 1 / 9
IOU_PAIRS = 1 << 20  # of proposals and objects compared at a time

# (P, 4) predicted and (P, 4) encoded boxes of the positives -> their loss, summed
BoxLoss = Callable[[Tensor, Tensor], Tensor]


class TileDetections(NamedTuple):
    """Detections of one tile: (N, 4) xyxy in its pixels, (N,) scores, descending, (N,) class indices from 0."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class Candidates(NamedTuple):
    """Proposals and objects of one tile, (R, 4) xyxy, matched with its objects.

    Attributes:
        labels: (R,) classes, 0 is the background.
        best_iou: (R,) largest IoU with any object; 0 in a tile without objects.
        object_index: (R,) index of the object with that IoU; 0 in a tile without objects.
    """

    boxes: Tensor
    labels: Tensor
    best_iou: Tensor
    object_index: Tensor


class Proposals(NamedTuple):
    """Sampled proposals of one tile: (R, 4) xyxy, (R,) labels (0: background), (R, 4) the object of each positive.

    Attributes:
        size: height and width of the tile before padding.
    """

    boxes: Tensor
    labels: Tensor
    objects: Tensor
    size: tuple[int, int]


class FasterRCNN(Detector):
    """Backbone, fusion pyramid, proposals from P2..P6, and a box head on RoIAlign features of P2..P5.

    Args:
        classes: number of classes, without the background.
        channels: width of the pyramid; the box head is four times as wide, 1024 in the paper.
        alpha, fusion: see `FPN`.
        norm: see `Backbone`.
        straddling: whether anchors that cross the border of the tile are trained. The authors' code leaves them out;
            torchvision does not.
        roi_rule: "torchvision" pools as torchvision's detectors do, which is half a cell of the level off (two image
            pixels on P2) and treats no proposal as smaller than a cell; "aligned" does neither.
        canonical_scale: side in pixels of proposals that are pooled from P4. With 224 all below 112 come from P2.
        assign, assign_rank, assign_background: which anchors learn which objects, see `AssignOptions`.
        design: the anchors; others than the default are for parity tests.
        score_floor: detections below it are dropped; `nms_iou`: above it two of a class are the same object;
            `max_detections`: kept per tile. These are for `forward`, torchvision's inference.

    Attributes:
        box_loss: regression loss of the box head, summed over positives: (P, 4) predictions, (P, 4) targets -> scalar.
    """

    background: ClassVar[bool] = True

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
        canonical_scale: int = FasterRCNNOptions.canonical_scale,
        assign: Assignment = "iou",
        assign_rank: int = 0,
        assign_background: float | None = None,
        design: AnchorDesign | None = None,
        score_floor: float = 0.05,
        nms_iou: float = 0.5,
        max_detections: int = 1000,
    ) -> None:
        super().__init__()
        if roi_rule not in ("torchvision", "aligned"):
            raise ValueError(f"unknown RoIAlign rule {roi_rule!r}; choose one of: torchvision, aligned")
        self.design: AnchorDesign = design or FASTER_RCNN_ANCHORS.design()
        self.backbone = build_backbone(backbone, norm=norm)
        self.fpn = FPN(self.backbone.channels, channels, alpha, fusion=fusion, top=LastLevelMaxPool())
        self.rpn = _ProposalNetwork(
            _Anchors(self.design),
            _ProposalHead(channels, len(self.design.shapes[0])),
            *FasterRCNNOptions.iou_thresholds,
            RPN_SAMPLES,
            RPN_POSITIVES,
            pre_nms_top_n=PROPOSALS,
            post_nms_top_n=PROPOSALS,
            nms_thresh=PROPOSAL_NMS,
        )
        self.rpn.straddling = straddling
        self.rpn.assigner = build_assigner(
            assign, assign_rank, assign_background, iou_thresholds=FasterRCNNOptions.iou_thresholds
        )
        align = AlignedRoIAlign if roi_rule == "aligned" else MultiScaleRoIAlign
        self.roi_heads = RoIHeads(
            align(list(ROI_LEVELS), ROI_SIZE, ROI_SAMPLING, canonical_scale=canonical_scale),
            TwoMLPHead(channels * ROI_SIZE**2, 4 * channels),
            _BoxPredictor(4 * channels, classes + 1),
            ROI_IOU,
            ROI_IOU,
            ROI_SAMPLES,
            ROI_POSITIVES,
            None,  # torchvision's box coder weights, which are the released ones
            score_floor,
            nms_iou,
            max_detections,
        )
        self.box_loss: BoxLoss = smooth_l1

    def forward(self, images: Tensor) -> list[TileDetections]:
        """(B, 3, H, W) normalized RGB, sides multiples of 32 -> detections per image, by torchvision's inference."""
        features = self.pyramid(images)
        size = (images.shape[2], images.shape[3])
        sizes = [size] * len(images)
        proposals, _ = self.rpn(ImageList(images, sizes), features)
        found, _ = self.roi_heads(features, proposals, sizes)
        return [TileDetections(each["boxes"], each["scores"], each["labels"] - 1) for each in found]

    def pyramid(self, images: Tensor) -> dict[str, Tensor]:
        """Return the levels of `design` by name, finest first: what proposals and heads see, here and in the graph."""
        return dict(zip(self.design.levels, self.fpn(self.backbone(images)), strict=True))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """See `Detector`. Sampled anchors and proposals are drawn from torch's generator.

        As in RetinaNet, an anchor or proposal centered in an ignore region is not background. The losses are means over
        the samples of all processes.
        """
        features = self.pyramid(batch.images)
        targets = _targets(batch)
        proposals, losses = self.rpn.propose(batch, features)
        proposals = [_outside_regions(p, t["regions"], t["boxes"]) for p, t in zip(proposals, targets, strict=True)]
        return losses | self.head_losses(features, self.sample_proposals(proposals, targets), batch.size)

    def head_losses(
        self, features: dict[str, Tensor], sampled: list[Proposals], size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Return the losses of what follows the proposals, means over the samples of all processes.

        Args:
            size: height and width of the padded tiles, from which RoIAlign derives the strides.
        """
        labels = torch.cat([each.labels for each in sampled])
        share = share_of_samples(labels)
        if not len(labels):
            # Zero, with a zero gradient for every parameter: other processes may have proposals.
            nothing = no_loss(self.roi_heads)
            return {"classification": nothing, "regression": nothing}
        logits, deltas = self.roi_heads.box_predictor(self.box_features(features, sampled, size))
        positive = torch.where(labels > 0)[0]
        predicted = deltas.reshape(len(deltas), -1, 4)[positive, labels[positive]]
        boxes, objects = (torch.cat([getattr(each, name) for each in sampled]) for name in ("boxes", "objects"))
        encoded = self.roi_heads.box_coder.encode_single(objects[positive], boxes[positive])
        return {
            "classification": F.cross_entropy(logits, labels) * share,
            "regression": self.box_loss(predicted, encoded) / labels.numel() * share,
        }

    def box_features(self, features: dict[str, Tensor], sampled: list[Proposals], size: tuple[int, int]) -> Tensor:
        """Return the output of the box head, (R, 4 * channels), for the proposals of all tiles."""
        pooled = self.roi_heads.box_roi_pool(features, [each.boxes for each in sampled], [size] * len(sampled))
        hidden: Tensor = self.roi_heads.box_head(pooled)
        return hidden

    @torch.no_grad()
    def sample_proposals(self, proposals: list[Tensor], targets: list[dict[str, Any]]) -> list[Proposals]:
        """Match proposals, and the objects themselves, with the objects of their tile, and draw a sample per tile."""
        sampled = []
        for boxes, target in zip(proposals, targets, strict=True):
            objects = target["boxes"].to(boxes.dtype)
            candidates = _match(torch.cat([boxes, objects]), objects, target["labels"])
            chosen = self.draw(candidates)
            drawn = candidates.boxes[chosen]
            matched = objects[candidates.object_index[chosen]] if len(objects) else torch.zeros_like(drawn)
            sampled.append(Proposals(drawn, candidates.labels[chosen], matched, target["size"]))
        return sampled

    def draw(self, candidates: Candidates) -> Tensor:
        """Return the indices of the candidates that are trained on, drawn by torch's generator."""
        (positive,), (negative,) = BalancedPositiveNegativeSampler(ROI_SAMPLES, ROI_POSITIVES)([candidates.labels])
        return torch.where(positive | negative)[0]

    def inference(self, spec: ModelSpec) -> nn.Module:
        return TwoStageInference(self, spec)

    def run_layers(self, images: Tensor) -> None:
        levels = list(self.pyramid(images).values())
        self.rpn.head(levels)
        proposals = ROI_SAMPLES if self.training else self.rpn.post_nms_top_n()
        pooled = images.new_empty(len(images) * proposals, levels[0].shape[1], ROI_SIZE, ROI_SIZE)
        self.roi_heads.box_predictor(self.roi_heads.box_head(pooled.requires_grad_(self.training)))

    def class_layers(self) -> dict[str, tuple[int, int]]:
        return {"roi_heads.box_predictor.cls_score": (1, 1), "roi_heads.box_predictor.bbox_pred": (1, 4)}

    @staticmethod
    def from_torchvision(weights: dict[str, Tensor]) -> ForeignWeights | None:
        scores = weights.get("roi_heads.box_predictor.cls_score.bias")
        return None if scores is None else ForeignWeights(weights, len(scores), FasterRCNN.first_level)


def share_of_samples(samples: Tensor) -> Tensor:
    """Return which share of the samples of all processes these are, by which this process's mean counts.

    Every process has to call it, including those without a sample, for which the result is undefined if none has one.
    """
    count = torch.tensor(float(len(samples)), device=samples.device)
    return count / sum_over_processes(count)


def no_loss(module: nn.Module) -> Tensor:
    """Return 0, with a zero gradient for every parameter of a module."""
    return torch.stack([p.sum() for p in module.parameters()]).sum() * 0


def smooth_l1(predicted: Tensor, encoded: Tensor) -> Tensor:
    """Smooth L1 with beta 1/9, summed, as in torchvision's box head."""
    return F.smooth_l1_loss(predicted, encoded, beta=SMOOTH_L1_BETA, reduction="sum")


class _Anchors(nn.Module):
    """The anchors of a design in place of torchvision's `AnchorGenerator`."""

    def __init__(self, design: AnchorDesign) -> None:
        super().__init__()
        self.design = design

    def forward(self, images: ImageList, features: Sequence[Tensor]) -> list[Tensor]:
        size = (images.tensors.shape[2], images.tensors.shape[3])
        return [anchors_of(self.design, size, images.tensors.device)] * len(images.tensors)


class _ProposalHead(RPNHead):  # type: ignore[misc]
    """Outputs float32: under autocast boxes would be decoded in bfloat16, whose steps at 512 px are 4 px."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        logits, deltas = super().forward(x)
        return [each.float() for each in logits], [each.float() for each in deltas]


class _BoxPredictor(FastRCNNPredictor):  # type: ignore[misc]
    """Outputs float32, like `_ProposalHead`."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, deltas = super().forward(x)
        return logits.float(), deltas.float()


class _ProposalNetwork(RegionProposalNetwork):  # type: ignore[misc]
    """torchvision's, with anchors assigned for the whole batch at once.

    Some anchors are left out of training: in ignore regions, and across the border of the tile.
    """

    straddling: bool
    assigner: Assigner

    def propose(self, batch: Batch, features: dict[str, Tensor]) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Return the proposals of each tile, (R, 4) xyxy, and the losses of the anchors."""
        images = ImageList(batch.images, list(batch.sizes))
        maps = list(features.values())
        objectness, deltas = self.head(maps)
        anchors = self.anchor_generator(images, maps)
        counts = [level[0].numel() for level in objectness]
        logits, offsets = concat_box_prediction_layers(objectness, deltas)
        decoded = self.box_coder.decode(offsets.detach(), anchors).view(len(anchors), -1, 4)
        proposals, _ = self.filter_proposals(decoded, logits, images.image_sizes, counts)
        labels, objects = self.assign_anchors(batch, anchors[0])
        positive, negative = (torch.where(torch.cat(masks))[0] for masks in self.fg_bg_sampler(list(labels)))
        sampled = torch.cat([positive, negative])
        share = share_of_samples(sampled)
        if not len(sampled):  # only ignore regions: a mean of nothing is NaN
            return proposals, {"objectness": logits.sum() * 0, "proposal_regression": offsets.sum() * 0}
        encoded = self.box_coder.encode_single(batch.boxes[objects[positive]], anchors[0][positive % len(anchors[0])])
        of_objectness = F.binary_cross_entropy_with_logits(logits.flatten()[sampled], labels.flatten()[sampled])
        return proposals, {
            "objectness": of_objectness * share,
            "proposal_regression": smooth_l1(offsets[positive], encoded) / len(sampled) * share,
        }

    def assign_anchors(self, batch: Batch, anchors: Tensor) -> tuple[Tensor, Tensor]:
        """Return what each of the N anchors of each tile learns.

        Returns:
            (B, N) 1 for an object, 0 for background, -1 for nothing; (B * N,) index of that object into the batch's.
        """
        design, size = self.anchor_generator.design, batch.size
        matches = self.assigner(batch.boxes, batch.owner, design, anchors, size)
        labels = anchors.new_zeros(len(batch.sizes) * len(anchors))
        labels[ignored_by_regions(batch.regions, batch.region_owner, design, size)] = -1
        labels[matches.ignored] = -1
        labels[matches.positive] = 1  # an object in an ignore region is still learned
        objects = torch.zeros(len(labels), dtype=torch.long, device=labels.device)
        objects[matches.positive] = matches.objects
        labels = labels.view(len(batch.sizes), -1)
        if not self.straddling:
            height, width = labels.new_tensor(batch.sizes).unbind(1)
            inside = (
                (anchors[:, :2] >= 0).all(1) & (anchors[:, 2] <= width[:, None]) & (anchors[:, 3] <= height[:, None])
            )
            labels[~inside] = -1
        return labels, objects


class AlignedRoIAlign(MultiScaleRoIAlign):  # type: ignore[misc]
    """`MultiScaleRoIAlign` with `aligned=True`, which torchvision's does not offer."""

    aligned = True

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


def _match(boxes: Tensor, objects: Tensor, labels: Tensor) -> Candidates:
    """Match the boxes of a tile with its (M, 4) objects of (M,) labels from 1: an IoU of 0.5 or more is positive."""
    if not len(objects):
        nothing = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
        return Candidates(boxes, nothing, boxes.new_zeros(len(boxes)), nothing)
    best_iou, index = _best_overlap(boxes, objects)
    return Candidates(boxes, torch.where(best_iou >= ROI_IOU, labels[index], 0), best_iou, index)


def _best_overlap(boxes: Tensor, objects: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest IoU of each of (R, 4) boxes with (M, 4) objects, M > 0, and the object that has it, (R,) each.

    Compares at most about `IOU_PAIRS` pairs at a time: 3000 objects and 2000 proposals would need half a gigabyte.
    """
    parts = [box_iou(objects, part).max(dim=0) for part in boxes.split(max(1, IOU_PAIRS // len(objects)))]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def _targets(batch: Batch) -> list[dict[str, Any]]:
    """The objects of each tile in torchvision's form: label 0 is the background."""
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
    """Proposals that are not centered in an ignore region, or that overlap an object well enough to learn it."""
    kept = ~_centered_in(proposals, regions)
    if len(boxes) and not bool(kept.all()):
        kept |= _best_overlap(proposals, boxes)[0] >= ROI_IOU
    return proposals[kept]


def _centered_in(boxes: Tensor, regions: Tensor) -> Tensor:
    """(N,) whether the center of each box lies in any of the (R, 4) regions."""
    center = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2
    inside = (center >= regions[:, :2]) & (center < regions[:, 2:])
    return inside.all(dim=2).any(dim=1)
