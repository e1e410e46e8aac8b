"""Every command reads an annotation file by the same rules, and a name in it never leaves a folder."""

from __future__ import annotations

import copy
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tinydet.__main__ import main as tinydet
from tinydet.data.coco import load_dataset
from tinydet.data.coco_file import load_document, replace_non_finite, write_document
from tinydet.data.coco_repair import repair_document
from tinydet.evaluate import evaluate_detections

VALID: dict[str, Any] = {
    "images": [{"id": n, "file_name": f"sub/{n}.png", "width": 60, "height": 40} for n in (1, 2)],
    "categories": [{"id": 1, "name": "person"}],
    "annotations": [
        {
            "id": n,
            "image_id": 1 + n % 2,
            "category_id": 1,
            "bbox": [4 * n, 3, 8, 9],
            "area": 72,
            "iscrowd": 0,
            "ignore": 0,
        }
        for n in range(1, 5)
    ],
}
FOUND = [
    {"image_id": entry["image_id"], "category_id": 1, "bbox": entry["bbox"], "score": 0.9}
    for entry in VALID["annotations"]
]
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "images" / "sub").mkdir(parents=True)
    for n in (1, 2):
        assert cv2.imwrite(str(tmp_path / "images" / "sub" / f"{n}.png"), np.full((40, 60, 3), 90, np.uint8))
    (tmp_path / "found.json").write_text(json.dumps(FOUND))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(change: Change | None = None) -> dict[str, Any]:
    document = copy.deepcopy(VALID)
    if change is not None:
        change(document)
    Path("set.json").write_text(json.dumps(document))
    return document


def first(**values: Any) -> Change:
    return lambda document: document["annotations"][0].update(values)


READERS = (
    ("data", "stats", "set.json"),
    ("data", "cut", "set.json", "--images", "images", "--output", "out"),
    ("data", "erase", "set.json", "--images", "images", "--output", "out"),
    ("data", "rescale", "set.json", "--images", "images", "--factor", "1/2", "--output", "out"),
    ("data", "scale-match", "set.json", "--images", "images", "--target", "valid.json", "--output", "out"),
    ("data", "scale-match", "valid.json", "--target", "set.json", "--output", "out.json"),
    ("data", "convert", "set.json", "--from", "tinyperson", "--output", "out.json"),
    ("salpha", "set.json"),
    ("infer", "--annotations", "set.json", "--images", "images", "--output", "out.json"),
    ("evaluate", "--gt", "set.json", "--detections", "found.json"),
)
FAULTS: dict[str, tuple[Change, str]] = {
    "iscrowd as text": (first(iscrowd="0"), 'annotation 1 has iscrowd "0"; it must be 0 or 1'),
    "ignore of 2": (first(ignore=2), "annotation 1 has ignore 2; it must be 0 or 1"),
    "uncertain as a list": (first(uncertain=[]), "annotation 1 has uncertain []; it must be 0 or 1"),
    "image_id as a list": (first(image_id=[1]), "annotation 1 has the image_id [1]; it must be a whole number"),
    "an id beyond 64 bits": (first(image_id=2**64), f"has the image_id {2**64}, which has more than 64 bits"),
    "bbox as text": (
        first(bbox=["4.0", "3", "8", "9"]), 'annotation 1 has the bbox ["4.0", "3", "8", "9"]; a bbox is [x, y,'),
    "a bbox of 10^400": (first(bbox=[4, 3, 8, 10**400]), "which is not finite"),
    "a bbox of 10^300": (first(bbox=[1e300, 3, 1e300, 9]), "has the bbox [1e+300, 3, 1e+300, 9], which is beyond any"),
    "a bbox of corners": (first(bbox=[12, 12, -8, -9]), "has the bbox [12, 12, -8, -9] with a negative side"),
    "area as text": (first(area="72"), 'annotation 1 has the area "72"; it must be a finite number'),
    "area of NaN": (first(area=float("nan")), "annotation 1 has the area NaN; it must be a finite number"),
    "vis of three numbers": (first(vis=[4, 3, 8]), "annotation 1 has the vis [4, 3, 8]; a vis is [x, y, width,"),
    "a category named 5": (
        lambda document: document["categories"][0].update(name=5),
        "category 1 has the name 5; it must be a string without control characters"),
    "a name that controls the terminal": (
        lambda document: document["categories"][0].update(name="a\x1b[2J"),
        'category 1 has the name "a\\u001b[2J"; it must be a string without control characters'),
    "unpaired surrogate": (
        lambda document: document["images"][0].update(file_name="\ud800.png"),
        'image 1 has the file_name "\\ud800.png"; it must be a file\'s name without control characters'),
}  # fmt: skip


