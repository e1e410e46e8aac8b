"""Decide what the numbers of a YOLO line mean: a box, a box with keypoints, or the corners of a polygon.

After the class number come 4 numbers of a box (center and size), the same with keypoints of 2 or 3 numbers each, or the
x and y of at least 3 corners. Predictions saved by Ultralytics may end with a confidence and a track number. The
count alone is ambiguous: 8 numbers are four corners, or a box with two keypoints.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from tinydet.data.readers.class_names import DataFile

Labels = Literal["box", "pose", "polygon"]
LABELS: tuple[Labels, ...] = ("box", "pose", "polygon")
FORM = "class x y width height, as fractions of the image size from 0 to 1"

_TOLERANCE = 0.01  # for labels that were rounded, or drawn beyond the border
_AGREEMENT = 0.95  # share of the lines with evidence that must agree on one meaning
# Extent of all points relative to that without the second one, above which the second is not a corner. A single
# keypoint or a triangle leaves few points.
_OUTLIER, _OUTLIER_OF_THREE = 3.0, 10.0
_COINCIDENCE = 1 / 7  # extent of the points relative to the box, below which the four numbers are not a box
_PARALLEL = 0.005  # how far the corners of a rectangle may be from a parallelogram: 2 pixels of an image of 400

Point = tuple[float, float]
Row = Sequence[float]  # the numbers of a line after the class
Box = tuple[float, float, float, float]  # left, top, width, height; fractions of the image size


@dataclass
class LabelForm:
    """Collects the lines of a dataset and decides what their numbers mean.

    Args:
        labels: the meaning, if the user states it.
        data: the data.yaml of the dataset, if it has one.
    """

    labels: Labels | None = None
    data: DataFile | None = None
    counts: Counter[int] = field(default_factory=Counter)  # lines by how many numbers they have
    first: dict[int, str] = field(default_factory=dict)  # location of the first line of each count
    votes: Counter[Labels] = field(default_factory=Counter)  # lines with evidence
    beyond: int = 0  # lines with an even count of numbers where one is too large for a corner
    whole: Counter[int] = field(default_factory=Counter)  # lines by count whose last number is a whole one

    def add(self, row: Row, location: str) -> None:
        """Take a line into account."""
        count = len(row)
        self.counts[count] += 1
        self.first.setdefault(count, location)
        if count < 6:
            return
        self.whole[count] += row[-1].is_integer()
        self.beyond += count % 2 == 0 and not all(map(_is_fraction, row))
        if (vote := _vote(row)) is not None:
            self.votes[vote] += 1

    def decide(self) -> Labels:
        """Return what the numbers mean: as the user states, as data.yaml says, or by evidence from all lines.

        Raises:
            ValueError: the evidence is ambiguous.
        """
        if self.labels is not None:
            return self.labels
        if self.data is not None and (self.data.keypoints is not None or self.data.task == "pose"):
            return "pose"
        if self.data is not None and self.data.task in ("segment", "obb"):
            return "polygon"
        longer = {count for count in self.counts if count >= 6}
        if not longer and 5 not in self.counts:
            return "box"
        if longer == {6} and self.whole[6] == self.counts[6] and (5 in self.counts or self.beyond):
            return "box"  # with confidence and track number
        total = sum(self.votes.values())
        same = len(longer) == 1  # as with keypoints, whose number is the same in every line
        corners = len({count % 2 for count in longer}) == 1
        if 5 in self.counts:
            raise ValueError(
                f"{self.first[5]}: 6 numbers; expected 5: {FORM}; if the last is a confidence or a track number, state "
                "--labels box"
            )
        if corners and self.votes["polygon"] >= _AGREEMENT * total and (total or not same):
            return "polygon"
        if same and total and self.votes["pose"] >= _AGREEMENT * total:
            return "pose"
        raise ValueError(self._unclear(longer))

    def box(self, row: Row, labels: Labels, location: str) -> Box:
        """Return the box of a line whose meaning is `labels`.

        Raises:
            ValueError: the line does not have this form.
        """
        count = len(row)
        if count < 4:
            raise ValueError(f"{location}: {count + 1} numbers; expected 5: {FORM}")
        if labels == "polygon" and count != 4:
            return self._polygon(row, location)
        if labels == "box" and count > 6:
            raise ValueError(f"{location}: {count + 1} numbers; expected 5 ({FORM}), or 6 or 7 with a confidence")
        if labels == "pose" and count != 4:
            self._check_keypoints(count, location)
        x, y, width, height = row[:4]
        _check_fractions(row[:4], location)
        if labels == "box" and count > 4:
            self._check_extra(row, location)
        if width < 0 or height < 0:
            raise ValueError(f"{location}: a box with a negative side; expected {FORM}")
        return x - width / 2, y - height / 2, width, height

    def notes(self, labels: Labels) -> list[str]:
        """Return messages to the user about numbers that are left out."""
        longer = sum(count for numbers, count in self.counts.items() if numbers > 4)
        if labels == "pose" and longer:
            return [f"{longer} objects have keypoints, which are left out"]
        if labels == "box" and longer:
            return [f"{longer} boxes have a confidence or a track number, which is left out; are these predictions?"]
        return []

    def _is_tracked(self, counts: set[int]) -> bool:
        """Return whether lines of an even count end with a confidence and a track number."""
        return self.beyond > 0 and all(self.whole[n] == self.counts[n] for n in counts if n >= 8)

    def _polygon(self, row: Row, location: str) -> Box:
        count = len(row)
        if count < 6:
            raise ValueError(f"{location}: {count + 1} numbers; a polygon has at least 7: class x1 y1 x2 y2 x3 y3 ...")
        even = {n for n in self.counts if n >= 6 and n % 2 == 0}
        # A confidence or a track number after the corners makes the count odd, in every line of the dataset.
        extra = count % 2 or (2 if count >= 8 and self._is_tracked(even) else 0)
        if self.data is not None and self.data.task == "obb" and self.labels is None and count - extra != 8:
            raise ValueError(f"{location}: {count + 1} numbers; {self.data.path} says obb: expected 9, of 4 corners")
        if extra == 1 and (even or not (_is_fraction(row[-1]) or _is_track(row[-1]))):
            raise ValueError(f"{location}: {count + 1} numbers; a polygon has an x and a y for each corner")
        corners = row[: count - extra]
        _check_fractions(corners, location)
        left, top = min(corners[0::2]), min(corners[1::2])
        return left, top, max(corners[0::2]) - left, max(corners[1::2]) - top

    def _check_keypoints(self, count: int, location: str) -> None:
        """Check that a line has as many keypoints as data.yaml says, and may end with confidence and track number."""
        if count < 6:
            raise ValueError(f"{location}: {count + 1} numbers, too few for a box with keypoints")
        if self.labels is not None or self.data is None or self.data.keypoints is None:
            return
        points, numbers = self.data.keypoints
        expected = 4 + points * numbers
        if not expected <= count <= expected + 2:
            what = f"kpt_shape [{points}, {numbers}] of {self.data.path} expects {expected + 1}"
            raise ValueError(f"{location}: {count + 1} numbers, but {what}; correct one, or state --labels")

    def _check_extra(self, row: Row, location: str) -> None:
        """Check what follows a box: a confidence, a track number, or both in this order."""
        confidence, *track = row[4:]
        if not (0 <= confidence <= 1 or (not track and _is_track(confidence))) or not all(map(_is_track, track)):
            raise ValueError(
                f"{location}: {', '.join(f'{value:g}' for value in row[4:])} after the box; expected a confidence from "
                "0 to 1 or a track number"
            )

    def _unclear(self, longer: set[int]) -> str:
        count = min(longer)
        ways = "--labels pose or --labels polygon, or kpt_shape or task in data.yaml"
        box = "a box with confidence and track number, " if count == 6 else ""
        return (
            f"{self.first[count]}: {count + 1} numbers, which may be {box}a box with keypoints or the corners of a "
            f"polygon; say which: {'--labels box, ' if box else ''}{ways}"
        )


def _vote(row: Row) -> Labels | None:
    """Return what the geometry of a line of at least 6 numbers implies; None if it is ambiguous.

    Read as corners, the four numbers of a box are a point at its center and one that lies elsewhere, unless the object
    is large. Read as a box, the first two corners of a polygon give one that has little to do with the others.
    """
    if len(row) == 6 and _is_track(row[-1]):
        return None
    if _has_visibility(row):
        return "pose"
    if len(row) == 8 and all(abs(row[n] - row[n + 2] + row[n + 4] - row[n + 6]) < _PARALLEL for n in (0, 1)):
        return "polygon"  # a rectangle, upright or turned
    x, y, width, height = row[:4]
    fits_image = all(
        center - side / 2 >= -2 * _TOLERANCE and center + side / 2 <= 1 + 2 * _TOLERANCE
        for center, side in ((x, width), (y, height))
    )
    second = (width, height)
    outlier = _OUTLIER_OF_THREE if len(row) < 8 else _OUTLIER
    for keypoints in _possible_keypoints(row) if fits_image else ():
        if all(abs(px - x) <= width and abs(py - y) <= height for px, py in keypoints):
            points = [(x, y), *keypoints]
            if _extent([*points, second]) > outlier * _extent(points):
                return "pose"
            coincidence = len(row) >= 8 and _extent([*points, second]) < _COINCIDENCE * max(width, height)
            return "polygon" if coincidence else None
    points = [(x, y), *zip(row[4 : len(row) - 1 : 2], row[5::2], strict=True)]
    return None if _extent([*points, second]) > outlier * _extent(points) else "polygon"


def _possible_keypoints(row: Row) -> Iterator[list[Point]]:
    """Yield the keypoints that are set, for each number of values per keypoint and after the last one that fits."""
    for extra in (0, 1, 2):
        values = row[4 : len(row) - extra]
        for each in (2, 3):
            if values and len(values) % each == 0:
                points = zip(values[0::each], values[1::each], strict=True)
                yield [point for point in points if point != (0, 0)]


def _extent(points: Sequence[Point]) -> float:
    """Return the longer side of the bounding box of points."""
    xs, ys = zip(*points, strict=True)
    return float(max(max(xs) - min(xs), max(ys) - min(ys)))


def _has_visibility(row: Row) -> bool:
    """Return whether the box is followed by keypoints (x, y, visibility) with visibilities of 0, 1 or 2.

    At least one must be 2, which means visible: no corner has such a coordinate.
    """
    third = row[6::3]
    return (len(row) - 4) % 3 == 0 and all(value in (0, 1, 2) for value in third) and 2 in third


def _is_fraction(value: float) -> bool:
    return -_TOLERANCE <= value <= 1 + _TOLERANCE


def _is_track(value: float) -> bool:
    return value >= 0 and value.is_integer()


def _check_fractions(values: Sequence[float], location: str) -> None:
    if not all(map(_is_fraction, values)):
        raise ValueError(f"{location}: a fraction of the image size is not from 0 to 1; expected {FORM}")
