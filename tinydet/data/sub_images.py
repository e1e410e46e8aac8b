"""`tinydet data cut`: cut images into tiles with their boxes, as in the TinyPerson benchmark or as in our training.

The result is a corner file, the format of the benchmark. Each entry of `images` is a tile (a "sub-image") with its own
id and its `corner` [x1, y1, x2, y2] in the image `file_name`; `old_images` lists the uncut images. Training needs no
cut files: `TrainingTiles` cuts the same samples on the fly.

Source: `COCOSplitImage` in ucas-vg/TinyBenchmark.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.arguments import overlap, positive_int, size
from tinydet._internal.console import plural
from tinydet._internal.progress import track
from tinydet.data.coco_file import (
    Document,
    Entry,
    boxes_of,
    is_ignored,
    outline,
    write_document,
)
from tinydet.data.coco_rules import VISIBLE_BOXES
from tinydet.data.dataset_arguments import add_source_arguments, source_of
from tinydet.data.output_folder import JPEG_QUALITY, ImageWriter, choose_output, is_annotation_file, new_folder
from tinydet.data.samples import Cut, Truncated, clip_to_tile, objects_and_regions
from tinydet.geometry.boxes import area
from tinydet.geometry.tiles import MORE_TILES, MOST_TILES, Tile, TileGrid, check_tile_count
from tinydet.runtime.plan import OVERLAP, default_overlap
from tinydet.runtime.scenes.window import Corner

SUB_IMAGE = (640, 512)  # width and height of the benchmark's tiles, pixels
SUB_OVERLAP = (50, 50)  # pixels, horizontal and vertical
TILE = 640  # width and height of our tiles, pixels


def sub_image_corners(
    width: int,
    height: int,
    size: tuple[int, int] = SUB_IMAGE,
    overlap: tuple[int, int] = SUB_OVERLAP,
    max_tiles: int = MOST_TILES,
    remedy: str = "",
) -> list[Corner]:
    """Return the corners of the benchmark's tiles, row by row. The last tile of a row or column is moved inside.

    >>> sub_image_corners(1280, 720)[:3]
    [(0, 0, 640, 512), (590, 0, 1230, 512), (640, 0, 1280, 512)]

    Raises:
        ValueError: the overlap is not smaller than a tile, or there are more than `max_tiles` tiles; then `remedy` says
            how to raise the limit.
    """
    if overlap[0] >= size[0] or overlap[1] >= size[1]:
        raise ValueError(f"tiles of {size} pixels cannot overlap by {overlap}; choose a smaller overlap")
    counts = [_tile_count(*each) for each in zip((width, height), size, overlap, strict=True)]
    check_tile_count(math.prod(counts), max_tiles, what=f"{width}x{height} pixels", remedy=remedy)
    xs = _tile_starts(width, size[0], overlap[0])
    ys = _tile_starts(height, size[1], overlap[1])
    return [(x, y, min(x + size[0], width), min(y + size[1], height)) for y in ys for x in xs]


def benchmark_tiles(
    width: int,
    height: int,
    size: tuple[int, int] = SUB_IMAGE,
    overlap: tuple[int, int] = SUB_OVERLAP,
    max_tiles: int = MOST_TILES,
) -> list[Tile]:
    """Return the benchmark's tiles of an image; see `sub_image_corners`.

    >>> [tile.x for tile in benchmark_tiles(1280, 720) if tile.row == 0]
    [0, 590, 640]
    """
    corners = sub_image_corners(width, height, size, overlap, max_tiles, MORE_TILES)
    columns = sum(y1 == corners[0][1] for _, y1, _, _ in corners)
    return [Tile(n, n // columns, n % columns, x1, y1, x2 - x1, y2 - y1) for n, (x1, y1, x2, y2) in enumerate(corners)]


def cut_document(
    document: Document, cut: Cut = benchmark_tiles, *, truncated: Truncated = "drop", max_tiles: int = MOST_TILES
) -> dict[str, Any]:
    """Return the corner file of a dataset.

    Tiles and annotations are numbered from 0 in the order of the file, tiles row by row, including tiles without
    boxes. A box belongs to every tile with sqrt(visible area / area) >= 0.7. It is clipped to the tile and rounded to
    float32, as in the benchmark. `area` becomes width * height, `size` its square root, and `segmentation` (if present)
    the outline of the box; keypoints are removed. All other fields are kept.

    Args:
        truncated: what happens to boxes with less visibility. "drop" removes them, as in the benchmark, and compares
            with the area of the box as written. "ignore" turns them into ignore regions and keeps the visible part of
            every ignore region, as in training, and compares with the area inside the image.

    Raises:
        ValueError: two images share a file.
    """
    source = document.dataset.source
    names = [entry["file_name"] for entry in document.images]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{source}: several images share the file {twice}; a corner file identifies images by file")
    tiles: list[Entry] = []
    boxes: list[Entry] = []
    for image in track(document.images, "image", "cut"):
        annotations = document.annotations(image)
        written = boxes_of(annotations)
        inside = written.clip(0, np.tile((image["width"], image["height"]), 2))
        areas = area(written)
        ignore = np.array([is_ignored(entry) for entry in annotations], bool)
        for tile in cut(image["width"], image["height"]):
            corner = [tile.x, tile.y, tile.x + tile.width, tile.y + tile.height]
            near = np.flatnonzero(((inside[:, :2] < corner[2:]) & (inside[:, 2:] > corner[:2])).all(axis=1))
            if len(near):
                clipped, visibility = clip_to_tile(inside[near], tile, areas[near] if truncated == "drop" else None)
                objects, regions = objects_and_regions(ignore[near], visibility, truncated)
                rounded = _float32_xywh(clipped)
                for k in np.flatnonzero(objects | regions).tolist():
                    if min(rounded[k][2:]) > 0:  # otherwise the edge of an ignore region, which rounding removed
                        entry = _crop_annotation(annotations[near[k]], rounded[k], tile)
                        flag = {"ignore": 1} if regions[k] and not ignore[near[k]] else {}
                        boxes.append({**entry, **flag, "image_id": len(tiles), "id": len(boxes)})
            size = {"width": tile.width, "height": tile.height}
            check_tile_count(len(tiles) + 1, max_tiles, what=str(source), remedy=MORE_TILES)
            tiles.append({**image, **size, "id": len(tiles), "corner": corner})
    return {**document.rewritten(tiles, boxes), "old_images": document.images}


def write_tiles(
    document: Document, corners: dict[str, Any], folder: Path, *, form: str = "same", quality: int = JPEG_QUALITY
) -> None:
    """Write the tiles of a corner file as a COCO folder, atomically.

    In `annotations.json` each tile is an image of its own, named `NAME_X_Y`. `corners.json` is the corner file with the
    same ids, to merge the detections on the tiles (`tinydet evaluate --corner-gt`).

    Args:
        document: the uncut dataset, or the corner file itself.
        corners: result of `cut_document`, or the content of the corner file.
        form, quality: format of the images, see `ImageWriter`.

    Raises:
        ValueError: an image cannot be read, or `folder` is not empty.
    """
    images = []
    with new_folder(folder) as work:
        writer = ImageWriter(work / "images", form, quality)
        tiles = track(_tiles_with_pixels(document, corners), "tile", "cut", total=len(corners["images"]))
        for tile, pixels in tiles:
            path = PurePosixPath(tile["file_name"])
            x, y = tile["corner"][:2]
            name = writer.write(str(path.with_name(f"{path.stem}_{x}_{y}{path.suffix}")), pixels)
            images.append({**{key: value for key, value in tile.items() if key != "corner"}, "file_name": name})
        write_document(work / "corners.json", corners)
        content = {key: value for key, value in corners.items() if key != "old_images"}
        write_document(work / "annotations.json", {**content, "images": images})


EXAMPLES = ("tiny_set/annotations.json --images tiny_set/images --output tiles",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Cut images and their boxes into tiles. Write a COCO folder of tiles with their corner file (corners.json), or "
        "only the corner file (--output NAME.json). If SOURCE is a corner file, write its tiles."
    )
    add_source_arguments(parser, "cut")
    parser.add_argument(
        "--grid",
        choices=("benchmark", "tinydet"),
        help="cut as the TinyPerson benchmark, or as training and inference of tinydet (default: benchmark)",
    )
    parser.add_argument(
        "--tile",
        type=_tile_size,
        metavar="WxH",
        help="size of a tile in pixels (default: {}x{}, or {} (square) with --grid tinydet)".format(*SUB_IMAGE, TILE),
    )
    parser.add_argument(
        "--overlap",
        type=overlap,
        metavar="PIXELS",
        help=f"pixels that neighboring tiles share (default: {SUB_OVERLAP[0]}; with --grid tinydet {OVERLAP}, at most "
        "half a tile)",
    )
    parser.add_argument(
        "--max-tiles",
        type=positive_int,
        default=MOST_TILES,
        metavar="N",
        help=f"stop before writing if there are more tiles (default: {MOST_TILES})",
    )
    parser.add_argument(
        "--truncated",
        choices=("drop", "ignore"),
        help="drop boxes less than half visible in a tile, or turn them into ignore regions (default: drop, or "
        "ignore with --grid tinydet)",
    )


def run(args: argparse.Namespace) -> str:
    """Cut the dataset and return a summary."""
    source = source_of(args, images=args.images)
    document = source.load_document(allow_corner_file=True)
    output = choose_output(source.path or source.annotations, document.dataset, args.output, "cut")
    if document.dataset.is_cut:
        corner_file = document.dataset.source
        chosen = [f"--{name}" for name in ("grid", "tile", "overlap", "truncated") if getattr(args, name) is not None]
        if chosen:
            raise ValueError(f"{corner_file} is a corner file, already cut; leave out {', '.join(chosen)}")
        if is_annotation_file(output):
            raise ValueError(
                f"{corner_file} is a corner file, already cut; to write its tiles name the folder of the uncut images "
                "with --images DIR, and a folder as --output"
            )
    corners = document.content if document.dataset.is_cut else _cut(document, args)
    if is_annotation_file(output):
        write_document(output, corners)
    else:
        write_tiles(document, corners, output, form=args.format, quality=args.jpeg_quality)
    images = len({tile["file_name"] for tile in corners["images"]})
    tiles, boxes = len(corners["images"]), len(corners["annotations"])
    return f"{output}: {plural(tiles, 'tile', ',')} of {plural(images, 'image', ',')}, {plural(boxes, 'box', ',')}"


def _cut(document: Document, args: argparse.Namespace) -> dict[str, Any]:
    if args.grid == "tinydet":
        tile, height = args.tile or (TILE, TILE)
        if tile != height:
            raise ValueError(f"tiles of --grid tinydet are square, got {tile}x{height}; use --grid benchmark")
        overlap = default_overlap(tile) if args.overlap is None else args.overlap
        truncated: Truncated = args.truncated or "ignore"

        def tiles(width: int, height: int) -> tuple[Tile, ...]:
            cells = TileGrid(width, height, tile, overlap)
            check_tile_count(len(cells), args.max_tiles, what=f"{width}x{height} pixels", remedy=MORE_TILES)
            return cells.tiles

        return cut_document(document, tiles, truncated=truncated, max_tiles=args.max_tiles)
    size = args.tile or SUB_IMAGE
    shared = SUB_OVERLAP if args.overlap is None else (args.overlap, args.overlap)
    return cut_document(
        document,
        lambda w, h: benchmark_tiles(w, h, size, shared, args.max_tiles),
        truncated=args.truncated or "drop",
        max_tiles=args.max_tiles,
    )


def _tile_size(text: str) -> tuple[int, int]:
    return size(text if "x" in text.lower() else f"{text}x{text}")


def _tile_starts(length: int, side: int, overlap: int) -> list[int]:
    step = side - overlap
    return [max(min(n * step, length - side), 0) for n in range(_tile_count(length, side, overlap))]


def _tile_count(length: int, side: int, overlap: int) -> int:
    return max(-(-(length - overlap) // (side - overlap)), 1)


def _tiles_with_pixels(document: Document, corners: dict[str, Any]) -> Iterator[tuple[Entry, NDArray[np.uint8]]]:
    """Yield the tiles in order, with their pixels."""
    if document.dataset.is_cut:
        yield from ((tile, document.pixels(tile)) for tile in document.images)
        return
    tiles_of = defaultdict(list)
    for tile in corners["images"]:
        tiles_of[tile["file_name"]].append(tile)
    for image in document.images:
        pixels = document.pixels(image)
        for tile in tiles_of[image["file_name"]]:
            x1, y1, x2, y2 = tile["corner"]
            yield tile, pixels[y1:y2, x1:x2]


def _crop_annotation(annotation: Entry, bbox: list[float], tile: Tile) -> Entry:
    """Return an annotation of a tile, with the box `bbox` in pixels of the tile."""
    entry = {key: value for key, value in annotation.items() if key not in ("keypoints", "num_keypoints")}
    box_area = bbox[2] * bbox[3]
    entry.update(bbox=bbox, area=box_area, size=box_area**0.5)
    if "segmentation" in entry:
        entry["segmentation"] = outline(*bbox)
    for key in VISIBLE_BOXES:
        if entry.get(key) is not None:
            (entry[key],) = _float32_xywh(clip_to_tile(boxes_of([{"bbox": entry[key]}]), tile)[0])
    return entry


def _float32_xywh(boxes: NDArray[np.float64]) -> list[list[float]]:
    """Return boxes (M, 4) xyxy as x, y, width, height, rounded to float32."""
    rounded: list[list[float]]
    rounded = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(np.float32).tolist()
    return rounded
