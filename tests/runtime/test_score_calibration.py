"""Calibrated scores and thresholds per class: what changes in a result, and what must not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinydet.runtime import Model, load
from tinydet.runtime.detections import Detections
from tinydet.runtime.options import ScanOptions
from tinydet.runtime.scan import SceneResult, detect_scene
from tinydet.runtime.scenes import open_scene
from tinydet.runtime.score_calibration import (
    IDENTITY,
    calibrate,
    describe_thresholds,
    graph_score,
    score_thresholds,
)

LINES = ((2.0, -0.5), (0.7, 0.4))  # of squares and bars


def scene() -> np.ndarray:
    """Rectangles of many sizes, and so of many scores; some across the borders of tiles."""
    rng = np.random.default_rng(4)
    pixels = np.zeros((300, 400, 3), np.uint8)
    for y in range(5, 280, 24):
        for x in range(5, 380, 24):
            w, h = rng.integers(3, 20, 2)
            pixels[y : y + h, x : x + w] = 255
    return pixels


def detected(backend: Any, **options: Any) -> SceneResult:
    return detect_scene(backend, open_scene(scene()), ScanOptions(**{"overlap": 24, "score": 0.0, **options}))


def rows(found: Detections) -> list[tuple[Any, ...]]:
    return sorted(zip(found.boxes.tolist(), found.labels.tolist(), found.tiles.tolist(), strict=True), key=repr)


def logit(score: np.ndarray) -> np.ndarray:
    return np.log(score / (1 - score))


@pytest.mark.parametrize("merge", ["seam", "nms", "nmm", "wbf", "soft-nms"])
@pytest.mark.parametrize("agnostic", [False, True])
def test_a_calibration_changes_scores_and_nothing_else(white_squares: Callable, merge: str, agnostic: bool) -> None:
    plain = detected(white_squares(), merge=merge, agnostic=agnostic)
    result = detected(white_squares(calibration=LINES), merge=merge, agnostic=agnostic)
    assert rows(result.detections) == rows(plain.detections)
    assert (np.diff(result.detections.scores) <= 0).all()
    assert result.detections.scores.dtype == np.float32
    for label, (slope, offset) in enumerate(LINES):
        before, after = plain.detections, result.detections
        before, after = before[before.labels == label], after[after.labels == label]
        assert before.boxes.tolist() == after.boxes.tolist()  # the same order
        expected = 1 / (1 + np.exp(-(slope * logit(before.scores.astype(np.float64)) + offset)))
        assert after.scores == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("score", [0.2, 0.5, 0.63, 0.8])
def test_a_minimum_score_is_one_of_calibrated_scores(white_squares: Callable, score: float) -> None:
    everything = detected(white_squares(calibration=LINES)).detections
    found = detected(white_squares(calibration=LINES), score=score).detections
    assert found.boxes.tolist() == everything.boxes[everything.scores >= score].tolist()
    assert score == 0.2 or 0 < len(found) < len(everything)


@pytest.mark.parametrize("lines", [(), LINES])
def test_auto_takes_the_threshold_of_each_class_as_scores_of_the_graph(white_squares: Callable, lines: Any) -> None:
    plain = detected(white_squares()).detections
    thresholds = np.array([0.6, 0.55], np.float32)
    found = detected(white_squares(calibration=lines, thresholds=(0.6, 0.55)), score="auto").detections
    assert rows(found) == rows(plain[plain.scores >= thresholds[plain.labels]])
    assert 0 < (found.labels == 0).sum() < (plain.labels == 0).sum()
    assert 0 < (found.labels == 1).sum() < (plain.labels == 1).sum()


def test_soft_nms_drops_what_falls_below_the_threshold_of_its_class(white_squares: Callable) -> None:
    found = detected(white_squares(thresholds=(0.6, 0.7)), score="auto", merge="soft-nms").detections
    assert (found.scores >= np.array([0.6, 0.7], np.float32)[found.labels]).all()


def test_saturation_counts_tiles_that_lost_boxes_above_the_lowest_threshold(white_squares: Callable) -> None:
    few = {"max_detections": 4}
    assert detected(white_squares(**few)).saturated > 0
    assert detected(white_squares(**few, thresholds=(0.9, 0.0)), score="auto").saturated > 0
    assert detected(white_squares(**few, thresholds=(0.95, 0.95)), score="auto").saturated == 0
    cut = detected(white_squares(**few)).cut
    assert detected(white_squares(**few, calibration=LINES)).cut == pytest.approx(
        max(1 / (1 + np.exp(-(slope * logit(np.float64(cut)) + offset))) for slope, offset in LINES)
    )


def test_auto_without_thresholds_is_refused_before_the_model_runs(white_squares: Callable) -> None:
    backend = white_squares()
    with pytest.raises(ValueError, match="score auto needs score thresholds in the model, and it has none"):
        detected(backend, score="auto")
    with pytest.raises(ValueError, match="tinydet evaluate .*--operating-point f1 --store MODEL"):
        Model(backend, score="auto")
    assert backend.batches == []


@pytest.mark.parametrize("score", ["best", "", "0.5", None, True, -0.1])
def test_another_score_is_refused(score: Any) -> None:
    with pytest.raises(ValueError, match="score"):
        ScanOptions(score=score)


def test_a_loaded_model_takes_its_thresholds(make_onnx: Callable, tmp_path: Path) -> None:
    from runtime_fixtures import SPEC

    spec = dataclasses.replace(SPEC, detector="cells", nms_in_graph=True)
    path = make_onnx(tmp_path / "model.onnx", spec=dataclasses.replace(spec, thresholds=(0.9, 0.9)))
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[8:16, 8:16], pixels[32:40, 8:16] = 255, 200  # scores 1 and 0.78
    assert len(load(path, backend="onnx-cpu", score="auto").detect(pixels)) == 1
    assert len(load(path, backend="onnx-cpu").detect(pixels)) == 2


def test_the_score_of_the_graph_is_the_inverse_of_the_calibrated_score() -> None:
    scores = np.linspace(0.001, 0.999, 500)
    for line in (*LINES, IDENTITY):
        after = calibrate(scores, np.zeros(500, int), (line,))
        assert (np.diff(after) > 0).all()
        assert [graph_score(s, line) for s in after.tolist()] == pytest.approx(scores.tolist(), rel=1e-9)
        assert (graph_score(0.0, line), graph_score(1.0, line)) == (0.0, 1.0)


def test_scores_of_zero_and_one_stay_within_zero_and_one() -> None:
    ends = np.array([0.0, 1.0], np.float32)
    after = calibrate(ends, np.zeros(2, int), ((3.0, 1.0),))
    assert 0 <= after[0] < 1e-6 and 1 - 1e-6 < after[1] <= 1
    assert calibrate(ends, np.zeros(2, int), ()).tolist() == [0.0, 1.0]
    assert len(calibrate(ends[:0], np.zeros(0, int), LINES)) == 0


def test_thresholds_are_described_as_scores_of_results(white_squares: Callable) -> None:
    spec = white_squares(thresholds=(0.6, 0.5), calibration=LINES, operating_point="best F1").spec
    assert describe_thresholds(spec) == "square >= 0.577, bar >= 0.599 (best F1)"
    assert score_thresholds(spec, "auto").tolist() == pytest.approx([0.6, 0.5])
