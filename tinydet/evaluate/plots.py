"""Plot precision over recall, miss rate over false positives per image, scores by class, confusion, errors by size, and
the reliability of scores.

The tables of classes and the confusion matrix are also written as CSV.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.atomic import atomic_path
from tinydet._internal.console import plural
from tinydet._internal.extras import needs_extra
from tinydet.evaluate.average_precision import FPPI_GRID, RECALLS
from tinydet.evaluate.calibration import BINS, Calibration, expected_error
from tinydet.evaluate.classes import METRICS, ClassTable
from tinydet.evaluate.confusion import ConfusionMatrix
from tinydet.evaluate.diagnosis import KINDS, Diagnosis
from tinydet.evaluate.miss_rate import POINTS
from tinydet.evaluate.operating_point import SIZE
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
LONGEST_NAME = 32  # characters of a class name; longer ones would leave no room for the data
MOST_NAMES = 3  # listed classes without objects
_KIND_COLORS = {
    "found": "#35a853",
    "missed": "#d93025",
    "duplicate": "#a142f4",
    "localization": "#f29900",
    "background": "#5f6368",
}


def write_plots(
    scores: Scores, diagnosis: Diagnosis | None, folder: Path, calibration: Calibration | None = None
) -> list[Path]:
    """Write a PNG file for each figure that the protocol has data for, and a CSV file for each table.

    Args:
        diagnosis: errors to plot by size; None to omit that figure.
        folder: output folder; created if missing.
        calibration: reliability diagrams to draw; None to omit that figure.

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
    if calibration is not None:
        drawn["reliability"], axes = figure(3)
        _draw_reliability(axes, calibration)
    if scores.classes is not None and scores.confusion is not None:
        rows, cells = len(scores.classes.classes), len(scores.confusion.names)
        drawn["classes"] = Figure(figsize=(7.5, 1.8 + 0.35 * (rows + 1)), layout="constrained")
        _draw_classes(drawn["classes"].subplots(), scores.classes)
        drawn["score_curves"], axes = figure(3)
        _draw_score_curves(axes, scores.classes)
        side = max(4.4, 2.2 + 0.45 * cells)
        drawn["confusion_matrix"] = Figure(figsize=(side + 0.8, side), layout="constrained")
        _draw_confusion(drawn["confusion_matrix"].subplots(), scores.confusion)
    paths = []
    for name, drawing in drawn.items():
        drawing.suptitle(f"{scores.protocol.name}, {plural(len(scores.truth.image_ids), 'image')}", fontsize=10)
        paths.append(folder / f"{name}.png")
        with atomic_path(paths[-1]) as temporary:
            drawing.savefig(temporary, dpi=120, format="png")
    if scores.classes is not None and scores.confusion is not None:
        for name, table in (
            ("classes", _class_rows(scores.classes)),
            ("confusion_matrix", _confusion_rows(scores.confusion)),
        ):
            paths.append(folder / f"{name}.csv")
            with atomic_path(paths[-1]) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows(table)
    return paths


def _class_rows(table: ClassTable) -> list[list[Any]]:
    """Return the scores of the classes as fractions, empty where they are not defined, and their means."""
    rows: list[list[Any]] = [
        [
            "class",
            "objects",
            "images",
            "detections",
            *METRICS,
            "score",
            "precision",
            "recall",
            "F1",
            "best score",
            "best F1",
        ]
    ]
    for each in table.classes:
        ap = [each.ap[name] if each.objects else None for name in METRICS]
        best = (None, None) if each.best is None else (each.best.score, each.best.f1)
        rows.append([each.name, each.objects, each.images, each.detections, *ap, *(each.at or [None] * 4), *best])
    totals = [sum(each.objects for each in table.classes), None, sum(each.detections for each in table.classes)]
    ap = [table.ap[name] if table.scored else None for name in METRICS]
    rows.append(["mean", *totals, *ap, *(table.mean or [None] * 4), None, None])
    return rows


def _confusion_rows(matrix: ConfusionMatrix) -> list[list[Any]]:
    """Return one row per class of the objects, one column per class of the detections."""
    rows = zip(matrix.names, matrix.counts.tolist(), strict=True)
    return [["object \\ detection", *matrix.names], *([name, *counts] for name, counts in rows)]


def _draw_classes(axis: Any, table: ClassTable) -> None:
    """Draw AP50 and AP50-95 of each class as bars, worst last, and the number of objects."""
    classes = sorted(table.scored, key=lambda each: -each.ap["AP50"])
    places = np.arange(len(classes))
    for offset, name, color in ((-0.2, "AP50", "#31688e"), (0.2, "AP50-95", "#35b779")):
        values = [each.ap[name] for each in classes]
        mean = f"{100 * table.ap[name]:.1f}" if classes else "-"
        axis.barh(places + offset, values, height=0.4, label=f"{name}: mean {mean}", color=color)
        for place, value in zip(places, values, strict=True):
            axis.text(value + 0.005, place + offset, f"{100 * value:.1f}", va="center", fontsize=7)
    axis.set_yticks(
        places, [f"{short_name(each.name)} ({plural(each.objects, 'object')})" for each in classes], fontsize=8
    )
    axis.set(xlim=(0, 1.08), xlabel="average precision", ylim=(len(classes) - 0.4, -0.6))
    if absent := [short_name(each.name) for each in table.excluded]:
        more = f" and {len(absent) - MOST_NAMES} more" if len(absent) > MOST_NAMES else ""
        axis.figure.supxlabel(f"without objects: {', '.join(absent[:MOST_NAMES])}{more}", fontsize=7)
    _legend(axis)


