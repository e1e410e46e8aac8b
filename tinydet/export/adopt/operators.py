"""Build small ONNX graphs from plain operators, in any opset from 11."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tinydet._internal.extras import needs_extra

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto

PREFIX = "tinydet."  # of the names of grafted values and nodes
END = np.iinfo(np.int64).max  # of a slice


class Operators:
    """A list of nodes that grows by one for each call. Values are named by strings."""

    def __init__(self, opset: int, prefix: str = PREFIX) -> None:
        with needs_extra("export"):
            import onnx
        self._onnx = onnx
        self._opset, self._prefix = opset, prefix
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def __call__(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output; return the name of that output."""
        return self.several(kind, *inputs, outputs=1, **attributes)[0]

    def several(self, kind: str, *inputs: str, outputs: int, **attributes: Any) -> list[str]:
        """Add a node with several outputs; return their names."""
        number = len(self.nodes)
        names = [f"{self._prefix}{kind}_{number}" + (f".{i}" if i else "") for i in range(outputs)]
        node = self._onnx.helper.make_node(kind, inputs, names, name=f"{self._prefix}{kind}_{number}", **attributes)
        self.nodes.append(node)
        return names

    def named(self, name: str, value: str) -> None:
        """Give a value the name of an output of the graph."""
        self.nodes.append(self._onnx.helper.make_node("Identity", [value], [name], name=f"{self._prefix}output.{name}"))

    def constant(self, value: ArrayLike, dtype: Any = np.float32) -> str:
        name = f"{self._prefix}constant_{len(self.constants)}"
        array: NDArray[Any] = np.asarray(value, dtype)
        self.constants.append(self._onnx.numpy_helper.from_array(array, name))
        return name

    def integers(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def cast(self, value: str, dtype: Any) -> str:
        return self("Cast", value, to=self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def slice(self, value: str, axis: int, start: int, stop: int = END) -> str:
        return self("Slice", value, self.integers(start), self.integers(stop), self.integers(axis))

    def concat(self, *values: str, axis: int) -> str:
        return self("Concat", *values, axis=axis)

    def squeeze(self, value: str, axis: int) -> str:
        if self._opset < 13:
            return self("Squeeze", value, axes=[axis])
        return self("Squeeze", value, self.integers(axis))

    def unsqueeze(self, value: str, axis: int) -> str:
        if self._opset < 13:
            return self("Unsqueeze", value, axes=[axis])
        return self("Unsqueeze", value, self.integers(axis))

    def largest(self, value: str, axis: int) -> tuple[str, str]:
        """Return the largest value along an axis, which is removed, and its index (int64)."""
        if self._opset < 18:
            best = self("ReduceMax", value, axes=[axis], keepdims=0)
        else:
            best = self("ReduceMax", value, self.integers(axis), keepdims=0)
        return best, self("ArgMax", value, axis=axis, keepdims=0)

    def total(self, value: str, axis: int) -> str:
        """Return the sum along an axis, which is removed."""
        if self._opset < 13:
            return self("ReduceSum", value, axes=[axis], keepdims=0)
        return self("ReduceSum", value, self.integers(axis), keepdims=0)

    def reshape(self, value: str, sizes: Sequence[int]) -> str:
        return self("Reshape", value, self.integers(*sizes))

    def transpose(self, value: str, order: Sequence[int]) -> str:
        return self("Transpose", value, perm=list(order))

    def pad(self, value: str, after: Sequence[int], fill: float = 0.0) -> str:
        """Append `after` float32 entries to each axis."""
        return self("Pad", value, self.integers(*([0] * len(after)), *after), self.constant(fill), mode="constant")

    def gather_rows(self, rows: str, index: str, width: int) -> str:
        """(N, M, width) and indices (N, K) -> (N, K, width)."""
        wide = self("Tile", self.unsqueeze(index, 2), self.integers(1, 1, width))
        return self("GatherElements", rows, wide, axis=1)
