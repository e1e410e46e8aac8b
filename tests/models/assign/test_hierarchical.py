"""The hierarchical rule adds to the rule by rank what smaller anchors claim."""

from __future__ import annotations

import torch

from tinydet.geometry.anchors import AnchorDesign
from tinydet.models.assign.hierarchical import HierarchicalAssigner
from tinydet.models.assign.similarity import RFD
from tinydet.models.batch import anchors_of

POINTS = AnchorDesign(levels=("P2", "P3"), strides=(4, 8), shapes=(((17.5, 17.5),), ((45.5, 45.5),)))
SIZE = (48, 64)


def test_it_is_the_rule_on_the_matrix_and_an_anchor_belongs_to_its_first_step() -> None:
    generator, added = torch.Generator().manual_seed(0), 0
    anchors = anchors_of(POINTS, SIZE, torch.device("cpu"))
    center, half = (anchors[:, :2] + anchors[:, 2:]) / 2, (anchors[:, 2:] - anchors[:, :2]) / 2
    for _ in range(25):
        sides = torch.rand(1, 2, generator=generator) * 40 + 12
        at = torch.rand(1, 2, generator=generator) * torch.tensor([64.0, 48.0])
        box = torch.cat([at - sides / 2, at + sides / 2], dim=1)
        first, second = (
            RFD().pairs(box.expand(len(anchors), 4), torch.cat([center - half * share, center + half * share], dim=1))
            for share in (1.0, 0.9)
        )
        learns = (first >= first.topk(3).values[-1]) | (second == second.max())
        added += int((learns & (first < first.topk(3).values[-1])).sum())
        found = HierarchicalAssigner()(box, torch.zeros(1, dtype=torch.long), POINTS, anchors, SIZE)
        assert found.positive.tolist() == learns.nonzero().flatten().tolist()
        assert found.ignored.tolist() == ((second >= 0.8) & ~learns).nonzero().flatten().tolist()
    assert added > 0


def test_no_object_means_only_background() -> None:
    anchors = anchors_of(POINTS, SIZE, torch.device("cpu"))
    found = HierarchicalAssigner()(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), POINTS, anchors, SIZE)
    assert len(found.positive) == len(found.ignored) == 0
