"""The process that runs the commands of the fuzzer: `python -m tests.fuzz.worker MAIN [MODULE ...]`.

It reads one JSON line per command, {"argv", "folder"}, runs it in `folder`/work, and answers with one JSON line:
{"code", "problems", "seconds"}. What the command prints goes to the files `out` and `err` in `folder`. MAIN is
the module with `main(argv)`. The other modules are imported before the limit of memory is set, because libraries of
CUDA map gigabytes that they do not use.

Python's audit events tell what file names, addresses and programs a command touches, wherever in a library that is.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

MEMORY = 4 << 30  # bytes of addresses beyond what the imported modules have
FILE_SIZE = 256 << 20  # bytes; larger files are not written
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
PROGRAMS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"}
# The commit that a checkpoint records; fonts of matplotlib; cores; readers that may crash.
EXPECTED = ("git", "fc-list", "lscpu", os.path.realpath(sys.executable))


class Watch:
    """Records what a command must not do: write outside its folder, connect to other machines, start programs."""

    def __init__(self, *allowed: str) -> None:
        self._allowed = (*map(os.path.realpath, allowed), "/dev/", "/proc/")
        self.folder = ""
        self.problems: list[str] = []

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.folder:
            return
        if event == "open":
            path, mode, flags = args
            writes = any(c in "wax+" for c in mode) if mode else (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes:
                self._check(event, path)
        elif event in CHANGES:
            for path in args[:2]:
                self._check(event, path)
        elif event in ("socket.getaddrinfo", "socket.connect"):
            host = args[0] if event == "socket.getaddrinfo" else args[1][0] if isinstance(args[1], tuple) else ""
            if host not in ("", "127.0.0.1", "localhost", "::1", b"127.0.0.1"):
                self.problems.append(f"network: {event} {host}")
        elif event in PROGRAMS and not os.path.realpath(str(args[0])).endswith(EXPECTED):
            self.problems.append(f"program: {event} {args!r:.200}")

    def _check(self, event: str, path: Any) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return
        with contextlib.suppress(ValueError, OSError):
            real = os.path.realpath(os.fsdecode(path))
            if not real.startswith((self.folder, *self._allowed)):
                self.problems.append(f"outside: {event} {real}")


def run(main: Callable[[list[str]], int], argv: list[str]) -> int | str:
    """Return the exit code of a command; a bug prints its traceback and gives 1, as in a separate interpreter."""
    try:
        return main(argv)
    except SystemExit as stopped:
        return stopped.code if isinstance(stopped.code, int) else 0 if stopped.code is None else 1
    except BaseException:
        traceback.print_exc()
        return 1


def limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY,) * 2)


def main() -> None:
    requests, answers = os.fdopen(os.dup(0), "r"), os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    faulthandler.enable(2)
    faulthandler.register(signal.SIGUSR1, 2)  # the parent asks where a command hangs
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_SIZE, FILE_SIZE))
    command: Callable[[list[str]], int] = importlib.import_module(sys.argv[1]).main
    for name in sys.argv[2:]:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    limit_memory()
    watch = Watch(os.environ["XDG_CACHE_HOME"], os.environ["TMPDIR"])  # the parent checks what is left there
    sys.addaudithook(watch)
    print("ready", file=answers, flush=True)
    for line in requests:
        job = json.loads(line)
        folder = Path(job["folder"])
        for number, name in ((1, "out"), (2, "err")):
            file = os.open(folder / name, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_APPEND)
            os.dup2(file, number)
            os.close(file)
        os.chdir(folder / "work")
        watch.problems, watch.folder = [], os.path.realpath(folder / "work")
        started = time.process_time()
        code = run(command, job["argv"])
        watch.folder = ""
        sys.stdout.flush()
        sys.stderr.flush()
        answer = {"code": code, "problems": sorted(set(watch.problems)), "seconds": time.process_time() - started}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
