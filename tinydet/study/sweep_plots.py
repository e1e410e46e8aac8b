"""Tables and plots of a sweep: AP against the fusion factor, by image scale and by class."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinydet._internal.atomic import atomic_path, write_json, write_text
from tinydet._internal.extras import needs_extra
from tinydet.runtime.captions import plot_labels
from tinydet.study.trials import Record, best, last

SALPHA = "S"  # replaces the factor in the key of a trial with S-alpha
_COLORS = ("#31688e", "#d93025", "#35b779", "#b5a70d", "#a142f4", "#5f6368")


def summarize(records: Sequence[Record]) -> dict[str, Any]:
    """Compute the mean and standard deviation over the seeds of the scores after the last epoch.

    Returns:
        JSON values. Scales are in descending order; each has the points of its curve by increasing factor, with
        S-alpha last. A mean is None if no training has the score, because all diverged or no object has that size.
    """
    scales = sorted({r["key"]["scale"] for r in records}, reverse=True)
    return {
        "scores": "fractions, of the last epoch; mean and standard deviation over the seeds",
        "scales": {f"{scale:g}": _curve([r for r in records if r["key"]["scale"] == scale]) for scale in scales},
    }


def write_report(summary: dict[str, Any], folder: Path) -> list[Path]:
    """Write sweep.json, sweep.md, sweep.png and, if the scores are by class, sweep-classes.png; return the paths."""
    paths = [folder / "sweep.json", folder / "sweep.md", folder / "sweep.png"]
    write_json(paths[0], summary)
    write_text(paths[1], table(summary) + "\n")
    draw_curves(summary, paths[2])
    if any(point["classes"] for curve in summary["scales"].values() for point in curve["points"]):
        paths.append(folder / "sweep-classes.png")
        draw_classes(summary, paths[-1])
    return paths


def table(summary: dict[str, Any]) -> str:
    """Format a summary as Markdown, with a section for each scale."""
    lines = ["AP in percent after the last epoch: mean ± standard deviation over the seeds."]
    for scale, curve in summary["scales"].items():
        classes = sorted({name for point in curve["points"] for name in point["classes"]})
        heads = ["alpha", "runs", "AP50-tiny", "AP50", "AP50 at best epoch", *(f"AP50 {c}" for c in classes)]
        lines += ["", f"## Scale {scale}", "", f"| {' | '.join(heads)} |", "| --- |" + " --- |" * (len(heads) - 1)]
        for point in curve["points"]:
            runs = f"{point['runs']}" + (f", {point['diverged']} diverged" if point["diverged"] else "")
            scores = [point["AP50-tiny"], point["AP50"], point["best AP50"]]
            scores += [point["classes"].get(name, _statistics([])) for name in classes]
            lines.append(f"| {' | '.join([_label(point), runs, *(spread(score) for score in scores)])} |")
    return "\n".join(lines)


def summary_text(summary: dict[str, Any]) -> str:
    """Format the best fixed factor and S-alpha of each scale, one line per scale."""
    lines = []
    for scale, curve in summary["scales"].items():
        known = [point for point in curve["points"] if point["AP50"]["mean"] is not None]
        if not known:
            continue
        fixed = [point for point in known if point["alpha"] != SALPHA]
        parts = [f"scale {scale}"] if len(summary["scales"]) > 1 else []
        if fixed:
            top = max(fixed, key=lambda point: point["AP50"]["mean"])
            parts.append(f"best fixed alpha {top['alpha']:g}: AP50 {spread(top['AP50'])}")
        for point in known:
            if point["alpha"] == SALPHA:
                factors = ", ".join(f"{a:.3g}" for a in point["factors"])
                parts.append(f"S-alpha ({factors}): AP50 {spread(point['AP50'])}")
        lines.append("; ".join(parts))
    return "\n".join(lines)


def spread(value: dict[str, Any]) -> str:
    """Format a score as mean ± standard deviation, in percent."""
    if value["mean"] is None:
        return "–"
    deviation = "" if value["deviation"] is None else f" ± {100 * value['deviation']:.1f}"
    return f"{100 * value['mean']:.1f}{deviation}"


def draw_curves(summary: dict[str, Any], path: Path) -> None:
    """Plot AP50-tiny and AP50 against alpha, with a curve per scale; the error bar of S-alpha spans its factors."""
    metrics = [m for m in ("AP50-tiny", "AP50") if any(_known(curve, m) for curve in summary["scales"].values())]
    figure, axes = _figure(max(len(metrics), 1))
    for axis, metric in zip(axes, metrics, strict=False):
        for n, (scale, curve) in enumerate(summary["scales"].items()):
            color = _COLORS[n % len(_COLORS)]
            single = len(summary["scales"]) == 1
            labels = ("one α for all edges", "S-α") if single else (f"scale {scale}", f"S-α, scale {scale}")
            _draw(axis, _known(curve, metric), lambda point, m=metric: point[m], color, labels)
        axis.set(xlabel="fusion factor α", ylabel=f"{metric} after the last epoch, %")
        axis.grid(alpha=0.3)
    _save(figure, axes, path)


def draw_classes(summary: dict[str, Any], path: Path) -> None:
    """Plot AP50 of each class against alpha, with a panel per scale."""
    figure, axes = _figure(len(summary["scales"]))
    for axis, (scale, curve) in zip(axes, summary["scales"].items(), strict=True):
        classes = sorted({name for point in curve["points"] for name in point["classes"]})
        for n, (name, label) in enumerate(zip(classes, plot_labels(classes)[0], strict=True)):
            points = [p for p in curve["points"] if p["classes"].get(name, {}).get("mean") is not None]
            color = _COLORS[n % len(_COLORS)]
            _draw(axis, points, lambda point, c=name: point["classes"][c], color, (label, f"S-α, {label}"))
        axis.set(title=f"scale {scale}", xlabel="fusion factor α", ylabel="AP50 after the last epoch, %")
        axis.grid(alpha=0.3)
    names = {name for curve in summary["scales"].values() for point in curve["points"] for name in point["classes"]}
    _save(figure, axes, path, plot_labels(sorted(names))[1])


def _curve(records: Sequence[Record]) -> dict[str, Any]:
    alphas = sorted({r["key"]["alpha"] for r in records}, key=lambda alpha: (alpha == SALPHA, alpha))
    return {"points": [_point(alpha, [r for r in records if r["key"]["alpha"] == alpha]) for alpha in alphas]}


def _point(alpha: float | str, records: Sequence[Record]) -> dict[str, Any]:
    classes = {m for r in records for entry in r["history"] for m in entry if m.startswith("AP50/")}
    return {
        "alpha": alpha,
        "factors": records[0]["alpha"],
        "runs": len(records),
        "diverged": sum(r["diverged"] is not None for r in records),
        "AP50-tiny": _statistics([last(r, "AP50-tiny") for r in records]),
        "AP50": _statistics([last(r, "AP50") for r in records]),
        "best AP50": _statistics([best(r, "AP50") for r in records]),
        "classes": {m.partition("/")[2]: _statistics([last(r, m) for r in records]) for m in sorted(classes)},
    }


def _statistics(values: Sequence[float | None]) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    return {
        "mean": statistics.mean(known) if known else None,
        "deviation": statistics.stdev(known) if len(known) > 1 else None,
        "values": list(values),
    }


def _known(curve: dict[str, Any], metric: str) -> list[dict[str, Any]]:
    return [point for point in curve["points"] if point[metric]["mean"] is not None]


def _label(point: dict[str, Any]) -> str:
    if point["alpha"] != SALPHA:
        return f"{point['alpha']:g}"
    return "S-alpha: " + ", ".join(f"{a:.3g}" for a in point["factors"])


def _draw(axis: Any, points: Sequence[dict[str, Any]], score: Any, color: str, labels: tuple[str, str]) -> None:
    """Draw one curve with error bars, and S-alpha as a star with a dashed line at its score.

    Args:
        score: takes a point and returns its mean and deviation.
        labels: legend entries of the curve and of S-alpha.
    """
    fixed = [point for point in points if point["alpha"] != SALPHA]
    axis.errorbar(
        [point["alpha"] for point in fixed],
        [100 * score(point)["mean"] for point in fixed],
        yerr=[100 * (score(point)["deviation"] or 0) for point in fixed],
        fmt="o-", markersize=4, capsize=3, color=color, label=labels[0],
    )  # fmt: skip
    for point in points:
        if point["alpha"] == SALPHA:
            height, factors = 100 * score(point)["mean"], point["factors"]
            middle = statistics.mean(factors)
            axis.axhline(height, color=color, linestyle="--", linewidth=0.8, alpha=0.6)
            axis.errorbar(
                middle, height, xerr=[[middle - min(factors)], [max(factors) - middle]],
                yerr=100 * (score(point)["deviation"] or 0),
                fmt="*", markersize=11, capsize=3, color=color, markeredgecolor="black", label=labels[1],
            )  # fmt: skip


def _figure(columns: int) -> tuple[Any, Any]:
    with needs_extra("plots"):
        from matplotlib.figure import Figure
    figure = Figure(figsize=(5.6 * columns, 4.4), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _save(figure: Any, axes: Any, path: Path, families: Sequence[str] = ("DejaVu Sans",)) -> None:
    """Save a figure with one legend for all panels below them; each of its columns has a curve and its S-alpha.

    Args:
        families: fonts of the legend.
    """
    shown = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    if shown:
        widest = max(map(len, shown)) + 6  # characters, with the sample of the line
        columns = max(1, min(-(-len(shown) // 2), 90 * len(axes) // widest))
        prop = {"family": families, "size": 8}
        figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=columns, prop=prop)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
