"""Which data a model is scored on: those that the user names, or the validation set of its training."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="a checkpoint needs torch (tinydet[train])")

from tinydet.data.source import DataSource, builtin_source, find_source
from tinydet.evaluate import evaluate
from tinydet.evaluate.__main__ import main
from tinydet.evaluate.model_data import check_builtin_classes, validation_data
from tinydet.models.build import DetectorConfig, build_detector
from tinydet.models.checkpoint import Checkpoint, save_checkpoint


@pytest.fixture(scope="module")
def untrained() -> Checkpoint:
    config = DetectorConfig("mobilenet_v2", channels=16, norm="batch", classes=1, options={"head_convs": 1})
    return Checkpoint(config, build_detector(config).eval().state_dict(), ("square",), (3,), tile=96)


@pytest.fixture
def project(tmp_path: Path, untrained: Checkpoint, squares: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with val/ and runs/model.pth, whose record names val/ as the validation set."""
    root = tmp_path / "first"
    (root / "runs").mkdir(parents=True)
    shutil.copytree(squares, root / "val")
    monkeypatch.chdir(root)
    save(untrained, find_source(Path("val")).to_json(Path("runs")))
    return root


def save(checkpoint: Checkpoint, record: Any) -> None:
    save_checkpoint(dataclasses.replace(checkpoint, config={"val_data": record}), Path("runs/model.pth"))


def test_a_checkpoint_is_scored_on_its_validation_set(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "runs/model.pth", "--limit", "2"]) == 0
    said = capsys.readouterr().out.splitlines()[1]
    assert said.startswith("data: the validation set of runs/model.pth: ") and "2 images, square" in said
    assert "val" in said


def test_the_validation_set_is_found_after_the_project_has_moved(project: Path, tmp_path: Path) -> None:
    moved = tmp_path / "second"
    shutil.move(project, moved)
    os.chdir(tmp_path)
    assert validation_data(moved / "runs" / "model.pth").source.annotations.resolve().is_relative_to(moved)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("gone", "runs/model.pth: its validation set is gone"),
        (None, "runs/model.pth was trained without validation; name the data to score on: --data DIR"),
        ("unknown", "runs/model.pth does not name a validation set"),
    ],
)
def test_without_validation_data_the_user_has_to_name_some(
    project: Path, untrained: Checkpoint, record: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is never scored on the built-in scenes instead."""
    if record == "gone":
        shutil.rmtree("val")
    elif record is None:
        save(untrained, None)
    else:
        save_checkpoint(untrained, Path("runs/model.pth"))
    assert main(["--model", "runs/model.pth"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1
    assert message in captured.err and "--data DIR" in captured.err


def test_an_exported_model_is_scored_on_the_validation_set_of_the_checkpoint_beside_it(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("runs/model.onnx").write_bytes(b"")
    monkeypatch.setattr("tinydet.evaluate.model_data._check_same_classes", lambda *_: None)
    data = validation_data(Path("runs/model.onnx"))
    assert data.role == "the validation set of runs/model.pth: " and data.classes == ("square",)
    Path("runs/model.pth").unlink()
    assert main(["--model", "runs/model.onnx"]) == 2
    assert "runs/model.onnx does not know its validation set, and there is no checkpoint" in capsys.readouterr().err


def test_a_model_of_other_classes_is_not_scored_on_the_built_in_scenes(
    project: Path, untrained: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--model", "runs/model.pth", "--data", "builtin"]) == 2
    assert "runs/model.pth finds square, and the built-in scenes have" in capsys.readouterr().err
    save(untrained, builtin_source("val").to_json(Path("runs")))
    assert validation_data(Path("runs/model.pth")).source.is_builtin
    check_builtin_classes(Path("model.pth"), ("a", "b"), ("b", "a"))


def rename_image(folder: Path) -> None:
    document = json.loads((folder / "annotations.json").read_text())
    image = document["images"][0]
    (folder / "images" / image["file_name"]).rename(folder / "images" / "another.png")
    image["file_name"] = "another.png"
    (folder / "annotations.json").write_text(json.dumps(document))


def recorded(source: DataSource) -> dict[str, Any]:
    return source.to_json(Path("runs"), source.load())


def test_a_validation_set_with_other_images_is_reported(
    project: Path, untrained: Checkpoint, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    save(untrained, recorded(find_source(Path("val"))))
    said = "other images than when the model was trained (7 images with other names)"
    assert main(["--model", "runs/model.pth", "--limit", "2"]) == 0 and "other images" not in capsys.readouterr().err
    rename_image(Path("val"))
    assert main(["--model", "runs/model.pth", "--limit", "2"]) == 0 and said in capsys.readouterr().err
    evaluate("runs/model.pth", limit=2)
    assert said in caplog.text


def test_held_out_images_that_are_not_known_any_more_are_not_scored(
    project: Path, untrained: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    """With other images in the folder, another choice is made, with images that the model was trained on."""
    _, held_out = find_source(Path("val")).hold_out(0.3)
    save(untrained, recorded(held_out))
    assert main(["--model", "runs/model.pth", "--limit", "1"]) == 0
    for image in held_out.load().images:
        (Path("val/images") / image.file_name).rename(Path("val/images") / f"new-{image.file_name}")
    text = Path("val/annotations.json").read_text()
    for image in held_out.load(boxes_only=True).images:
        text = text.replace(f'"{image.file_name}"', f'"new-{image.file_name}"')
    Path("val/annotations.json").write_text(text)
    capsys.readouterr()
    assert main(["--model", "runs/model.pth"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "which of them were held out" in captured.err
    with pytest.raises(ValueError, match="which of them were held out"):
        evaluate("runs/model.pth")
