"""Repair the faults that `tinydet.data.coco_rules` finds, if that needs no guess.

A value that follows from others is derived, and a name that is only spelled differently is matched with its file.
Entries are dropped only if nothing follows. Anything ambiguous, such as two different images with one id, is dropped
together with all that refers to it: a box on the wrong image is worse than no box.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from tinydet.data.coco_derive import derive_box, number, polygons_of, whole_number
from tinydet.data.coco_entries import LARGEST, SECTIONS, Fault, Section, is_integer, short
from tinydet.data.coco_file import replace_non_finite
from tinydet.data.coco_rules import examine, examine_boxes, examine_objects, normalize
from tinydet.data.image_checks import examine_files, examine_pixels, match_names
from tinydet.data.image_paths import image_file, image_name
from tinydet.runtime.scenes import open_scene

Entry = dict[str, Any]
Key = tuple[str, Any]  # see `_key`
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
        ValueError: a fault that only a person can repair, the first one; or nothing would be left in a list.
        ModuleNotFoundError: see `derive_box`.
    """
    faults = _find_faults(document, source, folder) if found is None else found
    filled = [section for section in SECTIONS if document.get(section)]
    done: list[str] = []
    try:
        while faults:
            for fault in faults:
                if not fault.repair:
                    raise _UnrepairableError(fault.first())
            # One list per round, images first: the next round drops what referred to a dropped image.
            section = next(section for section in SECTIONS if any(fault.section == section for fault in faults))
            work = _Round(document, section, folder)
            done += work.repair([fault for fault in faults if fault.section == section])
            if section in filled and not document[section]:
                raise _UnrepairableError(f"nothing would be left of {section!r} ({work.reason})")
            faults = _find_faults(document, source, None)  # faults of the image files were all in the first round
        faults = []
        examine_objects(examine(document, faults.append), faults.append)
        if faults:
            raise _UnrepairableError(faults[0].first())
    except _UnrepairableError as error:
        raise ValueError(f"{source} cannot be repaired by a program: {error}") from None
    return done + list(_complete(document))


class _UnrepairableError(Exception):
    """The reason why a file cannot be repaired, without the file name."""


