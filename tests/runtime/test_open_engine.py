"""Opening an engine: it runs if version, GPU and description match; otherwise one line says what differs."""

from __future__ import annotations

import hashlib
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cuda_stand_in import SPEC, Driver, Engine, assert_equal, brightest, tiles

from tinydet.runtime.backends import choose_model, open_model
from tinydet.runtime.backends.tensorrt import open_engine


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """`model.engine` with a real magic number and nothing else, and its description."""
    path = tmp_path / "model.engine"
    write(path, b"vtrt and the rest")
    return path


def write(path: Path, plan: bytes, **changes: Any) -> None:
    engine = {"flavour": "rtx", "version": "1.7", "gpu": "compute capability 8.6", "platform": "linux-x86_64"}
    engine |= {"bytes": len(plan), "sha256": hashlib.sha256(plan).hexdigest(), **changes}
    path.write_bytes(plan)
    path.with_suffix(".json").write_text(replace(SPEC, engine=engine).to_json())


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, driver: Driver, engine: Engine) -> types.ModuleType:
    """Stand-ins for the parts of cuda-python and TensorRT that open an engine. A plan is deserialized to `engine`."""
    for name, module in {"cuda": types.ModuleType("cuda"), "cuda.bindings": types.ModuleType("cuda.bindings")}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", driver)  # type: ignore[arg-type]
    rtx = types.ModuleType("tensorrt_rtx")

    class Logger:
        INTERNAL_ERROR, ERROR = types.SimpleNamespace(name="INTERNAL_ERROR"), types.SimpleNamespace(name="ERROR")

    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, plan: bytes) -> Any:
            if rtx.engine is None:
                self.logger.log(Logger.ERROR, "the plan is from\n another version")
            return rtx.engine

    rtx.__dict__.update(ILogger=Logger, Runtime=Runtime, engine=engine, __version__="1.8")
    rtx.__dict__["CudaGraphStrategy"] = types.SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole graph", DISABLED="disabled")
    rtx.__dict__["ExecutionContextAllocationStrategy"] = types.SimpleNamespace(USER_MANAGED="user managed")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", rtx)
    monkeypatch.setitem(sys.modules, "tensorrt", rtx)
    return rtx


def test_a_matching_engine_is_opened_and_runs(installed: types.ModuleType, files: Path, engine: Engine) -> None:
    backend = open_model(files)
    assert backend.name == "TensorRT-RTX 1.8, Stand-in (8.9)"
    assert backend.spec.classes == ("light",)
    assert_equal(backend.run(tiles(2)), brightest(tiles(2)))
    assert engine.contexts[0].how.cuda_graph_strategy == "whole graph"


@pytest.mark.parametrize(("magic", "flavour"), [(b"vtrt", "rtx"), (b"ftrt", "tensorrt")])
def test_an_engine_for_several_tiles_is_opened_for_one_of_them(
    installed: types.ModuleType, files: Path, driver: Driver, magic: bytes, flavour: str
) -> None:
    write(files, magic, flavour=flavour, tiles=[8, 16])
    installed.__dict__["engine"] = Engine(driver, (8, 16))
    assert open_model(files).spec.tile == 8
    for side in (16, 8):
        backend = open_model(files, tile=side)
        assert backend.spec.tile == side
        for count in (3, 3, 1):
            images = tiles(count, seed=count, side=side)
            assert_equal(backend.run(images), brightest(images))
    with pytest.raises(ValueError, match=r"was built for tiles of 8, 16, not 24; build it for 24 too: .*8,16,24"):
        open_model(files, tile=24)
    installed.__dict__["engine"] = Engine(driver, (8, 12))
    with pytest.raises(ValueError, match=r"profile 1 of the engine takes \(1, 12, 12, 3\).* tiles of 16"):
        open_model(files, tile=16)


def test_cuda_graphs_are_captured_by_us_for_tensorrt_but_not_for_rtx(
    installed: types.ModuleType, files: Path, engine: Engine, driver: Driver
) -> None:
    for magic, flavour, graphs in ((b"vtrt", "rtx", 0), (b"ftrt", "tensorrt", 2)):
        write(files, magic + b" and the rest", flavour=flavour)
        driver.calls.clear()
        backend = open_engine(files)
        for _ in range(3):
            assert_equal(backend.run(tiles(2)), brightest(tiles(2)))
        assert [call[0] for call in driver.calls].count("graph") == graphs
        plain = open_engine(files, cuda_graph=False)
        for _ in range(3):
            assert_equal(plain.run(tiles(2)), brightest(tiles(2)))
        assert [call[0] for call in driver.calls].count("graph") == graphs
        assert engine.contexts[-1].how == "user managed" or engine.contexts[-1].how.cuda_graph_strategy == "disabled"


