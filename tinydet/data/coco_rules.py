"""The rules of a COCO annotation file, once: `load_dataset` raises the first fault, `tinydet data check` lists all.

`examine` and the other functions walk over a document and tell each broken rule to a `Report`: a function that raises
ends the walk, one that collects hears everything. What keeps the rules comes back as columns. An entry that broke one
rule is not asked about what depends on it, so that one mistake is told once.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinydet.runtime.scenes import open_scene

Part = Literal["", "images", "categories", "annotations"]
# How `tinydet data check --fix` mends entries; see tinydet.data.coco_repair.
Repair = Literal["", "drop", "renumber", "tell apart", "merge", "name", "flag", "measure", "compare"]

LISTS: tuple[Part, ...] = ("images", "categories", "annotations")
NO_AREA = "object without area"
OUTSIDE = "object outside its image"
NO_OBJECT = "no object"

_FORM = 'expected COCO: {"images": [...], "annotations": [...], "categories": [...]}'
_ONE = {"images": "image", "categories": "category", "annotations": "annotation", "": "file"}
_ROUNDING = 1e-3  # pixels; x + width of a box that ends with its image is a hair more where they are float32
_STRIP = 1 << 22  # pixels that are read together of a picture too large to hold


@dataclass(frozen=True)
class Fault:
    """A broken rule, and every entry that breaks it.

    Attributes:
        rule: its name, the same for every file.
        part: the list that it is about; empty for the file as a whole.
        entries: places in that list, as they are to be told; empty where the list itself is at fault.
        describe: what is wrong with the entry at a place; of a list, with any place.
        remedy: what to do.
        repair: how a program can mend it; empty where only a person can.
        key: the field that is at fault, where a repair needs to know.
        tally: follows the description of the first where it stands for all; by default how many are like it.
    """

    rule: str
    part: Part
    entries: tuple[int, ...]
    describe: Callable[[int], str]
    remedy: str
    repair: Repair = ""
    key: str = ""
    tally: str = ""

    def first(self) -> str:
        """One line about the first entry that also counts the others."""
        more = f" (and {len(self.entries) - 1} more like it)" if len(self.entries) > 1 else ""
        return f"{self.describe(self.entries[0] if self.entries else 0)}{self.tally or more}; {self.remedy}"

    def lines(self) -> Iterator[str]:
        """One line for each entry."""
        return (f"{self.describe(n)}; {self.remedy}" for n in self.entries or (0,))


Report = Callable[[Fault], None]


@dataclass(frozen=True)
class ImageRecord:
    """One entry of `images`; sizes in pixels.

    Attributes:
        corner: x1, y1, x2, y2 of a part of a picture (TinyPerson). `file_name` names the whole picture, or, where it
            was cut, a picture of the part's size.
    """

    id: int
    file_name: str
    width: int
    height: int
    corner: tuple[int, int, int, int] | None = None


class Rows(NamedTuple):
    """Annotations as columns, in the order of the file; `image` and `category` are indices, `xywh` as written."""

    entry: NDArray[np.int64]
    id: NDArray[np.int64]
    image: NDArray[np.int64]
    category: NDArray[np.int64]
    xywh: NDArray[np.float64]
    ignore: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Contents:
    """What of a document keeps the rules.

    Attributes:
        images: ascending id.
        image_entry: (I,) their places in the document's list.
        whole_images: (I,) false for those that break a rule nevertheless; their names or sizes are empty or 0.
        categories: (id, name), ascending id; an empty name breaks a rule.
        category_entry: (C,) their places.
        rows: the annotations.
        complete: every annotation of the file is in `rows`.
    """

    images: tuple[ImageRecord, ...]
    image_entry: NDArray[np.int64]
    whole_images: NDArray[np.bool_]
    categories: tuple[tuple[int, str], ...]
    category_entry: NDArray[np.int64]
    rows: Rows
    complete: bool


class Boxes(NamedTuple):
    """The boxes of `Rows`, parallel to them: xyxy cut to the image, which have an area there, which were cut."""

    xyxy: NDArray[np.float64]
    inside: NDArray[np.bool_]
    cut: NDArray[np.bool_]


def read_document(source: Path) -> dict[str, Any]:
    """The JSON object of a `.json` or `.json.gz` file.

    Raises:
        ValueError: naming the file and what it is instead: absent, unreadable, empty, damaged, not JSON, no object.
    """
    again = "write or download it again"
    try:
        content = source.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{source}: no such annotation file; check the path") from None
    except OSError as error:
        raise ValueError(f"{source}: cannot be read ({error.strerror}); check the path and its permissions") from error
    try:
        if content.startswith(b"\x1f\x8b"):  # by content: a renamed file is no fault
            content = gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{source}: truncated or damaged gzip file ({error}); {again}") from error
    if not content.strip():
        raise ValueError(f"{source}: an empty file; expected COCO annotations: {again}")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source}: not JSON ({error}); {again}") from error
    if not isinstance(document, dict):
        raise ValueError(f"{source}: a JSON {_kind(document)}, not an object; {_FORM}")
    return document


def examine(document: dict[str, Any], report: Report) -> Contents:
    """Ask the rules of lists, ids, references, names, sizes, flags and numbers; what keeps them, as columns."""
    lists = {part: _entries(document, part, report) for part in LISTS}
    images = _Part("images", lists["images"], report)
    records, image_entry, whole_images = _images(images)
    categories = _Part("categories", lists["categories"], report)
    table, category_entry = _categories(categories)
    annotations = _Part("annotations", lists["annotations"], report)
    rows = _annotations(annotations, [record.id for record in records], [id for id, _ in table])
    complete = len(rows.id) == len(annotations.entries)
    return Contents(records, image_entry, whole_images, table, category_entry, rows, complete)


def examine_files(contents: Contents, folder: Path, report: Report) -> None:
    """Ask whether every image has its file, in one look at each name; no file is opened."""
    missing = [n for n, image in enumerate(contents.images) if image.file_name and not _is_file(folder, image)]
    place = dict(zip(contents.image_entry[missing].tolist(), missing, strict=True))
    if missing:

        def describe(entry: int) -> str:
            image = contents.images[place[entry]]
            return f"image {image.id}, {folder / image.file_name}, is missing"

        tally = f" ({len(missing)} of {len(contents.images)} images are)"
        remedy = "check the image folder or remove them from the file"
        report(Fault("image without a file", "images", tuple(place), describe, remedy, "drop", tally=tally))


def examine_pictures(
    contents: Contents, folder: Path, report: Report, progress: Callable[[int], object] | None = None
) -> None:
    """Ask whether every file that is there can be read to its last pixel and has the size that the image says.

    Args:
        progress: called with 1 after each file (`tqdm.update` fits).
    """
    of_file: dict[str, list[int]] = {}
    for n, image in enumerate(contents.images):
        if contents.whole_images[n] and _is_file(folder, image):
            of_file.setdefault(image.file_name, []).append(n)
    unreadable: dict[int, str] = {}
    misfitting: dict[int, str] = {}
    for name, places in of_file.items():
        try:
            size = _read_through(folder / name)
        except (ValueError, OSError) as error:
            unreadable.update((int(contents.image_entry[n]), f"image {contents.images[n].id}: {error}") for n in places)
        else:
            for n in places:
                if (what := misfit(contents.images[n], *size)) is not None:
                    picture = f"{folder / name} is {size[0]}x{size[1]} pixels"
                    misfitting[int(contents.image_entry[n])] = f"image {contents.images[n].id} {what}, but {picture}"
        if progress is not None:
            progress(1)
    for rule, found, remedy in (
        ("image with an unreadable file", unreadable, "or remove the image"),
        ("image of another size than its file", misfitting, "its boxes would be misplaced: correct the one in error"),
    ):
        if found:
            report(Fault(rule, "images", tuple(found), found.__getitem__, remedy, "drop"))


def examine_objects(contents: Contents, report: Report) -> None:
    """Ask whether annotations, where there are any, hold an object."""
    if contents.complete and len(contents.rows.id) and contents.rows.ignore.all():
        what = "every annotation is marked ignore or iscrowd, so there is no object"
        report(Fault(NO_OBJECT, "", (), lambda _: what, "unmark some"))


def examine_boxes(contents: Contents, report: Report, asked: NDArray[np.bool_] | None = None) -> Boxes:
    """Ask whether objects have an area, and a part of it inside their image; ignore regions may do without.

    Args:
        asked: (C,) which categories to ask about; None for all.
    """
    rows, images = contents.rows, contents.images
    sizes = np.array([(image.width, image.height) for image in images], np.float64).reshape(-1, 2)[rows.image]
    low, high = rows.xywh[:, :2], rows.xywh[:, :2] + rows.xywh[:, 2:]
    boxes = np.concatenate([np.clip(low, 0, sizes), np.clip(high, 0, sizes)], axis=1)
    known = np.asarray(contents.whole_images, bool)[rows.image]  # of the others there is no size to compare with
    kept = ~rows.ignore if asked is None else ~rows.ignore & asked[rows.category]
    flat = (high <= low).any(axis=1)
    outside = (boxes[:, 2:] <= boxes[:, :2]).any(axis=1) & ~flat & known
    for rule, broken, what, remedy in (
        (NO_AREA, flat, "has no area", 'give it a width and a height, remove it or mark it "ignore": 1'),
        (
            OUTSIDE,
            outside,
            "lies wholly outside",
            "bbox is [x, y, width, height] in pixels of the image: correct it or remove it",
        ),
    ):
        place = {int(rows.entry[n]): n for n in np.flatnonzero(broken & kept).tolist()}
        if place:

            def describe(entry: int, place: dict[int, int] = place, what: str = what) -> str:
                n = place[entry]
                image = images[rows.image[n]]
                size = f" ({image.width}x{image.height})" if known[n] else ""
                bbox = short(rows.xywh[n].tolist())
                return f"annotation {rows.id[n]} of image {image.id}{size} has the bbox {bbox}, which {what}"

            report(Fault(rule, "annotations", tuple(place), describe, remedy, "drop"))
    inside = np.asarray((boxes[:, 2:] > boxes[:, :2]).all(axis=1), bool)
    cut = np.asarray(((low < -_ROUNDING) | (high > sizes + _ROUNDING)).any(axis=1), bool)
    return Boxes(boxes, inside, inside & cut)


def misfit(image: ImageRecord, width: int, height: int) -> str | None:
    """What an image says that its picture of `width` x `height` pixels does not bear out, if so: "is 640x512"."""
    if (width, height) == (image.width, image.height):
        return None
    if image.corner is not None:
        x1, y1, x2, y2 = image.corner
        return None if x2 <= width and y2 <= height else f"has the corner {[x1, y1, x2, y2]}"
    turned = " (it looks turned: check its EXIF orientation)" if (height, width) == (image.width, image.height) else ""
    return f"is {image.width}x{image.height}{turned}"


def short(value: Any) -> str:
    """`value` as JSON, cut to a length that leaves a message one line."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class _Part:
    """One list of a document while its rules are asked.

    Attributes:
        entries: the objects; an empty one in place of what is none.
        sound: (N,) which are objects.
        ids, has_id: (N,) their ids, and which have one that is theirs alone.
    """

    def __init__(self, name: Part, entries: list[Any], report: Report) -> None:
        self.name: Part = name
        self.report = report
        self.entries: list[dict[str, Any]] = entries
        self.sound = np.ones(len(entries), bool)
        self.has_id, self.ids = np.zeros(len(entries), bool), np.zeros(len(entries), np.int64)
        if set(map(type, entries)) - {dict}:
            self.sound = np.array([isinstance(entry, dict) for entry in entries], bool)
            self.entries = [entry if isinstance(entry, dict) else {} for entry in entries]
            rule = f"{_ONE[name]} that is no object"
            self.tell(rule, ~self.sound, lambda n: f"is a JSON {_kind(entries[n])}, not an object", _FORM)
        self.ids, self.has_id = self.whole("id", "renumber")
        self._tell_twice()

    def tell(
        self,
        rule: str,
        broken: NDArray[np.bool_] | Sequence[int],
        what: Callable[[int], str],
        remedy: str,
        repair: Repair = "drop",
        key: str = "",
        where: Callable[[int], str] | None = None,
    ) -> None:
        places = np.flatnonzero(broken).tolist() if isinstance(broken, np.ndarray) else list(broken)
        if places:
            named = where or self.named
            self.report(
                Fault(rule, self.name, tuple(places), lambda n: f"{named(n)} {what(n)}", remedy, repair, key=key)
            )

    def named(self, n: int) -> str:
        return f"{_ONE[self.name]} {self.ids[n]}" if self.has_id[n] else f"entry {n} of {self.name!r}"

    def column(self, key: str, repair: Repair = "drop") -> tuple[list[Any], NDArray[np.bool_]]:
        """The value of `key` in every entry (None where it is absent), and which have one."""
        try:
            return [entry[key] for entry in self.entries], self.sound
        except KeyError:
            present = np.array([key in entry for entry in self.entries], bool)
            rule = f"{_ONE[self.name]} without {key}"
            self.tell(
                rule, self.sound & ~present, lambda n: f"has no {key!r}", "add it or remove the entry", repair, key
            )
            return [entry.get(key) for entry in self.entries], present

    def whole(self, key: str, repair: Repair = "drop") -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """int64 (0 where the rule is broken), and which are whole numbers.

        Floats without a fraction are taken: pandas writes 1.0 where a column once had a gap.
        """
        values, present = self.column(key, repair)
        try:
            if present.all() and set(map(type, values)) <= {int}:
                return np.array(values, np.int64), present
        except OverflowError:
            pass
        good = np.array([_is_whole(value) for value in values], bool) & present
        rule, remedy = f"{_ONE[self.name]} whose {key} is no whole number", "it must be a whole number"
        self.tell(rule, present & ~good, lambda n: f"has the {key} {short(values[n])}", remedy, repair, key)
        return np.array([int(v) if ok else 0 for v, ok in zip(values, good.tolist(), strict=True)], np.int64), good

    def _tell_twice(self) -> None:
        """Of entries that share an id, only the first keeps it."""
        values, first = np.unique(self.ids[self.has_id], return_index=True)
        if len(values) == self.has_id.sum():
            return
        place = dict(zip(values.tolist(), np.flatnonzero(self.has_id)[first].tolist(), strict=True))
        alone = np.zeros(len(self.ids), bool)
        alone[list(place.values())] = True
        self.tell(
            f"{_ONE[self.name]} id used twice",
            self.has_id & ~alone,
            lambda n: f"have the same id {self.ids[n]}",
            "give each its own id",
            "tell apart",
            where=lambda n: f"entries {place[int(self.ids[n])]} and {n} of {self.name!r}",
        )
        self.has_id = alone


