from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from tinydet.geometry.tiles import TileGrid
from tinydet.runtime.backends import TileOutputs
from tinydet.runtime.options import ScanOptions
from tinydet.runtime.scenes import open_scene
from tinydet.study.seamtest import View, main, seam_test, shift_of, shifted_views


def squares(seed: int = 0, side: int = 8) -> np.ndarray:
    """White squares of 8 pixels, one at a random position in each cell of 16."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((240, 320, 3), np.uint8)
    for y in range(0, 240, 16):
        for x in range(0, 320, 16):
            dx, dy = rng.integers(1, 15 - side, 2)
            pixels[y + dy : y + dy + side, x + dx : x + dx + side] = 255
    return pixels


def views_of(backend: object) -> tuple[View, View]:
    """Two views of a scene of squares, cut into tiles that share 20 pixels."""
    return shifted_views(open_scene(squares()), backend.spec, ScanOptions(overlap=20, score=0.3))


class Blinkered:
    """Finds nothing nearer than `blind` pixels to the right edge of a tile: a detector that fails at seams."""

    def __init__(self, backend: object, blind: int) -> None:
        self.spec, self.name, self._backend, self._blind = backend.spec, "blinkered", backend, blind

    def run(self, images: np.ndarray) -> TileOutputs:
        outputs = self._backend.run(images)
        seen = outputs.boxes[..., 2] < self.spec.tile - self._blind
        return outputs._replace(labels=np.where(seen, outputs.labels, -1).astype(np.int32))


def test_scans_of_a_perfect_detector_agree(white_squares: Callable) -> None:
    report = seam_test(white_squares(), views_of(white_squares()))
    assert report.at_seams.boxes > 100
    assert report.elsewhere.boxes > 0
    for part in (report.at_seams, report.elsewhere):
        assert (part.lost, part.duplicates) == (0, 0)
    assert report.excess == 0


def test_objects_that_a_seam_hides_are_counted_as_lost_at_seams(white_squares: Callable) -> None:
    """Blind for 30 pixels where tiles share 20: no tile of a grid finds anything in strips of 10 pixels."""
    backend = Blinkered(white_squares(), 30)
    report = seam_test(backend, views_of(backend))
    assert report.at_seams.lost > 10
    assert report.at_seams.duplicates == 0
    assert report.excess > 0.05


def test_parts_that_a_merge_leaves_are_counted_as_disagreement(white_squares: Callable) -> None:
    """Plain NMS keeps a part of a square next to the whole one if the part is less than half of it."""
    views = views_of(white_squares())
    seam, nms = (seam_test(white_squares(), views, merge) for merge in ("seam", "nms"))
    assert seam.excess == 0
    assert nms.excess > 0.02


def test_the_shift_is_half_a_stride_in_whole_cells_of_the_pyramid() -> None:
    assert shift_of(TileGrid(3000, 3000, 640, 128)) == (256, 256)
    assert shift_of(TileGrid(3000, 640, 640, 128)) == (256, 0)
    with pytest.raises(ValueError, match="no seams"):
        shift_of(TileGrid(640, 640, 640, 128))


@pytest.fixture
def files(make_onnx: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path]:
    """A scene of 8x8 cells, some white, and a model that finds them."""
    rng = np.random.default_rng(0)
    cells = (rng.uniform(size=(20, 30)) < 0.1).astype(np.uint8) * 255
    image = tmp_path / "cells.png"
    cv2.imwrite(str(image), np.kron(cells, np.ones((8, 8), np.uint8)))
    return image, make_onnx(tmp_path / "model.onnx")


def test_the_command_prints_a_row_for_each_merge_and_writes_the_counts(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, model = files
    output = tmp_path / "seams.json"
    arguments = ["--image", str(image), "--model", str(model), "--overlap", "16", "--merge", "seam", "nms"]
    assert main([*arguments, "--limit", "0.001", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    written = json.loads(output.read_text())["merges"]
    assert [row["merge"] for row in written] == ["seam", "nms"]
    for row in written:
        assert row["at_seams"]["boxes"] > 0
        assert row["at_seams"]["lost"] == row["at_seams"]["duplicates"] == 0
        assert f"{row['merge']:9} at seams  {row['at_seams']['boxes']:7,}" in printed


def test_the_model_runs_once_for_all_merges(white_squares: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    backend = white_squares()
    cv2.imwrite(str(tmp_path / "scene.png"), squares())
    monkeypatch.setattr("tinydet.study.seamtest.open_model", lambda *_, **__: backend)
    main(["--image", str(tmp_path / "scene.png"), "--overlap", "20"])
    once = len(backend.batches)
    main(["--image", str(tmp_path / "scene.png"), "--overlap", "20", "--merge", "seam", "nms", "nmm", "wbf"])
    assert len(backend.batches) == 2 * once


def test_the_exit_code_is_1_if_the_disagreement_exceeds_the_limit(
    white_squares: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    cv2.imwrite(str(tmp_path / "scene.png"), squares())
    monkeypatch.setattr("tinydet.study.seamtest.open_model", lambda *_, **__: Blinkered(white_squares(), 30))
    arguments = ["--image", str(tmp_path / "scene.png"), "--overlap", "20"]
    assert main(arguments) == 0
    assert main([*arguments, "--limit", "0.01"]) == 1
    assert "--limit" in capsys.readouterr().err


def test_a_scene_of_one_tile_is_refused(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = tmp_path / "small.png"
    cv2.imwrite(str(small), np.zeros((60, 60), np.uint8))
    assert main(["--image", str(small), "--model", str(files[1]), "--overlap", "16"]) == 2
    assert "no seams to test" in capsys.readouterr().err
