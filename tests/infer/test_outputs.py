"""Which files the command writes: formats, one file or one per scene, drawings, contact sheets, videos."""

from __future__ import annotations

import csv
import errno
import functools
import hashlib
import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import tinydet
from tinydet._internal.console import Console
from tinydet.infer import scenes
from tinydet.infer.__main__ import main
from tinydet.infer.chunks import Best, chunks
from tinydet.infer.jobs import OutputOptions, plan_jobs
from tinydet.runtime import scan
from tinydet.runtime.backends.onnx_runtime import OnnxRuntimeBackend
from tinydet.runtime.detections import Detections
from tinydet.runtime.scan import BatchResult
from tinydet.runtime.scenes.sources import find_sources
from tinydet.runtime.stitch import Stitcher
from tinydet.runtime.writers import SceneDetections, open_writers
from tinydet.spec import ModelSpec

ROOT = Path(__file__).resolve().parents[2]
SPEC = ModelSpec(("square",), (1,), "d", "b", tile=64)
BOXES = {"a": [[16, 24, 8, 8], [80, 8, 8, 8]], "b": [[160, 112, 8, 8]], "c": []}


@pytest.fixture
def flight(make_onnx: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model and a folder of three scenes."""
    monkeypatch.chdir(tmp_path)
    make_onnx(tmp_path / "model.onnx")
    (tmp_path / "flight").mkdir()
    for name, boxes in BOXES.items():
        paint(tmp_path / "flight" / f"{name}.png", boxes)
    return tmp_path


def paint(path: Path, boxes: list[list[int]]) -> None:
    pixels = np.zeros((128, 192, 3), np.uint8)
    for x, y, w, h in boxes:
        pixels[y : y + h, x : x + w] = 255
    assert cv2.imwrite(str(path), pixels)


def run(*words: object) -> int:
    return main([*map(str, words), "--overlap", "8", "--backend", "onnx"])


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def coco(path: Path) -> list[list[float]]:
    return sorted(row["bbox"] for row in json.loads(path.read_text())["annotations"])


def table(path: Path) -> list[list[float]]:
    rows = csv.DictReader(path.open())
    return sorted([float(row["x1"]), float(row["y1"]), 8, 8] for row in rows)


def test_several_formats_are_written_for_all_scenes_or_for_each(flight: Path) -> None:
    everything = sorted(box for boxes in BOXES.values() for box in boxes)
    assert run("--image", "flight", "--output", "all.csv", "--format", "coco,csv") == 0
    assert table(flight / "all.csv") == coco(flight / "all.json") == everything
    assert run("--image", "flight", "--output", "found/", "--format", "csv,coco") == 0
    expected = [f"{name}.detections.{suffix}" for name in BOXES for suffix in ("csv", "json")]
    assert files(flight / "found") == expected
    for name, boxes in BOXES.items():
        assert table(flight / "found" / expected[0].replace("a", name, 1)) == sorted(boxes)
        assert coco(flight / "found" / f"{name}.detections.json") == sorted(boxes)
    assert not list(flight.rglob("*.journal*"))


def test_an_output_without_a_suffix_is_a_folder(flight: Path) -> None:
    named = ("--output", "found", "--format", "yolo,csv", "--draw", "drawn", "--crops", "crops")
    assert run("--image", "flight", *named) == 0
    written = {
        path.relative_to(".").as_posix() for name in ("found", "drawn", "crops") for path in Path(name).iterdir()
    }
    slashed = [f"{word}s/" if word in ("found", "drawn", "crops") else word for word in named]
    assert run("--image", "flight", *slashed) == 0
    again = {
        path.relative_to(".").as_posix() for name in ("founds", "drawns", "cropss") for path in Path(name).iterdir()
    }
    assert written and {name.replace("/", "s/", 1) for name in written} == again


def test_a_format_without_output_is_written_next_to_the_scene_with_the_drawing(flight: Path) -> None:
    assert run("--image", "flight/a.png", "--format", "csv") == 0
    assert files(flight / "flight") == ["a.detections.csv", "a.detections.jpg", "a.png", "b.png", "c.png"]


def test_drawings_and_crops_of_several_scenes_go_to_folders_that_are_created(flight: Path) -> None:
    assert run("--image", "flight", "--draw", "shown/", "--crops", "sheets/") == 0
    assert files(flight / "shown") == [f"{name}.detections.jpg" for name in BOXES]
    assert files(flight / "sheets") == [f"{name}.detections.crops.jpg" for name in BOXES]
    assert run("--image", "flight/a.png", "--crops", "one.png") == 0
    assert cv2.imread("one.png").shape[0] > 144


def test_scenes_with_equal_names_get_different_files(flight: Path) -> None:
    for folder in ("100MEDIA", "101MEDIA"):
        (flight / "card" / folder).mkdir(parents=True)
        paint(flight / "card" / folder / "DJI_1.png", BOXES["a"])
    paint(flight / "card" / "101MEDIA" / "DJI_1.bmp", BOXES["b"])
    jobs = plan_jobs(find_sources(["card"]), OutputOptions("flight/")).jobs
    names = [job.results[0].name.removesuffix(".detections.json") for job in jobs]
    assert names == ["100MEDIA-DJI_1.png", "DJI_1.bmp", "101MEDIA-DJI_1.png"]
    next_to_scene = plan_jobs(find_sources(["card"]), OutputOptions()).jobs
    assert [str(job.results[0].relative_to("card")) for job in next_to_scene] == [
        "100MEDIA/DJI_1.detections.json", "101MEDIA/DJI_1.bmp.detections.json", "101MEDIA/DJI_1.png.detections.json"
    ]  # fmt: skip


def test_a_scene_without_georeference_is_refused_before_any_is_scanned(flight: Path, shared: Path, capsys) -> None:
    placed = shared / "data" / "bigscene-plaza" / "images" / "minsk_plaza_DJI_0010_rotated.tif"
    assert run("--image", placed, "flight/b.png", "--output", "all.csv", "--format", "csv,geojson") == 2
    captured = capsys.readouterr()
    assert "flight/b.png has no georeference" in captured.err
    assert captured.out == ""
    assert files(flight) == ["flight/a.png", "flight/b.png", "flight/c.png", "model.onnx"]


def test_inputs_are_not_overwritten(flight: Path, capsys) -> None:
    images = [{"id": 1, "file_name": "a.png", "width": 192, "height": 128}]
    document = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "square"}]}
    (flight / "val.json").write_text(json.dumps(document))
    for name in ("model.engine", "model.json", "model.skip.json"):
        (flight / name).write_text("{}")
    before = {path: path.read_bytes() for path in flight.glob("*.*")}
    annotated = ("--annotations", "val.json", "--images", "flight")
    for words in (
        (*annotated, "--output", "val.json"),
        (*annotated, "--output", "val.csv", "--format", "csv,coco"),
        ("--image", "flight", "--output", "./model.json"),
        ("--image", "flight", "--output", "model.json", "--model", "model.engine"),
        ("--image", "flight", "--output", "model.skip.json"),
    ):
        assert run(*words) == 2
        assert ".json is an input and would be overwritten" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in flight.glob("*.*")} == before


def test_only_the_results_go_to_a_pipe(flight: Path) -> None:
    words = ["--image", "flight/a.png", "--output", "/dev/stdout", "--overlap", "8", "--backend", "onnx"]
    done = subprocess.run(
        [sys.executable, "-m", "tinydet", "infer", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert sorted(row["bbox"] for row in json.loads(done.stdout)["annotations"]) == sorted(BOXES["a"])
    assert "a.png: 192x128" in done.stderr


def test_a_damaged_scene_stops_the_run_or_is_skipped_and_reported(flight: Path, capsys) -> None:
    intact = (flight / "flight" / "a.png").read_bytes()
    (flight / "flight" / "b.png").write_bytes(intact[:60])
    words = ("--image", "flight", "--output", "all.json")
    assert run(*words) == 2
    assert "truncated PNG" in (said := capsys.readouterr().err)
    assert said.endswith("--skip-unreadable continues with the other scenes\n")
    assert not (flight / "all.json").exists()
    assert run(*words, "--skip-unreadable") == 3
    assert coco(flight / "all.json") == sorted(BOXES["a"])
    summary = capsys.readouterr().err
    assert "1 of 3 scenes was skipped:\n" in summary
    assert "  flight/b.png: truncated PNG" in summary


LOCAL = 'LOCAL_CS["site grid",UNIT["metre",1],AXIS["Easting",EAST],AXIS["Northing",NORTH]]'


def paint_raster(path: Path, crs: str, left: float = 500_000.0) -> None:
    rasterio = pytest.importorskip("rasterio")
    pixels = np.zeros((3, 128, 192), np.uint8)
    pixels[:, 24:32, 16:24] = 255
    affine = rasterio.Affine(0.1, 0, left, 0, -0.1, 8_000_000)
    shape = {"count": 3, "dtype": "uint8", "width": 192, "height": 128, "photometric": "RGB"}
    with rasterio.open(path, "w", driver="GTiff", crs=crs, transform=affine, **shape) as file:
        file.write(pixels)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_of_a_local_raster_has_no_longitude_and_says_so_before_the_scan(
    suffix: str, flight: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pyarrow")
    paint_raster(flight / "local.tif", LOCAL)
    assert run("--image", "local.tif", "--output", f"all{suffix}") == 0
    (line,) = capfd.readouterr().err.splitlines()[-1:]
    assert "local.tif: its coordinates have no longitude and latitude" in line
    assert "left empty" in line
    if suffix == ".csv":
        (row,) = csv.DictReader((flight / "all.csv").open(newline=""))
        assert (row["lon"], row["lat"], float(row["x1"])) == ("", "", 16)
    assert run("--image", "local.tif", "--output", "all.json") == 0
    assert not capfd.readouterr().err, "COCO results have no longitude"


@pytest.mark.parametrize(("crs", "left"), [(LOCAL, 5e5), ("EPSG:32633", 5e9)])
@pytest.mark.parametrize("suffix", [".geojson", ".gpkg"])
def test_a_map_without_longitude_and_latitude_is_refused_before_the_scan(
    crs: str, left: float, suffix: str, flight: Path, runs: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pyogrio")
    paint_raster(flight / "far.tif", crs, left)
    paint_raster(flight / "near.tif", "EPSG:32633")
    assert run("--image", "far.tif", "--output", f"all{suffix}") == 2
    assert "far.tif: its coordinates have no longitude and latitude" in (line := capsys.readouterr().err)
    assert line.count("\n") == 1
    assert "--skip-unreadable" not in line
    assert run("--image", "far.tif", "near.tif", "--output", f"all{suffix}") == 2
    assert "far.tif" in (line := capsys.readouterr().err)
    assert "--skip-unreadable" in line
    assert not runs
    assert not list(flight.glob("*all*"))
    assert run("--image", "far.tif", "near.tif", "--output", f"all{suffix}", "--skip-unreadable") == 3
    assert "far.tif: its coordinates" in capsys.readouterr().err.partition("1 of 2 scenes was skipped:")[2]
    assert sum(runs) == 12  # tiles of the other scene
    assert (flight / f"all{suffix}").exists()


def test_every_cause_of_one_scene_is_skipped_and_listed(
    flight: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("empty.png", "cut.png", "text.png", "gone.png", "forbidden.png")
    (flight / "empty.png").touch()
    (flight / "cut.png").write_bytes((flight / "flight" / "a.png").read_bytes()[:60])
    (flight / "text.png").write_text("no image")
    for name in ("gone.png", "forbidden.png"):
        paint(flight / name, BOXES["a"])
    opened = scenes.open_scene

    def open_scene(path: Path, **options: object) -> object:
        (flight / "gone.png").unlink(missing_ok=True)  # between the listing and the scan
        if path.name == "forbidden.png":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, **options)

    monkeypatch.setattr(scenes, "open_scene", open_scene)
    assert run("--image", "flight", *names, "--output", "all.json", "--skip-unreadable") == 3
    assert coco(flight / "all.json") == sorted(BOXES["a"] + BOXES["b"])
    summary = capsys.readouterr().err.partition("5 of 8 scenes were skipped:")[2]
    assert summary
    for name in names:
        assert f"  {name}" in summary
    assert "Permission denied" in summary
    assert run("--image", "flight", "--output", "all.json", "--skip-unreadable") == 0


def test_a_full_disk_at_the_journal_or_the_drawing_names_the_file_and_resume_completes(
    flight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    words = ("--image", "flight/a.png", "--output", "a.json", "--draw", "a.bmp")
    for limit, name in ((200, "a.journal"), (4000, "a.bmp")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            assert run(*words) == 2
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        (line,) = capsys.readouterr().err.splitlines()
        assert name in line
        assert "File too large" in line
        assert {path.name for path in flight.iterdir()} <= {"flight", "model.onnx", "a.json", "a.journal"}
    assert run(*words, "--resume") == 0
    assert coco(flight / "a.json") == sorted(BOXES["a"])
    assert (flight / "a.bmp").exists()


def test_a_device_that_is_full_is_named(flight: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--image", "flight/a.png", "--output", "/dev/full") == 2
    assert capsys.readouterr().err.endswith("error: /dev/full: No space left on device\n")


def test_a_drawing_that_cannot_be_written_is_refused_before_the_scan(flight: Path, runs: list[int], capfd) -> None:
    for suffix in (".exr", ".pgm", ".xyz"):
        for flag in ("--draw", "--crops"):
            assert run("--image", "flight/a.png", flag, f"a{suffix}") == 2
            assert f"a{suffix}: cannot write an image" in (line := capfd.readouterr().err)
            assert line.count("\n") == 1
    assert not runs


def test_a_scene_wider_than_webp_allows_is_drawn_smaller(flight: Path) -> None:
    image = np.zeros((16, 17_000, 3), np.uint8)
    cv2.imwrite("wide.png", image)
    assert run("--image", "wide.png", "--draw", "wide.webp") == 0
    assert cv2.imread("wide.webp").shape[1] == 16_383


@pytest.mark.filterwarnings("ignore:Dataset has no geotransform")
def test_for_a_partly_damaged_scene_the_number_of_boxes_written_is_reported(
    flight: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    rasterio = pytest.importorskip("rasterio")
    pixels = np.zeros((1, 4096, 64), np.uint8)
    for y in range(16, 4096, 32):
        pixels[:, y : y + 8, 16:24] = 255
    shape = {"count": 1, "dtype": "uint8", "width": 64, "height": 4096, "blockysize": 16}
    with rasterio.open("flight/d.tif", "w", driver="GTiff", **shape) as file:
        file.write(pixels)
    intact = (flight / "flight" / "d.tif").read_bytes()
    (flight / "flight" / "d.tif").write_bytes(intact[: len(intact) * 9 // 10])
    monkeypatch.setattr("tinydet.infer.scenes.chunks", functools.partial(chunks, size=1))
    monkeypatch.setattr("tinydet.runtime.scan.Stitcher", functools.partial(Stitcher, enough=1))
    assert run("--image", "flight", "--output", "all.json", "--skip-unreadable", "-v") == 3
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "d.tif: skipped" in line)
    written = len(coco(flight / "all.json")) - sum(map(len, BOXES.values()))
    assert written > 0
    assert line.endswith(f"; {written} of its boxes were already written")


def test_only_an_added_scene_is_run_when_resuming(flight: Path, capsys) -> None:
    words = ("--image", "flight", "--output", "all.json", "--resume")
    assert run(*words) == 0
    before = json.loads((flight / "all.json").read_text())["annotations"]
    paint(flight / "flight" / "aa.png", BOXES["b"])
    assert run(*words, "-v") == 0
    assert capsys.readouterr().out.count("12 of 12 tiles were finished by an earlier run") == 3
    after = json.loads((flight / "all.json").read_text())["annotations"]
    assert [row["bbox"] for row in after if row["image_id"] == 2] == BOXES["b"]
    assert len(after) == len(before) + 1
    (flight / "flight" / "a.png").unlink()
    assert run(*words) == 0
    assert len(json.loads((flight / "all.json").read_text())["annotations"]) == len(before) + 1 - len(BOXES["a"])


def test_the_number_of_open_files_does_not_grow_with_the_number_of_scenes(
    flight: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc/self/fd to count the open files")
    counts: list[int] = []
    monkeypatch.setattr(Console, "emit", lambda *_: counts.append(len(os.listdir("/proc/self/fd"))))
    monkeypatch.setattr(scan, "MOST_OPEN", 8)
    for i in range(100):
        (flight / "flight" / f"s{i}.png").write_bytes((flight / "flight" / "a.png").read_bytes())
    assert run("--image", "flight", "--output", "all.json", "--format", "coco,csv", "-v") == 0
    assert len(counts) >= 2 * 103
    assert max(counts) <= counts[0] + 4 * 8


def steps(rng: np.random.Generator, sizes: list[int]) -> Iterator[BatchResult]:
    for size in sizes:
        corner = rng.uniform(0, 900, (size, 2)).astype(np.float32)
        scores = rng.choice(np.float32([0.4, 0.5, 0.6]), size)
        zeros = np.zeros(size, np.int32)
        found = Detections(np.concatenate([corner, corner + 8], 1), scores, zeros)
        yield BatchResult(found, tiles=1)


def split_again(parts: list[BatchResult], cuts: list[int]) -> list[BatchResult]:
    """Return the same detections, split into other steps."""
    everything = Detections.concatenate([part.detections for part in parts])
    edges = [0, *cuts, len(everything)]
    return [BatchResult(everything[a:b], tiles=1) for a, b in itertools.pairwise(edges)]


@pytest.mark.parametrize("cuts", [[], [1], [7, 8, 9, 30], list(range(1, 60))])
def test_chunks_do_not_depend_on_the_batches_of_the_scan_and_are_sorted_by_score(cuts: list[int]) -> None:
    parts = list(steps(np.random.default_rng(0), [5, 0, 20, 1, 34]))
    expected = list(chunks(parts, 25))
    assert [len(one) for one in expected] == [25, 25, 10]
    for one, two in zip(chunks(split_again(parts, cuts), 25), expected, strict=True):
        assert np.array_equal(one.boxes, two.boxes)
        assert (np.diff(one.scores) <= 0).all()
    (everything,) = chunks(parts, 1000)
    assert np.array_equal(
        everything.boxes, Detections.concatenate([part.detections for part in parts]).by_score().boxes
    )
    assert [len(one) for one in chunks([], 10)] == [0]


def test_memory_does_not_grow_with_the_number_of_objects(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        tracemalloc.start()
        with open_writers([tmp_path / "all.json", tmp_path / "all.csv"], SPEC) as write:
            for chunk in chunks(steps(np.random.default_rng(0), [250] * (count // 250)), 500):
                write(SceneDetections("scene", 1, 1000, 1000, chunk))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(json.loads((tmp_path / "all.json").read_text())["annotations"]) == count
        return most

    peak(500)  # one-time allocations
    assert peak(10_000) < 1.2 * peak(2000)


def test_a_drawing_gets_the_best_of_all_chunks() -> None:
    parts = list(steps(np.random.default_rng(1), [40, 40]))
    best = Best(30)
    for chunk in chunks(parts, 20):
        best.add(chunk)
    everything = Detections.concatenate([part.detections for part in parts]).by_score()
    assert np.array_equal(best.detections.boxes, everything.boxes[:30])
    assert best.total == 80


def test_names_that_are_not_text_are_escaped_in_every_format_and_stay_in_the_folder(flight: Path, capsys) -> None:
    names = [os.fsdecode(name) for name in (b"pl\xe9ge.png", b"pl\xe8ge.png", b"line\nbreak.png", b"-x:?.png")]
    names.append("x" * 251 + ".png")
    for name in names:  # OpenCV writes no such names
        paint(flight / "new.png", BOXES["a"])
        (flight / "new.png").rename(flight / "flight" / name)
    assert run("--image", "flight", "--output", "all.csv", "--format", "csv,coco") == 0
    with (flight / "all.csv").open(newline="") as file:
        scenes = {row["scene"] for row in csv.DictReader(file)}
    escaped = {r"flight/pl\xe9ge.png", r"flight/pl\xe8ge.png", r"flight/line\nbreak.png", "flight/-x:?.png"}
    assert escaped < scenes
    assert len(scenes) == 7
    before = set(files(flight))
    assert run("--image", "flight", "--output", "found/", "--draw", "found/", "--resume") == 0
    written = set(files(flight)) - before
    assert all(name.startswith("found/") for name in written)
    assert {"found/pl_xe9ge.detections.json", "found/pl_xe8ge.detections.jpg"} < written
    for name in written:
        name.encode()  # valid UTF-8
    assert not set(capsys.readouterr().out) & {"\udce9"}


def test_yolo_labels_pair_with_the_images(flight: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (flight / "flight" / "day").mkdir()
    paint(flight / "flight" / "day" / "a.png", BOXES["b"])
    words = ("--image", "flight", "--output", "labels/", "--format")
    assert run(*words, "yolo,csv") == 0
    labels = sorted((flight / "labels").rglob("*.txt"))
    assert [str(path.relative_to(flight / "labels")) for path in labels] == [
        "a.txt", "b.txt", "c.txt", "classes.txt", "day/a.txt"
    ]  # fmt: skip
    assert (flight / "labels" / "classes.txt").read_text() == "square\nbar\n"
    rows = np.loadtxt(flight / "labels" / "day" / "a.txt", ndmin=2)
    assert rows.shape == (1, 5)
    assert rows[0] * [1, 192, 128, 192, 128] == pytest.approx([0, 164, 116, 8, 8])
    assert run(*words, "yolo-conf") == 0
    assert np.loadtxt(flight / "labels" / "day" / "a.txt", ndmin=2).shape == (1, 6)
    (flight / "labels" / "classes.txt").write_text("dog\n")
    capsys.readouterr()
    assert run(*words, "yolo") == 2
    captured = capsys.readouterr()
    assert "labels/classes.txt lists other classes than the model (square, bar)" in captured.err
    assert "tiles of 64" not in captured.out, "before the scan"


def test_images_with_the_same_yolo_labels_are_refused(flight: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paint(flight / "flight" / "a.bmp", BOXES["b"])
    assert run("--image", "flight", "--output", "labels/", "--format", "yolo") == 2
    assert "flight/a.bmp and flight/a.png would have the same YOLO labels, labels/a.txt" in capsys.readouterr().err
    assert not (flight / "labels").exists()


def test_labels_of_an_annotated_set_are_named_like_its_images(flight: Path) -> None:
    (flight / "flight" / "day").mkdir()
    paint(flight / "flight" / "day" / "a.png", BOXES["b"])
    images = [
        {"id": id, "file_name": name, "width": 192, "height": 128} for id, name in ((7, "day/a.png"), (3, "b.png"))
    ]
    document = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "square"}]}
    (flight / "val.json").write_text(json.dumps(document))
    words = ("--annotations", "val.json", "--images", "flight", "--output")
    assert run(*words, "labels/", "--format", "yolo") == 0
    assert files(flight / "labels") == ["b.txt", "classes.txt", "day/a.txt"]
    assert run(*words, "all.json") == 0
    assert json.loads((flight / "all.json").read_text())["images"] == images


def test_a_scene_without_objects_is_an_image_of_the_file(flight: Path) -> None:
    assert run("--image", "flight", "--output", "all.json") == 0
    images = json.loads((flight / "all.json").read_text())["images"]
    assert [(image["id"], image["file_name"]) for image in images] == [(1, "a.png"), (2, "b.png"), (3, "c.png")]
    assert run("--image", "flight/c.png", "--output", "one.json") == 0
    document = json.loads((flight / "one.json").read_text())
    assert (len(document["images"]), document["annotations"]) == (1, [])


def test_the_bare_list_is_written_on_request(flight: Path) -> None:
    assert run("--image", "flight", "--output", "all.json") == 0
    words = ("--image", "flight", "--output", "list.json", "--format", "coco-results,csv", "--resume")
    assert run(*words) == 0
    rows = json.loads((flight / "list.json").read_text())
    whole = json.loads((flight / "all.json").read_text())["annotations"]
    assert rows == [{key: row[key] for key in ("image_id", "category_id", "bbox", "score")} for row in whole]
    assert (flight / "list.csv").exists()
    (flight / "list.csv").unlink()
    assert run("--image", "flight", "--output", "list.json", "--resume") == 0
    assert len(json.loads((flight / "list.json").read_text())["images"]) == 3, "another format is not already complete"


def summary(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_the_summary_describes_scenes_files_and_the_run(flight: Path) -> None:
    assert run("--image", "flight", "--output", "all.csv", "--draw", "shown/", "--summary", "run.json") == 0
    found = summary(flight / "run.json")
    assert found["status"] == "complete"
    assert [
        (one["scene"], one["file_name"], one["width"], one["height"], one["tiles"], one["detections"], one["status"])
        for one in found["scenes"]
    ] == [(f"flight/{name}.png", f"{name}.png", 192, 128, 12, len(boxes), "done") for name, boxes in BOXES.items()]
    assert found["scenes"][0]["by_class"] == {"square": 2, "bar": 0}
    assert found["scenes"][0]["outputs"] == ["shown/a.detections.jpg"]
    assert found["outputs"] == ["all.csv", *(f"shown/{name}.detections.jpg" for name in BOXES)]
    assert all((flight / path).exists() for path in found["outputs"])
    total = found["total"]
    assert (total["scenes"], total["done"], total["tiles"], total["detections"]) == (3, 3, 36, 3)
    assert total["by_class"] == {"square": 3, "bar": 0}
    assert found["model"]["path"] == "model.onnx"
    assert found["model"]["sha256"] == hashlib.sha256((flight / "model.onnx").read_bytes()).hexdigest()
    assert (found["options"]["score"], found["options"]["output"]) == (0.3, "all.csv")
    assert found["versions"]["tinydet"] == tinydet.__version__
    assert "onnxruntime" in str(found["versions"])
    assert found["seconds"] >= sum(one["seconds"] for one in found["scenes"])


def test_the_summary_names_skipped_scenes_with_reasons(flight: Path) -> None:
    (flight / "flight" / "b.png").write_bytes((flight / "flight" / "a.png").read_bytes()[:60])
    assert run("--image", "flight", "--output", "all.csv", "--summary", "run.json", "--skip-unreadable") == 3
    found = summary(flight / "run.json")
    (skipped,) = [one for one in found["scenes"] if one["status"] == "skipped"]
    assert skipped["scene"] == "flight/b.png"
    assert "truncated PNG" in skipped["reason"]
    assert (found["status"], found["total"]["done"], found["total"]["skipped"]) == ("complete", 2, 1)
    assert run("--image", "flight", "--output", "all.csv", "--summary", "run.json") == 2
    found = summary(flight / "run.json")
    assert (found["status"], found["outputs"]) == ("failed", [])
    assert "truncated PNG" in found["error"]
    assert (found["total"]["done"], found["total"]["not_finished"]) == (1, 2)


def test_the_summary_is_written_after_an_interruption(flight: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stops(self: OnnxRuntimeBackend, images: np.ndarray) -> object:
        calls.append(len(images))
        if len(calls) == 5:  # in the second scene of three batches each
            raise KeyboardInterrupt
        return completed(self, images)

    calls: list[int] = []
    completed = OnnxRuntimeBackend.run
    monkeypatch.setattr(OnnxRuntimeBackend, "run", stops)
    assert run("--image", "flight", "--output", "found/", "--summary", "reports/run.json") == 130
    found = summary(flight / "reports" / "run.json")
    assert (found["status"], found["total"]["done"], found["total"]["not_finished"]) == ("interrupted", 1, 2)
    assert found["outputs"] == ["found/a.detections.json"]
    monkeypatch.undo()
    monkeypatch.chdir(flight)
    assert run("--image", "flight", "--output", "found/", "--summary", "run.json", "--resume") == 0
    found = summary(flight / "run.json")
    assert [one["status"] for one in found["scenes"]] == ["unchanged", "done", "done"]


@pytest.mark.parametrize("output", ["found/", "all.json"])
def test_a_resumed_run_reports_what_earlier_runs_found(
    flight: Path, capsys: pytest.CaptureFixture[str], output: str
) -> None:
    words = ("--image", "flight", "--output", output, "--summary", "run.json", "--resume")
    assert run(*words) == 0
    first, said = summary(flight / "run.json"), capsys.readouterr().out
    counts = "3 detections (square 3, bar 0)"
    assert counts in said
    assert run(*words) == 0
    again, said = summary(flight / "run.json"), capsys.readouterr().out
    assert counts in said
    assert "tiles/s" not in said
    for key in ("tiles", "detections", "by_class"):
        assert again["total"][key] == first["total"][key]
    for one, two in zip(first["scenes"], again["scenes"], strict=True):
        one.pop("seconds")
        assert two == {**one, "status": "unchanged"}


def test_a_summary_says_running_until_the_end(flight: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a killed process leaves behind must not be the summary of an earlier run."""
    (flight / "run.json").write_text('{"status": "complete"}')
    status = []
    completed = OnnxRuntimeBackend.run

    def looks(self: OnnxRuntimeBackend, images: np.ndarray) -> object:
        status.append(summary(flight / "run.json")["status"])
        return completed(self, images)

    monkeypatch.setattr(OnnxRuntimeBackend, "run", looks)
    assert run("--image", "flight", "--output", "found/", "--summary", "run.json") == 0
    assert set(status) == {"running"}
    assert summary(flight / "run.json")["status"] == "complete"


def test_sigterm_ends_a_run_like_ctrl_c(flight: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []  # another one would arrive when the run has ended, and end the tests

    def stops(self: OnnxRuntimeBackend, images: np.ndarray) -> object:
        if not sent:
            sent.append(signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        return completed(self, images)

    completed = OnnxRuntimeBackend.run
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(OnnxRuntimeBackend, "run", stops)
    assert run("--image", "flight", "--output", "all.csv", "--summary", "run.json") == 130
    assert summary(flight / "run.json")["status"] == "interrupted"
    assert not list(flight.glob(".all.*"))
    assert signal.getsignal(signal.SIGTERM) == before
