"""The statistic against the dense computation and the recorded answers of the authors' code; alpha in every case."""

from __future__ import annotations

import doctest
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from designs import DESIGNS, FASTER_RCNN, RETINANET, released_design, torchvision_design
from numpy.typing import NDArray
from torchvision.ops import box_iou

import tinydet.salpha.counting
from tinydet.geometry.anchors import AnchorDesign
from tinydet.salpha.counting import (
    FusionStatistics,
    best_anchors,
    count_levels,
    estimate_alpha,
    raw_alpha,
    released_clipping,
)

DESIGNS_TRIED = {
    "retinanet": RETINANET,
    "faster_rcnn": FASTER_RCNN,
    "torchvision retinanet": torchvision_design("retinanet"),
    "torchvision faster_rcnn": torchvision_design("faster_rcnn"),
    "released retinanet": released_design("retinanet"),
    "released faster_rcnn": released_design("faster_rcnn"),
    "one square a level": AnchorDesign.from_sizes([[8], [16], [32], [64], [128]], [1.0]),
    "three levels": AnchorDesign.from_sizes([[8, 10], [20], [40, 50]], [1.0], ("P3", "P4", "P5"), (8, 16, 32)),
}
RECORDED = {"retinanet": "retina_S_alpha", "faster_rcnn": "fpn_S_alpha"}


def dense_iou(boxes: NDArray[np.float32], anchors: NDArray[np.float32], inclusive: bool) -> NDArray[np.float32]:
    """torchvision's, or the same with the authors' + 1."""
    if not inclusive:
        return box_iou(torch.from_numpy(boxes), torch.from_numpy(anchors)).numpy()
    one = np.float32(1)
    low = np.maximum(boxes[:, None, :2], anchors[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], anchors[None, :, 2:])
    overlap = np.maximum(high - low + one, 0).prod(axis=2)
    areas = [(b[:, 2] - b[:, 0] + one) * (b[:, 3] - b[:, 1] + one) for b in (boxes, anchors)]
    return overlap / (areas[0][:, None] + areas[1] - overlap)


