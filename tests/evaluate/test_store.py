"""Thresholds and calibrations in model files: what `evaluate --store` writes, and what it leaves alone."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime_fixtures import SPEC

from tinydet.__main__ import main as tinydet
from tinydet.evaluate.calibration import Calibration, composed
from tinydet.evaluate.operating_point import Measured, OperatingPoints, Point, parse_wanted
from tinydet.evaluate.store import open_target, store, stored_spec
from tinydet.runtime.backends import open_model
from tinydet.runtime.bundled import model_path
from tinydet.runtime.score_calibration import calibrate
from tinydet.spec import ModelSpec

CELLS = dataclasses.replace(SPEC, detector="cells", nms_in_graph=True)
LINES = ((2.0, 0.5), (3.0, -0.5))
NOTHING = Measured(None, None, None, None)


def points(*scores: tuple[str, float | None], together: float | None = 0.4) -> OperatingPoints:
    classes = tuple(Point(name, 9, 3, score) for name, score in scores)
    return OperatingPoints(parse_wanted("precision=0.9"), classes, (), Point("all classes", 9, 3, together), {}, 3)


def calibration(*names: str, lines: Any = LINES) -> Calibration:
    return Calibration(names, lines[: len(names)], (), (1.5, 0.25), {}, {}, 3)


def spec_of(path: Path) -> ModelSpec:
    return open_model(path, "onnx-cpu").spec


def graph_of(path: Path) -> bytes:
    import onnx

    content: bytes = onnx.load(str(path)).graph.SerializeToString(deterministic=True)
    return content


def test_thresholds_are_stored_by_class_name_as_scores_of_the_graph() -> None:
    found, notes = stored_spec(SPEC, SPEC, points(("bar", 0.7), ("square", 0.6)), None, "3 images")
    assert found == dataclasses.replace(SPEC, thresholds=(0.6, 0.7), operating_point="precision >= 0.9 on 3 images")
    assert notes == []
    calibrated = dataclasses.replace(SPEC, calibration=LINES)
    found, _ = stored_spec(SPEC, calibrated, points(("bar", 0.7), ("square", 0.6)), None, "3 images")
    assert calibrate(np.array(found.thresholds), np.arange(2), LINES).tolist() == pytest.approx([0.6, 0.7])
    assert found.calibration == ()  # that of the model to store in


def test_a_class_without_a_threshold_takes_that_of_all_classes_or_keeps_its_own() -> None:
    found, (note,) = stored_spec(SPEC, SPEC, points(("bar", 0.7)), None, "3 images")
    assert found.thresholds == (0.4, 0.7)
    assert note == "no threshold was chosen for square: the threshold of all classes together, 0.4, is stored"
    again, (note,) = stored_spec(found, SPEC, points(("square", 0.3)), None, "5 images")
    assert again.thresholds == (0.3, 0.7)
    assert note == "no threshold was chosen for bar: its older threshold stays"
    assert again.operating_point == "precision >= 0.9 on 5 images (square; the others were stored earlier)"


def test_nothing_is_stored_for_a_value_that_is_not_reached() -> None:
    with pytest.raises(ValueError, match=r"nothing was stored, because precision >= 0\.9 is not reached by: bar\."):
        stored_spec(SPEC, SPEC, points(("square", 0.5), ("bar", None)), None, "3 images")
    with pytest.raises(ValueError, match="is not reached by: all classes"):
        stored_spec(SPEC, SPEC, points(together=None), None, "3 images")


def test_a_model_with_other_classes_is_refused() -> None:
    other = dataclasses.replace(SPEC, classes=("bar", "square"))
    with pytest.raises(ValueError, match="finds square, bar, but the one that is scored finds bar, square"):
        stored_spec(SPEC, other, points(("bar", 0.7), ("square", 0.6)), None, "3 images")


def test_a_calibration_of_calibrated_scores_is_composed_with_theirs() -> None:
    found, _ = stored_spec(SPEC, SPEC, None, calibration("bar", "square"), "3 images")
    assert found.calibration == (LINES[1], LINES[0])
    assert (found.thresholds, found.calibration_source) == ((), "fitted on 3 images")
    again, _ = stored_spec(found, found, None, calibration("bar"), "3 images")
    assert again.calibration == (LINES[1], composed(LINES[0], LINES[0]))
    first, _ = stored_spec(SPEC, SPEC, None, calibration("bar"), "3 images")
    assert first.calibration == ((1.5, 0.25), LINES[0])  # square: that of all classes


def test_an_onnx_file_changes_its_description_only(make_onnx: Callable, tmp_path: Path) -> None:
    import onnx

    path = make_onnx(tmp_path / "model.onnx", spec=CELLS)
    model = onnx.load(str(path))
    model.metadata_props.add(key="author", value="somebody")
    onnx.save(model, str(path))
    before = graph_of(path)
    target = open_target(path, None)
    changed, _ = stored_spec(target.spec, CELLS, points(("bar", 0.7), ("square", 0.6)), calibration("bar"), "x")
    assert store(target, changed) == [path]
    assert spec_of(path) == changed
    assert graph_of(path) == before
    assert {entry.key for entry in onnx.load(str(path)).metadata_props} == {"author", "tinydet"}
    assert sorted(each.name for each in tmp_path.iterdir()) == ["model.onnx"]


def test_a_new_file_is_a_copy_of_the_scored_model(make_onnx: Callable, tmp_path: Path) -> None:
    path = make_onnx(tmp_path / "model.onnx", spec=CELLS)
    content = path.read_bytes()
    target = open_target(tmp_path / "new.onnx", path)
    changed, _ = stored_spec(target.spec, CELLS, points(("bar", 0.7), ("square", 0.6)), None, "x")
    assert store(target, changed) == [tmp_path / "new.onnx"]
    assert path.read_bytes() == content
    assert spec_of(tmp_path / "new.onnx") == changed
    assert open_target(Path("t.onnx"), Path("thermal")).source == model_path("thermal")


def test_the_description_next_to_an_onnx_file_is_kept_in_step(make_onnx: Callable, tmp_path: Path) -> None:
    path = make_onnx(tmp_path / "model.onnx", spec=CELLS)
    sidecar = path.with_suffix(".json")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    sidecar.write_text(dataclasses.replace(CELLS, onnx_sha256=sha256).to_json())
    target = open_target(path, None)
    changed, _ = stored_spec(target.spec, CELLS, None, calibration("bar", "square"), "x")
    assert store(target, changed) == [path, sidecar]
    described = ModelSpec.from_json(sidecar.read_text(), source=sidecar)
    new = hashlib.sha256(path.read_bytes()).hexdigest()
    assert described == dataclasses.replace(changed, onnx_sha256=new)
    # The description of an engine, or of another file, is not touched.
    for other in (dataclasses.replace(described, engine={"flavour": "rtx"}), dataclasses.replace(CELLS)):
        sidecar.write_text(other.to_json())
        assert store(open_target(path, None), changed) == [path]
        assert ModelSpec.from_json(sidecar.read_text(), source=sidecar) == other


def test_an_engine_keeps_its_plan(tmp_path: Path) -> None:
    engine = dataclasses.replace(SPEC, onnx_sha256="ab" * 32, engine={"flavour": "rtx", "sha256": "cd"})
    path, sidecar = tmp_path / "model.engine", tmp_path / "model.json"
    path.write_bytes(b"ftrt plan")
    sidecar.write_text(engine.to_json())
    changed = dataclasses.replace(engine, thresholds=(0.5, 0.6))
    assert store(open_target(path, None), changed) == [sidecar]
    assert ModelSpec.from_json(sidecar.read_text(), source=sidecar) == changed
    assert path.read_bytes() == b"ftrt plan"
    copy = tmp_path / "copy.engine"
    assert store(open_target(copy, path), changed) == [copy, tmp_path / "copy.json"]
    assert copy.read_bytes() == b"ftrt plan"


def test_what_is_no_exported_model_is_refused(make_onnx: Callable, tmp_path: Path) -> None:
    for name, message in (("model.pth", "export the checkpoint first: .*export onnx"), ("a.engine", "end its name in")):
        with pytest.raises(ValueError, match=message):
            open_target(tmp_path / "new.onnx", tmp_path / name)
    with pytest.raises(ValueError, match="to copy the one that made the detections, name it with --model"):
        open_target(tmp_path / "new.onnx", None)
    with pytest.raises(ValueError, match=r"belongs to the installation; .*--store thermal\.onnx"):
        open_target(model_path("thermal"), None)
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ValueError, match=r"text\.onnx is not an ONNX file"):
        open_target(tmp_path / "text.onnx", None)
    (tmp_path / "gt.json").write_text("{}")
    with pytest.raises(ValueError, match=r"expected an exported model, \.onnx or \.engine"):
        open_target(tmp_path / "gt.json", None)
    foreign = make_onnx(tmp_path / "foreign.onnx", metadata=None)
    with pytest.raises(ValueError, match="was not exported by tinydet"):
        open_target(foreign, None)


@pytest.fixture
def results(make_onnx: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A model, and detections of 40 images whose scores say nothing wrong: 0.9 is a hit, 0.6 every other time."""
    monkeypatch.chdir(tmp_path)
    make_onnx(tmp_path / "model.onnx", spec=CELLS)
    annotations, detections = [], []
    for image in range(40):
        for n, (score, hit) in enumerate(((0.9, True), (0.6, image % 2 == 0), (0.5, False))):
            box = [20 * n, 0, 8, 8]
            entry = {"image_id": image, "category_id": 7, "bbox": box}
            annotations.append({**entry, "id": len(annotations) + 1, "area": 64, "iscrowd": 0})
            detections.append({**entry, "bbox": box if hit else [20 * n, 40, 8, 8], "score": score})
    images = [{"id": n, "file_name": f"{n}.png", "width": 100, "height": 100} for n in range(40)]
    categories = [{"id": 7, "name": "square"}, {"id": 0, "name": "bar"}]
    document = {"images": images, "categories": categories, "annotations": annotations}
    Path("gt.json").write_text(json.dumps(document))
    Path("dt.json").write_text(json.dumps(detections))
    return ["evaluate", "--gt", "gt.json", "--detections", "dt.json", "--protocol", "coco"]


