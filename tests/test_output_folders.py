"""Folders of outputs: created by every command, not left behind by an error, and never made where a file is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.support.coco_files import random_coco
from tinydet.__main__ import main

# A command that succeeds on these inputs, with an option that names an output; ONE/ is the missing folder.
DATA = "set/annotations.json"
COMMANDS = {
    "salpha": (f"salpha {DATA} --json ONE/two/s.json", DATA),
    "stats": (f"data stats {DATA} --json ONE/two/s.json", DATA),
    "check": (f"data check {DATA} --json ONE/two/s.json", DATA),
    "fix": (f"data check {DATA} --fix ONE/two/s.json", DATA),
    "cut": ("data cut set --tile 64x64 --overlap 8 --output ONE/two/cut", "set"),
    "cut annotations": (f"data cut {DATA} --tile 64x64 --overlap 8 --output ONE/two/cut.json", DATA),
    "erase": ("data erase set --output ONE/two/erased", "set"),
    "rescale": ("data rescale set --factor 0.5 --output ONE/two/half", "set"),
    "convert": ("data convert labels --from yolo --images set/images --output ONE/two/c.json", "labels"),
    "synthetic": ("synthetic ONE/two/set --images 1 --size 32x32", ""),
    "synthetic scene": ("synthetic ONE/two/s.png --scene --size 32x32", ""),
    "evaluate": (f"evaluate --gt {DATA} --detections found.json --json ONE/two/s.json", "found.json"),
    "evaluate precision": (f"evaluate --gt {DATA} --detections found.json --precision ONE/two/s.json", "found.json"),
    "infer": ("infer scene.png --model model.onnx --overlap 8 --output ONE/two/found.json", "scene.png"),
    "infer folder": ("infer scene.png --model model.onnx --overlap 8 --output ONE/two/", "scene.png"),
    "infer draw": ("infer scene.png --model model.onnx --overlap 8 --draw ONE/two/a.png", "scene.png"),
    "infer crops": ("infer scene.png --model model.onnx --overlap 8 --crops ONE/two/a.png", "scene.png"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_onnx: Callable[..., Path]) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set" / "images").mkdir(parents=True)
    random_coco(Path(DATA), [(128, 96), (128, 96)])
    for i in (1, 2):
        cv2.imwrite(f"set/images/{i}.png", np.zeros((96, 128, 3), np.uint8))
    cv2.imwrite("scene.png", np.zeros((96, 128, 3), np.uint8))
    Path("labels").mkdir()
    Path("labels/1.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    Path("labels/classes.txt").write_text("person\n")
    Path("found.json").write_text("[]")
    make_onnx(tmp_path / "model.onnx")
    return tmp_path


@pytest.mark.parametrize("name", COMMANDS)
def test_missing_folders_are_created(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(COMMANDS[name][0].replace("ONE", "new").split()) == 0, capsys.readouterr().err
    written = [path for path in (folder / "new").rglob("*") if path.is_file()]
    assert written and all("two" in path.parts for path in written)


@pytest.mark.parametrize("name", [name for name, (_, source) in COMMANDS.items() if source])
def test_after_a_wrong_input_no_folder_is_left(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command, source = COMMANDS[name]
    before = sorted(folder.rglob("*"))
    words = [word if word != source else "missing.json" for word in command.replace("ONE", "new").split()]
    assert main(words) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_in_place_of_a_folder_is_refused_in_one_line(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "file").write_text("mine")
    before = sorted(folder.rglob("*"))
    assert main(COMMANDS[name][0].replace("ONE", "file").split()) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "file is a file, not a folder; name another output" in error
    assert sorted(folder.rglob("*")) == before
    assert (folder / "file").read_text() == "mine"


def test_the_check_needs_no_work(folder: Path) -> None:
    """The place of an output is checked before the model is loaded."""
    shutil.copy("scene.png", "broken.onnx")
    (folder / "file").touch()
    assert main(["infer", "scene.png", "--model", "broken.onnx", "--output", "file/x.json"]) == 2
