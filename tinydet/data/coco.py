"""COCO-format data sets: read once, checked whole, held as flat arrays.

The format is https://cocodataset.org/#format-data with two flags for each annotation: `iscrowd`, and `ignore` of
TinyPerson and its relatives. Either makes the box an ignore region: nothing to find there, and nothing to punish.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinydet.runtime.scene import read_image

ANNOTATION_NAMES = ("annotations.json", "annotations.json.gz")  # of a COCO folder, beside `images/`


@dataclass(frozen=True)
class ImageRecord:
    """One entry of `images`; sizes in pixels."""

    id: int
    file_name: str
    width: int
    height: int


class Annotations(NamedTuple):
    """The boxes of one image: (M, 4) xyxy in its pixels, (M,) class indices, (M,) ignore flags."""

    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    ignore: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A checked data set; `boxes`, `labels`, `image_index` and `ignore` are parallel and sorted by image.

    Attributes:
        images: ascending id, with or without boxes.
        image_dir: folder of the image files; None where only annotations were given.
        source: the annotation file.
        classes: names of the selected classes.
        category_ids: their COCO ids, ascending, parallel to `classes`.
        boxes: (M, 4) xyxy, pixels, inside the image.
        labels: (M,) index into `classes`; -1 for an ignore region that belongs to no class and so counts for all.
        image_index: (M,) index into `images`, ascending.
        ignore: (M,) true for ignore regions.
        clipped: how many of the boxes reached outside their image in the file.
    """

    images: tuple[ImageRecord, ...]
    image_dir: Path | None
    source: Path
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    image_index: NDArray[np.int64]
    ignore: NDArray[np.bool_]
    clipped: int

    @property
    def objects(self) -> NDArray[np.bool_]:
        """(M,) true for the boxes that are objects to find."""
        return ~self.ignore

    def of_image(self, i: int) -> Annotations:
        """The boxes of `images[i]`, in the order of the file (views, not copies)."""
        first, last = np.searchsorted(self.image_index, (i, i + 1))
        return Annotations(self.boxes[first:last], self.labels[first:last], self.ignore[first:last])

    def image_path(self, i: int) -> Path:
        """The file of `images[i]`.

        Raises:
            ValueError: where the data set was loaded without an image folder.
        """
        if self.image_dir is None:
            raise ValueError(f"{self.source} was loaded without its images; name their folder with --images DIR")
        return self.image_dir / self.images[i].file_name


def find_dataset(folder: Path) -> tuple[Path, Path]:
    """The annotation file and the image folder of a COCO folder.

    Raises:
        ValueError: what is missing, and how to name the two apart.
    """
    folder = Path(folder)
    otherwise = "or name the two apart with --annotations FILE --images DIR"
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise ValueError(f"{folder} {what}; expected a folder with annotations.json and images/, {otherwise}")
    found = [folder / name for name in ANNOTATION_NAMES if (folder / name).is_file()]
    if not found:
        raise ValueError(f"{folder} has no annotations.json or annotations.json.gz; add one, {otherwise}")
    if len(found) > 1:
        raise ValueError(f"{folder} has both {' and '.join(ANNOTATION_NAMES)}; remove one, {otherwise}")
    if not (folder / "images").is_dir():
        raise ValueError(f"{folder} has no folder images/; add it, {otherwise}")
    return found[0], folder / "images"


def load_dataset(annotations: Path, images: Path | None = None, *, categories: Sequence[str] | None = None) -> Dataset:
    """Read and check an annotation file (`.json` or `.json.gz`), or a COCO folder with both parts.

    Classes: without `categories`, every category of the file but those whose annotations are all ignored (such
    as `dont_care`); the regions of these count for every class, with `categories` too. Of the categories not
    selected nothing else is kept. A category without annotations is a class; a file without annotations loads.

    Boxes: clipped to the image and counted. An object's box must have a width, a height and a part inside its
    image; an ignore region that has none of it is dropped without a word, for it changes nothing. Only these
    two rules are not asked of unselected categories.

    Args:
        images: folder that `file_name` is relative to; every file must be there. None: boxes only.
        categories: names of the classes to keep, in any order.

    Raises:
        ValueError: the first fault of the first kind found and how many there are like it, naming file, id,
            rule and way out.
    """
    source = Path(annotations)
    if images is None and source.is_dir():
        source, images = find_dataset(source)
    document = _read_json(source)
    records = _images(source, document["images"])
    table = _categories(source, document["categories"])
    rows = _annotations(source, document["annotations"], records, table)
    if images is not None:
        images = Path(images)
        _check_files(source, images, records)

    count, objects = (np.bincount(c, minlength=len(table)) for c in (rows.category, rows.category[~rows.ignore]))
    ignored_only = (count > 0) & (objects == 0)
    selected = _select(source, table, ignored_only, categories)
    if count.any() and not objects[selected].any():
        raise ValueError(_no_objects(source, table, selected, objects))
    label_of = np.where(selected, np.cumsum(selected) - 1, -1)
    kept = selected[rows.category] | ignored_only[rows.category]
    boxes, inside, clipped = _clip(source, rows, records, kept)

    order = np.flatnonzero(inside)
    order = order[np.argsort(rows.image[order], kind="stable")]
    return Dataset(
        images=tuple(records),
        image_dir=images,
        source=source,
        classes=tuple(name for (_, name), chosen in zip(table, selected, strict=True) if chosen),
        category_ids=tuple(id for (id, _), chosen in zip(table, selected, strict=True) if chosen),
        boxes=boxes[order],
        labels=label_of[rows.category[order]],
        image_index=rows.image[order],
        ignore=rows.ignore[order],
        clipped=clipped,
    )


