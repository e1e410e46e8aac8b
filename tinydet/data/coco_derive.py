"""Derive values of COCO entries from other fields: numbers from text, boxes from polygons and masks."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from tinydet._internal.extras import needs_extra
from tinydet.data.coco_entries import LARGEST, is_integer, json_kind

_SIDES = (("x", "y", "width", "height"), ("x", "y", "w", "h"), ("left", "top", "width", "height"))
_NUMBER = re.compile(r"[+-]?\d{1,300}(\.\d*)?([eE][+-]?\d{1,3})?")


def number(value: Any) -> float | None:
    """Return a finite number that is given as a number or as text; None for anything else.

    >>> number("80.0"), number("80 px")
    (80.0, None)
    """
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= LARGEST else None  # also false for NaN


def whole_number(value: Any) -> int | None:
    """Return a whole number that is given as a number or as text; None for anything else."""
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,18}(\.0*)?", value.strip()):
        return int(value.partition(".")[0])
    return int(value) if is_integer(value) else None


def derive_box(annotation: Mapping[str, Any], size: tuple[int, int]) -> tuple[list[float], str] | None:
    """Derive the box of an annotation without a valid `bbox`. Return it with its source, or None.

    Args:
        size: width and height of the image; the box has an area there.

    Raises:
        ModuleNotFoundError: a run-length mask needs pycocotools, which is not installed.
    """
    shape = annotation.get("segmentation")
    boxes = (
        (
            _box_of_text(bbox := annotation.get("bbox")),
            f"the numbers in its {'text' if _has_text(bbox) else json_kind(bbox)}",
        ),
        (_box_of_polygons(shape), "the box around its polygons"),
        (_box_of_mask(shape, size), "the box around its mask"),
    )
    return next(((box, source) for box, source in boxes if box is not None and _is_visible(box, size)), None)


def _is_visible(box: list[float], size: tuple[int, int]) -> bool:
    x, y, width, height = box
    inside = min(x + width, size[0]) > max(x, 0) and min(y + height, size[1]) > max(y, 0)
    return width > 0 and height > 0 and inside


def _box_of_text(bbox: Any) -> list[float] | None:
    """Return a box given as text, partly as text, as a list in a list, or as a mapping with named sides."""
    if isinstance(bbox, str):
        bbox = re.split(r"\s*[,;]\s*|\s+", bbox.strip(" \t()[]"))
    if isinstance(bbox, Mapping):
        names = next((names for names in _SIDES if set(names) == set(bbox)), ())
        bbox = [bbox[name] for name in names]
    if isinstance(bbox, list) and len(bbox) == 1:  # nested in another list
        bbox = bbox[0]
    if not isinstance(bbox, list) or len(bbox) != 4:
        return None
    box = [found for side in bbox if (found := number(side)) is not None]
    return box if len(box) == 4 else None


def polygons_of(shape: Any) -> list[list[float]] | None:
    """Return polygons as lists of x, y, x, y, ..., also if they are a flat list, or have their points in lists [x, y].

    Returns None for anything else, also for an odd number of coordinates.
    """
    if not isinstance(shape, list) or not shape:
        return None
    polygons = []
    for part in shape if isinstance(shape[0], list) else [shape]:
        if not isinstance(part, list):
            return None
        if all(isinstance(point, list) and len(point) == 2 for point in part):
            part = [value for point in part for value in point]
        values = [found for value in part if (found := number(value)) is not None]
        if len(values) < len(part) or len(part) % 2:
            return None
        polygons.append(values)
    return polygons


def _box_of_polygons(shape: Any) -> list[float] | None:
    values = [value for polygon in polygons_of(shape) or () for value in polygon]
    if len(values) < 6:
        return None
    points = np.array(values, np.float64).reshape(-1, 2)
    low, high = points.min(axis=0), points.max(axis=0)
    return [*low.tolist(), *(high - low).tolist()]


def _has_text(bbox: Any) -> bool:
    return isinstance(bbox, str) or (isinstance(bbox, list) and any(isinstance(side, str) for side in bbox))


def _box_of_mask(shape: Any, size: tuple[int, int]) -> list[float] | None:
    """Return the box around a run-length mask of the image's size."""
    if not isinstance(shape, Mapping) or shape.get("size") != [size[1], size[0]]:
        return None
    counts = shape.get("counts")
    with needs_extra("formats"):
        from pycocotools import mask
    if isinstance(counts, list):
        runs = [whole_number(run) for run in counts]
        if any(run is None or run < 0 for run in runs) or sum(filter(None, runs)) != math.prod(size):
            return None
        encoded = mask.frPyObjects({"size": [size[1], size[0]], "counts": runs}, size[1], size[0])
    elif isinstance(counts, str) and counts.isascii():
        encoded = {"size": [size[1], size[0]], "counts": counts.encode()}
    else:
        return None
    box: list[float] = mask.toBbox(encoded).tolist()
    return box
