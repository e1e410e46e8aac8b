"""VisDrone-DET: one text file per image, one box per line.

A line is `left,top,width,height,score,category,truncation,occlusion`, in whole pixels. In the ground truth the score is
1, or 0 for boxes that the evaluation ignores. Categories 0 (ignored regions) and 11 (others) are ignored too. Lines of
some files end with a comma, and a few boxes have no height. The format is published in
VisDrone/VisDrone2018-DET-toolkit.
"""

from __future__ import annotations

from pathlib import Path

from tinydet._internal.console import plural
from tinydet._internal.progress import track
from tinydet.data.image_files import image_size
from tinydet.data.readers.coco_builder import CocoBuilder
from tinydet.data.readers.text_files import numbered_lines, pair_with_images, parse_numbers, to_integer

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


def read(source: Path, images: Path | None) -> CocoBuilder:
    """Read the folder `annotations`. Ignored regions, others and boxes of score 0 become ignore regions.

    Args:
        images: folder of the images; required, because the annotations have no image sizes.

    Raises:
        ValueError: a file or line is invalid; the message names it.
    """
    pairs, unmatched, notes = pair_with_images(source, images)
    assert images is not None
    coco = CocoBuilder(source, [], notes=notes)
    for text, image in track(pairs, "image", "reading"):
        image_id = coco.add_image(image.as_posix(), image_size(images / image))
        for number, line in numbered_lines(text):
            location = f"{text} line {number}"
            fields = line.removesuffix(",").split(",")
            if len(fields) != 8:
                raise ValueError(f"{location}: {len(fields)} numbers; expected 8: {_FORM}")
            left, top, width, height, score, category, truncation, occlusion = parse_numbers(fields, location, _FORM)
            if width < 0 or height < 0:
                raise ValueError(f"{location}: a box of {width:g}x{height:g} pixels; expected {_FORM}")
            category_id = to_integer(category, 0, OTHERS, location, "category")
            evaluated = to_integer(score, 0, 1, location, "score")
            coco.add_box(
                image_id,
                category_id,
                (left, top, width, height),
                location,
                ignore=category_id in (REGIONS, OTHERS) or not evaluated,
                crowd=category_id == REGIONS,
                score=evaluated,
                truncation=to_integer(truncation, -1, 1, location, "truncation"),
                occlusion=to_integer(occlusion, -1, 2, location, "occlusion"),
            )
    # A category without annotations counts as a class, so list the ignored ones only if they occur.
    used = {annotation["category_id"] for annotation in coco.annotations} | set(range(REGIONS + 1, OTHERS))
    coco.categories = [{"id": n, "name": name} for n, name in enumerate(CATEGORIES) if n in used]
    if unmatched:
        coco.notes.append(f"{plural(len(unmatched), 'image')} of {images} left out, without an annotation file")
    return coco
