"""The box tower on windows, against the same tower on whole levels."""

from __future__ import annotations

import pytest
import torch
from dense_loss import dense_loss
from torchvision.models.detection.retinanet import RetinaNetRegressionHead

from tinydet.models.batch import Batch
from tinydet.models.detector import DetectorConfig, build_detector
from tinydet.models.sparse_head import BLOCK_SIDES, blocks_of, deltas_at, windows_of

SHAPES, IMAGES = 3, 2
GRIDS = [(24, 40), (12, 20), (6, 10), (3, 5), (2, 3)]
CELLS = sum(rows * columns for rows, columns in GRIDS)


def setting(convolutions: int = 2):
    torch.manual_seed(0)
    head = RetinaNetRegressionHead(8, SHAPES)
    head.conv = head.conv[:convolutions]
    for conv in (*(layer[0] for layer in head.conv), head.bbox_reg):
        torch.nn.init.normal_(conv.weight, std=0.2)
        torch.nn.init.normal_(conv.bias, std=0.2)  # zero padding must differ from the tower's output on zeros
    levels = [torch.randn(IMAGES, 8, *grid, requires_grad=True) for grid in GRIDS]
    return head, levels


def corners() -> list[int]:
    """The first and the last cell of the first and the last row of each level, in both images."""
    found, start = [], 0
    for rows, columns in GRIDS:
        for cell in (0, columns - 1, (rows - 1) * columns, rows * columns - 1):
            found += [(image * CELLS + start + cell) * SHAPES + cell % SHAPES for image in range(IMAGES)]
        start += rows * columns
    return sorted(set(found))


@pytest.mark.parametrize("convolutions", [1, 2, 4])
@pytest.mark.parametrize("side", BLOCK_SIDES)
@pytest.mark.parametrize("anchors", [corners(), list(range(0, 30, 7)), [CELLS * SHAPES - 1]])
def test_windows_give_the_outputs_and_gradients_of_whole_levels(
    convolutions: int, side: int, anchors: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    head, levels = setting(convolutions)
    asked, learned = torch.tensor(anchors), [*levels, *head.parameters()]
    weights = torch.randn(len(anchors), 4)
    whole = head(levels).reshape(-1, 4)[asked]
    wanted = torch.autograd.grad((whole * weights).sum(), learned)
    monkeypatch.setattr("tinydet.models.sparse_head.BLOCK_SIDES", (side,))
    monkeypatch.setattr("tinydet.models.sparse_head.WORTH", float("inf"))
    given = deltas_at(head, levels, asked, SHAPES)
    torch.testing.assert_close(given, whole, rtol=1e-4, atol=1e-5)
    found = torch.autograd.grad((given * weights).sum(), learned, materialize_grads=True)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_crowd_is_computed_on_whole_levels() -> None:
    head, levels = setting()
    everything = torch.arange(IMAGES * CELLS * SHAPES)
    assert torch.equal(deltas_at(head, levels, everything, SHAPES), head(levels).reshape(-1, 4))


def test_without_positive_anchors_the_tower_still_has_a_gradient_of_zero() -> None:
    head, levels = setting()
    given = deltas_at(head, levels, torch.empty(0, dtype=torch.long), SHAPES)
    assert given.shape == (0, 4)
    given.sum().backward()
    assert all(p.grad is not None and (p.grad == 0).all() for p in head.parameters())  # as SGD and many processes need


def test_blocks_hold_the_cells_of_their_anchors_once() -> None:
    asked = torch.tensor(corners())
    blocks = blocks_of(asked, IMAGES, GRIDS, SHAPES, 4)
    places = list(zip(*(part.tolist() for part in blocks[1:5]), strict=True))
    assert len(set(places)) == len(places) and places == sorted(places)
    for anchor, place in zip(asked.tolist(), blocks.place.tolist(), strict=True):
        cell, shape = divmod(place, SHAPES)
        block, within = divmod(cell, 16)
        level, image, row, column = places[block]
        row, column = row + within // 4, column + within % 4
        first = sum(rows * columns for rows, columns in GRIDS[:level])
        assert (image * CELLS + first + row * GRIDS[level][1] + column) * SHAPES + shape == anchor


def test_overlapping_windows_add_their_gradients_in_the_same_order_every_time() -> None:
    torch.manual_seed(0)
    level = torch.randn(IMAGES, 64, *GRIDS[0], requires_grad=True)
    blocks = blocks_of(torch.arange(IMAGES * CELLS * SHAPES), IMAGES, GRIDS, SHAPES, 4)
    x, _ = windows_of([level, *(torch.randn(IMAGES, 64, *grid) for grid in GRIDS[1:])], blocks, 5)
    weights = torch.randn(x.shape)
    first, *others = (torch.autograd.grad(x, level, weights, retain_graph=True)[0] for _ in range(5))
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("detector", ["retinanet", "retinanet-p3p7"])
@pytest.mark.parametrize("bfloat16", [False, True])
def test_the_loss_of_a_batch_is_that_of_outputs_for_all_anchors(detector: str, bfloat16: bool) -> None:
    torch.manual_seed(0)
    network = build_detector(
        DetectorConfig("mobilenet_v2", 16, "frozen", 2, detector, options={"head_convs": 2, "head_init": "he"}), None
    )
    boxes = torch.tensor([[3.0, 4, 15, 20], [90, 60, 96, 64], [40, 40, 60, 52]])
    batch = Batch(
        torch.randn(2, 3, 64, 96),
        boxes,
        torch.tensor([0, 1, 1]),
        torch.tensor([0, 0, 1]),
        torch.tensor([[0.0, 0, 16, 16]]),
        torch.tensor([1]),
        ((64, 96), (64, 96)),
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        ours, outputs = network.loss(batch), network(batch.images)
    whole = dense_loss(network, outputs, batch)
    for level in network.design.levels:
        classification, regression = f"classification/{level}", f"regression/{level}"
        torch.testing.assert_close(ours[classification], whole[classification])
        torch.testing.assert_close(ours[regression], whole[regression], rtol=1e-2 if bfloat16 else 1e-4, atol=1e-6)
    assert all(value.dtype == torch.float32 for value in ours.values())
    assert any(value > 0 for name, value in whole.items() if name.startswith("regression"))