def read_pixels(dataset: Dataset, i: int) -> NDArray[np.uint8]:
    """The pixels of `images[i]`: (H, W, 3) RGB, whatever the file holds (grey, 16-bit, an alpha band).

    Raises:
        ValueError: where the file is unreadable, or of another size than the annotation file says.
    """
    record, path = dataset.images[i], dataset.image_path(i)
    pixels = read_image(path)
    height, width = pixels.shape[:2]
    if (width, height) != (record.width, record.height):
        turned = (
            " (it looks turned: check its EXIF orientation)" if (height, width) == (record.width, record.height) else ""
        )
        raise ValueError(
            f"{path} is {width}x{height} pixels, but image {record.id} of {dataset.source} is "
            f"{record.width}x{record.height}{turned}; its boxes would be misplaced: correct the one that is wrong"
        )
    return pixels


class _Rows(NamedTuple):
    """Annotations as columns, in the order of the file; `image` and `category` are indices, `xywh` as written."""

    id: NDArray[np.int64]
    image: NDArray[np.int64]
    category: NDArray[np.int64]
    xywh: NDArray[np.float64]
    ignore: NDArray[np.bool_]


def _read_json(source: Path) -> dict[str, list[dict[str, Any]]]:
    """The document: an object with the three lists of objects that make it COCO."""
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
    form = 'expected COCO: {"images": [...], "annotations": [...], "categories": [...]}'
    if not isinstance(document, dict):
        raise ValueError(f"{source}: a JSON {_kind(document)}, not an object; {form}")
    for key in ("images", "annotations", "categories"):
        if key not in document:
            held = f"it has {', '.join(map(repr, list(document)[:8]))}" if document else "it is empty"
            raise ValueError(f"{source}: has no {key!r} ({held}); {form}")
        if not isinstance(document[key], list):
            raise ValueError(f"{source}: {key!r} is a JSON {_kind(document[key])}, not a list; {form}")
        entries = document[key]
        if set(map(type, entries)) - {dict}:
            bad = [n for n, entry in enumerate(entries) if not isinstance(entry, dict)]
            what = f"is a JSON {_kind(entries[bad[0]])}, not an object"
            raise _fault(source, f"entry {bad[0]} of {key!r}", what, form, len(bad))
    return document


def _images(source: Path, entries: list[dict[str, Any]]) -> list[ImageRecord]:
    if not entries:
        raise ValueError(f"{source}: 'images' is empty; list the images that the annotations belong to")
    ids = _ids(source, "images", entries)

    def named(n: int) -> str:
        return f"image {ids[n]}"

    names = _column(source, entries, "file_name", named)
    bad = [n for n, name in enumerate(names) if not isinstance(name, str) or not name]
    if bad:
        raise _fault(
            source, named(bad[0]), f"has the file_name {names[bad[0]]!r}", "it must be a file's name", len(bad)
        )
    sizes = []
    for key in ("width", "height"):
        size = _whole(source, _column(source, entries, key, named), key, named)
        bad = np.flatnonzero(size <= 0).tolist()
        if bad:
            raise _fault(source, named(bad[0]), f"has the {key} {size[bad[0]]}", "write its size in pixels", len(bad))
        sizes.append(size.tolist())
    records = [ImageRecord(*values) for values in zip(ids.tolist(), names, *sizes, strict=True)]

    first: dict[str, int] = {}
    for n, record in enumerate(records):  # a `corner` (TinyPerson) marks a sub-image: many share one file
        other = records[first.setdefault(record.file_name, n)]
        if (record.width, record.height) != (other.width, other.height) and "corner" not in entries[n]:
            raise ValueError(
                f"{source}: images {other.id} and {record.id} are one file, {record.file_name}, but of two sizes, "
                f"{other.width}x{other.height} and {record.width}x{record.height}; remove or rename one"
            )
    return sorted(records, key=lambda record: record.id)


