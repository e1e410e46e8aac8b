"""How latencies are measured here: warm-up until the median settles, turns that interleave, and all percentiles."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np

WINDOW = 20  # runs whose median must have settled
SETTLED = 0.02
WARM_RUNS, WARM_SECONDS = 10, 30.0
RUNS, SECONDS = 200, 10.0
Side = TypeVar("Side", bound=Hashable)
TURN = 5  # runs of one side before the next has its turn; the first of them is not counted


def warm_up(run: Callable[[], object], *, seconds: float = WARM_SECONDS) -> int:
    """Run until the median of the last 20 differs by less than 2 % from that of the 20 before, 10 times at least and
    for `seconds` at most; how many times it was."""
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < WARM_RUNS or time.perf_counter() - began < seconds:
        times.append(milliseconds(run))
        if len(times) >= 2 * WINDOW and settled(times):
            break
        if len(times) >= WARM_RUNS and time.perf_counter() - began >= seconds:
            break
    return len(times)


def settled(times: Sequence[float]) -> bool:
    """
    >>> settled([9.0] * 20 + [2.0] * 20), settled([2.01] * 20 + [2.0] * 20)
    (False, True)
    """
    before, after = statistics.median(times[-2 * WINDOW : -WINDOW]), statistics.median(times[-WINDOW:])
    return abs(after - before) < SETTLED * before


def interleaved(
    sides: Mapping[Side, Callable[[], object]], *, runs: int = RUNS, seconds: float = SECONDS
) -> dict[Side, list[float]]:
    """Milliseconds of each side, in turns of five runs, until each has `runs` or used `seconds`; two turns at least.

    The first run of a turn is not counted: the threads of the side before may still spin.
    """
    times: dict[Side, list[float]] = {name: [] for name in sides}
    used = dict.fromkeys(sides, 0.0)
    turns = 0
    while True:
        waiting = [n for n in sides if len(times[n]) < runs and used[n] < seconds * 1e3] if turns >= 2 else [*sides]
        if not waiting:
            return times
        for name in waiting:
            turn = [milliseconds(sides[name]) for _ in range(TURN)]
            times[name] += turn[1:]
            used[name] += sum(turn)
        turns += 1


def milliseconds(run: Callable[[], object]) -> float:
    began = time.perf_counter_ns()
    run()
    return (time.perf_counter_ns() - began) / 1e6


def summary(times: Sequence[float], *, draws: int = 2000) -> dict[str, float | int | list[float]]:
    """n, mean, percentiles and the 95 % bootstrap interval of the median, rounded to microseconds.

    >>> found = summary([float(n) for n in range(1, 101)])
    >>> found["n"], found["median"], found["p95"], found["max"]
    (100, 50.5, 95.05, 100.0)
    """
    values = np.asarray(times, np.float64)
    rng = np.random.default_rng(0)
    medians = np.median(values[rng.integers(0, len(values), (draws, len(values)))], axis=1)
    percentiles = dict(zip(("p5", "p90", "p95", "p99"), np.percentile(values, (5, 90, 95, 99)).tolist(), strict=True))
    return {
        "n": len(values),
        "mean": round(float(values.mean()), 3),
        "median": round(float(np.median(values)), 3),
        "median_95": [round(v, 3) for v in np.percentile(medians, (2.5, 97.5)).tolist()],
        **{name: round(value, 3) for name, value in percentiles.items()},
        "min": round(float(values.min()), 3),
        "max": round(float(values.max()), 3),
    }
