"""Faster R-CNN as one graph of fixed shapes against torchvision's own inference: the same detections, as sets."""

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

from tinydet.checkpoint import Checkpoint
from tinydet.detector import DetectorConfig, build_detector
from tinydet.export.onnx_file import export_onnx, lint
from tinydet.export.two_stage import TwoStageInferenceGraph
from tinydet.export.verify import compare
from tinydet.faster_rcnn import FasterRCNN
from tinydet.runtime.backends import TileOutputs, open_model
from tinydet.spec import ModelSpec
from tinydet.torch_backend import TorchvisionGraph

TILE, SLOTS, PROPOSALS = 96, 150, 100


def detector(proposals: int = PROPOSALS, **changes: Any) -> tuple[FasterRCNN, ModelSpec]:
    """A small detector whose scores and boxes differ from proposal to proposal, though it never learned."""
    torch.manual_seed(3)
    config = DetectorConfig("mobilenet_v2", channels=16, classes=2, norm="batch", detector="faster_rcnn", **changes)
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
    return built.eval(), replace(spec, nms_rounds=16)


def tiles(count: int = 3) -> NDArray[np.uint8]:
    """Noise, and a dark one."""
    images = np.random.default_rng(5).integers(0, 256, (count, TILE, TILE, 3), dtype=np.uint8)
    images[-1] //= 8
    return images


@torch.inference_mode()
def answers(graph: torch.nn.Module, images: NDArray[np.uint8]) -> TileOutputs:
    return TileOutputs(*(part.numpy() for part in graph(torch.from_numpy(images))))


# ------------------------------------------------------------------------------------------------------ in torch


@pytest.mark.parametrize("changes", [{}, {"roi_rule": "aligned", "canonical_scale": 32}], ids=["torchvision", "ours"])
def test_the_graph_finds_what_torchvision_finds(changes: dict[str, Any]) -> None:
    built, spec = detector(**changes)
    found = answers(TwoStageInferenceGraph(built, spec), tiles())
    wanted = answers(TorchvisionGraph(built, spec, fold=False), tiles())
    parity = compare(wanted, found, spec.score_floor)
    assert parity.detections > 300 and parity.unmatched == 0 and parity.candidates_difference == 0
    assert parity.score_difference < 1e-4 and parity.box_difference < 1e-2
    assert found.unconverged.tolist() == [0, 0, 0]
    assert np.ptp(found.scores[found.labels >= 0]) > 0.5 and set(found.labels.ravel()) >= {0, 1}


def test_outputs_keep_the_contract_of_an_exported_model() -> None:
    built, spec = detector()
    found = answers(TwoStageInferenceGraph(built, spec), tiles(2))
    assert found.boxes.shape == (2, SLOTS, 4) and found.boxes.dtype == np.float32
    assert found.scores.shape == (2, SLOTS) and (found.scores[:, :-1] >= found.scores[:, 1:]).all()
    assert found.labels.dtype == found.candidates.dtype == found.unconverged.dtype == np.int32
    assert (found.candidates > SLOTS).any()  # both classes of a proposal are candidates
    torch.nn.init.constant_(built.roi_heads.box_predictor.cls_score.bias[:1], 99.0)
    silent = answers(TwoStageInferenceGraph(built, spec), tiles(2))
    assert (silent.labels == -1).all() and not silent.scores.any() and not silent.boxes.any()
    assert silent.candidates.tolist() == [0, 0]


def test_too_few_rounds_are_counted_and_not_hidden() -> None:
    built, spec = detector()
    built.rpn.nms_thresh = 0.1
    found = answers(TwoStageInferenceGraph(built, replace(spec, nms_rounds=1)), tiles())
    assert (found.unconverged > 0).all()
    assert not answers(TwoStageInferenceGraph(built, replace(spec, nms_rounds=40)), tiles()).unconverged.any()
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
def test_what_no_runtime_takes_is_refused(changes: dict[str, Any], message: str) -> None:
    built, spec = detector()
    with pytest.raises(ValueError, match=message):
        TwoStageInferenceGraph(built, replace(spec, **changes))


# ------------------------------------------------------------------------------------------------------- in a file


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built, spec = detector()
    path = tmp_path_factory.mktemp("two_stage") / "model.onnx"
    report = export_onnx(built, replace(spec, nms_rounds=0), path)
    assert report.operators_added == 0 and report.parity.detections > 300 and report.parity.unmatched == 0
    return path


@pytest.mark.slow
def test_the_file_is_one_graph_without_plugins(written: Path) -> None:
    model = onnx.load(str(written))
    spec = open_model(written, "onnx").spec
    assert spec.nms_rounds == 16 and not spec.nms_in_graph
    assert lint(model, spec) == []
    operators = Counter(node.op_type for node in model.graph.node)
    forbidden = ("NonMaxSuppression", "NonZero", "If", "Loop", "RoiAlign", "GridSample")
    assert not [name for name in forbidden if name in operators]
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
    wanted = answers(TorchvisionGraph(built, spec, fold=False), tiles())
    model = open_model(written, backend, threads=1)
    together = model.run(tiles())
    alone = [model.run(tiles()[i : i + 1]) for i in range(3)]
    for found in (together, TileOutputs(*map(np.concatenate, zip(*alone, strict=True)))):
        parity = compare(wanted, found, spec.score_floor)
        assert parity.detections > 300 and parity.unmatched == 0 and parity.candidates_difference == 0
        assert parity.score_difference < 1e-4 and parity.box_difference < 1e-2
        assert found.unconverged.tolist() == [0, 0, 0]
