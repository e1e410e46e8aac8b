"""The grid branch: its layout, targets and decoding against recorded cases and plain numpy, and its layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from detector_cases import cases_of
from numpy.typing import NDArray

from tinydet.models.grid_branch import (
    NEIGHBORS,
    PART,
    PART_OF_POINT,
    POINTS,
    SIDE,
    WHOLE,
    GridBranch,
    GridDecoder,
    _PointFusion,
    grid_targets,
    point_channels,
)


def targets_by_hand(roi: list[float], box: list[float]) -> NDArray[np.float32]:
    """The 56 x 56 map of each point, cell by cell, then its part."""
    width, height = roi[2] - roi[0], roi[3] - roi[1]
    found = np.zeros((9, 28, 28), np.float32)
    if min(2 * width, 2 * height) <= 3:
        return found
    for i in range(3):
        for j in range(3):
            x = box[0] + (box[2] - box[0]) * i / 2
            y = box[1] + (box[3] - box[1]) * j / 2
            column = int((x - (roi[0] - width / 2)) / (2 * width) * 56)
            row = int((y - (roi[1] - height / 2)) / (2 * height) * 56)
            whole = np.zeros((56, 56), np.float32)
            for down, right in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)):
                if 0 <= row + down < 56 and 0 <= column + right < 56:
                    whole[row + down, column + right] = 1
            found[3 * i + j] = whole[14 * j : 14 * j + 28, 14 * i : 14 * i + 28]
    return found


def box_by_hand(logits: NDArray[np.float32], roi: NDArray[np.float64]) -> list[float]:
    width, height = roi[2] - roi[0], roi[3] - roi[1]
    points = []
    for p in range(9):
        row, column = np.unravel_index(logits[p].argmax(), (28, 28))
        weight = 1 / (1 + np.exp(-float(logits[p].max())))
        x = roi[0] - width / 2 + (column + 14 * (p // 3) + 0.5) / 28 * width
        y = roi[1] - height / 2 + (row + 14 * (p % 3) + 0.5) / 28 * height
        points.append((weight, x, y))
    edges = []
    for axis, members in ((1, (0, 1, 2)), (2, (0, 3, 6)), (1, (6, 7, 8)), (2, (2, 5, 8))):
        total = sum(points[p][0] for p in members)
        edges.append(sum(points[p][0] * points[p][axis] for p in members) / total)
    return edges


def test_the_layout_is_the_recorded_one(shared: Path) -> None:
    for case in cases_of(shared, "grid_layout"):
        assert case["input"] == {"points": POINTS, "whole": WHOLE}
        assert [list(part) for part in PART_OF_POINT] == case["expected"]["part_of_point"]
        assert [list(near) for near in NEIGHBORS] == case["expected"]["neighbours"]
        # Each point adds 1 to the edges that it is on.
        for axis, low, high in ((0, "left", "right"), (1, "top", "bottom")):
            for place, edge in ((0, low), (2, high)):
                on_edge = [p for p in range(POINTS) if (p // SIDE, p % SIDE)[axis] == place]
                assert on_edge == case["expected"]["points_of_edge"][edge]


def test_targets_are_the_recorded_ones(shared: Path) -> None:
    for case in cases_of(shared, "grid_targets"):
        # In float64, as the cases were computed: on the border between two cells the last bit decides.
        rois, boxes = (torch.tensor([each[name] for each in case["input"]], dtype=torch.float64)
                       for name in ("roi", "box"))  # fmt: skip
        for found, expected in zip(grid_targets(rois, boxes), case["expected"], strict=True):
            assert {str(p): part.nonzero().tolist() for p, part in enumerate(found)} == expected


def test_decoded_boxes_are_the_recorded_ones(shared: Path) -> None:
    for case in cases_of(shared, "grid_decode"):
        logits = torch.stack([torch.full((POINTS, PART, PART), each["background"]) for each in case["input"]])
        for found, each in zip(logits, case["input"], strict=True):
            for p, (row, column, value) in enumerate(each["peaks"]):
                found[p, row, column] = value
        boxes = GridDecoder()(logits, torch.tensor([each["roi"] for each in case["input"]]))
        expected = torch.tensor([each["box"] for each in case["expected"]])
        torch.testing.assert_close(boxes, expected, rtol=case["tolerance"], atol=case["tolerance"])


def test_targets_of_many_rois_are_those_of_plain_loops() -> None:
    generator = np.random.default_rng(4)
    corners, sides = generator.uniform(-8, 90, (60, 2)), generator.uniform(0.5, 30, (60, 2))
    rois = np.concatenate([corners, corners + sides], axis=1)
    boxes = rois + generator.uniform(-0.6, 0.6, (60, 4)) * sides.max()  # some points outside the map
    rois[:4] = boxes[:4] = [[4, 4, 9, 10], [3, 2, 4.5, 20], [3, 2, 4.625, 20], [1, 1, 2, 2]]
    boxes[4] = boxes[5] - 1000
    found = grid_targets(torch.tensor(rois), torch.tensor(boxes)).numpy()
    wanted = np.stack([targets_by_hand(*pair) for pair in zip(rois.tolist(), boxes.tolist(), strict=True)])
    assert np.array_equal(found, wanted)
    assert [int(each.sum()) for each in found[:5]] == [45, 0, 45, 0, 0]


def test_decoding_is_that_of_plain_loops_and_the_first_of_equal_cells_wins() -> None:
    generator = np.random.default_rng(2)
    logits = generator.normal(size=(20, 9, 28, 28)).astype(np.float32)
    logits[:3] = [[[[-3.0]]], [[[0.0]]], [[[2.0]]]]  # no peak
    logits[3:6] -= 120  # probabilities that are 0 in float32
    corners = generator.uniform(0, 90, (20, 2))
    rois = np.concatenate([corners, corners + generator.uniform(1, 30, (20, 2))], axis=1)
    boxes = GridDecoder()(torch.from_numpy(logits), torch.from_numpy(rois)).numpy()
    np.testing.assert_allclose(boxes, [box_by_hand(*pair) for pair in zip(logits, rois, strict=True)], atol=1e-4)


def test_boxes_are_finite_and_not_inverted_whatever_the_logits_are() -> None:
    rois = torch.tensor([[10.0, 20.0, 14.0, 23.0]]).expand(4, 4)
    logits = torch.stack([torch.full((9, 28, 28), value) for value in (-1e4, -200.0, 0.0, 1e4)])
    logits[1, :, 27, 27], logits[2, ::2, 27, 27] = -100.0, -1e4
    boxes = GridDecoder()(logits, rois)
    assert boxes.isfinite().all() and (boxes[:, 2:] > boxes[:, :2]).all()


def test_a_roi_trained_on_its_object_decodes_to_it() -> None:
    rois = torch.tensor([[10.0, 10, 22, 26], [30, 40, 38, 45]])
    boxes = torch.tensor([[11.0, 12, 21, 25], [29.5, 41, 37, 45.5]])
    # The five cells of a target are equal, and the first is one row above the center: smoothing puts the peak there.
    peaks = F.avg_pool2d(grid_targets(rois, boxes), 3, 1, 1) + grid_targets(rois, boxes)
    found = GridDecoder()((20 * peaks).float(), rois)
    cells = (rois[:, 2:] - rois[:, :2]).repeat(1, 2) / 28
    assert ((found - boxes).abs() <= cells / 2 + 1e-4).all()


def test_the_branch_has_the_published_size_and_widths_follow_the_pyramid() -> None:
    with torch.device("meta"):
        branch = GridBranch(256)
    assert sum(p.numel() for p in branch.parameters()) == 23_123_145  # 23.1 M
    assert [point_channels(channels) for channels in (1, 8, 31, 32, 64, 100, 256)] == [4, 4, 4, 8, 16, 24, 64]
    for channels in (8, 20):
        assert GridBranch(channels)(torch.randn(2, channels, 14, 14)).shape == (2, 9, 28, 28)


def test_fusion_is_a_sum_over_directed_edges_with_weights_of_their_own() -> None:
    torch.manual_seed(0)
    fusion = _PointFusion(4)
    points, sources = torch.randn(2, 36, 7, 7), torch.randn(2, 36, 7, 7)
    wanted = points.clone()
    edge = 0
    for p, near in enumerate(NEIGHBORS):
        for q in near:
            one = slice(4 * edge, 4 * edge + 4)
            depth, point = fusion.depthwise, fusion.pointwise
            moved = F.conv2d(sources[:, 4 * q : 4 * q + 4], depth.weight[one], depth.bias[one], padding=2, groups=4)
            wanted[:, 4 * p : 4 * p + 4] += F.conv2d(moved, point.weight[one], point.bias[one])
            edge += 1
    assert edge == 24
    torch.testing.assert_close(fusion(points, sources), wanted, rtol=1e-4, atol=1e-5)


def test_training_logits_are_with_and_without_fusion_through_the_same_layers() -> None:
    torch.manual_seed(0)
    branch = GridBranch(8)
    pooled = torch.randn(3, 8, 14, 14)
    fused, unfused = branch.training_logits(pooled)
    torch.testing.assert_close(fused, branch(pooled))
    assert not torch.allclose(fused, unfused)
    for order in (branch.first_order, branch.second_order):
        for parameter in order.parameters():
            torch.nn.init.zeros_(parameter)
    torch.testing.assert_close(branch(pooled), unfused)
    assert torch.allclose(unfused.sigmoid(), torch.tensor(0.01), atol=2e-3)  # the prior of an untrained branch
