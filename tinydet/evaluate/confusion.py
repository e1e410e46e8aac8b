"""Confusion matrix of a detector: which class is detected as which, with a row and a column for the background."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinydet.evaluate.average_precision import PrecisionMatcher
from tinydet.evaluate.tables import GroundTruth
from tinydet.geometry.overlaps import find_overlaps

BACKGROUND = "background"
CONFUSION_IOU = 0.5


@dataclass(frozen=True, eq=False)
class ConfusionMatrix:
    """Counts of pairs of an object and a detection.

    A pair has an IoU of at least `iou`. Pairs of one class are formed first, then those of different classes, each in
    order of falling IoU; an object and a detection belong to one pair at most.

    Attributes:
        names: the classes, then the background.
        counts: (C + 1, C + 1); row: class of the object, column: class of the detection. The last column has the
            objects without a detection, the last row the detections without an object.
        score: detections with a lower score are left out.
        iou: the lowest IoU of a pair.
    """

    names: tuple[str, ...]
    counts: NDArray[np.int64]
    score: float
    iou: float

    def to_json(self) -> dict[str, Any]:
        """Return the counts with what they mean: `matrix[i][j]` objects of class i are detected as class j."""
        return {"score": self.score, "iou": self.iou, "classes": list(self.names), "matrix": self.counts.tolist()}


def confusion_matrix(
    truth: GroundTruth, matcher: PrecisionMatcher, score: float, iou: float = CONFUSION_IOU
) -> ConfusionMatrix:
    """Count which class is detected as which.

    Ignored annotations, and the detections that the protocol ignores in the size range `all`, take no part.

    Args:
        score: lower detections are left out.
        iou: the lowest IoU of an object and its detection.
    """
    results, classes = matcher.results, len(truth.category_ids)
    kept = np.flatnonzero((results.scores >= score) & ~matcher.outcome("all", iou).ignored)
    kept = kept[np.argsort(results.image[kept], kind="stable")]
    objects = np.flatnonzero(~matcher.ignored("all"))
    objects = objects[np.argsort(truth.image[objects], kind="stable")]
    found_class, true_class = results.category[kept], truth.category[objects]
    pairs = find_overlaps(results.boxes[kept], results.image[kept], truth.boxes[objects], truth.image[objects])
    near = np.flatnonzero(pairs.iou >= iou)
    detection, target = pairs.detection[near], pairs.target[near]
    other_class = found_class[detection] != true_class[target]
    order = np.lexsort((target, detection, -pairs.iou[near], other_class))
    partner = np.full(len(kept), -1)
    taken = np.zeros(len(objects), bool)
    for d, t in zip(detection[order].tolist(), target[order].tolist(), strict=True):
        if partner[d] < 0 and not taken[t]:
            partner[d], taken[t] = t, True
    counts = np.zeros((classes + 1, classes + 1), np.int64)
    rows = np.where(partner >= 0, np.r_[true_class, classes][partner], classes)  # -1 reads the last entry
    np.add.at(counts, (rows, found_class), 1)
    np.add.at(counts[:, classes], true_class[~taken], 1)
    names = (name or str(id) for name, id in zip(truth.category_names, truth.category_ids, strict=True))
    return ConfusionMatrix((*names, BACKGROUND), counts, score, iou)
