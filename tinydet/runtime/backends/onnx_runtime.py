"""Run ONNX files in ONNX Runtime: on the CPU, or on an NVIDIA GPU through CUDA, TensorRT or TensorRT-RTX.

Not verified on a GPU: the names and options of the providers follow their documentation, and the tests run the device
buffers on the CPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.metadata
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinydet._internal import arguments
from tinydet._internal.arguments import check_number
from tinydet._internal.extras import needs_extra
from tinydet._internal.threads import allow_spinning
from tinydet.runtime.backends.contract import INPUT, OUTPUT_TYPES, TileChoice, TileOutputs, check_tiles, output_shapes
from tinydet.runtime.backends.external_data import check_external_data
from tinydet.runtime.backends.onnx_spec import OnnxFile, read_onnx_file
from tinydet.runtime.memory import check_memory
from tinydet.spec import ModelSpec

FATAL_ONLY = 4  # ONNX Runtime's log severity: errors become exceptions, and need not be printed too
BUILDS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino", "onnxruntime-qnn")
PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "rtx": "NvTensorRTRTXExecutionProvider",
}

logger = logging.getLogger("tinydet.runtime")


class OnnxRuntimeBackend:
    """An exported model in ONNX Runtime; `run` may be called from several threads."""

    def __init__(
        self, path: Path, *, tile: TileChoice = None, provider: str = "auto", threads: int | None = None
    ) -> None:
        """
        Args:
            path: an ONNX file that tinydet exported.
            tile: side of the tiles in pixels; None for the model's default. It is fixed when the model is loaded, so
                that what depends on it (anchors) is computed once.
            provider: one of PROVIDERS, which must work here; "auto" is CUDA if it works, else the CPU.
            threads: CPU threads of one run; None for all that this process may use.

        Raises:
            ValueError: the file is damaged, was not exported by tinydet, or does not take this tile.
            ModuleNotFoundError: the provider is not installed.
            OSError: the file is missing or unreadable, or the provider does not work here.
        """
        if threads is not None:
            threads = check_number("threads", threads, arguments.threads)
        if provider not in ("auto", *PROVIDERS):
            raise ValueError(f"the provider is one of auto, {', '.join(PROVIDERS)}, got {provider!r}")
        check_external_data(Path(path))
        file = read_onnx_file(Path(path), tile)
        onnxruntime = _import()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = FATAL_ONLY
        options.intra_op_num_threads = threads or _usable_cores()
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(allow_spinning())))
        for axis in file.tile_axes:
            options.add_free_dimension_override_by_name(axis, file.spec.tile)
        wanted = _providers(onnxruntime, provider, options, file)
        if wanted == [PROVIDERS["cpu"]] and file.spec.tile_multiple:
            check_memory(file.spec, Path(path))
        if wanted != [PROVIDERS["cpu"]]:
            self._session = _session(onnxruntime, path, options, wanted)
        # With "auto", a session whose CUDA or cuDNN did not load runs on the CPU without an error.
        if wanted == [PROVIDERS["cpu"]] or (provider == "auto" and self._first_provider == PROVIDERS["cpu"]):
            # Keeps Q/DQ in floating point. Fused INT8 kernels accumulate in 16 bits on processors with AVX2 but no
            # VNNI and overflow: scores fell to a third of the correct value. OpenVINO is the fast backend for INT8.
            options.add_session_config_entry("session.disable_quant_qdq", "1")
            self._session = _session(onnxruntime, path, options, [PROVIDERS["cpu"]])
        inputs = self._session.get_inputs()
        types = {node.name: node.type for node in (*inputs, *self._session.get_outputs())}
        file.check(types, inputs[0].shape if inputs else [])
        self.spec = file.spec
        active = self._first_provider
        if provider not in ("auto", "rtx") and active != PROVIDERS[provider]:
            raise OSError(
                f"ONNX Runtime could not load {PROVIDERS[provider]}: install the CUDA, cuDNN or TensorRT that its "
                "release asks for, or use --backend onnx-cpu"
            )
        self.on_gpu = active != PROVIDERS["cpu"]
        self._buffers = threading.local()
        self.name = f"ONNX Runtime {onnxruntime.__version__}, {active.removesuffix('ExecutionProvider')}"

    @property
    def _first_provider(self) -> str:
        """The provider that runs the model. ONNX Runtime drops a provider that it cannot load without an error."""
        first: str = self._session.get_providers()[0]
        return first

    def run(self, images: NDArray[np.uint8]) -> TileOutputs:
        """Run the model on tiles (N, T, T, 3), uint8 RGB, with N up to `spec.max_batch`.

        Raises:
            ValueError: the shape or type is different.
        """
        check_tiles(images, self.spec)
        if not self.on_gpu or len(images) == 0:
            names = list(output_shapes(self.spec))
            return TileOutputs(**dict(zip(names, self._session.run(names, {INPUT: images}), strict=True)))
        buffers: dict[int, BoundTensors] = self._buffers.__dict__.setdefault("by_size", {})
        if len(images) not in buffers:
            buffers[len(images)] = BoundTensors(self._session, self.spec, len(images), "cuda")
        return buffers[len(images)].run(images)


class BoundTensors:
    """Input and output buffers of one batch size in device memory, reused by all runs of one thread."""

    def __init__(self, session: Any, spec: ModelSpec, count: int, device: str) -> None:
        with needs_extra("onnxruntime"):
            import onnxruntime

        make = onnxruntime.OrtValue.ortvalue_from_shape_and_type
        self._session = session
        self._binding = session.io_binding()
        self._input = make((count, spec.tile, spec.tile, 3), np.uint8, device, 0)
        self._outputs = {
            name: make((count, *shape), OUTPUT_TYPES[name], device, 0) for name, shape in output_shapes(spec).items()
        }
        self._binding.bind_ortvalue_input(INPUT, self._input)
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)

    def run(self, images: NDArray[np.uint8]) -> TileOutputs:
        self._input.update_inplace(np.ascontiguousarray(images))
        self._binding.synchronize_inputs()
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()
        return TileOutputs(**{name: np.array(value.numpy()) for name, value in self._outputs.items()})


def has_gpu_provider() -> bool:
    """Return whether this machine has an NVIDIA GPU and an ONNX Runtime built with CUDA."""
    return _has_nvidia_gpu() and PROVIDERS["cuda"] in _import().get_available_providers()


def _session(onnxruntime: Any, path: Path, options: Any, providers: list[Any]) -> Any:
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # its exception classes are private
        raise ValueError(f"{path}: not a valid ONNX file ({_first_line(error)}); export the model again") from error


@functools.cache
def _import() -> Any:
    """Import ONNX Runtime. Several installed builds are reported once, even if it can be imported.

    Raises:
        ModuleNotFoundError: it is not installed.
        ImportError: it is incomplete, because several builds are or were installed.
    """
    builds = installed_builds()
    if len(builds) > 1:
        fault = f"{' and '.join(builds)} are installed together and overwrite each other's files"
    else:
        fault = "ONNX Runtime is incomplete, because two of its builds were installed and one was removed"
    keep = f"pip uninstall -y {' '.join(builds or BUILDS[:2])}; then pip install onnxruntime-gpu (for NVIDIA GPUs) or "
    fault += f". Keep one: {keep}pip install onnxruntime"
    with needs_extra("onnxruntime"):
        try:
            with _without_stderr(not _has_nvidia_gpu()):
                import onnxruntime
        except ImportError as error:
            if len(builds) > 1:
                raise ImportError(fault) from error
            raise
    if not hasattr(onnxruntime, "InferenceSession"):  # the folder was left without its modules
        sys.modules.pop("onnxruntime", None)
        raise ImportError(fault)
    if len(builds) > 1:
        logger.warning(fault)
    onnxruntime.set_default_logger_severity(FATAL_ONLY)  # also for sessions opened by its own tools
    return onnxruntime


def installed_builds() -> list[str]:
    """Return the installed packages of ONNX Runtime, which share one folder."""
    found = []
    for name in BUILDS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            importlib.metadata.version(name)
            found.append(name)
    return found


def _providers(onnxruntime: Any, provider: str, options: Any, file: OnnxFile) -> list[Any]:
    """Return the providers for a session, best first. TensorRT-RTX is a plug-in and is added to `options` instead."""
    cpu, cuda = PROVIDERS["cpu"], PROVIDERS["cuda"]
    if provider == "cpu" or (provider == "auto" and not has_gpu_provider()):
        return [cpu]
    if not _has_nvidia_gpu():
        raise OSError(f"the provider {provider} needs an NVIDIA GPU with its driver; there is none here")
    cache = str(file.path.resolve().parent)
    if provider == "rtx":
        with needs_extra("rtx-provider"):
            import onnxruntime_ep_nv_tensorrt_rtx as plugin
        name = plugin.get_ep_name()
        if not any(device.ep_name == name for device in onnxruntime.get_ep_devices()):
            onnxruntime.register_execution_provider_library(name, plugin.get_library_path())
        devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == name]
        if not devices:
            raise OSError("TensorRT-RTX finds no GPU that it supports (Ampere or newer); use --backend onnx-cuda")
        profile = {f"nv_{name}": shape for name, shape in _profile(file.spec).items()}
        options.add_provider_for_devices(devices[:1], {"nv_runtime_cache_path": cache, **profile})
        return []
    if PROVIDERS[provider if provider != "auto" else "cuda"] not in onnxruntime.get_available_providers():
        raise OSError(f"this ONNX Runtime was built without {PROVIDERS[provider]}; pip install onnxruntime-gpu")
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # loads the CUDA and cuDNN that pip installed
    if provider == "tensorrt":
        engines: dict[str, Any] = {"trt_engine_cache_enable": True, "trt_engine_cache_path": cache}
        engines["trt_timing_cache_enable"] = True
        engines |= {f"trt_{name}": shape for name, shape in _profile(file.spec).items()}
        return [(PROVIDERS["tensorrt"], engines), cuda, cpu]
    return [cuda, cpu]


def _profile(spec: ModelSpec) -> dict[str, str]:
    """Return the smallest, usual and largest input shape, as options of the TensorRT providers.

    Without them the providers rebuild the engine for each new batch size.
    """
    sizes = {"min": 1, "opt": min(8, spec.max_batch), "max": spec.max_batch}
    return {f"profile_{name}_shapes": f"{INPUT}:{n}x{spec.tile}x{spec.tile}x3" for name, n in sizes.items()}


def _usable_cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _has_nvidia_gpu() -> bool:
    """Return whether the driver sees a GPU. ONNX Runtime lists CUDA even without one."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        count = ctypes.c_int(0)
        return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    except (OSError, AttributeError):
        return False


@contextmanager
def _without_stderr(active: bool) -> Iterator[None]:
    """Silence standard error in the block: without a GPU, importing ONNX Runtime prints a warning from native code."""
    if not active or "onnxruntime" in sys.modules:
        yield
        return
    try:
        saved = os.dup(2)
    except OSError:  # standard error is closed
        yield
        return
    try:
        with open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
