"""The command `tinydet evaluate`, from arguments to output files."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from tinydet.__main__ import main as tinydet
from tinydet._internal.json_files import read_json
from tinydet.data.coco import load_dataset
from tinydet.evaluate import PROTOCOLS, evaluate_detections, score_detections
from tinydet.evaluate.__main__ import _score_texts, main
from tinydet.evaluate.score import Scores
from tinydet.evaluate.score_model import detect_dataset
from tinydet.evaluate.sub_images import corners_by_file
from tinydet.runtime.backends import open_model
from tinydet.runtime.options import ScanOptions
from tinydet.spec import ModelSpec

GT: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "a.png", "width": 99, "height": 99}],
    "categories": [{"id": 3, "name": "person"}, {"id": 4, "name": "boat"}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [9, 9, 7, 7], "area": 49, "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 4, "bbox": [50, 9, 30, 10], "area": 300, "iscrowd": 0},
        {"id": 3, "image_id": 1, "category_id": 3, "bbox": [9, 50, 7, 7], "area": 49, "iscrowd": 0, "uncertain": 1},
    ],
}
DT = [
    {"image_id": 1, "category_id": 3, "bbox": [9, 9, 7, 7], "score": 0.9},
    {"image_id": 1, "category_id": 4, "bbox": [70, 70, 9, 9], "score": 0.8},
]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    Path("gt.json").write_text(json.dumps(GT))
    Path("dt.json").write_text(json.dumps(DT))
    return ["--gt", "gt.json", "--detections", "dt.json"]


def test_results_are_scored_printed_and_written(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*files, "--json", "scores.json", "--precision", "precision.json"]) == 0
    scores = score_detections(GT, DT, PROTOCOLS["tinyperson"])  # the default for results
    assert json.loads(Path("scores.json").read_text()) == scores.to_json()
    assert json.loads(Path("precision.json").read_text()) == scores.precision_json()
    printed = capsys.readouterr().out
    lines = [line.split() for line in printed.splitlines()[1:]]
    # The uncertain person is no object of this protocol.
    assert lines[:4] == [
        ["class", "objects", "images", "AP50", "AP50-95", "AP75", "P", "R", "F1", "best", "at"],
        ["person", "1", "1", *["100.00"] * 6, "0.9"],
        ["boat", "1", "1", *["0.00"] * 3, "-", "0.00", "0.00", "-"],
        ["mean", "2", *["50.00"] * 6, "0.9"],
    ]
    assert printed.splitlines()[5].endswith("score >= 0.9, the best mean F1")
    header, ious, ap = lines[6:9]
    assert header[2:] == ["tiny", "tiny1", "tiny2", "tiny3", "small", "tiny", "tiny", "all"]  # the paper's columns
    assert ious == ["IoU", "0.50", "0.50", "0.50", "0.50", "0.50", "0.25", "0.75", "0.50"]
    assert ap == ["AP", "50.00", "100.00", "-", "0.00", "-", "50.00", "50.00", "50.00"]


def test_the_json_has_the_documented_keys(files: list[str]) -> None:
    keys = {"protocol", "mean", "excluded", "classes", "confusion_matrix"}
    keys |= {"AP", "AR", "AP_counts", "MR", "MR_counts", "recall_at_fppi"}
    ranges = {"tiny", "tiny1", "tiny2", "tiny3", "small", "all", "reasonable"}
    setups = {"tiny", "tiny1", "tiny2", "tiny3", "small", "All"}
    for name in PROTOCOLS:
        assert main([*files, "--protocol", name, "--json", "scores.json"]) == 0
        scores = json.loads(Path("scores.json").read_text())
        assert set(scores) == keys and scores["protocol"] == name
        for key in ("AP", "AR", "AP_counts"):
            assert scores[key] is None if name == "citypersons" else set(scores[key]) == ranges
        for key in ("MR", "MR_counts", "recall_at_fppi"):
            if name.startswith("tinyperson"):
                assert set(scores[key]) == setups and set(scores[key]["tiny"]) == {"0.25", "0.50", "0.75"}
            elif name == "citypersons":
                assert set(scores[key]) == {"Reasonable", "Small", "Heavy", "All"}
                assert set(scores[key]["All"]) == {"0.50", "0.75"}
            else:
                assert scores[key] is None


@pytest.mark.parametrize(
    ("flags", "switches"),
    [
        (["--keep-uncertain"], {"keep_uncertain": True}),
        (["--no-iod"], {"iod": False}),
        (["--categories", "boat"], {"categories": ["boat"]}),
        (["--categories", "boat, person", "--max-detections", "1"], {"max_detections": 1}),
    ],
)
def test_switches_reach_the_scores(files: list[str], flags: list[str], switches: dict[str, Any]) -> None:
    assert main([*files, *flags, "--json", "scores.json"]) == 0
    assert json.loads(Path("scores.json").read_text()) == evaluate_detections(GT, DT, protocol="tinyperson", **switches)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gt", "gt.json"], "results need both --gt and --detections; add --detections"),
        (["--detections", "dt.json"], "add --gt"),
        (["--gt", "gt.json", "--detections", "dt.json", "--limit", "3"], "--limit belongs to a model"),
        (["--gt", "gt.json", "--detections", "dt.json", "--data", "x"], "--data belongs to a model"),
        (["--gt", "gone.json", "--detections", "dt.json"], "gone.json: no such file"),
        (["--gt", "dt.json", "--detections", "gt.json"], "dt.json: a JSON list, not an object; expected COCO"),
        (["--gt", "gt.json", "--detections", "gt.json"], "gt.json: entry 0 has no 'score'"),
        (["--gt", "gt.json", "--detections", "dt.json", "--categories", "bike"], "choose from person, boat"),
        (["--gt", "gt.json", "--detections", "dt.json", "--corner-gt", "gt.json"], "no list 'old_images'"),
        (["--gt", "gt.json", "--detections", "dt.json", "--json", "gt.json/s.json"], "gt.json is a file, not a folder"),
        ([], "no --model, and no model.pth here"),
        (["--model", "gone.onnx", "--annotations", "gt.json", "--images", "."], "gone.onnx: no such model"),
        (["--model", "m.onnx", "--data", "x", "--annotations", "gt.json", "--images", "."], "give either --data, or"),
        (["--model", "m.onnx", "--images", "x"], "add --annotations"),
        (["--gt", "gt.json", "--detections", "dt.json", "--images", "."], "only with --plots"),
        (["--model", "gt.json", "--corner-gt", "gt.json", "--merge", "seam"], "--merge seam does not use"),
    ],
)
def test_a_user_error_is_one_line_and_exit_code_2(
    files: list[str], flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert files  # in the current folder
    assert main(flags) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and error[0].startswith("tinydet evaluate: error: ") and message in error[0]


def test_scoring_results_needs_neither_torch_nor_pycocotools_nor_matplotlib(files: list[str]) -> None:
    script = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'pycocotools', 'matplotlib', 'onnxruntime'): sys.modules[name] = None\n"
        f"from tinydet.evaluate.__main__ import main\nsys.exit(main({files!r}))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "AP" in done.stdout


def test_detections_on_sub_images_are_merged_first(files: list[str], shared: Path) -> None:
    assert files
    case = shared / "cases" / "evaluation" / "case11"
    given = ["--gt", str(case / "gt.json"), "--detections", str(case / "dt_sub.json")]
    assert main([*given, "--corner-gt", str(case / "corner_gt.json"), "--json", "scores.json"]) == 0
    expected = json.loads((case / "expected.json").read_text())
    scores = json.loads(Path("scores.json").read_text())
    assert scores["AP"] == expected["ap_tinybenchmark"]["AP"] and scores["MR"] == expected["mr"]["MR"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write model.pth with an untrained detector whose head has weights large enough for detections."""
    torch = pytest.importorskip("torch", reason="a .pth needs torch (tinydet[train])")
    from tinydet.models.build import DetectorConfig, build_detector
    from tinydet.models.checkpoint import Checkpoint, save_checkpoint

    torch.manual_seed(0)
    config = DetectorConfig("mobilenet_v2", channels=16, norm="batch", classes=2, options={"head_convs": 1})
    detector = build_detector(config, (0.5, 0.5, 0.5))
    for layer in detector.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        detector.train()(torch.randn(2, 3, 96, 96))  # sets the running statistics of the batch norms
    torch.nn.init.normal_(detector.head.classification_head.cls_logits.weight, std=0.3)
    path = tmp_path_factory.mktemp("models") / "model.pth"
    save_checkpoint(Checkpoint(config, detector.eval().state_dict(), ("square", "dog"), (8, 9), tile=96), path)
    return path


