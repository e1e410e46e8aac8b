"""ONNX files through OpenVINO: the fast way on a CPU, above all for INT8.

The graph is compiled for one tile, since fixed shapes are what OpenVINO optimises best; the tiles of a batch are
spread over its streams. So a tile's boxes do not depend on the batch that it came in.
"""

from __future__ import annotations

import ctypes
import os
import platform
import queue
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.extras import needs_extra
from tinydet.runtime.backends import OUTPUT_TYPES, TileOutputs, check_tiles, output_shapes
from tinydet.runtime.backends.onnx_runtime import METADATA_KEY, described_model
from tinydet.spec import ModelSpec

Mode = Literal["throughput", "latency"]
Precision = Literal["f32", "bf16"]

DEVICE = "CPU"
TYPES = {"u8": "tensor(uint8)", "f32": "tensor(float)", "i32": "tensor(int32)"}  # as ONNX Runtime calls them


class OpenVINOBackend:
    """An exported model in OpenVINO on the CPU; `run` may be called from several threads.

    Left to itself OpenVINO computes in bfloat16 wherever a processor is fast in it, and answers differently from one
    machine to the next. Here that is asked for, or does not happen. Q/DQ layers run in INT8 where the processor adds
    INT8 products without overflow (VNNI), else as Q/DQ says but in float32; what is FP16 in the file runs in float32.
    """

    def __init__(
        self,
        path: Path,
        *,
        threads: int | None = None,
        mode: Mode = "throughput",
        precision: Precision = "f32",
        cache: Path | None = None,
    ) -> None:
        """
        Args:
            path: an ONNX file that tinydet exported.
            threads: CPU threads of all streams together; None for all that this process may use.
            mode: "throughput": several tiles at once, each on a few cores; "latency": one after the other on all.
            precision: of what is not INT8.
            cache: folder where compiled models are kept, so that the next opening is faster; None for this user's.

        Raises:
            ValueError: the file is damaged, or not exported by tinydet.
            ModuleNotFoundError: OpenVINO is not installed.
            OSError: the file is missing or may not be read, or the processor has no bfloat16.
        """
        if threads is not None and threads < 1:
            raise ValueError(f"expected at least one thread, got {threads}")
        with Path(path).open("rb"):  # missing, a folder, not ours to read: said by the system, with the path
            pass
        with needs_extra("openvino"):
            import openvino
            import openvino.frontend
        core = openvino.Core()
        if precision == "bf16" and "BF16" not in core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"):
            raise OSError(f"{core.get_property(DEVICE, 'FULL_DEVICE_NAME')} has no bfloat16; use --backend openvino")
        if (folder := _cache_folder(cache)) is not None:
            core.set_property({"CACHE_DIR": str(folder)})
        reader = openvino.frontend.FrontEndManager().load_by_framework("onnx")  # the others complain aloud of its bytes
        try:
            model = reader.convert(reader.load(str(path)))
        except Exception as error:  # each kind is a class of its own, in a private module
            raise ValueError(f"{path}: not a sound ONNX file ({_reason(error)}); export the model again") from error
        self.spec = _described(path, model)
        self._openvino = openvino
        hints: dict[str, Any] = {"PERFORMANCE_HINT": mode.upper(), "INFERENCE_PRECISION_HINT": precision}
        if threads is not None:
            hints["INFERENCE_NUM_THREADS"] = threads
        emulated = self.spec.precision == "int8" and not _adds_int8_exactly()
        if emulated:
            hints["LP_TRANSFORMS_MODE"] = False
        try:
            model.reshape({"images": [1, self.spec.tile, self.spec.tile, 3]})
            with _own_signal_stack():
                self._model = core.compile_model(model, DEVICE, hints)
        except RuntimeError as error:
            raise OSError(f"{path}: OpenVINO cannot compile it ({_reason(error)}); use --backend onnx") from error
        streams = max(1, int(self._model.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")))
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(streams):
            self._idle.put(self._model.create_infer_request())
        version = openvino.__version__.partition("-")[0]
        device = " ".join(core.get_property(DEVICE, "FULL_DEVICE_NAME").split())
        self.name = f"OpenVINO {version}, {device}, {precision}, {streams} stream{'s' * (streams > 1)}"
        if emulated:
            self.name += " (INT8 in float32: no VNNI)"

    @property
    def from_cache(self) -> bool:
        """Whether the compiled model was found in the cache."""
        return bool(self._model.get_property("LOADED_FROM_CACHE"))

    def run(self, images: NDArray[np.uint8]) -> TileOutputs:
        """(N, T, T, 3) uint8 RGB, N up to `spec.max_batch` -> boxes of each tile.

        Raises:
            ValueError: for other shapes or types.
        """
        check_tiles(images, self.spec)
        images = np.ascontiguousarray(images)
        count = len(images)
        outputs = {
            name: np.empty((count, *shape), OUTPUT_TYPES[name]) for name, shape in output_shapes(self.spec).items()
        }
        running: deque[tuple[int, Any]] = deque()
        try:
            for i in range(count):
                request = self._request(outputs, running)
                running.append((i, request))
                request.set_input_tensor(self._openvino.Tensor(images[i : i + 1], shared_memory=True))
                request.start_async()
            while running:
                self._idle.put(_finish(outputs, running))
        finally:
            for _, request in running:  # of a run that was broken off: nobody else may get them while they work
                request.wait()
                self._idle.put(request)
        return TileOutputs(**outputs)

    def _request(self, outputs: dict[str, NDArray[Any]], running: deque[tuple[int, Any]]) -> Any:
        """An idle request: the oldest of one's own before waiting for those of other threads."""
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            return _finish(outputs, running) if running else self._idle.get()


def _finish(outputs: dict[str, NDArray[Any]], running: deque[tuple[int, Any]]) -> Any:
    """Wait for the oldest request, keep its answers, and give it back."""
    i, request = running[0]
    request.wait()
    for name, values in outputs.items():
        values[i] = request.get_tensor(name).data[0]
    running.popleft()
    return request


def _described(path: Path, model: Any) -> ModelSpec:
    """The model's own description, which OpenVINO keeps as run-time information of the framework."""
    key = ["framework", METADATA_KEY]
    text = model.get_rt_info(key).astype(str) if model.has_rt_info(key) else None
    found = {node.get_any_name(): _type_name(node) for node in (*model.inputs, *model.outputs)}
    sizes = [None if size.is_dynamic else size.get_length() for size in model.inputs[0].partial_shape]
    return described_model(path, text, found, sizes)


def _type_name(node: Any) -> str:
    name: str = node.element_type.get_type_name()
    return TYPES.get(name, name)


def _adds_int8_exactly() -> bool:
    """Whether the processor adds INT8 products in 32 bits. With AVX2 alone they are added in 16, which overflow."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # another system: the safe answer
        return False
    return "vnni" in flags or "amx_int8" in flags


@contextmanager
def _own_signal_stack() -> Iterator[None]:
    """This thread's alternate signal stack after the block is the one from before.

    A compiled model brings a stack for signals, and when it goes, the one that it found comes back. Where models do
    not go in the reverse order of their coming, that one is of a model that is gone: the next signal, be it Ctrl-C,
    then ends the process with a segmentation fault. (Seen with OpenVINO 2026.4.)
    """
    stack = ctypes.create_string_buffer(64)  # stack_t; what is in it is not ours to know
    sigaltstack = None if os.name == "nt" else ctypes.CDLL(None).sigaltstack
    if sigaltstack is not None:
        sigaltstack(None, stack)
    try:
        yield
    finally:
        if sigaltstack is not None:
            sigaltstack(stack, None)


def _cache_folder(asked: Path | None) -> Path | None:
    """The folder for compiled models, or None where it cannot be written."""
    folder = asked or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tinydet" / "openvino"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def _reason(error: Exception) -> str:
    """The last line that says something: OpenVINO puts places in its source before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
