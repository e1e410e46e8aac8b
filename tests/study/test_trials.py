"""Trainings that are compared: recorded once each, whatever is killed in between."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tinydet.study.trials import Trial, Trials, append_record, best, find_record, last, read_records

QUICK = ("--preset", "small", "--weights-backbone", "none", "--channels", "16", "--head-convs", "1", "--epochs", "1",
         "--tile", "96", "--overlap", "32", "--precision", "fp32")  # fmt: skip
HISTORY = [{"epoch": 1, "AP50": 0.4, "AP50-tiny": 0.3}, {"epoch": 2, "AP50": 0.2, "AP50-tiny": -1.0}]
RECORD = {"key": {"seed": 1}, "flags": [], "diverged": None, "history": HISTORY}

# Stands in for a training: sleeps, notes that it ran, writes what `tinydet train --json` would.
PROGRAM = (
    "import json, sys, time; from pathlib import Path\n"
    "value = lambda flag: sys.argv[sys.argv.index(flag) + 1]\n"
    "print('beg' + 'an', flush=True); time.sleep(float(value('--nap')))\n"
    "if value('--say'): sys.exit('error: ' + value('--say'))\n"
    "Path(value('--output')).write_text('weights')\n"
    "ended = {'alpha': [1], 'diverged': None, 'seconds': 60, 'history': [{'epoch': 1, 'AP50': 0.5, 'AP50-tiny': -1}]}\n"
    "Path(value('--json')).write_text(json.dumps(ended))\n"
)


def runs_of(folder: Path, told: list[str] | None = None, **more: Any) -> Trials:
    """Trials that a quick program answers."""
    report = (lambda line: None) if told is None else told.append
    return Trials(
        folder / "runs.jsonl", folder / "work", report=report, program=(sys.executable, "-c", PROGRAM), **more
    )


def nap(seed: int, seconds: float = 0.0, say: str = "") -> Trial:
    return Trial({"seed": seed}, ("--nap", str(seconds), "--say", say), ("--data", "somewhere"))


def trial(squares: Path, alpha: float, *more: str) -> Trial:
    flags = (*QUICK, "--alpha", str(alpha), *more)
    return Trial({"alpha": alpha}, flags, ("--data", str(squares), "--val", str(squares)))


def test_a_real_training_is_recorded_and_its_record_names_no_file(tmp_path: Path, squares: Path) -> None:
    assert Trials(tmp_path / "runs.jsonl", tmp_path / "work", jobs=os.cpu_count() or 1).run([trial(squares, 0.5)])
    (record,) = read_records(tmp_path / "runs.jsonl")
    assert record["key"] == {"alpha": 0.5} and record["alpha"] == [0.5] * 3
    assert [entry["epoch"] for entry in record["history"]] == [1]
    assert str(squares) not in json.dumps(record) and str(tmp_path) not in json.dumps(record)
    assert [path.suffix for path in (tmp_path / "work").iterdir()] == [".log"]  # the model is gone, as was asked


def test_a_trial_is_run_once(tmp_path: Path) -> None:
    told: list[str] = []
    runs = runs_of(tmp_path, told, stamp=lambda: {"date": "today"}, keep_models=True, jobs=2)
    assert runs.run([nap(1), nap(2)])
    assert runs_of(tmp_path, told).run([nap(1), nap(2)])
    assert sorted(r["key"]["seed"] for r in read_records(tmp_path / "runs.jsonl")) == [1, 2]
    assert {r["date"] for r in read_records(tmp_path / "runs.jsonl")} == {"today"}
    assert [path.read_text().count("began") for path in (tmp_path / "work").glob("*.log")] == [1, 1]
    assert len(list((tmp_path / "work").glob("*.pth"))) == 2
    assert len(told) == 2 and told[1].startswith("[2/2] seed ") and "AP50 50.0 (1.0 min); 0 min for" in told[1]


def test_another_flag_makes_another_trial(squares: Path) -> None:
    record = {"key": {"alpha": 0.5}, "flags": list(trial(squares, 0.5).flags)}
    assert find_record([record], trial(squares, 0.5)) is record
    assert find_record([record], trial(squares, 0.5, "--lr", "0.1")) is None
    assert trial(squares, 0.5).name != trial(squares, 0.5, "--lr", "0.1").name


def test_a_fault_stops_what_has_not_begun_and_names_the_log(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"seed 1 ended with code 1: error: no such data \(all: .*\.log\)"):
        runs_of(tmp_path).run([nap(1, say="no such data"), nap(2, 0.2), nap(3)])
    assert {record["key"]["seed"] for record in read_records(tmp_path / "runs.jsonl")} <= {2}


def test_when_time_is_up_nothing_is_started(tmp_path: Path) -> None:
    assert not runs_of(tmp_path, minutes=0).run([nap(1)])
    assert not (tmp_path / "runs.jsonl").exists()


def test_a_training_that_outlived_a_killed_process_is_recorded_and_not_repeated(tmp_path: Path) -> None:
    slow = nap(1, 1.0)
    log = tmp_path / "work" / f"{slow.name}.log"
    process = os.fork()
    if process == 0:
        try:
            runs_of(tmp_path).run([slow])
        finally:
            os._exit(0)
    while not log.exists() or "began" not in log.read_text():
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    assert read_records(tmp_path / "runs.jsonl") == []
    assert runs_of(tmp_path).run([slow])
    assert len(read_records(tmp_path / "runs.jsonl")) == 1
    assert log.read_text().count("began") == 1


def test_a_line_that_a_crash_cut_off_is_left_out_and_written_over(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    append_record(path, RECORD)
    whole = path.read_text()
    path.write_text(whole + whole[:20])
    assert read_records(path) == [RECORD]
    append_record(path, {**RECORD, "key": {"seed": 2}})
    assert [record["key"]["seed"] for record in read_records(path)] == [1, 2]


def test_a_line_that_is_no_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    append_record(path, RECORD)
    path.write_text(path.read_text() + '{"key": 1}\n')
    with pytest.raises(ValueError, match=r"runs.jsonl, line 2: .*remove the line"):
        read_records(path)


def test_the_best_epoch_is_that_of_ap50_and_a_range_without_objects_has_no_score() -> None:
    assert (last(RECORD, "AP50"), best(RECORD, "AP50")) == (0.2, 0.4)
    assert (last(RECORD, "AP50-tiny"), best(RECORD, "AP50-tiny")) == (None, 0.3)
