from __future__ import annotations

import itertools

import numpy as np
import pytest

from tinydet.geometry import nms as module
from tinydet.geometry.nms import conflicts, resolve, suppress


def greedy(boxes: np.ndarray, scores: np.ndarray, threshold: float, same: np.ndarray | None = None) -> list[int]:
    """The definition, box by box."""
    kept: list[int] = []
    for i in np.argsort(-scores, kind="stable").tolist():
        others = [j for j in kept if same is None or same[i] == same[j]]
        if not (iou(boxes[[i]], boxes[others]) > threshold).any():
            kept.append(i)
    return kept


def iou(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    sides = np.minimum(one[:, None, 2:], two[None, :, 2:]) - np.maximum(one[:, None, :2], two[None, :, :2])
    inner = np.maximum(sides, 0).prod(-1)
    area = [(b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (one, two)]
    with np.errstate(invalid="ignore", divide="ignore"):
        return (inner / (area[0][:, None] + area[1][None] - inner)).astype(np.float64)


def crowd(seed: int, count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of one of several kinds, each difficult in its own way; scores have ties."""
    rng = np.random.default_rng(seed)
    kind = seed % 8
    extent = [60, 200, 1e3, 1e4, 50, 80, 100, 300][kind]
    center = rng.uniform(0, extent, (count, 2))
    side = rng.uniform(8, 24, (count, 2))
    if kind == 1:
        side = np.exp(rng.uniform(0, 6, (count, 2)))  # 1 to 400 pixels, every shape
    if kind == 2:
        center[count // 2 :] = center[: count - count // 2] + rng.normal(0, 0.5, (count - count // 2, 2))
        side[count // 2 :] = side[: count - count // 2]
    if kind == 3:
        side[::7] *= 1000  # larger than the scene
    if kind == 4:
        center, side = np.round(center), np.round(side)  # exact ties of IoU
    if kind == 5:
        side[::3, 0] = 0  # without area
        side[1::5] *= -1  # inverted
    if kind == 6:
        center[:] = center[rng.integers(0, 20, count)]
        side[:] = 16  # identical
    if kind == 7:
        center -= 40_000  # far away and negative
    boxes = np.concatenate([center - side / 2, center + side / 2], 1).astype(np.float32)
    return boxes, np.round(rng.uniform(0, 1, count), 2).astype(np.float32)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.7, 0.95, 1.0])
def test_suppression_keeps_what_the_definition_keeps(threshold: float) -> None:
    for seed in range(8):
        boxes, scores = crowd(seed, 150)
        assert suppress(boxes, scores, threshold).tolist() == greedy(boxes, scores, threshold), seed


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.6, 0.9])
def test_suppression_keeps_what_torchvision_keeps(threshold: float) -> None:
    ops = pytest.importorskip("torchvision.ops")
    torch = pytest.importorskip("torch")
    for seed in range(24):
        boxes, scores = crowd(seed, 1 + 37 * seed)
        expected = ops.nms(torch.from_numpy(boxes), torch.from_numpy(scores), threshold).tolist()
        assert suppress(boxes, scores, threshold).tolist() == expected, seed


def test_an_iou_equal_to_the_threshold_does_not_suppress() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 5]], np.float32)  # IoU exactly 0.5
    assert suppress(boxes, np.array([0.9, 0.8]), 0.5).tolist() == [0, 1]
    assert suppress(boxes, np.array([0.9, 0.8]), 0.499).tolist() == [0]


def test_an_iou_is_compared_in_double_precision_as_in_torchvision() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 6]], np.float32)  # the float nearest to 0.6 is above 0.6
    assert suppress(boxes, np.array([0.9, 0.8]), 0.6).tolist() == [0]


@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("side", [7.99, 8.01, 15.99])
def test_pairs_just_above_the_threshold_are_found_at_every_position(threshold: float, side: float) -> None:
    """Boxes shifted as far as the threshold allows, or shrunk; at all positions in a cell, and across powers of two."""
    place = np.random.default_rng(0).uniform(0, 1e4, (300, 2))
    box = np.concatenate([place, place + side], 1)
    shift = 0.999 * side * (1 - threshold) / (1 + threshold)
    for change in ([shift, 0, shift, 0], [0, -shift, 0, -shift], [0, 0, 0, -0.999 * side * (1 - threshold)]):
        for one, other in zip(box, box + np.array(change), strict=True):
            assert suppress(np.stack([one, other]), np.array([0.9, 0.8]), threshold).tolist() == [0]


def test_the_earlier_of_two_boxes_with_equal_scores_is_kept() -> None:
    boxes = np.tile(np.array([[3, 3, 9, 9]], np.float32), (5, 1))
    assert suppress(boxes, np.full(5, 0.5, np.float32), 0.5).tolist() == [0]


def test_classes_do_not_suppress_each_other() -> None:
    for seed in range(8):
        boxes, scores = crowd(seed)
        same = np.random.default_rng(seed).integers(0, 3, len(boxes))
        assert suppress(boxes, scores, 0.5, same=same).tolist() == greedy(boxes, scores, 0.5, same)


def test_processing_dense_boxes_in_halves_gives_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [suppress(*crowd(seed, 150), 0.5).tolist() for seed in range(8)]
    monkeypatch.setattr(module, "PAIRS_AT_ONCE", 50)
    monkeypatch.setattr(module, "PAIRS_IN_MEMORY", 7)
    assert [suppress(*crowd(seed, 150), 0.5).tolist() for seed in range(8)] == expected


def test_many_identical_boxes_do_not_take_quadratic_time() -> None:
    boxes = np.tile(np.array([[3, 3, 9, 9]], np.float32), (8_000, 1))
    assert suppress(boxes, np.linspace(0, 1, 8_000), 0.5).tolist() == [7_999]


def test_a_long_chain_is_resolved_to_its_end() -> None:
    n = 20_001
    boxes = np.zeros((n, 4), np.float32)
    boxes[:, 0] = 2 * np.arange(n)
    boxes[:, 2] = boxes[:, 0] + 10
    boxes[:, 3] = 10
    kept = suppress(
        boxes, np.linspace(1, 0, n), 0.6
    )  # each overlaps the next with an IoU of 2/3, the one after with 3/7
    assert kept.tolist() == list(range(0, n, 2))


def test_forty_thousand_objects_with_four_boxes_each_are_found_once() -> None:
    rng = np.random.default_rng(0)
    column, row = np.divmod(np.arange(40_000), 200)
    center = np.stack([column, row], 1) * 30.0 + 20
    side = rng.uniform(12, 24, (40_000, 2))
    boxes = np.concatenate([center - side / 2, center + side / 2], 1)
    seen = np.concatenate([boxes + rng.uniform(-0.5, 0.5, boxes.shape) for _ in range(4)]).astype(np.float32)
    kept = suppress(seen, rng.uniform(0, 1, len(seen)), 0.5)
    assert sorted((kept % 40_000).tolist()) == list(range(40_000))


def test_conflicts_are_the_pairs_above_the_threshold() -> None:
    for seed in range(8):
        boxes, _ = crowd(seed, 120)
        groups = np.random.default_rng(seed).integers(0, 3, (2, 120))
        first, second = conflicts(boxes, 0.3, same=groups[0], apart=groups[1])
        above = iou(boxes, boxes) > 0.3
        above &= (groups[0][:, None] == groups[0]) & (groups[1][:, None] != groups[1])
        found = sorted(zip(first.tolist(), second.tolist(), strict=True))
        assert found == [tuple(pair) for pair in np.argwhere(np.triu(above, 1)).tolist()]


def test_cells_of_one_size_and_of_several_find_the_same_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(8):
        boxes, scores = crowd(seed)
        of_one = pairs(boxes), suppress(boxes, scores, 0.4).tolist()
        monkeypatch.setattr(module, "FEW", 0)
        assert (pairs(boxes), suppress(boxes, scores, 0.4).tolist()) == of_one
        monkeypatch.undo()


def pairs(boxes: np.ndarray) -> set[tuple[int, int]]:
    first, second = conflicts(boxes, 0.4)
    return set(zip(first.tolist(), second.tolist(), strict=True))


def test_a_verdict_given_while_boxes_wait_holds_whatever_becomes_of_them() -> None:
    pairs = list(itertools.combinations(range(4), 2))
    flags = list(itertools.product([False, True], repeat=4))
    for chosen in itertools.product([False, True], repeat=len(pairs)):
        edges = [pair for pair, use in zip(pairs, chosen, strict=True) if use]
        better, worse = np.array(edges, np.int64).reshape(-1, 2).T
        outcome = {gone: _survivors(edges, gone) for gone in flags}  # `gone`: boxes that a later box suppresses
        for waiting in flags:
            possible = [outcome[gone] for gone in flags if not (np.array(gone) & ~np.array(waiting)).any()]
            verdict = resolve(better, worse, np.array(waiting))
            assert not (verdict.kept & ~np.all(possible, axis=0)).any()
            assert not (~verdict.kept & ~verdict.undecided & np.any(possible, axis=0)).any()
            assert any(waiting) or not verdict.undecided.any()
            assert not (verdict.kept & verdict.undecided).any()
            assert not any(verdict.kept[i] and (verdict.kept | verdict.undecided)[j] for i, j in edges)


def _survivors(edges: list[tuple[int, int]], gone: tuple[bool, ...]) -> list[bool]:
    alive = [not g for g in gone]
    for i, j in sorted(edges):
        alive[j] = alive[j] and not alive[i]
    return alive


@pytest.mark.parametrize(
    ("boxes", "scores", "threshold", "message"),
    [
        (np.zeros((2, 4)), np.zeros(3), 0.5, r"boxes \(N, 4\) and scores \(N,\)"),
        (np.full((1, 4), np.nan), np.zeros(1), 0.5, "a box is NaN"),
        (np.zeros((1, 4)), np.full(1, np.nan), 0.5, "a score is NaN"),
        (np.zeros((1, 4)), np.zeros(1), 1.5, r"between 0 and 1, got 1.5"),
    ],
)
def test_invalid_values_are_refused(boxes: np.ndarray, scores: np.ndarray, threshold: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        suppress(boxes, scores, threshold)


def test_no_boxes_give_no_boxes() -> None:
    assert suppress(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), 0.5).tolist() == []
