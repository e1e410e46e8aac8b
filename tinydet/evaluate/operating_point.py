"""Operating points: score thresholds for a wanted precision, recall, F1 or rate of false alarms.

Hits and false positives are those of the protocol in the size range `all` at IoU 0.5; ignored detections do not count.
Confidence intervals are percentiles of a bootstrap over images, because the objects of one image are alike. Where no
detection is false, they would have no width, so those of precision and recall are widened to Wilson's score interval
(1927), and those of false alarms to Byar's for a Poisson rate (Breslow and Day 1987).

A threshold looks better on the images that it was chosen on than on others, so it is also measured by cross-fitting:
chosen without a fold of the images, and measured on that fold.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.arguments import quoted
from tinydet._internal.progress import Progress
from tinydet.evaluate.average_precision import PrecisionMatcher
from tinydet.evaluate.classes import F1_IOU, count_objects, short_threshold
from tinydet.evaluate.tables import GroundTruth

KINDS = ("f1", "precision", "recall", "false-alarms")
SIZE = "all"  # size range in which thresholds are chosen
LEVEL = 0.95  # of the confidence intervals
RESAMPLES = 1000  # of the bootstrap
MOST_RESAMPLED, FEWEST_RESAMPLES = 20_000_000, 200  # detections, for the interval of a threshold, which takes longer
FOLDS = 5  # of the cross-fitting
Z = 1.959964  # the normal quantile of (1 + LEVEL) / 2
SEED = 0  # of both, so that the same detections give the same numbers
ROUNDING = 1e-12  # of a rate that is compared with a wanted one

Weights = NDArray[np.int64]  # (I,) how often each image counts
Interval = tuple[float | None, float | None]  # None: beyond all scores


@dataclass(frozen=True)
class Wanted:
    """What a threshold is chosen for.

    Attributes:
        kind: one of KINDS.
        value: precision or recall from 0 to 1, or false alarms per megapixel of the scene; None for the best F1.
    """

    kind: str
    value: float | None = None

    def __str__(self) -> str:
        if self.value is None:
            return "best F1"
        if self.kind == "false-alarms":
            return f"at most {self.value:g} false alarm{'' if self.value == 1 else 's'} per megapixel"
        return f"{self.kind} >= {self.value:g}"

    @property
    def option(self) -> str:
        """The text that `parse_wanted` reads."""
        return self.kind if self.value is None else f"{self.kind}={self.value:g}"


def parse_wanted(text: str) -> Wanted:
    """Parse `f1`, `precision=0.9`, `recall=0.8` or `false-alarms=0.1`.

    >>> parse_wanted("precision=0.9")
    Wanted(kind='precision', value=0.9)

    Raises:
        ArgumentTypeError: anything else.
    """
    kind, equals, number = text.partition("=")
    if kind == "f1" and not equals:
        return Wanted("f1")
    try:
        value = float(number) if "_" not in number else np.nan
    except ValueError:
        value = np.nan
    if kind in ("precision", "recall") and 0 < value <= 1:
        return Wanted(kind, value)
    if kind == "false-alarms" and 0 <= value < np.inf:
        return Wanted(kind, value)
    raise argparse.ArgumentTypeError(
        "expected f1, precision=P or recall=R with a fraction above 0 and up to 1, or false-alarms=F with a number per "
        f"megapixel from 0; got {quoted(text)}"
    )


class Measured(NamedTuple):
    """What a threshold achieves.

    Attributes:
        precision: None if no detection counts.
        recall, f1: None without objects.
        false_alarms: false positives per megapixel of the images; None if the size of an image is unknown.
    """

    precision: float | None
    recall: float | None
    f1: float | None
    false_alarms: float | None

    def to_json(self) -> dict[str, float | None]:
        return dict(zip(MEASURES, self, strict=True))


MEASURES = ("precision", "recall", "F1", "false_alarms")  # names in JSON


@dataclass(frozen=True)
class Point:
    """The operating point of one class, or of all classes with one threshold.

    Attributes:
        name: of the class.
        objects: number of objects to find.
        images: number of images with objects.
        score: the threshold: detections with a lower score do not count. None if the wanted value is not reached.
        measured: at `score`, on the images that it was chosen on.
        score_interval, intervals: confidence intervals of `score` and of each of MEASURES at `score`; None for one
            image, and for a value that is not defined. A bound of the score is None where the wanted value was not
            reached on the images of a resample.
        held_out: measured by cross-fitting; None for one image.
        best: the closest value to the wanted one that is reached, and its threshold; None if no detection finds an
            object, or the wanted value is reached.
    """

    name: str
    objects: int
    images: int
    score: float | None = None
    measured: Measured | None = None
    score_interval: Interval | None = None
    intervals: tuple[tuple[float, float] | None, ...] = (None,) * len(MEASURES)
    held_out: Measured | None = None
    best: tuple[float, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return fractions; None for what is not defined."""
        measured = self.measured or Measured(None, None, None, None)
        bounds = dict(zip(MEASURES, self.intervals, strict=True))
        return {
            "name": self.name,
            "objects": self.objects,
            "images": self.images,
            "score": self.score,
            **measured.to_json(),
            "intervals": {"score": self.score_interval, **bounds},
            "held_out": None if self.held_out is None else self.held_out.to_json(),
            "best": None if self.best is None else {"value": self.best[0], "score": self.best[1]},
        }


