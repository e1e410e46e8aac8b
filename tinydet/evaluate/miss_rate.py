"""Log-average miss rate against false positives per image, of the CityPersons evaluator as TinyPerson uses it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinydet.evaluate.average_precision import FPPI_GRID, recall_at_fppi
from tinydet.evaluate.greedy import match_greedily
from tinydet.evaluate.protocols import MissRateRules, Setup
from tinydet.evaluate.tables import GroundTruth, Results
from tinydet.geometry.boxes import iod_from_iou
from tinydet.geometry.overlaps import find_overlaps

# Nine points from 0.01 to 1, each a hair above its nominal value, so that reaching it counts.
POINTS = np.exp(np.arange(np.log(0.01), np.log(1.0) + 1e-10, np.log(1.0 / 0.01) / 8))
MARGIN = 1.25  # detections up to this factor outside the size range take part


@dataclass(frozen=True, eq=False)
class MissRateResult:
    """The miss rate of one setup and IoU threshold.

    Attributes:
        recall: (C, 9) at POINTS; -1 for a category without objects in the setup.
        recall_by_fppi: (C, 101) at FPPI_GRID; -1 as above.
        objects, hits, false, ignored: counts over all categories.
        images: how many the false positives are spread over.
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
        """Geometric mean of the miss rates at all points and categories (0 where one is 0); -1 without objects."""
        known = self.recall[self.recall > -1]
        if not len(known):
            return -1.0
        with np.errstate(divide="ignore"):
            return float(np.exp(np.mean(np.log(1 - known))))


def miss_rate(truth: GroundTruth, results: Results, rules: MissRateRules) -> dict[str, dict[float, MissRateResult]]:
    """Results by setup and IoU threshold."""
    results = results.best(rules.max_detections)
    by_score = results.by_score()
    pairs = find_overlaps(results.boxes, results.group(len(truth.image_ids)), truth.boxes, truth.group)
    area = results.boxes[:, 2] * results.boxes[:, 3]
    with np.errstate(invalid="ignore"):  # a box with one negative side has no size, and takes part nowhere
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
            again = iod_from_iou(overlap, truth.area[target], area[detection])
            forgiven[detection[ignored[target] & (again > 0.5)]] = True
        # Objects before ignored ones, then the largest overlap, of equal ones the later annotation.
        order = np.lexsort((-target, -overlap, ignored[target], detection))
        detection, target, overlap = detection[order], target[order], overlap[order]
        table[name] = {}
        for iou in rules.ious:
            near = overlap >= min(iou, 1 - 1e-10)
            matched = match_greedily(detection[near], target[near], ignored, len(present))
            real = matched >= 0
            dropped = ~real & forgiven
            dropped[real] = ignored[matched[real]]
            hit = real & ~dropped
            if not rules.id_zero_matches:
                hit[real] &= ~truth.id_zero[matched[real]]
            table[name][iou] = _accumulate(truth, results, rules, by_score, ignored, present, hit, dropped)
    return table


def _ignored(truth: GroundTruth, setup: Setup, rules: MissRateRules) -> NDArray[np.bool_]:
    """(M,) annotations that are not to be found; `iscrowd` plays no part here."""
    size = truth.height if rules.by_height else truth.size
    visible = truth.visible_citypersons if rules.reads_vis_bbox else truth.visible
    (low, high), (least, most) = setup.size, setup.visible
    ignored: NDArray[np.bool_] = truth.ignore | (size < low) | (size > high)
    ignored = ignored | (visible < least) | (visible > most)
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
        given = hit[order], false[order], int(objects[c]), images
        recall[c] = recall_at_fppi(*given, POINTS)
        by_fppi[c] = recall_at_fppi(*given, FPPI_GRID)
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
