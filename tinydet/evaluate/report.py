"""Scores and errors as text tables; the columns follow the tables of the S-alpha paper."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from tinydet.evaluate.average_precision import PrecisionResult
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


def format_scores(scores: Scores) -> str:
    """Return a table of AP, AR and MR in percent; a dash where the ground truth has no objects of a size."""
    if scores.precision is None:
        assert scores.miss_rate is not None
        columns = [(name, iou) for iou in (0.5, 0.75) for name in scores.miss_rate]
    else:
        columns = list(PAPER_COLUMNS)
    rows = [["", *(name for name, _ in columns)], ["IoU", *(f"{iou:.2f}" for _, iou in columns)]]
    if scores.precision is not None:
        rows.append(_row("AP", columns, scores.precision, lambda r: r.ap))
        if len(names := scores.truth.category_names) > 1:
            for c, name in enumerate(names):
                rows.append(_row(f"  {name}", columns, scores.precision, partial(_category_ap, c)))
        rows.append(_row("AR", columns, scores.precision, lambda r: r.ar))
    if scores.miss_rate is not None:
        rows.append(_row("MR", columns, scores.miss_rate, lambda r: r.mr))
    table = scores.precision or scores.miss_rate
    assert table is not None
    rows.append(["objects", *(str(_cell(table, name, iou).objects) for name, iou in columns)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        row[0].ljust(widths[0])
        + "".join(f"  {text:>{max(width, 5)}}" for text, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    )


def format_errors(diagnosis: Diagnosis) -> str:
    """Return a table of error counts: one row per kind, one column per size range."""
    names = list(diagnosis.by_size)
    width = max(7, *map(len, names))
    lines = [f"errors at IoU {diagnosis.iou:.2f}, score >= {diagnosis.score:.3f} (the best F1 over all sizes)"]
    lines.append(" " * 12 + "".join(f"  {name:>{width}}" for name in names))
    for kind in KINDS:
        lines.append(f"{kind:12}" + "".join(f"  {diagnosis.by_size[name][kind]:>{width}}" for name in names))
    return "\n".join(lines)


def _row(title: str, columns: list[tuple[str, float]], table: Any, value: Callable[[Any], float]) -> list[str]:
    values = [value(_cell(table, name, iou)) for name, iou in columns]
    return [title, *("-" if v == -1 else f"{100 * v:.2f}" for v in values)]


def _cell(table: Any, name: str, iou: float) -> Any:
    return table[name if name in table else name.capitalize()][iou]  # the MR setups have `All` for `all`


def _category_ap(c: int, result: PrecisionResult) -> float:
    return result.by_class[c]
