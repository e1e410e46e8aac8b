"""docs/extending.md: its file, its commands and its script run as printed."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from toy_detector import COMMANDS, PAGE, SCRIPT, SOURCE

from tinydet.__main__ import main
from tinydet._internal import plugins
from tinydet._internal.plugins import import_file
from tinydet._internal.shell import tinydet_command
from tinydet.models.backbone_registry import BACKBONES, register_backbone
from tinydet.models.build import DetectorConfig, build_detector
from tinydet.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from tinydet.models.detector import Detector
from tinydet.models.registry import DETECTORS, DetectorInfo, register_detector

PLUGIN = "tinydet_plugin_my_detector"


@pytest.fixture
def folder(tmp_path: Path, squares: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with the page's file and a dataset. What the file registers is removed afterwards."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    Path("my_detector.py").write_text(SOURCE, encoding="utf-8")
    shutil.copytree(squares, "squares")
    shutil.copy("squares/images/3.png", "scene.png")
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield Path.cwd()
    forget()
    sys.modules.pop("my_detector", None)


def forget() -> None:
    DETECTORS.pop("toy", None)
    BACKBONES.pop("tiny", None)
    sys.modules.pop(PLUGIN, None)
    plugins._NAMED.clear()


def run(line: str) -> int:
    torch.manual_seed(0)
    return main(shlex.split(line)[1:])


def test_the_page_lists_every_member_of_a_detector_and_every_field_of_its_row() -> None:
    text = PAGE.read_text(encoding="utf-8").partition("## The contract of a detector")[2]
    documented = set(re.findall(r"^\| `(\w+)", text, re.M))
    row = {each.name for each in dataclasses.fields(DetectorInfo)}
    set_by_the_builder = {"tile_multiple"}
    members = {*vars(Detector)["__annotations__"], *(name for name in vars(Detector) if not name.startswith("_"))}
    assert row | (members - set_by_the_builder - {"backbone", "fpn"}) <= documented


@pytest.mark.slow
def test_the_commands_train_evaluate_export_and_run_the_detector(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, evaluate, export, infer = COMMANDS
    assert run(f"{train} --device cpu --no-tensorboard") == 0
    checkpoint = load_checkpoint(Path("model.pth"))
    assert (checkpoint.detector.detector, checkpoint.detector.backbone) == ("toy", "tiny")
    assert checkpoint.detector.options == {"prior": 0.05}
    forget()  # as in a new process
    for line in (evaluate, export):
        assert run(line) == 0
        forget()
    said = capsys.readouterr()
    assert "operators added by it: 0" in said.out and "any multiple of 32" in said.out and "spec.tile" not in said.err
    for tile in ("", " --tile 64"):
        assert run(infer + tile) == 0
        assert json.loads(Path("found.json").read_text()) is not None
    own_tile = SOURCE.replace("side // stride for side in images.shape[2:]", "96 // stride for _ in range(2)")
    Path("my_detector.py").write_text(own_tile, encoding="utf-8")
    assert run(export) == 0
    assert "toy: its graph depends on spec.tile, so the file takes tiles of 96 only" in capsys.readouterr().err
    assert run(infer) == 0 and run(f"{infer} --tile 64") == 2
    assert "model.onnx takes only tiles of 96, not 64" in capsys.readouterr().err


def test_a_checkpoint_of_an_unregistered_detector_gives_one_line_in_every_command(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import_file(Path("my_detector.py"))
    config = DetectorConfig(backbone="tiny", channels=8, norm="batch", detector="toy")
    save_checkpoint(Checkpoint(config, build_detector(config).state_dict(), ("a",), (1,), 64), Path("model.pth"))
    assert load_checkpoint(Path("model.pth")).build().backbone.channels == (16, 32, 48, 64)
    forget()  # as in a new process
    message = next(block for block in PAGE.read_text("utf-8").split("```\n") if block.startswith("model.pth: "))
    for line in ("evaluate --model model.pth --data squares", "export onnx model.pth", "gradients model.pth"):
        assert main(line.split()) == 2
        assert message.strip() in capsys.readouterr().err
    with pytest.raises(ValueError, match="detector 'toy' is not registered"):
        load_checkpoint(Path("model.pth"))


def test_a_suggested_command_that_opens_a_checkpoint_names_the_file_too(folder: Path) -> None:
    assert "--plugin" not in tinydet_command("evaluate", "--model", Path("model.pth"))
    import_file(Path("my_detector.py"))
    assert tinydet_command("evaluate", "--model", Path("model.pth")).endswith("model.pth --plugin my_detector.py")
    assert "--plugin" not in tinydet_command("infer", "--model", Path("model.onnx"))


def test_the_script_trains_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))
    exec(compile(SCRIPT, str(PAGE), "exec"), {"__name__": "my_train"})
    assert load_checkpoint(Path("from_python.pth")).detector.detector == "toy"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "--plugin other.py: no such file"),
        ("x = (\n", "--plugin other.py, line 1: SyntaxError"),
        ("import math\n\nmath.no_such\n", "--plugin other.py, line 3: AttributeError"),
        ("raise ValueError('two\\nlines')\n", "--plugin other.py, line 1: ValueError: two lines"),
    ],
)
def test_a_faulty_file_gives_one_line(
    content: str | None, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        Path("other.py").write_text(content)
    assert main(["train", "--plugin", "other.py", "--dry-run"]) == 2
    shown = capsys.readouterr().err
    assert message in shown and shown.count("\n") == 1


def test_only_a_file_of_python_is_a_plugin(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--plugin=scene.png", "--dry-run"]) == 2
    assert "--plugin scene.png: expected a Python file, NAME.py" in capsys.readouterr().err


def test_the_names_of_tinydet_are_not_replaced() -> None:
    with pytest.raises(ValueError, match="detector 'retinanet': the name is taken"):
        register_detector("retinanet", DETECTORS["faster_rcnn"])
    for name in ("resnet18", "timm:resnet18"):
        with pytest.raises(ValueError, match=f"backbone '{name}': the name is taken"):
            register_backbone(name, BACKBONES["resnet34"])


def test_files_named_after_the_end_of_options_are_not_imported(folder: Path) -> None:
    Path("other.py").write_text("raise AssertionError('imported')\n")
    with pytest.raises(SystemExit):
        main(["train", "--", "--plugin", "other.py"])
