"""Each published format on a small sample file, and the errors that such files may contain."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from exports import CLASSES, EXPORTS, TRUTH

from tinydet.__main__ import main as tinydet
from tinydet.data.coco import load_dataset
from tinydet.data.convert import FORMATS, align_categories
from tinydet.data.readers.coco_builder import CocoBuilder
from tinydet.data.source import find_source


def convert(source: Path, form: str, *flags: str | Path, output: Path | None = None) -> dict[str, Any]:
    """Run the command and return the COCO file, which `load_dataset` must accept."""
    target = output or source.parent / "converted.json"
    assert tinydet(["data", "convert", str(source), "--from", form, "--output", str(target), *map(str, flags)]) == 0
    document: dict[str, Any] = json.loads(target.read_text())
    dataset = load_dataset(target)
    assert len(dataset.images) == len(document["images"])
    assert [a["id"] for a in document["annotations"]] == sorted({a["id"] for a in document["annotations"]})
    return document


def boxes(document: dict[str, Any]) -> list[tuple[str, list[float], bool]]:
    """Return (class, [x, y, width, height], ignored) of each annotation."""
    names = {category["id"]: category["name"] for category in document["categories"]}
    return [(names[a["category_id"]], a["bbox"], bool(a.get("ignore"))) for a in document["annotations"]]


def image_file(path: Path, width: int = 100, height: int = 80) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.zeros((height, width, 3), np.uint8))
    return path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def error_of(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> str:
    """Return the error message of the command, which must be one line."""
    capsys.readouterr()
    assert tinydet(["data", "convert", *map(str, argv)]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    return error[0]


# --- VisDrone ---

VISDRONE = """\
684,8,273,116,0,0,0,0
406,119,265,70,0,0,0,0
255,22,20,10,1,4,0,1,
300,50,6,14,1,1,0,0
310,50,0,4,1,1,0,0
320,60,8,9,1,11,0,0
330,60,8,9,0,2,1,2
"""


def test_visdrone_regions_and_others_are_ignored_and_categories_keep_their_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "annotations" / "0000001_02999_d_0000005.txt", VISDRONE)
    write(tmp_path / "annotations" / "empty.txt", "")
    for name in ("0000001_02999_d_0000005", "empty", "unlisted"):
        image_file(tmp_path / "images" / f"{name}.jpg", 960, 540)
    document = convert(tmp_path / "annotations", "visdrone", "--images", tmp_path / "images")
    assert boxes(document) == [
        ("ignored regions", [684, 8, 273, 116], True),
        ("ignored regions", [406, 119, 265, 70], True),
        ("car", [255, 22, 20, 10], False),  # its line ends with a comma, which occurs
        ("pedestrian", [300, 50, 6, 14], False),
        ("others", [320, 60, 8, 9], True),
        ("people", [330, 60, 8, 9], True),  # score 0
    ]
    assert [a["iscrowd"] for a in document["annotations"]] == [1, 1, 0, 0, 0, 0]
    assert {c["name"]: c["id"] for c in document["categories"]}["awning-tricycle"] == 8
    assert [(i["file_name"], i["width"]) for i in document["images"]] == [
        ("0000001_02999_d_0000005.jpg", 960),
        ("empty.jpg", 960),
    ]
    printed = capsys.readouterr().out
    assert "2 images, 2 objects, 4 ignore regions" in printed
    assert "1 object without area left out, the first of" in printed and "line 5" in printed
    assert "1 image of" in printed and "left out, without an annotation file" in printed


# --- DOTA ---

DOTA = """\
imagesource:GoogleEarth
gsd:0.146343590398
10.0 20.0 30.0 10.0 40.0 30.0 20.0 40.0 small-vehicle 0
50 50 60 50 60 70 50 70 plane 1
70 5 80 5 80 15 70 15 small-vehicle
"""


def test_dota_boxes_are_the_bounding_boxes_of_the_quadrilaterals(tmp_path: Path) -> None:
    write(tmp_path / "labelTxt" / "P0001.txt", DOTA)
    image_file(tmp_path / "images" / "P0001.png")
    document = convert(tmp_path / "labelTxt", "dota", "--images", tmp_path / "images")
    assert boxes(document) == [
        ("small-vehicle", [10, 10, 30, 30], False),
        ("plane", [50, 50, 10, 20], True),  # difficult
        ("small-vehicle", [70, 5, 10, 10], False),
    ]
    assert document["annotations"][0]["segmentation"] == [[10, 20, 30, 10, 40, 30, 20, 40]]
    assert document["categories"] == [{"id": 1, "name": "plane"}, {"id": 11, "name": "small-vehicle"}]


# --- YOLO ---


def test_yolo_fractions_become_pixels_and_images_without_labels_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "labels" / "deep" / "a.txt", "1 0.5 0.5 0.2 0.1\n0 0.1 0.1 0.3 0.1 0.3 0.2 0.1 0.2\n")
    write(tmp_path / "data.yaml", "path: .\nnames:\n  0: boat\n  1: person\n")
    image_file(tmp_path / "images" / "deep" / "a.png")
    image_file(tmp_path / "images" / "b.jpg", 50, 40)
    document = convert(tmp_path / "labels", "yolo", "--images", tmp_path / "images")
    assert [(i["file_name"], i["width"], i["height"]) for i in document["images"]] == [
        ("b.jpg", 50, 40),
        ("deep/a.png", 100, 80),
    ]
    person, boat = boxes(document)
    assert person == ("person", pytest.approx([40, 36, 20, 8]), False)
    assert boat == ("boat", pytest.approx([10, 8, 20, 8]), False)  # bounding box of its polygon
    assert document["categories"] == [{"id": 0, "name": "boat"}, {"id": 1, "name": "person"}]
    assert "images without objects" in capsys.readouterr().out
    write(tmp_path / "names.txt", "ship\nhuman\n")
    renamed = convert(tmp_path / "labels", "yolo", "--images", tmp_path / "images", "--classes", tmp_path / "names.txt")
    assert [box[0] for box in boxes(renamed)] == ["human", "ship"]


# --- Pascal VOC ---

VOC = """<?xml version="1.0"?>
<annotation>
  <folder>VOC2012</folder><filename>2007_000027.jpg</filename>
  <size><width>100</width><height>80</height><depth>3</depth></size>
  <object><name>person</name><pose>Unspecified</pose><truncated>1</truncated><difficult>0</difficult>
    <bndbox><xmin>1</xmin><ymin>11</ymin><xmax>4</xmax><ymax>20.0</ymax></bndbox>
    <part><name>head</name><bndbox><xmin>1</xmin><ymin>11</ymin><xmax>2</xmax><ymax>12</ymax></bndbox></part></object>
  <object><name>bus</name><difficult>1</difficult>
    <bndbox><ymin>31</ymin><xmin>51</xmin><ymax>60</ymax><xmax>100</xmax></bndbox></object>
