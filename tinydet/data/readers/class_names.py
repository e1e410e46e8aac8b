"""Read class names from text files and data.yaml, and the label format that data.yaml states."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinydet.data.readers.text_files import YAML_SUFFIXES, read_text
from tinydet.data.readers.yaml_files import read_yaml

_NULLS = (None, "", "~", "null", "Null", "NULL")  # how YAML writes that a key has no value
_NAMES = "names: [person, car], or names: {0: person, 1: car}"


@dataclass(frozen=True)
class DataFile:
    """Contents of a data.yaml.

    Attributes:
        path: the file.
        names: of the classes, in the order of their numbers.
        task: "detect", "segment", "pose", "obb", or empty.
        keypoints: `kpt_shape`: how many keypoints an object has, and numbers per keypoint (2 or 3).
        content: the whole file; every scalar is text.
    """

    path: Path
    names: list[str]
    task: str = ""
    keypoints: tuple[int, int] | None = None
    content: Mapping[str, Any] = field(default_factory=dict)


def read_class_names(path: Path) -> list[str]:
    """Read class names from `data.yaml` (YOLO) or from a text file with one name per line.

    Raises:
        ValueError: the file has another format or no names, or a name is empty or listed twice.
        ModuleNotFoundError: PyYAML is not installed.
    """
    if path.suffix.lower() in YAML_SUFFIXES:
        return read_data_file(path).names
    lines = [line.strip() for line in read_text(path).rstrip().split("\n")]
    if lines == [""]:
        raise ValueError(f"{path}: no class names; write one per line, in the order of their numbers")
    if "" in lines:
        raise ValueError(f"{path} line {lines.index('') + 1}: an empty line; class numbers count lines, so remove it")
    return _checked(path, lines)


def read_data_file(path: Path) -> DataFile:
    """Read a data.yaml. Names are taken as written, also `on`, `no` and `null`.

    Raises:
        ValueError: the file is not a data.yaml, its class names are incomplete, or it contradicts itself.
        ModuleNotFoundError: PyYAML is not installed.
    """
    content = read_yaml(path)
    count = content.get("nc")
    if content.get("names") in _NULLS and isinstance(count, str) and count.isdecimal() and 0 < int(count) < 100_000:
        names = [f"class_{n}" for n in range(int(count))]  # as Ultralytics names them
    else:
        names = _names(path, content.get("names"))
    if count not in (*_NULLS, str(len(names))):
        raise ValueError(f"{path}: nc is {_shown(count)}, but there are {len(names)} names; correct one of them")
    keypoints = _keypoints(path, content.get("kpt_shape"))
    task = content.get("task")
    task = task.strip().lower() if isinstance(task, str) else ""
    if keypoints is not None and task in ("segment", "obb"):
        raise ValueError(f"{path}: kpt_shape says that labels have keypoints, but the task is {task}; remove one")
    return DataFile(path, names, task, keypoints, content)


def _names(path: Path, names: Any) -> list[str]:
    if isinstance(names, dict):
        numbers = [str(n) for n in range(len(names))]
        if wrong := [key for key in names if key not in numbers]:
            missing = next(number for number in numbers if number not in names)
            raise ValueError(
                f"{path}: class {wrong[0][:40]!r} of {len(names)} has a name, but class {missing} has none; number the "
                "names from 0 without gaps"
            )
        names = [names[number] for number in numbers]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: expected {_NAMES}")
    if (empty := next((n for n, name in enumerate(names) if not name.strip()), None)) is not None:
        raise ValueError(f"{path}: the name of class {empty} is empty; expected {_NAMES}")
    return _checked(path, names)


def _checked(path: Path, names: list[str]) -> list[str]:
    seen: set[str] = set()
    for n, name in enumerate(names):
        if any(unicodedata.category(character) == "Cc" for character in name):
            raise ValueError(f"{path}: the name of class {n} is {name[:40]!r}, which is not text; correct it")
        if name in seen:
            raise ValueError(f"{path}: {name!r} is listed twice; class names must differ")
        seen.add(name)
    return names


def _keypoints(path: Path, shape: Any) -> tuple[int, int] | None:
    if shape in _NULLS:
        return None
    texts: Sequence[Any] = shape if isinstance(shape, list) else ()
    if len(texts) == 2 and all(isinstance(text, str) and text.isdecimal() and len(text) < 6 for text in texts):
        count, numbers = map(int, texts)
        if count >= 1 and numbers in (2, 3):
            return count, numbers
    raise ValueError(f"{path}: kpt_shape is {_shown(shape)}; expected [keypoints, 2] or [keypoints, 3]")


def _shown(value: Any) -> str:
    """Return a short form of a value; aliases may make its full text huge."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value[:5]):
        return f"[{', '.join(item[:20] for item in value[:5])}{', ...' if len(value) > 5 else ''}]"
    return value[:40] if isinstance(value, str) else f"a {'list' if isinstance(value, list) else 'mapping'}"
