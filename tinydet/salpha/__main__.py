"""The `tinydet salpha` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tinydet._internal.arguments import add_categories, float_range, overlap, positive_int, scale, side
from tinydet._internal.atomic import claim, write_json
from tinydet._internal.command import command
from tinydet._internal.console import plural
from tinydet._internal.outputs import check_output_files
from tinydet._internal.parser import Parser
from tinydet._internal.plugins import add_plugin_option
from tinydet.data.coco import Dataset
from tinydet.data.dataset_arguments import add_data_arguments, data_path, source_of
from tinydet.data.source import builtin_source
from tinydet.geometry.anchors import AnchorDesign
from tinydet.geometry.tiles import MOST_TILES
from tinydet.models.registry import DETECTORS, detector_info
from tinydet.runtime.plan import OVERLAP, default_overlap
from tinydet.salpha.dataset import statistics_of
from tinydet.salpha.detectors import Counting, add_counted_options, counting_from
from tinydet.salpha.factors import ALPHA_RANGE, FusionStatistics


@command("salpha", plugins=True)
def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    with claim(options.json):
        return _run(options)


def _run(options: argparse.Namespace) -> int:
    counting, _ = counting_from(options, rule=options.count, layout=options.anchors)
    if options.overlap is not None and options.tile is None:
        raise ValueError("--overlap needs --tile; without it whole images are counted")
    if options.tile is not None:
        detector_info(options.detector).check_tile(options.tile, "--tile")
    overlap = default_overlap(options.tile or 0) if options.overlap is None else options.overlap
    path = data_path(options)
    source = builtin_source("train") if path is None else source_of(options, prefer=("train",))
    dataset = source.load(categories=options.categories)
    check_output_files((options.json,), (dataset.source,))
    statistics = statistics_of(
        dataset,
        counting,
        tile=options.tile,
        overlap=overlap,
        scale=options.scale,
        flip=options.flip,
        alpha_range=options.alpha_range,
        max_tiles=options.max_tiles,
    )
    if options.json:
        values = statistics.to_json()
        rule = {
            **values["rule"],
            "detector": options.detector,
            "options": {name: counting.options[name] for name in counting.statistic.options},
            "anchors": options.anchors if isinstance(counting.design, AnchorDesign) else None,
            "tile": options.tile,
            "overlap": overlap if options.tile else None,
            "scale": options.scale,
            "flip": options.flip,
        }
        write_json(options.json, {**values, "rule": rule, "source": dataset.source.name})
    how = [options.detector, *(f"{name} {counting.options[name]}" for name in counting.statistic.options)]
    if isinstance(counting.design, AnchorDesign):
        how.insert(1, f"{options.anchors} anchors")
    print(*_report(dataset, statistics, counting, ", ".join(how), options.tile), sep="\n")
    return 0


def _report(
    dataset: Dataset, statistics: FusionStatistics, counting: Counting, how: str, tile: int | None
) -> Iterator[str]:
    """Lines of a readable report: counts by level and factors by edge, finest first."""
    inputs = plural(statistics.images, "tile" if tile else "image", ",")
    yield f"{dataset.source}: {plural(statistics.boxes, 'object', ',')} ({_listed(dataset.classes)}) in {inputs}"
    yield f"{statistics.text[:1].upper()}{statistics.text[1:]} ({how}):"
    if reason := counting.statistic.reason:
        yield f"{reason[:1].upper()}{reason[1:]}."
    yield ""
    yield f"level  stride  {statistics.unit + 's':>9}   share"
    total = max(sum(statistics.counts), 1)
    strides = counting.design.strides[: len(statistics.levels)]
    for level, stride, count in zip(statistics.levels, strides, statistics.counts, strict=True):
        yield f"{level:<5}  {stride:>6}  {count:>9,}  {count / total:6.1%}"
    yield ""
    last = len(statistics.edges) - 1
    yield "edge         raw   alpha"
    for n, (edge, raw, alpha) in enumerate(zip(statistics.edges, statistics.alpha_raw, statistics.alpha, strict=True)):
        deepest = f"   ({statistics.levels[-1]} has no edge and is added to {statistics.levels[-2]})"
        yield f"{edge:<8}  {'-' if raw is None else f'{raw:.3f}':>6}  {alpha:6.3f}{deepest if n == last else ''}"
    yield ""
    yield f"alpha, finest first: {','.join(f'{alpha:.4g}' for alpha in statistics.alpha)}"
    yield f"counted in {statistics.seconds:.2f} s"
    for warning in (*dataset.notes, *statistics.notes):
        yield f"note: {warning}"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:6])
    return shown if len(names) <= 6 else f"{shown} and {len(names) - 6} more classes"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "salpha",
        positional="--data",
        examples=("annotations.json --categories person --tile 640 --json salpha.json",),
        description="Count the objects of each pyramid level and compute the fusion factors alpha (S-alpha) from the "
        "counts. Only boxes and image sizes are read; no image is opened and no network is run.",
    )
    add_data_arguments(parser, default="the built-in training set", split="train", positional=False)
    parser.add_argument(
        "--detector",
        choices=tuple(DETECTORS),
        default="retinanet",
        help="detector whose levels are counted, by the rule that decides what each level learns (default: retinanet, "
        "the default of training on a GPU; on a CPU training uses: --detector fcos --assign nwd --assign-rank 3)",
    )
    parser.add_argument(
        "--anchors",
        choices=("tinydet", "torchvision", "released"),
        default="tinydet",
        help="anchor layout: tinydet (unrounded, centered), torchvision, or released (the paper authors' code); "
        "default: tinydet",
    )
    add_counted_options(parser)
    add_categories(parser, "count")
    parser.add_argument(
        "--count",
        choices=("gt", "anchor"),
        help="gt counts objects; anchor counts distinct best anchors, as the authors' code does, or for FCOS the "
        "points that learn an object (default: gt; FCOS: anchor)",
    )
    parser.add_argument(
        "--alpha-range",
        type=float_range,
        default=ALPHA_RANGE,
        metavar="LOW,HIGH",
        help="clamp alpha to this range (default: {},{})".format(*ALPHA_RANGE),
    )
    parser.add_argument(
        "--tile",
        type=side,
        metavar="PX",
        help="cut images into square tiles of this many pixels and count per tile (default: whole images)",
    )
    parser.add_argument(
        "--overlap",
        type=overlap,
        metavar="PX",
        help=f"minimum overlap of neighboring tiles in pixels, needs --tile (default: {OVERLAP}, at most half a tile)",
    )
    parser.add_argument(
        "--max-tiles",
        type=positive_int,
        default=MOST_TILES,
        metavar="N",
        help=f"refuse datasets of more tiles before counting (default: {MOST_TILES})",
    )
    parser.add_argument(
        "--scale",
        type=scale,
        default=1.0,
        metavar="F",
        help="resize factor of the images, 0.5 for half size (default: 1.0)",
    )
    parser.add_argument("--flip", action="store_true", help="also count the mirror image of every input (default: off)")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write counts and factors to this JSON file (default: none)"
    )
    add_plugin_option(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
