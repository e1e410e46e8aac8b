"""The K most similar anchors of each object, and their counts, against all pairs."""

from __future__ import annotations

import numpy as np
import pytest
from designs import FASTER_RCNN, RETINANET, RETINANET_P3P7, released_design, torchvision_design

from tinydet.geometry.anchors import AnchorDesign
from tinydet.geometry.ranked import EQUAL, count_ranked, ranked_anchors
from tinydet.geometry.similarity import SIMILARITIES
from tinydet.models.options import FCOS_POINTS

DESIGNS = {
    "retinanet": RETINANET,
    "p3p7": RETINANET_P3P7,
    "faster_rcnn": FASTER_RCNN,
    "torchvision": torchvision_design("retinanet"),
    "released": released_design("faster_rcnn"),
    "points": FCOS_POINTS.squares(),
}

DESIGN = AnchorDesign(
    levels=("P2", "P3", "P4"), strides=(4, 8, 16), shapes=(((8, 8), (12, 6)), ((20, 20),), ((40, 30), (30, 40)))
)


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
@pytest.mark.parametrize("name", DESIGNS)
def test_ranked_anchors_are_the_best_of_all_anchors(name: str, kind: str) -> None:
    design, boxes = DESIGNS[name], some_boxes()
    for rank, width, height in ((1, 96, 70), (3, 64, 33)):
        levels, anchors = all_anchors(design, width, height)
        values = dense(kind, boxes + np.array([0, 0, 1, 1]) * design.inclusive, anchors)
        found = ranked_anchors(design, boxes, np.array([[width, height]]), np.zeros(len(boxes), int), rank, kind)
        for number in range(rank):
            highest = values.max(axis=1, keepdims=True)
            best = (values >= highest * (1 - EQUAL)).argmax(axis=1)
            np.testing.assert_array_equal(found.anchor[:, number], best)
            np.testing.assert_array_equal(found.level[:, number], levels[best])
            np.testing.assert_allclose(found.similarity[:, number], highest[:, 0], rtol=1e-6)
            values[np.arange(len(boxes)), best] = -np.inf


@pytest.mark.parametrize("kind", ["nwd", "rfd"])
@pytest.mark.parametrize("side", [300, 900, 2000])
def test_an_object_much_larger_than_every_anchor_counts_on_the_coarsest_level(side: int, kind: str) -> None:
    """Its NWD is 1e-10 and less, but still the highest, and training makes these anchors positive."""
    box, size = np.array([[100.0, 100, 100 + side, 100 + side]]), np.array([[2200, 2200]])
    assert count_ranked(FCOS_POINTS.squares(), box, size, np.zeros(1, int), 3, kind) == (0, 0, 0, 0, 3)


def test_an_image_with_fewer_anchors_than_the_rank_has_them_all() -> None:
    box, size = np.array([[0.0, 0, 8, 8]]), np.array([[8, 4]])
    assert count_ranked(DESIGN, box, size, np.zeros(1, int), 20, "nwd") == (4, 1, 2)


def chosen_of_all(boxes: np.ndarray, size: tuple[int, int], rank: int, similarity: str) -> tuple[set[int], np.ndarray]:
    """The chosen anchors of one image and the level of every anchor."""
    anchors, levels = [], []
    for level, (stride, shapes) in enumerate(zip(DESIGN.strides, DESIGN.shapes, strict=True)):
        for row in range(-(-size[1] // stride)):
            for column in range(-(-size[0] // stride)):
                for width, height in shapes:
                    x, y = (column + 0.5) * stride, (row + 0.5) * stride
                    anchors.append([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
                    levels.append(level)
    chosen: set[int] = set()
    for box in boxes:
        values = SIMILARITIES[similarity](box[None], np.array(anchors)).round(9)
        best = sorted(range(len(anchors)), key=lambda n: (-values[n], n))[:rank]
        chosen |= {n for n in best if values[n] > 0}
    return chosen, np.array(levels)


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("rank", [1, 3, 10])
def test_counted_anchors_are_those_of_all_pairs(rank: int, similarity: str) -> None:
    rng = np.random.default_rng(rank)
    sizes, images = np.array([[60, 40], [33, 70]]), rng.integers(0, 2, 24)
    centers, sides = rng.uniform(-5, 60, (24, 2)), np.exp(rng.uniform(1, 4, (24, 2)))
    centers[:8], sides[:8] = rng.integers(0, 12, (8, 2)) * 4, 8  # ties
    boxes = np.concatenate([centers - sides / 2, centers + sides / 2], axis=1)
    wanted = np.zeros(3, int)
    for n, size in enumerate(sizes.tolist()):
        chosen, levels = chosen_of_all(boxes[images == n], tuple(size), rank, similarity)
        wanted += np.bincount(levels[sorted(chosen)], minlength=3)
    assert count_ranked(DESIGN, boxes, sizes, images, rank, similarity) == tuple(wanted.tolist())


def test_without_boxes_nothing_is_counted() -> None:
    nothing = np.zeros(0, np.int64)
    assert count_ranked(DESIGN, np.zeros((0, 4)), np.array([[60, 40]]), nothing, 3, "nwd") == (0, 0, 0)
