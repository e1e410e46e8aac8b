"""Best anchors against torchvision's `box_iou` and argmax; counts against the recorded output of the authors' code."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from designs import DESIGNS, FASTER_RCNN, RETINANET, released_design, torchvision_design
from numpy.typing import NDArray
from torchvision.ops import box_iou

import tinydet.salpha.parity
from tinydet.geometry.anchors import AnchorDesign
from tinydet.salpha.counting import count_levels
from tinydet.salpha.factors import estimate_alpha, raw_alpha
from tinydet.salpha.parity import best_anchors, count_distinct_anchors, released_clipping

TESTED_DESIGNS = {
    "retinanet": RETINANET,
    "faster_rcnn": FASTER_RCNN,
    "torchvision retinanet": torchvision_design("retinanet"),
    "torchvision faster_rcnn": torchvision_design("faster_rcnn"),
    "released retinanet": released_design("retinanet"),
    "released faster_rcnn": released_design("faster_rcnn"),
    "one square per level": AnchorDesign.from_sizes([[8], [16], [32], [64], [128]], [1.0]),
    "three levels": AnchorDesign.from_sizes([[8, 10], [20], [40, 50]], [1.0], ("P3", "P4", "P5"), (8, 16, 32)),
}
RECORDED = {"retinanet": "retina_S_alpha", "faster_rcnn": "fpn_S_alpha"}


def dense_iou(boxes: NDArray[np.float32], anchors: NDArray[np.float32], inclusive: bool) -> NDArray[np.float32]:
    """torchvision's `box_iou`, or the same with the authors' + 1 for the last pixel."""
    if not inclusive:
        return box_iou(torch.from_numpy(boxes), torch.from_numpy(anchors)).numpy()
    one = np.float32(1)
    low = np.maximum(boxes[:, None, :2], anchors[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], anchors[None, :, 2:])
    overlap = np.maximum(high - low + one, 0).prod(axis=2)
    areas = [(b[:, 2] - b[:, 0] + one) * (b[:, 3] - b[:, 1] + one) for b in (boxes, anchors)]
    return overlap / (areas[0][:, None] + areas[1] - overlap)


def assert_equals_dense(boxes: NDArray[np.float32], size: tuple[int, int], design: AnchorDesign) -> None:
    """Compare level, IoU, anchor and both counts with the dense computation, bit for bit."""
    levels = design.grid_anchors(size[1], size[0])
    ends = np.cumsum([len(anchors) for anchors in levels])
    anchors = np.concatenate(levels)
    found = best_anchors(boxes, size, design)
    per_step = max(1, 4_000_000 // len(anchors))
    expected = []
    for start in range(0, len(boxes), per_step):
        step = slice(start, start + per_step)
        iou = dense_iou(boxes[step], anchors, design.inclusive)
        expected.append(iou.argmax(axis=1))  # the first of equal values
        np.testing.assert_array_equal(found.iou[step], iou[np.arange(len(iou)), expected[-1]])
    best = np.concatenate(expected)
    np.testing.assert_array_equal(found.anchor, best)
    level = np.searchsorted(ends, best, side="right")
    np.testing.assert_array_equal(found.level, level)
    n = len(levels)
    assert count_levels(boxes, size, design) == tuple(np.bincount(level, minlength=n))
    distinct = np.searchsorted(ends, np.unique(best), side="right")
    assert count_distinct_anchors(boxes, size, design) == tuple(np.bincount(distinct, minlength=n))


def random_boxes(rng: np.random.Generator, kind: int, size: tuple[int, int]) -> NDArray[np.float32]:
    """100 boxes. `kind`: sizes of people, any size, whole pixels, eight orders of magnitude, or sides of anchors."""
    n = (100, 2)
    sides = [
        lambda: np.exp(rng.normal(2.5, 0.9, n)),
        lambda: rng.uniform(0.01, 400, n),
        lambda: rng.integers(1, 60, n).astype(float),
        lambda: np.exp(rng.uniform(-10, 8, n)),
        lambda: rng.choice([2, 4, 6, 8, 12, 16, 24, 32, 64, 128], n).astype(float),
    ][kind]()
    center = rng.uniform(0, 1, n) * size
    if kind in (2, 4):
        center = np.round(center * 2) / 2
    boxes = np.concatenate([center - sides / 2, center + sides / 2], axis=1)
    if rng.random() < 0.5:
        boxes = np.clip(boxes, 0, np.tile(size, 2))
    return boxes.astype(np.float32)


def fuzz(boxes: int, largest: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    designs = itertools.cycle(TESTED_DESIGNS.values())
    for n in range(boxes // 100):
        width, height = (int(side) for side in rng.integers(20, largest, 2))
        assert_equals_dense(random_boxes(rng, n % 5, (width, height)), (width, height), next(designs))


def test_the_best_anchor_equals_the_dense_argmax() -> None:
    fuzz(4_000, largest=256, seed=0)  # each of 8 designs once with each of 5 kinds of boxes


@pytest.mark.slow
def test_the_best_anchor_equals_the_dense_argmax_for_200_000_boxes() -> None:
    fuzz(200_000, largest=640, seed=1)


def test_two_levels_one_rounding_apart_are_decided_as_in_the_dense_computation() -> None:
    rng = np.random.default_rng(7)
    centers = rng.uniform(64, 192, (100, 2)).astype(np.float32)
    shape = rng.uniform(0.7, 1.4, (100, 2))
    small, large = np.full(100, 12.0), np.full(100, 24.0)

    def boxes(side: NDArray[np.float64]) -> NDArray[np.float32]:
        half = shape * side[:, None] / 2
        return np.concatenate([centers - half, centers + half], axis=1).astype(np.float32)

    for _ in range(40):  # bisect until P2 and P3 are one rounding apart
        middle = (small + large) / 2
        fine = best_anchors(boxes(middle), (256, 256), RETINANET).level == 0
        small, large = np.where(fine, middle, small), np.where(fine, large, middle)
    around = np.concatenate([boxes(small + step * 1e-6) for step in range(-3, 4)])
    assert_equals_dense(around, (256, 256), RETINANET)


@pytest.mark.parametrize("name", TESTED_DESIGNS)
def test_every_whole_pixel_box_in_a_small_image_equals_the_dense_argmax(name: str) -> None:
    side, design = 64 if TESTED_DESIGNS[name].grid == "floor" else 18, TESTED_DESIGNS[name]
    ends = [(low, high) for low in range(18) for high in range(low + 1, 19)]
    boxes = np.array([(x1, y1, x2, y2) for x1, x2 in ends for y1, y2 in ends[:: 1 if side == 18 else 5]], np.float32)
    assert_equals_dense(boxes, (side, side), design)


@pytest.mark.parametrize("name", TESTED_DESIGNS)
def test_an_object_that_no_anchor_overlaps_is_assigned_to_the_first(name: str) -> None:
    boxes = np.array([(70.0, 70.0, 70.0, 70.0), (5000.0, 0.0, 5010.0, 10.0)], np.float32)
    if TESTED_DESIGNS[name].inclusive:
        boxes = boxes[1:]  # an inclusive box is never empty
    assert_equals_dense(boxes, (128, 128), TESTED_DESIGNS[name])
    assert best_anchors(boxes, (128, 128), TESTED_DESIGNS[name]).level.tolist() == [0] * len(boxes)


def test_a_box_equal_to_an_anchor_is_assigned_to_that_anchor() -> None:
    for design in DESIGNS.values():
        anchors = design.grid_anchors(128, 192)
        for level, of_level in enumerate(anchors):
            found = best_anchors(of_level, (192, 128), design)
            start = sum(len(a) for a in anchors[:level])
            assert found.level.tolist() == [level] * len(of_level)
            assert found.anchor.tolist() == list(range(start, start + len(of_level)))
            assert (found.iou == 1).all()


def test_objects_twice_as_large_belong_to_the_next_level() -> None:
    rng = np.random.default_rng(2)
    sides = rng.uniform(16, 80, (5000, 2))  # best on P2 to P5, so that doubling them stays within P3 to P6
    centers = rng.uniform(300, 700, (5000, 2))
    boxes = np.concatenate([centers - sides / 2, centers + sides / 2], axis=1)
    once = best_anchors(boxes, (1024, 1024), RETINANET).level
    twice = best_anchors(boxes * 2, (2048, 2048), RETINANET).level
    np.testing.assert_array_equal(twice, once + 1)


def test_levels_do_not_change_far_from_the_origin_of_a_huge_image() -> None:
    rng = np.random.default_rng(3)
    sides = np.round(rng.uniform(3, 60, (5000, 2)) * 4) / 4  # quarters are exact in float32 even there
    corner = np.round(rng.uniform(200, 400, (5000, 2)) * 4) / 4
    boxes = np.concatenate([corner, corner + sides], axis=1)
    design = torchvision_design("retinanet")  # its anchors are exact too
    near, far = best_anchors(boxes, (640, 640), design), best_anchors(boxes + 64_000, (65_536, 65_536), design)
    np.testing.assert_array_equal(near.level, far.level)
    np.testing.assert_array_equal(near.iou, far.iou)
    assert count_levels(boxes + 64_000, (65_536, 65_536), design) == tuple(np.bincount(near.level, minlength=5))


def test_evaluating_candidates_in_bounded_steps_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    boxes = np.concatenate([rng.uniform(0, 9, (200, 2)), rng.uniform(1500, 2000, (200, 2))], axis=1)
    at_once = best_anchors(boxes, (2000, 2000), RETINANET)
    monkeypatch.setattr(tinydet.salpha.parity, "_MAX_TRIALS", 1000)
    in_steps = best_anchors(boxes, (2000, 2000), RETINANET)
    for one, other in zip(at_once, in_steps, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("anchors", ["given", "preset"])
@pytest.mark.parametrize("detector", RECORDED)
@pytest.mark.parametrize("case", ["A_lognormal", "D_only_small"])
def test_counts_match_the_output_of_the_authors_code(case: str, detector: str, anchors: str, shared: Path) -> None:
    recorded = json.loads((shared / "cases" / "salpha" / f"{case}.json").read_text())
    expected = recorded["expected"][RECORDED[detector]]
    design = released_design(detector)
    if anchors == "given":
        cells = recorded["cell_anchors"][RECORDED[detector]]
        design = AnchorDesign.from_cells(cells, grid="floor", inclusive=True)
    sizes = np.array([(image["width"], image["height"]) for image in recorded["images"]])
    index = np.repeat(np.arange(len(sizes)), [len(image["boxes"]) for image in recorded["images"]])
    boxes = np.concatenate([image["boxes"] for image in recorded["images"]])
    boxes[:, 2:] += boxes[:, :2]
    boxes, kept = released_clipping(boxes, sizes[index])
    assert kept.sum() == expected["n_gt_after_clip"]
    counts = count_distinct_anchors(boxes[kept], sizes, design, image_index=index[kept])
    assert list(counts) == expected["NP_first"]
    finest_last = reversed(expected["alpha45_34_23"])
    for ours, theirs in zip(estimate_alpha(counts), finest_last, strict=True):
        assert round(ours, 3) == (1.0 if theirs is None else theirs)  # theirs is NaN for 0/0
    for raw, theirs in zip(raw_alpha(counts), reversed(expected["raw_alpha45_34_23"]), strict=True):
        assert (raw is None) if theirs is None else raw == pytest.approx(theirs, rel=1e-6)


def test_released_clipping_keeps_boxes_with_an_area_inside_the_image() -> None:
    boxes = np.array(
        [
            (10.0, 20.0, 15.0, 26.0),  # 5 x 6 pixels: the last ones are 14 and 25
            (95.0, 0.0, 120.0, 9.0),  # extends beyond the image
            (10.0, 10.0, 11.0, 20.0),  # one pixel wide: x2 = x1
            (10.0, 10.0, 10.5, 20.0),  # less than one pixel wide
        ]
    )
    clipped, kept = released_clipping(boxes, np.array([(100, 50)] * 4))
    assert kept.tolist() == [True, True, False, False]
    assert clipped[kept].tolist() == [[10, 20, 14, 25], [95, 0, 99, 8]]
