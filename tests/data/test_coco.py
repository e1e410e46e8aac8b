from __future__ import annotations

import copy
import functools
import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tinydet.data.coco import Dataset, find_dataset, load_dataset, read_pixels
from tinydet.data.coco_entries import check_categories

# Ids are unordered, have gaps and include 0; image 7 has no box; "crowded" has only ignore regions.
DOCUMENT: dict[str, Any] = {
    "images": [
        {"id": 30, "file_name": "b.png", "width": 50, "height": 40},
        {"id": 0, "file_name": "deep/a.png", "width": 100, "height": 80},
        {"id": 7, "file_name": "c.png", "width": 20, "height": 20},
    ],
    "categories": [
        {"id": 9, "name": "boat"},
        {"id": 0, "name": "person"},
        {"id": 4, "name": "crowded"},
        {"id": 5, "name": "unused"},
    ],
    "annotations": [
        {"id": 11, "image_id": 30, "category_id": 9, "bbox": [1, 2, 3, 4]},
        {"id": 3, "image_id": 0, "category_id": 0, "bbox": [10.5, 20.25, 4, 8], "ignore": 0, "iscrowd": 0},
        {"id": 0, "image_id": 0, "category_id": 9, "bbox": [90, 70, 20, 20]},
        {"id": 5, "image_id": 0, "category_id": 0, "bbox": [5, 5, 5, 5], "ignore": True},
        {"id": 6, "image_id": 30, "category_id": 0, "bbox": [6, 6, 6, 6], "iscrowd": 1},
        {"id": 8, "image_id": 30, "category_id": 4, "bbox": [0, 0, 50, 40], "ignore": 1, "iscrowd": 1},
        {"id": 12, "image_id": 30, "category_id": 9, "bbox": [7, 7, 7, 7], "ignore": 1},
    ],
}


def written(folder: Path, document: Any = DOCUMENT, name: str = "annotations.json") -> Path:
    path = folder / name
    content = json.dumps(document).encode()
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return path


def coco_folder(folder: Path, document: dict[str, Any] = DOCUMENT) -> Path:
    written(folder, document)
    for image in document["images"]:
        path = folder / "images" / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.zeros((image["height"], image["width"]), np.uint8))
    return folder


def rows(dataset: Dataset) -> list[tuple[int, tuple[float, ...], str | None, bool]]:
    """(image id, box, class, ignore) of every box."""
    return [
        (
            dataset.images[image].id,
            tuple(box),
            dataset.classes[label] if label >= 0 else None,
            bool(ignore),
        )
        for image, box, label, ignore in zip(
            dataset.image_index.tolist(),
            dataset.boxes.tolist(),
            dataset.labels.tolist(),
            dataset.ignore.tolist(),
            strict=True,
        )
    ]


PERSON = [(0, (10.5, 20.25, 14.5, 28.25), "person", False), (0, (5, 5, 10, 10), "person", True)]
CROWD = (30, (0, 0, 50, 40), None, True)


def test_every_box_is_loaded_with_its_image_and_class(tmp_path: Path) -> None:
    dataset = load_dataset(written(tmp_path))
    assert [image.id for image in dataset.images] == [0, 7, 30]
    assert (dataset.classes, dataset.category_ids) == (("person", "unused", "boat"), (0, 5, 9))
    assert rows(dataset) == [
        PERSON[0],
        (0, (90, 70, 100, 80), "boat", False),
        PERSON[1],
        (30, (1, 2, 4, 6), "boat", False),
        (30, (6, 6, 12, 12), "person", True),
        CROWD,
        (30, (7, 7, 14, 14), "boat", True),
    ]
    assert dataset.clipped == 1
    assert dataset.objects.tolist() == [True, True, False, True, False, False, False]
    assert dataset.image_dir is None


def test_a_selection_keeps_its_classes_and_the_regions_that_apply_to_all(tmp_path: Path) -> None:
    dataset = load_dataset(written(tmp_path), categories=["person"])
    assert (dataset.classes, dataset.category_ids, dataset.clipped) == (("person",), (0,), 0)
    assert rows(dataset) == [*PERSON, (30, (6, 6, 12, 12), "person", True), CROWD]