def _entries(document: dict[str, Any], part: Part, report: Report) -> list[Any]:
    if part not in document:
        held = f"it has {', '.join(map(repr, list(document)[:8]))}" if document else "it is empty"
        report(Fault(f"file without {part}", "", (), lambda _: f"has no {part!r} ({held})", _FORM))
        return []
    entries = document[part]
    if not isinstance(entries, list):
        what = f"{part!r} is a JSON {_kind(entries)}, not a list"
        report(Fault(f"{part} that are no list", "", (), lambda _: what, _FORM))
        return []
    if not entries and part == "images":
        remedy = "list the images that the annotations belong to"
        report(Fault("file without images", "", (), lambda _: "'images' is empty", remedy))
    if not entries and part == "categories":
        remedy = 'list the classes, as in {"id": 1, "name": "person"}'
        report(Fault("file without categories", "", (), lambda _: "'categories' is empty", remedy))
    return entries


def _images(part: _Part) -> tuple[tuple[ImageRecord, ...], NDArray[np.int64], NDArray[np.bool_]]:
    names, named = _texts(part, "file_name", "it must be a file's name")
    sizes = (_side(part, "width"), _side(part, "height"))
    whole = part.has_id & named & (sizes[0] > 0) & (sizes[1] > 0)
    corners, fitting = _corners(part, sizes, whole)

    first: dict[str, int] = {}
    odd: dict[int, int] = {}
    for n in np.flatnonzero(whole).tolist():  # a corner marks a part of a picture: many share one file
        other = first.setdefault(names[n], n)
        if any(size[n] != size[other] for size in sizes) and corners[n] is None:
            odd[n] = other
    part.tell(
        "file of two sizes",
        list(odd),
        lambda n: (
            f"are one file, {names[n]}, but of two sizes, {sizes[0][odd[n]]}x{sizes[1][odd[n]]} and "
            f"{sizes[0][n]}x{sizes[1][n]}"
        ),
        "remove or rename one",
        "compare",
        where=lambda n: f"images {part.ids[odd[n]]} and {part.ids[n]}",
    )
    whole &= fitting
    order = np.flatnonzero(part.has_id)
    order = order[np.argsort(part.ids[order], kind="stable")]
    columns = (part.ids.tolist(), names, *(size.tolist() for size in sizes), corners)
    records = [ImageRecord(*values) for values in zip(*columns, strict=True)]
    return tuple(records[n] for n in order.tolist()), order, whole[order]


