"""Suppression in rounds: what greedy NMS keeps once it settles, and an honest count until then."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import nms

from tinydet.models.graphs.cluster_nms import cluster_nms


def greedy(boxes: torch.Tensor, valid: torch.Tensor, iou: float) -> torch.Tensor:
    """What torchvision keeps of boxes that come best first, as flags."""
    scores = torch.linspace(1, 0, len(boxes))
    flags = torch.zeros(len(boxes), dtype=torch.bool)
    (there,) = torch.where(valid)
    flags[there[nms(boxes[there], scores[there], iou)]] = True
    return flags


def scattered(count: int, spread: float) -> torch.Tensor:
    center, size = torch.rand(count, 2) * spread, torch.rand(count, 2) * 20 + 1
    return torch.cat([center - size / 2, center + size / 2], dim=1).clamp(0, spread)


@pytest.mark.parametrize("iou", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("spread", [20.0, 60.0, 400.0])
def test_what_has_settled_is_what_torchvision_keeps(iou: float, spread: float) -> None:
    torch.manual_seed(int(spread))
    boxes = torch.stack([scattered(200, spread) for _ in range(4)])
    valid = torch.rand(4, 200) > 0.1
    kept, changed = cluster_nms(boxes, valid, iou, 32)
    assert changed.tolist() == [0] * 4 and changed.dtype == torch.int32
    for i in range(4):
        assert torch.equal(kept[i], greedy(boxes[i], valid[i], iou))


@pytest.mark.parametrize("length", range(2, 8))
def test_a_chain_needs_as_many_rounds_as_it_is_long(length: int) -> None:
    """Each box overlaps its neighbors only: the first suppresses the second, which so spares the third, and so on."""
    left = torch.arange(length) * 3.0
    boxes = torch.stack([left, torch.zeros(length), left + 10, torch.full((length,), 10.0)], dim=1)[None]
    valid = torch.ones(1, length, dtype=torch.bool)
    settled = []
    for rounds in range(1, length + 2):
        kept, changed = cluster_nms(boxes, valid, 0.5, rounds)
        if changed.item() == 0:
            settled.append(rounds)
            assert torch.equal(kept[0], greedy(boxes[0], valid[0], 0.5))
            assert kept[0].tolist() == [i % 2 == 0 for i in range(length)]
    assert settled[0] == length and settled[-1] == length + 1


def test_empty_slots_suppress_nothing_and_no_boxes_are_accepted() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 9], [5, 5, 5, 5]]])
    kept, changed = cluster_nms(boxes, torch.tensor([[False, True, False]]), 0.5, 2)
    assert kept.tolist() == [[False, True, False]] and changed.tolist() == [0]
    kept, changed = cluster_nms(boxes, torch.zeros(1, 3, dtype=torch.bool), 0.5, 1)
    assert not kept.any() and changed.tolist() == [0]
