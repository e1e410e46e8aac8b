"""Counts of objects and of distinct anchors by another similarity than IoU; tests/geometry has the best anchors."""

from __future__ import annotations

import numpy as np
import pytest
from designs import FASTER_RCNN, RETINANET

from tinydet.geometry.ranked import ranked_anchors
from tinydet.salpha.counting import count_levels
from tinydet.salpha.inputs import check_inputs
from tinydet.salpha.parity import count_distinct_anchors


@pytest.mark.parametrize("kind", ["nwd", "rfd", "dotd"])
def test_an_object_counts_for_the_level_of_its_best_anchor_and_an_anchor_once(kind: str) -> None:
    boxes = np.array([[8.0, 8, 16, 16], [8, 8, 16, 16], [40, 40, 60, 60], [0, 0, 96, 96]])
    best = ranked_anchors(RETINANET, *check_inputs(boxes, (96, 96), None, RETINANET), 1, kind).level[:, 0]
    counts = np.bincount(best, minlength=5)
    assert count_levels(boxes, (96, 96), RETINANET, similarity=kind) == tuple(counts.tolist())
    counts[best[0]] -= 1  # the first two objects share an anchor
    assert count_distinct_anchors(boxes, (96, 96), RETINANET, similarity=kind) == tuple(counts.tolist())


def test_boxes_without_extent_are_counted() -> None:
    boxes = np.array([[5.0, 5, 5, 9], [7, 7, 7, 7], [0, 0, 9, 9]])
    for kind in ("nwd", "rfd", "dotd"):
        assert sum(count_levels(boxes, (64, 64), RETINANET, similarity=kind)) == 3


def test_images_are_counted_apart() -> None:
    rng = np.random.default_rng(2)
    sizes, index = np.array([[300, 200], [90, 400]]), rng.integers(0, 2, 200)
    sides, low = rng.uniform(3, 60, (200, 2)), rng.uniform(0, 80, (200, 2))
    boxes = np.concatenate([low, low + sides], axis=1)
    for count in (count_levels, count_distinct_anchors):
        alone = [count(boxes[index == n], sizes[n], FASTER_RCNN, similarity="nwd") for n in range(2)]
        assert count(boxes, sizes, FASTER_RCNN, image_index=index, similarity="nwd") == tuple(np.sum(alone, axis=0))
