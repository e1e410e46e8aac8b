"""Scores and errors as text tables; the columns follow the tables of the S-alpha paper."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tinydet._internal.console import plural
from tinydet.evaluate.calibration import BINS, FEWEST, Calibration, expected_error
from tinydet.evaluate.classes import F1_IOU, METRICS, ClassTable, OperatingPoint
from tinydet.evaluate.diagnosis import KINDS, Diagnosis
from tinydet.evaluate.operating_point import (
    FOLDS,
    LEVEL,
    RESAMPLES,
    Interval,
    Measured,
    OperatingPoints,
    Point,
    Wanted,
)
from tinydet.evaluate.score import Scores

# (size range, IoU threshold) as in Tables 3 and 4 of the paper, and all sizes in the last column.
PAPER_COLUMNS = (
    ("tiny", 0.5),
    ("tiny1", 0.5),
    ("tiny2", 0.5),
    ("tiny3", 0.5),
    ("small", 0.5),
    ("tiny", 0.25),
    ("tiny", 0.75),
    ("all", 0.5),
)


def format_classes(table: ClassTable) -> str:
    """Return a table of the classes with objects and their means, in percent; name the classes without objects."""
    names = ["objects", "images", *METRICS]
    rows = [["class", *names, "P", "R", "F1", "best at"]]
    for each in table.scored:
        best = "-" if each.best is None else f"{each.best.score:g}"
        rows.append([each.name, str(each.objects), str(each.images), *_ap(each.ap), *_point(each.at), best])
    if len(table.scored) != 1:
        objects = sum(each.objects for each in table.scored)
        best = "-" if table.score is None else f"{table.score:g}"
        rows.append(["mean", str(objects), "", *_ap(table.ap), *_point(table.mean), best])
    lines = [_aligned(rows)]
    if table.excluded:
        names = [
            each.name + (f" ({plural(each.detections, 'detection')})" if each.detections else "")
            for each in table.excluded
        ]
        lines.append(f"not in the mean, because the ground truth has no objects of it: {', '.join(names)}")
    return "\n".join(lines)


def format_ap(counts: Sequence[tuple[str, int, int]], scores: Mapping[str, float]) -> Iterator[str]:
    """Yield the lines of a table of AP in percent: each class with objects, and their means.

    Args:
        counts: the name of each class, its objects, and the images with them.
        scores: values by METRICS, and by METRIC/CLASS if there are several classes.
    """
    rows = [["class", "objects", "images", *METRICS]]
    known = [each for each in counts if each[1]]
    for name, objects, images in known:
        values = {metric: scores.get(f"{metric}/{name}" if len(counts) > 1 else metric, -1) for metric in METRICS}
        rows.append([name, str(objects), str(images), *_ap(values)])
    if len(known) != 1:
        objects = sum(objects for _, objects, _ in known)
        rows.append(["mean", str(objects), "", *_ap({metric: scores.get(metric, -1) for metric in METRICS})])
    yield from _aligned(rows).splitlines()
    if absent := [name for name, objects, _ in counts if not objects]:
        yield f"not in the mean, because the validation set has no objects of it: {', '.join(absent)}"


def format_scores(scores: Scores) -> str:
    """Return a table of AP, AR and MR by size in percent; a dash where the ground truth has no objects of a size."""
    if scores.precision is None:
        assert scores.miss_rate is not None
        columns = [(name, iou) for iou in (0.5, 0.75) for name in scores.miss_rate]
    else:
        columns = list(PAPER_COLUMNS)
    rows = [["by size", *(name for name, _ in columns)], ["IoU", *(f"{iou:.2f}" for _, iou in columns)]]
    if scores.precision is not None:
        rows.append(_row("AP", columns, scores.precision, lambda r: r.ap))
        rows.append(_row("AR", columns, scores.precision, lambda r: r.ar))
    if scores.miss_rate is not None:
        rows.append(_row("MR", columns, scores.miss_rate, lambda r: r.mr))
    table = scores.precision or scores.miss_rate
    assert table is not None
    rows.append(["objects", *(str(_cell(table, name, iou).objects) for name, iou in columns)])
    return _aligned(rows)


def format_errors(diagnosis: Diagnosis) -> str:
    """Return a table of error counts: one row per kind, one column per size range."""
    names = list(diagnosis.by_size)
    width = max(7, *map(len, names))
    lines = [f"errors at IoU {diagnosis.iou:.2f}, score >= {diagnosis.score:.3f} (the best mean F1)"]
    lines.append(" " * 12 + "".join(f"  {name:>{width}}" for name in names))
    for kind in KINDS:
        lines.append(f"{kind:12}" + "".join(f"  {diagnosis.by_size[name][kind]:>{width}}" for name in names))
    return "\n".join(lines)


def format_operating_points(points: OperatingPoints) -> str:
    """Return a table of thresholds and what they achieve, with intervals, in percent; then the same by size."""
    lines = [f"operating point: {points.wanted}, at IoU {F1_IOU:.2f}"]
    held_out = ["held-out false/MP" if points.wanted.kind == "false-alarms" else "held-out P", "held-out R"]
    rows = [["class", "objects", "score", "P", "R", "F1", "false/MP", *held_out]]
    # The row of one threshold for all says nothing more about a single class.
    for each in points.classes if len(points.classes) == 1 else (*points.classes, points.together):
        score = "-" if each.score is None else f"{each.score:g}{_score_interval(each.score_interval)}"
        cells = [
            _with_interval(v, i, 100) for v, i in zip((each.measured or (None,) * 3)[:3], each.intervals, strict=False)
        ]
        alarms = _with_interval(None if each.measured is None else each.measured.false_alarms, each.intervals[3], 1)
        apart = each.held_out or Measured(None, None, None, None)
        first = _with_interval(apart.precision, None, 100)
        if points.wanted.kind == "false-alarms":
            first = _with_interval(apart.false_alarms, None, 1)
        rows.append(
            [each.name, str(each.objects), score, *cells, alarms, first, _with_interval(apart.recall, None, 100)]
        )
    lines.append(_aligned(rows))
    if points.excluded:
        lines.append(f"no threshold, because the ground truth has no objects of it: {', '.join(points.excluded)}")
    lines += [_missed(each, points.wanted) for each in (*points.missed, points.together) if each.score is None]
    if points.images < 2:
        lines.append("no intervals and no held-out values: they need two images or more")
    elif len(points.missed) < len(points.classes):
        lines.append(f"[low, high]: {100 * LEVEL:g} % confidence, by {RESAMPLES} bootstrap resamples of the images")
        folds = min(FOLDS, points.images)
        lines.append(
            f"held-out: {folds}-fold cross-validation over images; chosen on the other folds, measured on each"
        )
    if len(points.missed) < len(points.classes):
        sizes = {name: value for name, value in points.by_size.items() if value[0]}
        lines.append(
            _aligned(
                [
                    ["by size", *sizes],
                    ["P", *(_with_interval(value.precision, None, 100) for _, value in sizes.values())],
                    ["R", *(_with_interval(value.recall, None, 100) for _, value in sizes.values())],
                    ["objects", *(str(objects) for objects, _ in sizes.values())],
                ]
            )
        )
    return "\n".join(lines)


def format_calibration(calibration: Calibration) -> str:
    """Return a table of calibration errors before and after the fit, in percent, and the lines that were fitted."""
    folds = min(FOLDS, calibration.images)
    columns = [*calibration.by_class.items(), *((n, e) for n, e in calibration.by_size.items() if e.detections)]
    if len(calibration.by_class) == 1:
        columns = columns[1:]
    lines = [
        f"calibration at IoU {F1_IOU:.2f}: expected calibration error (ECE) in percent, {BINS} bins",
        _aligned(
            [
                ["", *(name for name, _ in columns)],
                ["as detected", *(_with_interval(expected_error(each.before), None, 100) for _, each in columns)],
                ["calibrated", *(_with_interval(expected_error(each.after), None, 100) for _, each in columns)],
                ["detections", *(str(each.detections) for _, each in columns)],
            ]
        ),
        f"calibrated: {folds}-fold cross-validation over images; fitted on the other folds, measured on each",
    ]
    for name, (slope, offset) in zip(calibration.names, calibration.lines, strict=True):
        shared = (
            f" (of all classes: fewer than {FEWEST} correct or false detections)" if name in calibration.shared else ""
        )
        lines.append(
            f"{name}: sigmoid({slope:.4g} * logit(score) {'-' if offset < 0 else '+'} {abs(offset):.4g}){shared}"
        )
    return "\n".join(lines)


def _missed(point: Point, wanted: Wanted) -> str:
    """Say that a class does not reach the wanted value, and what it reaches."""
    if point.best is None:
        return f"{point.name}: {wanted} is not reached: no detection finds an object"
    value, score = point.best
    reached = f"{value:.3g} per megapixel" if wanted.kind == "false-alarms" else f"{100 * value:.2f} %"
    return f"{point.name}: {wanted} is not reached; the best is {reached}, at score >= {score:g}"


def _with_interval(value: float | None, interval: tuple[float, float] | None, factor: float) -> str:
    digits = 2 if factor == 100 else 3
    if value is None:
        return "-"
    if interval is None:
        return f"{factor * value:.{digits}f}"
    low, high = (f"{factor * bound:.{digits - 1}f}" for bound in interval)
    return f"{factor * value:.{digits}f} [{low}, {high}]"


def _score_interval(interval: Interval | None) -> str:
    return "" if interval is None else f" [{', '.join('-' if b is None else f'{b:.3f}' for b in interval)}]"


def _row(title: str, columns: list[tuple[str, float]], table: Any, value: Callable[[Any], float]) -> list[str]:
    values = [value(_cell(table, name, iou)) for name, iou in columns]
    return [title, *("-" if v == -1 else f"{100 * v:.2f}" for v in values)]


def _cell(table: Any, name: str, iou: float) -> Any:
    return table[name if name in table else name.capitalize()][iou]  # the MR setups have `All` for `all`


def _ap(values: Mapping[str, float]) -> list[str]:
    return ["-" if values[name] == -1 else f"{100 * values[name]:.2f}" for name in METRICS]


def _point(point: OperatingPoint | None) -> list[str]:
    values = (None, None, None) if point is None else point[1:]
    return ["-" if value is None else f"{100 * value:.2f}" for value in values]


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Join cells to lines: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        row[0].ljust(widths[0])
        + "".join(f"  {text:>{max(width, 5)}}" for text, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    )
