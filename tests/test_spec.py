from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from tinydet.spec import FORMAT, PRECISIONS, Domain, FilterRecord, ModelSpec

SMALLEST = ModelSpec(classes=("person",), category_ids=(0,), detector="retinanet", backbone="resnet18", tile=640)
FULL = ModelSpec(
    classes=("person", "Fußgänger α"),
    category_ids=(3, 1),
    detector="retinanet",
    backbone="mobilenet_v2",
    tile=512,
    tile_multiple=64,
    max_batch=8,
    max_detections=300,
    score_floor=0.0,
    nms_iou=1.0,
    nms_in_graph=True,
    nms_rounds=12,
    grid_rois=150,
    pad=(0, 255, 7),
    stretch=(0.0, 100.0),
    alpha=(0.374, 0.391, 0.2),
    alpha_source="counted on 1570 boxes",
    object_sizes=(3.5, 12.0, 40.25),
    domain=Domain(
        images=3,
        chroma=(0.0, 1.0, 2.0),
        brightness=(90.0, 100.0, 120.5),
        contrast=(10.0, 20.0, 30.0),
        detail=(1.0, 2.0, 3.0),
        class_sizes=((3.0, 5.0, 9.0), (0.0, 0.0, 0.0)),
        gsd=(0.01, 0.02, 0.05),
    ),
    precision="int8",
    thresholds=(0.25, 1.0),
    operating_point="precision >= 0.9 on 20 images",
    calibration=((1.5, -0.25), (0.5, 2.0)),
    calibration_source="fitted on 20 images",
    tile_filter=FilterRecord(("boat",), (640, 320), 1.0, 2, 0.995, 0.99, 0.95, 400, 1, 90, 60, 1, 0.01, "int8", "val"),
    onnx_sha256="ab" * 32,
    engine={"flavour": "rtx", "version": "1.7.1.116", "nested": {"targets": ["SM86", "SM89"]}},
    versions={"torch": "2.14.1", "onnx": "1.23.2"},
)


@pytest.mark.parametrize("spec", [SMALLEST, FULL])
def test_a_spec_survives_a_round_trip(spec: ModelSpec) -> None:
    assert ModelSpec.from_json(spec.to_json(), source="model.json") == spec


def test_the_example_sets_every_field() -> None:
    """Otherwise the round trip above would miss a lost field."""
    for field in dataclasses.fields(ModelSpec):
        assert getattr(FULL, field.name) != getattr(SMALLEST, field.name) or field.name == "detector"


def test_a_spec_is_strict_json_with_its_format() -> None:
    values = json.loads(FULL.to_json())
    assert values["format"] == FORMAT
    assert values["classes"] == ["person", "Fußgänger α"]
    with pytest.raises(ValueError, match="JSON"):
        dataclasses.replace(SMALLEST, alpha=(float("nan"),)).to_json()


def changed(**values: Any) -> str:
    return json.dumps({**json.loads(SMALLEST.to_json()), **values})


def test_an_unknown_field_is_ignored() -> None:
    assert ModelSpec.from_json(changed(added_later={"a": 1}), source="model.json") == SMALLEST


def test_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match=rf"^model\.json: .*format {FORMAT + 1}, this tinydet reads {FORMAT}; export"):
        ModelSpec.from_json(changed(format=FORMAT + 1), source="model.json")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "5",
        "null",
        '"text"',
        "{}",
        '{"format": 1}',
        changed(tile=None),
        changed(tile="640"),
        changed(pad=7),
    ],
)
def test_an_invalid_document_is_refused_by_its_source(text: str) -> None:
    with pytest.raises(ValueError, match=r"^model\.json: .*export the model again$"):
        ModelSpec.from_json(text, source="model.json")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("classes", ()),
        ("classes", "p"),  # a string is not a tuple of classes
        ("classes", (1,)),
        ("category_ids", (1, 2)),
        ("category_ids", ()),
        ("tile", 0),
        ("max_batch", 0),
        ("max_detections", 0),
        ("score_floor", -0.1),
        ("score_floor", 1.0),
        ("nms_iou", 0.0),
        ("nms_iou", 1.1),
        ("nms_rounds", -1),
        ("grid_rois", -1),
        ("grid_rois", 1001),  # more than max_detections
        ("pad", (0, 0)),
        ("pad", (0, 0, 256)),
        ("stretch", (99.5, 0.5)),
        ("stretch", (0.0, 101.0)),
        ("precision", "fp64"),
        ("thresholds", (0.5, 0.5)),  # one class
        ("thresholds", (-0.1,)),
        ("thresholds", (1.1,)),
        ("calibration", ((1.0, 0.0), (1.0, 0.0))),
        ("calibration", ((0.0, 0.5),)),  # constant: all scores would tie
        ("calibration", ((-1.0, 0.5),)),
    ],
)
def test_an_invalid_value_is_refused_by_its_field(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{field} must be "):
        dataclasses.replace(SMALLEST, **{field: value})
    with pytest.raises(ValueError, match=rf"^model\.json: .*{field}"):
        ModelSpec.from_json(changed(**{field: value}), source="model.json")


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(ModelSpec)])
def test_a_value_of_another_type_is_refused_in_one_line_or_means_what_it_says(field: str) -> None:
    for value in (None, True, "7", -1, 1.5, 10**400, [], [None], {"a": 1}, [[]], ["\ud800"], float("nan")):
        refusal = None
        try:
            stored = getattr(ModelSpec.from_json(changed(**{field: value}), source="model.json"), field)
        except ValueError as error:
            refusal = str(error)
        if refusal is None:
            assert (list(stored) if isinstance(stored, tuple) else stored) == value
        else:
            assert refusal.startswith("model.json: ") and "\n" not in refusal, value
            assert field in refusal or "unpaired surrogate" in refusal, value


@pytest.mark.parametrize("text", ["[" * 10_000, '{"format": 1, "tile": %s}' % ("9" * 5000), "\ud800", '{"format": {}}'])
def test_what_json_cannot_express_is_refused_by_its_source(text: str) -> None:
    with pytest.raises(ValueError, match=r"^model\.json: [^\n]*export the model again$"):
        ModelSpec.from_json(text, source="model.json")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_precision_is_accepted(precision: str) -> None:
    assert dataclasses.replace(SMALLEST, precision=precision).precision == precision


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("chroma", [2.0, 1.0, 3.0]),
        ("class_sizes", [[1.0, 2.0]] * 2),
        ("images", 0),
        ("gsd", [0.1, 0.2]),
        ("detail", "a"),
    ],
)
def test_a_domain_that_is_no_domain_is_refused_by_name(field: str, value: Any) -> None:
    values = json.loads(FULL.to_json())
    values["domain"][field] = value
    with pytest.raises(ValueError, match=rf"model\.json: .*domain.*{field}"):
        ModelSpec.from_json(json.dumps(values), source="model.json")


def test_the_sizes_of_a_domain_are_those_of_the_classes() -> None:
    with pytest.raises(ValueError, match="domain must be of 1 class"):
        dataclasses.replace(SMALLEST, domain=FULL.domain)
