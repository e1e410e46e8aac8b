"""A detector in one file: one 3x3 convolution predicts, at each cell, class logits and distances to four sides."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from tinydet._internal.options import option
from tinydet.geometry.anchors import Pyramid
from tinydet.models.backbone import Backbone
from tinydet.models.batch import Batch
from tinydet.models.detector import Detector
from tinydet.models.distributed import sum_over_processes
from tinydet.models.fpn import FPN
from tinydet.models.graphs.one_stage import BestBoxes
from tinydet.models.registry import DetectorInfo
from tinydet.spec import ModelSpec


@dataclass(frozen=True)
class ToyOptions:
    prior: float = option(0.1, "score of every class before training (default: %(default)s)", metavar="P")


def level_of(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(M, 4) -> (M,) P2 learns objects with sides up to 16 pixels, P3 up to 32, and so on."""
    sides = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))
    return np.floor(np.log2(sides / 8)).clip(0, 3).astype(np.intp)


class Toy(Detector):
    design = Pyramid(levels=("P2", "P3", "P4", "P5"), strides=(4, 8, 16, 32), unfused=0)

    def __init__(self, backbone, classes, *, channels=256, alpha=None, fusion="fixed", norm="frozen", prior=0.1):
        super().__init__()
        self.backbone = Backbone(backbone, norm=norm)
        self.fpn = FPN(self.backbone.channels, channels, alpha, fusion=fusion)
        self.head = nn.Conv2d(channels, classes + 4, 3, padding=1)
        nn.init.constant_(self.head.bias[:classes], math.log(prior / (1 - prior)))

    def forward(self, images: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Per level: logits (B, cells, C); distances from the cell's center to left, top, right, bottom in strides."""
        outputs = [self.head(level).flatten(2).transpose(1, 2).float() for level in self.fpn(self.backbone(images))]
        return [(output[..., :-4], F.softplus(output[..., -4:])) for output in outputs]

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        level = torch.from_numpy(level_of(batch.boxes.cpu().numpy(), np.empty(0))).to(batch.owner.device)
        count = sum_over_processes(batch.boxes.new_tensor(float(len(batch.boxes)))).clamp(min=1)
        losses = {}
        for i, (name, stride, (logits, sides)) in enumerate(
            zip(self.design.levels, self.design.strides, self(batch.images), strict=True)
        ):
            mine, columns = level == i, batch.images.shape[3] // stride
            boxes, owner = batch.boxes[mine], batch.owner[mine]
            column, row = ((boxes[:, :2] + boxes[:, 2:]) / 2 / stride).long().unbind(1)
            center = torch.stack([column, row], dim=1) * stride + stride / 2
            wanted = torch.cat([center - boxes[:, :2], boxes[:, 2:] - center], dim=1) / stride
            targets = torch.zeros_like(logits)
            targets[owner, row * columns + column, batch.labels[mine]] = 1
            losses[f"classification/{name}"] = sigmoid_focal_loss(logits, targets, reduction="sum") / count
            losses[f"regression/{name}"] = (sides[owner, row * columns + column] - wanted).abs().sum() / (4 * count)
        return losses

    def inference(self, spec: ModelSpec) -> nn.Module:
        return ToyInference(self, spec)


class ToyInference(nn.Module):
    def __init__(self, detector: Toy, spec: ModelSpec) -> None:
        super().__init__()
        self.detector, self.best = detector, BestBoxes(spec)
        for stride in detector.design.strides:
            steps = torch.arange(spec.tile // stride) * stride + stride / 2
            self.register_buffer(f"centers{stride}", torch.cartesian_prod(steps, steps).flip(1))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        boxes, scores, labels = [], [], []
        for stride, (logits, sides) in zip(self.detector.design.strides, self.detector(images), strict=True):
            center, sides = getattr(self, f"centers{stride}"), sides * stride
            boxes.append(torch.cat([center - sides[..., :2], center + sides[..., 2:]], dim=2))
            best, label = logits.max(dim=2)
            scores.append(best)
            labels.append(label)
        return (*self.best(boxes, scores, labels), self.best.candidates(torch.cat(scores, dim=1)))


ROW = DetectorInfo("Toy", lambda: Toy, Toy.design, ToyOptions, level_of=level_of)
