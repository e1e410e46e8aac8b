"""The examples of `shared/cases/inputs`: real user files, with the commands of their READMEs.

A row of `CASES` is a folder, a command, and what is right. Where a README allows two results, so does the row.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import functools
import http.server
import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest

from tinydet.__main__ import main

ROOT = Path(__file__).resolve().parents[1]


class Done(NamedTuple):
    """A finished command: its exit code, what it printed, and the files that it created or changed."""

    code: int
    out: str
    err: str
    files: set[str]

    @property
    def text(self) -> str:
        return self.out + self.err


Run = Callable[[str], Done]
Check = Callable[[Done], None]


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file below a folder, by name; linked folders are not entered."""
    found = {}
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            found[os.fsencode(path.relative_to(folder)).decode(errors="backslashreplace")] = path.read_bytes()
    return found


# What is right


def exits(code: int) -> Check:
    def check(done: Done) -> None:
        assert done.code == code, done

    return check


def refused(*words: str) -> Check:
    """One line that contains these words, exit code 2, nothing written."""

    def check(done: Done) -> None:
        assert done.code == 2, done
        lines = done.err.splitlines()
        assert "Traceback" not in done.err and sum("error:" in line for line in lines) == 1, done.err
        assert all(word.lower() in lines[-1].lower() for word in words), lines[-1]
        assert len([line for line in lines if "[ERROR" in line or "WARN" in line]) == 0, "a library's own line"
        assert not done.files, done.files

    return check


def refused_before_the_scan(*words: str) -> Check:
    def check(done: Done) -> None:
        refused(*words)(done)
        assert "detections" not in done.out, done.out

    return check


def says(pattern: str, code: int = 0) -> Check:
    def check(done: Done) -> None:
        assert done.code == code, done
        assert re.search(pattern, done.text, re.IGNORECASE), done

    return check


def either(*checks: Check) -> Check:
    def check(done: Done) -> None:
        failures = []
        for each in checks:
            try:
                return each(done)
            except AssertionError as error:
                failures.append(str(error))
        raise AssertionError("\n-- nor --\n".join(failures))

    return check


def both(*checks: Check) -> Check:
    def check(done: Done) -> None:
        for each in checks:
            each(done)

    return check


def rows_of(path: str) -> list[dict[str, Any]]:
    """The detections of an output of any format, with their class name as `class`."""
    if path.endswith(".json"):
        document = json.loads(Path(path).read_text())
        names = {category["id"]: category["name"] for category in document["categories"]}
        return [{**row, "class": names[row["category_id"]]} for row in document["annotations"]]
    if path.endswith(".csv"):
        with Path(path).open(newline="") as file:
            return list(csv.DictReader(file))
    if path.endswith(".parquet"):
        frame: Any = pytest.importorskip("pandas").read_parquet(path)
        return list(frame.astype(object).where(frame.notna(), None).to_dict("records"))
    features: list[dict[str, Any]] = json.loads(Path(path).read_text())["features"]
    return [feature["properties"] for feature in features]


def persons(path: str, count: int, **columns: object) -> Check:
    """Exactly `count` detections in the file, all of them persons, each with these values."""

    def check(done: Done) -> None:
        assert done.code == 0, done
        rows = rows_of(path)
        assert [row["class"] for row in rows] == ["person"] * count
        for name, value in columns.items():
            assert all(row[name] == value and type(row[name]) is type(value) for row in rows), rows[0]

    return check


def same_detections(path: str, other: str, pixels: float = 0) -> Check:
    def check(done: Done) -> None:
        # A column of persons has nearly equal x, so the order is that of coarse positions.
        boxes = ([row["bbox"] for row in rows_of(each)] for each in (path, other))
        ours, theirs = (sorted(each, key=lambda box: (round(box[1] / 9), round(box[0] / 9))) for each in boxes)
        assert len(ours) == len(theirs) > 0
        assert np.abs(np.subtract(ours, theirs)).max() <= pixels

    return check


def no_place(path: str) -> Check:
    """The columns of longitude and latitude are there and empty."""

    def check(done: Done) -> None:
        assert all(row["lon"] in ("", None) and row["lat"] in ("", None) for row in rows_of(path))

    return check


