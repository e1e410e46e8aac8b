"""Validation during training: scores computed by all processes together, curves and an image for TensorBoard.

What is scored is what ships: `detect_scenes()` on whole images with the backend and the options of `tinydet evaluate
model.pth`, in float32 whatever the precision of the training. Both give the same scores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.utils import draw_bounding_boxes, make_grid

from tinydet._internal.progress import Bar
from tinydet.data.coco import Dataset, read_pixels
from tinydet.evaluate.classes import METRICS, count_objects
from tinydet.evaluate.protocols import choose_protocol
from tinydet.evaluate.score import Scores
from tinydet.evaluate.score_model import DatasetDetections, detect_dataset, score_dataset, scoring_spec
from tinydet.evaluate.tables import tabulate_ground_truth
from tinydet.models.backend import TorchBackend
from tinydet.models.detector import Detector
from tinydet.models.distributed import Processes
from tinydet.runtime.options import ScanOptions
from tinydet.spec import ModelSpec
from tinydet.train.sampling import with_images

CURVE_RANGES = ("all", "tiny")  # size ranges with a precision-recall curve
MAX_IMAGES, MAX_SIDE = 4, 640  # number of images in the TensorBoard image, and pixels per side of each
MIN_SCORE = 0.3
TRUTH_COLOR, PREDICTION_COLOR = "lime", "red"


class Validation:
    """Score a detector on a dataset, and write the last results to TensorBoard.

    Args:
        device: as in training.
        scale: resize factor of the images.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        device: torch.device,
        processes: Processes | None = None,
        scale: float = 1.0,
    ) -> None:
        self.dataset = dataset
        self.device = device
        self.processes = processes or Processes()
        self.options = ScanOptions(scale=scale)
        self.scores: Scores | None = None
        self.predictions: list[dict[str, Any]] = []  # COCO results

    def __call__(self, detector: Detector, spec: ModelSpec) -> dict[str, float]:
        """Return AP50, AP50-95, AP75, AP50-tiny and AP25-tiny by the `coco` protocol.

        If there are several classes, also AP50/CLASS, AP50-95/CLASS and AP75/CLASS. The same in every process; -1 if
        there are no such objects.
        """
        backend = TorchBackend(detector, scoring_spec(spec), device=str(self.device))
        numbers = range(len(self.dataset.images))
        mine = np.isin(np.arange(len(numbers)), self.processes.shard(numbers))
        dataset = with_images(self.dataset, mine)
        with Bar(len(dataset.images), "image", "validate", quiet=not self.processes.first) as bar:
            part = detect_dataset(backend, dataset, self.options, progress=bar.update)
        parts = self.processes.gather(part)
        metrics = self._score(parts) if parts else None
        return cast(dict[str, float], self.processes.broadcast(metrics))

    def _score(self, parts: Sequence[DatasetDetections]) -> dict[str, float]:
        found = dataclasses.replace(
            parts[0],
            detections=[detection for part in parts for detection in part.detections],
            image_ids=tuple(image for part in parts for image in part.image_ids),
            tiles=sum(part.tiles for part in parts),
            saturated=sum(part.saturated for part in parts),
            cuts={image: cut for part in parts for image, cut in part.cuts.items()},
        )
        self.predictions = found.detections
        self.scores = score_dataset(self.dataset, found, choose_protocol("coco"))
        table = self.scores.classes
        assert self.scores.precision is not None and table is not None
        tiny = self.scores.precision["tiny"]
        metrics = {**table.ap, "AP50-tiny": tiny[0.5].ap, "AP25-tiny": tiny[0.25].ap}
        if len(table.classes) > 1:
            metrics |= {f"{metric}/{each.name}": each.ap[metric] for metric in METRICS for each in table.classes}
        return metrics

    @cached_property
    def objects(self) -> list[tuple[str, int, int]]:
        """The name of each class, its number of objects, and the number of images with them, as they are scored."""
        document = self.dataset.document()
        truth = tabulate_ground_truth(document, categories=self.dataset.classes, source=str(self.dataset.source))
        rules = choose_protocol("coco").precision
        assert rules is not None
        return count_objects(truth, rules)

    def show(self, writer: Any, step: int) -> None:
        """Write the last curves and predictions to a TensorBoard `SummaryWriter`."""
        for name, curve in self.curves().items():
            no_counts = np.zeros(len(curve))  # interpolated precision has no counts
            recall = np.linspace(0, 1, len(curve))
            # TensorBoard expects rising thresholds, so falling recall.
            writer.add_pr_curve_raw(
                name,
                no_counts,
                no_counts,
                no_counts,
                no_counts,
                curve[::-1],
                recall[::-1],
                step,
                num_thresholds=len(curve),
            )
        writer.add_image("predictions (red) and objects (green)", self.image(), step)

    def curves(self) -> dict[str, NDArray[np.float64]]:
        """Return precision at 101 recalls, IoU 0.5, averaged over classes with objects, per range of `CURVE_RANGES`."""
        if self.scores is None or self.scores.precision is None:
            return {}
        curves = {}
        for name in CURVE_RANGES:
            by_class = np.asarray(self.scores.precision[name][0.5].precision, np.float64)
            known = by_class[(by_class >= 0).all(axis=1)]
            if len(known):
                curves[f"precision-recall/{name}"] = known.mean(axis=0)
        return curves

    def image(self) -> Tensor:
        """Return (3, H, W) uint8: the images with the most objects, predictions in red, objects in green."""
        dataset = self.dataset
        counts = np.bincount(dataset.image_index[dataset.objects], minlength=len(dataset.images))
        tiles = []
        for i in np.argsort(-counts, kind="stable")[:MAX_IMAGES].tolist():
            pixels = torch.from_numpy(np.ascontiguousarray(read_pixels(dataset, i))).permute(2, 0, 1)
            boxes = [
                entry["bbox"]
                for entry in self.predictions
                if entry["image_id"] == dataset.images[i].id and entry["score"] >= MIN_SCORE
            ]
            found = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
            found[:, 2:] += found[:, :2]
            annotations = dataset.of_image(i)
            truth = torch.from_numpy(annotations.boxes[~annotations.ignore]).float()
            tiles.append(_drawn(pixels, truth, found))
        height, width = (max(tile.shape[axis] for tile in tiles) for axis in (1, 2))
        padded = [
            torch.nn.functional.pad(tile, (0, width - tile.shape[2], 0, height - tile.shape[1])) for tile in tiles
        ]
        return cast(Tensor, make_grid(padded, nrow=2))


def _drawn(pixels: Tensor, truth: Tensor, found: Tensor) -> Tensor:
    """Draw boxes one pixel wide on a crop of an image around its objects."""
    _, height, width = pixels.shape
    center = (truth[:, :2] + truth[:, 2:]).median(dim=0).values / 2 if len(truth) else torch.zeros(2)
    x, y = (
        int(min(max(float(position) - MAX_SIDE / 2, 0), max(side - MAX_SIDE, 0)))
        for position, side in zip(center, (width, height), strict=True)
    )
    window = pixels[:, y : y + MAX_SIDE, x : x + MAX_SIDE].contiguous()
    offset = torch.tensor([x, y, x, y])
    for boxes, color in ((truth, TRUTH_COLOR), (found, PREDICTION_COLOR)):
        shifted = boxes - offset
        visible = (shifted[:, 2:] > 0).all(1) & (shifted[:, 0] < window.shape[2]) & (shifted[:, 1] < window.shape[1])
        visible &= (shifted[:, 2:] >= shifted[:, :2]).all(1)
        if visible.any():
            window = draw_bounding_boxes(window, shifted[visible], colors=color)
    return window
