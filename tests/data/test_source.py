"""Where a dataset is: recognition, loading and the record in a checkpoint."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tinydet.data.coco import find_dataset, load_dataset
from tinydet.data.source import DataSource, builtin_source, find_source


def test_a_source_loads_what_its_files_hold(squares: Path) -> None:
    expected = load_dataset(*find_dataset(squares))
    for source in (find_source(squares), find_source(None, squares / "annotations.json", squares / "images")):
        dataset = source.load()
        assert dataset.images == expected.images and dataset.image_dir == squares / "images"
        np.testing.assert_array_equal(dataset.boxes, expected.boxes)
        assert dataset.document() == json.loads((squares / "annotations.json").read_text())


def test_a_record_finds_data_that_moved_together_with_its_checkpoint(squares: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    shutil.copytree(squares, first / "data")
    record = json.loads(json.dumps(find_source(first / "data").to_json(first)))
    assert DataSource.from_json(record, tmp_path).path == first / "data"  # the checkpoint alone moved: absolute
    first.rename(second)
    assert DataSource.from_json(record, second).load().image_dir == second / "data" / "images"
    shutil.rmtree(second / "data")
    with pytest.raises(ValueError, match="^neither .* exists$") as caught:
        DataSource.from_json(record, second)
    assert str(first / "data") in str(caught.value) and "\n" not in str(caught.value)


def test_a_record_prefers_the_path_relative_to_its_checkpoint(squares: Path, tmp_path: Path) -> None:
    for name in ("old", "new"):
        shutil.copytree(squares, tmp_path / name / "data")
    record = find_source(tmp_path / "old" / "data").to_json(tmp_path / "old")
    assert DataSource.from_json(record, tmp_path / "new").path == tmp_path / "new" / "data"


def test_the_built_in_dataset_is_recorded_as_built_in(tmp_path: Path) -> None:
    source = DataSource.from_json(builtin_source("val").to_json(tmp_path), tmp_path)
    assert source == builtin_source("val") and source.is_builtin


@pytest.mark.parametrize("record", [{}, {"builtin": False, "split": None, "path": 3, "images": None}, {"builtin": 0}])
def test_a_malformed_record_is_refused(record: dict, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="malformed"):
        DataSource.from_json(record, tmp_path)


def test_a_source_that_does_not_exist_is_refused_before_loading(squares: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        find_source(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="nowhere"):
        find_source(squares, images=tmp_path / "nowhere")
    with pytest.raises(ValueError, match="either --data"):
        find_source(squares, squares / "annotations.json")


COMMANDS = [
    ["train", "--data", "NOWHERE"],
    ["train", "--data", "SQUARES", "--val", "NOWHERE"],
    ["train", "--annotations", "NOWHERE", "--images", "SQUARES/images"],
    ["train", "--data", "SQUARES/annotations.json", "--images", "NOWHERE"],
    ["evaluate", "--model", "thermal", "--data", "NOWHERE"],
    ["salpha", "NOWHERE"],
    ["sweep", "--data", "NOWHERE"],
    ["gradients", "model.pth", "--data", "NOWHERE"],
    ["export", "freeze", "model.pth", "--data", "NOWHERE"],
    ["data", "stats", "--data", "NOWHERE"],
    ["data", "convert", "NOWHERE"],
]


ONE_BY_ONE = """
import contextlib, io, json, sys
from tinydet.__main__ import main
for words in json.load(sys.stdin):
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            code = main(words)
        except SystemExit as left:
            code = left.code
    print(json.dumps([code, said.getvalue()]))
"""


def test_a_wrong_path_is_refused_before_torch_is_imported(squares: Path, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    paths = {"SQUARES": str(squares), "NOWHERE": str(tmp_path / "nowhere")}
    commands = json.dumps(COMMANDS)
    for word, path in paths.items():
        commands = commands.replace(word, path)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, "-c", ONE_BY_ONE]
    ran = subprocess.run(command, input=commands, capture_output=True, text=True, env=environment, cwd=tmp_path)
    answers = [json.loads(line) for line in ran.stdout.splitlines()]
    assert len(answers) == len(COMMANDS), ran.stderr
    for words, (code, said) in zip(COMMANDS, answers, strict=True):
        assert code == 2 and "nowhere" in said and len(said.splitlines()) == 1, (words, code, said)
