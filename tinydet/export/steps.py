"""The steps of an export: debug messages of one logger, which a command shows on standard error."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from tinydet._internal.console import in_command

_LOGGER = logging.getLogger("tinydet.export.steps")
INTERVAL = 10.0  # seconds between lines about steps of one kind
step = _LOGGER.debug  # called with a description of what begins; the arguments tell apart steps of one kind


@contextmanager
def show_steps(title: str) -> Iterator[None]:
    """Show the current step: on one line of a terminal, and in the log of a command on a line of its own.

    Steps of one kind, such as the images of a dataset, share their lines: one at the first, then one every 10 s.
    """
    handler = logging.Handler()
    with tqdm(bar_format="{desc}", disable=None, leave=False, file=sys.stderr, position=0) as line:
        line.set_description_str(title)
        kind, shown = "", 0.0

        def show(record: logging.LogRecord) -> None:
            nonlocal kind, shown
            text = f"{title}: {record.getMessage()}"
            if not line.disable:
                line.set_description_str(text)
            elif in_command() and (record.msg != kind or time.monotonic() - shown >= INTERVAL):
                kind, shown = record.msg, time.monotonic()
                tqdm.write(f"  {text}", file=sys.stderr)
                sys.stderr.flush()

        handler.emit = show  # type: ignore[method-assign]
        level, before = _LOGGER.level, (_LOGGER.handlers, _LOGGER.propagate)
        _LOGGER.handlers, _LOGGER.propagate = [handler], False
        _LOGGER.setLevel(logging.DEBUG)
        try:
            yield
        finally:
            _LOGGER.handlers, _LOGGER.propagate = before
            _LOGGER.setLevel(level)
