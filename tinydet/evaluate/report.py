"""Scores and errors as text tables; the columns follow the tables of the S-alpha paper."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tinydet._internal.console import plural
from tinydet.evaluate.classes import METRICS, ClassTable, OperatingPoint
from tinydet.evaluate.diagnosis import KINDS, Diagnosis
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
