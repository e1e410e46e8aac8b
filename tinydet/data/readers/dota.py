"""DOTA: one text file per image, one oriented quadrilateral per line.

A line is `x1 y1 x2 y2 x3 y3 x4 y4 category difficult`. Two header lines, `imagesource:...` and `gsd:...`, come first in
some releases, and some lines lack the last field. The box is the axis-aligned bounding box of the quadrilateral.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tinydet._internal.console import plural
from tinydet._internal.progress import track
from tinydet.data.image_files import image_size, list_files
from tinydet.data.readers.coco_builder import CocoBuilder
from tinydet.data.readers.text_files import numbered_lines, pair_with_images, parse_numbers, to_integer

CATEGORIES = (
    "plane",
    "ship",
    "storage-tank",
    "baseball-diamond",
    "tennis-court",
    "basketball-court",
    "ground-track-field",
    "harbor",
    "bridge",
    "large-vehicle",
    "small-vehicle",
    "helicopter",
    "roundabout",
    "soccer-ball-field",
    "swimming-pool",
    "container-crane",  # from 1.5
    "airport",  # from 2.0
    "helipad",
)
_HEADER = ("imagesource:", "gsd:")
_FORM = "x1 y1 x2 y2 x3 y3 x4 y4 category difficult"


def read(
    source: Path, images: Path | None, *, classes: Sequence[str] | None = None, also: Iterable[str] = ()
) -> CocoBuilder:
    """Read the folder `labelTxt`. `difficult` objects become ignore regions.

    Args:
        images: folder of the images; required, because the labels have no image sizes.
        classes: all class names in the order of their ids; None takes those that occur, numbered as published.
        also: class names that occur in other splits.

    Raises:
        ValueError: a file or line is invalid; the message names it.
    """
    pairs, unmatched, notes = pair_with_images(source, images)
    assert images is not None
    coco = CocoBuilder(source, [], notes=notes)
    for text, image in track(pairs, "image", "reading"):
        image_id = coco.add_image(image.as_posix(), image_size(images / image))
        for number, line in numbered_lines(text):
            if line.lower().startswith(_HEADER):
                continue
            location = f"{text} line {number}"
            fields = line.split()
            if len(fields) not in (9, 10):
                raise ValueError(f"{location}: {len(fields)} fields; expected 10: {_FORM}")
            corners = parse_numbers(fields[:8], location, _FORM)
            difficult = 0
            if len(fields) == 10:
                (value,) = parse_numbers(fields[9:], location, _FORM)
                difficult = to_integer(value, 0, 2, location, "difficulty")
            xs, ys = corners[0::2], corners[1::2]
            coco.add_box(
                image_id,
                fields[8],
                (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)),
                location,
                ignore=difficult > 0,
                segmentation=[corners],
                difficult=difficult,
            )
    coco.number_categories(CATEGORIES, classes, also)
    if unmatched:
        coco.notes.append(f"{plural(len(unmatched), 'image')} of {images} left out, without an annotation file")
    return coco


def class_names(source: Path) -> set[str]:
    """Return the class names that occur in a folder `labelTxt`, without checking the lines."""
    texts = (source / file for file in list_files(source, (".txt",)))
    lines = (line.split() for text in texts for _, line in numbered_lines(text))
    return {fields[8] for fields in lines if len(fields) in (9, 10)}
