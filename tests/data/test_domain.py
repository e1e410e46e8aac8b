"""What the images of a dataset look like, for the model that is trained on them."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from tinydet.data.coco import load_dataset
from tinydet.data.domain import MOST, measure_domain
from tinydet.data.scale_match import sizes_of


def write(folder: Path, values: list[tuple[int, int, int]]) -> Path:
    """A dataset of uniform images, (B, G, R) each, with an object of 4 pixels in the first and of 16 in the last."""
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for i, value in enumerate(values):
        cv2.imwrite(str(folder / "images" / f"{i}.png"), np.full((40, 40, 3), value, np.uint8))
        images.append({"id": i, "file_name": f"{i}.png", "width": 40, "height": 40})
    for n, (image, side) in enumerate(((0, 4), (len(values) - 1, 16))):
        annotations.append(
            {"id": n, "image_id": image, "category_id": 1 + n, "bbox": [8, 8, side, side], "area": side**2}
        )
    categories = [{"id": 1, "name": "small"}, {"id": 2, "name": "large"}]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(document))
    return folder


def test_the_ranges_are_percentiles_over_the_images(tmp_path: Path) -> None:
    grays = [(v, v, v) for v in range(100, 121)]
    domain = measure_domain(load_dataset(write(tmp_path / "data", grays)))
    assert domain is not None and domain.images == 21
    assert domain.brightness == (101, 110, 119)
    assert domain.chroma == domain.contrast == domain.detail == (0, 0, 0)
    assert domain.class_sizes == ((4, 4, 4), (16, 16, 16)) and domain.gsd is None


def test_colors_count_and_many_images_are_sampled(tmp_path: Path) -> None:
    domain = measure_domain(load_dataset(write(tmp_path / "data", [(90, 100, 140)] * 100)))
    assert domain is not None and domain.images == MOST and domain.chroma == (50, 50, 50)


def test_images_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    folder = write(tmp_path / "data", [(90, 90, 90)] * 3)
    dataset = load_dataset(folder)
    (folder / "images" / "1.png").write_bytes(b"damaged")
    domain = measure_domain(dataset)
    assert domain is not None and domain.images == 2
    assert measure_domain(load_dataset(folder / "annotations.json")) is None  # boxes only
    for path in (folder / "images").iterdir():
        path.write_bytes(b"damaged")
    assert measure_domain(dataset) is None


def test_ignored_boxes_are_no_objects(squares: Path) -> None:
    dataset = load_dataset(squares)
    domain = measure_domain(dataset)
    assert domain is not None and len(domain.class_sizes) == 1
    assert domain.class_sizes[0][1] == round(float(np.median(sizes_of(dataset.boxes[dataset.objects]))), 4)
