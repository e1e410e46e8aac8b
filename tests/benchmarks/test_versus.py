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


def test_a_box_on_an_object_that_has_one_is_a_duplicate_and_one_elsewhere_is_not() -> None:
    from versus import hits

    objects = np.array([[0, 0, 10, 10], [12, 0, 22, 10], [200, 200, 210, 210]], float)
    classes = np.array([1, 1, 2])
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [0, 0, 4, 10], [100, 100, 110, 110], [200, 200, 210, 210]], float)
    scores, labels = np.array([0.9, 0.8, 0.7, 0.6, 0.5]), np.array([1, 1, 1, 1, 1])  # the last has the wrong class
    assert hits((boxes, scores, labels), objects, classes) == {
        "boxes": 5, "recall": 0.3333, "recall_in_crowds": 0.5, "duplicates": 2,
    }  # fmt: skip
    perfect = hits((objects, np.ones(3), classes), objects, classes)
    assert (perfect["recall"], perfect["duplicates"]) == (1, 0)


def test_an_object_is_in_a_crowd_if_another_is_nearer_than_its_size() -> None:
    from versus import in_crowd

    boxes = np.array([[0, 0, 10, 10], [19, 0, 24, 5], [40, 40, 50, 50]], float)  # 9 apart, sides 10 and 5
    assert in_crowd(boxes).tolist() == [True, False, False]
    assert in_crowd(boxes[:0]).tolist() == []


def test_the_boxes_of_a_training_crop_are_on_its_objects(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign_detector = pytest.importorskip("foreign_detector")
    monkeypatch.setattr(foreign_detector, "CROP", 24)
    monkeypatch.setattr(foreign_detector, "CLASSES", ("background", "spot"))
    samples = foreign_detector.crops(folder, seed=0)
    for image, target in (next(samples) for _ in range(20)):
        assert image.shape == (3, 24, 24) and (target["labels"] == 1).all()
        for x1, y1, x2, y2 in target["boxes"].int().tolist():
            assert (image[:, y1:y2, x1:x2] > image.min()).all()