class _Round:
    """Repairs of one list. Entries are dropped at the end, so that indices stay valid until then.

    Attributes:
        reason: the fault of the first dropped entry.
    """

    def __init__(self, document: dict[str, Any], section: Section, folder: Path | None) -> None:
        self.entries: list[Any] = document[section]
        self.annotations: list[Any] = document["annotations"]
        self.document, self.section, self.folder = document, section, folder
        self.dropped: set[int] = set()
        self.reason = ""
        self.renumbered: dict[Key | None, int] = {}  # new ids by old ones
        self._contents: dict[int, set[str]] = {}
        numbers = [entry["id"] for entry in self.entries if isinstance(entry, dict) and _is_number(entry.get("id"))]
        self.unused_id = math.floor(max([0, *(n for n in numbers if abs(n) < 2**53)])) + 1

    def repair(self, faults: list[Fault]) -> list[str]:
        done = []
        for fault in faults:
            for n in fault.entries:
                if n not in self.dropped:
                    what = fault.describe(n)  # before the repair, which may change the entry
                    done.append(f"{what}: {self._repair_entry(fault, n)}")
                    if self.dropped and not self.reason:
                        self.reason = what
        self._follow_renumbered()
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
            case "refer":
                return self._refer(n, fault.key)
            case "box":
                return self._derive_box(n)
            case "clear":
                return self._clear(n, fault.key)
            case "rename":
                return self._set(n, fault.key, fault.values[n]) if n in fault.values else self._rename(n)
            case "name":
                return self._name(n)
            case "flag":
                return self._set(n, fault.key, int(_is_true(self.entries[n][fault.key])))
            case "measure":
                return self._measure(n, fault)
            case "resize":
                return self._resize(n, fault)
            case "compare":
                return self._compare(n, fault)
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
        old = _key(self.entries[n].get("id"))
        if self.section == "annotations":
            return self._set_unused_id(n)
        if old is None:
            return self._drop(n)
        holders = self._holders[old]
        if len(holders) > 1:
            return f"{self._drop(*holders)}: {len(holders)} entries have this id"
        new = whole_number(old[1])
        if new is None or _key(new) in self._holders:
            new = self.unused_id
            self.unused_id += 1
        self._holders[_key(new)] = holders
        self.renumbered[old] = new
        return self._set(n, "id", new)

    def _refer(self, n: int, key: str) -> str:
        """Replace a reference given as text by the id it spells or the id of that name, or drop the annotation."""
        value = self.entries[n].get(key)
        if isinstance(value, str):
            ids, names = self._targets[key]
            number = whole_number(value)
            found = [number] if number in ids else names.get(value, [])
            if len(found) == 1:
                return self._set(n, key, found[0])
        return self._drop(n)

    def _derive_box(self, n: int) -> str:
        """Derive the box from other fields, or drop the annotation."""
        entry = self.entries[n]
        size = self._sizes.get(image) if is_integer(image := entry.get("image_id")) else None
        derived = None if size is None else derive_box(entry, size)
        if derived is None or derived[0] == entry.get("bbox"):
            return self._drop(n)
        return f"{self._set(n, 'bbox', derived[0])}, {derived[1]}"

    def _rename(self, n: int) -> str:
        """Remove control characters and blanks around the name of an image, or drop it if that names no file."""
        text = _plain_text(self.entries[n].get("file_name"))
        if not text:
            return self._drop(n)
        name = image_name(text)
        taken = {image_name(other) for other in self._values("file_name") if isinstance(other, str)}
        if self.folder is not None:
            files, unique = match_names([name], self.folder, taken)
            name = files[name][0] if name in unique else ""
        return self._drop(n) if not name or name in taken else self._set(n, "file_name", name)

    def _name(self, n: int) -> str:
        """Name a category by the number or the text without control characters that it has, or else by its id."""
        name = _plain_text(self.entries[n].get("name"))
        if not name or name in self._values("name"):
            name = f"category_{self.entries[n].get('id', n)}"
        return self._set(n, "name", name)

    def _values(self, key: str) -> list[Any]:
        """Return the values of a field, of all entries that have one."""
        return [entry[key] for entry in self.entries if isinstance(entry, dict) and key in entry]

    def _clear(self, n: int, key: str) -> str:
        """Replace a number or a polygon that is written in another form, or remove the field."""
        value = self.entries[n][key]
        if key == "segmentation" and (polygons := polygons_of(value)) is not None:
            return self._set(n, key, polygons)
        if isinstance(value, str) and (spelled := number(value)) is not None:
            return self._set(n, key, spelled)
        del self.entries[n][key]
        return f"{key} removed"

    @cached_property
    def _sizes(self) -> dict[int, tuple[int, int]]:
        """Width and height of the valid images by id."""
        contents = examine(self.document, lambda fault: None)
        valid = zip(contents.images, contents.valid_images.tolist(), strict=True)
        return {image.id: (image.width, image.height) for image, good in valid if good}

    def _separate(self, n: int) -> str:
        """Resolve an id used twice: drop repetitions of the first entry, renumber annotations, drop anything else."""
        holders = self._holders[_key(self.entries[n]["id"])]
        if self.section == "annotations":
            known = self._contents.setdefault(holders[0], {_text(self.entries[holders[0]])})
            text = _text(self.entries[n])
            if text in known:
                return f"{self._drop(n)}, the same as the first"
            known.add(text)
            return self._set_unused_id(n)
        keys = ("file_name", "width", "height", "corner") if self.section == "images" else ("name",)
        if all(self.entries[m].get(key) == self.entries[n].get(key) for m in holders for key in keys):
            return f"{self._drop(n)}, the same as the first"
        return f"{self._drop(*holders)}, all {len(holders)}: annotations could mean either"

    def _merge(self, n: int) -> str:
        """Merge a category into the first one with its name."""
        name, old = self.entries[n]["name"], self.entries[n]["id"]
        first = next(entry for entry in self.entries if isinstance(entry, dict) and entry.get("name") == name)
        self.renumbered[_key(old)] = first["id"]
        self._drop(n)
        return f"category {old} merged into {first['id']}"

    def _measure(self, n: int, fault: Fault) -> str:
        """Set width and height to those of the file, or drop the image if the file cannot be read."""
        entry = self.entries[n]
        size = _size(self.folder, entry.get("file_name"))
        if size is not None:
            entry.update(width=size[0], height=size[1])
            return f"set to {size[0]}x{size[1]}, as its file is"
        side = whole_number(entry.get(fault.key))
        if side is not None and 0 < side <= LARGEST:
            return self._set(n, fault.key, side)
        if self.folder is None:
            raise _UnrepairableError(f"{fault.first()}, or name the image folder with --images DIR")
        return self._drop(n)

    def _resize(self, n: int, fault: Fault) -> str:
        """Measure an image of another size than its file, or drop it if it has boxes, which may be of either size."""
        return self._drop(n) if self.entries[n].get("id") in self._annotated else self._measure(n, fault)

    def _compare(self, n: int, fault: Fault) -> str:
        """Where images record different sizes for one file, drop those that contradict the file."""
        if self.folder is None:
            raise _UnrepairableError(f"{fault.first()}, or name the image folder with --images DIR")
        name = self.entries[n]["file_name"]
        size = _size(self.folder, name)
        if size is None:
            return f"image {self.entries[n]['id']} {self._drop(n)}"
        wrong = [
            m
            for m, entry in enumerate(self.entries)
            if isinstance(entry, dict)
            and _is_named(entry, name)
            and "corner" not in entry
            and (entry.get("width"), entry.get("height")) != size
        ]
        self._drop(*wrong)
        listed = " and ".join(str(self.entries[m].get("id")) for m in wrong)
        return f"image {listed} dropped: the file is {size[0]}x{size[1]}"

    @cached_property
    def _holders(self) -> dict[Key | None, list[int]]:
        """Indices of the entries by id."""
        found: dict[Key | None, list[int]] = defaultdict(list)
        for n, entry in enumerate(self.entries):
            if isinstance(entry, dict) and (key := _key(entry.get("id"))) is not None:
                found[key].append(n)
        return dict(found)

    @cached_property
    def _annotated(self) -> set[Any]:
        """Ids that annotations refer to as their image."""
        found = (entry.get("image_id") for entry in self.annotations if isinstance(entry, dict))
        return {id for id in found if isinstance(id, int | float | str)}

    @cached_property
    def _targets(self) -> dict[str, tuple[set[int], dict[str, list[int]]]]:
        """Targets of references in annotations, by field: valid ids, and ids by name."""
        contents = examine(self.document, lambda fault: None)
        names: dict[str, dict[str, list[int]]] = {"image_id": defaultdict(list), "category_id": defaultdict(list)}
        for image in contents.images:
            names["image_id"][image.file_name].append(image.id)
        for id, name in contents.categories:
            names["category_id"][name].append(id)
        return {key: ({id for ids in by_name.values() for id in ids}, by_name) for key, by_name in names.items()}

    def _follow_renumbered(self) -> None:
        """Update references in annotations to renumbered ids."""
        key = REFERENCES.get(self.section)
        for annotation in self.annotations if self.renumbered and key else ():
            if not isinstance(annotation, dict):
                continue
            for _ in self.renumbered:  # a category may be renumbered and then merged
                old = _key(annotation.get(key))
                if old not in self.renumbered:
                    break
                annotation[key] = self.renumbered[old]


