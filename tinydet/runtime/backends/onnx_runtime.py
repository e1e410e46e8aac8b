"""ONNX files through ONNX Runtime, on the CPU or an NVIDIA GPU."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinydet.runtime.backends import TileOutputs
from tinydet.spec import ModelSpec

METADATA_KEY = "tinydet"  # of metadata_props; the value is ModelSpec's JSON
TYPES = {
    "images": "tensor(uint8)",
    "boxes": "tensor(float)",
    "scores": "tensor(float)",
    "labels": "tensor(int32)",
    "candidates": "tensor(int32)",
}
ERRORS_ONLY = 3  # ONNX Runtime's severity


class OnnxRuntimeBackend:
    """An exported model in ONNX Runtime; `run` may be called from several threads."""

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        """
        Args:
            path: an ONNX file that tinydet exported.
            threads: CPU threads of one run; None for all that this process may use.

        Raises:
            ValueError: the file is damaged, or not exported by tinydet.
            OSError: it is missing or may not be read.
        """
        if threads is not None and threads < 1:
            raise ValueError(f"expected at least one thread, got {threads}")
        with Path(path).open("rb"):  # missing, a folder, not ours to read: said by the system, with the path
            pass
        gpu = _has_nvidia_gpu()
        with _without_stderr(not gpu):
            import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = ERRORS_ONLY
        options.intra_op_num_threads = threads or _usable_cores()
        wanted = ["CPUExecutionProvider"]
        if gpu and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            if hasattr(onnxruntime, "preload_dlls"):
                onnxruntime.preload_dlls()  # finds CUDA and cuDNN that pip installed
            wanted.insert(0, "CUDAExecutionProvider")
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=wanted)
        except Exception as error:  # each kind is a class of its own, in a private module
            raise ValueError(f"{path}: not a sound ONNX file ({_first_line(error)}); export the model again") from error
        self.spec = _described(path, self._session)
        device = self._session.get_providers()[0].removesuffix("ExecutionProvider")
        self.name = f"ONNX Runtime {onnxruntime.__version__}, {device}"

    def run(self, images: NDArray[np.uint8]) -> TileOutputs:
        """(N, T, T, 3) uint8 RGB, N up to `spec.max_batch` -> boxes of each tile.

        Raises:
            ValueError: for other shapes or types.
        """
        tile, largest = self.spec.tile, self.spec.max_batch
        if images.dtype != np.uint8 or images.shape[1:] != (tile, tile, 3) or len(images) > largest:
            raise ValueError(
                f"expected uint8 tiles (N, {tile}, {tile}, 3) with N <= {largest}, got {images.dtype} {images.shape}"
            )
        return TileOutputs(*self._session.run(TileOutputs._fields, {"images": images}))


def _described(path: Path, session: Any) -> ModelSpec:
    """The model's own description, once its inputs and outputs are those of an exported model."""
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if text is None:
        raise ValueError(
            f"{path} was not exported by tinydet (no {METADATA_KEY!r} in its metadata); "
            "export a trained model: python export/to_onnx.py model.pth"
        )
    spec = ModelSpec.from_json(text, source=path)
    found = {node.name: node.type for node in (*session.get_inputs(), *session.get_outputs())}
    if found != TYPES:
        raise ValueError(f"{path}: expected inputs and outputs {TYPES}, got {found}; export the model again")
    shape = session.get_inputs()[0].shape
    if shape[1:] != [spec.tile, spec.tile, 3]:
        raise ValueError(f"{path}: its input is {shape}, its description says tiles of {spec.tile}; export it again")
    return spec


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
