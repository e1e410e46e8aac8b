"""Run ONNX files in OpenVINO: the fastest backend on a CPU, above all for INT8.

The graph is compiled for a batch of one tile, as OpenVINO optimizes fixed shapes best. The tiles of a batch are spread
over its streams, so the boxes of a tile do not depend on the batch.
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

from tinydet._internal import arguments
from tinydet._internal.arguments import check_number
from tinydet._internal.extras import needs_extra
from tinydet._internal.input_files import check_file
from tinydet._internal.shell import tinydet_command
from tinydet.runtime.backends.contract import (
    INPUT,
    OUTPUT_TYPES,
    TileChoice,
    TileOutputs,
    check_tiles,
    output_shapes,
    spec_for_tile,
)
from tinydet.runtime.backends.external_data import check_external_data
from tinydet.runtime.backends.int8_file import int8_instructions
from tinydet.runtime.backends.onnx_spec import OnnxFile, read_onnx_file
from tinydet.runtime.memory import check_memory
from tinydet.spec import METADATA_KEY, ModelSpec

Mode = Literal["throughput", "latency"]
Precision = Literal["f32", "bf16"]

DEVICE = "CPU"
TYPES = {"u8": "tensor(uint8)", "f32": "tensor(float)", "i32": "tensor(int32)"}  # OpenVINO's names -> TENSOR_TYPES


@contextmanager
def restored_signal_stack() -> Iterator[None]:
    """Restore this thread's alternate signal stack after the block, or the decorated function, that opens a model.

    OpenVINO installs its own signal stack, also to ask a processor with AMX for its capabilities, and restores the
    previous one when the model is freed. If models are not freed in reverse order, the restored stack belongs to a
    model that no longer exists, and the next signal (Ctrl-C, for example) ends the process with a segmentation fault.
    Observed with OpenVINO 2026.4.
    """
    stack = ctypes.create_string_buffer(64)  # a stack_t, used as opaque bytes
    sigaltstack = None if os.name == "nt" else ctypes.CDLL(None).sigaltstack
    if sigaltstack is not None:
        sigaltstack(None, stack)
    try:
        yield
    finally:
        if sigaltstack is not None:
            sigaltstack(stack, None)


class OpenVINOBackend:
    """An exported model in OpenVINO on the CPU; `run` may be called from several threads.

    By default OpenVINO computes in bfloat16 on processors that support it, so its outputs differ between machines. This
    backend uses bfloat16 only on request. Q/DQ layers run in INT8 if the processor accumulates INT8 products without
    overflow (VNNI), else they are emulated in float32. FP16 weights are computed in float32.
    """

    @restored_signal_stack()
    def __init__(
        self,
        path: Path,
        *,
        tile: TileChoice = None,
        threads: int | None = None,
        mode: Mode = "throughput",
        precision: Precision = "f32",
        cache: Path | None = None,
    ) -> None:
        """
        Args:
            path: an ONNX file that tinydet exported, or the `.xml` of an OpenVINO IR that it adopted.
            tile: side of the tiles in pixels, which the model is compiled for; None for the model's default.
            threads: CPU threads of all streams together; None for all that this process may use.
            mode: "throughput" runs several tiles at once, each on a few cores; "latency" runs one at a time on all.
            precision: of the layers that are not INT8.
            cache: folder for compiled models, which open faster the next time; None for the user's cache folder.

        Raises:
            ValueError: the file is damaged, was not exported by tinydet, or does not take this tile.
            ModuleNotFoundError: OpenVINO is not installed.
            OSError: the file is missing or unreadable, or the processor has no bfloat16.
        """
        if threads is not None:
            threads = check_number("threads", threads, arguments.threads)
        path = Path(path)
        is_ir = path.suffix == ".xml"
        if is_ir:
            check_file(path)
            check_file(path.with_suffix(".bin"), "the weights of an OpenVINO IR must be next to its .xml")
        else:
            check_external_data(path)
            file = read_onnx_file(path, tile)
        with needs_extra("openvino"):
            import openvino
            import openvino.frontend
        core = openvino.Core()
        if precision == "bf16" and "BF16" not in core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"):
            raise OSError(f"{core.get_property(DEVICE, 'FULL_DEVICE_NAME')} has no bfloat16; use --backend openvino")
        if (folder := _cache_folder(cache)) is not None:
            core.set_property({"CACHE_DIR": str(folder)})
        reader = openvino.frontend.FrontEndManager().load_by_framework("ir" if is_ir else "onnx")  # others print errors
        try:
            model = reader.convert(reader.load(str(path)))
        except Exception as error:  # its exception classes are private
            kind = "OpenVINO IR" if is_ir else "ONNX file"
            raise ValueError(f"{path}: not a valid {kind} ({_reason(error)}); export the model again") from error
        if is_ir:
            file = _read_ir(path, model, tile)
        self.spec = file.spec
        if file.spec.tile_multiple:
            check_memory(file.spec, path)
        _check(file, model)
        self._openvino = openvino
        hints: dict[str, Any] = {"PERFORMANCE_HINT": mode.upper(), "INFERENCE_PRECISION_HINT": precision}
        if threads is not None:
            hints["INFERENCE_NUM_THREADS"] = threads
        emulated = self.spec.precision == "int8" and not _accumulates_int8_in_32_bits()
        if emulated:
            hints["LP_TRANSFORMS_MODE"] = False
        try:
            model.reshape({INPUT: [1, self.spec.tile, self.spec.tile, 3]})
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
        """Whether the compiled model came from the cache."""
        return bool(self._model.get_property("LOADED_FROM_CACHE"))

    def run(self, images: NDArray[np.uint8]) -> TileOutputs:
        """Run the model on tiles (N, T, T, 3), uint8 RGB, with N up to `spec.max_batch`.

        Raises:
            ValueError: the shape or type is different.
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
            for _, request in running:  # after an error: a request must finish before another thread may take it
                request.wait()
                self._idle.put(request)
        return TileOutputs(**outputs)

    def _request(self, outputs: dict[str, NDArray[Any]], running: deque[tuple[int, Any]]) -> Any:
        """Return an idle request. If there is none, finish the oldest of this call, else wait for another thread."""
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            return _finish(outputs, running) if running else self._idle.get()


