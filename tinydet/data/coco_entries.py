"""Read the lists of a COCO file as checked columns, one field at a time.

Each rule that entries break becomes one `Fault`, which is passed to a `Report`. A report that raises stops at the first
fault, one that appends to a list collects them all. An entry that broke a rule is exempt from the rules that build on
it, so each mistake is reported once.

The dataset rules (`tinydet.data.coco_rules`) and the evaluators (`tinydet.evaluate.tables`) are written with these
columns and therefore report the same mistake in the same words.
"""

from __future__ import annotations

import json
import math
import numbers
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, repeat
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.shell import command_line
from tinydet._internal.suggestions import did_you_mean

Section = Literal["", "images", "categories", "annotations", "old_images", "results"]
# How `tinydet data check --fix` repairs an entry; see tinydet.data.coco_repair.
Repair = Literal[
    "",
    "drop",
    "renumber",
    "refer",
    "separate",
    "merge",
    "name",
    "rename",
    "flag",
    "measure",
    "resize",
    "compare",
    "box",
    "clear",
]

SECTIONS: tuple[Section, ...] = ("images", "categories", "annotations")  # the lists of a COCO file
LARGEST = 2**31  # pixels; an area of larger sides does not fit into 64 bits
FORMAT = 'expected COCO: {"images": [...], "annotations": [...], "categories": [...]}'
RESULT_FORMAT = 'expected COCO results: [{"image_id": 1, "category_id": 1, "bbox": [...], "score": 0.9}, ...]'
SINGULAR: Mapping[Section, str] = {
    "": "file",
    "images": "image",
    "categories": "category",
    "annotations": "annotation",
    "old_images": "image",
    "results": "detection",
}


@dataclass(frozen=True)
class Fault:
    """A broken rule and every entry that breaks it.

    Attributes:
        rule: name of the rule, the same for every file.
        section: the list that the entries belong to; empty for the file as a whole.
        entries: indices into that list, in the order of the report; empty if the list itself is at fault.
        describe: what is wrong with the entry at an index. If the list itself is at fault, any index will do.
        remedy: what the user can do.
        repair: how a program can repair it; empty if only a person can.
        key: the faulty field, for repairs that need it.
        values: what a repair writes into that field, by entry; entries without a value are dropped.
        tally: follows the description of the first entry if it stands for all; default: "(and N more like it)".
    """

    rule: str
    section: Section
    entries: tuple[int, ...]
    describe: Callable[[int], str]
    remedy: str
    repair: Repair = ""
    key: str = ""
    values: Mapping[int, Any] = field(default_factory=dict)
    tally: str = ""

    def first(self) -> str:
        """One line about the first entry, with the number of others."""
        more = f" (and {len(self.entries) - 1} more like it)" if len(self.entries) > 1 else ""
        return f"{self.describe(self.entries[0] if self.entries else 0)}{self.tally or more}; {self.remedy}"

    def lines(self) -> Iterator[str]:
        """One line per entry."""
        return (f"{self.describe(n)}; {self.remedy}" for n in self.entries or (0,))


Report = Callable[[Fault], None]


def raise_first(source: Path | str) -> Report:
    """Return a report that raises the first fault as ValueError, prefixed with `source`."""

    def refuse(fault: Fault) -> None:
        raise ValueError(f"{source}: {fault.first()}")

    return refuse


def check_categories(source: Path | str, wanted: Sequence[str], known: Sequence[str]) -> None:
    """Check that all selected categories are in the file `source`, and that at least one is selected.

    Raises:
        ValueError: an unknown name, or none; lists the known ones, and says how to select one with a comma.
    """
    unknown = [name for name in wanted if name not in known]
    if wanted and not unknown:
        return
    what = f"has no category {unknown[0]!r}" if unknown else "no category was selected"
    known = list(map(str, known))
    meant = did_you_mean(unknown[0], known) if unknown else ""
    names = ", ".join(repr(name) if "," in name else name for name in known)
    comma = next((name for name in known if "," in name), None)
    way = "" if comma is None else f"; {comma!r} contains a comma: {command_line('--category', comma)} selects it"
    raise ValueError(f"{source}: {what}; choose from {names}{way}{meant}")


