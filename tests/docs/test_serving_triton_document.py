"""docs/serving-triton.md: its Python runs against a server, and its commands are understood."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from document_blocks import run_blocks

from tinydet.__main__ import main

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "serving-triton.md").read_text(encoding="utf-8")


def test_its_python_scans_an_image_on_a_server(
    make_onnx: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    from model_server import served

    monkeypatch.chdir(tmp_path)
    cv2.imwrite("scene.png", np.full((128, 128, 3), 200, np.uint8))
    with served(make_onnx(tmp_path / "model.onnx")) as server:
        address = {"http://gpu:8000/v2/models/tinydet": server.address, "overlap=64": "overlap=0"}
        run_blocks(DOCUMENT, address, leave_out={"tritonclient"})
    assert capsys.readouterr().out.endswith("200 objects\n")


def test_its_commands_have_the_options_that_it_names(capsys: pytest.CaptureFixture[str]) -> None:
    commands = [shlex.split(line) for line in re.findall(r"^    tinydet (.*)$", DOCUMENT, re.M)]
    assert len(commands) == 4
    for words in commands:
        with pytest.raises(SystemExit, match="0"):
            main([*words[: 2 if words[0] == "export" else 1], "--help"])
        shown = capsys.readouterr().out
        assert all(word in shown for word in words if word.startswith("--"))
