"""Graft tinydet's input, a format's decoding and tinydet's outputs around a foreign graph.

The foreign nodes and weights stay as they are, byte for byte; only values that have a name of tinydet's inputs or
outputs are renamed. The grafts are plain operators in the opset of the foreign graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tinydet._internal.extras import needs_extra
from tinydet.export.adopt.formats.format import Decoding, Format, Pixels, Signature
from tinydet.export.adopt.operators import Operators
from tinydet.runtime.backends.contract import INPUT, OUTPUT_TYPES, output_shapes
from tinydet.spec import ModelSpec

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

RENAMED = "original."  # prefix of foreign values whose names tinydet uses
EMPTY_LABEL = -1
BATCH, SIDES = "tinydet.batch", ("tinydet.height", "tinydet.width")  # free axes; no name of the original's


@dataclass(frozen=True)
class Plan:
    """All choices about one adoption.

    Attributes:
        pixels: how the original is fed.
        labels: for each label of the original, the label of the adopted model; -1: not one of its classes.
        limit: the most detections that the original returns for an image; None: no limit that is known.
        spec: of the adopted model.
        shares: whether boxes of a format with pixels are shares of the image instead, from 0 to 1;
            None: they seem not to be.
    """

    format: Format
    signature: Signature
    pixels: Pixels
    labels: tuple[int, ...]
    limit: int | None
    spec: ModelSpec
    shares: bool | None = None

    @property
    def columns(self) -> tuple[int, ...]:
        """Class columns of the original in the order of the adopted classes."""
        known = [(label, column) for column, label in enumerate(self.labels) if label >= 0]
        return tuple(column for _, column in sorted(known))

    @property
    def is_fixed_batch(self) -> bool:
        """Whether the original takes several images at once and always the same number."""
        return (self.signature.batch or 1) > 1


def adopted_graph(model: ModelProto, plan: Plan) -> ModelProto:
    """Return the adopted ONNX model, without metadata."""
    with needs_extra("export"):
        import onnx
    opset = next(each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
    adopted = onnx.ModelProto()
    adopted.CopyFrom(model)
    graph = adopted.graph
    renamed = _rename(graph, (INPUT, *output_shapes(plan.spec)))

    def name_of(name: str) -> str:
        return renamed.get(name, name)

    before, after = Operators(opset, "tinydet.input."), Operators(opset, "tinydet.output.")
    feed(before, plan, {port: name_of(port) for port in (plan.signature.image.name, *plan.signature.extras)})
    decode(after, plan, {port: name_of(port) for port in plan.signature.ports})
    nodes = [*before.nodes, *graph.node, *after.nodes]
    known = {value.name for value in graph.value_info}
    weights = {tensor.name for tensor in graph.initializer} | {each.values.name for each in graph.sparse_initializer}
    inner = [value for value in (*graph.input, *graph.output) if value.name not in known | weights]
    del graph.node[:]
    graph.node.extend(nodes)
    _name_nodes(graph)
    used = {name for node in (*before.nodes, *after.nodes) for name in node.input}
    graph.initializer.extend(each for each in (*before.constants, *after.constants) if each.name in used)
    graph.value_info.extend(inner)
    del graph.input[:], graph.output[:]
    graph.input.append(input_info(plan))
    graph.output.extend(output_info(plan))
    del adopted.metadata_props[:]
    return adopted


def feed(op: Operators, plan: Plan, inputs: Mapping[str, str]) -> None:
    """Convert `images` to the inputs of the original.

    Args:
        inputs: the name of the value of each input.
    """
    signature, pixels, spec = plan.signature, plan.pixels, plan.spec
    value = op.cast(INPUT, np.float32)  # first, because TensorRT's parser refuses other operators on uint8
    if plan.is_fixed_batch:
        batch = signature.batch or 1
        value = op.slice(op.pad(value, (batch, 0, 0, 0)), 0, 0, batch)
    below, right = signature.height - spec.tile, signature.width - spec.tile
    if not signature.multiple and (below or right):
        value = op("Sub", value, op.constant(spec.pad))
        value = op("Add", op.pad(value, (0, below, right, 0)), op.constant(spec.pad))
    if pixels.color == "bgr":
        value = op("Gather", value, op.integers(2, 1, 0), axis=3)
    scale = np.float64(pixels.scale)
    if any(pixels.mean):
        value = op("Sub", value, op.constant(scale * np.array(pixels.mean)))
    if (divisor := scale * np.array(pixels.std)).tolist() != [1.0, 1.0, 1.0]:
        value = op("Div", value, op.constant(divisor))
    if signature.layout == "nchw":
        value = op.transpose(value, (0, 3, 1, 2))
    if not signature.batched:
        value = op.squeeze(value, 0)
    if signature.image.dtype != np.float32:
        value = op.cast(value, signature.image.dtype)
    op.named(inputs[signature.image.name], value)
    types = {name: port.dtype for name, port in _extra_ports(plan).items()}
    for name, meaning in signature.extras.items():
        op.named(inputs[name], op.cast(_extra(op, plan, meaning), types[name]))


def decode(op: Operators, plan: Plan, outputs: Mapping[str, str]) -> None:
    """Convert the outputs of the original to those of tinydet.

    Args:
        outputs: the name of the value of each output.
    """
    signature, spec = plan.signature, plan.spec
    values: dict[str, str] = {}
    for name, port in signature.ports.items():
        value = outputs[name]
        if port.dtype.kind == "f" and port.dtype != np.float32:
            value = op.cast(value, np.float32)
        values[name] = op.unsqueeze(value, 0) if signature.bare else value
    size = _size(op, plan) if signature.multiple else op.constant([signature.width, signature.height] * 2)
    slots = spec.max_detections
    found = plan.format.decode(Decoding(op, values, signature, size, plan.columns, slots))

    labels = op.cast(found.labels, np.float32)  # floats, because runtimes pad and gather them best
    if plan.format.columns(signature) is None and plan.labels != tuple(range(len(plan.labels))):
        table = op.constant([*plan.labels, EMPTY_LABEL])
        index = op("Clip", labels, op.constant(0.0), op.constant(float(len(plan.labels))))
        labels = op("Gather", table, op.cast(index, np.int64), axis=0)
    elif plan.format.columns(signature) is None:
        labels = op("Where", op("Less", labels, op.constant(float(len(spec.classes)))), labels, op.constant(-1.0))
    boxes, scores = found.boxes, found.scores
    if plan.shares:
        boxes = op("Mul", boxes, size)
    above = op("Greater", found.counted or scores, op.constant(spec.score_floor))
    candidates = op.total(op.cast(above, np.int32), 1)
    if plan.limit is not None:  # at least `slots`; one more than it says that there may be more
        full = op("Less", op.constant(plan.limit - 1, np.int32), candidates)
        candidates = op("Where", full, op("Add", candidates, op.constant(1, np.int32)), candidates)
    if plan.format.counted or signature.multiple:  # there may be fewer boxes than slots
        boxes, scores, labels = op.pad(boxes, (0, slots, 0)), op.pad(scores, (0, slots)), op.pad(labels, (0, slots))
    kept, index = op.several("TopK", scores, op.integers(slots), outputs=2, axis=1)
    boxes, labels = op.gather_rows(boxes, index, 4), op("GatherElements", labels, index, axis=1)
    filled = op("And", op("Greater", kept, op.constant(spec.score_floor)), op("Less", op.constant(-0.5), labels))
    zero = op.constant(0.0)
    results = {
        "boxes": op("Where", op.unsqueeze(filled, 2), boxes, zero),
        "scores": op("Where", filled, kept, zero),
        "labels": op.cast(op("Where", filled, labels, op.constant(float(EMPTY_LABEL))), np.int32),
        "candidates": candidates,
    }
    for name, value in results.items():
        if plan.is_fixed_batch:
            count = op("Slice", op("Shape", INPUT), op.integers(0), op.integers(1), op.integers(0))
            value = op("Slice", value, op.integers(0), count, op.integers(0))
        op.named(name, value)


def input_info(plan: Plan) -> ValueInfoProto:
    """Return the declaration of `images`."""
    with needs_extra("export"):
        from onnx import TensorProto, helper
    side: Sequence[int | str] = SIDES if plan.signature.multiple else (plan.spec.tile, plan.spec.tile)
    return helper.make_tensor_value_info(INPUT, TensorProto.UINT8, [_batch(plan), *side, 3])


def output_info(plan: Plan) -> list[ValueInfoProto]:
    """Return the declarations of the outputs."""
    with needs_extra("export"):
        from onnx import helper
    return [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(np.dtype(OUTPUT_TYPES[name])), [_batch(plan), *shape]
        )
        for name, shape in output_shapes(plan.spec).items()
    ]


def _batch(plan: Plan) -> int | str:
    return 1 if plan.signature.batch == 1 else BATCH


def _extra_ports(plan: Plan) -> Mapping[str, Any]:
    return {port.name: port for port in plan.signature.inputs if port.name in plan.signature.extras}


def _extra(op: Operators, plan: Plan, meaning: str) -> str:
    """Return the value of an input besides the image: one row for each image."""
    signature = plan.signature
    shape = op("Shape", INPUT)
    count = op.integers(signature.batch) if signature.batch else op.slice(shape, 0, 0, 1)
    if meaning == "mask":
        sides = op.slice(shape, 0, 1, 3) if signature.multiple else op.integers(signature.height, signature.width)
        return op("Expand", op.constant(1.0), op.concat(count, sides, axis=0))
    if meaning == "ones":
        row = op.constant([1.0, 1.0])
    elif signature.multiple:
        row = op.slice(_size(op, plan), 0, 0, 2)
        row = row if meaning == "size" else op("Gather", row, op.integers(1, 0), axis=0)
    else:
        size = (signature.width, signature.height)
        row = op.constant(size if meaning == "size" else size[::-1])
    return op("Expand", row, op.concat(count, op.integers(2), axis=0))


def _size(op: Operators, plan: Plan) -> str:
    """Return width, height, width, height of the tiles in use, float32."""
    return op.cast(op("Gather", op("Shape", INPUT), op.integers(2, 1, 2, 1), axis=0), np.float32)


def _rename(graph: Any, taken: Sequence[str]) -> dict[str, str]:
    """Rename foreign values that have a name of tinydet's inputs or outputs; return new names by old ones."""
    renamed = {name: f"{RENAMED}{name}" for name in taken}
    for node in graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = renamed.get(name, name)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") or attribute.graphs else ():
                _rename(inner, taken)
    for each in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        each.name = renamed.get(each.name, each.name)
    return renamed


def _name_nodes(graph: Any) -> None:
    """Give nodes without a name, or with another node's, one of their own: conversions find nodes by name."""
    count = Counter(node.name for node in graph.node)
    for i, node in enumerate(graph.node):
        if not node.name or count[node.name] > 1:
            node.name = f"{node.name or node.op_type}.{i}"
