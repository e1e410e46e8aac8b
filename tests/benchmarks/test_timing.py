"""Turns, warm-up and summary of measurements."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest


@pytest.fixture
def timing() -> ModuleType:
    return importlib.import_module("timing")


def test_sides_run_in_turns_and_the_first_run_of_a_turn_is_not_counted(timing: ModuleType) -> None:
    ran: list[str] = []
    times = timing.interleaved({"a": lambda: ran.append("a"), "b": lambda: ran.append("b")}, runs=12, seconds=60)
    assert "".join(ran) == ("aaaaa" + "bbbbb") * 3
    assert [len(side) for side in times.values()] == [12, 12]


def test_a_side_has_two_turns_even_if_its_time_is_used_up(timing: ModuleType) -> None:
    ran: list[str] = []
    times = timing.interleaved({"slow": lambda: ran.append("slow")}, runs=100, seconds=0)
    assert len(ran) == 10 and len(times["slow"]) == 8


def test_warm_up_ends_when_the_median_has_settled_or_the_time_is_used_up(
    timing: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0] * 20 + [50.0] * 20 + [10.0] * 60
    given = iter(clock)
    monkeypatch.setattr(timing, "milliseconds", lambda run: next(given))
    assert timing.warm_up(lambda: None, seconds=60) == 71  # most of 32..51 and all of 52..71 are 10
    given = iter(clock)
    assert timing.warm_up(lambda: None, seconds=0) == 10


def test_the_latency_benchmark_uses_the_same_warm_up_and_summary(timing: ModuleType) -> None:
    latency = importlib.import_module("latency")
    assert latency.warm_up is timing.warm_up
    assert latency.spread([0.003, 0.001]) == timing.summary([3.0, 1.0]) and latency.spread([]) is None


def test_a_summary_is_ordered_and_its_interval_contains_the_median(timing: ModuleType) -> None:
    found = timing.summary([3.0, 1.0, 2.0, 4.0, 100.0])
    assert found["n"] == 5 and found["median"] == 3.0 and found["mean"] == 22.0
    low, high = found["median_95"]
    assert found["min"] == 1.0 <= low <= found["median"] <= high <= found["max"] == 100.0
    assert found["p5"] <= found["median"] <= found["p90"] <= found["p95"] <= found["p99"]
