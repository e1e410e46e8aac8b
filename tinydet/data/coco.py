"""COCO datasets: read once, checked completely, held as flat arrays.

The format is https://cocodataset.org/#format-data, with two flags per annotation: `iscrowd`, and `ignore` as in
TinyPerson. Either one makes the box an ignore region: there is nothing to detect, and detections there are not
penalized.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinydet.data.coco_entries import check_categories, listed, raise_first
from tinydet.data.coco_rules import ImageRecord, examine, examine_boxes, examine_objects, read_document
from tinydet.data.image_checks import check_image_folder, examine_files
from tinydet.data.image_paths import image_file
from tinydet.runtime.scenes import Scene, open_scene
from tinydet.runtime.scenes.image_file import check_fits_in_memory
from tinydet.runtime.scenes.window import part_of, size_mismatch
from tinydet.spec import STRETCH

__all__ = [
    "ANNOTATION_NAMES",
    "Annotations",
    "Dataset",
    "ImageRecord",
    "build_dataset",
    "find_dataset",
    "load_dataset",
    "open_image",
    "read_pixels",
]

ANNOTATION_NAMES = ("annotations.json", "annotations.json.gz")  # in a COCO folder, next to `images/`


class Annotations(NamedTuple):
    """Boxes of one image: (M, 4) xyxy in its pixels, (M,) class indices, ignore flags and areas as written."""

    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    ignore: NDArray[np.bool_]
    areas: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A checked dataset; `boxes`, `labels`, `image_index`, `ignore` and `areas` are parallel and sorted by image.

    Attributes:
        images: by ascending id, with or without boxes.
        image_dir: folder of the image files; None if only annotations were given.
        source: the annotation file.
        classes: names of the selected classes.
        category_ids: their COCO ids, ascending, parallel to `classes`.
        boxes: (M, 4) xyxy, pixels, inside the image.
        labels: (M,) index into `classes`; -1 for an ignore region without a class, which applies to all classes.
        image_index: (M,) index into `images`, ascending.
        ignore: (M,) true for ignore regions.
        areas: (M,) square pixels of the boxes as written, including the part outside the image.
        clipped: number of boxes that reached outside their image in the file.
        roots: names of categories that are not classes, because they have no annotations and are the `supercategory`
            of another category, such as the root that Roboflow adds to its exports.
        reading: notes for the user about how the annotations were read.
        read_again: reads the COCO document that the dataset was built from, unchecked; None: `source` is a COCO file.
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
    areas: NDArray[np.float64]
    clipped: int
    roots: tuple[str, ...] = ()
    reading: tuple[str, ...] = ()
    read_again: Callable[[], dict[str, Any]] | None = None

    def document(self) -> dict[str, Any]:
        """Read the annotations again, as a COCO document with all fields and all categories, unchecked."""
        return read_document(self.source) if self.read_again is None else self.read_again()

    @property
    def is_cut(self) -> bool:
        """True for a corner file, whose images are parts of the image files."""
        return any(record.corner is not None for record in self.images)

    @property
    def reading_notes(self) -> tuple[str, ...]:
        """Notes for the user about the reading and root categories."""
        if not self.roots:
            return tuple(self.reading)
        return *self.reading, f"not a class: {listed(self.roots)}, without annotations and the supercategory of others"

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes of `reading_notes`, and one about classes without objects."""
        counts = np.bincount(self.labels[self.objects], minlength=len(self.classes))
        empty = [name for name, count in zip(self.classes, counts.tolist(), strict=True) if not count]
        note = f"no objects of class {listed(empty)}; --categories A,B uses only the classes that you name"
        return *self.reading_notes, *([note] if empty else ())

    @property
    def objects(self) -> NDArray[np.bool_]:
        """(M,) true for objects to detect, false for ignore regions."""
        return ~self.ignore

    def of_image(self, i: int) -> Annotations:
        """Return the boxes of `images[i]`, in the order of the file (views, not copies)."""
        rows = slice(*np.searchsorted(self.image_index, (i, i + 1)).tolist())
        return Annotations(self.boxes[rows], self.labels[rows], self.ignore[rows], self.areas[rows])

    def image_path(self, i: int) -> Path:
        """Return the file of `images[i]`.

        Raises:
            ValueError: the dataset was loaded without an image folder.
        """
        if self.image_dir is None:
            raise ValueError(f"{self.source} was loaded without its images; name their folder with --images DIR")
        return image_file(self.image_dir, self.images[i].file_name)


