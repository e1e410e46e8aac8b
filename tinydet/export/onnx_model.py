"""Read ONNX files that tinydet exported. Their precision is determined from the graph, not from their name."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tinydet._internal.errors import reason
from tinydet._internal.extras import needs_extra
from tinydet._internal.input_files import read_file
from tinydet._internal.shell import tinydet_command
from tinydet.runtime.backends.external_data import check_external_data
from tinydet.spec import METADATA_KEY, ModelSpec

if TYPE_CHECKING:
    from onnx import GraphProto

LAYER_TYPES = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # operators whose second input may be trained weights


@dataclass(frozen=True)
class OnnxModel:
    """An exported ONNX file, as read from disk.

    Attributes:
        weights: number of constants by type, such as {"FLOAT": 4_000_000, "INT64": 12}.
        precision: fp32, fp16 or int8, determined from the graph.
    """

    path: Path
    spec: ModelSpec
    sha256: str
    weights: dict[str, int]
    precision: str


def read_onnx(path: Path) -> OnnxModel:
    """Read an ONNX file that tinydet exported and check its precision.

    Raises:
        ValueError: the file is not ONNX, was not exported by tinydet, or its weights do not have the precision that its
            description states.
    """
    with needs_extra("export"):
        import onnx
    again = f"export it with: {tinydet_command('export', 'onnx', 'model.pth')}"
    content = read_file(path, again)
    check_external_data(path)
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's DecodeError is not a public name
        raise ValueError(f"{path} is not an ONNX file ({reason(error)}); {again}") from error
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    if METADATA_KEY not in metadata:
        adopt = tinydet_command("export", "adopt", path)
        raise ValueError(
            f"{path} does not describe its classes and tile; {again}; a detector of another framework: {adopt}"
        )
    spec = ModelSpec.from_json(metadata[METADATA_KEY], source=path)
    weights, precision = graph_precision(model.graph)
    if precision != spec.precision:
        raise ValueError(f"{path} is described as {spec.precision}, but its weights are {weights}; export it again")
    return OnnxModel(path, spec, hashlib.sha256(content).hexdigest(), weights, precision)


def fixed_size(path: Path, tile: int) -> bytes:
    """Return the content of an ONNX file whose height and width are free, for tiles of one size."""
    with needs_extra("export"):
        import onnx
    model = onnx.load(str(path), load_external_data=False)
    for axis in model.graph.input[0].type.tensor_type.shape.dim[1:3]:
        axis.dim_value = tile
    content: bytes = model.SerializeToString()
    return content


def graph_precision(graph: GraphProto) -> tuple[dict[str, int], str]:
    """Return the number of constants of a graph by type, and its precision.

    The precision is int8 if the graph quantizes, else the type of most layer weights.
    """
    with needs_extra("export"):
        import onnx
    layers = {node.input[1] for node in graph.node if node.op_type in LAYER_TYPES}
    constants: Counter[str] = Counter()
    layer_weights: Counter[str] = Counter()
    for constant in graph.initializer:
        kind = onnx.TensorProto.DataType.Name(constant.data_type)
        constants[kind] += math.prod(constant.dims)
        if constant.name in layers:
            layer_weights[kind] += math.prod(constant.dims)
    if any(node.op_type == "QuantizeLinear" for node in graph.node):
        return dict(constants), "int8"
    return dict(constants), "fp16" if layer_weights["FLOAT16"] > layer_weights["FLOAT"] else "fp32"


def description_path(output: Path, suffix: str) -> Path:
    """Return the path of the `.json` that describes `output`, and check that it may be written.

    Raises:
        ValueError: `output` does not end in `suffix`, by which the runtime recognizes files; or the `.json` exists and
            is not the description of a model, but for instance an annotation file.
    """
    if output.suffix != suffix:
        raise ValueError(f"{output}: the name must end in {suffix}")
    sidecar = output.with_suffix(".json")
    if sidecar.exists():
        try:
            ModelSpec.from_json(read_file(sidecar), source=sidecar)
        except ValueError as error:
            raise ValueError(
                f"{sidecar} would be overwritten, but it does not describe a model; choose another output"
            ) from error
    return sidecar