@dataclass(frozen=True)
class OperatingPoints:
    """The operating points of all classes.

    Attributes:
        wanted: what they were chosen for.
        classes: those with objects, in the order of the category ids, each with its own threshold.
        excluded: names of the classes without objects, for which no threshold can be chosen.
        together: one threshold for all classes with objects, by their counts together.
        by_size: what the thresholds of the classes achieve by size range; false alarms only in the range `all`.
        images: number of images.
    """

    wanted: Wanted
    classes: tuple[Point, ...]
    excluded: tuple[str, ...]
    together: Point
    by_size: dict[str, tuple[int, Measured]]
    images: int

    @property
    def missed(self) -> tuple[Point, ...]:
        """The classes that do not reach the wanted value."""
        return tuple(each for each in self.classes if each.score is None)

    def to_json(self) -> dict[str, Any]:
        """Return everything, with the methods of the intervals and of the held-out values."""
        return {
            "wanted": {"kind": self.wanted.kind, "value": self.wanted.value},
            "iou": F1_IOU,
            "intervals": {
                "level": LEVEL,
                "method": "percentiles of a bootstrap over images, widened to the intervals of Wilson (precision, "
                "recall) and Byar (false alarms)",
                "resamples": RESAMPLES,
                "seed": SEED,
            },
            "held_out": {"method": "cross-fitting over images", "folds": min(FOLDS, self.images), "seed": SEED},
            "images": self.images,
            "classes": [each.to_json() for each in self.classes],
            "excluded": list(self.excluded),
            "all": self.together.to_json(),
            "by_size": {
                name: {"objects": objects, **measured.to_json()} for name, (objects, measured) in self.by_size.items()
            },
        }


@dataclass(frozen=True, eq=False)
class Verdicts:
    """The detections that count, of one class or of several.

    Attributes:
        scores: (N,) descending.
        hit: (N,) found an object; the others are false positives.
        image: (N,) index of the image.
        objects: (I,) objects to find in each image.
        megapixels: (I,) NaN if unknown.
    """

    scores: NDArray[np.float64]
    hit: NDArray[np.bool_]
    image: NDArray[np.int64]
    objects: NDArray[np.int64]
    megapixels: NDArray[np.float64]

    def of_images(self, kept: NDArray[np.bool_]) -> Verdicts:
        """Return those of the images that a mask (I,) selects; the others have no objects and no pixels."""
        some = kept[self.image]
        return Verdicts(
            self.scores[some],
            self.hit[some],
            self.image[some],
            np.where(kept, self.objects, 0),
            np.where(kept, self.megapixels, 0),
        )