def _draw_score_curves(axes: Any, table: ClassTable) -> None:
    """Draw F1, precision and recall over the score threshold: each class thin, the mean thick."""
    thresholds = np.linspace(0, 1, 501)
    means: list[list[NDArray[np.float64]]] = [[], [], []]
    few = len(table.scored) <= 10
    for each in table.scored:
        hits, false = each.curve.counts(thresholds)
        found = hits + false
        curves = (
            2 * hits / np.maximum(each.objects + found, 1),
            np.where(found > 0, hits / np.maximum(found, 1), np.nan),
            hits / each.objects,
        )
        for axis, curve, mean in zip(axes, curves, means, strict=True):
            axis.plot(
                thresholds,
                curve,
                linewidth=1,
                label=short_name(each.name) if few else None,
                color=None if few else "#bbbbbb",
            )
            mean.append(np.nan_to_num(curve))
    for axis, mean, title in zip(axes, means, ("F1", "precision", "recall"), strict=True):
        if len(mean) > 1:
            axis.plot(thresholds, np.mean(mean, axis=0), linewidth=2.4, color="#000000", label="mean")
        if table.score is not None:
            axis.axvline(
                table.score, color="#d93025", linestyle="--", linewidth=1, label=f"score {table.score:g}: best F1"
            )
        axis.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="score threshold", ylabel=title, title=f"{title} at IoU 0.50")
        axis.grid(alpha=0.3)
        _legend(axis)


def _draw_confusion(axis: Any, matrix: ConfusionMatrix) -> None:
    """Draw the counts, colored by their share of the objects of a class; of the detections in the last row."""
    counts, n = matrix.counts, len(matrix.names)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    size = 8 if n <= 12 else 5
    for i in range(n):
        for j in range(n):
            if counts[i, j]:
                axis.text(
                    j, i, counts[i, j], ha="center", va="center", fontsize=size, color="w" if share[i, j] > 0.5 else "k"
                )
    names = [short_name(name) for name in matrix.names]
    axis.set_xticks(range(n), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=size)
    axis.set_yticks(range(n), names, fontsize=size)
    axis.set(xlabel="detected as", ylabel="object")
    axis.set_title(f"IoU >= {matrix.iou:.2f}, score >= {matrix.score:g}\ncolor: share of the row", fontsize=8)


def _draw_precision(axis: Any, scores: Scores, iou: float) -> None:
    assert scores.precision is not None
    for name, row in scores.precision.items():
        mean = _mean_of_categories(row[iou].precision)
        if mean is not None:
            label = f"{name}: AP {100 * row[iou].ap:.1f} ({plural(row[iou].objects, 'object')})"
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
            label = f"{name}: {rate} ({plural(row[iou].objects, 'object')})"
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


def _draw_reliability(axes: Any, calibration: Calibration) -> None:
    """Draw the share of correct detections over the score, before and after the calibration, and ECE by size."""
    everything = calibration.by_size[SIZE]
    for axis, filled, title, color in (
        (axes[0], everything.before, "as detected", "#e8743b"),
        (axes[1], everything.after, "calibrated, held out", "#31688e"),
    ):
        some = [(n, each) for n, each in enumerate(filled) if each.count]
        axis.bar([(n + 0.5) / BINS for n, _ in some], [each.correct for _, each in some], 0.92 / BINS, color=color)
        axis.plot([0, 1], [0, 1], color="#000000", linestyle="--", linewidth=1, label="score = share of correct")
        axis.plot(
            [each.score for _, each in some], [each.correct for _, each in some], "k.", label="mean score of a bin"
        )
        for n, each in some:
            axis.text((n + 0.5) / BINS, each.correct + 0.015, each.count, ha="center", fontsize=6)
        error = expected_error(filled)
        axis.set(xlim=(0, 1), ylim=(0, 1.08), xlabel="score", ylabel="share of correct detections")
        axis.set_title(f"{title}: ECE {'-' if error is None else f'{100 * error:.1f} %'}", fontsize=10)
        axis.grid(alpha=0.3)
        _legend(axis)
    sizes = {name: each for name, each in calibration.by_size.items() if each.detections}
    places = np.arange(len(sizes))
    for offset, after, label, color in ((-0.2, False, "as detected", "#e8743b"), (0.2, True, "calibrated", "#31688e")):
        errors = [expected_error(each.after if after else each.before) or 0.0 for each in sizes.values()]
        axes[2].bar(places + offset, [100 * error for error in errors], 0.4, label=label, color=color)
    axes[2].set_xticks(places, list(sizes), rotation=30)
    axes[2].set(ylabel="ECE, percent", title="by size")
    axes[2].grid(alpha=0.3, axis="y")
    _legend(axes[2])


def short_name(name: str) -> str:
    """Return a class name for an axis or a legend; the middle of a long one is left out.

    >>> short_name("car"), short_name("light commercial vehicle (parked)")
    ('car', 'light commercial veh…le (parked)')
    """
    return name if len(name) <= LONGEST_NAME else f"{name[:20]}…{name[-11:]}"


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