def read_sections(document: Any, report: Report) -> dict[Section, list[Any]]:
    """Return the images, categories and annotations of a document; a missing list is reported and empty."""
    if not isinstance(document, Mapping):
        what = f"a JSON {json_kind(document)}, not an object"
        report(Fault("file that is not an object", "", (), lambda _: what, FORMAT))
        return {section: [] for section in SECTIONS}
    return {section: _read_section(document, section, report) for section in SECTIONS}


class Entries:
    """A list of a COCO file. Each method checks one field of all entries and returns it as a column.

    The methods that return columns add a mask (N,). It is false for entries that broke a rule, whose value is a
    placeholder: 0, an empty string or None.

    Attributes:
        entries: the objects; an empty one stands in for anything that is not an object.
        places: (N,) index of each entry in the list of the file.
        valid: (N,) true for objects.
        ids: set by `read_ids`; integers, or strings if it allows them.
        has_id: (N,) true for entries with a valid id; after `check_unique`, one that no earlier entry has.
    """

    def __init__(self, section: Section, entries: list[Any], report: Report) -> None:
        self.section: Section = section
        self.report = report
        self.entries: list[Mapping[str, Any]] = entries
        self.places: NDArray[np.intp] = np.arange(len(entries))
        self.valid = np.ones(len(entries), bool)
        self.ids: list[Any] = [0] * len(entries)
        self.has_id = np.zeros(len(entries), bool)
        if set(map(type, entries)) - {dict}:
            self.valid = np.array([isinstance(entry, Mapping) for entry in entries], bool)
            self.entries = [entry if ok else {} for entry, ok in zip(entries, self.valid.tolist(), strict=True)]
            remedy = RESULT_FORMAT if section == "results" else FORMAT
            rule = f"{SINGULAR[section]} that is not an object"
            self.check(rule, ~self.valid, lambda n: f"is a JSON {json_kind(entries[n])}, not an object", remedy)

    def __len__(self) -> int:
        return len(self.entries)

    def select(self, kept: NDArray[np.intp]) -> Entries:
        """Return the entries at the indices `kept`, in that order; messages keep their places in the file."""
        chosen = Entries.__new__(Entries)
        chosen.section, chosen.report = self.section, self.report
        indices = kept.tolist()
        chosen.entries = [self.entries[n] for n in indices]
        chosen.ids = [self.ids[n] for n in indices]
        chosen.places, chosen.valid, chosen.has_id = self.places[kept], self.valid[kept], self.has_id[kept]
        return chosen

    def check(
        self,
        rule: str,
        broken: NDArray[np.bool_] | Sequence[int],
        describe: Callable[[int], str],
        remedy: str,
        repair: Repair = "drop",
        key: str = "",
        subject: Callable[[int], str] | None = None,
    ) -> None:
        """Report a rule if any entry breaks it.

        Args:
            broken: (N,) mask, or indices in the order in which to report them.
            describe: what is wrong with the entry at an index, as a predicate: "has no 'id'".
            subject: names the entry at an index; default: by its id, otherwise by its place.
        """
        indices = np.flatnonzero(broken).tolist() if isinstance(broken, np.ndarray) else list(broken)
        if indices:
            name = subject or self.name
            index = dict(zip(self.places[indices].tolist(), indices, strict=True))

            def line(place: int) -> str:
                return f"{name(index[place])} {describe(index[place])}"

            self.report(Fault(rule, self.section, tuple(index), line, remedy, repair, key=key))

    def name(self, n: int) -> str:
        """Name an entry in a message."""
        if self.has_id[n]:
            return f"{SINGULAR[self.section]} {self.ids[n]}"
        return f"entry {self.places[n]}" + (f" of {self.section!r}" if self.section != "results" else "")

    def read_ids(self, *, strings: bool = False, required: bool = True) -> None:
        """Read the `id` of every entry.

        Args:
            strings: allow strings besides integers.
            required: report entries without an id.
        """
        if not required and any(entry.get("id") is None for entry in self.entries):
            present = np.flatnonzero([entry.get("id") is not None for entry in self.entries])
            some = self.select(present)
            some.read_ids(strings=strings)
            for n, id in zip(present.tolist(), some.ids, strict=True):
                self.ids[n] = id
            self.has_id[present] = some.has_id
            return
        self.ids, self.has_id = self.identifiers("id", "renumber", strings=strings)

    def check_unique(self) -> None:
        """Report ids that occur twice; only the first entry keeps the id."""
        held = np.flatnonzero(self.has_id).tolist()
        first: dict[Any, int] = {}
        repeated = [n for n in held if first.setdefault(self.ids[n], n) != n]
        self.check(
            f"{SINGULAR[self.section]} id used twice",
            repeated,
            lambda n: f"have the same id {self.ids[n]}",
            "give each its own id",
            "separate",
            subject=lambda n: f"entries {self.places[first[self.ids[n]]]} and {self.places[n]} of {self.section!r}",
        )
        self.has_id = self.has_id.copy()  # it may be `valid` itself
        self.has_id[repeated] = False

    @cached_property
    def keys(self) -> frozenset[str]:
        """The fields that any entry has."""
        return frozenset(chain.from_iterable(self.entries))

    def column(
        self, key: str, repair: Repair = "drop", missing: str = "add it or remove the entry"
    ) -> tuple[list[Any], NDArray[np.bool_]]:
        """Return the unchecked values of `key`. `missing` is the remedy for entries without it."""
        try:
            return [entry[key] for entry in self.entries], self.valid
        except KeyError:
            present = np.array([key in entry for entry in self.entries], bool)
            rule = f"{SINGULAR[self.section]} without {key}"
            absent = self.valid & ~present
            self.check(rule, absent, lambda n: f"has no {key!r} ({_keys(self.entries[n])})", missing, repair, key)
            return [entry.get(key) for entry in self.entries], present

    def identifiers(
        self, key: str, repair: Repair = "drop", *, strings: bool = False
    ) -> tuple[list[Any], NDArray[np.bool_]]:
        """Return the ids under `key`: integers, and strings if allowed.

        A float without a fraction is an integer: pandas writes 1.0 if a column once had a gap.
        """
        values, present = self.column(key, repair)
        if present.all() and set(map(type, values)) <= {int} and _fit_int64(values):
            return values, present
        good = np.array([is_integer(value) or (strings and type(value) is str) for value in values], bool) & present
        rule = f"{SINGULAR[self.section]} whose {key} is not a whole number"
        remedy = "it must be a whole number" + " or a string" * strings

        def describe(n: int) -> str:
            return f"has the {key} {short(values[n])}" + ", which has more than 64 bits" * (type(values[n]) is int)

        self.check(rule, present & ~good, describe, remedy, repair, key)
        return [
            (value if type(value) is str else int(value)) if ok else 0
            for value, ok in zip(values, good.tolist(), strict=True)
        ], good

    def integers(self, key: str, repair: Repair = "drop") -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return (N,) whole numbers."""
        values, good = self.identifiers(key, repair)
        return np.array(values, np.int64), good

    def references(
        self, key: str, known: Sequence[Any], *, strings: bool = False
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return (N,) the index into `known` of the id under `key`, -1 if `known` does not have it.

        An unknown id is not a fault here.
        """
        values, good = self.identifiers(key, "refer", strings=strings)
        place = {id: n for n, id in enumerate(known)}
        index = np.fromiter(map(place.get, values, repeat(-1)), np.int64, len(values))
        return np.where(good, index, -1), good

    def strings(self, key: str, remedy: str, repair: Repair = "drop") -> tuple[list[str], NDArray[np.bool_]]:
        """Return the strings under `key`, not empty, without control characters and unpaired surrogates."""
        values, present = self.column(key, repair)
        good = np.array([_is_text(value) for value in values], bool) & present
        rule = f"{SINGULAR[self.section]} whose {key} is not a string"
        self.check(rule, present & ~good, lambda n: f"has the {key} {short(values[n])}", remedy, repair, key)
        return [value if ok else "" for value, ok in zip(values, good.tolist(), strict=True)], good

    def flags(self, key: str) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return (N,) flags: 0, 1, true or false, also written as 0.0 or 1.0; absent or null means false."""
        values = [entry.get(key) for entry in self.entries]
        if not set(map(type, values)) - {int, bool, float, type(None)} and not set(values) - {0, 1, None}:
            return np.array(values, bool), np.ones(len(values), bool)
        good = np.array([_is_flag(value) for value in values], bool)
        rule = f"{SINGULAR[self.section]} whose {key} is not a flag"
        self.check(rule, ~good, lambda n: f"has {key} {short(values[n])}", "it must be 0 or 1", "flag", key)
        return np.array([ok and bool(value) for value, ok in zip(values, good.tolist(), strict=True)], bool), good

    def with_value(self, key: str) -> NDArray[np.intp]:
        """Return the indices of the entries whose `key` is neither absent nor null."""
        return np.array([n for n, entry in enumerate(self.entries) if entry.get(key) is not None], np.intp)

    def optional_numbers(self, key: str, default: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (N,) finite numbers; `default` where one is absent, null or broke the rule."""
        some = self.with_value(key)
        values, good = (self if len(some) == len(self) else self.select(some)).numbers(key)
        column = default.copy()
        column[some[good]] = values[good]
        return column

    def numbers(self, key: str, missing: str = "add it") -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return (N,) finite numbers. `missing` is the remedy for entries without one."""
        values, present = self.column(key, missing=missing)
        if present.all() and (set(map(type, values)) <= {int, float} or all(map(_is_number, values))):
            column = _to_floats(values)
            if np.isfinite(column).all():
                return column, present
        good = np.array([_is_number(value) and math.isfinite(_to_float(value)) for value in values], bool) & present
        rule = f"{SINGULAR[self.section]} whose {key} is not a finite number"
        remedy = "it must be a finite number"
        self.check(rule, present & ~good, lambda n: f"has the {key} {short(values[n])}", remedy, "clear", key)
        return np.array([_to_float(v) if ok else 0.0 for v, ok in zip(values, good.tolist(), strict=True)]), good

    def boxes(self, key: str = "bbox", repair: Repair = "box") -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return (N, 4) x, y, width, height as written: four finite numbers, of any sign."""
        form = f"a {key} is [x, y, width, height] in pixels"
        values, present = self.column(key, repair)

        def describe(n: int) -> str:
            return f"has the {key} {short(values[n])}"

        good, boxes = present, values
        if (
            not present.all()
            or set(map(type, values)) - {list}
            or set(map(len, values)) - {4}
            or set(map(type, chain.from_iterable(values))) - {int, float}
        ):
            good = np.array([_is_four_numbers(box) for box in values], bool) & present
            rule = f"{SINGULAR[self.section]} whose {key} is not four numbers"
            self.check(rule, present & ~good, describe, f"{form}, four numbers", repair, key)
            boxes = [box if ok else [0, 0, 0, 0] for box, ok in zip(values, good.tolist(), strict=True)]
        xywh = _to_floats(boxes).reshape(-1, 4)
        finite = np.asarray(np.isfinite(xywh).all(axis=1), bool)
        within = np.asarray((np.abs(xywh) <= LARGEST).all(axis=1), bool)
        self.check(
            f"{SINGULAR[self.section]} whose {key} is not finite",
            good & ~within,
            lambda n: f"{describe(n)}, which is {'beyond any image' if finite[n] else 'not finite'}",
            f"{form}; correct or remove it",
            repair,
            key,
        )
        good = good & within
        return np.where(good[:, None], xywh, 0.0), good

    def points(self, key: str, form: str, *, nested: bool) -> None:
        """Check that `key` is absent, null or a list of finite numbers.

        Args:
            form: what it must be, for messages.
            nested: lists of an even number of coordinates in a list, or an object, are allowed too (`segmentation`).
        """
        some = self.with_value(key)
        values = [self.entries[n][key] for n in some.tolist()]
        if _are_points(values, nested):
            return
        broken = some[[not _are_points([value], nested) for value in values]].tolist()
        rule = f"{SINGULAR[self.section]} whose {key} is malformed"
        self.check(
            rule, broken, lambda n: f"has the {key} {short(self.entries[n][key])}", f"it must be {form}", "clear", key
        )


