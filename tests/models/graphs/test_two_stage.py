"""Faster R-CNN as one graph of fixed shapes against torchvision's own inference: the same detections, as sets."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torchvision_graph import TorchvisionGraph

from tinydet.export.engine import write_engine
from tinydet.export.fp16 import to_fp16
from tinydet.export.int8 import calibrate, to_int8
from tinydet.export.onnx_file import lint, write_onnx
from tinydet.export.onnx_model import graph_precision
from tinydet.export.parity import compare, disagreement
from tinydet.models.build import DetectorConfig, build_detector
from tinydet.models.checkpoint import Checkpoint
from tinydet.models.faster_rcnn import FasterRCNN
from tinydet.models.graphs.inference import InferenceGraph
from tinydet.models.retinanet import RetinaNet
from tinydet.runtime.backends import TileOutputs, open_model
from tinydet.spec import ModelSpec

TILE, SLOTS, PROPOSALS = 96, 150, 100


def detector(proposals: int = PROPOSALS, **options: Any) -> tuple[FasterRCNN, ModelSpec]:
    """A small detector whose scores and boxes differ from proposal to proposal, though it never learned."""
    torch.manual_seed(3)
    config = DetectorConfig(
        "mobilenet_v2", channels=16, classes=2, norm="batch", detector="faster_rcnn", options=options
    )
    built = build_detector(config, (0.48, 0.66, 1.06))
    assert isinstance(built, FasterRCNN)
    for layer in built.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        built.train().backbone(torch.randn(2, 3, TILE, TILE))  # batch norms learn the scale of their layer
    head, predictor = built.rpn.head, built.roi_heads.box_predictor
    for layer, spread in ((head.cls_logits, 0.5), (head.bbox_pred, 0.1), (predictor.cls_score, 0.5),
                          (predictor.bbox_pred, 0.2)):  # fmt: skip
        torch.nn.init.normal_(layer.weight, std=spread)
    built.rpn._pre_nms_top_n = {"training": 2000, "testing": 2 * proposals}
    built.rpn._post_nms_top_n = {"training": 2000, "testing": proposals}
    spec = Checkpoint(config, {}, ("person", "car"), (1, 3), tile=TILE).spec(max_batch=3, max_detections=SLOTS)
    return built.eval(), spec


def tiles(count: int = 3) -> NDArray[np.uint8]:
    """Noise, and a dark one."""
    images = np.random.default_rng(5).integers(0, 256, (count, TILE, TILE, 3), dtype=np.uint8)
    images[-1] //= 8
    return images


@torch.inference_mode()
def outputs_of(graph: torch.nn.Module, images: NDArray[np.uint8]) -> TileOutputs:
    return TileOutputs(*(part.numpy() for part in graph(torch.from_numpy(images))))


# ------------------------------------------------------------------------------------------------------ in torch


@pytest.mark.parametrize("options", [{}, {"roi_rule": "aligned", "canonical_scale": 32}], ids=["torchvision", "ours"])
def test_the_graph_finds_what_torchvision_finds(options: dict[str, Any]) -> None:
    built, spec = detector(**options)
    found = outputs_of(InferenceGraph(built, spec), tiles())
    wanted = outputs_of(TorchvisionGraph(built, spec, fold=False), tiles())
    parity = compare(wanted, found, spec.score_floor)
    assert parity.detections > 300 and parity.unmatched == 0 and parity.candidates_difference == 0
    assert parity.score_difference < 1e-4 and parity.box_difference < 1e-2
    assert found.unconverged.tolist() == [0, 0, 0]
    assert np.ptp(found.scores[found.labels >= 0]) > 0.5 and set(found.labels.ravel()) >= {0, 1}


def test_outputs_keep_the_contract_of_an_exported_model() -> None:
    built, spec = detector()
    found = outputs_of(InferenceGraph(built, spec), tiles(2))
    assert found.boxes.shape == (2, SLOTS, 4) and found.boxes.dtype == np.float32
    assert found.scores.shape == (2, SLOTS) and (found.scores[:, :-1] >= found.scores[:, 1:]).all()
    assert found.labels.dtype == found.candidates.dtype == found.unconverged.dtype == np.int32
    assert (found.candidates > SLOTS).any()  # both classes of a proposal are candidates
    torch.nn.init.constant_(built.roi_heads.box_predictor.cls_score.bias[:1], 99.0)
    silent = outputs_of(InferenceGraph(built, spec), tiles(2))
    assert (silent.labels == -1).all() and not silent.scores.any() and not silent.boxes.any()
    assert silent.candidates.tolist() == [0, 0]


def test_too_few_rounds_are_counted_and_not_hidden() -> None:
    built, spec = detector()
    built.rpn.nms_thresh = 0.1
    found = outputs_of(InferenceGraph(built, replace(spec, nms_rounds=1)), tiles())
    assert (found.unconverged > 0).all()
    assert not outputs_of(InferenceGraph(built, replace(spec, nms_rounds=40)), tiles()).unconverged.any()
    parity = compare(found, found, spec.score_floor)
    assert parity.unconverged == found.unconverged.sum() and parity.unmatched == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tile": 100}, "multiple of 32"),
        ({"max_detections": 2 * PROPOSALS + 1}, r"1\.\.200 \(100 proposals of 2 classes"),
        ({"nms_rounds": 0}, "nms_rounds must be 1 or more"),
    ],
)
def test_unsupported_shapes_are_refused(changes: dict[str, Any], message: str) -> None:
    built, spec = detector()
    with pytest.raises(ValueError, match=message):
        InferenceGraph(built, replace(spec, **changes))


# ------------------------------------------------------------------------------------------------------- in a file


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built, spec = detector()
    path = tmp_path_factory.mktemp("two_stage") / "model.onnx"
    assert spec.nms_rounds == 16  # by the registry row of the detector
    report = write_onnx(built, spec, path)
    assert report.operators_added == 0 and report.kept_edges == ()
    assert report.parity.detections > 300 and report.parity.unmatched == 0
    return path


@pytest.mark.slow
def test_the_file_is_one_graph_without_plugins(written: Path) -> None:
    model = onnx.load(str(written))
    spec = open_model(written, "onnx").spec
    assert spec.nms_rounds == 16 and not spec.nms_in_graph
    assert lint(model, spec) == []
    operators = Counter(node.op_type for node in model.graph.node)
    assert not operators.keys() & {"NonMaxSuppression", "NonZero", "If", "Loop", "RoiAlign", "GridSample"}
    assert operators["TopK"] == 7  # five levels, the proposals, the detections
    assert operators["Conv"] > 50 and not model.functions


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnx-cpu", "openvino"])
def test_each_runtime_finds_what_torchvision_finds_in_any_batch(
    written: Path, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino", reason="needs tinydet[openvino]")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    built, spec = detector()
    wanted = outputs_of(TorchvisionGraph(built, spec, fold=False), tiles())
    model = open_model(written, backend, threads=1)
    together = model.run(tiles())
    alone = [model.run(tiles()[i : i + 1]) for i in range(3)]
    for found in (together, TileOutputs(*map(np.concatenate, zip(*alone, strict=True)))):
        parity = compare(wanted, found, spec.score_floor)
        assert parity.detections > 300 and parity.unmatched == 0 and parity.candidates_difference == 0
        assert parity.score_difference < 1e-4 and parity.box_difference < 1e-2
        assert found.unconverged.tolist() == [0, 0, 0]


@pytest.mark.slow
def test_an_export_whose_nms_does_not_converge_is_refused(tmp_path: Path) -> None:
    built, spec = detector()
    built.rpn.nms_thresh = 0.1
    with pytest.raises(ValueError, match=r"still changed in the last of 1 rounds.*--nms-rounds 2"):
        write_onnx(built, replace(spec, nms_rounds=1), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_half_precision_and_int8_leave_boxes_in_float32(written: Path, tmp_path: Path) -> None:
    """The box head loses precision with the convolutions; proposals, pooling and decoding do not."""
    source = onnx.load(str(written))
    images = [write_image(tmp_path / f"{i}.png", tile) for i, tile in enumerate(tiles())]
    spec = open_model(written, "onnx").spec
    wanted = open_model(written, "onnx").run(tiles())
    made = {
        "fp16": to_fp16(source),
        "int8": to_int8(source, calibrate(written, images, spec, "max")),
    }
    for precision, model in made.items():
        assert graph_precision(model.graph)[1] == precision
        path = save(model, replace(spec, precision=precision), tmp_path / f"{precision}.onnx")
        found = open_model(path, "onnx").run(tiles())
        assert disagreement(wanted, found) < {"fp16": 0.2, "int8": 0.7}[precision]
        assert not found.unconverged.any()
    half = {node.op_type: node for node in made["fp16"].graph.node}
    assert {"Gemm", "Conv"} <= half.keys()
    constants = {c.name: c.data_type for c in made["fp16"].graph.initializer}
    used_with = {op: {constants.get(name) for node in made["fp16"].graph.node if node.op_type == op
                      for name in node.input} for op in ("Gemm", "Gather", "Exp")}  # fmt: skip
    assert onnx.TensorProto.FLOAT16 in used_with["Gemm"] and onnx.TensorProto.FLOAT not in used_with["Gemm"]
    assert onnx.TensorProto.FLOAT16 not in used_with["Gather"] | used_with["Exp"]
    quantised = [node for node in made["int8"].graph.node if node.op_type == "QuantizeLinear"]
    assert any("fc6" in node.input[0] for node in quantised)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["faster_rcnn", "retinanet-p3p7"])
def test_engines_of_each_precision_are_really_built(kind: str, written: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13, which builds engines without a GPU")
    path = written if kind == "faster_rcnn" else conventional(tmp_path / "source.onnx")
    source, spec = onnx.load(str(path)), open_model(path, "onnx").spec
    assert lint(source, spec) == []
    images = [write_image(tmp_path / f"{i}.png", tile) for i, tile in enumerate(tiles())]
    made = {"fp32": path, "fp16": save(to_fp16(source), replace(spec, precision="fp16"), tmp_path / "fp16.onnx")}
    quantised = to_int8(source, calibrate(path, images, spec, "max"))
    made["int8"] = save(quantised, replace(spec, precision="int8"), tmp_path / "int8.onnx")
    for precision, file in made.items():
        built = write_engine(file, tmp_path / f"{precision}.engine", target="rtx", batch=(1, 1, 3))
        assert built.precision == precision and built.nms_rounds == (16 if kind == "faster_rcnn" else 0)
        assert (tmp_path / f"{precision}.engine").read_bytes().startswith(b"vtrt")
        assert ("unconverged" in built.engine["tensors"]) == (kind == "faster_rcnn")


def conventional(path: Path) -> Path:
    """RetinaNet on P3..P7, exported and compared."""
    torch.manual_seed(1)
    config = DetectorConfig("mobilenet_v2", channels=16, classes=2, norm="batch",
                            detector="retinanet-p3p7", options={"head_convs": 1})  # fmt: skip
    built = build_detector(config, (0.4, 0.3)).eval()
    assert isinstance(built, RetinaNet)
    torch.nn.init.normal_(built.head.classification_head.cls_logits.weight, std=0.5)
    torch.nn.init.constant_(built.head.classification_head.cls_logits.bias, -2.0)
    spec = Checkpoint(config, {}, ("person", "car"), (1, 3), tile=TILE).spec(max_batch=3, max_detections=SLOTS)
    report = write_onnx(built, spec, path)
    assert report.operators_added == 0 and report.deleted_edges == report.kept_edges == ()
    assert report.parity.detections > 100 and report.parity.unmatched == 0
    return path


def write_image(path: Path, tile: NDArray[np.uint8]) -> Path:
    cv2.imwrite(str(path), tile[..., ::-1])
    return path


def save(model: Any, spec: ModelSpec, path: Path) -> Path:
    del model.metadata_props[:]
    model.metadata_props.add(key="tinydet", value=spec.to_json())
    path.write_bytes(model.SerializeToString())
    return path
