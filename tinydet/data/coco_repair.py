"""Repair the faults that `tinydet.data.coco_rules` finds, if that needs no guess: drop, renumber or merge entries.

Anything ambiguous, such as two different images with one id, is dropped together with all that refers to it: a box on
the wrong image is worse than no box.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinydet.data.coco_entries import SECTIONS, Fault, Section, short
from tinydet.data.coco_rules import examine, examine_boxes, examine_objects
from tinydet.data.image_checks import examine_files, examine_pixels
from tinydet.runtime.scenes import open_scene

Entry = dict[str, Any]
REFERENCES = {"images": "image_id", "categories": "category_id"}  # the fields of an annotation that hold their ids


def repair_document(
    document: dict[str, Any], source: Path, folder: Path | None = None, found: list[Fault] | None = None
) -> list[str]:
    """Change `document` until it breaks no rule, then clip its boxes and add the fields that pycocotools needs.

    Args:
        source: its file, for messages.
        folder: folder of the image files; None skips the rules about them.
        found: the faults, if they are already known; with `folder`, including those of the image files.

    Returns:
        One line per repair.

    Raises:
        ValueError: a fault that only a person can repair; the first one.
    """
    faults = _find_faults(document, folder) if found is None else found
    done: list[str] = []
    while faults:
        for fault in faults:
            if not fault.repair:
                raise ValueError(f"{source} cannot be repaired by a program: {fault.first()}")
        # One list per round, images first: the next round drops what referred to a dropped image.
        section = next(section for section in SECTIONS if any(fault.section == section for fault in faults))
        done += _Round(document, section, folder).repair([fault for fault in faults if fault.section == section])
        faults = _find_faults(document, None)  # faults of the image files were all in the first round
    faults = []
    examine_objects(examine(document, faults.append), faults.append)
    if faults:
        raise ValueError(f"{source} cannot be repaired by a program: {faults[0].first()}")
    return done + list(_complete(document))


class _Round:
    """Repairs of one list. Entries are dropped at the end, so that indices stay valid until then."""

    def __init__(self, document: dict[str, Any], section: Section, folder: Path | None) -> None:
        self.entries: list[Any] = document[section]
        self.annotations: list[Any] = document["annotations"]
        self.document, self.section, self.folder = document, section, folder
        self.dropped: set[int] = set()
        numbers = [entry["id"] for entry in self.entries if isinstance(entry, dict) and _is_number(entry.get("id"))]
        self.unused_id = math.floor(max([0, *(n for n in numbers if abs(n) < 2**53)])) + 1

    def repair(self, faults: list[Fault]) -> list[str]:
        done = []
        for fault in faults:
            for n in fault.entries:
                if n not in self.dropped:
                    what = fault.describe(n)  # before the repair, which may change the entry
                    done.append(f"{what}: {self._repair_entry(fault, n)}")
        self.document[self.section] = [entry for n, entry in enumerate(self.entries) if n not in self.dropped]
        return done

    def _repair_entry(self, fault: Fault, n: int) -> str:
        match fault.repair:
            case "renumber":
                return self._renumber(n)
            case "separate":
                return self._separate(n)
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

    def _drop(self, *indices: int) -> str:
        self.dropped.update(indices)
        return "dropped"

    def _set(self, n: int, key: str, value: Any) -> str:
        self.entries[n][key] = value
        return f"{key} set to {short(value)}"

    def _set_unused_id(self, n: int) -> str:
        self.unused_id += 1
        return self._set(n, "id", self.unused_id - 1)

    def _renumber(self, n: int) -> str:
        """Give an entry a new id, also in the annotations that refer to it; drop it if the old id is ambiguous."""
        old = self.entries[n].get("id")
        if self.section == "annotations":
            return self._set_unused_id(n)
        if not isinstance(old, str | int | float) or isinstance(old, bool) or old != old:
            return self._drop(n)
        holders = self._with_id(old)
        if len(holders) > 1:
            return f"{self._drop(*holders)}: {len(holders)} entries have this id"
        key = REFERENCES[self.section]
        for annotation in self.annotations:
            if isinstance(annotation, dict) and _equal(annotation.get(key), old):
                annotation[key] = self.unused_id
        return self._set_unused_id(n)

    def _separate(self, n: int) -> str:
        """Resolve an id used twice: drop repetitions of the first entry, renumber annotations, drop anything else."""
        holders = self._with_id(self.entries[n]["id"])
        if self.section == "annotations":
            if any(self.entries[n] == self.entries[m] for m in holders if m < n):
                return f"{self._drop(n)}, the same as the first"
            return self._set_unused_id(n)
        keys = ("file_name", "width", "height", "corner") if self.section == "images" else ("name",)
        if all(self.entries[m].get(key) == self.entries[n].get(key) for m in holders for key in keys):
            return f"{self._drop(n)}, the same as the first"
        return f"{self._drop(*holders)}, all {len(holders)}: annotations could mean either"

    def _merge(self, n: int) -> str:
        """Merge a category into the first one with its name."""
        name, old = self.entries[n]["name"], self.entries[n]["id"]
        first = next(entry for entry in self.entries if isinstance(entry, dict) and entry.get("name") == name)
        for annotation in self.annotations:
            if isinstance(annotation, dict) and _equal(annotation.get("category_id"), old):
                annotation["category_id"] = first["id"]
        self._drop(n)
        return f"category {old} merged into {first['id']}"

    def _measure(self, n: int) -> str:
        """Set width and height to those of the file, or drop the image if the file cannot be read."""
        size = _size(self.folder, self.entries[n].get("file_name"))
        if size is None:
            return self._drop(n)
        self.entries[n].update(width=size[0], height=size[1])
        return f"set to {size[0]}x{size[1]}, as its file is"

    def _compare(self, n: int) -> str:
        """Of images that give one file two sizes, drop those of another size than the file; without it, drop `n`."""
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
        return f"image {listed} dropped: the file is {size[0]}x{size[1]}"

    def _with_id(self, id: Any) -> list[int]:
        return [n for n, entry in enumerate(self.entries) if isinstance(entry, dict) and _equal(entry.get("id"), id)]


def _find_faults(document: dict[str, Any], folder: Path | None) -> list[Fault]:
    faults: list[Fault] = []
    contents = examine(document, faults.append)
    if folder is not None:
        examine_files(contents, folder, faults.append)
        examine_pixels(contents, folder, faults.append)
    examine_boxes(contents, faults.append)
    return faults


def _complete(document: dict[str, Any]) -> Iterator[str]:
    """Clip boxes, and add the `area` and `iscrowd` that pycocotools needs to every annotation without them."""
    faults: list[Fault] = []
    contents = examine(document, faults.append)
    boxes = examine_boxes(contents, faults.append)
    assert not faults
    annotations = document["annotations"]
    for n in boxes.clipped.nonzero()[0].tolist():
        x1, y1, x2, y2 = boxes.xyxy[n].tolist()
        entry = annotations[contents.rows.entry[n]]
        entry["bbox"] = [x1, y1, x2 - x1, y2 - y1]
        for key, largest in (("area", (x2 - x1) * (y2 - y1)), ("size", ((x2 - x1) * (y2 - y1)) ** 0.5)):
            if _is_number(entry.get(key)):
                entry[key] = min(entry[key], largest)
    if count := int(boxes.clipped.sum()):
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
    if count := _replace_non_finite(document):
        yield f"numbers that JSON does not have (NaN, Infinity): {count} replaced by null"


def _replace_non_finite(value: Any) -> int:
    """Replace NaN and infinities by None at any depth; return how many."""
    count = 0
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        if isinstance(inner, float) and not math.isfinite(inner):
            value[key] = None
            count += 1
        else:
            count += _replace_non_finite(inner)
    return count


def _size(folder: Path | None, name: Any) -> tuple[int, int] | None:
    """Return the width and height of an image file, None if it cannot be read."""
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
    """Compare ids: 1 and 1.0 are equal; True and "1" are different from both."""
    numbers = (int, float)
    return bool(one == other) and (type(one) is type(other) or (type(one) in numbers and type(other) in numbers))


def _is_true(value: Any) -> bool:
    """Interpret a flag that is neither 0 nor 1."""
    if isinstance(value, str):
        return value.strip().lower() not in ("", "0", "0.0", "false", "no", "none", "null")
    return bool(value)
