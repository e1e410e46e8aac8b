"""The steps of an export: debug messages of one logger, which a command shows on one line of the terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

_LOGGER = logging.getLogger("tinydet.export.steps")
step = _LOGGER.debug  # called with a description of what begins


@contextmanager
def show_steps(title: str) -> Iterator[None]:
    """Show the current step on one line of stderr, if it is a terminal."""
    with tqdm(bar_format="{desc}", disable=None, leave=False, file=sys.stderr, position=0) as line:
        line.set_description_str(title)
        handler = logging.Handler()
        handler.emit = lambda record: line.set_description_str(f"{title}: {record.getMessage()}")  # type: ignore[method-assign]
        level, before = _LOGGER.level, (_LOGGER.handlers, _LOGGER.propagate)
        _LOGGER.handlers, _LOGGER.propagate = [handler], False
        _LOGGER.setLevel(logging.DEBUG)
        try:
            yield
        finally:
            _LOGGER.handlers, _LOGGER.propagate = before
            _LOGGER.setLevel(level)
