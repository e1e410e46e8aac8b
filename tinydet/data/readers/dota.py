"""DOTA: a text file for each picture, one oriented quadrilateral a line.

`x1 y1 x2 y2 x3 y3 x4 y4 category difficult` after two lines of heading, `imagesource:...` and `gsd:...`, which some
releases lack, as do some lines the last field. The box is the axis-aligned one around the quadrilateral.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tinydet.data.image_files import picture_size
from tinydet.data.readers.collection import Collection
from tinydet.data.readers.text import numbered_lines, pair_with_pictures, to_numbers, to_whole

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
_HEADING = ("imagesource:", "gsd:")
_FORM = "x1 y1 x2 y2 x3 y3 x4 y4 category difficult"


def read(source: Path, images: Path | None, *, classes: Sequence[str] | None = None) -> Collection:
    """The folder `labelTxt` of a DOTA set, with its folder `images`; `difficult` objects become ignore regions.

    Args:
        classes: all names in the order of their ids; None: those that occur, numbered as published.

    Raises:
        ValueError: naming the file and the line.
    """
    pairs, alone = pair_with_pictures(source, images)
    assert images is not None
    found = Collection(source, [])
    for text, picture in pairs:
        image_id = found.add_image(picture.as_posix(), picture_size(images / picture))
        for number, line in numbered_lines(text):
            if line.lower().startswith(_HEADING):
                continue
            where = f"{text} line {number}"
            fields = line.split()
            if len(fields) not in (9, 10):
                raise ValueError(f"{where}: {len(fields)} fields; expected 10: {_FORM}")
            corners = to_numbers(fields[:8], where, _FORM)
            difficult = 0
            if len(fields) == 10:
                (value,) = to_numbers(fields[9:], where, _FORM)
                difficult = to_whole(value, 0, 2, where, "difficulty")
            xs, ys = corners[0::2], corners[1::2]
            found.add_box(
                image_id,
                fields[8],
                (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)),
                where,
                ignore=difficult > 0,
                segmentation=[corners],
                difficult=difficult,
            )
    found.number_categories(CATEGORIES, classes)
    if alone:
        found.notes.append(f"{len(alone)} pictures of {images} have no annotation file and are left out")
    return found
