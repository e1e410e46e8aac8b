"""The command `tinydet salpha`: count the objects of each pyramid level in a data set and derive alpha from them.

No image is opened and no network is run: the fusion factor follows from boxes, image sizes and anchors.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinydet._atomic import write_json
from tinydet._command import command, positive
from tinydet.anchors import DESIGNS, AnchorDesign, released_design, torchvision_design
from tinydet.data.coco import Dataset, load_dataset
from tinydet.data.synthetic import embedded_dataset
from tinydet.data.training import VISIBLE, TrainingTiles, clip_to_tile
from tinydet.fusion import ALPHA_RANGE, CountRule, FusionStatistics, count_levels, released_clipping
from tinydet.runtime.pipeline import OVERLAP, plan_tiles


def statistics_of(
    dataset: Dataset,
    design: AnchorDesign,
    *,
    tile: int | None = None,
    overlap: int = OVERLAP,
    scale: float = 1.0,
    flip: bool = False,
    count: CountRule = "gt",
    alpha_range: tuple[float, float] = ALPHA_RANGE,
) -> FusionStatistics:
    """Fusion statistics of a data set on what the network sees. Ignore regions are not counted.

    Args:
        tile: side of the square tiles that images are cut into; None: whole images. Tiles count as images, and an
            object counts in each tile that shows enough of it, as in training.
        overlap: of the tiles, in pixels of the rescaled image.
        scale: resize factor of the images, before tiles are cut.
        flip: count every input and its mirror image.
        count: see `tinydet.fusion.count_levels`.
        alpha_range: clamp of alpha.

    Raises:
        ValueError: for a scale that is not positive, an overlap that is not smaller than the tile, a bad `alpha_range`.
    """
    start = time.perf_counter()
    inputs = _inputs(dataset, tile, overlap, scale)
    if flip:
        inputs = _with_mirror_images(inputs)
    return _count(inputs, design, count, alpha_range, start)


def statistics_of_tiles(
    tiles: TrainingTiles,
    design: AnchorDesign,
    *,
    count: CountRule = "gt",
    alpha_range: tuple[float, float] = ALPHA_RANGE,
) -> FusionStatistics:
    """Fusion statistics on the tiles of training, however they are cut; what is done to their pixels is not seen.

    Raises:
        ValueError: for a bad `alpha_range`.
    """
    start = time.perf_counter()
    boxes: list[NDArray[np.float64]] = []
    index: list[NDArray[np.int64]] = []
    for number in range(len(tiles)):
        clipped, objects, _ = tiles.shown(number)
        boxes.append(clipped[objects])
        index.append(np.full(int(objects.sum()), number))
    sizes = np.array([(tile.width, tile.height) for _, tile in tiles.tiles], np.int64)
    return _count(_Inputs(np.concatenate(boxes), sizes, np.concatenate(index)), design, count, alpha_range, start)


def _count(
    inputs: _Inputs, design: AnchorDesign, count: CountRule, alpha_range: tuple[float, float], start: float
) -> FusionStatistics:
    boxes, sizes, index = inputs
    if design.inclusive:
        boxes, kept = released_clipping(boxes, sizes[index])
        boxes, index = boxes[kept], index[kept]
    counts = count_levels(boxes, sizes, design, image_index=index, count=count)
    seconds = time.perf_counter() - start
    # P6 has no edge, and P7 beside it neither: they count as one.
    first = len(counts) - design.unfused
    counts = (*counts[:first], sum(counts[first:]))
    levels = (*design.levels[:first], "+".join(design.levels[first:]))
    return FusionStatistics(counts, len(boxes), len(sizes), seconds, levels, count, alpha_range)


def design_of(detector: str, anchors: str = "tinydet") -> AnchorDesign:
    """The anchors of a detector by name: ours, or laid out as torchvision or the paper's authors do."""
    match anchors:
        case "tinydet" if detector in DESIGNS:
            return DESIGNS[detector]
        case "torchvision":
            return torchvision_design(detector)
        case "released":
            return released_design(detector)
    raise ValueError(f"no anchors {anchors!r} of {detector!r}; detectors: {', '.join(DESIGNS)}")


