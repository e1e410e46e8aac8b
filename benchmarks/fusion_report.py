"""The tables and figures of `fusion_study.py`, and what they say, from the record of its trainings."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from scipy.stats import t as student

from tinydet._internal.atomic import atomic_path, write_text
from tinydet.study.trials import Record, best, last

BASELINE = "1"
NAMES = {
    "1": "α = 1",
    "0.5": "α = 0.5",
    "S": "S-α",
    "0": "α = 0",
    "one": "one-α",
    "three": "three-α",
    "attention": "atten-α",
}
COLOURS = {"1": "#000000", "0.5": "#31688e", "S": "#d93025", "0": "#888888",
           "one": "#35b779", "three": "#b5a70d", "attention": "#a142f4"}  # fmt: skip
METRIC = "AP50-tiny"


class Difference(NamedTuple):
    """Paired differences from the baseline, in points of AP: their mean and its 95 % interval (Student's t)."""

    pairs: tuple[float, ...]
    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "no difference is shown"


class Study:
    """The trainings on one data set.

    Args:
        first_seed: of those that look for the best rate; all other seeds are of the comparison.
    """

    def __init__(self, records: Sequence[Record], first_seed: int) -> None:
        self.rates = [r for r in records if r["key"]["seed"] == first_seed]
        self.seeds = [r for r in records if r["key"]["seed"] != first_seed]
        self.strategies = [s for s in NAMES if any(r["key"]["strategy"] == s for r in records)]
        self.grid = sorted({r["key"]["lr"] for r in self.rates})

    def at(self, strategy: str, rate: float) -> Record | None:
        return next((r for r in self.rates if (r["key"]["strategy"], r["key"]["lr"]) == (strategy, rate)), None)

    def fresh(self, strategy: str) -> list[Record]:
        found = [r for r in self.seeds if r["key"]["strategy"] == strategy]
        return sorted(found, key=lambda r: r["key"]["seed"])

    def difference(self, strategy: str, metric: str = METRIC) -> Difference | None:
        """From the baseline, each at its best rate; None with fewer than two pairs that did not diverge."""
        base, ours = (
            {(r["key"]["seed"], r["precision"]): last(r, metric) for r in self.fresh(name)}
            for name in (BASELINE, strategy)
        )
        both = [(ours[pair], base[pair]) for pair in sorted(ours) if base.get(pair) is not None]
        pairs = tuple(100 * (a - b) for a, b in both if a is not None and b is not None)
        if strategy == BASELINE or len(pairs) < 2:
            return None
        mean, error = statistics.mean(pairs), statistics.stdev(pairs) / len(pairs) ** 0.5
        reach = float(student.ppf(0.975, len(pairs) - 1)) * error
        return Difference(pairs, mean, mean - reach, mean + reach)


def write_report(records: Sequence[Record], docs: Path, *, first_seed: int, base_rate: float) -> list[Path]:
    """Write fusion-study.md and its figures; returns their paths. `docs` is made if need be."""
    docs.mkdir(parents=True, exist_ok=True)
    names = list(dict.fromkeys(r["key"]["data"] for r in records))
    studies = {name: Study([r for r in records if r["key"]["data"] == name], first_seed) for name in names}
    page = docs / "fusion-study.md"
    pictures = {}
    if studies:
        pictures["rates"] = docs / "fusion-study-rates.png"
        draw_rates(studies, pictures["rates"])
    if any(study.difference(s) for study in studies.values() for s in study.strategies):
        pictures["pairs"] = docs / "fusion-study-pairs.png"
        draw_pairs(studies, pictures["pairs"])
    lines = [
        "# What the fusion factor is worth: the study",
        "",
        "Written by `python benchmarks/fusion_study.py --report` from `benchmarks/results/fusion_study.jsonl`; its",
        "`--help` says how the study is made. [fusion-factor.md](fusion-factor.md) says what the strategies are.",
        "",
        *_origin(records),
    ]
    if "rates" in pictures:
        lines += ["", f"![AP50-tiny of the last epoch by learning rate]({pictures['rates'].name})"]
    if "pairs" in pictures:
        lines += ["", f"![paired differences from α = 1, each at its best rate]({pictures['pairs'].name})"]
    for name, study in studies.items():
        lines += [
            "",
            f"## {name}",
            "",
            *_findings(study),
            *_rates(study, base_rate),
            *_seeds(study),
            *_precision(study),
        ]
    write_text(page, "\n".join(lines) + "\n")
    return [page, *pictures.values()]


def draw_rates(studies: dict[str, Study], path: Path) -> None:
    """AP by learning rate, a line for each strategy; what diverged is a cross at 0."""
    figure, axes = _figure(len(studies))
    for axis, (name, study) in zip(axes, studies.items(), strict=True):
        for strategy in study.strategies:
            found = [(rate, r) for rate in study.grid if (r := study.at(strategy, rate)) is not None]
            values = [(rate, last(r, METRIC)) for rate, r in found]
            known = [(rate, 100 * v) for rate, v in values if v is not None]
            axis.plot(
                *zip(*known, strict=True) if known else ((), ()), "o-", color=COLOURS[strategy], label=NAMES[strategy]
            )
            lost = [rate for rate, v in values if v is None]
            axis.plot(lost, [0] * len(lost), "x", color=COLOURS[strategy])
        axis.set_xscale("log", base=2)
        axis.set_xticks(study.grid, [f"{rate:g}" for rate in study.grid])
        axis.set(title=f"{name}: one seed", xlabel="learning rate", ylabel="AP50-tiny, last epoch (×: diverged)")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    _save(figure, path)


def draw_pairs(studies: dict[str, Study], path: Path) -> None:
    """Differences from the baseline, a point for each pair, the mean with its 95 % interval."""
    figure, axes = _figure(len(studies))
    for axis, (name, study) in zip(axes, studies.items(), strict=True):
        found = [(s, d) for s in study.strategies if (d := study.difference(s)) is not None]
        for place, (strategy, d) in enumerate(found):
            axis.plot(d.pairs, [place + 0.15] * len(d.pairs), ".", color=COLOURS[strategy], alpha=0.5)
            axis.errorbar(d.mean, place, xerr=d.high - d.mean, fmt="o", capsize=4, color=COLOURS[strategy])
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_yticks(range(len(found)), [NAMES[strategy] for strategy, _ in found])
        axis.set_ylim(len(found) - 0.5, -0.5)
        axis.set(title=f"{name}: each at its best rate", xlabel="AP50-tiny, difference from α = 1 (95 % interval)")
        axis.grid(alpha=0.3, axis="x")
    _save(figure, path)


def _origin(records: Sequence[Record]) -> list[str]:
    if not records:
        return ["Nothing is recorded yet."]
    dates = sorted(r["date"][:10] for r in records)
    said = {key: ", ".join(sorted({str(value(r)) for r in records})) for key, value in {
        "commit": lambda r: r["commit"], "machine": lambda r: r["machine"]["processor"],
        "torch": lambda r: r["versions"].get("torch", "?")}.items()}  # fmt: skip
    minutes = sum(r["cpu_seconds"] for r in records) / 60
    days = " to ".join(sorted({dates[0], dates[-1]}))
    return [
        f"{len(records)} trainings, {minutes:.0f} CPU-minutes, {days}, on "
        f"{said['machine']}, torch {said['torch']}, commit {said['commit']}.",
    ]


def _findings(study: Study) -> list[str]:
    """What the tables say, in words; no more than they do."""
    lines = []
    for strategy in study.strategies:
        d = study.difference(strategy)
        if d is not None:
            lines.append(
                f"- {NAMES[strategy]} against α = 1, each at its best rate: {d.mean:+.1f} AP50-tiny "
                f"[{d.low:+.1f}, {d.high:+.1f}] over {len(d.pairs)} pairs: {d.verdict}."
            )
    base = {rate: r for rate in study.grid if (r := study.at(BASELINE, rate)) is not None}
    for strategy in study.strategies:
        at_same = [
            (rate, 100 * (ours - theirs))
            for rate, r in base.items()
            if (other := study.at(strategy, rate)) is not None
            and (ours := last(other, METRIC)) is not None
            and (theirs := last(r, METRIC)) is not None
        ]
        if strategy != BASELINE and len(at_same) > 1:
            low, high = min(at_same, key=lambda p: p[1]), max(at_same, key=lambda p: p[1])
            lines.append(
                f"- {NAMES[strategy]} at the same rate as α = 1 (one seed): from {low[1]:+.1f} at {low[0]:g} to "
                f"{high[1]:+.1f} at {high[0]:g}."
            )
    edge = [s for s in study.strategies if (rate := _best_rate(study, s)) is not None and rate == study.grid[-1]]
    if edge and len(study.grid) > 1:
        names = ", ".join(NAMES[s] for s in edge)
        lines.append(f"- Best at the highest rate tried, so a higher one might be better still: {names}.")
    return [*lines, ""] if lines else []


def _rates(study: Study, base_rate: float) -> list[str]:
    """AP50-tiny of the last epoch, strategies by rates."""
    heads = [f"{rate:g} ({rate / base_rate:g}×)" for rate in study.grid]
    lines = ["AP50-tiny of the last epoch by learning rate, one seed:", "", f"| strategy | α | {' | '.join(heads)} |"]
    lines.append("| --- | --- |" + " --- |" * len(heads))
    for strategy in study.strategies:
        cells = [_cell(study.at(strategy, rate), METRIC) for rate in study.grid]
        lines.append(f"| {NAMES[strategy]} | {_alpha(study, strategy)} | {' | '.join(cells)} |")
    return lines


def _seeds(study: Study) -> list[str]:
    """Mean and standard deviation over fresh seeds, and the paired differences."""
    if not study.seeds:
        return ["", "Fresh seeds at the best rates are not recorded yet."]
    lines = [
        "",
        "Fresh seeds, each strategy at its best rate: mean ± standard deviation; in brackets the 95 % interval of the",
        "mean paired difference from α = 1.",
        "",
        "| strategy | rate | seeds | AP50-tiny, last epoch | difference | AP50 all, last | difference "
        "| AP50-tiny, best epoch |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for strategy in study.strategies:
        if not (runs := study.fresh(strategy)):
            continue
        lost = sum(r["diverged"] is not None for r in runs)
        count = f"{len(runs)}" + (f", {lost} diverged" if lost else "")
        rate = ", ".join(f"{rate:g}" for rate in sorted({r["key"]["lr"] for r in runs}))
        cells = [rate, count, _spread([last(r, METRIC) for r in runs]), _interval(study.difference(strategy)),
                 _spread([last(r, "AP50") for r in runs]), _interval(study.difference(strategy, "AP50")),
                 _spread([best(r, METRIC) for r in runs])]  # fmt: skip
        lines.append(f"| {NAMES[strategy]} | {' | '.join(cells)} |")
    return lines


def _precision(study: Study) -> list[str]:
    """Of the convolutions in training: it is the machine's choice, and only pairs of one are compared."""
    parts = {"rates": study.rates, "fresh seeds": study.seeds}
    told = [f"{name} in {' and '.join(sorted({r['precision'] for r in runs}))}" for name, runs in parts.items() if runs]
    return ["", f"Trained: {', '.join(told)}."] if told else []


def _best_rate(study: Study, strategy: str) -> float | None:
    scores = {rate: v for rate in study.grid if (r := study.at(strategy, rate)) and (v := last(r, METRIC)) is not None}
    return max(scores, key=lambda rate: scores[rate]) if scores else None


def _alpha(study: Study, strategy: str) -> str:
    """The factors, finest first; of learned ones those that a training at the best rate ended with."""
    rate = _best_rate(study, strategy)
    record = None if rate is None else study.at(strategy, rate)
    if record is None:
        return ""
    return ", ".join(f"{a:.2g}" for a in record["alpha"]) or "from the features"


def _cell(record: Record | None, metric: str) -> str:
    if record is None:
        return ""
    value = last(record, metric)
    return "diverged" if value is None else f"{100 * value:.1f}"


def _spread(values: Sequence[float | None]) -> str:
    known = [100 * v for v in values if v is not None]
    if not known:
        return "diverged"
    return f"{statistics.mean(known):.1f}" + (f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else "")


def _interval(d: Difference | None) -> str:
    return "" if d is None else f"{d.mean:+.1f} [{d.low:+.1f}, {d.high:+.1f}]"


def _figure(columns: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6 * columns, 4.4), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False)[0]


def _save(figure: Any, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=100)
