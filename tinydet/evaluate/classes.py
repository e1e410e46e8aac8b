"""Scores of each class: AP at ten IoU thresholds, and precision, recall and F1 over score thresholds.

All values are of the size range `all`. Means are over the classes with objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinydet.evaluate.average_precision import PrecisionMatcher, ignored_objects, mean_of_known
from tinydet.evaluate.protocols import PrecisionRules
from tinydet.evaluate.tables import GroundTruth

STRICT_IOUS = np.linspace(0.5, 0.95, 10).tolist()  # of AP50-95, as in pycocotools
F1_IOU = 0.5  # IoU threshold of precision, recall and F1
METRICS = ("AP50", "AP50-95", "AP75")


class OperatingPoint(NamedTuple):
    """Precision, recall and F1 of the detections from a score on.

    Attributes:
        score: the threshold; lower detections do not count.
        precision: None without a detection that counts.
    """

    score: float
    precision: float | None
    recall: float
    f1: float


@dataclass(frozen=True, eq=False)
class ClassScores:
    """Scores of one class.

    Attributes:
        objects: number of objects to find; without objects the class has no scores and is in no mean.
        images: number of images with such objects.
        detections: number of detections, at any score.
        ap: by the names in METRICS; -1 without objects.
        curve: for precision, recall and F1 at any threshold.
        at: at the threshold of all classes together; None without objects.
        best: at the threshold with the best F1 of this class; None if no detection finds an object.
    """

    name: str
    objects: int
    images: int
    detections: int
    ap: dict[str, float]
    curve: ScoreCurve
    at: OperatingPoint | None
    best: OperatingPoint | None

    def to_json(self) -> dict[str, Any]:
        """Return fractions; None for a value that is not defined, -1 for AP without objects."""
        return {
            "name": self.name,
            "objects": self.objects,
            "images": self.images,
            "detections": self.detections,
            **self.ap,
            **_point_json(self.at),
            "best_F1": _point_json(self.best),
        }


@dataclass(frozen=True, eq=False)
class ClassTable:
    """The scores of all classes.

    Attributes:
        classes: in the order of the category ids.
        ap: means by the names in METRICS; -1 without objects.
        score: the score threshold with the best mean F1, and the threshold of `ClassScores.at`. A detection counts if
            its score is not lower. None if no detection finds an object.
    """

    classes: tuple[ClassScores, ...]
    ap: dict[str, float]
    score: float | None

    @property
    def scored(self) -> tuple[ClassScores, ...]:
        """The classes with objects."""
        return tuple(each for each in self.classes if each.objects)

    @property
    def excluded(self) -> tuple[ClassScores, ...]:
        """The classes without objects."""
        return tuple(each for each in self.classes if not each.objects)

    @property
    def mean(self) -> OperatingPoint | None:
        """The means of precision, recall and F1 over the classes with objects, at `score`.

        The precision of a class without a detection counts as 0.
        """
        points = [each.at for each in self.scored if each.at is not None]
        if self.score is None or not points:
            return None
        values = np.array([(point.precision or 0.0, point.recall, point.f1) for point in points])
        precision, recall, f1 = values.mean(axis=0).tolist()
        return OperatingPoint(self.score, precision, recall, f1)

    def to_json(self) -> dict[str, Any]:
        """Return the `mean` over the classes with objects, the names of the `excluded` ones, and `classes`."""
        return {
            "mean": {**self.ap, **_point_json(self.mean)},
            "excluded": [each.name for each in self.excluded],
            "classes": [each.to_json() for each in self.classes],
        }


@dataclass(frozen=True, eq=False)
class ScoreCurve:
    """Precision, recall and F1 of one class over score thresholds. Ignored detections are left out.

    Attributes:
        scores: (N,) descending.
        hits, false: (N,) cumulative counts.
        objects: number of objects to find.
    """

    scores: NDArray[np.float64]
    hits: NDArray[np.int64]
    false: NDArray[np.int64]
    objects: int

    def counts(self, thresholds: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the hits and the false positives from each threshold on."""
        last = np.searchsorted(-self.scores, -thresholds, side="right")
        return np.r_[0, self.hits][last], np.r_[0, self.false][last]

    def at(self, score: float) -> OperatingPoint:
        hits, false = (int(each[0]) for each in self.counts(np.array([score])))
        precision = hits / (hits + false) if hits + false else None
        return OperatingPoint(score, precision, hits / max(self.objects, 1), _f1(hits, false, self.objects))

    def f1(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the distinct scores, descending, and F1 with each of them as threshold."""
        scores = self.scores
        last = np.flatnonzero(np.r_[scores[1:] != scores[:-1], True][: len(scores)])  # a threshold cannot split a tie
        return scores[last], 2 * self.hits[last] / np.maximum(self.objects + self.hits[last] + self.false[last], 1)


def score_classes(truth: GroundTruth, matcher: PrecisionMatcher) -> ClassTable:
    """Return the scores of every class of the ground truth, by the matching of a protocol."""
    results = [matcher.result("all", iou) for iou in STRICT_IOUS]
    by_class = np.array([result.by_class for result in results]).reshape(len(STRICT_IOUS), -1)  # (T, C)
    ap = {"AP50": by_class[0], "AP50-95": by_class.mean(axis=0), "AP75": by_class[STRICT_IOUS.index(0.75)]}
    curves = _curves(truth, matcher)
    known = [curve for curve in curves if curve.objects]
    score = best_threshold([curve.f1() for curve in known])
    counts = count_objects(truth, matcher.rules)
    detections = np.bincount(matcher.results.category, minlength=len(curves)).tolist()
    classes = []
    for c, curve in enumerate(curves):
        best = best_threshold([curve.f1()]) if curve.objects else None
        classes.append(
            ClassScores(
                name=counts[c][0],
                objects=counts[c][1],
                images=counts[c][2],
                detections=detections[c],
                ap={name: float(values[c]) for name, values in ap.items()},
                curve=curve,
                at=None if score is None or not curve.objects else curve.at(score),
                best=None if best is None else curve.at(best),
            )
        )
    return ClassTable(tuple(classes), {name: mean_of_known(values) for name, values in ap.items()}, score)


def count_objects(truth: GroundTruth, rules: PrecisionRules) -> list[tuple[str, int, int]]:
    """Return the name of each class, its number of objects to find, and the number of images with them."""
    counted = ~ignored_objects(truth, rules, "all")
    pairs = np.unique(np.stack([truth.category[counted], truth.image[counted]]), axis=1)
    classes = len(truth.category_ids)
    objects, images = (np.bincount(each, minlength=classes).tolist() for each in (truth.category[counted], pairs[0]))
    names = [name or str(id) for name, id in zip(truth.category_names, truth.category_ids, strict=True)]
    return list(zip(names, objects, images, strict=True))


def best_threshold(curves: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> float | None:
    """Return the score threshold with the best mean of several F1 curves, in as few digits as possible.

    Args:
        curves: for each, distinct scores (N,), descending, and F1 with each of them as threshold.

    Returns:
        The largest of the best thresholds, rounded so that no detection changes sides; None if F1 is 0 everywhere.
    """
    if not curves:
        return None
    scores = np.concatenate([scores for scores, _ in curves])
    change = np.concatenate([np.diff(f1, prepend=0.0) for _, f1 in curves])
    order = np.argsort(-scores, kind="stable")
    scores, mean = scores[order], np.cumsum(change[order]) / len(curves)
    last = np.flatnonzero(np.r_[scores[1:] != scores[:-1], True][: len(scores)])
    scores, mean = scores[last], mean[last]
    if not len(mean) or mean.max() <= 1e-12:
        return None
    best = int(np.flatnonzero(mean >= mean.max() - 1e-12)[0])  # 1e-12: the sum of the changes is not exact
    return _short(float(scores[best + 1]) if best + 1 < len(scores) else -np.inf, float(scores[best]))


def short_threshold(scores: NDArray[np.float64], score: float) -> float:
    """Return a threshold in as few digits as possible that keeps the same detections as `score`.

    Args:
        scores: (N,) of the detections.
        score: one of them.
    """
    lower = scores[scores < score]
    return _short(float(lower.max(initial=-np.inf)), score)


def _curves(truth: GroundTruth, matcher: PrecisionMatcher) -> list[ScoreCurve]:
    outcome, results = matcher.outcome("all", F1_IOU), matcher.results
    classes = len(truth.category_ids)
    objects = np.bincount(truth.category[~matcher.ignored("all")], minlength=classes).tolist()
    order = matcher.by_score[~outcome.ignored[matcher.by_score]]
    bounds = np.searchsorted(results.category[order], np.arange(classes + 1)).tolist()
    curves = []
    for c in range(classes):
        own = order[bounds[c] : bounds[c + 1]]
        hits = np.cumsum(outcome.hit[own], dtype=np.int64)
        curves.append(
            ScoreCurve(results.scores[own], hits, np.arange(1, len(own) + 1, dtype=np.int64) - hits, objects[c])
        )
    return curves


def _f1(hits: int, false: int, objects: int) -> float:
    return 2 * hits / max(objects + hits + false, 1)


def _short(low: float, high: float) -> float:
    """Return the number with the fewest decimals, at least two, in (low, high].

    >>> _short(0.311, 0.3184), _short(0.31835, 0.3184), _short(0.1, 0.9)
    (0.318, 0.3184, 0.9)
    """
    for digits in range(2, 17):
        rounded = round(high, digits)
        if rounded > high:
            rounded = round(rounded - 10**-digits, digits)
        if low < rounded <= high:
            return rounded
    return high


def _point_json(point: OperatingPoint | None) -> dict[str, float | None]:
    names = ("score", "precision", "recall", "F1")
    return dict(zip(names, point or (None,) * len(names), strict=True))