@pytest.mark.parametrize("words", READERS, ids=lambda words: " ".join(words[:2]))
def test_every_command_refuses_a_fault_in_the_same_words_and_writes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    Path("valid.json").write_text(json.dumps(VALID))
    for fault, (change, message) in FAULTS.items():
        write(change)
        assert tinydet(list(words)) == 2, fault
        shown = capsys.readouterr()
        assert len(shown.err.splitlines()) == 1
        assert message.rstrip(";") in shown.err or (words[0] == "evaluate" and "whole number or a string" in shown.err)
        assert "set.json" in shown.err
        assert not list(folder.glob("out*")), fault


@pytest.mark.parametrize("key", ["ignore", "iscrowd"])
def test_a_flag_means_the_same_to_training_and_scoring(folder: Path, key: str) -> None:
    """Training has no object there; scoring needs none to be found. 1.0 and null are what pandas writes."""
    for value in (1, True, 1.0, 0, False, 0.0, None):
        ignored = bool(value)
        document = write(first(**{key: value}))
        assert load_dataset(Path("set.json")).ignore.sum() == ignored
        scores = evaluate_detections(document, FOUND, protocol="tinyperson")
        assert scores["AP_counts"]["all"]["0.50"]["n_gt"] == 4 - ignored
        (entry,) = (entry for entry in load_document(Path("set.json")).content["annotations"] if entry["id"] == 1)
        assert type(entry[key]) in (int, bool) and entry[key] == ignored


def test_null_in_an_optional_field_is_an_absent_field(folder: Path) -> None:
    for key in ("area", "size", "height", "vis", "vis_bbox", "vis_ratio", "segmentation", "keypoints", "uncertain"):
        document = write(first(**{key: None}))
        assert len(load_dataset(Path("set.json")).boxes) == 4
        without = copy.deepcopy(VALID)
        without["annotations"][0].pop(key, None)
        for protocol in ("tinyperson", "citypersons"):
            assert evaluate_detections(document, FOUND, protocol=protocol) == evaluate_detections(
                without, FOUND, protocol=protocol
            )


def test_what_a_tool_writes_has_whole_numbers_and_slashes(folder: Path) -> None:
    """However the source spells them: 1.0 for an id and backslashes in a name."""

    def spell(document: dict[str, Any]) -> None:
        for image in document["images"]:
            image.update(id=float(image["id"]), width=60.0, file_name=image["file_name"].replace("/", "\\"))
        document["categories"][0]["id"] = 1.0
        for entry in document["annotations"]:
            entry.update(id=float(entry["id"]), image_id=float(entry["image_id"]), category_id=1.0, iscrowd=0.0)

    written = []
    for change in (None, spell):
        write(change)
        tools = (("cut",), ("erase",), ("rescale", "--factor", "1/2"), ("scale-match", "--target", "set.json"))
        for n, (tool, *options) in enumerate(tools):
            words = ["data", tool, "set.json", "--images", "images", *options]
            assert tinydet([*words, "--output", f"out{n}"]) == tinydet([*words, "--output", f"out{n}.json"]) == 0
        assert tinydet(["data", "check", "set.json", "--fix", "out4.json"]) == 0
        texts = {path: path.read_text() for path in sorted(folder.rglob("*.json")) if "out" in str(path)}
        written.append(texts)
        for n in range(4):
            (folder / f"out{n}").rename(folder / f"old{n}{change is None}")
    assert written[0] == {path: text for path, text in written[1].items() if path in written[0]}
    assert len(written[0]) == 10


