"""What a comparison of tools rests on: one scene with its truth, sides that see the same, marks that can be missed."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six grey pictures of 40 x 30 with one white object each, and one of another size."""
    (tmp_path / "images").mkdir()
    images, annotations = [], []
    for i, (width, height) in enumerate([(40, 30)] * 3 + [(50, 30)] + [(40, 30)] * 3, start=1):
        picture = np.full((height, width, 3), 90, np.uint8)
        box = [3 * i, 2 * i, 5, 4]
        picture[box[1] : box[1] + 4, box[0] : box[0] + 5] = 255
        cv2.imwrite(str(tmp_path / "images" / f"{i}.png"), picture)
        images.append({"id": i, "file_name": f"{i}.png", "width": width, "height": height})
        annotations.append({"id": i, "image_id": i, "category_id": 1, "bbox": box, "area": 20, "iscrowd": 0})
    coco = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "spot"}]}
    (tmp_path / "annotations.json").write_text(json.dumps(coco))
    return tmp_path


def test_in_a_mosaic_each_box_lies_on_its_object(folder: Path) -> None:
    from mosaic import mosaic

    scene, truth = mosaic(folder, 3, 2)
    assert scene.shape == (60, 120, 3) and len(truth["annotations"]) == 6
    boxed = np.zeros(scene.shape[:2], bool)
    for x, y, width, height in (of["bbox"] for of in truth["annotations"]):
        boxed[y : y + height, x : x + width] = True
    assert np.array_equal(boxed, scene[..., 0] == 255)


def test_a_mosaic_of_more_pictures_than_there_are_is_refused(folder: Path) -> None:
    from mosaic import mosaic

    with pytest.raises(SystemExit, match="6 pictures"):
        mosaic(folder, 4, 2)


def test_alike_counts_the_boxes_of_both_sides_that_have_a_partner() -> None:
    from versus import alike

    boxes = np.array([[0, 0, 10, 10], [50, 50, 60, 60], [90, 90, 99, 99]], np.float32)
    scores, labels = np.array([0.9, 0.8, 0.1]), np.array([0, 1, 0])  # the last is below the score that is shown
    assert alike((boxes, scores, labels), (boxes[::-1], scores[::-1], labels[::-1])) == 1
    assert alike((boxes, scores, labels), (boxes[:1], scores[:1], labels[:1])) == pytest.approx(2 / 3)
    assert alike((boxes, scores, labels), (boxes, scores, 1 - labels)) == 0
    assert alike((boxes[:0], scores[:0], labels[:0]), (boxes, scores, labels)) == 0


def test_made_boxes_come_from_each_tile_in_the_number_that_was_asked() -> None:
    from versus import MadeBoxes

    outputs = MadeBoxes(64, 5).run(np.zeros((3, 64, 64, 3), np.uint8))
    assert ((outputs.labels == 0).sum(axis=1) == 5).all() and ((outputs.scores > 0.3) == (outputs.labels == 0)).all()
    assert (outputs.boxes[:, :5] >= 0).all() and (outputs.boxes[:, :5] <= 64).all()


def test_a_mark_that_is_missed_is_said_to_be() -> None:
    from versus import marks

    def result(milliseconds: float) -> dict[str, object]:
        cost = {"milliseconds_a_tile": {"least": milliseconds}, "microseconds_a_box": {"5 a tile": {"least": 5.0}}}
        return {"models": {}, "beside_the_model": {"tools": {"tinydet": cost}}}

    assert [mark["held"] for mark in marks(result(0.2))] == [True, True]
    assert [mark["held"] for mark in marks(result(0.21))] == [False, True]
