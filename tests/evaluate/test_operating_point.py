"""Score thresholds against a search that scores the detections again at every threshold, and against SciPy."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tinydet.evaluate import PROTOCOLS, score_detections
from tinydet.evaluate.average_precision import PrecisionMatcher
from tinydet.evaluate.operating_point import (
    MEASURES,
    Measured,
    Point,
    Verdicts,
    Wanted,
    byar,
    class_verdicts,
    measure,
    parse_wanted,
    wilson,
)
from tinydet.evaluate.report import format_operating_points
from tinydet.evaluate.score import Scores
from tinydet.evaluate.tables import tabulate_ground_truth, tabulate_results

INVALID = ("precision", "precision=", "precision=0", "precision=1.1", "precision=90%", "recall=nan", "recall=-1")
WANTED = ("f1", "precision=0.5", "recall=0.4", "false-alarms=8")


def person_boxes(images: int, seed: int = 0, per_image: int = 6) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return objects of one class, and detections whose score is the probability that they are at an object."""
    rng = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    detections: list[dict[str, Any]] = []
    for image in range(images):
        for n in range(per_image):
            box = [float(40 * n), 10.0, 20.0, 20.0]
            entry = {"image_id": image, "category_id": 1}
            annotations.append({**entry, "id": len(annotations) + 1, "bbox": box, "area": 400.0, "iscrowd": 0})
            score = round(float(rng.uniform(0.05, 0.99)), 3)
            at = [*box] if rng.random() < score else [box[0], 200.0, 20.0, 20.0]
            detections.append({**entry, "bbox": at, "score": score})
    images_ = [{"id": n, "file_name": f"{n}.png", "width": 1000, "height": 500} for n in range(images)]
    return {"images": images_, "categories": [{"id": 1, "name": "person"}], "annotations": annotations}, detections


def scored(gt: dict[str, Any], dt: list[dict[str, Any]], protocol: str = "coco") -> Scores:
    return score_detections(gt, dt, PROTOCOLS[protocol])


def counts_at(gt: dict[str, Any], dt: list[dict[str, Any]], protocol: str, category: int, score: float) -> Measured:
    """Match only the detections of one category from a score on, and return their measures."""
    kept = [entry for entry in dt if entry["score"] >= score and entry["category_id"] == category]
    name = next(entry["name"] for entry in gt["categories"] if entry["id"] == category)
    rules = PROTOCOLS[protocol].precision
    assert rules is not None
    truth = tabulate_ground_truth(gt, categories=[name])
    at = PrecisionMatcher(truth, tabulate_results(kept, truth), rules).result("all", 0.5)
    megapixels = sum(entry["width"] * entry["height"] for entry in gt["images"]) / 1e6
    found = at.hits + at.false
    return Measured(
        at.hits / found if found else None,
        at.hits / at.objects,
        2 * at.hits / (found + at.objects),
        at.false / megapixels,
    )


def reaches(wanted: Wanted, measured: Measured) -> bool:
    if not measured.recall:
        return False
    if wanted.kind == "precision":
        return measured.precision is not None and measured.precision >= (wanted.value or 0) - 1e-12
    if wanted.kind == "recall":
        return measured.recall >= (wanted.value or 0) - 1e-12
    return measured.false_alarms is not None and measured.false_alarms <= (wanted.value or 0) + 1e-12


@pytest.mark.parametrize("protocol", ["coco", "tinyperson"])
@pytest.mark.parametrize("seed", [2, 9])
def test_thresholds_equal_those_of_a_search_over_all_scores(
    make_scene: Callable[[int], Any], seed: int, protocol: str
) -> None:
    """The random scenes have ignore regions, crowds, ties and several categories."""
    gt, dt = make_scene(seed)
    scores = scored(gt, dt, protocol)
    for text in WANTED:
        wanted = parse_wanted(text)
        points = scores.operating_points(wanted)
        for point in points.classes:
            category = next(entry["id"] for entry in gt["categories"] if entry["name"] == point.name)
            tried = sorted({entry["score"] for entry in dt if entry["category_id"] == category})
            at = {score: counts_at(gt, dt, protocol, category, score) for score in tried}
            if wanted.kind == "f1":
                best = max((m.f1 or 0 for m in at.values()), default=0)
                good = [score for score, m in at.items() if best > 0 and (m.f1 or 0) >= best - 1e-12]
            else:
                good = [score for score, m in at.items() if reaches(wanted, m)]
            if not good:
                assert point.score is None
                continue
            expected = (max if wanted.kind in ("f1", "recall") else min)(good)
            assert point.score is not None and point.measured is not None
            assert [s for s in tried if s >= point.score] == [s for s in tried if s >= expected]
            assert point.measured == pytest.approx(at[expected])


