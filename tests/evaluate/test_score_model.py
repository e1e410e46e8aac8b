"""A model on a dataset: a perfect model scores 1 with any tiles, and classes are matched by name."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tinydet.data.coco import load_dataset
from tinydet.evaluate import choose_protocol, evaluate_backend, evaluate_detections
from tinydet.evaluate.lost_boxes import likely_gain
from tinydet.evaluate.score_model import SCORING_SLOTS, detect_dataset, match_classes, score_dataset, scoring_spec
from tinydet.runtime.backends import TileOutputs
from tinydet.runtime.options import ScanOptions
from tinydet.spec import ModelSpec

SPEC = ModelSpec(("person",), (1,), "white", "none", tile=256, max_batch=4, max_detections=200)


class FindsWhite:
    """A backend that detects every white blob as a person."""

    name = "white"

    def __init__(self, **changes: Any) -> None:
        self.spec = dataclasses.replace(SPEC, **changes)

    def run(self, images: Any) -> TileOutputs:
        slots = self.spec.max_detections
        boxes, scores = np.zeros((len(images), slots, 4), np.float32), np.zeros((len(images), slots), np.float32)
        labels, candidates = np.full((len(images), slots), -1, np.int32), np.zeros(len(images), np.int32)
        for i, image in enumerate(images):
            stats = cv2.connectedComponentsWithStats((image[..., 0] > 200).astype(np.uint8))[2][1:]
            n = min(len(stats), slots)
            boxes[i, :n] = (stats[:, :4] @ [[1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 1]])[:n]
            scores[i, :n], labels[i, :n], candidates[i] = 0.9, 0, len(stats)
        return TileOutputs(boxes, scores, labels, candidates)


MakeData = Callable[..., Path]


@pytest.fixture(scope="module")
def make_data(tmp_path_factory: pytest.TempPathFactory) -> MakeData:
    def make(sizes: list[tuple[int, int]], names: tuple[str, ...] = ("person",), *, ids: int = 3) -> Path:
        """Write a COCO folder: white squares of 6 pixels on black, 30 apart, all of the first class."""
        root = tmp_path_factory.mktemp("white")
        (root / "images").mkdir()
        document: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
        document["categories"] = [{"id": ids + n, "name": name} for n, name in enumerate(names)]
        for i, (width, height) in enumerate(sizes):
            pixels = np.zeros((height, width, 3), np.uint8)
            document["images"].append({"id": 9 - i, "file_name": f"{i}.png", "width": width, "height": height})
            for y in range(7, height - 8, 30):
                for x in range(11, width - 8, 30):
                    pixels[y : y + 6, x : x + 6] = 255
                    n = len(document["annotations"]) + 1
                    box = {"bbox": [x, y, 6, 6], "area": 36, "iscrowd": 0}
                    document["annotations"].append({"id": n, "image_id": 9 - i, "category_id": ids, **box})
            cv2.imwrite(str(root / "images" / f"{i}.png"), pixels)
        (root / "annotations.json").write_text(json.dumps(document))
        return root

    return make


def test_a_perfect_model_scores_one_across_tile_borders(make_data: MakeData) -> None:
    dataset = load_dataset(make_data([(560, 300), (100, 90)]))
    for protocol in ("coco", "tinyperson-fixed", "tinyperson-mmdet"):
        result = evaluate_backend(FindsWhite(), dataset, ScanOptions(32, score=0.5), protocol=protocol)
        assert result["protocol"] == protocol
        assert result["AP"]["tiny1"] == pytest.approx({"0.25": 1, "0.50": 1, "0.75": 1}, abs=1e-9)
        assert result["AP"]["tiny2"]["0.50"] == -1  # no object of that size
        counts = result["AP_counts"]["all"]["0.50"]
        assert counts["tp"] == counts["n_gt"] == len(dataset.boxes) and counts["fp"] == 0


def test_scoring_saved_detections_gives_the_same_result(make_data: MakeData) -> None:
    """Validation in training, `--model` and `--gt --detections` share one implementation."""
    root = make_data([(300, 200)])
    dataset = load_dataset(root)
    found = detect_dataset(FindsWhite(), dataset)
    truth = json.loads((root / "annotations.json").read_text())
    again = evaluate_detections(truth, json.loads(json.dumps(found.detections)), protocol="tinyperson")
    assert score_dataset(dataset, found, choose_protocol("tinyperson")).to_json() == again
    assert found.tiles == 2 and found.saturated == 0 and found.image_ids == (9,)


def test_detections_have_the_category_ids_of_the_dataset(make_data: MakeData) -> None:
    dataset = load_dataset(make_data([(120, 120)], ("person", "boat"), ids=0))
    backend = FindsWhite(classes=("person", "cat"), category_ids=(41, 42))
    found = detect_dataset(backend, dataset)
    assert {d["category_id"] for d in found.detections} == {0}
    assert found.notes == (
        "the dataset has no class 'cat'; its detections are left out",
        "the model does not know the class 'boat': its objects are missed",
    )
    with pytest.raises(ValueError, match=r"no class in common: the model finds dog, the dataset has person, boat"):
        detect_dataset(FindsWhite(classes=("dog",)), dataset)


def test_detections_of_classes_missing_from_the_dataset_are_left_out(make_data: MakeData) -> None:
    dataset = load_dataset(make_data([(120, 120)], ("boat",)))
    backend = FindsWhite(classes=("person", "boat"), category_ids=(1, 2))
    assert detect_dataset(backend, dataset).detections == []  # it detects only persons


def test_classes_are_matched_by_name() -> None:
    assert match_classes(("a", "b", "c"), ("c", "a"), (0, 8)) == (
        [8, None, 0],
        ["the dataset has no class 'b'; its detections are left out"],
    )


def test_lost_boxes_are_noted_with_what_they_can_change(make_data: MakeData) -> None:
    """Three of twelve objects are found, all precise: nine more could be found as precisely."""
    dataset = load_dataset(make_data([(120, 120)]))
    found = detect_dataset(FindsWhite(max_detections=3), dataset)
    assert found.saturated == found.tiles == 1 and found.cuts == {9: pytest.approx(0.9)} and found.notes == ()
    scores = score_dataset(dataset, found, choose_protocol("coco"))
    objects = len(dataset.boxes)
    assert likely_gain(scores, found.cuts) == pytest.approx((objects - 3) / objects)
    points = f"{100 * (objects - 3) / objects:.1f}"
    assert f"1 of 1 tiles had more boxes than the model's 3 slots: AP50 may be up to {points} points" in scores.notes[0]
    # No more than three detections per image count, so the lost boxes cannot change the score.
    limited = score_dataset(dataset, found, choose_protocol("coco", max_detections=3))
    assert likely_gain(limited, found.cuts) == 0 and not any("slots" in note for note in limited.notes)
    assert detect_dataset(FindsWhite(), dataset).cuts == {}
    assert detect_dataset(FindsWhite(max_detections=3), dataset, ScanOptions(score=0.95)).cuts == {}


def test_lost_boxes_among_false_positives_are_not_noted(make_data: MakeData) -> None:
    """Where one of a thousand boxes at the cut is right, more boxes change nothing."""
    dataset = load_dataset(make_data([(120, 120)]))
    found = detect_dataset(FindsWhite(max_detections=3), dataset)
    wrong = [{**found.detections[0], "bbox": [900 + n, 900, 6, 6]} for n in range(3000)]
    scores = score_dataset(
        dataset,
        dataclasses.replace(found, detections=found.detections + wrong),
        choose_protocol("coco", max_detections=4000),
    )
    assert not any("slots" in note for note in scores.notes)


def test_scoring_keeps_the_boxes_that_the_export_would_cut() -> None:
    assert scoring_spec(SPEC).max_detections == SCORING_SLOTS > SPEC.max_detections
    two_stage = dataclasses.replace(SPEC, nms_rounds=8)  # its graph applies the NMS before the cut
    assert scoring_spec(two_stage) == two_stage


class Unconverged(FindsWhite):
    """A backend with two proposals per tile whose NMS does not converge."""

    def run(self, images: Any) -> TileOutputs:
        return super().run(images)._replace(unconverged=np.full(len(images), 2, np.int32))


def test_unconverged_suppression_is_reported(make_data: MakeData) -> None:
    found = detect_dataset(Unconverged(nms_rounds=8), load_dataset(make_data([(400, 120), (120, 120)])))
    assert found.unconverged == 2 * found.tiles == 8
    assert found.notes == (
        "8 proposals still changed in the last of 8 rounds of suppression; export with more: --nms-rounds 16",
    )


def test_a_limit_scores_only_the_first_images(make_data: MakeData) -> None:
    dataset = load_dataset(make_data([(120, 120), (60, 60), (90, 90)]))
    found = detect_dataset(FindsWhite(), dataset, limit=2)
    assert found.image_ids == (7, 8)
    counts = score_dataset(dataset, found, choose_protocol("coco")).to_json()["AP_counts"]["all"]["0.50"]
    assert counts["n_gt"] == counts["tp"] == int((dataset.image_index < 2).sum())


def test_a_perfect_model_finds_every_object_on_the_benchmarks_sub_images(make_data: MakeData) -> None:
    dataset = load_dataset(make_data([(1300, 700)]))
    backend = FindsWhite(max_detections=400)
    found = detect_dataset(backend, dataset, ScanOptions(score=0.5), sub_images=True)
    scores = score_dataset(dataset, found, choose_protocol("tinyperson-mmdet")).to_json()
    assert scores["AP_counts"]["all"]["0.75"]["tp"] == len(dataset.boxes)
    assert scores["AP_counts"]["all"]["0.75"]["fp"] <= 8  # squares cut by the border of a sub-image

    corners = {"0.png": [(0, 0, 640, 512), (600, 100, 1240, 612)]}
    partial = detect_dataset(backend, dataset, ScanOptions(score=0.5), sub_images=True, corners=corners)
    reach = np.array([d["bbox"] for d in partial.detections])
    assert 0 < len(reach) < len(found.detections)
    assert (reach[:, 0] + reach[:, 2]).max() <= 1240 and (reach[:, 1] + reach[:, 3]).max() <= 612
    with pytest.raises(ValueError, match="no sub-image of 0.png"):
        detect_dataset(backend, dataset, sub_images=True, corners={"1.png": []})
    with pytest.raises(ValueError, match="1300x700 pixels, and no window at"):
        detect_dataset(backend, dataset, sub_images=True, corners={"0.png": [(0, 0, 1301, 9)]})


def test_an_image_whose_size_differs_from_the_annotation_is_rejected(make_data: MakeData) -> None:
    root = make_data([(120, 100)])
    document = json.loads((root / "annotations.json").read_text())
    document["images"][0]["width"] = 130
    (root / "annotations.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=r"0\.png is 120x100 pixels, but image 9 .* is 130x100"):
        evaluate_backend(FindsWhite(), load_dataset(root))
