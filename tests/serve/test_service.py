"""The service over HTTP, on a small model and small scenes: results, limits, and what it refuses."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image
from runtime_fixtures import SPEC, WhiteSquares

from tinydet.infer.__main__ import main as infer
from tinydet.infer.jobs import hash_file
from tinydet.runtime.backends import TileOutputs, open_model
from tinydet.runtime.writers import FORMATS
from tinydet.serve import guard
from tinydet.serve.app import create_app
from tinydet.serve.model import CountingBackend, ServedModel
from tinydet.serve.options import ServeOptions
from tinydet.serve.service import Service

testclient = pytest.importorskip("fastapi.testclient", reason="needs the extra serve")
pytest.importorskip("httpx2")

TOKEN = "0123456789abcdef"


def write_scene(path: Path, width: int = 200, height: int = 136) -> Path:
    """Write an image with white cells of 8x8 pixels on black, as the model finds them."""
    cells = np.random.default_rng(1).random((height // 8, width // 8)) < 0.1
    pixels = np.kron(cells, np.ones((8, 8))).astype(np.uint8) * 255
    if path.suffix == ".tif":
        rasterio = pytest.importorskip("rasterio")
        place = rasterio.Affine(1e-5, 0, 27.5, 0, -1e-5, 53.9)
        size = {"width": width, "height": height, "count": 3, "dtype": "uint8"}
        tiles = {"tiled": True, "blockxsize": 64, "blockysize": 64}
        with rasterio.open(path, "w", driver="GTiff", crs="EPSG:4326", transform=place, **size, **tiles) as file:
            file.write(np.stack([pixels] * 3))
    else:
        Image.fromarray(pixels).convert("RGB").save(path)
    return path


@contextmanager
def serving(model: ServedModel, folder: Path, **options: Any) -> Iterator[Any]:
    """A client of a service."""
    service = Service(model, ServeOptions(folder, **options))
    with testclient.TestClient(create_app(service), raise_server_exceptions=False) as client:
        client.service = service
        yield client


def finished(client: Any, job: str, seconds: float = 20) -> dict[str, Any]:
    """The state of a job once it has ended."""
    end = time.monotonic() + seconds
    while (state := client.get(f"/jobs/{job}").json())["status"] in ("accepted", "running"):
        assert time.monotonic() < end, state
        time.sleep(0.01)
    return dict(state)


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("roots")
    write_scene(folder / "scene.tif")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, make_onnx: Callable[..., Path]) -> ServedModel:
    path = make_onnx(tmp_path_factory.mktemp("model") / "cells.onnx")
    return ServedModel(path, hash_file(path), CountingBackend(open_model(path, "onnx-cpu", threads=1)))


@pytest.fixture(scope="module")
def client(model: ServedModel, roots: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with serving(model, tmp_path_factory.mktemp("served"), roots=(roots,), max_upload=100_000, quota=250_000) as client:
        yield client


@pytest.fixture(scope="module")
def job(client: Any) -> dict[str, Any]:
    """A job over scene.tif that was successful."""
    answer = client.post("/jobs", json={"path": "scene.tif", "options": {"score": 0.6, "overlap": 16}})
    assert answer.status_code == 201, answer.text
    assert answer.headers["location"] == f"/jobs/{answer.json()['jobID']}"
    return finished(client, answer.json()["jobID"])


# ---------------------------------------------------------------------------------------------------------- results


def test_results_are_the_files_of_the_command_in_every_format(
    client: Any, job: dict[str, Any], model: ServedModel, roots: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(roots)
    tiles = client.service.model.backend.tiles
    command = ["--model", str(model.path), "--backend", "onnx-cpu", "--score", "0.6", "--overlap", "16"]
    assert job["status"] == "successful" and job["detections"] > 3
    for kind in (kind for kind, form in FORMATS.items() if not form.tracked):
        path = tmp_path / f"{kind}{FORMATS[kind].suffix}"
        assert infer(["scene.tif", *command, "--format", kind, "--output", str(path)]) == 0
        answer = client.get(f"/jobs/{job['jobID']}/results", params={"format": kind})
        assert answer.status_code == 200
        assert answer.content == path.read_bytes(), kind
    assert client.service.model.backend.tiles == tiles  # formats are written from the journal


def test_a_finished_job_says_what_it_found(client: Any, job: dict[str, Any], model: ServedModel) -> None:
    assert job["progress"] == 100 and job["tiles_done"] == job["tiles"] > 8
    assert job["by_class"] == {"square": job["detections"], "bar": 0}
    assert job["created"] <= job["started"] <= job["finished"]
    assert (job["width"], job["height"], job["name"], job["model"]) == (200, 136, "scene.tif", model.sha256)
    assert [each["jobID"] for each in client.get("/jobs").json()["jobs"]][-1] == job["jobID"]
    found = client.service.detections(job["jobID"])
    assert len(found) == job["detections"] and (np.diff(found.scores) <= 0).all() and "seam_distance" in found.data


def test_events_tell_the_last_state_and_end(client: Any, job: dict[str, Any]) -> None:
    answer = client.get(f"/jobs/{job['jobID']}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    (data,) = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert json.loads(data) == job
    again = client.get(f"/jobs/{job['jobID']}/events", headers={"Last-Event-ID": "1"})
    assert again.status_code == 204  # which tells EventSource not to connect again


def test_an_image_is_answered_at_once_as_its_job_would_be(client: Any, tmp_path: Path, model: ServedModel) -> None:
    image = write_scene(tmp_path / "image.png", 96, 64)
    command = ["--model", str(model.path), "--backend", "onnx-cpu", "--score", "0.6"]
    for accept, kind in (("", "coco"), ("text/csv", "csv"), ("image/webp, text/*;q=0.5", "csv")):
        answer = client.post("/detect?score=0.6&name=image.png", content=image.read_bytes(), headers={"Accept": accept})
        assert answer.status_code == 200
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path)
            output = f"out{FORMATS[kind].suffix}"
            assert infer(["image.png", *command, "--output", output]) == 0
        assert answer.content == (tmp_path / output).read_bytes()
    assert client.post("/detect", content=image.read_bytes(), headers={"Accept": "text/html"}).status_code == 406


@pytest.mark.parametrize("binary", [True, False])
def test_raw_tiles_get_the_outputs_of_the_backend(client: Any, model: ServedModel, binary: bool) -> None:
    tile = SPEC.tile
    images = (np.random.default_rng(2).random((3, tile, tile, 1)) < 0.6).astype(np.uint8).repeat(3, 3) * 255
    tensor = {"name": "images", "datatype": "UINT8", "shape": list(images.shape)}
    if binary:
        tensor["parameters"] = {"binary_data_size": images.nbytes}
        head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}, "id": "7"}).encode()
        answer = client.post("/v2/models/tinydet/infer", content=head + images.tobytes(),
                             headers={"Inference-Header-Content-Length": str(len(head))})  # fmt: skip
        length = int(answer.headers["inference-header-content-length"])
        told, raw = json.loads(answer.content[:length]), answer.content[length:]
        assert told["id"] == "7"
    else:
        answer = client.post(
            "/v2/models/tinydet/versions/1/infer", json={"inputs": [tensor | {"data": images.tolist()}]}
        )
        told, raw = answer.json(), b""
    expected = model.backend.run(images)
    for output in told["outputs"]:
        array = getattr(expected, output["name"])
        assert output["shape"] == list(array.shape)
        assert output["datatype"] == {"f": "FP32", "i": "INT32"}[array.dtype.kind]
        if binary:
            size = output["parameters"]["binary_data_size"]
            assert raw[:size] == array.tobytes()
            raw = raw[size:]
        else:
            assert output["data"] == array.ravel().tolist()
    assert not raw
    assert [each["name"] for each in client.get("/v2/models/tinydet").json()["outputs"]] == [
        each["name"] for each in told["outputs"]
    ]


def test_the_configuration_of_the_model_holds_its_description(client: Any, model: ServedModel) -> None:
    config = client.get("/v2/models/tinydet/config").json()
    assert config["parameters"]["tinydet"]["string_value"] == model.spec.to_json()
    assert config["parameters"]["tinydet_sha256"]["string_value"] == model.sha256
    assert config["max_batch_size"] == model.spec.max_batch


@pytest.mark.parametrize(
    "change",
    [
        {"datatype": "FP32"},
        {"name": "image"},
        {"shape": [1, 32, 64, 3]},
        {"shape": [5, 64, 64, 3]},
        {"shape": None},
        {"data": [[1, 2], [3]]},
        {"data": [256] * 12288},
        {"parameters": {"binary_data_size": 3}},
    ],
)
def test_what_is_no_request_of_tiles_is_refused(client: Any, change: dict[str, Any]) -> None:
    tensor = {"name": "images", "datatype": "UINT8", "shape": [1, 64, 64, 3], "data": [0] * 12288}
    assert client.post("/v2/models/tinydet/infer", json={"inputs": [tensor]}).status_code == 200
    answer = client.post("/v2/models/tinydet/infer", json={"inputs": [tensor | change]})
    assert answer.status_code == 400 and isinstance(answer.json()["error"], str)
    assert client.post("/v2/models/tinydet/infer", json=[tensor]).status_code == 400
    assert client.post("/v2/models/other/infer", json={"inputs": [tensor]}).status_code == 404


@pytest.mark.parametrize("length", [b"\xb2", b"9" * 5000, b"-1", b"1e3", b"999"])
def test_a_wrong_length_of_the_json_is_refused(client: Any, length: bytes) -> None:
    headers = {b"Inference-Header-Content-Length": length}
    answer = client.post("/v2/models/tinydet/infer", content=b"{}", headers=headers)
    assert answer.status_code == 400 and "bytes of the JSON" in answer.json()["error"]


def test_label_studio_gets_the_boxes_of_the_scene_at_a_path(client: Any, job: dict[str, Any], roots: Path) -> None:
    """Scenes of one name in two folders are two scenes; an image that is refused costs the others nothing."""
    config = '<View><Image name="i" value="$i"/><RectangleLabels name="b" toName="i"><Label value="square"/>'
    config += "</RectangleLabels></View>"
    (roots / "other").mkdir()
    Image.new("RGB", (64, 64)).save(roots / "other" / "scene.tif")
    places = ["scene.tif", "other/scene.tif", "http://[", "data:image/png;base64,AAAA", "é" * 300, "\0"]
    tasks = [{"data": {"i": place}} for place in places]
    results = client.post("/predict", json={"tasks": tasks, "label_config": config}).json()["results"]
    assert [len(each["result"]) for each in results] == [job["detections"], 0, 0, 0, 0, 0]


def test_label_studio_gets_boxes_in_percent(client: Any, job: dict[str, Any], tmp_path: Path) -> None:
    config = '<View><Image name="img" value="$photo"/><RectangleLabels name="box" toName="img">'
    config += '<Label value="Square"/></RectangleLabels></View>'
    assert client.get("/health").json()["status"] == "UP"
    assert client.post("/setup", json={"project": "1", "schema": config}).json()["model_version"].startswith("tinydet-")
    image = write_scene(tmp_path / "image.png", 96, 64).read_bytes()
    places = ["http://studio/data/upload/1/0123abcd-scene.tif", "/data/local-files/?d=scene.tif", "http://x/none.tif",
              f"data:image/png;base64,{base64.b64encode(image).decode()}"]  # fmt: skip
    tasks = [{"id": n, "data": {"photo": place}} for n, place in enumerate(places)]
    results = client.post("/predict", json={"tasks": tasks, "label_config": config}).json()["results"]
    assert [bool(each["result"]) for each in results] == [True, True, False, True]
    found, first = client.service.detections(job["jobID"]), results[0]["result"]
    assert len(first) == len(found)
    value = first[0]["value"]
    corners = [
        value["x"] * 2,
        value["y"] * 1.36,
        (value["x"] + value["width"]) * 2,
        (value["y"] + value["height"]) * 1.36,
    ]
    assert corners == pytest.approx(found.boxes[0].tolist())
    assert first[0]["from_name"] == "box" and value["rectanglelabels"] == ["Square"]
    assert client.post("/predict", json={"tasks": tasks, "label_config": "<View/>"}).status_code == 400


def test_the_service_describes_itself(client: Any, job: dict[str, Any], model: ServedModel) -> None:
    assert client.get("/healthz").status_code == client.get("/readiness").status_code == 200
    info = client.get("/info").json()
    assert info["model"]["classes"] == list(SPEC.classes) and info["model"]["sha256"] == model.sha256
    metrics = client.get("/metrics").text
    assert 'tinydet_jobs{status="successful"}' in metrics and "tinydet_tiles_total" in metrics
    assert 'tinydet_requests_total{method="GET",route="/info",status="200"}' in metrics
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/detect", "/jobs", "/jobs/{job_id}/events", "/uploads/{name}", "/v2/models/{model}/infer"} <= set(paths)
    for scene in (path for path in paths if path.startswith("/scenes/")):  # wrong values are refused in words
        assert paths[scene]["get"]["responses"]["422"]["content"]["application/json"]["schema"] == {
            "$ref": "#/components/schemas/Problem"
        }
    assert client.get("/docs").status_code == 404  # its scripts would come from another server


# ---------------------------------------------------------------------------------------------------------- refusals


def test_uploads_have_limits_and_a_quota(client: Any, tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "a.png").read_bytes()
    told = client.put("/uploads/a.png", content=scene)
    assert told.status_code == 201
    assert {**told.json(), "scene": 0} == {
        "name": "a.png", "bytes": len(scene), "width": 200, "height": 136, "format": "PNG", "scene": 0
    }  # fmt: skip
    assert client.put("/uploads/big.png", content=scene + bytes(100_000)).status_code == 413
    chunks = (bytes(10_000) for _ in range(11))  # without a stated length
    assert client.put("/uploads/big.png", content=chunks).status_code == 413
    filled = [client.put(f"/uploads/{n}.png", content=scene + bytes(90_000)).status_code for n in range(3)]
    assert filled == [201, 201, 413]
    assert [each["name"] for each in client.get("/uploads").json()] == ["0.png", "1.png", "a.png"]
    for name in ("0.png", "1.png", "a.png"):
        assert client.delete(f"/uploads/{name}").status_code == 204
    assert client.service.uploads.used == 0
    assert list(client.service.uploads.folder.iterdir()) == []
    assert client.delete("/uploads/a.png").status_code == 404


def test_an_upload_stays_while_a_job_needs_it(client: Any, tmp_path: Path) -> None:
    scene = write_scene(tmp_path / "kept.png").read_bytes()
    client.put("/uploads/kept.png", content=scene)
    job = client.post("/jobs", json={"upload": "kept.png"}).json()["jobID"]
    assert finished(client, job)["status"] == "successful"
    assert client.delete("/uploads/kept.png").status_code == 409
    assert client.put("/uploads/kept.png", content=scene).status_code == 409
    assert client.delete(f"/jobs/{job}").json()["status"] == "dismissed"
    assert client.get(f"/jobs/{job}").status_code == 404
    assert client.delete("/uploads/kept.png").status_code == 204


VRT = (
    '<VRTDataset rasterXSize="9" rasterYSize="9"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
    '<SourceFilename relativeToVRT="0">/etc/passwd</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>'
)


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (VRT.encode(), 415),
        (b"\xef\xbb\xbf <!-- a --> " + VRT.encode(), 415),
        (b"<GDAL_WMS><Service name='TMS'/></GDAL_WMS>", 415),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), 415),
        (b"\0\0\0\x18ftypmp42" + bytes(100), 415),
        (b"#EXTM3U\nfile:///etc/passwd", 415),
        (b"II*\0" + bytes(100), 422),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\1\x86\xa0\0\1\x86\xa0\x08\2\0\0\0" + bytes(60), 422),  # 100 000 x 100 000
        (b"\xff\xd8\xff\xe0", 422),
        (b"", 422),
    ],
)
def test_files_that_are_no_plain_images_are_refused_and_removed(client: Any, content: bytes, status: int) -> None:
    answer = client.put("/uploads/scene.tif", content=content)
    assert answer.status_code == status, answer.text
    assert str(client.service.uploads.folder) not in answer.text
    assert not client.get("/uploads").json()
    assert client.post("/detect", content=content).status_code == status


def test_names_of_uploads_are_names(client: Any) -> None:
    for name in ("..", ".hidden", "a%2Fb.png", "%2e%2e%2fjob.json", "a\\b", "x" * 201, "é" * 101, "a%00.png", "a."):
        assert client.put(f"/uploads/{name}", content=b"x").status_code in (400, 404, 405), name
        assert client.delete(f"/uploads/{name}").status_code in (404, 405), name
        assert client.post("/jobs", json={"upload": name}).status_code in (404, 422), name
        assert client.post("/detect", params={"name": name}, content=b"x").status_code in (415, 422), name
    assert not client.get("/uploads").json()


@pytest.mark.parametrize("name", ["हिन्दी.png", "e\u0301té [1] & 50%#'.png", "é" * 98 + ".png", "movie.mp4", "a.vrt"])
def test_an_upload_may_have_any_name_of_a_file(client: Any, tmp_path: Path, name: str) -> None:
    """The bytes choose what reads it, not the suffix."""
    scene = write_scene(tmp_path / "a.png", 64, 64).read_bytes()
    place = f"/uploads/{quote(name)}"
    assert client.put(place, content=scene).status_code == 201
    job = client.post("/jobs", json={"upload": name}).json()["jobID"]
    assert finished(client, job)["status"] == "successful"
    answer = client.get(f"/jobs/{job}/results", params={"format": "csv"})
    assert answer.status_code == 200 and name in answer.text
    assert client.delete(f"/jobs/{job}").status_code == 200 and client.delete(place).status_code == 204


def test_an_upload_that_replaces_another_is_shown_in_its_place(client: Any, tmp_path: Path) -> None:
    versions = set()
    for width in (200, 96):
        client.put("/uploads/again.png", content=write_scene(tmp_path / "again.png", width, 64).read_bytes())
        scene = client.get("/uploads").json()[0]["scene"]
        described = client.get(f"/scenes/{scene}").json()
        assert described["width"] == width
        versions.add(described["version"])
        assert client.get(f"/scenes/{scene}/tiles/0/0/0.jpg?v={described['version']}").status_code == 200
    assert len(versions) == 2  # browsers keep tiles by their address
    assert client.delete("/uploads/again.png").status_code == 204


def test_a_damaged_scene_is_refused_without_its_path(client: Any, roots: Path) -> None:
    path = write_scene(roots / "damaged.tif")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 3])
    client.service._listed = -100.0, []
    (scene,) = [entry.id for entry in client.service.scenes() if entry.name == "damaged.tif"]
    answer = client.get(f"/scenes/{scene}/crop?bbox=0,0,200,136")
    assert answer.status_code == 422 and "damaged.tif" in answer.text and str(roots) not in answer.text
    path.unlink()


def test_pages_of_other_origins_change_nothing(client: Any, tmp_path: Path) -> None:
    """A browser sends a POST without a body of JSON from any page, without asking the service before."""
    for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 415), ("none", 415)):
        headers = {"Sec-Fetch-Site": site, "Origin": "https://evil.example", "Content-Type": "text/plain"}
        assert client.post("/detect", content=b"x", headers=headers).status_code == status, site
        assert client.get("/", headers=headers).status_code == 200  # a link to the page


def test_head_has_the_headers_of_get(client: Any) -> None:
    for path in ("/", "/healthz", "/jobs"):
        head, get = client.head(path), client.get(path)
        assert head.status_code == 200 and head.headers["content-type"] == get.headers["content-type"]


def test_a_job_that_cannot_be_stored_is_refused(slow: ServedModel, roots: Path, tmp_path: Path) -> None:
    with serving(slow, tmp_path, roots=(roots,)) as client:
        client.service.jobs.folder.rmdir()
        assert client.post("/jobs", json={"path": "scene.tif"}).status_code == 507
        assert client.get("/jobs").json()["jobs"] == []


def test_probes_do_not_wait_for_the_model(slow: ServedModel, tmp_path: Path) -> None:
    """More requests than the threads of the framework wait for the model; the others are answered meanwhile."""
    backend, tile = gate_of(slow), SPEC.tile
    head = json.dumps({"inputs": [{"name": "images", "datatype": "UINT8", "shape": [1, tile, tile, 3],
                                   "parameters": {"binary_data_size": tile * tile * 3}}]}).encode()  # fmt: skip
    length = {"Inference-Header-Content-Length": str(len(head))}

    def infer() -> int:
        content = head + bytes(tile * tile * 3)
        return int(client.post("/v2/models/tinydet/infer", content=content, headers=length).status_code)

    with serving(slow, tmp_path) as client, ThreadPoolExecutor(50) as clients:
        try:
            waiting = [clients.submit(infer) for _ in range(50)]
            while client.service.images._waiting < 48:
                time.sleep(0.01)
            start = time.monotonic()
            for path in ("/healthz", "/readiness", "/jobs"):
                assert client.get(path).status_code == 200
            assert time.monotonic() - start < 5 and not any(each.done() for each in waiting)
        finally:
            backend.gate.set()
        assert {each.result() for each in waiting} == {200}


def test_a_client_that_sends_nothing_more_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent() -> dict[str, Any]:
        await asyncio.sleep(60)
        return {}

    monkeypatch.setattr(guard, "PATIENCE", 0.01)
    assert asyncio.run(guard._limited(silent, 100)())["type"] == "http.disconnect"


def test_paths_stay_below_the_roots(client: Any, roots: Path, tmp_path: Path) -> None:
    outside = write_scene(tmp_path / "outside.png")
    (roots / "link.png").symlink_to(outside)
    (roots / "folder").symlink_to(tmp_path)
    os.mkfifo(roots / "pipe.png")
    try:
        refused = [str(outside), "link.png", "folder/outside.png", f"../{tmp_path.name}/outside.png", "pipe.png", ".",
                   "none.png", "/etc/passwd"]  # fmt: skip
        answers = [client.post("/jobs", json={"path": path}) for path in refused]
        assert {answer.status_code for answer in answers} == {404}
        assert len({answer.text for answer in answers}) == 1  # it does not tell what exists elsewhere
        for path in ("/vsicurl/http://x/a.tif", "http://x/a.tif", "a\0b", ""):
            assert client.post("/jobs", json={"path": path}).status_code == 400
        assert client.post("/jobs", json={"path": str(roots / "scene.tif")}).status_code == 201
        client.service._listed = -100.0, []
        names = {entry.name for entry in client.service.scenes()}
        assert "scene.tif" in names and not names & {"link.png", "folder/outside.png", "pipe.png"}
    finally:
        for name in ("link.png", "folder", "pipe.png"):
            (roots / name).unlink()


@pytest.mark.parametrize(
    ("body", "mistake"),
    [
        ({"path": "scene.tif", "options": {"score": 2}}, "options.score: expected a number from 0 to 1"),
        ({"path": "scene.tif", "options": {"merge": "best"}}, "options.merge: expected one of seam"),
        ({"path": "scene.tif", "options": {"gsd": 10**400}}, "options.gsd"),
        ({"path": "scene.tif", "options": {"scale": "auto"}}, "needs the size of a typical object"),
        ({"path": "scene.tif", "options": {"model": "x.onnx"}}, "options.model: extra inputs are not permitted"),
        ({"path": "scene.tif", "upload": "a.png"}, "name one scene"),
        ({}, "name one scene"),
    ],
)
def test_wrong_requests_say_what_is_wrong(client: Any, body: dict[str, Any], mistake: str) -> None:
    answer = client.post("/jobs", json=body)
    assert answer.status_code == 422
    assert mistake in answer.json()["detail"]


def test_a_job_that_fails_tells_why_without_paths(client: Any, roots: Path) -> None:
    job = client.post("/jobs", json={"path": "scene.tif", "options": {"bands": [9]}}).json()
    state = finished(client, job["jobID"])
    assert state["status"] == "failed" and "band" in state["message"] and str(roots) not in state["message"]
    answer = client.get(f"/jobs/{job['jobID']}/results")
    assert answer.status_code == 409 and "band" in answer.json()["detail"]


def test_results_of_a_scene_that_changed_are_not_made_up(client: Any, roots: Path) -> None:
    scene = write_scene(roots / "changing.png")
    job = client.post("/jobs", json={"path": "changing.png"}).json()["jobID"]
    assert finished(client, job)["status"] == "successful"
    write_scene(scene, 80, 64)
    assert client.get(f"/jobs/{job}/results").status_code == 200  # written before
    answer = client.get(f"/jobs/{job}/results?format=csv")
    assert answer.status_code == 409 and "changed" in answer.json()["detail"] and str(roots) not in answer.text
    scene.unlink()
    assert client.get(f"/jobs/{job}/results?format=csv").status_code == 409


def test_a_token_is_required_from_all_but_probes(model: ServedModel, tmp_path: Path) -> None:
    with serving(model, tmp_path, token=TOKEN, max_body=1000) as client:
        assert client.get("/healthz").status_code == client.get("/v2/health/ready").status_code == 200
        basic = base64.b64encode(f"studio:{TOKEN}".encode()).decode()
        for given, status in (("", 401), ("Bearer", 401), ("Bearer wrong", 401), (f"Token {TOKEN}", 401),
                              ("Basic !", 401), (f"Bearer {TOKEN}", 200), (f"bearer {TOKEN}", 200),
                              (f"Basic {basic}", 200)):  # fmt: skip
            assert client.get("/info", headers={"Authorization": given}).status_code == status, given
        assert TOKEN not in client.get("/info", headers={"Authorization": f"Bearer {TOKEN}"}).text
        headers = {"Authorization": f"Bearer {TOKEN}"}
        assert client.post("/jobs", content=bytes(1001), headers=headers).status_code == 413
        chunks = (bytes(600) for _ in range(2))
        assert client.post("/detect", content=chunks, headers=headers).status_code == 413
        answer = client.get("/info", headers={**headers, "Origin": "https://x.org"})
        assert "access-control-allow-origin" not in answer.headers
        assert client.post("/jobs", json={"path": "a.tif"}, headers=headers).status_code == 403  # no roots


# -------------------------------------------------------------------------------------------------------- the queue


class SlowSquares(WhiteSquares):
    """Finds squares once `gate` is open, a tile at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.waits = threading.Event(), threading.Event()

    def run(self, images: np.ndarray) -> TileOutputs:
        self.waits.set()
        self.gate.wait(20)
        return super().run(images)