def _side(part: _Part, key: str) -> NDArray[np.int64]:
    """Pixels; 0 where a rule is broken."""
    side, good = part.whole(key, "measure")
    rule, remedy = f"image without a {key} in pixels", "write its size in pixels"
    part.tell(rule, good & (side <= 0), lambda n: f"has the {key} {side[n]}", remedy, "measure", key)
    return side.clip(0)


def _corners(
    part: _Part, sizes: Sequence[NDArray[np.int64]], whole: NDArray[np.bool_]
) -> tuple[list[tuple[int, int, int, int] | None], NDArray[np.bool_]]:
    """The `corner` of each entry that has one, and which have a right one or none."""
    corners: list[tuple[int, int, int, int] | None] = [None] * len(part.entries)
    fitting = np.ones(len(part.entries), bool)
    for n, entry in enumerate(part.entries):
        corner = entry.get("corner")
        if corner is not None:
            if isinstance(corner, list) and len(corner) == 4 and all(map(_is_whole, corner)):
                x1, y1, x2, y2 = map(int, corner)
                size = (x2 - x1, y2 - y1)
                corners[n] = (x1, y1, x2, y2)
                fitting[n] = x1 >= 0 and y1 >= 0 and (not whole[n] or size == (sizes[0][n], sizes[1][n]))
            else:
                fitting[n] = False
    part.tell(
        "image with a wrong corner",
        ~fitting,
        lambda n: f"of {sizes[0][n]}x{sizes[1][n]} has the corner {short(part.entries[n]['corner'])}",
        "it must be [x1, y1, x2, y2] of the image in its file",
    )
    return corners, fitting


