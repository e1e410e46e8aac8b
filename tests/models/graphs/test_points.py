"""Inference from points keeps the contract of an exported model."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from tinydet.models.graphs.points import PointInference
from tinydet.models.options import FCOS_POINTS
from tinydet.spec import ModelSpec

TILE, K, CELLS = 64, 40, (256, 64, 16, 4, 1)


class Outputs(NamedTuple):
    logits: list[Tensor]
    boxes: list[Tensor]
    centerness: list[Tensor]


class Fixed(nn.Module):
    """Outputs that do not depend on the image."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.outputs = Outputs(*(
            [torch.randn(2, cells, *shape, generator=generator) for cells in CELLS]
            for shape in ((classes,), (4,), ())
        ))  # fmt: skip

    def forward(self, images: Tensor) -> Outputs:
        return self.outputs


def spec(**changes: object) -> ModelSpec:
    values = {"classes": ("a", "b", "c"), "category_ids": (1, 2, 3), "detector": "fcos", "backbone": "none",
              "tile": TILE, "max_detections": K}  # fmt: skip
    return ModelSpec(**{**values, **changes})


def run(detector: nn.Module, **changes: object) -> tuple[Tensor, ...]:
    distances = [lambda raw, s=stride: raw.exp() * s for stride in FCOS_POINTS.strides]
    return PointInference(detector, FCOS_POINTS, distances, spec(**changes))(torch.zeros(2, 3, TILE, TILE))


def test_the_best_boxes_are_kept_by_the_root_of_class_times_centerness() -> None:
    fixed = Fixed()
    boxes, scores, labels, candidates = run(fixed)
    logits, raw, centerness = (torch.cat(each, dim=1) for each in fixed.outputs)
    points = torch.cat([torch.from_numpy(each) for each in FCOS_POINTS.points(TILE, TILE)])
    strides = torch.cat([torch.full((n, 1), float(s)) for n, s in zip(CELLS, FCOS_POINTS.strides, strict=True)])
    sides = raw.exp() * strides
    every = torch.cat([points - sides[..., :2], points + sides[..., 2:]], dim=2).clamp(0, TILE)
    probability, label = logits.sigmoid().max(dim=2)
    score = (probability * centerness.sigmoid()) ** 0.5
    order = score.argsort(dim=1, descending=True)[:, :K]
    assert (candidates == (score > 0.05).sum(1)).all() and (candidates > K).all()
    torch.testing.assert_close(scores, score.gather(1, order))
    torch.testing.assert_close(boxes, every.gather(1, order[:, :, None].expand(-1, -1, 4)))
    assert torch.equal(labels, label.gather(1, order).int()) and labels.dtype == torch.int32
    assert boxes.dtype == scores.dtype == torch.float32 and (scores[:, :-1] >= scores[:, 1:]).all()


def test_boxes_without_extent_are_dropped_and_not_counted() -> None:
    fixed = Fixed()
    for raw in fixed.outputs.boxes:
        raw[0, :, 0::2] = -20.0  # no width in the first image
    boxes, scores, labels, candidates = run(fixed, max_detections=400)
    assert candidates[0] == 0 and (labels[0] == -1).all() and not scores[0].any() and not boxes[0].any()
    assert candidates[1] == (labels[1] >= 0).sum() > 200


@pytest.mark.parametrize("floor", [0.0, 0.05, 0.6])
def test_the_floor_is_that_of_the_score_not_of_the_class(floor: float) -> None:
    fixed = Fixed()
    _, scores, labels, candidates = run(fixed, max_detections=400, score_floor=floor)
    score = torch.cat(fixed.outputs.logits, 1).amax(2).sigmoid() * torch.cat(fixed.outputs.centerness, 1).sigmoid()
    assert torch.equal(candidates, (score.sqrt() > floor).sum(1).int())
    assert torch.equal((labels >= 0).sum(1).int(), candidates)
    assert (scores[labels >= 0] > floor).all()


def test_empty_slots_are_marked_also_where_a_tile_has_fewer_points_than_slots() -> None:
    fixed = Fixed()
    for logits in fixed.outputs.logits:
        logits[0] = -40.0
    boxes, scores, labels, candidates = run(fixed, max_detections=500)
    assert boxes.shape == (2, 500, 4) and candidates[0] == 0
    for empty in (slice(0, 1), (slice(1, 2), slice(sum(CELLS), None))):
        assert (labels[empty] == -1).all() and not scores[empty].any() and not boxes[empty].any()
