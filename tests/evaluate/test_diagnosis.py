"""Errors by cause, and the figures and images that show them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tinydet.evaluate import PROTOCOLS, score_detections
from tinydet.evaluate.diagnosis import KINDS, diagnose
from tinydet.evaluate.report import format_errors
from tinydet.evaluate.worst_images import draw_worst

GT: dict[str, Any] = {
    "images": [{"id": i, "file_name": f"{i}.png"} for i in (1, 2)],
    "categories": [{"id": 1, "name": "person"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 10, 10], "area": 100, "iscrowd": 0},  # found twice
        {"id": 2, "image_id": 1, "category_id": 1, "bbox": [50, 10, 10, 10], "area": 100, "iscrowd": 0},  # badly
        {"id": 3, "image_id": 1, "category_id": 1, "bbox": [10, 50, 25, 25], "area": 625, "iscrowd": 0},  # not at all
        {"id": 4, "image_id": 1, "category_id": 1, "bbox": [60, 60, 30, 30], "area": 900, "ignore": 1, "iscrowd": 1},
    ],
}
BOXES = {
    "found": [10, 10, 10, 10],
    "duplicate": [11, 10, 10, 10],
    "localization": [56, 10, 10, 10],
    "background": [90, 10, 10, 10],
    "ignored": [65, 65, 10, 10],
}
DT = [{"image_id": 1, "category_id": 1, "bbox": box, "score": 0.9 - 0.1 * n} for n, box in enumerate(BOXES.values())]

REST = [{"image_id": 1, "category_id": 1, "bbox": a["bbox"], "score": 0.1} for a in GT["annotations"][1:3]]


def test_the_score_threshold_maximizes_f1() -> None:
    """One hit and no error beats one hit and three errors; three hits and three errors beat both."""
    assert diagnose(score_detections(GT, DT, PROTOCOLS["tinyperson"])).score == 0.9
    assert diagnose(score_detections(GT, DT + REST, PROTOCOLS["tinyperson"])).score == 0.1


def test_each_error_is_counted_under_its_cause() -> None:
    diagnosis = diagnose(score_detections(GT, DT + REST, PROTOCOLS["tinyperson"]))
    assert diagnosis.by_size["all"] == {"found": 3, "missed": 0, "duplicate": 1, "localization": 1, "background": 1}
    assert diagnosis.by_size["tiny2"]["found"] == 2 and diagnosis.by_size["small"]["found"] == 1
    assert dict(zip(map(tuple, diagnosis.results.boxes.tolist()), diagnosis.kind.tolist(), strict=True)) == {
        **{tuple(map(float, box)): kind for kind, box in BOXES.items()},
        **{tuple(map(float, a["bbox"])): "found" for a in GT["annotations"][:3]},
    }
    assert diagnosis.found.tolist() == [True, True, True, False] and not diagnosis.missed.any()


def test_objects_not_found_are_missed() -> None:
    diagnosis = diagnose(score_detections(GT, [], PROTOCOLS["coco"]))
    assert diagnosis.by_size["all"] == {"found": 0, "missed": 3, "duplicate": 0, "localization": 0, "background": 0}
    assert diagnosis.missed.tolist() == [True, True, True, False]
    assert format_errors(diagnosis).splitlines()[3].split()[:2] == ["missed", "3"]


@pytest.mark.parametrize("seed", range(4))
def test_counts_agree_with_the_scores(make_scene: Any, seed: int) -> None:
    gt, dt = make_scene(seed)
    for detection in dt:
        detection["score"] = 0.5  # so the threshold keeps all
    scores = score_detections(gt, dt, PROTOCOLS["tinyperson"])
    diagnosis = diagnose(scores)
    for name, row in scores.to_json()["AP_counts"].items():
        counts = diagnosis.by_size[name]
        assert counts["found"] == row["0.50"]["tp"]
        assert counts["found"] + counts["missed"] == row["0.50"]["n_gt"]
        assert sum(counts[kind] for kind in KINDS[2:]) == row["0.50"]["fp"]


def test_a_protocol_without_ap_has_no_diagnosis() -> None:
    with pytest.raises(ValueError, match="citypersons has no matching by size"):
        diagnose(score_detections(GT, DT, PROTOCOLS["citypersons"]))


def test_images_with_errors_are_drawn_worst_first(tmp_path: Path) -> None:
    for name in ("1.png", "2.png"):
        cv2.imwrite(str(tmp_path / name), np.zeros((120, 120, 3), np.uint8))
    extra = {"image_id": 2, "category_id": 1, "bbox": [5, 5, 9, 9], "score": 0.95}
    scores = score_detections(GT, [*DT, extra], PROTOCOLS["coco"])
    diagnosis = diagnose(scores)
    paths = draw_worst(scores.truth, diagnosis, tmp_path, tmp_path / "out")
    assert [path.name for path in paths] == ["worst-1-1.jpg", "worst-2-2.jpg"]
    image = cv2.imread(str(paths[0]))[24:, :, ::-1].astype(int)  # below the legend, at twice its size
    assert image.shape == (240, 240, 3)
    red = (image[..., 0] > 150) & (image[..., 1] < 110) & (image[..., 2] < 110)
    assert red[2 * 50 - 6 : 2 * 75 + 6, 2 * 10 - 6 : 2 * 35 + 6].sum() > 100  # around the missed object
    assert not red[:90, 180:].any()
    perfect = score_detections(GT, [{**DT[0], "bbox": a["bbox"]} for a in GT["annotations"][:3]], PROTOCOLS["coco"])
    assert draw_worst(perfect.truth, diagnose(perfect), tmp_path, tmp_path / "out") == []


@pytest.mark.parametrize(("protocol", "detections"), [("tinyperson", DT), ("coco", []), ("citypersons", DT)])
def test_a_figure_is_written_for_each_measured_quantity(tmp_path: Path, protocol: str, detections: list[Any]) -> None:
    pytest.importorskip("matplotlib", reason="needs matplotlib (tinydet[plots])")
    from tinydet.evaluate.plots import write_plots

    scores = score_detections(GT, detections, PROTOCOLS[protocol])
    diagnosis = diagnose(scores) if scores.precision is not None else None
    written = {path.name for path in write_plots(scores, diagnosis, tmp_path / "plots")}
    of_precision = {"precision_recall.png", "errors.png", "classes.png", "score_curves.png", "confusion_matrix.png"}
    tables = {"classes.csv", "confusion_matrix.csv"}
    assert written == {"miss_rate.png"} | (of_precision | tables if diagnosis else set())
    for name in written - tables:
        assert cv2.imread(str(tmp_path / "plots" / name)).std() > 10
