"""The classes of an adopted model: names, COCO ids, and which label of the original is which class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tinydet._internal.arguments import names as parse_names
from tinydet._internal.arguments import quoted
from tinydet._internal.input_files import read_file
from tinydet._internal.json_files import read_json

COCO = "coco"
_UNUSED_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
COCO_IDS = tuple(i for i in range(1, 91) if i not in _UNUSED_IDS)
# fmt: off
COCO_NAMES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
    "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)
# fmt: on
COCO_SLOTS = 91  # class columns of models whose labels are COCO's ids, from 0
MOST = 10_000


class Classes(NamedTuple):
    """Names and COCO ids of the classes. `labels`: for each label of the original the class, or -1 for none."""

    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    labels: tuple[int, ...]


def read_classes(text: str) -> tuple[str, ...]:
    """Return the names of `--classes`: "coco", names separated by commas, or a file with a name in each line.

    A `.json` file is a COCO annotation file, or a list of names.

    Raises:
        ValueError: the file has no names.
        OSError: it cannot be read.
    """
    if text == COCO:
        return COCO_NAMES
    path = Path(text)
    if path.suffix.lower() in (".txt", ".names", ".json") or ("," not in text and path.is_file()):
        names = _of_json(path) if path.suffix.lower() == ".json" else read_file(path).decode("utf-8-sig").splitlines()
        found = tuple(name.strip() for name in names if name.strip())
        problem = f"{path}: expected the name of a class in each line"
    else:
        found, problem = parse_names(text), f"--classes: expected names separated by commas, got {quoted(text)}"
    if not found or len(found) > MOST:
        raise ValueError(f"{problem}; found {len(found)} names")
    return found


def assign_labels(names: Sequence[str] | None, columns: int | None, *, first_label: int, background: str) -> Classes:
    """Return the classes of a model and the meaning of its labels.

    Args:
        names: of the classes; None if nobody named them.
        columns: number of class scores; None if labels are an output.
        first_label: number of the first class, where labels are an output.
        background: "last" if a column more than names is no class.

    Raises:
        ValueError: the names do not fit the model, or are missing.
    """
    coco = tuple(names or ()) == COCO_NAMES
    if names is None and columns is None:
        raise ValueError(
            "it does not say which classes its labels mean; name them in the order of the labels with --classes A,B, "
            "--classes names.txt, or --classes coco"
        )
    if names is None:
        assert columns is not None
        if columns in (len(COCO_NAMES), COCO_SLOTS):
            return assign_labels(COCO_NAMES, columns, first_label=first_label, background=background)
        names = [f"class {i}" for i in range(columns)]
    given = tuple(names)
    ids = COCO_IDS if coco else tuple(range(1, len(given) + 1))
    identity = tuple(range(len(given)))
    if coco and (columns == COCO_SLOTS or (columns is None and first_label == 1)):
        return Classes(given, ids, tuple(COCO_IDS.index(i) if i in COCO_IDS else -1 for i in range(COCO_SLOTS)))
    if columns is None:
        return Classes(given, ids, (-1,) * first_label + identity)
    if columns == len(given):
        return Classes(given, ids, identity)
    if columns == len(given) + 1 and (background == "last" or first_label == 1):
        return Classes(given, ids, (-1, *identity) if first_label == 1 else (*identity, -1))
    raise ValueError(
        f"it has scores for {columns} classes, but {len(given)} are named: {quoted(', '.join(given))}; name all "
        "of them in its order with --classes"
    )


def _of_json(path: Path) -> list[str]:
    content: Any = read_json(path)
    if isinstance(content, dict) and isinstance(content.get("categories"), list):
        content = [each.get("name") for each in content["categories"] if isinstance(each, dict)]
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise ValueError(f"{path}: expected COCO categories, or a list of names")
    return content
