"""Conversion to FP16 and INT8: which layers are converted, which are kept, and engines built from the result."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tinydet.__main__ import main
from tinydet.export.engine import write_engine
from tinydet.export.fp16 import to_fp16
from tinydet.export.int8 import calibrate, to_int8
from tinydet.export.layer_search import search_layers
from tinydet.export.layers import layers_of
from tinydet.export.onnx_model import graph_precision, read_onnx
from tinydet.export.precision import convert
from tinydet.runtime.backends import int8_file, open_model
from tinydet.spec import ModelSpec

FIRST, DEEP, HEAD = "detector.backbone.body.0.weight", "detector.fpn.inner.0.weight", "kernel"


@pytest.fixture
def model(brightness_model: Any) -> Any:
    """The brightness model behind two more layers: an identity, a ReLU and a sum, and another identity."""
    return deepened(brightness_model, outlier=0.0)


@pytest.fixture
def sensitive(brightness_model: Any) -> Any:
    """The same with an unused fourth channel, so much stronger that INT8 rounds the others to 0."""
    return deepened(brightness_model, outlier=1000.0)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Dark images with a few bright cells, each of a different brightness."""
    paths = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        image = np.full((64, 64), 20, np.uint8)
        for n, cell in enumerate(rng.choice(256, 6, replace=False).tolist()):
            image[4 * (cell // 16) :, 4 * (cell % 16) :][:4, :4] = 150 + 20 * n
        paths.append(tmp_path / f"{seed}.png")
        cv2.imwrite(str(paths[-1]), image)
    return paths


def deepened(model: Any, outlier: float) -> Any:
    graph = model.graph
    strong = np.concatenate([np.eye(3), np.full((1, 3), outlier)])[..., None, None].astype(np.float32)
    kernel = next(c for c in graph.initializer if c.name == HEAD)
    wide = np.concatenate([numpy_helper.to_array(kernel) / 2, np.zeros((1, 1, 4, 4), np.float32)], axis=1)
    kernel.CopyFrom(numpy_helper.from_array(wide, HEAD))
    for name, values in {FIRST: np.eye(3)[..., None, None].astype(np.float32), DEEP: strong}.items():
        graph.initializer.append(numpy_helper.from_array(values, name))
    at = next(i for i, node in enumerate(graph.node) if node.name == "mean")
    graph.node[at].input[0] = "deep"
    for node in reversed(
        [
            helper.make_node("Conv", ["planes", FIRST], ["first"], name="first"),
            helper.make_node("Relu", ["first"], ["relu"], name="relu"),
            helper.make_node("Add", ["relu", "first"], ["sum"], name="sum"),
            helper.make_node("Conv", ["sum", DEEP], ["deep"], name="deep"),
        ]
    ):
        graph.node.insert(at, node)
    onnx.checker.check_model(model, full_check=True)
    return model


def written(model: Any, path: Path) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def types_of(model: Any) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    return {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}


# ----------------------------------------------------------------------------------------------------------- FP16


def test_convolutions_and_nodes_between_them_are_fp16_and_boxes_are_fp32(model: Any) -> None:
    half = to_fp16(model)
    onnx.checker.check_model(half, full_check=True)
    types = types_of(half)
    assert {types[name] for name in ("first", "relu", "sum", "deep", "means")} == {TensorProto.FLOAT16}
    assert {types[name] for name in ("pixels", "planes", "all", "scores", "boxes")} == {TensorProto.FLOAT}
    weights, precision = graph_precision(half.graph)
    assert precision == "fp16" and weights["FLOAT16"] == 9 + 12 + 64 and weights["FLOAT"] == 256 * 4 + 1
    assert Counter(node.op_type for node in half.graph.node)["Cast"] == 4  # uint8, to FP16, to FP32, candidates
    assert graph_precision(model.graph)[1] == "fp32"  # the model itself is not changed


def test_a_kept_layer_stays_fp32_with_casts_around_it(model: Any) -> None:
    half = to_fp16(model, [DEEP])
    onnx.checker.check_model(half, full_check=True)
    types = types_of(half)
    assert types["deep"] == TensorProto.FLOAT and types["sum"] == types["means"] == TensorProto.FLOAT16


def test_weights_beyond_the_range_of_fp16_stay_fp32(model: Any) -> None:
    deep = next(c for c in model.graph.initializer if c.name == DEEP)
    deep.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(deep) * 70_000, DEEP))
    half = to_fp16(model)
    kinds = {c.name: c.data_type for c in half.graph.initializer}
    assert kinds[DEEP] == TensorProto.FLOAT and kinds[FIRST] == TensorProto.FLOAT16


