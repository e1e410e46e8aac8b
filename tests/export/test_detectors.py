"""Every detector of the registry: one graph without plugins, converted, built and run by the commands."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
import toy_detector
from torch import nn

from tinydet.__main__ import main
from tinydet.data.synthetic import render_scene
from tinydet.export.engine import write_engine
from tinydet.export.onnx_file import FORBIDDEN, ExportReport, write_onnx
from tinydet.export.precision import Conversion, convert
from tinydet.export.verify import verify
from tinydet.models.build import DetectorConfig, build_detector
from tinydet.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from tinydet.models.detector import Detector
from tinydet.models.graphs.inference import InferenceGraph
from tinydet.models.registry import DETECTORS
from tinydet.runtime.backends import open_model

TILE = 64
PROPOSALS = 30  # of a tile, so that few rounds of suppression are enough
# Rows for the slow tests, because an export takes 10 to 30 seconds, with the reason why the default run can do without.
SLOW = {
    "retinanet": "the other tests of this folder export it and build it",
    "retinanet-p3p7": "RetinaNet's graph with other levels",
    "free_anchor": "RetinaNet's graph, see the last test",
    "fcos": "the graph of fcos-p3p7 without its norms",
    "faster_rcnn": "tests/models traces its proposals and its head and runs them",
    "libra_rcnn": "Faster R-CNN's graph behind a pyramid that tests/models traces",
    "grid_rcnn": "Faster R-CNN's graph before a branch that tests/models traces",
}
ROWS = [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in DETECTORS]


@dataclass(frozen=True)
class Row:
    """A detector with lively random weights, as a checkpoint and as an ONNX file."""

    name: str
    folder: Path
    scene: Path
    report: ExportReport

    @property
    def onnx(self) -> Path:
        return self.report.path


@pytest.fixture(scope="module", params=ROWS)
def row(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Row]:
    folder = tmp_path_factory.mktemp(request.param.replace("-", "_"))
    scene = folder / "scene.png"
    cv2.imwrite(str(scene), render_scene(TILE, TILE, seed=1)[0][..., ::-1])
    with toy_detector.tiny_backbone():
        config, detector = lively(request.param)
        checkpoint = Checkpoint(config, detector.state_dict(), ("person", "car"), (1, 3), tile=TILE)
        save_checkpoint(checkpoint, folder / "model.pth")
        spec = checkpoint.spec(max_batch=4, max_detections=PROPOSALS)
        rpn = getattr(detector, "rpn", None)
        if rpn is not None:
            rpn._pre_nms_top_n = rpn._post_nms_top_n = {"testing": PROPOSALS}
            spec = replace(spec, nms_rounds=4)
        report = write_onnx(detector, spec, folder / "model.onnx")
        yield Row(request.param, folder, scene, report)


def lively(name: str) -> tuple[DetectorConfig, Detector]:
    """Return a small detector with random weights whose scores differ."""
    torch.manual_seed(1)
    info = DETECTORS[name]
    options = {"head_convs": 1} if "head_convs" in info.option_names else {}
    config = DetectorConfig("tiny", channels=32, norm="batch", classes=2, detector=name, options=options)
    detector = build_detector(config, [0.4] * len(info.pyramid.edges))
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        detector.train().backbone(torch.randn(2, 3, 128, 128))  # sets the batch norm statistics
        for path, parameter in detector.named_parameters():
            if path.endswith(("cls_logits.weight", "cls_score.weight")):
                parameter.normal_(std=0.3)
            elif path.endswith("cls_logits.bias"):
                parameter.fill_(-1.0)
            elif path.endswith("bbox_reg.bias"):
                parameter.fill_(0.5)  # FCOS: a distance of 0 is no box
    return config, detector.eval()


@pytest.fixture(scope="module")
def half(row: Row) -> Conversion:
    return convert(row.onnx, row.folder / "model.fp16.onnx", "fp16", [row.scene])


def test_the_graph_has_no_plugin_and_finds_what_torch_finds(row: Row) -> None:
    assert row.report.operators_added == 0
    assert row.report.parity.detections >= PROPOSALS and row.report.parity.unmatched == 0
    graph = onnx.load(str(row.onnx)).graph
    assert not FORBIDDEN & {node.op_type for node in graph.node}
    assert {node.domain for node in graph.node} <= {"", "ai.onnx"}


def test_the_file_takes_any_tile_and_has_no_table_of_one(row: Row) -> None:
    """The export has compared it with torch on tiles of another size."""
    assert row.report.spec.tile_multiple == DETECTORS[row.name].tile_multiple
    assert row.report.parity.tiles == 8
    model = onnx.load(str(row.onnx))
    weights = sum(math.prod(constant.dims) for constant in model.graph.initializer)
    parameters = sum(value.numel() for value in load_checkpoint(row.folder / "model.pth").weights.values())
    assert weights < parameters + 500
    sizes = [axis.dim_param for axis in model.graph.input[0].type.tensor_type.shape.dim]
    assert sizes[1:3] == ["height", "width"]


def test_what_depends_on_the_tile_is_computed_when_the_file_is_opened(row: Row, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    for axis in ("height", "width"):
        options.add_free_dimension_override_by_name(axis, 128)
    onnxruntime.InferenceSession(str(row.onnx), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(str(tmp_path / "optimized.onnx")).graph.node
    batches = [node for node in nodes if node.op_type == "Range"]
    assert len(batches) <= 1  # RoIAlign counts the images of a batch
    assert not [node for node in nodes if any(name.endswith("_first") for name in node.input)]


def test_openvino_agrees_in_both_precisions(
    row: Row, half: Conversion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino", reason="needs tinydet[openvino]")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for path in (row.onnx, half.path):
        reference, model = open_model(path, "onnx-cpu"), open_model(path, "openvino")
        found = verify(reference, model, [row.scene])
        assert found.passed, (path.name, found.faults)
        assert sum(parity.detections for parity in found.parity.values()) > PROPOSALS
        both = [open_model(path, backend, tile=128) for backend in ("onnx-cpu", "openvino")]
        found = verify(both[0], both[1], [row.scene])
        assert found.passed, (path.name, found.faults)


def test_half_precision_passes_and_keeps_no_layer(half: Conversion) -> None:
    assert half.verification.passed and half.spec.precision == "fp16" and half.kept == ()


def test_an_engine_is_built(row: Row, half: Conversion, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13, which builds engines without a GPU")
    tiles = (128, 64)
    spec = write_engine(half.path, tmp_path / "model.engine", target="rtx", batch=(1, 1, 2), tiles=tiles)
    assert spec.precision == "fp16" and spec.detector == row.name
    assert spec.engine["tiles"] == [128, 64] and (spec.tile, spec.tile_multiple) == (128, 0)
    assert spec.engine["tensors"]["images"] == "UINT8 (-1, -1, -1, 3)"
    assert spec.engine["tensors"]["boxes"] == f"FLOAT (-1, {PROPOSALS}, 4)"
    assert (tmp_path / "model.engine").read_bytes().startswith(b"vtrt")


def test_infer_runs_it_and_evaluate_scores_the_checkpoint_and_the_graph(
    row: Row, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, truth = tmp_path / "found.json", tmp_path / "annotations.json"
    command = ["infer", "--model", str(row.onnx), "--backend", "onnx-cpu", "--image", str(row.scene)]
    assert main([*command, "--overlap", "16", "--output", str(output)]) == 0
    assert len(json.loads(output.read_text())["annotations"]) > 5
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 8, 12, 12], "area": 144, "iscrowd": 0}
    image = {"id": 1, "file_name": row.scene.name, "width": TILE, "height": TILE}
    categories = [{"id": 1, "name": "person"}, {"id": 3, "name": "car"}]
    truth.write_text(json.dumps({"images": [image], "annotations": [box], "categories": categories}))
    for model in (row.folder / "model.pth", row.onnx):
        command = ["evaluate", "--model", str(model), "--annotations", str(truth), "--images", str(row.folder)]
        assert main([*command, "--overlap", "16", "--tile", "128"]) == 0, capsys.readouterr().err
        assert "AP50" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("row", ["faster_rcnn"], indirect=True)
def test_an_export_adds_rounds_until_the_suppression_converges(
    row: Row, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(DETECTORS, row.name, replace(DETECTORS[row.name], nms_rounds=1))
    output = tmp_path / "model.onnx"
    command = ["export", "onnx", str(row.folder / "model.pth"), "--output", str(output)]
    command += ["--images", str(row.scene), "--batch", "1"]
    assert main([*command, "--nms-rounds", "1"]) == 2
    assert "in the last of 1 rounds of suppression; export with more" in capsys.readouterr().err
    assert not output.exists()
    assert main(command) == 0
    assert open_model(output, "onnx-cpu").spec.nms_rounds > 1


@pytest.mark.slow
@pytest.mark.parametrize("row", ["fcos", "free_anchor"], indirect=True)
def test_int8_is_converted_and_built(row: Row, tmp_path: Path) -> None:
    """With random weights the accuracy says nothing; it is measured on trained ones in docs/export.md."""
    images = []
    for seed in range(8):
        images.append(tmp_path / f"{seed}.png")
        cv2.imwrite(str(images[-1]), render_scene(TILE, TILE, seed=seed)[0][..., ::-1])
    made = convert(row.onnx, tmp_path / "model.int8.onnx", "int8", images)
    assert made.spec.precision == "int8" and made.verification.passed
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13, which builds engines without a GPU")
    assert write_engine(made.path, tmp_path / "model.engine", target="rtx", batch=(1, 1, 2)).precision == "int8"


def test_free_anchor_with_the_weights_of_retinanet_has_its_outputs() -> None:
    """Which is why one of the two is exported in the slow tests only."""
    with toy_detector.tiny_backbone():
        config, detector = lively("free_anchor")
        twin = build_detector(replace(config, detector="retinanet"), [0.4] * 3).eval()
    twin.load_state_dict(detector.state_dict())
    spec = Checkpoint(config, {}, ("person", "car"), (1, 3), tile=TILE).spec(max_detections=PROPOSALS)
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, TILE, TILE, 3), dtype=np.uint8))
    with torch.inference_mode():
        for ours, theirs in zip(
            InferenceGraph(detector, spec)(images), InferenceGraph(twin, spec)(images), strict=True
        ):
            assert torch.equal(ours, theirs)