def rings(path: str) -> list[np.ndarray]:
    """Every ring of every polygon of a map, (points, 2) longitude and latitude."""
    if path.endswith(".gpkg"):
        shapes = pytest.importorskip("pyogrio.raw").read(path)[2]
        return [ring for shape in shapes for ring in rings_of_wkb(shape)]
    found = []
    for feature in json.loads(Path(path).read_text())["features"]:
        places = feature["geometry"]["coordinates"]
        for polygon in places if feature["geometry"]["type"] == "MultiPolygon" else [places]:
            found += [np.array(ring, float)[:, :2] for ring in polygon]
    return found


def rings_of_wkb(shape: bytes) -> list[np.ndarray]:
    """Rings of a little-endian polygon or multi-polygon (OGC 06-103r4, 8.2)."""
    kind, count = np.frombuffer(shape, "<u4", 2, 1)
    position, found = 9, []

    def polygon(start: int, number: int) -> int:
        for _ in range(number):
            points = int(np.frombuffer(shape, "<u4", 1, start)[0])
            found.append(np.frombuffer(shape, "<f8", 2 * points, start + 4).reshape(-1, 2))
            start += 4 + 16 * points
        return start

    if kind == 3:
        polygon(position, int(count))
        return found
    assert kind == 6, f"neither a polygon nor a multi-polygon, but type {kind}"
    for _ in range(int(count)):
        position = polygon(position + 9, int(np.frombuffer(shape, "<u4", 1, position + 5)[0]))
    return found


def narrow_rings(path: str) -> Check:
    def check(done: Done) -> None:
        assert done.code == 0, done
        found = rings(path)
        assert len(found) >= 6
        assert max(np.ptp(ring[:, 0]) for ring in found) < 1

    return check


def coco(path: str, expected: Callable[[dict[str, Any]], bool]) -> Check:
    """Exit code 0, and the COCO file has this property."""

    def check(done: Done) -> None:
        assert done.code == 0, done
        document = json.loads(Path(path).read_text())
        assert expected(document), document

    return check


def video(path: str, frames: int, each: int) -> Check:
    """A number of frames, each with a number of persons."""

    def check(done: Done) -> None:
        persons(path, frames * each)(done)
        rows = rows_of(path)
        counts = {image: sum(row["image_id"] == image for row in rows) for image in {r["image_id"] for r in rows}}
        assert counts == dict.fromkeys(counts, each) and len(counts) == frames

    return check


def nothing_named(*names: str) -> Check:
    def check(done: Done) -> None:
        assert not done.files & set(names), done.files

    return check


def next_command_names(path: str) -> Check:
    """The command that the run suggests can be pasted into a shell."""

    def check(done: Done) -> None:
        assert done.code == 0, done
        words = [shlex.split(line.partition("next:")[2]) for line in done.out.splitlines() if "next:" in line]
        assert words and all(path in command for command in words), done.out

    return check


def whole_scores(done: Done) -> None:
    """100 % of 6 objects."""
    assert done.code == 0, done
    assert re.search(r"\b6\b", done.out) and re.search(r"\b100(\.0+)?\b", done.out), done.out


SIX_FIXED = coco(
    "fixed.json",
    lambda fixed: len(fixed["annotations"]) == 6 and fixed["annotations"][0]["bbox"] == [80, 20, 8, 15],
)
INFER = "infer --model thermal --image"
TRAIN = "train --data . --val . --preset small --epochs 1 --device cpu --weights-backbone none --tile 256"
POINT = either(coco("out.json", lambda made: made["annotations"][0]["bbox"] == [100, 80, 20, 40]), refused("kpt_shape"))
VIDEO_OR_WORD = either(video("out.csv", 2, 6), refused(".mp4"))
PAGES_OR_WORD = either(both(persons("out.json", 6), says(r"2 .*(page|frame)")), persons("out.json", 18))


class Case(NamedTuple):
    folder: str
    command: str  # arguments of `tinydet`, run inside a copy of the folder
    right: Check


