"""`tinydet data rescale`: a data set with smaller pictures, as Tiny CityPersons (1/4) and COCO100 (short side 100)."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tinydet.data.coco_file import VISIBLE_BOXES, Document, Entry, load_document, outline, write_document
from tinydet.data.output_folder import (
    JPEG_QUALITY,
    PictureFolder,
    add_source_arguments,
    choose_output,
    is_annotation_file,
    new_folder,
)
from tinydet.data.resample import FILTERS, Filter, resample

LONG_OVER_SHORT = 5 / 3  # 167 to 100 and 1333 to 800: how COCO's detectors cap the long side
Resize = Callable[[int, int], tuple[int, int]]  # (width, height) of a picture -> those of the new one


def by_factor(factor: float) -> Resize:
    """Sides times `factor`, rounded to whole pixels, at least one.

    Raises:
        ValueError: for a factor that is not positive.
    """
    if not 0 < factor < float("inf"):
        raise ValueError(f"the factor of a resize is above 0 (0.25 = a quarter), got {factor}")
    return lambda width, height: (max(round(width * factor), 1), max(round(height * factor), 1))


def by_short_side(short: int, longest: int | None = None) -> Resize:
    """The short side becomes `short` pixels, unless the long side would exceed `longest`: then that.

    >>> by_short_side(100, 167)(640, 480), by_short_side(100, 167)(640, 200)
    ((133, 100), (167, 52))

    Raises:
        ValueError: for sides that are not positive, or a longest side below the short one.
    """
    longest = round(short * LONG_OVER_SHORT) if longest is None else longest
    if not 0 < short <= longest:
        raise ValueError(f"the short side is at least 1 pixel and at most the long one, got {short} and {longest}")

    def resize(width: int, height: int) -> tuple[int, int]:
        factor = min(short / min(width, height), longest / max(width, height))
        return max(int(width * factor + 0.5), 1), max(int(height * factor + 0.5), 1)

    return resize


def rescale_document(document: Document, resize: Resize, *, digits: int | None = None) -> dict[str, Any]:
    """The annotation file for pictures of other sizes; all fields that it does not mention are carried over.

    Boxes, visible boxes, polygons and keypoints are multiplied by new size / old size, for each axis, and not rounded.
    `area` becomes width * height and `size`, where there is one, its root. A run-length mask becomes its box.

    Args:
        digits: decimals to round coordinates to (COCO100 has 3); a side stays at least one unit of the last.
    """
    images = []
    factors = {}
    for image in document.images:
        width, height = int(image["width"]), int(image["height"])
        new_width, new_height = resize(width, height)
        images.append({**image, "width": new_width, "height": new_height})
        factors[int(image["id"])] = new_width / width, new_height / height
    listed = document.content["annotations"]
    annotations = [rescaled(entry, *factors[int(entry["image_id"])], digits=digits) for entry in listed]
    return document.rewritten(images, annotations)


def rescaled(annotation: Entry, x: float, y: float, *, digits: int | None = None) -> Entry:
    """An annotation with its coordinates multiplied; see `rescale_document`."""

    def box(values: list[float]) -> list[float]:
        scaled = [value * factor for value, factor in zip(values, (x, y, x, y), strict=True)]
        if digits is None:
            return scaled
        least = 10.0**-digits
        return [round(value, digits) for value in scaled[:2]] + [max(round(v, digits), least) for v in scaled[2:]]

    def points(values: list[float], step: int) -> list[float]:
        factors = {0: x, 1: y}
        scaled = [value * factors.get(n % step, 1) for n, value in enumerate(values)]
        return scaled if digits is None else [round(value, digits) for value in scaled]

    bbox = box(annotation["bbox"])
    entry = {**annotation, "bbox": bbox, "area": bbox[2] * bbox[3]}
    if "size" in entry:
        entry["size"] = entry["area"] ** 0.5
    for key in VISIBLE_BOXES:
        if key in entry:
            entry[key] = box(entry[key])
    if "segmentation" in entry:
        shape = entry["segmentation"]
        entry["segmentation"] = [points(part, 2) for part in shape] if isinstance(shape, list) else outline(*bbox)
    if "keypoints" in entry:
        entry["keypoints"] = points(entry["keypoints"], 3)
    return entry


def write_rescaled(
    document: Document,
    content: dict[str, Any],
    folder: Path,
    *,
    kind: Filter = "area",
    form: str = "same",
    quality: int = JPEG_QUALITY,
) -> None:
    """Write a COCO folder with pictures of the sizes that `content` says, atomically.

    Args:
        content: as `rescale_document` gives it, images in the order of the document.
        kind: how pictures are resampled, see `resample`.
        form, quality: of the pictures, see `PictureFolder`.

    Raises:
        ValueError: where an image cannot be read, or `folder` has something in it.
    """
    with new_folder(folder) as work:
        pictures = PictureFolder(work / "images", form, quality)
        images = []
        pairs = zip(document.images, content["images"], strict=True)
        for old, new in tqdm(pairs, desc="rescale", unit="image", total=len(document.images), disable=None):
            pixels = resample(document.pixels(old), new["width"], new["height"], kind)
            images.append({**new, "file_name": pictures.write(old["file_name"], pixels)})
        write_document(work / "annotations.json", {**content, "images": images})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Write a data set with smaller (or larger) pictures and the boxes to match."
    parser.epilog = "example: tinydet data rescale citypersons --factor 1/4 --output tiny-citypersons"
    add_source_arguments(parser, "rescaled")
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument(
        "--factor", type=_factor, metavar="F", help="resize factor, as 0.25 or 1/4 (Tiny CityPersons); no default"
    )
    how.add_argument(
        "--short", type=int, metavar="PIXELS", help="length of the short side, as 100 (COCO100); no default"
    )
    parser.add_argument(
        "--long",
        type=int,
        metavar="PIXELS",
        help="with --short, the most that the long side may be; default: 5/3 of it (167 to 100)",
    )
    parser.add_argument(
        "--filter",
        choices=FILTERS,
        default="area",
        help="how pictures are resampled; all three are free of aliasing; default: area",
    )
    parser.add_argument(
        "--round", type=int, metavar="DIGITS", help="decimals of the coordinates; COCO100 has 3; default: all"
    )


def run(args: argparse.Namespace) -> str:
    """Rescale as the arguments say; returns what was done."""
    if args.long is not None and args.short is None:
        raise ValueError("--long caps the long side where --short sets the short one; name both, or --factor alone")
    resize = by_factor(args.factor) if args.short is None else by_short_side(args.short, args.long)
    document = load_document(args.source, args.images)
    output = choose_output(args.source, document.dataset, args.output, "rescaled")
    content = rescale_document(document, resize, digits=args.round)
    if is_annotation_file(output):
        write_document(output, content)
    else:
        write_rescaled(document, content, output, kind=args.filter, form=args.format, quality=args.jpeg_quality)
    images, boxes = len(content["images"]), len(content["annotations"])
    return f"{output}: {images:,} images, {boxes:,} boxes"


def _factor(text: str) -> float:
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"expected a number as 0.25 or 1/4, got {text!r}") from None
