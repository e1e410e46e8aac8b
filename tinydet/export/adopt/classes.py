"""The classes of an adopted model: names, COCO ids, and which label of the original is which class."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tinydet._internal.arguments import names as parse_names
from tinydet._internal.arguments import quoted
from tinydet._internal.console import plural
from tinydet._internal.input_files import check_file
from tinydet._internal.json_files import read_json
from tinydet.data.readers.class_names import read_class_names
from tinydet.data.readers.text_files import YAML_SUFFIXES

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
BACKGROUND = "background"  # a first name that is no class, also as __background__
UNUSED = "N/A"  # name of a label that no object has, in lists of COCO's 91 labels


class Classes(NamedTuple):
    """Names and COCO ids of the classes. `labels`: for each label of the original the class, or -1 for none."""

    names: tuple[str, ...]
    category_ids: tuple[int, ...]
    labels: tuple[int, ...]


def read_classes(text: str) -> tuple[str, ...]:
    """Return the names of `--classes`: "coco", names separated by commas, or a file.

    A `.json` file is a COCO annotation file, a list of names, or a Hugging Face `config.json`; `.yaml` is the data.yaml
    of a YOLO dataset; any other file has a name in each line, which may begin with its number.

    Raises:
        ValueError: the file has no names.
        OSError: it cannot be read.
    """
    if text == COCO:
        return COCO_NAMES
    path = Path(text)
    suffix = path.suffix.lower()
    if suffix in (".txt", ".names", ".json", *YAML_SUFFIXES) or ("," not in text and path.is_file()):
        check_file(path)
        found = tuple(_of_json(path) if suffix == ".json" else _without_numbers(read_class_names(path)))
    else:
        found = parse_names(text)
    if not 1 <= len(found) <= MOST:
        raise ValueError(f"--classes {quoted(text)}: expected 1 to {MOST} names, found {len(found)}")
    if repeated := [name for i, name in enumerate(found) if name in found[:i] and name != UNUSED]:
        raise ValueError(f"--classes {quoted(text)}: {quoted(repeated[0])} is named twice; class names must differ")
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
    if names and len(names) > 1 and names[0].strip("_").lower() == BACKGROUND:
        names, first_label = names[1:], 1  # it is label 0
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
    if UNUSED in given:
        return _without_unused(
            assign_labels(
                [f"{UNUSED} {i}" if name == UNUSED else name for i, name in enumerate(given)],
                columns,
                first_label=first_label,
                background=background,
            )
        )
    ids = COCO_IDS if coco else tuple(range(1, len(given) + 1))
    identity = tuple(range(len(given)))
    if coco and (columns == COCO_SLOTS or (columns is None and first_label == 1)):
        return Classes(given, ids, tuple(COCO_IDS.index(i) if i in COCO_IDS else -1 for i in range(COCO_SLOTS)))
    if columns is None:
        return Classes(given, ids, (-1,) * first_label + identity)
    if columns == len(given) and first_label == 1:
        raise ValueError(
            f"it has scores for {columns} classes, and --first-label 1 makes the first of them the background, but "
            "as many names; leave --first-label out, or name one class less"
        )
    if columns == len(given):
        return Classes(given, ids, identity)
    if columns == len(given) + 1 and (background == "last" or first_label == 1):
        return Classes(given, ids, (-1, *identity) if first_label == 1 else (*identity, -1))
    raise ValueError(
        f"it has scores for {columns} classes, but {plural(len(given), 'name')} for them: "
        f"{quoted(', '.join(given))}; name all of them in its order with --classes"
    )


def _without_unused(classes: Classes) -> Classes:
    """Return the classes without those that are named UNUSED and a number."""
    used = [i for i, name in enumerate(classes.names) if not name.startswith(f"{UNUSED} ")]
    names = tuple(classes.names[i] for i in used)
    ids = COCO_IDS if names == COCO_NAMES else tuple(range(1, len(names) + 1))
    return Classes(names, ids, tuple(used.index(i) if i in used else -1 for i in classes.labels))


def _of_json(path: Path) -> list[str]:
    content: Any = read_json(path)
    if isinstance(content, dict) and isinstance(content.get("categories"), list):
        content = [each.get("name") for each in content["categories"] if isinstance(each, dict)]
    if isinstance(content, dict):
        numbered = content["id2label"] if isinstance(content.get("id2label"), dict) else content
        if numbered and set(numbered) == set(map(str, range(len(numbered)))):
            content = [numbered[str(i)] for i in range(len(numbered))]
    if not isinstance(content, list) or not all(isinstance(name, str) and name.strip() for name in content):
        raise ValueError(
            f"{path}: expected COCO categories, a list of names, or names by label from 0, such as the id2label of "
            "Hugging Face"
        )
    return content


def _without_numbers(names: Sequence[str]) -> list[str]:
    """Return names without the numbers that they begin with, if these count from 0 or 1.

    >>> _without_numbers(["0 person", "1: car"]), _without_numbers(["1 euro", "2 euros"]), _without_numbers(["7 up"])
    (['person', 'car'], ['euro', 'euros'], ['7 up'])
    """
    parts = [re.fullmatch(r"(\d+)(?:\s*[:,;]\s*|\s+)(\S.*)", name) for name in names]
    numbers = [int(part[1]) for part in parts if part]
    if len(numbers) != len(names) or numbers not in ([*range(len(names))], [*range(1, len(names) + 1)]):
        return list(names)
    return [part[2] for part in parts if part]
