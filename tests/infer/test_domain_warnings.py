"""The command warns about scenes unlike the training images, and chooses between bundled models by color."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from drone_photos import LENS, NADIR, gps, write_photo, xmp
from PIL import Image

from tinydet.infer.__main__ import main
from tinydet.infer.bundled_choice import choose_bundled
from tinydet.infer.chunks import Tally
from tinydet.runtime import bundled, load
from tinydet.runtime.detections import Detections
from tinydet.runtime.scenes.sources import find_sources
from tinydet.spec import Domain, ModelSpec

GRAY = Domain(9, (0, 0, 1), (20, 90, 200), (1, 30, 90), (0, 4, 60), class_sizes=((9, 12, 30),))
COLOR = dataclasses.replace(GRAY, chroma=(9, 30, 70))
SPEC = ModelSpec(("person",), (1,), "cells", "none", tile=64, max_batch=4, max_detections=50, nms_in_graph=True)
UNLIKE = "unlike the training images of the model"


@pytest.fixture
def folder(make_onnx: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of gray images, a gray scene and two scenes in color."""
    monkeypatch.chdir(tmp_path)
    make_onnx(tmp_path / "model.onnx", spec=dataclasses.replace(SPEC, domain=GRAY))
    (tmp_path / "scenes").mkdir()
    for name, bgr in (("gray", (90, 90, 90)), ("red", (60, 60, 120)), ("sand", (110, 130, 145))):
        paint(tmp_path / "scenes" / f"{name}.png", bgr)
    return tmp_path


def paint(path: Path, bgr: tuple[int, int, int]) -> None:
    pixels = np.full((128, 192, 3), bgr, np.uint8)
    pixels[16:24, 24:32] = 255
    assert cv2.imwrite(str(path), pixels)


def run(*words: object) -> int:
    return main([*map(str, words), "--backend", "onnx", "--threads", "1"])


def test_one_scene_is_named_in_one_line_and_still_scanned(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("scenes/red.png", "--output", "a.json") == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if UNLIKE in line]
    assert warnings == [f"tinydet infer: red.png is {UNLIKE}: it is in color, and they are gray"]
    assert len(json.loads(Path("a.json").read_text())["annotations"]) == 1
    assert run("scenes/gray.png", "--output", "a.json") == 0
    assert UNLIKE not in capsys.readouterr().err


def test_of_several_scenes_the_first_is_named_and_the_summary_has_all(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("scenes", "--output", "a.json", "--summary", "s.json") == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if UNLIKE in line]
    assert len(warnings) == 2 and "red.png" in warnings[0] and "2 of 3 scenes" in warnings[1]
    scenes = {each["file_name"]: each["warnings"] for each in json.loads(Path("s.json").read_text())["scenes"]}
    assert {name: len(found) for name, found in scenes.items()} == {"gray.png": 0, "red.png": 1, "sand.png": 1}


