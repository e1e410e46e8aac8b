"""YOLO: one text file per image, one object per line; class names in `data.yaml` or `classes.txt`.

A line is `class x y width height`: the class number from 0, then center and size as fractions of the image size. Lines
with more numbers hold the corners of a polygon (segmentation, oriented boxes); the box is its bounding box. An image
without a text file, or with an empty one, has no objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tinydet.data.image_files import image_size
from tinydet.data.readers.class_names import read_class_names
from tinydet.data.readers.coco_builder import CocoBuilder
from tinydet.data.readers.text_files import numbered_lines, pair_with_images, parse_numbers, to_integer

# Files of class names, looked up in the folder of labels and its two parents.
CLASS_FILES = ("data.yaml", "data.yml", "classes.txt", "obj.names")
_FORM = "class x y width height, as fractions of the image size from 0 to 1"
_TOLERANCE = 0.01  # for labels that were rounded, or drawn beyond the border


def read(source: Path, images: Path | None, *, classes: Sequence[str] | None = None) -> CocoBuilder:
    """Read a folder of labels.

    Args:
        images: folder of the images; required, because the labels have no image sizes.
        classes: class names in the order of their numbers; None reads the nearest of `CLASS_FILES`.

    Raises:
        ValueError: a file or line is invalid; the message names it.
        ModuleNotFoundError: PyYAML is not installed.
    """
    names = list(classes) if classes is not None else _find_class_names(source)
    pairs, unmatched = pair_with_images(source, images, skip=frozenset(CLASS_FILES))
    assert images is not None
    coco = CocoBuilder(source, [{"id": n, "name": name} for n, name in enumerate(names)])
    labels = {image: text for text, image in pairs}
    for image in sorted([*labels, *unmatched]):
        size = image_size(images / image)
        image_id = coco.add_image(image.as_posix(), size)
        for number, line in numbered_lines(labels[image]) if image in labels else ():
            location = f"{labels[image]} line {number}"
            category, *fractions = parse_numbers(line.split(), location, _FORM)
            category = to_integer(category, 0, len(names) - 1, location, "class")
            coco.add_box(image_id, category, _to_pixels(fractions, size, location), location)
    if unmatched:
        coco.notes.append(f"{len(unmatched)} images of {images} have no label file: images without objects")
    return coco


def _find_class_names(source: Path) -> list[str]:
    """Read the first of `CLASS_FILES` in the folder of labels or its two parents."""
    folder = source.parent if source.is_file() else source
    for parent in (folder, *list(folder.absolute().parents)[:2]):
        for name in CLASS_FILES:
            if (parent / name).is_file():
                return read_class_names(parent / name)
    raise ValueError(
        f"{source}: no {', '.join(CLASS_FILES)} here or in the two parent folders; name the file of class names with "
        "--classes"
    )


def _to_pixels(fractions: list[float], size: tuple[int, int], location: str) -> tuple[float, float, float, float]:
    """Convert the numbers of a line to x, y, width, height in pixels."""
    if any(not -_TOLERANCE <= fraction <= 1 + _TOLERANCE for fraction in fractions):
        raise ValueError(f"{location}: a fraction of the image size is not from 0 to 1; expected {_FORM}")
    if len(fractions) == 4:
        x, y, width, height = fractions
        if width < 0 or height < 0:
            raise ValueError(f"{location}: a box with a negative side; expected {_FORM}")
        left, top = x - width / 2, y - height / 2
    elif len(fractions) >= 6 and len(fractions) % 2 == 0:
        left, top = min(fractions[0::2]), min(fractions[1::2])
        width, height = max(fractions[0::2]) - left, max(fractions[1::2]) - top
    else:
        raise ValueError(f"{location}: {len(fractions) + 1} numbers; expected 5: {_FORM}")
    return left * size[0], top * size[1], width * size[0], height * size[1]
