"""Which points learn which objects: the windows find what a comparison of all objects with all points finds."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from detector_cases import cases_of, point_design

from tinydet.geometry.anchors import Pyramid
from tinydet.geometry.points import PointDesign, count_points, positive_points
from tinydet.models.options import FCOS_P3P7_POINTS, FCOS_POINTS

DESIGNS = {
    "center sampling": FCOS_POINTS,
    "whole boxes": FCOS_P3P7_POINTS,
    "small center": replace(FCOS_P3P7_POINTS, radius=0.5),
}


def dense(design: PointDesign, boxes: np.ndarray, size: tuple[int, int]) -> list[tuple[int, int, int]]:
    """Level, cell and object of every positive point of one image, by a loop over points and objects."""
    found = []
    for level, (stride, (low, high)) in enumerate(zip(design.strides, design.ranges, strict=True)):
        columns, rows = (math.ceil(side / stride) for side in size)
        for row, column in itertools.product(range(rows), range(columns)):
            x, y = column * stride + stride // 2, row * stride + stride // 2
            best, smallest = -1, math.inf
            for number, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
                inside = x1 < x < x2 and y1 < y < y2
                if design.radius is not None:
                    reach = design.radius * stride
                    inside &= abs(x - (x1 + x2) / 2) < reach and abs(y - (y1 + y2) / 2) < reach
                in_range = low <= max(x - x1, y - y1, x2 - x, y2 - y) <= high
                if inside and in_range and (x2 - x1) * (y2 - y1) < smallest:
                    best, smallest = number, (x2 - x1) * (y2 - y1)
            if best >= 0:
                found.append((level, row * columns + column, best))
    return found


def sparse(design: PointDesign, boxes: np.ndarray, size: tuple[int, int], **options) -> list[tuple[int, int, int]]:
    found = positive_points(design, boxes, size, **options)
    starts = np.concatenate([[0], design.grids(size)[0].prod(axis=1).cumsum()])
    return list(zip(found.level.tolist(), (found.points - starts[found.level]).tolist(), found.objects.tolist(),
                    strict=True))  # fmt: skip


def random_boxes(generator: np.random.Generator, kind: str, size: tuple[int, int]) -> np.ndarray:
    low = generator.uniform(0, size, (12, 2))
    sides = np.exp(generator.uniform(0, 5, (12, 2)))
    if kind == "multiples of 4":  # edges and centers on points, distances at the ends of ranges, equal areas
        low, sides = low // 4 * 4, sides // 8 * 8 + generator.choice([4, 8, 64], (12, 2))
    boxes = np.concatenate([low, low + sides], axis=1)
    if kind == "float32":
        boxes = boxes.astype(np.float32).astype(np.float64)
    if kind == "nearly on points":
        boxes = np.round(boxes / 2) * 2 + generator.choice([-1e-5, 0, 1e-5], boxes.shape)
    return boxes


@pytest.mark.parametrize("name", DESIGNS)
@pytest.mark.parametrize("kind", ["any", "float32", "multiples of 4", "nearly on points"])
def test_windows_find_what_all_pairs_find(name: str, kind: str) -> None:
    generator, positive = np.random.default_rng(0), 0
    for size in ((160, 96), (70, 200)):
        boxes = random_boxes(generator, kind, size)
        wanted = dense(DESIGNS[name], boxes, size)
        assert sparse(DESIGNS[name], boxes, size) == wanted
        positive += len(wanted)
    assert positive > 0


def test_an_edge_through_a_point_does_not_contain_it() -> None:
    assert sparse(FCOS_P3P7_POINTS, np.array([[4.0, 4, 12, 12]]), (32, 32)) == []
    assert len(sparse(FCOS_P3P7_POINTS, np.array([[3.9, 3.9, 12, 12]]), (32, 32))) == 1


def test_a_distance_at_the_end_of_two_ranges_is_positive_on_both() -> None:
    box = np.array([[20.0, 30, 148, 90]])  # 64 pixels from x = 84 to both sides
    found = sparse(FCOS_P3P7_POINTS, box, (256, 128))
    assert {level for level, _, _ in found} == {0, 1}
    assert {cell % 32 for level, cell, _ in found if level == 0} == {10}


def test_of_equal_areas_the_first_is_learned_and_else_the_smaller() -> None:
    boxes = np.array([[0.0, 0, 16, 8], [0, 0, 8, 16], [0, 0, 8, 8]])
    assert [each[2] for each in sparse(FCOS_P3P7_POINTS, boxes[:2], (8, 8))] == [0]
    assert [each[2] for each in sparse(FCOS_P3P7_POINTS, boxes, (8, 8))] == [2]


def test_areas_that_float32_could_not_order_are_ordered() -> None:
    small, large = [0, 0, 8, 7.5], [0, 0, 8, 7.6]  # torchvision compares 1e8 - area in float32
    assert [each[2] for each in sparse(FCOS_P3P7_POINTS, np.array([large, small]), (8, 8))] == [1]


@pytest.mark.parametrize("every_object", [False, True])
def test_images_of_several_sizes_are_independent(every_object: bool) -> None:
    generator = np.random.default_rng(1)
    sizes = [(160, 96), (64, 64), (200, 130)]
    boxes = [random_boxes(generator, "any", size) for size in sizes]
    together = positive_points(
        FCOS_POINTS, np.concatenate(boxes), sizes, np.repeat([0, 1, 2], 12), every_object=every_object
    )
    first, objects = 0, 0
    for size, of_image in zip(sizes, boxes, strict=True):
        alone = positive_points(FCOS_POINTS, of_image, size, every_object=every_object)
        count = int(FCOS_POINTS.grids(size).prod(axis=2).sum())
        mine = (together.points >= first) & (together.points < first + count)
        assert (together.points[mine] - first).tolist() == alone.points.tolist()
        assert (together.objects[mine] - objects).tolist() == alone.objects.tolist()
        assert together.level[mine].tolist() == alone.level.tolist()
        first, objects = first + count, objects + 12
    assert first == FCOS_POINTS.grids(sizes).prod(axis=2).sum()


def test_an_object_between_points_gets_the_nearest_point_of_its_level() -> None:
    box = np.array([[8.5, 16.5, 9.5, 17.5]])  # the nearest points of P2 are 10, 18 pixels
    assert sparse(FCOS_POINTS, box, (64, 64)) == []
    assert sparse(FCOS_POINTS, box, (64, 64), every_object=True) == [(0, 4 * 16 + 2, 0)]
    assert count_points(FCOS_P3P7_POINTS, np.array([[200.0, 0, 500, 1]]), (640, 64)) == (0, 0, 0, 0, 0)
    wide = count_points(FCOS_P3P7_POINTS, np.array([[200.0, 0, 500, 1]]), (640, 64), every_object=True)
    assert wide == (0, 0, 1, 0, 0)  # 150 pixels to the farther side


def test_nearest_points_are_found_by_an_exhaustive_search() -> None:
    generator = np.random.default_rng(2)
    for _ in range(50):
        low = generator.uniform(0, 30, 2)
        box = np.concatenate([low, low + generator.uniform(0.1, 1.9, 2)])[None]
        found = positive_points(FCOS_POINTS, box, (32, 32), every_object=True).points
        points = FCOS_POINTS.points(32, 32)[0]
        center = (box[0, :2] + box[0, 2:]) / 2
        assert found.tolist() == [int(np.hypot(*(points - center).T).argmin())]


def test_in_a_crowd_every_object_has_a_point_and_no_other_object_loses_its_last() -> None:
    generator = np.random.default_rng(3)
    low = generator.uniform(0, 56, (150, 2))
    boxes = np.concatenate([low, low + generator.uniform(0.5, 8, (150, 2))], axis=1)
    boxes[:20] = boxes[0]  # the same box many times: one of them has points by the rule
    before, after = (positive_points(FCOS_POINTS, boxes, (64, 64), every_object=each) for each in (False, True))
    assert len(np.unique(before.objects)) < 130 and len(np.unique(after.objects)) == 150
    assert (np.diff(after.points) > 0).all() and (np.bincount(after.level)[1:] == np.bincount(before.level)[1:]).all()
    lone = np.flatnonzero(np.bincount(before.objects, minlength=150) == 1)
    owner = dict(zip(after.points.tolist(), after.objects.tolist(), strict=True))
    kept = [(p, o) for p, o in zip(before.points.tolist(), before.objects.tolist(), strict=True) if o in lone]
    assert kept and all(owner[point] == each for point, each in kept)


def test_more_objects_than_points_leave_some_without() -> None:
    boxes = np.tile([[1.0, 1, 2, 2]], (300, 1))
    found = positive_points(FCOS_POINTS, boxes, (64, 64), every_object=True)
    assert len(found.points) == len(np.unique(found.objects)) == 256  # all of P2


def test_a_dense_crowd_needs_no_matrix_of_objects_and_points() -> None:
    low = np.random.default_rng(4).uniform(0, 600, (5000, 2))
    boxes = np.concatenate([low, low + 8], axis=1)
    tracemalloc.start()
    counts = count_points(FCOS_POINTS, boxes, (640, 640))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sum(counts) > 5000 and peak < 40e6 < 5000 * 34100 / 4  # bytes; a mask of all pairs has 170e6


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_counts_do_not_depend_on_how_many_images_are_counted_at_a_time(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(5)
    sizes, index = [(160, 96), (64, 64), (96, 200)], generator.integers(0, 3, 40)
    boxes = np.concatenate([random_boxes(generator, "multiples of 4", (150, 100)) for _ in range(4)])[:40]
    for every_object in (False, True):
        whole = positive_points(FCOS_POINTS, boxes, sizes, index, every_object=every_object)
        monkeypatch.setattr("tinydet.geometry.points.CHUNK", chunk)
        counts = count_points(FCOS_POINTS, boxes, sizes, index, every_object=every_object)
        assert counts == tuple(np.bincount(whole.level, minlength=5).tolist())


def test_images_without_objects_and_boxes_in_any_order_are_counted() -> None:
    generator = np.random.default_rng(6)
    index = generator.permutation(np.repeat([0, 2, 2, 5], 3))
    boxes = random_boxes(generator, "any", (96, 96))
    sizes = [(96, 96), (8, 8), (64, 200), (96, 96), (32, 32), (120, 90)]
    alone = [count_points(FCOS_POINTS, boxes[index == n], sizes[n], every_object=True) for n in range(6)]
    together = count_points(FCOS_POINTS, boxes, sizes, index, every_object=True)
    assert together == tuple(np.sum(alone, axis=0)) and sum(together) >= 12


def test_without_objects_there_are_no_positive_points() -> None:
    for every_object in (False, True):
        assert count_points(FCOS_POINTS, np.zeros((0, 4)), (64, 64), every_object=every_object) == (0, 0, 0, 0, 0)


def test_half_the_longer_side_decides_the_level_and_a_limit_belongs_to_the_finer_one() -> None:
    sides = [1.0, 32, 32.1, 64, 128, 256, 256.1, 5000]
    boxes = np.array([[0, 0, side / 2, side] for side in sides])
    assert FCOS_POINTS.level_of(boxes).tolist() == [0, 0, 1, 1, 2, 3, 4, 4]


def test_points_are_the_centers_of_cells_and_of_their_squares() -> None:
    assert FCOS_POINTS.points(8, 12)[0].tolist() == [[2, 2], [6, 2], [10, 2], [2, 6], [6, 6], [10, 6]]
    for design in (FCOS_POINTS, FCOS_P3P7_POINTS):
        for points, squares in zip(design.points(96, 160), design.squares().grid_anchors(96, 160), strict=True):
            np.testing.assert_allclose((squares[:, :2] + squares[:, 2:]) / 2, points, atol=1e-4)
        sides = [shapes[0][0] for shapes in design.squares().shapes]
        assert np.allclose(np.divide(sides[1:], sides[:-1]), 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ranges": ((-1, 16),)}, "one stride and one range for each level, but there are 5 levels, 5 strides and 1"),
        ({"ranges": ((-1, 16), (32, 16), (32, 64), (64, 128), (128, 256))}, "level P3: the range must have a low end"),
        ({"radius": 0.0}, "radius of the center region must be above 0"),
    ],
)
def test_designs_that_mean_nothing_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(FCOS_POINTS, **changes)


def test_the_edges_are_those_of_the_pyramid() -> None:
    assert FCOS_POINTS.edges == Pyramid().edges and FCOS_P3P7_POINTS.edges == ("P4->P3", "P5->P4")


def test_the_numeric_cases_of_targets(shared: Path) -> None:
    for case in cases_of(shared, "fcos_targets"):
        given, expected = case["input"], case["expected"]
        boxes, design = np.array(given["boxes"]).reshape(-1, 4), point_design(given)
        wanted = [(given["levels"].index(p["level"]), p["index"], p["object"]) for p in expected["positives"]]
        found = sparse(design, boxes, tuple(given["size"][::-1]))
        assert [each[:2] for each in found] == [each[:2] for each in wanted], case["what"]
        width, height = (boxes[:, 2:] - boxes[:, :2]).T
        for (_, _, mine), (_, _, other) in zip(found, wanted, strict=True):
            # The authors' code counts the last pixel, so that a narrow box of the smaller area may be the larger one.
            larger = width[mine] * height[mine] >= width[other] * height[other]
            assert mine == other or (given["area_rule"] == "plus_one" and not larger), case["what"]
        if given["area_rule"] == "plain":
            without = np.setdiff1d(np.arange(len(boxes)), [each for _, _, each in found]).tolist()
            assert without == expected["objects_without_point"]
        points = design.points(*given["size"])
        assert [points[level][cell].tolist() for level, cell, _ in found] == [p["point"] for p in expected["positives"]]


def test_the_numeric_cases_of_counts(shared: Path) -> None:
    for case in cases_of(shared, "salpha_points"):
        given, design = case["input"], point_design(case["input"])
        boxes = np.array(given["boxes"])
        assert list(count_points(design, boxes, given["size"][::-1])) == case["expected"]["anchor"]["counts"]
        by_object = np.bincount(design.level_of(boxes), minlength=len(design.levels)).tolist()
        assert by_object == case["expected"]["gt"]["counts"]
