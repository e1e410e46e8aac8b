"""YOLO: one text file per image, one object per line; class names in `data.yaml` or `classes.txt`.

A line is `class x y width height`: the class number from 0, then center and size as fractions of the image size. Lines
with more numbers have keypoints after the box (pose), or the corners of a polygon (segmentation, oriented boxes), whose
bounding box is read; see `LabelForm`. An image without a text file, or with an empty one, has no objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tinydet._internal.console import plural
from tinydet._internal.progress import track
from tinydet.data.image_files import image_size
from tinydet.data.readers.class_names import DataFile, read_class_names, read_data_file
from tinydet.data.readers.coco_builder import CocoBuilder
from tinydet.data.readers.text_files import YAML_SUFFIXES, numbered_lines, pair_with_images, parse_numbers, to_integer
from tinydet.data.readers.yolo_lines import FORM, LabelForm, Labels

# Files of class names, looked up in the folder of labels and its two parents.
DATA_FILES = ("data.yaml", "data.yml")
CLASS_FILES = (*DATA_FILES, "classes.txt", "obj.names")
# Text files that other programs put next to labels: class names, lists of images, and descriptions.
NOT_LABELS = frozenset(
    {"classes.txt", "train.txt", "val.txt", "valid.txt", "test.txt", "labels.txt", "README.txt"}
    | {"README.dataset.txt", "README.roboflow.txt"}
)


def read(
    source: Path,
    images: Path | None,
    *,
    classes: Sequence[str] | Path | None = None,
    labels: Labels | None = None,
    orphans: bool = False,
) -> CocoBuilder:
    """Read a folder of labels.

    Args:
        images: folder of the images; required, because the labels have no image sizes.
        classes: class names in the order of their numbers, or a file of them; None reads the nearest of `CLASS_FILES`.
        labels: what the numbers of a line mean; None: as data.yaml says, or by evidence from all lines.
        orphans: leave out labels without an image, with a note.

    Raises:
        ValueError: a file or line is invalid, or the meaning of its numbers is not clear; the message names it.
        ModuleNotFoundError: PyYAML is not installed.
    """
    data = _find_data_file(source, classes) if labels is None else None
    names = _class_names(source, classes)
    pairs, unmatched, notes = pair_with_images(source, images, skip=NOT_LABELS, orphans=orphans)
    assert images is not None
    everything = [*pairs, *((None, image) for image in unmatched)]
    return read_pairs(source, images, everything, names, LabelForm(labels, data), notes)


def read_pairs(
    source: Path,
    images: Path,
    pairs: Iterable[tuple[Path | None, Path]],
    names: Sequence[str],
    form: LabelForm,
    notes: Iterable[str] = (),
) -> CocoBuilder:
    """Read the labels of images.

    Args:
        source: for messages.
        images: folder of the images.
        pairs: text file, None without one, and image, relative to `images`.
        names: of the classes.

    Raises:
        ValueError: as `read`.
    """
    coco = CocoBuilder(source, [{"id": n, "name": name} for n, name in enumerate(names)], notes=list(notes))
    rows: dict[Path, list[tuple[str, int, list[float]]]] = {}
    unlabeled = 0
    for text, image in pairs:
        rows[image] = []
        unlabeled += text is None
        for number, line in numbered_lines(text) if text is not None else ():
            location = f"{text} line {number}"
            category, *numbers = parse_numbers(line.split(), location, FORM)
            rows[image].append((location, to_integer(category, 0, len(names) - 1, location, "class"), numbers))
            form.add(numbers, location)
    meaning = form.decide()
    for image in track(sorted(rows), "image", "reading"):
        width, height = image_size(images / image)
        image_id = coco.add_image(image.as_posix(), (width, height))
        for location, category_id, numbers in rows[image]:
            x, y, w, h = form.box(numbers, meaning, location)
            coco.add_box(image_id, category_id, (x * width, y * height, w * width, h * height), location)
    coco.notes += form.notes(meaning)
    if unlabeled:
        coco.notes.append(f"{plural(unlabeled, 'image')} of {images} without a label file: images without objects")
    return coco


def _folders(source: Path) -> list[Path]:
    """Return the folder of labels and its two parents."""
    folder = source.parent if source.is_file() else source
    return [folder, *list(folder.absolute().parents)[:2]]


def _class_names(source: Path, classes: Sequence[str] | Path | None) -> list[str]:
    """Return the names that `classes` gives, or those of the first of `CLASS_FILES` that is found."""
    if isinstance(classes, Path):
        return read_class_names(classes)
    if classes is not None:
        return list(classes)
    for folder in _folders(source):
        found = {name: read_class_names(folder / name) for name in CLASS_FILES if (folder / name).is_file()}
        if found:
            first = next(iter(found))
            if other := [name for name in found if found[name] != found[first]]:
                raise ValueError(
                    f"{folder / first} and {folder / other[0]} have different class names; name the right one with "
                    "--classes"
                )
            return found[first]
    raise ValueError(
        f"{source}: no {', '.join(CLASS_FILES)} here or in the two parent folders; write the class names to "
        f"{_folders(source)[0].parent / 'classes.txt'}, one per line in the order of their numbers"
    )


def _find_data_file(source: Path, classes: Sequence[str] | Path | None) -> DataFile | None:
    """Return the data.yaml that is given or nearest, None if there is none."""
    if isinstance(classes, Path) and classes.suffix.lower() in YAML_SUFFIXES:
        return read_data_file(classes)
    paths = (folder / name for folder in _folders(source) for name in DATA_FILES)
    return next((read_data_file(path) for path in paths if path.is_file()), None)
