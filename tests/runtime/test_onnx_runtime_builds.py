"""Which build of ONNX Runtime is installed: one, none, or several that overwrite each other."""

from __future__ import annotations

import importlib.metadata
import logging
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tinydet.runtime.backends import onnx_runtime, open_model


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Sets the builds that are installed, and what `import onnxruntime` gives: a module, or None if it fails."""

    def version(name: str) -> str:
        if name not in builds:
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.19"

    def set_builds(*names: str, module: types.ModuleType | None) -> None:
        builds[:] = names
        monkeypatch.setitem(sys.modules, "onnxruntime", module)

    builds: list[str] = []
    monkeypatch.setattr(importlib.metadata, "version", version)
    onnx_runtime._import.cache_clear()
    yield set_builds
    onnx_runtime._import.cache_clear()


WORKS = types.SimpleNamespace(InferenceSession=object, set_default_logger_severity=lambda level: None)


def test_one_build_is_not_mentioned(installed: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    installed("onnxruntime", module=WORKS)
    assert onnx_runtime._import() is WORKS
    assert not caplog.records


def test_two_builds_that_work_are_reported_once(
    installed: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    installed("onnxruntime", "onnxruntime-gpu", module=WORKS)
    assert onnx_runtime._import() is onnx_runtime._import() is WORKS
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == (
        "onnxruntime and onnxruntime-gpu are installed together and overwrite each other's files. Keep one: "
        "pip uninstall -y onnxruntime onnxruntime-gpu; then pip install onnxruntime-gpu (for NVIDIA GPUs) or "
        "pip install onnxruntime"
    )


@pytest.mark.parametrize("module", [None, types.ModuleType("onnxruntime")])
def test_two_builds_that_do_not_work_are_an_error(
    installed: Callable[..., None], module: types.ModuleType | None
) -> None:
    installed("onnxruntime", "onnxruntime-gpu", module=module)
    with pytest.raises(ImportError, match="onnxruntime and onnxruntime-gpu are installed together.* Keep one: pip un"):
        onnx_runtime._import()


def test_what_is_left_of_two_builds_is_an_error(installed: Callable[..., None]) -> None:
    installed("onnxruntime-gpu", module=types.ModuleType("onnxruntime"))
    with pytest.raises(ImportError, match="ONNX Runtime is incomplete, because two .*pip uninstall -y onnxrun"):
        onnx_runtime._import()


def test_without_onnx_runtime_a_model_runs_in_openvino(
    installed: Callable[..., None], make_onnx: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    path = make_onnx(tmp_path / "model.onnx")
    installed(module=None)
    assert open_model(path).name.startswith("OpenVINO")
    with pytest.raises(ModuleNotFoundError, match=r"'onnxruntime' is not installed. Run: pip install 'tinydet\[onnxr"):
        open_model(path, "onnx")


def test_without_either_a_model_says_what_to_install(
    installed: Callable[..., None],
    make_onnx: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = make_onnx(tmp_path / "model.onnx")
    installed(module=None)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ModuleNotFoundError, match="needs OpenVINO or ONNX Runtime, and neither is installed") as caught:
        open_model(path)
    assert "pip install 'tinydet[openvino]' (for CPUs), or pip install 'tinydet[onnxruntime]'" in str(caught.value)
