"""docs/api.md: its code blocks, run one after the other, and its table of options."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from document_blocks import run_blocks
from random_detectors import USE_SSD

from tinydet.runtime import load
from tinydet.runtime.model import SCORE
from tinydet.runtime.options import ScanOptions

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "api.md"


def cells(seed: int) -> np.ndarray:
    """White cells of 8 pixels, which the model of the fixture finds."""
    white = (np.random.default_rng(seed).uniform(size=(15, 20)) < 0.1).astype(np.uint8) * 255
    return np.kron(white, np.ones((8, 8), np.uint8))


@pytest.fixture
def folder(tmp_path: Path, make_onnx: Callable[..., Path]) -> Path:
    make_onnx(tmp_path / "model.onnx")
    (tmp_path / "flight").mkdir()
    for seed, name in enumerate(("scene.png", "flight/1.png", "flight/2.png")):
        cv2.imwrite(str(tmp_path / name), cells(seed))
    truth = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 8, 8], "area": 64, "iscrowd": 0}]
    document = {
        "images": [{"id": 1, "file_name": "scene.png", "width": 160, "height": 120}],
        "categories": [{"id": 1, "name": load(tmp_path / "model.onnx").spec.classes[0]}],
        "annotations": truth,
    }
    (tmp_path / "dataset" / "images").mkdir(parents=True)
    shutil.copy(tmp_path / "scene.png", tmp_path / "dataset" / "images")
    (tmp_path / "dataset" / "annotations.json").write_text(json.dumps(document))
    if importlib.util.find_spec("rasterio"):
        import rasterio

        profile = {"driver": "GTiff", "width": 160, "height": 120, "count": 1, "dtype": "uint8", "crs": "EPSG:32635"}
        place = rasterio.Affine(0.5, 0, 300_000, 0, -0.5, 5_000_000)
        with rasterio.open(tmp_path / "mosaic.tif", "w", transform=place, **profile) as file:
            file.write(cells(3), 1)
    return tmp_path


def test_the_table_lists_all_options_with_their_defaults() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", DOCUMENT.read_text(encoding="utf-8"), re.M)
    defaults = {field.name: field.default for field in dataclasses.fields(ScanOptions)} | {"score": SCORE}
    assert [name for name, _ in rows] == list(defaults)
    for name, text in rows[1:]:  # the overlap depends on the model
        assert ast.literal_eval(text.strip("`")) == defaults[name]


NETWORK = {"ultralytics", "transformers"}  # they download weights; test_foreign_packages.py runs their blocks


def test_every_block_runs_in_turn(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Blocks that need an optional package are skipped if it is not installed."""
    monkeypatch.chdir(folder)
    _, left_out = run_blocks(DOCUMENT.read_text(encoding="utf-8"), USE_SSD, leave_out=NETWORK)
    assert left_out <= {"rasterio", "pyogrio", "pandas", "supervision", "fiftyone", "ultralytics", "transformers"}
    printed = capsys.readouterr().out
    assert re.search(r"^AP50 \d\.\d{3}, of tiny objects \d\.\d{3}$", printed, re.M)
    assert re.search(r"^[1-9]\d* objects in scene.png of 160x120 pixels$", printed, re.M)
    assert [line.split()[:2] for line in printed.splitlines() if re.match(r"\d \S+\.png \d+$", line)] == [
        ["1", "scene.png"],
        ["2", "flight/1.png"],
        ["3", "flight/2.png"],
    ]
    written = {path.name for path in folder.glob("*.*")}
    assert {"found.json", "results.json", "found.csv", "labels.txt", "classes.txt", "found.jpg", "drawn.png"} <= written
    assert {"crops.jpg", "all.json", "all.csv"} <= written
