"""The host side of the TensorRT backend, against a driver by whose rules nothing happens before it is awaited.

What the GPU does cannot be tested here. What we ask of it can: which memory, which stream, in which order.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import sys
import threading
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tinydet.runtime.backends import TileOutputs, open_model, output_shapes
from tinydet.runtime.backends.tensorrt import TensorRTBackend, open_engine
from tinydet.spec import ModelSpec

TILE, SLOTS = 8, 4
SPEC = ModelSpec(
    classes=("light",),
    category_ids=(1,),
    detector="brightness",
    backbone="none",
    tile=TILE,
    max_batch=12,
    max_detections=SLOTS,
)
OK = types.SimpleNamespace(name="cudaSuccess")
OUT_OF_MEMORY = types.SimpleNamespace(name="cudaErrorMemoryAllocation")
NO_DEVICE = types.SimpleNamespace(name="cudaErrorNoDevice")


class Driver:
    """The calls of cuda-python's runtime that are used. Work given to a stream waits there until it is awaited."""

    cudaError_t = types.SimpleNamespace(cudaSuccess=OK)
    cudaMemcpyKind = types.SimpleNamespace(cudaMemcpyHostToDevice="in", cudaMemcpyDeviceToHost="out")
    cudaDeviceAttr = types.SimpleNamespace(cudaDevAttrComputeCapabilityMajor=8, cudaDevAttrComputeCapabilityMinor=9)
    cudaStreamNonBlocking = 1

    def __init__(self) -> None:
        self.gpus = 1
        self.room = 1 << 30
        self.memory: dict[int, tuple[str, Any]] = {}  # address -> where, the bytes
        self.streams: dict[int, list[Any]] = {}
        self.made = 0
        self.calls: list[tuple[Any, ...]] = []

    def _take(self, where: str, size: int) -> tuple[Any, int]:
        if size > self.room:
            return OUT_OF_MEMORY, 0
        block = (ctypes.c_uint8 * size)(*([0xAB] * size))  # not zero: memory comes as it was left
        self.memory[ctypes.addressof(block)] = (where, block)
        self.made += 1
        return OK, ctypes.addressof(block)

    def cudaMalloc(self, size: int) -> tuple[Any, int]:
        return self._take("device", size)

    def cudaMallocHost(self, size: int) -> tuple[Any, int]:
        return self._take("pinned", size)

    def cudaFree(self, address: int) -> tuple[Any]:
        assert self.memory.pop(address)[0] == "device"
        return (OK,)

    def cudaFreeHost(self, address: int) -> tuple[Any]:
        assert self.memory.pop(address)[0] == "pinned"
        return (OK,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, int]:
        assert flags == self.cudaStreamNonBlocking
        stream = 1000 + self.made
        self.made += 1
        self.streams[stream] = []
        return OK, stream

    def cudaStreamDestroy(self, stream: int) -> tuple[Any]:
        del self.streams[stream]
        return (OK,)

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: str, stream: int) -> tuple[Any]:
        assert [self.memory[a][0] for a in (target, source)] == {
            "in": ["device", "pinned"],
            "out": ["pinned", "device"],
        }[kind]
        assert size <= min(ctypes.sizeof(self.memory[a][1]) for a in (target, source))
        self.calls.append(("copy", kind, stream))
        self.streams[stream].append(lambda: ctypes.memmove(target, source, size))
        return (OK,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any]:
        self.calls.append(("wait", stream))
        while self.streams[stream]:
            self.streams[stream].pop(0)()
        return (OK,)

    def cudaGetErrorString(self, error: Any) -> tuple[Any, bytes]:
        return OK, b"out of memory"

    def cudaGetDeviceCount(self) -> tuple[Any, int]:
        return (OK, self.gpus) if self.gpus else (NO_DEVICE, 0)

    def cudaDeviceGetAttribute(self, attribute: int, device: int) -> tuple[Any, int]:
        return OK, attribute

    def cudaGetDeviceProperties(self, device: int) -> tuple[Any, Any]:
        return OK, types.SimpleNamespace(name=b"Stand-in")


class Engine:
    """An engine that finds the brightest pixels; it reads and writes device memory when the stream gets to it."""

    num_io_tensors = 5
    smallest = 1

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.contexts: list[Context] = []
        self.tensors = {
            "images": ("UINT8", (-1, TILE, TILE, 3)),
            "boxes": ("FLOAT", (-1, SLOTS, 4)),
            "scores": ("FLOAT", (-1, SLOTS)),
            "labels": ("INT32", (-1, SLOTS)),
            "candidates": ("INT32", (-1,)),
        }

    def get_tensor_name(self, i: int) -> str:
        return list(self.tensors)[i]

    def get_tensor_dtype(self, name: str) -> Any:
        return types.SimpleNamespace(name=self.tensors[name][0])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name][1]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [(n, TILE, TILE, 3) for n in (self.smallest, 4, 12)]

    def create_execution_context(self) -> Context:
        self.contexts.append(Context(self.driver))
        return self.contexts[-1]