def test_classes_are_sorted_by_id_whatever_the_order_of_the_selection(tmp_path: Path) -> None:
    one, other = (
        load_dataset(written(tmp_path), categories=names) for names in (["boat", "person"], ["person", "boat"])
    )
    assert one.classes == other.classes == ("person", "boat")
    assert rows(one) == rows(other)


def test_of_image_partitions_the_boxes(tmp_path: Path) -> None:
    dataset = load_dataset(written(tmp_path))
    parts = [dataset.of_image(i) for i in range(3)]
    assert [len(part.boxes) for part in parts] == [3, 0, 4]
    for k, whole in enumerate((dataset.boxes, dataset.labels, dataset.ignore, dataset.areas)):
        assert np.array_equal(np.concatenate([part[k] for part in parts]), whole)


def test_the_order_of_the_file_matters_only_within_an_image(tmp_path: Path) -> None:
    document = {key: entries[::-1] for key, entries in DOCUMENT.items()}
    assert sorted(rows(load_dataset(written(tmp_path, document))), key=str) == sorted(
        rows(load_dataset(written(tmp_path))), key=str
    )


@pytest.mark.parametrize("name", ["annotations.json.gz", "renamed.json"])
def test_gzip_is_read_like_plain_json(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name="a.json.gz").rename(tmp_path / name)
    assert rows(load_dataset(path)) == rows(load_dataset(written(tmp_path, name="plain.json")))


def test_a_coco_folder_is_found_and_its_images_are_read(tmp_path: Path) -> None:
    folder = coco_folder(tmp_path)
    assert find_dataset(folder) == (folder / "annotations.json", folder / "images")
    dataset = load_dataset(folder)
    assert dataset.image_path(0) == folder / "images" / "deep" / "a.png"
    for i, record in enumerate(dataset.images):
        assert read_pixels(dataset, i).shape == (record.height, record.width, 3)


def test_a_file_without_annotations_is_a_set_of_images(tmp_path: Path) -> None:
    dataset = load_dataset(written(tmp_path, DOCUMENT | {"annotations": []}), categories=["person"])
    assert (len(dataset.images), dataset.boxes.shape, dataset.classes) == (3, (0, 4), ("person",))
    assert len(dataset.of_image(0).boxes) == 0


def test_whole_numbers_may_be_written_as_floats(tmp_path: Path) -> None:
    document = copy.deepcopy(DOCUMENT)
    document["images"][0].update(id=30.0, width=50.0)
    document["annotations"][0].update(image_id=30.0, category_id=9.0)
    dataset = load_dataset(written(tmp_path, document))
    assert rows(dataset) == rows(load_dataset(written(tmp_path)))
    assert dataset.images == load_dataset(written(tmp_path)).images


@pytest.mark.parametrize("box", [[5, 5, 0, 4], [200, 5, 9, 9], [-9, 5, 9, 9]])
def test_an_ignore_region_without_an_area_in_the_image_is_dropped(tmp_path: Path, box: list[float]) -> None:
    document = copy.deepcopy(DOCUMENT)
    document["annotations"].append({"id": 99, "image_id": 0, "category_id": 0, "bbox": box, "ignore": 1})
    assert rows(load_dataset(written(tmp_path, document))) == rows(load_dataset(written(tmp_path)))


def test_a_bad_box_of_an_unselected_class_does_not_matter(tmp_path: Path) -> None:
    document = copy.deepcopy(DOCUMENT)
    document["annotations"][0]["bbox"] = [1, 2, 0, 4]
    assert len(load_dataset(written(tmp_path, document), categories=["person"]).boxes) == 4


def test_sub_images_of_one_file_may_differ_in_size(tmp_path: Path) -> None:
    document = copy.deepcopy(DOCUMENT)
    document["images"][2].update(file_name="b.png", corner=[0, 0, 20, 20])
    assert len(load_dataset(written(tmp_path, document)).images) == 3


@pytest.mark.parametrize("kind", ["gray", "16-bit gray", "rgb", "16-bit rgb", "rgba"])
def test_pixels_of_every_kind_of_file_are_rgb8(tmp_path: Path, kind: str) -> None:
    folder = coco_folder(tmp_path)
    bands = {"rgb": 3, "rgba": 4}.get(kind.removeprefix("16-bit "), 1)
    depth = np.uint16 if "16-bit" in kind else np.uint8
    pixels = np.random.default_rng(0).integers(0, np.iinfo(depth).max, (20, 20, bands), depth, endpoint=True)
    assert cv2.imwrite(str(folder / "images" / "c.png"), pixels)
    read = read_pixels(load_dataset(folder), 1)
    assert (read.shape, read.dtype) == ((20, 20, 3), np.uint8)
    assert np.ptp(read) > 200