CASES = [
    Case("antimeridian", f"{INFER} fiji.tif --output out.geojson", narrow_rings("out.geojson")),
    Case("antimeridian", f"{INFER} fiji.tif --output out.gpkg", narrow_rings("out.gpkg")),
    Case(
        "coco_backslash",
        "data check annotations.json --images images --fix fixed.json",
        either(
            coco(
                "fixed.json",
                lambda fixed: {image["file_name"] for image in fixed["images"]} == {"sub/a.png", "b.png"}
                and len(fixed["annotations"]) == 12,
            ),
            refused("backslash"),
        ),
    ),
    Case(
        "coco_bbox_as_text",
        "data check annotations.json",
        says(r"""annotation 1 .*\[["']80\.0["'], ["']20\.0["'], ["']8\.0["'], ["']15\.0["']\]""", code=1),
    ),
    Case("coco_corner_file", "infer --annotations corners.json --images images --model thermal --output det.json",
         either(exits(0), refused("corner"))),  # exit 0: see test_corner_files_are_scored_in_the_full_image
    Case("coco_crowd_as_text", "evaluate --gt annotations.json --detections results.json",
         either(whole_scores, refused("iscrowd"))),
    Case("coco_crowd_as_text", "evaluate --gt annotations.json --detections results.json --protocol coco",
         either(whole_scores, refused("iscrowd"))),
    Case("coco_float_ids",
         "infer --annotations annotations.json --images images --model thermal --output out.json",
         persons("out.json", 6, image_id=1)),
    Case("coco_polygons_without_bbox", "data check annotations.json --fix fixed.json", either(SIX_FIXED, refused())),
    Case("coco_roboflow_root", f"{TRAIN} --output m.pth --dry-run",
         either(says(r"objects \(person\)"), says(r"people-in-the-sea.*\bno (object|annotation|box)"),
                says(r"\bno (object|annotation|box).*people-in-the-sea"))),
    Case("crs_local_csv", f"{INFER} local.tif --output out.csv", both(persons("out.csv", 6), no_place("out.csv"))),
    Case("crs_local_csv", f"{INFER} local.tif --output out.parquet",
         both(persons("out.parquet", 6), no_place("out.parquet"))),
    Case("crs_local_csv", f"{INFER} local.tif --output out.geojson", refused_before_the_scan("local.tif")),
    Case("crs_local_csv", f"{INFER} local.tif --output found/ --format coco,csv",
         both(persons("found/local.detections.csv", 6), no_place("found/local.detections.csv"))),
    Case("crs_outside_its_area", f"{INFER} far.tif --output out.geojson", refused_before_the_scan("far.tif")),
    Case("draw_webp_too_wide", f"{INFER} wide.png --output out.json --draw out.webp",
         either(refused_before_the_scan("webp"), lambda done: drawn("out.webp", 16383)(done))),
    Case("folder_left_out", f"{INFER} flight --output all.csv", both(persons("all.csv", 24), says("heic"))),
    Case("jpeg_without_end", f"{INFER} pano.jpg --output out.json", persons("out.json", 6)),
    Case("next_command_with_spaces", TRAIN.replace(" . ", " ../coco_roboflow_root ") + " --output 'my models/m 1.pth'",
         next_command_names("my models/m 1.pth")),
    Case("tiff_pages", f"{INFER} pages.tif --output out.json", PAGES_OR_WORD),
    Case("tiff_pages", f"{INFER} anim.webp --output out.json", PAGES_OR_WORD),
    Case("tiff_pages", f"{INFER} anim.gif --output out.json", PAGES_OR_WORD),
    Case("video_by_another_suffix", f"{INFER} clip.flv --output out.csv", VIDEO_OR_WORD),
    Case("video_by_another_suffix", f"{INFER} clip.3gp --output out.csv", VIDEO_OR_WORD),
    Case("video_by_another_suffix", f"{INFER} clip.h264 --output out.csv", VIDEO_OR_WORD),
    Case("video_cover_first", f"{INFER} clip.mp4 --output out.csv", video("out.csv", 4, 6)),
    Case("video_without_a_keyframe", f"{INFER} folder --skip-unreadable --output found/",
         # 3, not 0 as the README has it: the exit code tells that something was skipped
         both(says(r"a\.ts", code=3), lambda done: persons("found/b.detections.json", 6)(done._replace(code=0)))),
    Case("voc_stale_size", "data convert Annotations --from voc --images images --output out.json",
         either(says(r"640.?x.?512.*320.?x.?256|320.?x.?256.*640.?x.?512"), refused("640", "320"))),
    Case("vrt_and_other_rasters", f"{INFER} mosaic.vrt --output out.json", persons("out.json", 6)),
    Case("vrt_and_other_rasters", f"{INFER} raster.img --output out.json", persons("out.json", 6)),
    Case("vrt_and_other_rasters", f"{INFER} raster.ntf --output out.json", persons("out.json", 6)),
    Case("yaml_on_off", "data convert labels --from yolo --images images --output out.json",
         either(coco("out.json", lambda made: [c["name"] for c in made["categories"]] == ["off", "on"]),
                refused("data.yaml"))),
    Case("yolo_pose_xy", "data convert labels --from yolo --images images --output out.json", POINT),
]  # fmt: skip


