"""The calibration of scores, against SciPy's optimizer and a loop over bins."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from scipy.optimize import minimize

from tinydet.evaluate import PROTOCOLS, score_detections
from tinydet.evaluate.calibration import (
    BINS,
    FEWEST,
    Bin,
    bins,
    composed,
    expected_error,
    fit_line,
)
from tinydet.evaluate.operating_point import FOLDS, SEED
from tinydet.evaluate.report import format_calibration
from tinydet.evaluate.score import Scores


def draws(line: tuple[float, float], n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return scores, and whether each is correct, with the probability that the line gives."""
    rng = np.random.default_rng(seed)
    scores = rng.uniform(0.05, 0.95, n)
    logits = np.log(scores / (1 - scores))
    return scores, rng.random(n) < 1 / (1 + np.exp(-(line[0] * logits + line[1])))


def fit_of_scipy(scores: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """Return the line of Platt's likelihood by a general optimizer."""
    hits, false = correct.sum(), (~correct).sum()
    target = np.where(correct, (hits + 1) / (hits + 2), 1 / (false + 2))
    logits = np.log(scores / (1 - scores))

    def loss(line: np.ndarray) -> float:
        p = 1 / (1 + np.exp(-(line[0] * logits + line[1])))
        return float(-np.mean(target * np.log(p) + (1 - target) * np.log(1 - p)))

    result: np.ndarray = minimize(loss, [1.0, 0.0], method="BFGS", options={"gtol": 1e-7}).x
    return result


def scene(images: int = 12, seed: int = 0) -> Scores:
    """Score detections of two classes whose share of correct ones is the square of their score."""
    rng = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    for image in range(images):
        for n in range(24):
            side = float(rng.choice((6, 14, 26)))
            entry = {"image_id": image, "category_id": 1 if n < 14 else 2}
            box = [40.0 * n, 10.0, side, side]
            annotations.append({**entry, "id": len(annotations) + 1, "bbox": box, "area": side**2, "iscrowd": 0})
            score = float(rng.uniform(0.1, 0.95))
            at = [*box] if rng.random() < score**2 else [box[0], 100.0, side, side]
            detections.append({**entry, "bbox": at, "score": score})
    document = {
        "images": [{"id": n, "file_name": f"{n}.png"} for n in range(images)],
        "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "car"}],
        "annotations": annotations,
    }
    return score_detections(document, detections, PROTOCOLS["coco"])


@pytest.mark.parametrize("line", [(1.0, 0.0), (2.5, 0.2), (0.3, -1.5)])
def test_the_fit_has_the_largest_likelihood_and_recovers_the_line(line: tuple[float, float]) -> None:
    scores, correct = draws(line, 4000)
    found = fit_line(scores, correct)
    assert found is not None
    assert found == pytest.approx(fit_of_scipy(scores, correct), abs=1e-4)
    assert found == pytest.approx(line, abs=0.25)


def test_scores_that_separate_all_detections_have_a_finite_fit() -> None:
    scores = np.r_[np.full(30, 0.2), np.full(30, 0.8)]
    found = fit_line(scores, scores > 0.5)
    assert found is not None and found == pytest.approx(fit_of_scipy(scores, scores > 0.5), rel=1e-3, abs=1e-3)
    extreme = np.r_[np.zeros(30), np.ones(30)]  # their logits are bounded
    found = fit_line(extreme, extreme > 0.5)
    assert found is not None and np.isfinite(found).all()


def test_scores_without_information_have_no_fit() -> None:
    scores, correct = draws((1.0, 0.0), 500)
    assert fit_line(scores, ~correct) is None  # higher where false
    assert fit_line(np.full(100, 0.5), np.arange(100) < 50) is None
    few = np.zeros(200, bool)
    few[: FEWEST - 1] = True
    assert fit_line(np.linspace(0.9, 0.1, 200), few) is None


def test_the_error_is_that_of_a_loop_over_bins() -> None:
    scores, correct = draws((2.0, -1.0), 700)
    scores[:3] = 0.0, 1.0, 3 / BINS
    expected = 0.0
    for n in range(BINS):
        low, high = n / BINS, (n + 1) / BINS
        some = [i for i, s in enumerate(scores) if low <= s < high or (n == BINS - 1 and s == 1)]
        if some:
            expected += len(some) / 700 * abs(np.mean(scores[some]) - np.mean(correct[some]))
    filled = bins(scores, correct)
    assert sum(each.count for each in filled) == 700
    assert expected_error(filled) == pytest.approx(expected, abs=1e-12)
    assert expected_error([Bin(0, 0.0, 0.0)]) is None


def test_the_error_after_is_measured_on_images_without_a_part_in_the_fit() -> None:
    scores = scene()
    found = scores.calibration()
    assert scores.matcher is not None
    outcome, results = scores.matcher.outcome("all", 0.5), scores.matcher.results
    folds = (np.random.default_rng(SEED).permutation(12) % FOLDS)[results.image]
    after = np.zeros(len(results.scores))
    for fold in range(FOLDS):
        for c in range(2):
            train, test = (folds != fold) & (results.category == c), (folds == fold) & (results.category == c)
            slope, offset = fit_of_scipy(results.scores[train], outcome.hit[train])
            logits = np.log(results.scores[test] / (1 - results.scores[test]))
            after[test] = 1 / (1 + np.exp(-(slope * logits + offset)))
    (shared,) = [expected_error(bins(after, outcome.hit))]
    error = found.by_size["all"]
    assert found.shared == ()
    assert expected_error(error.after) == pytest.approx(shared, abs=1e-3)
    before, held_out = expected_error(error.before), expected_error(error.after)
    assert before is not None and held_out is not None and held_out < before / 2


def test_the_errors_of_sizes_and_classes_count_what_the_protocol_counts() -> None:
    scores = scene()
    found = scores.calibration()
    assert scores.precision is not None
    for name, error in found.by_size.items():
        at = scores.precision[name][0.5]
        assert error.detections == at.hits + at.false
        assert sum(round(each.count * each.correct) for each in error.before) == at.hits
    assert sum(each.detections for each in found.by_class.values()) == found.by_size["all"].detections
    text = format_calibration(found)
    assert "5-fold cross-validation" in text and "person: sigmoid(" in text
    json.dumps(found.to_json(), allow_nan=False)


def test_a_class_with_few_detections_has_the_line_of_all() -> None:
    found = scene(images=4).calibration()  # 40 cars
    assert found.shared == ("car",)
    assert found.lines[1] == found.together != found.lines[0]
    assert "car: sigmoid(" in format_calibration(found) and "of all classes" in format_calibration(found)


def test_too_little_data_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match="needs two images or more"):
        scene(images=1).calibration()
    document = {"images": [{"id": 1}, {"id": 2}], "categories": [{"id": 1, "name": "a"}], "annotations": []}
    with pytest.raises(ValueError, match="there are 0 correct and 0 false detections"):
        score_detections(document, [], PROTOCOLS["coco"]).calibration()
    percent = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 98.0}]
    with pytest.raises(ValueError, match="scores from 0 to 1"):
        score_detections(document, percent, PROTOCOLS["coco"]).calibration()


def test_two_calibrations_in_turn_are_one() -> None:
    scores = np.linspace(0.01, 0.99, 50)
    logits = np.log(scores / (1 - scores))
    first, then = (2.0, -0.5), (0.7, 0.3)
    slope, offset = composed(first, then)
    assert slope * logits + offset == pytest.approx(then[0] * (first[0] * logits + first[1]) + then[1])
