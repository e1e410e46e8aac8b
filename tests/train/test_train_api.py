"""`tinydet.train.train`: training from Python, and `TrainConfig` as the only source of options."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from tinydet._internal.arguments import quoted
from tinydet.geometry.points import PointDesign
from tinydet.models.checkpoint import load_checkpoint
from tinydet.models.registry import DETECTORS
from tinydet.train import TrainConfig, train
from tinydet.train.__main__ import main
from tinydet.train.config import config_of, parser
from tinydet.train.report import prior_lines, result_lines
from tinydet.train.trainer import Trainer
from tinydet.train.validation import Validation

QUICK: dict[str, Any] = {"preset": "small", "backbone": "tiny", "weights_backbone": "none",
                         "channels": 8, "epochs": 1, "tile": 96, "overlap": 32,
                         "precision": "fp32", "tensorboard": False}  # fmt: skip
FLAGS = ["--preset", "small", "--backbone", "tiny", "--weights-backbone", "none", "--channels", "8",
         "--epochs", "1", "--tile", "96", "--overlap", "32",
         "--precision", "fp32", "--no-tensorboard", "--head-convs", "1"]  # fmt: skip


def test_every_flag_is_a_field_or_an_option_of_a_detector_and_vice_versa() -> None:
    flags = {action.dest for action in parser()._actions} - {
        "help",
        "category",
        "plugin",
    }  # --category adds to categories
    fields = {field.name for field in dataclasses.fields(TrainConfig)} - {"options"}
    options = {name for info in DETECTORS.values() for name in info.option_names}
    assert flags == fields | options and not fields & options


def test_a_command_without_flags_is_the_default_configuration() -> None:
    assert config_of([]) == TrainConfig()


def test_python_trains_what_the_command_trains(
    squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    python, command = tmp_path / "python.pth", tmp_path / "command.pth"
    config = TrainConfig(
        **QUICK, data=squares, val=squares, alpha=[0.5, 0.4, 0.3], lr=1e-3, output=python, options={"head_convs": 1}
    )
    trained = train(config)
    assert capsys.readouterr().out == ""  # messages go through logging, and nobody shows them
    assert trained.output == python and trained.alpha == (0.5, 0.4, 0.3)
    assert [entry["epoch"] for entry in trained.history] == [1] and 0 <= trained.history[0]["AP50"] <= 1
    flags = [*FLAGS, "--data", str(squares), "--val", str(squares), "--alpha", "0.5,0.4,0.3", "--lr", "1e-3"]
    assert main([*flags, "--output", str(command)]) == 0
    ours, theirs = load_checkpoint(python), load_checkpoint(command)
    assert ours.config == theirs.config and ours.detector == theirs.detector
    assert all(torch.equal(ours.weights[key], theirs.weights[key]) for key in theirs.weights)


def test_plan_and_progress_are_logged(squares: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "tinydet.train"):
        train(TrainConfig(**QUICK, data=squares, output=tmp_path / "model.pth"))
    lines = caplog.messages
    assert lines[0].startswith("data ") and any(line.startswith("wrote ") for line in lines)


@pytest.fixture
def three_classes(squares: Path, tmp_path: Path) -> Path:
    """The squares with three classes, one per image; the name of one contains a comma."""
    document = json.loads((squares / "annotations.json").read_text())
    document["categories"] = [{"id": i, "name": name} for i, name in enumerate(("person, sitting", "car", "tree"))]
    for annotation in document["annotations"]:
        annotation["category_id"] = annotation["image_id"] % 3
    (tmp_path / "annotations.json").write_text(json.dumps(document))
    (tmp_path / "images").symlink_to(squares / "images")
    return tmp_path


def test_a_category_may_have_a_comma_in_its_name(three_classes: Path) -> None:
    config = TrainConfig(**QUICK, data=three_classes, categories=["person, sitting", "car"],
                         output=three_classes / "python.pth", options={"head_convs": 1})  # fmt: skip
    train(config)
    flags = ["--category", "person, sitting", "--category", "car", "--data", str(three_classes)]
    assert main([*FLAGS, *flags, "--output", str(three_classes / "command.pth")]) == 0
    for name in ("python.pth", "command.pth"):
        assert load_checkpoint(three_classes / name).classes == ("person, sitting", "car")


def test_both_flags_for_categories_can_be_given() -> None:
    config = config_of(["--categories", "car,tree", "--category", "person, sitting"])
    assert config.categories == ("car", "tree", "person, sitting")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, "epochs: .*whole number from 1 to 1 000 000, got '0'"),
        ({"epochs": 2.5}, "epochs: .*whole number from 1 to 1 000 000, got '2.5'"),
        ({"epochs": "3"}, r"epochs: expected int \| None, got '3'"),
        ({"epochs": [3]}, r"epochs: expected int \| None, got \[3\]"),
        ({"flip": None}, "flip: expected bool, got None"),
        ({"seed": 0.5}, r"seed: expected a whole number from 0 to 2\*\*63 - 1, got '0.5'"),
        ({"seed": -1}, r"seed: expected a whole number from 0 to 2\*\*63 - 1, got '-1'"),
        ({"lr": -1.0}, "lr: .*number above 0 and up to 1e\\+06, got '-1.0'"),
        ({"overlap": -1}, "overlap: .*whole number of pixels from 0 to 1 000 000, got '-1'"),
        ({"salpha": "no"}, "salpha: expected bool, got 'no'"),
        ({"alpha": (1, 2, 3, 4)}, "alpha: expected one number, or one per edge"),
        ({"alpha": "0.5"}, "alpha: expected .*, got the text '0.5'"),
        ({"alpha": "four"}, "alpha: expected .*one, three, channel, attention; got 'four'"),
        ({"alpha_range": (2, 1)}, "alpha_range: expected two numbers, 0 <= LOW <= HIGH"),
        ({"categories": "person"}, r"categories: expected tuple\[str, ...\] \| None, got 'person'"),
        ({"augment": ["blur"]}, "augment: expected some of scale, vflip, .*, thermal; got 'blur'"),
        ({"detector": "yolo"}, f"detector: expected one of {', '.join(DETECTORS)}, got 'yolo'"),
        ({"options": {"head_convs": 9}}, "head_convs: expected one of 1, 2, 3, 4, got 9"),
        ({"options": {"straddling": True}}, "--straddling is not an option of retinanet, but of faster_rcnn"),
        ({"options": {"heads": 2}}, "no detector has an option 'heads'"),
        ({"options": None}, "options: expected a dict of option names and values, got None"),
        ({"options": {1: 2}}, "options: expected a dict of option names and values"),
        ({"channels": 999_999}, "channels: expected a whole number from 1 to 2048"),
        ({"alpha": ("0.5",)}, "alpha: expected "),
        ({"alpha": float("nan")}, "alpha: expected one number"),
        ({"output": 5}, "output: expected a path, got 5"),
    ],
)
def test_an_invalid_value_is_named_with_its_rule(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**values)


UNUSUAL = [
    None,
    True,
    -1,
    0.5,
    math.nan,
    math.inf,
    10**400,
    10**5000,
    "",
    "x",
    "1e9",
    [],
    ["x"],
    [[]],
    {},
    b"x",
    object(),
]


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(TrainConfig)])
def test_a_value_of_any_type_is_stored_as_given_or_refused_in_one_line(field: str) -> None:
    for value in UNUSUAL:
        refusal = None
        try:
            stored = getattr(TrainConfig(**{field: value}), field)
        except ValueError as error:
            refusal = str(error)
        if refusal is None:
            parts = tuple(value) if isinstance(value, list) else (value,)
            assert stored in (value, parts) or stored == Path(value), quoted(value)
        else:
            assert refusal.startswith((field, "--options", "no detector")) and len(refusal.splitlines()) == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"images": "images"}, "--images is the image folder of --annotations; name both"),
        ({"val_images": "images"}, "--val-images is the image folder of --val-annotations; name both"),
        ({"categories": ["boat"]}, "boat"),  # of the built-in dataset, which has persons
        ({"device": "gpu"}, "--device gpu: torch names devices cpu, cuda, cuda:1 or mps; did you mean cuda"),
        ({"device": ""}, "--device : torch cannot use it here"),
        ({"device": "meta"}, "--device meta: torch cannot use it here"),
        ({"device": "cpu:3"}, "--device cpu:3: torch cannot use it here .the CPU has no number"),
        ({"device": "cuda:99"}, "--device cuda:99: torch cannot use it here"),
    ],
)
def test_a_run_that_cannot_be_as_asked_is_refused_before_it_starts(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(TrainConfig(dry_run=True, **values))


def test_contradicting_values_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--tile must be a multiple of 32"):
        train(TrainConfig(tile=100, output=tmp_path / "model.pth"))
    with pytest.raises(ValueError, match="choose one"):
        train(TrainConfig(salpha=True, alpha=0.5, output=tmp_path / "model.pth"))
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_field_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="epoch"):
        TrainConfig(epoch=3)  # type: ignore[call-arg]


def test_values_are_stored_as_the_command_line_gives_them() -> None:
    """So that a run can be resumed from Python or from the command, and its checkpoint holds plain values."""
    config = TrainConfig(data="my/train", alpha=0.5, lr=1, alpha_range=[0, 2], augment=["vflip"], tile=np.int64(96))
    flags = ["--data", "my/train", "--alpha", "0.5", "--lr", "1", "--alpha-range", "0,2", "--augment", "vflip"]
    assert config == config_of([*flags, "--tile", "96"])
    assert config.data == Path("my/train") and config.alpha == (0.5,) and type(config.tile) is int


def test_the_next_commands_are_quoted_for_the_shell() -> None:
    for device, form in (("cuda", "engine"), ("cpu", "onnx")):
        trainer = SimpleNamespace(
            output=Path("my models/m 1.pth"), seconds=1.0, history=[], tiles=None, device=torch.device(device)
        )
        *_, evaluate, export = result_lines(cast(Trainer, trainer), cast(Validation, SimpleNamespace()))
        assert shlex.split(evaluate) == ["next:", "tinydet", "evaluate", "--model", "my models/m 1.pth"]
        assert shlex.split(export) == ["next:", "tinydet", "export", form, "my models/m 1.pth"]
    *_, evaluate, export = result_lines(cast(Trainer, trainer), None)  # without validation data, name some
    words = shlex.split(evaluate, comments=True)
    assert words == ["next:", "tinydet", "evaluate", "--model", "my models/m 1.pth", "--data", "DIR"]


def test_the_result_has_each_class_and_says_why_an_epoch_was_chosen() -> None:
    """Epochs 1 and 2 tie, and the later one is kept; `boat` has no objects to find, `kite` none to learn from."""
    scores = {"AP50": 0.5, "AP50-95": 0.25, "AP75": 0.125}
    names = ("person", "boat", "kite")
    by_class = {f"{metric}/{name}": value for metric, value in scores.items() for name in names}
    history = [{"epoch": epoch, **scores, **by_class, "AP50": ap} for epoch, ap in ((1, 0.5), (2, 0.5), (3, 0.4))]
    dataset = SimpleNamespace(labels=np.array([0, 1]), objects=np.array([True, True]))
    trainer = SimpleNamespace(
        output=Path("m.pth"),
        seconds=1.0,
        history=history,
        tiles=SimpleNamespace(dataset=dataset),
        device=torch.device("cpu"),
        schedule=SimpleNamespace(epochs=9, lr=0.02),
        steps_done=12,
    )
    validation = SimpleNamespace(objects=[("person", 7, 3), ("boat", 0, 0), ("kite", 2, 1)])
    lines = list(result_lines(cast(Trainer, trainer), cast(Validation, validation)))
    assert lines[0] == "on the validation set, epoch 2, percent:"
    assert [line.split() for line in lines[1:5]] == [
        ["class", "objects", "images", "AP50", "AP50-95", "AP75"],
        ["person", "7", "3", "50.00", "25.00", "12.50"],
        ["kite", "2", "1", "50.00", "25.00", "12.50"],
        ["mean", "9", "50.00", "25.00", "12.50"],
    ]
    assert "no objects of it: boat" in lines[5] and lines[6].startswith("  kite has no objects in the training data")
    assert lines[7] == "saved the weights of epoch 2 of 9: the best AP50 of 3 validations; epoch 3 has 40.00"
    assert "m.pth" in lines[8] and lines[9] == "next: tinydet evaluate --model m.pth"
    trainer.history = [{**entry, "AP50": 0.0} for entry in history]
    lines = list(result_lines(cast(Trainer, trainer), cast(Validation, validation)))
    assert any(line.startswith("  it finds none of the objects yet: 12 steps may be too few") for line in lines)


@pytest.mark.parametrize("name", ["fcos", "fcos-p3p7"])
def test_the_plan_names_for_each_level_of_points_a_side_that_it_learns(name: str) -> None:
    design = DETECTORS[name].design
    assert isinstance(design, PointDesign)
    sides = [float(line.split()[-2]) for line in prior_lines(design)]
    assert design.level_of([[0, 0, side / 2, side] for side in sides]).tolist() == list(range(len(design.levels)))
