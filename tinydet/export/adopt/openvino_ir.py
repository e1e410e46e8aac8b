"""Graft an OpenVINO IR. It cannot become ONNX, so the grafts are converted to OpenVINO, and the result is an IR."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinydet._internal.extras import needs_extra
from tinydet.export.adopt.graft import Plan, decode, feed, input_info, output_info
from tinydet.export.adopt.operators import Operators
from tinydet.runtime.backends.contract import INPUT, output_shapes

if TYPE_CHECKING:
    from onnx import ModelProto

OPSET = 17  # of the grafts
IR_VERSION = 8
FED = "fed."  # prefix of the names of values that enter the original


def write_ir(model: Any, plan: Plan, path: Path, metadata: Mapping[str, str]) -> None:
    """Write `path` (.xml) and the `.bin` next to it.

    Args:
        model: the original, as OpenVINO read it; it is not changed.
        metadata: texts that the runtime reads.
    """
    with needs_extra("openvino"):
        import openvino
    core = openvino.Core()
    before = core.read_model(_before(plan).SerializeToString())
    after = core.read_model(_after(plan).SerializeToString())
    inner = model.clone()
    images = before.inputs[0].get_node()
    names = [port.name for port in plan.signature.inputs]
    for parameter, name in zip(inner.get_parameters(), names, strict=True):
        parameter.output(0).replace(before.output(f"{FED}{name}").get_node().input_value(0))
    sources = [result.input_value(0) for result in inner.get_results()]
    for port, source in zip(plan.signature.ports, sources, strict=True):
        parameter = after.input(port).get_node()
        parameter.output(0).replace(source)
    for parameter in after.get_parameters():
        if INPUT in parameter.output(0).get_names():
            parameter.output(0).replace(images.output(0))
    adopted = openvino.Model(after.get_results(), [images], "tinydet")
    images.output(0).get_tensor().set_names({INPUT})
    for name, output in zip(output_shapes(plan.spec), adopted.outputs, strict=True):
        output.get_tensor().set_names({name})
    for key, value in metadata.items():
        adopted.set_rt_info(value, ["framework", key])
    openvino.serialize(adopted, str(path), str(path.with_suffix(".bin")))


def _before(plan: Plan) -> ModelProto:
    """Return the graph from `images` to the inputs of the original."""
    with needs_extra("export"):
        from onnx import helper
    op = Operators(OPSET, "tinydet.input.")
    ports = plan.signature.inputs
    feed(op, plan, {port.name: f"{FED}{port.name}" for port in ports})
    outputs = [
        helper.make_tensor_value_info(
            f"{FED}{port.name}", helper.np_dtype_to_tensor_dtype(port.dtype), _sizes(port.shape)
        )
        for port in ports
    ]
    return _model(op, [input_info(plan)], outputs)


def _after(plan: Plan) -> ModelProto:
    """Return the graph from the outputs of the original, and `images`, to those of tinydet."""
    with needs_extra("export"):
        from onnx import helper
    op = Operators(OPSET, "tinydet.output.")
    ports = plan.signature.ports
    decode(op, plan, {name: name for name in ports})
    inputs = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(port.dtype), _sizes(port.shape))
        for name, port in ports.items()
    ]
    return _model(op, [*inputs, input_info(plan)], output_info(plan))


def _sizes(shape: tuple[int | None, ...]) -> list[int | None]:
    return list(shape)


def _model(op: Operators, inputs: list[Any], outputs: list[Any]) -> ModelProto:
    with needs_extra("export"):
        from onnx import helper
    graph = helper.make_graph(op.nodes, "graft", inputs, outputs, op.constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