def test_an_engine_of_another_version_or_gpu_is_refused_with_both(installed: Any, files: Path) -> None:
    installed.engine = None
    with pytest.raises(OSError, match="cannot be loaded") as refused:
        open_engine(files)
    text = str(refused.value)
    assert "Built by TensorRT-RTX 1.7 for compute capability 8.6 on linux-x86_64" in text
    assert "here: TensorRT-RTX 1.8, Stand-in (8.9)" in text
    assert f"tinydet export engine {files.with_suffix('.onnx')}" in text
    assert "the plan is from another version" in text


def test_an_engine_is_refused_without_a_gpu(installed: Any, files: Path, driver: Driver) -> None:
    driver.gpus = 0
    with pytest.raises(OSError, match=r"model\.engine is a TensorRT-RTX engine and needs an NVIDIA GPU"):
        open_engine(files)


def test_the_reason_of_cuda_for_finding_no_gpu_is_reported(
    installed: Any, files: Path, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = driver.cudaError_t.cudaErrorInsufficientDriver
    monkeypatch.setattr(driver, "cudaGetDeviceCount", lambda: (error, None))
    with pytest.raises(
        OSError, match=r"none here \(cudaErrorInsufficientDriver: no driver, or one older than the CUDA"
    ):
        open_engine(files)


def test_a_tensorrt_that_does_not_start_is_reported_and_the_onnx_file_is_used(
    installed: Any, files: Path, make_onnx: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(self: Any, logger: Any) -> None:
        logger.log(installed.ILogger.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(installed.Runtime, "__init__", refuses)
    with pytest.raises(OSError, match=r"TensorRT-RTX 1\.8 does not start on Stand-in .*initialization failure"):
        open_engine(files)
    make_onnx(files.with_suffix(".onnx"))
    chosen = choose_model(folder=files.parent)
    assert chosen.path.name == "model.onnx" and "does not start" in chosen.passed_over[0]


def test_the_onnx_file_is_used_if_the_tensorrt_library_is_broken(
    installed: Any, files: Path, make_onnx: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(flavour: str) -> Any:
        raise ImportError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr("tinydet.runtime.backends.tensorrt.import_tensorrt", broken)
    make_onnx(files.with_suffix(".onnx"))
    chosen = choose_model(folder=files.parent)
    assert chosen.path.name == "model.onnx" and "libnvinfer.so.10" in chosen.passed_over[0]


def test_a_spec_argument_replaces_the_json_file(installed: Any, files: Path) -> None:
    spec = open_engine(files).spec
    files.with_suffix(".json").unlink()
    assert_equal(open_engine(files, spec).run(tiles(1)), brightest(tiles(1)))


def test_an_engine_is_refused_on_this_machine_without_a_gpu(files: Path) -> None:
    cudart = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-python")
    if cudart.cudaGetDeviceCount()[0] == cudart.cudaError_t.cudaSuccess:
        pytest.skip("there is a GPU")
    with pytest.raises(OSError, match="needs an NVIDIA GPU with its driver"):
        open_engine(files)


@pytest.mark.parametrize("absent", [("cuda",), ("tensorrt_rtx",)])
def test_a_missing_package_says_what_to_install(
    installed: Any, files: Path, absent: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] in absent:
            monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    with pytest.raises(ModuleNotFoundError, match=r"Run: pip install 'tinydet\[rtx\]'"):
        open_engine(files)


def test_cuda_python_before_12_6_is_supported(
    installed: Any, files: Path, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "cuda.cudart", driver)  # type: ignore[arg-type]
    assert_equal(open_engine(files).run(tiles(1)), brightest(tiles(1)))


def test_a_file_that_is_not_an_engine_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.engine"
    for content in (b"", b"PK\x03\x04 a zip", b"ONNX"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"model\.engine is not a TensorRT engine"):
            open_engine(path)


def test_an_engine_needs_the_json_file_written_for_it(files: Path) -> None:
    sidecar = files.with_suffix(".json")
    sidecar.write_text(SPEC.to_json())
    with pytest.raises(ValueError, match="exported again after"):
        open_engine(files)
    write(files, b"vtrt of another model with the same length", sha256="0" * 64)
    with pytest.raises(ValueError, match="copied in part, or mixed up"):
        open_engine(files)
    sidecar.unlink()
    with pytest.raises(ValueError, match=r"lacks its description .*model\.json"):
        open_engine(files)


def test_host_code_of_a_plan_is_allowed_only_if_its_spec_says_so(
    installed: Any, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtimes: list[Any] = []
    original = installed.Runtime.__init__
    monkeypatch.setattr(
        installed.Runtime, "__init__", lambda self, logger: (original(self, logger), runtimes.append(self))[0]
    )
    open_engine(files)
    write(files, b"vtrt", version_compatible=True)
    open_engine(files)
    assert [runtime.engine_host_code_allowed for runtime in runtimes] == [False, True]