def scaled(model: Any, factors: dict[str, float]) -> Any:
    """Scale weights; if the factors cancel, only intermediate values change."""
    for constant in model.graph.initializer:
        if constant.name in factors:
            values = numpy_helper.to_array(constant) * np.float32(factors[constant.name])
            constant.CopyFrom(numpy_helper.from_array(values, constant.name))
    return model


def test_layers_with_activations_near_the_fp16_limit_stay_fp32(model: Any, images: list[Path], tmp_path: Path) -> None:
    # 250 * 2 * 40 is less than 65504, but other images may be brighter. ONNX Runtime on a CPU would not overflow.
    source = written(scaled(model, {FIRST: 40, DEEP: 1 / 40}), tmp_path / "model.onnx")
    made = convert(source, tmp_path / "model.fp16.onnx", "fp16", images)
    assert made.kept == (FIRST, DEEP) and made.spec.precision == "fp16" and made.verification.passed
    report = json.loads((tmp_path / "model.fp16.verify.json").read_text())
    assert report["kept_in_fp32"] == [FIRST, DEEP]


def test_a_model_that_would_stay_mostly_fp32_is_not_written_as_fp16(
    model: Any, images: list[Path], tmp_path: Path
) -> None:
    source = written(scaled(model, {FIRST: 40, HEAD: 1 / 40}), tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=r"model\.fp16\.onnx was not written: 3 of 3 layers must stay in FP32"):
        convert(source, tmp_path / "model.fp16.onnx", "fp16", images)
    assert not list(tmp_path.glob("model.fp16*"))


def test_resize_scales_and_constants_shared_with_fp32_nodes_stay_fp32(model: Any) -> None:
    graph = model.graph
    at = next(i for i, node in enumerate(graph.node) if node.name == "deep")
    graph.initializer.extend(
        [numpy_helper.from_array(np.array([1, 1, 1, 1], np.float32), "scales"),
         numpy_helper.from_array(np.float32(1), "unit")]
    )  # fmt: skip
    graph.node[at].input[0] = "scaled"
    graph.node.insert(at, helper.make_node("Mul", ["resized", "unit"], ["scaled"], name="scale"))
    graph.node.insert(at, helper.make_node("Resize", ["sum", "", "scales"], ["resized"], name="resize"))
    late = next(i for i, node in enumerate(graph.node) if node.name == "flatten")
    graph.node[late].input[0] = "late"
    graph.node.insert(late, helper.make_node("Mul", ["means", "unit"], ["late"], name="late"))
    half = to_fp16(model)
    onnx.checker.check_model(half, full_check=True)
    kinds = {c.name: c.data_type for c in half.graph.initializer}
    assert (kinds["scales"], kinds["unit"], kinds["unit_fp16"]) == (1, 1, TensorProto.FLOAT16)


def test_a_converted_model_is_described_as_fp16_and_verified(model: Any, images: list[Path], tmp_path: Path) -> None:
    source = written(model, tmp_path / "model.onnx")
    made = convert(source, tmp_path / "model.fp16.onnx", "fp16", images)
    assert made.kept == () and made.layers == 3 and made.sensitivity == {}
    assert made.spec.precision == read_onnx(made.path).precision == "fp16"
    assert made.verification.passed and made.verification.parity["real tiles, batch 1"].detections > 10
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith("model.fp16")) == [
        "model.fp16.json",
        "model.fp16.onnx",
        "model.fp16.verify.json",
        "model.fp16.verify.md",
    ]
    sidecar = ModelSpec.from_json((tmp_path / "model.fp16.json").read_text(), source="model.fp16.json")
    assert sidecar.onnx_sha256 == read_onnx(made.path).sha256
    with pytest.raises(ValueError, match=r"model\.fp16\.onnx is already fp16"):
        convert(made.path, tmp_path / "again.onnx", "int8", images)