def drawn(path: str, most: int) -> Check:
    def check(done: Done) -> None:
        assert done.code == 0, done
        picture = cv2.imread(path)
        assert picture is not None and picture.shape[1] <= most

    return check


@pytest.fixture
def inputs(shared: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Copy the folder of a case to a writable place, with the output of its `make.sh`."""
    folder = shared / "cases" / "inputs"
    if not folder.is_dir():
        pytest.skip(f"needs the examples of {folder}, which are not on this machine")

    def copy(name: str) -> Path:
        target = tmp_path / name
        shutil.copytree(folder / name, target)
        for path in [target, *target.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        if (target / "make.sh").exists():
            subprocess.run(["sh", "make.sh"], cwd=target, check=True)
        return target

    return copy


@pytest.fixture
def case(
    inputs: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[[str], Run]:
    """Enter a copy of the folder of a case; return a function that runs commands of tinydet there."""

    def enter(name: str) -> Run:
        folder = inputs(name)
        monkeypatch.chdir(folder)

        def run(command: str) -> Done:
            before = contents(folder)
            capfd.readouterr()
            try:
                code = main(shlex.split(command))
            except SystemExit as stopped:  # argparse
                code = int(stopped.code or 0)
            out, err = capfd.readouterr()
            after = contents(folder)
            return Done(code, out, err, {name for name, data in after.items() if before.get(name) != data})

        return run

    return enter


SLOW = ("draw_webp_too_wide", "next_command_with_spaces")  # scan a large image, train


@pytest.mark.parametrize(
    ("folder", "command", "right"),
    [pytest.param(*row, marks=[pytest.mark.slow] * (row.folder in SLOW)) for row in CASES],
    ids=[f"{row.folder}-{i}" for i, row in enumerate(CASES)],
)
def test_the_input_is_read_right_or_refused(
    case: Callable[[str], Run], inputs: Callable[[str], Path], folder: str, command: str, right: Check
) -> None:
    run = case(folder)
    if folder == "next_command_with_spaces":
        inputs("coco_roboflow_root")
        Path("my models").mkdir()
    right(run(command))


# Cases of more than one command


def test_class_names_beyond_ascii_are_legible_in_the_drawing(case: Callable[[str], Run]) -> None:
    """Other letters give another image, and no letter is drawn as '?' or as the box of a missing glyph."""
    run = case("class_names_in_the_picture")
    subprocess.run([sys.executable, "names.py"], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    onnx = pytest.importorskip("onnx")

    def picture(name: str, replaced: Callable[[str], str]) -> tuple[np.ndarray, str]:
        model = onnx.load("names.onnx")
        for entry in model.metadata_props:
            if entry.key == "tinydet":
                spec = json.loads(entry.value)
                spec["classes"] = ["".join(replaced(c) if c > "~" else c for c in text) for text in spec["classes"]]
                entry.value = json.dumps(spec)
        onnx.save(model, f"{name}.onnx")
        done = run(f"infer --image a.png --model {name}.onnx --output {name}.csv --draw {name}.png")
        assert done.code == 0, done
        return cv2.imread(f"{name}.png"), done.text

    ours, text = picture("ours", lambda c: c)
    if re.search(r"class(es)? (number|\d).*(draw|font)|(draw|font).*class(es)? number", text):
        return  # drawn as numbers, with a warning
    for name, replaced in {
        "question": lambda c: "?",
        "missing": lambda c: "\U000f0000",  # in no font
        "shifted": lambda c: chr(ord(c) + 1),
    }.items():
        assert not np.array_equal(ours, picture(name, replaced)[0]), name


@pytest.mark.slow
def test_a_category_whose_name_has_a_comma_can_be_chosen(case: Callable[[str], Run]) -> None:
    run = case("coco_comma_in_a_name")
    ways = ["--category 'car, parked'", "--categories 'car, parked'", """--categories '"car, parked"'"""]
    train = "train --data . --val . --preset small --epochs 1 --device cpu --weights-backbone none --dry-run"
    assert any(re.search(r"objects \(car, parked\)", run(f"{train} {way}").out) for way in ways)
    rows = [{"image_id": 1, "category_id": 2, "bbox": [80, 20, 8, 15], "score": 0.9}]
    Path("results.json").write_text(json.dumps(rows))
    evaluate = "evaluate --gt annotations.json --detections results.json"
    done = next(done for done in (run(f"{evaluate} {way}") for way in ways) if done.code == 0)
    assert "parked" in done.out or re.search(r"\b100(\.0+)?\b", done.out), done.out

    from tinydet.train import TrainConfig
    from tinydet.train import train as run_training

    config = TrainConfig(data=Path("."), categories=("car, parked",), preset="small", epochs=1, device="cpu",
                         weights_backbone="none", dry_run=True)  # fmt: skip
    run_training(config)


def test_corner_files_are_scored_in_the_full_image(case: Callable[[str], Run]) -> None:
    run = case("coco_corner_file")
    done = run("infer --annotations corners.json --images images --model thermal --output det.json")
    if done.code == 2:
        return refused("corner")(done)
    scores = run("evaluate --gt annotations.json --detections det.json --corner-gt corners.json "
                 "--protocol tinyperson-fixed").out  # fmt: skip
    assert float(next(line for line in scores.splitlines() if line.startswith("AP")).split()[-1]) > 90, scores


@pytest.mark.slow
def test_a_full_disk_is_named_and_the_run_resumes(case: Callable[[str], Run], inputs: Callable[[str], Path]) -> None:
    """A GeoPackage begins with some 100 kB and takes some 200 bytes per box: 120 boxes go beyond the limit."""
    rasterio, run = pytest.importorskip("rasterio"), case("disk_full_gpkg")
    Path("flight").mkdir()
    with rasterio.open(inputs("crs_local_csv") / "local.tif") as small:
        pixels = np.tile(small.read(), (1, 4, 5))
    place = {"crs": "EPSG:32633", "transform": rasterio.Affine(0.1, 0, 500_000, 0, -0.1, 5_000_000)}
    with rasterio.open("flight/a.tif", "w", driver="GTiff", height=pixels.shape[1], width=pixels.shape[2],
                       count=len(pixels), dtype=pixels.dtype, compress="deflate", **place) as large:  # fmt: skip
        large.write(pixels)
    command = "infer --image flight --model thermal --format coco,gpkg --output found/"
    before = contents(Path())
    done = subprocess.run(
        [sys.executable, "-m", "tinydet", *shlex.split(command)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (110_000, 110_000)),
    )
    lines = [line for line in done.stderr.splitlines() if "error:" in line]
    assert done.returncode == 2 and "Traceback" not in done.stderr and len(lines) == 1, done
    assert ".gpkg" in lines[0] and re.search(r"full|space|too large", lines[0]), lines[0]
    left = contents(Path()).keys() - before.keys()
    assert not [name for name in left if name.endswith((".gpkg", ".part", ".tmp", "-journal", "-wal"))], left
    assert run(f"{command} --resume").code == 0
    assert len(rows_of("found/a.detections.json")) > 100
    assert len(pytest.importorskip("pyogrio.raw").read("found/a.detections.gpkg")[2]) > 100


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves the working directory, with basic authentication if it has a user name and password."""

    secret = ""

    def do_GET(self) -> None:
        expected = "Basic " + base64.b64encode(self.secret.encode()).decode()
        if self.secret and self.headers.get("Authorization") != expected:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="camera"')
            self.end_headers()
            return
        super().do_GET()

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def server(secret: str = "") -> Iterator[int]:
    """A web server on 127.0.0.1 of the working directory; yields its port."""
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), type("Camera", (Quiet,), {"secret": secret})
    ) as each:  # fmt: skip
        thread = threading.Thread(target=each.serve_forever, daemon=True)
        thread.start()
        yield each.server_address[1]
        each.shutdown()
        thread.join()


