"""Write detections as COCO files, as YOLO labels, and as tracks of MOTChallenge."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any

import numpy as np

import tinydet
from tinydet._internal.atomic import atomic_path, write_text
from tinydet._internal.outputs import is_device
from tinydet.runtime.writers.table import SceneDetections, encodable
from tinydet.spec import ModelSpec

CLASSES = "classes.txt"  # the names of a folder of YOLO labels
IN_MEMORY = 1 << 20  # characters of image entries; more are kept in a temporary file


@contextmanager
def write_coco(path: Path, spec: ModelSpec) -> Iterator[Callable[[SceneDetections], None]]:
    """Write a COCO file of all scenes: info, categories, annotations with a score, and images.

    Annotations are written as they come. Images follow at the end, each once, also those without detections; until
    then they wait in a temporary file of the same folder. The parts of a scene must be written one after the other.
    """
    with (
        atomic_path(path, part=True) as temporary,
        temporary.open("w", encoding="utf-8") as file,
        SpooledTemporaryFile(
            IN_MEMORY, "w+", encoding="utf-8", dir=None if is_device(temporary) else str(temporary.parent)
        ) as images,
    ):
        info = {"description": f"Detections of {spec.detector} {spec.backbone}", "version": tinydet.__version__}
        categories = [
            {"id": id, "name": encodable(name)} for id, name in zip(spec.category_ids, spec.classes, strict=True)
        ]
        file.write(f'{{"info": {_json(info)},\n"categories": {_json(categories)},\n"annotations": [')
        last, boxes, separator = None, 0, "\n"

        def write(found: SceneDetections) -> None:
            nonlocal last, boxes, separator
            if found.image_id != last:
                images.write(("\n" if last is None else ",\n") + _json(_image(found)))
                last = found.image_id
            for row in found.detections.to_coco(found.image_id, spec.category_ids):
                boxes += 1
                _, _, width, height = row["bbox"]
                score = row.pop("score")
                # Some importers require a segmentation, as in COCO; an empty one stands for the box.
                row = {"id": boxes, **row, "area": width * height, "iscrowd": 0, "segmentation": [], "score": score}
                file.write(separator + _json(row))
                separator = ",\n"

        yield write
        file.write('\n],\n"images": [')
        images.seek(0)
        shutil.copyfileobj(images, file)
        file.write("\n]}\n")


@contextmanager
def write_coco_results(path: Path, spec: ModelSpec) -> Iterator[Callable[[SceneDetections], None]]:
    """Write one list for all scenes, one line per box: image_id, category_id, bbox (x, y, width, height), score."""
    with atomic_path(path, part=True) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write("[")
        separator = "\n"

        def write(found: SceneDetections) -> None:
            nonlocal separator
            for row in found.detections.to_coco(found.image_id, spec.category_ids):
                file.write(separator + _json(row))
                separator = ",\n"

        yield write
        file.write("\n]\n")


@contextmanager
def write_yolo(path: Path, spec: ModelSpec, *, scores: bool = False) -> Iterator[Callable[[SceneDetections], None]]:
    """Write one line per box: class index from 0, center, width and height relative to the scene.

    Args:
        scores: append the score to each line. Trainers and annotation tools that read labels refuse it.
    """
    with atomic_path(path, part=True) as temporary, temporary.open("w", encoding="utf-8") as file:

        def write(found: SceneDetections) -> None:
            boxes = found.detections.boxes.astype(np.float64) / ((found.width, found.height) * 2)
            center, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
            relative = np.concatenate([center, size], axis=1).tolist()
            rows = zip(found.detections.labels.tolist(), relative, found.detections.scores, strict=True)
            for label, box, score in rows:
                # Nine decimals resolve a thousandth of a pixel in a scene of 100 000 pixels.
                fields = [str(label), *(f"{value:.9f}" for value in box), *([str(score)] if scores else [])]
                file.write(" ".join(fields) + "\n")

        yield write


@contextmanager
def write_mot(path: Path, spec: ModelSpec) -> Iterator[Callable[[SceneDetections], None]]:
    """Write the tracked objects of a video in the format of MOTChallenge and VisDrone-MOT, one line per box.

    A line is frame from 1, track, left, top, width, height, score, category id, -1, -1.
    """
    with atomic_path(path, part=True) as temporary, temporary.open("w", encoding="utf-8") as file:

        def write(found: SceneDetections) -> None:
            of = found.detections
            if found.frame is None or of.tracks is None:
                raise ValueError(f"{path}: the format mot holds tracked objects of a video, and {found.scene} has none")
            categories = np.asarray(spec.category_ids, np.int64)[of.labels].tolist()
            corners = of.boxes.astype(np.float64)
            corners[:, 2:] -= corners[:, :2]
            for track, box, score, category in zip(of.tracks.tolist(), corners, of.scores, categories, strict=True):
                if track >= 0:
                    place = ",".join(f"{value:.3f}" for value in box)
                    file.write(f"{found.frame + 1},{track},{place},{score},{category},-1,-1\n")

        yield write


def check_classes(path: Path, spec: ModelSpec) -> None:
    """Check that an existing `classes.txt` has the classes of the model, because labels refer to them by position.

    Raises:
        ValueError: it has others.
    """
    if path.exists() and path.read_bytes() != _class_lines(spec).encode():
        raise ValueError(
            f"{path} lists other classes than the model ({', '.join(_class_lines(spec).splitlines())}); the labels in "
            "this folder would get mixed up: name another folder"
        )


def write_classes(path: Path, spec: ModelSpec) -> None:
    """Write the names of the classes, one per line, in the order of the indices in YOLO labels.

    Raises:
        ValueError: as `check_classes`.
        OSError: the file cannot be written.
    """
    check_classes(path, spec)
    write_text(path, _class_lines(spec))


def _class_lines(spec: ModelSpec) -> str:
    return "".join(f"{' '.join(encodable(name).split())}\n" for name in spec.classes)


def _image(found: SceneDetections) -> dict[str, Any]:
    """Return the entry of an image."""
    entry: dict[str, Any] = {"id": found.image_id, "file_name": found.file_name}
    entry |= {"width": found.width, "height": found.height}
    if found.frame is not None:
        entry["frame"] = found.frame
    if found.seconds is not None:
        entry["seconds"] = round(found.seconds, 3)
    if found.corner is not None:
        entry["corner"] = list(found.corner)
    return entry


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, ensure_ascii=False)
