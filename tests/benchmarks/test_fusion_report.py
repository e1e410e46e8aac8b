"""What the study of the fusion factor says of its record, checked by hand."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def report() -> Any:
    return importlib.import_module("fusion_report")


def training(strategy: str, lr: float, seed: int, tiny: float | None, precision: str = "float32") -> dict[str, Any]:
    """A record with one score; None: it diverged."""
    return {
        "key": {"data": "squares", "strategy": strategy, "lr": lr, "seed": seed}, "flags": [],
        "alpha": [0.5] * 3, "precision": precision,
        "history": [] if tiny is None else [{"epoch": 1, "AP50": tiny, "AP50-tiny": tiny}],
        "diverged": None if tiny is not None else "the loss is nan", "cpu_seconds": 60.0, "date": "2026-01-01T00:00",
        "commit": "0", "machine": {"processor": "any"}, "versions": {"torch": "2"},
    }  # fmt: skip


def test_differences_are_paired_by_seed_and_their_interval_is_students(report: Any) -> None:
    ours, base = {1: 0.50, 2: 0.52, 3: 0.54}, {1: 0.40, 2: 0.41, 3: 0.42}
    records = [training("0.5", 0.02, s, v) for s, v in ours.items()] + [
        training("1", 0.01, s, v) for s, v in base.items()
    ]
    found = report.Study(records, first_seed=0).difference("0.5")
    assert found.pairs == pytest.approx((10, 11, 12))
    # t(0.975, 2) = 4.302653, deviation 1, three pairs: 4.302653 / sqrt(3) = 2.484138
    assert (found.mean, found.low, found.high) == pytest.approx((11, 11 - 2.484138, 11 + 2.484138), abs=1e-5)
    assert found.verdict == "better"
    assert report.Study(records[::-1], first_seed=0).difference("0.5") == found


def test_the_seed_that_chose_the_rate_is_no_part_of_the_comparison(report: Any) -> None:
    records = [training(s, 0.01, seed, 0.4) for s in ("1", "0.5") for seed in (1, 2)]
    lucky = [training("0.5", 0.01, 0, 0.9), training("1", 0.01, 0, 0.1)]
    assert report.Study([*records, *lucky], first_seed=0).difference("0.5").mean == 0


def test_a_pair_with_a_training_that_diverged_is_left_out_and_counted(report: Any, tmp_path: Path) -> None:
    records = [training("1", 0.01, seed, 0.4) for seed in (0, 1, 2, 3)]
    records += [training("0.5", 0.01, seed, value) for seed, value in ((0, 0.5), (1, 0.5), (2, None), (3, 0.3))]
    found = report.Study(records, first_seed=0).difference("0.5")
    assert found.pairs == pytest.approx((10, -10)) and found.verdict == "no significant difference"
    report.write_report(records, tmp_path, first_seed=0, base_rate=0.01)
    page = (tmp_path / "fusion-study.md").read_text()
    assert "3, 1 diverged" in page and "over 2 pairs, no significant difference" in page


def test_trainings_in_different_precision_are_no_pair(report: Any, tmp_path: Path) -> None:
    records = [training(s, 0.01, seed, v) for s, v in (("1", 0.4), ("0.5", 0.5)) for seed in (0, 1, 2)]
    records += [training("1", 0.01, 3, 0.9, "bfloat16"), training("0.5", 0.01, 3, 0.1)]
    assert report.Study(records, first_seed=0).difference("0.5").pairs == pytest.approx((10, 10))
    page, *_ = report.write_report(records, tmp_path, first_seed=0, base_rate=0.01)
    assert "Precision of training: rates in float32, fresh seeds in bfloat16 and float32." in page.read_text()


def test_the_page_names_its_figures_and_they_are_there(report: Any, tmp_path: Path) -> None:
    records = [training(s, lr, seed, 0.4 + lr) for s in ("1", "S") for lr, seed in ((0.01, 0), (0.02, 0), (0.02, 1))]
    page, *pictures = report.write_report(records, tmp_path, first_seed=0, base_rate=0.01)
    assert [p.name for p in pictures] == ["fusion-study-rates.png"]  # one pair makes no interval
    assert all(p.name in page.read_text() and p.read_bytes().startswith(b"\x89PNG") for p in pictures)
    assert "Best at the highest learning rate tried" in page.read_text()


def test_a_study_without_records_says_so(report: Any, tmp_path: Path) -> None:
    (page,) = report.write_report([], tmp_path, first_seed=0, base_rate=0.01)
    assert "Nothing is recorded yet." in page.read_text()
