"""`tinydet export adopt`: every format by hand-computed boxes, and against the original with random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from foreign_detectors import CELLS, LAYOUTS, SIDE, constant, network, save
from onnx import TensorProto
from signal_stack import signal_stack

from tinydet.__main__ import main
from tinydet.export.adopt.adopting import Options, make_plan, open_adopted, read_adopted, write_adopted
from tinydet.export.adopt.classes import COCO_IDS, COCO_NAMES, assign_labels, read_classes
from tinydet.export.adopt.graft import RENAMED, Plan
from tinydet.export.adopt.original import OnnxOriginal, open_original
from tinydet.export.adopt.reference import ClippedBackend, ReferenceBackend
from tinydet.export.fp16 import to_fp16
from tinydet.export.parity import compare
from tinydet.runtime.backends import Backend, open_model
from tinydet.runtime.model_files import read_spec

NAMES = ("person", "car", "boat")
BOX, SHARE = (15.0, 26.0, 25.0, 34.0), (20 / SIDE, 30 / SIDE, 10 / SIDE, 8 / SIDE)  # one box: corners, center and size
SCORE, LABEL = 0.75, 1
LOGIT = float(np.log(SCORE / (1 - SCORE)))


def adopted(source: Path, options: Options | None = None) -> tuple[Plan, Backend]:
    """Adopt without the comparison, and open the result."""
    original = open_original(source)
    plan, _ = make_plan(original, options or Options(classes=NAMES))
    target = source.with_name(f"{source.stem}.tinydet.onnx")
    write_adopted(original, plan, target)
    return plan, open_adopted(target)


def images(count: int = 3, seed: int = 0) -> np.ndarray:
    noise: np.ndarray = np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)
    return noise


# ------------------------------------------------------------------------------------- one box, computed by hand


def outputs_of(layout: str) -> dict[str, np.ndarray]:
    """One box BOX of class LABEL with SCORE, in a layout; the other entries score next to nothing."""
    x, y, w, h = (value * SIDE for value in SHARE)
    if layout == "yolov8":
        rows = np.zeros((1, 7, CELLS), np.float32)
        rows[0, :, 40] = (x, y, w, h, 0.1, SCORE, 0.2)
        return {"output0": rows}
    if layout in ("yolov5", "yolox"):
        rows = np.zeros((1, CELLS * (3 if layout == "yolov5" else 1), 8), np.float32)
        # Cell 66 is the third of the first row of stride 16, in column 2: (x + 2) * 16 = 20.
        raw = (x / 16 - 2, y / 16, np.log(w / 16), np.log(h / 16)) if layout == "yolox" else (x, y, w, h)
        rows[0, 66] = (*raw, 0.9, 0.1, SCORE / 0.9, 0.2)
        return {"output": rows}
    if layout == "end2end":
        rows = np.zeros((1, 20, 6), np.float32)
        rows[0, 0] = (*BOX, SCORE, LABEL)
        return {"output0": rows}
    if layout in ("hf-detr", "detr", "rf-detr"):
        boxes, logits = np.zeros((1, 12, 4), np.float32), np.full((1, 12, 3 + (layout != "hf-detr")), -9, np.float32)
        boxes[0, 5], logits[0, 5, LABEL] = SHARE, LOGIT
        if layout == "detr":  # the softmax of SCORE against "no object"
            logits[0, :, :3], logits[0, :, 3] = -90, 9
            logits[0, 5, [LABEL, 3]] = np.log(SCORE), np.log(1 - SCORE)
        return {"dets": boxes, "labels": logits} if layout == "rf-detr" else {"pred_boxes": boxes, "logits": logits}
    boxes, scores, labels = np.zeros((1, 20, 4), np.float32), np.zeros((1, 20), np.float32), np.zeros((1, 20), np.int64)
    boxes[0, 3], scores[0, 3], labels[0, 3] = BOX, SCORE, LABEL
    if layout == "torchvision":
        return {"boxes": boxes[0], "labels": labels[0] + 1, "scores": scores[0]}
    if layout == "mmdeploy":
        return {"dets": np.concatenate([boxes, scores[..., None]], axis=2), "labels": labels}
    if layout == "ssd":
        columns = [np.zeros((1, 20, 1)), labels[..., None], scores[..., None], boxes / SIDE]
        return {"detection_out": np.concatenate(columns, axis=2)[None].astype(np.float32)}
    if layout == "boxes-scores":
        every = np.zeros((1, 20, 3), np.float32)
        every[0, 3, LABEL] = SCORE
        return {"boxes": boxes, "scores": every}
    return {"boxes": boxes, "scores": scores, "labels": labels}  # boxes and rt-detr


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_box_that_is_computed_by_hand_comes_out_of_each_format(layout: str, tmp_path: Path) -> None:
    image = (3, SIDE, SIDE) if layout == "torchvision" else (1, 3, SIDE, SIDE)
    extras = {"orig_target_sizes": (1, 2)} if layout == "rt-detr" else None
    plan, backend = adopted(constant(outputs_of(layout), tmp_path / "a.onnx", image=image, extras=extras))
    assert plan.format.name == layout
    for each in (backend, ReferenceBackend(open_original(tmp_path / "a.onnx"), plan)):
        found = each.run(images(1))
        assert found.labels[0, 0] == LABEL
        assert (found.labels[0, 1:] == -1).all()
        assert found.candidates[0] == 1
        np.testing.assert_allclose(found.scores[0, 0], SCORE, rtol=1e-5)
        np.testing.assert_allclose(found.boxes[0, 0], BOX, rtol=1e-5)


def test_yolox_whose_graph_decodes_is_not_decoded_again(tmp_path: Path) -> None:
    rows = outputs_of("yolox")["output"]
    rows[0, 66, :4] = [value * SIDE for value in SHARE]
    plan, backend = adopted(constant({"output": rows}, tmp_path / "a.onnx"))
    assert plan.format.name == "yolox"
    np.testing.assert_allclose(backend.run(images(1)).boxes[0, 0], BOX, rtol=1e-5)


def test_rt_detr_of_ultralytics_says_shares_of_the_image(tmp_path: Path) -> None:
    rows = np.zeros((1, 20, 6), np.float32)
    rows[0, 0] = (*SHARE, SCORE, LABEL)
    metadata = {"names": "{0: 'person', 1: 'car', 2: 'boat'}", "stride": "32", "head": "RTDETRDecoder"}
    _, backend = adopted(constant({"output0": rows}, tmp_path / "a.onnx", metadata=metadata), Options())
    np.testing.assert_allclose(backend.run(images(1)).boxes[0, 0], BOX, rtol=1e-5)
    assert backend.spec.classes == NAMES


# ----------------------------------------------------------------------------------- random weights, any image


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_adopted_model_finds_what_the_original_finds(layout: str, tmp_path: Path) -> None:
    plan, backend = adopted(network(layout, tmp_path / "a.onnx"))
    assert plan.format.name == layout
    reference = ReferenceBackend(open_original(tmp_path / "a.onnx"), plan)
    tiles = images(plan.spec.max_batch if plan.spec.max_batch < 3 else 3)
    result = compare(reference.run(tiles), ClippedBackend(backend).run(tiles), plan.spec.score_floor)
    assert result.detections > 3
    assert (result.unmatched, result.candidates_difference) == (0, 0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_original_is_untouched_inside(layout: str, tmp_path: Path) -> None:
    source = network(layout, tmp_path / "a.onnx")
    adopted(source)
    before, after = onnx.load(str(source)).graph, onnx.load(str(tmp_path / "a.tinydet.onnx")).graph
    grafted = [node for node in after.node if node.name.startswith("tinydet.")]
    inside = [node for node in after.node if node not in grafted]
    for node in inside:
        for names in (node.input, node.output):
            names[:] = [name.removeprefix(RENAMED) for name in names]
        node.ClearField("name")  # nodes without a name are given one
    for node in before.node:
        node.ClearField("name")
    assert [n.SerializeToString(True) for n in inside] == [n.SerializeToString(True) for n in before.node]
    weights = {w.name: w.SerializeToString(True) for w in after.initializer if not w.name.startswith("tinydet.")}
    assert weights == {w.name: w.SerializeToString(True) for w in before.initializer}
    assert {node.op_type for node in grafted}.isdisjoint({"NonMaxSuppression", "Loop", "If", "NonZero"})


@pytest.mark.parametrize("opset", [13, 17])
def test_openvino_and_onnx_runtime_agree_on_an_adopted_model(opset: int, tmp_path: Path) -> None:
    plan, backend = adopted(network("yolov8", tmp_path / "a.onnx", opset=opset))
    other = ClippedBackend(open_model(tmp_path / "a.tinydet.onnx", "openvino"))
    result = compare(ClippedBackend(backend).run(images()), other.run(images()), plan.spec.score_floor)
    assert result.detections > 3 and result.unmatched == 0


@pytest.mark.parametrize("opset", [11, 12, 13, 18, 20])
@pytest.mark.parametrize("layout", ["yolov8", "hf-detr", "boxes", "torchvision"])
def test_the_grafts_are_valid_in_each_opset(layout: str, opset: int, tmp_path: Path) -> None:
    image = (3, SIDE, SIDE) if layout == "torchvision" else (1, 3, SIDE, SIDE)
    _, backend = adopted(constant(outputs_of(layout), tmp_path / "a.onnx", image=image, opset=opset))
    np.testing.assert_allclose(backend.run(images(1)).boxes[0, 0], BOX, rtol=1e-5)


@pytest.mark.parametrize("batch", [1, 2, "batch"])
def test_a_fixed_batch_takes_any_number_of_tiles_up_to_it(batch: int | str, tmp_path: Path) -> None:
    plan, backend = adopted(network("yolov8", tmp_path / "a.onnx", batch=batch))
    assert plan.spec.max_batch == (16 if batch == "batch" else batch)
    reference = ReferenceBackend(open_original(tmp_path / "a.onnx"), plan)
    for count in range(1, min(plan.spec.max_batch, 3) + 1):
        tiles = images(count, seed=count)
        result = compare(reference.run(tiles), ClippedBackend(backend).run(tiles), plan.spec.score_floor)
        assert (result.tiles, result.unmatched) == (count, 0) and result.detections > 3


def test_fp16_conversion_and_the_runtime_take_an_adopted_model(tmp_path: Path) -> None:
    adopted(network("yolov8", tmp_path / "a.onnx"))
    half = to_fp16(onnx.load(str(tmp_path / "a.tinydet.onnx")))
    kinds = {w.data_type for w in half.graph.initializer if len(w.dims) == 4}
    assert kinds == {TensorProto.FLOAT16}


# --------------------------------------------------------------------------------------------------- pixels


@pytest.mark.parametrize(
    ("color", "layout", "scale", "mean", "std"),
    [("rgb", "nchw", 255.0, 0.0, 1.0), ("bgr", "nchw", 1.0, 0.0, 1.0), ("rgb", "nhwc", 255.0, 0.4, 0.2),
     ("bgr", "nhwc", 1.0, 120.0, 60.0)],
)  # fmt: skip
def test_the_original_receives_the_pixels_that_the_options_describe(
    color: str, layout: str, scale: float, mean: float, std: float, tmp_path: Path
) -> None:
    """The scores of this detector are its first pixel, squeezed into 0 to 1; the first channel is its first box."""
    from onnx import helper, numpy_helper

    shape = [1, 3, SIDE, SIDE] if layout == "nchw" else [1, SIDE, SIDE, 3]
    axes = [2, 3] if layout == "nchw" else [1, 2]
    weights = {"zero": [0, 0], "one": [1, 1], "axes": axes, "three": [1, 3], "four": [1, 3, 4]}
    nodes = [
        helper.make_node("Slice", ["x", "zero", "one", "axes"], ["pixel"]),
        helper.make_node("Reshape", ["pixel", "three"], ["row"]),
        helper.make_node("Sigmoid", ["row"], ["scores"]),
        helper.make_node("Expand", ["box", "four"], ["boxes"]),
        helper.make_node("Identity", ["label"], ["labels"]),
    ]
    infos = [helper.make_tensor_value_info(name, kind, sizes) for name, kind, sizes in
             (("boxes", 1, [1, 3, 4]), ("scores", 1, [1, 3]), ("labels", 7, [1, 3]))]  # fmt: skip
    constants = [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in weights.items()]
    constants.append(numpy_helper.from_array(np.array(BOX, np.float32), "box"))
    constants.append(numpy_helper.from_array(np.array([[0, 1, 2]], np.int64), "label"))
    model = helper.make_model(
        helper.make_graph(nodes, "pixel", [helper.make_tensor_value_info("x", 1, shape)], infos, constants),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    (tmp_path / "a.onnx").write_bytes(model.SerializeToString())
    options: Any = Options(classes=NAMES, input_scale=scale, mean=(mean,) * 3, std=(std,) * 3, score_floor=0.0)
    _, backend = adopted(tmp_path / "a.onnx", replace(options, color=color))
    tile = np.full((1, SIDE, SIDE, 3), (200, 90, 10), np.uint8)
    found = backend.run(tile)
    channels = np.array([200, 90, 10] if color == "rgb" else [10, 90, 200]) / scale
    expected = 1 / (1 + np.exp(-(channels - mean) / std))
    order = np.argsort(found.labels[0])
    np.testing.assert_allclose(found.scores[0][order][-3:], expected, rtol=1e-5)


def test_an_oblong_input_is_padded_and_a_half_input_is_fed_halves(tmp_path: Path) -> None:
    source = constant(outputs_of("boxes"), tmp_path / "a.onnx", image=(1, 3, 40, SIDE), dtype=TensorProto.FLOAT16)
    plan, backend = adopted(source)
    assert plan.spec.tile == 40
    np.testing.assert_allclose(backend.run(images(1)[:, :40, :40]).boxes[0, 0], BOX)


def test_a_uint8_input_is_fed_the_pixels_as_they_are(tmp_path: Path) -> None:
    """The score of this detector is its first pixel divided by 255."""
    from onnx import helper, numpy_helper

    weights = {"zero": [0, 0, 0], "one": [1, 1, 1], "axes": [1, 2, 3], "row": [1, 1], "label": [[1]]}
    nodes = [
        helper.make_node("Slice", ["x", "zero", "one", "axes"], ["pixel"]),
        helper.make_node("Cast", ["pixel"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "255"], ["share"]),
        helper.make_node("Reshape", ["share", "row"], ["scores"]),
        helper.make_node("Identity", ["box"], ["boxes"]),
        helper.make_node("Identity", ["label"], ["labels"]),
    ]
    infos = [helper.make_tensor_value_info(name, kind, sizes) for name, kind, sizes in
             (("boxes", 1, [1, 1, 4]), ("scores", 1, [1, 1]), ("labels", 7, [1, 1]))]  # fmt: skip
    constants = [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in weights.items()]
    constants.append(numpy_helper.from_array(np.array(255, np.float32), "255"))
    constants.append(numpy_helper.from_array(np.array([[BOX]], np.float32), "box"))
    image = helper.make_tensor_value_info("x", TensorProto.UINT8, [1, SIDE, SIDE, 3])
    source = save(helper.make_graph(nodes, "pixel", [image], infos, constants), tmp_path / "a.onnx")
    plan, backend = adopted(source)
    tile = np.full((1, SIDE, SIDE, 3), (204, 90, 10), np.uint8)
    for each in (backend, ReferenceBackend(open_original(source), plan)):
        np.testing.assert_allclose(each.run(tile).scores[0, 0], 0.8)
    with pytest.raises(ValueError, match="leave out --input-scale"):
        adopted(source, Options(classes=NAMES, input_scale=255.0))


@pytest.mark.parametrize("layout", ["boxes", "boxes-scores", "torchvision", "mmdeploy", "yolov8", "yolov5", "end2end"])
def test_boxes_as_shares_of_the_image_become_pixels(layout: str, tmp_path: Path) -> None:
    outputs = outputs_of(layout)
    for name, array in outputs.items():
        if layout == "yolov8":
            array[:, :4] /= SIDE
        elif name not in ("scores", "labels"):
            array[..., :4] /= SIDE
    image = (3, SIDE, SIDE) if layout == "torchvision" else (1, 3, SIDE, SIDE)
    source = constant(outputs, tmp_path / "a.onnx", image=image)
    plan, backend = adopted(source)
    for each in (backend, ReferenceBackend(open_original(source), plan)):
        np.testing.assert_allclose(each.run(images(1)).boxes[0, 0], BOX, rtol=1e-5)
    unknown = replace(plan, shares=None)  # as recognized where the original finds nothing in noise
    with pytest.raises(ValueError, match="set --boxes shares"):
        ReferenceBackend(open_original(source), unknown).run(images(1))


# ------------------------------------------------------------------------------------------ limits and classes


@pytest.mark.parametrize(
    ("name", "content"),
    [("data.yaml", "names:\n  0: person\n  1: car\n  2: boat\n"), ("a.yml", "nc: 3\nnames: [person, car, boat]\n"),
     ("config.json", '{"id2label": {"2": "boat", "0": "person", "1": "car"}}'), ("a.json", '["person","car","boat"]'),
     ("coco.json", '{"categories": [{"id": 5, "name": "person"}, {"id": 6, "name": "car"}, {"name": "boat"}]}'),
     ("a.txt", "0 person\n1 car\n2 boat\n"), ("a.names", "1: person\n2: car\n3: boat"), ("a", "person\ncar\nboat\n")],
)  # fmt: skip
def test_class_files_of_several_layouts(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    assert read_classes(str(tmp_path / name)) == NAMES


@pytest.mark.parametrize(
    ("text", "word"), [("person\n\ncar", "line 2"), ("person\ncar\nperson", "twice"), ("", "no class names")]
)
def test_a_class_file_that_would_shift_the_labels_is_refused(text: str, word: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(ValueError, match=word):
        read_classes(str(tmp_path / "a.txt"))


@pytest.mark.parametrize("background", ["__background__", "background"])
@pytest.mark.parametrize("layout", ["torchvision", "boxes", "boxes-scores"])
def test_a_first_name_of_the_background_is_no_class(layout: str, background: str, tmp_path: Path) -> None:
    outputs = outputs_of(layout)
    if layout == "torchvision":
        outputs["labels"][3] = 1  # as it is in the others; the second name
    image = (3, SIDE, SIDE) if layout == "torchvision" else (1, 3, SIDE, SIDE)
    source = constant(outputs, tmp_path / "a.onnx", image=image)
    plan, backend = adopted(source, Options(classes=(background, "person", "car")))
    assert backend.spec.classes == ("person", "car")
    for each in (backend, ReferenceBackend(open_original(source), plan)):
        assert each.run(images(1)).labels[0, 0] == 0


def test_labels_without_a_name_are_refused(tmp_path: Path) -> None:
    source = constant(outputs_of("torchvision"), tmp_path / "a.onnx", image=(3, SIDE, SIDE))
    plan, _ = adopted(source, Options(classes=("person",)))
    with pytest.raises(ValueError, match="returns label 2, but only the labels 1 to 1"):
        ReferenceBackend(open_original(source), plan).run(images(1))


@pytest.mark.parametrize("rows", [slice(0, 4), slice(4, 7)])
def test_a_detector_that_returns_nan_is_refused(rows: slice, tmp_path: Path) -> None:
    outputs = outputs_of("yolov8")
    outputs["output0"][0, rows, 40] = np.nan
    source = constant(outputs, tmp_path / "a.onnx")
    plan, _ = adopted(source)
    with pytest.raises(ValueError, match="NaN"):
        ReferenceBackend(open_original(source), replace(plan, spec=replace(plan.spec, score_floor=0.0))).run(images(1))


def test_advice_about_an_adopted_model_is_about_its_original(tmp_path: Path) -> None:
    from tinydet.infer.chunks import Tally
    from tinydet.infer.report import result_lines
    from tinydet.runtime.backends.contract import check_outputs

    plan, backend = adopted(constant(outputs_of("hf-detr"), tmp_path / "a.onnx"))
    spec = replace(plan.spec, tile=128)
    tally = Tally.of(len(NAMES))
    tally.tiles = replace(tally.tiles, tiles=1, saturated=1)
    found = backend.run(images(1))
    found.boxes[0, 0] = np.nan
    texts = [list(result_lines(tally, spec, from_journal=0, seconds=None))[-1]]
    for run in (lambda: open_model(tmp_path / "a.tinydet.onnx", tile=128),
                lambda: check_outputs(found, plan.spec, 1, name="x")):  # fmt: skip
        with pytest.raises(ValueError, match="export the original") as error:
            run()
        texts.append(str(error.value))
    for text in texts:
        assert "export the original" in text and "checkpoint" not in text and ".pth" not in text


@pytest.mark.parametrize(("above", "saturated"), [(11, False), (12, True)])
def test_a_transformer_with_all_queries_in_use_reports_saturation(above: int, saturated: bool, tmp_path: Path) -> None:
    outputs = outputs_of("hf-detr")
    outputs["logits"][0, :above, 0] = np.linspace(1, 2, above)
    outputs["logits"][0, 5, LABEL] = -9
    plan, backend = adopted(constant(outputs, tmp_path / "a.onnx"))
    found = backend.run(images(1))
    assert plan.limit == plan.spec.max_detections == 12
    assert bool(found.candidates[0] > plan.spec.boxes_per_tile) == saturated
    assert ReferenceBackend(open_original(tmp_path / "a.onnx"), plan).run(images(1)).candidates == found.candidates


def test_the_limit_of_a_dynamic_count_is_found_in_the_graph(tmp_path: Path) -> None:
    plan, _ = adopted(network("torchvision", tmp_path / "a.onnx"))
    assert plan.limit == plan.spec.max_detections == 15


def test_labels_named_na_are_no_classes() -> None:
    by_label = ["N/A"] * 91
    for i, name in zip(COCO_IDS, COCO_NAMES, strict=True):
        by_label[i] = name
    assert assign_labels(by_label, 91, first_label=0, background="") == assign_labels(
        COCO_NAMES, 91, first_label=0, background=""
    )
    few = assign_labels(["N/A", "boat", "N/A", "car"], None, first_label=0, background="")
    assert few == (("boat", "car"), (1, 2), (-1, 0, -1, 1))


def test_labels_of_coco_ids_become_the_eighty_classes(tmp_path: Path) -> None:
    outputs = outputs_of("torchvision")
    outputs["labels"][3] = 90  # toothbrush; 12 and others are no class
    outputs["labels"][4], outputs["scores"][4] = 12, 0.9
    source = constant(outputs, tmp_path / "a.onnx", image=(3, SIDE, SIDE))
    assert main(["export", "adopt", str(source), "--classes", "coco", "--images", str(tmp_path / "none.jpg")]) == 2
    _, backend = adopted(source, Options(classes=read_classes("coco")))
    found = backend.run(images(1))
    assert backend.spec.classes[found.labels[0, found.labels[0] >= 0][0]] == "toothbrush"
    assert (found.labels[0] >= 0).sum() == 1
    assert backend.spec.category_ids[-1] == 90


# -------------------------------------------------------------------------------------------------- the command


def test_the_command_writes_a_model_that_verify_and_infer_take(
    squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = network("yolov8", tmp_path / "a.onnx")
    assert main(["export", "adopt", str(source), "--classes", "square,b,c", "--data", str(squares)]) == 0
    shown = capsys.readouterr().out
    assert "recognized    yolov8" in shown and ", 0 unmatched" in shown and "AP-" in shown
    target = tmp_path / "a.tinydet.onnx"
    assert {path.name for path in tmp_path.iterdir()} == {
        "a.onnx", "a.tinydet.onnx", "a.tinydet.json", "a.tinydet.verify.json", "a.tinydet.verify.md"
    }  # fmt: skip
    assert main(["export", "verify", str(target), "--images", str(squares / "images/0.png")]) == 0
    assert "Reference: a.onnx as its framework runs it" in capsys.readouterr().out
    output = str(tmp_path / "found.json")
    assert main(["infer", "--model", str(target), "--image", str(squares / "images/3.png"), "--output", output]) == 0


def test_an_ir_becomes_an_ir_that_openvino_runs(tmp_path: Path) -> None:
    import openvino

    graph = openvino.Core().read_model(str(network("yolov8", tmp_path / "a.onnx", batch=1)))
    for key, value in {"labels": "person car big_boat", "model_type": "YOLOv8", "scale_values": "255.0"}.items():
        graph.set_rt_info(value, ["model_info", key])
    openvino.serialize(graph, str(tmp_path / "a.xml"), str(tmp_path / "a.bin"))
    before = signal_stack()
    original = open_original(tmp_path / "a.xml")
    assert signal_stack() == before  # or Ctrl-C crashes when the model is gone
    plan, description = make_plan(original, Options())
    assert (plan.spec.classes, description.source) == (("person", "car", "big boat"), "model_api")
    write_adopted(original, plan, tmp_path / "a.tinydet.xml")
    backend = open_model(tmp_path / "a.tinydet.xml")
    result = compare(ReferenceBackend(original, plan).run(images(1)), ClippedBackend(backend).run(images(1)), 0.05)
    assert result.detections > 3 and result.unmatched == 0
    assert read_spec(tmp_path / "a.tinydet.xml") == backend.spec
    with pytest.raises(ValueError, match="export adopt"):
        read_spec(tmp_path / "a.xml")
    again = read_adopted(tmp_path / "a.tinydet.xml")
    assert again is not None and again[1].format.name == "yolov8"
    with pytest.raises(ValueError, match="only OpenVINO runs"):
        open_model(tmp_path / "a.tinydet.xml", "onnx")


def test_a_model_without_any_strong_detection_is_compared_at_a_lower_floor(
    squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = outputs_of("yolov8")
    outputs["output0"][0, 4:] = np.random.default_rng(0).random((3, CELLS)) * 1e-3
    source = constant(outputs, tmp_path / "a.onnx")
    image = str(squares / "images/0.png")
    assert main(["export", "adopt", str(source), "--classes", "a,b,c", "--images", image]) == 0
    assert "next to nothing scores above 0.05" in capsys.readouterr().out
    assert open_model(tmp_path / "a.tinydet.onnx").spec.score_floor == 0.05


def test_verify_finds_the_original_of_another_folder_by_its_name(
    squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adopted(constant(outputs_of("boxes"), tmp_path / "a.onnx"))
    (tmp_path / "other").mkdir()
    source = (tmp_path / "a.onnx").rename(tmp_path / "other/a.onnx")
    command = ["export", "verify", str(tmp_path / "a.tinydet.onnx"), "--images", str(squares / "images/0.png")]
    assert main(command) == 2
    assert "--reference" in capsys.readouterr().err
    assert main([*command, "--reference", str(source)]) == 0


# ----------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("command", [["onnx", "--precision", "fp16"], ["engine"]])
def test_an_ir_is_neither_converted_nor_built(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.xml").touch()
    assert main(["export", command[0], str(tmp_path / "a.xml"), *command[1:]]) == 2
    assert "adopt the ONNX file that it was made from" in capsys.readouterr().err


def test_a_foreign_file_is_pointed_to_adopt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = constant(outputs_of("boxes"), tmp_path / "a.onnx")
    with pytest.raises(ValueError, match="export adopt"):
        open_model(source)
    assert main(["export", "engine", str(source)]) == 2
    assert "export adopt" in capsys.readouterr().err


def refused(source: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run the command; return the line with which it refuses."""
    assert main(["export", "adopt", str(source), *arguments]) == 2
    line = capsys.readouterr().err.strip()
    assert line.count("\n") == 0 and source.name in line and "Traceback" not in line
    assert not list(source.parent.glob("*.tinydet.*"))
    return line


