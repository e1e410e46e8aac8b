"""The kit for a GPU machine: its packages, its limits, and a rehearsal of every step on the CPU."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tinydet._internal import json_files
from tinydet.spec import Domain, ModelSpec

# What the machine has; torch and the others bring what they depend on. pydantic, tqdm, onnxscript and pycocotools lack.
MACHINE = ("torch==2.11.*", "torchvision==0.26.*", "numpy==2.5.*", "onnx", "onnxruntime", "opencv-python-headless<5")
EXPORTER = ("onnxscript", "onnx-ir")  # wheels beside the kit


@pytest.fixture
def gpu(programs: Path) -> ModuleType:
    return importlib.import_module("gpu")


@pytest.fixture
def packages(programs: Path) -> ModuleType:
    return importlib.import_module("gpu_packages")


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """A wheel with a module, and one in its data folder."""
    path = tmp_path / "wheels" / "small-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("small/__init__.py", "VALUE = 7\n" + "# filling\n" * 50)
        file.writestr("small-1.0.data/purelib/beside.py", "VALUE = 8\n")
    return path


def test_a_wheel_in_pieces_is_unpacked_like_the_whole_one(packages: ModuleType, wheel: Path, tmp_path: Path) -> None:
    content, pieces = wheel.read_bytes(), tmp_path / "pieces"
    pieces.mkdir()
    for i, start in enumerate(range(0, len(content), 100)):
        (pieces / f"{wheel.name}.{chr(97 + i // 26)}{chr(97 + i % 26)}").write_bytes(content[start : start + 100])
    found = {}
    for place in (wheel.parent, pieces):
        about = packages.prepare(folder := tmp_path / f"site-{place.name}", [place, tmp_path / "missing"])
        assert about[wheel.name].startswith("unpacked from ")
        found[place] = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.py")}
    assert found[wheel.parent] == found[pieces]
    assert {str(path) for path in found[pieces]} == {os.path.join("small", "__init__.py"), "beside.py"}


def test_a_wheel_that_cannot_be_used_is_reported_and_the_others_are_unpacked(
    packages: ModuleType, wheel: Path, tmp_path: Path
) -> None:
    (wheel.parent / "half-1.0-py3-none-any.whl.aa").write_bytes(wheel.read_bytes()[:-200])
    (wheel.parent / "old-1.0-cp36-cp36m-linux_x86_64.whl").write_bytes(wheel.read_bytes())
    with zipfile.ZipFile(wheel.parent / "evil-1.0-py3-none-any.whl", "w") as file:
        file.writestr("../outside.py", "")
    about = packages.prepare(tmp_path / "site", [wheel.parent])
    assert "is a piece missing?" in about["half-1.0-py3-none-any.whl"]
    assert about["old-1.0-cp36-cp36m-linux_x86_64.whl"] == "for another Python (cp36)"
    assert "outside of the wheel" in about["evil-1.0-py3-none-any.whl"] and not (tmp_path / "outside.py").exists()
    assert about[wheel.name] == "unpacked from 1 file" and (tmp_path / "site" / "small").is_dir()


def test_the_stand_in_for_pydantic_reads_what_pydantic_reads(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranges = (1.0, 2.5, 4.0)
    domain = Domain(9, ranges, ranges, ranges, ranges, class_sizes=(ranges, ranges), gsd=ranges)
    lists = {"thresholds": (0.3, 0.4), "calibration": ((1.0, 0.5), (2.0, 0.0))}
    mappings = {"versions": {"torch": "2.11"}, "engine": {"tiles": [64]}}
    expected = ModelSpec(("a", "b"), (1, 5), "retinanet", "resnet18", tile=64, domain=domain, **lists, **mappings)
    text = expected.to_json()
    monkeypatch.setitem(sys.modules, "pydantic", stand_in(programs, "pydantic"))
    json_files._model_of.cache_clear()
    try:
        assert ModelSpec.from_json(text, source="x") == expected
        with pytest.raises(ValueError, match="classes is missing"):
            ModelSpec.from_json('{"format": 1}', source="x")
    finally:
        json_files._model_of.cache_clear()


def test_the_stand_in_for_filelock_has_the_names_of_the_package_that_it_extends(programs: Path, tmp_path: Path) -> None:
    older = tmp_path / "site" / "filelock"
    older.mkdir(parents=True)
    (older / "__init__.py").write_text("from .inner import OLD\n")
    (older / "inner.py").write_text("OLD = 1\n")
    code = "import filelock; x = open('x', 'w'); print(filelock.OLD, filelock.lock_descriptor(x.fileno()))"
    path = os.pathsep.join([str(programs / "stand_ins"), str(older.parent)])
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env={"PYTHONPATH": path}, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "1 True\n", done.stderr


def test_the_limits_of_all_steps_fit_into_eight_minutes_and_training_has_five(gpu: ModuleType) -> None:
    assert [step.letter for step in gpu.STEPS] == ["", "a", "b", "c", "d", "e"]
    assert sum(step.seconds for step in gpu.STEPS) + gpu.OVERHEAD <= 60 * gpu.MINUTES == 480
    assert next(step.seconds for step in gpu.STEPS if step.letter == "d") == 300


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "a,x"], "expected letters of a, b, c, d, e"),
        (["--data", "missing"], "missing does not exist"),
        (["--minutes", "-1"], "expected a positive number"),
        (["--output", "missing/gpu.json"], "missing is no folder"),
        (["--wheels", "missing"], "missing is no folder"),
    ],
)
def test_bad_options_are_refused_before_any_step(
    gpu: ModuleType, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        gpu.main(words)
    assert left.value.code == 2 and message in capsys.readouterr().err


def test_a_step_that_fails_or_takes_too_long_leaves_its_reason_and_no_process(
    gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = gpu.shared_options(gpu.arguments(["--cpu", "--dry-run"]), tmp_path)
    environ = gpu.environment_of_steps(tmp_path)
    (failed,) = gpu.run_processes(gpu.Step("x", "unknown", 30), 30.0, options, tmp_path, environ).values()
    assert failed["state"] == "failed" and "KeyError: 'unknown'" in failed["log"]
    (stopped,) = gpu.run_processes(gpu.Step("", "machine", 1), 0.05, options, tmp_path, environ).values()
    assert stopped["state"] == "out of time" and stopped["results"] == {}
    assert "x unknown: failed" in capsys.readouterr().out


@pytest.mark.slow
def test_every_step_runs_on_the_cpu_within_two_minutes_of_two_cores(programs: Path, tmp_path: Path) -> None:
    result = rehearse(sys.executable, programs, tmp_path)
    assert sum(step["cpu_seconds"] for step in result["steps"].values()) < 240
    check_rehearsal(result, exported=True)
    built = result["steps"]["a engines thermal"]["results"]["int8, build"]
    assert built.get("flavour") == "rtx" or "skipped" in built


@pytest.mark.slow
def test_every_step_runs_on_a_bare_machine_with_python_3_12(programs: Path, tmp_path: Path) -> None:
    """Without onnxscript the seeded detectors are skipped with the reason; with its wheel beside it, they are not."""
    python = bare_machine(tmp_path / "venv")
    result = rehearse(python, programs, tmp_path)
    versions = result["versions"]
    assert result["python"].startswith("3.12.") and versions["torch"].startswith("2.11.")
    assert versions["numpy"].startswith("2.5.") and "pycocotools" not in versions and "tinydet" not in versions
    assert {"pydantic", "tqdm"} <= {*result["packages"]}
    check_rehearsal(result, exported=False)
    wheels = tmp_path / "wheels"
    done = subprocess.run(
        [python, "-m", "pip", "download", "-q", "--no-deps", "-d", wheels, *EXPORTER], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"pip cannot download onnxscript: {done.stderr.strip().splitlines()[-1]}")
    result = rehearse(python, programs, tmp_path, "--only", "a", "--wheels", str(wheels))
    for model in ("retinanet", "faster_rcnn"):
        assert result["steps"][f"a engines {model}"]["results"]["int8, engine"]["passed"]


def rehearse(python: str | Path, programs: Path, folder: Path, *more: str) -> dict[str, Any]:
    """Run the kit with `--dry-run --cpu` and no PYTHONPATH; return its result file."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, programs / "gpu.py", "--dry-run", "--cpu", "--output", folder / "gpu.json", *more],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads((folder / "gpu.json").read_text())
    return found


