"""docs/api.md, block by block, as a reader would run it."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "api.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), re.M | re.S)
PACKAGES = re.compile(r"# needs: (.*)")


def cells(seed: int) -> np.ndarray:
    """White cells of 8 pixels, which is what the fixture's model finds."""
    white = (np.random.default_rng(seed).uniform(size=(15, 20)) < 0.1).astype(np.uint8) * 255
    return np.kron(white, np.ones((8, 8), np.uint8))


@pytest.fixture
def folder(tmp_path: Path, make_onnx: Callable[..., Path]) -> Path:
    make_onnx(tmp_path / "model.onnx")
    (tmp_path / "flight").mkdir()
    for seed, name in enumerate(("scene.png", "flight/1.png", "flight/2.png")):
        cv2.imwrite(str(tmp_path / name), cells(seed))
    if importlib.util.find_spec("rasterio"):
        import rasterio

        profile = {"driver": "GTiff", "width": 160, "height": 120, "count": 1, "dtype": "uint8", "crs": "EPSG:32635"}
        place = rasterio.Affine(0.5, 0, 300_000, 0, -0.5, 5_000_000)
        with rasterio.open(tmp_path / "mosaic.tif", "w", transform=place, **profile) as file:
            file.write(cells(3), 1)
    return tmp_path


def test_every_block_runs_in_turn(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Blocks whose packages are absent are left out; those of the core never are."""
    names: dict[str, object] = {"__name__": "document"}
    left_out, here = [], Path.cwd()
    os.chdir(folder)
    try:
        for block in BLOCKS:
            needed = PACKAGES.search(block)
            packages = needed[1].split(", ") if needed else []
            if missing := [name for name in packages if not importlib.util.find_spec(name)]:
                left_out += missing
                continue
            exec(compile(block, str(DOCUMENT), "exec"), names)
    finally:
        os.chdir(here)
    assert len(BLOCKS) >= 9
    assert set(left_out) <= {"rasterio", "pyogrio", "pandas", "supervision", "fiftyone"}
    printed = capsys.readouterr().out
    assert re.search(r"^[1-9]\d* objects in scene.png of 160x120 pixels$", printed, re.M)
    assert [line.split()[:2] for line in printed.splitlines() if re.match(r"\d \S+\.png \d+$", line)] == [
        ["1", "scene.png"],
        ["2", "flight/1.png"],
        ["3", "flight/2.png"],
    ]
    written = {path.name for path in folder.glob("*.*")}
    assert {"found.json", "found.csv", "found.txt", "found.jpg", "crops.jpg", "all.json", "all.csv"} <= written
