"""Scores of each class against pycocotools and by hand, and the score threshold with the best mean F1."""

from __future__ import annotations

import contextlib
import copy
import csv
import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinydet.evaluate import PROTOCOLS, score_detections
from tinydet.evaluate.classes import ClassTable, best_threshold
from tinydet.evaluate.report import format_classes
from tinydet.evaluate.score import Scores


def scene(seed: int, *, classes: int = 3, images: int = 12) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return objects and noisy detections of several classes; the last class has no objects, only detections."""
    rng = np.random.default_rng(seed)
    annotations, detections = [], []
    for image in range(images):
        for _ in range(int(rng.integers(0, 9))):
            c = int(rng.integers(0, classes - 1))
            box = np.r_[rng.uniform(0, 200, 2), rng.uniform(8, 40, 2)]
            entry = {"image_id": image, "category_id": 5 + c, "bbox": box.tolist()}
            annotations.append({**entry, "id": len(annotations) + 1, "area": float(box[2] * box[3]), "iscrowd": 0})
            for _ in range(int(rng.integers(0, 3))):
                near = (box + rng.normal(0, 2.5, 4)).tolist()
                found = 5 + (c if rng.random() < 0.7 else int(rng.integers(0, classes)))
                detections.append({**entry, "category_id": found, "bbox": near, "score": round(float(rng.random()), 2)})
    document = {
        "images": [{"id": n, "file_name": f"{n}.png"} for n in range(images)],
        "categories": [{"id": 5 + c, "name": f"class {c}"} for c in range(classes)],
        "annotations": annotations,
    }
    return document, detections


def scores_of(seed: int, **options: Any) -> tuple[Scores, ClassTable, dict[str, Any], list[dict[str, Any]]]:
    gt, dt = scene(seed, **options)
    scores = score_detections(gt, dt, PROTOCOLS["coco"])
    assert scores.classes is not None
    return scores, scores.classes, gt, dt


@pytest.mark.parametrize("seed", range(4))
def test_ap50_95_and_ap75_equal_those_of_pycocotools(seed: int) -> None:
    pytest.importorskip("pycocotools", reason="needs pycocotools (tinydet[train])")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    _, table, gt, dt = scores_of(seed)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(gt)
        truth.createIndex()
        evaluator = COCOeval(truth, truth.loadRes(copy.deepcopy(dt)), "bbox")
        evaluator.params.maxDets = [1, 10, 1500]
        evaluator.evaluate()
        evaluator.accumulate()
    precision = evaluator.eval["precision"][:, :, :, 0, 2]  # (IoU, recall, class), of all areas
    for name, part in (("AP50-95", precision), ("AP50", precision[:1]), ("AP75", precision[5:6])):
        assert table.ap[name] == pytest.approx(part[part > -1].mean(), abs=1e-9)
        for c, each in enumerate(table.classes):
            assert each.ap[name] == pytest.approx(part[..., c].mean(), abs=1e-9)
    assert [each.name for each in table.excluded] == ["class 2"] and table.classes[2].ap["AP50"] == -1


@pytest.mark.parametrize("seed", range(4))
def test_the_threshold_has_the_best_mean_f1_of_all_and_keeps_the_same_detections(seed: int) -> None:
    """Compare with the F1 of the detections above each possible threshold, scored again."""
    _, table, gt, dt = scores_of(seed)
    f1 = {}
    for threshold in sorted({d["score"] for d in dt}):
        counts = score_detections(gt, [d for d in dt if d["score"] >= threshold], PROTOCOLS["coco"]).precision
        assert counts is not None
        again = score_detections(gt, [d for d in dt if d["score"] >= threshold], PROTOCOLS["coco"]).classes
        assert again is not None
        lowest = [each.curve.at(0.0) for each in again.scored]
        f1[threshold] = np.mean([point.f1 for point in lowest])
    assert table.score is not None and table.mean is not None
    assert table.mean.f1 == pytest.approx(max(f1.values()))
    kept = min(score for score in f1 if score >= table.score)
    assert f1[kept] == pytest.approx(max(f1.values()))


def test_precision_recall_and_f1_by_hand() -> None:
    """Two hits and a false positive of four objects: P 2/3, R 1/2, F1 4/7."""
    boxes = [[20.0 * n, 0, 10, 10] for n in range(4)]
    gt = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
        "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "boat"}],
        "annotations": [
            {"id": n + 1, "image_id": 1 + n % 2, "category_id": 1, "bbox": box, "area": 100, "iscrowd": 0}
            for n, box in enumerate(boxes)
        ],
    }
    dt = [
        {"image_id": 1, "category_id": 1, "bbox": boxes[0], "score": 0.9},
        {"image_id": 1, "category_id": 1, "bbox": [0, 90, 9, 9], "score": 0.81234},
        {"image_id": 2, "category_id": 1, "bbox": boxes[1], "score": 0.81234},
        {"image_id": 2, "category_id": 2, "bbox": boxes[1], "score": 0.99},
    ]
    table = score_detections(gt, dt, PROTOCOLS["coco"]).classes
    assert table is not None
    person = table.classes[0]
    assert (person.objects, person.images, person.detections) == (4, 2, 3)
    assert person.at is not None and person.at[1:] == pytest.approx((2 / 3, 1 / 2, 4 / 7))
    assert person.at == person.best and table.score == 0.81  # no detection is between 0.81 and 0.81234
    assert "no objects of it: boat (1 detection)" in format_classes(table)
    assert table.to_json()["excluded"] == ["boat"] and table.to_json()["mean"]["F1"] == pytest.approx(4 / 7)


def test_without_a_hit_there_is_no_threshold() -> None:
    gt, _ = scene(0)
    far = [{"image_id": 0, "category_id": 5, "bbox": [900, 900, 9, 9], "score": 0.5}]
    for dt in (far, []):
        table = score_detections(gt, dt, PROTOCOLS["coco"]).classes
        assert table is not None and table.score is None and table.mean is None and table.ap["AP50"] == 0
        assert format_classes(table).splitlines()[1].split()[-4:] == ["-"] * 4
    assert best_threshold([]) is None


@pytest.mark.parametrize("seed", range(4))
def test_the_confusion_matrix_equals_that_of_supervision(seed: int) -> None:
    supervision = pytest.importorskip("supervision", reason="needs supervision (tinydet[supervision])")
    scores, table, gt, dt = scores_of(seed, images=30)
    matrix = scores.confusion
    assert matrix is not None and table.score == matrix.score
    predictions, targets = [], []
    for image in gt["images"]:
        own = [a for a in gt["annotations"] if a["image_id"] == image["id"]]
        found = [d for d in dt if d["image_id"] == image["id"]]
        targets.append(np.array([[*corners(a), a["category_id"] - 5] for a in own]).reshape(-1, 5))
        predictions.append(np.array([[*corners(d), d["category_id"] - 5, d["score"]] for d in found]).reshape(-1, 6))
    expected = supervision.metrics.detection.ConfusionMatrix.from_tensors(
        predictions, targets, [c["name"] for c in gt["categories"]], conf_threshold=matrix.score, iou_threshold=0.5
    )
    np.testing.assert_array_equal(matrix.counts, expected.matrix)
    assert matrix.counts[:2].sum() == len(gt["annotations"]) and matrix.counts[0, 1] + matrix.counts[1, 0] > 0
    assert matrix.names[-1] == "background"


def test_detections_in_ignored_regions_are_not_confused_with_the_background() -> None:
    gt, _ = scene(0)
    gt["annotations"] = [
        {"id": 1, "image_id": 0, "category_id": 5, "bbox": [0, 0, 50, 50], "area": 2500, "iscrowd": 1},
        {"id": 2, "image_id": 0, "category_id": 5, "bbox": [80, 0, 9, 9], "area": 81, "iscrowd": 0},
    ]
    dt = [{"image_id": 0, "category_id": 5, "bbox": box, "score": 0.5} for box in ([5, 5, 9, 9], [80, 0, 9, 9])]
    matrix = score_detections(gt, dt, PROTOCOLS["coco"]).confusion
    assert matrix is not None and matrix.counts.sum() == matrix.counts[0, 0] == 1


def test_tables_are_written_with_the_plots(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib (tinydet[plots])")
    from tinydet.evaluate.plots import write_plots

    scores, table, *_ = scores_of(1)
    write_plots(scores, None, tmp_path)
    with (tmp_path / "classes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ["class 0", "class 1", "class 2", "mean"]
    assert float(rows[0]["AP50-95"]) == table.classes[0].ap["AP50-95"] and rows[2]["AP50"] == ""
    assert float(rows[3]["AP75"]) == table.ap["AP75"] and float(rows[3]["score"]) == table.score
    with (tmp_path / "confusion_matrix.csv").open(newline="") as file:
        cells = list(csv.reader(file))
    assert scores.confusion is not None
    assert [list(map(int, row[1:])) for row in cells[1:]] == scores.confusion.counts.tolist()
    assert cells[0][1:] == [row[0] for row in cells[1:]] == list(scores.confusion.names)


def corners(entry: dict[str, Any]) -> list[float]:
    x, y, w, h = entry["bbox"]
    return [x, y, x + w, y + h]


def test_plots_have_room_for_data_whatever_the_length_of_the_names() -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib (tinydet[plots])")
    from matplotlib.figure import Figure

    from tinydet.evaluate.plots import _draw_classes, _draw_confusion

    scores, table, *_ = scores_of(1)
    assert scores.confusion is not None
    long = [f"{n}, {'a long description ' * 5}" for n in range(len(scores.confusion.names))]
    table = dataclasses.replace(
        table, classes=tuple(dataclasses.replace(each, name=long[n]) for n, each in enumerate(table.classes))
    )
    for draw, data in (
        (_draw_classes, table),
        (_draw_confusion, dataclasses.replace(scores.confusion, names=tuple(long))),
    ):
        drawing = Figure(figsize=(6, 5), layout="constrained")
        axis = drawing.subplots()
        draw(axis, data)
        drawing.canvas.draw()
        place = axis.get_position()
        assert min(place.width, place.height) > 0.4, draw.__name__
        assert all(text.get_window_extent().x1 <= drawing.bbox.x1 for text in axis.texts)
