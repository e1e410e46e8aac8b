"""Grid R-CNN as one graph of fixed shapes against the detector in torch, which uses torchvision's operators."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray

from tinydet.export.engine import write_engine
from tinydet.export.fp16 import to_fp16
from tinydet.export.layers import convertible_nodes
from tinydet.export.onnx_file import FORBIDDEN, lint, write_onnx
from tinydet.export.parity import compare, disagreement
from tinydet.models.build import DetectorConfig, build_detector
from tinydet.models.checkpoint import Checkpoint
from tinydet.models.faster_rcnn import TileDetections
from tinydet.models.graphs.inference import InferenceGraph
from tinydet.models.grid_rcnn import GridRCNN
from tinydet.runtime.backends import TileOutputs, open_model
from tinydet.spec import ModelSpec

TILE, ROIS, PROPOSALS = 96, 30, 100


def detector(**options: Any) -> tuple[GridRCNN, ModelSpec]:
    """A small detector whose scores and boxes differ from proposal to proposal, though it never learned."""
    torch.manual_seed(3)
    config = DetectorConfig("mobilenet_v2", channels=16, classes=2, norm="batch", detector="grid_rcnn", options=options)
    built = build_detector(config, (0.48, 0.66, 1.06))
    assert isinstance(built, GridRCNN)
    for layer in built.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        built.train().backbone(torch.randn(2, 3, TILE, TILE))  # batch norms learn the scale of their layer
    rpn, branch = built.rpn.head, built.grid_branch
    for layer, spread in ((rpn.cls_logits, 0.5), (rpn.bbox_pred, 0.1),
                          (built.roi_heads.box_predictor.cls_score, 0.5),
                          (branch.deconv1, 0.5), (branch.deconv2, 0.5)):  # fmt: skip
        torch.nn.init.normal_(layer.weight, std=spread)
    built.rpn._pre_nms_top_n = {"training": 2000, "testing": 2 * PROPOSALS}
    built.rpn._post_nms_top_n = {"training": 2000, "testing": PROPOSALS}
    built.roi_heads.detections_per_img = ROIS
    spec = Checkpoint(config, {}, ("person", "car"), (1, 3), tile=TILE).spec(max_batch=3, grid_rois=ROIS)
    return built.eval(), spec


def tiles(count: int = 3) -> NDArray[np.uint8]:
    """Noise, and a dark one."""
    images = np.random.default_rng(5).integers(0, 256, (count, TILE, TILE, 3), dtype=np.uint8)
    images[-1] //= 8
    return images


@torch.inference_mode()
def outputs_of(graph: torch.nn.Module, images: NDArray[np.uint8]) -> TileOutputs:
    return TileOutputs(*(part.numpy() for part in graph(torch.from_numpy(images))))


@torch.inference_mode()
def wanted_of(built: GridRCNN, spec: ModelSpec) -> list[TileDetections]:
    """Detections by torchvision's proposals, NMS and RoIAlign."""
    found: list[TileDetections] = built(InferenceGraph(built, spec).pixels(torch.from_numpy(tiles())))
    return found


def close(wanted: list[TileDetections], found: TileOutputs) -> bool:
    """Whether each tile has the same detections in the same order."""
    assert sum(len(each.scores) for each in wanted) > 40
    for i, each in enumerate(wanted):
        count = len(each.scores)
        assert found.labels[i].tolist() == each.labels.tolist() + [-1] * (found.labels.shape[1] - count)
        np.testing.assert_allclose(found.scores[i, :count], each.scores, atol=1e-4)
        np.testing.assert_allclose(found.boxes[i, :count], each.boxes, atol=1e-2)
    return True


@pytest.mark.parametrize("options", [{}, {"roi_rule": "aligned", "canonical_scale": 32}], ids=["torchvision", "ours"])
def test_the_graph_finds_what_the_detector_finds(options: dict[str, Any]) -> None:
    built, spec = detector(**options)
    found = outputs_of(InferenceGraph(built, spec), tiles())
    assert close(wanted_of(built, spec), found)
    assert found.unconverged.tolist() == [0, 0, 0]
    assert (found.candidates > ROIS).any() and set(found.labels.ravel()) >= {0, 1}
    built.roi_heads.detections_per_img = PROPOSALS
    assert found.candidates.tolist() == [len(each.scores) for each in wanted_of(built, spec)]


