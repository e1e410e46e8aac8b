"""The benchmark of the detectors: which combinations it runs, and what its tables say of recorded runs."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from tinydet.models.registry import BUILT_IN
from tinydet.train.config import config_of


@pytest.fixture
def benchmark() -> Any:
    return importlib.import_module("detectors")


@pytest.fixture
def report() -> Any:
    return importlib.import_module("detectors_report")


def run(network: str, alpha: str, seed: int, ap: float | None) -> str:
    """A line of the record; None: the training diverged."""
    scores = {"epoch": 3, "AP50": ap, "AP50-tiny": ap, "AP75": 0.1, "MR50-tiny": 0.5}
    return json.dumps(
        {
            "key": {"network": network, "assign": "own", "alpha": alpha, "seed": seed},
            "flags": [],
            "alpha": [1.0, 1.0, 1.0] if alpha == "1" else [0.5, 0.25, 0.2],
            "history": [] if ap is None else [scores],
            "diverged": "the loss is nan" if ap is None else None,
            "cpu_seconds": 600.0,
            "megabytes": 9.0,
        }
    )


@pytest.fixture
def results(tmp_path: Path) -> Path:
    lines = [run("retinanet", "1", 0, 0.5), run("retinanet", "1", 1, 0.6), run("faster_rcnn", "S", 0, 0.7)]
    (tmp_path / "detectors.jsonl").write_text("\n".join([*lines, run("retinanet", "S", 0, None), ""]))
    cost = {"epochs": 4, "gmac": 9.5, "million_parameters": 2.1, "cpu_seconds_per_tile": 0.12}
    costs = {"costs": {"retinanet own": cost, "faster_rcnn own": cost}}
    (tmp_path / "detectors_cost.json").write_text(json.dumps(costs))
    times = {"median": 200.0, "p5": 190.0, "p95": 220.0}
    speeds = {"networks": {"retinanet": {"tiles_per_second": 5.0, "milliseconds": times}}}
    (tmp_path / "detectors_speed.json").write_text(json.dumps(speeds))
    file = {"network": "retinanet", "precision": "fp32", "code": 0, "megabytes": 9.0}
    built = {"engine_megabytes": 11.0, "engine_seconds": 2.0}
    (tmp_path / "detectors_precision.json").write_text(json.dumps({"files": {"retinanet fp32": file | built}}))
    enlarged = {"network": "retinanet", "assign": "own", "alpha": "S", "scale": 2.0}
    scores = {"AP50": 0.8, "AP50-tiny": 0.7, "AP75": 0.1, "MR50-tiny": 0.5}
    (tmp_path / "detectors_scale.json").write_text(json.dumps({"scores": {"retinanet own S 2": enlarged | scores}}))
    return tmp_path


def test_every_detector_is_compared_and_what_does_not_exist_has_a_reason(benchmark: Any) -> None:
    assert {*BUILT_IN} <= {network.detector for network in benchmark.NETWORKS.values()}
    every = {(n, a, alpha) for n in benchmark.NETWORKS for a in ("own", "nwd") for alpha in ("1", "S")}
    missing = every - {tuple(c) for c in benchmark.combinations()}
    assert all(benchmark.absent(benchmark.Combination(*names)) for names in missing)
    assert ("free_anchor", "nwd", "1") in missing


def test_every_combination_trains_its_own_network_by_its_own_rule(benchmark: Any) -> None:
    trained = set()
    for network, assign, alpha in benchmark.combinations():
        flags = [*benchmark.network_flags(network, assign), *benchmark.TRAINING, *benchmark.ALPHAS[alpha]]
        config = config_of(flags)
        assert config.network == benchmark.NETWORKS[network].detector
        assert (config.options.get("assign") == "nwd") == (assign == "nwd") and config.salpha == (alpha == "S")
        trained.add((config.network, config.preset, tuple(config.options.items()), config.salpha))
    assert len(trained) == len(benchmark.combinations())


def test_only_restricts_the_kinds_that_it_names(benchmark: Any) -> None:
    chosen = [c for c in benchmark.combinations() if benchmark.selected(c, ["retinanet", "own"])]
    assert {tuple(c) for c in chosen} == {("retinanet", "own", "1"), ("retinanet", "own", "S")}


def test_the_table_has_the_best_first_and_the_range_of_the_seeds(report: Any, results: Path) -> None:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in report.scores_table(results)][2:]
    assert [row[:4] for row in rows] == [
        ["Faster R-CNN", "own", "S (0.50, 0.25, 0.20)", "70.0"],
        ["RetinaNet", "own", "1", "55.0 (50.0–60.0)"],
        ["RetinaNet", "own", "S (0.50, 0.25, 0.20)", "–"],
    ]
    assert rows[1][-2:] == ["2", "4"]


def test_tables_are_written_between_their_marks_again_and_again(report: Any, results: Path) -> None:
    marks = [f"{report.BEGIN.format(name)}\n{report.END.format(name)}\n" for name in report.TABLES]
    page = results / "detectors.md"
    page.write_text("before\n" + "between\n".join(marks) + "after\n")
    report.write_report(results, results)
    once = page.read_text()
    report.write_report(results, results)
    assert page.read_text() == once and once.startswith("before\n") and once.endswith("after\n")
    # 2 ** 2 * 1e6 / (640 - 128) ** 2 tiles of 0.2 s
    assert "| RetinaNet | own | S | 2 | 80.0 | 70.0 | 10.0 | 50.0 | 3.05 |" in once
    assert "| RetinaNet | 5.0 | 200, 190 to 220 | 9.5 | 9.0 | 2.1 M | 120 |" in once


def test_the_short_table_has_each_network_at_its_best_with_the_mean_of_its_seeds(report: Any, results: Path) -> None:
    assert [*report.best_table(results)][2:] == [
        "| Faster R-CNN | own | S | 70.0 | 70.0 | – | – |",
        "| RetinaNet | own | 1 | 55.0 | 55.0 | 5.0 | 9.0 |",
    ]


def test_the_tables_of_the_pages_are_those_of_the_recorded_runs(report: Any, programs: Path) -> None:
    pages = [(programs.parent / name).read_text(encoding="utf-8") for name in ("docs/detectors.md", "README.md")]
    shown = {(name, page) for name in report.TABLES for page in pages if report.BEGIN.format(name) in page}
    assert len(shown) >= 3
    for name, page in shown:
        assert report.replaced(page, name, report.table_text(name, programs / "results")) == page
