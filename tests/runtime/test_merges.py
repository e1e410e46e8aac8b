from __future__ import annotations

import itertools

import numpy as np
import pytest

from tinydet.geometry.groups import hulls, separate_groups
from tinydet.geometry.tiles import TileGrid
from tinydet.runtime.detections import Detections
from tinydet.runtime.merges import NMM_SHARED, SOFT_SIGMA, WBF_IOU, fuse
from tinydet.runtime.stitch import MERGES, Stitcher

FUSING = ("nmm", "wbf", "soft-nms")


def crowd(seed: int, count: int = 40, extent: float = 100) -> tuple[np.ndarray, np.ndarray]:
    """Boxes that overlap in every way, by descending score, all scores different."""
    rng = np.random.default_rng(seed)
    center, side = rng.uniform(20, extent - 20, (count, 2)), rng.uniform(6, 24, (count, 2))
    again = rng.integers(0, count, count // 3)
    center[: count // 3] = center[again] + rng.normal(0, 1.5, (count // 3, 2))
    side[: count // 3] = side[again] * rng.uniform(0.8, 1.25, (count // 3, 2))
    scores = np.sort(rng.permutation(1000)[:count] / 1000 + 1e-4)[::-1].astype(np.float32)
    return np.concatenate([center - side / 2, center + side / 2], 1), scores


def overlap(one: np.ndarray, two: np.ndarray) -> float:
    sides = np.minimum(one[2:], two[2:]) - np.maximum(one[:2], two[:2])
    return float(np.maximum(sides, 0).prod())


def size(box: np.ndarray) -> float:
    return float((box[2] - box[0]) * (box[3] - box[1]))


def iou(one: np.ndarray, two: np.ndarray) -> float:
    inner = overlap(one, two)
    return inner / (size(one) + size(two) - inner)


def plain_nmm(boxes: np.ndarray, scores: np.ndarray) -> list[tuple[list[float], float]]:
    """The definition, box by box."""
    left, result = list(range(len(boxes))), []
    while left:
        best, *rest = left
        taken = [
            i for i in rest if overlap(boxes[best], boxes[i]) > NMM_SHARED * min(size(boxes[best]), size(boxes[i]))
        ]
        members = boxes[[best, *taken]]
        result.append(([*members[:, :2].min(0), *members[:, 2:].max(0)], float(scores[best])))
        left = [i for i in rest if i not in taken]
    return result


def plain_wbf(boxes: np.ndarray, scores: np.ndarray) -> list[tuple[list[float], float]]:
    clusters: list[list[int]] = []

    def mean(members: list[int]) -> np.ndarray:
        return np.average(boxes[members], axis=0, weights=scores[members].astype(float))

    for i in range(len(boxes)):
        likeness = [iou(mean(members), boxes[i]) for members in clusters]
        if likeness and max(likeness) > WBF_IOU:
            clusters[int(np.argmax(likeness))].append(i)
        else:
            clusters.append([i])
    return [(mean(members).tolist(), float(scores[members].astype(float).mean())) for members in clusters]


def plain_soft_nms(boxes: np.ndarray, scores: np.ndarray) -> list[tuple[list[float], float]]:
    left, value, result = list(range(len(boxes))), scores.astype(float).copy(), []
    while left:
        best = max(left, key=lambda i: value[i])
        left.remove(best)
        result.append((boxes[best].tolist(), float(value[best])))
        for i in left:
            value[i] *= np.exp(-(iou(boxes[best], boxes[i]) ** 2) / SOFT_SIGMA)
    return result


DEFINITIONS = {"nmm": plain_nmm, "wbf": plain_wbf, "soft-nms": plain_soft_nms}


def in_order(boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    rows = np.column_stack([boxes, scores])
    return rows[np.lexsort(np.round(rows, 3).T)]


@pytest.mark.parametrize("merge", FUSING)
def test_a_merge_equals_its_definition(merge: str) -> None:
    for seed in range(4):
        boxes, scores = crowd(seed)
        found = fuse(merge, boxes, scores, separate_groups(boxes, np.zeros(len(boxes), np.int64)))
        expected = DEFINITIONS[merge](boxes, scores)
        assert len(found.scores) == len(expected)
        np.testing.assert_allclose(
            in_order(found.corners, found.scores),
            in_order(np.array([box for box, _ in expected]), np.array([score for _, score in expected])),
            rtol=1e-6,
        )


def test_weighted_boxes_fusion_equals_the_implementation_of_its_authors() -> None:
    package = pytest.importorskip("ensemble_boxes", reason="pip install ensemble-boxes in a venv of its own")
    for seed in range(6):
        boxes, scores = crowd(seed)
        zeros, extent = np.zeros(len(boxes), np.int64), 100
        found = fuse("wbf", boxes, scores, separate_groups(boxes, zeros))
        corners, values, _ = package.weighted_boxes_fusion([boxes / extent], [scores], [zeros], iou_thr=WBF_IOU)
        ours, theirs = in_order(found.corners, found.scores), in_order(corners * extent, values)
        np.testing.assert_allclose(ours, theirs, atol=2e-4)


@pytest.mark.parametrize("merge", FUSING)
def test_separate_groups_can_be_merged_one_at_a_time(merge: str) -> None:
    boxes, scores = crowd(3, 200, 900)
    group = separate_groups(boxes, np.zeros(len(boxes), np.int64))
    assert 1 < len(np.unique(group)) < len(boxes)
    whole = fuse(merge, boxes, scores, np.zeros(len(boxes), np.int64))
    parts = fuse(merge, boxes, scores, group)
    np.testing.assert_allclose(in_order(whole.corners, whole.scores), in_order(parts.corners, parts.scores))


def test_hulls_of_separate_groups_do_not_overlap() -> None:
    """A chain and a box that only the hull of the chain overlaps are one group."""
    boxes = np.array([[0, 0, 10, 10], [9, 0, 19, 10], [9, 9, 19, 30], [0, 20, 5, 25], [40, 40, 50, 50]], float)
    assert separate_groups(boxes, np.zeros(5, np.int64)).tolist() == [0, 0, 0, 0, 4]
    assert separate_groups(boxes, np.array([0, 0, 0, 1, 0])).tolist() == [0, 0, 0, 3, 4]
    for seed in range(5):
        boxes, _ = crowd(seed, 120, 400)
        first, around = hulls(boxes, separate_groups(boxes, np.zeros(len(boxes), np.int64)))
        assert len(first) > 10
        assert not any(overlap(one, two) for one, two in itertools.combinations(around, 2))


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("agnostic", [False, True], ids=["by class", "agnostic"])
def test_the_order_of_tiles_does_not_change_a_merge(merge: str, agnostic: bool) -> None:
    grid = TileGrid(320, 520, 128, 32)
    rng = np.random.default_rng(0)
    boxes, tiles = [], []
    for tile in grid.tiles:
        center = rng.uniform((tile.x, tile.y), (tile.x + 128, tile.y + 128), (12, 2))
        side = rng.uniform(4, 40, (12, 2))
        bounds = [tile.x, tile.y, tile.x + tile.width, tile.y + tile.height]
        corners = np.concatenate([center - side / 2, center + side / 2], 1)
        boxes.append(np.clip(corners, np.tile(bounds[:2], 2), np.tile(bounds[2:], 2)))
        tiles += [tile.index] * 12
    corners, sources = np.concatenate(boxes), np.array(tiles)
    scores = np.round(rng.uniform(0.3, 1, len(tiles)), 1).astype(np.float32)  # with ties
    labels = rng.integers(0, 3, len(tiles)).astype(np.int32)

    def stitched(steps: list[np.ndarray]) -> Detections:
        stitcher = Stitcher(grid, nms_iou=0.5, merge=merge, agnostic=agnostic, score=0.3)
        found = []
        for step in steps:
            which = np.flatnonzero(np.isin(sources, step))
            boxes = Detections(corners[which], scores[which], labels[which], {"tile": sources[which]})
            found.append(stitcher.add(step.tolist(), boxes))
        return Detections.concatenate(found).by_score()

    at_once = stitched([np.arange(len(grid))])
    assert len(at_once)
    for seed in range(3):
        one_by_one = stitched(list(np.random.default_rng(seed).permutation(len(grid))[:, None]))
        for name in ("boxes", "scores", "labels", "tiles", "seam_distance"):
            assert getattr(one_by_one, name).tolist() == getattr(at_once, name).tolist(), name


@pytest.mark.parametrize("merge", MERGES)
def test_two_classes_on_one_object_are_merged_only_if_agnostic(merge: str) -> None:
    boxes = np.array([[540, 300, 560, 320], [541, 300, 561, 320]], float)
    arguments = [0, 1], Detections(boxes, np.float32([0.9, 0.8]), np.int32([0, 1]), {"tile": np.array([0, 1])})
    grid = TileGrid(1152, 640, 640, 128)
    assert len(Stitcher(grid, nms_iou=0.5, merge=merge, score=0.3).add(*arguments)) == 2
    (label,) = Stitcher(grid, nms_iou=0.5, merge=merge, agnostic=True, score=0.3).add(*arguments).labels
    assert label == 0


def test_agnostic_suppression_within_a_tile_keeps_the_best_class() -> None:
    boxes = np.array([[100, 300, 120, 320], [101, 300, 121, 320]], float)
    stitcher = Stitcher(TileGrid(640, 640, 640, 128), nms_iou=0.5, agnostic=True)
    assert stitcher.add([0], Detections(boxes, np.float32([0.8, 0.9]), np.int32([0, 1]))).labels == [1]
