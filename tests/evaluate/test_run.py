"""`tinydet.evaluate.evaluate`: paths or loaded objects, with the scores of the command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tinydet.data.coco import find_dataset, load_dataset
from tinydet.data.source import find_source
from tinydet.evaluate import evaluate, evaluate_detections
from tinydet.evaluate.__main__ import main
from tinydet.runtime import load


@pytest.fixture(scope="module")
def model(make_onnx, tmp_path_factory: pytest.TempPathFactory) -> Path:  # type: ignore[no-untyped-def]
    return make_onnx(tmp_path_factory.mktemp("model") / "model.onnx")


def renamed(squares: Path, folder: Path, classes: tuple[str, ...]) -> Path:
    """The squares under the model's class name."""
    annotations, images = find_dataset(squares)
    document = json.loads(annotations.read_text())
    for category in document["categories"]:
        category["name"] = classes[0]
    (folder / "annotations.json").write_text(json.dumps(document))
    (folder / "images").symlink_to(images)
    return folder


def test_paths_sources_and_loaded_objects_give_the_scores_of_the_command(
    model: Path, squares: Path, tmp_path: Path
) -> None:
    loaded = load(model)
    data = renamed(squares, tmp_path, loaded.spec.classes)
    assert main(["--model", str(model), "--data", str(data), "--json", str(tmp_path / "scores.json")]) == 0
    wanted = json.loads((tmp_path / "scores.json").read_text())
    seen: list[int] = []
    scores = evaluate(str(model), data, progress=seen.append)
    assert len(seen) == len(load_dataset(*find_dataset(data)).images)
    for key in ("AP", "AR", "MR"):
        assert scores.to_json()[key] == wanted[key]
    for given in (find_source(data), load_dataset(*find_dataset(data))):
        assert evaluate(loaded.backend, given).to_json() == scores.to_json()


def test_detections_are_scored_from_a_list_and_a_file(squares: Path, tmp_path: Path) -> None:
    document = json.loads(find_dataset(squares)[0].read_text())
    perfect = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.9}
        for a in document["annotations"]
    ]
    (tmp_path / "found.json").write_text(json.dumps(perfect))
    wanted = evaluate_detections(document, perfect, protocol="tinyperson")
    assert wanted["AP"]["all"]["0.50"] > 0.85
    for given in (perfect, tmp_path / "found.json"):
        scores = evaluate(given, squares)
        assert scores.to_json() == wanted
        assert scores.precision is not None and scores.precision["all"][0.5].ap == wanted["AP"]["all"]["0.50"]


def test_bad_values_are_refused(model: Path, squares: Path, tmp_path: Path) -> None:
    for given, data, options, message in (
        (tmp_path / "none.pth", squares, {}, "no such model"),
        (model, tmp_path / "nowhere", {}, "nowhere"),
        (model, None, {}, "does not know its validation set"),
        (model, squares, {"device": "cpu"}, "for a checkpoint"),
        (model, squares, {"protocol": "voc"}, "voc"),
        ([], None, {}, "detections need the annotations"),
        ([], squares, {"limit": 3}, "limit belongs to a model"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(given, data, **options)
    with pytest.raises(TypeError, match="model: expected a path"):
        evaluate(3, squares)
    with pytest.raises(TypeError, match="data: expected a path"):
        evaluate(model, 3)


def test_importing_it_needs_no_torch() -> None:
    code = "import sys, tinydet.evaluate, tinydet.export; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
