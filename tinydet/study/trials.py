"""Run the training runs of an experiment, several at a time, and record each of them once.

The records are a file of JSON lines, one per trial. Key and flags identify a trial, so a trial with other flags is a
different one. If a process is killed, only the steps since the last saved state are lost: the next run resumes from
that state. A training that outlives the process that started it is waited for and recorded, not repeated.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tinydet._internal.input_files import read_file
from tinydet._internal.json_files import checked, parse_json, read_json
from tinydet._internal.locks import lock_file
from tinydet._internal.shell import command_line

LOGGER = logging.getLogger(__name__)

Record = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """One training.

    Attributes:
        key: the varied settings and their values, such as {"alpha": 0.5, "seed": 1}.
        flags: options of `tinydet train`, without --output, --json, --threads and --resume.
        file_flags: further options, those that name files. They are not recorded because they differ between machines.
    """

    key: Mapping[str, str | float]
    flags: tuple[str, ...]
    file_flags: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Stem of the trial's files; unique, because it contains a hash of key and flags."""
        words = "-".join(re.sub(r"[^\w.]+", "_", f"{name}{value}") for name, value in self.key.items())
        identity = json.dumps([dict(self.key), self.flags, self.file_flags])
        return f"{words}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"

    def matches(self, record: Record) -> bool:
        """Return whether a record is the result of this trial."""
        return bool(record["key"] == dict(self.key) and record["flags"] == list(self.flags))


