"""The program that verifies an engine on a GPU, as far as it can be tested without one."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tinydet.runtime.backends.tensorrt import TensorRTBackend
from tinydet.spec import ModelSpec

STAND_IN = Path(__file__).resolve().parents[1] / "support" / "cuda_stand_in.py"


@pytest.fixture
def program() -> ModuleType:
    return importlib.import_module("verify_gpu")


@pytest.fixture
def engine() -> TensorRTBackend:
    """An engine on a stand-in of the driver, described in the tests of the runtime."""
    spec = importlib.util.spec_from_file_location("cuda_stand_in", STAND_IN)
    assert spec is not None and spec.loader is not None
    cuda = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cuda)
    driver = cuda.Driver()
    found = cuda.Engine(driver)
    return TensorRTBackend(found, cuda.SPEC, driver, found.execution(), name="stand-in")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file that starts like an engine, and its description."""
    path, plan = tmp_path / "model.engine", b"vtrt and the rest"
    spec = ModelSpec(("light",), (1,), "brightness", "none", tile=8)
    engine = {"flavour": "rtx", "sha256": hashlib.sha256(plan).hexdigest(), "bytes": len(plan)}
    path.write_bytes(plan)
    path.with_suffix(".json").write_text(replace(spec, engine=engine).to_json())
    return path


def test_without_a_gpu_it_prints_one_line_and_writes_nothing(programs: Path, model: Path, tmp_path: Path) -> None:
    cudart = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-python")
    if cudart.cudaGetDeviceCount()[0] == cudart.cudaError_t.cudaSuccess:
        pytest.skip("there is a GPU")
    output = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, str(programs / "verify_gpu.py"), str(model), "--output", str(output)],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(programs.parent), "PATH": ""},
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("verify_gpu.py: error: ") and "needs an NVIDIA GPU with its driver" in line
    assert done.stdout == "" and not output.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.engine"], "missing.engine"),
        (["{model}", "--output", "{onnx}/result.json"], "no such folder"),
        (["{onnx}"], "is for the backend onnx"),
    ],
)
def test_bad_input_ends_in_one_line(
    program: ModuleType, model: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx = model.with_suffix(".onnx")
    onnx.write_bytes(b"ONNX")
    assert program.main([word.format(model=model, onnx=onnx) for word in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize("text", ["0", "1,x", "", "8,,1", "-1"])
def test_batch_sizes_are_positive(program: ModuleType, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        program.arguments(["model.engine", "--batches", text])
    assert left.value.code == 2 and "expected batch sizes from 1 up" in capsys.readouterr().err
    assert program.arguments(["model.engine", "--batches", "8,1,8"]).batches == (1, 8)


def test_an_engine_is_timed_in_total_and_by_stage_between_two_readings_of_the_clocks(
    program: ModuleType, engine: TensorRTBackend
) -> None:
    readings: list[dict[str, Any]] = [{"slowed_by": []}, {"slowed_by": ["power cap"]}]
    remaining = iter(readings)
    tiles = np.zeros((3, 8, 8, 3), np.uint8)
    found = program.measure(engine, tiles, runs=10, seconds=0.05, ask=lambda: next(remaining))
    assert list(found["milliseconds"]) == ["run", "copy in", "execute", "copy out"]
    assert [found["milliseconds"][stage]["median"] for stage in program.STAGES] == [1.0, 1.0, 1.0]
    assert found["clocks"] == {"before": readings[0], "after": readings[1]}
    assert found["tiles_per_second"] == pytest.approx(3e3 / found["milliseconds"]["run"]["median"], rel=0.01)
    row = program.table({3: found}).splitlines()[-1]
    assert row.startswith("| 3 | ") and row.endswith("| power cap |")


def test_values_that_nvidia_smi_does_not_report_are_passed_on_as_such(program: ModuleType) -> None:
    assert program.parse_clocks("") == program.parse_clocks("No devices were found\n") == {}
    found = program.parse_clocks("NVIDIA L4, 570.1, [N/A], 6251, 2040, 51, 43.1, [Not Supported]\n")
    assert found["clocks.sm"] == "[N/A]" and found["slowed_by"] == "[Not Supported]"
    assert program.slowed_by(0x1) == []  # idle


def test_tiles_are_repeated_to_fill_a_batch(program: ModuleType) -> None:
    tiles = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1)
    assert program.repeated(tiles, 5).ravel().tolist() == [0, 1, 2, 0, 1]