@pytest.fixture(scope="module")
def onnx_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write an ONNX file with the contract of an exported model; it detects white 8-pixel grid cells as squares."""
    onnx = pytest.importorskip("onnx", reason="needs onnx (tinydet[export])")
    node, info, kind = onnx.helper.make_node, onnx.helper.make_tensor_value_info, onnx.TensorProto
    y, x = np.mgrid[:96:8, :96:8].reshape(2, -1)
    constants = {
        "table": np.stack([x, y, x + 8, y + 8], 1).astype(np.float32),
        "last": np.array([3]),
        "one": np.array([1]),
        "flat": np.array([0, -1]),
        "k": np.array([20]),
        "white": np.float32(255),
        "floor": np.float32(0.5),
        "square": np.int32(0),
        "none": np.int32(-1),
    }
    nodes = [
        node("Cast", ["images"], ["pixels"], to=kind.FLOAT),
        node("ReduceMean", ["pixels", "last"], ["grey"], keepdims=0),
        node("Unsqueeze", ["grey", "one"], ["plane"]),
        node("AveragePool", ["plane"], ["pooled"], kernel_shape=[8, 8], strides=[8, 8]),
        node("Reshape", ["pooled", "flat"], ["values"]),
        node("Div", ["values", "white"], ["shares"]),
        node("TopK", ["shares", "k"], ["scores", "index"]),
        node("Gather", ["table", "index"], ["boxes"]),
        node("Greater", ["scores", "floor"], ["good"]),
        node("Where", ["good", "square", "none"], ["labels"]),
        node("Greater", ["shares", "floor"], ["passed"]),
        node("Cast", ["passed"], ["counted"], to=kind.INT32),
        node("ReduceSum", ["counted", "one"], ["candidates"], keepdims=0),
    ]
    outputs = {
        "boxes": (kind.FLOAT, ["N", 20, 4]),
        "scores": (kind.FLOAT, ["N", 20]),
        "labels": (kind.INT32, ["N", 20]),
    }
    outputs["candidates"] = (kind.INT32, ["N"])
    graph = onnx.helper.make_graph(
        nodes,
        "cells",
        [info("images", kind.UINT8, ["N", 96, 96, 3])],
        [info(name, *form) for name, form in outputs.items()],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    spec = ModelSpec(("square",), (8,), "cells", "none", tile=96, max_detections=20, nms_in_graph=True)
    model.metadata_props.add(key="tinydet", value=spec.to_json())
    path = tmp_path_factory.mktemp("models") / "model.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("kind", ["checkpoint", "onnx_file"])
def test_a_model_is_scored_on_a_folder(
    kind: str, request: pytest.FixtureRequest, squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = request.getfixturevalue(kind)
    files = [str(tmp_path / name) for name in ("scores.json", "found.json")]
    flags = ["--model", str(model), "--data", str(squares), "--limit", "4"]
    assert main([*flags, "--json", files[0], "--save-detections", files[1]]) == 0
    scores, found = (json.loads(Path(file).read_text()) for file in files)
    truth = json.loads((squares / "annotations.json").read_text())
    truth["images"] = truth["images"][:4]
    assert scores == evaluate_detections(truth, found)  # by the default protocol, coco
    assert {d["category_id"] for d in found} == {3} and {d["image_id"] for d in found} == {0, 1, 2, 3}
    printed = capsys.readouterr().out
    runners = ("torch ",) if kind == "checkpoint" else ("OpenVINO ", "ONNX Runtime ")  # whichever is installed
    first, second = printed.splitlines()[:2]
    assert (first.startswith(f"model: {model}, ") and runners[0] in first) or runners[-1] in first
    assert second.startswith("data: ") and str(squares) in second and "4 images, square" in second
    assert ("note: the dataset has no class 'dog'" in printed) == (kind == "checkpoint")


@pytest.mark.parametrize("merge", ["seam", "nms", "tinyperson", "corner file"])
def test_merge_options_select_how_tiles_are_merged(onnx_file: Path, squares: Path, tmp_path: Path, merge: str) -> None:
    """The sub-images of a corner file may differ from the benchmark's: here they are smaller than a tile and padded."""
    corners, data = str(tmp_path / "corners.json"), str(squares)
    assert tinydet(["data", "cut", data, "--tile", "64x64", "--overlap", "16", "--output", corners]) == 0
    option = ["--corner-gt", corners] if merge == "corner file" else ["--merge", merge]
    found = tmp_path / "found.json"
    assert main(["--model", str(onnx_file), "--data", data, *option, "--save-detections", str(found)]) == 0
    expected = detect_dataset(
        open_model(onnx_file),
        load_dataset(squares),
        ScanOptions(merge="nms" if merge == "nms" else "seam"),
        sub_images=merge in ("tinyperson", "corner file"),
        corners=corners_by_file(read_json(Path(corners))) if merge == "corner file" else None,
    )
    assert json.loads(found.read_text()) == json.loads(json.dumps(expected.detections))
    assert expected.tiles == (6 * 4 + 6 if merge == "corner file" else 6 + 3)


