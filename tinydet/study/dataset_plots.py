"""Plots of the objects of a dataset: sizes, shapes and anchors, density, pyramid levels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tinydet._internal.atomic import atomic_path
from tinydet._internal.console import plural
from tinydet._internal.extras import needs_extra
from tinydet.geometry.anchors import AnchorDesign, Pyramid
from tinydet.runtime.captions import plot_labels
from tinydet.study.dataset_measures import RANGES, DatasetMeasures

_RANGE_COLORS = ("#d0d0d0", "#440154", "#31688e", "#35b779", "#b5a70d", "#e8743b")  # parallel to RANGES
_LEVEL_COLORS = ("#440154", "#3b528b", "#21918c", "#5ec962", "#d4b106")  # finest first
_BAR = "#31688e"


def write_plots(measures: DatasetMeasures, design: Pyramid, folder: Path) -> list[Path]:
    """Write sizes.png, shapes.png, density.png and levels.png to `folder`, which is created if it does not exist.

    Returns:
        The written files; none if there are no objects.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        OSError: the folder cannot be written.
    """
    with needs_extra("plots"):
        from matplotlib.figure import Figure

    if not len(measures.sizes):
        return []
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, draw in (("sizes", _sizes), ("shapes", _shapes), ("density", _density), ("levels", _levels)):
        figure = Figure(figsize=(10.4, 4.4), layout="constrained")
        draw(figure.subplots(1, 2), measures, design)
        (source,), families = plot_labels([measures.dataset.source.name])
        figure.suptitle(f"{source}: {plural(len(measures.sizes), 'object', ',')}", fontsize=10, fontfamily=families)
        paths.append(folder / f"{name}.png")
        with atomic_path(paths[-1]) as temporary:
            figure.savefig(temporary, dpi=120, format="png")
    return paths


def _sizes(axes: Any, measures: DatasetMeasures, design: Pyramid) -> None:
    left, right = axes
    counts, edges = measures.size_histogram()
    middles = np.sqrt(edges[:-1] * edges[1:])
    shown = np.searchsorted([high for _, high in RANGES.values()], middles, side="right")
    left.bar(edges[:-1], counts, np.diff(edges), align="edge", color=[_RANGE_COLORS[n] for n in shown])
    for (name, (low, high)), color in zip(RANGES.items(), _RANGE_COLORS, strict=True):
        share = np.mean((measures.sizes >= low) & (measures.sizes < high))
        if share:
            left.bar(0, 0, color=color, label=f"{name}: {share:.1%}")
    left.legend(fontsize=7)
    left.set(ylabel="objects", title="object size")
    ordered = np.sort(measures.sizes)
    right.plot(ordered, np.arange(1, len(ordered) + 1) / len(ordered), color="black")
    if isinstance(design, AnchorDesign):
        smallest = min(w * h for shapes in design.shapes for w, h in shapes) ** 0.5
        right.axvline(smallest, color="#d93025", linewidth=1, label=f"smallest anchor: {smallest:.3g} px")
    median = float(np.median(measures.sizes))
    right.axvline(median, color=_BAR, linewidth=1, linestyle="--", label=f"median object: {median:.3g} px")
    right.legend(fontsize=7)
    right.set(ylabel="share of objects up to this size", ylim=(0, 1.02), title="cumulative distribution of size")
    for axis in axes:
        axis.set(xscale="log", xlabel="size = sqrt(width × height), px", xlim=(edges[0], edges[-1]))
        _plain_ticks(axis.xaxis, float(edges[0]), float(edges[-1]))
        axis.grid(alpha=0.3)


def _shapes(axes: Any, measures: DatasetMeasures, design: Pyramid) -> None:
    left, right = axes
    sides = measures.boxes[:, 2:] - measures.boxes[:, :2]
    low, high = np.maximum(sides.min(axis=0), 0.5), sides.max(axis=0) * 1.05
    bins = [np.geomspace(a, max(b, a * 1.1), 60) for a, b in zip(low.tolist(), high.tolist(), strict=True)]
    drawn = left.hist2d(sides[:, 0], sides[:, 1], bins=bins, cmin=1, cmap="viridis", norm="log")
    left.figure.colorbar(drawn[3], ax=left, label="objects")
    shapes_of = design.shapes if isinstance(design, AnchorDesign) else ()
    for level, shapes, color in zip(design.levels, shapes_of, _anchor_colors(design), strict=False):
        left.scatter(*zip(*shapes, strict=True), marker="+", color=color, linewidth=1.2, label=f"anchors of {level}")
    title = "sizes of objects and anchors" if shapes_of else "sizes of objects"
    left.set(xscale="log", yscale="log", xlabel="width, px", ylabel="height, px", title=title)
    for axis, (a, b) in zip((left.xaxis, left.yaxis), zip(low.tolist(), high.tolist(), strict=True), strict=True):
        _plain_ticks(axis, a, max(b, 130))
    if shapes_of:
        left.legend(fontsize=6, loc="lower right")
    logs = np.log2(measures.ratios)
    span = max(float(np.abs(np.quantile(logs, (0.002, 0.998))).max()), 0.5)
    right.hist(logs.clip(-span, span), bins=np.linspace(-span, span, 49), color=_BAR)
    ratios = sorted({round(h / w, 6) for shapes in shapes_of for w, h in shapes})
    for ratio in ratios:
        right.axvline(np.log2(ratio), color="#d93025", linewidth=1, label="anchors" if ratio == ratios[0] else None)
    ticks = np.arange(np.ceil(-span), np.floor(span) + 1)
    right.set_xticks(ticks, [f"1/{2**-t:g}" if t < 0 else f"{2**t:g}" for t in ticks])
    if ratios:
        right.legend(fontsize=7)
    right.set(xlabel="height / width", ylabel="objects", title="aspect ratio")
    right.grid(alpha=0.3)


def _density(axes: Any, measures: DatasetMeasures, design: Pyramid) -> None:
    left, right = axes
    highest = int(measures.per_image.max())
    bins = np.arange(-0.5, highest + 1.5) if highest <= 60 else np.linspace(0, highest + 1, 61)
    left.hist(measures.per_image, bins=bins, color=_BAR, log=True)
    left.set(
        xlabel="objects per image", ylabel="images", title=f"density in {plural(len(measures.per_image), 'image', ',')}"
    )
    left.grid(alpha=0.3)
    width, height = measures.image_sizes[measures.image_index].T
    centers = (measures.boxes[:, :2] + measures.boxes[:, 2:]) / 2
    drawn = right.hist2d(
        centers[:, 0] / width, centers[:, 1] / height, bins=40, range=[[0, 1], [0, 1]], cmin=1, cmap="viridis"
    )
    right.figure.colorbar(drawn[3], ax=right, label="objects")
    right.set(xlabel="x / image width", ylabel="y / image height", title="positions of objects", ylim=(1, 0))


def _levels(axes: Any, measures: DatasetMeasures, design: Pyramid) -> None:
    left, right = axes
    fusion = measures.fusion
    total = max(sum(fusion.counts), 1)
    bars = left.bar(fusion.levels, fusion.counts, color=_LEVEL_COLORS[: len(fusion.levels)])
    left.bar_label(bars, [f"{count:,}\n{count / total:.1%}" for count in fusion.counts], fontsize=8)
    left.set(ylabel=f"{fusion.unit}s", title=fusion.text, ylim=(0, max(fusion.counts) * 1.15))
    raw = [np.nan if value is None else value for value in fusion.alpha_raw]
    places = np.arange(len(fusion.edges))
    right.bar(places - 0.2, raw, 0.4, color="#d0d0d0", label="raw α")
    clamped = right.bar(places + 0.2, fusion.alpha, 0.4, color=_BAR, label="α, clamped")
    right.bar_label(clamped, [f"{value:.3g}" for value in fusion.alpha], fontsize=8)
    right.axhline(1, color="#d93025", linewidth=1, label="conventional FPN, α = 1")
    right.set_xticks(places, fusion.edges)
    top = max(1.2, *(value for value in (*raw, *fusion.alpha) if np.isfinite(value)))
    right.set(title="S-α fusion factors on whole images", ylim=(0, min(top, 4) * 1.1))
    right.legend(fontsize=7)


def _anchor_colors(design: Pyramid) -> list[str]:
    return [("#d93025", "#e8743b", "#ff00aa", "#a142f4", "#000000")[n % 5] for n in range(len(design.levels))]


def _plain_ticks(axis: Any, low: float, high: float) -> None:
    """Label a logarithmic axis with pixels instead of powers of ten."""
    ticks = [t for t in (0.5, 1, 2, 4, 8, 12, 20, 32, 64, 128, 256, 512, 1024, 2048) if low <= t <= high]
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_ticks([], minor=True)