def attending(model: Any) -> Any:
    """The model with attention of the planes to themselves, and its norm, between the first two layers."""
    graph = model.graph
    constants = {
        "rows": [0, 3, -1],
        "map": [0, 3, 64, 64],
        "scale": np.ones(3, np.float32),
        "b": np.zeros(3, np.float32),
    }
    graph.initializer.extend(numpy_helper.from_array(np.asarray(each), name) for name, each in constants.items())
    at = next(i for i, node in enumerate(graph.node) if node.name == "deep")
    graph.node[at].input[0] = "normal"
    for node in reversed(
        [
            helper.make_node("Reshape", ["sum", "rows"], ["flat_sum"], name="flat_sum"),
            helper.make_node("Transpose", ["flat_sum"], ["turned"], name="turned", perm=[0, 2, 1]),
            helper.make_node("MatMul", ["flat_sum", "turned"], ["logits"], name="logits"),
            helper.make_node("Softmax", ["logits"], ["shares"], name="shares", axis=-1),
            helper.make_node("MatMul", ["shares", "flat_sum"], ["attended"], name="attended"),
            helper.make_node("Reshape", ["attended", "map"], ["refined"], name="refined"),
            helper.make_node("InstanceNormalization", ["refined", "scale", "b"], ["normal"], name="normal"),
        ]
    ):
        graph.node.insert(at, node)
    onnx.checker.check_model(model, full_check=True)
    return model


def test_attention_and_the_statistics_of_norms_stay_fp32(model: Any) -> None:
    """Logits of 4096 products with values up to 500 are far beyond FP16, and so are sums over a map."""
    half = to_fp16(attending(model))
    onnx.checker.check_model(half, full_check=True)
    types = types_of(half)
    assert {types[name] for name in ("logits", "shares", "attended", "normal")} == {TensorProto.FLOAT}
    assert {types[name] for name in ("first", "sum", "flat_sum", "refined", "deep")} == {TensorProto.FLOAT16}


def test_int8_leaves_the_layers_around_attention_in_fp32(model: Any, images: list[Path], tmp_path: Path) -> None:
    source = written(attending(model), tmp_path / "model.onnx")
    quantized = to_int8(onnx.load(str(source)), calibrate(source, images, read_onnx(source).spec, "max"))
    weights = {node.input[0] for node in quantized.graph.node if node.op_type == "QuantizeLinear"}
    assert HEAD in weights and not {FIRST, DEEP} & weights


# ----------------------------------------------------------------------------------------------------------- INT8


@pytest.mark.parametrize("method", ["max", "entropy", "percentile"])
def test_int8_is_symmetric_and_per_channel_and_biases_stay_fp32(
    model: Any, images: list[Path], tmp_path: Path, method: Any
) -> None:
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float32), "bias"))
    next(node for node in graph.node if node.name == "first").input.append("bias")
    source = written(model, tmp_path / "model.onnx")
    quantized = to_int8(model, calibrate(source, images, read_onnx(source).spec, method))
    onnx.checker.check_model(quantized, full_check=True)
    assert graph_precision(quantized.graph)[1] == "int8"
    constants = {c.name: numpy_helper.to_array(c) for c in quantized.graph.initializer}
    zero_points = {node.input[2] for node in quantized.graph.node if node.op_type.endswith("quantizeLinear")}
    zero_points |= {node.input[2] for node in quantized.graph.node if node.op_type == "QuantizeLinear"}
    assert zero_points and all((constants[name] == 0).all() for name in zero_points)
    assert {constants[name].dtype for name in zero_points} == {np.dtype(np.int8)}
    per_channel = {node.input[0]: node.input[1] for node in quantized.graph.node if node.op_type == "QuantizeLinear"}
    assert constants[per_channel[FIRST]].shape == (3,) and constants[per_channel[DEEP]].shape == (4,)
    assert "bias" not in per_channel and constants["bias"].dtype == np.float32
    assert "sum" in {name.removesuffix("_QuantizeLinear_Input") for name in per_channel}


