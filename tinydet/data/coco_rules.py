"""What a valid COCO dataset is: every rule of an annotation file, once.

`load_dataset` raises the first broken rule, `tinydet data check` lists all of them: the `examine` functions pass each
broken rule to a `Report` and return what is valid as columns. The rules about image files are in
`tinydet.data.image_checks`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.json_files import read_json
from tinydet.data.coco_entries import LARGEST, Entries, Fault, Report, is_integer, raise_first, read_sections, short
from tinydet.data.image_paths import image_name
from tinydet.runtime.scenes.window import Corner

FILE_NAME = "it must be a file's name without control characters"
TEXT = "it must be a string without control characters"
NO_AREA = "object without area"
OUTSIDE = "object outside its image"
NO_OBJECT = "no object"

_ROUNDING = 1e-3  # pixels; with float32 coordinates x + width of a box at the border is slightly more than the width

FLAGS = ("ignore", "iscrowd", "uncertain", "logo", "in_dense_image")  # the last three are TinyPerson's
VISIBLE_BOXES = ("vis_bbox", "vis")  # x, y, width, height of the visible part of an object (CityPersons)
_NUMBERS = ("area", "size", "height", "vis_ratio")  # optional; for the evaluators
_WHOLE = {
    "images": ("id", "width", "height"),
    "categories": ("id",),
    "annotations": ("id", "image_id", "category_id"),
}


@dataclass(frozen=True)
class ImageRecord:
    """One entry of `images`; sizes in pixels.

    Attributes:
        file_name: with slashes as separators, see `image_name`.
        corner: x1, y1, x2, y2 of a sub-image (TinyPerson). `file_name` then names the full image, or a file of the
            sub-image's own size if it was cut out.
    """

    id: int
    file_name: str
    width: int
    height: int
    corner: Corner | None = None


class Rows(NamedTuple):
    """Annotations as parallel columns, in the order of the file.

    `entry` is the index into the file's list; `image` and `category` are indices into `Contents`; `xywh` is (M, 4) as
    written.
    """

    entry: NDArray[np.int64]
    id: NDArray[np.int64]
    image: NDArray[np.int64]
    category: NDArray[np.int64]
    xywh: NDArray[np.float64]
    ignore: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Contents:
    """The valid part of a document.

    Attributes:
        images: those with an id of their own, by ascending id.
        image_entry: (I,) their indices in the document's list.
        valid_images: (I,) false for images that break another rule; their name may be empty and their sizes 0.
        categories: (id, name), by ascending id; the name is empty if it breaks a rule.
        category_entry: (C,) their indices in the document's list.
        parents: (C,) true for those that are the `supercategory` of another one.
        rows: the annotations.
        complete: true if `rows` has every annotation of the file.
    """

    images: tuple[ImageRecord, ...]
    image_entry: NDArray[np.int64]
    valid_images: NDArray[np.bool_]
    categories: tuple[tuple[int, str], ...]
    category_entry: NDArray[np.int64]
    parents: NDArray[np.bool_]
    rows: Rows
    complete: bool


class Boxes(NamedTuple):
    """The boxes of `Rows`, parallel to them.

    `xyxy` is (M, 4), clipped to the image; `inside` is true for boxes with an area there; `clipped` is true for those
    that reached outside.
    """

    xyxy: NDArray[np.float64]
    inside: NDArray[np.bool_]
    clipped: NDArray[np.bool_]


def read_document(source: Path) -> dict[str, Any]:
    """Return the JSON object of a `.json` or `.json.gz` annotation file, unchecked.

    Raises:
        ValueError: the file cannot be read as JSON, or is not an object.
    """
    document = read_json(source)
    if not isinstance(document, dict):
        read_sections(document, raise_first(source))
    return document  # type: ignore[no-any-return]


def examine(document: dict[str, Any], report: Report) -> Contents:
    """Check lists, ids, references, names, sizes, flags and numbers; return what is valid as columns."""
    sections = read_sections(document, report)
    images = _with_ids(Entries("images", sections["images"], report))
    records, image_entry, valid_images = _images(images)
    categories = _with_ids(Entries("categories", sections["categories"], report))
    table, category_entry = _categories(categories)
    parents = parent_categories([categories.entries[n] for n in category_entry.tolist()])
    annotations = _with_ids(Entries("annotations", sections["annotations"], report))
    rows = _annotations(annotations, [record.id for record in records], [id for id, _ in table])
    complete = len(rows.id) == len(annotations)
    return Contents(records, image_entry, valid_images, table, category_entry, parents, rows, complete)


def normalize(document: dict[str, Any]) -> int:
    """Normalize the types of a valid document in place: whole numbers, flags and names.

    Ids, sizes and flags become integers (1.0 is 1; a flag of null is 0, true stays), file names as in `ImageRecord`.

    Returns:
        The number of changed numbers and flags.
    """
    count = 0
    for section, keys in _WHOLE.items():
        for entry in document[section]:
            for key in keys:
                if type(entry[key]) is not int:
                    entry[key] = int(entry[key])
                    count += 1
    for entry in document["images"]:
        entry["file_name"] = image_name(entry["file_name"])
        if entry.get("corner") is not None:
            entry["corner"] = list(map(int, entry["corner"]))
    for entry in document["annotations"]:
        for key in FLAGS:
            if key in entry and type(entry[key]) not in (int, bool):
                entry[key] = int(bool(entry[key]))
                count += 1
    return count


def examine_objects(contents: Contents, report: Report) -> None:
    """Check that annotations, if there are any, include an object."""
    if contents.complete and len(contents.rows.id) and contents.rows.ignore.all():
        what = "every annotation is marked ignore or iscrowd, so there is no object"
        report(Fault(NO_OBJECT, "", (), lambda _: what, "unmark some"))


def examine_boxes(contents: Contents, report: Report, categories: NDArray[np.bool_] | None = None) -> Boxes:
    """Check that objects have an area and lie at least partly inside their image; ignore regions are exempt.

    Args:
        categories: (C,) true for the categories to check; None checks all.
    """
    rows, images = contents.rows, contents.images
    sizes = np.array([(image.width, image.height) for image in images], np.float64).reshape(-1, 2)[rows.image]
    low, high = rows.xywh[:, :2], rows.xywh[:, :2] + rows.xywh[:, 2:]
    boxes = np.concatenate([np.clip(low, 0, sizes), np.clip(high, 0, sizes)], axis=1)
    has_size = np.asarray(contents.valid_images, bool)[rows.image]
    checked = ~rows.ignore if categories is None else ~rows.ignore & categories[rows.category]
    flat = (high <= low).any(axis=1)
    outside = (boxes[:, 2:] <= boxes[:, :2]).any(axis=1) & ~flat & has_size
    for rule, broken, what, remedy in (
        (NO_AREA, flat, "has no area", 'give it a width and a height, remove it or mark it "ignore": 1'),
        (
            OUTSIDE,
            outside,
            "lies wholly outside",
            "bbox is [x, y, width, height] in pixels of the image: correct it or remove it",
        ),
    ):
        place = {int(rows.entry[n]): n for n in np.flatnonzero(broken & checked).tolist()}
        if place:

            def describe(entry: int, place: dict[int, int] = place, what: str = what) -> str:
                n = place[entry]
                image = images[rows.image[n]]
                size = f" ({image.width}x{image.height})" if has_size[n] else ""
                bbox = short(rows.xywh[n].tolist())
                return f"annotation {rows.id[n]} of image {image.id}{size} has the bbox {bbox}, which {what}"

            report(Fault(rule, "annotations", tuple(place), describe, remedy, "box", "bbox"))
    inside = np.asarray((boxes[:, 2:] > boxes[:, :2]).all(axis=1), bool)
    clipped = np.asarray(((low < -_ROUNDING) | (high > sizes + _ROUNDING)).any(axis=1), bool)
    return Boxes(boxes, inside, inside & clipped)


def _with_ids(entries: Entries) -> Entries:
    entries.read_ids()
    entries.check_unique()
    return entries


def _by_id(entries: Entries) -> NDArray[np.int64]:
    """Indices of the entries with an id, by ascending id."""
    return np.array(sorted(np.flatnonzero(entries.has_id).tolist(), key=entries.ids.__getitem__), np.int64)


def _images(entries: Entries) -> tuple[tuple[ImageRecord, ...], NDArray[np.int64], NDArray[np.bool_]]:
    """Return images by ascending id, their indices in the list, and which break no rule."""
    names, named = entries.strings("file_name", FILE_NAME, "rename")
    names = [image_name(name) if name else "" for name in names]
    widths, heights = _sides(entries, "width"), _sides(entries, "height")
    valid = entries.has_id & named & (widths > 0) & (heights > 0)
    corners, corner_fits = _corners(entries, widths, heights, valid)

    first: dict[str, int] = {}
    other_size: dict[int, int] = {}
    for n in np.flatnonzero(valid).tolist():  # sub-images, which have a corner, share one file
        other = first.setdefault(names[n], n)
        if (widths[n], heights[n]) != (widths[other], heights[other]) and corners[n] is None:
            other_size[n] = other
    entries.check(
        "file of two sizes",
        list(other_size),
        lambda n: (
            f"are one file, {names[n]}, but of two sizes, {widths[other_size[n]]}x{heights[other_size[n]]} and "
            f"{widths[n]}x{heights[n]}"
        ),
        "remove or rename one",
        "compare",
        subject=lambda n: f"images {entries.ids[other_size[n]]} and {entries.ids[n]}",
    )
    valid &= corner_fits
    order = _by_id(entries)
    columns = (entries.ids, names, widths.tolist(), heights.tolist(), corners)
    records = [ImageRecord(*values) for values in zip(*columns, strict=True)]
    return tuple(records[n] for n in order.tolist()), order, valid[order]


def _sides(entries: Entries, key: str) -> NDArray[np.int64]:
    """(N,) pixels; 0 if a rule is broken."""
    sides, good = entries.integers(key, "measure")
    rule, remedy = f"image without a {key} in pixels", "write its size in pixels"
    fits = (sides > 0) & (sides <= LARGEST)
    entries.check(rule, good & ~fits, lambda n: f"has the {key} {sides[n]}", remedy, "measure", key)
    return np.where(fits, sides, 0)


def _corners(
    entries: Entries, widths: NDArray[np.int64], heights: NDArray[np.int64], sized: NDArray[np.bool_]
) -> tuple[list[Corner | None], NDArray[np.bool_]]:
    """Return the `corner` of each entry that has one, and a mask that is false for wrong ones."""
    corners = [read_corner(entry.get("corner")) for entry in entries.entries]
    fits = np.ones(len(entries), bool)
    for n in entries.with_value("corner").tolist():
        if (corner := corners[n]) is None:
            fits[n] = False
        elif sized[n]:
            x1, y1, x2, y2 = corner
            fits[n] = (x2 - x1, y2 - y1) == (widths[n], heights[n])
    entries.check(
        "image with a wrong corner",
        ~fits,
        lambda n: f"of {widths[n]}x{heights[n]} has the corner {short(entries.entries[n]['corner'])}",
        "it must be [x1, y1, x2, y2] of the image in its file",
    )
    return corners, fits


def read_corner(value: Any) -> Corner | None:
    """Return the corner of a sub-image: x1, y1, x2, y2 in whole pixels, not empty; None for anything else."""
    if not isinstance(value, list | tuple) or len(value) != 4 or not all(map(is_integer, value)):
        return None
    x1, y1, x2, y2 = map(int, value)
    return (x1, y1, x2, y2) if 0 <= x1 < x2 <= LARGEST and 0 <= y1 < y2 <= LARGEST else None


def _categories(entries: Entries) -> tuple[tuple[tuple[int, str], ...], NDArray[np.int64]]:
    """Return (id, name) by ascending id, and their indices in the list."""
    names, named = entries.strings("name", TEXT, "name")
    holders: dict[str, list[int]] = {}
    for n in np.flatnonzero(entries.has_id & named).tolist():
        holders.setdefault(names[n], []).append(n)
    times = Counter({name: len(places) for name, places in holders.items()})
    repeated = [n for name, count in times.most_common() if count > 1 for n in holders[name][1:]]
    entries.check(
        "category name used twice",
        repeated,
        lambda n: f"are all named {names[n]!r}",
        "rename or merge them",
        "merge",
        subject=lambda n: f"categories {' and '.join(str(entries.ids[other]) for other in holders[names[n]])}",
    )
    order = _by_id(entries)
    return tuple((entries.ids[n], names[n]) for n in order.tolist()), order


def parent_categories(categories: Sequence[Mapping[str, Any]]) -> NDArray[np.bool_]:
    """Return (C,) true for categories that are the `supercategory` of another one.

    Without annotations they are not classes, such as the root that Roboflow adds to its exports.
    """
    pairs = [(entry.get("supercategory"), entry.get("name")) for entry in categories]
    named = {parent for parent, name in pairs if isinstance(parent, str) and parent != name}
    return np.array([isinstance(name, str) and name in named for _, name in pairs], bool)


def _annotations(entries: Entries, image_ids: list[int], category_ids: list[int]) -> Rows:
    image, has_image = _listed(entries, "image_id", "images", image_ids)
    category, has_category = _listed(entries, "category_id", "categories", category_ids)
    xywh, has_box = entries.boxes()
    negative = examine_sides(entries, xywh)
    ignore, flagged = examine_flags(entries)
    examine_optional(entries)
    valid = entries.has_id & has_image & has_category & flagged & has_box & ~negative
    kept = np.flatnonzero(valid)
    ids = np.array(entries.ids, np.int64)
    return Rows(kept, ids[kept], image[kept], category[kept], xywh[kept], ignore[kept])


def examine_sides(entries: Entries, xywh: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Check that boxes (N, 4) have no negative side; return (N,) those that have."""
    negative = np.asarray((xywh[:, 2:] < 0).any(axis=1), bool)
    entries.check(
        "annotation whose bbox has a negative side",
        negative,
        lambda n: f"has the bbox {short(entries.entries[n]['bbox'])} with a negative side",
        "a bbox is [x, y, width, height] in pixels: from the top left corner; correct or remove it",
        "box",
        "bbox",
    )
    return negative


