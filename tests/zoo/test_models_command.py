"""`tinydet models`: the list, the card of a bundled model, and the description of a file."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tinydet.__main__ import main
from tinydet.runtime.bundled import BUNDLED, model_path
from tinydet.runtime.model_files import read_spec
from tinydet.spec import Domain, ModelSpec
from tinydet.zoo.cards import average_precision, read_card

SPEC = ModelSpec(("person", "kelp"), (1, 2), "retinanet", "resnet18", tile=64, max_batch=4, nms_in_graph=True)
DOMAIN = Domain(9, (0, 0, 1), (40, 90, 140), (1, 30, 90), (0, 4, 60), ((6, 8, 12), (0, 0, 0)), (0.02, 0.05, 0.1))


@pytest.fixture
def folder(make_onnx: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    spec = dataclasses.replace(SPEC, max_detections=50, object_sizes=(6, 8, 12), domain=DOMAIN)
    make_onnx(tmp_path / "model.onnx", spec=spec)
    make_onnx(tmp_path / "foreign.onnx", metadata=None)
    (tmp_path / "notes.txt").write_text("no model")
    (tmp_path / "damaged.onnx").write_bytes(b"not a model")
    return tmp_path


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["models", *words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", BUNDLED)
def test_the_list_has_the_numbers_of_the_cards(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured = read_card(name).measured
    values = json.loads(shown(capsys, "--json"))
    (row,) = (row for row in values["bundled"] if row["name"] == name)
    assert row["AP50"] == average_precision(measured) and row["AP50"]
    assert row["speed"] == measured["speed"] and row["bytes"] == model_path(name).stat().st_size
    text = shown(capsys)
    assert text == shown(capsys, "list")
    for by_size in row["AP50"].values():
        assert all(f"{ap:.3f}" in text for ap in by_size.values())
    assert row["command"] in " ".join(text.split())


def test_the_list_has_the_models_of_a_folder_and_what_is_wrong_with_them(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {entry["name"]: entry for entry in json.loads(shown(capsys, "--json"))["files"]}
    assert set(files) == {"model.onnx", "foreign.onnx", "damaged.onnx"}
    assert files["model.onnx"]["classes"] == ["person", "kelp"] and files["model.onnx"]["tile"] == 64
    assert (
        "not exported by tinydet" in files["foreign.onnx"]["problem"]
        and "damaged.onnx" in files["damaged.onnx"]["problem"]
    )
    text = shown(capsys)
    assert "person, kelp: retinanet resnet18, fp32, tiles of 64" in text
    (folder / "empty").mkdir()
    assert "No models in empty" in shown(capsys, "list", "empty")
    shutil.copyfile("damaged.onnx", "empty/a.pth")
    assert f"models show {Path('empty', 'a.pth')} describes it" in " ".join(shown(capsys, "list", "empty").split())
    assert main(["models", "empty"]) == 2 and "models list empty" in capsys.readouterr().err


def test_the_list_names_the_weights_that_init_and_backbone_take(capsys: pytest.CaptureFixture[str]) -> None:
    from tinydet.models.options import TORCHVISION_BACKBONES
    from tinydet.models.registry import DETECTORS

    values = json.loads(shown(capsys, "list", "--json"))
    detectors = [name for entry in values["init"] for name in entry["detectors"]]
    assert sorted(detectors) == sorted(name for name, info in DETECTORS.items() if info.coco_weights)
    assert [entry["name"] for entry in values["backbones"]] == list(TORCHVISION_BACKBONES)


def test_a_model_file_is_described_in_plain_words(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "show", "model.onnx")
    for words in (
        "finds       person, kelp",
        "RetinaNet with resnet18, fp32",
        "tiles of 64 x 64 pixels",
        "6 to 12 pixels",
        "gray, brightness 40 to 140",
        "0.02 to 0.1 m per pixel",
    ):
        assert words in text
    assert "kelp: " not in text  # no object of it was learned
    values = json.loads(shown(capsys, "show", "model.onnx", "--json"))
    text = json.dumps({"format": 1, **values["spec"]})
    assert ModelSpec.from_json(text, source="") == read_spec(folder / "model.onnx")
    assert values["card"] is None


def test_an_engine_is_described_by_its_sidecar(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "model.engine").write_bytes(b"ftrt")
    spec = dataclasses.replace(SPEC, engine={"flavour": "tensorrt", "version": "10.1"})
    (folder / "model.json").write_text(spec.to_json())
    assert "flavour tensorrt, version 10.1" in shown(capsys, "show", "model.engine")


@pytest.mark.parametrize("name", BUNDLED)
def test_a_card_says_what_is_found_what_is_missed_and_what_the_model_cannot_do(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    card = read_card(name)
    text = " ".join(shown(capsys, "show", name).split())
    for words in (card.task, card.data, card.license, card.attribution, *card.limits):
        assert " ".join(words.split()) in text
    for class_name, values in card.measured["classes"].items():
        errors = values["errors"]["all"]
        assert f"{errors['missed']} of {values['objects']['all']}" in text and class_name in text
        assert errors["found"] + errors["missed"] == values["objects"]["all"]


def test_stored_thresholds_are_shown_as_infer_prints_them(
    make_onnx: Callable, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """sigmoid(2 * logit(0.6) + 0.5) = 0.788"""
    stored = {"thresholds": (0.6, 0.4), "operating_point": "best F1 on beach", "calibration": ((2.0, 0.5), (1.0, 0.0))}
    make_onnx(folder / "stored.onnx", spec=dataclasses.replace(SPEC, max_detections=50, **stored))
    assert "thresholds  person >= 0.788, kelp >= 0.4 (best F1 on beach)" in shown(capsys, "show", "stored.onnx")


def test_a_checkpoint_is_described_as_the_graph_that_was_made_from_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    shutil.copyfile(model_path("thermal", ".pth"), tmp_path / "mine.pth")
    of_checkpoint = json.loads(shown(capsys, "show", str(tmp_path / "mine.pth"), "--json"))["spec"]
    of_graph = json.loads(shown(capsys, "show", "thermal", "--json"))["spec"]
    for field in ("classes", "alpha", "domain", "object_sizes", "tile"):
        assert of_checkpoint[field] == of_graph[field]
    assert of_graph["domain"] is not None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("show", "termal"),
            "termal does not exist; name a model file, or a bundled model: thermal; did you mean thermal?",
        ),
        (("show", "foreign.onnx"), "foreign.onnx was not exported by tinydet"),
        (("show", "damaged.onnx"), "damaged.onnx: not a valid ONNX file"),
        (("show", "lone.engine"), "lone.engine lacks its description lone.json"),
        (("list", "absent"), "absent does not exist"),
        (("list", "model.onnx"), "model.onnx is a file; describe it: tinydet models show model.onnx"),
        (("shwo", "thermal"), "did you mean"),
        (("show",), "missing: NAME|FILE"),
    ],
)
def test_a_mistake_is_one_line(
    words: tuple[str, ...], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "lone.engine").write_bytes(b"ftrt")
    try:
        code = main(["models", *words])
    except SystemExit as left:
        code = left.code
    told = capsys.readouterr()
    assert code == 2 and told.out == "" and len(told.err.splitlines()) == 1
    assert message in told.err.replace("python -m tinydet", "tinydet")
