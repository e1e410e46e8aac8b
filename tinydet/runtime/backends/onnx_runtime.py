"""ONNX files through ONNX Runtime: on the CPU, or on an NVIDIA GPU by CUDA, TensorRT or TensorRT-RTX.

Unverified on a GPU: the providers' names and options are those of their documentation; the buffers that are kept on
the device run in the tests on the CPU.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.extras import needs_extra
from tinydet.runtime.backends import OUTPUT_TYPES, TileOutputs, check_tiles, output_shapes
from tinydet.spec import ModelSpec

METADATA_KEY = "tinydet"  # of metadata_props; the value is ModelSpec's JSON
TYPES = {
    "images": "tensor(uint8)",
    "boxes": "tensor(float)",
    "scores": "tensor(float)",
    "labels": "tensor(int32)",
    "candidates": "tensor(int32)",
    "unconverged": "tensor(int32)",
}
ERRORS_ONLY = 3  # ONNX Runtime's severity


PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "rtx": "NvTensorRTRTXExecutionProvider",
}


class OnnxRuntimeBackend:
    """An exported model in ONNX Runtime; `run` may be called from several threads."""

    def __init__(self, path: Path, *, provider: str = "auto", threads: int | None = None) -> None:
        """
        Args:
            path: an ONNX file that tinydet exported.
            provider: one of PROVIDERS, which must work here; "auto": CUDA if it does, else the CPU.
            threads: CPU threads of one run; None for all that this process may use.

        Raises:
            ValueError: the file is damaged, or not exported by tinydet.
            ModuleNotFoundError: the provider is not installed.
            OSError: the file is missing or may not be read, or the provider does not work here.
        """
        if threads is not None and threads < 1:
            raise ValueError(f"expected at least one thread, got {threads}")
        if provider not in ("auto", *PROVIDERS):
            raise ValueError(f"the provider is one of auto, {', '.join(PROVIDERS)}, got {provider!r}")
        with Path(path).open("rb"):  # missing, a folder, not ours to read: said by the system, with the path
            pass
        onnxruntime = _import()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = ERRORS_ONLY
        options.intra_op_num_threads = threads or _usable_cores()
        wanted = _providers(onnxruntime, provider, options, Path(path))
        if wanted != [PROVIDERS["cpu"]]:
            self._session = _session(onnxruntime, path, options, wanted)
        if wanted == [PROVIDERS["cpu"]] or (provider == "auto" and self._runs == PROVIDERS["cpu"]):  # no CUDA or cuDNN
            # Q/DQ computes what it says. Fused into INT8 kernels, products are added in 16 bits on processors with AVX2
            # and no VNNI, and overflow: scores came out a third of what they are. The fast way for INT8 is OpenVINO.
            options.add_session_config_entry("session.disable_quant_qdq", "1")
            self._session = _session(onnxruntime, path, options, [PROVIDERS["cpu"]])
        self.spec = _described(path, self._session)
        runs = self._runs
        if provider not in ("auto", "rtx") and runs != PROVIDERS[provider]:
            raise OSError(
                f"ONNX Runtime could not load {PROVIDERS[provider]}: install the CUDA, cuDNN or TensorRT that its "
                "release asks for, or use --backend onnx-cpu"
            )
        self.on_gpu = runs != PROVIDERS["cpu"]
        self._lanes = threading.local()
        self.name = f"ONNX Runtime {onnxruntime.__version__}, {runs.removesuffix('ExecutionProvider')}"

    @property
    def _runs(self) -> str:
        """The provider that a session has in fact; one that did not load is left out without an error."""
        first: str = self._session.get_providers()[0]
        return first

    def run(self, images: NDArray[np.uint8]) -> TileOutputs:
        """(N, T, T, 3) uint8 RGB, N up to `spec.max_batch` -> boxes of each tile.

        Raises:
            ValueError: for other shapes or types.
        """
        check_tiles(images, self.spec)
        if not self.on_gpu or len(images) == 0:
            names = list(output_shapes(self.spec))
            return TileOutputs(**dict(zip(names, self._session.run(names, {"images": images}), strict=True)))
        lanes: dict[int, BoundTensors] = self._lanes.__dict__.setdefault("lanes", {})
        lane = lanes.get(len(images))
        if lane is None:
            lane = lanes[len(images)] = BoundTensors(self._session, self.spec, len(images), "cuda")
        return lane.run(images)


class BoundTensors:
    """Input and outputs of one batch size in memory of a device, kept from run to run; for one thread."""

    def __init__(self, session: Any, spec: ModelSpec, count: int, device: str) -> None:
        import onnxruntime

        make = onnxruntime.OrtValue.ortvalue_from_shape_and_type
        self._session = session
        self._binding = session.io_binding()
        self._input = make((count, spec.tile, spec.tile, 3), np.uint8, device, 0)
        self._outputs = {
            name: make((count, *shape), OUTPUT_TYPES[name], device, 0) for name, shape in output_shapes(spec).items()
        }
        self._binding.bind_ortvalue_input("images", self._input)
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)

    def run(self, images: NDArray[np.uint8]) -> TileOutputs:
        self._input.update_inplace(np.ascontiguousarray(images))
        self._binding.synchronize_inputs()
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()
        return TileOutputs(**{name: np.array(value.numpy()) for name, value in self._outputs.items()})


def has_gpu_provider() -> bool:
    """Whether there is an NVIDIA GPU and an ONNX Runtime that was built for it."""
    return _has_nvidia_gpu() and PROVIDERS["cuda"] in _import().get_available_providers()


def described_model(path: Path, text: str | None, found: Mapping[str, str], sizes: list[Any]) -> ModelSpec:
    """The model's own description, once its inputs and outputs are those of an exported model.

    Args:
        text: what the file says under METADATA_KEY; None where it says nothing.
        found: types of inputs and outputs by name, as in TYPES.
        sizes: of the input, with anything for the batch axis.

    Raises:
        ValueError: naming `path`, where they are not.
    """
    if text is None:
        raise ValueError(
            f"{path} was not exported by tinydet (no {METADATA_KEY!r} in its metadata); "
            "export a trained model: python export/to_onnx.py model.pth"
        )
    spec = ModelSpec.from_json(text, source=path)
    expected = {name: TYPES[name] for name in ("images", *output_shapes(spec))}
    if found != expected:
        raise ValueError(f"{path}: expected inputs and outputs {expected}, got {found}; export the model again")
    if sizes[1:] != [spec.tile, spec.tile, 3]:
        raise ValueError(f"{path}: its input is {sizes}, its description says tiles of {spec.tile}; export it again")
    return spec


def _session(onnxruntime: Any, path: Path, options: Any, providers: list[Any]) -> Any:
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # each kind is a class of its own, in a private module
        raise ValueError(f"{path}: not a sound ONNX file ({_first_line(error)}); export the model again") from error


def _import() -> Any:
    with _without_stderr(not _has_nvidia_gpu()):
        import onnxruntime
    return onnxruntime


def _providers(onnxruntime: Any, provider: str, options: Any, path: Path) -> list[Any]:
    """What to ask a session for, best first. TensorRT-RTX is a plug-in, which goes into `options` instead."""
    cpu, cuda = PROVIDERS["cpu"], PROVIDERS["cuda"]
    if provider == "cpu" or (provider == "auto" and not has_gpu_provider()):
        return [cpu]
    if not _has_nvidia_gpu():
        raise OSError(f"the provider {provider} needs an NVIDIA GPU with its driver; there is none here")
    kept = str(path.resolve().parent)
    if provider == "rtx":
        with needs_extra("rtx-provider"):
            import onnxruntime_ep_nv_tensorrt_rtx as plugin
        name = plugin.get_ep_name()
        if not any(device.ep_name == name for device in onnxruntime.get_ep_devices()):
            onnxruntime.register_execution_provider_library(name, plugin.get_library_path())
        devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == name]
        if not devices:
            raise OSError("TensorRT-RTX finds no GPU that it supports (Ampere or newer); use --backend onnx-cuda")
        profile = {f"nv_{name}": shape for name, shape in _profile(onnxruntime, path).items()}
        options.add_provider_for_devices(devices[:1], {"nv_runtime_cache_path": kept, **profile})
        return []
    if PROVIDERS[provider if provider != "auto" else "cuda"] not in onnxruntime.get_available_providers():
        raise OSError(f"this ONNX Runtime was built without {PROVIDERS[provider]}; pip install onnxruntime-gpu")
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # finds CUDA and cuDNN that pip installed
    if provider == "tensorrt":
        engines: dict[str, Any] = {"trt_engine_cache_enable": True, "trt_engine_cache_path": kept}
        engines["trt_timing_cache_enable"] = True
        engines |= {f"trt_{name}": shape for name, shape in _profile(onnxruntime, path).items()}
        return [(PROVIDERS["tensorrt"], engines), cuda, cpu]
    return [cuda, cpu]


def _profile(onnxruntime: Any, path: Path) -> dict[str, str]:
    """The smallest, usual and largest input, as TensorRT's providers are told; else they build anew for every batch
    size that they have not seen.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # it is only asked what it is
    spec = _described(path, _session(onnxruntime, path, options, [PROVIDERS["cpu"]]))
    sizes = {"min": 1, "opt": min(8, spec.max_batch), "max": spec.max_batch}
    return {f"profile_{name}_shapes": f"images:{n}x{spec.tile}x{spec.tile}x3" for name, n in sizes.items()}


def _described(path: Path, session: Any) -> ModelSpec:
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    found = {node.name: node.type for node in (*session.get_inputs(), *session.get_outputs())}
    return described_model(path, text, found, session.get_inputs()[0].shape)


def _usable_cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _has_nvidia_gpu() -> bool:
    """Whether the driver sees a GPU. ONNX Runtime itself lists CUDA wherever it was built for it."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        count = ctypes.c_int(0)
        return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0
    except (OSError, AttributeError):
        return False


@contextmanager
def _without_stderr(active: bool) -> Iterator[None]:
    """Importing ONNX Runtime looks for GPUs; where there is none it warns, in native code that has no switch for it."""
    if not active or "onnxruntime" in sys.modules:
        yield
        return
    try:
        saved = os.dup(2)
    except OSError:  # closed
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
