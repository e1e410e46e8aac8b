"""The promises of `docs/security.md`: one test of the same name for each."""

from __future__ import annotations

import base64
import gzip
import http.server
import json
import os
import pickle
import re
import resource
import signal
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tinydet.__main__ import main

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
SCAN = ("--backend", "onnx-cpu", "--overlap", "8", "--threads", "1")
TRAIN = ("train", "--preset", "small", "--epochs", "1", "--device", "cpu", "--channels", "8", "--tile", "64",
         "--overlap", "16", "--dry-run", "--output", "out/m.pth")  # fmt: skip


def test_every_promise_has_a_test_of_its_name() -> None:
    promises = DOCUMENT.partition("## Promises")[2].partition("## Not promised")[0]
    names = {"test_" + re.sub(r"\W+", "_", name.lower()) for name in re.findall(r"^- \*\*(.+?)\.\*\*", promises, re.M)}
    tests = {name for name in globals() if name.startswith("test_")} - {"test_every_promise_has_a_test_of_its_name"}
    assert names == tests


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_onnx: Callable[..., Path]) -> Path:
    """A working directory: images, annotations, a model and an empty folder `out`; an image `secret.png` next to it."""
    work = tmp_path / "work"
    for name in ("images", "out"):
        (work / name).mkdir(parents=True)
    for path in (work / "images" / "a.png", work / "images" / "b.png", work / "scene.png", tmp_path / "secret.png"):
        cv2.imwrite(str(path), picture(path.name == "secret.png"))
    make_onnx(work / "model.onnx")
    (work / "annotations.json").write_text(json.dumps(coco()))
    monkeypatch.chdir(work)
    return work


def picture(secret: bool = False) -> np.ndarray:
    """A bright cell on black; the secret image has it at another position."""
    pixels = np.zeros((64, 96, 3), np.uint8)
    x, y = (64, 40) if secret else (24, 16)
    pixels[y : y + 8, x : x + 8] = 255
    return pixels


def coco(name: str = "a.png", category: str = "person") -> dict[str, Any]:
    images = [{"id": n, "file_name": file, "width": 96, "height": 64} for n, file in enumerate((name, "b.png"), 1)]
    boxes = [
        {"id": n, "image_id": n, "category_id": 1, "bbox": [24, 16, 8, 8], "area": 64, "iscrowd": 0} for n in (1, 2)
    ]
    return {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": category}]}


def write_annotations(**changes: str) -> None:
    Path("annotations.json").write_text(json.dumps(coco(**changes)))


def run(*words: object) -> int:
    try:
        return main([str(word) for word in words])
    except SystemExit as stopped:
        return int(stopped.code or 0)


def refused(capfd: pytest.CaptureFixture[str], *words: object) -> str:
    """Run a command that must refuse its input in one line with exit code 2; return the line."""
    capfd.readouterr()
    code, (_, err) = run(*words), capfd.readouterr()
    assert code == 2 and len(re.findall(r"^tinydet[a-z -]*: error:", err, re.M)) == 1, (words, code, err)
    assert "Traceback" not in err, err
    return err


def files(root: Path) -> dict[str, bytes]:
    """The content of every file below a folder."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """A web server that has every file; its address, and the requests it received."""
    requests: list[str] = []
    image = cv2.imencode(".tif", picture())[1].tobytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(image)))
            self.end_headers()
            self.wfile.write(image)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as each:
        threading.Thread(target=each.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{each.server_address[1]}", requests
        each.shutdown()


# Code


class Touch:
    """Makes the file `executed` if it is unpickled as an object."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, ("executed", "w")


def test_checkpoints_execute_no_code(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"format": "tinydet-1", "weights": Touch()}, "model.pth")
    Path("old.pth").write_bytes(pickle.dumps(Touch()))
    data = ("--annotations", "annotations.json", "--images", "images")
    for name in ("model.pth", "old.pth"):
        for command in (
            ("evaluate", "--model", name, *data),
            ("export", "onnx", name, "--output", "out/m.onnx"),
            ("export", "freeze", name, "--data", ".", "--val", ".", "--output", "out/frozen.pth"),
            ("gradients", name, "--data", "."),
            (*TRAIN, "--init", name, *data),
            (*TRAIN, "--weights-backbone", name, *data),
        ):
            assert name in refused(capfd, *command)
    assert not Path("executed").exists()
    torch.load("model.pth", weights_only=False)  # unlike the commands: the file would execute code
    assert Path("executed").exists()


