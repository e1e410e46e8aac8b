"""A detector that another framework exported: its inputs, outputs and metadata, and a way to run it."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.errors import reason
from tinydet._internal.extras import needs_extra
from tinydet._internal.input_files import check_file, read_file
from tinydet._internal.shell import tinydet_command
from tinydet.runtime.backends.external_data import check_external_data
from tinydet.runtime.backends.openvino import restored_signal_stack
from tinydet.spec import METADATA_KEY

if TYPE_CHECKING:
    from onnx import ModelProto

Arrays = dict[str, NDArray[Any]]

OLDEST_OPSET = 11  # the first whose Pad, Clip and TopK take their parameters as inputs
LARGEST_FILE = (1 << 31) - (1 << 24)  # bytes; a protocol buffer holds 2 GiB, and the grafts need some
CHECKPOINTS = (".pt", ".pth", ".ckpt", ".safetensors", ".keras", ".h5", ".pdparams")
UNBUILDABLE = {"NonMaxSuppression", "NonZero", "RoiAlign", "Loop", "Scan", "Unique", "Compress"}
FATAL_ONLY = 4  # ONNX Runtime's log severity: errors become exceptions


class Port(NamedTuple):
    """An input or output of a graph. `None` in the shape stands for a size that is not fixed."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} ({', '.join('?' if n is None else str(n) for n in self.shape)})"


class Original(ABC):
    """A foreign model file.

    Attributes:
        sha256: of the file.
        metadata: texts by key, as the exporter wrote them.
        producer: name and version of the exporter, for display.
    """

    path: Path
    sha256: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    metadata: Mapping[str, str]
    producer: str

    @abstractmethod
    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        """Run the untouched model once; return its outputs by name.

        Raises:
            ValueError: the model refuses these inputs. Names the file and the reason.
        """


def open_original(path: Path) -> Original:
    """Open an ONNX file, or an OpenVINO IR by its `.xml`.

    Raises:
        ValueError: the file is neither, is damaged, or is a model of tinydet already.
        OSError: the file cannot be read.
        ModuleNotFoundError: `onnx` or OpenVINO is not installed.
    """
    check_file(path)
    if path.suffix in CHECKPOINTS:
        raise ValueError(
            f"{path}: a checkpoint, whose network only its own framework can build; export it to ONNX there, then "
            "adopt the .onnx file"
        )
    if path.suffix in (".engine", ".plan"):
        raise ValueError(f"{path}: an engine cannot be changed; adopt the ONNX file that it was built from")
    if path.suffix == ".bin":
        raise ValueError(f"{path}: the weights of an OpenVINO IR; name its {path.with_suffix('.xml').name}")
    return IrOriginal(path) if path.suffix == ".xml" else OnnxOriginal(path)


def engine_obstacles(original: Original) -> list[str]:
    """Return the operators of an ONNX file for which TensorRT-RTX has no layer; empty for an IR."""
    if not isinstance(original, OnnxOriginal):
        return []
    return sorted({node.op_type for node in original.model.graph.node} & UNBUILDABLE)


class OnnxOriginal(Original):
    """An ONNX file, run by ONNX Runtime on the CPU. `model` is its content."""

    model: ModelProto

    def __init__(self, path: Path) -> None:
        with needs_extra("export"):
            import onnx
            import onnxruntime
        content = read_file(path)
        check_external_data(path)
        try:
            self.model = onnx.load(str(path))
        except Exception as error:  # protobuf's DecodeError is not a public name
            raise ValueError(f"{path}: not an ONNX file ({reason(error)}); export it again") from error
        if not self.model.graph.output:
            raise ValueError(f"{path}: not an ONNX file (its graph has no outputs); export it again")
        self.path, self.sha256 = path, hashlib.sha256(content).hexdigest()
        self.metadata = {entry.key: entry.value for entry in self.model.metadata_props}
        self.producer = f"{self.model.producer_name} {self.model.producer_version}".strip()
        self.opset = next((each.version for each in self.model.opset_import if each.domain in ("", "ai.onnx")), 0)
        self._check()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = FATAL_ONLY
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exception classes are private
            raise ValueError(f"{path}: ONNX Runtime cannot run it ({_last_words(error)}); export it again") from error
        self.inputs = tuple(_port(each.name, each.type, each.shape) for each in self._session.get_inputs())
        self.outputs = tuple(_port(each.name, each.type, each.shape) for each in self._session.get_outputs())

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        names = [port.name for port in self.outputs]
        try:
            return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))
        except Exception as error:  # its exception classes are private
            raise ValueError(f"{self.path}: the model fails to run ({_last_words(error)})") from error

    def _check(self) -> None:
        """Raise ValueError for what cannot be adopted whatever its format."""
        if METADATA_KEY in self.metadata:
            raise ValueError(f"{self.path}: already a model of tinydet; run {_infer(self.path)}")
        domains = {node.domain for node in self.model.graph.node} - {"", "ai.onnx", "com.microsoft"}
        own = {function.domain for function in self.model.functions}
        if foreign := sorted(domains - own):
            raise ValueError(
                f"{self.path}: it has operators of {', '.join(foreign)}, which need a plugin; export it for ONNX "
                "Runtime, with standard operators only"
            )
        if self.opset < OLDEST_OPSET:
            raise ValueError(
                f"{self.path}: its opset is {self.opset}; export it again with opset {OLDEST_OPSET} or newer"
            )
        if self.model.ByteSize() > LARGEST_FILE:
            raise ValueError(f"{self.path}: its weights exceed 2 GiB, the limit of one ONNX file")


