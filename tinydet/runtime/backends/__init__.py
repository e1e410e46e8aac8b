"""What runs a model on tiles. One Protocol, one file a backend; each is imported only when a model asks for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tinydet.runtime.bundled import model_path
from tinydet.spec import ModelSpec

# By name: what runs a file, and on what. All but tensorrt run an ONNX file.
BACKENDS = (
    "auto",
    "tensorrt",
    "openvino",
    "openvino-latency",
    "openvino-bf16",
    "onnx",
    "onnx-cpu",
    "onnx-cuda",
    "onnx-tensorrt",
    "onnx-rtx",
)
MODEL_FILES = ("model.engine", "model.onnx")  # best first
MADE_BY = {"onnx": "python export/to_onnx.py model.pth", "tensorrt": "python export/to_trt.py model.pth"}


class TileOutputs(NamedTuple):
    """Boxes of N tiles in K slots each, as an exported model gives them.

    Attributes:
        boxes: (N, K, 4) float32, xyxy in tile pixels.
        scores: (N, K) float32, descending.
        labels: (N, K) int32, index into the classes; -1 for an empty slot.
        candidates: (N,) int32, how many boxes passed the score floor before the cut to K.
        unconverged: (N,) int32, of a model that suppresses among proposals (`ModelSpec.nms_rounds`): how many its last
            round still changed. Others leave it out: (0,).
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int32]
    candidates: NDArray[np.int32]
    unconverged: NDArray[np.int32] = np.zeros(0, np.int32)


OUTPUT_TYPES: dict[str, type[Any]] = {
    "boxes": np.float32,
    "scores": np.float32,
    "labels": np.int32,
    "candidates": np.int32,
    "unconverged": np.int32,
}


def output_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """The outputs of a model in their order, without the batch axis; their types are `OUTPUT_TYPES`."""
    slots = spec.max_detections
    shapes: dict[str, tuple[int, ...]] = {
        "boxes": (slots, 4),
        "scores": (slots,),
        "labels": (slots,),
        "candidates": (),
    }
    return {**shapes, "unconverged": ()} if spec.nms_rounds else shapes