def test_calibration_covers_the_ranges_of_all_images(model: Any, images: list[Path], tmp_path: Path) -> None:
    source = written(model, tmp_path / "model.onnx")
    spec = read_onnx(source).spec
    together = calibrate(source, iter(images), spec, "max")["planes"].range_value
    alone = [calibrate(source, [path], spec, "max")["planes"].range_value for path in images]
    assert max(np.max(high) for _, high in alone) == np.max(together[1]) == 250


def test_a_model_that_tolerates_int8_is_converted_completely(
    model: Any, images: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = convert(written(model, tmp_path / "model.onnx"), tmp_path / "model.int8.onnx", "int8", images)
    assert made.kept == () and made.spec.precision == "int8" and made.verification.passed
    tiles = np.stack([cv2.imread(str(path)) for path in images])
    for backend in ("onnx-cpu", "openvino"):
        if backend == "openvino":
            pytest.importorskip("openvino", reason="needs tinydet[openvino]")
        found = open_model(made.path, backend).run(tiles)
        assert (found.labels == 0).sum(axis=1).tolist() == [6, 6, 6]
        brightest = 250 / 255  # the largest weight on a bright pixel: sums of such products overflow 16 bits
        np.testing.assert_allclose(found.scores[:, 0], brightest, atol=0.01)


def test_layers_that_int8_would_ruin_are_kept_and_listed(sensitive: Any, images: list[Path], tmp_path: Path) -> None:
    made = convert(written(sensitive, tmp_path / "model.onnx"), tmp_path / "model.int8.onnx", "int8", images)
    assert FIRST not in made.kept and set(made.kept) <= {DEEP, HEAD} and made.kept
    assert made.sensitivity["backbone.body.0"] < 0.1 < made.sensitivity["fpn.inner"]
    assert made.verification.passed and made.spec.precision == "int8"


def test_the_result_of_a_search_on_thirty_images_is_verified_on_all_images(
    sensitive: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    light: dict[str, Any] = {"categories": [{"id": 4, "name": "light"}], "images": [], "annotations": []}
    (tmp_path / "images").mkdir()
    for n in range(32):
        image = np.full((64, 64), 20, np.uint8)
        image[8:12, 16:20] = 150 + 3 * n
        cv2.imwrite(str(tmp_path / "images" / f"{n:02}.png"), image)
        light["images"].append({"id": n, "file_name": f"{n:02}.png", "width": 64, "height": 64})
        light["annotations"].append({"id": n, "image_id": n, "category_id": 4, "bbox": [16, 8, 4, 4]})
    (tmp_path / "annotations.json").write_text(json.dumps(light))
    source = written(sensitive, tmp_path / "model.onnx")
    (tmp_path / "more").mkdir()
    cv2.imwrite(str(tmp_path / "more" / "more.png"), image)
    flags = ["--data", str(tmp_path), "--calibration", str(tmp_path / "more"), "--limit", "31"]
    assert main(["export", "onnx", str(source), "--precision", "int8", *flags]) == 0
    report = json.loads((tmp_path / "model.int8.verify.json").read_text())
    assert report["kept_in_fp32"] and report["images"] == 31
    monkeypatch.setattr(int8_file, "int8_instructions", lambda: "VNNI")
    assert int8_file.int8_file(source)[0] == tmp_path / "model.int8.onnx"


def test_a_model_that_cannot_be_converted_is_an_error(sensitive: Any, images: list[Path], tmp_path: Path) -> None:
    first = next(node for node in sensitive.graph.node if node.name == "first")
    first.op_type = "Identity"
    del first.input[1:]  # the only layer that can be converted is gone
    source = written(sensitive, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=r"no layer can be int8 within the allowed drop.*--max-drop"):
        convert(source, tmp_path / "model.int8.onnx", "int8", images)
    assert not list(tmp_path.glob("model.int8*"))


# --------------------------------------------------------------------------------------------------------- search

NAMES = [f"detector.backbone.body.{block}.conv.{layer}.weight" for block in range(4) for layer in range(3)]
DAMAGE = dict.fromkeys(NAMES, 0.001) | {NAMES[4]: 0.2, NAMES[9]: 0.1}


def damage(layers: Collection[str]) -> float:
    return sum(DAMAGE[name] for name in layers)


@pytest.mark.parametrize(
    ("allowed", "kept"), [(0.15, {NAMES[4]}), (0.05, {NAMES[4], NAMES[9]}), (0.0105, {NAMES[4], NAMES[9]})]
)
def test_a_search_keeps_exactly_the_damaging_layers(allowed: float, kept: set[str]) -> None:
    found = search_layers(NAMES, damage, lambda kept: damage(set(NAMES) - set(kept)) <= allowed)
    assert found is not None and set(found.kept) == kept
    assert max((n for n in found.sensitivity if "conv" not in n), key=found.sensitivity.get) == "backbone.body.1"


def test_a_search_without_a_solution_returns_none() -> None:
    assert search_layers(NAMES, damage, lambda kept: False) is None


@pytest.mark.parametrize(("most", "needed"), [(m, n) for m in (1, 2, 3, 6, 25) for n in range(1, m + 2)])
def test_a_search_finds_the_smallest_number_of_blocks_in_few_trials(most: int, needed: int) -> None:
    names = [
        f"backbone.body.{i}.weight" for i in range(most)
    ]  # one layer per block, so that all layers of the blocks are needed
    tried: list[int] = []
    found = search_layers(
        names,
        lambda alone: 1 / (1 + names.index(alone[0])),
        lambda kept: tried.append(len(kept)) or len(kept) >= needed,
    )
    assert (found and len(found.kept)) == (needed if needed <= most else None)
    assert len(tried) <= 4 * most.bit_length()  # for blocks and then for layers


def test_a_search_measures_blocks_before_layers() -> None:
    measured: list[int] = []
    search_layers(NAMES, lambda layers: measured.append(len(layers)) or damage(layers), lambda kept: len(kept) >= 3)
    assert measured == [3, 3, 3, 3, 1, 1, 1]


# -------------------------------------------------------------------------------------------------------- engines


def test_engines_of_each_precision_can_be_built(model: Any, images: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13, which builds engines without a GPU")
    source = written(model, tmp_path / "model.onnx")
    paths = {"fp32": source}
    for precision in ("fp16", "int8"):
        paths[precision] = convert(source, tmp_path / f"model.{precision}.onnx", precision, images).path
    for precision, path in paths.items():
        spec = write_engine(path, tmp_path / f"{precision}.engine", target="rtx", batch=(1, 2, 4))
        assert spec.precision == precision
        assert (tmp_path / f"{precision}.engine").read_bytes().startswith(b"vtrt")


@pytest.mark.slow
def test_a_detector_is_converted_and_built(exported: Any, scene: Path, tmp_path: Path) -> None:
    """The head shares its weights between levels, and no layer follows the last convolutions."""
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13, which builds engines without a GPU")
    source = exported.folder / "model.onnx"
    made = convert(source, tmp_path / "model.fp16.onnx", "fp16", [scene])
    assert made.kept == () and made.verification.passed
    assert made.bytes < 0.62 * source.stat().st_size
    graph = onnx.load(str(made.path)).graph
    casts = [node.input[0] for node in graph.node if node.name.startswith("cast_")]
    assert len(casts) == 11  # the pixels, and two outputs of the head on five levels
    assert all(len(nodes) == 5 for name, nodes in layers_of(graph).items() if ".head." in name)
    model = onnx.load(str(source))
    quantized = to_int8(model, calibrate(source, [scene], made.spec, "max"))
    del quantized.metadata_props[:]
    quantized.metadata_props.add(key="tinydet", value=dataclasses.replace(made.spec, precision="int8").to_json())
    built = {}
    for name, path in {"fp32": source, "fp16": made.path, "int8": written(quantized, tmp_path / "q.onnx")}.items():
        spec = write_engine(path, tmp_path / f"{name}.engine", target="rtx", batch=(1, 1, 2))
        built[name] = spec.precision, spec.engine["weights"].get("FLOAT16", 0) > spec.engine["weights"]["FLOAT"]
    # Not the size of the plans: the plan of a small model is mostly kernels, and INT8 needs more of them.
    assert built == {"fp32": ("fp32", False), "fp16": ("fp16", True), "int8": ("int8", False)}
