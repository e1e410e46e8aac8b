"""The commands `tinydet export …`: the files that they write, what they print, and one-line errors."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tinydet.__main__ import main
from tinydet.export import engine_command
from tinydet.export.verify_command import open_reference
from tinydet.models.build import DetectorConfig, build_detector
from tinydet.models.checkpoint import Checkpoint, save_checkpoint
from tinydet.runtime.backends import TileOutputs, open_model
from tinydet.runtime.backends.tensorrt import plan_flavour
from tinydet.spec import ModelSpec

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bright(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dark image with bright cells, for the brightness model."""
    image = np.full((64, 64, 3), 20, np.uint8)
    image[8:24:8, 8:40:8] = 250
    for n in range(4):
        image[32 : 32 + 4, 4 * n : 4 * n + 4] = 150 + 20 * n
    path = tmp_path_factory.mktemp("bright") / "bright.png"
    cv2.imwrite(str(path), image)
    return path


@pytest.fixture
def rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13, which builds engines without a GPU")


def test_onnx_description_and_engine_are_written_next_to_the_checkpoint(rtx: Any, exported: Any) -> None:
    assert exported.code == 0, exported.err
    assert sorted(path.name for path in exported.folder.iterdir()) == [
        "model.engine",
        "model.json",
        "model.onnx",
        "model.pth",
        "model.verify.json",
        "model.verify.md",
    ]
    plan = (exported.folder / "model.engine").read_bytes()
    assert plan_flavour(plan) == "rtx"
    description = json.loads((exported.folder / "model.json").read_text(encoding="utf-8"))
    assert description["engine"]["bytes"] == len(plan)
    assert description["engine"]["batch"] == [1, 2, 4]
    assert description["classes"] == ["person", "car"]


def test_the_output_names_the_files_and_the_results_of_the_checks(rtx: Any, exported: Any) -> None:
    printed = exported.out
    for part in (
        f"{exported.folder / 'model.onnx'}  ",
        "alpha         0.368, 0.387, 0.367; operators added by it: 0",
        " detections compared, 0 unmatched; on 1 image of --images",
        "not verified  ",
        f"on the target machine: tinydet export verify {exported.folder / 'model.engine'}",
        ", 0 unmatched; largest difference: score ",
        "up to 300 boxes per tile; classes: person, car",
        "tile          128 pixels by default; any multiple of 32: infer --tile",
        "tiles         128 pixels; for others build again with --tile",
        f"tinydet infer --model {exported.folder / 'model.engine'} --image scene.jpg --tile 128",
    ):
        assert part in printed
    detections, tiles = re.findall(r"(\d+) detections on (\d) test tiles", printed)[0]
    assert int(detections) > 300 and tiles == "8"  # four of each size


def test_the_report_next_to_the_model_has_the_results_of_the_verification(exported: Any) -> None:
    report = json.loads((exported.folder / "model.verify.json").read_text(encoding="utf-8"))
    assert report["passed"] is True and report["faults"] == []
    assert list(report["parity"]) == [
        "real tiles, batch 1",
        "empty tile, batch 1",
        "crowded tile, batch 1",
        "all of them, batch 3",
        "all of them, batch 4",
    ]
    assert sum(found["detections"] for found in report["parity"].values()) > 300
    assert sum(found["unmatched"] for found in report["parity"].values()) == 0
    text = (exported.folder / "model.verify.md").read_text(encoding="utf-8")
    assert text.startswith("# Passed: ONNX Runtime") and "| real tiles, batch 1 | " in text