def examine_flags(entries: Entries) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Check all flags. Return masks (N,) of the ignore regions and of the annotations with valid flags."""
    ignore, good = np.zeros(len(entries), bool), np.ones(len(entries), bool)
    for key in filter(entries.keys.__contains__, FLAGS):
        flags, valid = entries.flags(key)
        good &= valid
        if key in ("ignore", "iscrowd"):
            ignore |= flags
    return ignore, good


def examine_optional(entries: Entries) -> None:
    """Check the optional annotation fields that tools read: numbers, visible boxes and shapes."""
    for key in filter(entries.keys.__contains__, _NUMBERS):
        entries.optional_numbers(key, np.zeros(len(entries)))
    for key in filter(entries.keys.__contains__, VISIBLE_BOXES):
        entries.select(entries.with_value(key)).boxes(key, "clear")
    polygons = "a list of polygons [[x, y, x, y, ...], ...] or a run-length mask"
    if "segmentation" in entries.keys:
        entries.points("segmentation", polygons, nested=True)
    if "keypoints" in entries.keys:
        entries.points("keypoints", "a list of numbers [x, y, visibility, ...]", nested=False)


def _listed(entries: Entries, key: str, section: str, known: list[int]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return (N,) the index into `known` of the id under `key`, and a mask that is false for unknown ids."""
    index, good = entries.references(key, known)
    found = index >= 0
    if known:  # an empty list was reported already
        entries.check(
            f"annotation whose {key} is not listed",
            good & ~found,
            lambda n: f"has the {key} {int(entries.entries[n][key])}, which is not in {section!r}",
            "add it there or remove the annotation",
        )
    return index, found
