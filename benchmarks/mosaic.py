"""Compose a large annotated scene from the images of a COCO folder."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from tinydet._internal.arguments import size
from tinydet.runtime.scenes import read_image


def layout(text: str) -> tuple[int, int]:
    """Argument type: parse COLUMNSxROWS."""
    try:
        return size(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"expected COLUMNSxROWS, such as 6x5; got {text!r}") from None


def mosaic(data: Path, columns: int, rows: int, *, crowded: bool = False) -> tuple[np.ndarray, dict[str, Any]]:
    """Place the first images of one size side by side, or those with the most objects.

    Returns:
        The scene, (H, W, 3) RGB uint8, and its ground truth as a COCO document with one image.

    Raises:
        ValueError: the folder has fewer images of the size of its first one.
    """
    coco = json.loads((data / "annotations.json").read_text())
    image_size = coco["images"][0]["width"], coco["images"][0]["height"]
    images = [image for image in coco["images"] if (image["width"], image["height"]) == image_size]
    if crowded:
        objects = Counter(annotation["image_id"] for annotation in coco["annotations"])
        images.sort(key=lambda image: -objects[image["id"]])
    images = images[: columns * rows]
    if len(images) < columns * rows:
        found = f"{len(images)} images of {image_size[0]}x{image_size[1]} pixels"
        raise ValueError(f"{data} has {found}, but --pictures needs {columns * rows}")
    scene = np.zeros((rows * image_size[1], columns * image_size[0], 3), np.uint8)
    annotations = []
    for i, image in enumerate(images):
        x, y = i % columns * image_size[0], i // columns * image_size[1]
        scene[y : y + image_size[1], x : x + image_size[0]] = read_image(data / "images" / image["file_name"])
        for annotation in coco["annotations"]:
            if annotation["image_id"] == image["id"]:
                left, top, width, height = annotation["bbox"]
                annotations.append({**annotation, "image_id": 1, "bbox": [left + x, top + y, width, height]})
    image = {"id": 1, "file_name": "mosaic", "width": scene.shape[1], "height": scene.shape[0]}
    return scene, {**coco, "images": [image], "annotations": annotations}
