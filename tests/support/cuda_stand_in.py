"""A stand-in for the CUDA driver that runs work only when its stream is synchronized, and an engine on top of it.

The engine finds the brightest pixels. Misuse that CUDA or TensorRT forbid fails an assertion: memory of the wrong kind,
or changing a context that a CUDA graph was captured from.
"""

from __future__ import annotations

import ctypes
import types
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinydet.runtime.backends import TileOutputs, output_shapes
from tinydet.runtime.backends.engine_runner import Execution
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
NOT_CAPTURABLE = types.SimpleNamespace(name="cudaErrorStreamCaptureUnsupported")
TOO_OLD = types.SimpleNamespace(name="cudaErrorInsufficientDriver")
NO_DEVICE = types.SimpleNamespace(name="cudaErrorNoDevice")


class Driver:
    """The functions of cuda-python's runtime that tinydet calls. Work is queued until its stream is synchronized."""

    cudaError_t = types.SimpleNamespace(cudaSuccess=OK, cudaErrorInsufficientDriver=TOO_OLD)
    cudaMemcpyKind = types.SimpleNamespace(cudaMemcpyHostToDevice="in", cudaMemcpyDeviceToHost="out")
    cudaStreamCaptureMode = types.SimpleNamespace(cudaStreamCaptureModeThreadLocal="this thread")
    cudaDeviceAttr = types.SimpleNamespace(cudaDevAttrComputeCapabilityMajor=8, cudaDevAttrComputeCapabilityMinor=9)
    cudaStreamNonBlocking = 1
    instantiates = True

    def __init__(self) -> None:
        self.gpus = 1
        self.room = 1 << 30
        self.memory: dict[int, tuple[str, Any]] = {}  # address -> (kind of memory, block)
        self.streams: dict[int, list[Any]] = {}
        self.made = 0
        self.calls: list[tuple[Any, ...]] = []
        self.capturing: dict[int, list[Any] | None] = {}  # stream -> recorded work; None: the capture failed
        self.graphs: dict[int, list[Any]] = {}
        self.marks: dict[int, int] = {}
        self.clock = 0

    def _give(self, stream: int, what: str, work: Callable[[], Any]) -> None:
        """Record work while a stream is captured, else queue it."""
        if stream in self.capturing:
            recorded = self.capturing[stream]
            if recorded is not None:
                recorded.append((what, work))
            return
        self.calls.append((what, stream))
        self.streams[stream].append(work)

    def _take(self, where: str, size: int) -> tuple[Any, int]:
        if size > self.room:
            return OUT_OF_MEMORY, 0
        block = (ctypes.c_uint8 * size).from_buffer(bytearray(b"\xab" * size))  # real memory is not zeroed
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
        self._give(stream, f"copy {kind}", lambda: ctypes.memmove(target, source, size))
        return (OK,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any]:
        assert stream not in self.capturing, "CUDA forbids it"
        self.calls.append(("wait", stream))
        while self.streams[stream]:
            self.streams[stream].pop(0)()
        return (OK,)

    def cudaStreamBeginCapture(self, stream: int, mode: str) -> tuple[Any]:
        assert mode == "this thread" and not self.streams[stream]
        self.capturing[stream] = []
        return (OK,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, int]:
        recorded = self.capturing.pop(stream)
        if recorded is None:
            return NOT_CAPTURABLE, 0
        return OK, self._new(self.graphs, recorded)

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[Any, int]:
        assert flags == 0
        if not self.instantiates:
            return OUT_OF_MEMORY, None
        return OK, self._new(self.graphs, self.graphs[graph])

    def cudaGraphLaunch(self, graph: int, stream: int) -> tuple[Any]:
        self._give(stream, "graph", lambda: [work() for _, work in self.graphs[graph]])
        return (OK,)

    def cudaGraphDestroy(self, graph: int) -> tuple[Any]:
        del self.graphs[graph]
        return (OK,)

    cudaGraphExecDestroy = cudaGraphDestroy

    def cudaEventCreate(self) -> tuple[Any, int]:
        return OK, self._new(self.marks, -1)

    def cudaEventRecord(self, event: int, stream: int) -> tuple[Any]:
        def mark() -> None:
            self.clock += 1
            self.marks[event] = self.clock

        self.streams[stream].append(mark)
        return (OK,)

    def cudaEventElapsedTime(self, start: int, end: int) -> tuple[Any, float]:
        assert 0 < self.marks[start] < self.marks[end], "an event that has not been recorded yet"
        return OK, float(self.marks[end] - self.marks[start])

    def cudaEventDestroy(self, event: int) -> tuple[Any]:
        del self.marks[event]
        return (OK,)

    def _new(self, shelf: dict[int, Any], thing: Any) -> int:
        self.handles = getattr(self, "handles", 5000) + 1
        shelf[self.handles] = thing
        return self.handles

    def cudaGetLastError(self) -> tuple[Any]:
        self.calls.append(("clear the error",))
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
    """An engine that finds the brightest pixels. It accesses device memory when its stream executes it."""

    num_io_tensors = 5
    smallest = 1
    device_memory_size_v2 = 1000

    def __init__(self, driver: Driver, tiles: tuple[int, ...] = (TILE,)) -> None:
        self.driver = driver
        self.tiles = tiles
        self.contexts: list[Context] = []
        side = tiles[0] if len(tiles) == 1 else -1
        self.tensors = {
            "images": ("UINT8", (-1, side, side, 3)),
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
        return [(n, self.tiles[profile], self.tiles[profile], 3) for n in (self.smallest, 4, 12)]

    def create_execution_context(self, how: Any) -> Context:
        self.contexts.append(Context(self.driver, how, self.tiles))
        return self.contexts[-1]

    def create_runtime_config(self) -> Any:
        return types.SimpleNamespace(cuda_graph_strategy="disabled")

    def execution(self) -> Execution:
        """The way in which TensorRT engines are executed."""
        return Execution(lambda: self.create_execution_context("user managed"), self.device_memory_size_v2, True)


class Context:
    """An execution context. It must run a new shape before it is captured, and keep the shape afterwards."""

    capturable = True
    spoils = True  # whether a refused capture invalidates the whole capture

    def __init__(self, driver: Driver, how: Any, tiles: tuple[int, ...]) -> None:
        self.driver = driver
        self.tiles, self.profile = tiles, 0
        self.how = how
        self.scratch: int | None = None
        self.addresses: dict[str, int] = {}
        self.batches: list[int] = []
        self.ran = self.captured = False

    def set_device_memory(self, address: int, size: int) -> None:
        where, block = self.driver.memory[address]
        assert where == "device" and ctypes.sizeof(block) >= size == Engine.device_memory_size_v2
        self.scratch = address

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        assert stream in self.driver.streams and not self.captured
        self.profile = profile
        return profile < len(self.tiles)

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert self.driver.memory[address][0] == "device"
        self.addresses[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == "images" and not self.captured
        self.batches.append(shape[0])
        self.ran = False
        return shape[1:] == (self.tiles[self.profile], self.tiles[self.profile], 3)

    def infer_shapes(self) -> list[str]:
        return []

    def execute_async_v3(self, stream: int) -> bool:
        assert self.scratch is not None or self.how != "user managed"
        if stream in self.driver.capturing:
            assert self.ran
            if not self.capturable:
                if self.spoils:
                    self.driver.capturing[stream] = None
                return False
            self.captured = True
        self.ran = True
        self.driver._give(stream, "run", self._run)
        return True

    def _run(self) -> None:
        batch = self.batches[-1]
        images = self._view("images", np.uint8, (batch, *(2 * [self.tiles[self.profile]]), 3))
        for name, output in zip(output_shapes(SPEC), brightest(images), strict=False):
            self._view(name, output.dtype, output.shape)[:] = output

    def _view(self, name: str, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
        block = self.driver.memory[self.addresses[name]][1]
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return np.frombuffer(block, np.uint8)[:size].view(dtype).reshape(shape)


def brightest(images: NDArray[np.uint8]) -> TileOutputs:
    """The outputs of the engine: one box per pixel, brightest first."""
    levels = images.max(3).reshape(len(images), -1).astype(np.float32)
    order = np.argsort(-levels, 1, kind="stable")[:, :SLOTS]
    y, x = np.divmod(order, images.shape[2])
    scores = np.take_along_axis(levels, order, 1) / 255
    boxes = np.stack([x, y, x + 1, y + 1], 2).astype(np.float32)
    return TileOutputs(
        boxes, scores, np.where(scores > 0.5, 0, -1).astype(np.int32), (levels > 127).sum(1, dtype=np.int32)
    )


def tiles(count: int, seed: int = 0, side: int = TILE) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def assert_equal(ours: TileOutputs, theirs: TileOutputs) -> None:
    for name, a, b in zip(TileOutputs._fields, ours, theirs, strict=True):
        assert a.dtype == b.dtype, name
        np.testing.assert_array_equal(a, b, err_msg=name)