@pytest.fixture
def slow() -> Iterator[ServedModel]:
    backend = SlowSquares()
    yield ServedModel(Path("slow.onnx"), "0" * 64, CountingBackend(backend))
    backend.gate.set()


def gate_of(model: ServedModel) -> SlowSquares:
    backend = model.backend._backend
    assert isinstance(backend, SlowSquares)
    return backend


def test_a_full_queue_and_a_dismissed_job(slow: ServedModel, roots: Path, tmp_path: Path) -> None:
    """The run of the first job hangs in the model; dismissing it lets the second start within a second."""
    backend = gate_of(slow)
    with serving(slow, tmp_path, roots=(roots,), queue=1) as client:
        try:
            first = client.post("/jobs", json={"path": "scene.tif"}).json()["jobID"]
            assert backend.waits.wait(10)
            second = client.post("/jobs", json={"path": "scene.tif"}).json()["jobID"]
            refused = client.post("/jobs", json={"path": "scene.tif"})
            assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 0
            assert client.get(f"/jobs/{first}/results").status_code == 404
            assert client.get(f"/jobs/{second}").json()["status"] == "accepted"
            start = time.monotonic()
            assert client.delete(f"/jobs/{first}").json()["status"] == "dismissed"
            while client.get(f"/jobs/{second}").json()["status"] != "running":
                assert time.monotonic() - start < 1
                time.sleep(0.01)
        finally:
            backend.gate.set()
        assert finished(client, second)["status"] == "successful"
        assert client.get(f"/jobs/{first}").json()["status"] == "dismissed"
        assert client.get(f"/jobs/{first}/results").status_code == 409


