"""Run cases in worker processes, and judge them.

A case passes if its command ends in time with 0, 1 (a check failed), 2 (refused) or 3 (something was skipped), shows no
traceback, says why it refused in exactly one line, and touches nothing but its own output.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz.corpus import ROOT, write

CPU_SECONDS, WALL_SECONDS = 20.0, 90.0  # of one command; a busy machine slows the second only
RECYCLE = 400  # commands of one worker, so that what libraries keep in memory does not add up
CODES = (0, 1, 2, 3)
TEMPORARY = re.compile(r"(^|/)\.|\.part\b|\.tmp$|-journal$|-wal$")
JOURNAL = re.compile(r"\.journals?(/|$)")
OUTPUTS = ("--output", "--fix", "--json", "--draw", "--crops", "--plot", "--plots", "--precision", "--save-detections")
ERROR = re.compile(r"^tinydet[a-z -]*: error: ")


@dataclass(frozen=True)
class Case:
    """A command and the files that it finds.

    Attributes:
        kind: what is damaged.
        name: seed, kind and number: `python -m tests.fuzz --case NAME` repeats it.
        argv: arguments of `tinydet`, run in the folder `work`.
        inputs: files below `work/in`, by name, which must not change.
        outputs: files below `work/out` that are there before, such as the journal of an interrupted run.
    """

    kind: str
    name: str
    argv: list[str]
    inputs: dict[str, bytes]
    outputs: dict[str, bytes] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        for part, files in (("in", self.inputs), ("out", self.outputs)):
            (folder / part).mkdir(parents=True)
            for name, data in files.items():
                write(folder / part / name, data)

    @property
    def line(self) -> str:
        """The command as a line for a shell."""
        return shlex.join(["tinydet", *self.argv]).encode(errors="surrogateescape").decode(errors="backslashreplace")


@dataclass(frozen=True)
class Result:
    """What a command did.

    Attributes:
        code: exit code, or what ended it: "hang" or "crash".
        faults: why it does not pass; empty if it does.
        seconds: CPU time.
    """

    code: int | str
    faults: list[str]
    err: str
    seconds: float

    @property
    def signature(self) -> str:
        """A key that is equal for results with (probably) the same cause."""
        if "Traceback" in self.err:
            frames = re.findall(r'File ".*?(tinydet/[^"]*)", line (\d+)', self.err)
            last = [line for line in self.err.splitlines() if re.match(r"[\w.]+(Error|Exception|Warning)\b", line)]
            return f"{frames[-1] if frames else ''} {re.sub(r'[0-9]+', '#', (last or [''])[-1])[:60]}"
        if self.code in ("hang", "crash"):
            frames = re.findall(r'File ".*?(tinydet/[^"]*)", line (\d+) in (\w+)', self.err)
            return f"{self.code} {frames[:2]}"
        return re.sub(r"[0-9]+|'[^']*'|\"[^\"]*\"|[\w./-]*/[\w./-]*", "#", f"{self.code} {self.faults[0]}")[:110]


class Worker:
    """A worker process with the folder of its cases."""

    def __init__(self, folder: Path, modules: Sequence[str] = (), *, main: str = "tinydet.__main__") -> None:
        """
        Args:
            modules: imported before the first command, so that the limit of memory does not count them.
            main: the module with the commands.
        """
        self.folder = folder
        self._modules = [main, *modules]
        self._process: subprocess.Popen[str] | None = None
        self._count = 0

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def run(self, case: Case) -> Result:
        """Run one case in an empty folder and judge it."""
        shutil.rmtree(self.folder / "work", ignore_errors=True)
        case.write(self.folder / "work")
        process = self._ready()
        before = state(self.folder)
        code, problems, seconds = self._command(process, case.argv)
        out, err = ((self.folder / name).read_text(errors="replace") for name in ("out", "err"))
        after = state(self.folder)
        faults = [*problems, *judge_text(code, out, err), *judge_files(case, code, before, after, self.folder)]
        return Result(code, faults, err, seconds)

    def _start(self) -> subprocess.Popen[str]:
        caches = self.folder / "caches"
        for name in ("caches", "home", "tmp"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "OPENCV_LOG_LEVEL": os.environ.get("OPENCV_LOG_LEVEL", ""),
            "HOME": str(self.folder / "home"),
            "TMPDIR": str(self.folder / "tmp"),
            "XDG_CACHE_HOME": str(caches),
            "MPLCONFIGDIR": str(caches),
            "TINYDET_CACHE": str(caches),
        }
        if not environment["OPENCV_LOG_LEVEL"]:
            del environment["OPENCV_LOG_LEVEL"]
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.worker", *self._modules],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        return process

    def _ready(self) -> subprocess.Popen[str]:
        """Return the process, a new one if the last one ended or ran many commands."""
        if self._process is None or self._count >= RECYCLE:
            self.close()
            self._process, self._count = self._start(), 0
        self._count += 1
        return self._process

    def _command(self, process: subprocess.Popen[str], argv: list[str]) -> tuple[int | str, list[str], float]:
        """Return the exit code of a command, its side effects, and its CPU time."""
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps({"argv": argv, "folder": str(self.folder)}) + "\n")
        process.stdin.flush()
        started, used = time.monotonic(), cpu_seconds(process.pid)
        while not select.select([process.stdout], [], [], 0.2)[0]:
            spent = cpu_seconds(process.pid) - used
            if spent > CPU_SECONDS or time.monotonic() - started > WALL_SECONDS:
                process.send_signal(signal.SIGUSR1)  # prints where it is
                time.sleep(0.5)
                self.close()
                return "hang", [f"no end after {CPU_SECONDS:g} s of CPU time, or {WALL_SECONDS:g} s in all"], spent
        answer = process.stdout.readline()
        if not answer:
            spent = time.monotonic() - started
            self.close()
            return "crash", [f"the process ended with {process.returncode}"], spent
        values: dict[str, Any] = json.loads(answer)
        return values["code"], values["problems"], values["seconds"]


def judge_text(code: int | str, out: str, err: str) -> list[str]:
    """Return what is wrong with the exit code and the messages."""
    faults = []
    if code not in CODES and code not in ("hang", "crash"):
        faults.append(f"exit code {code}")
    if "Traceback (most recent call last)" in err + out:
        faults.append("traceback")
    lines = err.splitlines()
    errors = [line for line in lines if ERROR.match(line)]
    if code == 2 and len(errors) != 1:
        faults.append(f"{len(errors)} lines say why")
    if code in (0, 3) and errors:
        faults.append(f"exit code {code} with an error: {errors[0]}")
    if code == 2 and not err.startswith("usage:"):
        foreign = [line for line in lines if not line.startswith("tinydet")]
        faults += [f"a library's own line: {line}" for line in foreign[:1]]
    if errors and len(errors[0]) > 1200:
        faults.append(f"a line of {len(errors[0])} characters")
    return faults


def judge_files(case: Case, code: int | str, before: dict[str, Any], after: dict[str, Any], folder: Path) -> list[str]:
    """Return what is wrong with the files that are there after a command."""
    if code in ("hang", "crash"):
        return []
    changed = {name for name, known in after.items() if before.get(name) != known}
    faults = [f"{name} was removed" for name in before.keys() - after.keys() if not name.startswith("work/out/")]
    asked = {path for flag, path in zip(case.argv, case.argv[1:], strict=False) if flag in OUTPUTS}
    inputs = {f"work/in/{name}" for name in case.inputs} - {
        f"work/{path}" for path in asked if case.argv.count(path) == 1
    }
    faults += [f"the input {name} was changed" for name in sorted(changed & inputs)]
    faults += [f"outside the folder: {name}" for name in sorted(changed) if not name.startswith("work/")]
    faults += [f"left behind: {name}" for name in sorted(changed) if TEMPORARY.search(name)]
    if code == 2:
        kept = {name for name in changed if not JOURNAL.search(name)} - inputs
        several = case.argv[:1] == ["infer"]  # results of the scenes before the one that was refused
        faults += [f"written though refused: {name}" for name in sorted(kept) if not several]
    if code in (0, 1, 3):
        for name in sorted(changed):
            if name.endswith(".json"):
                with contextlib.suppress(RecursionError):
                    faults += invalid_json(folder / name)
    return faults


def invalid_json(path: Path) -> list[str]:
    def refuse(text: str) -> None:
        raise ValueError(f"{text} is not JSON")

    try:
        json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except ValueError as error:
        return [f"{path.name} is not valid JSON: {error}"]
    return []


def state(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Size, time and content of every file below a folder, except the caches and the messages of the command."""
    found = {}
    for place, folders, names in os.walk(folder):
        if place == str(folder):
            folders[:] = [each for each in folders if each != "caches"]
            names = [name for name in names if name not in ("out", "err")]
        for name in names:
            path = Path(place, name)
            with contextlib.suppress(OSError):
                known = path.lstat()
                content = path.read_bytes() if path.is_file() and known.st_size < 1 << 24 else b""
                found[os.path.relpath(path, folder)] = (known.st_size, known.st_mtime_ns, content)
    return found


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, all threads."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