def find_dataset(folder: Path) -> tuple[Path, Path]:
    """Return the annotation file and the image folder of a COCO folder.

    Raises:
        ValueError: one of them is missing, or there are two annotation files.
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
    """Read and check an annotation file (`.json` or `.json.gz`), or a COCO folder with annotations and images.

    Classes: by default every category of the file, except those whose annotations are all ignored (such as
    `dont_care`) and roots of a hierarchy, which have no annotations and are the `supercategory` of another one. The
    regions of an ignored category apply to every class, also with `categories`. Annotations of the other unselected
    categories are dropped. Any other category without annotations is a class; a file without annotations loads.

    Boxes are clipped to the image and counted. The box of an object must have a width, a height and a part inside its
    image; an ignore region that does not is dropped silently because it has no effect. These two rules do not apply
    to unselected categories.

    Args:
        images: folder that `file_name` is relative to; every file must exist. None loads boxes only.
        categories: names of the classes to keep, in any order.

    Raises:
        ValueError: the file breaks a rule. The message names the file, the first entry at fault, the number of
            others and what to do.
    """
    source = Path(annotations)
    if images is None and source.is_dir():
        source, images = find_dataset(source)
    return build_dataset(read_document(source), source, images, categories=categories)


def build_dataset(
    document: dict[str, Any],
    source: Path,
    images: Path | None = None,
    *,
    categories: Sequence[str] | None = None,
    reading: tuple[str, ...] = (),
    read_again: Callable[[], dict[str, Any]] | None = None,
) -> Dataset:
    """Check the content of the annotation file `source` and return it as arrays; see `load_dataset` and `Dataset`."""
    report = raise_first(source)
    contents = examine(document, report)
    if images is not None:
        images = Path(images)
        check_image_folder(source, images)
        examine_files(contents, source, images, report)

    table, rows = contents.categories, contents.rows
    count, objects = (np.bincount(c, minlength=len(table)) for c in (rows.category, rows.category[~rows.ignore]))
    ignored_only, roots = (count > 0) & (objects == 0), (count == 0) & contents.parents
    if (ignored_only | roots).all():
        roots = np.zeros(len(table), bool)
    selected = _select(source, table, ignored_only | roots, categories)
    if count.any() and not objects[selected].any():
        examine_objects(contents, report)
        raise ValueError(_no_objects(source, table, selected, objects))
    label_of = np.where(selected, np.cumsum(selected) - 1, -1)
    kept = selected | ignored_only
    boxes = examine_boxes(contents, report, kept)
    inside = boxes.inside & kept[rows.category]

    order = np.flatnonzero(inside)
    order = order[np.argsort(rows.image[order], kind="stable")]
    return Dataset(
        images=contents.images,
        image_dir=images,
        source=source,
        classes=tuple(name for (_, name), chosen in zip(table, selected, strict=True) if chosen),
        category_ids=tuple(id for (id, _), chosen in zip(table, selected, strict=True) if chosen),
        boxes=boxes.xyxy[order],
        labels=label_of[rows.category[order]],
        image_index=rows.image[order],
        ignore=rows.ignore[order],
        areas=rows.xywh[order, 2:].prod(axis=1),
        clipped=int((boxes.clipped & inside).sum()),
        roots=tuple(name for (_, name), root in zip(table, roots & ~selected, strict=True) if root),
        reading=reading,
        read_again=read_again,
    )


def read_pixels(dataset: Dataset, i: int) -> NDArray[np.uint8]:
    """Return the pixels of `images[i]`: (H, W, 3) RGB, also from grayscale, 16-bit or RGBA files.

    Raises:
        ValueError: the file is unreadable, or its size contradicts the annotation file.
    """
    with open_image(dataset, i) as scene:
        check_fits_in_memory(dataset.image_path(i), scene.width, scene.height)
        return scene.read(0, 0, scene.width, scene.height)


@contextmanager
def open_image(
    dataset: Dataset, i: int, *, stretch: tuple[float, float] = STRETCH, bands: Sequence[int] | None = None
) -> Iterator[Scene]:
    """Open `images[i]`; a sub-image is the part of its file that it names. The options are those of `open_scene`.

    Raises:
        ValueError: the file is unreadable, or its size contradicts the annotation file.
    """
    record, path = dataset.images[i], dataset.image_path(i)
    size = record.width, record.height
    with open_scene(path, stretch=stretch, bands=bands) as scene:
        if (recorded := size_mismatch(size, record.corner, scene.width, scene.height)) is not None:
            raise ValueError(
                f"{path} is {scene.width}x{scene.height} pixels, but image {record.id} of {dataset.source} {recorded}; "
                "its boxes would be misplaced: correct the one that is wrong"
            )
        yield part_of(scene, size, record.corner)


def _select(
    source: Path, table: Sequence[tuple[int, str]], no_class: NDArray[np.bool_], categories: Sequence[str] | None
) -> NDArray[np.bool_]:
    """(C,) true for the categories that become classes, parallel to `table`."""
    if categories is None:
        return ~no_class
    names = [name for _, name in table]
    check_categories(source, categories, names)
    return np.array([name in categories for name in names])


def _no_objects(
    source: Path, table: Sequence[tuple[int, str]], selected: NDArray[np.bool_], objects: NDArray[np.int64]
) -> str:
    wanted = ", ".join(name for (_, name), chosen in zip(table, selected, strict=True) if chosen)
    held = ", ".join(f"{name} ({n})" for (_, name), n in zip(table, objects, strict=True) if n)
    return f"{source}: no object of {wanted} that is not ignored; select others, the file has {held}"
