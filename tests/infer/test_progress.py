"""What a run says while it works and at its end."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from tinydet.infer.__main__ import main
from tinydet.runtime.backends.onnx_runtime import OnnxRuntimeBackend

BOXES = [[16, 24, 8, 8], [40, 8, 8, 8]]


@pytest.fixture
def flight(make_onnx: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nine images of one tile and one of 12 tiles, each with two objects."""
    monkeypatch.chdir(tmp_path)
    make_onnx(tmp_path / "model.onnx")
    (tmp_path / "flight").mkdir()
    for n in range(10):
        pixels = np.zeros((128, 192, 3) if n == 4 else (64, 64, 3), np.uint8)
        for x, y, w, h in BOXES:
            pixels[y : y + h, x : x + w] = 255
        cv2.imwrite(str(tmp_path / "flight" / f"{n}.png"), pixels)
    return tmp_path


def run(*words: str) -> int:
    return main(["--image", "flight", "--overlap", "8", "--backend", "onnx", *words])


def boxes(folder: Path) -> dict[str, list[list[float]]]:
    documents = {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}
    return {name: sorted(row["bbox"] for row in document["annotations"]) for name, document in documents.items()}


def test_images_of_one_tile_fill_the_batches_of_the_model(flight: Path, runs: list[int]) -> None:
    assert run("--output", "found/") == 0
    assert runs == [4, 4, 4, 4, 4, 1]
    assert boxes(flight / "found") == {f"{n}.detections.json": sorted(BOXES) for n in range(10)}


def test_a_run_over_many_scenes_ends_with_a_summary_and_names_single_scenes_only_on_request(
    flight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--output", "found/", "--draw", "found/") == 0
    said = capsys.readouterr()
    _, summary, *places = said.out.splitlines()
    assert re.fullmatch(r"10 scenes, 21 tiles: 20 detections \(square 20, bar 0\), \d+\.\d s, \d+\.\d tiles/s", summary)
    assert places == ["  found/*.detections.json: 10 files", "  found/*.detections.jpg: 10 files"]
    assert said.err == ""
    assert run("--output", "found/", "--verbose") == 0
    said = capsys.readouterr()
    for n in range(10):
        assert f"\n{n}.png: " in said.out
        assert f"\n  found/{n}.detections.json\n" in said.out


def test_the_summary_counts_skipped_and_unchanged_scenes(flight: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for n in (2, 7):
        (flight / "flight" / f"{n}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    assert run("--output", "found/", "--skip-unreadable", "--resume") == 3
    said = capsys.readouterr()
    assert "\n8 scenes, 19 tiles: 16 detections" in said.out
    assert "\n  2 scenes skipped\n" in said.out
    assert "2 of 10 scenes were skipped:" in said.err
    assert "2.png" in said.err and "7.png" in said.err
    assert sorted(boxes(flight / "found")) == [f"{n}.detections.json" for n in range(10) if n not in (2, 7)]
    (flight / "found" / "4.detections.json").unlink()
    assert run("--output", "found/", "--skip-unreadable", "--resume") == 3
    said = capsys.readouterr()
    assert "\n8 scenes, 19 tiles: 16 detections" in said.out  # those of the scenes that were complete, too
    assert "\n  7 scenes already complete and unchanged\n" in said.out


def test_an_unreadable_scene_ends_the_run_after_the_scenes_before_it(
    flight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (flight / "flight" / "6.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    assert run("--output", "found/") == 2
    assert "6.png" in capsys.readouterr().err
    assert sorted(boxes(flight / "found")) == [f"{n}.detections.json" for n in range(6)]


def test_an_interrupted_run_says_how_many_scenes_are_complete_and_keeps_the_tiles_of_all(
    flight: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, runs: list[int]
) -> None:
    counted = OnnxRuntimeBackend.run

    def stops(self: OnnxRuntimeBackend, images: np.ndarray) -> object:
        if len(runs) == 3:
            raise KeyboardInterrupt
        return counted(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(OnnxRuntimeBackend, "run", stops)
        assert run("--output", "found/") == 130
    assert "  4 of 10 scenes are complete; --resume continues from there" in capsys.readouterr().out
    assert run("--output", "found/", "--resume") == 0
    assert sum(runs) == 21  # no tile was run twice
    assert boxes(flight / "found") == {f"{n}.detections.json": sorted(BOXES) for n in range(10)}


class Terminal(list):
    def write(self, text: str) -> None:
        self.append(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("scenes", "shown"), [("flight", "10/10 scenes"), ("flight/4.png", "12/12 tiles")])
def test_a_terminal_shows_one_bar_of_scenes_or_of_the_tiles_of_a_single_scene(
    flight: Path, monkeypatch: pytest.MonkeyPatch, scenes: str, shown: str
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr("tinydet._internal.progress.REFRESH", 0.0)
    assert main(["--image", scenes, "--overlap", "8", "--backend", "onnx", "--output", "found/"]) == 0
    text = "".join(terminal)
    assert shown in text
    assert "tiles/s" in text and "detections" in text and " left" in text
    assert "\n" not in text
