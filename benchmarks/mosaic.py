"""Compose a large annotated scene from the images of a COCO folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tinydet.runtime.scenes import read_image


def mosaic(data: Path, columns: int, rows: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Place the first images of one size side by side.

    Returns:
        The scene, (H, W, 3) RGB uint8, and its ground truth as a COCO document with one image.

    Raises:
        ValueError: the folder has fewer images of the size of its first one.
    """
    coco = json.loads((data / "annotations.json").read_text())
    size = coco["images"][0]["width"], coco["images"][0]["height"]
    images = [image for image in coco["images"] if (image["width"], image["height"]) == size][: columns * rows]
    if len(images) < columns * rows:
        raise ValueError(
            f"{data} has {len(images)} images of {size[0]}x{size[1]} pixels, but --pictures needs {columns * rows}"
        )
    scene = np.zeros((rows * size[1], columns * size[0], 3), np.uint8)
    annotations = []
    for i, image in enumerate(images):
        x, y = i % columns * size[0], i // columns * size[1]
        scene[y : y + size[1], x : x + size[0]] = read_image(data / "images" / image["file_name"])
        for annotation in coco["annotations"]:
            if annotation["image_id"] == image["id"]:
                left, top, width, height = annotation["bbox"]
                annotations.append({**annotation, "image_id": 1, "bbox": [left + x, top + y, width, height]})
    image = {"id": 1, "file_name": "mosaic", "width": scene.shape[1], "height": scene.shape[0]}
    return scene, {**coco, "images": [image], "annotations": annotations}
