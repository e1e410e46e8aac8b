"""The command on many scenes and videos: automatic options, and resuming after an interruption."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from tinydet.infer.__main__ import main
from tinydet.runtime.backends.onnx_runtime import OnnxRuntimeBackend
from tinydet.spec import ModelSpec

SPEC = ModelSpec(
    classes=("square", "bar"),
    category_ids=(7, 0),
    detector="cells",
    backbone="none",
    tile=64,
    max_batch=4,
    max_detections=50,
    nms_in_graph=True,
    object_sizes=(6.0, 8.0, 10.0),
)
ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")  # the test file has none


@pytest.fixture
def folder(make_onnx: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model that finds white cells of a lattice of 8 pixels."""
    monkeypatch.chdir(tmp_path)
    make_onnx(tmp_path / "model.onnx", spec=SPEC)
    return tmp_path


def paint(path: Path, boxes: list[list[int]], width: int = 192, height: int = 128) -> Path:
    pixels = np.zeros((height, width, 3), np.uint8)
    for x, y, w, h in boxes:
        pixels[y : y + h, x : x + w] = 255
    path.parent.mkdir(exist_ok=True)
    assert cv2.imwrite(str(path), pixels)
    return path


def lattice(seed: int, width: int, height: int, count: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    cells = rng.choice((width // 16) * (height // 16), count, replace=False)
    return [[int(i) % (width // 16) * 16, int(i) // (width // 16) * 16, 8, 8] for i in cells]


def rows(path: Path) -> list[tuple]:
    return sorted((row["image_id"], *row["bbox"]) for row in json.loads(path.read_text())["annotations"])


def run(*words: object, overlap: object = 8) -> int:
    # The backend whose runs are counted; `auto` would use OpenVINO if it is installed.
    return main([*map(str, words), "--overlap", str(overlap), "--backend", "onnx"])


def test_a_folder_and_a_pattern_are_scanned_without_earlier_outputs(folder: Path, capsys) -> None:
    for name in ("b.png", "a.png"):
        paint(folder / "flight" / name, [[16, 24, 8, 8]])
    assert run("--image", "flight", "-v") == 0
    assert run("--image", "flight/*.png", "--output", "all.json", "--verbose") == 0
    assert rows(folder / "all.json") == [(1, 16, 24, 8, 8), (2, 16, 24, 8, 8)]
    assert capsys.readouterr().out.count("a.png: 192x128") == 2
    assert not list(folder.rglob("*.journal"))


def test_each_entry_of_a_corner_file_is_its_part_of_the_image(folder: Path) -> None:
    """Boxes are in pixels of the entry, as `tinydet evaluate --corner-gt` expects; the file may be cut out already."""
    boxes = lattice(3, 192, 128, 30)
    paint(folder / "images" / "a.png", boxes)
    corners = [[0, 0, 64, 64], [32, 16, 96, 80], [128, 64, 192, 128]]
    images = [
        {"id": n, "file_name": "a.png", "width": 64, "height": 64, "corner": corner}
        for n, corner in enumerate(corners, 5)
    ]
    inside = {
        (n, x - x1, y - y1, w, h)
        for n, (x1, y1, x2, y2) in enumerate(corners, 5)
        for x, y, w, h in boxes
        if x1 <= x < x2 and y1 <= y < y2
    }
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "square"}]}
    (folder / "corners.json").write_text(json.dumps(content))
    for output in ("found.json", "found/"):
        words = ("--annotations", "corners.json", "--images", "images", "--output", output, "--resume")
        assert run(*words) == run(*words) == 0
    assert set(rows(folder / "found.json")) == inside
    names = [f"a_{x}_{y}.detections.json" for x, y, _, _ in corners]
    assert sorted(path.name for path in (folder / "found").glob("*.json")) == sorted(names)
    assert {row for name in names for row in rows(folder / "found" / name)} == inside


def test_an_image_of_another_size_than_its_annotation_says_is_refused(folder: Path, capsys) -> None:
    paint(folder / "images" / "a.png", [])
    image = {"id": 1, "file_name": "a.png", "width": 128, "height": 192}
    content = {"images": [image], "annotations": [], "categories": [{"id": 1, "name": "square"}]}
    (folder / "set.json").write_text(json.dumps(content))
    assert run("--annotations", "set.json", "--images", "images", "--output", "found.json") == 2
    assert "a.png is 192x128 pixels, but its annotated image is 128x192" in capsys.readouterr().err
    assert not (folder / "found.json").exists()


def test_the_images_of_a_coco_file_keep_its_ids(folder: Path, capsys) -> None:
    paint(folder / "set" / "x.png", [[16, 24, 8, 8]])
    paint(folder / "set" / "y.png", [[32, 40, 8, 8]])
    size = {"width": 192, "height": 128}
    images = [{"id": 90, "file_name": "y.png", **size}, {"id": 11, "file_name": "x.png", **size}]
    document = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "square"}]}
    (folder / "val.json").write_text(json.dumps(document))
    assert run("--annotations", "val.json", "--images", "set", "--output", "all.json") == 0
    assert rows(folder / "all.json") == [(11, 16, 24, 8, 8), (90, 32, 40, 8, 8)]
    assert run("--images", "set") == 2
    assert "give either the scenes, --image SCENE" in capsys.readouterr().err


