"""Read a MATLAB file of structures in a separate process, because SciPy crashes on some damaged files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tinydet._internal.errors import reason
from tinydet._internal.extras import needs_extra

_AGAIN = "download it again"


def read_structures(path: Path) -> dict[str, Any]:
    """Return the variables of a MATLAB file by name: a list of dictionaries for a cell array of structures.

    Strings are str and numeric arrays are nested lists. All other values, and all other variables, are None.

    Raises:
        ValueError: the file is not one that SciPy reads.
        ModuleNotFoundError: SciPy is not installed.
    """
    with needs_extra("formats"):
        import scipy  # noqa: F401
    code = f"from {__name__} import _write_structures; _write_structures()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ended = subprocess.run(
        [sys.executable, "-c", code, os.path.abspath(path)], capture_output=True, env=environment, check=False
    )
    if ended.returncode < 0:
        raise ValueError(f"{path}: SciPy crashes on this file, so it is damaged; {_AGAIN}")
    try:
        variables, error = json.loads(ended.stdout)
    except ValueError:
        lines = ended.stderr.decode(errors="replace").splitlines() or ["no output"]
        raise ValueError(f"{path}: cannot be read ({lines[-1][:200]}); {_AGAIN}") from None
    if error is not None:
        raise ValueError(f"{path}: not a MATLAB file that SciPy reads ({error}); {_AGAIN}")
    return variables  # type: ignore[no-any-return]


def _write_structures() -> None:
    """Write the variables of the file on the command line, or an error, to standard output as JSON."""
    with needs_extra("formats"):
        import scipy.io
    variables, error = {}, None
    try:
        content = scipy.io.loadmat(sys.argv[1])
        variables = {name: _structures(value) for name, value in content.items() if not name.startswith("__")}
    except Exception as fault:  # SciPy raises ValueError, TypeError, struct.error, zlib.error, ...
        error = reason(fault)
    json.dump([variables, error], sys.stdout)


def _structures(variable: Any) -> list[dict[str, Any]] | None:
    """Return a cell array of structures, None for another variable."""
    if getattr(getattr(variable, "dtype", None), "kind", "") != "O":
        return None
    cells = []
    for cell in variable.ravel():
        names = getattr(getattr(cell, "dtype", None), "names", None) or ()
        entry = cell.ravel()[0] if names and cell.size == 1 else None
        cells.append({name: None if entry is None else _value(entry[name]) for name in names})
    return cells


def _value(value: Any) -> Any:
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    if kind == "U":
        return str(value.ravel()[0]) if value.size else ""
    return value.tolist() if kind in ("u", "i", "f") else None