def operating_points(
    truth: GroundTruth, matcher: PrecisionMatcher, wanted: Wanted, progress: Progress | None = None
) -> OperatingPoints:
    """Choose a threshold for each class with objects, and one for all of them together.

    Args:
        progress: called with 1 after each class.

    Raises:
        ValueError: false alarms per megapixel are wanted, and an image has no size.
    """
    if wanted.kind == "false-alarms" and np.isnan(truth.pixels).any():
        first = int(np.flatnonzero(np.isnan(truth.pixels))[0])
        name = truth.file_names[first] or f"id {truth.image_ids[first]}"
        raise ValueError(
            f"--operating-point {wanted.option} needs the size of every image, and {name} has no 'width' and 'height' "
            "in the annotations; add them, or choose by precision, recall or f1"
        )
    counts = count_objects(truth, matcher.rules)
    known = [c for c, (_, objects, _) in enumerate(counts) if objects]
    classes = []
    for c in known:
        name, objects, images = counts[c]
        classes.append(_point(name, objects, images, class_verdicts(truth, matcher, [c]), wanted))
        if progress is not None:
            progress(1)
    images = len(np.unique(truth.image[~matcher.ignored(SIZE) & np.isin(truth.category, known)]))
    together = _point(
        "all classes", sum(counts[c][1] for c in known), images, class_verdicts(truth, matcher, known), wanted
    )
    scores = {c: each.score for c, each in zip(known, classes, strict=True) if each.score is not None}
    return OperatingPoints(
        wanted,
        tuple(classes),
        tuple(name for name, objects, _ in counts if not objects),
        together,
        {name: _in_range(truth, matcher, name, scores) for name in matcher.rules.areas},
        len(truth.image_ids),
    )


def class_verdicts(truth: GroundTruth, matcher: PrecisionMatcher, classes: Sequence[int], size: str = SIZE) -> Verdicts:
    """Return the detections of some classes that count in a size range, at IoU 0.5."""
    outcome, results = matcher.outcome(size, F1_IOU), matcher.results
    kept = np.flatnonzero(~outcome.ignored & np.isin(results.category, classes))
    kept = kept[np.argsort(-results.scores[kept], kind="stable")]
    counted = ~matcher.ignored(size) & np.isin(truth.category, classes)
    return Verdicts(
        results.scores[kept],
        outcome.hit[kept],
        results.image[kept],
        np.bincount(truth.image[counted], minlength=len(truth.image_ids)),
        truth.pixels / 1e6,
    )


def choose_threshold(verdicts: Verdicts, wanted: Wanted, weights: Weights) -> float | None:
    """Return the score of the last detection to keep; None if the wanted value is not reached.

    For precision and false alarms, that is the lowest such score, which keeps the most detections; for recall the
    highest, which keeps the fewest; for F1 the highest of the best ones. A threshold that finds no object reaches
    nothing.
    """
    rate, scores = _rates(verdicts, wanted, weights)
    if wanted.value is None:
        good = np.flatnonzero(rate >= max(float(rate.max(initial=0)), ROUNDING) - ROUNDING)
    elif wanted.kind == "false-alarms":
        good = np.flatnonzero(rate <= wanted.value + ROUNDING)
    else:
        good = np.flatnonzero(rate >= wanted.value - ROUNDING)
    if not len(good) or (wanted.value is None and not rate.max() > 0):
        return None
    fewest = wanted.kind in ("f1", "recall")
    return float(scores[good[0 if fewest else -1]])


def measure(verdicts: Verdicts, score: float) -> Measured:
    """Return what a threshold achieves on all images."""
    hits, false, objects, megapixels = (float(each.sum()) for each in _by_image(verdicts, score))
    return Measured(
        *(None if np.isnan(value) else float(value) for value in _measures(hits, false, objects, megapixels))
    )


