"""The alternate signal stack of a thread, which OpenVINO replaces."""

from __future__ import annotations

import ctypes


def signal_stack() -> bytes:
    """Return the alternate signal stack of this thread, as opaque bytes."""
    stack = ctypes.create_string_buffer(64)
    ctypes.CDLL(None).sigaltstack(None, stack)
    return stack.raw
