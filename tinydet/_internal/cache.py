"""The folder for files that tinydet can make or fetch again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return $TINYDET_CACHE, else $XDG_CACHE_HOME/tinydet, else ~/.cache/tinydet."""
    if named := os.environ.get("TINYDET_CACHE"):
        return Path(named).expanduser()
    if named := os.environ.get("XDG_CACHE_HOME"):
        return Path(named).expanduser() / "tinydet"
    return Path.home() / ".cache" / "tinydet"