@command("salpha")
def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    design = design_of(options.detector, options.anchors)
    if options.overlap is not None and options.tile is None:
        raise ValueError("--overlap says how far tiles overlap; name their size with --tile, or leave it out")
    overlap = OVERLAP if options.overlap is None else options.overlap
    source = options.annotations or embedded_dataset("train")
    dataset = load_dataset(source, categories=options.categories)
    statistics = statistics_of(
        dataset,
        design,
        tile=options.tile,
        overlap=overlap,
        scale=options.scale,
        flip=options.flip,
        count=options.count,
        alpha_range=options.alpha_range,
    )
    if options.json:
        seen = {"tile": options.tile, "overlap": overlap if options.tile else None, "scale": options.scale}
        how = {"detector": options.detector, "anchors": options.anchors, **seen, "flip": options.flip}
        values = statistics.to_json()
        write_json(options.json, {**values, "rule": {**values["rule"], **how}, "source": dataset.source.name})
    anchors = f"{options.detector}, {options.anchors} anchors"
    print(*_report(dataset, statistics, design, anchors, options.tile), sep="\n")
    return 0


class _Inputs(NamedTuple):
    """What the network sees, one input image after the other."""

    boxes: NDArray[np.float64]  # (M, 4) xyxy in pixels of the input
    sizes: NDArray[np.int64]  # (I, 2) width and height of every input
    image_index: NDArray[np.int64]  # (M,) input of each box


def _inputs(dataset: Dataset, tile: int | None, overlap: int, scale: float) -> _Inputs:
    sizes = np.array([(image.width, image.height) for image in dataset.images], np.int64)
    boxes, index = dataset.boxes[dataset.objects], dataset.image_index[dataset.objects]
    if tile is not None:
        return _tiles(boxes, sizes, index, tile, overlap, scale)
    if not 0 < scale < np.inf:
        raise ValueError(f"the scale is an image resize factor above 0 (0.5 = half), got {scale}")
    rescaled = np.maximum(np.round(sizes * scale), 1).astype(np.int64)
    return _Inputs(boxes * np.tile((rescaled / sizes)[index], 2), rescaled, index)


def _tiles(
    boxes: NDArray[np.float64],
    sizes: NDArray[np.int64],
    index: NDArray[np.int64],
    tile: int,
    overlap: int,
    scale: float,
) -> _Inputs:
    """The tiles that inference cuts, with the objects that training gives them."""
    parts: list[tuple[NDArray[np.float64], NDArray[np.int64]]] = []
    inputs = 0
    for width, height in np.unique(sizes, axis=0).tolist():  # one plan for all images of a size
        images = np.flatnonzero((sizes == (width, height)).all(axis=1))
        rank = np.full(len(sizes), -1)
        rank[images] = np.arange(len(images))
        here = np.flatnonzero(rank[index] >= 0)
        plan = plan_tiles(width, height, tile=tile, overlap=overlap, scale=scale)
        for top, row in groupby(plan.grid.tiles, key=lambda window: window.y):
            # A row at a time, so that a tile of a large image is not asked about the boxes of all others.
            bottom = top + plan.grid.tile_height
            near = here[(boxes[here, 3] > top) & (boxes[here, 1] < bottom)]
            for window in row:
                beside = near[(boxes[near, 2] > window.x) & (boxes[near, 0] < window.x + window.width)]
                clipped, visible = clip_to_tile(boxes[beside], window)
                shown = visible >= VISIBLE
                of_tile = inputs + rank[index[beside[shown]]] * len(plan.grid) + window.index
                parts.append((clipped[shown] * plan.scale, of_tile))
        inputs += len(images) * len(plan.grid)
    in_tiles, tile_index = (np.concatenate(column) for column in zip(*parts, strict=True))
    return _Inputs(in_tiles, np.full((inputs, 2), tile), tile_index)  # smaller images are padded to a tile


def _with_mirror_images(inputs: _Inputs) -> _Inputs:
    boxes, sizes, index = inputs
    mirrored = boxes.copy()
    mirrored[:, [2, 0]] = sizes[index, :1] - boxes[:, [0, 2]]
    both = np.concatenate([boxes, mirrored])
    return _Inputs(both, np.concatenate([sizes, sizes]), np.concatenate([index, index + len(sizes)]))


