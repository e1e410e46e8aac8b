"""Ground truth and results are checked: errors name the entry, and unusual but valid input is accepted."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinydet.data.coco import build_dataset
from tinydet.evaluate import choose_protocol, evaluate_detections, score_detections

GT: dict[str, Any] = {
    "images": [{"id": 5, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
    "categories": [{"id": 0, "name": "person"}, {"id": 7, "name": "car"}],
    "annotations": [
        {"id": 1, "image_id": 5, "category_id": 0, "bbox": [0, 0, 10, 10], "area": 100, "iscrowd": 0},
        {"id": 2, "image_id": 2, "category_id": 7, "bbox": [5, 5, 8, 8], "area": 64, "iscrowd": 0},
    ],
}
DT: list[dict[str, Any]] = [
    {"image_id": 5, "category_id": 0, "bbox": [0, 0, 10, 10], "score": 0.9},
    {"image_id": 2, "category_id": 7, "bbox": [5.0, 5.0, 8.0, 8.0], "score": 1},
]


def changed(path: str, value: Any, *, remove: bool = False) -> tuple[Any, Any]:
    """Return GT and DT with one value, such as `gt.images.0.id`, changed or removed."""
    both: Any = {"gt": copy.deepcopy(GT), "dt": copy.deepcopy(DT)}
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place = both
    for part in parents:
        place = place[part]
    if remove:
        del place[last]
    else:
        place[last] = value
    return both["gt"], both["dt"]


def complete(detections: list[dict[str, Any]], *, rename: dict[str, str] | None = None) -> dict[str, Any]:
    """A COCO file as `tinydet infer` writes it, with ids of its own: those of GT plus 100."""
    names = {entry["file_name"]: entry["file_name"] for entry in GT["images"]} | (rename or {})
    return {
        "images": [{"id": entry["id"] + 100, "file_name": names[entry["file_name"]]} for entry in GT["images"]],
        "categories": [{**entry, "id": entry["id"] + 100} for entry in GT["categories"]],
        "annotations": [
            {**row, "id": n, "image_id": row["image_id"] + 100, "category_id": row["category_id"] + 100, "iscrowd": 0}
            for n, row in enumerate(detections, 1)
        ],
    }


@pytest.mark.parametrize(
    "rename", [{}, {"a.jpg": "flight/a.jpg"}, {"a.jpg": "flight/a.jpg", "b.jpg": "flight/day/b.jpg"}]
)
def test_images_and_classes_of_a_complete_file_are_found_by_their_names(rename: dict[str, str]) -> None:
    worse = [{**DT[0], "bbox": [0, 0, 10, 9]}, *DT]
    for detections in (DT, worse, DT[:1], []):
        file = complete(detections, rename=rename)
        assert evaluate_detections(GT, file) == evaluate_detections(GT, detections)
        assert evaluate_detections(GT, file, categories=["car"]) == evaluate_detections(
            GT, detections, categories=["car"]
        )


def test_a_complete_file_without_names_in_common_is_scored_by_ids() -> None:
    file = {**GT, "annotations": [{**row, "id": n} for n, row in enumerate(DT)]}
    unnamed = {**GT, "images": [{"id": entry["id"]} for entry in GT["images"]]}
    other = {**file, "categories": [{"id": 0, "name": "people"}, {"id": 7, "name": "auto"}]}
    for truth, detections in ((unnamed, file), (GT, other)):
        assert evaluate_detections(truth, detections)["AP"] == evaluate_detections(GT, DT)["AP"]


@pytest.mark.parametrize(
    "rename", [{"a.jpg": "c.jpg"}, {"a.jpg": "one/b.jpg", "b.jpg": "two/b.jpg"}, {"a.jpg": "aa.jpg"}]
)
def test_images_that_the_ground_truth_does_not_name_are_refused(rename: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"on images that the ground truth does not list .* by their file names"):
        evaluate_detections(GT, complete(DT, rename=rename))


def test_sub_images_of_one_file_are_found_by_their_ids() -> None:
    truth = {**GT, "images": [{"id": id, "file_name": "a.jpg"} for id in (5, 2)]}
    file = {**truth, "annotations": [{**row, "id": n} for n, row in enumerate(DT)]}
    assert evaluate_detections(truth, file)["AP"] == evaluate_detections(truth, DT)["AP"]


def test_perfect_detections_score_one() -> None:
    perfect = {"0.25": 1.0, "0.50": 1.0, "0.75": 1.0}
    assert evaluate_detections(GT, DT)["AP"]["all"] == pytest.approx(perfect, abs=1e-12)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("gt", [], "ground truth: a JSON list, not an object; expected COCO"),
        ("gt.images", {}, "'images' is a JSON object, not a list"),
        ("gt.images", [], "'images' is empty"),
        ("gt.categories", [], "'categories' is empty"),
        ("gt.images.1.id", 5, "entries 0 and 1 of 'images' have the same id 5"),
        ("gt.images.1.id", "b", "1 of the ids of 'images' are text, such as \"b\", the others numbers"),
        ("gt.annotations.1.image_id", "5", "annotation 2 has the image_id \"5\", but 'images' has 5; text and numbers"),
        ("gt.annotations.1.category_id", "7", "has the category_id \"7\", but 'categories' has 7; text and numbers"),
        ("gt.annotations.1.id", 1, "entries 0 and 1 of 'annotations' have the same id 1"),
        (
            "gt.annotations.1.image_id",
            [1],
            r"annotation 2 has the image_id \[1\]; it must be a whole number or a string",
        ),
        ("gt.annotations.1.bbox", [1, 2, 3], r"annotation 2 has the bbox \[1, 2, 3\]; a bbox is .*, four numbers"),
        (
            "gt.annotations.1.bbox",
            [1, 2, "3", 4],
            r"annotation 2 has the bbox \[1, 2, \"3\", 4\]; a bbox is .*, four numbers",
        ),
        ("gt.annotations.1.bbox", [1, 2, math.inf, 4], "annotation 2 has the bbox .*, which is not finite"),
        ("gt.annotations.1.area", math.nan, "annotation 2 has the area NaN; it must be a finite number"),
        ("gt.annotations.1.area", "64", 'annotation 2 has the area "64"; it must be a finite number'),
        ("gt.annotations.1.size", "8", 'annotation 2 has the size "8"; it must be a finite number'),
        ("gt.annotations.1.vis_ratio", "1", 'annotation 2 has the vis_ratio "1"; it must be a finite number'),
        ("gt.annotations.1.iscrowd", "0", 'annotation 2 has iscrowd "0"; it must be 0 or 1'),
        ("gt.annotations.1.ignore", [], r"annotation 2 has ignore \[\]; it must be 0 or 1"),
        ("gt.annotations.1.uncertain", "no", 'annotation 2 has uncertain "no"; it must be 0 or 1'),
        ("gt.annotations.1.bbox", [9, 9, -3, 4], r"annotation 2 has the bbox \[9, 9, -3, 4\] with a negative side"),
        ("gt.categories.1.name", 5, "category 7 has the name 5; it must be a string"),
        ("gt.images.0.file_name", ["a"], r"image 5 has the file_name \[\"a\"\]; it must be a file's name"),
        ("gt.annotations.1.vis", [1, 2], r"annotation 2 has the vis \[1, 2\]; a vis is .*, four numbers"),
        ("dt", {"annotations": []}, "expected a list of COCO results, got a JSON object; this looks like"),
        ("dt", None, "expected a list of COCO results, got a JSON null"),
        (
            "dt",
            {"results": DT},
            "the list is under .results., write it alone: jq .results detections",
        ),
        ("dt.1.bbox", [1, 2, 3, 10**400], "entry 1 has the bbox .*, which is not finite"),
        ("dt.1.bbox", [1, 2, 3, 1e300], "entry 1 has the bbox .*, which is beyond any image"),
        ("dt.1.image_id", "5", r'image_id "5" in entry 1, but the ground truth has 5: text and numbers differ'),
        ("dt.1.image_id", "a" * 5000, r'image_id "a{56}\.\.\. in entry 1\)'),
        ("dt.1", 3, "entry 1 is a JSON number, not an object; expected COCO results"),
        ("dt.1.image_id", 9, "1 of 2 detections are on images .* image_id 9 in entry 1"),
        ("dt.1.image_id", None, "entry 1 has the image_id null; it must be a whole number or a string"),
        ("dt.1.bbox", [1, 2, None, 4], r"entry 1 has the bbox \[1, 2, null, 4\]; a bbox is .*, four numbers"),
        ("dt.1.score", math.nan, "entry 1 has the score NaN; it must be a finite number"),
        ("dt.1.score", math.inf, "entry 1 has the score Infinity; it must be a finite number"),
        ("dt.1.score", "0.5", 'entry 1 has the score "0.5"; it must be a finite number'),
        ("dt.1.score", True, "entry 1 has the score true; it must be a finite number"),
    ],
)
def test_a_malformed_value_is_named(path: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_detections(*changed(path, value))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("gt.images", "has no 'images'"),
        ("gt.annotations", "has no 'annotations'"),
        ("gt.images.1.id", "entry 1 of 'images' has no 'id'"),
        ("gt.annotations.1.image_id", r"annotation 2 has no 'image_id' \(it has 'id', 'category_id', .*\)"),
        ("gt.annotations.1.category_id", "annotation 2 has no 'category_id'"),
        ("gt.annotations.1.bbox", "annotation 2 has no 'bbox'"),
        ("dt.1.image_id", "entry 1 has no 'image_id'"),
        ("dt.1.category_id", "entry 1 has no 'category_id'"),
        ("dt.1.bbox", "entry 1 has no 'bbox'"),
        ("dt.1.score", r"entry 1 has no 'score' .*; results need one; is this a ground-truth file\?"),
    ],
)
def test_a_missing_key_is_named(path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_detections(*changed(path, None, remove=True))


@pytest.mark.parametrize("path", ["gt.annotations.1.iscrowd", "gt.annotations.1.area", "gt.annotations.1.id"])
def test_a_field_with_an_evident_default_may_be_absent(path: str) -> None:
    gt, dt = changed(path, None, remove=True)
    assert evaluate_detections(gt, dt)["AP"] == evaluate_detections(GT, DT)["AP"]


SPOILED: dict[str, Callable[[dict[str, Any]], object]] = {
    "no list": lambda gt: gt.pop("annotations"),
    "not a list": lambda gt: gt.update(images={}),
    "no categories": lambda gt: gt.update(categories=[]),
    "not an object": lambda gt: gt["annotations"].append(7),
    "no id": lambda gt: gt["images"][1].pop("id"),
    "id used twice": lambda gt: gt["categories"][1].update(id=0),
    "no bbox": lambda gt: gt["annotations"][1].pop("bbox"),
    "three numbers": lambda gt: gt["annotations"][1].update(bbox=[1, 2, 3]),
    "not finite": lambda gt: gt["annotations"][1].update(bbox=[1, 2, math.nan, 4]),
    "a huge number": lambda gt: gt["annotations"][1].update(bbox=[1, 2, 10**400, 4]),
}


@pytest.mark.parametrize("fault", SPOILED)
def test_scoring_refuses_a_file_with_the_message_of_load_dataset(fault: str) -> None:
    gt = copy.deepcopy(GT)
    for image in gt["images"]:
        image.update(width=40, height=40)
    SPOILED[fault](gt)
    with pytest.raises(ValueError, match="^gt.json: ") as expected:
        build_dataset(gt, Path("gt.json"))
    with pytest.raises(ValueError, match="^gt.json: ") as refusal:
        score_detections(gt, DT, choose_protocol("coco"), sources=("gt.json", "dt.json"))
    assert str(refusal.value) == str(expected.value)


def test_scalars_and_arrays_of_numpy_are_numbers_and_boxes() -> None:
    arrays = [
        {
            "image_id": np.int64(detection["image_id"]),
            "category_id": np.int32(detection["category_id"]),
            "bbox": np.array(detection["bbox"], np.float32),
            "score": np.float64(detection["score"]),
        }
        for detection in DT
    ]
    assert evaluate_detections(GT, arrays) == evaluate_detections(GT, DT)


def test_ids_may_be_strings() -> None:
    gt, dt = copy.deepcopy((GT, DT))
    for image in gt["images"]:
        image["id"] = f"frame {image['id']}"
    for entry in [*gt["annotations"], *dt]:
        entry["image_id"] = f"frame {entry['image_id']}"
    for annotation in gt["annotations"]:
        annotation["id"] = f"box {annotation['id']}"
    assert evaluate_detections(gt, dt) == evaluate_detections(GT, DT)


def test_no_detections_score_zero_and_miss_everything() -> None:
    scores = score_detections(GT, [], choose_protocol("tinyperson"))
    values = scores.to_json()
    assert values["AP"]["tiny"]["0.50"] == 0 and values["AR"]["tiny"]["0.50"] == 0
    assert values["MR"]["tiny"]["0.50"] == 1
    assert values["AP"]["reasonable"]["0.50"] == -1 and values["MR"]["small"]["0.50"] == -1
    assert "detections: no detections" in scores.notes


def test_ground_truth_without_objects_has_no_score() -> None:
    values = evaluate_detections({**GT, "annotations": []}, DT, protocol="tinyperson")
    assert {v for row in (values["AP"] | values["MR"]).values() for v in row.values()} == {-1.0}
    assert values["AP_counts"]["all"]["0.50"] == {"n_gt": 0, "tp": 0, "fp": 2, "ignored_dt": 0}


def test_detections_of_other_categories_are_left_out_with_a_note() -> None:
    extra = {"image_id": 5, "category_id": 99, "bbox": [0, 0, 10, 10], "score": 1.0}
    scores = score_detections(GT, [extra, *DT], choose_protocol("coco"))
    assert scores.to_json() == evaluate_detections(GT, DT)
    assert any("category_id 99" in note for note in scores.notes)
    with pytest.raises(
        ValueError, match=r"none of the categories .*: they have category_id 99, scored are 0 \(person\)"
    ):
        evaluate_detections(GT, [extra])


def test_a_selected_category_that_was_never_detected_scores_zero() -> None:
    scores = score_detections(GT, DT[:1], choose_protocol("coco"), categories=["car"])
    assert scores.to_json()["AP"]["all"]["0.50"] == 0
    assert not any("categories" in note for note in scores.notes)


def test_an_unknown_category_is_refused_with_the_list_of_categories() -> None:
    with pytest.raises(ValueError, match="has no category 'bike'; choose from person, car"):
        evaluate_detections(GT, DT, categories=["bike"])


def test_annotations_of_unlisted_images_are_left_out_with_a_note() -> None:
    gt, dt = changed("gt.annotations.1.image_id", 77)
    scores = score_detections(gt, dt, choose_protocol("coco"))
    assert scores.to_json()["AP_counts"]["all"]["0.50"]["n_gt"] == 1
    assert any("images that 'images' does not list" in note for note in scores.notes)


def test_annotations_of_unlisted_categories_are_left_out_with_a_note() -> None:
    gt, dt = changed("gt.annotations.1.category_id", 77)
    notes = score_detections(gt, dt, choose_protocol("coco")).notes
    assert sum("1 annotation of categories that 'categories' does not list" in note for note in notes) == 1
    chosen = score_detections(GT, DT, choose_protocol("coco"), categories=["person"]).notes
    assert not any("does not list" in note for note in chosen)


def test_the_order_of_entries_does_not_matter_if_scores_differ() -> None:
    gt = {key: value[::-1] for key, value in GT.items()}
    assert evaluate_detections(gt, DT[::-1], protocol="tinyperson") == evaluate_detections(
        GT, DT, protocol="tinyperson"
    )


def test_an_annotation_with_id_zero_can_be_found_only_with_the_fixed_protocol() -> None:
    gt, dt = changed("gt.annotations.0.id", 0)
    found = {
        name: evaluate_detections(gt, dt, protocol=name, categories=["person"])["AP"]["all"]["0.50"]
        for name in ("coco", "tinyperson", "tinyperson-mmdet", "tinyperson-huicv", "tinyperson-fixed")
    }
    assert found.pop("tinyperson-fixed") == pytest.approx(1.0, abs=1e-12)
    assert set(found.values()) == {0.0}
    notes = score_detections(gt, dt, choose_protocol("tinyperson")).notes
    assert any("id 0" in note for note in notes)


def test_a_note_says_that_a_category_of_ignore_regions_affects_no_other_category() -> None:
    """As in every published evaluator, a car in a region of category `dont_care` is a false positive."""
    region = {"id": 3, "image_id": 5, "category_id": 9, "bbox": [40, 40, 50, 50], "area": 2500, "ignore": 1}
    categories = [*GT["categories"], {"id": 9, "name": "dont_care"}]
    gt = {**GT, "categories": categories, "annotations": [*GT["annotations"], region]}
    inside = {"image_id": 5, "category_id": 7, "bbox": [50, 50, 9, 9], "score": 0.9}
    scores = score_detections(gt, [*DT, inside], choose_protocol("tinyperson"))
    assert scores.to_json()["AP_counts"]["all"]["0.50"]["fp"] == 1
    assert any(note.startswith("dont_care has only ignore regions") for note in scores.notes)
    assert not any("only ignore" in note for note in score_detections(GT, DT, choose_protocol("tinyperson")).notes)


def test_visible_share_selects_the_objects_of_citypersons() -> None:
    """A half visible person counts in Heavy and All only; either key may hold the visible box."""
    for key in ("vis", "vis_bbox"):
        gt = {
            **GT,
            "annotations": [
                {"id": 1, "image_id": 5, "category_id": 0, "bbox": [0, 0, 40, 60], "area": 2400, key: [0, 0, 40, 30]}
            ],
        }
        dt = [{"image_id": 5, "category_id": 0, "bbox": [0, 0, 40, 60], "score": 0.9}]
        rates = evaluate_detections(gt, dt, protocol="citypersons")["MR"]
        assert {name: row["0.50"] for name, row in rates.items()} == {
            "Reasonable": -1,
            "Small": -1,
            "Heavy": 0,
            "All": 0,
        }