def test_the_model_gets_the_chosen_bands(folder: Path, capsys) -> None:
    rasterio = pytest.importorskip("rasterio")
    pixels = np.zeros((5, 64, 64), np.uint8)
    pixels[4, 16:24, 32:40] = 255
    with rasterio.open("a.tif", "w", driver="GTiff", count=5, dtype="uint8", width=64, height=64) as file:
        file.write(pixels)
    assert run("--image", "a.tif", "--output", "all.json") == 0
    assert rows(folder / "all.json") == []
    assert run("--image", "a.tif", "--output", "all.json", "--bands", "5,5,5") == 0
    assert rows(folder / "all.json") == [(1, 32, 16, 8, 8)]
    assert run("--image", "a.tif", "--bands", "6") == 2
    assert "a.tif: bands are one (grayscale) or three" in capsys.readouterr().err
    assert run("--image", "a.tif", "--bands", "6", "--skip-unreadable") == 2  # the choice is wrong, not the scene
    assert "a.tif: bands are one (grayscale) or three" in capsys.readouterr().err


def test_tiles_without_data_are_not_run_and_counted(folder: Path, capsys, runs: list[int]) -> None:
    pixels = np.zeros((512, 512, 4), np.uint8)
    pixels[:256, :256, 3] = 255
    pixels[16:24, 32:40, :3] = 255
    assert cv2.imwrite("a.png", pixels)
    assert run("--image", "a.png", "--output", "all.json", overlap=0) == 0
    assert rows(folder / "all.json") == [(1, 32, 16, 8, 8)]
    assert "skipped 48 tiles without data (75%)" in capsys.readouterr().out
    assert sum(runs) == 16


def test_automatic_overlap_and_scale_follow_from_the_training_objects(folder: Path, capsys) -> None:
    paint(folder / "a.png", [[32, 32, 16, 16]], 256, 256)
    words = ("--image", "a.png", "--output", "all.json", "--scale", "auto")
    assert run(*words, "--object-size", "16", overlap="auto") == 0
    assert "256x256 at scale 0.5, 3x3 = 9 tiles of 64, overlap 32" in capsys.readouterr().out
    assert rows(folder / "all.json") == [(1, 32, 32, 16, 16)]
    assert run(*words, "--object-size", "0.8m", "--gsd", "0.05", overlap="auto") == 0
    assert "at scale 0.5," in capsys.readouterr().out
    for extra, message in (
        ((), "--object-size 24 (pixels) or --object-size 0.6m (meters)"),
        (("--object-size", "0.8m"), "a.png does not state its ground sample distance"),
    ):
        assert run(*words, *extra) == 2
        assert message in capsys.readouterr().err


def test_a_model_without_object_sizes_needs_numbers(folder: Path, make_onnx: Callable, capsys) -> None:
    make_onnx(folder / "model.onnx", spec=dataclasses.replace(SPEC, object_sizes=None))
    paint(folder / "a.png", [])
    assert run("--image", "a.png", overlap="auto") == 2
    assert "give --overlap a number" in capsys.readouterr().err


def test_the_plan_states_memory_and_for_long_runs_time(folder: Path, capsys) -> None:
    paint(folder / "a.png", [], 64, 64)
    paint(folder / "b.png", [], 1024, 512)
    assert run("--image", "a.png", "b.png", "--output", "all.json", "-v") == 0
    short, long = (line for line in capsys.readouterr().out.splitlines() if " of 4, about " in line)
    assert short.partition(", about ")[2].endswith(" MiB")
    assert long.endswith(" s at most")