def assert_like_dense(boxes: NDArray[np.float32], size: tuple[int, int], design: AnchorDesign) -> None:
    """Level, IoU and anchor to the bit, and both counts."""
    levels = design.grid_anchors(size[1], size[0])
    ends = np.cumsum([len(anchors) for anchors in levels])
    anchors = np.concatenate(levels)
    found = best_anchors(boxes, size, design)
    per_step = max(1, 4_000_000 // len(anchors))
    expected = []
    for start in range(0, len(boxes), per_step):
        step = slice(start, start + per_step)
        iou = dense_iou(boxes[step], anchors, design.inclusive)
        expected.append(iou.argmax(axis=1))  # the first of several equals
        np.testing.assert_array_equal(found.iou[step], iou[np.arange(len(iou)), expected[-1]])
    best = np.concatenate(expected)
    np.testing.assert_array_equal(found.anchor, best)
    level = np.searchsorted(ends, best, side="right")
    np.testing.assert_array_equal(found.level, level)
    n = len(levels)
    assert count_levels(boxes, size, design) == tuple(np.bincount(level, minlength=n))
    distinct = np.searchsorted(ends, np.unique(best), side="right")
    assert count_levels(boxes, size, design, count="anchor") == tuple(np.bincount(distinct, minlength=n))


def random_boxes(rng: np.random.Generator, kind: int, size: tuple[int, int]) -> NDArray[np.float32]:
    """100 boxes: people-like, of any size, of whole pixels, of eight magnitudes or as large as anchors."""
    n = (100, 2)
    sides = [
        lambda: np.exp(rng.normal(2.5, 0.9, n)),
        lambda: rng.uniform(0.01, 400, n),
        lambda: rng.integers(1, 60, n).astype(float),
        lambda: np.exp(rng.uniform(-10, 8, n)),
        lambda: rng.choice([2, 4, 6, 8, 12, 16, 24, 32, 64, 128], n).astype(float),
    ][kind]()
    centre = rng.uniform(0, 1, n) * size
    if kind in (2, 4):
        centre = np.round(centre * 2) / 2
    boxes = np.concatenate([centre - sides / 2, centre + sides / 2], axis=1)
    if rng.random() < 0.5:
        boxes = np.clip(boxes, 0, np.tile(size, 2))
    return boxes.astype(np.float32)


def fuzz(boxes: int, largest: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    designs = itertools.cycle(DESIGNS_TRIED.values())
    for n in range(boxes // 100):
        width, height = (int(side) for side in rng.integers(20, largest, 2))
        assert_like_dense(random_boxes(rng, n % 5, (width, height)), (width, height), next(designs))


def test_the_best_anchor_is_the_dense_one() -> None:
    fuzz(10_000, largest=320, seed=0)


@pytest.mark.slow
def test_the_best_anchor_is_the_dense_one_for_many_more() -> None:
    fuzz(200_000, largest=640, seed=1)


def test_where_two_levels_are_as_good_to_a_rounding_the_dense_answer_holds() -> None:
    rng = np.random.default_rng(7)
    centres = rng.uniform(64, 192, (300, 2)).astype(np.float32)
    shape = rng.uniform(0.7, 1.4, (300, 2))
    small, large = np.full(300, 12.0), np.full(300, 24.0)

    def boxes(side: NDArray[np.float64]) -> NDArray[np.float32]:
        half = shape * side[:, None] / 2
        return np.concatenate([centres - half, centres + half], axis=1).astype(np.float32)

    for _ in range(40):  # halve until P2 and P3 are one rounding apart
        middle = (small + large) / 2
        fine = best_anchors(boxes(middle), (256, 256), RETINANET).level == 0
        small, large = np.where(fine, middle, small), np.where(fine, large, middle)
    around = np.concatenate([boxes(small + step * 1e-6) for step in range(-3, 4)])
    assert_like_dense(around, (256, 256), RETINANET)


@pytest.mark.parametrize("name", DESIGNS_TRIED)
def test_every_box_of_whole_pixels_in_a_small_image(name: str) -> None:
    side, design = 64 if DESIGNS_TRIED[name].grid == "floor" else 18, DESIGNS_TRIED[name]
    ends = [(low, high) for low in range(18) for high in range(low + 1, 19)]
    boxes = np.array([(x1, y1, x2, y2) for x1, x2 in ends for y1, y2 in ends[:: 1 if side == 18 else 5]], np.float32)
    assert_like_dense(boxes, (side, side), design)


@pytest.mark.parametrize("name", DESIGNS_TRIED)
def test_an_object_that_no_anchor_overlaps_goes_to_the_first(name: str) -> None:
    boxes = np.array([(70.0, 70.0, 70.0, 70.0), (5000.0, 0.0, 5010.0, 10.0)], np.float32)
    if DESIGNS_TRIED[name].inclusive:
        boxes = boxes[1:]  # an inclusive box has no empty form
    assert_like_dense(boxes, (128, 128), DESIGNS_TRIED[name])
    assert best_anchors(boxes, (128, 128), DESIGNS_TRIED[name]).level.tolist() == [0] * len(boxes)


def test_an_object_of_an_anchors_shape_is_found_by_that_anchor() -> None:
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
    sides = rng.uniform(16, 80, (5000, 2))  # neither finer than P2 nor coarser than P5 would have them
    centres = rng.uniform(300, 700, (5000, 2))
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)
    once = best_anchors(boxes, (1024, 1024), RETINANET).level
    twice = best_anchors(boxes * 2, (2048, 2048), RETINANET).level
    np.testing.assert_array_equal(twice, once + 1)


def test_objects_far_out_in_a_huge_image_belong_where_they_belong_in_a_small_one() -> None:
    rng = np.random.default_rng(3)
    sides = np.round(rng.uniform(3, 60, (5000, 2)) * 4) / 4  # quarters are exact in float32 out there
    corner = np.round(rng.uniform(200, 400, (5000, 2)) * 4) / 4
    boxes = np.concatenate([corner, corner + sides], axis=1)
    design = torchvision_design("retinanet")  # and so are its anchors
    near, far = best_anchors(boxes, (640, 640), design), best_anchors(boxes + 64_000, (65_536, 65_536), design)
    np.testing.assert_array_equal(near.level, far.level)
    np.testing.assert_array_equal(near.iou, far.iou)


def test_counts_do_not_depend_on_the_order_of_boxes_nor_on_the_company_of_other_images() -> None:
    rng = np.random.default_rng(4)
    sizes = rng.integers(64, 900, (40, 2))
    index = rng.integers(0, 40, 10_000)  # more than are held in memory at a time
    centres, sides = rng.uniform(0, 1, (10_000, 2)) * sizes[index], np.exp(rng.normal(2.5, 0.9, (10_000, 2)))
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)
    order = rng.permutation(10_000)
    for count in ("gt", "anchor"):
        together = count_levels(boxes, sizes, RETINANET, image_index=index, count=count)
        shuffled = count_levels(boxes[order], sizes, RETINANET, image_index=index[order], count=count)
        alone = [count_levels(boxes[index == n], sizes[n], RETINANET, count=count) for n in range(40)]
        assert together == shuffled == tuple(np.sum(alone, axis=0))


def test_large_windows_are_tried_in_bounded_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    boxes = np.concatenate([rng.uniform(0, 9, (200, 2)), rng.uniform(1500, 2000, (200, 2))], axis=1)
    at_once = best_anchors(boxes, (2000, 2000), RETINANET)
    monkeypatch.setattr(tinydet.salpha.counting, "_TRIALS", 1000)
    in_steps = best_anchors(boxes, (2000, 2000), RETINANET)
    for one, other in zip(at_once, in_steps, strict=True):
        np.testing.assert_array_equal(one, other)


def test_two_objects_with_one_best_anchor_both_count_and_mark_one_anchor() -> None:
    boxes = [(10, 10, 18, 18), (10, 10, 18, 18), (40, 40, 140, 140)]
    assert count_levels(boxes, (256, 256), RETINANET) == (2, 0, 0, 1, 0)
    assert count_levels(boxes, (256, 256), RETINANET, count="anchor") == (1, 0, 0, 1, 0)
    two = {"image_index": [0, 1, 1]}
    assert count_levels(boxes, [(256, 256)] * 2, RETINANET, count="anchor", **two) == (2, 0, 0, 1, 0)


def test_no_boxes_count_nothing() -> None:
    for count in ("gt", "anchor"):
        assert count_levels([], (64, 64), RETINANET, count=count) == (0, 0, 0, 0, 0)
        assert count_levels(np.empty((0, 4)), np.empty((0, 2)), RETINANET, image_index=[], count=count) == (0,) * 5


def test_faults_are_named() -> None:
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
    with pytest.raises(ValueError, match="choose gt or anchor"):
        count_levels(box, (64, 64), RETINANET, count="both")  # type: ignore[arg-type]


@pytest.mark.parametrize("anchors", ["given", "preset"])
@pytest.mark.parametrize("detector", RECORDED)
@pytest.mark.parametrize("case", ["A_lognormal", "D_only_small"])
def test_the_recorded_answers_of_the_authors_code_are_met(case: str, detector: str, anchors: str, shared: Path) -> None:
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
    counts = count_levels(boxes[kept], sizes, design, image_index=index[kept], count="anchor")
    assert list(counts) == expected["NP_first"]
    finest_last = reversed(expected["alpha45_34_23"])
    for ours, theirs in zip(estimate_alpha(counts), finest_last, strict=True):
        assert round(ours, 3) == (1.0 if theirs is None else theirs)  # theirs is NaN for 0/0
    for raw, theirs in zip(raw_alpha(counts), reversed(expected["raw_alpha45_34_23"]), strict=True):
        assert (raw is None) if theirs is None else raw == pytest.approx(theirs, rel=1e-6)


def test_released_clipping_keeps_what_has_an_area_inside() -> None:
    boxes = np.array(
        [
            (10.0, 20.0, 15.0, 26.0),  # 5 x 6 pixels: the last ones are 14 and 25
            (95.0, 0.0, 120.0, 9.0),  # over the border
            (10.0, 10.0, 11.0, 20.0),  # one pixel wide: x2 = x1
            (10.0, 10.0, 10.5, 20.0),  # less than one
        ]
    )
    clipped, kept = released_clipping(boxes, np.array([(100, 50)] * 4))
    assert kept.tolist() == [True, True, False, False]
    assert clipped[kept].tolist() == [[10, 20, 14, 25], [95, 0, 99, 8]]


def test_the_examples_in_the_docstrings_hold() -> None:
    result = doctest.testmod(tinydet.salpha.counting)
    assert result.attempted >= 3 and result.failed == 0


def test_alpha_exists_and_is_within_its_range_for_all_counts() -> None:
    for counts in itertools.product((0, 1, 3, 50), repeat=5):
        raw, alpha = raw_alpha(counts), estimate_alpha(counts)
        n2, n3, n4, n5, n6 = counts
        for value, r, finer, deeper in zip(alpha, raw, (n2, n3, n4), (n3, n4, n5 + n6), strict=True):
            if finer:
                assert r == deeper / finer
                assert value == (r if 0.2 <= r <= 2 else 0.2 if r < 0.2 else 2)
            else:
                assert r is None
                assert value == (2 if deeper else 1)


def test_alpha_range_is_the_clamp() -> None:
    counts = (100, 10, 300, 0, 0)
    assert estimate_alpha(counts, (0.0, 100.0)) == (0.1, 30.0, 0.0)
    assert estimate_alpha(counts, (0.5, 0.5)) == (0.5, 0.5, 0.5)
    assert estimate_alpha((0, 0, 0, 0, 0), (0.2, 0.8)) == (0.8, 0.8, 0.8)
    for bad in ((2.0, 0.2), (-1.0, 2.0), (0.2, float("inf")), (float("nan"), 2.0)):
        with pytest.raises(ValueError, match="0 <= LOW <= HIGH"):
            estimate_alpha(counts, bad)
    for few in ((1, 2), (), (1, 2, -3)):
        with pytest.raises(ValueError, match="at least three levels"):
            estimate_alpha(few)


def test_statistics_as_json() -> None:
    statistics = FusionStatistics((1000, 400, 0, 20, 10), boxes=1430, images=7, seconds=0.5)
    values = json.loads(json.dumps(statistics.to_json(), allow_nan=False))
    assert values["counts"] == {"P2": 1000, "P3": 400, "P4": 0, "P5": 20, "P6": 10}
    assert values["alpha_raw"] == {"P3->P2": 0.4, "P4->P3": 0.0, "P5->P4": None}
    assert values["alpha"] == {"P3->P2": 0.4, "P4->P3": 0.2, "P5->P4": 2.0}
    assert (values["boxes"], values["images"], values["seconds"]) == (1430, 7, 0.5)
    assert values["rule"] == {"count": "gt", "alpha_range": [0.2, 2.0]}
    assert values["warnings"] == list(statistics.warnings)


def test_statistics_refuse_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="one count"):
        FusionStatistics((1, 2, 3), boxes=6, images=1, seconds=0.0)
    with pytest.raises(ValueError, match="0 <= LOW <= HIGH"):
        FusionStatistics((1, 2, 3, 4, 5), boxes=15, images=1, seconds=0.0, alpha_range=(2.0, 1.0))