def short(value: Any) -> str:
    """Return `value` as JSON, cut to a length that fits in a message."""
    try:
        text = json.dumps(value, default=str, skipkeys=True)
    except (RecursionError, ValueError):  # ValueError: an integer of more than 4300 digits
        return f"a {json_kind(value)} too large to show"
    return text if len(text) <= 60 else f"{text[:57]}..."


def listed(names: Sequence[str], limit: int = 8) -> str:
    """Return names separated by commas, at most `limit` of them."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def json_kind(value: Any) -> str:
    """Return the name of a value's JSON type."""
    kinds = {type(None): "null", bool: "boolean", str: "string", list: "list", dict: "object"}
    return kinds.get(type(value), "number")


def _read_section(document: Mapping[str, Any], section: Section, report: Report) -> list[Any]:
    if section not in document:
        what = f"has no {section!r} ({_keys(document)})"
        report(Fault(f"file without {section}", "", (), lambda _: what, FORMAT))
        return []
    entries = document[section]
    if not isinstance(entries, list):
        what = f"{section!r} is a JSON {json_kind(entries)}, not a list"
        report(Fault(f"{section} that are not a list", "", (), lambda _: what, FORMAT))
        return []
    if not entries and section == "images":
        remedy = "list every image, also those without annotations"
        report(Fault("file without images", "", (), lambda _: "'images' is empty", remedy))
    if not entries and section == "categories":
        remedy = 'list the classes, as in {"id": 1, "name": "person"}'
        report(Fault("file without categories", "", (), lambda _: "'categories' is empty", remedy))
    return entries