def _categories(source: Path, entries: list[dict[str, Any]]) -> list[tuple[int, str]]:
    """(id, name), ascending id."""
    if not entries:
        raise ValueError(f'{source}: \'categories\' is empty; list the classes, as in {{"id": 1, "name": "person"}}')
    ids = _ids(source, "categories", entries)

    def named(n: int) -> str:
        return f"category {ids[n]}"

    names = _column(source, entries, "name", named)
    bad = [n for n, name in enumerate(names) if not isinstance(name, str) or not name]
    if bad:
        raise _fault(source, named(bad[0]), f"has the name {names[bad[0]]!r}", "it must be a text", len(bad))
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        twice = " and ".join(str(ids[n]) for n, other in enumerate(names) if other == name)
        raise ValueError(f"{source}: categories {twice} are all named {name!r}; rename or merge them")
    return sorted(zip(ids.tolist(), names, strict=True))


def _annotations(
    source: Path, entries: list[dict[str, Any]], records: list[ImageRecord], table: list[tuple[int, str]]
) -> _Rows:
    ids = _ids(source, "annotations", entries)

    def named(n: int) -> str:
        return f"annotation {ids[n]}"

    columns: dict[str, NDArray[np.int64]] = {}
    for key, known in (("image_id", [record.id for record in records]), ("category_id", [id for id, _ in table])):
        wanted = _whole(source, _column(source, entries, key, named), key, named)
        index = np.searchsorted(known, wanted)
        bad = np.flatnonzero(np.take(known, index, mode="clip") != wanted).tolist()
        if bad:
            listed = {"image_id": "images", "category_id": "categories"}[key]
            what = f"has the {key} {wanted[bad[0]]}, which is not in {listed!r}"
            raise _fault(source, named(bad[0]), what, "add it there or remove the annotation", len(bad))
        columns[key] = index.astype(np.int64)

    flags = np.zeros(len(entries), bool)
    for key in ("ignore", "iscrowd"):
        values = [entry.get(key, 0) for entry in entries]
        if set(map(type, values)) - {int, bool} or set(values) - {0, 1}:
            bad = [n for n, value in enumerate(values) if type(value) not in (int, bool) or value not in (0, 1)]
            what = f"has {key} {_short(values[bad[0]])}"
            raise _fault(source, named(bad[0]), what, "it must be 0 or 1", len(bad))
        flags |= np.array(values, bool)
    xywh = _xywh(source, _column(source, entries, "bbox", named), named)
    return _Rows(ids, columns["image_id"], columns["category_id"], xywh, flags)


def _xywh(source: Path, values: list[Any], named: Callable[[int], str]) -> NDArray[np.float64]:
    """(M, 4) as written: finite numbers, neither width nor height negative."""
    form = "a bbox is [x, y, width, height] in pixels"
    if set(map(type, values)) - {list} or set(map(len, values)) - {4} or set(map(type, chain(*values))) - {int, float}:
        bad = [n for n, box in enumerate(values) if not _is_four_numbers(box)]
        raise _fault(source, named(bad[0]), f"has the bbox {_short(values[bad[0]])}", f"{form}, four numbers", len(bad))
    try:
        xywh = np.array(values, np.float64).reshape(-1, 4)
    except OverflowError:  # a whole number of more than 308 digits; as text it becomes inf
        xywh = np.array([[float(str(number)) for number in box] for box in values])
    bad = np.flatnonzero(~np.isfinite(xywh).all(axis=1)).tolist()
    if bad:
        what = f"has the bbox {_short(values[bad[0]])}, which is not finite"
        raise _fault(source, named(bad[0]), what, f"{form}; correct or remove it", len(bad))
    bad = np.flatnonzero((xywh[:, 2:] < 0).any(axis=1)).tolist()
    if bad:
        what = f"has the bbox {_short(values[bad[0]])} with a negative side"
        raise _fault(source, named(bad[0]), what, f"{form}: from the top left corner; correct or remove it", len(bad))
    return xywh


def _clip(
    source: Path, rows: _Rows, records: list[ImageRecord], kept: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.bool_], int]:
    """Boxes as xyxy inside their images, which of the `kept` ones have an area there, how many of these were cut."""
    sizes = np.array([(record.width, record.height) for record in records], np.float64)[rows.image]
    low, high = rows.xywh[:, :2], rows.xywh[:, :2] + rows.xywh[:, 2:]
    boxes = np.concatenate([np.clip(low, 0, sizes), np.clip(high, 0, sizes)], axis=1)
    for fault, what, remedy in (
        ((high <= low).any(axis=1), "has no area", 'give it a width and a height, remove it or mark it "ignore": 1'),
        (
            (boxes[:, 2:] <= boxes[:, :2]).any(axis=1),
            "lies wholly outside",
            "bbox is [x, y, width, height] in pixels of the image: correct it or remove it",
        ),
    ):
        bad = np.flatnonzero(fault & kept & ~rows.ignore).tolist()
        if bad:
            n = bad[0]
            record = records[rows.image[n]]
            where = f"annotation {rows.id[n]} of image {record.id} ({record.width}x{record.height})"
            raise _fault(source, where, f"has the bbox {_short(rows.xywh[n].tolist())}, which {what}", remedy, len(bad))
    inside = kept & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    cut = ((low < 0) | (high > sizes)).any(axis=1)
    return boxes, inside, int((inside & cut).sum())


