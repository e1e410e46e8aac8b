"""Trials are recorded once each, even if processes are killed in between."""

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

# Stands in for a training: prints a line, sleeps, and writes a file as `tinydet train --json` does.
PROGRAM = (
    "import json, sys, time; from pathlib import Path\n"
    "value = lambda flag: sys.argv[sys.argv.index(flag) + 1]\n"
    "print('beg' + 'an', flush=True); time.sleep(float(value('--sleep')))\n"
    "if value('--error'): sys.exit('error: ' + value('--error'))\n"
    "Path(value('--output')).write_text('weights')\n"
    "result = {'alpha': [1], 'diverged': None, 'seconds': 60,"
    " 'history': [{'epoch': 1, 'AP50': 0.5, 'AP50-tiny': -1}]}\n"
    "Path(value('--json')).write_text(json.dumps(result))\n"
)


def trials_in(folder: Path, **options: Any) -> Trials:
    """Trials whose program sleeps instead of training."""
    program = (sys.executable, "-c", PROGRAM)
    return Trials(folder / "runs.jsonl", folder / "work", program=program, **options)


def sleeping_trial(seed: int, seconds: float = 0.0, error: str = "") -> Trial:
    return Trial({"seed": seed}, ("--sleep", str(seconds), "--error", error), ("--data", "somewhere"))


def trial(squares: Path, alpha: float, *flags: str) -> Trial:
    flags = (*QUICK, "--alpha", str(alpha), *flags)
    return Trial({"alpha": alpha}, flags, ("--data", str(squares), "--val", str(squares)))


@pytest.mark.slow  # the test of the sweep trains, too
def test_a_real_training_is_recorded_and_its_record_names_no_file(tmp_path: Path, squares: Path) -> None:
    assert Trials(tmp_path / "runs.jsonl", tmp_path / "work", jobs=os.cpu_count() or 1).run([trial(squares, 0.5)])
    (record,) = read_records(tmp_path / "runs.jsonl")
    assert record["key"] == {"alpha": 0.5} and record["alpha"] == [0.5] * 3
    assert [entry["epoch"] for entry in record["history"]] == [1]
    assert str(squares) not in json.dumps(record) and str(tmp_path) not in json.dumps(record)
    assert [path.suffix for path in (tmp_path / "work").iterdir()] == [".log"]  # the model is deleted by default


def test_a_trial_is_run_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "tinydet.study")
    runs = trials_in(tmp_path, stamp=lambda: {"date": "today"}, keep_models=True, jobs=2)
    assert runs.run([sleeping_trial(1), sleeping_trial(2)])
    assert trials_in(tmp_path).run([sleeping_trial(1), sleeping_trial(2)])
    assert sorted(r["key"]["seed"] for r in read_records(tmp_path / "runs.jsonl")) == [1, 2]
    assert {r["date"] for r in read_records(tmp_path / "runs.jsonl")} == {"today"}
    assert [path.read_text().count("began") for path in (tmp_path / "work").glob("*.log")] == [1, 1]
    assert len(list((tmp_path / "work").glob("*.pth"))) == 2
    _, second = caplog.messages
    assert second.startswith("[2/2] seed ") and "AP50 50.0 (1.0 min); about 0 min left" in second


def test_another_flag_makes_another_trial(squares: Path) -> None:
    record = {"key": {"alpha": 0.5}, "flags": list(trial(squares, 0.5).flags)}
    assert find_record([record], trial(squares, 0.5)) is record
    assert find_record([record], trial(squares, 0.5, "--lr", "0.1")) is None
    assert trial(squares, 0.5).name != trial(squares, 0.5, "--lr", "0.1").name


def test_an_error_stops_the_trials_that_have_not_started_and_names_the_log(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"seed 1 failed with exit code 1: error: no such data \(log: .*\.log\)"):
        trials_in(tmp_path).run([sleeping_trial(1, error="no such data"), sleeping_trial(2, 0.2), sleeping_trial(3)])
    assert {record["key"]["seed"] for record in read_records(tmp_path / "runs.jsonl")} <= {2}


def test_no_training_starts_after_the_time_limit(tmp_path: Path) -> None:
    assert not trials_in(tmp_path, minutes=0).run([sleeping_trial(1)])
    assert not (tmp_path / "runs.jsonl").exists()


def test_a_training_that_outlives_a_killed_process_is_recorded_and_not_repeated(tmp_path: Path) -> None:
    slow = sleeping_trial(1, 1.0)
    log = tmp_path / "work" / f"{slow.name}.log"
    process = os.fork()
    if process == 0:
        try:
            trials_in(tmp_path).run([slow])
        finally:
            os._exit(0)
    while not log.exists() or "began" not in log.read_text():
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    assert read_records(tmp_path / "runs.jsonl") == []
    assert trials_in(tmp_path).run([slow])
    assert len(read_records(tmp_path / "runs.jsonl")) == 1
    assert log.read_text().count("began") == 1


def test_a_line_that_a_crash_cut_off_is_skipped_and_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    append_record(path, RECORD)
    complete = path.read_text()
    path.write_text(complete + complete[:20])
    assert read_records(path) == [RECORD]
    append_record(path, {**RECORD, "key": {"seed": 2}})
    assert [record["key"]["seed"] for record in read_records(path)] == [1, 2]


def test_an_invalid_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    append_record(path, RECORD)
    path.write_text(path.read_text() + '{"key": 1}\n')
    with pytest.raises(ValueError, match=r"runs.jsonl, line 2: .*remove the line"):
        read_records(path)


def test_ap50_selects_the_best_epoch_and_a_size_range_without_objects_has_no_score() -> None:
    assert (last(RECORD, "AP50"), best(RECORD, "AP50")) == (0.2, 0.4)
    assert (last(RECORD, "AP50-tiny"), best(RECORD, "AP50-tiny")) == (None, 0.3)
