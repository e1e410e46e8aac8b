"""A failed optional import becomes an instruction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Import optional packages inside this block, so that a missing one names the extra that brings it.

    An empty `extra` stands for the packages that every installation of tinydet has.

    Raises:
        ModuleNotFoundError: which module is missing and the command that installs it.
        ImportError: which package is there but cannot be loaded (a missing shared library), and why.
    """
    wanted = f"'tinydet[{extra}]'" if extra else "tinydet"
    try:
        yield
    except ImportError as error:
        missing = (error.name or str(error)).partition(".")[0]
        if missing == "tinydet":  # a fault of ours: no extra would mend it
            raise
        if isinstance(error, ModuleNotFoundError):
            raise ModuleNotFoundError(
                f"{missing!r} is not installed. Run: pip install {wanted}", name=error.name
            ) from error
        raise ImportError(
            f"a package of {wanted} is installed but cannot be loaded: {error}. "
            "Install the system library that it names, or the package again",
            name=error.name,
            path=error.path,
        ) from error
