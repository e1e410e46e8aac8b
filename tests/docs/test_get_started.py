"""docs/get-started.md: its script, with a network of random weights."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from document_blocks import run_blocks

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "get-started.md").read_text(encoding="utf-8")


def test_the_script_writes_the_file_that_the_viewer_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torchvision")
    from random_detectors import USE_SSD

    monkeypatch.chdir(tmp_path)
    cv2.imwrite("photo.jpg", np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8))
    run_blocks(PAGE, USE_SSD)
    found = json.loads(Path("photo.detections.json").read_text())
    assert found["images"][0]["file_name"] == "photo.jpg" and found["annotations"]
    assert f"{len(found['annotations'])} detections" in capsys.readouterr().out
