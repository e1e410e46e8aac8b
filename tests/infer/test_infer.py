from __future__ import annotations

import csv
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from tinydet.infer.__main__ import main
from tinydet.runtime.backends import open_model

BOXES = [[16, 24, 8, 8], [80, 8, 8, 8], [160, 112, 8, 8]]  # xywh, aligned with the cells of the model


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    pixels = np.zeros((128, 192, 3), np.uint8)
    for x, y, w, h in BOXES:
        pixels[y : y + h, x : x + w] = 255
    cv2.imwrite(str(tmp_path / "scene.png"), pixels)
    return tmp_path / "scene.png"


@pytest.fixture
def model(make_onnx: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path: Path = make_onnx(tmp_path / "model.onnx")
    return path


def run(*words: object, overlap: int = 8) -> int:
    return main([*map(str, words), "--overlap", str(overlap)])


def boxes(path: Path) -> list[list[float]]:
    return sorted(row["bbox"] for row in json.loads(path.read_text())["annotations"])


def test_by_default_results_and_a_drawing_are_written_next_to_the_scene(scene: Path, model: Path, capsys) -> None:
    assert run("--image", scene, "--tile", 64) == 0
    rows = json.loads(scene.with_name("scene.detections.json").read_text())["annotations"]
    assert sorted(row["bbox"] for row in rows) == sorted(BOXES)
    assert {(row["image_id"], row["category_id"]) for row in rows} == {(1, 7)}
    assert cv2.imread(str(scene.with_name("scene.detections.jpg"))).shape[1] == 192
    said = capsys.readouterr().out
    assert "scene.png: 192x128, 4x3 = 12 tiles of 64, overlap 8, 3 batches of 4" in said
    assert "3 detections (square 3, bar 0) in 12 tiles" in said
    assert "no tiles saturated" in said


def test_a_model_of_small_tiles_needs_no_overlap_option(scene: Path, model: Path, capsys) -> None:
    assert main(["--image", str(scene), "--tile", "64"]) == 0  # as `export` prints it
    assert "tiles of 64, overlap 32" in capsys.readouterr().out


def test_the_tile_of_a_model_is_chosen(scene: Path, make_onnx: Callable, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = dataclasses.replace(open_model(make_onnx(tmp_path / "m.onnx"), "onnx").spec, object_sizes=(2, 4, 8))
    make_onnx(tmp_path / "model.onnx", spec=dataclasses.replace(sizes, tile_multiple=32))
    for tile, said in ((96, "2x2 = 4 tiles of 96"), ("auto", "3x2 = 6 tiles of 96"), (None, "tiles of 64")):
        words = ["--image", scene, "--output", "found.json", *(("--tile", tile) if tile else ())]
        assert run(*words, overlap=10 if tile == "auto" else 0) == 0
        assert boxes(tmp_path / "found.json") == sorted(BOXES)
        text = capsys.readouterr().out
        assert said in text and ("--tile auto: 96 pixels" in text) == (tile == "auto")
    assert run("--image", scene, "--tile", 100) == 2
    assert "any multiple of 32 pixels, not 100; the nearest: 96 and 128" in capsys.readouterr().err


def test_a_run_is_resumed_only_with_its_own_tile(scene: Path, make_onnx: Callable, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    spec = open_model(make_onnx(tmp_path / "m.onnx"), "onnx").spec
    make_onnx(tmp_path / "model.onnx", spec=dataclasses.replace(spec, tile_multiple=32))
    words = ["--image", scene, "--output", "found.json", "--resume"]
    assert run(*words, "--tile", 64) == run(*words, "--tile", 64) == 0
    assert "unchanged" in capsys.readouterr().out
    assert run(*words, "--tile", 96) == 2
    assert "belongs to a run with other settings (tile was 64)" in capsys.readouterr().err


def test_only_the_named_outputs_are_written(scene: Path, model: Path, tmp_path: Path) -> None:
    assert run("--image", scene, "--output", tmp_path / "dets.json", "--image-id", 42) == 0
    assert boxes(tmp_path / "dets.json") == sorted(BOXES)
    assert {row["image_id"] for row in json.loads((tmp_path / "dets.json").read_text())["annotations"]} == {42}
    assert run("--image", scene, "--draw", tmp_path / "out.png") == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dets.json", "model.onnx", "out.png", "scene.png"]


def test_the_suffix_of_the_output_selects_its_format(scene: Path, model: Path, tmp_path: Path, capsys) -> None:
    assert run("--image", scene, "--output", tmp_path / "dets.csv") == 0
    rows = list(csv.DictReader((tmp_path / "dets.csv").open()))
    assert sorted([float(row[key]) for key in ("x1", "y1")] for row in rows) == sorted(box[:2] for box in BOXES)
    assert {row["class"] for row in rows} == {"square"}
    assert run("--image", scene, "--output", tmp_path / "dets.xyz") == 2
    assert "no format has the suffix '.xyz'" in capsys.readouterr().err
    assert not (tmp_path / "dets.xyz").exists()


def test_several_scenes_go_to_one_file_and_a_folder_of_drawings(scene: Path, model: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "dark.png"), np.zeros((70, 70, 3), np.uint8))
    (tmp_path / "drawings").mkdir()
    words = (
        "--image",
        tmp_path / "dark.png",
        scene,
        "--output",
        tmp_path / "all.json",
        "--draw",
        tmp_path / "drawings",
    )
    assert run(*words) == 0
    assert {row["image_id"] for row in json.loads((tmp_path / "all.json").read_text())["annotations"]} == {2}
    drawings = sorted(p.name for p in (tmp_path / "drawings").iterdir())
    assert drawings == ["dark.detections.jpg", "scene.detections.jpg"]


def test_a_half_size_scan_returns_boxes_in_scene_pixels(scene: Path, model: Path, tmp_path: Path) -> None:
    double = cv2.resize(cv2.imread(str(scene)), None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    cv2.imwrite(str(tmp_path / "double.png"), double)
    assert run("--image", tmp_path / "double.png", "--scale", 0.5, "--output", tmp_path / "dets.json") == 0
    assert boxes(tmp_path / "dets.json") == sorted([[2 * v for v in box] for box in BOXES])


def test_a_saturated_tile_is_reported_with_advice(make_onnx: Callable, model: Path, tmp_path: Path, capsys) -> None:
    cv2.imwrite(str(tmp_path / "white.png"), np.full((64, 64, 3), 255, np.uint8))
    assert run("--image", tmp_path / "white.png", "--output", tmp_path / "dets.json") == 0
    said = capsys.readouterr().out
    assert "1 tile saturated" in said
    assert "50 slots; " in said and "Raise --score\n" in said  # no tile is smaller than 64
    make_onnx(model, spec=dataclasses.replace(open_model(model, "onnx").spec, grid_rois=20))
    assert run("--image", tmp_path / "white.png", "--output", tmp_path / "dets.json") == 0
    said = capsys.readouterr().out
    assert "20 slots; " in said and "Raise --score, or export the checkpoint with a larger --grid-rois\n" in said


def test_unconverged_suppression_is_reported_with_advice(
    make_onnx: Callable, model: Path, tmp_path: Path, capsys
) -> None:
    make_onnx(model, spec=dataclasses.replace(open_model(model, "onnx").spec, nms_rounds=8))
    cv2.imwrite(str(tmp_path / "white.png"), np.full((64, 64, 3), 255, np.uint8))
    assert run("--image", tmp_path / "white.png", "--output", tmp_path / "dets.json") == 0
    said = capsys.readouterr().out
    assert "64 proposals still changed in the last of 8 rounds" in said and "--nms-rounds 16" in said


def test_an_engine_that_cannot_run_here_is_skipped_with_the_reason(scene: Path, model: Path, capsys) -> None:
    scene.with_name("model.engine").write_bytes(b"vtrt" + bytes(100))
    assert run("--image", scene) == 0
    said = capsys.readouterr().out
    assert said.startswith("Not used: model.engine")
    assert "\nmodel.onnx: cells" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--tile", "512"],
            "takes only tiles of 64, not 512; export it again, for any tile: tinydet export onnx model.pth",
        ),
        (["--model", "gone.onnx"], "--model gone.onnx does not exist; export one: tinydet export onnx model.pth"),
        (["--model", "scene.png"], "scene.png: not a valid ONNX file"),
        (["--backend", "tensorrt"], "no model.engine in "),
        (["--output", "scene.png/dets.json"], "scene.png/dets.json: scene.png is a file, not a folder"),
        (["--output", "found.mp4"], "use --draw or --crops for images"),
        (["--output", "found.v2"], "end a folder with /"),
        (
            ["--output", "scene.png/found/"],
            "scene.png/found/scene.detections.json: scene.png is a file, not a folder",
        ),
        (
            ["--output", "a.json", "--format", "csv,geojson"],
            "a.json has the suffix of none of the requested formats (csv, geojson); name it a.csv, or a.json/ for "
            "a folder",
        ),
        (["--output", "/dev/null", "--format", "csv"], "/dev/null takes --format coco or coco-results"),
        (["--output", "found/", "--format", "coco,coco-results"], "are both written to .json files"),
        (["--format", "yolo"], "name a folder for them: --output labels/"),
        (["--output", "classes.txt"], "classes.txt would be written twice"),
        (["--output", "a.json", "--summary", "a.json"], "a.json would be written twice"),
        (["--summary", "scene.png"], "scene.png is a scene and would be overwritten"),
        (["--output", "a.geojson"], "scene.png has no georeference"),
        (["--output", "a.json", "--draw", "b.jpg", "--crops", "b.jpg"], "b.jpg would be written twice"),
        (["--crops", "out.txt"], "out.txt: cannot write an image as '.txt'"),
        (["--draw", "out.txt"], "out.txt: cannot write an image as '.txt'"),
        (["--draw", "scene.png"], "scene.png is a scene and would be overwritten"),
        (
            ["--image", "scene.png", "other.png", "--draw", "x.jpg"],
            "--draw must be a folder if there are several scenes",
        ),
        (["--image", "gone.png"], "gone.png does not exist; check the path"),
        (["--image", "void"], "void is a folder without images"),
        (["--image", "model.onnx"], "model.onnx: a model, not an image"),
        (["--overlap", "64"], "smaller than the tile of 64, got 64"),
    ],
)
def test_a_user_error_is_one_line_with_advice(scene: Path, model: Path, capsys, words: list[str], message: str) -> None:
    Path("void").mkdir()
    Path("other.png").write_bytes(scene.read_bytes())
    assert main(["--image", "scene.png", *words] if "--image" not in words else words) == 2
    error = capsys.readouterr().err
    assert error.startswith("tinydet infer: error: ")
    assert message in error
    assert error.count("\n") == 1
    assert not list(scene.parent.glob("*.detections.*"))


