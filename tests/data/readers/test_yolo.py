"""YOLO labels: the dataset states what the numbers of a line mean, or the geometry of all lines proves it."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from tinydet.data.readers import yolo
from tinydet.data.readers.yolo_lines import LABELS, LabelForm, Labels

WIDTH, HEIGHT = 320, 256
BOX = "0 0.34375 0.390625 0.0625 0.15625"  # 100, 80, 20, 40
PIXELS = [100, 80, 20, 40]
CORNERS = "0.3125 0.3125 0.375 0.3125 0.375 0.46875 0.3125 0.46875"  # of the same box


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A dataset with an image a.png and no labels."""
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    assert cv2.imwrite(str(tmp_path / "images" / "a.png"), np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    (tmp_path / "data.yaml").write_text("names: [person]\n")
    return tmp_path


def boxes(dataset: Path, text: str, labels: Labels | None = None, data: str = "names: [person]\n") -> list[list[float]]:
    (dataset / "data.yaml").write_text(data)
    (dataset / "labels" / "a.txt").write_text(text)
    document = yolo.read(dataset / "labels", dataset / "images", labels=labels).to_coco()
    return [annotation["bbox"] for annotation in document["annotations"]]


@pytest.mark.parametrize(
    ("data", "rest"),
    [
        ("kpt_shape: [3, 2]", "0.33 0.35 0.35 0.36 0.34 0.45"),
        ("kpt_shape: [2, 2]", "0.33 0.35 0.35 0.36"),  # as many numbers as four corners
        ("kpt_shape: [2, 3]", "0.33 0.35 2 0 0 0"),
        ("kpt_shape: [1, 2]", "0.33 0.35"),
        ("kpt_shape: [1, 2]\ntask: pose", "0.33 0.35 0.9 7"),  # with confidence and track number
        ("task: pose", "0.33 0.35 0.35 0.36"),
        ("kpt_shape: [2, 2]", ""),  # an object without keypoints
    ],
)
def test_a_pose_has_the_box_before_its_keypoints(dataset: Path, data: str, rest: str) -> None:
    assert boxes(dataset, f"{BOX} {rest}\n", data=f"names: [person]\n{data}\n") == [pytest.approx(PIXELS)]


@pytest.mark.parametrize("task", ["segment", "obb"])
def test_a_task_of_polygons_gives_the_bounding_box(dataset: Path, task: str) -> None:
    assert boxes(dataset, f"0 {CORNERS}\n", data=f"names: [person]\ntask: {task}\n") == [pytest.approx(PIXELS)]


@pytest.mark.parametrize(
    ("labels", "line"),
    [
        ("box", BOX),
        ("box", f"{BOX} 0.9"),
        ("box", f"{BOX} 17"),
        ("box", f"{BOX} 0.9 1"),
        ("pose", f"{BOX} 0.9 0.9"),
        ("polygon", f"0 {CORNERS}"),
        ("polygon", f"0 {CORNERS} 0.9"),
        ("polygon", f"0 {CORNERS} 0.9 17"),
    ],
)
def test_the_user_can_state_what_the_numbers_mean(dataset: Path, labels: Labels, line: str) -> None:
    assert boxes(dataset, line, labels, "names: [person]\nkpt_shape: [17, 3]\n") == [pytest.approx(PIXELS)]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r", "\n\n \t\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_every_text_encoding_and_line_ending_reads_alike(dataset: Path, ending: str, encoding: str) -> None:
    lines = ["0.0\t0.34375  0.390625 0.0625 1.5625e-1", f" {BOX} "]
    (dataset / "labels" / "a.txt").write_bytes(ending.join([*lines, ""]).encode(encoding))
    document = yolo.read(dataset / "labels", dataset / "images").to_coco()
    assert [annotation["bbox"] for annotation in document["annotations"]] == [pytest.approx(PIXELS)] * 2


@pytest.mark.parametrize(
    ("data", "text", "message"),
    [
        ("kpt_shape: [3, 2]", f"{BOX} 0.1 0.2", r"a.txt line 1: 7 numbers, but kpt_shape \[3, 2\]"),
        ("task: obb", f"0 {CORNERS} 0.3 0.3", "line 1: 11 numbers; .*says obb: expected 9"),
        ("task: segment", f"0 {CORNERS}\n0 {CORNERS} 0.3", "line 2: 10 numbers; a polygon has an x and a y for each"),
        (
            "",
            "0 0.5 0.5 0.6 0.6 0.6 0.7",
            "line 1: 7 numbers, which may be .*: --labels box, --labels pose or --labels polygon",
        ),
        ("", f"{BOX} 0.3", "line 1: 6 numbers; expected 5: .*--labels box"),
        ("", f"{BOX}\n# person\n", "line 2: '#' is not a number"),
        ("", "0 0,3 0,3 0,1 0,1", "line 1: '0,3' is not a number"),
        ("", "0 1_0 0.3 0.1 0.1", "line 1: '1_0' is not a number"),
        ("", "0 0.3 0.3 -0.005 0.1", "line 1: a box with a negative side"),
        ("", "0 0.3 0.3 1e400 0.1", "line 1: '1e400' is not a number"),
        ("", "0.5 0.3 0.3 0.1 0.1", "line 1: the class is 0.5; expected a whole number from 0 to 0"),
        ("", "0 0.3 0.3", "line 1: 3 numbers; expected 5"),
        ("", "0 50 40 10 10 60 60", "line 1: a fraction of the image size is not from 0 to 1"),
    ],
)
def test_what_a_line_cannot_mean_is_one_error(dataset: Path, data: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        boxes(dataset, text, data=f"names: [person]\n{data}\n")


def _box(random_: random.Random, scale: float) -> list[float]:
    width, height = scale * random_.uniform(0.3, 1), scale * random_.uniform(0.3, 1)
    return [random_.uniform(width / 2, 1 - width / 2), random_.uniform(height / 2, 1 - height / 2), width, height]


def _pose(random_: random.Random, scale: float, count: int, each: int) -> list[float]:
    x, y, width, height = box = _box(random_, scale)
    row = list(box)
    for _ in range(count):
        point = [
            x + random_.uniform(-0.5, 0.5) * width,
            y + random_.uniform(-0.5, 0.5) * height,
            random_.choice([1.0, 2.0]),
        ]
        row += point[:each]
    return row


def _polygon(random_: random.Random, scale: float, corners: int) -> list[float]:
    x, y, width, height = _box(random_, scale)
    angles = [2 * math.pi * (n + random_.uniform(0, 0.5)) / corners for n in range(corners)]
    points = [(x + width / 2 * math.cos(angle), y + height / 2 * math.sin(angle)) for angle in angles]
    return [value for point in points for value in point]


def _rectangle(box: list[float]) -> list[float]:
    x, y, width, height = box
    return [x, y, x + width / 2, y, x + width / 2, y + height / 2, x, y + height / 2]


FORMS: dict[str, tuple[Labels, Callable[[random.Random, float], list[float]]]] = {
    "2 keypoints": ("pose", lambda r, s: _pose(r, s, 2, 2)),
    "5 keypoints": ("pose", lambda r, s: _pose(r, s, 5, 2)),
    "17 keypoints with visibility": ("pose", lambda r, s: _pose(r, s, 17, 3)),
    "4 corners": ("polygon", lambda r, s: _polygon(r, s, 4)),
    "upright rectangles": ("polygon", lambda r, s: _rectangle(_box(r, s))),
    "triangles": ("polygon", lambda r, s: _polygon(r, s, 3)),
    "outlines": ("polygon", lambda r, s: _polygon(r, s, r.randrange(3, 30))),
    "outlines with confidence": ("polygon", lambda r, s: [*_polygon(r, s, r.randrange(3, 30)), r.random()]),
    "tracked": ("box", lambda r, s: [*_box(r, s), r.random(), float(r.randrange(1, 40))]),
    "boxes": ("box", _box),
}


@pytest.mark.parametrize("scale", [0.02, 0.2, 0.9])
@pytest.mark.parametrize("name", FORMS)
def test_the_evidence_of_all_lines_is_never_wrong_and_suffices_for_small_objects(name: str, scale: float) -> None:
    truth, make = FORMS[name]
    for seed in range(20):
        random_ = random.Random(seed)
        for count in (1, 60):
            form = LabelForm()
            for n in range(count):
                form.add(make(random_, scale), f"line {n}")
            decided: Labels | None = None
            with contextlib.suppress(ValueError):
                decided = form.decide()
            assert decided == truth or (decided is None and (count == 1 or scale > 0.5))


def test_keypoints_and_polygons_in_one_folder_are_refused() -> None:
    random_, form = random.Random(0), LabelForm()
    for n in range(20):
        form.add(_pose(random_, 0.05, 3, 2), f"line {n}")
        form.add(_polygon(random_, 0.05, 8), f"line {n}")
    with pytest.raises(ValueError, match="say which"):
        form.decide()


def test_label_files_find_images_of_another_spelling(dataset: Path) -> None:
    (dataset / "images" / "a.png").rename(dataset / "images" / "IMG é.PNG")
    for name, line in (("img é.txt", BOX), ("._img é.txt", "\0binary"), ("classes.txt", "person")):
        (dataset / "labels" / name).write_text(line)
    (dataset / "images" / "._IMG é.PNG").write_bytes(b"\0")
    coco = yolo.read(dataset / "labels", dataset / "images")
    assert [image["file_name"] for image in coco.images] == ["IMG é.PNG"]
    assert len(coco.annotations) == 1
    assert coco.notes == [
        "names matched to image files that are spelled differently: 1, the first img é.txt to IMG é.PNG"
    ]


def test_two_class_files_that_differ_are_refused(dataset: Path) -> None:
    (dataset / "classes.txt").write_text("boat\n")
    with pytest.raises(ValueError, match="different class names; name the right one with --classes"):
        boxes(dataset, BOX)


def test_the_meanings_are_the_choices_of_the_option() -> None:
    assert set(LABELS) == {labels for labels, _ in FORMS.values()}
