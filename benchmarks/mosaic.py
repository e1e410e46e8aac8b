"""A large scene with a ground truth: the pictures of a COCO folder, side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tinydet.runtime.scenes import read_image


def mosaic(data: Path, columns: int, rows: int) -> tuple[np.ndarray, dict[str, Any]]:
    """(H, W, 3) RGB of the first pictures of one size, and a COCO ground truth that knows it as one image."""
    coco = json.loads((data / "annotations.json").read_text())
    size = coco["images"][0]["width"], coco["images"][0]["height"]
    pictures = [image for image in coco["images"] if (image["width"], image["height"]) == size][: columns * rows]
    if len(pictures) < columns * rows:
        raise SystemExit(f"{data} has {len(pictures)} pictures of {size}; --pictures asks for {columns * rows}")
    scene = np.zeros((rows * size[1], columns * size[0], 3), np.uint8)
    annotations = []
    for i, image in enumerate(pictures):
        x, y = i % columns * size[0], i // columns * size[1]
        scene[y : y + size[1], x : x + size[0]] = read_image(data / "images" / image["file_name"])
        for of in coco["annotations"]:
            if of["image_id"] == image["id"]:
                left, top, width, height = of["bbox"]
                annotations.append({**of, "image_id": 1, "bbox": [left + x, top + y, width, height]})
    image = {"id": 1, "file_name": "mosaic", "width": scene.shape[1], "height": scene.shape[0]}
    return scene, {**coco, "images": [image], "annotations": annotations}