def test_a_read_only_folder_asks_for_output(scene: Path, model: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # chmod has no effect for root
    assert run("--image", scene) == 2
    assert "add --output FILE" in capsys.readouterr().err
    assert run("--image", scene, "--output", scene.with_name("dets.json")) == 0


def test_help_lists_the_options(capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    for flag in (
        "image",
        "tile",
        "model",
        "backend",
        "overlap",
        "score",
        "scale",
        "batch",
        "threads",
        "output",
        "format",
        "draw",
        "crops",
    ):
        assert f"--{flag} " in said
    assert "  tinydet infer scene.jpg\n" in said


def test_the_script_in_a_checkout_needs_no_installation_and_no_torch(scene: Path, model: Path, tmp_path: Path) -> None:
    script = Path(__file__).resolve().parents[2] / "deploy" / "infer.py"
    (tmp_path / "torch.py").write_text("raise ImportError('the runtime must not import torch')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    words = ["--image", str(scene), "--tile", "64", "--overlap", "8"]
    done = subprocess.run(
        [sys.executable, str(script), *words], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert boxes(scene.with_name("scene.detections.json")) == sorted(BOXES)


def test_score_auto_takes_the_thresholds_of_the_model_and_names_them(
    scene: Path, make_onnx: Callable, tmp_path: Path, capsys
) -> None:
    from runtime_fixtures import SPEC

    pixels = cv2.imread(str(scene))
    pixels[64:72, 64:72] = 150  # score 0.59
    cv2.imwrite(str(scene), pixels)
    spec = dataclasses.replace(SPEC, detector="cells", nms_in_graph=True)
    for thresholds, count in (((0.8, 0.8), 3), ((0.55, 0.8), 4)):
        stored = dataclasses.replace(spec, thresholds=thresholds, operating_point="recall >= 0.9 on 3 images")
        model = make_onnx(tmp_path / "model.onnx", spec=stored)
        words = ["--image", scene, "--model", model, "--score", "auto", "--output", tmp_path / "found.json"]
        assert run(*words) == 0
        assert len(boxes(tmp_path / "found.json")) == count
        said = capsys.readouterr().out
        assert f"score auto: square >= {thresholds[0]:g}, bar >= 0.8 (recall >= 0.9 on 3 images)" in said
        assert run(*words, "--resume") == 0
        capsys.readouterr()
    make_onnx(model, spec=dataclasses.replace(stored, thresholds=(0.7, 0.8)))
    assert run(*words, "--resume") == 2  # the journal has boxes of other thresholds
    assert "score was [0.55, 0.8]" in capsys.readouterr().err


def test_score_auto_is_refused_for_a_model_without_thresholds(scene: Path, model: Path, capsys) -> None:
    assert run("--image", scene, "--model", model, "--score", "auto", "--output", "found.json") == 2
    error = capsys.readouterr().err
    assert (
        "--score auto: " in error and "model.onnx has no score thresholds. Give a number, or choose and store" in error
    )
    assert "--operating-point f1 --store" in error
    assert not Path("found.json").exists()
    with pytest.raises(SystemExit):
        run("--image", scene, "--score", "best")
    assert "0 to 1 or auto, got 'best'" in capsys.readouterr().err


def test_the_score_floor_is_named_as_a_calibrated_score(
    scene: Path, make_onnx: Callable, tmp_path: Path, capsys
) -> None:
    from runtime_fixtures import SPEC

    spec = dataclasses.replace(SPEC, detector="cells", nms_in_graph=True, calibration=((1.0, 1.0), (2.0, 0.0)))
    model = make_onnx(tmp_path / "model.onnx", spec=spec)
    words = ["--image", scene, "--model", model, "--output", tmp_path / "found.json"]
    assert run(*words, "--score", 0.05) == 0
    # 0.05 becomes sigmoid(ln(1/19) + 1) and 1 / (1 + 19^2)
    assert "drops detections with a score below 0.13 (square), 0.0028 (bar)" in capsys.readouterr().out
    assert run(*words, "--score", 0.2) == 0
    assert "drops detections" not in capsys.readouterr().out
