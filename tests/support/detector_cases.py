"""The recorded numeric cases of detectors."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tinydet.geometry.points import PointDesign


def cases_of(shared: Path, kind: str) -> list[dict[str, Any]]:
    """Return all cases of a kind, whatever their files are called; skip the test if there are none."""
    files = sorted((shared / "cases" / "detectors").glob("*.json"))
    found = [case for case in map(_read, files) if case["kind"] == kind]
    if not found:
        pytest.skip(f"needs the cases {kind} of {shared / 'cases' / 'detectors'}")
    return found


def point_design(given: dict[str, Any]) -> PointDesign:
    """Return the points of the input of a case."""
    ranges = tuple((low, math.inf if high is None else high) for low, high in given["ranges"])
    names = tuple(given["levels"])
    return PointDesign(levels=names, strides=tuple(given["strides"]), ranges=ranges,
                       radius=given["centre_sampling_radius"], unfused=2 if "P7" in names else 1)  # fmt: skip


def _read(path: Path) -> dict[str, Any]:
    case: dict[str, Any] = json.loads(path.read_text())
    return case
