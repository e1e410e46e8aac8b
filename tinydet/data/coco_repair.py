"""Mending what `tinydet.data.coco_rules` finds, where no guess is needed: entries are dropped, renumbered or merged.

What could mean two things (two different images of one id) is dropped with all that refers to it: a box on the wrong
image is worse than no box.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinydet.data.coco_rules import (
    LISTS,
    Fault,
    Part,
    examine,
    examine_boxes,
    examine_files,
    examine_objects,
    examine_pictures,
    short,
)
from tinydet.runtime.scenes import open_scene

Entry = dict[str, Any]
REFERENCES = {"images": "image_id", "categories": "category_id"}  # what an annotation calls their ids


def mend(
    document: dict[str, Any], source: Path, folder: Path | None = None, found: list[Fault] | None = None
) -> list[str]:
    """Change `document` until it keeps every rule; then clip boxes to their images and fill in what evaluators need.

    Args:
        source: its file, for messages.
        folder: of the image files; None leaves them out.
        found: the faults, where they are known already; with `folder`, those of the pictures among them.

    Returns:
        What was done, a line each.

    Raises:
        ValueError: the first fault that only a person can mend.
    """
    faults = _find(document, folder) if found is None else found
    done: list[str] = []
    while faults:
        for fault in faults:
            if not fault.repair:
                raise ValueError(f"{source} cannot be repaired by a program: {fault.first()}")
        # Images first, for what refers to a dropped one goes in the next round; and so on.
        part = next(part for part in LISTS if any(fault.part == part for fault in faults))
        done += _Round(document, part, folder).mend([fault for fault in faults if fault.part == part])
        faults = _find(document, None)  # what is wrong with files was found the first time
    faults = []
    examine_objects(examine(document, faults.append), faults.append)
    if faults:
        raise ValueError(f"{source} cannot be repaired by a program: {faults[0].first()}")
    return done + list(_complete(document))


class _Round:
    """Repairs of one list; entries are dropped at the end, so that places hold until then."""

    def __init__(self, document: dict[str, Any], part: Part, folder: Path | None) -> None:
        self.entries: list[Any] = document[part]
        self.annotations: list[Any] = document["annotations"]
        self.document, self.part, self.folder = document, part, folder
        self.dropped: set[int] = set()
        numbers = [entry["id"] for entry in self.entries if isinstance(entry, dict) and _is_number(entry.get("id"))]
        self.fresh = math.floor(max([0, *(n for n in numbers if abs(n) < 2**53)])) + 1

    def mend(self, faults: list[Fault]) -> list[str]:
        done = []
        for fault in faults:
            for n in fault.entries:
                if n not in self.dropped:
                    what = fault.describe(n)  # before the repair, which may change what it tells
                    done.append(f"{what}: {self._repair(fault, n)}")
        self.document[self.part] = [entry for n, entry in enumerate(self.entries) if n not in self.dropped]
        return done

    def _repair(self, fault: Fault, n: int) -> str:
        match fault.repair:
            case "renumber":
                return self._renumber(n)
            case "tell apart":
                return self._tell_apart(n)
            case "merge":
                return self._merge(n)
            case "name":
                return self._set(n, "name", f"category_{self.entries[n].get('id', n)}")
            case "flag":
                return self._set(n, fault.key, int(_is_true(self.entries[n][fault.key])))
            case "measure":
                return self._measure(n)
            case "compare":
                return self._compare(n)
        return self._drop(n)

    def _drop(self, *places: int) -> str:
        self.dropped.update(places)
        return "dropped"

    def _set(self, n: int, key: str, value: Any) -> str:
        self.entries[n][key] = value
        return f"{key} set to {short(value)}"

    def _renumber(self, n: int) -> str:
        """A new id; annotations that refer to the old one follow, where it names one entry."""
        old = self.entries[n].get("id")
        if self.part == "annotations":
            self.fresh += 1
            return self._set(n, "id", self.fresh - 1)
        if not isinstance(old, str | int | float) or isinstance(old, bool) or old != old:
            return self._drop(n)
        same = [m for m, entry in enumerate(self.entries) if isinstance(entry, dict) and _equal(entry.get("id"), old)]
        if len(same) > 1:
            return f"{self._drop(*same)}, for {len(same)} entries have this id"
        key = REFERENCES[self.part]
        for annotation in self.annotations:
            if isinstance(annotation, dict) and _equal(annotation.get(key), old):
                annotation[key] = self.fresh
        self.fresh += 1
        return self._set(n, "id", self.fresh - 1)

    def _tell_apart(self, n: int) -> str:
        """Of entries with one id, the first stays where the others say the same."""
        id = self.entries[n]["id"]
        holders = [m for m, entry in enumerate(self.entries) if isinstance(entry, dict) and _equal(entry.get("id"), id)]
        if self.part == "annotations":
            if any(self.entries[n] == self.entries[m] for m in holders if m < n):
                return f"{self._drop(n)}, the same as the first"
            self.fresh += 1
            return self._set(n, "id", self.fresh - 1)
        keys = ("file_name", "width", "height", "corner") if self.part == "images" else ("name",)
        if all(self.entries[m].get(key) == self.entries[n].get(key) for m in holders for key in keys):
            return f"{self._drop(n)}, the same as the first"
        return f"{self._drop(*holders)}, all {len(holders)}: annotations could mean either"

    def _merge(self, n: int) -> str:
        """Into the first category of the same name."""
        name, old = self.entries[n]["name"], self.entries[n]["id"]
        first = next(entry for entry in self.entries if isinstance(entry, dict) and entry.get("name") == name)
        for annotation in self.annotations:
            if isinstance(annotation, dict) and _equal(annotation.get("category_id"), old):
                annotation["category_id"] = first["id"]
        self._drop(n)
        return f"category {old} merged into {first['id']}"

    def _measure(self, n: int) -> str:
        size = _size(self.folder, self.entries[n].get("file_name"))
        if size is None:
            return self._drop(n)
        self.entries[n].update(width=size[0], height=size[1])
        return f"set to {size[0]}x{size[1]}, as its file is"

    def _compare(self, n: int) -> str:
        """Of images that give one file two sizes, those stay that are right; without the file, the first."""
        name = self.entries[n]["file_name"]
        size = _size(self.folder, name)
        if size is None:
            return f"image {self.entries[n]['id']} {self._drop(n)}"
        wrong = [
            m
            for m, entry in enumerate(self.entries)
            if isinstance(entry, dict)
            and entry.get("file_name") == name
            and "corner" not in entry
            and (entry.get("width"), entry.get("height")) != size
        ]
        self._drop(*wrong)
        listed = " and ".join(str(self.entries[m].get("id")) for m in wrong)
        return f"image {listed} dropped, for the file is {size[0]}x{size[1]}"


def _find(document: dict[str, Any], folder: Path | None) -> list[Fault]:
    faults: list[Fault] = []
    contents = examine(document, faults.append)
    if folder is not None:
        examine_files(contents, folder, faults.append)
        examine_pictures(contents, folder, faults.append)
    examine_boxes(contents, faults.append)
    return faults


def _complete(document: dict[str, Any]) -> Iterator[str]:
    """Clip boxes, and give every annotation the `area` and `iscrowd` that pycocotools cannot do without."""
    faults: list[Fault] = []
    contents = examine(document, faults.append)
    boxes = examine_boxes(contents, faults.append)
    assert not faults
    annotations = document["annotations"]
    for n in boxes.cut.nonzero()[0].tolist():
        x1, y1, x2, y2 = boxes.xyxy[n].tolist()
        entry = annotations[contents.rows.entry[n]]
        entry["bbox"] = [x1, y1, x2 - x1, y2 - y1]
        for key, most in (("area", (x2 - x1) * (y2 - y1)), ("size", ((x2 - x1) * (y2 - y1)) ** 0.5)):
            if _is_number(entry.get(key)):
                entry[key] = min(entry[key], most)
    if count := int(boxes.cut.sum()):
        yield f"boxes that reach outside their image: {count} clipped"
    without = [entry for entry in annotations if not _is_number(entry.get("area")) or entry["area"] < 0]
    for entry in without:
        entry["area"] = entry["bbox"][2] * entry["bbox"][3]
    if without:
        yield f"annotations without an area: {len(without)} given width * height"
    without = [entry for entry in annotations if "iscrowd" not in entry]
    for entry in without:
        entry["iscrowd"] = 0
    if without:
        yield f"annotations without iscrowd: {len(without)} given 0"
    if count := _clear(document):
        yield f"numbers that JSON does not have (NaN, Infinity): {count} replaced by null"


def _clear(value: Any) -> int:
    """Replace what is not finite, wherever it is; returns how many."""
    count = 0
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        if isinstance(inner, float) and not math.isfinite(inner):
            value[key] = None
            count += 1
        else:
            count += _clear(inner)
    return count


def _size(folder: Path | None, name: Any) -> tuple[int, int] | None:
    """Of an image file, if it can be read."""
    if folder is None or not isinstance(name, str):
        return None
    try:
        with open_scene(folder / name) as scene:
            return scene.width, scene.height
    except (ValueError, OSError):
        return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _equal(one: Any, other: Any) -> bool:
    """1 and 1.0 are the same id; True and "1" are others."""
    numbers = (int, float)
    return bool(one == other) and (type(one) is type(other) or (type(one) in numbers and type(other) in numbers))


def _is_true(value: Any) -> bool:
    """What somebody meant by a flag that is neither 0 nor 1."""
    if isinstance(value, str):
        return value.strip().lower() not in ("", "0", "0.0", "false", "no", "none", "null")
    return bool(value)
