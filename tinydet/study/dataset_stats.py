"""`tinydet data stats`: measure the objects of a dataset and recommend tile, overlap, scale and anchors."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tinydet._internal.arguments import add_categories
from tinydet._internal.atomic import claim, write_json
from tinydet._internal.console import plural
from tinydet._internal.outputs import check_output_files
from tinydet.data.dataset_arguments import add_data_arguments, source_of
from tinydet.models.registry import DETECTORS, detector_info
from tinydet.salpha.dataset import statistics_of
from tinydet.salpha.detectors import add_counted_options, counting_from
from tinydet.salpha.factors import FusionStatistics
from tinydet.study.dataset_advice import (
    Advice,
    advise,
    advise_alpha,
    advise_epochs,
    advise_init,
    training_command,
    training_part,
)
from tinydet.study.dataset_measures import CROWDED, RANGES, DatasetMeasures, measure_dataset, quantiles
from tinydet.study.dataset_plots import write_plots

EXAMPLES = ("annotations.json --json stats.json --plots stats",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Report sizes, shapes, density and crowding of the objects of a dataset, the objects per pyramid level and the "
        "fusion factors, and recommend tile, overlap, scale, anchors, alpha, initial weights and epochs with reasons, "
        "and the command that trains so. Three images are opened, to see whether they are gray."
    )
    add_data_arguments(parser, split="train")
    add_categories(parser, "include")
    parser.add_argument(
        "--detector",
        choices=tuple(DETECTORS),
        default="retinanet",
        help="detector whose levels and anchors are used (default: retinanet, the default of training on a GPU; on a "
        "CPU training uses: --detector fcos --assign nwd --assign-rank 3)",
    )
    add_counted_options(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measures to this file (default: none)")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="write plots as PNG to this folder (default: none)")


def run(args: argparse.Namespace) -> int:
    with claim(args.json), claim(args.plots, folder=True):
        return _run(args)


def _run(args: argparse.Namespace) -> int:
    source = source_of(args, prefer=("train",))
    dataset = source.load(categories=args.categories)
    check_output_files((args.json,), (dataset.source,))
    counting, given = counting_from(args)
    design = counting.design
    measures = measure_dataset(dataset, counting)
    info = detector_info(args.detector)
    advice = advise(measures, design, info)
    value = {setting.setting: setting.value for setting in advice}
    tiled: FusionStatistics | None = None
    command = ""
    if advice:
        tile, overlap = value["tile"], value["overlap"]
        training, holds_out = training_part(source, dataset, args.categories)
        tiled = statistics_of(training, counting, tile=tile, overlap=overlap)
        init = advise_init(dataset)
        advice += [
            advise_alpha(tiled, init.value),
            init,
            advise_epochs(training, tile, overlap, len(dataset.images)),
        ]
        command = training_command(
            source, advice, holds_out=holds_out, detector=args.detector, options=given, categories=args.categories
        )
    print(*_report(measures, advice, tiled, info.label), sep="\n")
    if command:
        print(f"\ntrain with: {command}")
    if args.json is not None:
        written: dict[str, Any] = {**measures.to_json(), "detector": args.detector, "options": given}
        written["salpha_on_tiles"] = tiled.to_json() if tiled is not None else None
        written["train_command"] = command or None
        written["advice"] = {setting.setting: setting.to_json() for setting in advice}
        write_json(args.json, written)
    if args.plots is not None:
        for path in write_plots(measures, design, args.plots):
            print(f"wrote {path}")
    return 0


def _report(
    measures: DatasetMeasures, advice: Sequence[Advice], tiled: FusionStatistics | None, detector: str
) -> Iterator[str]:
    dataset = measures.dataset
    regions = int(dataset.ignore.sum())
    objects, images = plural(len(measures.sizes), "object", ","), plural(len(dataset.images), "image", ",")
    yield f"{dataset.source}: {objects} and {plural(regions, 'ignore region', ',')} in {images}"
    yield f"classes    {_listed([f'{name} {count:,}' for name, count in measures.by_class().items()])}"
    for note in dataset.notes:
        yield f"           {note}"
    yield f"images     {_image_sizes(measures)}"
    if not len(measures.sizes):
        yield "There are no objects to measure."
        return
    yield f"size       {_spread(measures.sizes, ' px')}"
    shares = (
        f"{name}{f' ({RANGES[name][0]:g}-{RANGES[name][1]:g} px)' if name.startswith(('tiny', 'small')) else ''} "
        f"{count / len(measures.sizes):.1%}"
        for name, count in measures.by_range().items()
    )
    yield f"           {', '.join(shares)}"
    relative = measures.sizes / np.sqrt(measures.megapixels[measures.image_index] * 1e6)
    yield f"           median: {np.median(relative):.2%} of the image size"
    yield f"shape      height/width {_spread(measures.ratios)}"
    yield f"density    objects per image: {_spread(measures.per_image)}"
    densest = measures.densest()
    assert densest is not None
    empty = int((measures.per_image == 0).sum())
    per_megapixel = float(len(measures.sizes) / measures.megapixels.sum())
    yield f"           most objects: {densest[1]:,} in {densest[0]}; {plural(empty, 'image', ',')} without objects"
    yield f"           {per_megapixel:.1f} objects per megapixel"
    yield (
        f"crowding   {measures.crowded_by_ios:.1%} of the objects have a neighbor of their class at IOS > {CROWDED:g}, "
        f"{measures.crowded_by_iou:.1%} at IoU > {CROWDED:g}; NMS at this threshold drops one of the two"
    )
    fusion = measures.fusion
    total = max(sum(fusion.counts), 1)
    levels = ", ".join(
        f"{level} {count:,} ({count / total:.1%})" for level, count in zip(fusion.levels, fusion.counts, strict=True)
    )
    yield f"levels     {levels}: {fusion.text}"
    assert tiled is not None
    yield f"alpha      {_alpha(tiled)} (finest first) on tiles of {advice[0].value} px, by --salpha for {detector}"
    yield f"           {_alpha(fusion)} on whole images"
    for warning in tiled.warnings if tiled.advice.salpha else tiled.warnings[:-1]:  # the advice follows
        yield f"note: {warning}"
    yield ""
    yield "advice"
    for setting in advice:
        shown = setting.value
        if setting.setting == "anchors":
            sizes = "; ".join(" ".join(f"{size:g}" for size in of_level) for of_level in shown["sizes"])
            shown = f"sizes {sizes} px, height/width {' '.join(f'{ratio:g}' for ratio in shown['ratios'])}"
        yield f"  {setting.setting:8} {shown}"
        yield f"           {setting.reason}"


def _spread(values: Any, unit: str = "") -> str:
    found = quantiles(values)
    assert found is not None
    shown = ", ".join(f"{name} {found[name]:.3g}" for name in ("p5", "p25", "p50", "p75", "p95"))
    return f"{shown}{unit}; min {found['p0']:.3g}, max {found['p100']:.4g}{unit}"


def _image_sizes(measures: DatasetMeasures) -> str:
    sizes = np.unique(measures.image_sizes, axis=0)
    if len(sizes) <= 3:
        return ", ".join(f"{width}x{height}" for width, height in sizes.tolist()) + " px"
    (w0, h0), (w1, h1) = measures.image_sizes.min(axis=0).tolist(), measures.image_sizes.max(axis=0).tolist()
    return f"{len(sizes):,} sizes, {w0} to {w1} px wide, {h0} to {h1} px high"


def _alpha(statistics: FusionStatistics) -> str:
    return ",".join(f"{alpha:.3g}" for alpha in statistics.alpha)


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words[:8]) + (f" and {len(words) - 8} more" if len(words) > 8 else "")