def test_a_service_continues_the_jobs_of_the_one_before(roots: Path, tmp_path: Path) -> None:
    class Ending(WhiteSquares):
        """Ends its service after two batches."""

        def run(self, images: np.ndarray) -> TileOutputs:
            if len(self.batches) == 1:
                threading.Thread(target=service.jobs.close).start()
                while not service.jobs.is_closing:
                    time.sleep(0.001)
            return super().run(images)

    options = ServeOptions(tmp_path, roots=(roots,))
    first = Ending()
    service = Service(ServedModel(Path("a.onnx"), "0" * 64, CountingBackend(first)), options)
    with testclient.TestClient(create_app(service)) as client:
        job = client.post("/jobs", json={"path": "scene.tif", "options": {"batch": 2}}).json()["jobID"]
        while not service.jobs.is_closing:
            time.sleep(0.01)
    second = WhiteSquares()
    with serving(ServedModel(Path("a.onnx"), "0" * 64, CountingBackend(second)), tmp_path, roots=(roots,)) as client:
        state = finished(client, job)
        assert state["status"] == "successful"
        assert first.batches and sum(first.batches) + sum(second.batches) == state["tiles"]
        uninterrupted = finished(
            client, client.post("/jobs", json={"path": "scene.tif", "options": {"batch": 2}}).json()["jobID"]
        )
        results = [client.get(f"/jobs/{each}/results?format=csv").content for each in (job, uninterrupted["jobID"])]
        assert results[0] == results[1]
    with serving(ServedModel(Path("b.onnx"), "1" * 64, CountingBackend(second)), tmp_path, roots=(roots,)) as client:
        assert client.get(f"/jobs/{job}/results?format=yolo").status_code == 200  # of the earlier model


def test_two_services_do_not_share_a_folder(model: ServedModel, tmp_path: Path) -> None:
    with serving(model, tmp_path), pytest.raises(OSError, match="another service uses this folder"):
        Service(model, ServeOptions(tmp_path))
