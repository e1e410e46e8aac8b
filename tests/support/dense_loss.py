"""RetinaNet's loss from the outputs of all anchors, to compare with what the detector computes sparsely."""

from __future__ import annotations

import torch
from torch import Tensor

from tinydet.models.assign.ignore_regions import ignored_by_regions
from tinydet.models.assign.max_iou import MaxIoUAssigner
from tinydet.models.batch import Batch, anchors_of
from tinydet.models.losses import retinanet_loss
from tinydet.models.retinanet import HeadOutputs, RetinaNet


def dense_loss(network: RetinaNet, outputs: HeadOutputs, batch: Batch) -> dict[str, Tensor]:
    design = network.design
    anchors = anchors_of(design, batch.size, batch.images.device)
    matches = MaxIoUAssigner()(batch.boxes, batch.owner, design, anchors, batch.size)
    ignored = ignored_by_regions(batch.regions, batch.region_owner, design, batch.size)
    deltas = torch.cat(outputs.deltas, dim=1).reshape(-1, 4)[matches.positive]
    return retinanet_loss(outputs.logits, deltas, anchors, matches, batch.boxes, batch.labels, ignored, design.levels)
