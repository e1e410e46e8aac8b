"""Every number that the benchmark's own evaluators returned for the recorded cases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tinydet.evaluate import choose_protocol, score_detections
from tinydet.evaluate.miss_rate import POINTS

CASES = ("case1", "case3", "case5", "case9", "case11")
SETTINGS: dict[str, dict[str, Any]] = {
    "ap_tinybenchmark": {"name": "tinyperson"},
    "ap_tinybenchmark_no_iod": {"name": "tinyperson", "iod": False},
    "ap_tinybenchmark_keep_uncertain": {"name": "tinyperson", "keep_uncertain": True},
    "ap_huicv_mmdet_config": {"name": "tinyperson-mmdet"},
    "ap_huicv_evaluate_tiny_script": {"name": "tinyperson-huicv"},
    "mr": {"name": "tinyperson"},
    "mr_no_iod": {"name": "tinyperson", "iod": False},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("setting", SETTINGS)
def test_every_recorded_number_is_reproduced(shared: Path, case: str, setting: str) -> None:
    gt, dt, expected = (read(shared, case, name) for name in ("gt", "dt", "expected"))
    result = score_detections(gt, dt, choose_protocol(**SETTINGS[setting])).to_json()
    recorded = expected[setting]
    if setting.startswith("ap"):
        compared = {"AP": "AP", "AR": "AR", "counts": "AP_counts"}
    else:
        compared = {"MR": "MR", "counts": "MR_counts", "recall_at_fppi": "recall_at_fppi"}
        assert recorded["fppi_thresholds"] == POINTS.tolist()
        printed = {name: {iou: f"{100 * v:.2f}" for iou, v in row.items()} for name, row in result["MR"].items()}
        assert printed == recorded["printed_percent"]
    for theirs, ours in compared.items():
        assert flat(result[ours]) == pytest.approx(flat(recorded[theirs]), abs=1e-9, rel=0)


@pytest.mark.parametrize("case", CASES)
def test_precision_at_101_recalls_is_reproduced(shared: Path, case: str) -> None:
    gt, dt, expected = (read(shared, case, name) for name in ("gt", "dt", "expected_precision_101"))
    result = score_detections(gt, dt, choose_protocol("tinyperson")).precision_json()
    assert flat(result) == pytest.approx(flat(expected), abs=1e-9, rel=0)


@pytest.mark.parametrize("case", CASES)
def test_the_plain_evaluators_agree_with_the_recorded_ones(shared: Path, reference: Any, case: str) -> None:
    gt, dt, expected = (read(shared, case, name) for name in ("gt", "dt", "expected"))
    result = reference.evaluate(gt, dt, choose_protocol("tinyperson"))
    assert flat(result["AP"]) == pytest.approx(flat(expected["ap_tinybenchmark"]["AP"]), abs=1e-9, rel=0)
    assert flat(result["MR"]) == pytest.approx(flat(expected["mr"]["MR"]), abs=1e-9, rel=0)


def read(shared: Path, case: str, name: str) -> Any:
    return json.loads((shared / "cases" / "evaluation" / case / f"{name}.json").read_text())


def flat(value: Any, path: str = "") -> dict[str, float]:
    """Flatten nested dicts and lists to {path: leaf}, so that one comparison covers every key."""
    if isinstance(value, dict):
        return {k: v for key, item in value.items() for k, v in flat(item, f"{path}/{key}").items()}
    if isinstance(value, list):
        return {k: v for key, item in enumerate(value) for k, v in flat(item, f"{path}/{key}").items()}
    return {path: value}
