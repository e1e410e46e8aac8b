"""Fit a calibration of scores, and measure how well scores match the share of correct detections.

A detection is correct if it finds an object by the rules of the protocol, at IoU 0.5; ignored detections do not count.
The fit is Platt scaling of the logit, with the targets that Platt proposed (1999): it maximizes the likelihood of slope
and offset, and stays finite where the scores separate all detections. The expected calibration error (ECE) after the
fit is measured by cross-fitting: the scores of each fold of the images are calibrated by a fit on the other folds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.console import plural
from tinydet.evaluate.average_precision import PrecisionMatcher
from tinydet.evaluate.classes import F1_IOU
from tinydet.evaluate.operating_point import FOLDS, SEED, SIZE, folds_of
from tinydet.evaluate.tables import GroundTruth
from tinydet.runtime.score_calibration import IDENTITY, Line, calibrate, logit, sigmoid

BINS = 15  # of equal width, as in Guo et al. (2017)
FEWEST = 20  # correct and false detections of a class with a line of its own; others share that of all classes
_MOST_STEPS = 100  # of Newton's method, which needs about ten


@dataclass(frozen=True)
class Bin:
    """Detections with scores in an interval.

    Attributes:
        count: number of detections.
        score: their mean score. correct: the share that finds an object. Both 0 without detections.
    """

    count: int
    score: float
    correct: float


@dataclass(frozen=True)
class CalibrationError:
    """How well scores match the share of correct detections.

    Attributes:
        before, after: bins of equal width from 0 to 1, of scores as detected, and calibrated by cross-fitting.
    """

    before: tuple[Bin, ...]
    after: tuple[Bin, ...]

    @property
    def detections(self) -> int:
        return sum(each.count for each in self.before)

    def to_json(self) -> dict[str, Any]:
        return {
            "detections": self.detections,
            "ECE_before": expected_error(self.before),
            "ECE_after": expected_error(self.after),
        }


@dataclass(frozen=True)
class Calibration:
    """A fitted calibration, and what it is worth.

    Attributes:
        lines: slope and offset of each class of the ground truth, fitted on all images.
        shared: names of the classes that have the line of all classes, because they have too few detections.
        together: the line of all classes.
        by_class, by_size: calibration errors of each class with detections, and of each size range.
        images: number of images.
    """

    names: tuple[str, ...]
    lines: tuple[Line, ...]
    shared: tuple[str, ...]
    together: Line
    by_class: dict[str, CalibrationError]
    by_size: dict[str, CalibrationError]
    images: int

    def to_json(self) -> dict[str, Any]:
        lines = {
            name: {"slope": slope, "offset": offset, "own": name not in self.shared}
            for name, (slope, offset) in zip(self.names, self.lines, strict=True)
        }
        return {
            "method": "Platt scaling of the logit",
            "iou": F1_IOU,
            "lines": lines,
            "together": dict(zip(("slope", "offset"), self.together, strict=True)),
            "ECE_after": {"method": "cross-fitting over images", "folds": min(FOLDS, self.images), "seed": SEED},
            "bins": BINS,
            "classes": {name: each.to_json() for name, each in self.by_class.items()},
            "sizes": {name: each.to_json() for name, each in self.by_size.items()},
            "reliability": {
                "before": [dataclasses.asdict(each) for each in self.by_size[SIZE].before],
                "after": [dataclasses.asdict(each) for each in self.by_size[SIZE].after],
            },
        }


def fit_calibration(truth: GroundTruth, matcher: PrecisionMatcher) -> Calibration:
    """Fit the scores of each class on all images, and measure the calibration errors.

    Raises:
        ValueError: there is one image, too few detections, or scores that say nothing about correctness.
    """
    images, results = len(truth.image_ids), matcher.results
    if images < 2:
        raise ValueError("--calibrate needs two images or more: some to fit on, others to measure the fit on")
    if ((results.scores < 0) | (results.scores > 1)).any():
        raise ValueError("--calibrate needs scores from 0 to 1, and some detections have others")
    outcome = matcher.outcome(SIZE, F1_IOU)
    counts = ~outcome.ignored
    names = tuple(name or str(id) for name, id in zip(truth.category_names, truth.category_ids, strict=True))
    fit = _fit_classes(results.scores[counts], results.category[counts], outcome.hit[counts], len(names))
    if fit is None:
        hits, false = int(outcome.hit[counts].sum()), int((~outcome.hit[counts]).sum())
        raise ValueError(
            f"--calibrate needs {FEWEST} correct and {FEWEST} false detections, whose scores are higher where they are "
            f"correct; there are {hits} correct and {plural(false, 'false detection')}. Use more images"
        )
    after = np.empty(len(results.scores))
    folds = folds_of(images)[results.image]
    for fold in range(folds_of(images).max() + 1):
        some, own = counts & (folds != fold), folds == fold
        part = _fit_classes(results.scores[some], results.category[some], outcome.hit[some], len(names))
        lines = [IDENTITY] * len(names) if part is None else part.lines
        after[own] = calibrate(results.scores[own], results.category[own], lines)

    def errors(size: str, kept: NDArray[np.bool_] | None = None) -> CalibrationError:
        verdict = matcher.outcome(size, F1_IOU)
        some = ~verdict.ignored if kept is None else ~verdict.ignored & kept
        return CalibrationError(bins(results.scores[some], verdict.hit[some]), bins(after[some], verdict.hit[some]))

    present = np.bincount(results.category[counts], minlength=len(names))
    return Calibration(
        names,
        fit.lines,
        tuple(name for name, own in zip(names, fit.own, strict=True) if not own),
        fit.together,
        {name: errors(SIZE, results.category == c) for c, name in enumerate(names) if present[c]},
        {size: errors(size) for size in matcher.rules.areas},
        images,
    )


def fit_line(scores: NDArray[np.float64], correct: NDArray[np.bool_]) -> Line | None:
    """Return slope and offset with the largest likelihood; None if there are too few detections, or the slope is not
    above 0.

    Args:
        scores: (N,) from 0 to 1.
        correct: (N,) whether each detection finds an object.
    """
    hits = int(correct.sum())
    false = len(correct) - hits
    if min(hits, false) < FEWEST:
        return None
    target = np.where(correct, (hits + 1) / (hits + 2), 1 / (false + 2))
    logits = logit(scores)
    mean, spread = float(logits.mean()), float(logits.std())
    if spread < 1e-9:
        return None  # all scores are equal
    features = np.stack([(logits - mean) / spread, np.ones(len(scores))])  # (2, N); standardized, for Newton's method
    line = np.array([spread, mean])  # scores as they are
    loss = _loss(features, target, line)
    for _ in range(_MOST_STEPS):
        probability = sigmoid(line @ features)
        gradient = features @ (probability - target)
        curvature = (features * np.maximum(probability * (1 - probability), 1e-9)) @ features.T
        step = np.linalg.solve(curvature, gradient)
        length = 1.0
        while (trial := _loss(features, target, line - length * step)) > loss and length > 1e-6:
            length /= 2
        line, gain, loss = line - length * step, loss - trial, trial
        if gain < 1e-12 * max(loss, 1.0):
            break
    slope, offset = float(line[0]) / spread, float(line[1] - line[0] * mean / spread)
    return (slope, offset) if slope > 0 else None


def bins(scores: NDArray[np.float64], correct: NDArray[np.bool_]) -> tuple[Bin, ...]:
    """Return the detections in BINS intervals of equal width; a score on a border belongs to the higher interval."""
    place = np.clip((scores * BINS).astype(np.int64), 0, BINS - 1)
    counts, score, hits = (np.bincount(place, weights, BINS) for weights in (None, scores, correct))
    some = np.maximum(counts, 1)
    return tuple(map(Bin, counts.tolist(), (score / some).tolist(), (hits / some).tolist()))


def expected_error(filled: Sequence[Bin]) -> float | None:
    """Return the mean difference of score and share of correct detections, weighted by count; None without any.

    >>> round(expected_error([Bin(3, 0.25, 1 / 3), Bin(1, 0.9, 1.0)]), 4)
    0.0875
    """
    total = sum(each.count for each in filled)
    if not total:
        return None
    return sum(each.count * abs(each.score - each.correct) for each in filled) / total


def composed(first: Line, then: Line) -> Line:
    """Return the line that calibrates by `first`, and its result by `then`."""
    return then[0] * first[0], then[0] * first[1] + then[1]


class _Fit(NamedTuple):
    lines: tuple[Line, ...]
    own: tuple[bool, ...]
    together: Line


def _fit_classes(
    scores: NDArray[np.float64], category: NDArray[np.int64], correct: NDArray[np.bool_], classes: int
) -> _Fit | None:
    together = fit_line(scores, correct)
    if together is None:
        return None
    found = [fit_line(scores[category == c], correct[category == c]) for c in range(classes)]
    return _Fit(tuple(line or together for line in found), tuple(line is not None for line in found), together)


def _loss(features: NDArray[np.float64], target: NDArray[np.float64], line: NDArray[np.float64]) -> float:
    """Return the negative log likelihood."""
    value = line @ features
    return float(np.sum(np.logaddexp(0, value) - target * value))