</annotation>
"""


def test_voc_pixels_count_from_one_and_the_box_includes_the_last_pixel(tmp_path: Path) -> None:
    write(tmp_path / "Annotations" / "2007_000027.xml", VOC)
    document = convert(tmp_path / "Annotations", "voc")  # the files state the image sizes
    assert boxes(document) == [("person", [0, 10, 4, 10], False), ("bus", [50, 30, 50, 30], True)]
    assert document["images"][0]["file_name"] == "2007_000027.jpg"
    assert document["categories"] == [{"id": 6, "name": "bus"}, {"id": 15, "name": "person"}]
    assert document["annotations"][0]["truncated"] == 1
    edges = convert(tmp_path / "Annotations", "voc", "--first-pixel", "0")
    assert boxes(edges)[0] == ("person", [1, 11, 3, 9], False)


def test_voc_images_are_found_and_their_sizes_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = VOC.replace("<width>100</width>", "<width>0</width>").replace("2007_000027.jpg", "C:\\x\\2007_000027.jpg")
    write(tmp_path / "Annotations" / "deep" / "2007_000027.xml", text)
    image_file(tmp_path / "JPEGImages" / "deep" / "2007_000027.png")  # another format than the file says
    image_file(tmp_path / "JPEGImages" / "other.png")
    document = convert(tmp_path / "Annotations", "voc", "--images", tmp_path / "JPEGImages")
    assert document["images"] == [{"id": 1, "file_name": "deep/2007_000027.png", "width": 100, "height": 80}]
    assert "1 image of" in capsys.readouterr().out


# --- CityPersons ---


def citypersons(path: Path, variable: str = "anno_val_aligned") -> Path:
    """Write a file as published: a row of cells, each a 1x1 structure; an image without people has an empty list."""
    scipy_io = pytest.importorskip("scipy.io", reason="needs SciPy (tinydet[formats])")
    cells = np.empty((1, 2), object)
    rows = np.array(
        [
            [1, 100, 200, 41, 100, 24000, 104, 200, 30, 50],
            [2, 300, 200, 40, 90, 25000, 300, 200, 40, 90],
            [0, 700, 300, 20, 30, 0, 700, 300, 20, 30],
            [5, 2000, 500, 80, 60, 0, 2000, 500, 48, 60],
        ],
        np.uint16,
    )
    for n, (name, bbs) in enumerate((("frankfurt_000000_000294_leftImg8bit.png", rows), ("lindau_1.png", []))):
        cells[0, n] = {"cityname": name.split("_")[0], "im_name": name, "bbs": np.array(bbs)}
    scipy_io.savemat(path, {variable: cells})
    return path


def test_citypersons_has_full_and_visible_boxes_and_ignores_posters_and_groups(tmp_path: Path) -> None:
    document = convert(citypersons(tmp_path / "anno_val.mat"), "citypersons")
    assert boxes(document) == [
        ("pedestrian", [100, 200, 41, 100], False),
        ("rider", [300, 200, 40, 90], False),
        ("ignore", [700, 300, 20, 30], True),
        ("group", [2000, 500, 80, 60], True),  # reaches beyond the right edge, unchanged
    ]
    assert document["annotations"][0]["vis_bbox"] == [104, 200, 30, 50]
    assert document["annotations"][0]["instance_id"] == 24000
    assert [(i["file_name"], i["width"], i["height"]) for i in document["images"]] == [
        ("frankfurt/frankfurt_000000_000294_leftImg8bit.png", 2048, 1024),
        ("lindau/lindau_1.png", 2048, 1024),
    ]


def test_tiny_citypersons_is_scaled_to_a_quarter(tmp_path: Path) -> None:
    document = convert(citypersons(tmp_path / "anno_train.mat", "anno_train_aligned"), "tiny-citypersons")
    assert boxes(document)[0] == ("pedestrian", [25, 50, 10.25, 25], False)
    assert document["annotations"][0]["area"] == 10.25 * 25
    assert document["annotations"][0]["vis_bbox"] == [26, 50, 7.5, 12.5]
    assert (document["images"][0]["width"], document["images"][0]["height"]) == (512, 256)


def test_pedestrians_only_is_the_ground_truth_of_the_citypersons_benchmark(tmp_path: Path) -> None:
    """All other people are ignore regions of the one class; otherwise detecting a rider would be a false positive."""
    from tinydet.evaluate import evaluate_detections

    document = convert(citypersons(tmp_path / "anno_val.mat"), "citypersons", "--pedestrians-only")
    assert document["categories"] == [{"id": 1, "name": "pedestrian"}]
    assert [box[2] for box in boxes(document)] == [False, True, True, True]
    rider = {"image_id": 1, "category_id": 1, "bbox": [300, 200, 40, 90], "score": 0.9}
    counts = evaluate_detections(document, [rider], protocol="citypersons")["MR_counts"]["All"]["0.50"]
    assert counts == {"n_gt": 1, "tp": 0, "fp": 0, "ignored_dt": 1, "n_images": 2}


def test_citypersons_images_are_found_with_and_without_a_city_folder(tmp_path: Path) -> None:
    source = citypersons(tmp_path / "anno_val.mat")
    image_file(tmp_path / "val" / "frankfurt_000000_000294_leftImg8bit.png", 2048, 1024)
    image_file(tmp_path / "val" / "lindau" / "lindau_1.png", 2048, 1024)
    document = convert(source, "citypersons", "--images", tmp_path / "val")
    names = [image["file_name"] for image in document["images"]]
    assert names == ["frankfurt_000000_000294_leftImg8bit.png", "lindau/lindau_1.png"]


# --- TinyPerson ---


def tinyperson(path: Path) -> Path:
    entry = {"image_id": 0, "iscrowd": 0, "area": 40.0, "segmentation": [[0, 0, 4, 0, 4, 10, 0, 10]]}
    flags = {"ignore": False, "uncertain": False, "logo": False, "in_dense_image": False}
    annotations = [
        {**entry, **flags, "id": n, "bbox": [5.5 * n, 3.25, 4.0, 10.0], "category_id": 1 + n % 2, **own}
        for n, own in enumerate(({}, {}, {"ignore": True}, {"uncertain": True}, {"logo": True}))
    ]
    document = {
        "type": "instance",
        "annotations": annotations,
        "images": [{"file_name": "labeled_images/bb_V0032_I0001640.jpg", "height": 80, "width": 100, "id": 0}],
        "categories": [
            {"supercategory": "person", "id": 1, "name": "sea_person"},
            {"supercategory": "person", "id": 2, "name": "earth_person"},
        ],
    }
    return write(path, json.dumps(document))


def test_tinyperson_keeps_every_field_and_ignores_uncertain_persons_and_logos(tmp_path: Path) -> None:
    source = tinyperson(tmp_path / "tiny_set_train.json")
    document, original = convert(source, "tinyperson"), json.loads(source.read_text())
    assert [bool(a["ignore"]) for a in document["annotations"]] == [False, False, True, True, True]
    for new, old in zip(document["annotations"], original["annotations"], strict=True):
        assert {**new, "ignore": None} == {**old, "ignore": None}
    assert document["images"] == original["images"] and document["type"] == "instance"
    kept = convert(source, "tinyperson", "--keep-uncertain")
    assert [bool(a["ignore"]) for a in kept["annotations"]] == [False, False, True, False, True]


@pytest.mark.parametrize(
    ("task", "categories", "ignored"),
    [
        ("all", [(1, "person")], [False, False, True, True, True]),
        ("sea", [(1, "sea_person")], [False, True, True, True, True]),
        ("earth", [(2, "earth_person")], [True, False, True, True, True]),
    ],
)
def test_a_tinyperson_task_keeps_one_class_and_ignores_the_other(
    tmp_path: Path, task: str, categories: list[tuple[int, str]], ignored: list[bool]
) -> None:
    document = convert(tinyperson(tmp_path / "t.json"), "tinyperson", "--task", task)
    assert [(c["id"], c["name"]) for c in document["categories"]] == categories
    assert [bool(a["ignore"]) for a in document["annotations"]] == ignored
    assert {a["category_id"] for a in document["annotations"]} == {categories[0][0]}


# --- every format ---


def test_images_of_another_size_than_recorded_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = citypersons(tmp_path / "anno_val.mat")
    for name in ("frankfurt/frankfurt_000000_000294_leftImg8bit.png", "lindau/lindau_1.png"):
        image_file(tmp_path / "val" / name, 512, 256)
    images = ["--images", tmp_path / "val", "--output", tmp_path / "o.json"]
    assert "is 2048x1024, but" in (error := error_of(capsys, source, "--from", "citypersons", *images))
    assert "is 512x256 pixels (and 1 more like it)" in error and not (tmp_path / "o.json").exists()
    convert(source, "tiny-citypersons", *images[:2])
    source = tinyperson(tmp_path / "t.json")
    image_file(tmp_path / "val" / "labeled_images" / "bb_V0032_I0001640.jpg", 80, 100)
    assert "image 0 is 100x80 (it looks rotated" in error_of(capsys, source, "--from", "tinyperson", *images)
    image_file(tmp_path / "val" / "labeled_images" / "bb_V0032_I0001640.jpg", 100, 80)
    convert(source, "tinyperson", *images[:2])


def test_many_boxes_outside_their_images_raise_a_doubt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "labelTxt" / "a.txt", DOTA)
    image_file(tmp_path / "images" / "a.png", 45, 45)
    convert(tmp_path / "labelTxt", "dota", "--images", tmp_path / "images")
    assert "are these the annotated images" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["yolo", "visdrone", "dota", "voc"])
def test_an_image_name_that_is_not_utf8_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    name = os.fsdecode(b"pl\xe9ge")
    (tmp_path / "images" / f"{name}.png").write_bytes(image_file(tmp_path / "a.png").read_bytes())
    write(tmp_path / "labels" / f"{name}.{'xml' if form == 'voc' else 'txt'}", "<annotation/>" if form == "voc" else "")
    write(tmp_path / "classes.txt", "boat")
    arguments = ["--from", form, "--images", tmp_path / "images", "--output", tmp_path / "o.json"]
    assert r"the image name pl\xe9ge.png is not UTF-8" in error_of(capsys, tmp_path / "labels", *arguments)
    assert not (tmp_path / "o.json").exists()


@pytest.mark.parametrize("name", ["../a.png", "/etc/a.png", ".."])
def test_an_image_name_outside_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="leaves the image folder"):
        CocoBuilder(tmp_path, []).add_image(name, (1, 1))


def test_an_output_named_gz_is_compressed(tmp_path: Path) -> None:
    source, target = tinyperson(tmp_path / "t.json"), tmp_path / "out.json.gz"
    assert tinydet(["data", "convert", str(source), "--from", "tinyperson", "--output", str(target)]) == 0
    assert len(json.loads(gzip.decompress(target.read_bytes()))["annotations"]) == 5


UNCERTAIN = json.dumps(
    {
        "images": [{"id": 0, "file_name": "a.jpg", "width": 9, "height": 9}],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [{"id": 0, "image_id": 0, "category_id": 1, "bbox": [1, 1, 2, 2], "uncertain": "yes"}],
    }
)
BROKEN: dict[str, tuple[str, str, str, str]] = {  # format, file name, content, error message
    "few numbers": ("visdrone", "a.txt", "1,2,3\n", "a.txt line 1: 3 numbers; expected 8"),
    "a word": ("visdrone", "a.txt", "1,2,x,4,1,1,0,0\n", "line 1: 'x' is not a number"),
    "no category": ("visdrone", "a.txt", "1,2,3,4,1,12,0,0\n", "the category is 12; expected a whole"),
    "negative side": ("visdrone", "a.txt", "1,2,-3,4,1,1,0,0\n", "a box of -3x4 pixels"),
    "no image": ("visdrone", "b.txt", "", "b.txt has no image in"),
    "no corner": ("dota", "a.txt", "1 2 3 4 5 6 7 8\n", "line 1: 8 fields; expected 10"),
    "difficulty": ("dota", "a.txt", "1 2 3 4 5 6 7 8 plane 5\n", "the difficulty is 5"),
    "pixels": ("yolo", "a.txt", "0 50 40 10 10\n", "a fraction of the image size is not from 0 to 1"),
    "unknown class": ("yolo", "a.txt", "3 0.5 0.5 0.1 0.1\n", "the class is 3; expected a whole number from 0 to 1"),
    "half a polygon": ("yolo", "a.txt", "0 0.1 0.1 0.2 0.2 0.3\n", "6 numbers; expected 5"),
    "not XML": ("voc", "a.xml", "<annotation><object>", "a.xml line 1: not XML"),
    "an entity": ("voc", "a.xml", '<!DOCTYPE x [<!ENTITY e "e">]><annotation/>', "a document type"),
    "inverted": ("voc", "a.xml", VOC.replace("<xmin>51<", "<xmin>101<"), "xmin and ymin must be at most"),
    "no name": ("voc", "a.xml", VOC.replace("<name>bus</name>", ""), "<object> has no <name>"),
    "no matrix": ("citypersons", "a.mat", "MATLAB", "a.mat: not a MATLAB file that SciPy reads"),
    "no JSON": ("tinyperson", "a.json", "{", "a.json: not JSON"),
    "no flag": ("tinyperson", "a.json", UNCERTAIN, 'annotation 0 has uncertain "yes"; it must be 0 or 1'),
}  # fmt: skip


@pytest.mark.parametrize("fault", BROKEN)
def test_an_error_is_one_line_that_names_the_location(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    form, name, content, message = BROKEN[fault]
    path = write(tmp_path / "source" / name, content)
    write(tmp_path / "classes.txt", "boat\nperson\n")
    image_file(tmp_path / "images" / "a.png")
    folder = path if form in ("citypersons", "tinyperson") else path.parent
    flags = ["--images", tmp_path / "images"] if form in ("visdrone", "dota", "yolo") else []
    line = error_of(capsys, folder, "--from", form, *flags, "--output", tmp_path / "out.json")
    assert message in line
    assert not (tmp_path / "out.json").exists()


def test_options_of_another_format_are_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tinyperson(tmp_path / "t.json")
    assert "--first-pixel is an option of voc, not of tinyperson" in error_of(
        capsys, source, "--from", "tinyperson", "--first-pixel", "0", "--output", tmp_path / "o.json"
    )
    assert "is an input and would be overwritten" in error_of(capsys, source, "--from", "tinyperson")
    write(tmp_path / "labels" / "a.txt", "0 0.5 0.5 0.1 0.1\n")
    image_file(tmp_path / "images" / "a.png")
    assert "--images DIR" in error_of(capsys, tmp_path / "labels", "--from", "yolo", "--classes", source)
    assert "no data.yaml, data.yml, classes.txt, obj.names here" in error_of(
        capsys, tmp_path / "labels", "--from", "yolo", "--images", tmp_path / "images"
    )


def test_every_format_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tinydet(["data", "convert", "--help"])
    printed = capsys.readouterr().out
    assert all(f"\n  {name} " in printed for name in FORMATS)


# --- layouts ---


@pytest.mark.parametrize("name", EXPORTS)
def test_a_recognized_dataset_becomes_coco_folders_with_the_same_classes(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    EXPORTS[name](tmp_path / "data")
    output = tmp_path / "coco"
    assert tinydet(["data", "convert", str(tmp_path / "data"), "--output", str(output)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(f"{tmp_path / 'data'}: ") and printed[0].endswith(", train, val")
    assert printed[-1].startswith("next: ") and printed[-1].endswith(f"train --data {output}")
    documents = [json.loads((output / split / "annotations.json").read_text()) for split in TRUTH]
    assert documents[0]["categories"] == documents[1]["categories"]
    for split, document in zip(TRUTH, documents, strict=True):
        expected = sorted((CLASSES[number], box, False) for boxes_ in TRUTH[split].values() for number, *box in boxes_)
        found = sorted((each, [round(v, 6) for v in box], ignored) for each, box, ignored in boxes(document))
        assert found == expected
        dataset = find_source(output, split=split, needs_images=True).load()
        assert len(dataset.images) == len(TRUTH[split])


def test_images_of_a_conversion_are_links_or_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    EXPORTS["roboflow_yolo"](tmp_path / "data")
    original = tmp_path / "data" / "train" / "images" / "seq1_0001.png"

    def convert_to(output: Path) -> Path:
        assert tinydet(["data", "convert", str(tmp_path / "data"), "--output", str(output)]) == 0
        return output / "train" / "images" / original.name

    assert convert_to(tmp_path / "linked").samefile(original)

    def refuse(*_: object) -> None:
        raise OSError(18, "another file system")

    monkeypatch.setattr(os, "link", refuse)
    copy = convert_to(tmp_path / "copied")
    assert not copy.samefile(original) and copy.read_bytes() == original.read_bytes()


def test_one_split_can_become_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    EXPORTS["vocdevkit"](tmp_path / "data")
    target = tmp_path / "val.json"
    message = error_of(capsys, tmp_path / "data", "--output", target)
    assert "train, val; name one with --split" in message and not target.exists()
    assert tinydet(["data", "convert", str(tmp_path / "data"), "--split", "val", "--output", str(target)]) == 0
    assert len(json.loads(target.read_text())["images"]) == 2


def test_coco_needs_no_conversion_and_the_next_command_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    EXPORTS["coco2017"](tmp_path / "data")
    before = sorted(tmp_path.rglob("*"))
    assert tinydet(["data", "convert", str(tmp_path / "data")]) == 0
    assert "needs no conversion" in (printed := capsys.readouterr().out)
    assert printed.splitlines()[-1].endswith(f"train --data {tmp_path / 'data'}")
    assert sorted(tmp_path.rglob("*")) == before


def test_categories_of_splits_are_aligned_by_name() -> None:
    first = {"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}], "annotations": [{"category_id": 2}]}
    second = {
        "categories": [{"id": 1, "name": "b"}, {"id": 2, "name": "c"}],
        "annotations": [{"category_id": 1}, {"category_id": 2}],
    }
    align_categories([first, second])
    assert (
        first["categories"]
        == second["categories"]
        == [{"id": n, "name": name} for n, name in ((1, "a"), (2, "b"), (3, "c"))]
    )
    assert [entry["category_id"] for entry in (*first["annotations"], *second["annotations"])] == [2, 2, 3]
