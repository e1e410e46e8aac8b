"""`tinydet data erase`: regions to ignore painted over and dense images left out, as for TinyPerson's training set.

Detectors of the benchmark train without ignore regions: offline, each region marked `ignore` or `uncertain` is filled
with its mean colour and its annotation removed; images with more than 200 annotations are left out, images without
any are kept as background. The authors gave away their erased pictures but no program.
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
from tqdm import tqdm

from tinydet.data.coco_file import Document, Entry, boxes_of, load_document, write_document
from tinydet.data.output_folder import (
    JPEG_QUALITY,
    PictureFolder,
    add_source_arguments,
    choose_output,
    is_annotation_file,
    new_folder,
)

FLAGS = ("ignore", "iscrowd", "uncertain", "logo")
DENSE = 200  # annotations; the authors' program says 220, their paper 200, and no image of theirs lies between


def erase_regions(
    pixels: NDArray[np.uint8], regions: NDArray[np.float64], spared: NDArray[np.float64] | None = None
) -> NDArray[np.uint8]:
    """A copy of `pixels` (H, W, 3) with each region filled with its mean colour.

    A region covers every pixel that it touches. Its mean is that of the picture as it came, so that the order of
    overlapping regions decides only which colour lies on top: the last.

    Args:
        regions: (R, 4) xyxy.
        spared: (M, 4) xyxy, boxes whose pixels stay as they are.
    """
    erased = pixels.copy()
    for window in _windows(regions, pixels.shape):
        erased[window] = np.rint(pixels[window].mean(axis=(0, 1)))
    for window in _windows(np.zeros((0, 4)) if spared is None else spared, pixels.shape):
        erased[window] = pixels[window]
    return erased


def is_dense(annotations: Sequence[Entry], limit: int = DENSE) -> bool:
    """Whether an image has more than `limit` annotations, of whatever kind, or says of itself that it is dense."""
    return len(annotations) > limit or any(entry.get("in_dense_image") for entry in annotations)


@dataclass(frozen=True)
class Erased:
    """What `erase_document` leaves, and what it took.

    Attributes:
        content: the annotation file.
        regions: by image id, (R, 4) xyxy, what to paint over.
        images: how many images were left out.
        annotations: how many annotations of the others were removed.
    """

    content: dict[str, Any]
    regions: dict[int, NDArray[np.float64]]
    images: int
    annotations: int


def erase_document(document: Document, flags: Sequence[str] = FLAGS, dense: int | None = None) -> Erased:
    """The data set without annotations that have one of `flags`, and without images denser than `dense`.

    Raises:
        ValueError: where no image is left.
    """
    images = [entry for entry in document.images if dense is None or not is_dense(document.annotations(entry), dense)]
    if not images:
        raise ValueError(f"{document.dataset.source}: every image has more than {dense} annotations; raise --dense")
    left = {int(image["id"]) for image in images}
    listed = [entry for entry in document.content["annotations"] if int(entry["image_id"]) in left]
    kept = [entry for entry in listed if not any(entry.get(flag) for flag in flags)]
    flagged: dict[int, list[Entry]] = defaultdict(list)
    for entry in listed:
        if any(entry.get(flag) for flag in flags):
            flagged[int(entry["image_id"])].append(entry)
    regions = {image: boxes_of(entries) for image, entries in flagged.items()}
    return Erased(
        document.rewritten(images, kept), regions, len(document.images) - len(images), len(listed) - len(kept)
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
    """Write the erased data set as a COCO folder, atomically; pictures without regions are copied as they are.

    Args:
        spare_objects: objects inside a region keep their pixels.
        form, quality: of the pictures, see `PictureFolder`.

    Returns:
        How many objects lost half of their pixels or more.

    Raises:
        ValueError: where an image cannot be read, or `folder` has something in it.
    """
    hidden = 0
    kept = Document(erased.content, document.dataset)
    with new_folder(folder) as work:
        pictures = PictureFolder(work / "images", form, quality)
        images = []
        for image in tqdm(kept.images, desc="erase", unit="image", disable=None):
            regions = erased.regions.get(int(image["id"]), np.zeros((0, 4)))
            if len(regions) or form != "same":
                objects = boxes_of(kept.annotations(image))
                pixels = document.pixels(image)
                if not spare_objects:
                    hidden += _half_hidden(objects, regions, pixels.shape)
                erased_pixels = erase_regions(pixels, regions, objects if spare_objects else None)
                name = pictures.write(image["file_name"], erased_pixels)
            else:
                name = pictures.copy(image["file_name"], document.image_path(image))
            images.append({**image, "file_name": name})
        write_document(work / "annotations.json", {**erased.content, "images": images})
    return hidden


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Fill regions to ignore with their mean colour and remove their annotations; leave out dense images. For "
        "detectors that know no ignore regions; tinydet's own training respects them without this."
    )
    parser.epilog = "example: tinydet data erase tiny_set --output tiny_set-erased --dense 200"
    add_source_arguments(parser, "erased")
    parser.add_argument(
        "--flags",
        type=_flags,
        default=FLAGS,
        metavar="A,B",
        help=f"which annotations to erase, of {','.join(FLAGS)}, or none; default: all of them",
    )
    parser.add_argument(
        "--dense",
        type=int,
        metavar="N",
        help=f"leave out images with more than N annotations; the benchmark says {DENSE}; default: keep all",
    )
    parser.add_argument(
        "--spare-objects",
        action="store_true",
        help="objects inside a region keep their pixels; default: the whole region is filled",
    )


def run(args: argparse.Namespace) -> str:
    """Erase as the arguments say; returns what was done."""
    document = load_document(args.source, args.images)
    output = choose_output(args.source, document.dataset, args.output, "erased")
    erased = erase_document(document, args.flags, args.dense)
    done = (
        f"{output}: {len(erased.content['images']):,} images, {len(erased.content['annotations']):,} boxes; "
        f"{erased.annotations:,} regions erased, {erased.images:,} dense images left out"
    )
    if is_annotation_file(output):
        write_document(output, erased.content)
        return f"{done}; annotations only, the pictures are as they were"
    hidden = write_erased(
        document, erased, output, spare_objects=args.spare_objects, form=args.format, quality=args.jpeg_quality
    )
    if hidden:
        done += f"\nnote: {hidden:,} objects lost half of their pixels or more; --spare-objects keeps them"
    return done


def _windows(boxes: NDArray[np.float64], shape: tuple[int, ...]) -> list[tuple[slice, slice]]:
    """The pixels that boxes touch; none for a box without an area in the image."""
    solid = boxes[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)]
    low = np.floor(solid[:, :2]).clip(0).astype(int).tolist()
    high = np.ceil(solid[:, 2:]).clip(0, (shape[1], shape[0])).astype(int).tolist()
    return [(slice(y1, y2), slice(x1, x2)) for (x1, y1), (x2, y2) in zip(low, high, strict=True) if x1 < x2 and y1 < y2]


def _half_hidden(objects: NDArray[np.float64], regions: NDArray[np.float64], shape: tuple[int, ...]) -> int:
    painted = np.zeros(shape[:2], bool)
    for window in _windows(regions, shape):
        painted[window] = True
    return sum(float(painted[window].mean()) >= 0.5 for window in _windows(objects, shape))


def _flags(text: str) -> tuple[str, ...]:
    flags = tuple(flag.strip() for flag in text.split(",") if flag.strip() not in ("", "none"))
    unknown = [flag for flag in flags if flag not in FLAGS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no flag {unknown[0]!r}; choose from {', '.join(FLAGS)}, or none")
    return flags
