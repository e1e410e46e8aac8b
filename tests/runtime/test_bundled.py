"""The bundled models: found by name, small, and useful on the images that they were trained for."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from tinydet.infer.__main__ import main
from tinydet.runtime import load
from tinydet.runtime.bundled import BUNDLED, DEFAULT, FOLDER, model_path

FRAMES = Path(__file__).parents[3] / "shared" / "data" / "hituav-val"


def test_an_existing_file_takes_precedence_over_a_bundled_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert model_path(DEFAULT) == FOLDER / f"{DEFAULT}.onnx"
    assert model_path(DEFAULT, ".pth") == FOLDER / f"{DEFAULT}.pth"
    Path(DEFAULT).write_bytes(b"mine")
    assert model_path(DEFAULT) == Path(DEFAULT)
    assert model_path("elsewhere/model.onnx") == Path("elsewhere/model.onnx")


def test_every_bundled_model_has_its_files_and_a_card_and_is_small() -> None:
    for name in BUNDLED:
        assert model_path(name).is_file() and model_path(name, ".pth").is_file()
        assert (Path(__file__).parents[2] / "docs" / f"{name}.md").is_file()
    assert max(path.stat().st_size for path in FOLDER.iterdir()) < 12e6


def test_the_checkpoint_and_the_graph_agree_and_contain_no_paths() -> None:
    checkpoint = pytest.importorskip("tinydet.models.checkpoint", reason="a checkpoint needs torch")
    stored = checkpoint.load_checkpoint(model_path(DEFAULT, ".pth"))
    spec = load(DEFAULT, backend="onnx", threads=1).spec
    assert (spec.classes, spec.alpha, spec.tile) == (stored.classes, stored.alpha, stored.tile)
    assert spec.precision == "fp16"
    assert not [value for value in stored.config.values() if "/" in str(value)]


def test_infer_without_a_model_uses_the_bundled_one_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    frame, annotations = frame_of_many_persons()
    monkeypatch.chdir(tmp_path)
    assert main(["--image", str(frame), "--output", "found.json", "--threads", "1"]) == 0
    said = capsys.readouterr().out
    assert "No model.engine or model.onnx here; using the bundled model `thermal`" in said and "model.pth" not in said
    found = np.array(
        [d["bbox"] for d in json.loads(Path("found.json").read_text())["annotations"] if d["category_id"] == 1]
    )
    centers = found[:, :2] + found[:, 2:] / 2
    hit = [np.abs(centers - (x + w / 2, y + h / 2)).max(axis=1).min() < 6 for x, y, w, h in annotations]
    assert np.mean(hit) > 0.6  # most persons are found
    assert len(found) < 2 * len(annotations)  # without many false positives


def test_a_checkpoint_that_is_not_exported_yet_is_named_where_the_bundled_model_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.pth").touch()
    cv2.imwrite("gray.png", np.full((64, 64, 3), 90, np.uint8))
    assert main(["--image", "gray.png", "--output", "found.json", "--threads", "1"]) == 0
    assert "to use model.pth: tinydet export onnx model.pth" in capsys.readouterr().out


def frame_of_many_persons() -> tuple[Path, list[list[float]]]:
    if not FRAMES.is_dir():
        pytest.skip("needs ../shared/data/hituav-val, which is not part of the repository")
    document = json.loads((FRAMES / "annotations.json").read_text())
    persons: dict[int, list[list[float]]] = {}
    for a in document["annotations"]:
        if a["category_id"] == 1:
            persons.setdefault(a["image_id"], []).append(a["bbox"])
    image_id = max(persons, key=lambda i: len(persons[i]))
    (name,) = (image["file_name"] for image in document["images"] if image["id"] == image_id)
    return FRAMES / "images" / name, persons[image_id]
