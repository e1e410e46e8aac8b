"""VisDrone-DET: a text file for each picture, one box a line.

`left,top,width,height,score,category,truncation,occlusion`, whole pixels. In ground truth the score is 1, or 0 for a
box that scoring ignores. Category 0 are ignored regions, 11 are others, which are ignored too. Published in
VisDrone/VisDrone2018-DET-toolkit; some files end their lines with a comma, and a few boxes have no height.
"""

from __future__ import annotations

from pathlib import Path

from tinydet.data.image_files import picture_size
from tinydet.data.readers.collection import Collection
from tinydet.data.readers.text import numbered_lines, pair_with_pictures, to_numbers, to_whole

CATEGORIES = (
    "ignored regions",
    "pedestrian",
    "people",
    "bicycle",
    "car",
    "van",
    "truck",
    "tricycle",
    "awning-tricycle",
    "bus",
    "motor",
    "others",
)
REGIONS, OTHERS = 0, 11
_FORM = "left,top,width,height,score,category,truncation,occlusion"


def read(source: Path, images: Path | None) -> Collection:
    """The folder `annotations` of a VisDrone-DET set, with its folder `images`.

    Raises:
        ValueError: naming the file and the line.
    """
    pairs, alone = pair_with_pictures(source, images)
    assert images is not None
    found = Collection(source, [])
    for text, picture in pairs:
        image_id = found.add_image(picture.as_posix(), picture_size(images / picture))
        for number, line in numbered_lines(text):
            where = f"{text} line {number}"
            fields = line.removesuffix(",").split(",")
            if len(fields) != 8:
                raise ValueError(f"{where}: {len(fields)} numbers; expected 8: {_FORM}")
            left, top, width, height, score, category, truncation, occlusion = to_numbers(fields, where, _FORM)
            if width < 0 or height < 0:
                raise ValueError(f"{where}: a box of {width:g}x{height:g} pixels; expected {_FORM}")
            kind = to_whole(category, 0, OTHERS, where, "category")
            considered = to_whole(score, 0, 1, where, "score")
            found.add_box(
                image_id,
                kind,
                (left, top, width, height),
                where,
                ignore=kind in (REGIONS, OTHERS) or not considered,
                crowd=kind == REGIONS,
                score=considered,
                truncation=to_whole(truncation, -1, 1, where, "truncation"),
                occlusion=to_whole(occlusion, -1, 2, where, "occlusion"),
            )
    # A category of ignore regions alone would pass for a class where none of its boxes is in the set.
    used = {annotation["category_id"] for annotation in found.annotations} | set(range(REGIONS + 1, OTHERS))
    found.categories = [{"id": n, "name": name} for n, name in enumerate(CATEGORIES) if n in used]
    if alone:
        found.notes.append(f"{len(alone)} pictures of {images} have no annotation file and are left out")
    return found