def warnings_of(*counts: int) -> str:
    return "\n".join(FusionStatistics(counts, sum(counts), 1, 0.0).warnings)


def test_a_tiny_data_set_needs_no_warning() -> None:
    assert warnings_of(1000, 400, 200, 50, 30) == ""


def test_warnings_say_what_is_missing() -> None:
    assert "no object has its best anchor on P6" in warnings_of(1000, 400, 200, 80, 0)
    assert "no object has its best anchor on P5, P6" in warnings_of(1000, 400, 200, 0, 0)
    assert "P5->P4: raw alpha 0 lies outside 0.2..2 and became 0.2" in warnings_of(1000, 400, 200, 0, 0)
    assert "P5->P4: no objects on either side (0/0), so alpha = 1, on no evidence" in warnings_of(1000, 400, 0, 0, 0)
    assert "P5->P4: no objects on the finer side (50/0), so alpha is the upper bound, 2" in warnings_of(
        90, 90, 0, 50, 0
    )


def test_an_edge_of_fewer_than_twenty_objects_is_warned_of() -> None:
    assert "P5->P4: rests on 19 objects" in warnings_of(1000, 400, 10, 8, 1)
    assert "rests on" not in warnings_of(1000, 400, 10, 8, 2)
    assert "rests on" not in warnings_of(1000, 400, 0, 0, 0)  # 0/0 has words of its own
    assert "P3->P2: rests on 1 object," in warnings_of(0, 1, 40, 20, 20)


def test_a_data_set_that_is_not_tiny_is_advised_to_use_one() -> None:
    advice = "not a tiny data set for these anchors, alpha = 1 advised"
    assert f"raw alpha > 1 on P4->P3: {advice}" in warnings_of(1000, 400, 401, 80, 10)
    assert f"raw alpha > 1 on P3->P2, P5->P4: {advice}" in warnings_of(0, 400, 100, 80, 30)
    assert advice not in warnings_of(400, 400, 400, 200, 200)


def test_the_smaller_the_objects_the_smaller_alpha() -> None:
    rng = np.random.default_rng(6)
    sides = np.exp(rng.normal(0, 0.5, (20_000, 2)))
    centres = rng.uniform(0, 640, (20_000, 2))
    alphas = []
    for size in (6, 10, 16, 25):
        boxes = np.concatenate([centres - size * sides / 2, centres + size * sides / 2], axis=1)
        alphas.append(estimate_alpha(count_levels(boxes, (640, 640), RETINANET), (0.0, 9.0))[:2])
    assert alphas == sorted(alphas) and np.array(alphas).T.tolist() == np.sort(np.array(alphas).T).tolist()
