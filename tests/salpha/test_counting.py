"""The closed form against all anchors in float64, and the laws of the counts."""

from __future__ import annotations

import numpy as np
import pytest
from designs import DESIGNS, RETINANET, released_design, torchvision_design

from tinydet.geometry.anchors import AnchorDesign
from tinydet.geometry.boxes import iou_of_pairs
from tinydet.salpha.counting import best_ious, count_levels
from tinydet.salpha.factors import estimate_alpha
from tinydet.salpha.inputs import check_inputs
from tinydet.salpha.parity import count_distinct_anchors

TESTED_DESIGNS = {
    **DESIGNS,
    "torchvision retinanet": torchvision_design("retinanet"),
    "released faster_rcnn": released_design("faster_rcnn"),
}


@pytest.mark.parametrize("design", TESTED_DESIGNS.values(), ids=TESTED_DESIGNS.keys())
def test_one_candidate_per_shape_finds_the_highest_iou_of_each_level(design: AnchorDesign) -> None:
    rng = np.random.default_rng(0)
    centers, sides = rng.uniform(-20, 220, (100, 2)), np.exp(rng.uniform(0, 5, (100, 2)))
    boxes = np.concatenate([centers - sides / 2, centers + sides / 2], axis=1).astype(np.float32).astype(np.float64)
    last_pixel = np.array([0, 0, 1, 1]) if design.inclusive else 0
    for width, height in ((200, 200), (130, 77), (64, 9)):
        found = best_ious(check_inputs(boxes, (width, height), None, design), design)
        for level, anchors in enumerate(design.grid_anchors(height, width)):
            if len(anchors):
                dense = iou_of_pairs(boxes[:, None] + last_pixel, anchors[None].astype(np.float64) + last_pixel)
                np.testing.assert_allclose(found[level], dense.max(axis=1), rtol=1e-4, atol=1e-6)
            else:
                assert (found[level] == -1).all()


def test_counts_do_not_depend_on_the_order_of_boxes_or_on_other_images() -> None:
    rng = np.random.default_rng(4)
    sizes = rng.integers(64, 900, (40, 2))
    index = rng.integers(0, 40, 10_000)  # more than one chunk
    centers, sides = rng.uniform(0, 1, (10_000, 2)) * sizes[index], np.exp(rng.normal(2.5, 0.9, (10_000, 2)))
    boxes = np.concatenate([centers - sides / 2, centers + sides / 2], axis=1)
    order = rng.permutation(10_000)
    for count in (count_levels, count_distinct_anchors):
        together = count(boxes, sizes, RETINANET, image_index=index)
        shuffled = count(boxes[order], sizes, RETINANET, image_index=index[order])
        alone = [count(boxes[index == n], sizes[n], RETINANET) for n in range(40)]
        assert together == shuffled == tuple(np.sum(alone, axis=0))


def test_two_objects_with_one_best_anchor_both_count_and_share_one_anchor() -> None:
    boxes = [(10, 10, 18, 18), (10, 10, 18, 18), (40, 40, 140, 140)]
    assert count_levels(boxes, (256, 256), RETINANET) == (2, 0, 0, 1, 0)
    assert count_distinct_anchors(boxes, (256, 256), RETINANET) == (1, 0, 0, 1, 0)
    two = [(256, 256)] * 2
    assert count_distinct_anchors(boxes, two, RETINANET, image_index=[0, 1, 1]) == (2, 0, 0, 1, 0)


def test_no_boxes_give_zero_counts() -> None:
    for count in (count_levels, count_distinct_anchors):
        assert count([], (64, 64), RETINANET) == (0, 0, 0, 0, 0)
        assert count(np.empty((0, 4)), np.empty((0, 2)), RETINANET, image_index=[]) == (0,) * 5


def test_invalid_arguments_are_named() -> None:
    box = [(0, 0, 8, 8)]
    with pytest.raises(ValueError, match=r"\(M, 4\) xyxy, got an array of shape \(1, 3\)"):
        count_levels([(0, 0, 8)], (64, 64), RETINANET)
    for bad in ([(8, 0, 0, 8)], [(0, 0, np.nan, 8)], [(0, 0, np.inf, 8)]):
        with pytest.raises(ValueError, match="finite xyxy with x2 >= x1"):
            count_levels(bad, (64, 64), RETINANET)
    with pytest.raises(ValueError, match="2 image sizes need an image_index"):
        count_levels(box, [(64, 64)] * 2, RETINANET)
    for index in ([1], [-1], [0, 0]):
        with pytest.raises(ValueError, match="give each of 1 boxes one of 1 images"):
            count_levels(box, (64, 64), RETINANET, image_index=index)
    with pytest.raises(ValueError, match="3x2 pixels has no anchor"):
        count_levels(box, (3, 2), released_design("retinanet"))


def test_alpha_decreases_with_object_size() -> None:
    rng = np.random.default_rng(6)
    sides = np.exp(rng.normal(0, 0.5, (20_000, 2)))
    centers = rng.uniform(0, 640, (20_000, 2))
    alphas = []
    for size in (6, 10, 16, 25):
        boxes = np.concatenate([centers - size * sides / 2, centers + size * sides / 2], axis=1)
        alphas.append(estimate_alpha(count_levels(boxes, (640, 640), RETINANET), (0.0, 9.0))[:2])
    assert alphas == sorted(alphas) and np.array(alphas).T.tolist() == np.sort(np.array(alphas).T).tolist()
