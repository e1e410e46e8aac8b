"""`tinydet data erase`: fill ignore regions with their mean color and drop dense images, as in TinyPerson.

The detectors of the benchmark train without ignore regions. Beforehand, each region marked `ignore` or `uncertain` is
filled with its mean color and its annotation is removed. Images with more than 200 annotations are dropped; images
without annotations remain as background. The authors published the erased images but no code for this step.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.arguments import quoted, whole
from tinydet._internal.console import plural
from tinydet._internal.progress import track
from tinydet.data.coco_file import Document, Entry, boxes_of, write_document
from tinydet.data.dataset_arguments import add_source_arguments, source_of
from tinydet.data.output_folder import JPEG_QUALITY, ImageWriter, choose_output, is_annotation_file, new_folder

FLAGS = ("ignore", "iscrowd", "uncertain", "logo")  # each can mark an annotation as an ignore region
# Annotations of a dense image. The paper says 200 and the authors' code 220; no image of TinyPerson lies in between.
DENSE = 200


def erase_regions(
    pixels: NDArray[np.uint8], regions: NDArray[np.float64], spared: NDArray[np.float64] | None = None
) -> NDArray[np.uint8]:
    """Return a copy of `pixels` (H, W, 3) with each region filled with its mean color.

    A region covers every pixel that it touches. The means are those of the original pixels; where regions overlap,
    the last one is on top.

    Args:
        regions: (R, 4) xyxy.
        spared: (M, 4) xyxy, boxes whose pixels stay unchanged.
    """
    erased = pixels.copy()
    for window in _pixel_windows(regions, pixels.shape):
        erased[window] = np.rint(pixels[window].mean(axis=(0, 1)))
    for window in _pixel_windows(np.zeros((0, 4)) if spared is None else spared, pixels.shape):
        erased[window] = pixels[window]
    return erased


def is_dense(annotations: Sequence[Entry], limit: int = DENSE) -> bool:
    """Return whether an image has more than `limit` annotations of any kind, or annotations marked `in_dense_image`."""
    return len(annotations) > limit or any(entry.get("in_dense_image") for entry in annotations)


@dataclass(frozen=True)
class Erased:
    """Result of `erase_document`.

    Attributes:
        content: the new annotation file.
        regions: (R, 4) xyxy by image id, the regions to fill.
        dropped_images: number of dense images that were dropped.
        removed_annotations: number of annotations that were removed from the other images.
    """

    content: dict[str, Any]
    regions: dict[int, NDArray[np.float64]]
    dropped_images: int
    removed_annotations: int


def erase_document(document: Document, flags: Sequence[str] = FLAGS, dense: int | None = None) -> Erased:
    """Remove the annotations that have one of `flags`, and the images with more than `dense` annotations.

    Args:
        dense: see `is_dense`; None keeps all images.

    Raises:
        ValueError: no image is left.
    """
    images = [entry for entry in document.images if dense is None or not is_dense(document.annotations(entry), dense)]
    if not images:
        raise ValueError(f"{document.dataset.source}: every image has more than {dense} annotations; raise --dense")
    ids = {image["id"] for image in images}
    kept: list[Entry] = []
    flagged: dict[int, list[Entry]] = defaultdict(list)
    for entry in document.content["annotations"]:
        if entry["image_id"] in ids:
            erase = any(entry.get(flag) for flag in flags)
            (flagged[entry["image_id"]] if erase else kept).append(entry)
    return Erased(
        document.rewritten(images, kept),
        regions={image: boxes_of(entries) for image, entries in flagged.items()},
        dropped_images=len(document.images) - len(images),
        removed_annotations=sum(map(len, flagged.values())),
    )


def write_erased(
    document: Document,
    erased: Erased,
    folder: Path,
    *,
    spare_objects: bool = False,
    form: str = "same",
    quality: int = JPEG_QUALITY,
) -> int:
    """Write the erased dataset as a COCO folder, atomically. Files of images without regions are copied.

    Args:
        spare_objects: keep the pixels of objects inside regions.
        form, quality: format of the images, see `ImageWriter`.

    Returns:
        The number of objects that lost at least half of their pixels.

    Raises:
        ValueError: an image cannot be read, or `folder` is not empty.
    """
    hidden = 0
    kept = Document(erased.content, document.dataset)
    with new_folder(folder) as work:
        writer = ImageWriter(work / "images", form, quality)
        images = []
        for image in track(kept.images, "image", "erase"):
            regions = erased.regions.get(image["id"], np.zeros((0, 4)))
            if len(regions) or form != "same":
                objects = boxes_of(kept.annotations(image))
                pixels = document.pixels(image)
                if not spare_objects:
                    hidden += _count_hidden(objects, regions, pixels.shape)
                erased_pixels = erase_regions(pixels, regions, objects if spare_objects else None)
                name = writer.write(image["file_name"], erased_pixels)
            else:
                name = writer.copy(image["file_name"], document.image_path(image))
            images.append({**image, "file_name": name})
        write_document(work / "annotations.json", {**erased.content, "images": images})
    return hidden


EXAMPLES = ("tiny_set --output tiny_set-erased --dense 200",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Fill ignore regions with their mean color and remove their annotations; optionally drop dense images. This is "
        "for detectors without support for ignore regions; the training of tinydet supports them."
    )
    add_source_arguments(parser, "erased")
    parser.add_argument(
        "--flags",
        type=_flags,
        default=FLAGS,
        metavar="A,B",
        help=f"erase annotations with one of these flags, or none (default: {','.join(FLAGS)})",
    )
    parser.add_argument(
        "--dense",
        type=whole(0, 10**9),
        metavar="N",
        help=f"drop images with more than N annotations ({DENSE} in the benchmark) and those marked in_dense_image; "
        "default: keep all",
    )
    parser.add_argument(
        "--spare-objects",
        action="store_true",
        help="keep the pixels of objects inside a region (default: fill the whole region)",
    )


def run(args: argparse.Namespace) -> str:
    """Erase regions and return a summary."""
    source = source_of(args, images=args.images)
    document = source.load_document()
    output = choose_output(source.path or source.annotations, document.dataset, args.output, "erased")
    erased = erase_document(document, args.flags, args.dense)
    summary = (
        f"{output}: {plural(len(erased.content['images']), 'image', ',')}, "
        f"{plural(len(erased.content['annotations']), 'box', ',')}; "
        f"{plural(erased.removed_annotations, 'region', ',')} erased, "
        f"{plural(erased.dropped_images, 'dense image', ',')} dropped"
    )
    if is_annotation_file(output):
        write_document(output, erased.content)
        return f"{summary}; annotations only, the images are unchanged"
    hidden = write_erased(
        document, erased, output, spare_objects=args.spare_objects, form=args.format, quality=args.jpeg_quality
    )
    if hidden:
        lost = plural(hidden, "object", ",")
        summary += f"\nnote: {lost} lost at least half of the pixels; --spare-objects keeps such objects"
    return summary


def _pixel_windows(boxes: NDArray[np.float64], shape: tuple[int, ...]) -> list[tuple[slice, slice]]:
    """Return the pixels that each box touches; boxes without an area inside the image are left out."""
    solid = boxes[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)]
    low = np.floor(solid[:, :2]).clip(0).astype(int).tolist()
    high = np.ceil(solid[:, 2:]).clip(0, (shape[1], shape[0])).astype(int).tolist()
    return [(slice(y1, y2), slice(x1, x2)) for (x1, y1), (x2, y2) in zip(low, high, strict=True) if x1 < x2 and y1 < y2]


def _count_hidden(objects: NDArray[np.float64], regions: NDArray[np.float64], shape: tuple[int, ...]) -> int:
    """Return how many objects have at least half of their pixels inside regions."""
    erased = np.zeros(shape[:2], bool)
    for window in _pixel_windows(regions, shape):
        erased[window] = True
    return sum(float(erased[window].mean()) >= 0.5 for window in _pixel_windows(objects, shape))


def _flags(text: str) -> tuple[str, ...]:
    flags = tuple(flag.strip() for flag in text.split(",") if flag.strip() not in ("", "none"))
    unknown = [flag for flag in flags if flag not in FLAGS]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown flag {quoted(unknown[0])}; choose from {', '.join(FLAGS)}, or none")
    return flags
