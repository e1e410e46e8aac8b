"""Grid R-CNN on P2..P6 (Lu et al., 2019): Faster R-CNN whose boxes come from nine points, not from a regression."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import batched_nms, clip_boxes_to_image, remove_small_boxes

from tinydet.models.distributed import process_count, sum_over_processes
from tinydet.models.faster_rcnn import (
    ROI_SAMPLING,
    FasterRCNN,
    Proposals,
    TileDetections,
    no_loss,
    share_of_samples,
)
from tinydet.models.graphs.grid import GRID_NMS, GridInference
from tinydet.models.graphs.one_stage import SMALLEST_DETECTION
from tinydet.models.grid_branch import BRANCH_ROI_SIZE, GridBranch, GridDecoder, grid_targets
from tinydet.spec import GRID_ROIS, ModelSpec

TRAINED_ROIS = 192  # of a batch
JITTER = 0.15  # of the sides of a RoI
GRID_WEIGHT = 15.0


class GridRCNN(FasterRCNN):
    """Faster R-CNN without box regression. A grid branch on the best proposals locates nine points of each object.

    Args:
        max_detections: RoIs of an image that the branch runs on in `forward`.
        options: see `FasterRCNN`.

    Attributes:
        grid_branch: see `GridBranch`; its RoIs are pooled by the rule of the box head.
    """

    def __init__(
        self,
        backbone: str,
        classes: int,
        *,
        channels: int = 256,
        nms_iou: float = GRID_NMS,
        max_detections: int = GRID_ROIS,
        **options: Any,
    ) -> None:
        super().__init__(
            backbone, classes, channels=channels, nms_iou=nms_iou, max_detections=max_detections, **options
        )
        self.roi_heads.box_predictor = _ClassPredictor(4 * channels, classes + 1)
        pool = self.roi_heads.box_roi_pool
        self.grid_roi_pool = type(pool)(
            pool.featmap_names, BRANCH_ROI_SIZE, ROI_SAMPLING, canonical_scale=pool.canonical_scale
        )
        self.grid_branch = GridBranch(channels)
        self.grid_decoder = GridDecoder()

    def forward(self, images: Tensor) -> list[TileDetections]:
        """(B, 3, H, W) normalized RGB, sides multiples of 32 -> detections per image, with torchvision's operators."""
        features = self.pyramid(images)
        size = (images.shape[2], images.shape[3])
        sizes = [size] * len(images)
        proposals, _ = self.rpn(ImageList(images, sizes), features)
        heads = self.roi_heads
        logits = heads.box_predictor(heads.box_head(heads.box_roi_pool(features, proposals, sizes)))
        scores = logits.softmax(dim=1)[:, 1:].split([len(each) for each in proposals])
        kept = [self._best(*each) for each in zip(proposals, scores, strict=True)]
        rois = [each.boxes for each in kept]
        boxes = torch.cat(rois)
        if len(boxes):
            boxes = self.grid_decoder(self.grid_branch(self.grid_roi_pool(features, rois, sizes)), boxes)
        parts = clip_boxes_to_image(boxes, size).split([len(each) for each in rois])
        return [each._replace(boxes=part) for each, part in zip(kept, parts, strict=True)]

    def _best(self, proposals: Tensor, scores: Tensor) -> TileDetections:
        """Return the proposals of a tile that the branch runs on, with (R, C) scores; each has its best class."""
        best, labels = scores.max(dim=1)
        large = remove_small_boxes(proposals, SMALLEST_DETECTION)
        large = large[best[large] > self.roi_heads.score_thresh]
        kept = large[batched_nms(proposals[large], best[large], labels[large], self.roi_heads.nms_thresh)]
        kept = kept[: self.roi_heads.detections_per_img]
        return TileDetections(proposals[kept], best[kept], labels[kept])

    def head_losses(
        self, features: dict[str, Tensor], sampled: list[Proposals], size: tuple[int, int]
    ) -> dict[str, Tensor]:
        labels = torch.cat([each.labels for each in sampled])
        share = share_of_samples(labels)
        if len(labels):
            logits = self.roi_heads.box_predictor(self.box_features(features, sampled, size))
            classification = F.cross_entropy(logits, labels) * share
        else:
            classification = no_loss(self.roi_heads)  # other processes may have proposals
        return {"classification": classification, "grid": self._grid_loss(features, sampled, size)}

    def _grid_loss(self, features: dict[str, Tensor], sampled: list[Proposals], size: tuple[int, int]) -> Tensor:
        """Return the loss of the branch on the jittered positives, a mean over the cells of their heat maps."""
        rois, objects, owner = trained_rois(sampled)
        count = sum_over_processes(torch.tensor(float(len(rois)), device=rois.device))
        if not len(rois):
            return no_loss(self.grid_branch)
        of_tiles = [rois[owner == i] for i in range(len(sampled))]
        pooled = self.grid_roi_pool(features, of_tiles, [size] * len(sampled))
        targets = grid_targets(rois, objects)
        losses = [
            F.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
            for logits in self.grid_branch.training_logits(pooled)
        ]
        # A mean over the RoIs of all processes.
        return GRID_WEIGHT * (losses[0] + losses[1]) / (count * targets[0].numel())

    def inference(self, spec: ModelSpec) -> nn.Module:
        return GridInference(self, spec)

    def run_layers(self, images: Tensor) -> None:
        super().run_layers(images)
        rois = TRAINED_ROIS if self.training else len(images) * GRID_ROIS
        pooled = images.new_empty(rois, self.rpn.head.cls_logits.in_channels, BRANCH_ROI_SIZE, BRANCH_ROI_SIZE)
        pooled.requires_grad_(self.training)
        if self.training:
            self.grid_branch.training_logits(pooled)
        else:
            self.grid_branch(pooled)

    def class_layers(self) -> dict[str, tuple[int, int]]:
        return {"roi_heads.box_predictor.cls_score": (1, 1)}


