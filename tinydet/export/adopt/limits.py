"""The most detections that a foreign detector returns for an image."""

from __future__ import annotations

from typing import Any

import numpy as np

from tinydet._internal.extras import needs_extra
from tinydet.export.adopt.formats.format import Format, Signature
from tinydet.export.adopt.original import OnnxOriginal, Original

FARTHEST = 40  # nodes between the scores and the operator that cuts them
LEAST = 10  # a smaller constant is no limit of detections
ENDS = ("NonMaxSuppression", "Conv", "Gemm", "MatMul")  # what lies before them is not a cut of the detections


def detection_limit(original: Original, chosen: Format, signature: Signature) -> int | None:
    """Return the limit; None if the format has none, or the graph does not show it.

    An output of fixed size is its limit. For the others it is the end of the last Slice or TopK before the scores.
    """
    if not chosen.limited:
        return None
    if not chosen.counted:
        boxes = [shape[1] for shape in signature.shapes.values() if len(shape) >= 2]
        return min(boxes) if boxes else None
    if isinstance(original, OnnxOriginal):
        found = [_last_cut(original.model.graph, name) for name in signature.ports]
        return min((each for each in found if each is not None), default=None)
    return None


def _last_cut(graph: Any, output: str) -> int | None:
    """Return the constant end of the nearest Slice or TopK along the detections before an output, breadth first."""
    with needs_extra("export"):
        from onnx import numpy_helper
    producers = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}

    def constant(name: str) -> int | None:
        tensor = constants.get(name)
        node = producers.get(name)
        if tensor is None and node is not None and node.op_type == "Constant" and node.attribute:
            tensor = node.attribute[0].t if node.attribute[0].name == "value" else None
        if tensor is None:
            return None
        values = np.asarray(numpy_helper.to_array(tensor)).ravel()
        return int(values[0]) if values.size == 1 and values.dtype.kind in "iu" else None

    level, visited = [output], set()
    for _ in range(FARTHEST):
        following = []
        for name in level:
            node = producers.get(name)
            if node is None or name in visited or node.op_type in ENDS:
                continue
            visited.add(name)
            end = None
            if node.op_type == "TopK" and len(node.input) > 1:
                end = constant(node.input[1])
            elif node.op_type == "Slice" and len(node.input) > 2 and constant(node.input[1]) == 0:
                end = constant(node.input[2])
            if end is not None and LEAST <= end < 1 << 16:
                return end
            following += [each for each in node.input if each]
        level = following
    return None