def _keys(entry: Mapping[str, Any]) -> str:
    return f"it has {', '.join(map(repr, list(entry)[:8]))}" if entry else "it is empty"


def is_integer(value: Any) -> bool:
    # Not bool, which is an int in Python; within int64, because arrays hold it.
    if type(value) is int:
        return -(2**63) <= value < 2**63
    whole = isinstance(value, numbers.Integral | float) and not isinstance(value, bool) and float(value).is_integer()
    return whole and -(2**63) <= int(value) < 2**63


def _fit_int64(values: list[int]) -> bool:
    return not values or (min(values) >= -(2**63) and max(values) < 2**63)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)  # scalars of numpy are numbers too


def _is_flag(value: Any) -> bool:
    return value is None or (isinstance(value, numbers.Real | np.bool_) and value in (0, 1))


def _is_text(value: Any) -> bool:
    if not isinstance(value, str) or not value:
        return False
    return value.isprintable() or not any(unicodedata.category(character) in ("Cc", "Cs") for character in value)


def _are_points(values: list[Any], nested: bool) -> bool:
    """Return whether all values are lists of finite numbers; see `Entries.points`."""
    if nested:
        if not all(_is_mask(value) for value in values if isinstance(value, Mapping)):
            return False
        values = [value for value in values if not isinstance(value, Mapping)]
    if set(map(type, values)) - {list}:
        return False
    lists = [part for value in values for part in polygon_lists(value)] if nested else values
    if set(map(type, lists)) - {list} or (nested and any(len(part) % 2 for part in lists)):
        return False
    coordinates = list(chain.from_iterable(lists))
    return not set(map(type, coordinates)) - {int, float} and bool(np.isfinite(_to_floats(coordinates)).all())


def _is_mask(shape: Mapping[str, Any]) -> bool:
    """Return whether a segmentation is a run-length mask: its size, and runs as text or as a list of numbers."""
    size, counts = shape.get("size"), shape.get("counts")
    if not isinstance(size, list) or len(size) != 2 or not all(is_integer(side) and side > 0 for side in size):
        return False
    return isinstance(counts, str) or (
        isinstance(counts, list) and not set(map(type, counts)) - {int} and _fit_int64(counts)
    )


def polygon_lists(shape: list[Any]) -> list[Any]:
    """Return the polygons of a segmentation; a flat list of coordinates is one polygon."""
    return shape if not shape or isinstance(shape[0], list) else [shape]


def _is_four_numbers(box: Any) -> bool:
    return isinstance(box, Sequence | np.ndarray) and len(box) == 4 and all(map(_is_number, box))


def _to_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer of more than 308 digits
        return math.inf


def _to_floats(values: list[Any]) -> NDArray[np.float64]:
    try:
        return np.array(values, np.float64)
    except OverflowError:
        return np.asarray(np.vectorize(_to_float, otypes=[np.float64])(np.array(values, object)))