def test_what_a_threshold_achieves_by_size_is_what_the_protocol_counts(make_scene: Callable[[int], Any]) -> None:
    gt, dt = make_scene(9)
    points = scored(gt, dt).operating_points("f1")
    chosen = {point.name: point.score for point in points.classes}
    names = {entry["id"]: entry["name"] for entry in gt["categories"]}
    kept = [e for e in dt if (score := chosen.get(names[e["category_id"]])) is not None and e["score"] >= score]
    with_threshold = [name for name, score in chosen.items() if score is not None]
    result = score_detections(gt, kept, PROTOCOLS["coco"], categories=with_threshold)
    assert result.precision is not None
    for name, (objects, measured) in points.by_size.items():
        at = result.precision[name][0.5]
        assert objects == at.objects
        assert measured.recall == (at.hits / at.objects if at.objects else None)
        assert measured.precision == (at.hits / (at.hits + at.false) if at.hits + at.false else None)


def test_one_threshold_for_all_classes_counts_them_together() -> None:
    gt, dt = person_boxes(6)
    for n, entry in enumerate(gt["annotations"] + dt):
        entry["category_id"] = 1 + (n % 6) % 2
    single = scored(*person_boxes(6)).operating_points("recall=0.3")
    gt["categories"].append({"id": 2, "name": "car"})
    both = scored(gt, dt).operating_points("recall=0.3")
    assert [point.name for point in both.classes] == ["person", "car"]
    assert both.together.score == single.classes[0].score
    assert both.together.measured == single.classes[0].measured


def test_a_wanted_value_that_is_out_of_reach_is_named_with_the_best() -> None:
    gt, dt = person_boxes(3, per_image=2)
    for entry, score, hit in zip(dt, (0.9, 0.8, 0.7, 0.6, 0.5, 0.4), (0, 1, 1, 1, 0, 0), strict=True):
        entry["score"] = score
        entry["bbox"][1] = 10.0 if hit else 200.0
    scores = scored(gt, dt)
    precision = scores.operating_points("precision=0.8")
    assert precision.missed == precision.classes
    assert precision.classes[0].score is None
    assert precision.classes[0].best == (pytest.approx(3 / 4), 0.6)
    text = format_operating_points(precision)
    assert "person: precision >= 0.8 is not reached; the best is 75.00 %, at score >= 0.6" in text
    assert scores.operating_points("recall=0.6").classes[0].best == (pytest.approx(0.5), 0.6)
    # The first detection is a false alarm: 1 on 1.5 megapixels.
    assert scores.operating_points("false-alarms=0.5").classes[0].best == (pytest.approx(1 / 1.5), 0.8)
    assert scores.operating_points("false-alarms=0.7").classes[0].score == 0.6


def test_without_a_detection_nothing_is_reached_and_the_message_says_so() -> None:
    gt, _ = person_boxes(3)
    for text in WANTED:
        points = scored(gt, []).operating_points(text)
        assert points.classes[0].score is None and points.classes[0].best is None
        assert "no detection finds an object" in format_operating_points(points)
        json.dumps(points.to_json(), allow_nan=False)


def test_a_class_without_objects_gets_no_threshold_and_is_named() -> None:
    gt, dt = person_boxes(3)
    gt["categories"].append({"id": 2, "name": "boat"})
    points = scored(gt, [*dt, {**dt[0], "category_id": 2, "score": 0.97}]).operating_points("f1")
    assert points.excluded == ("boat",)
    assert points.together.measured == points.classes[0].measured  # its detection does not count
    assert "no objects of it: boat" in format_operating_points(points)


def test_a_single_image_has_no_intervals_and_no_held_out_values() -> None:
    points = scored(*person_boxes(1)).operating_points("f1")
    (point,) = points.classes
    assert point.score is not None
    assert point.score_interval is None and set(point.intervals) == {None} and point.held_out is None
    assert "they need two images or more" in format_operating_points(points)
    json.dumps(points.to_json(), allow_nan=False)


def test_false_alarms_per_megapixel_need_the_size_of_every_image() -> None:
    gt, dt = person_boxes(3)
    del gt["images"][1]["height"]
    scores = scored(gt, dt)
    with pytest.raises(ValueError, match=r"false-alarms=1 needs the size of every image, and 1\.png has no"):
        scores.operating_points("false-alarms=1")
    measured = scores.operating_points("f1").classes[0].measured
    assert measured is not None and measured.false_alarms is None


def test_the_result_does_not_depend_on_the_order_of_the_files() -> None:
    gt, dt = person_boxes(20)
    expected = scored(gt, dt).operating_points("precision=0.7").to_json()
    rng = random.Random(0)
    for part in (gt["images"], gt["annotations"], dt):
        rng.shuffle(part)
    assert scored(gt, dt).operating_points("precision=0.7").to_json() == expected


