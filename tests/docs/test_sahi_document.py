"""docs/from-sahi.md: its blocks for tinydet; `test_foreign_packages.py` runs those for SAHI too."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from document_blocks import run_blocks

from tinydet.runtime import Prediction

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "from-sahi.md").read_text(encoding="utf-8")


def test_every_block_for_tinydet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchvision")
    from random_detectors import USE_SSD

    monkeypatch.chdir(tmp_path)
    (tmp_path / "flight").mkdir()
    scene = np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8)
    for name in ("scene.png", "flight/1.png"):
        cv2.imwrite(name, scene)
    variables, _ = run_blocks(PAGE, USE_SSD, leave_out={"sahi"})
    found = variables["found"]
    assert isinstance(found, Prediction) and len(found)
    assert {path.name for path in tmp_path.glob("*.*")} == {"scene.png", "found.png", "found.json", "results.json"}