def test_doubtful_scores_are_reported_at_the_end(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The score of a cell is its brightness, so gray cells of 0.6 are doubtful for a threshold of 0.55."""
    for value, expected in ((153, 1), (250, 0)):
        pixels = np.zeros((256, 256, 3), np.uint8)
        for y in range(8, 248, 24):
            for x in range(8, 248, 24):
                pixels[y : y + 8, x : x + 8] = value
        cv2.imwrite("cells.png", pixels)
        assert run("cells.png", "--output", "a.json", "--score", "0.55", "--overlap", "0", "--summary", "s.json") == 0
        assert capsys.readouterr().err.count("close to the threshold") == expected
        summary = json.loads(Path("s.json").read_text())
        assert len(summary["warnings"]) == expected and summary["total"]["detections"] >= 50
        assert summary["total"]["doubtful"] == expected * summary["total"]["detections"]


def test_doubtful_scores_of_a_calibrated_model_are_compared_with_its_calibrated_thresholds(
    folder: Path, make_onnx: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    """sigmoid(logit(0.55) + 2) = 0.900, so calibrated scores are doubtful below 0.93, as 0.6 of the graph is."""
    spec = dataclasses.replace(SPEC, thresholds=(0.55,), calibration=((1.0, 2.0),))
    make_onnx(folder / "model.onnx", spec=spec)
    for value, expected in ((153, 1), (180, 0)):
        pixels = np.zeros((256, 256, 3), np.uint8)
        for y in range(8, 248, 24):
            for x in range(8, 248, 24):
                pixels[y : y + 8, x : x + 8] = value
        cv2.imwrite("cells.png", pixels)
        assert run("cells.png", "--output", "a.json", "--score", "auto", "--overlap", "0") == 0
        text = capsys.readouterr().err
        assert text.count("score below 0.93, close to the threshold") == text.count("close to the") == expected


def test_detections_below_the_threshold_that_continue_a_track_are_not_doubtful() -> None:
    tally = Tally.of(2, doubtful=np.array([[0.3, 0.6], [0.51, 0.72]]))
    scores = np.array([0.2, 0.3, 0.5, 0.6, 0.5, 0.65, 0.8], np.float32)
    tally.add(Detections(np.zeros((7, 4), np.float32), scores, np.array([0, 0, 0, 0, 1, 1, 1], np.int32)))
    assert tally.doubtful == 3


def test_the_scale_of_a_drone_photo_is_known_from_its_metadata(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At 100 m and with a lens of 24 mm (equivalent) a pixel of a photo 600 wide is 25 cm."""
    pixels = Image.new("RGB", (600, 400), (90, 90, 90))
    write_photo(folder / "a.jpg", pixels=pixels, position=gps(47.0, 8.0), lens=LENS, packet=xmp(NADIR))
    assert run("a.jpg", "--output", "a.json") == 0
    warning = capsys.readouterr().err
    assert "at 25 cm per pixel" in warning and "a person measures" in warning and "--scale" in warning
    assert run("a.jpg", "--output", "a.json", "--gsd", "0.1") == 0
    assert UNLIKE not in capsys.readouterr().err


def test_the_first_frame_of_a_video_is_compared(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    av = pytest.importorskip("av")
    with av.open("clip.mp4", "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 128, 64, "yuv420p"
        for _ in range(3):
            pixels = np.full((64, 128, 3), (150, 90, 60), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    assert run("clip.mp4", "--output", "a.json", "--summary", "s.json") == 0
    assert capsys.readouterr().err.count(UNLIKE) == 1
    assert len(json.loads(Path("s.json").read_text())["scenes"][0]["warnings"]) == 1


def test_a_prediction_has_the_warnings_of_its_scene(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = load("model.onnx", backend="onnx", threads=1)
    gray, red, sand = model.detect([folder / "scenes" / f"{name}.png" for name in ("gray", "red", "sand")])
    assert gray.warnings == () and len(red.warnings) == len(sand.warnings) == 1
    assert len(red[:0].warnings) == 1  # selections keep them
    assert sum(UNLIKE in record.message for record in caplog.records) == 1  # the first one only
    assert model.detect(np.full((64, 64, 3), (10, 200, 90), np.uint8)).warnings


@pytest.fixture
def two_models(folder: Path, make_onnx: Callable, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder without a model of its own, while `thermal` and `aerial` are bundled."""
    (folder / "model.onnx").unlink()
    (folder / "bundled").mkdir()
    make_onnx(folder / "bundled" / "thermal.onnx", spec=dataclasses.replace(SPEC, domain=GRAY))
    make_onnx(folder / "bundled" / "aerial.onnx", spec=dataclasses.replace(SPEC, domain=COLOR))
    monkeypatch.setattr(bundled, "FOLDER", folder / "bundled")
    monkeypatch.setitem(bundled.BUNDLED, "aerial", "persons in visible light")
    return folder


def test_the_color_of_the_scenes_chooses_between_the_bundled_models(
    two_models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for scenes, name, reason in (
        ("scenes/gray.png", "thermal", "the scene is gray; --model aerial overrides"),
        ("scenes/red.png", "aerial", "the scene is in color; --model thermal overrides"),
        ("scenes", "aerial", "2 of 3 scenes that were looked at are in color; --model thermal overrides"),
    ):
        assert run(scenes, "--output", "a.json") == 0
        said = capsys.readouterr().out
        assert f"using the bundled model `{name}`" in said and reason in said
    assert run("scenes/red.png", "--output", "a.json", "--model", "thermal") == 0
    shown = capsys.readouterr()
    assert "using the bundled" not in shown.out and UNLIKE in shown.err


def test_scenes_that_cannot_be_read_choose_nothing(two_models: Path) -> None:
    Path("broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    assert choose_bundled(find_sources(["broken.png"]))[0] == "thermal"
    assert choose_bundled(find_sources(["broken.png", "scenes/red.png"]))[0] == "aerial"


def test_a_resumed_run_reports_the_warnings_of_the_runs_before(folder: Path) -> None:
    words = ("scenes", "--output", "a.json", "--summary", "s.json", "--resume")
    before, after = ((run(*words), json.loads(Path("s.json").read_text()))[1]["scenes"] for _ in range(2))
    assert [each["status"] for each in after] == ["unchanged"] * 3
    assert [each["warnings"] for each in before] == [each["warnings"] for each in after] != [[], [], []]