def test_intervals_are_those_of_scipy_or_the_wider_one_of_wilson_and_byar() -> None:
    stats = pytest.importorskip("scipy.stats")
    gt, dt = person_boxes(60, seed=3)
    for entry in dt[:120]:  # the first twenty images are worse than the others
        entry["bbox"] = [entry["bbox"][0], 200.0, 20.0, 20.0]
    scores = scored(gt, dt)
    assert scores.matcher is not None
    verdicts = class_verdicts(scores.truth, scores.matcher, [0])
    (point,) = scores.operating_points("recall=0.3").classes
    assert point.score is not None and point.measured is not None
    kept = verdicts.scores >= point.score
    hits, found = (np.bincount(verdicts.image[kept & some], minlength=60) for some in (verdicts.hit, kept))
    expected = {
        0: (lambda h, f: h.sum() / f.sum(), (hits, found)),
        1: (lambda h: h.sum() / 360, (hits,)),
        2: (lambda h, f: 2 * h.sum() / (f.sum() + 360), (hits, found)),
        3: (lambda h, f: (f - h).sum() / 30, (hits, found)),  # megapixels
    }
    for n, (statistic, data) in expected.items():
        result = stats.bootstrap(
            data, statistic, paired=True, vectorized=False, n_resamples=1000, method="percentile", rng=1
        ).confidence_interval
        interval = point.intervals[n]
        assert interval is not None
        low, high = (result.low, result.high)
        if n < 2:
            share = stats.binomtest(int(hits.sum()), int(found.sum()) if n == 0 else 360)
            limits = share.proportion_ci(method="wilson")
            low, high = min(low, limits.low), max(high, limits.high)
        width = high - low
        assert interval == pytest.approx((low, high), abs=0.12 * width), MEASURES[n]


def test_wilson_and_byar_agree_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for successes, trials in ((0, 5), (5, 5), (3, 7), (90, 100)):
        exact = stats.binomtest(successes, trials).proportion_ci(method="wilson")
        assert wilson(successes, trials) == pytest.approx((exact.low, exact.high), abs=1e-6)
    for events in (0, 1, 4, 30, 1000):  # Byar's is an approximation of the exact interval
        low = stats.chi2.ppf(0.025, 2 * events) / 2 if events else 0
        assert byar(events) == pytest.approx((low, stats.chi2.ppf(0.975, 2 * events + 2) / 2), abs=0.05)


def test_a_perfect_precision_on_few_objects_has_a_wide_interval() -> None:
    """A bootstrap alone would say [1, 1]."""
    gt, dt = person_boxes(4, per_image=1)
    for entry in dt:
        entry["bbox"][1] = 10.0
    (point,) = scored(gt, dt).operating_points("precision=0.9").classes
    precision, _, _, alarms = point.intervals
    assert precision == pytest.approx((0.510, 1.0), abs=0.001)
    assert alarms is not None and alarms[0] == 0 and alarms[1] == pytest.approx(3.67 / 2, abs=0.01)


def test_the_interval_of_a_threshold_is_open_where_resamples_do_not_reach_the_value() -> None:
    gt, dt = person_boxes(8, per_image=1)
    for n, entry in enumerate(dt):  # only the image with the best detection reaches this precision
        entry["score"] = 0.9 - 0.1 * n
        entry["bbox"][1] = 10.0 if n == 0 else 200.0
    (point,) = scored(gt, dt).operating_points("precision=1").classes
    assert point.score_interval is not None
    assert point.score_interval[1] is None
    assert "[0.900, -]" in format_operating_points(scored(gt, dt).operating_points("precision=1"))


def test_a_held_out_value_is_measured_on_other_images() -> None:
    """Two images are two folds. The threshold of one image finds a false alarm on the other."""
    gt, dt = person_boxes(2, per_image=2)
    for entry, score, hit in zip(dt, (0.9, 0.8, 0.7, 0.6), (1, 0, 1, 1), strict=True):
        entry["score"], entry["bbox"][1] = score, 10.0 if hit else 200.0
    (point,) = scored(gt, dt).operating_points("precision=1").classes
    assert point.score == 0.9 and point.measured is not None and point.measured.precision == 1
    # Chosen on the second image: 0.6, at which the first has a hit and a false alarm. Chosen on the first: 0.9.
    assert point.held_out is not None
    assert (point.held_out.precision, point.held_out.recall) == (0.5, 0.25)


def test_a_threshold_keeps_all_detections_of_one_score_or_none() -> None:
    verdicts = Verdicts(
        np.array([0.5, 0.5, 0.5]),
        np.array([True, False, False]),
        np.array([0, 0, 1]),
        np.array([1, 0]),
        np.array([1.0, 1.0]),
    )
    assert measure(verdicts, 0.5) == Measured(1 / 3, 1.0, 0.5, 1.0)
    assert measure(verdicts, 0.51) == Measured(None, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    "text", ["", "F1", "f1=0.5", "ap=0.5", "false-alarms=-1", "false-alarms=inf", "false-alarms=1_0", *INVALID]
)
def test_another_operating_point_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected f1, precision=P or recall=R"):
        parse_wanted(text)
    with pytest.raises(ValueError, match="^wanted: expected f1"):
        scored(*person_boxes(1)).operating_points(text)


def test_a_protocol_without_ap_has_no_operating_point() -> None:
    scores = scored(*person_boxes(2), protocol="citypersons")
    with pytest.raises(ValueError, match="citypersons does not measure AP"):
        scores.operating_points("f1")
    with pytest.raises(ValueError, match="citypersons does not measure AP"):
        scores.calibration()


def test_an_empty_point_is_valid_json() -> None:
    assert json.loads(json.dumps(Point("person", 0, 0).to_json(), allow_nan=False))["score"] is None
