"""Trainings that are compared: run side by side, each recorded when it ends, none run twice.

The record is a file of JSON lines, one for each trial. A trial is known by its key and flags: change what a trial is,
and it is another one. Whatever is killed loses at most the steps since a training's last state: a trial goes on from
it, and a training that outlived the process that started it is waited for and recorded.
"""

from __future__ import annotations

import concurrent.futures
import fcntl
import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinydet.train.trainer import resume_path

Record = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """One training.

    Attributes:
        key: what is varied and its value, in words and numbers.
        flags: of `tinydet train`, without --output, --json, --threads and --resume.
        places: more flags, those that name files: they are not recorded, for they differ between machines.
    """

    key: Mapping[str, str | float]
    flags: tuple[str, ...]
    places: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of its files."""
        words = "-".join(re.sub(r"[^\w.]+", "_", f"{name}{value}") for name, value in self.key.items())
        whole = json.dumps([dict(self.key), self.flags, self.places])
        return f"{words}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"

    def is_in(self, record: Record) -> bool:
        return bool(record["key"] == dict(self.key) and record["flags"] == list(self.flags))


@dataclass
class Trials:
    """Runs trials and keeps their records.

    Args:
        record: the file of JSON lines; it is made, or extended.
        work: folder of models, states and logs.
        stamp: what else a record says, such as date and versions.
        jobs: trainings at a time, which share the cores.
        minutes: no training is started after so many; None: all are.
        keep_models: else a trained model is deleted once its scores are recorded.
        report: takes a line for each trial that ended.
        program: what trains, given the flags.
    """

    record: Path
    work: Path
    stamp: Callable[[], Record] = dict
    jobs: int = 1
    minutes: float | None = None
    keep_models: bool = False
    report: Callable[[str], None] = lambda line: None
    program: tuple[str, ...] = (sys.executable, "-u", "-m", "tinydet.train")
    _begun: float = field(default_factory=time.monotonic, init=False)
    _stop: threading.Event = field(default_factory=threading.Event, init=False)
    _alive: set[subprocess.Popen[bytes]] = field(default_factory=set, init=False)

    def run(self, trials: Sequence[Trial]) -> bool:
        """Run those that are not recorded yet, in order; whether all are recorded now.

        Raises:
            ValueError: a training failed for another reason than a loss that is not finite; names its log.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        known = read_records(self.record)
        missing = [trial for trial in trials if find_record(known, trial) is None]
        with concurrent.futures.ThreadPoolExecutor(self.jobs) as pool:
            running = [pool.submit(self._run, trial) for trial in missing]
            begun, done = time.monotonic(), 0
            try:
                for future in concurrent.futures.as_completed(running):
                    if news := future.result():
                        done += 1
                        left = (time.monotonic() - begun) / done * (len(missing) - done) / 60
                        self.report(f"[{done}/{len(missing)}] {news}; {left:.0f} min for the others")
            finally:  # a fault: what runs may end, what waits is not begun
                self._stop.set()
                if sys.exc_info()[0] is KeyboardInterrupt:
                    for process in tuple(self._alive):  # they save their states
                        process.send_signal(signal.SIGINT)
        self._stop.clear()
        return done == len(missing)

    def _run(self, trial: Trial) -> str:
        """Run and record one trial and say how it went; empty where time is up."""
        if self._stop.is_set() or (self.minutes is not None and time.monotonic() - self._begun > 60 * self.minutes):
            return ""
        model, ended = self.work / f"{trial.name}.pth", self.work / f"{trial.name}.json"
        with _held(self.work / f"{trial.name}.log") as log:
            found = find_record(read_records(self.record), trial)
            if found is not None:
                return f"{describe(trial.key)}: recorded meanwhile by another process"
            if not ended.exists():
                self._train(trial, model, ended, log)
            found = json.loads(ended.read_text(encoding="utf-8"))
            append_record(self.record, {"key": dict(trial.key), "flags": list(trial.flags), **found, **self.stamp()})
            ended.unlink()
            resume_path(model).unlink(missing_ok=True)  # of a training that diverged
            if not self.keep_models:
                model.unlink(missing_ok=True)
        return f"{describe(trial.key)}: {outcome(found)} ({found['seconds'] / 60:.1f} min)"

    def _train(self, trial: Trial, model: Path, ended: Path, log: int) -> None:
        threads = max(1, _cores() // self.jobs)
        command = [
            *(*self.program, *trial.flags, *trial.places, "--no-tensorboard"),
            *("--threads", str(threads), "--output", str(model), "--json", str(ended)),
            *(["--resume"] if resume_path(model).exists() else []),
        ]
        os.write(log, f"$ {shlex.join(command)}\n".encode())
        # A session of its own: Ctrl-C reaches it once, through us. The lock of the log lives as long as it does.
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        self._alive.add(process)
        try:
            code = process.wait()
        finally:
            self._alive.discard(process)
        if not ended.exists():
            path = self.work / f"{trial.name}.log"
            said = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise ValueError(f"the training of {describe(trial.key)} ended with code {code}: {said[-1]} (all: {path})")


def read_records(path: Path) -> list[Record]:
    """The records of a file, none where there is no file.

    Raises:
        ValueError: a line is not a record, naming it. A last line that a crash cut off is left out.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    records = []
    for number, line in enumerate(lines[:-1], 1):  # behind the last newline there is nothing, or half a record
        try:
            record = json.loads(line)
            record["key"], record["flags"], record["history"], record["diverged"]
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{path}, line {number}: not the record of a trial ({error}); remove the line, its trial is run again"
            ) from error
        records.append(record)
    return records


def append_record(path: Path, record: Record) -> None:
    """Add a line, on disk when this returns; processes may do so at the same time."""
    line = json.dumps(record, allow_nan=False, ensure_ascii=False) + "\n"
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        whole = file.seek(0, os.SEEK_END)
        file.seek(0)
        torn = len(file.read().rpartition(b"\n")[2])
        file.truncate(whole - torn)
        file.write(line.encode())
        file.flush()
        os.fsync(file.fileno())


def find_record(records: Sequence[Record], trial: Trial) -> Record | None:
    return next((record for record in records if trial.is_in(record)), None)


def last(record: Record, metric: str) -> float | None:
    """A score after the last epoch; None where the training diverged or there was nothing to find."""
    return None if record["diverged"] else _known(record["history"][-1][metric])


def best(record: Record, metric: str) -> float | None:
    """The same at the epoch with the best AP50, which the validation data chose."""
    return None if record["diverged"] else _known(max(record["history"], key=lambda e: e["AP50"])[metric])


def describe(key: Mapping[str, Any]) -> str:
    """
    >>> describe({"alpha": 0.5, "seed": 1})
    'alpha 0.5, seed 1'
    """
    return ", ".join(f"{name} {value}" for name, value in key.items())


def outcome(record: Record) -> str:
    """How a trial went, in words."""
    if record["diverged"]:
        return "diverged"
    shown = {metric: last(record, metric) for metric in ("AP50", "AP50-tiny")}
    return ", ".join(f"{metric} {100 * value:.1f}" for metric, value in shown.items() if value is not None)


def _known(value: float) -> float | None:
    return value if value >= 0 else None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _held(path: Path) -> Iterator[int]:
    """A log to append to, that no other process holds; waits for one that does."""
    log = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o666)
    try:
        fcntl.flock(log, fcntl.LOCK_EX)
        yield log
    finally:
        os.close(log)