def _select(
    source: Path, table: list[tuple[int, str]], ignored_only: NDArray[np.bool_], categories: Sequence[str] | None
) -> NDArray[np.bool_]:
    """Which categories are classes, parallel to `table`."""
    if categories is None:
        return ~ignored_only
    names = [name for _, name in table]
    unknown = [name for name in categories if name not in names]
    if unknown or not categories:
        what = f"has no category {unknown[0]!r}" if unknown else "no category was selected"
        raise ValueError(f"{source}: {what}; choose from {', '.join(names)}")
    return np.array([name in categories for name in names])


def _no_objects(
    source: Path, table: list[tuple[int, str]], selected: NDArray[np.bool_], objects: NDArray[np.int64]
) -> str:
    wanted = ", ".join(name for (_, name), chosen in zip(table, selected, strict=True) if chosen)
    if not objects.any():
        return f"{source}: every annotation is marked ignore or iscrowd, so there is no object; unmark some"
    held = ", ".join(f"{name} ({n})" for (_, name), n in zip(table, objects, strict=True) if n)
    return f"{source}: no object of {wanted} that is not ignored; select others, the file has {held}"


def _check_files(source: Path, folder: Path, records: list[ImageRecord]) -> None:
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise ValueError(f"{folder}: the image folder of {source} {what}; check --images")
    missing = [record for record in records if not (folder / record.file_name).is_file()]
    if missing:
        first = missing[0]
        raise ValueError(
            f"{source}: image {first.id}, {folder / first.file_name}, is missing "
            f"({len(missing)} of {len(records)} images are); check the image folder or remove them from the file"
        )


def _ids(source: Path, key: str, entries: list[dict[str, Any]]) -> NDArray[np.int64]:
    """The `id` of every entry: whole numbers, each once."""

    def named(n: int) -> str:
        return f"entry {n} of {key!r}"

    ids = _whole(source, _column(source, entries, "id", named), "id", named)
    values, times = np.unique(ids, return_counts=True)
    twice = values[times > 1]
    if len(twice):
        places = " and ".join(str(n) for n in np.flatnonzero(ids == twice[0])[:2].tolist())
        what = f"have the same id {twice[0]}"
        raise _fault(source, f"entries {places} of {key!r}", what, "give each its own id", len(twice))
    return ids


def _column(source: Path, entries: list[dict[str, Any]], key: str, named: Callable[[int], str]) -> list[Any]:
    try:
        return [entry[key] for entry in entries]
    except KeyError:
        bad = [n for n, entry in enumerate(entries) if key not in entry]
        raise _fault(source, named(bad[0]), f"has no {key!r}", "add it or remove the entry", len(bad)) from None


def _whole(source: Path, values: list[Any], key: str, named: Callable[[int], str]) -> NDArray[np.int64]:
    """int64; floats without a fraction are taken (pandas writes 1.0 where a column once had a gap)."""
    try:
        if set(map(type, values)) <= {int}:
            return np.array(values, np.int64)
    except OverflowError:
        pass
    bad = [n for n, value in enumerate(values) if not _is_whole(value)]
    if bad:
        what = f"has the {key} {_short(values[bad[0]])}"
        raise _fault(source, named(bad[0]), what, "it must be a whole number", len(bad))
    return np.array(values, np.int64)


def _is_whole(value: Any) -> bool:
    # By type, for True is an int too; within int64, for arrays hold it.
    return (type(value) is int or (type(value) is float and value.is_integer())) and -(2**63) <= value < 2**63


def _is_four_numbers(box: Any) -> bool:
    return type(box) is list and len(box) == 4 and all(type(number) in (int, float) for number in box)


def _fault(source: Path, where: str, what: str, remedy: str, count: int) -> ValueError:
    like_it = f" (and {count - 1} more like it)" if count > 1 else ""
    return ValueError(f"{source}: {where} {what}{like_it}; {remedy}")


def _short(value: Any) -> str:
    """`value` as JSON, cut to a length that leaves the message one line."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _kind(value: Any) -> str:
    return {type(None): "null", bool: "truth value", str: "string", list: "list", dict: "object"}.get(
        type(value), "number"
    )
