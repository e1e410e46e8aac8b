"""Average precision by object size: COCO's matching and accumulation, with the benchmark's rules as switches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinydet.evaluate.matching import match_greedily
from tinydet.evaluate.protocols import PrecisionRules
from tinydet.evaluate.tables import GroundTruth, Results
from tinydet.geometry.boxes import iod_from_iou
from tinydet.geometry.overlaps import Overlaps, find_overlaps

RECALLS = np.linspace(0.0, 1.0, 101)
FPPI_GRID = np.logspace(-3, 2, 101)  # false positives per image at which plots sample the recall


class Outcome(NamedTuple):
    """The verdict on each detection for one size range and IoU threshold.

    A detection that is neither a hit nor ignored is a false positive.

    Attributes:
        hit: (N,) found an object.
        ignored: (N,) does not count.
        target: (N,) index of the matched annotation, -1 for none.
    """

    hit: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    target: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class PrecisionResult:
    """Average precision of one size range and IoU threshold.

    Attributes:
        precision: (C, 101) precision envelope at recall 0, 0.01, … 1; -1 for a category without objects in the range.
        recall: (C,) final recall; -1 as above.
        recall_by_fppi: (C, 101) recall at FPPI_GRID false positives per image; -1 as above.
        objects, hits, false, ignored: counts over all categories.
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    recall_by_fppi: NDArray[np.float64]
    objects: int
    hits: int
    false: int
    ignored: int

    @property
    def ap(self) -> float:
        """Average precision: the mean over recalls and categories; -1 without objects."""
        return mean_of_known(self.precision)

    @property
    def by_class(self) -> list[float]:
        """Average precision of each category; -1 without objects."""
        return [mean_of_known(row) for row in self.precision]

    @property
    def ar(self) -> float:
        """Average recall: the mean of the final recall over categories; -1 without objects."""
        return mean_of_known(self.recall)


def average_precision(matcher: PrecisionMatcher) -> dict[str, dict[float, PrecisionResult]]:
    """Return the result for each size range and IoU threshold of the matcher's rules."""
    rules = matcher.rules
    return {name: {iou: matcher.result(name, iou) for iou in rules.ious} for name in rules.areas}


class PrecisionMatcher:
    """Match detections to annotations; overlaps are computed once for all size ranges and thresholds.

    A threshold may be any from the lowest of `rules.ious` up.

    Attributes:
        results: the detections that take part: the best of each image and category.
        by_score: (N,) their indices, sorted by category, then by descending score.
        crowd: (M,) annotations that any number of detections may match.
        flagged: (M,) annotations that are ignored whatever their size.
        overlaps: pairs of a detection and an annotation, in order of preference; `iou` is the IoD for crowds.
    """

    def __init__(self, truth: GroundTruth, results: Results, rules: PrecisionRules) -> None:
        self.truth, self.rules = truth, rules
        self.results = results = results.best(rules.max_detections)
        self.by_score = results.by_score()
        self.crowd = truth.crowd
        pairs = find_overlaps(results.boxes, results.group(len(truth.image_ids)), truth.boxes, truth.group)
        overlap = np.where(truth.crowd[pairs.target], pairs.iod, pairs.iou)
        self._area = results.boxes[:, 2] * results.boxes[:, 3]
        lowest = min(rules.ious)
        near = np.flatnonzero(overlap >= lowest)
        # In order of preference: the largest overlap first; of equal ones, the later annotation.
        near = near[np.lexsort((-pairs.target[near], -overlap[near], pairs.detection[near]))]
        self.overlaps = Overlaps(pairs.detection[near], pairs.target[near], overlap[near], pairs.iod[near])
        self.flagged = _flagged(truth, rules)
        self._iod_detection = self._iod_target = np.zeros(0, np.int64)
        self._iod = np.zeros(0)
        if rules.iod:
            iod = iod_from_iou(overlap, truth.area[pairs.target], self._area[pairs.detection])
            if not rules.iod_twice_for_crowds:
                iod = np.where(truth.crowd[pairs.target], pairs.iod, iod)
            near = np.flatnonzero(iod >= lowest)
            near = near[np.lexsort((pairs.target[near], -iod[near], pairs.detection[near]))]
            self._iod_detection, self._iod_target, self._iod = pairs.detection[near], pairs.target[near], iod[near]

    def ignored(self, name: str) -> NDArray[np.bool_]:
        """Return (M,) which annotations are ignored in the size range `name`."""
        return ignored_objects(self.truth, self.rules, name)

    def result(self, name: str, iou: float) -> PrecisionResult:
        """Return the average precision in the size range `name` at the threshold `iou`."""
        return _accumulate(self.truth, self, self.ignored(name), self.outcome(name, iou))

    def outcome(self, name: str, iou: float) -> Outcome:
        """Return the verdict on each detection in the size range `name` at the threshold `iou`."""
        truth, rules = self.truth, self.rules
        ignored = self.ignored(name)
        n = len(self.results.scores)
        near = self.overlaps.iou >= min(iou, 1 - 1e-10)
        detection, target = self.overlaps.detection[near], self.overlaps.target[near]
        # Objects come before ignored annotations, whatever their overlap.
        order = np.argsort(detection * 2 + ignored[target], kind="stable")
        fallback = self._fallback(ignored, iou, n) if rules.iod else None
        matched = match_greedily(detection[order], target[order], self.crowd, n, fallback)

        has_match = matched >= 0
        in_ignored = np.zeros(n, bool)
        in_ignored[has_match] = ignored[matched[has_match]]
        if fallback is not None:
            in_ignored |= ~has_match & (fallback >= 0)
        counted = has_match.copy()
        if not rules.id_zero_matches:
            counted[has_match] = ~truth.id_zero[matched[has_match]]
        low, high = rules.areas[name]
        outside = (self._area < low) | (self._area > high)
        dropped = in_ignored | (~counted & outside)
        return Outcome(counted & ~dropped, dropped, matched)

    def _fallback(self, ignored: NDArray[np.bool_], iou: float, n: int) -> NDArray[np.int64]:
        """Return (N,) the ignored annotation with the largest IoD, -1 where that is below the threshold."""
        iou = min(iou, 1 - 1e-10)
        threshold = (2 * iou) / (1 + iou) if self.rules.iod_stricter else iou
        pairs = np.flatnonzero(ignored[self._iod_target])
        detection = self._iod_detection[pairs]
        first = pairs[np.flatnonzero(np.r_[True, detection[1:] != detection[:-1]][: len(pairs)])]
        first = first[self._iod[first] >= threshold]
        fallback = np.full(n, -1, np.int64)
        fallback[self._iod_detection[first]] = self._iod_target[first]
        return fallback


