"""Measure latencies: warm up until the median settles, run the sides in turns, summarize with percentiles."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np

WINDOW = 20  # runs over which the median must have settled
SETTLED = 0.02  # largest relative difference of two medians
WARM_RUNS, WARM_SECONDS = 10, 30.0
RUNS, SECONDS = 200, 10.0
Side = TypeVar("Side", bound=Hashable)
TURN = 5  # runs of one side before the next side runs; the first of them is not counted


def warm_up(run: Callable[[], object], *, seconds: float = WARM_SECONDS) -> int:
    """Run until the medians of the last 20 runs and of the 20 before differ by less than 2 %.

    After `seconds` it stops in any case, but there are at least 10 runs. Returns the number of runs.
    """
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
    """Return whether the medians of the last 20 times and of the 20 before differ by less than 2 %.

    >>> settled([9.0] * 20 + [2.0] * 20), settled([2.01] * 20 + [2.0] * 20)
    (False, True)
    """
    before, after = statistics.median(times[-2 * WINDOW : -WINDOW]), statistics.median(times[-WINDOW:])
    return abs(after - before) < SETTLED * before


def interleaved(
    sides: Mapping[Side, Callable[[], object]],
    *,
    runs: int = RUNS,
    seconds: float = SECONDS,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> dict[Side, list[float]]:
    """Run the sides in turns of five until each has `runs` times or has used `seconds`, with at least two turns.

    The first run of a turn is not counted, because the threads of the previous side may still be spinning.

    Args:
        clock: in nanoseconds; `time.process_time_ns` measures CPU time, which other processes hardly affect.

    Returns:
        The times of each side in milliseconds.
    """
    times: dict[Side, list[float]] = {name: [] for name in sides}
    used = dict.fromkeys(sides, 0.0)
    turns = 0
    while True:
        waiting = [n for n in sides if len(times[n]) < runs and used[n] < seconds * 1e3] if turns >= 2 else [*sides]
        if not waiting:
            return times
        for name in waiting:
            turn = [milliseconds(sides[name], clock) for _ in range(TURN)]
            times[name] += turn[1:]
            used[name] += sum(turn)
        turns += 1


def milliseconds(run: Callable[[], object], clock: Callable[[], int] = time.perf_counter_ns) -> float:
    """Time one run."""
    began = clock()
    run()
    return (clock() - began) / 1e6


def summary(times: Sequence[float], *, draws: int = 2000) -> dict[str, float | int | list[float]]:
    """Return n, mean, percentiles and the 95 % bootstrap interval of the median, rounded to three decimals.

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