def test_an_interrupted_run_says_how_to_resume_and_resumes(
    folder: Path, capsys, monkeypatch: pytest.MonkeyPatch, runs: list[int]
) -> None:
    boxes = lattice(0, 1024, 1024, 300)
    paint(folder / "a.png", boxes, 1024, 1024)
    words = ("--image", "a.png", "--output", "all.json")
    assert run(*words) == 0
    expected, tiles = rows(folder / "all.json"), sum(runs) - 8  # two batches measure the time per batch
    (folder / "all.json").unlink()
    runs.clear()
    counted = OnnxRuntimeBackend.run

    def stops(self: OnnxRuntimeBackend, images: np.ndarray) -> object:
        if len(runs) == 12:
            raise KeyboardInterrupt
        return counted(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(OnnxRuntimeBackend, "run", stops)
        assert run(*words) == 130
    assert "40 of 361 tiles are kept in all.journal; --resume continues from there" in capsys.readouterr().out
    assert not (folder / "all.json").exists()
    assert run(*words, "--resume", "--bands", "1,2,9") == 2  # a refusal that loses nothing
    runs.clear()
    assert run(*words, "--resume") == 0
    assert "40 of 361 tiles were finished by an earlier run" in capsys.readouterr().out
    assert rows(folder / "all.json") == expected == sorted((1, *box) for box in boxes)
    assert sum(runs) - 8 == tiles - 40


def test_a_second_run_changes_nothing_and_restores_a_missing_output_without_the_model(
    folder: Path, capsys, runs: list[int]
) -> None:
    for name in ("a.png", "b.png"):
        paint(folder / "flight" / name, lattice(1, 192, 128, 9))

    def state() -> dict[str, tuple[int, bytes]]:
        return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*.*") if p.is_file()}

    for words, part in (((), "a.detections.json"), (("--output", "all.json"), "all.json")):
        assert run("--image", "flight", *words, "--resume") == 0
        before = state()
        runs.clear()
        assert run("--image", "flight", *words, "--resume") == 0
        assert state() == before
        assert runs == []
        (lost,) = folder.rglob(part)
        lost.unlink()
        assert run("--image", "flight", *words, "--resume") == 0
        assert lost.read_bytes() == before[str(lost)][1]
        assert runs == []
    assert "unchanged" in capsys.readouterr().out


def test_scenes_that_were_complete_before_ctrl_c_are_not_run_again(
    folder: Path, capsys, monkeypatch: pytest.MonkeyPatch, runs: list[int]
) -> None:
    for name in ("a.png", "b.png", "c.png"):
        paint(folder / "flight" / name, lattice(1, 192, 128, 9))
    counted = OnnxRuntimeBackend.run

    def stops(self: OnnxRuntimeBackend, images: np.ndarray) -> object:
        if len(runs) == 8:
            raise KeyboardInterrupt
        return counted(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(OnnxRuntimeBackend, "run", stops)
        assert run("--image", "flight") == 130
    assert sum(runs) == 8 * 4  # 12 tiles per scene: two scenes are complete, and two batches of the third
    runs.clear()
    capsys.readouterr()
    assert run("--image", "flight", "--resume") == 0
    assert "2 scenes already complete" in capsys.readouterr().out
    assert sum(runs) == 4
    assert run("--image", "flight") == 0
    assert not list(folder.rglob("*.journal"))


def test_files_follow_a_change_of_image_ids(folder: Path, runs: list[int]) -> None:
    paint(folder / "flight" / "b.png", lattice(1, 192, 128, 9))

    def ids() -> list[set[int]]:
        return [{image_id for image_id, *_ in rows(path)} for path in sorted(folder.rglob("*.detections.json"))]

    assert run("--image", "flight", "--resume") == 0
    paint(folder / "flight" / "a.png", lattice(2, 192, 128, 9))
    assert run("--image", "flight", "--resume") == 0
    assert ids() == [{1}, {2}]
    runs.clear()
    assert run("--image", "flight", "--image-id", "7", "--resume") == 0
    assert ids() == [{7}, {8}]
    assert runs == []


def test_other_settings_or_another_scene_do_not_resume(folder: Path, capsys) -> None:
    paint(folder / "a.png", lattice(1, 192, 128, 9))
    words = ("--image", "a.png", "--output", "all.json", "--resume")
    assert run(*words) == 0
    assert run(*words, "--score", "0.6") == 2
    assert "all.journal belongs to a run with other settings (score was 0.3)" in capsys.readouterr().err
    assert run(*words, "--merge", "nms") == 2
    assert 'all.journal belongs to a run with other settings (merge was "seam")' in capsys.readouterr().err
    paint(folder / "a.png", lattice(2, 192, 128, 9))
    assert run(*words) == 2
    assert "changed was" in capsys.readouterr().err
    assert run("--image", "a.png", "--output", "/dev/null", "--resume") == 2
    assert "has none" in capsys.readouterr().err


KILLED = """
import os, signal, sys
from tinydet.runtime.backends.onnx_runtime import OnnxRuntimeBackend
from tinydet.infer.__main__ import main
run, count = OnnxRuntimeBackend.run, [0]
def dies(self, images):
    count[0] += 1
    if count[0] == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return run(self, images)
OnnxRuntimeBackend.run = dies
sys.exit(main(sys.argv[2:]))
"""


def test_a_killed_process_loses_no_more_than_the_tiles_in_flight(folder: Path, capsys) -> None:
    boxes = lattice(3, 512, 512, 200)
    paint(folder / "a.png", boxes, 512, 512)
    words = ["--image", "a.png", "--output", "all.json", "--overlap", "8", "--backend", "onnx"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    code = [sys.executable, "-c", KILLED, "12", *words, "--resume"]
    done = subprocess.run(code, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = [".all.journal.lock", ".all.part.json", ".all.part.json.lock", "all.journal"]
    assert sorted(path.name for path in folder.glob("*all*")) == left
    assert main([*words, "--resume"]) == 0
    assert sorted(path.name for path in folder.glob("*all*")) == ["all.journal", "all.json"]
    # 11 runs finished before the kill; two of them measured the time per batch.
    assert f"{4 * (11 - 2)} of 81 tiles were finished by an earlier run" in capsys.readouterr().out
    assert rows(folder / "all.json") == sorted((1, *box) for box in boxes)


def test_frames_of_a_video_are_images_with_times(folder: Path, capsys) -> None:
    av = pytest.importorskip("av")
    with av.open("clip.mp4", "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 128, 64, "yuv420p", 4_000_000
        for i in range(9):
            pixels = np.zeros((64, 128, 3), np.uint8)
            pixels[16:24, 16 * (i // 2) : 16 * (i // 2) + 8] = 255
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert run("--image", "clip.mp4", "--every", "4", "--score", "0.6") == 0
    assert re.search(r"3 detections \(.*\) in 3 frames", capsys.readouterr().out)
    found = {image_id: (x, y) for image_id, x, y, *_ in rows(folder / "clip.detections.json")}
    assert found == {1: (0, 16), 5: (32, 16), 9: (64, 16)}
    with (folder / "clip.detections.frames.csv").open() as file:
        times = [(int(row["image_id"]), int(row["frame"]), float(row["seconds"])) for row in csv.DictReader(file)]
    assert times == [(1, 0, 0.0), (5, 4, 0.4), (9, 8, 0.8)]
    images = json.loads((folder / "clip.detections.json").read_text())["images"]
    assert [(one["id"], one["file_name"], one["frame"], one["seconds"]) for one in images] == [
        (1, "clip.mp4#0", 0, 0.0), (5, "clip.mp4#4", 4, 0.4), (9, "clip.mp4#8", 8, 0.8)
    ]  # fmt: skip
    assert run("--image", "clip.mp4", "--frames", "2", "--output", "two.json", "--score", "0.6") == 0
    assert {image_id for image_id, *_ in rows(folder / "two.json")} == {1, 2}


def test_tiles_without_contrast_are_skipped_after_calibration(folder: Path, capsys, runs: list[int]) -> None:
    boxes = [[16, 16, 8, 8], [80, 16, 8, 8]]
    paint(folder / "val" / "a.png", boxes, 512, 512)
    annotations = [{"id": i, "image_id": 3, "category_id": 1, "bbox": box} for i, box in enumerate(boxes)]
    annotations.append({"id": 9, "image_id": 3, "category_id": 1, "bbox": [300, 300, 9, 9], "ignore": 1})
    images = [{"id": 3, "file_name": "a.png", "width": 512, "height": 512}]
    document = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "square"}]}
    (folder / "val.json").write_text(json.dumps(document))
    calibration = ("--calibrate-skip", "--annotations", "val.json", "--images", "val")
    words = ("--image", "val/a.png", "--output", "all.json", "--skip-empty")
    assert run(*words) == 2
    assert "model.skip.json does not exist" in capsys.readouterr().err
    assert run(*calibration) == 0
    said = capsys.readouterr().out
    assert "97.5% of the 81 tiles" in said
    assert "100.00% of its 2 objects" in said
    runs.clear()
    assert run(*words) == 0
    assert sum(runs) - 8 == 2
    assert "skipped 79 tiles without anything of an object's size (98%)" in capsys.readouterr().out
    assert rows(folder / "all.json") == sorted((1, *box) for box in boxes)
    assert run(*words, "--scale", "0.5") == 2
    assert "calibrate it again" in capsys.readouterr().err
