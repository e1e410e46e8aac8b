"""Convert an exported graph to FP16: the layers and what lies between convolutions.

TensorRT 11 has no precision flags, so the types in the graph decide. ONNX Runtime computes FP16 nodes in FP32 on a CPU
and therefore shows the effect of rounded weights only. Layers whose activations FP16 could not represent are found from
the activation ranges instead (`layers_beyond_fp16`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np

from tinydet._internal.extras import needs_extra
from tinydet.export.layers import convertible_nodes, layers_of, source_layers

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

FP16_MAX = 65504.0
HEADROOM = 8  # activations must stay this factor below FP16_MAX, because other images may have larger ones


def to_fp16(model: ModelProto, kept: Collection[str] = ()) -> ModelProto:
    """Return a copy in FP16. The layers `kept`, layers with weights beyond FP16's range, and everything before the
    first and after the last convolution stay FP32.

    Args:
        kept: names of weights.
    """
    with needs_extra("export"):
        import onnx
        from onnx import TensorProto, helper, numpy_helper

    converted = onnx.shape_inference.infer_shapes(model, data_prop=True)
    graph = converted.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    values = (*graph.value_info, *graph.input, *graph.output)
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    types |= {name: tensor.data_type for name, tensor in constants.items()}
    too_large = {
        name for name in layers_of(graph) if np.abs(numpy_helper.to_array(constants[name])).max(initial=0.0) > FP16_MAX
    }
    chosen = convertible_nodes(graph, {*kept, *too_large})

    users = Counter(name for node in graph.node for name in node.input)
    chosen_users = Counter(name for node in graph.node if node.name in chosen for name in _typed_inputs(node))
    nodes: list[NodeProto] = []
    copies: dict[tuple[str, int], str] = {}  # (value, type) -> the value in that type
    in_fp16: set[str] = set()  # outputs that are FP16 now

    def cast(name: str, to: int) -> str:
        if (name, to) not in copies:
            copy = f"{name}_{'fp16' if to == TensorProto.FLOAT16 else 'fp32'}"
            nodes.append(helper.make_node("Cast", [name], [copy], name=f"cast_{copy}", to=to))
            copies[name, to] = copy
        return copies[name, to]

    for node in graph.node:
        if node.name in chosen:
            for i, name in enumerate(node.input):
                if name not in _typed_inputs(node)[i : i + 1] or types.get(name) != TensorProto.FLOAT:
                    continue
                if name in in_fp16:
                    continue
                if name not in constants:
                    node.input[i] = cast(name, TensorProto.FLOAT16)
                elif chosen_users[name] == users[name]:  # no other node reads the constant
                    halves = numpy_helper.to_array(constants[name]).astype(np.float16)
                    constants[name].CopyFrom(numpy_helper.from_array(halves, name))
                    types[name] = TensorProto.FLOAT16
                else:
                    node.input[i] = _fp16_copy(graph, constants[name], copies)
            nodes.append(node)
            in_fp16.update(name for name in node.output if types.get(name) == TensorProto.FLOAT)
        else:
            for i, name in enumerate(node.input):
                if name in in_fp16:
                    node.input[i] = cast(name, TensorProto.FLOAT)
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]  # its types are outdated
    return converted


def layers_beyond_fp16(graph: GraphProto, ranges: Any) -> set[str]:
    """Return the layers with an input or output within a factor of `HEADROOM` of FP16's largest number.

    Args:
        ranges: activation ranges, see `tinydet.export.int8.calibrate`.

    Returns:
        Names of weights.
    """
    large = {name for name, found in ranges.items() if np.abs(found.range_value).max() > FP16_MAX / HEADROOM}
    source, chosen = source_layers(graph), convertible_nodes(graph, ())
    affected = [node for node in graph.node if node.name in chosen and large & {*node.input, *node.output}]
    return {source[name] for node in affected for name in node.output}


def _typed_inputs(node: NodeProto) -> list[str]:
    """Return the inputs that must have the type of the output; the scales of Resize are always FP32."""
    return list(node.input[:1] if node.op_type == "Resize" else node.input)


def _fp16_copy(graph: GraphProto, tensor: Any, copies: dict[tuple[str, int], str]) -> str:
    """Return the name of an FP16 copy of a constant, which is added once."""
    with needs_extra("export"):
        from onnx import TensorProto, numpy_helper
    key = tensor.name, TensorProto.FLOAT16
    if key not in copies:
        copies[key] = f"{tensor.name}_fp16"
        halves = numpy_helper.to_array(tensor).astype(np.float16)
        graph.initializer.append(numpy_helper.from_array(halves, copies[key]))
    return copies[key]
