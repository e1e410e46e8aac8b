"""`tinydet data cut`: images cut into pieces with their boxes, exactly as the TinyPerson benchmark cuts, or our way.

The result has the benchmark's form, a corner file: each entry of `images` is a piece, with its own id and its `corner`
[x1, y1, x2, y2] in the image `file_name`; `old_images` lists the images. The original is `COCOSplitImage` of
ucas-vg/TinyBenchmark. To train, cut files are not needed: `TrainingTiles` cuts the same samples on the fly.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from tinydet.data.coco_file import (
    VISIBLE_BOXES,
    Document,
    Entry,
    boxes_of,
    is_ignored,
    load_document,
    outline,
    write_document,
)
from tinydet.data.output_folder import (
    JPEG_QUALITY,
    PictureFolder,
    add_source_arguments,
    choose_output,
    is_annotation_file,
    new_folder,
)
from tinydet.data.samples import Cut, Slivers, clip_to_tile, share_out
from tinydet.geometry.tiles import Tile, TileGrid
from tinydet.runtime.scan import OVERLAP

SUB_IMAGE = (640, 512)  # pixels, width and height
SUB_OVERLAP = (50, 50)
Corner = tuple[int, int, int, int]  # x1, y1, x2, y2 of a sub-image, pixels of the whole image


def sub_image_corners(
    width: int, height: int, size: tuple[int, int] = SUB_IMAGE, overlap: tuple[int, int] = SUB_OVERLAP
) -> list[Corner]:
    """The benchmark's cut of an image, row by row. The last of a row or column is moved inside.

    >>> sub_image_corners(1280, 720)[:3]
    [(0, 0, 640, 512), (590, 0, 1230, 512), (640, 0, 1280, 512)]

    Raises:
        ValueError: an overlap that is not smaller than the sub-image.
    """
    if overlap[0] >= size[0] or overlap[1] >= size[1]:
        raise ValueError(f"sub-images of {size} pixels cannot overlap by {overlap}; choose less")
    columns, rows = (
        [max(min(i * (side - shared), whole - side), 0) for i in range(max(-(-(whole - shared) // (side - shared)), 1))]
        for whole, side, shared in zip((width, height), size, overlap, strict=True)
    )
    return [(x, y, min(x + size[0], width), min(y + size[1], height)) for y in rows for x in columns]


TILE = 640


def benchmark_tiles(
    width: int, height: int, size: tuple[int, int] = SUB_IMAGE, overlap: tuple[int, int] = SUB_OVERLAP
) -> list[Tile]:
    """The benchmark's pieces of an image, row by row; the last of a row or column is moved inside.

    >>> [tile.x for tile in benchmark_tiles(1280, 720) if tile.row == 0]
    [0, 590, 640]
    """
    corners = sub_image_corners(width, height, size, overlap)
    columns = sum(y1 == corners[0][1] for _, y1, _, _ in corners)
    return [Tile(n, n // columns, n % columns, x1, y1, x2 - x1, y2 - y1) for n, (x1, y1, x2, y2) in enumerate(corners)]


def cut_document(document: Document, cut: Cut = benchmark_tiles, *, slivers: Slivers = "drop") -> dict[str, Any]:
    """The corner file of a data set; all fields that it does not mention are carried over.

    Pieces and annotations are numbered from 0, in the order of the file, pieces row by row, also those without a box.
    A box belongs to every piece that shows enough of it: sqrt(visible area / area) >= 0.7. It is clipped to the piece
    and rounded to float32, as the benchmark does. `area` is width * height, `size` its root; `segmentation`, where
    there is one, becomes the box; keypoints are dropped.

    Args:
        slivers: what becomes of a box of which less is seen. "drop": nothing, as in the benchmark, where the area is
            that of the box as written. "ignore": an ignore region, and so does the visible part of an ignore region,
            however small, as in training, where the area is that inside the image.

    Raises:
        ValueError: where two images are one file.
    """
    source = document.dataset.source
    names = [entry["file_name"] for entry in document.images]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{source}: several images are the file {twice}; a corner file tells images apart by file")
    pieces: list[Entry] = []
    boxes: list[Entry] = []
    for image in tqdm(document.images, desc="cut", unit="image", disable=None, leave=False):
        annotations = document.annotations(image)
        written = boxes_of(annotations)
        whole = written.clip(0, np.tile((image["width"], image["height"]), 2))
        areas = (written[:, 2:] - written[:, :2]).prod(axis=1)
        ignore = np.array([is_ignored(entry) for entry in annotations], bool)
        for tile in cut(int(image["width"]), int(image["height"])):
            corner = [tile.x, tile.y, tile.x + tile.width, tile.y + tile.height]
            near = np.flatnonzero(((whole[:, :2] < corner[2:]) & (whole[:, 2:] > corner[:2])).all(axis=1))
            if len(near):
                clipped, visible = clip_to_tile(whole[near], tile, areas[near] if slivers == "drop" else None)
                objects, regions = share_out(ignore[near], visible, slivers)
                rounded = _float32_xywh(clipped)
                for k in np.flatnonzero(objects | regions).tolist():
                    if min(rounded[k][2:]) > 0:  # else the edge of an ignore region, rounded away
                        entry = _in_piece(annotations[near[k]], rounded[k], tile)
                        sliver = {"ignore": 1} if regions[k] and not ignore[near[k]] else {}
                        boxes.append({**entry, **sliver, "image_id": len(pieces), "id": len(boxes)})
            size = {"width": tile.width, "height": tile.height}
            pieces.append({**image, **size, "id": len(pieces), "corner": corner})
    return {**document.rewritten(pieces, boxes), "old_images": document.images}


def write_pieces(
    document: Document, corners: dict[str, Any], folder: Path, *, form: str = "same", quality: int = JPEG_QUALITY
) -> None:
    """Write the pieces of a corner file as a COCO folder, atomically.

    `annotations.json` lists the pieces as images of their own, `NAME_X_Y`; `corners.json` is the corner file, with
    the same ids, to join what is detected on the pieces (`tinydet evaluate --corner-gt`).

    Args:
        document: what was cut, or the corner file itself.
        corners: as `cut_document` gives it, or the corner file's content.
        form, quality: of the pictures, see `PictureFolder`.

    Raises:
        ValueError: where an image cannot be read, or `folder` has something in it.
    """
    images = []
    with new_folder(folder) as work:
        pictures = PictureFolder(work / "images", form, quality)
        found = tqdm(_pieces(document, corners), "cut", len(corners["images"]), unit="piece", disable=None)
        for piece, pixels in found:
            path = PurePosixPath(piece["file_name"])
            x, y = piece["corner"][:2]
            name = pictures.write(str(path.with_name(f"{path.stem}_{x}_{y}{path.suffix}")), pixels)
            images.append({**{key: value for key, value in piece.items() if key != "corner"}, "file_name": name})
        write_document(work / "corners.json", corners)
        apart = {key: value for key, value in corners.items() if key != "old_images"}
        write_document(work / "annotations.json", {**apart, "images": images})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Cut images into pieces with their boxes: a COCO folder of pieces, with corners.json beside its annotations, "
        "or (--output NAME.json) the corner file alone. Of a corner file, write the pieces."
    )
    parser.epilog = "example: tinydet data cut tiny_set/annotations.json --images tiny_set/images --output pieces"
    add_source_arguments(parser, "cut")
    parser.add_argument(
        "--grid",
        choices=("benchmark", "tinydet"),
        help="the TinyPerson benchmark's pieces, or the even tiles of training and inference; default: benchmark",
    )
    parser.add_argument(
        "--tile",
        type=_size,
        metavar="WxH",
        help="pixels of a piece; default: {}x{}, or {} (square) for the grid tinydet".format(*SUB_IMAGE, TILE),
    )
    parser.add_argument(
        "--overlap",
        type=int,
        metavar="PIXELS",
        help=f"shared by neighbours; default: {SUB_OVERLAP[0]}, or {OVERLAP} for the grid tinydet",
    )
    parser.add_argument(
        "--slivers",
        choices=("drop", "ignore"),
        help="what becomes of boxes cut to less than half: nothing, as in the benchmark, or ignore regions, as in "
        "training; default: drop, or ignore for the grid tinydet",
    )


def run(args: argparse.Namespace) -> str:
    """Cut as the arguments say; returns what was done."""
    document = load_document(args.source, args.images, pieces=True)
    output = choose_output(args.source, document.dataset, args.output, "cut")
    if document.is_cut:
        source = document.dataset.source
        chosen = [f"--{name}" for name in ("grid", "tile", "overlap", "slivers") if getattr(args, name) is not None]
        if chosen:
            raise ValueError(f"{source} is a corner file, already cut; leave out {', '.join(chosen)}")
        if is_annotation_file(output):
            raise ValueError(
                f"{source} is a corner file, already cut; to write its pieces name the folder of the whole pictures "
                "with --images DIR, and a folder as --output"
            )
    corners = document.content if document.is_cut else _cut(document, args)
    if is_annotation_file(output):
        write_document(output, corners)
    else:
        write_pieces(document, corners, output, form=args.format, quality=args.jpeg_quality)
    files = len({piece["file_name"] for piece in corners["images"]})
    pieces, boxes = len(corners["images"]), len(corners["annotations"])
    return f"{output}: {pieces:,} pieces of {files:,} images, {boxes:,} boxes"


def _cut(document: Document, args: argparse.Namespace) -> dict[str, Any]:
    if args.grid == "tinydet":
        tile, height = args.tile or (TILE, TILE)
        if tile != height:
            raise ValueError(f"tiles of the grid tinydet are square, got {tile}x{height}; use --grid benchmark")
        overlap = OVERLAP if args.overlap is None else args.overlap
        slivers: Slivers = args.slivers or "ignore"
        return cut_document(document, lambda w, h: TileGrid(w, h, tile, overlap).tiles, slivers=slivers)
    size = args.tile or SUB_IMAGE
    shared = SUB_OVERLAP if args.overlap is None else (args.overlap, args.overlap)
    return cut_document(document, lambda w, h: benchmark_tiles(w, h, size, shared), slivers=args.slivers or "drop")


def _size(text: str) -> tuple[int, int]:
    try:
        sides = [int(side) for side in text.lower().split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise argparse.ArgumentTypeError(f"expected WIDTHxHEIGHT as in 640x512, got {text!r}")
    return sides[0], sides[-1]


def _pieces(document: Document, corners: dict[str, Any]) -> Iterator[tuple[Entry, NDArray[np.uint8]]]:
    """The pieces in their order, with their pixels."""
    if document.is_cut:
        yield from ((piece, document.pixels(piece)) for piece in document.images)
        return
    pieces_of = defaultdict(list)
    for piece in corners["images"]:
        pieces_of[piece["file_name"]].append(piece)
    for image in document.images:
        pixels = document.pixels(image)
        for piece in pieces_of[image["file_name"]]:
            x1, y1, x2, y2 = piece["corner"]
            yield piece, pixels[y1:y2, x1:x2]


def _in_piece(annotation: Entry, bbox: list[float], tile: Tile) -> Entry:
    """The annotation with its box in pixels of the piece."""
    entry = {key: value for key, value in annotation.items() if key not in ("keypoints", "num_keypoints")}
    area = bbox[2] * bbox[3]
    entry.update(bbox=bbox, area=area, size=area**0.5)
    if "segmentation" in entry:
        entry["segmentation"] = outline(*bbox)
    for key in VISIBLE_BOXES:
        if key in entry:
            (entry[key],) = _float32_xywh(clip_to_tile(boxes_of([{"bbox": entry[key]}]), tile)[0])
    return entry


def _float32_xywh(boxes: NDArray[np.float64]) -> list[list[float]]:
    """(M, 4) xyxy as x, y, width, height."""
    rounded: list[list[float]]
    rounded = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(np.float32).tolist()
    return rounded
