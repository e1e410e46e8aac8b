"""Small ONNX detectors in the layouts of other frameworks' exports, built with onnx.helper.

`network` has random weights and outputs that depend on the image; `constant` always returns the same values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

SIDE = 64
CELLS = 64 + 16 + 4  # of strides 8, 16 and 32 in 64 pixels
CLASSES = 3
LAYOUTS = ("yolov8", "yolov5", "yolox", "end2end", "hf-detr", "detr", "rf-detr", "rt-detr", "torchvision", "mmdeploy",
           "boxes", "ssd", "boxes-scores")  # fmt: skip


def save(graph: onnx.GraphProto, path: Path, opset: int = 17, metadata: Mapping[str, str] | None = None) -> Path:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    model.producer_name = "tests"
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    return path


def constant(
    outputs: Mapping[str, ArrayLike],
    path: Path,
    *,
    image: Sequence[int | str] = (1, 3, SIDE, SIDE),
    extras: Mapping[str, Sequence[int]] | None = None,
    dtype: int = TensorProto.FLOAT,
    metadata: Mapping[str, str] | None = None,
    opset: int = 17,
) -> Path:
    """A detector that returns the same values for every image. `extras`: int64 inputs besides the image."""
    arrays = {name: np.asarray(value) for name, value in outputs.items()}
    nodes = [helper.make_node("Identity", [f"{name}.value"], [name]) for name in arrays]
    inputs = [helper.make_tensor_value_info("images", dtype, list(image))]
    inputs += [helper.make_tensor_value_info(n, TensorProto.INT64, list(s)) for n, s in (extras or {}).items()]
    infos = [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
             for n, a in arrays.items()]  # fmt: skip
    weights = [numpy_helper.from_array(array, f"{name}.value") for name, array in arrays.items()]
    return save(helper.make_graph(nodes, "constant", inputs, infos, weights), path, opset, metadata)


class Network:
    """Builds a detector whose features are one convolution for each stride."""

    def __init__(self, layout: str, *, batch: int | str = "batch", seed: int = 0) -> None:
        self.layout, self.batch = layout, batch
        self.random = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.count = 0

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        self.count += 1
        names = [f"v{self.count}.{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, **attributes))
        return names[0] if outputs == 1 else names

    def weight(self, array: ArrayLike, dtype: Any = np.float32) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(array, dtype), f"w{len(self.weights)}"))
        return str(self.weights[-1].name)

    def ints(self, *values: int) -> str:
        return self.weight(values, np.int64)

    def cells(self, images: str, channels: int) -> str:
        """(N, 3, 64, 64) -> (N, 84, channels)."""
        levels = []
        for stride in (8, 16, 32):
            kernel = self.random.normal(0, 4 / (3 * stride**2) ** 0.5, (channels, 3, stride, stride))
            kernel -= kernel.mean(axis=(1, 2, 3), keepdims=True)
            level = self.op("Conv", images, self.weight(kernel), self.weight(self.random.normal(0, 0.5, channels)),
                            kernel_shape=[stride, stride], strides=[stride, stride])  # fmt: skip
            levels.append(self.op("Reshape", level, self.ints(0, channels, -1)))
        return str(self.op("Transpose", self.op("Concat", *levels, axis=2), perm=[0, 2, 1]))

    def part(self, value: str, start: int, stop: int, axis: int = 2) -> str:
        return str(self.op("Slice", value, self.ints(start), self.ints(stop), self.ints(axis)))

    def shares(self, rows: str) -> str:
        """Rows (N, A, 4+) -> centers and sizes as shares of the image, (N, A, 4)."""
        share = self.op("Sigmoid", self.part(rows, 0, 4))
        return str(self.op("Mul", share, self.weight([1, 1, 0.4, 0.4])))

    def corners(self, rows: str) -> str:
        """-> corners in pixels (N, A, 4)."""
        share = self.shares(rows)
        half = self.op("Mul", self.part(share, 2, 4), self.weight(0.5))
        center = self.part(share, 0, 2)
        both = self.op("Concat", self.op("Sub", center, half), self.op("Add", center, half), axis=2)
        return str(self.op("Mul", both, self.weight(SIDE)))

    def best(self, images: str, slots: int) -> tuple[str, str, str]:
        """-> the best boxes (N, slots, 4), scores (N, slots) and labels (N, slots) int64, without NMS."""
        rows = self.cells(images, 4 + CLASSES)
        classes = self.op("Sigmoid", self.part(rows, 4, 4 + CLASSES))
        score, label = (
            self.op("ReduceMax", classes, axes=[2], keepdims=0),
            self.op("ArgMax", classes, axis=2, keepdims=0),
        )
        kept, index = self.op("TopK", score, self.ints(slots), outputs=2, axis=1)
        wide = self.op("Tile", self.op("Unsqueeze", index, self.ints(2)), self.ints(1, 1, 4))
        boxes = self.op("GatherElements", self.corners(rows), wide, axis=1)
        return boxes, kept, self.op("GatherElements", label, index, axis=1)

    def outputs(self, images: str) -> dict[str, tuple[str, int, list[Any]]]:
        """-> for each output its value, type and shape."""
        n, real, whole = self.batch, TensorProto.FLOAT, TensorProto.INT64
        if self.layout == "yolov8":
            rows = self.cells(images, 4 + CLASSES)
            pixels = self.op("Mul", self.shares(rows), self.weight(SIDE))
            every = self.op("Concat", pixels, self.op("Sigmoid", self.part(rows, 4, 4 + CLASSES)), axis=2)
            return {"output0": (self.op("Transpose", every, perm=[0, 2, 1]), real, [n, 4 + CLASSES, CELLS])}
        if self.layout == "yolov5":
            parts = []
            for _ in range(3):
                rows = self.cells(images, 5 + CLASSES)
                pixels = self.op("Mul", self.shares(rows), self.weight(SIDE))
                parts.append(self.op("Concat", pixels, self.op("Sigmoid", self.part(rows, 4, 5 + CLASSES)), axis=2))
            return {"output0": (self.op("Concat", *parts, axis=1), real, [n, 3 * CELLS, 5 + CLASSES])}
        if self.layout == "yolox":
            rows = self.cells(images, 5 + CLASSES)
            offset = self.op("Sigmoid", self.part(rows, 0, 2))
            size = self.op("Mul", self.part(rows, 2, 4), self.weight(0.2))
            every = self.op("Concat", offset, size, self.op("Sigmoid", self.part(rows, 4, 5 + CLASSES)), axis=2)
            return {"output": (every, real, [n, CELLS, 5 + CLASSES])}
        if self.layout in ("hf-detr", "detr", "rf-detr"):
            rows = self.part(self.cells(images, 5 + CLASSES), 0, 12, axis=1)
            columns = CLASSES + (self.layout != "hf-detr")
            names = ("labels", "dets") if self.layout == "rf-detr" else ("logits", "pred_boxes")
            found = {
                names[0]: (self.part(rows, 4, 4 + columns), real, [n, 12, columns]),
                names[1]: (self.shares(rows), real, [n, 12, 4]),
            }
            return dict(reversed(found.items())) if self.layout == "rf-detr" else found
        if self.layout == "boxes-scores":
            rows = self.cells(images, 4 + CLASSES)
            scores = self.op("Sigmoid", self.part(rows, 4, 4 + CLASSES))
            return {"boxes": (self.corners(rows), real, [n, CELLS, 4]), "scores": (scores, real, [n, CELLS, CLASSES])}
        boxes, scores, labels = self.best(images, 20)
        wide = [self.op("Unsqueeze", value, self.ints(2)) for value in (scores, self.op("Cast", labels, to=real))]
        if self.layout == "end2end":
            return {"output0": (self.op("Concat", boxes, *wide, axis=2), real, [n, 20, 6])}
        if self.layout == "rt-detr":
            scale = self.op("Cast", self.op("Tile", "orig_target_sizes", self.ints(1, 2)), to=real)
            scale = self.op("Div", self.op("Unsqueeze", scale, self.ints(1)), self.weight(SIDE))
            return {"labels": (labels, whole, [n, 20]), "boxes": (self.op("Mul", boxes, scale), real, [n, 20, 4]),
                    "scores": (scores, real, [n, 20])}  # fmt: skip
        if self.layout == "mmdeploy":
            return {"dets": (self.op("Concat", boxes, wide[0], axis=2), real, [n, 20, 5]),
                    "labels": (labels, whole, [n, 20])}  # fmt: skip
        if self.layout == "boxes":
            return {"scores": (scores, real, [n, 20]), "boxes": (boxes, real, [n, 20, 4]),
                    "labels": (labels, whole, [n, 20])}  # fmt: skip
        if self.layout == "ssd":
            share = self.op("Mul", boxes, self.weight(1 / SIDE))
            rows = self.op("Concat", self.op("Mul", wide[0], self.weight(0.0)), wide[1], wide[0], share, axis=2)
            return {"detection_out": (self.op("Unsqueeze", rows, self.ints(1)), real, [1, 1, 20, 7])}
        assert self.layout == "torchvision"
        by_class = self.op("Unsqueeze", scores, self.ints(1))
        chosen = self.op("NonMaxSuppression", boxes, by_class, self.weight([20], np.int64), self.weight([0.3]),
                         self.weight([0.3]))  # fmt: skip
        kept = self.op("Squeeze", self.part(chosen, 2, 3, axis=1), self.ints(1))
        kept = self.part(kept, 0, 15, axis=0)
        flat = [self.op("Squeeze", value, self.ints(0)) for value in (boxes, labels, scores)]
        box, label, score = (self.op("Gather", value, kept, axis=0) for value in flat)
        label = self.op("Add", label, self.ints(1))
        return {"boxes": (box, real, ["m", 4]), "labels": (label, whole, ["m"]), "scores": (score, real, ["m"])}


def network(
    layout: str, path: Path, *, batch: int | str = "batch", opset: int = 17, metadata: Mapping[str, str] | None = None
) -> Path:
    """A detector with random weights whose outputs have the layout of a format of `tinydet export adopt`."""
    if layout in ("torchvision", "ssd"):
        batch = 1
    build = Network(layout, batch=batch)
    shape: list[int | str] = [3, SIDE, SIDE] if layout == "torchvision" else [batch, 3, SIDE, SIDE]
    inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, shape)]
    images = build.op("Unsqueeze", "images", build.ints(0)) if layout == "torchvision" else "images"
    if layout in ("yolox", "ssd"):  # they are fed 0 to 255
        images = build.op("Div", images, build.weight(255.0))
    if layout == "rt-detr":
        inputs.append(helper.make_tensor_value_info("orig_target_sizes", TensorProto.INT64, [batch, 2]))
    infos = []
    for name, (value, kind, sizes) in build.outputs(images).items():
        build.nodes.append(helper.make_node("Identity", [value], [name]))
        infos.append(helper.make_tensor_value_info(name, kind, sizes))
    return save(helper.make_graph(build.nodes, layout, inputs, infos, build.weights), path, opset, metadata)
