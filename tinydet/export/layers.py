"""The layers of an exported graph, and the nodes between them that can be computed in lower precision."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from tinydet.export.onnx_model import LAYER_TYPES

if TYPE_CHECKING:
    from onnx import GraphProto

# They sum over whole maps, beyond the range and the precision of FP16. GroupNorm is an InstanceNormalization here.
NORMALIZATIONS = ("InstanceNormalization", "GroupNormalization", "LayerNormalization")


def layers_of(graph: GraphProto) -> dict[str, list[str]]:
    """Return the layers by the name of their weights, each with its nodes: a head is used once per pyramid level."""
    constants = {tensor.name for tensor in graph.initializer}
    layers: dict[str, list[str]] = {}
    for node in graph.node:
        if node.op_type in LAYER_TYPES and node.input[1] in constants:
            layers.setdefault(node.input[1], []).append(node.name)
    return layers


def convertible_nodes(graph: GraphProto, kept: Collection[str]) -> set[str]:
    """Return the names of the nodes that may lose precision: the layers except `kept`, and what lies between
    convolutions. Nodes that decode boxes are not among them: those after the last convolution, and those between the
    choice of the best proposals and the next layer, which pools their features. Neither are sums over many values:
    the statistics of a normalization, and attention with its logits.
    """
    layers = layers_of(graph)
    chosen = {name for layer, names in layers.items() if layer not in kept for name in names}
    source = source_layers(graph)
    decoded: set[str] = set()  # values that depend on a choice of the best, without a layer in between
    layer_nodes = {name for names in layers.values() for name in names}
    for node in graph.node:
        if node.op_type == "TopK" or (node.name not in layer_nodes and decoded & set(node.input)):
            decoded.update(node.output)
    exact = attention_nodes(graph)
    needed: set[str] = set()  # values that a later convolution depends on
    for node in reversed(graph.node):
        if node.op_type == "Conv" or (needed - decoded) & set(node.output):
            needed.update(node.input)
    for node in graph.node:
        if node.op_type in (*LAYER_TYPES, *NORMALIZATIONS, "Shape", "Cast", "Constant") or node.name in exact:
            continue
        if not (needed - decoded) & set(node.output):
            continue
        layer = next((source[name] for name in node.input if name in source), None)
        if layer is not None and layer not in kept:
            chosen.add(node.name)
    return chosen


def attention_nodes(graph: GraphProto) -> set[str]:
    """Return the names of each Softmax with a matrix product before and after it, and of these products."""
    producers = {name: node for node in graph.node for name in node.output}
    found: set[str] = set()
    for node in graph.node:
        if node.op_type != "Softmax":
            continue
        before = producers.get(node.input[0])
        after = [user for user in graph.node if user.op_type == "MatMul" and node.output[0] in user.input]
        if before is not None and before.op_type == "MatMul" and after:
            found |= {node.name, before.name, *(user.name for user in after)}
    return found


def layers_around_attention(graph: GraphProto) -> set[str]:
    """Return the layers that the inputs of attention come from, and those that read its outputs."""
    attention = attention_nodes(graph)
    source, layers = source_layers(graph), layers_of(graph)
    layer_of = {name: layer for layer, names in layers.items() for name in names}
    around: set[str] = set()
    attended: set[str] = set()
    for node in graph.node:
        if node.name in attention:
            around |= {source[name] for name in node.input if name in source}
            attended.update(node.output)
        elif attended & set(node.input):
            if node.name in layer_of:
                around.add(layer_of[node.name])
            else:
                attended.update(node.output)
    return around


def source_layers(graph: GraphProto) -> dict[str, str]:
    """Return the layer that each value comes from, by the name of its weights; values before any layer are left out."""
    constants = {tensor.name for tensor in graph.initializer}
    source: dict[str, str] = {}
    for node in graph.node:
        layer = node.input[1] if node.op_type in LAYER_TYPES and node.input[1] in constants else None
        layer = layer or next((source[name] for name in node.input if name in source), None)
        if layer is not None:
            source.update(dict.fromkeys(node.output, layer))
    return source