def test_outputs_keep_the_contract_of_an_exported_model() -> None:
    built, spec = detector()
    found = outputs_of(InferenceGraph(built, replace(spec, max_detections=ROIS + 5, score_floor=0.4)), tiles())
    assert found.boxes.shape == (3, ROIS + 5, 4) and found.boxes.dtype == found.scores.dtype == np.float32
    assert found.labels.dtype == found.candidates.dtype == found.unconverged.dtype == np.int32
    filled = found.labels >= 0
    assert filled.any() and not filled[:, ROIS:].any() and (found.scores[filled] >= 0.4).all()
    assert not found.scores[~filled].any() and not found.boxes[~filled].any()
    assert (found.scores[:, :-1] >= found.scores[:, 1:]).all()
    assert (found.boxes >= 0).all() and (found.boxes <= TILE).all()
    assert (filled.sum(axis=1) == np.minimum(found.candidates, ROIS)).all()
    torch.nn.init.constant_(built.roi_heads.box_predictor.cls_score.bias[:1], 99.0)
    silent = outputs_of(InferenceGraph(built, spec), tiles(2))
    assert (silent.labels == -1).all() and not silent.scores.any() and not silent.candidates.any()


def test_too_few_rounds_of_the_suppression_before_the_branch_are_counted() -> None:
    built, spec = detector()
    built.rpn.nms_thresh = 0.99  # nothing to suppress among the proposals of all classes
    graphs = [InferenceGraph(built, replace(spec, nms_rounds=rounds, score_floor=0.0)) for rounds in (1, 60)]
    one, enough = (outputs_of(graph, tiles()) for graph in graphs)
    assert (one.unconverged > 0).all() and not enough.unconverged.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid_rois": 0}, r"grid_rois must be 1\.\.100 \(the proposals of a tile\), got 0"),
        ({"grid_rois": 101, "max_detections": 101}, r"grid_rois must be 1\.\.100 .* got 101"),
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
    path = tmp_path_factory.mktemp("grid") / "model.onnx"
    report = write_onnx(built, spec, path)
    assert report.operators_added == 0 and report.parity.detections > 40 and report.parity.unmatched == 0
    return path


@pytest.mark.slow
def test_the_file_is_one_graph_of_plain_operators(written: Path) -> None:
    model, spec = onnx.load(str(written)), open_model(written, "onnx").spec
    assert (spec.grid_rois, spec.max_detections, spec.nms_rounds) == (ROIS, ROIS, 16)
    assert lint(model, spec) == []
    operators = Counter(node.op_type for node in model.graph.node)
    assert not operators.keys() & (FORBIDDEN | {"GatherND", "Mod"}) and not model.functions
    assert operators["ConvTranspose"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnx-cpu", "openvino"])
def test_each_runtime_finds_what_the_detector_finds_in_any_batch(
    written: Path, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino", reason="needs tinydet[openvino]")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    wanted, model = wanted_of(*detector()), open_model(written, backend, threads=1)
    alone = [model.run(tiles()[i : i + 1]) for i in range(3)]
    for found in (model.run(tiles()), TileOutputs(*map(np.concatenate, zip(*alone, strict=True)))):
        assert close(wanted, found) and not found.unconverged.any()


@pytest.mark.slow
def test_half_precision_leaves_proposals_pooling_and_decoding_in_float32(written: Path, tmp_path: Path) -> None:
    source = onnx.load(str(written))
    wanted, spec = open_model(written, "onnx").run(tiles()), open_model(written, "onnx").spec
    chosen = convertible_nodes(source.graph, ())
    lost = Counter(node.op_type for node in source.graph.node if node.name in chosen)
    assert lost["ConvTranspose"] == 2 and lost["Gemm"] == 3
    assert not lost.keys() & {"TopK", "Gather", "GatherElements", "Exp", "Floor", "Softmax", "Greater", "Where"}
    found = open_model(save(to_fp16(source), replace(spec, precision="fp16"), tmp_path / "fp16.onnx"), "onnx").run(
        tiles()
    )
    assert disagreement(wanted, found) < 0.2
    assert compare(wanted, found, spec.score_floor).detections > 80 and not found.unconverged.any()


@pytest.mark.slow
def test_engines_are_really_built(written: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13, which builds engines without a GPU")
    spec = open_model(written, "onnx").spec
    half = save(to_fp16(onnx.load(str(written))), replace(spec, precision="fp16"), tmp_path / "fp16.onnx")
    for file, precision in ((written, "fp32"), (half, "fp16")):
        built = write_engine(file, tmp_path / f"{precision}.engine", target="rtx", batch=(1, 1, 3))
        assert built.precision == precision and built.grid_rois == ROIS
        assert (tmp_path / f"{precision}.engine").read_bytes().startswith(b"vtrt")


def save(model: Any, spec: ModelSpec, path: Path) -> Path:
    del model.metadata_props[:]
    model.metadata_props.add(key="tinydet", value=spec.to_json())
    path.write_bytes(model.SerializeToString())
    return path