@pytest.mark.slow
def test_a_checkpoint_and_its_export_get_the_same_scores(checkpoint: Path, squares: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="needs onnx and onnxscript (tinydet[export])")
    from tinydet.export.onnx_file import write_onnx
    from tinydet.models.checkpoint import load_checkpoint

    loaded = load_checkpoint(checkpoint)
    write_onnx(loaded.build(), loaded.spec(), tmp_path / "model.onnx")
    found = []
    for model in (checkpoint, tmp_path / "model.onnx"):
        flags = ["--data", str(squares), "--save-detections", str(tmp_path / "found.json")]
        assert main(["--model", str(model), *flags]) == 0
        found.append(json.loads((tmp_path / "found.json").read_text()))
    truth = json.loads((squares / "annotations.json").read_text())
    as_objects = [{**d, "id": n, "area": d["bbox"][2] * d["bbox"][3]} for n, d in enumerate(found[0], 1)]
    agreement = evaluate_detections({**truth, "annotations": as_objects}, found[1])["AP"]["all"]
    assert agreement["0.75"] > 0.97  # equal boxes except for rounding


def test_without_a_model_flag_the_checkpoint_in_this_folder_is_scored(
    checkpoint: Path, squares: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(checkpoint.parent)
    data = ["--annotations", str(squares / "annotations.json"), "--images", str(squares / "images")]
    assert main([*data, "--limit", "1"]) == 0
    assert capsys.readouterr().out.startswith("model: model.pth, torch ")


def test_a_corner_file_is_rejected_as_dataset(
    onnx_file: Path, squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads((squares / "annotations.json").read_text())
    corner = tmp_path / "corner.json"
    tiles = [{**image, "corner": [0, 0, image["width"], image["height"]]} for image in document["images"]]
    corner.write_text(json.dumps({**document, "images": tiles, "old_images": document["images"]}))
    flags = ["--model", str(onnx_file), "--annotations", str(corner), "--images", str(squares / "images")]
    assert main([*flags, "--limit", "1"]) == 2
    assert "describes sub-images" in capsys.readouterr().err


def test_the_score_threshold_of_a_checkpoint_that_is_not_exported_starts_with_the_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    scores = SimpleNamespace(classes=SimpleNamespace(score=0.4))
    for name in ("format_classes", "format_scores"):
        monkeypatch.setattr(f"tinydet.evaluate.__main__.{name}", lambda table: "")
    args = argparse.Namespace(model=Path("model.pth"), gt=None, backend=None)
    use = "to use it: {}tinydet infer --image scene.jpg --model model.onnx --score 0.4"
    export = "tinydet export onnx model.pth, then "
    assert list(_score_texts(cast(Scores, scores), args))[1].endswith(use.format(export))
    Path("model.onnx").touch()
    assert list(_score_texts(cast(Scores, scores), args))[1].endswith(use.format(""))
