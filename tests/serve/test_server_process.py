"""A real server process: killed and started again, attacked by schemathesis, compared with the command on real data."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from foreign_packages import make_environment
from PIL import Image
from server_process import Server

from tinydet.infer.__main__ import main as infer
from tinydet.runtime.writers import FORMATS

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")
pytestmark = pytest.mark.slow

THERMAL = ("--model", "thermal", "--backend", "onnx-cpu")


@pytest.fixture(scope="module")
def plaza(shared: Path) -> Path:
    """A georeferenced drone photo of 4000x2250 pixels."""
    (path,) = (shared / "data" / "bigscene-plaza" / "images").glob("*.tif")
    return path


def test_a_real_scene_gives_the_files_of_the_command_even_if_the_server_is_killed(
    plaza: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (*THERMAL, "--root", str(plaza.parent))
    server = Server(tmp_path, *command)
    job = server.json("POST", "/jobs", {"path": plaza.name})["jobID"]
    while not server.json("GET", f"/jobs/{job}")["tiles_done"] >= 4:
        time.sleep(0.1)
    server.kill()
    with Server(tmp_path, *command, port=server.port) as server:
        state = server.finished(job)
        assert state["status"] == "successful", state
        metrics = server.call("GET", "/metrics")[1].decode()
        (ran,) = (float(line.split()[1]) for line in metrics.splitlines() if line.startswith("tinydet_tiles_total "))
        assert 0 < ran < state["tiles"]
        monkeypatch.chdir(plaza.parent)
        kinds = [kind for kind, form in FORMATS.items() if not form.tracked]
        first = ["coco", "geojson", "gpkg", "csv", "parquet", "yolo"]  # each suffix once
        for formats in (first, ["coco-results", "yolo-conf", "geoparquet"]):
            folder = tmp_path / formats[0]
            options = [*THERMAL, "--threads", "1", "--format", ",".join(formats), "--output", f"{folder}/"]
            assert infer([plaza.name, *options]) == 0
            for kind in formats:
                name = plaza.stem if FORMATS[kind].one_scene else f"{plaza.stem}.detections"
                expected = (folder / f"{name}{FORMATS[kind].suffix}").read_bytes()
                assert server.call("GET", f"/jobs/{job}/results?format={kind}") == (200, expected), kind
                kinds.remove(kind)
        assert not kinds


def test_schemathesis_finds_no_error_of_the_server(tmp_path: Path, make_onnx: Callable[..., Path]) -> None:
    python = make_environment(tmp_path / "env", ["schemathesis"])
    make_onnx(tmp_path / "model.onnx")
    Image.fromarray(np.zeros((70, 90), np.uint8)).save(tmp_path / "scene.png")
    with Server(tmp_path, "--backend", "onnx-cpu", "--root", ".", "--quota", "10M", "--keep-jobs", "20") as server:
        checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
        address = f"http://127.0.0.1:{server.port}/openapi.json"
        command = ["-m", "schemathesis.cli", "run", address, "-c", checks, "-n", "50", "--continue-on-failure"]
        done = subprocess.run([str(python), *command, "--suppress-health-check", "all"], cwd=tmp_path,
                              capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
        assert server.call("GET", "/healthz")[0] == 200
        assert server.json("POST", "/jobs", {"path": "scene.png"})["status"] == "accepted"


def test_many_uploads_at_once_are_complete(tmp_path: Path, make_onnx: Callable[..., Path]) -> None:
    make_onnx(tmp_path / "model.onnx")
    pixels = np.random.default_rng(0).integers(0, 255, (1500, 1500, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "scene.png", compress_level=0)
    content = (tmp_path / "scene.png").read_bytes()
    with Server(tmp_path, "--backend", "onnx-cpu") as server:
        answers: list[int] = []
        threads = [
            threading.Thread(target=lambda n=n: answers.append(server.call("PUT", f"/uploads/{n}.png", content)[0]))
            for n in range(24)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [201] * 24
        for n in range(24):
            assert (tmp_path / "tinydet-serve" / "uploads" / f"{n}.png" / f"{n}.png").read_bytes() == content


def test_sigterm_ends_the_server_and_its_job(tmp_path: Path, shared: Path, plaza: Path) -> None:
    server = Server(tmp_path, *THERMAL, "--root", str(plaza.parent))
    job = server.json("POST", "/jobs", {"path": plaza.name})["jobID"]
    while server.json("GET", f"/jobs/{job}")["status"] != "running":
        time.sleep(0.1)
    watching = threading.Thread(target=server.call, args=("GET", f"/jobs/{job}/events"), daemon=True)
    watching.start()
    assert server.end() in (0, 130)
    watching.join(10)
    assert not watching.is_alive()
    record = (tmp_path / "tinydet-serve" / "jobs" / job / "job.json").read_text()
    assert '"status": "running"' in record