def _plain_text(value: Any) -> str:
    """Return text without control characters, and numbers as text; empty if nothing is left."""
    if isinstance(value, str):
        return " ".join("".join(part for part in value if part.isprintable() or part.isspace()).split())
    return str(value) if type(value) is int and is_integer(value) else ""


def _find_faults(document: dict[str, Any], source: Path, folder: Path | None) -> list[Fault]:
    faults: list[Fault] = []
    contents = examine(document, faults.append)
    if folder is not None:
        examine_files(contents, source, folder, faults.append)
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
    if count := sum(image_name(entry["file_name"]) != entry["file_name"] for entry in document["images"]):
        yield f"file names with backslashes or needless parts: {count} written with slashes, relative to the folder"
    if count := normalize(document):
        yield f"whole numbers written as 1.0, and flags of null: {count} written as integers"
    if count := replace_non_finite(document):
        yield f"numbers that JSON does not have (NaN, Infinity): {count} replaced by null"


def _is_named(image: Entry, name: str) -> bool:
    other = image.get("file_name")
    return isinstance(other, str) and image_name(other) == image_name(name)


def _size(folder: Path | None, name: Any) -> tuple[int, int] | None:
    """Return the width and height of an image file, None if it cannot be read."""
    if folder is None or not isinstance(name, str):
        return None
    try:
        with open_scene(image_file(folder, name)) as scene:
            return scene.width, scene.height
    except (ValueError, OSError):
        return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63


def _key(id: Any) -> Key | None:
    """Return a key for comparing ids: 1 equals 1.0, but not True or "1". Return None if it is not an id."""
    if isinstance(id, str):
        return "text", id
    if isinstance(id, int | float) and not isinstance(id, bool) and id == id:
        return "number", id
    return None


def _text(entry: Any) -> str:
    return json.dumps(entry, sort_keys=True)


def _is_true(value: Any) -> bool:
    """Interpret a flag that is neither 0 nor 1."""
    if isinstance(value, str):
        return value.strip().lower() not in ("", "0", "0.0", "false", "no", "none", "null")
    return bool(value)
