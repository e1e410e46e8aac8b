"""The `coco` protocol equals pycocotools, and the overlaps equal its C code bit for bit."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinydet._internal.json_files import read_json
from tinydet.evaluate import PROTOCOLS, evaluate_detections, score_detections
from tinydet.geometry import nms
from tinydet.geometry.overlaps import find_overlaps

mask = pytest.importorskip("pycocotools.mask", reason="needs pycocotools (tinydet[train])")
from pycocotools.coco import COCO  # noqa: E402
from pycocotools.cocoeval import COCOeval  # noqa: E402

RULES = PROTOCOLS["coco"].precision
assert RULES is not None


def pycocotools(gt: Any, dt: Any, *, categories: list[int] | None = None, cap: int = RULES.max_detections) -> Any:
    """Return AP, AR and 101-point precision of pycocotools at our ranges and thresholds, in our JSON format."""
    assert RULES is not None
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(gt)
        for annotation in truth.dataset["annotations"]:
            annotation.setdefault("iscrowd", 0)
        truth.createIndex()
        found = truth.loadRes(copy.deepcopy(dt)) if dt else COCO()  # loadRes fails on an empty list
        evaluator = COCOeval(truth, found, "bbox")
        evaluator.params.iouThrs = np.array(RULES.ious)
        evaluator.params.areaRng = [list(area) for area in RULES.areas.values()]
        evaluator.params.areaRngLbl = list(RULES.areas)
        evaluator.params.maxDets = [cap]
        if categories is not None:
            evaluator.params.catIds = categories
        evaluator.evaluate()
        evaluator.accumulate()
    precision, recall = evaluator.eval["precision"][..., 0], evaluator.eval["recall"][..., 0]
    table: dict[str, Any] = {"AP": {}, "AR": {}, "precision": {}}
    for a, name in enumerate(RULES.areas):
        for key in table:
            table[key][name] = {}
        for t, iou in enumerate(RULES.ious):
            p, r = precision[t, :, :, a], recall[t, :, a]
            label = f"{iou:.2f}"
            table["AP"][name][label] = p[p > -1].mean() if (p > -1).any() else -1
            table["AR"][name][label] = r[r > -1].mean() if (r > -1).any() else -1
            table["precision"][name][label] = p.T.tolist()
    return table


@pytest.mark.parametrize("seed", range(20))
def test_scores_equal_those_of_pycocotools(make_scene: Any, seed: int) -> None:
    gt, dt = make_scene(seed)
    scores = score_detections(gt, dt, PROTOCOLS["coco"])
    expected = pycocotools(gt, dt)
    assert scores.precision_json() == expected["precision"]  # exactly
    for key in ("AP", "AR"):
        ours, theirs = scores.to_json()[key], expected[key]
        for name, row in theirs.items():
            assert ours[name] == pytest.approx(row, abs=1e-12, rel=0)


@pytest.mark.parametrize("seed", range(20, 26))
def test_the_detection_limit_is_that_of_pycocotools(make_scene: Any, seed: int) -> None:
    gt, dt = make_scene(seed)
    capped = dataclasses.replace(PROTOCOLS["coco"], precision=dataclasses.replace(RULES, max_detections=5))
    assert score_detections(gt, dt, capped).precision_json() == pycocotools(gt, dt, cap=5)["precision"]


def test_selected_categories_equal_catids_of_pycocotools(make_scene: Any) -> None:
    compared = 0
    for seed in range(20):
        gt, dt = make_scene(seed)
        if len(gt["categories"]) > 1:
            chosen = gt["categories"][0]
            own = [d for d in dt if d["category_id"] == chosen["id"]]
            if own:
                expected = pycocotools(gt, dt, categories=[chosen["id"]])
                for given in (dt, own):
                    ours = evaluate_detections(gt, given, protocol="coco", categories=[chosen["name"]])
                    assert ours["AP"]["all"] == pytest.approx(expected["AP"]["all"], abs=1e-12, rel=0)
                compared += 1
    assert compared > 3


@pytest.mark.parametrize("name", ["hituav-val", "tinyperson640-val"])
def test_noisy_copies_of_real_boxes_score_as_in_pycocotools(shared: Path, name: str) -> None:
    gt = read_json(shared / "data" / name / "annotations.json")
    dt = noisy(gt, np.random.default_rng(7))
    assert score_detections(gt, dt, PROTOCOLS["coco"]).precision_json() == pycocotools(gt, dt)["precision"]


@pytest.mark.parametrize("crowd", [0, 1])
def test_overlaps_equal_those_of_pycocotools_bit_for_bit(crowd: int) -> None:
    rng = np.random.default_rng(0)
    for spread, largest in ((40.0, 30.0), (2000.0, 25.0), (900.0, 900.0)):
        boxes = np.c_[rng.uniform(0, spread, (400, 2)), rng.uniform(0, largest, (400, 2)) ** rng.choice((0.3, 1))]
        targets = np.c_[rng.uniform(0, spread, (300, 2)), rng.uniform(0, largest, (300, 2))]
        targets[:20] = boxes[:20]
        boxes[20:30, 2] = 0
        targets[20:30, 3] = 0
        targets[30] = (0, 0, spread, spread)
        expected = mask.iou(boxes, targets, [crowd] * 300)
        pairs = find_overlaps(boxes, np.zeros(400, np.int64), targets, np.zeros(300, np.int64))
        ours = np.zeros((400, 300))
        ours[pairs.detection, pairs.target] = pairs.iod if crowd else pairs.iou
        np.testing.assert_array_equal(ours, expected)


def test_overlaps_stay_within_their_group_and_do_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    boxes = np.c_[rng.uniform(-50, 300, (500, 2)), rng.uniform(1, 60, (500, 2))]
    targets = np.c_[rng.uniform(-50, 300, (200, 2)), rng.uniform(1, 200, (200, 2))]
    group, target_group = np.sort(rng.integers(0, 9, 500)), np.sort(rng.integers(2, 11, 200))
    iou = np.array(mask.iou(boxes, targets, [0] * 200))
    iou[group[:, None] != target_group] = 0
    at_once = find_overlaps(boxes, group, targets, target_group)
    assert np.array_equal(np.argwhere(iou > 0), np.c_[at_once.detection, at_once.target])
    monkeypatch.setattr(nms, "PAIRS_IN_MEMORY", 7)
    for ours, theirs in zip(find_overlaps(boxes, group, targets, target_group), at_once, strict=True):
        assert np.array_equal(ours, theirs)


def test_extreme_coordinates_hide_no_overlap() -> None:
    boxes = np.array([[0.0, 0, 10, 10], [1e30, 0, 10, 10], [-1e300, -5, 2e300, 20], [5, 5, 1e308, 1e308]])
    targets = np.array([[2.0, 2, 10, 10], [-1e200, 0, 1e201, 3]])
    expected = np.array(mask.iou(boxes, targets, [0, 0]))
    pairs = find_overlaps(boxes, np.zeros(4, np.int64), targets, np.zeros(2, np.int64))
    ours = np.zeros((4, 2))
    ours[pairs.detection, pairs.target] = pairs.iou
    np.testing.assert_array_equal(ours, expected)


def noisy(gt: Any, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Return shifted and resized copies of the boxes, duplicates and false positives, with tied scores."""
    found = []
    for annotation in gt["annotations"]:
        x, y, w, h = annotation["bbox"]
        for _ in range(int(rng.integers(0, 3))):
            box = [x + rng.normal(0, 0.15) * w, y + rng.normal(0, 0.15) * h, w * rng.uniform(0.8, 1.2), h]
            found.append({**ids(annotation), "bbox": box, "score": round(float(rng.uniform()), 2)})
        box = [float(rng.uniform(0, 600)), float(rng.uniform(0, 500)), w, h]
        found.append({**ids(annotation), "bbox": box, "score": round(float(rng.uniform(0, 0.6)), 2)})
    return found


def ids(annotation: dict[str, Any]) -> dict[str, Any]:
    return {key: annotation[key] for key in ("image_id", "category_id")}
