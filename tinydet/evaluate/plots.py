"""Plot precision over recall, miss rate over false positives per image, and errors by size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.atomic import atomic_path
from tinydet._internal.extras import needs_extra
from tinydet.evaluate.average_precision import FPPI_GRID, RECALLS
from tinydet.evaluate.diagnosis import KINDS, Diagnosis
from tinydet.evaluate.miss_rate import POINTS
from tinydet.evaluate.score import Scores

# From the smallest to the largest range, then their unions.
_COLORS = {
    "tiny1": "#440154",
    "tiny2": "#31688e",
    "tiny3": "#35b779",
    "small": "#b5a70d",
    "reasonable": "#e8743b",
    "tiny": "#888888",
    "all": "#000000",
    "All": "#000000",
}
_KIND_COLORS = {
    "found": "#35a853",
    "missed": "#d93025",
    "duplicate": "#a142f4",
    "localization": "#f29900",
    "background": "#5f6368",
}


def write_plots(scores: Scores, diagnosis: Diagnosis | None, folder: Path) -> list[Path]:
    """Write a PNG file for each figure that the protocol has data for.

    Args:
        diagnosis: errors to plot by size; None to omit that figure.
        folder: output folder; created if missing.

    Returns:
        The files written.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        OSError: the folder cannot be written.
    """
    with needs_extra("plots"):
        from matplotlib.figure import Figure

    def figure(columns: int) -> tuple[Any, Any]:
        drawing = Figure(figsize=(5.2 * columns, 4.4), layout="constrained")
        return drawing, drawing.subplots(1, columns, squeeze=False)[0]

    folder.mkdir(parents=True, exist_ok=True)
    drawn: dict[str, Any] = {}
    if scores.precision is not None:
        ious = list(next(iter(scores.precision.values())))
        drawn["precision_recall"], axes = figure(len(ious))
        for axis, iou in zip(axes, ious, strict=True):
            _draw_precision(axis, scores, iou)
    table: Any = scores.miss_rate or scores.precision
    ious = list(next(iter(table.values())))
    drawn["miss_rate"], axes = figure(len(ious))
    for axis, iou in zip(axes, ious, strict=True):
        _draw_miss_rate(axis, scores, table, iou)
    if diagnosis is not None:
        drawn["errors"], (left, right) = figure(2)
        _draw_errors(left, right, diagnosis)
    paths = []
    for name, drawing in drawn.items():
        drawing.suptitle(f"{scores.protocol.name}, {len(scores.truth.image_ids)} images", fontsize=10)
        paths.append(folder / f"{name}.png")
        with atomic_path(paths[-1]) as temporary:
            drawing.savefig(temporary, dpi=120, format="png")
    return paths


def _draw_precision(axis: Any, scores: Scores, iou: float) -> None:
    assert scores.precision is not None
    for name, row in scores.precision.items():
        mean = _mean_of_categories(row[iou].precision)
        if mean is not None:
            label = f"{name}: AP {100 * row[iou].ap:.1f} ({row[iou].objects} objects)"
            axis.plot(RECALLS, mean, label=label, **_style(name))
    axis.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision", title=f"IoU {iou:.2f}")
    axis.grid(alpha=0.3)
    _legend(axis)


def _draw_miss_rate(axis: Any, scores: Scores, table: Any, iou: float) -> None:
    lowest = 1.0
    for name, row in table.items():
        mean = _mean_of_categories(row[iou].recall_by_fppi)
        if mean is not None:
            rate = f"MR {100 * row[iou].mr:.1f}" if scores.miss_rate is not None else f"recall {100 * row[iou].ar:.1f}"
            label = f"{name}: {rate} ({row[iou].objects} objects)"
            axis.plot(FPPI_GRID, np.maximum(1 - mean, 1e-3), label=label, drawstyle="steps-post", **_style(name))
            lowest = min(lowest, float((1 - mean).min()))
    if scores.miss_rate is not None:
        for point in POINTS:  # of the log-average miss rate
            axis.axvline(point, color="#cccccc", linewidth=0.6, zorder=0)
    axis.set(
        xscale="log", yscale="log", xlim=(FPPI_GRID[0], FPPI_GRID[-1]), ylim=(min(max(lowest / 2, 0.01), 0.2), 1.05)
    )
    for ticks, values in (
        (axis.xaxis, (0.001, 0.01, 0.1, 1, 10, 100)),
        (axis.yaxis, (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)),
    ):
        ticks.set_ticks(values, [f"{value:g}" for value in values])
        ticks.set_ticks([], minor=True)
    axis.set(xlabel="false positives per image", ylabel="miss rate", title=f"IoU {iou:.2f}")
    axis.grid(alpha=0.3)
    _legend(axis)


def _draw_errors(left: Any, right: Any, diagnosis: Diagnosis) -> None:
    names = [name for name, counts in diagnosis.by_size.items() if any(counts.values())]
    for axis, kinds, title in ((left, KINDS[:2], "objects"), (right, KINDS[2:], "false positives")):
        bottom = np.zeros(len(names))
        for kind in kinds:
            heights = np.array([diagnosis.by_size[name][kind] for name in names], float)
            axis.bar(names, heights, bottom=bottom, label=kind, color=_KIND_COLORS[kind])
            bottom += heights
        axis.set(title=f"{title} at IoU {diagnosis.iou:.2f}, score >= {diagnosis.score:.2f}", ylabel="count")
        axis.tick_params(axis="x", labelrotation=30)
        _legend(axis)


def _mean_of_categories(values: NDArray[np.float64]) -> NDArray[np.float64] | None:
    known: NDArray[np.float64] = values[values[:, 0] > -1]
    return known.mean(axis=0) if len(known) else None


def _style(name: str) -> dict[str, Any]:
    union = name in ("tiny", "all", "All")
    style: dict[str, Any] = {"linewidth": 2.0 if union else 1.4, "linestyle": "--" if name == "tiny" else "-"}
    return style | ({"color": _COLORS[name]} if name in _COLORS else {})


def _legend(axis: Any) -> None:
    lines: Sequence[Any] = axis.get_legend_handles_labels()[0]
    if lines:
        axis.legend(fontsize=7)
