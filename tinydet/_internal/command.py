"""The wrapper of every command: one line and exit code 2 for a user error, 130 for Ctrl-C."""

from __future__ import annotations

import functools
import os
import select
import sys
from collections.abc import Callable, Sequence
from typing import Protocol


class Main(Protocol):
    """The entry of a command: `argv` without the program's name, None for this process's; returns the exit code."""

    def __call__(self, argv: Sequence[str] | None = None) -> int: ...


def command(name: str) -> Callable[[Main], Main]:
    """Decorate `main(argv) -> exit code`; library errors that a user can act on become one line on stderr.

    ValueError, OSError and ImportError exit with 2. Anything else is a bug of ours and keeps its traceback;
    TINYDET_TRACEBACK=1 keeps it for all of them. An empty `name` is the command `tinydet` itself.
    """
    label = f"tinydet {name}".strip()

    def decorate(main: Main) -> Main:
        @functools.wraps(main)
        def run(argv: Sequence[str] | None = None) -> int:
            try:
                try:
                    return main(argv)
                finally:
                    print(end="", flush=True)  # a closed pipe shows itself here, not in the interpreter's last breath
            except KeyboardInterrupt:
                print(f"{label}: interrupted", file=sys.stderr)
                return 130
            except (ValueError, OSError, ImportError) as error:
                if isinstance(error, BrokenPipeError) and _reader_left():
                    return 0
                if os.environ.get("TINYDET_TRACEBACK") or _is_ours(error):
                    raise
                print(f"{label}: error: {_message(error)}", file=sys.stderr)
                return 2

        return run

    return decorate


def _reader_left() -> bool:
    """Whether it is our output that nobody reads any more (`| head`), rather than a pipe to a process of ours.

    If so, what is still buffered goes to the null device: the interpreter flushes once more at exit.
    """
    try:
        output = sys.stdout.fileno()
    except (OSError, ValueError):  # replaced by something that is no file
        return False
    state = select.poll()
    state.register(output, 0)  # errors are always reported
    if not any(event & select.POLLERR for _, event in state.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True


def _is_ours(error: Exception) -> bool:
    """Whether an import failed in a module of tinydet, which no installation mends."""
    return isinstance(error, ImportError) and (error.name or "").partition(".")[0] == "tinydet"


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return " ".join(f"{place}{error.strerror}".split())
    return " ".join(str(error).split())