class Context:
    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.addresses: dict[str, int] = {}
        self.batches: list[int] = []

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert self.driver.memory[address][0] == "device"
        self.addresses[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == "images"
        self.batches.append(shape[0])
        return shape[1:] == (TILE, TILE, 3)

    def infer_shapes(self) -> list[str]:
        return []

    def execute_async_v3(self, stream: int) -> bool:
        self.driver.calls.append(("run", stream))
        self.driver.streams[stream].append(self._run)
        return True

    def _run(self) -> None:
        batch = self.batches[-1]
        images = self._view("images", np.uint8, (batch, TILE, TILE, 3))
        answers = brightest(images)
        for name, answer in zip(output_shapes(SPEC), answers, strict=False):
            self._view(name, answer.dtype, answer.shape)[:] = answer

    def _view(self, name: str, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
        block = self.driver.memory[self.addresses[name]][1]
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return np.frombuffer(block, np.uint8)[:size].view(dtype).reshape(shape)


def brightest(images: NDArray[np.uint8]) -> TileOutputs:
    levels = images.max(3).reshape(len(images), -1).astype(np.float32)
    order = np.argsort(-levels, 1, kind="stable")[:, :SLOTS]
    y, x = np.divmod(order, TILE)
    scores = np.take_along_axis(levels, order, 1) / 255
    boxes = np.stack([x, y, x + 1, y + 1], 2).astype(np.float32)
    return TileOutputs(
        boxes, scores, np.where(scores > 0.5, 0, -1).astype(np.int32), (levels > 127).sum(1, dtype=np.int32)
    )


def tiles(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, TILE, TILE, 3), dtype=np.uint8)


@pytest.fixture
def driver() -> Driver:
    return Driver()


@pytest.fixture
def engine(driver: Driver) -> Engine:
    return Engine(driver)


@pytest.fixture
def backend(engine: Engine, driver: Driver) -> TensorRTBackend:
    return TensorRTBackend(engine, SPEC, driver, name="stand-in")


def assert_equal(ours: TileOutputs, theirs: TileOutputs) -> None:
    for name, a, b in zip(TileOutputs._fields, ours, theirs, strict=True):
        assert a.dtype == b.dtype, name
        np.testing.assert_array_equal(a, b, err_msg=name)


# ------------------------------------------------------------------------------------------------------------- run


def test_every_batch_up_to_the_largest_gets_the_answers_of_its_tiles(backend: TensorRTBackend) -> None:
    for count in (5, 1, 12, 3, 8, 2):  # a larger one first: what it leaves in the buffers must not show
        images = tiles(count, seed=count)
        assert_equal(backend.run(images), brightest(images))


def test_answers_stay_as_they_are_when_the_next_batch_runs(backend: TensorRTBackend) -> None:
    first = backend.run(tiles(2, seed=1))
    backend.run(tiles(2, seed=2))
    assert_equal(first, brightest(tiles(2, seed=1)))


def test_tiles_need_not_be_contiguous(backend: TensorRTBackend) -> None:
    images = tiles(6)[::2, ::-1]
    assert_equal(backend.run(images), brightest(images))


def test_an_empty_batch_asks_nothing_of_the_gpu(backend: TensorRTBackend, driver: Driver) -> None:
    outputs = backend.run(tiles(0))
    assert [part.shape for part in outputs[:4]] == [(0, SLOTS, 4), (0, SLOTS), (0, SLOTS), (0,)]
    assert [part.dtype for part in outputs[:4]] == [np.float32, np.float32, np.int32, np.int32]
    assert driver.made == 0


def test_copies_and_execution_follow_each_other_on_one_stream_and_are_awaited_once(
    backend: TensorRTBackend, driver: Driver
) -> None:
    backend.run(tiles(3))
    (stream,) = driver.streams
    out = [("copy", "out", stream)] * 4
    assert driver.calls == [("copy", "in", stream), ("run", stream), *out, ("wait", stream)]


def test_the_engine_sees_few_batch_sizes_and_each_only_when_it_changes(
    backend: TensorRTBackend, engine: Engine
) -> None:
    for count in (4, 4, 3, 1, 1, 9, 12, 4):
        backend.run(tiles(count))
    assert engine.contexts[0].batches == [4, 1, 12, 4]


def test_a_batch_smaller_than_the_profile_is_padded_to_it(driver: Driver, engine: Engine) -> None:
    engine.smallest = 4
    images = tiles(1)
    assert_equal(TensorRTBackend(engine, SPEC, driver, name="").run(images), brightest(images))
    assert engine.contexts[0].batches == [4]


def test_buffers_are_made_once_and_given_back_when_the_thread_ends(backend: TensorRTBackend, driver: Driver) -> None:
    made: list[int] = []

    def work() -> None:
        for count in (1, 12, 3):
            backend.run(tiles(count))
            made.append(driver.made)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert made == [11, 11, 11]  # a stream, and for five tensors a buffer on either side
    assert driver.memory == {} and driver.streams == {}


def test_each_thread_has_a_context_and_a_stream_of_its_own(
    backend: TensorRTBackend, engine: Engine, driver: Driver
) -> None:
    answers: dict[int, TileOutputs] = {}
    together = threading.Barrier(3)

    def work(seed: int) -> None:
        together.wait()
        for _ in range(20):
            answers[seed] = backend.run(tiles(3, seed))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, outputs in answers.items():
        assert_equal(outputs, brightest(tiles(3, seed)))
    assert len(engine.contexts) == len({call[-1] for call in driver.calls}) == 3
    assert driver.memory == {}  # the threads have ended


@pytest.mark.parametrize("images", [tiles(13), tiles(2)[:, :4], tiles(2).astype(np.float32), tiles(2)[..., 0]])
def test_tiles_of_another_kind_are_refused(backend: TensorRTBackend, images: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match=r"expected uint8 tiles \(N, 8, 8, 3\) with N <= 12, got"):
        backend.run(images)


def test_a_failed_allocation_is_reported_and_leaves_nothing_behind(backend: TensorRTBackend, driver: Driver) -> None:
    driver.room = 1000  # the images do not fit
    with pytest.raises(OSError, match=r"CUDA: out of memory \(cudaErrorMemoryAllocation\)"):
        backend.run(tiles(1))
    gc.collect()
    assert driver.memory == {} and driver.streams == {}


def test_a_failed_execution_is_reported(backend: TensorRTBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Context, "execute_async_v3", lambda self, stream: False)
    with pytest.raises(OSError, match="could not run"):
        backend.run(tiles(1))


# ------------------------------------------------------------------------------------------------------------ open


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """`model.engine` and its description; the engine is the first bytes of one."""
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
    """cuda-python and `tensorrt_rtx` as far as opening an engine goes; `engine` is what a plan becomes."""
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
                self.logger.log(Logger.ERROR, "the plan is of\n another version")
            return rtx.engine

    rtx.__dict__.update(ILogger=Logger, Runtime=Runtime, engine=engine, __version__="1.8")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", rtx)
    return rtx


def test_an_engine_that_fits_is_opened_and_runs(installed: types.ModuleType, files: Path) -> None:
    backend = open_model(files)
    assert backend.name == "TensorRT-RTX 1.8"
    assert backend.spec.classes == ("light",)
    assert_equal(backend.run(tiles(2)), brightest(tiles(2)))


def test_an_engine_of_another_version_or_gpu_is_explained(installed: Any, files: Path) -> None:
    installed.engine = None
    with pytest.raises(OSError, match="cannot be loaded") as refused:
        open_engine(files)
    text = str(refused.value)
    assert "Built by TensorRT-RTX 1.7 for compute capability 8.6 on linux-x86_64" in text
    assert "here: TensorRT-RTX 1.8, Stand-in (8.9)" in text
    assert f"python export/to_trt.py {files.with_suffix('.onnx')}" in text
    assert "the plan is of another version" in text


def test_an_engine_without_a_gpu_says_what_it_needs(installed: Any, files: Path, driver: Driver) -> None:
    driver.gpus = 0
    with pytest.raises(OSError, match=r"model\.engine is a TensorRT-RTX engine and needs an NVIDIA GPU"):
        open_engine(files)


def test_this_machine_without_a_gpu_says_the_same(files: Path) -> None:
    cudart = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-python")
    if cudart.cudaGetDeviceCount()[0] == cudart.cudaError_t.cudaSuccess:
        pytest.skip("there is a GPU")
    with pytest.raises(OSError, match="needs an NVIDIA GPU with its driver"):
        open_engine(files)


@pytest.mark.parametrize("absent", [("cuda",), ("tensorrt_rtx",)])
def test_a_missing_package_is_an_instruction(
    installed: Any, files: Path, absent: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] in absent:
            monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    with pytest.raises(ModuleNotFoundError, match=r"Run: pip install 'tinydet\[rtx\]'"):
        open_engine(files)


def test_an_older_cuda_python_is_found_under_its_older_name(
    installed: Any, files: Path, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "cuda.cudart", driver)  # type: ignore[arg-type]
    assert_equal(open_engine(files).run(tiles(1)), brightest(tiles(1)))


def test_a_file_that_is_no_engine_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.engine"
    for content in (b"", b"PK\x03\x04 a zip", b"ONNX"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"model\.engine is not a TensorRT engine"):
            open_engine(path)


def test_an_engine_needs_its_own_description(files: Path) -> None:
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


def test_an_engine_of_other_inputs_or_outputs_is_refused(driver: Driver, engine: Engine) -> None:
    engine.tensors["labels"] = ("INT64", (-1, SLOTS))
    with pytest.raises(ValueError, match=r"INT64 \(N, 4\).*expected.*INT32 \(N, 4\)"):
        TensorRTBackend(engine, SPEC, driver, name="")


def test_an_engine_for_smaller_batches_than_described_is_refused(driver: Driver, engine: Engine) -> None:
    with pytest.raises(ValueError, match="up to 12 tiles, its description says 16"):
        TensorRTBackend(engine, replace(SPEC, max_batch=16), driver, name="")


def test_the_code_of_a_version_compatible_plan_is_run_only_when_its_description_says_so(
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
