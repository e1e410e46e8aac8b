"""What one thread needs to run an engine: a stream, pinned host buffers, device buffers, contexts and CUDA graphs.

Everything is asked for once and kept. Copies and execution follow each other on the lane's own stream and are awaited
once; where a batch size comes again they are one CUDA graph.

Unverified on a GPU: see `tinydet.runtime.backends.tensorrt`.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinydet.runtime.backends import OUTPUT_TYPES, TileOutputs

INPUT = "images"
DTYPES: dict[str, np.dtype[Any]] = {
    INPUT: np.dtype(np.uint8),
    **{name: np.dtype(kind) for name, kind in OUTPUT_TYPES.items()},
}


@dataclass(frozen=True)
class Execution:
    """How an engine is executed.

    Attributes:
        make_context: gives an IExecutionContext; None where there is no memory for one.
        scratch: bytes of device memory that the contexts of a lane share; 0: each has its own.
        capture: whether runs are captured here as CUDA graphs; False: the engine sees to that itself.
    """

    make_context: Callable[[], Any]
    scratch: int
    capture: bool


@dataclass
class _Size:
    """A context and what is known of the batch size that it is set to.

    A graph belongs to the shape and the context that it was captured from, and changing either spoils it, so where
    graphs are captured each size has a context of its own.
    """

    context: Any
    batch: int = 0
    ran: bool = False
    graph: Any = None
    capturable: bool = True


class Lane:
    """For one thread. What it owns is given back when it goes, also when it could not be finished.

    Args:
        cudart: the runtime module of cuda-python.
        shapes: of inputs and outputs, without the batch axis.
        capacity: the largest batch.

    Raises:
        OSError: where CUDA or TensorRT fails.
    """

    def __init__(self, cudart: Any, execution: Execution, shapes: dict[str, tuple[int, ...]], capacity: int) -> None:
        self.cudart = cudart
        self.execution = execution
        self.outputs = [name for name in shapes if name != INPUT]
        self.host: dict[str, NDArray[Any]] = {}
        self.device: dict[str, int] = {}
        self.sizes: dict[int, _Size] = {}
        self._owned: list[tuple[Callable[[Any], Any], Any]] = []
        weakref.finalize(self, _release, self._owned)  # before the first allocation: a later one may fail

        self.stream = self._checked(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking))
        self._owned.append((cudart.cudaStreamDestroy, self.stream))
        for name, shape in shapes.items():
            size = capacity * math.prod(shape) * DTYPES[name].itemsize
            pinned = int(self._checked(cudart.cudaMallocHost(size)))
            self._owned.append((cudart.cudaFreeHost, pinned))
            self.device[name] = self._allocated(size)
            memory = (ctypes.c_uint8 * size).from_address(pinned)
            self.host[name] = np.ctypeslib.as_array(memory).view(DTYPES[name]).reshape(capacity, *shape)
        self.host[INPUT][:] = 0
        self.scratch = self._allocated(execution.scratch) if execution.scratch else 0

    def run(self, images: NDArray[np.uint8], batch: int) -> TileOutputs:
        """Copy in, execute, copy out; `images` fill the first of `batch` places."""
        cudart, count = self.cudart, len(images)
        self.host[INPUT][:count] = images  # the padding keeps older tiles; nobody reads what they yield
        size = self._size(batch)
        if self.execution.capture and size.ran and size.capturable and size.graph is None:
            self._capture(size)  # not at once: TensorRT wants to have run a shape before, and many come only once
        if size.graph is None:
            self._enqueue(size)
        else:
            self._checked(cudart.cudaGraphLaunch(size.graph, self.stream))
        self._checked(cudart.cudaStreamSynchronize(self.stream))
        size.ran = True
        return TileOutputs(**{name: self.host[name][:count].copy() for name in self.outputs})

    def stage_times(self, images: NDArray[np.uint8], batch: int) -> dict[str, float]:
        """Milliseconds of one run without a graph, by CUDA events between its stages."""
        cudart = self.cudart
        self.host[INPUT][: len(images)] = images
        size = self._size(batch)
        marks: list[Any] = []
        try:
            for stage in (None, self._copy_in, self._execute, self._copy_out):
                if stage is not None:
                    stage(size)
                marks.append(self._checked(cudart.cudaEventCreate()))
                self._checked(cudart.cudaEventRecord(marks[-1], self.stream))
            self._checked(cudart.cudaStreamSynchronize(self.stream))
            size.ran = True
            names = ("copy in", "execute", "copy out")
            spans = zip(names, marks, marks[1:], strict=False)
            return {name: float(self._checked(cudart.cudaEventElapsedTime(*ends))) for name, *ends in spans}
        finally:
            for mark in marks:
                cudart.cudaEventDestroy(mark)

    def _size(self, batch: int) -> _Size:
        """The context for a batch size, set to it."""
        key = batch if self.execution.capture else 0
        size = self.sizes.get(key)
        if size is None:
            context = self.execution.make_context()
            if context is None:
                raise OSError("TensorRT made no execution context: the GPU's memory is used up; close other programs")
            if self.scratch:
                context.set_device_memory(self.scratch, self.execution.scratch)
            for name, address in self.device.items():
                if not context.set_tensor_address(name, address):
                    raise OSError(f"TensorRT refused the buffer of {name!r}")
            size = self.sizes[key] = _Size(context)
        if size.batch != batch:
            context, tile = size.context, self.host[INPUT].shape[1:]
            if not context.set_input_shape(INPUT, (batch, *tile)) or context.infer_shapes():
                raise OSError(f"TensorRT refused a batch of {batch}; build the engine again")
            size.batch = batch
        return size

    def _capture(self, size: _Size) -> None:
        """Record what `_enqueue` asks for as one graph; where that cannot be, the size goes on without."""
        cudart, mode = self.cudart, self.cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._checked(cudart.cudaStreamBeginCapture(self.stream, mode))  # of this thread: others may allocate meanwhile
        failed = False
        try:
            self._enqueue(size)
        except OSError:
            failed = True
        error, graph = cudart.cudaStreamEndCapture(self.stream)  # also ends one that failed
        made = None
        if error == cudart.cudaError_t.cudaSuccess:
            if not failed:
                error, made = cudart.cudaGraphInstantiate(graph, 0)
            cudart.cudaGraphDestroy(graph)
        if failed or error != cudart.cudaError_t.cudaSuccess:
            size.capturable = False
            cudart.cudaGetLastError()  # forgets it: the run that follows would be blamed
            return
        size.graph = made
        self._owned.append((cudart.cudaGraphExecDestroy, made))

    def _enqueue(self, size: _Size) -> None:
        self._copy_in(size)
        self._execute(size)
        self._copy_out(size)

    def _copy_in(self, size: _Size) -> None:
        self._copy(INPUT, size.batch, self.cudart.cudaMemcpyKind.cudaMemcpyHostToDevice)

    def _execute(self, size: _Size) -> None:
        if not size.context.execute_async_v3(int(self.stream)):
            raise OSError("TensorRT could not run the engine")

    def _copy_out(self, size: _Size) -> None:
        for name in self.outputs:
            self._copy(name, size.batch, self.cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost)

    def _copy(self, name: str, batch: int, kind: Any) -> None:
        host = self.host[name]
        ends = (self.device[name], host.ctypes.data)
        target, source = ends if name == INPUT else ends[::-1]
        self._checked(self.cudart.cudaMemcpyAsync(target, source, host[:batch].nbytes, kind, self.stream))

    def _allocated(self, size: int) -> int:
        address = int(self._checked(self.cudart.cudaMalloc(size)))
        self._owned.append((self.cudart.cudaFree, address))
        return address

    def _checked(self, answer: tuple[Any, ...]) -> Any:
        return checked(self.cudart, answer)


def checked(cudart: Any, answer: tuple[Any, ...]) -> Any:
    """The value of a CUDA call, whose answer is (error, value) or (error,).

    Raises:
        OSError: where the error is one.
    """
    error, *values = answer
    if error != cudart.cudaError_t.cudaSuccess:
        text = cudart.cudaGetErrorString(error)[1]
        raise OSError(f"CUDA: {text.decode() if isinstance(text, bytes) else text} ({error.name})")
    return values[0] if values else None


def _release(owned: list[tuple[Callable[[Any], Any], Any]]) -> None:
    """Give back in reverse order; at exit the driver may be gone already, so answers are not read."""
    while owned:
        free, what = owned.pop()
        free(what)