def test_the_command_stores_what_it_prints(results: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--operating-point", "precision=0.95", "--calibrate", "--store", "model.onnx", "--json", "scores.json"]
    assert tinydet([*results, *words]) == 0
    said = capsys.readouterr().out
    spec = spec_of(Path("model.onnx"))
    assert spec.thresholds == (0.9, 0.9)
    assert spec.operating_point.startswith("precision >= 0.95 on 40 images of ") and "gt.json, coco" in said
    assert "no threshold was chosen for bar: the threshold of all classes together, 0.9, is stored" in said
    assert "stored in model.onnx" in said and "--model model.onnx --score auto" in said
    values = json.loads(Path("scores.json").read_text())
    (point,) = values["operating_point"]["classes"]
    assert (point["score"], point["precision"], point["recall"]) == (0.9, 1.0, pytest.approx(1 / 3))
    assert values["operating_point"]["excluded"] == ["bar"]
    assert values["calibration"]["lines"]["square"]["slope"] == pytest.approx(spec.calibration[0][0])
    assert values["calibration"]["sizes"]["all"]["ECE_after"] < values["calibration"]["sizes"]["all"]["ECE_before"]


def test_detections_can_be_those_of_a_model_that_is_copied(results: list[str]) -> None:
    """Detections that were saved before a calibration are not calibrated again."""
    words = [*results, "--model", "model.onnx", "--operating-point", "f1", "--calibrate"]
    assert tinydet([*words, "--store", "new.onnx"]) == 0
    first = spec_of(Path("new.onnx"))
    assert first.calibration and spec_of(Path("model.onnx")) == CELLS
    assert tinydet([*words, "--store", "new.onnx"]) == 0
    second = spec_of(Path("new.onnx"))
    assert (second.thresholds, second.calibration) == (first.thresholds, first.calibration)
    assert tinydet([*words, "--store", "new.onnx", "--device", "cpu"]) == 2


def test_a_value_out_of_reach_ends_with_exit_code_2_and_leaves_the_model(
    results: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = Path("model.onnx").read_bytes()
    words = ["--operating-point", "recall=0.9", "--store", "model.onnx", "--json", "scores.json"]
    assert tinydet([*results, *words]) == 2
    captured = capsys.readouterr()
    assert "square: recall >= 0.9 is not reached; the best is 50.00 %, at score >= 0.6" in captured.out
    assert "nothing was stored, because recall >= 0.9 is not reached by: square" in captured.err
    assert Path("model.onnx").read_bytes() == before
    assert json.loads(Path("scores.json").read_text())["operating_point"]["classes"][0]["best"]["value"] == 0.5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--store", "model.onnx"], "add one of them"),
        (
            ["--operating-point", "f1", "--protocol", "citypersons"],
            "--operating-point needs a protocol that measures AP",
        ),
        (["--calibrate", "--protocol", "citypersons"], "--calibrate needs a protocol that measures AP"),
        (["--operating-point", "precision=90"], "expected f1, precision=P or recall=R"),
        (["--calibrate", "--store", "absent.onnx"], "absent.onnx: no such model"),
        (["--calibrate", "--store", "gt.json"], "expected an exported model"),
        (["--calibrate", "--store", "model.onnx", "--json", "model.onnx"], "model.onnx is an input"),
    ],
)
def test_wrong_options_are_refused_before_the_work(
    results: list[str], words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.suppress(SystemExit):  # argparse exits with code 2
        assert tinydet([*results, *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""
    assert len(captured.err.strip().splitlines()) == 1
