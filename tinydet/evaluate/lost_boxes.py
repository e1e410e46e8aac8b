"""Boxes that a model found but had no slot for: how much they could change the scores."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tinydet.evaluate.classes import F1_IOU
from tinydet.evaluate.score import Scores


def likely_gain(scores: Scores, cuts: Mapping[int, float]) -> float | None:
    """Return how much AP50 over all sizes would rise, at most, if no box had been lost.

    The lost boxes are taken to be no more precise than the boxes of their class from the cut on. Then the area below
    the precision-recall curve grows by that precision times the recall of the objects not found above the cut. An image
    that already has as many better detections of a class as the protocol counts gains nothing.

    Args:
        cuts: for each image with lost boxes, the score from which on none was lost.

    Returns:
        A fraction; 0 without lost boxes, None if the protocol does not measure AP.
    """
    matcher, truth, table = scores.matcher, scores.truth, scores.classes
    if matcher is None or table is None:
        return None
    outcome, results, images = matcher.outcome("all", F1_IOU), matcher.results, len(truth.image_ids)
    cut = np.array([cuts.get(id, -np.inf) for id in truth.image_ids])
    found = np.full(len(truth.image), -np.inf)
    np.maximum.at(found, outcome.target[outcome.hit], results.scores[outcome.hit])
    better = results.scores >= cut[results.image]
    count = np.bincount(results.group(images)[better], minlength=images * len(truth.category_ids))
    open_objects = ~matcher.ignored("all") & (found < cut[truth.image])
    open_objects &= count[truth.group] < matcher.rules.max_detections
    gains = []
    for c, each in enumerate(table.classes):
        if each.objects:
            hits, false = each.curve.counts(cut[truth.image[open_objects & (truth.category == c)]])
            gains.append(float((hits / np.maximum(hits + false, 1)).sum()) / each.objects)
    return float(np.mean(gains)) if gains else 0.0
