"""RetinaNet on its two sets of levels."""

from __future__ import annotations

import pytest
import torch
from designs import DESIGNS, RETINANET_P3P7
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.resnet import resnet18
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from tinydet.models.build import DetectorConfig, build_detector
from tinydet.models.retinanet import RetinaNetP3P7
from tinydet.salpha.factors import FusionStatistics


@pytest.mark.parametrize("name", ["retinanet", "retinanet-p3p7"])
@pytest.mark.parametrize("size", [(64, 64), (96, 160)])
def test_there_is_one_prediction_per_anchor(name: str, size: tuple[int, int]) -> None:
    detector = build_detector(
        DetectorConfig("mobilenet_v2", 8, classes=3, detector=name, options={"head_convs": 1})
    ).eval()
    with torch.no_grad():
        outputs = detector(torch.randn(2, 3, *size))
    anchors = DESIGNS[name].grid_anchors(*size)
    assert [tuple(x.shape) for x in outputs.logits] == [(2, len(level), 3) for level in anchors]
    assert [tuple(x.shape) for x in outputs.deltas] == [(2, len(level), 4) for level in anchors]


@torch.no_grad()
def test_with_alpha_1_the_levels_p3_to_p7_are_those_of_torchvision() -> None:
    torch.manual_seed(0)
    ours = RetinaNetP3P7("resnet18", 1, channels=256).eval()
    theirs = _resnet_fpn_extractor(
        resnet18(weights=None), 5, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256)
    ).eval()
    theirs.body.load_state_dict(ours.backbone.body.state_dict())
    theirs.fpn.extra_blocks.load_state_dict(ours.fpn.top.state_dict())
    for i in range(3):
        theirs.fpn.inner_blocks[i][0].load_state_dict(ours.fpn.inner[i].state_dict())
        theirs.fpn.layer_blocks[i][0].load_state_dict(ours.fpn.layer[i].state_dict())
    images = torch.randn(1, 3, 128, 64)
    for level, wanted in zip(ours.levels(images), theirs(images).values(), strict=True):
        torch.testing.assert_close(level, wanted)


def test_two_edges_are_fused_on_p3_to_p7_and_what_lies_deeper_counts_with_p5() -> None:
    assert RETINANET_P3P7.edges == ("P4->P3", "P5->P4")
    assert DESIGNS["retinanet"].edges == DESIGNS["faster_rcnn"].edges == ("P3->P2", "P4->P3", "P5->P4")
    # As `statistics_of` hands it on: P6 and P7 as one.
    statistics = FusionStatistics((100, 50, 10, 15), 175, 1, 0.0, ("P3", "P4", "P5", "P6+P7"))
    assert statistics.edges == RETINANET_P3P7.edges and statistics.alpha == (0.5, 0.5)
    with pytest.raises(ValueError, match="3 levels have 2 fused edges, but alpha has 3 values"):
        RetinaNetP3P7("mobilenet_v2", 1, channels=8, alpha=(0.5, 0.5, 0.5))