class _ClassPredictor(nn.Module):
    """The class scores of torchvision's `FastRCNNPredictor`, in float32; there is no box regression."""

    def __init__(self, channels: int, rows: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(channels, rows)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.cls_score(x)
        return logits.float()


@torch.no_grad()
def trained_rois(sampled: list[Proposals]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the jittered positives: (R, 4) RoIs xyxy, (R, 4) their objects, (R,) their tiles, ascending.

    At most `TRAINED_ROIS` of a batch, shared by the processes, drawn by torch's generator.
    """
    positive = [torch.where(each.labels > 0)[0] for each in sampled]
    rois = [jittered(each.boxes[chosen], each.size) for each, chosen in zip(sampled, positive, strict=True)]
    objects = torch.cat([each.objects[chosen] for each, chosen in zip(sampled, positive, strict=True)])
    joined = torch.cat(rois)
    owner = torch.cat([torch.full_like(chosen, i) for i, chosen in enumerate(positive)])
    most = max(1, TRAINED_ROIS // process_count())
    if len(joined) > most:
        chosen = torch.randperm(len(joined), device=joined.device)[:most].sort().values
        return joined[chosen], objects[chosen], owner[chosen]
    return joined, objects, owner


def jittered(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Move and scale (R, 4) boxes xyxy by up to 15 % of their sides, and cut them to [0, side - 1] of the tile.

    Args:
        size: height and width of the tile.
    """
    shift, stretch = torch.empty_like(boxes).uniform_(-JITTER, JITTER).split(2, dim=1)
    sides = boxes[:, 2:] - boxes[:, :2]
    center = (boxes[:, :2] + boxes[:, 2:]) / 2 + sides * shift
    half = sides * (1 + stretch) / 2
    height, width = size
    moved = torch.cat([center - half, center + half], dim=1)
    return torch.minimum(moved.clamp(min=0), moved.new_tensor([width, height, width, height]) - 1)
