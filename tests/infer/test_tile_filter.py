"""`infer --skip`: a detector and a tile filter that both find white cells."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from tinydet.infer.__main__ import main
from tinydet.spec import FilterRecord, ModelSpec

DETECTOR = ModelSpec(("square",), (7,), "cells", "none", 64, max_batch=4, max_detections=50, nms_in_graph=True)
RECORD = FilterRecord(("square",), (64,), 1.0, 1, 0.995, 0.996, 0.95, 900, 1, 100, 60, 1, 0.01)
FILTER = dataclasses.replace(
    DETECTOR, classes=("object", "unfamiliar"), category_ids=(1, 2), thresholds=(0.9, 0.9), tile_filter=RECORD
)


@pytest.fixture(scope="module")
def made(make_onnx: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("filtered")
    make_onnx(folder / "model.onnx", spec=DETECTOR)
    make_onnx(folder / "model.filter.onnx", spec=FILTER)
    pixels = np.zeros((360, 400), np.uint8)
    pixels[40:120, 80:160] = np.kron(np.random.default_rng(0).integers(0, 2, (10, 10)), np.full((8, 8), 255))
    assert cv2.imwrite(str(folder / "a.png"), pixels)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True, copy_function=shutil.copy2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str) -> int:
    options = ("--overlap", "16", "--model", "model.onnx", "--backend", "onnx-cpu", "--threads", "1")
    return main(["--image", "a.png", *options, *words])


def test_skipped_tiles_change_no_output_and_are_reported_with_what_they_may_cost(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--output", "dense.csv") == 0
    assert run("--output", "found.csv", "--skip", "learned", "--summary", "run.json") == 0
    assert Path("found.csv").read_bytes() == Path("dense.csv").read_bytes()
    assert "in which the tile filter sees no object" in (said := capsys.readouterr().out)
    assert "keeps at least 99.6 % of the objects on images like its held-out ones (95 % confidence" in said
    entry = json.loads(Path("run.json").read_text())["tile_filter"]
    assert entry["skipped_tiles"] > 30
    assert (entry["expected_missed"], entry["missed_at_most"]) == (round(1 / 900, 6), 0.004)
    for part in ("1/3", "2/3", "3/3"):
        assert run("--output", "parts.csv", "--skip", "model.filter.onnx", "--part", part) == 0
    assert run("--output", "parts.csv", "--skip", "learned", "--join") == 0
    assert Path("parts.csv").read_bytes() == Path("dense.csv").read_bytes()
    assert "in which the tile filter sees no object" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--skip", "no.onnx"], "no.onnx: no such file; train one: "),
        (["--skip", "learnt"], "expected learned, empty or the file of a tile filter"),
        (["--skip", "model.onnx"], "model.onnx is a detector, not a tile filter"),
        (["--skip", "learned", "--skip-empty"], "name two filters; choose one"),
        (["--skip", "learned", "--scale", "0.5"], "was calibrated at scale 1, not 0.5"),
    ],
)
def test_a_filter_that_does_not_suit_is_refused_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    try:
        code = run("--output", "found.csv", *words)
    except SystemExit as left:
        code = left.code  # type: ignore[assignment]
    assert code == 2
    assert message in capsys.readouterr().err
    assert not Path("found.csv").exists()
