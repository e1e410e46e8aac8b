"""The recorded numeric cases of detectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


def cases_of(shared: Path, kind: str) -> list[dict[str, Any]]:
    """Return all cases of a kind, whatever their files are called; skip the test if there are none."""
    files = sorted((shared / "cases" / "detectors").glob("*.json"))
    found = [case for case in map(_read, files) if case["kind"] == kind]
    if not found:
        pytest.skip(f"needs the cases {kind} of {shared / 'cases' / 'detectors'}")
    return found


def _read(path: Path) -> dict[str, Any]:
    case: dict[str, Any] = json.loads(path.read_text())
    return case
