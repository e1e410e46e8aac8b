"""`tinydet data check`: every kind of fault is reported, and either repaired without guessing or refused."""

from __future__ import annotations

import copy
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from tinydet.__main__ import main as tinydet
from tinydet.data.check import check_document
from tinydet.data.coco import load_dataset, read_pixels
from tinydet.data.coco_repair import repair_document

SIZES = {1: (60, 40), 2: (50, 40), 3: (30, 20)}
VALID: dict[str, Any] = {
    "images": [{"id": n, "file_name": f"{n}.png", "width": w, "height": h} for n, (w, h) in SIZES.items()],
    "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "boat"}],
    "annotations": [
        {"id": n, "image_id": 1 + n % 3, "category_id": 1 + n % 2, "bbox": [4 + n, 3, 8, 9], "area": 72, "iscrowd": 0}
        for n in range(1, 7)
    ],
}
Spoil = Callable[[dict[str, Any]], None]


def put(section: str, n: int, **values: Any) -> Spoil:
    """Set fields of an entry; `...` removes a field."""

    def change(document: dict[str, Any]) -> None:
        entry = document[section][n]
        entry.update({key: value for key, value in values.items() if value is not ...})
        for key in [key for key, value in values.items() if value is ...]:
            del entry[key]

    return change


def add(section: str, entry: Any) -> Spoil:
    return lambda document: document[section].append(copy.deepcopy(entry))


def renamed_image(document: dict[str, Any]) -> None:
    """Use a string as the id of an image, also in its annotations."""
    document["images"][0]["id"] = "a"
    for entry in document["annotations"]:
        if entry["image_id"] == 1:
            entry["image_id"] = "a"


def all_ignored(document: dict[str, Any]) -> None:
    for entry in document["annotations"]:
        entry["ignore"] = 1


def flat_or_ignored(document: dict[str, Any]) -> None:
    for entry in document["annotations"][1:]:
        entry["bbox"] = [1, 1, 0, 1]
    document["annotations"][0]["ignore"] = 1


def no_names(document: dict[str, Any]) -> None:
    for entry in document["images"]:
        entry["file_name"] = f"gone/{entry['id']}.jpg"


def no_boxes(document: dict[str, Any]) -> None:
    for entry in document["annotations"]:
        del entry["bbox"]


def folder(path: Path, spoil: Spoil | None = None) -> Path:
    """Write a COCO folder."""
    (path / "images").mkdir(parents=True)
    for n, (width, height) in SIZES.items():
        assert cv2.imwrite(str(path / "images" / f"{n}.png"), np.full((height, width, 3), 40 * n, np.uint8))
    document = copy.deepcopy(VALID)
    if spoil is not None:
        spoil(document)
    (path / "annotations.json").write_text(json.dumps(document))
    return path


def run_lengths(mask: NDArray[np.uint8]) -> list[int]:
    """Return the lengths of runs of 0 and 1 in turn, column by column."""
    flat = mask.T.reshape(-1)
    edges = [0, *(np.flatnonzero(np.diff(flat)) + 1).tolist(), flat.size]
    return ([0] if flat[0] else []) + [b - a for a, b in itertools.pairwise(edges)]