OUTSIDE = (
    "../secret.png",
    "sub/../../secret.png",
    "..\\secret.png",
    "{}/secret.png",
    "C:\\secret.png",
    "\\\\host\\secret.png",
)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_never_leaves_the_image_folder(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """No file outside is read or written: commands end with one line, and `--fix` finds no such file."""
    assert cv2.imwrite("secret.png", np.zeros((40, 60, 3), np.uint8))
    write(lambda document: document["images"][0].update(file_name=name.format(folder)))
    Path("valid.json").write_text(json.dumps(VALID))
    before = sorted(folder.rglob("*"))
    commands = [words for words in READERS if "images" in words]
    source = ("--annotations", "set.json", "--images", "images")
    commands.append(("evaluate", "--model", "thermal", *source))
    commands.append(("infer", "--calibrate-skip", "--model", "thermal", *source))
    if importlib.util.find_spec("matplotlib"):
        commands.append((*READERS[-1], "--images", "images", "--plots", "out"))
    for words in commands:
        assert tinydet(list(words)) == 2, words
        error = capsys.readouterr().err
        assert "leaves the image folder" in error and len(error.splitlines()) == 1, (words, error)
    document = json.loads(Path("set.json").read_text())
    done = repair_document(document, Path("set.json"), Path("images"))
    assert [image["id"] for image in document["images"]] == [2] and "dropped" in done[0]
    assert sorted(folder.rglob("*")) == before


def test_a_root_category_is_not_a_class(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Roboflow adds a root with id 0. With annotations, such a category is a class like others."""

    def with_root(document: dict[str, Any]) -> None:
        document["categories"][0]["supercategory"] = "people"
        document["categories"].insert(0, {"id": 0, "name": "people", "supercategory": "none"})

    document = write(with_root)
    dataset = load_dataset(Path("set.json"))
    assert (dataset.classes, dataset.category_ids, dataset.roots) == (("person",), (1,), ("people",))
    for words in (("data", "stats", "set.json"), ("salpha", "set.json"), READERS[-1], ("data", "check", "set.json")):
        capsys.readouterr()
        assert tinydet(list(words)) == 0
        (line,) = (line for line in capsys.readouterr().out.splitlines() if "supercategory" in line)
        assert "people" in line
    scores = evaluate_detections(document, FOUND)
    assert scores["AP"] == evaluate_detections(VALID, FOUND)["AP"]
    assert load_document(Path("set.json")).rewritten([], [])["categories"] == document["categories"]
    document["annotations"][0]["category_id"] = 0
    Path("set.json").write_text(json.dumps(document))
    assert load_dataset(Path("set.json")).classes == ("people", "person")
    for super_category in ("person", "none", None, 5, []):  # of itself, of nothing
        write(lambda document, value=super_category: document["categories"][0].update(supercategory=value))
        assert load_dataset(Path("set.json")).classes == ("person",)


def test_a_class_without_objects_is_named(folder: Path) -> None:
    write(lambda document: document["categories"].append({"id": 2, "name": "boat"}))
    assert load_dataset(Path("set.json")).notes == (
        "no objects of class boat; --categories A,B uses only the classes that you name",
    )


def test_nan_and_unpaired_surrogates_are_written_as_valid_json(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    deep: list[Any] = [float("nan"), 1.5]
    for _ in range(300):
        deep = [deep]
    content = {**VALID, "deep": deep, "score": float("inf"), "text": "\ud800"}
    write_document(Path("out.json"), content)
    assert "2 numbers that JSON does not have are written as null" in caplog.text
    read = json.loads(Path("out.json").read_bytes(), parse_constant=pytest.fail)
    assert (read["images"], read["score"], read["text"]) == (VALID["images"], None, "\ud800")
    assert content["score"] == float("inf")  # the argument is not changed
    assert replace_non_finite(deep) == 1


@pytest.mark.parametrize("name", ["set.json/out.json", f"{'a' * 300}.json", "images"])
def test_all_outputs_are_checked_before_any_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    write()
    for words in (
        ("data", "check", "set.json", "--fix", "out.json", "--json", name),
        (*READERS[-1], "--json", "out.json", "--precision", name),
        ("salpha", "set.json", "--json", name),
        ("data", "stats", "set.json", "--json", name),
    ):
        assert tinydet(list(words)) == 2
        shown = capsys.readouterr()
        assert name in shown.err and not shown.out and not Path("out.json").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("data", "check", "set.json", "--fix", "link.json"),
        ("data", "check", "set.json", "--json", "set.json"),
        ("data", "stats", "set.json", "--json", "set.json"),
        ("data", "convert", "set.json", "--from", "tinyperson", "--output", "link.json"),
        ("data", "rescale", "set.json", "--factor", "1/2", "--output", "link.json"),
        ("data", "scale-match", "set.json", "--target", "found.json", "--output", "found.json"),
        ("salpha", "set.json", "--json", "link.json"),
        ("evaluate", "--gt", "set.json", "--detections", "found.json", "--json", "./found.json"),
        ("evaluate", "--gt", "set.json", "--detections", "found.json", "--precision", "link.json"),
        ("evaluate", "--gt", "set.json", "--detections", "found.json", "--precision", "out.json", "--json", "out.json"),
    ],
    ids=" ".join,
)
def test_an_output_is_never_an_input(folder: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    write()
    Path("link.json").symlink_to("set.json")
    if "--target" in words:
        Path("found.json").write_text(json.dumps(VALID))
    before = {path: path.read_bytes() for path in folder.glob("*.json")}
    assert tinydet(list(words)) == 2
    assert "name another output" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.glob("*.json")} == before
