"""docs/serving.md: its shell and Python blocks, run in turn against a server."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from document_blocks import run_blocks
from PIL import Image
from server_process import Server

from tinydet.runtime.writers import FORMATS
from tinydet.serve.jobs_api import KINDS

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "serving.md"
SHELL = re.compile(r"^```sh\n(.*?)^```", re.M | re.S)


def test_the_document_names_every_format() -> None:
    (row,) = re.findall(
        r"^\| `GET /jobs/\{id\}/results\?format=` \| (.*?);", DOCUMENT.read_text(encoding="utf-8"), re.M
    )
    assert re.findall(r"`([\w-]+)`", row) == KINDS
    assert {kind for kind, form in FORMATS.items() if form.tracked} == set(FORMATS) - set(KINDS)


@pytest.mark.slow
def test_every_block_runs_in_turn(
    tmp_path: Path, make_onnx: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("fastapi", reason="needs the extra serve")
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    make_onnx(tmp_path / "model.onnx")
    cells = np.kron(np.random.default_rng(1).random((20, 30)) < 0.1, np.ones((8, 8))).astype(np.uint8) * 255
    for name in ("scene.tif", "photo.jpg"):
        Image.fromarray(cells).convert("RGB").save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    with Server(tmp_path, "--backend", "onnx-cpu", "--root", str(tmp_path)) as server:
        text = DOCUMENT.read_text(encoding="utf-8").replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
        text = text.replace('"127.0.0.1", 8000', f'"127.0.0.1", {server.port}')
        blocks = SHELL.findall(text)
        assert len(blocks) > 4
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", "\n".join(blocks)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "detail" not in done.stdout and done.stdout.count("event: status") >= 1
        assert (tmp_path / "scene.csv").read_text().startswith("scene,image_id,")
        run_blocks(text, {})
    printed = capsys.readouterr().out
    assert re.search(r"^successful \{'square': [1-9]\d*, 'bar': 0\}$", printed, re.M)
    assert "'boxes': (2, 50, 4)" in printed