REPAIRED: dict[str, tuple[Spoil, str, str, int, int]] = {  # by rule: message, repair, remaining images and boxes
    "annotation without bbox": (put("annotations", 0, bbox=...), "annotation 1 has no 'bbox'", "dropped", 3, 5),
    "annotation whose bbox is not four numbers": (
        put("annotations", 0, bbox=[1, 2, "3 px", 4]), 'annotation 1 has the bbox [1, 2, "3 px", 4]', "dropped", 3, 5),
    "annotation whose bbox is not finite": (
        put("annotations", 0, bbox=[1, 2, float("nan"), 4]), "annotation 1 has the bbox", "dropped", 3, 5),
    "annotation whose bbox has a negative side": (
        put("annotations", 0, bbox=[9, 9, -3, 4]), "annotation 1 has the bbox", "dropped", 3, 5),
    "object without area": (put("annotations", 0, bbox=[9, 9, 0, 4]), "which has no area", "dropped", 3, 5),
    "object outside its image": (put("annotations", 0, bbox=[70, 9, 4, 4]), "wholly outside", "dropped", 3, 5),
    "annotation without image_id": (put("annotations", 0, image_id=...), "has no 'image_id'", "dropped", 3, 5),
    "annotation without category_id": (put("annotations", 0, category_id=...), "no 'category_id'", "dropped", 3, 5),
    "annotation whose image_id is not listed": (put("annotations", 0, image_id=9), "image_id 9", "dropped", 3, 5),
    "annotation whose category_id is not listed": (put("annotations", 0, category_id=9), "_id 9", "dropped", 3, 5),
    "annotation whose image_id is not a whole number": (
        put("annotations", 0, image_id="one"), 'annotation 1 has the image_id "one"', "dropped", 3, 5),
    "annotation without id": (
        put("annotations", 0, id=...), "entry 0 of 'annotations' has no 'id'", "id set to 7", 3, 6),
    "annotation whose id is not a whole number": (
        put("annotations", 0, id="one"), "entry 0 of 'annotations' has the id \"one\"", "id set to 7", 3, 6),
    "annotation id used twice": (put("annotations", 1, id=1), "entries 0 and 1 of 'annotations'", "id set to 7", 3, 6),
    "annotation that is not an object": (add("annotations", 5), "entry 6 of 'annotations'", "dropped", 3, 6),
    "annotation whose ignore is not a flag": (
        put("annotations", 0, ignore="no"), 'annotation 1 has ignore "no"', "ignore set to 0", 3, 6),
    "annotation whose iscrowd is not a flag": (
        put("annotations", 0, iscrowd=2), "annotation 1 has iscrowd 2", "iscrowd set to 1", 3, 6),
    "annotation whose area is not a finite number": (
        put("annotations", 0, area="72 px"), 'annotation 1 has the area "72 px"', "area removed", 3, 6),
    "annotation whose vis is not four numbers": (
        put("annotations", 0, vis=12), "annotation 1 has the vis 12", "vis removed", 3, 6),
    "annotation whose segmentation is malformed": (
        put("annotations", 0, segmentation=[[1, 2, 3]]), "has the segmentation [[1, 2, 3]]", "removed", 3, 6),
    "annotation whose keypoints is malformed": (
        put("annotations", 0, keypoints=12), "annotation 1 has the keypoints 12", "keypoints removed", 3, 6),
    "image without id": (put("images", 0, id=...), "entry 0 of 'images' has no 'id'", "dropped", 2, 4),
    "image whose id is not a whole number": (
        renamed_image, "entry 0 of 'images' has the id \"a\"", "id set to 4", 3, 6),
    "image id used twice": (
        put("images", 1, id=1), "entries 0 and 1 of 'images'", "annotations could mean either", 1, 2),
    "image that is not an object": (add("images", "x"), "entry 3 of 'images'", "dropped", 3, 6),
    "image without file_name": (put("images", 0, file_name=...), "image 1 has no 'file_name'", "dropped", 2, 4),
    "image whose file_name is not a string": (
        put("images", 0, file_name=7), "image 1 has the file_name 7", "dropped", 2, 4),
    "image without width": (put("images", 0, width=...), "image 1 has no 'width'", "set to 60x40, as its file", 3, 6),
    "image without a height in pixels": (
        put("images", 0, height=0), "image 1 has the height 0", "set to 60x40, as its file is", 3, 6),
    "image whose width is not a whole number": (
        put("images", 0, width=60.5), "image 1 has the width 60.5", "set to 60x40, as its file is", 3, 6),
    "image with a wrong corner": (put("images", 0, corner=[0, 0, 9, 9]), "has the corner", "dropped", 2, 4),
    "file of two sizes": (put("images", 1, file_name="1.png"), "are one file, 1.png", "image 2 dropped", 2, 4),
    "image under another name": (
        put("images", 0, file_name="data/1.PNG"), "is missing (did you mean 1.png?)", 'file_name set to "1.png"', 3, 6),
    "image outside the image folder": (
        put("images", 0, file_name="../gone.png"), "../gone.png, leaves the image folder", "dropped", 2, 4),
    "image without a file": (put("images", 0, file_name="gone.png"), "gone.png, is missing", "dropped", 2, 4),
    "image of another size than its file": (
        put("images", 0, width=40, height=60), "it looks rotated: check its EXIF orientation", "dropped", 2, 4),
    "category without id": (put("categories", 1, id=...), "entry 1 of 'categories' has no 'id'", "dropped", 3, 3),
    "category id used twice": (
        add("categories", VALID["categories"][0]), "entries 0 and 2 of 'categories'", "the same as the first", 3, 6),
    "category without name": (put("categories", 0, name=...), "category 1 has no 'name'", 'set to "category_1"', 3, 6),
    "category whose name is not a string": (
        put("categories", 0, name=5), "category 1 has the name 5", 'name set to "5"', 3, 6),
    "category name used twice": (
        put("categories", 1, name="person"), "categories 1 and 2 are all named", "category 2 merged into 1", 3, 6),
    "category that is not an object": (add("categories", None), "entry 2 of 'categories'", "dropped", 3, 6),
}  # fmt: skip


