"""Errors of libraries and limits of Python, distinguished from bugs in tinydet.

User files make libraries fail in more ways than can be listed. `name_failures` turns such an error into one
line that names the file and the step. Errors that tinydet raises on purpose (ValueError, OSError, ImportError) and
those that only a bug raises (TypeError, KeyError, ...) pass through; bugs keep their traceback.
"""

from __future__ import annotations

import traceback
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

LIMITS = (RecursionError, OverflowError, MemoryError, UnicodeError)
_OWN = frozenset({"builtins", "tinydet", "__main__"})


def is_outside_error(error: BaseException) -> bool:
    """Return whether an exception is a limit of Python or memory, or its class is defined by a library."""
    return isinstance(error, LIMITS) or is_out_of_memory(error) or type(error).__module__.partition(".")[0] not in _OWN


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out, which torch reports as a RuntimeError."""
    from_torch = isinstance(error, RuntimeError) and "memory" in str(error) and "allocat" in str(error)
    return isinstance(error, MemoryError) or from_torch


def reason(error: BaseException) -> str:
    """Return an error as one line of at most 200 characters."""
    if is_out_of_memory(error):
        return "not enough memory"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:197]}..."


@contextmanager
def name_failures(source: Path | str, action: str, remedy: str = "get it again or leave it out") -> Iterator[None]:
    """Raise outside errors of the block as ValueError: "SOURCE: cannot be ACTION (reason); REMEDY".

    Args:
        source: the file that the block reads or writes.
        action: a past participle, such as "read" or "decoded".
        remedy: what the user can do.
    """
    try:
        yield
    except Exception as error:
        if not is_outside_error(error):
            raise
        raise ValueError(f"{source}: cannot be {action} ({reason(error)}); {remedy}") from error


def line_in(error: BaseException, files: Collection[str]) -> tuple[str, int] | None:
    """Return the innermost of some files that an exception passed through, and the line; None: it did not."""
    if isinstance(error, SyntaxError) and error.filename and error.filename in files and error.lineno:
        return error.filename, error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    return next(((frame.filename, frame.lineno or 0) for frame in reversed(frames) if frame.filename in files), None)
