"""torchvision's RetinaNet and the training loop of its references, for `training_speed.py`.

The loop is that of references/detection/engine.py and coco_utils.py, without its progress messages: a dictionary of
boxes for each image, images and targets collated as tuples, one optimizer step per batch.

The network equals that of tinydet: our `Backbone` with the same frozen stages, levels P2..P6, and the same anchors,
depth of head towers and number of logits per anchor. (torchvision recommends one more class for the background, which
would double the logits of a dataset with one class.) Images are not resized.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from tinydet.data.samples import TrainingTiles, epoch_batches
from tinydet.models.backbone import Backbone
from tinydet.models.backbone_registry import build_backbone

Targets = Sequence[dict[str, Tensor]]


class Levels(nn.Module):
    """Our backbone with torchvision's FPN, in the form that its detectors expect."""

    def __init__(self, backbone: Backbone, channels: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.fpn = FeaturePyramidNetwork(list(backbone.channels), channels, LastLevelMaxPool())
        self.out_channels = channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> P2..P6 by name."""
        levels: dict[str, Tensor] = self.fpn(OrderedDict((str(i), c) for i, c in enumerate(self.backbone(images))))
        return levels


def build(backbone: str, channels: int, head_convs: int, classes: int, freeze: int, size: tuple[int, int]) -> RetinaNet:
    """Build torchvision's RetinaNet with the anchors of the paper, for images of `size` (height, width)."""
    body = build_backbone(backbone, norm="frozen")
    body.freeze(freeze)
    sizes = tuple(tuple(side * 2 ** (octave / 3) for octave in range(3)) for side in (8, 16, 32, 64, 128))
    model = RetinaNet(
        Levels(body, channels),
        num_classes=classes,
        min_size=min(size),
        max_size=max(size),
        anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5),
        _skip_resize=True,
    )
    for branch in (model.head.classification_head, model.head.regression_head):
        branch.conv = branch.conv[:head_convs]
    return model


class Tiles(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Our tiles in the format of torchvision's references: a float image and a dictionary of its boxes."""

    def __init__(self, tiles: TrainingTiles) -> None:
        self.tiles = tiles

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        sample = self.tiles.sample(index, seed=0, epoch=0)
        boxes, labels = torch.from_numpy(sample.boxes), torch.from_numpy(sample.labels)
        image = torch.from_numpy(sample.pixels.copy()).permute(2, 0, 1).float().div(255)
        area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        crowd = torch.zeros(len(boxes), dtype=torch.int64)
        return image, {"boxes": boxes, "labels": labels, "image_id": torch.tensor(index), "area": area,
                       "iscrowd": crowd}  # fmt: skip


def collate(batch: Sequence[tuple[Any, Any]]) -> tuple[Any, ...]:
    """Convert a list of (image, target) to (images, targets)."""
    return tuple(zip(*batch, strict=True))


def steps(
    model: RetinaNet, tiles: TrainingTiles, *, batch: int, lr: float, workers: int, bfloat16: bool, device: str = "cpu"
) -> Iterator[tuple[int, float]]:
    """Train without end; yield the number of images and the loss of each step.

    Raises:
        ValueError: the loss is not finite.
    """
    model.train()
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trainable, lr=lr, momentum=0.9, weight_decay=1e-4)
    for epoch in range(10**6):
        batches = [b for b in epoch_batches(len(tiles), batch, seed=0, epoch=epoch) if len(b) == batch]
        loader = DataLoader(Tiles(tiles), batch_sampler=batches, num_workers=workers, collate_fn=collate)
        schedule = torch.optim.lr_scheduler.LinearLR(
            optimizer, start_factor=1e-3, total_iters=min(1000, len(loader) - 1)
        )
        for images, targets in loader:
            images = [image.to(device) for image in images]
            targets = [{key: value.to(device) for key, value in target.items()} for target in targets]
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bfloat16):
                losses = model(images, targets)
                total = sum(losses.values())
            loss = float(total.detach())
            if not math.isfinite(loss):
                raise ValueError(f"torchvision's loss is not finite: {losses}")
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            schedule.step()
            yield len(images), loss