def test_onnx_files_execute_no_code(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load("model.onnx")
    model.graph.node[0].domain = "com.example"
    model.opset_import.add(domain="com.example", version=1)
    model.metadata_props.add(key="custom_ops_library", value=str(folder / "library.so"))
    onnx.save(model, "custom.onnx")
    for backend in ("onnx-cpu", "openvino"):
        words = ("infer", "--image", "scene.png", "--model", "custom.onnx", "--overlap", "8", "--output", "out/a.json")
        assert "custom.onnx" in refused(capfd, *words, "--backend", backend)
    assert not list(Path("out").iterdir())


def test_annotations_execute_no_code(folder: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name in ("labels", "Annotations"):
        Path(name).mkdir()
    Path("labels/a.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    yolo = ("data", "convert", "labels", "--from", "yolo", "--images", "images", "--output", "out/a.json")
    for tag in ("!!python/object/apply:os.mkdir [executed]", "!!python/name:os.mkdir"):
        Path("data.yaml").write_text(f"names: {tag}\n")
        assert "data.yaml" in refused(capfd, *yolo)
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    laughs = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 12))
    for doctype in (f'<!ENTITY x SYSTEM "{secret.as_uri()}">', f'<!ENTITY l0 "ha">{laughs}<!ENTITY x "&l11;">'):
        Path("Annotations/a.xml").write_text(
            f"<!DOCTYPE annotation [{doctype}]><annotation><filename>a.png</filename><size><width>96</width>"
            "<height>64</height></size><object><name>&x;</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax>"
            "<ymax>9</ymax></bndbox></object></annotation>"
        )
        assert "a.xml" in refused(capfd, "data", "convert", "Annotations", "--from", "voc", "--output", "out/a.json")
    assert not Path("executed").exists() and not list(Path("out").iterdir())


# Other files and the network


def with_external_data(location: str, output: str) -> None:
    """Write the model with its table of boxes in another file."""
    import onnx

    model = onnx.load("model.onnx")
    table = next(tensor for tensor in model.graph.initializer if tensor.name == "table")
    Path(output).with_suffix(".bin").write_bytes(table.raw_data)
    table.ClearField("raw_data")
    table.data_location = onnx.TensorProto.EXTERNAL
    table.external_data.add(key="location", value=location)
    Path(output).write_bytes(model.SerializeToString())


@pytest.mark.parametrize("backend", ["onnx-cpu", "openvino"])
def test_onnx_files_load_external_data_only_from_their_own_folder(
    folder: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path, backend: str
) -> None:
    pytest.importorskip("onnx")
    if backend == "openvino":
        pytest.importorskip("openvino")
    Path("models").mkdir()
    with_external_data("beside.bin", "models/beside.onnx")
    data = Path("models/beside.bin").read_bytes()
    (tmp_path / "secret.bin").write_bytes(data)
    Path("models/link.bin").symlink_to(tmp_path / "secret.bin")
    words = ("infer", "--image", "scene.png", "--overlap", "8", "--backend", backend, "--model")
    assert run(*words, "models/beside.onnx", "--output", "out/beside.json") == 0
    for n, location in enumerate(
        ("../../secret.bin", str(tmp_path / "secret.bin"), "link.bin", "../models/../../secret.bin")
    ):
        with_external_data(location, f"models/{n}.onnx")
        assert f"{n}.onnx" in refused(capfd, *words, f"models/{n}.onnx", "--output", f"out/{n}.json")
        export = ("export", "onnx", f"models/{n}.onnx", "--precision", "fp16", "--images", "scene.png")
        assert f"{n}.onnx" in refused(capfd, *export, "--output", f"out/{n}.onnx")
    assert [path.name for path in Path("out").iterdir()] == ["beside.json"]


def vrt(source: str, relative: int = 0, more: str = "") -> str:
    return (
        '<VRTDataset rasterXSize="96" rasterYSize="64"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f'<SourceFilename relativeToVRT="{relative}">{source}</SourceFilename><SourceBand>1</SourceBand></SimpleSource>'
        f"</VRTRasterBand>{more}</VRTDataset>"
    )


PYTHON = """<VRTDataset rasterXSize="96" rasterYSize="64"><VRTRasterBand dataType="Byte" band="1"
subClass="VRTDerivedRasterBand"><PixelFunctionType>f</PixelFunctionType><PixelFunctionLanguage>Python</PixelFunctionLanguage>
<PixelFunctionCode><![CDATA[
def f(*_, **__):
    open("executed", "w")
]]></PixelFunctionCode></VRTRasterBand></VRTDataset>"""


def test_rasters_load_no_file_outside_their_folder(
    folder: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rasterio")
    scan = ("infer", "--model", "model.onnx", *SCAN, "--image")
    Path("set").mkdir()
    Path("set/part.png").write_bytes(Path("scene.png").read_bytes())
    Path("set/link.png").symlink_to(tmp_path / "secret.png")
    secret = str(tmp_path / "secret.png")
    for name, text in {
        "absolute.vrt": vrt(secret),
        "above.vrt": vrt("../../secret.png", 1),
        "link.vrt": vrt("link.png", 1),
        "nested.vrt": vrt("inner.vrt", 1),
        "text.vrt": vrt("/etc/passwd"),
        "prefix.vrt": vrt(f"/vsigzip/{secret}"),
        "driver.vrt": vrt(f"GTIFF_DIR:1:{secret}"),
        "inline.vrt": vrt(f"<VRTDataset>{vrt(secret)}</VRTDataset>".replace("<", "&lt;")),
        "code.vrt": PYTHON,
        "scene.tif": vrt("part.png", 1),
        "scene.png": vrt(secret),
        "scene.jpg": vrt(secret),
    }.items():
        Path("set/inner.vrt").write_text(vrt(secret))
        Path("set", name).write_text(text)
        assert name in refused(capfd, *scan, f"set/{name}", "--output", "out/found.json"), name
    assert not list(Path("out").iterdir()) and not Path("executed").exists()
    Path("set/good.vrt").write_text(vrt("part.png", 1))
    assert run(*scan, "set/good.vrt", "--output", "out/good.json") == 0
    monkeypatch.setenv("TINYDET_ALLOW_REFERENCES", "1")
    assert run(*scan, "set/absolute.vrt", "--output", "out/allowed.json") == 0
    assert Path("out/good.json").read_text() != Path("out/allowed.json").read_text()


def test_no_server_is_contacted_unless_you_name_it(
    folder: Path, server: tuple[str, list[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rasterio")
    address, requests = server
    scan = ("infer", "--model", "model.onnx", *SCAN)
    Path("a.vrt").write_text(vrt(f"/vsicurl/{address}/a.tif"))
    Path("b.vrt").write_text(vrt(f"{address}/a.tif"))
    Path("c.tif").write_text(
        f'<GDAL_WMS><Service name="TMS"><ServerUrl>{address}/a.tif</ServerUrl></Service></GDAL_WMS>'
    )
    for name in ("a.vrt", "b.vrt", "c.tif"):
        refused(capfd, *scan, "--image", name, "--output", "out/a.json")
    write_annotations(name=f"{address}/a.tif")
    for words in (
        (*scan, "--annotations", "annotations.json", "--images", "images", "--output", "out/a.json"),
        ("data", "check", "annotations.json", "--images", "images"),
        ("data", "rescale", "annotations.json", "--images", "images", "--factor", "0.5", "--output", "out/set"),
    ):
        assert run(*words) in (1, 2), words
    Path("labels").mkdir()
    Path("labels/a.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    Path("data.yaml").write_text(f"names: [a]\ndownload: {address}/a.zip\npath: {address}\n")
    assert run("data", "convert", "labels", "--from", "yolo", "--images", "images", "--output", "out/y.json") == 0
    assert requests == []


# Outputs

NAMES = ("../../escaped.png", "images/../../../escaped.png", "..\\..\\escaped.png", "~/escaped.png", "C:\\escaped.png",
         "../../secret.png")  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["../escaped.png", "/tmp/tinydet-escaped.png", "SECRET"]
    + [pytest.param(name, marks=pytest.mark.slow) for name in NAMES],
)
def test_file_names_in_annotations_stay_inside_the_output_folder(folder: Path, tmp_path: Path, name: str) -> None:
    """Names of images and classes do not leave the folder, and images outside are not copied."""
    name = name.replace("SECRET", str(tmp_path / "secret.png"))
    write_annotations(name=name, category=name)
    outside = {key: data for key, data in files(tmp_path).items() if not key.startswith("work/out/")}
    source = ("annotations.json", "--images", "images")
    for n, command in enumerate(
        (
            ("data", "rescale", *source, "--factor", "0.5"),
            ("data", "cut", *source, "--tile", "64", "--overlap", "16"),
            ("data", "erase", *source),
            ("data", "scale-match", *source, "--target", "annotations.json"),
        )
    ):
        run(*command, "--output", f"out/{n}")
    run("data", "check", *source, "--fix", "out/fixed.json")
    run("data", "stats", "annotations.json", "--plots", "out/plots")
    run(
        "infer",
        "--annotations",
        *source,
        "--model",
        "model.onnx",
        *SCAN,
        "--output",
        "out/found/",
        "--draw",
        "out/drawn/",
    )
    results = [{"image_id": 1, "category_id": 1, "bbox": [24, 16, 8, 8], "score": 0.9}]
    Path("out/results.json").write_text(json.dumps(results))
    evaluate = ("evaluate", "--gt", "annotations.json", "--detections", "out/results.json", "--images", "images")
    run(*evaluate, "--plots", "out/curves")
    assert {key: data for key, data in files(tmp_path).items() if not key.startswith("work/out/")} == outside
    assert not Path("/tmp/tinydet-escaped.png").exists()


def test_inputs_are_not_changed(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "results.json").write_text("[]")
    (folder / "link.json").symlink_to("annotations.json")
    before = files(folder)
    scan = ("infer", "--model", "model.onnx", *SCAN)
    source = ("annotations.json", "--images", "images")
    for command in (
        (*scan, "--image", "scene.png", "--output", "out/a.json", "--draw", "scene.png"),
        (*scan, "--image", "scene.png", "--output", "model.onnx"),
        (*scan, "--annotations", *source, "--output", "annotations.json"),
        (*scan, "--annotations", *source, "--output", "link.json"),
        ("data", "check", *source, "--fix", "annotations.json"),
        ("data", "check", *source, "--json", "annotations.json"),
        ("data", "rescale", *source, "--factor", "0.5", "--output", "annotations.json"),
        ("data", "rescale", *source, "--factor", "0.5", "--output", "."),
        ("data", "convert", "annotations.json", "--from", "tinyperson", "--output", "annotations.json"),
        ("data", "convert", "annotations.json", "--from", "tinyperson", "--output", "link.json"),
        ("data", "stats", "annotations.json", "--json", "annotations.json"),
        ("salpha", "annotations.json", "--json", "annotations.json"),
        ("evaluate", "--gt", "annotations.json", "--detections", "results.json", "--json", "annotations.json"),
        ("evaluate", "--gt", "annotations.json", "--detections", "results.json", "--precision", "results.json"),
    ):
        refused(capfd, *command)
        assert files(folder) == before, command


KILLED = """
import os, signal, sys
from tinydet.__main__ import main
os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)  # the file is written, but not yet renamed
main(sys.argv[1:])
"""


def test_files_are_written_completely_or_not_at_all(folder: Path) -> None:
    command = ["data", "convert", "annotations.json", "--from", "tinyperson", "--output", "out/a.json"]
    Path("out/a.json").write_text("older")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", KILLED, *command], env=environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL and Path("out/a.json").read_text() == "older"

    def full_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    for path in Path("out").glob(".*"):
        path.unlink()
    words = [sys.executable, "-m", "tinydet", *command]
    done = subprocess.run(words, env=environment, capture_output=True, preexec_fn=full_disk)
    assert done.returncode == 2 and [path.name for path in Path("out").iterdir()] == ["a.json"], done.stderr
    assert Path("out/a.json").read_text() == "older"
    assert run(*command) == 0 and len(json.loads(Path("out/a.json").read_text())["images"]) == 2


def test_passwords_in_addresses_are_never_shown(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    av = pytest.importorskip("av")
    with av.open("clip.ts", "w") as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for _ in range(10):  # fewer are not recognized as a video
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(), format="rgb24")))
        container.mux(stream.encode())
    clip, user = Path("clip.ts").read_bytes(), "Basic " + base64.b64encode(b"bob:s3cr@t").decode()

    class Camera(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.headers.get("Authorization") == user
            self.send_response(200 if known else 401)
            self.send_header("WWW-Authenticate", 'Basic realm="camera"')
            self.send_header("Content-Length", str(len(clip) if known else 0))
            self.end_headers()
            self.wfile.write(clip if known else b"")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Camera) as camera:
        threading.Thread(target=camera.serve_forever, daemon=True).start()
        for host, ok in ((f"127.0.0.1:{camera.server_address[1]}", 0), ("127.0.0.1:1", 2)):
            for outputs in ((), ("--output", "out/a.csv"), ("--output", "out/", "--format", "coco,csv")):
                words = ("infer", "--model", "model.onnx", *SCAN, "--reconnect", "0", "--image")
                assert run(*words, f"http://bob:s3cr%40t@{host}/clip.ts", *outputs) == ok, capfd.readouterr()
        camera.shutdown()
    shown = capfd.readouterr()
    written = files(folder)
    assert any(name.endswith(".csv") for name in written)
    for text in (shown.out, shown.err, *written, *(data.decode("latin-1") for data in written.values())):
        assert not re.search(r"s3cr|bob", text)


def test_names_are_printed_without_control_characters(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    name = "a\x1b]0;owned\x07\x1b[2J\r.png"
    write_annotations(name=name, category=name)
    Path("images", name).write_bytes(Path("scene.png").read_bytes())
    Path("images", f"damaged{name}").write_bytes(b"\x89PNG")
    scan = ("infer", "--model", "model.onnx", *SCAN)
    for command in (
        ("data", "check", "annotations.json", "--images", "images"),
        ("data", "stats", "annotations.json"),
        ("salpha", "annotations.json"),
        (*scan, "--image", f"images/{name}", "--output", "out/a.json"),
        (*scan, "--image", f"images/damaged{name}", "--output", "out/b.json"),
        (*scan, "--image", "images", "--skip-unreadable", "--output", "out/c.csv"),
        (*scan, "--annotations", "annotations.json", "--images", "images", "--output", "out/d.json"),
        (*TRAIN, "--weights-backbone", "none", "--annotations", "annotations.json", "--images", "images"),
    ):
        capfd.readouterr()
        run(*command)
        shown = "".join(capfd.readouterr())
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\x9b]", shown), (command, shown)


# Limits


def png(width: int, height: int) -> bytes:
    """A PNG that claims a size, and holds 1000 zeros."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def test_images_are_refused_if_they_claim_more_pixels_than_their_bytes_can_hold(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bmp = bytearray(cv2.imencode(".bmp", picture())[1].tobytes())
    struct.pack_into("<ii", bmp, 18, 30_000, 30_000)
    tif = bytearray(cv2.imencode(".tif", picture(), [cv2.IMWRITE_TIFF_COMPRESSION, 1])[1].tobytes())
    start = struct.unpack_from("<I", tif, 4)[0]
    for entry in range(start + 2, start + 2 + 12 * struct.unpack_from("<H", tif, start)[0], 12):
        if struct.unpack_from("<H", tif, entry)[0] in (256, 257):
            struct.pack_into("<HHI", tif, entry + 2, 4, 1, 0)
            struct.pack_into("<I", tif, entry + 8, 20_000)
    usual = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, data in {
        "a.png": png(30_000, 30_000),
        "b.png": png(2**31 - 1, 2**31 - 1),
        "a.bmp": bytes(bmp),
        "a.tif": bytes(tif),
        "a.ppm": b"P6 40000 40000 255\n" + bytes(1000),
        "a.gif": b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(30),
    }.items():
        Path(name).write_bytes(data)
        assert name in refused(
            capfd, "infer", "--image", name, "--model", "model.onnx", *SCAN, "--output", "out/a.json"
        )
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - usual < 700_000  # KiB
    assert not list(Path("out").iterdir())


def test_decompression_bombs_are_refused(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    document = gzip.compress(Path("annotations.json").read_bytes())
    spaces = gzip.compress(b" " * (1 << 26), 9)
    Path("bomb.json.gz").write_bytes(document + spaces * 16)  # valid; 1 GiB in 1 MiB
    assert "bomb.json.gz" in refused(capfd, "data", "check", "bomb.json.gz")
    Path("good.json.gz").write_bytes(document + gzip.compress(b" " * 1000))
    assert run("data", "check", "good.json.gz") == 0


def test_scans_of_too_many_tiles_are_refused_before_they_start(
    folder: Path, capfd: pytest.CaptureFixture[str], runs: list[int]
) -> None:
    cv2.imwrite("large.png", np.zeros((3000, 4000, 3), np.uint8))
    scan = ("infer", "--model", "model.onnx", *SCAN, "--output", "out/a.json", "--image")
    assert "--max-tiles" in refused(capfd, *scan, "large.png", "--scale", "64", "--overlap", "32")
    assert "--max-tiles" in refused(capfd, *scan, "scene.png", "--scale", "4", "--max-tiles", "5")
    assert runs == [] and not list(Path("out").iterdir())
    assert run(*scan, "scene.png", "--scale", "4", "--max-tiles", "500") == 0
    giant = coco()
    giant["images"][0].update(width=10**6, height=10**6)
    Path("giant.json").write_text(json.dumps(giant))
    few = ("--tile", "64", "--overlap", "16")
    for command in (
        ("salpha", "giant.json", *few),
        ("data", "cut", "giant.json", "--output", "out/b.json", "--tile", "64x64", "--overlap", "16"),
        (
            "data",
            "cut",
            "giant.json",
            "--output",
            "out/b.json",
            "--grid",
            "tinydet",
            "--tile",
            "64x64",
            "--overlap",
            "16",
        ),
        ("salpha", "annotations.json", *few, "--max-tiles", "1"),
        ("data", "cut", "annotations.json", "--output", "out/b.json", "--tile", "64x64", "--max-tiles", "1"),
        (*TRAIN, "--annotations", "annotations.json", "--images", "images", "--max-tiles", "1"),
    ):
        assert "--max-tiles" in refused(capfd, *command), command
    assert not Path("out/b.json").exists()
    assert run("salpha", "annotations.json", *few, "--max-tiles", "500") == 0


LIMITED = """
import contextlib, io, json, resource, signal, sys
from tinydet.__main__ import main
resource.setrlimit(resource.RLIMIT_AS, (8 << 30,) * 2)
signal.alarm(100)
for command in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(command)
    print(json.dumps([code, err.getvalue()]))
"""


def test_devices_and_pipes_are_not_read_as_files(folder: Path) -> None:
    os.mkfifo("pipe")
    scan = ["infer", *SCAN, "--output", "out/a.json"]
    commands = [
        command
        for name in ("/dev/zero", "pipe")
        for command in (
            ["data", "check", name],
            ["evaluate", "--gt", "annotations.json", "--detections", name],
            [*scan, "--image", name, "--model", "model.onnx"],
            [*scan, "--image", "scene.png", "--model", name],
            [*scan, "--annotations", name, "--images", "images", "--model", "model.onnx"],
            ["export", "onnx", name, "--output", "out/m.onnx"],
        )
    ]
    words = [sys.executable, "-c", LIMITED, json.dumps(commands)]
    done = subprocess.run(words, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    for command, (code, err) in zip(commands, results, strict=False):
        assert code == 2 and len(err.splitlines()) == 1 and ("/dev/zero" in err or "pipe" in err), (command, err)
    assert len(results) == len(commands), (commands[len(results)], done.stderr[-500:])
