"""The wrapper of every command: one line and exit code 2 for a user error, 130 for Ctrl-C."""

from __future__ import annotations

import contextlib
import functools
import os
import select
import sys
from collections.abc import Callable, Sequence
from typing import Protocol

from tinydet._internal.console import show_messages
from tinydet._internal.errors import is_outside_error, reason
from tinydet._internal.extras import check_opencv
from tinydet._internal.names import mask_secrets, printable
from tinydet._internal.plugins import import_plugins, plugin_fault, plugins_of_this_command


class Main(Protocol):
    """Entry point of a command: arguments without the program name (None for sys.argv) -> exit code."""

    def __call__(self, argv: Sequence[str] | None = None) -> int: ...


def command(name: str, *, plugins: bool = False) -> Callable[[Main], Main]:
    """Decorate `main(argv) -> exit code`: errors that a user can act on are printed as one line on stderr.

    ValueError, OSError, ImportError, exceptions of libraries and limits of Python (memory, recursion) exit with 2,
    Ctrl-C with 130. Any other exception is a bug, of a `--plugin` (one line with its place) or of tinydet, which keeps
    its traceback. TINYDET_TRACEBACK=1 shows the traceback of
    all errors. An empty `name` is the command `tinydet` itself.

    Args:
        plugins: whether the command takes `--plugin FILE.py`; the files are imported before `main` is called.
    """
    label = f"tinydet {name}".strip()

    def decorate(main: Main) -> Main:
        @functools.wraps(main)
        @plugins_of_this_command()
        def run(argv: Sequence[str] | None = None) -> int:
            try:
                try:
                    with contextlib.suppress(AttributeError, ValueError):  # replaced by an object that is not a file
                        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # names of files
                    with show_messages(label):
                        check_opencv()
                        if plugins:
                            import_plugins(sys.argv[1:] if argv is None else argv)
                        return main(argv)
                finally:
                    print(end="", flush=True)  # report a closed pipe here rather than at interpreter exit
            except KeyboardInterrupt:
                print(f"{label}: interrupted", file=sys.stderr)
                return 130
            except Exception as error:
                if isinstance(error, BrokenPipeError) and _stdout_is_closed():
                    return 0
                fault = plugin_fault(error) if _is_bug(error) else None  # of the user's file, not of tinydet
                if os.environ.get("TINYDET_TRACEBACK") or (_is_bug(error) and fault is None):
                    raise
                print(f"{label}: error: {printable(mask_secrets(fault or _message(error)))}", file=sys.stderr)
                return 2

        return run

    return decorate


def _stdout_is_closed() -> bool:
    """Return whether the reader of standard output has gone (`| head`); a broken pipe may also be another one.

    If so, redirect standard output to the null device, because the interpreter flushes it once more at exit.
    """
    try:
        output = sys.stdout.fileno()
    except (OSError, ValueError):  # replaced by an object that is not a file
        return False
    if not hasattr(select, "poll"):  # Windows, where standard output is the only pipe of these commands
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)
        return True
    state = select.poll()
    state.register(output, 0)  # poll always reports errors
    if not any(event & select.POLLERR for _, event in state.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True


def _is_bug(error: Exception) -> bool:
    """Return whether a user cannot act on an error; also if a module of tinydet cannot be imported."""
    if isinstance(error, ImportError):
        return (error.name or "").partition(".")[0] == "tinydet"
    return not isinstance(error, ValueError | OSError) and not is_outside_error(error)


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return " ".join(f"{place}{error.strerror}".split())
    if is_outside_error(error):
        return f"{reason(error)} ({type(error).__module__}.{type(error).__qualname__})"
    return " ".join(str(error).split())
