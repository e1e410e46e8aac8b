"""Counts of the K most similar anchors of each object against all pairs."""

from __future__ import annotations

import numpy as np
import pytest

from tinydet.geometry.anchors import AnchorDesign
from tinydet.geometry.ranked import count_ranked
from tinydet.geometry.similarity import SIMILARITIES

DESIGN = AnchorDesign(
    levels=("P2", "P3", "P4"), strides=(4, 8, 16), shapes=(((8, 8), (12, 6)), ((20, 20),), ((40, 30), (30, 40)))
)


def dense(boxes: np.ndarray, size: tuple[int, int], rank: int, similarity: str) -> tuple[set[int], np.ndarray]:
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
def test_they_are_those_of_all_pairs(rank: int, similarity: str) -> None:
    rng = np.random.default_rng(rank)
    sizes, images = np.array([[60, 40], [33, 70]]), rng.integers(0, 2, 24)
    centers, sides = rng.uniform(-5, 60, (24, 2)), np.exp(rng.uniform(1, 4, (24, 2)))
    centers[:8], sides[:8] = rng.integers(0, 12, (8, 2)) * 4, 8  # ties
    boxes = np.concatenate([centers - sides / 2, centers + sides / 2], axis=1)
    wanted = np.zeros(3, int)
    for n, size in enumerate(sizes.tolist()):
        chosen, levels = dense(boxes[images == n], tuple(size), rank, similarity)
        wanted += np.bincount(levels[sorted(chosen)], minlength=3)
    assert count_ranked(DESIGN, boxes, sizes, images, rank, similarity) == tuple(wanted.tolist())


def test_without_boxes_nothing_is_counted() -> None:
    nothing = np.zeros(0, np.int64)
    assert count_ranked(DESIGN, np.zeros((0, 4)), np.array([[60, 40]]), nothing, 3, "nwd") == (0, 0, 0)
