"""Messages of the library on the console of a command.

The library logs to `logging.getLogger("tinydet…")` and prints nothing, so a program that embeds it decides where
messages go. A command shows them: information on standard output, warnings and debug messages on standard error.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

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


@contextmanager
def show_messages(label: str) -> Iterator[Console]:
    """Show the messages of tinydet on the console while a command runs."""
    console, level = Console(label), LOGGER.level
    outer = [handler for handler in LOGGER.handlers if isinstance(handler, Console)]  # `tinydet` around `tinydet infer`
    for handler in outer:
        LOGGER.removeHandler(handler)
    LOGGER.addHandler(console)
    LOGGER.setLevel(logging.INFO)
    try:
        yield console
    finally:
        LOGGER.removeHandler(console)
        for handler in outer:
            LOGGER.addHandler(handler)
        LOGGER.setLevel(level)


def information_to_stderr() -> None:
    """Make the running command write information to standard error."""
    for handler in LOGGER.handlers:
        if isinstance(handler, Console):
            handler.to_stderr = True


def plural(count: int, noun: str) -> str:
    """Format a count with its noun.

    >>> plural(1, "tile"), plural(2, "batch"), plural(12, "epoch")
    ('1 tile', '2 batches', '12 epochs')
    """
    ending = "" if count == 1 else "es" if noun == "batch" else "s"
    return f"{count} {noun}{ending}"
