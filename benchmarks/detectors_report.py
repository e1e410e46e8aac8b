"""The tables of `detectors.py`, made from the records of its runs and written between marks in docs and README."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tinydet._internal.atomic import write_text
from tinydet.models.registry import DETECTORS
from tinydet.study.trials import Record, last, read_records

BEGIN, END = "<!-- {}: written by benchmarks/detectors.py --report -->", "<!-- end of {} -->"
RULES = {"own": "own", "nwd": "NWD rank"}
STRIDE = 640 - 128  # pixels from tile to tile of a large scene
SCORES = {"AP50": "AP50", "AP50-tiny": "AP50 tiny", "AP75": "AP75", "MR50-tiny": "MR50 tiny"}


def write_report(results: Path, docs: Path) -> list[Path]:
    """Replace the tables in docs/detectors.md and, where the README has marks, there; return the written files."""
    paths = [docs / "detectors.md", *(path for path in [docs.parent / "README.md"] if path.exists())]
    for path in paths:
        page = path.read_text(encoding="utf-8")
        for name in TABLES:
            if BEGIN.format(name) in page:
                page = replaced(page, name, table_text(name, results))
        write_text(path, page)
    return paths


def table_text(name: str, results: Path) -> str:
    """Return a table as Markdown, or a sentence where nothing is recorded yet."""
    lines = [*TABLES[name](results)]
    return "\n".join(lines) if len(lines) > 2 else "Not measured yet."


def replaced(page: str, name: str, text: str) -> str:
    """Return a page with another text between the marks of that name.

    >>> page = "a\\n<!-- t: written by benchmarks/detectors.py --report -->\\nold\\n<!-- end of t -->\\nb"
    >>> replaced(page, "t", "new").splitlines()[3]
    'new'
    """
    begin, end = BEGIN.format(name), END.format(name)
    before, _, rest = page.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"the page lacks the marks {begin} and {end}")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


def scores_table(results: Path) -> Iterator[str]:
    """Yield the lines of the table of scores, the best AP50 first; a mean and a range where there are several seeds."""
    costs = read_json(results / "detectors_cost.json").get("costs", {})
    yield f"| detector | assignment | α | {' | '.join(SCORES.values())} | seeds | epochs |"
    yield "| --- | --- | --- |" + " --: |" * (len(SCORES) + 2)

    def order(item: tuple[tuple[str, str, str], list[Record]]) -> float:
        return -statistics.mean(last(record, "AP50") or 0.0 for record in item[1])

    for (network, assign, alpha), records in sorted(groups_of(results).items(), key=order):
        values = [spread([last(record, name) for record in records]) for name in SCORES]
        factors = ", ".join(f"{a:.2f}" for a in records[0]["alpha"])
        chosen = f"S ({factors})" if alpha == "S" else "1"
        epochs = costs[f"{network} {assign}"]["epochs"]
        yield (f"| {label(network)} | {RULES[assign]} | {chosen} | {' | '.join(values)} | {len(records)} | {epochs} |")


def rates_table(results: Path) -> Iterator[str]:
    """Yield the lines of the table of two learning rates: the runs at half the rate and their partners."""
    full = {json.dumps(r["key"]): r for r in read_records(results / "detectors.jsonl")}
    yield "| detector | α | AP50 at the rate 0.02 | at 0.01 | AP50 tiny at 0.02 | at 0.01 |"
    yield "| --- | --- |" + " --: |" * 4
    for half in read_records(results / "detectors_rates.jsonl"):
        key = half["key"]
        pair = [full[json.dumps(key)], half]
        values = [f"{100 * (last(r, name) or 0.0):.1f}" for name in ("AP50", "AP50-tiny") for r in pair]
        yield f"| {label(key['network'])} | {key['alpha']} | {' | '.join(values)} |"


def costs_table(results: Path) -> Iterator[str]:
    """Yield the lines of the table of speed and size, the fastest network first."""
    costs = read_json(results / "detectors_cost.json").get("costs", {})
    speeds = read_json(results / "detectors_speed.json").get("networks", {})
    sizes = file_sizes(results)
    yield "| detector | tiles/s | ms: median, 5 % to 95 % | GMAC | MB | parameters | training, CPU ms per tile |"
    yield "| --- |" + " --: |" * 6
    by_network: dict[str, Any] = {}
    for name, cost in costs.items():
        by_network.setdefault(name.rpartition(" ")[0], cost)
    for network in sorted(speeds, key=lambda n: -speeds[n]["tiles_per_second"]):
        times, cost = speeds[network]["milliseconds"], by_network[network]
        yield (
            f"| {label(network)} | {speeds[network]['tiles_per_second']:.1f} | {times['median']:.0f}, "
            f"{times['p5']:.0f} to {times['p95']:.0f} | {cost['gmac']:.1f} | {sizes.get(network, '–')} | "
            f"{cost['million_parameters']:.1f} M | {1000 * cost['cpu_seconds_per_tile']:.0f} |"
        )


def scales_table(results: Path) -> Iterator[str]:
    """Yield the lines of the table of enlarged frames, with the CPU time of a large scene."""
    speeds = read_json(results / "detectors_speed.json").get("networks", {})
    yield f"| detector | assignment | α | `--scale` | {' | '.join(SCORES.values())} | CPU s per megapixel |"
    yield "| --- | --- | --- | --: |" + " --: |" * (len(SCORES) + 1)
    for row in read_json(results / "detectors_scale.json").get("scores", {}).values():
        tiles = 1e6 * row["scale"] ** 2 / STRIDE**2
        seconds = tiles * speeds[row["network"]]["milliseconds"]["median"] / 1000
        values = " | ".join(f"{100 * row[name]:.1f}" for name in SCORES)
        yield (
            f"| {label(row['network'])} | {RULES[row['assign']]} | {row['alpha']} | {row['scale']:g} | {values} | "
            f"{seconds:.2f} |"
        )


def precisions_table(results: Path) -> Iterator[str]:
    """Yield the lines of the table of converted files: AP in percent before and after, and engines."""
    yield (
        "| detector | precision | AP50: before, after | AP50 tiny: before, after | unmatched | layers kept in FP32 | "
        "ONNX, MB | engine, MB | build, s |"
    )
    yield "| --- | --- |" + " --: |" * 7
    for row in read_json(results / "detectors_precision.json").get("files", {}).values():
        title = f"{label(row['network'])} | {row['precision'].upper()}"
        if row["code"]:
            yield f"| {title} | not within the tolerance |" + " – |" * 6
            continue
        compared = "– | – | – | –"
        if "AP" in row:
            pairs = (", ".join(f"{100 * value:.1f}" for value in row["AP"][size]) for size in ("all", "tiny"))
            share = f"{row['unmatched']} of {row['detections']}"
            compared = f"{' | '.join(pairs)} | {share} | {len(row['kept_in_fp32'])}"
        yield (
            f"| {title} | {compared} | {row['megabytes']:.1f} | {row['engine_megabytes']:.1f} | "
            f"{row['engine_seconds']:.1f} |"
        )


def best_table(results: Path) -> Iterator[str]:
    """Yield the lines of a short table: each network at its best, with speed and size, the best AP50 first.

    Scores are means over the seeds.
    """
    speeds, sizes = read_json(results / "detectors_speed.json").get("networks", {}), file_sizes(results)
    best: dict[str, tuple[float, float, str, str]] = {}
    for (network, assign, alpha), records in groups_of(results).items():
        ap, tiny = (statistics.mean(last(r, name) or 0.0 for r in records) for name in ("AP50", "AP50-tiny"))
        best[network] = max(best.get(network, (-1.0, 0.0, "", "")), (ap, tiny, RULES[assign], alpha))
    yield "| detector | assignment | α | AP50 | AP50 tiny | tiles/s | MB |"
    yield "| --- | --- | --- |" + " --: |" * 4
    for network, (ap, tiny, rule, alpha) in sorted(best.items(), key=lambda item: -item[1][0]):
        speed = f"{speeds[network]['tiles_per_second']:.1f}" if network in speeds else "–"
        yield (
            f"| {label(network)} | {rule} | {alpha} | {100 * ap:.1f} | {100 * tiny:.1f} | {speed} | "
            f"{sizes.get(network, '–')} |"
        )


def groups_of(results: Path) -> dict[tuple[str, str, str], list[Record]]:
    """Return the recorded seeds by network, assignment and alpha."""
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for record in read_records(results / "detectors.jsonl"):
        key = record["key"]
        groups.setdefault((key["network"], key["assign"], key["alpha"]), []).append(record)
    return groups


def file_sizes(results: Path) -> dict[str, str]:
    """Return the size of the FP32 ONNX file of each network, in MB."""
    files = read_json(results / "detectors_precision.json").get("files", {}).values()
    return {row["network"]: f"{row['megabytes']:.1f}" for row in files if row["precision"] == "fp32"}


def spread(values: Sequence[float | None], show: Callable[[float], str] = lambda v: f"{100 * v:.1f}") -> str:
    """Format a score in percent; of several seeds the mean and the range; a dash where a training diverged.

    >>> spread([0.5]), spread([0.5, 0.52]), spread([0.5, None])
    ('50.0', '51.0 (50.0–52.0)', '–')
    """
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return "–"
    if len(known) == 1:
        return show(known[0])
    return f"{show(statistics.mean(known))} ({show(min(known))}–{show(max(known))})"


def label(network: str) -> str:
    """Return the name of a network for a reader."""
    return DETECTORS[network].label if network in DETECTORS else f"`--preset {network}`"


def read_json(path: Path) -> dict[str, Any]:
    """Read a result file; a missing one is empty."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


TABLES: dict[str, Callable[[Path], Iterator[str]]] = {
    "scores": scores_table,
    "rates": rates_table,
    "costs": costs_table,
    "scales": scales_table,
    "precisions": precisions_table,
    "best": best_table,
}