@dataclass
class Trials:
    """Runs trials and records their results.

    Args:
        records: file of JSON lines, created or extended.
        folder: folder of models, saved states and logs, created if it does not exist.
        stamp: returns further fields of a record, such as date and versions.
        jobs: number of training runs at a time. They share the CPU cores.
        minutes: start no training after this time; None: no limit.
        keep_models: keep the trained models. By default a model is deleted once its scores are recorded.
        program: the training program, to which the flags are appended.
    """

    records: Path
    folder: Path
    stamp: Callable[[], Record] = dict
    jobs: int = 1
    minutes: float | None = None
    keep_models: bool = False
    program: tuple[str, ...] = (sys.executable, "-u", "-m", "tinydet.train")
    _created: float = field(default_factory=time.monotonic, init=False)
    _stop: threading.Event = field(default_factory=threading.Event, init=False)
    _running: set[subprocess.Popen[bytes]] = field(default_factory=set, init=False)

    def run(self, trials: Sequence[Trial]) -> bool:
        """Run the trials that are not recorded yet, in order. Return whether all of them are recorded now.

        Raises:
            ValueError: a training failed for a reason other than a loss that is not finite. The message names its log.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        known = read_records(self.records)
        missing = [trial for trial in trials if find_record(known, trial) is None]
        with concurrent.futures.ThreadPoolExecutor(self.jobs) as pool:
            futures = [pool.submit(self._run, trial) for trial in missing]
            started, done = time.monotonic(), 0
            try:
                for future in concurrent.futures.as_completed(futures):
                    if line := future.result():
                        done += 1
                        left = (time.monotonic() - started) / done * (len(missing) - done) / 60
                        LOGGER.info("[%d/%d] %s; about %.0f min left", done, len(missing), line, left)
            finally:  # after an error, those that are running may finish, but no other is started
                self._stop.set()
                if sys.exc_info()[0] is KeyboardInterrupt:
                    for process in tuple(self._running):  # an interrupted training saves its state
                        process.send_signal(signal.SIGINT)
        self._stop.clear()
        return done == len(missing)

    def _run(self, trial: Trial) -> str:
        """Run and record one trial and describe its outcome in a line, which is empty if the time is up."""
        if self._stop.is_set() or (self.minutes is not None and time.monotonic() - self._created > 60 * self.minutes):
            return ""
        from tinydet.train.trainer import resume_path  # imports torch, which `tinydet sweep --help` does without

        model, result = self.folder / f"{trial.name}.pth", self.folder / f"{trial.name}.json"
        state = resume_path(model)
        with _locked(self.folder / f"{trial.name}.log") as log:
            if find_record(read_records(self.records), trial) is not None:
                return f"{describe(trial.key)}: recorded meanwhile by another process"
            if not result.exists():
                self._train(trial, model, result, state.exists(), log)
            found = read_json(result)
            _check_record(found, str(result), "remove it to run its trial again")
            append_record(self.records, {"key": dict(trial.key), "flags": list(trial.flags), **found, **self.stamp()})
            result.unlink()
            state.unlink(missing_ok=True)  # a training that diverged leaves its state
            if not self.keep_models:
                model.unlink(missing_ok=True)
        return f"{describe(trial.key)}: {outcome(found)} ({found.get('seconds', 0) / 60:.1f} min)"

    def _train(self, trial: Trial, model: Path, result: Path, resume: bool, log: int) -> None:
        threads = max(1, _cores() // self.jobs)
        command = [
            *(*self.program, *trial.flags, *trial.file_flags, "--no-tensorboard"),
            *("--threads", str(threads), "--output", str(model), "--json", str(result)),
            *(["--resume"] if resume else []),
        ]
        os.write(log, f"$ {command_line(*command)}\n".encode())
        # With a session of its own, the training receives Ctrl-C only once, from `run`. It inherits the log, so the
        # lock on the log is held until the training ends, even if this process is killed.
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        self._running.add(process)
        try:
            code = process.wait()
        finally:
            self._running.discard(process)
        if not result.exists():
            path = self.folder / f"{trial.name}.log"
            lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise ValueError(
                f"the training with {describe(trial.key)} failed with exit code {code}: {lines[-1]} (log: {path})"
            )


def read_records(path: Path) -> list[Record]:
    """Read a file of records; a missing file has none. A last line that a crash cut off is skipped.

    Raises:
        ValueError: a line is not a record; names the line.
    """
    if not path.exists():
        return []
    lines = read_file(path).decode(errors="replace").split("\n")
    records = []
    for number, line in enumerate(lines[:-1], 1):  # the last newline is followed by nothing or by half a record
        source, remedy = f"{path}, line {number}", "remove the line to run its trial again"
        record = parse_json(line, source=source, remedy=remedy)
        _check_record(record, source, remedy)
        if not isinstance(record.get("key"), dict) or not isinstance(record.get("flags"), list):
            raise ValueError(f"{source}: not the record of a trial; {remedy}")
        records.append(record)
    return records


@dataclass(frozen=True)
class _Result:
    """The fields of `tinydet train --json` that a study reads."""

    history: list[dict[str, int | float]]
    diverged: str | None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if not (self.diverged or self.history) or not all("AP50" in scores for scores in self.history):
            raise ValueError("history must have the AP50 of every validation")


def _check_record(record: Any, source: str, remedy: str) -> None:
    checked(_Result, record, source=source, what="record of a trial", remedy=remedy)


def append_record(path: Path, record: Record) -> None:
    """Append a record and flush it to disk, overwriting a last line that a crash cut off.

    Several processes may append at the same time.

    Raises:
        ValueError: a value of the record is NaN or infinite.
    """
    line = json.dumps(record, allow_nan=False, ensure_ascii=False) + "\n"
    with path.open("a+b") as file:
        lock_file(file.fileno())
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        incomplete = len(file.read().rpartition(b"\n")[2])
        file.truncate(size - incomplete)
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def find_record(records: Sequence[Record], trial: Trial) -> Record | None:
    """Return the record of a trial; None if it has none."""
    return next((record for record in records if trial.matches(record)), None)


def last(record: Record, metric: str) -> float | None:
    """Return a score after the last epoch; None if the training diverged or no object has the size of the metric."""
    return None if record["diverged"] else _defined(record["history"][-1].get(metric, -1))


def best(record: Record, metric: str) -> float | None:
    """Return a score at the epoch with the best AP50 on the validation data; None as for `last`."""
    return None if record["diverged"] else _defined(max(record["history"], key=lambda e: e["AP50"]).get(metric, -1))


def describe(key: Mapping[str, Any]) -> str:
    """Format the key of a trial.

    >>> describe({"alpha": 0.5, "seed": 1})
    'alpha 0.5, seed 1'
    """
    return ", ".join(f"{name} {value}" for name, value in key.items())


def outcome(record: Record) -> str:
    """Format the scores of a training after its last epoch, in percent, or the word "diverged"."""
    if record["diverged"]:
        return "diverged"
    shown = {metric: last(record, metric) for metric in ("AP50", "AP50-tiny")}
    return ", ".join(f"{metric} {100 * value:.1f}" for metric, value in shown.items() if value is not None)


def _defined(score: float) -> float | None:
    """Replace the score -1, which means that there are no objects, by None."""
    return score if score >= 0 else None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Open a log for appending and lock it, after waiting for another process that holds the lock."""
    log = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o666)
    try:
        lock_file(log)
        yield log
    finally:
        os.close(log)


def run_reported(
    trials: Sequence[Trial],
    output: Path,
    records: Path,
    report: Callable[[], None],
    *,
    jobs: int,
    minutes: float | None,
) -> int:
    """Run the trials of a command below `output`, report what is recorded, and return the exit code.

    Ctrl-C and the time limit end with the report, too; the same command then resumes.
    """
    from tinydet.models.checkpoint import current_versions

    folder = output / "runs"
    output.mkdir(parents=True, exist_ok=True)
    LOGGER.info(f"{len(trials)} training runs, {jobs} at a time; logs and models in {folder}")

    def stamp() -> Record:
        return {"date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "versions": current_versions()}

    try:
        complete = Trials(records, folder, stamp, jobs=jobs, minutes=minutes, keep_models=True).run(list(trials))
    except KeyboardInterrupt:
        LOGGER.info("\nInterrupted. Run the same command again to resume.")
        report()
        return 130
    report()
    if not complete:
        LOGGER.info("Time limit reached. Run the same command again to resume.")
    return 0