@pytest.mark.parametrize("rule", REPAIRED)
def test_a_fault_is_reported_and_repaired(tmp_path: Path, capsys: pytest.CaptureFixture[str], rule: str) -> None:
    spoil, message, repair, images, boxes = REPAIRED[rule]
    source = folder(tmp_path / "set", spoil)
    with pytest.raises(ValueError, match=re.escape(str(source))):  # training would refuse it
        read_pixels(load_dataset(source), 0)
    assert tinydet(["data", "check", str(source), "--json", str(tmp_path / "report.json")]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{source / 'annotations.json'}: ") and message in lines[0]
    report = json.loads((tmp_path / "report.json").read_text())
    assert rule in {fault["rule"] for fault in report["faults"]}

    fixed = tmp_path / "fixed.json"
    assert tinydet(["data", "check", str(source), "--fix", str(fixed)]) == 0
    assert any(line.startswith("repaired: ") and repair in line for line in capsys.readouterr().out.splitlines())
    dataset = load_dataset(fixed, source / "images")
    assert (len(dataset.images), len(dataset.boxes)) == (images, boxes)
    assert tinydet(["data", "check", str(fixed), "--images", str(source / "images")]) == 0
    assert "no faults in" in capsys.readouterr().out


REFUSED: dict[str, tuple[Spoil, str]] = {
    "no images": (lambda d: d.pop("images"), "has no 'images'"),
    "no list": (lambda d: d.update(annotations={}), "'annotations' is a JSON object, not a list"),
    "empty images": (lambda d: d.update(images=[]), "'images' is empty"),
    "empty categories": (lambda d: d.update(categories=[]), "'categories' is empty"),
    "all ignored": (all_ignored, "there is no object"),
    "no object left": (flat_or_ignored, "there is no object"),
    "no image left": (no_names, "nothing would be left of 'images' (image 1, "),
    "no annotation left": (no_boxes, "nothing would be left of 'annotations' (annotation 1 has no 'bbox'"),
}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSED)
def test_a_fault_that_only_a_person_can_repair_is_refused_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    spoil, message = REFUSED[fault]
    source = folder(tmp_path / "set", spoil)
    assert tinydet(["data", "check", str(source), "--fix", str(tmp_path / "fixed.json")]) == 2
    error = capsys.readouterr().err.splitlines()
    assert message in error[-1] and "cannot be repaired by a program" in error[-1]
    assert not (tmp_path / "fixed.json").exists()


POLYGON = [5, 12, 31, 12, 31, 20, 5, 20]
DERIVED: dict[str, tuple[Spoil, str]] = {  # from annotation 1, which is on image 2
    "numbers as text": (put("annotations", 0, bbox=["5", "12.0", " 26", 8]), "the numbers in its text"),
    "a list as text": (put("annotations", 0, bbox="[5, 12, 26, 8]"), "the numbers in its text"),
    "text with blanks": (put("annotations", 0, bbox="5 12.0, 26 8"), "the numbers in its text"),
    "a list in a list": (put("annotations", 0, bbox=[[5, 12, 26, 8]]), "the numbers in its list"),
    "named sides": (put("annotations", 0, bbox={"w": 26, "h": 8, "x": 5, "y": 12}), "the numbers in its object"),
    "a polygon of points": (
        put("annotations", 0, bbox=[0, 0, 0, 0], segmentation=[[[5, 12], [31, 12], [31, 20], [5, 20]]]),
        "the box around its polygons"),
    "a polygon": (put("annotations", 0, bbox=..., segmentation=[POLYGON]), "the box around its polygons"),
    "two polygons": (
        put("annotations", 0, bbox=[0, 0, 0, 0], segmentation=[[5, 15, 6, 16, 5, 16], [30, 12, 31, 20, 30, 20]]),
        "the box around its polygons"),
    "a flat polygon": (put("annotations", 0, bbox=None, segmentation=POLYGON), "the box around its polygons"),
    "a polygon and a box outside": (
        put("annotations", 0, bbox=[500, 9, 4, 4], segmentation=[POLYGON]), "the box around its polygons"),
    "a polygon and a box of corners": (
        put("annotations", 0, bbox=[31, 20, -26, -8], segmentation=[POLYGON]), "the box around its polygons"),
}  # fmt: skip


