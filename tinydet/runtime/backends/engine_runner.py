"""Run a TensorRT engine in one thread, with its own stream, pinned and device buffers, contexts and CUDA graphs.

All of them are allocated once and reused. Copies and execution are queued on the runner's own stream, which is
synchronized once per run. From the second run of a batch size on, they are launched as one CUDA graph.

Not verified on a GPU: see `tinydet.runtime.backends.tensorrt`.
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

from tinydet.runtime.backends.contract import INPUT, OUTPUT_TYPES, TileOutputs

DTYPES: dict[str, np.dtype[Any]] = {
    INPUT: np.dtype(np.uint8),
    **{name: np.dtype(kind) for name, kind in OUTPUT_TYPES.items()},
}


@dataclass(frozen=True)
class Execution:
    """How an engine is executed.

    Attributes:
        make_context: returns an IExecutionContext, or None if GPU memory is exhausted.
        scratch: bytes of device memory that the contexts of a runner share; 0 if each context allocates its own.
        capture: whether the runner captures CUDA graphs; False if the engine captures them itself.
    """

    make_context: Callable[[], Any]
    scratch: int
    capture: bool


@dataclass
class _ContextState:
    """An execution context, and the state of the batch size that it is set to.

    A CUDA graph is valid only for the shape and the context that it was captured from. If the runner captures graphs,
    each batch size therefore has its own context.
    """

    context: Any
    batch: int = 0
    ran: bool = False
    graph: Any = None
    capturable: bool = True


class EngineRunner:
    """Runs an engine for one thread. Its resources are freed with the object, even if the constructor failed.

    Args:
        cudart: the runtime module of cuda-python.
        shapes: shapes of the inputs and outputs without the batch axis.
        capacity: the largest batch.
        profile: number of the engine's optimization profile for this tile.

    Raises:
        OSError: CUDA or TensorRT failed.
    """

    def __init__(
        self,
        cudart: Any,
        execution: Execution,
        shapes: dict[str, tuple[int, ...]],
        capacity: int,
        *,
        profile: int = 0,
    ) -> None:
        self.cudart = cudart
        self.profile = profile
        self.execution = execution
        self.outputs = [name for name in shapes if name != INPUT]
        self.host: dict[str, NDArray[Any]] = {}
        self.device: dict[str, int] = {}
        self._states: dict[int, _ContextState] = {}
        self._owned: list[tuple[Callable[[Any], Any], Any]] = []
        weakref.finalize(self, _release, self._owned)  # before the first allocation, as a later one may fail

        self.stream = self._checked(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking))
        self._owned.append((cudart.cudaStreamDestroy, self.stream))
        for name, shape in shapes.items():
            size = capacity * math.prod(shape) * DTYPES[name].itemsize
            pinned = int(self._checked(cudart.cudaMallocHost(size)))
            self._owned.append((cudart.cudaFreeHost, pinned))
            self.device[name] = self._allocate(size)
            memory = (ctypes.c_uint8 * size).from_address(pinned)
            self.host[name] = np.ctypeslib.as_array(memory).view(DTYPES[name]).reshape(capacity, *shape)
        self.host[INPUT][:] = 0
        self.scratch = self._allocate(execution.scratch) if execution.scratch else 0

    def run(self, images: NDArray[np.uint8], batch: int) -> TileOutputs:
        """Run the engine on `images`, padded to `batch` tiles."""
        cudart, count = self.cudart, len(images)
        self.host[INPUT][:count] = images  # the padding is left over from earlier batches; its outputs are dropped
        state = self._state(batch)
        if self.execution.capture and state.ran and state.capturable and state.graph is None:
            self._capture(state)  # after the first run: TensorRT requires one, and many batch sizes occur only once
        if state.graph is None:
            self._enqueue(state)
        else:
            self._checked(cudart.cudaGraphLaunch(state.graph, self.stream))
        self._checked(cudart.cudaStreamSynchronize(self.stream))
        state.ran = True
        return TileOutputs(**{name: self.host[name][:count].copy() for name in self.outputs})

    def stage_times(self, images: NDArray[np.uint8], batch: int) -> dict[str, float]:
        """Return the milliseconds of each stage of one run without a CUDA graph, measured by CUDA events."""
        cudart = self.cudart
        self.host[INPUT][: len(images)] = images
        state = self._state(batch)
        events: list[Any] = []
        try:
            for stage in (None, self._copy_in, self._execute, self._copy_out):
                if stage is not None:
                    stage(state)
                events.append(self._checked(cudart.cudaEventCreate()))
                self._checked(cudart.cudaEventRecord(events[-1], self.stream))
            self._checked(cudart.cudaStreamSynchronize(self.stream))
            state.ran = True
            names = ("copy in", "execute", "copy out")
            spans = zip(names, events, events[1:], strict=False)
            return {name: float(self._checked(cudart.cudaEventElapsedTime(*ends))) for name, *ends in spans}
        finally:
            for event in events:
                cudart.cudaEventDestroy(event)

    def _state(self, batch: int) -> _ContextState:
        """Return a context that is set to a batch size."""
        key = batch if self.execution.capture else 0
        state = self._states.get(key)
        if state is None:
            context = self.execution.make_context()
            if context is None:
                raise OSError("TensorRT made no execution context: the GPU's memory is used up; close other programs")
            if self.scratch:
                context.set_device_memory(self.scratch, self.execution.scratch)
            # Profile 0 is that of a new context.
            if self.profile and not context.set_optimization_profile_async(self.profile, int(self.stream)):
                raise OSError(f"TensorRT refused profile {self.profile} of the engine; build the engine again")
            for name, address in self.device.items():
                if not context.set_tensor_address(name, address):
                    raise OSError(f"TensorRT refused the buffer of {name!r}")
            state = self._states[key] = _ContextState(context)
        if state.batch != batch:
            context, tile = state.context, self.host[INPUT].shape[1:]
            if not context.set_input_shape(INPUT, (batch, *tile)) or context.infer_shapes():
                raise OSError(f"TensorRT refused a batch of {batch}; build the engine again")
            state.batch = batch
        return state

    def _capture(self, state: _ContextState) -> None:
        """Capture the work of `_enqueue` as a CUDA graph. If that fails, the batch size runs without one."""
        cudart, mode = self.cudart, self.cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._checked(cudart.cudaStreamBeginCapture(self.stream, mode))  # thread-local: others may allocate meanwhile
        failed = False
        try:
            self._enqueue(state)
        except OSError:
            failed = True
        error, graph = cudart.cudaStreamEndCapture(self.stream)  # required after a failure too
        executable = None
        if error == cudart.cudaError_t.cudaSuccess:
            if not failed:
                error, executable = cudart.cudaGraphInstantiate(graph, 0)
            cudart.cudaGraphDestroy(graph)
        if failed or error != cudart.cudaError_t.cudaSuccess:
            state.capturable = False
            cudart.cudaGetLastError()  # clears the error, which the next call would report
            return
        state.graph = executable
        self._owned.append((cudart.cudaGraphExecDestroy, executable))

    def _enqueue(self, state: _ContextState) -> None:
        self._copy_in(state)
        self._execute(state)
        self._copy_out(state)

    def _copy_in(self, state: _ContextState) -> None:
        self._copy(INPUT, state.batch, self.cudart.cudaMemcpyKind.cudaMemcpyHostToDevice)

    def _execute(self, state: _ContextState) -> None:
        if not state.context.execute_async_v3(int(self.stream)):
            raise OSError("TensorRT could not run the engine")

    def _copy_out(self, state: _ContextState) -> None:
        for name in self.outputs:
            self._copy(name, state.batch, self.cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost)

    def _copy(self, name: str, batch: int, kind: Any) -> None:
        host = self.host[name]
        ends = (self.device[name], host.ctypes.data)
        target, source = ends if name == INPUT else ends[::-1]
        self._checked(self.cudart.cudaMemcpyAsync(target, source, host[:batch].nbytes, kind, self.stream))

    def _allocate(self, size: int) -> int:
        address = int(self._checked(self.cudart.cudaMalloc(size)))
        self._owned.append((self.cudart.cudaFree, address))
        return address

    def _checked(self, result: tuple[Any, ...]) -> Any:
        return checked(self.cudart, result)


def checked(cudart: Any, result: tuple[Any, ...]) -> Any:
    """Return the value of a CUDA call from its result, (error, value) or (error,).

    Raises:
        OSError: the call failed.
    """
    error, *values = result
    if error != cudart.cudaError_t.cudaSuccess:
        text = cudart.cudaGetErrorString(error)[1]
        raise OSError(f"CUDA: {text.decode() if isinstance(text, bytes) else text} ({error.name})")
    return values[0] if values else None


def _release(owned: list[tuple[Callable[[Any], Any], Any]]) -> None:
    """Free resources in reverse order. Errors are ignored: at exit the driver may already be unloaded."""
    while owned:
        free, resource = owned.pop()
        free(resource)
