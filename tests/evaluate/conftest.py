"""Fixtures for tests of scoring: the plain-Python evaluators, and random scenes with every special case."""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

Scene = tuple[dict[str, Any], list[dict[str, Any]]]


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    """The evaluators in plain Python, from reference.py in this folder."""
    spec = importlib.util.spec_from_file_location("evaluation_reference", Path(__file__).with_name("reference.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def make_scene() -> Callable[[int], Scene]:
    return scene


def scene(seed: int) -> Scene:
    """Return ground truth and results with every case that the evaluators treat specially.

    These are: ties of scores and overlaps, duplicates, ignored, uncertain and crowd regions, ids from 0, empty images,
    several categories, areas and sizes that do not match the box, and exact fractions.
    """
    rng = random.Random(seed)
    images = rng.sample(range(60), rng.choice((1, 3, 8)))
    categories = rng.sample(range(4), rng.choice((1, 1, 2, 3)))
    grid = rng.choice((1.0, 0.5, 0.37))  # coarse, so that many boxes coincide and many ratios are exact
    annotations: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    for image in images:
        if rng.random() < 0.15:
            continue
        for _ in range(rng.choice((0, 2, 8, 14))):
            side = rng.choice((2, 4, 7, 8, 10, 12, 14, 20, 26, 32, 50))
            box = [rng.randrange(60) * grid, rng.randrange(60) * grid, side * grid, rng.choice((side, 2 * side)) * grid]
            region = rng.random() < 0.15
            if region:
                box[2:] = [rng.choice((40.0, 200.0)), 60.0]
            annotation: dict[str, Any] = {
                "image_id": image,
                "category_id": rng.choice(categories),
                "bbox": box,
                "area": box[2] * box[3] if rng.random() < 0.8 else box[2] * box[3] * rng.choice((0.25, 0.6, 3.0)),
                "iscrowd": int(rng.random() < (0.3 if region else 0.04)),
                "ignore": region and rng.random() < 0.8,
            }
            if rng.random() < 0.15:
                annotation["uncertain"] = True
            if rng.random() < 0.1:
                annotation["size"] = rng.choice((3.0, 8.0, 12.0, 20.0))
            if rng.random() < 0.1:
                annotation["height"] = rng.choice((10.0, 20.0, 50.0, 75.0))
            if rng.random() < 0.1:
                annotation["vis_ratio"] = rng.choice((0.1, 0.65, 0.9))
            elif rng.random() < 0.1:
                annotation[rng.choice(("vis", "vis_bbox"))] = [box[0], box[1], box[2] * 0.5, box[3]]
            annotations.append(annotation)
            for _ in range(rng.choice((0, 1, 1, 2, 4))):
                moved = [value + rng.choice((0, 0, 0, 1, -1, 2)) * grid for value in box[:2]]
                scaled = [max(value * rng.choice((1, 1, 1, 0.5, 2, 0.75)), 0.3) for value in box[2:]]
                if region:
                    scaled = [rng.choice((4.0, 10.0, 20.0)), rng.choice((4.0, 10.0))]
                detections.append(
                    {
                        "image_id": image,
                        "category_id": annotation["category_id"] if rng.random() < 0.9 else rng.choice(categories),
                        "bbox": moved + scaled,
                        "score": rng.choice((0.1, 0.25, 0.5, 0.5, 0.5, 0.75, rng.random())),
                    }
                )
    for _ in range(rng.choice((0, 4))):
        nest(rng, annotations, detections, rng.choice(images), categories[0])
    ids = list(range(len(annotations)))
    rng.shuffle(ids)
    for annotation, id_ in zip(annotations, ids, strict=True):
        annotation["id"] = id_
    rng.shuffle(annotations)
    rng.shuffle(detections)
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 300, "height": 300} for i in images],
        "categories": [{"id": c, "name": f"class {c}"} for c in categories],
        "annotations": annotations,
    }, detections


def nest(rng: random.Random, annotations: list[Any], detections: list[Any], image: int, category: int) -> None:
    """Add nested boxes: an inner detection that is ignored for lying in a region takes it from an outer one."""
    x, y, side = 100.0 + 40 * rng.randrange(4), 100.0 + 40 * rng.randrange(4), rng.choice((8.0, 16.0, 24.0))
    flag = rng.choice(("ignore", "ignore", "iscrowd", "none"))

    def annotate(dx: float, dy: float, width: float, height: float, **flags: Any) -> None:
        box = [x + dx, y + dy, width, height]
        entry = {"image_id": image, "category_id": category, "bbox": box, "area": width * height, "iscrowd": 0}
        annotations.append({**entry, **flags})

    def detect(dx: float, dy: float, width: float, height: float, score: float) -> None:
        box = [x + dx, y + dy, width, height]
        detections.append({"image_id": image, "category_id": category, "bbox": box, "score": score})

    annotate(0, 0, side, side, **{flag: 1})
    if rng.random() < 0.5:  # a second region; an inner detection may lie in both
        annotate(rng.choice((-side / 2, side / 2)), 0, side, side, ignore=1)
    if rng.random() < 0.7:  # an object in the region, detected several times
        annotate(side / 4, side / 4, side / 2, side / 2)
        for _ in range(rng.choice((1, 2, 3))):
            detect(side / 4, side / 4, side / 2, side / 2, rng.choice((0.8, 0.9)))
    else:
        detect(side / 4, side / 4, side / 4, side / 4, 0.85)
    for _ in range(2):
        stretch = 1 / rng.choice((0.27, 0.35, 0.55, 0.6, 0.78, 0.84))  # between the thresholds t and 2t / (1 + t)
        detect(rng.choice((0, side * (1 - stretch))), 0, side * stretch, side, rng.choice((0.3, 0.7, 0.85)))
