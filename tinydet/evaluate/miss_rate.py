"""Log-average miss rate over false positives per image, from the CityPersons evaluator as TinyPerson uses it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinydet.evaluate.average_precision import FPPI_GRID, recall_at_fppi
from tinydet.evaluate.matching import match_greedily
from tinydet.evaluate.protocols import MissRateRules, Setup
from tinydet.evaluate.tables import GroundTruth, Results
from tinydet.geometry.boxes import iod_from_iou
from tinydet.geometry.overlaps import find_overlaps

# Nine points from 0.01 to 1. Computed as in the evaluator, each lies an ulp or more above its nominal value, so that a
# rate equal to the nominal value still counts.
POINTS = np.exp(np.arange(np.log(0.01), np.log(1.0) + 1e-10, np.log(1.0 / 0.01) / 8))
MARGIN = 1.25  # detections take part up to this factor outside the size range


@dataclass(frozen=True, eq=False)
class MissRateResult:
    """The miss rate of one setup and IoU threshold.

    Attributes:
        recall: (C, 9) recall at POINTS; -1 for a category without objects in the setup.
        recall_by_fppi: (C, 101) recall at FPPI_GRID; -1 as above.
        objects, hits, false, ignored: counts over all categories.
        images: number of images that the false positives are divided by.
    """

    recall: NDArray[np.float64]
    recall_by_fppi: NDArray[np.float64]
    objects: int
    hits: int
    false: int
    ignored: int
    images: int

    @property
    def mr(self) -> float:
        """Geometric mean of the miss rates at all points and categories, 0 if any is 0; -1 without objects."""
        known = self.recall[self.recall > -1]
        if not len(known):
            return -1.0
        with np.errstate(divide="ignore"):
            return float(np.exp(np.mean(np.log(1 - known))))


def miss_rate(truth: GroundTruth, results: Results, rules: MissRateRules) -> dict[str, dict[float, MissRateResult]]:
    """Return the result for each setup and IoU threshold."""
    results = results.best(rules.max_detections)
    by_score = results.by_score()
    pairs = find_overlaps(results.boxes, results.group(len(truth.image_ids)), truth.boxes, truth.group)
    area = results.boxes[:, 2] * results.boxes[:, 3]
    with np.errstate(invalid="ignore"):  # a box with one negative side has no size and is in no range
        size = results.boxes[:, 3] if rules.by_height else np.sqrt(area)
    table: dict[str, dict[float, MissRateResult]] = {}
    for name, setup in rules.setups.items():
        ignored = _ignored(truth, setup, rules)
        low, high = setup.size
        present = (size >= low / MARGIN) & (size < high * MARGIN)
        kept = np.flatnonzero(present[pairs.detection])
        detection, target = pairs.detection[kept], pairs.target[kept]
        overlap = np.where(ignored[target], pairs.iod[kept], pairs.iou[kept])
        forgiven = np.zeros(len(present), bool)
        if rules.iod_twice:
            twice = iod_from_iou(overlap, truth.area[target], area[detection])
            forgiven[detection[ignored[target] & (twice > 0.5)]] = True
        # In order of preference: objects before ignored annotations, the largest overlap first; of equal ones, the
        # later annotation.
        order = np.lexsort((-target, -overlap, ignored[target], detection))
        detection, target, overlap = detection[order], target[order], overlap[order]
        table[name] = {}
        for iou in rules.ious:
            near = overlap >= min(iou, 1 - 1e-10)
            matched = match_greedily(detection[near], target[near], ignored, len(present))
            has_match = matched >= 0
            dropped = ~has_match & forgiven
            dropped[has_match] = ignored[matched[has_match]]
            hit = has_match & ~dropped
            if not rules.id_zero_matches:
                hit[has_match] &= ~truth.id_zero[matched[has_match]]
            table[name][iou] = _accumulate(truth, results, rules, by_score, ignored, present, hit, dropped)
    return table


def _ignored(truth: GroundTruth, setup: Setup, rules: MissRateRules) -> NDArray[np.bool_]:
    """Return (M,) which annotations are ignored; `iscrowd` plays no part here."""
    size = truth.height if rules.by_height else truth.size
    visible = truth.visible_citypersons if rules.reads_vis_bbox else truth.visible
    (low, high), (min_visible, max_visible) = setup.size, setup.visible
    ignored: NDArray[np.bool_] = truth.ignore | (size < low) | (size > high)
    ignored = ignored | (visible < min_visible) | (visible > max_visible)
    return ignored | truth.uncertain if rules.ignore_uncertain else ignored


def _accumulate(
    truth: GroundTruth,
    results: Results,
    rules: MissRateRules,
    by_score: NDArray[np.int64],
    ignored: NDArray[np.bool_],
    present: NDArray[np.bool_],
    hit: NDArray[np.bool_],
    dropped: NDArray[np.bool_],
) -> MissRateResult:
    images = len(truth.image_ids)
    categories = np.arange(len(truth.category_ids))
    objects = np.bincount(truth.category[~ignored], minlength=len(categories))
    bounds: list[int] = np.searchsorted(results.category, np.arange(len(categories) + 1)).tolist()
    false = present & ~hit & ~dropped
    recall = np.full((len(categories), len(POINTS)), -1.0)
    by_fppi = np.full((len(categories), len(FPPI_GRID)), -1.0)
    for c in np.flatnonzero(objects).tolist():
        order = by_score[bounds[c] : bounds[c + 1]]
        order = order[present[order]]
        curve = hit[order], false[order], int(objects[c]), images
        recall[c] = recall_at_fppi(*curve, POINTS)
        by_fppi[c] = recall_at_fppi(*curve, FPPI_GRID)
        if rules.wrap_first_point and len(order):
            recall[c, false[order[0]] / images > POINTS] = hit[order].sum() / objects[c]
    return MissRateResult(
        recall,
        by_fppi,
        int(objects.sum()),
        int((hit & present).sum()),
        int(false.sum()),
        int(dropped.sum()),
        images,
    )
