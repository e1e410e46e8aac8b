"""Remote backends, against a small server that is written from the protocol's description."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from runtime_fixtures import SPEC

from tinydet.evaluate.__main__ import main as evaluate
from tinydet.infer.__main__ import main as infer
from tinydet.runtime import load
from tinydet.runtime.backends import open_model
from tinydet.runtime.backends.remote import IN_FLIGHT, RemoteBackend
from tinydet.runtime.backends.server_address import parse_address

pytest.importorskip("onnxruntime")
from model_server import ModelServer, served


@pytest.fixture(scope="module")
def model(make_onnx: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_onnx(tmp_path_factory.mktemp("remote") / "model.onnx")


@pytest.fixture(scope="module")
def running(model: Path) -> Iterator[ModelServer]:
    with served(model) as server:
        yield server


@pytest.fixture
def server(running: ModelServer, model: Path) -> ModelServer:
    running.load(model)
    return running


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    """Cells of several brightnesses on 640x512 pixels: 80 tiles and more."""
    values = np.random.default_rng(3).integers(0, 256, (64, 80), dtype=np.uint8)
    return np.ascontiguousarray(np.repeat(np.repeat(values, 8, 0), 8, 1)[..., None].repeat(3, 2))


def tiles(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)


@pytest.mark.parametrize("in_json", [False, True])
@pytest.mark.parametrize("columns", [False, True])
def test_outputs_are_those_of_the_model_in_this_process(
    server: ModelServer, model: Path, in_json: bool, columns: bool
) -> None:
    server.in_json, server.columns = in_json, columns
    local, remote = open_model(model, "onnx-cpu", threads=1), RemoteBackend(server.address)
    assert remote.run(tiles(0)).boxes.shape == (0, 50, 4)
    for count in (1, 3):
        for name, array in remote.run(tiles(count))._asdict().items():
            expected = getattr(local.run(tiles(count)), name)
            assert array.dtype == expected.dtype
            assert np.array_equal(array, expected), name


def test_detections_equal_those_of_a_local_scan_and_requests_overlap(
    server: ModelServer, model: Path, scene: np.ndarray
) -> None:
    server.delay, server.together = 60.0, IN_FLIGHT  # no answer before so many requests have come
    here = load(model, backend="onnx-cpu", overlap=16, score=0.5, batch=2, threads=1).detect(scene)
    there = load(backend=server.address, overlap=16, score=0.5, batch=2).detect(scene)
    assert len(here) > 1000
    for name in ("boxes", "scores", "labels"):
        assert np.array_equal(getattr(here, name), getattr(there, name))
    assert sum(server.batches) == here.result.tiles
    assert server.most == IN_FLIGHT  # never more, and never fewer while there are tiles


def test_scenes_smaller_than_the_requests_in_flight_are_scanned_in_order(server: ModelServer, model: Path) -> None:
    scenes = [np.full((64, 64 * width, 3), 255 - width, np.uint8) for width in (1, 2, 1, 5, 1, 3)]
    here = load(model, backend="onnx-cpu", overlap=0, batch=2, threads=1).detect(scenes)
    there = load(backend=server.address, overlap=0, batch=2).detect(scenes)
    assert [len(each) for each in here] == [len(each) for each in there]
    assert all(np.array_equal(a.scores, b.scores) for a, b in zip(here, there, strict=True))


def test_the_batch_is_no_larger_than_the_server_takes(server: ModelServer, scene: np.ndarray) -> None:
    load(backend=server.address, overlap=0, batch=4).detect(scene)
    assert set(server.batches) <= {1, 2, 3}


def test_infer_writes_the_same_file_by_a_server(
    server: ModelServer, model: Path, scene: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cv2.imwrite(str(tmp_path / "scene.png"), scene)
    common = ["--image", str(tmp_path / "scene.png"), "--overlap", "8", "--batch", "3"]
    local = ["--model", str(model), "--backend", "onnx-cpu", "--threads", "1"]
    assert infer([*common, *local, "--output", str(tmp_path / "a.csv")]) == 0
    remote = ["--backend", server.address, "--threads", "2", "--summary", str(tmp_path / "run.json")]
    assert infer([*common, *remote, "--output", str(tmp_path / "b.csv"), "--resume"]) == 0
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert server.most <= 2
    summary = json.loads((tmp_path / "run.json").read_text())
    assert summary["model"]["path"] == server.address
    assert server.address in capsys.readouterr().out


def test_evaluate_scores_a_served_model(
    server: ModelServer, model: Path, squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(squares / "annotations.json"), "--images", str(squares / "images")]
    assert evaluate([*data, "--model", str(model), "--json", str(tmp_path / "a.json")]) == 0
    assert evaluate([*data, "--backend", server.address, "--json", str(tmp_path / "b.json")]) == 0
    assert json.loads((tmp_path / "a.json").read_text()) == json.loads((tmp_path / "b.json").read_text())
    assert server.batches
    assert evaluate(["--backend", server.address]) == 2
    assert "--data" in capsys.readouterr().err


@pytest.mark.parametrize("fault", ["drop", 503])
def test_a_lost_connection_and_a_busy_server_cost_time_and_no_detections(
    server: ModelServer, model: Path, scene: np.ndarray, fault: str | int, caplog: pytest.LogCaptureFixture
) -> None:
    expected = load(model, backend="onnx-cpu", overlap=0, threads=1).detect(scene)
    remote = load(backend=server.address, overlap=0)
    server.faults.extend([fault] * 3)
    with caplog.at_level(logging.WARNING, "tinydet.runtime"):
        found = remote.detect(scene)
    assert np.array_equal(found.boxes, expected.boxes)
    assert not server.faults
    assert len([line for line in caplog.messages if "repeating the request" in line]) <= 1


def test_a_server_that_stays_away_is_an_error_after_the_patience(server: ModelServer) -> None:
    remote = RemoteBackend(server.address, patience=0.3)
    server.faults.extend([503] * 100)
    with pytest.raises(OSError, match=r"cannot take the request now \(busy\); gave up after 0.3 seconds"):
        remote.run(tiles(1))
    server.faults.clear()
    remote.run(tiles(1))


def test_a_refused_request_is_not_repeated(server: ModelServer) -> None:
    remote = RemoteBackend(server.address)
    server.faults.extend([400, 400])
    with pytest.raises(OSError, match=r"refuses the request \(bad request\)"):
        remote.run(tiles(1))
    assert list(server.faults) == [400]


def test_ctrl_c_does_not_wait_for_the_server(server: ModelServer, scene: np.ndarray) -> None:
    model = load(backend=server.address, overlap=0, batch=1, threads=2)
    server.delay = 30.0

    def interrupt() -> None:
        while server.active < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    start = time.monotonic()
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        model.detect(scene)
    thread.join()
    server.released.set()
    assert time.monotonic() - start < 10


def test_runs_that_are_cancelled_do_not_wait_for_the_server(server: ModelServer) -> None:
    remote = RemoteBackend(server.address)
    server.delay = 30.0
    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(remote.run, tiles(1)) for _ in range(3)]
        while server.active < 3:
            time.sleep(0.01)
        start = time.monotonic()
        remote.cancel()
        for run in runs:
            with pytest.raises(ConnectionAbortedError, match="cancelled"):
                run.result()
    assert time.monotonic() - start < 5
    server.released.set()
    assert remote.run(tiles(1)).boxes.shape == (1, 50, 4)


def test_the_given_file_must_be_the_served_model(
    server: ModelServer, model: Path, make_onnx: Callable[..., Path], tmp_path: Path
) -> None:
    assert server.parameters is not None
    sha256 = hashlib.sha256(model.read_bytes()).hexdigest()
    server.parameters["tinydet_sha256"] = {"string_value": sha256}
    assert RemoteBackend(server.address, model).model_hash == sha256
    spec = dataclasses.replace(SPEC, detector="cells", nms_in_graph=True)
    other = make_onnx(tmp_path / "other.onnx", spec=dataclasses.replace(spec, classes=("cat", "dog")))
    with pytest.raises(ValueError, match=r"model is not .*other.onnx \(classes: square, bar there, cat, dog here\)"):
        RemoteBackend(server.address, other)
    server.parameters["tinydet_sha256"] = {"string_value": "0" * 64}
    with pytest.raises(ValueError, match=f"equal descriptions, but file hash 0{{12}} there, {sha256[:12]} here"):
        RemoteBackend(server.address, model)


def test_a_server_that_knows_no_description_needs_the_file(server: ModelServer, model: Path) -> None:
    server.parameters = None
    with pytest.raises(ValueError, match="name its file: --model model.onnx"):
        RemoteBackend(server.address)
    assert RemoteBackend(server.address, model).run(tiles(2)).boxes.shape == (2, 50, 4)


def test_a_file_whose_outputs_differ_from_the_served_ones_is_refused(
    server: ModelServer, make_onnx: Callable[..., Path], tmp_path: Path
) -> None:
    server.parameters = None
    spec = dataclasses.replace(SPEC, detector="cells", nms_in_graph=True, max_detections=20)
    with pytest.raises(
        ValueError, match=r"expected boxes FP32 \[-1, 20, 4\], the server's model has FP32 \[-1, 50, 4\]"
    ):
        RemoteBackend(server.address, make_onnx(tmp_path / "fewer.onnx", spec=spec))


def test_a_model_that_changes_during_a_run_is_an_error(
    server: ModelServer, model: Path, make_onnx: Callable[..., Path], tmp_path: Path
) -> None:
    remote = RemoteBackend(server.address)
    remote.run(tiles(1))
    server.version = "2"
    with pytest.raises(ValueError, match=r"changed to version 2 .* as in /v2/models/cells/versions/1"):
        remote.run(tiles(1))
    remote = RemoteBackend(server.address)
    spec = dataclasses.replace(SPEC, detector="cells", nms_in_graph=True, score_floor=0.1)
    server.load(make_onnx(tmp_path / "other.onnx", spec=spec))
    server.faults.append(503)
    with pytest.raises(ValueError, match="came back with a different model; start the run again"):
        remote.run(tiles(1))


def test_a_model_of_free_tiles_takes_its_multiples_and_a_fixed_one_its_own(
    server: ModelServer, make_onnx: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="takes tiles of 64x64 pixels, not 128; leave out --tile"):
        RemoteBackend(server.address, tile=128)
    spec = dataclasses.replace(SPEC, detector="cells", nms_in_graph=True, tile_multiple=32)
    server.load(make_onnx(tmp_path / "free.onnx", spec=spec))
    remote = RemoteBackend(server.address, tile=96)
    assert remote.spec.tile == 96
    assert remote.run(np.full((1, 96, 96, 3), 255, np.uint8)).candidates.tolist() == [144]
    with pytest.raises(ValueError, match=rf"^{server.address} takes tiles of any multiple of 32 pixels, not 100"):
        RemoteBackend(server.address, tile=100)


def test_a_model_that_is_not_ready_or_not_there_is_said_so(server: ModelServer) -> None:
    server.is_ready = False
    with pytest.raises(OSError, match="the model is not ready"):
        RemoteBackend(server.address)
    with pytest.raises(OSError, match=r"does not describe this model \(no /v2/models/other here\)"):
        RemoteBackend(server.address.replace("cells", "other"))


def test_a_token_is_sent_and_never_shown(server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.token = "open-sesame"
    monkeypatch.delenv("TINYDET_TOKEN", raising=False)
    with pytest.raises(OSError, match=r"refuses access \(a token is required\); set TINYDET_TOKEN"):
        RemoteBackend(server.address)
    monkeypatch.setenv("TINYDET_TOKEN", "open-sesame")
    remote = RemoteBackend(server.address)
    assert "open-sesame" not in remote.name + repr(parse_address(server.address))
    assert "secret" not in str(parse_address("https://me:secret@gpu/v2/models/m"))


def test_nobody_at_the_address_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((64, 64, 3), np.uint8))
    command = ["--image", str(tmp_path / "a.png"), "--backend", "http://127.0.0.1:9/v2/models/m"]
    assert infer(command) == 2
    error = capsys.readouterr().err
    assert error == (
        "tinydet infer: error: http://127.0.0.1:9/v2/models/m: the server cannot be reached (Connection refused)\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("http://gpu:8000", "does not end in /v2/models/NAME"),
        ("http://gpu:8000/v2/models/", "does not end in /v2/models/NAME"),
        ("ftp://gpu/v2/models/m", "not the address of a model server"),
        ("http:///v2/models/m", "not the address of a model server"),
        ("http://gpu:port/v2/models/m", "not an address"),
        ("grpc://gpu:8001/a/v2/models/m", "no path before /v2"),
        ("http://gpu/v2/models/m?tile=3", "does not end in /v2/models/NAME"),
    ],
)
def test_a_malformed_address_is_refused_with_its_form(text: str, why: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        infer(["--image", "a.png", "--backend", text])
    error = capsys.readouterr().err
    assert why in error
    assert "http://HOST:8000/v2/models/NAME" in error
    with pytest.raises(ValueError, match=why):
        load(backend=text)


@pytest.mark.parametrize(
    ("text", "path", "authority"),
    [
        ("http://gpu/v2/models/m", "/v2/models/m", "gpu:80"),
        ("https://gpu/team/v2/models/m/versions/3/infer", "/team/v2/models/m/versions/3", "gpu:443"),
        ("http://[::1]:8000/v2/models/a%20b/", "/v2/models/a%20b", "[::1]:8000"),
        ("grpc://gpu/v2/models/m", "/v2/models/m", "gpu:8001"),
    ],
)
def test_addresses_are_read_in_all_forms(text: str, path: str, authority: str) -> None:
    address = parse_address(text)
    assert (address.path, address.authority) == (path, authority)
