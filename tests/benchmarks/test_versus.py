"""The comparison of tools: the scene and its ground truth, random boxes, and the agreement of detections."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six gray images of 40 x 30 with one white object each, and one of another size."""
    (tmp_path / "images").mkdir()
    images, annotations = [], []
    for i, (width, height) in enumerate([(40, 30)] * 3 + [(50, 30)] + [(40, 30)] * 3, start=1):
        image = np.full((height, width, 3), 90, np.uint8)
        box = [3 * i, 2 * i, 5, 4]
        image[box[1] : box[1] + 4, box[0] : box[0] + 5] = 255
        cv2.imwrite(str(tmp_path / "images" / f"{i}.png"), image)
        images.append({"id": i, "file_name": f"{i}.png", "width": width, "height": height})
        annotations.append({"id": i, "image_id": i, "category_id": 1, "bbox": box, "area": 20, "iscrowd": 0})
    coco = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "spot"}]}
    (tmp_path / "annotations.json").write_text(json.dumps(coco))
    return tmp_path


def test_each_box_of_a_mosaic_is_on_its_object(folder: Path) -> None:
    from mosaic import mosaic

    scene, truth = mosaic(folder, 3, 2)
    assert scene.shape == (60, 120, 3) and len(truth["annotations"]) == 6
    boxed = np.zeros(scene.shape[:2], bool)
    for x, y, width, height in (annotation["bbox"] for annotation in truth["annotations"]):
        boxed[y : y + height, x : x + width] = True
    assert np.array_equal(boxed, scene[..., 0] == 255)


def test_a_mosaic_of_more_images_than_there_are_is_rejected(folder: Path) -> None:
    from mosaic import mosaic

    with pytest.raises(ValueError, match="6 images"):
        mosaic(folder, 4, 2)


def test_agreement_counts_the_boxes_of_both_sets_that_have_a_counterpart() -> None:
    from versus import agreement

    boxes = np.array([[0, 0, 10, 10], [50, 50, 60, 60], [90, 90, 99, 99]], np.float32)
    scores, labels = np.array([0.9, 0.8, 0.1]), np.array([0, 1, 0])  # the last is below the score threshold
    assert agreement((boxes, scores, labels), (boxes[::-1], scores[::-1], labels[::-1])) == 1
    assert agreement((boxes, scores, labels), (boxes[:1], scores[:1], labels[:1])) == pytest.approx(2 / 3)
    assert agreement((boxes, scores, labels), (boxes, scores, 1 - labels)) == 0
    assert agreement((boxes[:0], scores[:0], labels[:0]), (boxes, scores, labels)) == 0


def test_random_boxes_have_the_requested_number_per_tile() -> None:
    from versus import RandomBoxes

    outputs = RandomBoxes(64, 5).run(np.zeros((3, 64, 64, 3), np.uint8))
    assert ((outputs.labels == 0).sum(axis=1) == 5).all() and ((outputs.scores > 0.3) == (outputs.labels == 0)).all()
    assert (outputs.boxes[:, :5] >= 0).all() and (outputs.boxes[:, :5] <= 64).all()