@pytest.mark.parametrize("case", DERIVED)
def test_a_box_that_follows_from_other_fields_is_derived(tmp_path: Path, case: str) -> None:
    spoil, source = DERIVED[case]
    document = copy.deepcopy(VALID)
    spoil(document)
    done = repair_document(document, Path("x.json"))
    assert document["annotations"][0]["bbox"] == [5, 12, 26, 8]
    assert document["annotations"][1:] == VALID["annotations"][1:]
    assert any(line.endswith(source) for line in done)


@pytest.mark.parametrize("seed", range(4))
def test_a_box_is_derived_from_a_mask_compressed_or_not(seed: int) -> None:
    """The masks are encoded by pycocotools and by the definition of the format."""
    encode = pytest.importorskip("pycocotools.mask", reason="needs pycocotools (tinydet[formats])").encode
    rng = np.random.default_rng(seed)
    mask = np.zeros((40, 50), np.uint8)
    x, y = rng.integers(0, 40), rng.integers(0, 30)
    mask[y : y + 10, x : x + 8] = rng.random((10, 8)) < 0.3
    rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
    expected = [columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0]]
    for counts in (run_lengths(mask), encode(np.asfortranarray(mask))["counts"].decode()):
        document = copy.deepcopy(VALID)
        put("annotations", 0, bbox=..., segmentation={"size": [40, 50], "counts": counts})(document)
        assert repair_document(document, Path("x.json"))[0].endswith("the box around its mask")
        assert document["annotations"][0]["bbox"] == expected


@pytest.mark.parametrize(
    "shape",
    [
        {"size": [0, 0], "counts": "abc"},
        {"size": [50, 40], "counts": [100, 20, 1880]},  # of an image with other sides
        {"size": [40, 50], "counts": [-5, 2005]},
        {"size": [40, 50], "counts": [10**400]},
        {"size": [40, 50], "counts": "é"},
        {"size": "x"},
        [[1, 2, float("nan"), 4, 5, 6]],
        [[1, 2, 3, 4]],
        [[60, 50, 70, 50, 70, 60]],  # outside the image
        [],
    ],
)
def test_no_box_is_derived_from_a_malformed_shape(shape: Any) -> None:
    pytest.importorskip("pycocotools", reason="needs pycocotools (tinydet[formats])")
    document = copy.deepcopy(VALID)
    put("annotations", 0, bbox=..., segmentation=shape)(document)
    repair_document(document, Path("x.json"))
    assert document["annotations"] == VALID["annotations"][1:]


@pytest.mark.parametrize(
    "shape", [{}, {"size": "x", "counts": 5}, {"size": [40, 50]}, {"size": [40, 50], "counts": [1.5]}, {"counts": "a"}]
)
def test_an_object_that_is_no_mask_is_a_fault_and_removed(tmp_path: Path, shape: Any) -> None:
    source = folder(tmp_path / "set", put("annotations", 0, segmentation=shape))
    assert tinydet(["data", "check", str(source)]) == 1
    assert tinydet(["data", "check", str(source), "--fix", str(tmp_path / "fixed.json")]) == 0
    assert "segmentation" not in json.loads((tmp_path / "fixed.json").read_text())["annotations"][0]


@pytest.mark.parametrize("name", ["1.png\n", " 1.png", "1.png ", "https://host/data/1.png?size=1#x", "\x001.png"])
def test_a_name_with_blanks_or_an_address_is_matched_with_its_file(tmp_path: Path, name: str) -> None:
    source = folder(tmp_path / "set", put("images", 0, file_name=name))
    fixed = tmp_path / "fixed.json"
    assert tinydet(["data", "check", str(source), "--fix", str(fixed)]) == 0
    document = json.loads(fixed.read_text())
    assert [image["file_name"] for image in document["images"]] == [image["file_name"] for image in VALID["images"]]
    assert len(document["annotations"]) == len(VALID["annotations"])


def test_a_name_never_takes_the_file_or_the_class_of_another_entry() -> None:
    document = copy.deepcopy(VALID)
    put("images", 0, file_name="2.png\n")(document)
    put("categories", 0, name="boat\t")(document)
    repair_document(document, Path("x.json"))
    assert [image["id"] for image in document["images"]] == [2, 3]
    assert [category["name"] for category in document["categories"]] == ["category_1", "boat"]


