"""`tinydet.export.export_onnx` and `build_engine`: the files and the report of the commands, exceptions for errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tinydet.__main__ import main
from tinydet.export import build_engine, export_onnx


@pytest.fixture
def files(tmp_path: Path, brightness_model: Any) -> tuple[Path, Path]:
    """The brightness model, and an image that it finds cells in."""
    (tmp_path / "model.onnx").write_bytes(brightness_model.SerializeToString())
    image = np.full((64, 64, 3), 20, np.uint8)
    image[8:24:8, 8:40:8] = 250
    for n in range(4):
        image[32:36, 4 * n : 4 * n + 4] = 150 + 20 * n
    cv2.imwrite(str(tmp_path / "bright.png"), image)
    return tmp_path / "model.onnx", tmp_path / "bright.png"


def test_a_conversion_writes_the_files_of_the_command_and_prints_nothing(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model, image = files
    made = export_onnx(str(model), precision="fp16", images=[str(image)])
    assert capsys.readouterr().out == ""
    assert made.path == made.onnx == model.with_suffix(".fp16.onnx") and made.description.is_file()
    assert made.spec.precision == "fp16"
    assert made.verification is not None and made.verification.passed
    written = made.path.read_bytes()
    assert main(["export", "onnx", str(model), "--precision", "fp16", "--images", str(image)]) == 0
    printed = capsys.readouterr().out
    assert made.path.read_bytes() == written
    kept = [line for line in made.report.splitlines() if " s" not in line]  # durations differ
    assert kept and all(line in printed for line in kept)


def test_an_engine_is_built_with_its_batches(files: tuple[Path, Path]) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13, which builds engines without a GPU")
    model, image = files
    made = build_engine(model, target="rtx", precision="fp32", batch=(1, 2, 4), images=[image])
    assert made.path == model.with_suffix(".engine") and made.path.stat().st_size > 0
    assert made.onnx == model and list(made.spec.engine["batch"]) == [1, 2, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp8"}, "precision: expected one of fp32, fp16, int8, got 'fp8'"),
        ({"tile": 10}, "tile: expected a whole number from 64 to 8192"),
        ({"limit": True}, "limit: expected a value, got True"),
        ({"images": "one.png"}, "images: expected a list, got 'one.png'"),
        ({"max_drop": 2.0}, "max_drop: expected a number"),
        ({}, "is already an ONNX file; use --precision fp16 or int8"),
        ({"precision": "fp16", "output": "other.onnx"}, "is converted to .*model.fp16.onnx, so leave --output out"),
        ({"precision": "fp16", "tile": 128}, "fixed in an ONNX file"),
    ],
)
def test_a_bad_argument_is_named(files: tuple[Path, Path], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        export_onnx(files[0], **options)
    assert {path.name for path in files[0].parent.iterdir()} == {"model.onnx", "bright.png"}


def test_a_missing_file_and_falling_batches_are_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"none.pth: no such file"):
        export_onnx(tmp_path / "none.pth")
    with pytest.raises(ValueError, match="batch: expected three rising numbers"):
        build_engine(files[0], batch=(4, 2, 1))