class Backend(Protocol):
    """A model that is ready to run."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def name(self) -> str:
        """For people: what runs it, on what."""
        ...

    def run(self, images: NDArray[np.uint8]) -> TileOutputs:
        """(N, T, T, 3) uint8 RGB, N up to `spec.max_batch` -> boxes of each tile."""
        ...


@dataclass(frozen=True)
class Choice:
    """The model that `choose_model` opened, and why not the better ones before it."""

    backend: Backend
    path: Path
    passed_over: tuple[str, ...]


def open_model(path: Path | None = None, backend: str = "auto", *, threads: int | None = None) -> Backend:
    """Open an exported model, or without a path the best one in the current folder.

    Args:
        path: `.onnx`, or a TensorRT engine with its `.json` beside it; or the name of a bundled model.
        backend: one of BACKENDS. "auto" is the fastest that works here: TensorRT for an engine; for an ONNX file ONNX
            Runtime on an NVIDIA GPU, else OpenVINO where it is installed, else ONNX Runtime on the CPU. "onnx" is ONNX
            Runtime, on the GPU if it can.
        threads: CPU threads; None for all that this process may use.

    Raises:
        ValueError: the file is no exported model, or not for this backend.
        OSError: it is missing, or needs hardware that is not there.
        ModuleNotFoundError: it needs a package that is not installed.
    """
    if path is None:
        return choose_model(backend, threads=threads).backend
    path = model_path(path)
    kind = _kind(path)
    if backend not in BACKENDS:
        raise ValueError(f"the backend is one of {', '.join(BACKENDS)}, got {backend!r}")
    wanted = _file_for(backend)
    if wanted not in ("auto", kind):
        raise ValueError(f"{path} is for the backend {kind}, not {backend}; make the other file: {MADE_BY[wanted]}")
    if kind == "onnx":
        return _open_onnx(path, backend, threads)
    from tinydet.runtime.backends.tensorrt import open_engine

    try:
        return open_engine(path)
    except RuntimeError as error:
        raise OSError(f"{path} cannot run here: {error}") from error


def choose_model(backend: str = "auto", *, threads: int | None = None, folder: Path = Path()) -> Choice:
    """The first of `model.engine` and `model.onnx` in a folder that can run on this machine.

    Raises:
        ValueError, OSError: with what each of them lacks, where none can.
    """
    if backend not in BACKENDS:
        raise ValueError(f"the backend is one of {', '.join(BACKENDS)}, got {backend!r}")
    passed_over: list[str] = []
    for path in (folder / name for name in MODEL_FILES):
        if not path.is_file() or _file_for(backend) not in ("auto", _kind(path)):
            continue
        try:
            return Choice(open_model(path, backend, threads=threads), path, tuple(passed_over))
        except (ValueError, OSError, ImportError) as error:
            passed_over.append(_reason(path, error))
    if passed_over:
        raise ValueError(f"no model here can run. {' '.join(passed_over)}")
    wanted = [name for name in MODEL_FILES if _file_for(backend) in ("auto", _kind(folder / name))]
    raise FileNotFoundError(
        f"no {' or '.join(wanted)} in {folder.resolve()}. Name a file with --model, or make one from a trained model: "
        f"{MADE_BY['onnx']} (model.onnx) or {MADE_BY['tensorrt']} (model.engine too)"
    )


def check_tiles(images: NDArray[np.uint8], spec: ModelSpec) -> None:
    """What a backend asks of its input.

    Raises:
        ValueError: for other shapes or types than (N, T, T, 3) uint8 with N up to `spec.max_batch`.
    """
    tile, largest = spec.tile, spec.max_batch
    if images.dtype != np.uint8 or images.shape[1:] != (tile, tile, 3) or len(images) > largest:
        raise ValueError(
            f"expected uint8 tiles (N, {tile}, {tile}, 3) with N <= {largest}, got {images.dtype} {images.shape}"
        )


def _open_onnx(path: Path, backend: str, threads: int | None) -> Backend:
    from tinydet.runtime.backends.onnx_runtime import OnnxRuntimeBackend, has_gpu_provider

    if backend == "auto" and has_gpu_provider():
        opened = OnnxRuntimeBackend(path, threads=threads)
        if opened.on_gpu:  # else CUDA or cuDNN did not load
            return opened
    if backend == "auto" or backend.startswith("openvino"):
        from tinydet.runtime.backends.openvino import OpenVINOBackend

        try:
            return OpenVINOBackend(
                path,
                threads=threads,
                mode="latency" if backend == "openvino-latency" else "throughput",
                precision="bf16" if backend == "openvino-bf16" else "f32",
            )
        except (ImportError, OSError):
            if backend != "auto":
                raise
    provider = backend.partition("-")[2] if backend.startswith("onnx-") else "auto"
    return OnnxRuntimeBackend(path, provider=provider, threads=threads)


def _file_for(backend: str) -> str:
    """The kind of file that a backend runs."""
    return backend if backend in ("auto", "tensorrt") else "onnx"


def _kind(path: Path) -> str:
    """The backend that a file is for, by its first bytes, else by its name."""
    head = b""
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(4)
    if head in (b"ftrt", b"vtrt") or path.suffix in (".engine", ".plan"):
        return "tensorrt"
    if path.suffix in (".pth", ".pt"):
        raise ValueError(f"{path} is a training checkpoint; export it first: python export/to_onnx.py {path}")
    return "onnx"


def _reason(path: Path, error: Exception) -> str:
    """One sentence that names the file."""
    text = " ".join(str(error).split()).rstrip(".")
    return f"{text}." if str(path) in text else f"{path}: {text}."