def _report(
    dataset: Dataset, statistics: FusionStatistics, design: AnchorDesign, anchors: str, tile: int | None
) -> Iterator[str]:
    """Lines for people, finest level first."""
    inputs = f"{statistics.images:,} tiles" if tile else f"{statistics.images:,} images"
    what = "objects" if statistics.count == "gt" else "anchors"
    yield f"{dataset.source}: {statistics.boxes:,} objects ({_listed(dataset.classes)}) in {inputs}"
    if statistics.count == "gt":
        yield f"Each object counts on the level of its best anchor ({anchors}):"
    else:
        yield f"Each anchor that is the best of some object counts once an image ({anchors}):"
    yield ""
    yield f"level  stride  {what:>9}   share"
    total = max(sum(statistics.counts), 1)
    strides = design.strides[: len(statistics.levels)]
    for level, stride, count in zip(statistics.levels, strides, statistics.counts, strict=True):
        yield f"{level:<5}  {stride:>6}  {count:>9,}  {count / total:6.1%}"
    yield ""
    last = len(statistics.edges) - 1
    yield "edge         raw   alpha"
    for n, (edge, raw, alpha) in enumerate(zip(statistics.edges, statistics.alpha_raw, statistics.alpha, strict=True)):
        deepest = f"   ({statistics.levels[-1]}, which has no edge, counts with {statistics.levels[-2]})"
        yield f"{edge:<8}  {'-' if raw is None else f'{raw:.3f}':>6}  {alpha:6.3f}{deepest if n == last else ''}"
    yield ""
    yield f"alpha, finest first: {','.join(f'{alpha:.4g}' for alpha in statistics.alpha)}"
    yield f"counted in {statistics.seconds:.2f} s"
    for warning in statistics.warnings:
        yield f"note: {warning}"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:6])
    return shown if len(names) <= 6 else f"{shown} and {len(names) - 6} more classes"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tinydet salpha",
        description="Count objects by pyramid level and derive the fusion factors alpha (S-alpha) from the counts. "
        "Only boxes and image sizes are read; no image, no network.",
        epilog="example: python -m tinydet.salpha annotations.json --categories person --tile 640 --json salpha.json",
    )
    parser.add_argument(
        "annotations",
        nargs="?",
        type=Path,
        help="COCO annotation file (.json or .json.gz) or a folder with one; default: the embedded training scenes",
    )
    parser.add_argument(
        "--detector", choices=tuple(DESIGNS), default="retinanet", help="whose anchors; default: retinanet"
    )
    parser.add_argument(
        "--anchors",
        choices=("tinydet", "torchvision", "released"),
        default="tinydet",
        help="laid out as here, in torchvision or in the paper's code; default: tinydet (unrounded, centred)",
    )
    parser.add_argument(
        "--categories", type=_names, metavar="A,B", help="names of the classes to count; default: all of the file"
    )
    parser.add_argument(
        "--count",
        choices=("gt", "anchor"),
        default="gt",
        help="count objects, or distinct best anchors as the paper's code does; default: gt",
    )
    parser.add_argument(
        "--alpha-range",
        type=_range,
        default=ALPHA_RANGE,
        metavar="LOW,HIGH",
        help="clamp of alpha; default: {},{}".format(*ALPHA_RANGE),
    )
    parser.add_argument(
        "--tile", type=positive, help="count on square tiles of this many pixels; default: whole images"
    )
    parser.add_argument(
        "--overlap", type=int, help=f"pixels that neighbouring tiles share at least; default: {OVERLAP}"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="resize factor of the images; default: 1.0")
    parser.add_argument(
        "--flip", action="store_true", help="count mirror images too; default: only the images as they are"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the counts and factors there; default: nowhere"
    )
    return parser


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _range(text: str) -> tuple[float, float]:
    try:
        low, high = (float(value) for value in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected LOW,HIGH as in 0.2,2.0, got {text!r}") from None
    return low, high


if __name__ == "__main__":
    sys.exit(main())
