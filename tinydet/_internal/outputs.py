"""Check the files that a command will write, before it does any work."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


def check_output_files(outputs: Iterable[Path | None], inputs: Iterable[Path | None]) -> None:
    """Check that no output is also an input, by any path, or given twice. None stands for an option without a value.

    Raises:
        ValueError: one is; names it.
    """
    read = {os.path.realpath(path) for path in inputs if path is not None}
    written: set[str] = set()
    for path in outputs:
        if path is None:
            continue
        real = os.path.realpath(path)
        if real in read:
            raise ValueError(f"{path} is an input and would be overwritten; name another output")
        if real in written and not real.startswith("/dev/"):
            raise ValueError(f"{path} would be written twice; name another output")
        written.add(real)
