"""The best anchor by NWD, RFD and DotD, against every anchor in float64."""

from __future__ import annotations

import numpy as np
import pytest
from designs import FASTER_RCNN, RETINANET, RETINANET_P3P7, released_design, torchvision_design

from tinydet.geometry.anchors import AnchorDesign
from tinydet.salpha.counting import count_levels
from tinydet.salpha.inputs import check_inputs
from tinydet.salpha.parity import count_distinct_anchors
from tinydet.salpha.similar import EQUAL, most_similar

TESTED = {
    "retinanet": RETINANET,
    "p3p7": RETINANET_P3P7,
    "faster_rcnn": FASTER_RCNN,
    "torchvision": torchvision_design("retinanet"),
    "released": released_design("faster_rcnn"),
}


def dense(kind: str, boxes: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """(M, 4) and (N, 4) corners -> (M, N), by the published formulas."""
    x, y, w, h = ((boxes[:, None, 0] + boxes[:, None, 2]) / 2, (boxes[:, None, 1] + boxes[:, None, 3]) / 2,
                  boxes[:, None, 2] - boxes[:, None, 0], boxes[:, None, 3] - boxes[:, None, 1])  # fmt: skip
    ax, ay, aw, ah = ((anchors[:, 0] + anchors[:, 2]) / 2, (anchors[:, 1] + anchors[:, 3]) / 2,
                      anchors[:, 2] - anchors[:, 0], anchors[:, 3] - anchors[:, 1])  # fmt: skip
    squared = (x - ax) ** 2 + (y - ay) ** 2 + 1e-6
    if kind == "dotd":
        return np.exp(-np.sqrt(squared) / 12.7)
    if kind == "nwd":
        return np.exp(-np.sqrt(squared + ((w - aw) ** 2 + (h - ah) ** 2) / 4) / 12.7)
    trace = aw**2 / w**2 + ah**2 / h**2 + 4 * ((x - ax) / w) ** 2 + 4 * ((y - ay) / h) ** 2
    return 1 / (1 + (trace - np.log(aw**2 / w**2) - np.log(ah**2 / h**2) - 2) / 2)


def all_anchors(design: AnchorDesign, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Level (N,) and corners (N, 4) of all anchors in float64; the last pixel is included in the corners."""
    corners: list[np.ndarray] = []
    levels: list[int] = []
    for level in range(len(design.levels)):
        grid = design.level_grid(height, width, level)
        rows, columns = np.mgrid[: int(grid.rows), : int(grid.columns)].reshape(2, -1)
        first = design.offset * design.strides[level]
        centers = np.stack([first + columns * grid.stride_x, first + rows * grid.stride_y], axis=1)
        half = np.array(design.shapes[level]) / 2
        corners.append(np.concatenate([centers[:, None] - half, centers[:, None] + half], axis=2).reshape(-1, 4))
        levels += [level] * len(corners[-1])
    return np.array(levels), np.concatenate(corners)


def some_boxes() -> np.ndarray:
    """Random boxes, and boxes on a grid, which tie between cells, shapes and levels; some outside of the image."""
    rng = np.random.default_rng(0)
    centers, sides = rng.uniform(-10, 100, (60, 2)), np.exp(rng.uniform(0.5, 4.5, (60, 2)))
    even = rng.integers(0, 20, (60, 2)) * 4.0
    equal = np.repeat(rng.choice([8.0, 16.0, 32.0], (60, 1)), 2, axis=1)
    centers, sides = np.concatenate([centers, even]), np.concatenate([sides, equal])
    boxes = np.concatenate([centers - sides / 2, centers + sides / 2], axis=1)
    return boxes.astype(np.float32).astype(np.float64)


@pytest.mark.parametrize("kind", ["nwd", "rfd", "dotd"])
@pytest.mark.parametrize("name", TESTED)
def test_one_candidate_per_shape_finds_the_best_of_all_anchors(name: str, kind: str) -> None:
    design, boxes = TESTED[name], some_boxes()
    for width, height in ((96, 70), (64, 33)):
        levels, anchors = all_anchors(design, width, height)
        values = dense(kind, boxes + np.array([0, 0, 1, 1]) * design.inclusive, anchors)
        best = (values >= values.max(axis=1, keepdims=True) * (1 - EQUAL)).argmax(axis=1)
        level, anchor = most_similar(check_inputs(boxes, (width, height), None, design), design, kind)
        np.testing.assert_array_equal(anchor, best)
        np.testing.assert_array_equal(level, levels[best])
        counts = count_levels(boxes, (width, height), design, similarity=kind)
        assert counts == tuple(np.bincount(levels[best], minlength=5).tolist())
        distinct = count_distinct_anchors(boxes, (width, height), design, similarity=kind)
        assert distinct == tuple(np.bincount(levels[np.unique(best)], minlength=5).tolist())


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
