"""What goes wrong, by object size: missed objects, and false positives by their cause."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinydet.evaluate.average_precision import PrecisionMatcher
from tinydet.evaluate.score import Scores
from tinydet.evaluate.tables import Results
from tinydet.geometry.overlaps import find_overlaps

KINDS = ("found", "missed", "duplicate", "localisation", "background")
TOUCHING = 0.1  # IoU from which a false positive means some object, only badly


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """The errors at one IoU threshold and above one score.

    Attributes:
        iou: threshold.
        score: the one that maximises F1 over all sizes; detections below it are not looked at.
        by_size: counts of KINDS for each size range. A false positive duplicates an object that it overlaps by `iou`;
            from an IoU of TOUCHING it is badly localised; else it is background.
        results: the detections looked at, indices of `kind`.
        kind: (N,) of KINDS, or "ignored", in the range `all`.
        missed: (M,) annotations not found, in the range `all`.
        found: (M,) annotations found, in the range `all`.
    """

    iou: float
    score: float
    by_size: dict[str, dict[str, int]]
    results: Results
    kind: NDArray[np.str_]
    missed: NDArray[np.bool_]
    found: NDArray[np.bool_]

    def errors_by_image(self, truth_image: NDArray[np.int64], images: int) -> NDArray[np.int64]:
        """(images,) missed objects and false positives; `truth_image` is `GroundTruth.image`."""
        false = np.isin(self.kind, KINDS[2:])
        missed = np.bincount(truth_image[self.missed], minlength=images)
        return missed + np.bincount(self.results.image[false], minlength=images)


def diagnose(scores: Scores, iou: float = 0.5) -> Diagnosis:
    """Sort the errors of scored detections, by the matching of their protocol.

    Raises:
        ValueError: the protocol does not measure average precision.
    """
    if scores.protocol.precision is None:
        raise ValueError(
            f"the protocol {scores.protocol.name} has no matching by size; errors need one that measures AP"
        )
    truth = scores.truth
    matcher = PrecisionMatcher(truth, scores.results, scores.protocol.precision)
    results = matcher.results
    pairs = find_overlaps(results.boxes, results.group(len(truth.image_ids)), truth.boxes, truth.group)
    real = ~matcher.flagged[pairs.target]
    closest = np.zeros(len(results.scores))
    np.maximum.at(closest, pairs.detection[real], pairs.iou[real])
    causes = np.select([closest >= iou, closest >= TOUCHING], ["duplicate", "localisation"], "background")

    score = _best_f1(matcher, iou)
    strong = results.scores >= score
    by_size = {}
    kinds = {}
    for name in scores.protocol.precision.areas:
        outcome = matcher.outcome(name, iou)
        kinds[name] = np.where(outcome.hit, "found", np.where(outcome.ignored, "ignored", causes))
        seen = kinds[name][strong]
        counts = {kind: int((seen == kind).sum()) for kind in KINDS}
        counts["missed"] = int((~matcher.ignored(name)).sum()) - counts["found"]
        by_size[name] = counts
    hit = matcher.outcome("all", iou)
    found = np.zeros(len(truth.area), bool)
    found[hit.target[hit.hit & strong]] = True
    missed = ~matcher.ignored("all") & ~found
    return Diagnosis(iou, score, by_size, results.where(strong), kinds["all"][strong], missed, found)


def format_errors(diagnosis: Diagnosis) -> str:
    """A table: one row for each of KINDS, one column for each size."""
    names = list(diagnosis.by_size)
    width = max(7, *map(len, names))
    lines = [f"errors at IoU {diagnosis.iou:.2f}, score >= {diagnosis.score:.3f} (the best F1 over all sizes)"]
    lines.append(" " * 12 + "".join(f"  {name:>{width}}" for name in names))
    for kind in KINDS:
        lines.append(f"{kind:12}" + "".join(f"  {diagnosis.by_size[name][kind]:>{width}}" for name in names))
    return "\n".join(lines)


def _best_f1(matcher: PrecisionMatcher, iou: float) -> float:
    """The score from which on the detections have the best F1, over all sizes and categories; 0 without detections."""
    outcome = matcher.outcome("all", iou)
    order = np.argsort(-matcher.results.scores, kind="stable")
    hits = np.cumsum(outcome.hit[order])
    false = np.cumsum(~outcome.hit[order] & ~outcome.ignored[order])
    scores = matcher.results.scores[order]
    last = np.flatnonzero(np.r_[scores[1:] != scores[:-1], True][: len(scores)])  # of each tie: all or none
    if not len(last):
        return 0.0
    objects = int((~matcher.ignored("all")).sum())
    f1 = 2 * hits[last] / np.maximum(objects + hits[last] + false[last], 1)
    return float(scores[last[np.argmax(f1)]])