@pytest.mark.parametrize(("task", "word"), [("segment", "segmentation"), ("obb", "oriented"), ("pose", "key points"),
                                            ("classify", "classification")])  # fmt: skip
def test_other_tasks_are_refused_by_their_metadata(
    task: str, word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = constant(outputs_of("yolov8"), tmp_path / "a.onnx", metadata={"task": task, "names": "{0: 'a'}"})
    assert word in refused(source, capsys)


def test_masks_are_refused_without_metadata(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = outputs_of("yolov8") | {"output1": np.zeros((1, 32, 16, 16), np.float32)}
    assert "masks" in refused(constant(outputs, tmp_path / "a.onnx"), capsys)
    outputs = outputs_of("mmdeploy") | {"masks": np.zeros((1, 20, 28, 28), np.float32)}
    assert "masks" in refused(constant(outputs, tmp_path / "a.onnx"), capsys)


def test_unknown_outputs_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = constant({"heat": np.zeros((1, 2, 16, 16), np.float32)}, tmp_path / "a.onnx")
    line = refused(source, capsys)
    assert "heat float32 (1, 2, 16, 16)" in line and "adopt --help" in line


def test_wrong_options_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = constant(outputs_of("yolov8"), tmp_path / "a.onnx")
    assert "scores for 3 classes" in refused(source, capsys, "--classes", "a,b")
    assert "--first-label out" in refused(source, capsys, "--classes", "a,b,c", "--first-label", "1")
    assert "not those of mmdeploy" in refused(source, capsys, "--format", "mmdeploy")
    assert "fixed at 64x64" in refused(source, capsys, "--tile", "128")
    source = constant(outputs_of("boxes"), tmp_path / "a.onnx")
    assert "--classes" in refused(source, capsys)


def test_files_that_are_no_foreign_detectors_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = constant(outputs_of("yolov8"), tmp_path / "a.onnx", opset=9)
    assert "opset" in refused(source, capsys)
    source.write_bytes(b"no model")
    assert "not" in refused(source, capsys)
    for name, word in (("b.pt", "checkpoint"), ("b.engine", "engine")):
        (tmp_path / name).write_bytes(b"x")
        assert word in refused(tmp_path / name, capsys)
    assert "no such file" in refused(tmp_path / "missing.onnx", capsys)


def test_a_model_of_tinydet_is_not_adopted_again(tmp_path: Path) -> None:
    adopted(network("yolov8", tmp_path / "a.onnx"))
    with pytest.raises(ValueError, match="already a model of tinydet"):
        OnnxOriginal(tmp_path / "a.tinydet.onnx")