def check_rehearsal(result: dict[str, Any], *, exported: bool) -> None:
    """Assert that every step has its results; without onnxscript those of the bundled model only."""
    steps = result["steps"]
    assert [name.split()[0] for name in steps] == ["machine", "a", "a", "a", "b", "c", "d", "e"]
    assert {step["state"] for step in steps.values()} == {"done"}
    for model in ("thermal", "retinanet", "faster_rcnn"):
        results = steps[f"a engines {model}"]["results"]
        assert exported or "onnxscript" in results["fp32, onnx"]["skipped"]
        for precision in (*(["fp16"] if model == "thermal" else []), *(["fp32", "int8"] if exported else [])):
            compared = results[f"{precision}, engine"]["parity"]
            assert sum(each["unmatched"] for each in compared.values()) == 0, (model, precision)
    times = steps["b latency"]["results"]
    for name in ("CUDA graph", "no CUDA graph"):
        assert times[f"thermal, fp16, {name}"]["1"]["milliseconds"]["run"]["p95"] > 0
    assert 0 <= times["thermal, fp16, scene"]["host_share"] <= 1
    assert len(steps["c training speed"]["results"]["batch 2"]) == 2  # the case, and how long it took
    training = steps["d real training"]["results"]["training"]
    assert training["before"]["AP50"] >= 0 and training["after"]["AP50"] >= 0  # -1: no objects
    assert {*steps["e verify_gpu"]["results"]} == ({"fp32", "fp16", "int8"} if exported else {"fp16"})


def bare_machine(folder: Path) -> Path:
    """Make a virtual environment of Python 3.12 with the packages of the machine alone; return its interpreter."""
    found = [shutil.which("python3.12"), *sorted(Path.home().glob(".pyenv/versions/3.12.*/bin/python"))]
    pythons = [path for path in found if path and works(path)]
    if not pythons:
        pytest.skip("needs Python 3.12")
    subprocess.run([pythons[0], "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    done = subprocess.run([python, "-m", "pip", "install", "-q", *MACHINE], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"pip cannot install torch 2.11: {done.stderr.strip().splitlines()[-1]}")
    return python


def works(python: str | Path) -> bool:
    code = "import sys; sys.exit(sys.version_info[:2] != (3, 12))"
    return subprocess.run([python, "-c", code], capture_output=True).returncode == 0


def stand_in(programs: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"stand_in_of_{name}", programs / "stand_ins" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
