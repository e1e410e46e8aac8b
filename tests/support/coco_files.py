"""Write small COCO annotation files."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np


def write_coco(path: Path, sizes: Iterable[tuple[int, int]], boxes: Iterable[dict[str, Any]]) -> Path:
    """Write an annotation file. Each of `boxes` holds annotation fields; image_id and category_id default to 1."""
    document = {
        "images": [
            {"id": n, "file_name": f"{n}.png", "width": width, "height": height}
            for n, (width, height) in enumerate(sizes, start=1)
        ],
        "annotations": [{"id": n, "image_id": 1, "category_id": 1, **box} for n, box in enumerate(boxes, start=1)],
        "categories": [{"id": 1, "name": "person"}, {"id": 7, "name": "car"}],
    }
    path.write_text(json.dumps(document))
    return path


def random_coco(path: Path, sizes: list[tuple[int, int]], *, seed: int = 0, mirror: bool = False) -> Path:
    """Write 200 boxes per image with sides of 3 to 80 pixels, aligned to quarter pixels."""
    rng = np.random.default_rng(seed)
    boxes = []
    for n, size in enumerate(sizes, start=1):
        sides = np.minimum(np.exp(rng.uniform(np.log(3), np.log(80), (200, 2))), np.array(size) - 1)
        corners = rng.uniform(0, 1, (200, 2)) * (np.array(size) - sides)
        for x, y, w, h in (np.floor(np.concatenate([corners, sides], axis=1) * 4) / 4).tolist():
            boxes.append({"image_id": n, "bbox": [size[0] - x - w if mirror else x, y, w, h]})
    return write_coco(path, sizes, boxes)
