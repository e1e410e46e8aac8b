"""The benchmark of exports keeps what is recorded, and its table names what is missing and why."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

CONVERTED = {"megabytes": 8.9, "unmatched": 2, "detections": 1500, "AP": {"tiny": [0.5, 0.4951]}, "kept_in_fp32": []}
BUILT = {"seconds": [3.0, 1.0, 2.0], "bytes": 12_500_000}
TIMED = {"onnx-cpu, batch 1": {"median": 226.4}, "openvino, batch 4": {"median": 400.0}}


@pytest.fixture
def program(programs: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_of_exports", programs / "export.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def cells() -> dict[str, Any]:
    return {
        "retinanet mobilenet_v2 small trained int8": {"convert": CONVERTED, "build": BUILT, "latency": TIMED},
        "retinanet resnet18 small fp32": {"convert": {**CONVERTED, "AP": {}}},
        "faster_rcnn resnet50 small fp32": {"convert": {"not_exported": "not yet"}},
        "faster_rcnn resnet50 small fp16": {"convert": {"not_exported": "not yet"}},
    }


def test_the_table_has_medians_and_names_the_models_that_were_not_exported(
    program: ModuleType, cells: dict[str, Any]
) -> None:
    rows = program.table({"cells": cells}).splitlines()
    assert rows[2].startswith(
        "| RetinaNet, MobileNetV2, small | trained | int8 | 8.9 | 2 of 1500 | 49.51 | 12.5 | 2.0 |"
    )
    assert rows[2].endswith("| 2.0 | 226 | – | – | 100 | – |")
    assert (
        rows[3] == "| RetinaNet, ResNet-18, small | random | fp32 | 8.9 | 2 of 1500 | – | – | – | – | – | – | – | – |"
    )
    assert rows[-1] == (
        "Not exported (not yet): Faster R-CNN, ResNet-50, small, fp32; Faster R-CNN, ResNet-50, small, fp16."
    )


def test_recorded_steps_are_not_repeated(
    program: ModuleType, cells: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, work = tmp_path / "export.json", tmp_path / "work"
    done = {f"retinanet resnet18 small {p}": {"convert": CONVERTED, "build": BUILT} for p in ("fp32", "fp16", "int8")}
    args = program.arguments(["--work", str(work), "--output", str(output)])
    for name in done:
        program.onnx_file("retinanet resnet18 small", name.split()[-1], args).write_bytes(b"never opened")
    for step in (program.convert, program.build):
        assert list(step(done, "retinanet resnet18 small", tmp_path / "none.pth", args)) == []
    assert capsys.readouterr().out == ""


def test_after_the_time_limit_nothing_starts_and_the_record_is_kept(
    program: ModuleType, cells: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "export.json"
    output.write_text(json.dumps({"cells": cells}))
    options = ["--work", str(tmp_path), "--output", str(output), "--minutes", "-1"]
    monkeypatch.setattr(program, "checkpoints", lambda args: [(tmp_path / "none.pth", "retinanet resnet18 small")])
    assert program.main(options) == 0
    assert json.loads(output.read_text())["cells"] == cells


def test_a_verification_is_summarized_over_all_kinds_of_images(program: ModuleType) -> None:
    kinds = [
        {"detections": 3, "unmatched": 1, "score_difference": 0.1, "box_difference": 0.0},
        {"detections": 4, "unmatched": 0, "score_difference": 0.0, "box_difference": 2.0},
    ]
    report = {"parity": dict(enumerate(kinds)), "precision": {"tiny": (0.5, 0.4), "large": (-1, -1)}, "images": 7}
    assert program.parity(report) == {
        "detections": 7,
        "unmatched": 1,
        "score_difference": 0.1,
        "box_difference": 2.0,
        "AP": {"tiny": [0.5, 0.4]},
        "images": 7,
    }