def _categories(part: _Part) -> tuple[tuple[tuple[int, str], ...], NDArray[np.int64]]:
    names, named = _texts(part, "name", "it must be a text", "name")
    good = part.has_id & named
    holders: dict[str, list[int]] = {}
    for n in np.flatnonzero(good).tolist():
        holders.setdefault(names[n], []).append(n)
    times = Counter({name: len(places) for name, places in holders.items()})
    twice = [n for name, count in times.most_common() if count > 1 for n in holders[name][1:]]
    part.tell(
        "category name used twice",
        twice,
        lambda n: f"are all named {names[n]!r}",
        "rename or merge them",
        "merge",
        where=lambda n: f"categories {' and '.join(str(part.ids[other]) for other in holders[names[n]])}",
    )
    order = np.flatnonzero(part.has_id)
    order = order[np.argsort(part.ids[order], kind="stable")]
    return tuple((int(part.ids[n]), names[n]) for n in order.tolist()), order


def _texts(part: _Part, key: str, remedy: str, repair: Repair = "drop") -> tuple[list[str], NDArray[np.bool_]]:
    """The text of every entry (empty where the rule is broken), and which have one."""
    values, present = part.column(key, repair)
    good = np.array([isinstance(value, str) and bool(value) for value in values], bool) & present
    rule = f"{_ONE[part.name]} whose {key} is no text"
    part.tell(rule, present & ~good, lambda n: f"has the {key} {values[n]!r}"[:100], remedy, repair, key)
    return [value if ok else "" for value, ok in zip(values, good.tolist(), strict=True)], good


