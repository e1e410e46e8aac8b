"""The `tinydet salpha` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tinydet._internal.atomic import write_json
from tinydet._internal.command import command, positive
from tinydet.data.coco import Dataset, load_dataset
from tinydet.data.synthetic import embedded_dataset
from tinydet.geometry.anchors import AnchorDesign
from tinydet.models.registry import DETECTORS, anchors_of
from tinydet.runtime.scan import OVERLAP
from tinydet.salpha.counting import ALPHA_RANGE, FusionStatistics
from tinydet.salpha.dataset import statistics_of


@command("salpha")
def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    design = anchors_of(options.detector).design(options.anchors)
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
        "--detector", choices=tuple(DETECTORS), default="retinanet", help="whose anchors; default: retinanet"
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