def test_a_model_can_be_verified_again_with_another_backend(
    exported: Any, scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("openvino", reason="needs tinydet[openvino]")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    copy = tmp_path / "copy.onnx"
    shutil.copy(exported.folder / "model.onnx", copy)
    onnx = ["--reference", str(exported.folder / "model.onnx"), "--images", str(scene)]
    assert main(["export", "verify", str(copy), "--backend", "openvino", *onnx]) == 0
    assert "# Passed: OpenVINO" in capsys.readouterr().out
    assert (tmp_path / "copy.verify.md").is_file()
    assert main(["export", "verify", str(copy)]) == 2
    assert "name it with --reference FILE" in capsys.readouterr().err


def test_the_checkpoint_that_a_model_is_compared_with_runs_the_graph_of_that_model(tmp_path: Path) -> None:
    """Else a model that needed more rounds of suppression than the default would fail its verification."""
    config = DetectorConfig("mobilenet_v2", channels=8, norm="batch", detector="grid_rcnn")
    checkpoint = Checkpoint(config, build_detector(config).state_dict(), ("a",), (1,), tile=64)
    save_checkpoint(checkpoint, tmp_path / "model.pth")
    exported = checkpoint.spec(tile=128, max_batch=3, max_detections=40, nms_rounds=33, grid_rois=7)
    assert open_reference(tmp_path / "model.pth", exported)[0].spec == exported


def test_bfloat16_is_verified_with_its_tolerance_and_boxes_are_decoded_in_float32(
    exported: Any, scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At coordinate 100, bfloat16 has a resolution of half a pixel."""
    openvino = pytest.importorskip("openvino", reason="needs tinydet[openvino]")
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("the processor has no bfloat16")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    copy, source = tmp_path / "copy.onnx", exported.folder / "model.onnx"
    shutil.copy(source, copy)
    arguments = ["--reference", str(source), "--images", str(scene), "--backend", "openvino-bf16"]
    assert main(["export", "verify", str(copy), *arguments]) == 0, capsys.readouterr()
    found = json.loads((tmp_path / "copy.verify.json").read_text())["parity"]["real tiles, batch 1"]
    assert found["detections"] > 50 and found["unmatched"] == 0 and 0 < found["score_difference"] < 0.03
    boxes = open_model(copy, "openvino-bf16").run(np.full((1, 128, 128, 3), 90, np.uint8)).boxes
    assert ((boxes.view(np.uint32) & 0xFFFF) != 0).mean() > 0.5  # bits that bfloat16 does not have


def test_to_trt_builds_without_torch_and_from_any_folder(
    rtx: Any, brightness_onnx: Path, scene: Path, tmp_path: Path
) -> None:
    """The checkout is not on sys.path, the folder `export/` comes first on it, and torch cannot be imported."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text("import sys; sys.modules['torch'] = None")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, str(ROOT / "export/to_trt.py"), "model.onnx", "--target", "rtx", "--images", str(scene)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    steps = done.stderr.splitlines()
    assert steps and all(line.startswith(("  converting to fp16: ", "  building (")) for line in steps)
    assert "wrote         model.fp16.onnx" in done.stdout
    assert "layers        1 of 1 in fp16; in fp32: none" in done.stdout
    assert re.search(r"wrote         model.engine  .* MB, fp16, ", done.stdout)
    assert "built by      TensorRT-RTX" in done.stdout
    assert (tmp_path / "model.engine").read_bytes().startswith(b"vtrt")


class FindsNothing:
    """An engine without detections."""

    name = "finds nothing"

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec

    def run(self, images: Any) -> TileOutputs:
        n, k = len(images), self.spec.max_detections
        zeros = np.zeros((n, k), np.float32)
        return TileOutputs(np.zeros((n, k, 4), np.float32), zeros, np.full((n, k), -1, np.int32), np.zeros(n, np.int32))


def test_an_engine_that_fails_verification_does_not_replace_an_existing_one(
    rtx: Any, brightness_onnx: Path, bright: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "export",
        "engine",
        str(brightness_onnx),
        "--target",
        "rtx",
        "--precision",
        "fp32",
        "--images",
        str(bright),
    ]
    monkeypatch.setattr(engine_command, "open_engine", lambda plan, spec: open_model(brightness_onnx, "onnx-cpu"))
    assert main([*command, "--batch", "1,2,4"]) == 0
    assert re.search(r"verified      \d+ detections compared, 0 unmatched;", capsys.readouterr().out)
    folder = brightness_onnx.parent
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert {"model.engine", "model.json", "model.engine.verify.md"} <= before.keys()
    assert b"# Passed" in before["model.engine.verify.md"]
    monkeypatch.setattr(engine_command, "open_engine", lambda plan, spec: FindsNothing(spec))
    assert main([*command, "--batch", "1,1,1"]) == 2
    error = capsys.readouterr().err
    assert "model.engine was not written, because the engine failed verification" in error and "unmatched" in error
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_report_of_an_older_engine_is_removed_when_a_new_one_is_not_verified(
    rtx: Any, brightness_onnx: Path, bright: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(plan: Path, spec: ModelSpec) -> Any:
        raise OSError("no GPU")

    report = brightness_onnx.with_name("model.engine.verify.md")
    report.write_text("# Passed: an older engine")
    monkeypatch.setattr(engine_command, "open_engine", absent)
    command = [
        "export",
        "engine",
        str(brightness_onnx),
        "--target",
        "rtx",
        "--precision",
        "fp32",
        "--images",
        str(bright),
    ]
    assert main(command) == 0
    assert not report.exists()


def test_verifying_again_keeps_the_fields_that_only_the_conversion_knew(
    exported: Any, scene: Path, tmp_path: Path
) -> None:
    for suffix in (".onnx", ".pth"):
        shutil.copy(exported.folder / f"model{suffix}", tmp_path / f"copy{suffix}")
    report = tmp_path / "copy.verify.json"
    report.write_text(json.dumps({"kept_in_fp32": ["a.weight"], "shares": {"a": 0.5}, "passed": False}))
    assert main(["export", "verify", str(tmp_path / "copy.onnx"), "--images", str(scene)]) == 0
    fields = json.loads(report.read_text(encoding="utf-8"))
    assert fields["kept_in_fp32"] == ["a.weight"] and fields["shares"] == {"a": 0.5} and fields["passed"] is True


def test_a_dry_run_builds_nothing(rtx: Any, brightness_onnx: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "engine", str(brightness_onnx), "--dry-run", "--target", "rtx"]) == 0
    assert "accepts it" in capsys.readouterr().out
    assert [path.name for path in brightness_onnx.parent.iterdir()] == ["model.onnx"]


def test_verbose_prints_the_log_of_the_builder(
    rtx: Any, brightness_onnx: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "engine", str(brightness_onnx), "--dry-run", "--target", "rtx"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["export", "engine", str(brightness_onnx), "--dry-run", "--target", "rtx", "--verbose"]) == 0
    assert "Adding network input: images" in capsys.readouterr().err


def test_options_reach_the_builder(tensorrt: Any, brightness_onnx: Path, tmp_path: Path) -> None:
    output = tmp_path / "other.engine"
    options = ["--batch", "1,3,5", "--workspace", "512", "--version-compatible", "--hardware-compatible"]
    options += [
        "--timing-cache",
        str(tmp_path / "timings"),
        "--output",
        str(output),
        "--target",
        "tensorrt",
        "--precision",
        "fp32",
    ]
    assert main(["export", "engine", str(brightness_onnx), *options]) == 0
    calls = dict(tensorrt.calls)
    assert calls["IBuilderConfig.set_memory_pool_limit"][1] == 512 << 20
    assert [shape[0] for shape in calls["IOptimizationProfile.set_shape"][1:]] == [1, 3, 5]
    assert {"IBuilderConfig.set_flag", "IBuilderConfig.hardware_compatibility_level"} <= calls.keys()
    assert (tmp_path / "timings").is_file()
    assert output.is_file() and output.with_suffix(".json").is_file()


def test_without_tensorrt_the_onnx_file_stays_and_the_message_names_the_extras(
    brightness_onnx: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["export", "engine", str(brightness_onnx), "--precision", "fp32"]) == 2
    shown = capsys.readouterr()
    (remains,), (warning, error) = shown.out.splitlines(), shown.err.splitlines()
    assert "verifying on the built-in synthetic scenes" in warning
    assert remains == f"{brightness_onnx} is complete and runs with ONNX Runtime: tinydet infer " + (
        f"--model {brightness_onnx} --image scene.jpg --tile 64"
    )
    assert error.startswith(("tinydet export onnx: error: ", "tinydet export engine: error: "))
    assert "'tinydet[tensorrt]'" in error and "'tinydet[rtx]'" in error
    assert [path.name for path in brightness_onnx.parent.iterdir()] == ["model.onnx"]


class CreatesFolder:
    """Executes code when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("kind", ["missing", "text", "code", "truncated"])
def test_an_invalid_checkpoint_is_a_one_line_error(
    kind: str,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.pth"
    match kind:
        case "text":
            path.write_text("not a checkpoint")
        case "code":
            path.write_bytes(pickle.dumps(CreatesFolder(), protocol=2))
        case "truncated":
            path.write_bytes(checkpoint.read_bytes()[:10_000])
    for command in ("onnx", "engine"):
        assert main(["export", command, str(path)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(("tinydet export onnx: error: ", "tinydet export engine: error: ")) and "bad.pth" in line
    assert sorted(p.name for p in tmp_path.iterdir()) == ([] if kind == "missing" else ["bad.pth"])


@pytest.mark.parametrize(
    ("option", "rule"),
    [
        ("--grid-rois", "--grid-rois is for Grid R-CNN; retinanet has no grid branch"),
        ("--nms-rounds", "--nms-rounds is for two-stage detectors; retinanet has no proposals"),
    ],
)
def test_options_of_other_detectors_are_refused(
    option: str, rule: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "model.onnx"
    assert main(["export", "onnx", str(checkpoint), "--output", str(output), option, "5"]) == 2
    assert capsys.readouterr().err == f"tinydet export onnx: error: {checkpoint}: {rule}\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [["--max-detections", "5"], ["--grid-rois", "5"]])
def test_the_shape_of_an_onnx_file_cannot_be_changed(
    options: list[str], brightness_onnx: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "engine", str(brightness_onnx), *options]) == 2
    assert "fixed in an ONNX file" in capsys.readouterr().err


def test_an_onnx_file_of_one_tile_becomes_an_engine_for_it_only(
    brightness_onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "engine", str(brightness_onnx), "--tile", "64,128"]) == 2
    assert "model.onnx takes only tiles of 64, not 128; export it again" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("sizes", ["8", "1,2", "8,1,16", "0,1,2", "a,b,c", "1,2,3,4"])
def test_batch_sizes_are_three_numbers_in_ascending_order(sizes: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main(["export", "engine", "model.onnx", "--batch", sizes])
    assert exited.value.code == 2
    assert "expected three rising numbers such as 1,8,16" in capsys.readouterr().err
