"""Predictions for Label Studio: which image a task means, where boxes go, and what a prediction looks like.

Source: the API of Label Studio's machine learning backends (https://labelstud.io/guide/ml_create). A prediction must
come within 100 s, so a scene that is too large for that is answered from its latest job, and gets one otherwise.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree

import numpy as np

from tinydet.serve.admission import find_below
from tinydet.serve.errors import ServiceError
from tinydet.serve.job_options import JobOptions
from tinydet.serve.service import Service

MOST_REGIONS = 2000  # boxes of a prediction, the best; the editor is slow with more
LONGEST_CONFIG = 1 << 20  # characters
_PREFIX = re.compile(r"[0-9a-f]{8}-(.+)")  # of a file that was uploaded to Label Studio
_DATA_URI = re.compile(r"data:image/[\w.+-]+;base64,")


class Control(NamedTuple):
    """Where the boxes of a project go.

    Attributes:
        from_name, to_name: names of the control and of the image.
        key: of the image in the data of a task.
        labels: of the control.
    """

    from_name: str
    to_name: str
    key: str
    labels: tuple[str, ...]


class Boxes(NamedTuple):
    """Boxes of an image of some size, best first: xyxy in pixels, scores, class names."""

    width: int
    height: int
    boxes: list[list[float]]
    scores: list[float]
    classes: list[str]


def find_control(config: str) -> Control:
    """Return the first RectangleLabels of a labeling configuration.

    Raises:
        ServiceError: 400 if there is none, or the configuration is not XML.
    """
    if len(config) > LONGEST_CONFIG or "<!DOCTYPE" in config or "<!ENTITY" in config:
        raise ServiceError(400, "label_config: expected a labeling configuration without a document type")
    try:
        root = ElementTree.fromstring(config)
    except (ElementTree.ParseError, ValueError) as error:
        raise ServiceError(400, f"label_config: not XML ({error})") from error
    for control in root.iter("RectangleLabels"):
        to_name = control.get("toName", "")
        for image in root.iter("Image"):
            if image.get("name") == to_name:
                labels = tuple(each.get("value", "") for each in control.iter("Label"))
                return Control(control.get("name", ""), to_name, image.get("value", "").lstrip("$"), labels)
    raise ServiceError(400, "label_config: expected RectangleLabels for an Image; tinydet predicts boxes")


def predict(service: Service, task: Mapping[str, Any], control: Control) -> Boxes | None:
    """Return the boxes of the image of a task; None if it is not here, or its job is not finished.

    The image is an upload or a scene below the roots, found by its name, or the task holds its bytes. Nothing is
    fetched from another server.
    """
    data = task.get("data")
    value = data.get(control.key) if isinstance(data, dict) else None
    if not isinstance(value, str):
        return None
    if _DATA_URI.match(value):
        try:
            image = base64.b64decode(value.partition(",")[2], validate=True)
        except (binascii.Error, ValueError):
            return None
        return _of_coco(service.images.detect(image, "image", JobOptions(), "coco"))
    try:
        address = urlsplit(value)
    except ValueError:  # not an address
        return None
    local = parse_qs(address.query).get("d", [""])[0] or unquote(address.path)
    name = PurePosixPath(local).name
    stored = _PREFIX.fullmatch(name)
    names = [name, *([stored[1]] if stored else [])]
    place = _place(service, local, names)
    if (found := _of_job(service, names, place)) is not None or place is None:
        return found
    return _of_file(service, place)


def prediction(found: Boxes | None, control: Control, version: str) -> dict[str, Any]:
    """Return a prediction; empty if nothing is known yet."""
    if found is None:
        return {"result": [], "score": 0.0, "model_version": version}
    labels = {label.lower(): label for label in control.labels}
    regions = []
    for n, ((x1, y1, x2, y2), score, name) in enumerate(zip(found.boxes, found.scores, found.classes, strict=True)):
        label = labels.get(name.lower())
        if label is None:
            continue
        value = {
            "x": 100 * x1 / found.width,
            "y": 100 * y1 / found.height,
            "width": 100 * (x2 - x1) / found.width,
            "height": 100 * (y2 - y1) / found.height,
            "rotation": 0,
            "rectanglelabels": [label],
        }
        regions.append({
            "id": f"tinydet-{n}", "from_name": control.from_name, "to_name": control.to_name,
            "type": "rectanglelabels", "original_width": found.width, "original_height": found.height,
            "image_rotation": 0, "value": value, "score": score,
        })  # fmt: skip
        if len(regions) == MOST_REGIONS:
            break
    mean = float(np.mean([region["score"] for region in regions])) if regions else 0.0
    return {"result": regions, "score": mean, "model_version": version}


def _place(service: Service, local: str, names: Sequence[str]) -> dict[str, str] | None:
    """Return how the service names the image of a task: as an upload or as a path; None if it is not here."""
    for name in names:
        try:
            service.uploads.path(name)
            return {"upload": name}
        except ServiceError:
            continue
    try:
        find_below(service.options.roots, local.lstrip("/"))
    except ServiceError:
        return None
    return {"path": local.lstrip("/")}


def _of_job(service: Service, names: Sequence[str], place: Mapping[str, str] | None) -> Boxes | None:
    """Return the boxes of the latest job of this model over the image of a task.

    An image that is not found by its path is that of a job by its name, if only one scene has this name.
    """
    jobs = [
        record
        for record in service.jobs.records()
        if record.status == "successful" and record.model == service.model.sha256
    ]
    if place is not None:
        path = service.scene_file(**place).path
        jobs = [record for record in jobs if record.scene.path == path]
    else:
        jobs = [record for record in jobs if Path(record.scene.shown).name in names]
    if len({record.scene.path for record in jobs}) != 1:
        return None
    record = jobs[0]
    found, classes = service.detections(record.id)[:MOST_REGIONS], service.job_spec(record.id).classes
    return Boxes(
        record.scene.width,
        record.scene.height,
        found.boxes.astype(float).tolist(),
        found.scores.astype(float).tolist(),
        [classes[label] for label in found.labels.tolist()],
    )


def _of_file(service: Service, place: Mapping[str, str]) -> Boxes | None:
    """Return the boxes of a small image; of a large one start a job, and return None."""
    scene = service.scene_file(**place)
    if scene.width * scene.height <= service.options.max_detect_pixels:
        return _of_coco(service.images.detect_file(Path(scene.path), scene.shown, JobOptions(), "coco"))
    waiting = ("accepted", "running")
    if not any(record.scene.path == scene.path and record.status in waiting for record in service.jobs.records()):
        service.add_job(JobOptions(), **place)
    return None


def _of_coco(content: bytes) -> Boxes:
    found = json.loads(content)
    names = {category["id"]: category["name"] for category in found["categories"]}
    rows = found["annotations"][:MOST_REGIONS]
    boxes = [[x, y, x + width, y + height] for x, y, width, height in (row["bbox"] for row in rows)]
    image = found["images"][0]
    classes = [names[row["category_id"]] for row in rows]
    return Boxes(image["width"], image["height"], boxes, [row["score"] for row in rows], classes)
