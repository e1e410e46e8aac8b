"""Run exported models: open a model file with the fastest backend that works on this machine.

`contract` defines what all backends have in common. Each backend is one module, imported when a model needs it.
"""

from __future__ import annotations

import contextlib
from argparse import ArgumentTypeError
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from tinydet._internal.arguments import quoted
from tinydet._internal.input_files import hash_file
from tinydet._internal.shell import tinydet_command
from tinydet._internal.suggestions import did_you_mean
from tinydet.runtime.backends.contract import (
    OUTPUT_TYPES,
    Backend,
    TileChoice,
    TileOutputs,
    check_outputs,
    check_tiles,
    output_shapes,
)
from tinydet.runtime.backends.server_address import is_address, parse_address
from tinydet.runtime.bundled import model_path
from tinydet.runtime.model_files import local_model

__all__ = [
    "BACKENDS",
    "MODEL_FILES",
    "OUTPUT_TYPES",
    "Backend",
    "Choice",
    "TileChoice",
    "TileOutputs",
    "backend_name",
    "check_outputs",
    "check_tiles",
    "choose_model",
    "open_model",
    "output_shapes",
]

# What runs the model, and on which device. "tensorrt" runs an engine, all others an ONNX file.
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
EXPORTS = {"onnx": "onnx", "tensorrt": "engine"}  # kind of a model -> sub-command of `export` that makes it


@dataclass(frozen=True)
class Choice:
    """The model that `choose_model` opened.

    Attributes:
        path: the model that was named or found; None for a server's model.
        runs: the file that runs: `path`, or the INT8 file next to it.
        passed_over: for each better model that could not be opened, one sentence that says why.
        note: why an INT8 file next to the model runs instead, or why it does not; empty if there is none.
    """

    backend: Backend
    path: Path | None
    runs: Path | None
    passed_over: tuple[str, ...] = ()
    note: str = ""

    @property
    def sha256(self) -> str:
        """SHA-256 of the file that runs, in hexadecimal digits; for a server's model see `RemoteBackend.model_hash`."""
        served: str | None = getattr(self.backend, "model_hash", None)
        if served is not None:
            return served
        assert self.runs is not None
        return hash_file(self.runs)


def open_model(
    path: Path | None = None, backend: str = "auto", *, tile: TileChoice = None, threads: int | None = None
) -> Backend:
    """Open an exported model; without a path, the first in the current folder that runs.

    Args:
        path: an ONNX file, a TensorRT engine with its `.json` in the same folder, the `.xml` of an adopted OpenVINO IR,
            the address of one of these (`s3://`, `gs://`, `az://`, `https://`), or the name of a bundled model. With a
            server as the backend, None for the server's model; a file is compared with it.
        backend: one of BACKENDS, or the address of a model on a server (`http://HOST:8000/v2/models/NAME`). "auto" is
            the fastest that works here: TensorRT for an engine; for an ONNX file, ONNX Runtime on an NVIDIA GPU, else
            OpenVINO if installed, else ONNX Runtime on the CPU. "onnx" is ONNX Runtime, on the GPU if possible.
        tile: side of the tiles in pixels; None for the model's default (`ModelSpec.tile`); or a function that chooses
            it, such as `AutoTile`. An ONNX file takes any multiple of its `ModelSpec.tile_multiple`, an engine the
            tiles that it was built for.
        threads: CPU threads; None for all that this process may use. With a server, the number of requests that wait
            for it at a time; None for 4.

    Raises:
        ValueError: the file is not an exported model, not for this backend, or does not take this tile.
        OSError: the file is missing, or needs hardware that this machine lacks; a server cannot be reached.
        ModuleNotFoundError: the backend needs a package that is not installed.
    """
    if path is None or is_address(backend):
        return choose_model(backend, path=path, tile=tile, threads=threads).backend
    return _open(local_model(model_path(path)), backend, tile, threads)


def _open(
    path: Path, backend: str, tile: TileChoice, threads: int | None, faster: Callable[[Path], Path] | None = None
) -> Backend:
    """Open a model file.

    Args:
        faster: returns the file that "auto" runs in OpenVINO instead of an ONNX file.
    """
    kind = _file_kind(path)
    if backend not in BACKENDS:
        raise ValueError(f"the backend is one of {', '.join(BACKENDS)}, got {backend!r}")
    wanted = _kind_for(backend)
    if kind == "openvino" and backend != "auto" and not backend.startswith("openvino"):
        raise ValueError(f"{path} is an OpenVINO IR, which only OpenVINO runs; use --backend openvino")
    if kind != "openvino" and wanted not in ("auto", kind):
        raise ValueError(
            f"{path} is for the backend {kind}, not {backend}; make the other file: {_export_command(wanted)}"
        )
    if kind == "openvino":
        return _open_openvino(path, backend, tile, threads)
    if kind == "onnx":
        return _open_onnx(path, backend, tile, threads, faster)
    from tinydet.runtime.backends.tensorrt import open_engine

    try:
        return open_engine(path, tile=tile)
    except RuntimeError as error:
        raise OSError(f"{path} cannot run here: {error}") from error


def backend_name(text: str) -> str:
    """Parse the value of `--backend`: one of BACKENDS, or the address of a model on a server."""
    if is_address(text):
        try:
            parse_address(text)
        except ValueError as error:
            raise ArgumentTypeError(str(error)) from error
    elif text not in BACKENDS:
        raise ArgumentTypeError(
            f"expected one of {', '.join(BACKENDS)}, or http://HOST:8000/v2/models/NAME; got {quoted(text)}"
            f"{did_you_mean(text, BACKENDS)}"
        )
    return text