@pytest.mark.parametrize("output", ["", "--output out.csv", "--output found/ --format csv,coco"])
def test_no_name_line_or_file_has_the_password_of_a_stream(case: Callable[[str], Run], output: str) -> None:
    run = case("stream_password")
    with server("bob:s3cret") as port:
        done = run(f"{INFER} http://bob:s3cret@127.0.0.1:{port}/clip.ts {output}")
    assert done.code == 0 and done.files, done
    for text in [done.text, *done.files]:
        assert "s3cret" not in text and "bob" not in text
    for name, data in contents(Path()).items():
        assert name == "README" or (b"s3cret" not in data and b"bob" not in data), name


def test_no_line_has_the_password_of_a_stream_that_cannot_be_opened(case: Callable[[str], Run]) -> None:
    run = case("stream_password")
    done = run(f"{INFER} rtsp://bob:s3cret@127.0.0.1:1/pier --reconnect 0 --output out.csv")
    assert done.code == 2 and "s3cret" not in done.text and "bob" not in done.text, done
    assert "127.0.0.1" in done.err


@pytest.mark.parametrize("name", ["scene.tif", "float.tif"])
@pytest.mark.parametrize("scheme", ["file", "http"])
def test_an_image_named_by_its_address_is_an_image(case: Callable[[str], Run], scheme: str, name: str) -> None:
    run = case("file_uri")
    plain = run(f"{INFER} {name} --output plain.json")
    assert plain.code == 0, plain
    with server() as port:
        address = f"http://127.0.0.1:{port}" if scheme == "http" else Path.cwd().as_uri()
        done = run(f"{INFER} {address}/{name} --output out.json")
    either(
        both(exits(0), same_detections("out.json", "plain.json"), nothing_named("out.frames.csv"))
        if rows_of("plain.json")
        else both(exits(0), nothing_named("out.frames.csv")),
        refused(name),
    )(done)