def test_an_image_of_another_size_than_recorded_is_refused_with_both_sizes(tmp_path: Path) -> None:
    folder = coco_folder(tmp_path)
    dataset = load_dataset(folder)
    cv2.imwrite(str(folder / "images" / "b.png"), np.zeros((50, 40), np.uint8))
    with pytest.raises(ValueError, match=r"b\.png is 40x50 pixels, but image 30 of .* is 50x40 .*EXIF"):
        read_pixels(dataset, 2)


def test_pixels_without_an_image_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--images DIR"):
        read_pixels(load_dataset(written(tmp_path)), 0)


def changed(key: str, entry: int, **values: Any) -> Callable[[dict[str, Any]], None]:
    """Set values of one entry; `...` removes the key."""

    def change(document: dict[str, Any]) -> None:
        for name, value in values.items():
            if value is ...:
                del document[key][entry][name]
            else:
                document[key][entry][name] = value

    return change


annotation = functools.partial(changed, "annotations", 1)


def replaced(**values: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        for name, value in values.items():
            if value is ...:
                del document[name]
            else:
                document[name] = value

    return change


def doubled(key: str, entry: int) -> Callable[[dict[str, Any]], None]:
    return lambda document: document[key].append(dict(document[key][entry]))


def flagged_everywhere(document: dict[str, Any]) -> None:
    for annotation in document["annotations"]:
        annotation["ignore"] = 1


FAULTS: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "no images key": (replaced(images=...), "has no 'images' .*expected COCO"),
    "no annotations key": (replaced(annotations=...), "has no 'annotations' .*expected COCO"),
    "no categories key": (replaced(categories=...), "has no 'categories' .*expected COCO"),
    "images of a wrong type": (replaced(images={}), "'images' is a JSON object, not a list"),
    "annotations of a wrong type": (replaced(annotations=[1, 2]), "entry 0 of 'annotations' is a JSON number.*1 more"),
    "no image": (replaced(images=[]), "'images' is empty"),
    "no category": (replaced(categories=[]), "'categories' is empty"),
    "image without id": (changed("images", 1, id=...), "entry 1 of 'images' has no 'id'"),
    "image id of a wrong type": (changed("images", 1, id="x"), "entry 1 of 'images' has the id \"x\".*whole number"),
    "image id true": (changed("images", 1, id=True), "has the id true.*whole number"),
    "image id beyond 64 bits": (changed("images", 1, id=2**70), "has the id 1180.*whole number"),
    "image listed twice": (doubled("images", 0), "entries 0 and 3 of 'images' have the same id 30"),
    "image without file_name": (changed("images", 1, file_name=...), "image 0 has no 'file_name'"),
    "file_name of a wrong type": (changed("images", 1, file_name=5), "image 0 has the file_name 5"),
    "image without width": (changed("images", 2, width=...), "image 7 has no 'width'"),
    "image of no height": (changed("images", 2, height=0), "image 7 has the height 0"),
    "image of negative width": (changed("images", 2, width=-4), "image 7 has the width -4"),
    "image of half a pixel": (changed("images", 2, width=4.5), "image 7 has the width 4.5.*whole number"),
    "one file of two sizes": (
        changed("images", 2, file_name="b.png"),
        "images 30 and 7 are one file, b.png, but of two sizes, 50x40 and 20x20",
    ),
    "category listed twice": (doubled("categories", 1), "entries 1 and 4 of 'categories' have the same id 0"),
    "category named twice": (changed("categories", 0, name="person"), "categories 9 and 0 are all named 'person'"),
    "category without name": (changed("categories", 0, name=...), "category 9 has no 'name'"),
    "category whose name is not a string": (changed("categories", 0, name=None), "category 9 has the name null"),
    "annotation listed twice": (doubled("annotations", 1), "entries 1 and 7 of 'annotations' have the same id 3"),
    "annotation without id": (annotation(id=...), "entry 1 of 'annotations' has no 'id'"),
    "annotation without image": (annotation(image_id=...), "annotation 3 has no 'image_id'"),
    "annotation of an unknown image": (annotation(image_id=8), "annotation 3 has the image_id 8, which"),
    "annotation beyond the images": (annotation(image_id=99), "annotation 3 has the image_id 99, which"),
    "annotation of an unknown category": (
        annotation(category_id=1),
        "annotation 3 has the category_id 1, which is not in 'categories'",
    ),
    "annotation without bbox": (annotation(bbox=...), "annotation 3 has no 'bbox'"),
    "bbox of three": (annotation(bbox=[1, 2, 3]), r"annotation 3 has the bbox \[1, 2, 3\]; .*four numbers"),
    "bbox of strings": (annotation(bbox=["1", 2, 3, 4]), "annotation 3 has the bbox .*four numbers"),
    "bbox of null": (annotation(bbox=[None, 2, 3, 4]), "annotation 3 has the bbox .*four numbers"),
    "bbox null": (annotation(bbox=None), "annotation 3 has the bbox null; .*four numbers"),
    "bbox of booleans": (annotation(bbox=[1, 2, 3, True]), "annotation 3 .*four numbers"),
    "bbox of NaN": (annotation(bbox=[1, 2, float("nan"), 4]), "annotation 3 .*NaN.* not finite"),
    "bbox of infinity": (annotation(bbox=[1, 2, float("inf"), 4]), "annotation 3 .*Infinity.* not finite"),
    "bbox of a huge number": (annotation(bbox=[1, 2, 10**400, 4]), "annotation 3 .* not finite"),
    "inverted bbox": (annotation(bbox=[9, 9, -3, 4]), "annotation 3 .* negative side"),
    "flat bbox": (annotation(bbox=[9, 9, 0, 4]), "annotation 3 of image 0 .* has no area"),
    "bbox thinner than a float": (annotation(bbox=[9, 9, 1e-30, 4]), "annotation 3 .* has no area"),
    "bbox right of the image": (annotation(bbox=[100, 9, 4, 4]), "annotation 3 of image 0 .* wholly outside"),
    "bbox above the image": (annotation(bbox=[9, -9, 4, 9]), r"annotation 3 of image 0 \(100x80\) .* wholly"),
    "ignore of a wrong value": (annotation(ignore=2), "annotation 3 has ignore 2; it must be 0 or 1"),
    "iscrowd of a wrong type": (annotation(iscrowd=[]), r"annotation 3 has iscrowd \[\]"),
    "everything ignored": (flagged_everywhere, "every annotation is marked ignore or iscrowd"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_malformed_content_is_refused_in_one_line_that_names_file_and_entry(tmp_path: Path, fault: str) -> None:
    spoil, message = FAULTS[fault]
    document = copy.deepcopy(DOCUMENT)
    spoil(document)
    path = written(tmp_path, document)
    with pytest.raises(ValueError, match=message) as refusal:
        load_dataset(path)
    assert str(refusal.value).startswith(f"{path}: ")
    assert "\n" not in str(refusal.value)


BROKEN_FILES = {
    "missing": (None, "no such file"),
    "empty": (b" \n", "an empty file"),
    "cut off": (json.dumps(DOCUMENT).encode()[:-9], "not JSON"),
    "binary": (b"\x89PNG\r\n\x1a\n\x00\xff", "not JSON"),
    "endless nesting": (b"[" * 100_000, "not JSON"),
    "a list": (b"[]", "a JSON list, not an object"),
    "null": (b"null", "a JSON null, not an object"),
    "an empty object": (b"{}", "has no 'images'"),
    "cut off gzip": (gzip.compress(json.dumps(DOCUMENT).encode())[:-40], "truncated or damaged gzip"),
    "damaged gzip": (b"\x1f\x8b" + bytes(40), "truncated or damaged gzip"),
}


@pytest.mark.parametrize("fault", BROKEN_FILES)
def test_a_file_that_is_not_annotations_is_refused(tmp_path: Path, fault: str) -> None:
    content, message = BROKEN_FILES[fault]
    path = tmp_path / "annotations.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as refusal:
        load_dataset(path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_many_faults_of_one_kind_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    document = copy.deepcopy(DOCUMENT)
    for annotation in document["annotations"][:3]:  # 11, 3 and 0
        annotation["bbox"] = [9, 9, 0, 4]
    with pytest.raises(ValueError, match=r"annotation 11 .* \(and 2 more like it\); .*\"ignore\": 1"):
        load_dataset(written(tmp_path, document))


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        (["person", "cat"], "has no category 'cat'; choose from person, crowded, unused, boat"),
        ([], "no category was selected; choose from person"),
        (["unused"], r"no object of unused that is not ignored; .*the file has person \(1\), boat \(2\)"),
        (["crowded"], "no object of crowded that is not ignored"),
    ],
)
def test_a_selection_without_objects_is_refused_with_the_alternatives(
    tmp_path: Path, categories: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_dataset(written(tmp_path), categories=categories)


def test_a_missing_image_folder_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    with pytest.raises(ValueError, match=rf"nowhere: the image folder of {re.escape(str(path))} does not exist"):
        load_dataset(path, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is not a folder"):
        load_dataset(path, path)


def test_missing_image_files_are_counted_and_the_first_is_named(tmp_path: Path) -> None:
    folder = coco_folder(tmp_path)
    for name in ("deep/a.png", "b.png"):
        (folder / "images" / name).unlink()
    with pytest.raises(ValueError, match=r"image 0, .*a\.png, is missing \(2 of 3 images are\)"):
        load_dataset(folder)


@pytest.mark.parametrize(
    ("present", "message"),
    [
        ([], "has no annotations.json or annotations.json.gz"),
        (["annotations.json", "annotations.json.gz"], "has both"),
        (["annotations.json"], "has no folder images/"),
    ],
)
def test_a_folder_without_annotations_and_images_is_refused(tmp_path: Path, present: list[str], message: str) -> None:
    for name in present:
        written(tmp_path, name=name)
    with pytest.raises(ValueError, match=f"{message}.*--annotations FILE --images DIR"):
        find_dataset(tmp_path)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist; expected a folder with"):
        find_dataset(tmp_path / "nowhere")


@pytest.mark.slow
def test_every_real_annotation_file_loads_with_all_of_its_boxes(shared: Path) -> None:
    files = sorted((shared / "data" / "annotations").iterdir())
    assert len(files) == 17
    clipped = {}
    for path in files:
        dataset = load_dataset(path)
        content = path.read_bytes()
        document = json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)
        assert len(dataset.images) == len(document["images"])
        assert len(dataset.boxes) == len(document["annotations"])  # none has a degenerate box
        assert int(dataset.objects.sum()) == sum(not (a["ignore"] or a["iscrowd"]) for a in document["annotations"])
        clipped[path.name] = dataset.clipped
        if not dataset.clipped:
            in_order = sorted(document["annotations"], key=lambda a: a["image_id"])  # a stable sort
            xywh = np.array([a["bbox"] for a in in_order])
            assert np.array_equal(dataset.boxes[:, :2], xywh[:, :2])
            assert np.allclose(dataset.boxes[:, 2:], xywh[:, :2] + xywh[:, 2:], rtol=0, atol=1e-9)
    assert {name: n for name, n in clipped.items() if n} == {
        "citypersons_train.json": 278,
        "citypersons_val.json": 60,
        "tiny_citypersons_train.json": 278,
        "tiny_citypersons_val.json": 60,
    }


def test_every_real_image_set_loads_with_its_pixels(shared: Path) -> None:
    folders = sorted(path.parent for path in (shared / "data").glob("*/annotations.json"))
    assert len(folders) >= 7
    for folder in folders:
        dataset = load_dataset(folder)
        smallest = min(range(len(dataset.images)), key=lambda i: dataset.images[i].width)
        assert read_pixels(dataset, smallest).ndim == 3


def test_the_dont_care_regions_of_hituav_apply_to_every_class(shared: Path) -> None:
    dataset = load_dataset(shared / "data" / "hituav-train", categories=["person"])
    assert (dataset.classes, int(dataset.objects.sum()), int((dataset.labels < 0).sum())) == (("person",), 2721, 35)
    assert dataset.ignore[dataset.labels < 0].all()


def test_the_error_for_an_unknown_category_says_how_to_select_one_with_a_comma() -> None:
    known = ["car, parked", "person"]
    check_categories("a.json", ["car, parked"], known)
    with pytest.raises(
        ValueError, match="has no category 'car'; choose from 'car, parked', person; .* --category 'car, "
    ):
        check_categories("a.json", ["car", "parked"], known)
