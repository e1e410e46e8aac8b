"""The vectorized evaluators equal the plain ones on scenes with every case that evaluators treat specially."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest

from tinydet.evaluate import PROTOCOLS, choose_protocol, score_detections
from tinydet.evaluate.protocols import Protocol

VARIANTS = {
    **PROTOCOLS,
    "no-iod": choose_protocol("tinyperson", iod=False),
    "keep-uncertain": choose_protocol("tinyperson", keep_uncertain=True),
}


def with_limit(protocol: Protocol, n: int) -> Protocol:
    """Return the protocol with a detection limit low enough to take effect."""
    precision, miss_rate = protocol.precision, protocol.miss_rate
    return dataclasses.replace(
        protocol,
        precision=precision and dataclasses.replace(precision, max_detections=n),
        miss_rate=miss_rate and dataclasses.replace(miss_rate, max_detections=n),
    )


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 8))])
def test_every_number_equals_the_plain_evaluators(reference: Any, make_scene: Any, name: str, seed: int) -> None:
    gt, dt = make_scene(seed)
    before = copy.deepcopy((gt, dt))
    for protocol in (VARIANTS[name], with_limit(VARIANTS[name], 9)):
        expected = reference.evaluate(gt, dt, protocol)
        scores = score_detections(gt, dt, protocol)
        precision = expected.pop("precision")
        assert {key: value for key, value in scores.to_json().items() if key in expected} == approximately(expected)
        assert scores.precision_json() == approximately(precision)
    assert (gt, dt) == before


@pytest.mark.parametrize("name", ["tinyperson", "tinyperson-fixed", "citypersons"])
@pytest.mark.parametrize("images", [99, 100, 101])
def test_empty_images_count_for_false_positives(reference: Any, make_scene: Any, name: str, images: int) -> None:
    for seed in range(3):
        gt, dt = make_scene(seed)
        empty = [{"id": n, "file_name": f"{n}.jpg"} for n in range(1000, 1000 + images - len(gt["images"]))]
        gt = {**gt, "images": [*empty, *gt["images"]]}
        expected = reference.evaluate(gt, dt, PROTOCOLS[name])
        del expected["precision"]
        scores = score_detections(gt, dt, PROTOCOLS[name]).to_json()
        assert {key: scores[key] for key in expected} == approximately(expected)
        assert all(c["n_images"] == images for row in expected["MR_counts"].values() for c in row.values())


@pytest.mark.parametrize(
    ("images", "name", "recall"), [(99, "tinyperson", 1), (99, "tinyperson-fixed", 0), (100, "tinyperson", 0)]
)
def test_below_100_images_the_first_point_has_the_final_recall(images: int, name: str, recall: float) -> None:
    """Two false positives precede the only hit, so the recall at 0.01 false positives per image should be 0."""
    gt = {
        "images": [{"id": n} for n in range(images)],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [{"id": 1, "image_id": 0, "category_id": 1, "bbox": [0, 0, 10, 10], "area": 100}],
    }
    found = {"image_id": 0, "category_id": 1, "bbox": [0, 0, 10, 10], "score": 0.5}
    dt = [{**found, "bbox": [50 * n, 50, 10, 10], "score": 0.9} for n in (1, 2)] + [found]
    points = score_detections(gt, dt, PROTOCOLS[name]).to_json()["recall_at_fppi"]["tiny2"]["0.50"][0]
    assert points == [
        recall,
        *[0 if point <= 0.0178 else 1 for point in (0.0178, 0.0316, 0.0562, 0.1, 0.178, 0.316, 0.562, 1)],
    ]


def test_the_scenes_exercise_every_rule(make_scene: Any) -> None:
    """Each switch must change a number somewhere, or the comparison above would prove little."""
    changed = set()
    for seed in range(12):
        gt, dt = make_scene(seed)
        usual = score_detections(gt, dt, VARIANTS["tinyperson"]).to_json()
        for part in ("precision", "miss_rate"):
            rules = getattr(VARIANTS["tinyperson"], part)
            for field in dataclasses.fields(rules):
                if field.name not in changed and isinstance(value := getattr(rules, field.name), bool):
                    other = dataclasses.replace(rules, **{field.name: not value})
                    protocol = dataclasses.replace(VARIANTS["tinyperson"], **{part: other})
                    if score_detections(gt, dt, protocol).to_json() != usual:
                        changed.add(field.name)
    switches = {"ignore_flag", "ignore_uncertain", "iod", "iod_stricter", "iod_twice_for_crowds", "id_zero_matches"}
    assert changed == switches | {"by_height", "iod_twice", "reads_vis_bbox", "wrap_first_point"}


def approximately(value: Any) -> Any:
    """Wrap the floats of `value` for a comparison to 1e-12; integers and text stay exact."""
    if isinstance(value, dict):
        return {key: approximately(item) for key, item in value.items()}
    if isinstance(value, list):
        return [approximately(item) for item in value]
    return pytest.approx(value, abs=1e-12, rel=0) if isinstance(value, float) else value
