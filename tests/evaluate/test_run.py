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
from tinydet.runtime import ScanOptions, load


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
        (model, squares, {"limit": 0}, "limit: expected a number of images, 1 or more, got 0"),
        (model, squares, {"limit": -3}, "limit: expected"),
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


def test_a_folder_with_several_splits_is_scored_on_its_validation_set_as_by_the_command(
    model: Path, squares: Path, tmp_path: Path
) -> None:
    data = renamed(squares, tmp_path, load(model).spec.classes)
    document = json.loads((data / "annotations.json").read_text())
    (data / "annotations.json").unlink()
    (data / "annotations").mkdir()
    for split, images in (("train", document["images"][:3]), ("val", document["images"][3:])):
        ids = {image["id"] for image in images}
        part = {
            **document,
            "images": images,
            "annotations": [a for a in document["annotations"] if a["image_id"] in ids],
        }
        (data / "annotations" / f"instances_{split}.json").write_text(json.dumps(part))
        (data / split).symlink_to(data / "images")
    assert main(["--model", str(model), "--data", str(data), "--json", str(tmp_path / "scores.json")]) == 0
    seen: list[int] = []
    assert evaluate(model, data, progress=seen.append).to_json() == json.loads((tmp_path / "scores.json").read_text())
    assert len(seen) == len(document["images"][3:])
    evaluate(model, data, split="train", progress=seen.append)
    assert len(seen) == len(document["images"])


def test_a_loaded_model_scans_with_its_options_but_the_score_that_ap_needs(
    model: Path, squares: Path, tmp_path: Path
) -> None:
    data = renamed(squares, tmp_path, load(model).spec.classes)
    wanted = evaluate(model, data, options=ScanOptions(overlap=8, scale=0.5)).to_json()
    assert evaluate(load(model, overlap=8, scale=0.5, score=0.9), data).to_json() == wanted
    assert evaluate(model, data).to_json() != wanted


def test_detections_have_the_protocol_of_the_command_and_any_layout_as_truth(squares: Path, tmp_path: Path) -> None:
    document = json.loads(find_dataset(squares)[0].read_text())
    found = [{"image_id": 0, "category_id": 3, "bbox": [1, 2, 12, 12], "score": 0.5}]
    (tmp_path / "found.json").write_text(json.dumps(found))
    (tmp_path / "gt.json").write_text(json.dumps(document))
    files = ["--gt", str(tmp_path / "gt.json"), "--detections", str(tmp_path / "found.json")]
    assert main([*files, "--json", str(tmp_path / "scores.json")]) == 0
    wanted = json.loads((tmp_path / "scores.json").read_text())
    for truth in (tmp_path / "gt.json", squares, find_source(squares), load_dataset(*find_dataset(squares))):
        assert evaluate(tmp_path / "found.json", truth).to_json() == wanted  # type: ignore[arg-type]
        assert evaluate({**document, "annotations": found}, truth).to_json() == wanted  # type: ignore[arg-type]


def test_a_single_average_precision_is_read_by_name(squares: Path) -> None:
    scores = evaluate([], squares, protocol="coco")
    assert scores.ap() == scores.to_json()["AP"]["all"]["0.50"] == 0
    assert scores.ap("tiny", 0.75) == scores.to_json()["AP"]["tiny"]["0.75"]
    with pytest.raises(ValueError, match="coco has no AP of 'huge' at IoU 0.5; measured: .*all at "):
        scores.ap("huge")
    with pytest.raises(ValueError, match="measured: no AP"):
        evaluate([], squares, protocol="citypersons").ap()