def test_the_scene_behind_the_file_address_has_its_persons(case: Callable[[str], Run]) -> None:
    persons("plain.json", 4)(case("file_uri")(f"{INFER} scene.tif --output plain.json"))


def test_a_jpeg_that_is_cut_inside_its_scan_is_refused(case: Callable[[str], Run]) -> None:
    run = case("jpeg_without_end")
    data = Path("pano.jpg").read_bytes()
    Path("cut.jpg").write_bytes(data[: len(data) * 2 // 3])
    refused("cut.jpg")(run(f"{INFER} cut.jpg --output out.json"))


@pytest.mark.parametrize("bits", ["", "_16"])
def test_white_is_zero_is_read_as_the_same_scene(case: Callable[[str], Run], bits: str) -> None:
    run = case("tiff_white_is_zero")
    persons("same.json", 6)(run(f"{INFER} same.png --output same.json"))
    done = run(f"{INFER} white_is_zero{bits}.tif --output out.json")
    # 16 bits are stretched to 8, so that the pixels differ a little.
    both(persons("out.json", 6), same_detections("out.json", "same.json", pixels=2 if bits else 0))(done)


def test_file_names_that_are_not_utf_8_are_escaped_or_named(case: Callable[[str], Run]) -> None:
    run = case("name_in_latin1")

    def both_scenes(done: Done) -> None:
        persons("all.csv", 12)(done)
        assert len({row["scene"] for row in rows_of("all.csv")}) == 2

    plain = run(f"{INFER} flight --output all.csv")
    either(both_scenes, refused("ge.png"))(plain)
    if plain.code == 2:
        done = run(f"{INFER} flight --output all.csv --skip-unreadable")
        assert done.code == 3 and len(rows_of("all.csv")) == 6, done
    Path("labels").mkdir()
    for name in os.listdir(b"flight"):
        Path(os.fsdecode(b"labels/" + name)).with_suffix(".txt").write_text("0 0.5 0.5 0.1 0.1\n")
    Path("names.txt").write_text("person\n")
    done = run("data convert labels --from yolo --images flight --classes names.txt --output out.json")
    either(coco("out.json", lambda made: len(made["images"]) == len(made["annotations"]) == 2), refused("ge."))(done)


@pytest.mark.slow
def test_the_second_of_two_trainings_with_one_output_ends_at_once(inputs: Callable[[str], Path]) -> None:
    folder = inputs("coco_roboflow_root")
    inputs("two_trainings_one_output")
    command = [sys.executable, "-m", "tinydet", *shlex.split(TRAIN), "--epochs", "1000", "--output", "m.pth"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    runs = [
        subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    try:
        ended = []
        for _ in range(1200):
            ended = [each for each in runs if each.poll() is not None]
            if ended:
                break
            threading.Event().wait(0.05)
        assert len(ended) == 1, "both train" if not ended else "both ended"
        out, err = (text.decode() for text in ended[0].communicate())
        assert ended[0].returncode == 2, (out, err)
        assert "Traceback" not in err and err.count("error:") == 1 and "m.pth" in err, err
        assert re.search("another|running|in use|locked", err), err
    finally:
        for each in runs:
            each.kill()
            each.communicate()