def ignored_objects(truth: GroundTruth, rules: PrecisionRules, name: str) -> NDArray[np.bool_]:
    """Return (M,) which annotations are ignored in the size range `name`."""
    low, high = rules.areas[name]
    ignored: NDArray[np.bool_] = _flagged(truth, rules) | (truth.area < low) | (truth.area > high)
    return ignored


def recall_at_fppi(
    hit: NDArray[np.bool_], false: NDArray[np.bool_], objects: int, images: int, points: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the recall reached before the false positives per image exceed each of `points`.

    Args:
        hit, false: (N,) verdicts, by descending score.
        objects: number of objects to find.
        images: number of images.
        points: (P,) false positives per image.
    """
    recall = np.r_[0.0, np.cumsum(hit) / objects]
    fppi = np.cumsum(false).astype(np.float64) / images
    found: NDArray[np.float64] = recall[np.searchsorted(fppi, points, side="right")]
    return found


def _flagged(truth: GroundTruth, rules: PrecisionRules) -> NDArray[np.bool_]:
    """Return (M,) which annotations are ignored whatever their size."""
    flagged = truth.crowd.copy()
    if rules.ignore_flag:
        flagged |= truth.ignore
    if rules.ignore_uncertain:
        flagged |= truth.uncertain
    return flagged


def _accumulate(
    truth: GroundTruth, matcher: PrecisionMatcher, ignored: NDArray[np.bool_], outcome: Outcome
) -> PrecisionResult:
    results = matcher.results
    categories = np.arange(len(truth.category_ids))
    objects = np.bincount(truth.category[~ignored], minlength=len(categories))
    bounds: list[int] = np.searchsorted(results.category, np.arange(len(categories) + 1)).tolist()
    precision = np.full((len(categories), len(RECALLS)), -1.0)
    recall = np.full(len(categories), -1.0)
    by_fppi = np.full((len(categories), len(FPPI_GRID)), -1.0)
    hit, ignored = outcome.hit[matcher.by_score], outcome.ignored[matcher.by_score]
    false = ~hit & ~ignored
    for c in np.flatnonzero(objects).tolist():
        span = slice(bounds[c], bounds[c + 1])
        precision[c], recall[c] = _envelope(hit[span], false[span], int(objects[c]))
        by_fppi[c] = recall_at_fppi(hit[span], false[span], int(objects[c]), len(truth.image_ids), FPPI_GRID)
    return PrecisionResult(
        precision, recall, by_fppi, int(objects.sum()), int(hit.sum()), int(false.sum()), int(ignored.sum())
    )


def _envelope(hit: NDArray[np.bool_], false: NDArray[np.bool_], objects: int) -> tuple[NDArray[np.float64], float]:
    """Return the precision at RECALLS, 0 where a recall is not reached, and the final recall."""
    at_recalls = np.zeros(len(RECALLS))
    if not len(hit):
        return at_recalls, 0.0
    hits = np.cumsum(hit).astype(np.float64)
    falses = np.cumsum(false).astype(np.float64)
    recall = hits / objects
    precision = hits / (falses + hits + np.spacing(1))
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    place = np.searchsorted(recall, RECALLS, side="left")
    reached = place < len(recall)
    at_recalls[reached] = precision[place[reached]]
    return at_recalls, float(recall[-1])


def mean_of_known(values: NDArray[np.float64]) -> float:
    """Return the mean of the values that are not -1; -1 if all are."""
    known = values[values > -1]
    return float(np.mean(known)) if len(known) else -1.0
