"""Exported repositories in a real Triton: slow, since an environment with the server is made first."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
import triton_server
from runtime_fixtures import SPEC
from triton_server import Triton

from tinydet.__main__ import main
from tinydet.runtime import load
from tinydet.runtime.backends import open_model
from tinydet.runtime.backends.remote import RemoteBackend
from tinydet.runtime.bundled import model_path

pytestmark = pytest.mark.slow
pytest.importorskip("onnxruntime")

CELLS = dataclasses.replace(SPEC, detector="cells", nms_in_graph=True, max_batch=8)


class Served(NamedTuple):
    triton: Triton
    python: Path
    work: Path
    models: dict[str, Path]


@pytest.fixture(scope="module")
def served(make_onnx: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    work = tmp_path_factory.mktemp("triton")
    try:
        python = triton_server.make_environment(work / "environment")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"Triton cannot be installed here ({error})")
    models = {
        "thermal": model_path("thermal"),
        "free": make_onnx(work / "free.onnx", spec=dataclasses.replace(CELLS, tile_multiple=32)),
        "two-stage": make_onnx(work / "two-stage.onnx", spec=dataclasses.replace(CELLS, nms_rounds=4)),
        "unbatched": make_onnx(work / "unbatched.onnx", spec=CELLS),
    }
    for name, path in models.items():
        command = ["export", "triton", str(path), "--repository", str(work / "models"), "--name", name]
        options = ["--platform", "openvino"] if name == "unbatched" else ["--queue-delay", "20000"]
        options += ["--tile", "free"] if name == "free" else []
        assert main([*command, *options, "--threads", "1"]) == 0
        triton_server.use_python_backend(work / "models" / name)
    with triton_server.running(python, work / "models", work) as triton:
        yield Served(triton, python, work, models)


def statistics(triton: Triton, model: str) -> dict[str, Any]:
    status, body = triton.get(f"/v2/models/{model}/stats")
    assert status == 200
    found: dict[str, Any] = json.loads(body)["model_stats"][0]
    return found


@pytest.mark.parametrize("scheme", ["http", "grpc"])
@pytest.mark.parametrize("name", ["thermal", "free", "two-stage", "unbatched"])
def test_outputs_are_bit_for_bit_those_of_onnx_runtime_in_this_process(served: Served, name: str, scheme: str) -> None:
    if scheme == "grpc":
        pytest.importorskip("tritonclient.grpc")
    local = open_model(served.models[name], "onnx-cpu", threads=1)
    remote = RemoteBackend(served.triton.address(name, scheme), served.models[name])
    assert dataclasses.replace(remote.spec, tile_multiple=local.spec.tile_multiple) == local.spec
    images = np.random.default_rng(1).integers(0, 256, (2, local.spec.tile, local.spec.tile, 3), dtype=np.uint8)
    expected, found = local.run(images), remote.run(images)
    assert expected.candidates.sum() > 0
    for output, array in expected._asdict().items():
        assert np.array_equal(array, getattr(found, output)), output


def test_the_server_joins_the_requests_of_a_scan(served: Served) -> None:
    before = statistics(served.triton, "free")
    scene = np.random.default_rng(2).integers(0, 256, (512, 640, 3), dtype=np.uint8)
    model = load(backend=served.triton.address("free"), overlap=0, batch=1, threads=8)
    tiles = model.detect(scene).result.tiles
    after = statistics(served.triton, "free")
    assert after["inference_count"] - before["inference_count"] == tiles
    assert after["execution_count"] - before["execution_count"] < tiles / 1.5


def test_a_survey_writes_the_same_files_as_a_local_one(served: Served, tmp_path: Path) -> None:
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (300, 200 + 100 * i, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / f"{i}.png"), pixels)
    common = ["infer", "--image", str(tmp_path), "--tile", "96", "--overlap", "16", "--score", "0.5"]
    local = ["--model", str(served.models["free"]), "--backend", "onnx-cpu", "--threads", "1"]
    assert main([*common, *local, "--output", str(tmp_path / "a.csv")]) == 0
    assert main([*common, "--backend", served.triton.address("free"), "--output", str(tmp_path / "b.csv")]) == 0
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert len((tmp_path / "a.csv").read_text().splitlines()) > 100


def test_a_scan_survives_that_the_server_is_killed_and_started_again(served: Served) -> None:
    scene = np.random.default_rng(5).integers(0, 256, (6400, 6400, 3), dtype=np.uint8)
    expected = load(served.models["free"], backend="onnx-cpu", overlap=0, threads=1).detect(scene)
    model = load(backend=served.triton.address("free"), overlap=0)
    finished, killed = 0, threading.Event()

    def restart() -> None:
        killed.wait(60)
        served.triton.kill()
        time.sleep(1)
        ports = served.triton.http, served.triton.grpc
        again = triton_server.start(served.python, served.work / "models", served.work, ports)
        served.triton.process = again.process

    def progress(count: int) -> None:
        nonlocal finished
        finished += count
        if finished > 500:
            killed.set()

    thread = threading.Thread(target=restart)
    thread.start()
    found = model.detect(scene, progress=progress)
    thread.join()
    for name in ("boxes", "scores", "labels"):
        assert np.array_equal(getattr(expected, name), getattr(found, name))


def test_the_python_of_the_document_runs_the_model_by_tritons_client(served: Served) -> None:
    pytest.importorskip("tritonclient.grpc")
    document = (Path(__file__).resolve().parents[2] / "docs" / "serving-triton.md").read_text(encoding="utf-8")
    (block,) = [text for text in re.findall(r"^```python\n(.*?)^```", document, re.M | re.S) if "tritonclient" in text]
    block = block.replace("127.0.0.1:8001", f"127.0.0.1:{served.triton.grpc}").replace('"tinydet"', '"thermal"')
    found: dict[str, Any] = {}
    exec(compile(block, "document", "exec"), found)
    assert found["boxes"].shape == (2, 3840, 4)


def test_what_the_server_says_of_a_model_that_is_not_there(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["infer", "--image", __file__, "--backend", served.triton.address("nothing")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
