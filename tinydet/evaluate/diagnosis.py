"""Error analysis by object size: missed objects, and false positives by cause."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinydet.evaluate.score import Scores
from tinydet.evaluate.tables import Results
from tinydet.geometry.overlaps import find_overlaps

KINDS = ("found", "missed", "duplicate", "localization", "background")
MIN_LOCALIZATION_IOU = 0.1  # from this IoU with an object on, a false positive is badly localized, not background


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """The errors at one IoU threshold, among detections above one score.

    Attributes:
        iou: IoU threshold.
        score: the threshold with the best mean F1 of the classes, `ClassTable.score`; lower detections are left out. 0
            if no detection finds an object.
        by_size: number of each of KINDS per size range. A false positive is a "duplicate" if it overlaps an object by
            `iou` or more, "localization" from MIN_LOCALIZATION_IOU, and "background" otherwise.
        results: the detections analyzed, parallel to `kind`.
        kind: (N,) one of KINDS or "ignored", in the size range `all`.
        missed: (M,) annotations not found, in the size range `all`.
        found: (M,) annotations found, in the size range `all`.
    """

    iou: float
    score: float
    by_size: dict[str, dict[str, int]]
    results: Results
    kind: NDArray[np.str_]
    missed: NDArray[np.bool_]
    found: NDArray[np.bool_]

    def errors_by_image(self, truth_image: NDArray[np.int64], images: int) -> NDArray[np.int64]:
        """Count missed objects plus false positives per image.

        Args:
            truth_image: (M,) image index of each annotation, `GroundTruth.image`.
            images: number of images.

        Returns:
            (images,) counts.
        """
        false = np.isin(self.kind, KINDS[2:])
        missed = np.bincount(truth_image[self.missed], minlength=images)
        return missed + np.bincount(self.results.image[false], minlength=images)


def diagnose(scores: Scores, iou: float = 0.5) -> Diagnosis:
    """Classify the errors of scored detections, with the matching of their protocol.

    Raises:
        ValueError: the protocol does not measure average precision.
    """
    matcher, table = scores.matcher, scores.classes
    if scores.protocol.precision is None or matcher is None or table is None:
        raise ValueError(
            f"the protocol {scores.protocol.name} has no matching by size; errors need one that measures AP"
        )
    truth = scores.truth
    results = matcher.results
    pairs = find_overlaps(results.boxes, results.group(len(truth.image_ids)), truth.boxes, truth.group)
    is_object = ~matcher.flagged[pairs.target]
    best_iou = np.zeros(len(results.scores))
    np.maximum.at(best_iou, pairs.detection[is_object], pairs.iou[is_object])
    causes = np.select([best_iou >= iou, best_iou >= MIN_LOCALIZATION_IOU], ["duplicate", "localization"], "background")

    score = table.score or 0.0
    above = results.scores >= score
    by_size = {}
    kinds = {}
    for name in scores.protocol.precision.areas:
        outcome = matcher.outcome(name, iou)
        kinds[name] = np.where(outcome.hit, "found", np.where(outcome.ignored, "ignored", causes))
        counts = {kind: int((kinds[name][above] == kind).sum()) for kind in KINDS}
        counts["missed"] = int((~matcher.ignored(name)).sum()) - counts["found"]
        by_size[name] = counts
    outcome = matcher.outcome("all", iou)
    found = np.zeros(len(truth.area), bool)
    found[outcome.target[outcome.hit & above]] = True
    missed = ~matcher.ignored("all") & ~found
    return Diagnosis(iou, score, by_size, results.where(above), kinds["all"][above], missed, found)
