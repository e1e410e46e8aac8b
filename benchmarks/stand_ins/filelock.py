"""A stand-in for filelock 3.30 on a machine without it, or with an older one, whose names it also has."""

from __future__ import annotations

import fcntl
import importlib.machinery
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_OTHERS = [path for path in sys.path if Path(path or ".").resolve() != _HERE]
_OLDER = importlib.machinery.PathFinder.find_spec(__name__, _OTHERS)
if _OLDER is not None and _OLDER.loader is not None:
    __package__, __spec__ = __name__, _OLDER
    __path__ = list(_OLDER.submodule_search_locations or ())
    _OLDER.loader.exec_module(sys.modules[__name__])


def lock_descriptor(descriptor: int, *, blocking: bool = True) -> bool:
    """Lock an open file; return whether it is locked."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if blocking else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True