def _rates(verdicts: Verdicts, wanted: Wanted, weights: Weights) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (T,) the wanted rate at each distinct score of the images that count, and these scores, descending.

    A threshold that finds no object has the worst rate.
    """
    weight = weights[verdicts.image]
    some = weight > 0
    scores, weight = verdicts.scores[some], weight[some]
    last = np.flatnonzero(np.r_[scores[1:] != scores[:-1], True][: len(scores)])  # a threshold cannot split a tie
    hits = np.cumsum(weight * verdicts.hit[some])[last].astype(np.float64)
    false = np.cumsum(weight)[last] - hits
    with np.errstate(invalid="ignore", divide="ignore"):
        if wanted.kind == "precision":
            rate, worst = hits / (hits + false), 0.0
        elif wanted.kind == "recall":
            rate, worst = hits / (weights @ verdicts.objects), 0.0
        elif wanted.kind == "f1":
            rate, worst = 2 * hits / (hits + false + weights @ verdicts.objects), 0.0
        else:
            rate, worst = false / (weights @ verdicts.megapixels), np.inf
    return np.where(hits > 0, rate, worst), scores[last]


def _point(name: str, objects: int, images: int, verdicts: Verdicts, wanted: Wanted) -> Point:
    everything = np.ones(len(verdicts.objects), np.int64)
    chosen = choose_threshold(verdicts, wanted, everything)
    if chosen is None:
        return Point(name, objects, images, best=_best(verdicts, wanted, everything))
    score = short_threshold(verdicts.scores, chosen)
    score_interval, intervals = _bootstrap(verdicts, wanted, score)
    return Point(
        name,
        objects,
        images,
        score,
        measure(verdicts, score),
        score_interval,
        intervals,
        _held_out(verdicts, wanted),
    )


def _best(verdicts: Verdicts, wanted: Wanted, weights: Weights) -> tuple[float, float] | None:
    """Return the rate closest to the wanted one, and the highest threshold that reaches it."""
    rate, scores = _rates(verdicts, wanted, weights)
    if not verdicts.hit.any():
        return None
    best = int(rate.argmin() if wanted.kind == "false-alarms" else rate.argmax())
    return float(rate[best]), short_threshold(verdicts.scores, float(scores[best]))


def _bootstrap(
    verdicts: Verdicts, wanted: Wanted, score: float
) -> tuple[Interval | None, tuple[tuple[float, float] | None, ...]]:
    """Return the confidence intervals of the threshold, and of what `score` achieves; None for a single image."""
    images = len(verdicts.objects)
    if images < 2:
        return None, (None,) * len(MEASURES)
    unreached = {"recall": -np.inf, "f1": np.nan}.get(wanted.kind, np.inf)
    by_image = _by_image(verdicts, score)
    generator = np.random.default_rng(SEED)
    thresholds = np.full(RESAMPLES, np.nan)
    sums = np.empty((RESAMPLES, len(by_image)))
    for n in range(RESAMPLES):
        weights = np.bincount(generator.integers(images, size=images), minlength=images)
        sums[n] = [weights @ each for each in by_image]
        if n < FEWEST_RESAMPLES or n * len(verdicts.scores) < MOST_RESAMPLED:
            chosen = choose_threshold(verdicts, wanted, weights)
            thresholds[n] = unreached if chosen is None else chosen
    low, high = _percentiles(thresholds) or (np.inf, np.inf)
    bounds = tuple(round(each, 4) if np.isfinite(each) else None for each in (low, high))
    hits, false, objects, megapixels = (float(each.sum()) for each in by_image)
    precision, recall, f1, alarms = (_percentiles(values) for values in _measures(*sums.T))
    return (bounds[0], bounds[1]), (
        _wider(precision, wilson(hits, hits + false)),
        _wider(recall, wilson(hits, objects)),
        f1,
        None if alarms is None else _wider(alarms, tuple(each / megapixels for each in byar(false))),
    )


def wilson(successes: float, trials: float) -> tuple[float, float]:
    """Return Wilson's score interval of a share.

    >>> [round(each, 3) for each in wilson(10, 10)]
    [0.722, 1.0]
    """
    share, spread = successes / trials, Z**2 / trials
    center = share + spread / 2
    reach = math.sqrt(share * (1 - share) * spread + spread**2 / 4)
    low, high = ((center + sign * reach) / (1 + spread) for sign in (-1, 1))
    return max(low, 0.0), min(high, 1.0)


def byar(events: float) -> tuple[float, float]:
    """Return Byar's interval of the expected number of events of a Poisson process.

    >>> [round(each, 2) for each in byar(10)]
    [4.79, 18.39]
    """
    low = 0.0 if events == 0 else events * (1 - 1 / (9 * events) - Z / (3 * math.sqrt(events))) ** 3
    more = events + 1
    return max(low, 0.0), more * (1 - 1 / (9 * more) + Z / (3 * math.sqrt(more))) ** 3


def _wider(one: tuple[float, float] | None, other: tuple[float, ...]) -> tuple[float, float]:
    """Return the interval around both."""
    low, high = other
    return (low, high) if one is None else (min(one[0], low), max(one[1], high))


def _percentiles(values: NDArray[np.float64]) -> tuple[float, float] | None:
    """Return the bounds of the confidence interval, each one of the values; None if all are NaN."""
    known = np.sort(values[~np.isnan(values)])
    if not len(known):
        return None
    tail = (1 - LEVEL) / 2 * (len(known) - 1)
    return float(known[int(tail)]), float(known[-1 - int(tail)])


def _held_out(verdicts: Verdicts, wanted: Wanted) -> Measured | None:
    """Return what thresholds chosen without a fold achieve on that fold, over all folds; None for a single image.

    Where the wanted value is not reached without the fold, nothing of it is kept, or everything for a wanted recall.
    """
    images = len(verdicts.objects)
    if images < 2:
        return None
    folds = folds_of(images)
    totals = np.zeros(4)
    for fold in range(folds.max() + 1):
        chosen = choose_threshold(verdicts, wanted, (folds != fold).astype(np.int64))
        if chosen is None:
            chosen = -np.inf if wanted.kind == "recall" else np.inf
        totals += [float(each.sum()) for each in _by_image(verdicts.of_images(folds == fold), chosen)]
    return Measured(*(None if np.isnan(value) else float(value) for value in _measures(*totals)))


def folds_of(images: int) -> NDArray[np.int64]:
    """Return (I,) the fold of each image: FOLDS folds of equal size in random order, or as many as there are images."""
    return np.random.default_rng(SEED).permutation(images) % min(FOLDS, images)


def _by_image(verdicts: Verdicts, score: float) -> tuple[NDArray[Any], ...]:
    """Return hits, false positives, objects and megapixels of each image (I,) at a threshold."""
    images = len(verdicts.objects)
    kept = verdicts.scores >= score
    hits = np.bincount(verdicts.image[kept & verdicts.hit], minlength=images)
    false = np.bincount(verdicts.image[kept & ~verdicts.hit], minlength=images)
    return hits, false, verdicts.objects, verdicts.megapixels


def _measures(hits: Any, false: Any, objects: Any, megapixels: Any) -> tuple[NDArray[np.float64], ...]:
    """Return MEASURES of counts, element by element; NaN where one is not defined."""
    hits, false, objects, megapixels = (np.asarray(each, np.float64) for each in (hits, false, objects, megapixels))
    with np.errstate(invalid="ignore", divide="ignore"):
        f1 = np.where(objects > 0, 2 * hits / (hits + false + objects), np.nan)
        recall = np.where(objects > 0, hits / objects, np.nan)
        return hits / (hits + false), recall, f1, np.where(megapixels > 0, false / megapixels, np.nan)


def _in_range(
    truth: GroundTruth, matcher: PrecisionMatcher, name: str, scores: dict[int, float]
) -> tuple[int, Measured]:
    """Return the number of objects of a size range, and what the thresholds of the classes achieve there."""
    hits = false = objects = 0
    for c, score in scores.items():
        by_image = _by_image(class_verdicts(truth, matcher, [c], name), score)
        hits, false, objects = hits + by_image[0].sum(), false + by_image[1].sum(), objects + by_image[2].sum()
    megapixels = truth.pixels.sum() / 1e6 if name == SIZE else np.nan
    values = _measures(hits, false, objects, megapixels)
    return int(objects), Measured(*(None if np.isnan(value) else float(value) for value in values))
