from __future__ import annotations

import numpy as np
import pytest

from tinydet.geometry.boxes import area, intersection, iod_from_iou, iou_by_coordinates, iou_of_pairs, overlap_length


def random_boxes(seed: int, count: int = 500) -> np.ndarray:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(-20, 100, (count, 2))
    return np.concatenate([corner, corner + rng.uniform(1, 40, (count, 2))], axis=1).astype(np.float32)


def test_both_forms_equal_torchvision_bit_for_bit() -> None:
    ops = pytest.importorskip("torchvision.ops")
    torch = pytest.importorskip("torch")
    one, two = random_boxes(0), random_boxes(1)
    expected = ops.box_iou(torch.from_numpy(one), torch.from_numpy(two)).numpy()
    np.testing.assert_array_equal(iou_of_pairs(one[:, None], two[None]), expected)
    columns = tuple(one.T[:, :, None]), tuple(two.T[:, None, :])
    np.testing.assert_array_equal(iou_by_coordinates(*columns), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_type_of_the_boxes_is_the_type_of_the_result(dtype: type[np.floating]) -> None:
    boxes = random_boxes(0).astype(dtype)
    assert area(boxes).dtype == iou_of_pairs(boxes, boxes[0]).dtype == dtype
    assert iou_by_coordinates(tuple(boxes.T), tuple(boxes.T), pixel_inclusive=True).dtype == dtype


def test_a_box_overlaps_itself_completely_and_the_order_of_a_pair_does_not_matter() -> None:
    one, two = random_boxes(2).astype(float), random_boxes(3).astype(float)
    np.testing.assert_array_equal(iou_of_pairs(one, one), np.ones(len(one)))
    np.testing.assert_array_equal(iou_of_pairs(one, two), iou_of_pairs(two, one))


def test_boxes_that_touch_or_are_apart_share_nothing() -> None:
    box, others = np.array([0.0, 0, 10, 10]), np.array([[10.0, 0, 20, 10], [30, 30, 40, 40], [5, 5, 5, 5]])
    assert area(intersection(box, others)).tolist() == iou_of_pairs(box, others).tolist() == [0, 0, 0]
    assert area(np.array([5.0, 5, 1, 1])) == 0
    assert iou_of_pairs(others[2], others[2]) == 0  # without area: 0, not NaN


def test_pixel_inclusive_sides_are_one_pixel_longer() -> None:
    """4 x 4 boxes, 1.5 pixels apart: 10 / 22 by coordinates, 5 * 3.5 / (25 + 25 - 17.5) with both border pixels."""
    one, two = (np.array([10.0, 10, 14, 14]), np.array([11.5, 10, 15.5, 14]))
    assert iou_by_coordinates(tuple(one), tuple(two)) == iou_of_pairs(one, two) == 10 / 22
    assert iou_by_coordinates(tuple(one), tuple(two), pixel_inclusive=True) == 17.5 / 32.5
    ends = (np.array([v]) for v in (0.0, 9.0, 10.0, 19.0))
    assert overlap_length(*ends, pixel_inclusive=True).tolist() == [0]


def test_iod_from_iou_rounds_as_the_benchmark_does() -> None:
    """A 2 x 1 detection, half inside a region of 20 x 10: 1 / 201 becomes a hair less than one half."""
    iou = iou_of_pairs(np.array([[19.0, 0, 21, 1]]), np.array([[0.0, 0, 20, 10]]))
    iod = iod_from_iou(iou, np.array([200.0]), np.array([2.0]))
    assert iod == pytest.approx(0.5) and iod < 0.5
