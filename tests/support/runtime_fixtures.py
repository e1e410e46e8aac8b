"""A backend whose outputs can be checked by eye, and an ONNX file with the contract of an exported model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from cuda_stand_in import Driver, Engine

from tinydet.runtime.backends import TileOutputs
from tinydet.runtime.backends.onnx_runtime import OnnxRuntimeBackend
from tinydet.spec import ModelSpec

SPEC = ModelSpec(
    classes=("square", "bar"),
    category_ids=(7, 0),
    detector="white",
    backbone="none",
    tile=64,
    max_batch=4,
    max_detections=50,
)


class WhiteSquares:
    """Finds white rectangles on black: class 1 if one side is twice the other, else 0. Larger ones score higher."""

    name = "white squares"

    def __init__(self, **changes: Any) -> None:
        self.spec = dataclasses.replace(SPEC, **changes)
        self.batches: list[int] = []

    def run(self, images: np.ndarray) -> TileOutputs:
        assert images.dtype == np.uint8
        assert images.shape[1:] == (self.spec.tile, self.spec.tile, 3)
        assert len(images) <= self.spec.max_batch
        self.batches.append(len(images))
        slots = self.spec.max_detections
        boxes = np.zeros((len(images), slots, 4), np.float32)
        scores = np.zeros((len(images), slots), np.float32)
        labels = np.full((len(images), slots), -1, np.int32)
        candidates = np.zeros(len(images), np.int32)
        for i, image in enumerate(images):
            _, _, found, _ = cv2.connectedComponentsWithStats((image[..., 0] > 200).astype(np.uint8))
            found = sorted(found[1:].tolist(), key=lambda row: -row[4])
            candidates[i] = len(found)
            for k, (x, y, width, height, _) in enumerate(found[: self.spec.boxes_per_tile]):
                boxes[i, k] = x, y, x + width, y + height
                scores[i, k] = min(0.5 + width * height / 1000, 0.999)
                labels[i, k] = int(max(width, height) >= 2 * min(width, height))
        return TileOutputs(boxes, scores, labels, candidates)


@pytest.fixture
def white_squares() -> Callable[..., WhiteSquares]:
    return WhiteSquares


def write_onnx(
    path: Path, *, spec: ModelSpec | None = None, metadata: str | None = "spec", labels: str = "labels"
) -> Path:
    """Write an ONNX file that finds white cells of 8x8 pixels. The arguments can make it foreign or faulty.

    If the spec has rounds of NMS, the output `unconverged` equals `candidates`. If it has a multiple of tiles, height
    and width are free.
    """
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto as Type
    from onnx import helper, numpy_helper

    spec = spec or dataclasses.replace(SPEC, detector="cells", nms_in_graph=True)
    cells = spec.tile // 8
    y, x = np.divmod(np.arange(cells * cells), cells)
    constants = {
        "table": np.stack([x * 8, y * 8, x * 8 + 8, y * 8 + 8], 1).astype(np.float32),
        "one": np.array([1], np.int64),
        "flat": np.array([0, -1], np.int64),
        "white": np.float32(255),
        "k": np.array([spec.max_detections], np.int64),
        "floor": np.float32(0.5),
        "first": np.int32(0),
        "none": np.int32(-1),
        "last": np.array([3], np.int64),
    }
    node = helper.make_node
    boxes = [node("Gather", ["table", "index"], ["boxes"])]
    if spec.tile_multiple:
        boxes = _boxes_of_any_tile(node, constants)
    nodes = [
        node("Cast", ["images"], ["pixels"], to=Type.FLOAT),
        node("ReduceMean", ["pixels", "last"], ["gray"], keepdims=0),
        node("Unsqueeze", ["gray", "one"], ["plane"]),
        node("AveragePool", ["plane"], ["pooled"], kernel_shape=[8, 8], strides=[8, 8]),
        node("Reshape", ["pooled", "flat"], ["values"]),
        node("Div", ["values", "white"], ["probability"]),
        node("TopK", ["probability", "k"], ["scores", "index"], axis=1),
        *boxes,
        node("Greater", ["scores", "floor"], ["good"]),
        node("Where", ["good", "first", "none"], [labels]),
        node("Greater", ["probability", "floor"], ["passed"]),
        node("Cast", ["passed"], ["counted"], to=Type.INT32),
        node("ReduceSum", ["counted", "one"], ["candidates"], keepdims=0),
    ]
    optional = ["unconverged"] if spec.nms_rounds and labels == "labels" else []
    nodes += [node("Identity", ["candidates"], [name]) for name in optional]
    k = spec.max_detections
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "cells",
        [info("images", Type.UINT8, ["N", *(["height", "width"] if spec.tile_multiple else [spec.tile] * 2), 3])],
        [
            info("boxes", Type.FLOAT, ["N", k, 4]),
            info("scores", Type.FLOAT, ["N", k]),
            info(labels, Type.INT32, ["N", k]),
            info("candidates", Type.INT32, ["N"]),
            *(info(name, Type.INT32, ["N"]) for name in optional),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    if metadata is not None:
        helper.set_model_props(model, {"tinydet": spec.to_json() if metadata == "spec" else metadata})
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def _boxes_of_any_tile(node: Callable[..., Any], constants: dict[str, Any]) -> list[Any]:
    """Return the nodes that compute the boxes of `index`, and add their constants."""
    del constants["table"]
    constants |= {"two": np.array([2], np.int64), "side": np.int64(8), "corners": np.array([0, 0, 8, 8], np.float32)}
    return [
        node("Shape", ["pooled"], ["columns"], start=3, end=4),
        node("Mod", ["index", "columns"], ["column"]),
        node("Div", ["index", "columns"], ["row"]),
        node("Unsqueeze", ["column", "two"], ["x"]),
        node("Unsqueeze", ["row", "two"], ["y"]),
        node("Concat", ["x", "y", "x", "y"], ["cell"], axis=2),
        node("Mul", ["cell", "side"], ["pixel"]),
        node("Cast", ["pixel"], ["corner"], to=1),
        node("Add", ["corner", "corners"], ["boxes"]),
    ]


@pytest.fixture(scope="session")
def make_onnx() -> Callable[..., Path]:
    """`write_onnx`, if onnx is installed."""
    pytest.importorskip("onnx")
    return write_onnx


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tiles in each run of an ONNX model."""
    sizes: list[int] = []
    original = OnnxRuntimeBackend.run

    def counted(self: OnnxRuntimeBackend, images: np.ndarray) -> object:
        sizes.append(len(images))
        return original(self, images)

    monkeypatch.setattr(OnnxRuntimeBackend, "run", counted)
    return sizes


@pytest.fixture
def driver() -> Driver:
    """A stand-in for the CUDA driver."""
    return Driver()


@pytest.fixture
def engine(driver: Driver) -> Engine:
    return Engine(driver)