def choose_model(
    backend: str = "auto",
    *,
    path: Path | None = None,
    tile: TileChoice = None,
    threads: int | None = None,
    folder: Path = Path(),
) -> Choice:
    """Open a model to run it: `path`, or the first of `model.engine` and `model.onnx` in a folder that can run here.

    Where "auto" chooses OpenVINO, the INT8 file next to the model runs, if it is verified and faster; see `int8_file`.

    Raises:
        FileNotFoundError: the folder has no model for this backend.
        ValueError: none of its models can run; says why for each. With a path, all errors are those of `open_model`.
    """
    if is_address(backend):
        from tinydet.runtime.backends.remote import RemoteBackend

        file = None if path is None else local_model(model_path(path))
        return Choice(RemoteBackend(backend, file, tile=tile, in_flight=threads), file, file)
    if backend not in BACKENDS:
        raise ValueError(f"the backend is one of {', '.join(BACKENDS)}, got {backend!r}")
    if path is not None:
        return _choice(local_model(model_path(path)), backend, tile, threads)
    passed_over: list[str] = []
    for path in (folder / name for name in MODEL_FILES):
        if not path.is_file() or _kind_for(backend) not in ("auto", _file_kind(path)):
            continue
        try:
            return replace(_choice(path, backend, tile, threads), passed_over=tuple(passed_over))
        except (ValueError, OSError, ImportError) as error:
            passed_over.append(_sentence(path, error))
    if passed_over:
        raise ValueError(f"no model here can run. {' '.join(passed_over)}")
    wanted = [name for name in MODEL_FILES if _kind_for(backend) in ("auto", _file_kind(folder / name))]
    raise FileNotFoundError(
        f"no {' or '.join(wanted)} in {folder.resolve()}. Name a file with --model, or make one from a trained model: "
        f"{_export_command('onnx')} (model.onnx) or {_export_command('tensorrt')} (model.engine too)"
    )


def _choice(path: Path, backend: str, tile: TileChoice, threads: int | None) -> Choice:
    """Open a model file, or the INT8 file next to it."""
    runs, note = path, ""

    def faster(path: Path) -> Path:
        nonlocal runs, note
        from tinydet.runtime.backends.int8_file import int8_file

        found, note = int8_file(path)
        runs = found or path
        return runs

    opened = _open(path, backend, tile, threads, faster)
    return Choice(opened, path, runs, note=note)


def _open_onnx(
    path: Path, backend: str, tile: TileChoice, threads: int | None, faster: Callable[[Path], Path] | None = None
) -> Backend:
    from tinydet.runtime.backends.onnx_runtime import OnnxRuntimeBackend, has_gpu_provider

    if backend == "auto":
        with contextlib.suppress(ImportError):  # OpenVINO may be installed
            if has_gpu_provider():
                opened = OnnxRuntimeBackend(path, tile=tile, threads=threads)
                if opened.on_gpu:  # False if CUDA or cuDNN could not be loaded
                    return opened
    if backend == "auto" or backend.startswith("openvino"):
        try:
            wanted = path if faster is None or backend != "auto" or not _has_openvino() else faster(path)
            return _open_openvino(wanted, backend, tile, threads)
        except (ImportError, OSError):
            if backend != "auto":
                raise
    provider = backend.partition("-")[2] if backend.startswith("onnx-") else "auto"
    try:
        return OnnxRuntimeBackend(path, tile=tile, provider=provider, threads=threads)
    except ModuleNotFoundError as error:
        if backend != "auto" or error.name != "onnxruntime":
            raise
        raise ModuleNotFoundError(
            f"{path} needs OpenVINO or ONNX Runtime, and neither is installed. Run: pip install 'tinydet[openvino]' "
            "(for CPUs), or pip install 'tinydet[onnxruntime]' (also for NVIDIA GPUs)",
            name=error.name,
        ) from error


def _has_openvino() -> bool:
    return find_spec("openvino") is not None


def _open_openvino(path: Path, backend: str, tile: TileChoice, threads: int | None) -> Backend:
    from tinydet.runtime.backends.openvino import OpenVINOBackend

    return OpenVINOBackend(
        path,
        tile=tile,
        threads=threads,
        mode="latency" if backend == "openvino-latency" else "throughput",
        precision="bf16" if backend == "openvino-bf16" else "f32",
    )


def _kind_for(backend: str) -> str:
    """Return the kind of file that a backend runs: "tensorrt", "onnx", or "auto" for either."""
    return backend if backend in ("auto", "tensorrt") else "onnx"


def _file_kind(path: Path) -> str:
    """Return "tensorrt", "openvino" (an IR) or "onnx", from the first bytes of a file or else its suffix."""
    head = b""
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(4)
    if head in (b"ftrt", b"vtrt") or path.suffix in (".engine", ".plan"):
        return "tensorrt"
    if path.suffix == ".xml":
        return "openvino"
    if path.suffix in (".pth", ".pt"):
        export = tinydet_command("export", "onnx", path)
        raise ValueError(
            f"{path} is a training checkpoint; export it first: {export}; one of another framework: export it to ONNX "
            f"there, then {tinydet_command('export', 'adopt', path.with_suffix('.onnx'))}"
        )
    return "onnx"


def _sentence(path: Path, error: Exception) -> str:
    """Return the error as one sentence that names the file."""
    text = " ".join(str(error).split()).rstrip(".")
    return f"{text}." if str(path) in text else f"{path}: {text}."


def _export_command(kind: str) -> str:
    return tinydet_command("export", EXPORTS[kind], "model.pth")
