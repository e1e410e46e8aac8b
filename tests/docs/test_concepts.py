"""docs/concepts/: the numbers that its pages repeat are those of the results and of the code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import mean

from tinydet.export.parity import TOLERANCES

ROOT = Path(__file__).resolve().parents[2]
CONCEPTS = ROOT / "docs" / "concepts"


def rows(page: Path) -> list[list[str]]:
    """The cells of all table rows."""
    lines = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_of_merges_is_that_of_the_result() -> None:
    columns = ("tinydet seam", "SAHI NMS (IOU)", "SAHI default (GREEDYNMM, IOS)")
    scenes = json.loads((ROOT / "benchmarks" / "results" / "seams.json").read_text())["scenes"]
    expected = [
        [f"{100 * mean(scene['merges'][name]['recall']):.1f} / {100 * mean(scene['merges'][name]['extra']):.1f}"
         for name in columns]
        for scene in scenes
    ]  # fmt: skip
    assert [cells[1:] for cells in rows(CONCEPTS / "seams.md") if "px" in cells[0]] == expected


def test_the_table_of_learning_rates_is_that_of_the_study() -> None:
    study = (ROOT / "docs" / "fusion-study.md").read_text(encoding="utf-8").partition("## Built-in synthetic")[2]
    rates = study.partition("Fresh seeds")[0]
    shown = [cells for cells in rows(CONCEPTS / "preconditioner.md") if re.fullmatch("α = [.0-9]+|S-α", cells[0])]
    assert len(shown) == 4
    for name, *values in shown:
        (line,) = (line for line in rates.splitlines() if line.startswith(f"| {name} |"))
        assert line.endswith(f"| {' | '.join(values)} |")


def test_the_table_of_tolerances_is_that_of_the_code() -> None:
    shown = {
        cells[0]: cells[1:] for cells in rows(CONCEPTS / "verification.md") if cells[0] in ("FP32", "FP16", "INT8")
    }
    assert shown == {
        name.upper(): [f"{one.iou:g}", f"{one.score:g}", f"{100 * one.unmatched:g} %" if one.unmatched else "none"]
        for name, one in TOLERANCES.items()
    }
