"""Messages of the library on the console of a command.

The library logs to `logging.getLogger("tinydet…")` and prints nothing, so a program that embeds it decides where
messages go. A command shows them: information on standard output, warnings and debug messages on standard error.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO

from tqdm import tqdm

from tinydet._internal.names import mask_secrets, printable

LOGGER = logging.getLogger("tinydet")


class Console(logging.Handler):
    """Writes messages above the progress bars, one line each; warnings get the name of the command.

    Attributes:
        to_stderr: write information to standard error, because standard output is taken by results.
    """

    to_stderr = False

    def __init__(self, label: str) -> None:
        super().__init__()
        self._label = label

    def emit(self, record: logging.LogRecord) -> None:
        # The streams are looked up for each message, because programs replace them.
        line = printable(mask_secrets(record.getMessage()))
        stream = sys.stdout if record.levelno == logging.INFO and not self.to_stderr else sys.stderr
        if record.levelno >= logging.WARNING:
            line = f"{self._label}: {line}"
        encoding = getattr(stream, "encoding", None) or "utf-8"
        tqdm.write(line.encode(encoding, "backslashreplace").decode(encoding), file=stream)
        stream.flush()


_SHOW_WARNING = warnings.showwarning


def _write_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Write a warning of Python above the progress bars; otherwise as Python does."""
    stream = sys.stderr if file is None else file
    tqdm.write(warnings.formatwarning(message, category, filename, lineno, line), file=stream, end="")


@contextmanager
def show_messages(label: str) -> Iterator[Console]:
    """Show the messages of tinydet on the console while a command runs. Warnings of Python do not break a bar."""
    console, level, show_warning = Console(label), LOGGER.level, warnings.showwarning
    outer = [handler for handler in LOGGER.handlers if isinstance(handler, Console)]  # `tinydet` around `tinydet infer`
    for handler in outer:
        LOGGER.removeHandler(handler)
    LOGGER.addHandler(console)
    LOGGER.setLevel(logging.INFO)
    if show_warning is _SHOW_WARNING:  # not in a test that records warnings
        warnings.showwarning = _write_warning
    try:
        yield console
    finally:
        if warnings.showwarning is _write_warning:
            warnings.showwarning = show_warning
        LOGGER.removeHandler(console)
        for handler in outer:
            LOGGER.addHandler(handler)
        LOGGER.setLevel(level)


def information_to_stderr() -> None:
    """Make the running command write information to standard error."""
    for handler in LOGGER.handlers:
        if isinstance(handler, Console):
            handler.to_stderr = True


def in_command() -> bool:
    """Return whether a command is running, rather than a program that uses the library."""
    return any(isinstance(handler, Console) for handler in LOGGER.handlers)


def listed(names: Sequence[str]) -> str:
    """Return names as a phrase.

    >>> listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])
    ('a', 'a and b', 'a, b and c')
    """
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def plural(count: int, noun: str, form: str = "") -> str:
    """Format a count with its noun.

    >>> plural(1, "tile"), plural(2, "batch"), plural(12, "epoch"), plural(1200, "box", ",")
    ('1 tile', '2 batches', '12 epochs', '1,200 boxes')

    Args:
        form: format specification of the count.
    """
    ending = "" if count == 1 else "es" if noun.endswith(("batch", "x")) else "s"
    return f"{count:{form}} {noun}{ending}"
