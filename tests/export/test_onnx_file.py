"""The exported ONNX file: its inputs and outputs, its operators, and that it computes what the detector computes."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from tinydet.export.onnx_file import lint, operators_added, trace, write_onnx
from tinydet.export.parity import compare
from tinydet.models.build import build_detector
from tinydet.models.checkpoint import load_checkpoint
from tinydet.models.folding import fold_alpha
from tinydet.models.fpn import FPN, PlainFPN
from tinydet.models.graphs.inference import InferenceGraph
from tinydet.runtime.backends import TileOutputs, open_model
from tinydet.spec import ModelSpec

ROOT = Path(__file__).resolve().parents[2]
CONVENTIONAL = Counter(Conv=8, Resize=3, Add=3, MaxPool=1)


def noise(count: int, tile: int) -> NDArray[np.uint8]:
    return np.random.default_rng(5).integers(0, 256, (count, tile, tile, 3), dtype=np.uint8)


# ------------------------------------------------------------------------------------------------------- the file


def test_the_file_computes_what_the_detector_computes_without_folding(exported: Any, checkpoint: Path) -> None:
    trained = load_checkpoint(checkpoint)
    model = open_model(exported.folder / "model.onnx", threads=1)
    images = noise(3, model.spec.tile)
    images[0, :64] = 0  # unlike the images that the exporter itself compares
    with torch.inference_mode():
        unfolded = InferenceGraph(trained.build(), model.spec, fold=False)(torch.from_numpy(images))
    parity = compare(TileOutputs(*(part.numpy() for part in unfolded)), model.run(images), model.spec.score_floor)
    assert parity.detections > 300
    assert parity.unmatched == 0
    assert parity.score_difference < 1e-4 and parity.box_difference < 1e-2
    assert parity.candidates_difference < 0.01


def test_the_boxes_of_a_tile_do_not_depend_on_the_batch(exported: Any) -> None:
    model = open_model(exported.folder / "model.onnx", threads=1)
    images = noise(4, model.spec.tile)
    together = model.run(images)
    for i in range(4):
        alone = model.run(images[i : i + 1])
        parity = compare(TileOutputs(*(part[i : i + 1] for part in together)), alone, model.spec.score_floor)
        assert parity.detections > 50 and parity.unmatched == 0


@pytest.mark.parametrize("backend", ["openvino", "openvino-latency"])
def test_openvino_gives_the_detections_of_onnx_runtime(
    exported: Any, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino", reason="needs tinydet[openvino]")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = exported.folder / "model.onnx"
    reference, other = open_model(path, "onnx-cpu", threads=1), open_model(path, backend, threads=1)
    images = noise(3, reference.spec.tile)
    images[2] = reference.spec.pad
    parity = compare(reference.run(images), other.run(images), reference.spec.score_floor)
    assert parity.detections > 300 and parity.unmatched == 0
    assert parity.score_difference < 1e-5 and parity.box_difference < 1e-2


def test_the_file_has_no_faults(exported: Any) -> None:
    model = onnx.load(exported.folder / "model.onnx")
    spec = open_model(exported.folder / "model.onnx").spec
    assert lint(model, spec) == []
    assert len([node for node in model.graph.node if node.op_type == "TopK"]) == 6
    assert not [node for node in model.graph.node if node.op_type == "BatchNormalization"]


def test_the_file_contains_the_description_next_to_it(exported: Any) -> None:
    spec = open_model(exported.folder / "model.onnx").spec
    assert spec.classes == ("person", "car") and spec.category_ids == (1, 3)
    assert (spec.tile, spec.max_batch, spec.max_detections, spec.precision) == (128, 4, 300, "fp32")
    assert spec.alpha == pytest.approx((0.368, 0.387, 0.367))
    sidecar = json.loads((exported.folder / "model.json").read_text(encoding="utf-8"))
    metadata = json.loads(spec.to_json())
    if sidecar["engine"]:  # described by the same file
        assert sidecar["tile_multiple"] == 0 and sidecar["engine"]["tiles"] == [128]
    for name in metadata.keys() - {"onnx_sha256", "engine", "tile_multiple"}:
        assert sidecar[name] == metadata[name], name
    assert spec.tile_multiple == 32


def test_the_file_does_not_contain_paths_of_the_machine_that_wrote_it(exported: Any) -> None:
    content = (exported.folder / "model.onnx").read_bytes()
    for folder in (str(ROOT), str(Path.home()), "site-packages", str(exported.folder)):
        assert folder.encode() not in content
    assert sorted(path.name for path in exported.folder.glob("*.onnx*")) == ["model.onnx"]


def test_an_existing_file_is_kept_when_the_export_fails(checkpoint: Path, tmp_path: Path) -> None:
    trained = load_checkpoint(checkpoint)
    output = tmp_path / "model.onnx"
    output.write_bytes(b"older")
    with pytest.raises(ValueError, match="multiple of 32"):
        write_onnx(trained.build(), trained.spec(tile=100), output)
    assert output.read_bytes() == b"older"
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


# ------------------------------------------------------------------------------------------------------ operators


class Levels(torch.nn.Module):
    def __init__(self, pyramid: torch.nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.pyramid, self.call = pyramid, call

    def forward(self, c2: Any, c3: Any, c4: Any, c5: Any) -> list[Any]:
        return list(self.call(self.pyramid, (c2, c3, c4, c5)))


def traced(pyramid: torch.nn.Module, call: Callable[..., Any] = lambda p, levels: p(levels)) -> Any:
    levels = tuple(torch.zeros((2, 8, 32 >> i, 32 >> i)) for i in range(4))
    return trace(Levels(pyramid.eval(), call), levels, ("C2", "C3", "C4", "C5"), ("P2", "P3", "P4", "P5", "P6")).graph


def operators(pyramid: torch.nn.Module, call: Callable[..., Any] = lambda p, levels: p(levels)) -> Counter[str]:
    return Counter(node.op_type for node in traced(pyramid, call).node)


def wiring(graph: Any) -> list[Any]:
    """Type, attributes and sources of the inputs of every node, in order; constants by shape only."""
    produced = {name: (i, n) for i, node in enumerate(graph.node) for n, name in enumerate(node.output)}
    constants = {constant.name: ("constant", tuple(constant.dims)) for constant in graph.initializer}
    return [
        (node.op_type, sorted(map(str, node.attribute)), [produced.get(x, constants.get(x, x)) for x in node.input])
        for node in graph.node
    ]


@pytest.fixture(scope="module")
def conventional() -> Any:
    """The graph of a pyramid without factors."""
    return traced(PlainFPN([8] * 4, 8, top=LastLevelMaxPool()))


@pytest.mark.parametrize(
    "fusion",  # one and three fold as fixed factors do
    ["fixed", "channel", pytest.param("one", marks=pytest.mark.slow), pytest.param("three", marks=pytest.mark.slow)],
)
def test_a_folded_pyramid_equals_a_conventional_one_node_by_node(fusion: Any, conventional: Any) -> None:
    folded = traced(fold_alpha(FPN([8] * 4, 8, (0.368, 0.387, 0.367), fusion=fusion, top=LastLevelMaxPool())))
    assert wiring(folded) == wiring(conventional)
    assert len(wiring(folded)) == CONVENTIONAL.total()


def test_a_conventional_pyramid_has_the_ops_of_torchvisions(conventional: Any) -> None:
    """And hence a folded one, which equals it node by node."""
    theirs = operators(
        FeaturePyramidNetwork([8] * 4, 8, extra_blocks=LastLevelMaxPool()),
        lambda pyramid, levels: pyramid(dict(zip("2345", levels, strict=True))).values(),
    )
    bookkeeping = Counter(Shape=3, Concat=3)  # torchvision resizes to a given size, not by a factor of 2
    assert Counter(node.op_type for node in conventional.node) == theirs - bookkeeping == CONVENTIONAL


def test_alpha_that_is_not_folded_costs_three_multiplications() -> None:
    unfolded = operators(FPN([8] * 4, 8, (0.368, 0.387, 0.367), top=LastLevelMaxPool()))
    assert unfolded - CONVENTIONAL == Counter(Mul=3)
    with pytest.raises(ValueError, match="alpha is not folded"):
        operators_added(unfolded, CONVENTIONAL, 0)


def test_an_edge_with_alpha_zero_is_not_in_the_graph() -> None:
    folded = operators(fold_alpha(FPN([8] * 4, 8, (0.5, 0.0, 0.5), top=LastLevelMaxPool())))
    assert CONVENTIONAL - folded == Counter(Resize=1, Add=1)
    assert operators_added(folded, CONVENTIONAL, 1) == 0
    with pytest.raises(ValueError, match="alpha is not folded"):
        operators_added(folded, CONVENTIONAL, 0)


def test_an_edge_that_keeps_its_factor_costs_one_multiplication() -> None:
    pyramid = FPN([8] * 4, 8, (0.5, 2e-3, 0.5), top=LastLevelMaxPool())
    for conv in pyramid.inner:
        torch.nn.init.normal_(conv.weight, std=1e-4)
    folded = fold_alpha(pyramid)
    assert folded.kept == (1,)
    assert operators_added(operators(folded), CONVENTIONAL, 0, 1) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "alpha"),
    [({"fusion": "attention"}, None), ({"fusion": "channel"}, (0.9, 0.5, 0.7)), ({}, (0.0, 0.5, 1.0))],
    ids=["attention", "channel", "an edge with alpha 0"],
)
def test_detectors_with_every_fusion_mode_can_be_exported(
    checkpoint: Path, tmp_path: Path, changes: dict[str, Any], alpha: tuple[float, ...] | None
) -> None:
    trained = load_checkpoint(checkpoint)
    config = replace(trained.detector, **changes)
    detector = build_detector(config, alpha)
    own = {k: v for k, v in detector.state_dict().items() if "alpha" in k or "attention" in k}
    others = {k: v for k, v in trained.weights.items() if k != "fpn.alpha"}
    detector.load_state_dict({**others, **own})
    report = write_onnx(
        detector.eval(), replace(trained, detector=config, weights=detector.state_dict()).spec(), tmp_path / "m.onnx"
    )
    assert report.parity.detections > 100 and report.parity.unmatched == 0
    if changes.get("fusion") == "attention":
        assert report.operators_added > 0 and report.kept_edges == ("P3->P2", "P4->P3", "P5->P4")
    else:
        assert report.operators_added == 0 and report.kept_edges == ()
    assert report.deleted_edges == (("P3->P2",) if alpha and alpha[0] == 0 else ())


def test_a_pyramid_that_was_not_found_in_the_graph_is_an_error() -> None:
    with pytest.raises(ValueError, match="alpha is not folded"):
        operators_added(Counter(), CONVENTIONAL, 0)


# ----------------------------------------------------------------------------------------------------------- lint


def test_a_valid_graph_has_no_faults(brightness_model: Any, brightness_spec: ModelSpec) -> None:
    assert lint(brightness_model, brightness_spec) == []


def _suppress(graph: Any) -> None:
    graph.node.append(helper.make_node("NonMaxSuppression", ["boxes", "scores"], ["kept"], name="nms"))


def _plugin(graph: Any) -> None:
    graph.node.append(helper.make_node("EfficientNMS_TRT", ["boxes"], ["kept"], name="plugin", domain="trt"))


def _keep_too_many(graph: Any) -> None:
    next(c for c in graph.initializer if c.name == "slots").CopyFrom(numpy_helper.from_array(np.array([3841]), "slots"))


def _keep_a_computed_number(graph: Any) -> None:
    next(node for node in graph.node if node.op_type == "TopK").input[1] = "computed"


def _transpose_uint8(graph: Any) -> None:
    graph.node.append(helper.make_node("Transpose", ["images"], ["x"], name="early"))


def _divide_an_index(graph: Any) -> None:
    graph.node.append(helper.make_node("Div", ["means", "floor"], ["half"]))
    graph.node.append(helper.make_node("Floor", ["half"], ["whole"]))
    graph.node.append(helper.make_node("Cast", ["whole"], ["cell"], to=TensorProto.INT64))
    graph.node.append(helper.make_node("GatherElements", ["table", "cell"], ["x"], name="lookup"))


def _wide_labels(graph: Any) -> None:
    graph.output[2].type.tensor_type.elem_type = TensorProto.INT64


def _another_order(graph: Any) -> None:
    graph.output.insert(0, graph.output.pop())


def _fixed_batch_of_other_tiles(graph: Any) -> None:
    graph.input[0].type.tensor_type.shape.dim[1].dim_value = 32


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (_suppress, "'nms' is a NonMaxSuppression"),
        (_plugin, "in the domain 'trt', which needs a plugin"),
        (_keep_too_many, "'best' keeps 3841 values; TopK in TensorRT keeps at most 3840"),
        (_keep_a_computed_number, "'best' keeps inf"),
        (_transpose_uint8, "'early' transposes uint8"),
        (_divide_an_index, "'lookup' gathers at indices that come from a division"),
        (_wide_labels, r"INT64 \(N, 10\)"),
        (_another_order, "inputs and outputs are"),
        (_fixed_batch_of_other_tiles, r"UINT8 \(N, 32, 64, 3\)"),
    ],
)
def test_nodes_that_a_runtime_would_not_support_are_named(
    brightness_model: Any, brightness_spec: ModelSpec, break_it: Callable[[Any], None], message: str
) -> None:
    break_it(brightness_model.graph)
    (fault,) = lint(brightness_model, brightness_spec)
    assert re.search(message, fault)


def test_more_slots_than_topk_takes_are_refused(tmp_path: Path) -> None:
    spec = ModelSpec(("a",), (1,), "retinanet", "none", tile=64, max_detections=3841)
    with pytest.raises(ValueError, match=r"1\.\.3840 .*got 3841"):
        write_onnx(torch.nn.Identity(), spec, tmp_path / "model.onnx")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