def _finish(outputs: dict[str, NDArray[Any]], running: deque[tuple[int, Any]]) -> Any:
    """Wait for the oldest request, copy its outputs, and return it."""
    i, request = running[0]
    request.wait()
    for name, values in outputs.items():
        values[i] = request.get_tensor(name).data[0]
    running.popleft()
    return request


def _read_ir(path: Path, model: Any, tile: TileChoice) -> OnnxFile:
    """Return what an OpenVINO IR says about itself, in the place where OpenVINO keeps the metadata of ONNX files."""
    key = ["framework", METADATA_KEY]
    if not model.has_rt_info(key):
        adopt = tinydet_command("export", "adopt", path)
        raise ValueError(f"{path} is not a model of tinydet; make one of it: {adopt}")
    spec = ModelSpec.from_json(model.get_rt_info(key).astype(str), source=path)
    return OnnxFile(path, spec_for_tile(spec, tile, path), ())


def _check(file: OnnxFile, model: Any) -> None:
    """Check that the graph matches its description; axes that are free for the tile will be fixed."""
    types = {node.get_any_name(): _type_name(node) for node in (*model.inputs, *model.outputs)}
    axes = model.inputs[0].partial_shape if model.inputs else ()
    free = file.spec.tile if file.spec.tile_multiple else None
    file.check(types, [free if axis.is_dynamic else axis.get_length() for axis in axes])


def _type_name(node: Any) -> str:
    name: str = node.element_type.get_type_name()
    return TYPES.get(name, name)


def _accumulates_int8_in_32_bits() -> bool:
    """Return whether INT8 products are accumulated in 32 bits. With AVX2 alone it is 16 bits, which overflow."""
    return platform.machine().lower() not in ("x86_64", "amd64") or bool(int8_instructions())


def _cache_folder(requested: Path | None) -> Path | None:
    """Return the folder for compiled models, or None if it is not writable."""
    try:
        user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = requested or user / "tinydet" / "openvino"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: there is no home folder
        return None
    return folder if os.access(folder, os.W_OK) else None


def _reason(error: Exception) -> str:
    """Return the last line of an error: OpenVINO puts source locations before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
