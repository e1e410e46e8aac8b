"""The page at the end of `make demo`; the slow test runs the demo on a small scene."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REPORT = {
    "AP": {"tiny": {"0.50": 0.4123, "0.75": -1.0}, "all": {"0.50": 0.3512, "0.75": 0.0379}},
    "scene_AP": {"all": {"0.50": 0.2998}},
    "scene": [4096, 3072],
    "objects": 632,
    "detections": 486,
    "threshold": 0.241,
    "tiles_per_second": 23.6,
    "backend": "a <backend>",
    "alpha": [0.2, 0.35, 1.0],
    "operators_added_by_alpha": 0,
    "verification": {"passed": True, "score_difference": 7e-7, "box_difference": 1e-4},
    "seconds": {"Train": 246.0, "Detect": 4.0},
    "date": "2026-12-01T00:00:00+00:00",
    "commit": "abc1234",
    "python": "3.11.7",
    "machine": {"processor": "A & B", "cores": 2},
    "versions": {"tinydet": "0.2.0"},
}


def test_the_page_has_the_numbers_of_the_report() -> None:
    from demo_page import demo_page

    text = re.sub(r"<[^>]*>", " ", demo_page(REPORT))
    shown = ("35.1 %", "30.0 %", "41.2", "–", "3.8", "4096 × 3072", "632 people", "486 detections", "0.24 or more")
    shown += ("23.6 tiles/s", "0.2, 0.35, 1", "adds 0 operators", "7e-07", "4 min 6 s", "4 min 10 s", "0.2.0")
    for each in shown:
        assert each in text, each


def test_the_page_quotes_what_it_shows_and_asks_no_server() -> None:
    from demo_page import demo_page

    page = demo_page(REPORT)
    assert "a &lt;backend&gt;" in page and "A &amp; B" in page and "${" not in page
    assert not re.findall(r"(?:src|href)=\\?\"(?:https?:)?//(?!127\.0\.0\.1)", page)


def test_the_page_shows_a_failed_verification() -> None:
    from demo_page import demo_page

    verification = {"passed": False, "score_difference": 0.5, "box_difference": 3.0}
    assert "failed" in demo_page({**REPORT, "verification": verification})


def test_the_commands_to_try_next_exist() -> None:
    from demo_page import NEXT

    from tinydet.__main__ import COMMANDS

    assert {line.split()[1] for line, _ in NEXT} <= set(COMMANDS)


@pytest.mark.slow
def test_the_demo_ends_with_its_page_and_prints_nothing_alarming(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "demo.py"),
        "--folder",
        str(tmp_path / "demo"),
        "--scene",
        "2048",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    printed = done.stdout + done.stderr
    assert not re.findall(r"(?im)^.*(?:traceback|\bwarning\b|may be wrong|\berror\b).*$", printed)
    folder = tmp_path / "demo"
    page = (folder / "index.html").read_text()
    for link in re.findall(r'(?:src|href)="([^"#:]+)"', page.replace('\\"', '"')):
        assert (folder / link).exists(), link
