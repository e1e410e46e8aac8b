"""The program that chooses and trains the bundled model, as far as it can be tested without training."""

from __future__ import annotations

import importlib
import json
import signal
import time
from pathlib import Path

import pytest

from tinydet.data.coco import find_dataset, load_dataset


def folder(path: Path, names: list[str]) -> Path:
    """A COCO folder with one box in each image."""
    (path / "images").mkdir(parents=True)
    for name in names:
        (path / "images" / name).write_bytes(b"")
    images = [{"id": n, "file_name": name, "width": 64, "height": 64} for n, name in enumerate(names, 5)]
    boxes = [
        {"id": n, "image_id": image["id"], "category_id": 1, "bbox": [n, 0, 8, 8], "area": 64, "iscrowd": 0}
        for n, image in enumerate(images, 1)
    ]
    document = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "person"}]}
    (path / "annotations.json").write_text(json.dumps(document))
    return path


def test_joined_folders_keep_every_image_with_its_boxes(tmp_path: Path) -> None:
    module = importlib.import_module("thermal_model")
    folders = [folder(tmp_path / "a", ["x.png", "y.png"]), folder(tmp_path / "b", ["z.png"])]
    for _ in range(2):  # also where it exists already
        joined = module.join_frames(folders, tmp_path / "all")
    dataset = load_dataset(find_dataset(joined)[0], None)
    first = {image.file_name: dataset.of_image(n).boxes[0, 0] for n, image in enumerate(dataset.images)}
    assert first == {"x.png": 1, "y.png": 2, "z.png": 1}
    assert (joined / "images" / "z.png").resolve() == (tmp_path / "b" / "images" / "z.png").resolve()


def test_a_table_has_each_date_and_the_mean_over_those_with_objects() -> None:
    module = importlib.import_module("thermal_model")
    dates = {"1 May": {"person": {"all": 0.5, "tiny": 0.25}, "car": {}}, "2 May": {"person": {"all": 0.0}, "car": {}}}
    lines = module.table(dates).splitlines()
    assert lines[2] == "| 1 May | person | 0.500 | 0.250 |" and lines[4] == "| 2 May | person | 0.000 |  |"
    assert lines[-2] == "| mean | person | 0.250 | 0.250 |" and lines[-1] == "| mean | car |  |  |"


def test_a_command_of_a_program_in_the_background_can_be_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell script starts `program &` with Ctrl-C ignored, and the children of the program inherit that."""
    module = importlib.import_module("thermal_model")
    (tmp_path / "heeds_ctrl_c.py").write_text(
        "import signal, sys\nsys.exit(signal.getsignal(signal.SIGINT) is not signal.default_int_handler)"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert module.run_until(time.monotonic() + 60, "heeds_ctrl_c")
    finally:
        signal.signal(signal.SIGINT, before)
