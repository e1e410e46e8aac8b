"""Silence OpenCV's own log where its failures are reported as errors of ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import cv2

# The functions moved with OpenCV 4.13. Older releases are needed beside NumPy 1.
_LOG = cv2 if hasattr(cv2, "setLogLevel") else cv2.utils.logging


@contextlib.contextmanager
def silent_opencv() -> Iterator[None]:
    """Write nothing of OpenCV's log to stderr within the block."""
    level = _LOG.getLogLevel()
    _LOG.setLogLevel(0)
    try:
        yield
    finally:
        _LOG.setLogLevel(level)