def test_ids_and_sizes_written_as_text_keep_their_values(tmp_path: Path) -> None:
    """So are references to a category or image by name, and whole numbers and flags written as 1.0 or null."""
    document = copy.deepcopy(VALID)
    for image in document["images"]:
        image.update(id=str(image["id"]), width=str(image["width"]), height=float(image["height"]))
    for category in document["categories"]:
        category["id"] = float(category["id"])
    for n, entry in enumerate(document["annotations"]):
        entry["image_id"] = (f"{entry['image_id']}.png", str(entry["image_id"]), float(entry["image_id"]))[n % 3]
        entry["category_id"] = ("person", "boat")[entry["category_id"] - 1] if n % 2 else str(entry["category_id"])
        entry["iscrowd"] = (None, 0.0, "0", "false")[n % 4]
    repair_document(document, Path("x.json"))
    assert document == VALID
    assert json.dumps(document) == json.dumps(VALID)  # 1.0 == 1, but not as text


def test_sizes_without_boxes_are_measured_and_never_guessed(tmp_path: Path) -> None:
    """An image of another size than its file is dropped only if it has boxes, which may be of either size."""
    source = folder(tmp_path / "set", add("images", {"id": 9, "file_name": "4.png", "width": 6, "height": 4}))
    assert cv2.imwrite(str(source / "images" / "4.png"), np.zeros((30, 70, 3), np.uint8))
    assert tinydet(["data", "check", str(source), "--fix", str(tmp_path / "fixed.json")]) == 0
    assert load_dataset(tmp_path / "fixed.json").images[3].width == 70
    document = copy.deepcopy(VALID)
    del document["images"][0]["width"]
    with pytest.raises(ValueError, match=r"x\.json cannot be repaired .* name the image folder with --images DIR"):
        repair_document(document, Path("x.json"))


SPELLINGS = {  # by the file below images/
    "sub/a.png": ("sub\\a.png", ".\\sub\\a.png", "./sub//a.png", "SUB/A.PNG", "images/sub/a.png", "sub%2Fa.png",
                  "C:\\data\\sub\\a.png", "/home/me/sub/a.png", "a.png", "other/a.png", "../sub/a.png"),
    "é b.png": ("e\u0301 b.png", "%C3%A9%20b.png", "É B.PNG"),
}  # fmt: skip


@pytest.mark.parametrize(("file", "name"), [(file, name) for file, names in SPELLINGS.items() for name in names])
def test_a_name_that_is_spelled_differently_is_matched_with_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, name: str
) -> None:
    source = folder(tmp_path / "set", put("images", 0, file_name=name))
    (source / "images" / "sub").mkdir()
    (source / "images" / "1.png").rename(source / "images" / file)
    fixed = tmp_path / "fixed.json"
    assert tinydet(["data", "check", str(source), "--fix", str(fixed)]) == 0
    content = json.loads(fixed.read_text())
    assert content["images"][0]["file_name"] == file
    assert content["annotations"] == VALID["annotations"]
    assert "dropped" not in capsys.readouterr().out
    assert tinydet(["data", "check", str(fixed), "--images", str(source / "images")]) == 0


@pytest.mark.parametrize(
    "names",
    [
        ("x/1.png", "y/1.png"),  # two names could mean one file
        ("twice.png", "2.png"),  # one name could mean two files
        ("x/2.png", "2.png"),  # the file of another image
    ],
)
def test_ambiguous_names_are_not_guessed(tmp_path: Path, names: tuple[str, str]) -> None:
    def spoil(document: dict[str, Any]) -> None:
        for image, name in zip(document["images"], names, strict=False):
            image["file_name"] = name

    source = folder(tmp_path / "set", spoil)
    for place in ("a", "b"):
        (source / "images" / place).mkdir()
        (source / "images" / place / "twice.png").write_bytes((source / "images" / "1.png").read_bytes())
    with pytest.raises(ValueError, match="is missing"):
        load_dataset(source)
    assert tinydet(["data", "check", str(source), "--fix", str(tmp_path / "fixed.json")]) == 0
    left = [image.id for image in load_dataset(tmp_path / "fixed.json").images]
    assert left == ([3] if "1.png" in names[1] else [2, 3])


