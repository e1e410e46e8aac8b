"""RoIAlign by gathers against torchvision's, level by level and at the edges of the tile."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import MultiScaleRoIAlign

from tinydet.models.faster_rcnn import AlignedRoIAlign
from tinydet.models.graphs.roi_align import GatheredRoIAlign

TILE = 128
NAMES = ("P2", "P3", "P4", "P5")
RULES = {"torchvision": MultiScaleRoIAlign, "aligned": AlignedRoIAlign}


def gathered(aligned: bool, canonical_scale: float) -> GatheredRoIAlign:
    return GatheredRoIAlign(first_level=2, levels=4, size=7, sampling=2, canonical_scale=canonical_scale,
                            canonical_level=4, aligned=aligned)  # fmt: skip


@pytest.mark.parametrize("canonical_scale", [224, 32])
@pytest.mark.parametrize("rule", RULES)
def test_pooled_features_are_those_of_torchvision(rule: str, canonical_scale: int) -> None:
    torch.manual_seed(0)
    features = [torch.randn(2, 8, TILE >> i, TILE >> i) for i in range(2, 6)]
    center, size = torch.rand(2, 150, 2) * TILE, torch.exp(torch.rand(2, 150, 2) * 6 - 1)  # 0.4 to 148 pixels
    boxes = torch.cat([center - size / 2, center + size / 2], dim=2).clamp(0, TILE)
    edges = torch.tensor([[0, 0, TILE, TILE], [TILE - 1, TILE - 2, TILE, TILE], [0, 0, 0.5, 8], [3, 3, 3, 3]])
    boxes[:, :4] = edges
    align = RULES[rule](list(NAMES), 7, 2, canonical_scale=canonical_scale)
    wanted = align(dict(zip(NAMES, features, strict=True)), list(boxes), [(TILE, TILE)] * 2)
    pooled = gathered(rule == "aligned", canonical_scale)(features, boxes)
    assert pooled.shape == (2, 150, 7, 7, 8)
    assert (pooled.flatten(0, 1).permute(0, 3, 1, 2) - wanted).abs().max() < 5e-5


@pytest.mark.parametrize("canonical_scale", [32, 224])
def test_a_box_is_pooled_from_the_level_of_its_size(canonical_scale: int) -> None:
    """Each level holds its number, so that what is pooled names it; a bound itself belongs to the coarser level."""
    features = [torch.full((1, 1, TILE >> i, TILE >> i), float(i)) for i in range(2, 6)]
    sides = [canonical_scale * 2.0**k for k in (-3, -2, -1, 0, 1) if canonical_scale * 2.0**k <= TILE]
    for side in sides:
        for factor, level in ((0.999, -1), (1.0, 0)):
            wanted = float(min(max(4 + sides.index(side) - 3 + level, 2), 5))
            box = torch.tensor([[[0.0, 0, side * factor, side * factor]]])
            pooled = gathered(True, canonical_scale)(features, box)
            torch.testing.assert_close(pooled, torch.full_like(pooled, wanted))


def test_an_image_pools_from_its_own_features() -> None:
    features = [torch.arange(3.0).view(3, 1, 1, 1).expand(3, 2, TILE >> i, TILE >> i) for i in range(2, 6)]
    boxes = torch.tensor([[8.0, 8, 40, 30], [0, 0, 120, 120]]).expand(3, 2, 4)
    pooled = gathered(True, 32)(features, boxes)
    for i in range(3):
        torch.testing.assert_close(pooled[i], torch.full_like(pooled[i], i))