def _annotations(part: _Part, image_ids: list[int], category_ids: list[int]) -> Rows:
    image, of_image = _reference(part, "image_id", "images", image_ids)
    category, of_category = _reference(part, "category_id", "categories", category_ids)
    ignore, said_ignore = _flag(part, "ignore")
    crowd, said_crowd = _flag(part, "iscrowd")
    xywh, finite = _xywh(part)
    kept = np.flatnonzero(part.has_id & of_image & of_category & said_ignore & said_crowd & finite)
    return Rows(kept, part.ids[kept], image[kept], category[kept], xywh[kept], (ignore | crowd)[kept])


def _reference(part: _Part, key: str, listed: Part, known: list[int]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The index into `known`, ascending ids, of every entry's `key`, and which of them are there."""
    wanted, whole = part.whole(key)
    if not known:  # which was told
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), bool)
    index = np.searchsorted(known, wanted)
    found = np.take(known, index, mode="clip") == wanted
    part.tell(
        f"annotation whose {key} is not listed",
        whole & ~found,
        lambda n: f"has the {key} {wanted[n]}, which is not in {listed!r}",
        "add it there or remove the annotation",
    )
    return index.astype(np.int64), whole & found


def _flag(part: _Part, key: str) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The flag of every entry, and where it is one or absent."""
    values = [entry.get(key, 0) for entry in part.entries]
    if not set(map(type, values)) - {int, bool} and not set(values) - {0, 1}:
        return np.array(values, bool), np.ones(len(values), bool)
    good = np.array([type(value) in (int, bool) and value in (0, 1) for value in values], bool)
    rule = f"annotation whose {key} is no flag"
    part.tell(rule, ~good, lambda n: f"has {key} {short(values[n])}", "it must be 0 or 1", "flag", key)
    return np.array([ok and bool(value) for value, ok in zip(values, good.tolist(), strict=True)], bool), good


def _xywh(part: _Part) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """(M, 4) as written (0 where a rule is broken), and which are finite numbers without a negative side."""
    form = "a bbox is [x, y, width, height] in pixels"
    values, present = part.column("bbox")

    def shown(n: int) -> str:
        return f"has the bbox {short(values[n])}"

    good = present
    if (
        not present.all()
        or set(map(type, values)) - {list}
        or set(map(len, values)) - {4}
        or set(map(type, chain(*values))) - {int, float}
    ):
        good = np.array([_is_four_numbers(box) for box in values], bool) & present
        part.tell("annotation whose bbox is not four numbers", present & ~good, shown, f"{form}, four numbers")
        values = [box if ok else [0, 0, 0, 0] for box, ok in zip(values, good.tolist(), strict=True)]
    try:
        xywh = np.array(values, np.float64).reshape(-1, 4)
    except OverflowError:  # a whole number of more than 308 digits; as text it becomes inf
        xywh = np.array([[float(str(number)) for number in box] for box in values])
    finite = np.isfinite(xywh).all(axis=1)
    part.tell(
        "annotation whose bbox is not finite",
        good & ~finite,
        lambda n: f"{shown(n)}, which is not finite",
        f"{form}; correct or remove it",
    )
    good = good & finite
    negative = (xywh[:, 2:] < 0).any(axis=1)
    part.tell(
        "annotation whose bbox has a negative side",
        good & negative,
        lambda n: f"{shown(n)} with a negative side",
        f"{form}: from the top left corner; correct or remove it",
    )
    good = good & ~negative
    return np.where(good[:, None], xywh, 0.0), good


def _is_file(folder: Path, image: ImageRecord) -> bool:
    try:
        return bool(image.file_name) and (folder / image.file_name).is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False


def _read_through(path: Path) -> tuple[int, int]:
    """Width and height of a picture of which every pixel was read."""
    with open_scene(path) as scene:
        rows = max(_STRIP // scene.width, 1)
        for y in range(0, scene.height, rows):
            scene.read(0, y, scene.width, min(rows, scene.height - y))
        return scene.width, scene.height


def _is_whole(value: Any) -> bool:
    # By type, for True is an int too; within int64, for arrays hold it.
    return (type(value) is int or (type(value) is float and value.is_integer())) and -(2**63) <= value < 2**63


def _is_four_numbers(box: Any) -> bool:
    return type(box) is list and len(box) == 4 and all(type(number) in (int, float) for number in box)


def _kind(value: Any) -> str:
    return {type(None): "null", bool: "truth value", str: "string", list: "list", dict: "object"}.get(
        type(value), "number"
    )
