from __future__ import annotations

import io
import re
import sys
import warnings

import pytest
from tqdm import tqdm

from tinydet._internal import progress
from tinydet._internal.console import show_messages
from tinydet._internal.progress import Bar, duration, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that pass, at index 0."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def lines_of_log(clock: list[float], monkeypatch: pytest.MonkeyPatch, seconds: int, **options: object) -> list[str]:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with Bar(seconds, "image", "evaluate", **options) as bar:  # type: ignore[arg-type]
        for _ in range(seconds):
            clock[0] += 1
            bar.update()
    return log.getvalue().splitlines()


def test_a_log_gets_a_line_every_10_to_30_seconds_and_none_of_a_short_run(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lines_of_log(clock, monkeypatch, 9) == []
    lines = lines_of_log(clock, monkeypatch, 1000)
    seconds = [int(match[1]) for line in lines if (match := re.search(r"(\d+)/1000 images", line))]
    gaps = [b - a for a, b in zip([0, *seconds], seconds, strict=False)]
    assert len(seconds) == len(lines)
    assert min(gaps) == 10 and max(gaps) == 30
    assert lines[0] == "  evaluate: 10/1000 images, 1 images/s, 16 min left"
    assert all(line.isprintable() for line in lines)
    assert lines_of_log(clock, monkeypatch, 100, quiet=True) == []


def test_items_that_took_no_time_do_not_count_for_the_time_left(clock: list[float]) -> None:
    bar = Bar(1000, "scene")
    bar.skip(900)
    for _ in range(10):
        clock[0] += 1
        bar.update()
    assert bar.text() == "910/1000 scenes, 1 scenes/s, 90 s left".replace("90 s", duration(90))


def test_a_terminal_shows_a_bar_that_messages_and_warnings_do_not_break(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(progress, "REFRESH", 0.0)
    monkeypatch.setattr("tinydet._internal.console._SHOW_WARNING", warnings.showwarning)
    with show_messages("tinydet test"), Bar(3, "scene") as bar:
        for n in range(3):
            bar.update()
            warnings.showwarning(UserWarning(f"careful {n}"), UserWarning, "file.py", 1)
            tqdm.write(f"message {n}", file=terminal)
    assert not tqdm._instances
    shown = terminal.getvalue()
    assert "2/3 scenes" in shown
    # What a terminal keeps of each line: the text after the last carriage return.
    kept = [line.rpartition("\r")[2] for line in shown.split("\n")]
    assert [line for line in kept if "message" in line] == [f"message {n}" for n in range(3)]
    assert [line for line in kept if "careful" in line] == [f"file.py:1: UserWarning: careful {n}" for n in range(3)]
    assert not kept[-1].strip()


def test_tracked_items_are_the_items(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(track([3, 1, 2], "image")) == [3, 1, 2]
    assert list(track(iter("ab"), "image", total=2)) == ["a", "b"]


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_the_bar_makes_room_for_the_time_left(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(progress, "COLUMNS", columns)
    with Bar(76755, "tile", speed=lambda seconds: "1760.1 tiles/s, 186503 detections") as bar:
        for _ in range(3):
            clock[0] += 10
            bar.update(20000)
    shown = terminal.getvalue().split("\r")
    assert max(map(len, shown)) <= columns
    lines = [line for line in shown if "60000/76755" in line]
    assert lines
    if columns >= 80:  # the text alone has 74 columns
        assert all("186503 detections, 8 s left" in line for line in lines)
    assert all(line.count("█") <= 20 for line in lines)
