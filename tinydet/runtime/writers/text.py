"""Write detections as COCO results and as YOLO labels."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from tinydet._internal.atomic import atomic_path
from tinydet.runtime.writers.table import SceneDetections
from tinydet.spec import ModelSpec


@contextmanager
def write_coco_results(path: Path, spec: ModelSpec) -> Iterator[Callable[[SceneDetections], None]]:
    """Write one list for all scenes, one line per box: image_id, category_id, bbox (x, y, width, height), score."""
    with atomic_path(path, part=True) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write("[")
        separator = "\n"

        def write(found: SceneDetections) -> None:
            nonlocal separator
            for row in found.detections.to_coco(found.image_id, spec.category_ids):
                file.write(separator + json.dumps(row, allow_nan=False))
                separator = ",\n"

        yield write
        file.write("\n]\n")


@contextmanager
def write_yolo(path: Path, spec: ModelSpec) -> Iterator[Callable[[SceneDetections], None]]:
    """Write one line per box: class index from 0, center, width and height relative to the scene, score."""
    with atomic_path(path, part=True) as temporary, temporary.open("w", encoding="utf-8") as file:

        def write(found: SceneDetections) -> None:
            boxes = found.detections.boxes.astype(np.float64) / ((found.width, found.height) * 2)
            center, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
            relative = np.concatenate([center, size], axis=1).tolist()
            scores, labels = found.detections.scores, found.detections.labels
            for label, box, score in zip(labels.tolist(), relative, scores, strict=True):
                # Nine decimals resolve a thousandth of a pixel in a scene of 100 000 pixels.
                file.write(" ".join([str(label), *(f"{value:.9f}" for value in box), str(score)]) + "\n")

        yield write
