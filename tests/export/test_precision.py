"""Precision in the graph: what is converted, what is kept and why, and real engines of it."""

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

from tinydet.export.__main__ import main
from tinydet.export.engine import build_engine, graph_precision, read_onnx
from tinydet.export.precision import calibrate, convert, layers_of, search, to_fp16, to_int8
from tinydet.runtime.backends import open_model
from tinydet.spec import ModelSpec

FIRST, DEEP, HEAD = "detector.backbone.body.0.weight", "detector.fpn.inner.0.weight", "kernel"


@pytest.fixture
def model(brightness_model: Any) -> Any:
    """Two layers before the one that weighs the pixels: a copy, then a ReLU, a sum with itself and another copy."""
    return deepened(brightness_model, outlier=0.0)


@pytest.fixture
def sensitive(brightness_model: Any) -> Any:
    """The same, and a fourth channel a thousand times as strong, that nobody uses: INT8 sees nothing beside it."""
    return deepened(brightness_model, outlier=1000.0)


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Dark pictures with a few bright cells, each of its own brightness."""
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


def test_convolutions_and_what_lies_between_them_are_fp16_and_boxes_are_not(model: Any) -> None:
    half = to_fp16(model)
    onnx.checker.check_model(half, full_check=True)
    types = types_of(half)
    assert {types[name] for name in ("first", "relu", "sum", "deep", "means")} == {TensorProto.FLOAT16}
    assert {types[name] for name in ("pixels", "planes", "all", "scores", "boxes")} == {TensorProto.FLOAT}
    weights, precision = graph_precision(half.graph)
    assert precision == "fp16" and weights["FLOAT16"] == 9 + 12 + 64 and weights["FLOAT"] == 256 * 4 + 1
    assert Counter(node.op_type for node in half.graph.node)["Cast"] == 4  # uint8, in, out, and the count of candidates
    assert graph_precision(model.graph)[1] == "fp32"  # the model itself is as it was


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
    """The same answers by larger numbers on the way."""
    for constant in model.graph.initializer:
        if constant.name in factors:
            values = numpy_helper.to_array(constant) * np.float32(factors[constant.name])
            constant.CopyFrom(numpy_helper.from_array(values, constant.name))
    return model


def test_layers_whose_numbers_fp16_cannot_hold_stay_fp32_though_the_judge_would_not_see_it(
    model: Any, pictures: list[Path], tmp_path: Path
) -> None:
    # 250 x 2 x 40 is less than 65504, but other pictures may be brighter than these.
    source = written(scaled(model, {FIRST: 40, DEEP: 1 / 40}), tmp_path / "model.onnx")
    made = convert(source, tmp_path / "model.fp16.onnx", "fp16", pictures)
    assert made.kept == (FIRST, DEEP) and made.spec.precision == "fp16" and made.verification.passed
    report = json.loads((tmp_path / "model.fp16.verify.json").read_text())
    assert report["kept_in_fp32"] == [FIRST, DEEP]


def test_a_file_that_would_be_fp32_for_the_most_part_does_not_get_an_fp16_name(
    model: Any, pictures: list[Path], tmp_path: Path
) -> None:
    source = written(scaled(model, {FIRST: 40, HEAD: 1 / 40}), tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=r"model\.fp16\.onnx was not written: 3 of 3 layers have to stay in FP32"):
        convert(source, tmp_path / "model.fp16.onnx", "fp16", pictures)
    assert not list(tmp_path.glob("model.fp16*"))


def test_a_resize_keeps_its_scales_and_a_shared_constant_its_other_users(model: Any) -> None:
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


def test_the_written_model_says_fp16_and_passes_the_gate(model: Any, pictures: list[Path], tmp_path: Path) -> None:
    source = written(model, tmp_path / "model.onnx")
    made = convert(source, tmp_path / "model.fp16.onnx", "fp16", pictures)
    assert made.kept == () and made.layers == 3 and made.shares == {}
    assert made.spec.precision == read_onnx(made.path).precision == "fp16"
    assert made.verification.passed and made.verification.parity["real tiles, batch 1"].detections > 10
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith("model.fp16")) == [
        "model.fp16.json",
        "model.fp16.onnx",
        "model.fp16.verify.json",
        "model.fp16.verify.md",
    ]
    beside = ModelSpec.from_json((tmp_path / "model.fp16.json").read_text(), source="model.fp16.json")
    assert beside.onnx_sha256 == read_onnx(made.path).sha256
    with pytest.raises(ValueError, match=r"model\.fp16\.onnx is fp16 already"):
        convert(made.path, tmp_path / "again.onnx", "int8", pictures)


# ----------------------------------------------------------------------------------------------------------- INT8


@pytest.mark.parametrize("method", ["max", "entropy", "percentile"])
def test_int8_is_symmetric_per_channel_and_leaves_biases_alone(
    model: Any, pictures: list[Path], tmp_path: Path, method: Any
) -> None:
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float32), "bias"))
    next(node for node in graph.node if node.name == "first").input.append("bias")
    source = written(model, tmp_path / "model.onnx")
    quantised = to_int8(model, calibrate(source, pictures, read_onnx(source).spec, method))
    onnx.checker.check_model(quantised, full_check=True)
    assert graph_precision(quantised.graph)[1] == "int8"
    constants = {c.name: numpy_helper.to_array(c) for c in quantised.graph.initializer}
    zero_points = {node.input[2] for node in quantised.graph.node if node.op_type.endswith("quantizeLinear")}
    zero_points |= {node.input[2] for node in quantised.graph.node if node.op_type == "QuantizeLinear"}
    assert zero_points and all((constants[name] == 0).all() for name in zero_points)
    assert {constants[name].dtype for name in zero_points} == {np.dtype(np.int8)}
    per_channel = {node.input[0]: node.input[1] for node in quantised.graph.node if node.op_type == "QuantizeLinear"}
    assert constants[per_channel[FIRST]].shape == (3,) and constants[per_channel[DEEP]].shape == (4,)
    assert "bias" not in per_channel and constants["bias"].dtype == np.float32
    assert "sum" in {name.removesuffix("_QuantizeLinear_Input") for name in per_channel}


def test_calibration_sees_all_pictures_one_at_a_time(model: Any, pictures: list[Path], tmp_path: Path) -> None:
    source = written(model, tmp_path / "model.onnx")
    spec = read_onnx(source).spec
    together = calibrate(source, iter(pictures), spec, "max")["planes"].range_value
    alone = [calibrate(source, [path], spec, "max")["planes"].range_value for path in pictures]
    assert max(np.max(high) for _, high in alone) == np.max(together[1]) == 250


def test_a_model_that_takes_int8_well_is_converted_whole(
    model: Any, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = convert(written(model, tmp_path / "model.onnx"), tmp_path / "model.int8.onnx", "int8", pictures)
    assert made.kept == () and made.spec.precision == "int8" and made.verification.passed
    tiles = np.stack([cv2.imread(str(path)) for path in pictures])
    for backend in ("onnx-cpu", "openvino"):
        if backend == "openvino":
            pytest.importorskip("openvino", reason="needs tinydet[openvino]")
        found = open_model(made.path, backend).run(tiles)
        assert (found.labels == 0).sum(axis=1).tolist() == [6, 6, 6]
        brightest = 250 / 255  # the largest weight on a bright pixel: sums of such products overflow 16 bits
        np.testing.assert_allclose(found.scores[:, 0], brightest, atol=0.01)


def test_layers_that_int8_would_blind_are_kept_and_named(sensitive: Any, pictures: list[Path], tmp_path: Path) -> None:
    made = convert(written(sensitive, tmp_path / "model.onnx"), tmp_path / "model.int8.onnx", "int8", pictures)
    assert FIRST not in made.kept and set(made.kept) <= {DEEP, HEAD} and made.kept
    assert made.shares["backbone.body.0"] < 0.1 < made.shares["fpn.inner"]
    assert made.verification.passed and made.spec.precision == "int8"


def test_what_a_search_on_thirty_images_chose_passes_the_gate_on_all_that_were_asked_for(
    sensitive: Any, tmp_path: Path
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
    assert main(["onnx", str(source), "--precision", "int8", "--data", str(tmp_path), "--limit", "31"]) == 0
    report = json.loads((tmp_path / "model.int8.verify.json").read_text())
    assert report["kept_in_fp32"] and report["images"] == 31


def test_where_nothing_can_be_converted_it_says_so_and_writes_nothing(
    sensitive: Any, pictures: list[Path], tmp_path: Path
) -> None:
    first = next(node for node in sensitive.graph.node if node.name == "first")
    first.op_type = "Identity"
    del first.input[1:]  # the only layer that can be converted is gone
    source = written(sensitive, tmp_path / "model.onnx")
    with pytest.raises(ValueError, match=r"no layer can be int8 within the allowed drop.*--max-drop"):
        convert(source, tmp_path / "model.int8.onnx", "int8", pictures)
    assert not list(tmp_path.glob("model.int8*"))


# --------------------------------------------------------------------------------------------------------- search

NAMES = [f"detector.backbone.body.{block}.conv.{layer}.weight" for block in range(4) for layer in range(3)]
DAMAGE = dict.fromkeys(NAMES, 0.001) | {NAMES[4]: 0.2, NAMES[9]: 0.1}


def damage(layers: Collection[str]) -> float:
    return sum(DAMAGE[name] for name in layers)


@pytest.mark.parametrize(
    ("allowed", "kept"), [(0.15, {NAMES[4]}), (0.05, {NAMES[4], NAMES[9]}), (0.0105, {NAMES[4], NAMES[9]})]
)
def test_a_search_keeps_exactly_the_layers_that_do_the_damage(allowed: float, kept: set[str]) -> None:
    found = search(NAMES, damage, lambda kept: damage(set(NAMES) - set(kept)) <= allowed)
    assert found is not None and set(found.kept) == kept
    assert max((name for name in found.shares if "conv" not in name), key=found.shares.__getitem__) == "backbone.body.1"


def test_a_search_that_finds_nothing_good_enough_says_so() -> None:
    assert search(NAMES, damage, lambda kept: False) is None


@pytest.mark.parametrize(("most", "needed"), [(m, n) for m in (1, 2, 3, 6, 25) for n in range(1, m + 2)])
def test_a_search_needs_few_trials_for_the_fewest_blocks(most: int, needed: int) -> None:
    names = [f"backbone.body.{i}.weight" for i in range(most)]  # a block each, so that there is nothing to give back
    tried: list[int] = []
    found = search(
        names,
        lambda alone: 1 / (1 + names.index(alone[0])),
        lambda kept: tried.append(len(kept)) or len(kept) >= needed,
    )
    assert (found and len(found.kept)) == (needed if needed <= most else None)
    assert len(tried) <= 4 * most.bit_length()  # of blocks and, in vain, of layers


def test_a_search_measures_blocks_before_layers() -> None:
    measured: list[int] = []
    search(NAMES, lambda layers: measured.append(len(layers)) or damage(layers), lambda kept: len(kept) >= 3)
    assert measured == [3, 3, 3, 3, 1, 1, 1]


# -------------------------------------------------------------------------------------------------------- engines


def test_engines_of_each_precision_are_really_built(model: Any, pictures: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13, which builds engines without a GPU")
    source = written(model, tmp_path / "model.onnx")
    paths = {"fp32": source}
    for precision in ("fp16", "int8"):
        paths[precision] = convert(source, tmp_path / f"model.{precision}.onnx", precision, pictures).path
    for precision, path in paths.items():
        spec = build_engine(path, tmp_path / f"{precision}.engine", target="rtx", batch=(1, 2, 4))
        assert spec.precision == precision
        assert (tmp_path / f"{precision}.engine").read_bytes().startswith(b"vtrt")


@pytest.mark.slow
def test_a_detector_is_converted_and_built(exported: Any, picture: Path, tmp_path: Path) -> None:
    """The head shares its weights over the levels, and the last convolutions have no one behind them."""
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx-cu13, which builds engines without a GPU")
    source = exported.folder / "model.onnx"
    made = convert(source, tmp_path / "model.fp16.onnx", "fp16", [picture])
    assert made.kept == () and made.verification.passed
    assert made.bytes < 0.62 * source.stat().st_size
    graph = onnx.load(str(made.path)).graph
    casts = [node.input[0] for node in graph.node if node.name.startswith("cast_")]
    assert len(casts) == 11  # the pixels, and what the head says of five levels twice
    assert all(len(nodes) == 5 for name, nodes in layers_of(graph).items() if ".head." in name)
    model = onnx.load(str(source))
    quantised = to_int8(model, calibrate(source, [picture], made.spec, "max"))
    del quantised.metadata_props[:]
    quantised.metadata_props.add(key="tinydet", value=dataclasses.replace(made.spec, precision="int8").to_json())
    built = {}
    for name, path in {"fp32": source, "fp16": made.path, "int8": written(quantised, tmp_path / "q.onnx")}.items():
        spec = build_engine(path, tmp_path / f"{name}.engine", target="rtx", batch=(1, 1, 2))
        built[name] = spec.precision, spec.engine["weights"].get("FLOAT16", 0) > spec.engine["weights"]["FLOAT"]
    # Not by the size of the plans: those of small models are mostly kernels, and INT8 needs more of them.
    assert built == {"fp32": ("fp32", False), "fp16": ("fp16", True), "int8": ("int8", False)}
