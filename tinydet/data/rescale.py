"""`tinydet data rescale`: resize images and boxes, as for Tiny CityPersons (1/4) and COCO100 (short side 100)."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from tinydet._internal.arguments import scale, side, whole
from tinydet._internal.console import plural
from tinydet._internal.progress import track
from tinydet.data.coco_entries import polygon_lists
from tinydet.data.coco_file import Document, Entry, outline, write_document
from tinydet.data.coco_rules import VISIBLE_BOXES
from tinydet.data.dataset_arguments import add_source_arguments, source_of
from tinydet.data.output_folder import JPEG_QUALITY, ImageWriter, choose_output, is_annotation_file, new_folder
from tinydet.data.resample import FILTERS, Filter, resample

LONG_OVER_SHORT = 5 / 3  # limit of the long side, as in COCO100 (167 to 100) and COCO detectors (1333 to 800)
MOST_PIXELS = 1 << 30  # of an image, which is held in memory
Resize = Callable[[int, int], tuple[int, int]]  # from the width and height of an image to the new ones


def by_factor(factor: float) -> Resize:
    """Return a rule that multiplies both sides by `factor` and rounds to whole pixels, at least one.

    >>> by_factor(0.25)(2048, 1026)
    (512, 256)

    Raises:
        ValueError: `factor` is not positive or not finite.
    """
    if not 0 < factor < float("inf"):
        raise ValueError(f"the resize factor must be above 0 (0.25 is a quarter), got {factor}")
    return lambda width, height: (max(round(width * factor), 1), max(round(height * factor), 1))


def by_short_side(short: int, longest: int | None = None) -> Resize:
    """Return a rule that makes the short side `short` pixels, or less if the long side would exceed `longest`.

    >>> by_short_side(100, 167)(640, 480), by_short_side(100, 167)(640, 200)
    ((133, 100), (167, 52))

    Raises:
        ValueError: `short` is not positive, or above `longest`.
    """
    longest = round(short * LONG_OVER_SHORT) if longest is None else longest
    if not 0 < short <= longest:
        raise ValueError(
            f"the short side must be at least 1 pixel and at most the long side, got {short} and {longest}"
        )

    def resize(width: int, height: int) -> tuple[int, int]:
        factor = min(short / min(width, height), longest / max(width, height))
        return max(int(width * factor + 0.5), 1), max(int(height * factor + 0.5), 1)

    return resize


def rescale_document(document: Document, resize: Resize, *, digits: int | None = None) -> dict[str, Any]:
    """Return the annotation file for resized images.

    Boxes, visible boxes, polygons and keypoints are multiplied by new size / old size along each axis, without
    rounding. `area` becomes width * height, `size` (if present) its square root, and a run-length mask the outline of
    its box. All other fields are kept.

    Args:
        digits: decimals to round coordinates to (3 in COCO100); sides stay at least one unit in the last place.
    """
    sizes = [resize(image["width"], image["height"]) for image in document.images]
    return resize_document(document, sizes, digits=digits)


def resize_document(
    document: Document,
    sizes: Sequence[tuple[int, int]],
    *,
    digits: int | None = None,
    removed: Collection[int] = (),
) -> dict[str, Any]:
    """Return the annotation file for images of the given sizes; see `rescale_document`.

    Args:
        sizes: new width and height of each image, in the order of the document.
        removed: ids of annotations to leave out.
    """
    images = []
    factors = {}
    for image, (width, height) in zip(document.images, sizes, strict=True):
        images.append({**image, "width": width, "height": height})
        factors[image["id"]] = width / image["width"], height / image["height"]
    annotations = [
        rescale_annotation(entry, *factors[entry["image_id"]], digits=digits)
        for entry in document.content["annotations"]
        if entry["id"] not in removed
    ]
    return document.rewritten(images, annotations)


def rescale_annotation(annotation: Entry, x: float, y: float, *, digits: int | None = None) -> Entry:
    """Return an annotation with its coordinates multiplied by `x` and `y`; see `rescale_document`."""

    def box(values: list[float]) -> list[float]:
        scaled = [value * factor for value, factor in zip(values, (x, y, x, y), strict=True)]
        if digits is None:
            return scaled
        smallest = 10.0**-digits
        sides = [max(round(value, digits), smallest) for value in scaled[2:]]
        return [round(value, digits) for value in scaled[:2]] + sides

    def points(values: list[float], step: int) -> list[float]:
        factors = {0: x, 1: y}
        scaled = [value * factors.get(n % step, 1) for n, value in enumerate(values)]
        return scaled if digits is None else [round(value, digits) for value in scaled]

    bbox = box(annotation["bbox"])
    entry = {**annotation, "bbox": bbox, "area": bbox[2] * bbox[3]}
    if "size" in entry:
        entry["size"] = entry["area"] ** 0.5
    for key in VISIBLE_BOXES:
        if entry.get(key) is not None:
            entry[key] = box(entry[key])
    if isinstance(shape := entry.get("segmentation"), list):
        entry["segmentation"] = [points(part, 2) for part in polygon_lists(shape)]
    elif shape is not None:
        entry["segmentation"] = outline(*bbox)
    if entry.get("keypoints") is not None:
        if len(entry["keypoints"]) % 3:
            raise ValueError(
                f"annotation {entry['id']} has {len(entry['keypoints'])} numbers in 'keypoints', which are not triples "
                "of x, y and visibility; remove the field"
            )
        entry["keypoints"] = points(entry["keypoints"], 3)
    return entry


def write_rescaled(
    document: Document,
    content: dict[str, Any],
    folder: Path,
    *,
    filter: Filter = "area",
    form: str = "same",
    quality: int = JPEG_QUALITY,
) -> None:
    """Write a COCO folder with the images resized to the sizes in `content`, atomically.

    Args:
        content: result of `rescale_document` or `resize_document`.
        filter: see `resample`.
        form, quality: format of the images, see `ImageWriter`.

    Raises:
        ValueError: an image would be too large or cannot be read, or `folder` is not empty.
    """
    for image in content["images"]:
        if image["width"] * image["height"] > MOST_PIXELS:
            raise ValueError(
                f"{image['file_name']} would become {image['width']}x{image['height']} pixels, too many to hold at "
                "once; choose a smaller factor, or cut the image into tiles first"
            )
    with new_folder(folder) as work:
        writer = ImageWriter(work / "images", form, quality)
        images = []
        pairs = zip(document.images, content["images"], strict=True)
        for old, new in track(pairs, "image", "rescale", total=len(document.images)):
            pixels = resample(document.pixels(old), new["width"], new["height"], filter)
            images.append({**new, "file_name": writer.write(old["file_name"], pixels)})
        write_document(work / "annotations.json", {**content, "images": images})


EXAMPLES = ("citypersons --factor 1/4 --output tiny-citypersons",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Resize the images of a dataset together with their boxes."
    add_source_arguments(parser, "rescaled")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument(
        "--factor",
        type=_factor,
        metavar="F",
        help="multiply width and height by F, such as 0.25 or 1/4 (Tiny CityPersons)",
    )
    how.add_argument(
        "--short", type=side, metavar="PIXELS", help="resize the short side to this length, such as 100 (COCO100)"
    )
    parser.add_argument(
        "--long",
        type=side,
        metavar="PIXELS",
        help="with --short, maximum length of the long side (default: 5/3 of the short side, such as 167 for 100)",
    )
    parser.add_argument(
        "--filter",
        choices=FILTERS,
        default="area",
        help="resampling filter; all of them avoid aliasing (default: area)",
    )
    parser.add_argument(
        "--round",
        type=whole(0, 15),
        metavar="DIGITS",
        help="round coordinates to this many decimals, 3 in COCO100 (default: do not round)",
    )


def run(args: argparse.Namespace) -> str:
    """Rescale the dataset and return a summary."""
    if args.long is not None and args.short is None:
        raise ValueError("--long limits the long side of images that --short resizes; add --short, or leave out --long")
    resize = by_factor(args.factor) if args.short is None else by_short_side(args.short, args.long)
    source = source_of(args, images=args.images)
    document = source.load_document()
    output = choose_output(source.path or source.annotations, document.dataset, args.output, "rescaled")
    content = rescale_document(document, resize, digits=args.round)
    if is_annotation_file(output):
        write_document(output, content)
    else:
        write_rescaled(document, content, output, filter=args.filter, form=args.format, quality=args.jpeg_quality)
    images, boxes = len(content["images"]), len(content["annotations"])
    return f"{output}: {plural(images, 'image', ',')}, {plural(boxes, 'box', ',')}"


def _factor(text: str) -> float:
    top, over, bottom = text.partition("/")
    try:
        return scale(str(side(top) / side(bottom))) if over else scale(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}; write it as 0.25 or 1/4") from None
