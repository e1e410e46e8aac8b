"""COCO results and YOLO labels."""

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
    """One list for all scenes: image_id, category_id, bbox (x, y, width, height), score. A line a box."""
    with atomic_path(path, part=True) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write("[")
        before = "\n"

        def write(found: SceneDetections) -> None:
            nonlocal before
            for row in found.detections.to_coco(found.image_id, spec.category_ids):
                file.write(before + json.dumps(row, allow_nan=False))
                before = ",\n"

        yield write
        file.write("\n]\n")


@contextmanager
def write_yolo(path: Path, spec: ModelSpec) -> Iterator[Callable[[SceneDetections], None]]:
    """A line a box: class, centre, width and height in shares of the scene, score; the class counted from 0."""
    with atomic_path(path, part=True) as temporary, temporary.open("w", encoding="utf-8") as file:

        def write(found: SceneDetections) -> None:
            boxes = found.detections.boxes.astype(np.float64) / ((found.width, found.height) * 2)
            centre, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
            shares = np.concatenate([centre, size], axis=1).tolist()
            scores, labels = found.detections.scores, found.detections.labels
            for label, place, score in zip(labels.tolist(), shares, scores, strict=True):
                # Nine digits: a thousandth of a pixel in a scene of 100 000.
                file.write(" ".join([str(label), *(f"{share:.9f}" for share in place), str(score)]) + "\n")

        yield write