class IrOriginal(Original):
    """An OpenVINO IR: `NAME.xml` with its weights in `NAME.bin`, run by OpenVINO on the CPU. `model` is its graph."""

    model: Any

    @restored_signal_stack()
    def __init__(self, path: Path) -> None:
        with needs_extra("openvino"):
            import openvino
        weights = path.with_suffix(".bin")
        check_file(weights, "the weights of an OpenVINO IR must be next to its .xml")
        core = openvino.Core()
        try:
            self.model = core.read_model(str(path), str(weights))
        except Exception as error:  # its exception classes are private
            raise ValueError(f"{path}: not an OpenVINO IR ({_last_words(error)}); export it again") from error
        self.path, self.sha256 = path, hashlib.sha256(read_file(path) + read_file(weights)).hexdigest()
        self.producer = f"OpenVINO {openvino.__version__.partition('-')[0]}"
        self.metadata = _rt_info(self.model)
        if METADATA_KEY in self.metadata:
            raise ValueError(f"{path}: already a model of tinydet; run {_infer(path)}")
        self.inputs = tuple(_ir_port(each, f"input{i}") for i, each in enumerate(self.model.inputs))
        self.outputs = tuple(_ir_port(each, f"output{i}") for i, each in enumerate(self.model.outputs))
        hints = {"INFERENCE_PRECISION_HINT": "f32"}
        self._compiled = core.compile_model(self.model, "CPU", hints)

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        order = [np.ascontiguousarray(feeds[port.name]) for port in self.inputs]
        try:
            found = self._compiled(order)
        except RuntimeError as error:
            raise ValueError(f"{self.path}: the model fails to run ({_last_words(error)})") from error
        return {port.name: np.array(found[i]) for i, port in enumerate(self.outputs)}


def read_metadata(path: Path) -> Mapping[str, str]:
    """Return the metadata of an ONNX file or an OpenVINO IR.

    Raises:
        ValueError: it is neither.
        OSError: it cannot be read.
    """
    if path.suffix == ".xml":
        with needs_extra("openvino"):
            import openvino
        try:
            return _rt_info(openvino.Core().read_model(str(path)))
        except RuntimeError as error:
            raise ValueError(f"{path}: not an OpenVINO IR ({_last_words(error)}); export it again") from error
    with needs_extra("export"):
        import onnx
    try:
        model = onnx.load_model_from_string(read_file(path))
    except Exception as error:  # protobuf's DecodeError is not a public name
        raise ValueError(f"{path}: not an ONNX file ({reason(error)}); export it again") from error
    return {entry.key: entry.value for entry in model.metadata_props}


def _rt_info(model: Any) -> dict[str, str]:
    """Return what model_api and the exporters of ONNX files wrote into an IR."""
    found: dict[str, str] = {}
    for group, prefix in (("model_info", "model_info "), ("framework", "")):
        if model.has_rt_info([group]):
            for key in model.get_rt_info([group]).astype(dict):
                found[f"{prefix}{key}"] = model.get_rt_info([group, key]).astype(str)
    return found


_ONNX_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}


def _port(name: str, kind: str, shape: Sequence[Any]) -> Port:
    sizes = tuple(each if isinstance(each, int) and each >= 0 else None for each in shape or ())
    return Port(name, np.dtype(_ONNX_TYPES.get(kind, np.object_)), sizes)


def _ir_port(node: Any, fallback: str) -> Port:
    names = sorted(node.get_names())
    sizes = tuple(None if size.is_dynamic else size.get_length() for size in node.get_partial_shape())
    return Port(names[0] if names else fallback, node.get_element_type().to_dtype(), sizes)


def _infer(path: Path) -> str:
    """Return the command that runs a model."""
    return tinydet_command("infer", "--model", path, "--image", "scene.jpg")


def _last_words(error: Exception) -> str:
    """Return the last line of an error: runtimes put the place in their source before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1] if lines else type(error).__name__
    return text if len(text) <= 300 else f"{text[:297]}..."