def test_every_fault_of_a_file_is_reported(tmp_path: Path) -> None:
    document = copy.deepcopy(VALID)
    for spoil in (
        put("annotations", 0, bbox=[0, 0, 0, 0]),
        put("annotations", 1, image_id=8),
        put("annotations", 2, image_id=9),
        put("images", 2, width=-1),
        put("categories", 1, name="person"),
    ):
        spoil(document)
    findings = check_document(document, Path("x.json"))
    assert findings.count == len(list(findings.lines())) == 5
    assert {fault.rule: len(fault.entries) for fault in findings.faults} == {
        "image without a width in pixels": 1,
        "category name used twice": 1,
        "annotation whose image_id is not listed": 2,
        "object without area": 1,
    }
    assert all(line.startswith("x.json: ") for line in findings.lines())


def test_an_entry_with_a_repeated_id_is_checked_for_other_faults() -> None:
    document = copy.deepcopy(VALID)
    put("annotations", 1, id=1, bbox=...)(document)
    lines = list(check_document(document, Path("x.json")).lines())
    assert len(lines) == 2
    assert "entries 0 and 1 of 'annotations' have the same id 1" in lines[0]
    assert "entry 1 of 'annotations' has no 'bbox'" in lines[1]


def test_a_damaged_image_is_found_even_if_only_its_end_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = folder(tmp_path / "set")
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    damaged = source / "images" / "1.png"
    damaged.write_bytes(cv2.imencode(".png", noise)[1].tobytes()[:-3000])
    assert tinydet(["data", "check", str(source)]) == 1
    assert "1 image with an unreadable file" in capsys.readouterr().out
    assert tinydet(["data", "check", str(source), "--fix", str(tmp_path / "fixed.json")]) == 0
    assert [image.id for image in load_dataset(tmp_path / "fixed.json").images] == [2, 3]
    assert tinydet(["data", "check", str(source / "annotations.json")]) == 0  # the annotations alone have no fault
    assert "images not read (--images DIR)" in capsys.readouterr().out


def test_a_file_without_faults_may_have_notes_and_is_completed_by_fix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = copy.deepcopy(VALID)
    document["annotations"][0].update(bbox=[55, 5, 10, 10], size=10.0)
    for key in ("area", "iscrowd"):
        del document["annotations"][1][key]
    document["annotations"].append({**document["annotations"][3], "id": 40, "score": float("nan")})
    document["annotations"].append({**document["annotations"][3], "id": 41, "ignore": 1, "bbox": [99, 99, 5, 5]})
    document["images"].append({"id": 4, "file_name": "4.png", "width": 9, "height": 9})
    document["categories"].append({"id": 3, "name": "whale"})
    put("annotations", 0, image_id=1)(document)
    source = tmp_path / "a.json"
    source.write_text(json.dumps(document))
    assert tinydet(["data", "check", str(source)]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    for note in (
        "1 box partly outside the image",
        "1 ignore region without area in the image",
        "1 annotation with the image, category and box of another",
        "1 image without annotations",
        "no annotation has the category whale",
        "1 annotation without 'area'",
        "1 annotation without 'iscrowd'",
    ):
        assert any(note in line for line in notes), note
    before = source.read_bytes()
    assert tinydet(["data", "check", str(source), "--fix", str(tmp_path / "b.json")]) == 0
    assert source.read_bytes() == before
    fixed = {entry["id"]: entry for entry in json.loads((tmp_path / "b.json").read_text())["annotations"]}
    assert fixed[1]["bbox"] == [55, 5, 5, 10] and fixed[1]["area"] == 50 and fixed[1]["size"] == 50**0.5
    assert fixed[2]["area"] == 72 and fixed[2]["iscrowd"] == 0
    assert fixed[40]["score"] is None


def test_a_complete_document_without_faults_is_not_changed() -> None:
    document = copy.deepcopy(VALID)
    assert repair_document(document, Path("x.json")) == []
    assert document == VALID


def test_fix_does_not_overwrite_its_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = folder(tmp_path / "set")
    assert tinydet(["data", "check", str(source), "--fix", str(source / "images" / ".." / "annotations.json")]) == 2
    assert "is an input and would be overwritten" in capsys.readouterr().err


def test_real_annotation_files_have_no_faults(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("hituav-val/annotations.json", "tinyperson640-val/annotations.json", "annotations/uavvaste.json",
                 "bigscene-brighton-geotiff/annotations.json", "bigscene-plaza/annotations.json"):  # fmt: skip
        assert tinydet(["data", "check", str(shared / "data" / name)]) == 0
        assert "no faults in" in capsys.readouterr().out
