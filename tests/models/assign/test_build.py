"""Options of assignment become assigners; recorded cases come out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from designs import FASTER_RCNN, RETINANET
from detector_cases import cases_of

from tinydet.geometry.anchors import AnchorDesign
from tinydet.models.assign import Assigner
from tinydet.models.assign.build import build_assigner
from tinydet.models.assign.hierarchical import HierarchicalAssigner
from tinydet.models.assign.max_iou import MaxIoUAssigner
from tinydet.models.assign.rank import RankAssigner
from tinydet.models.assign.similarity import NWD, RFD, SIMILARITIES, DotD, IoU, SimD
from tinydet.models.faster_rcnn import FasterRCNN
from tinydet.models.options import AssignOptions, FasterRCNNOptions, RetinaNetOptions
from tinydet.models.registry import detector_options
from tinydet.models.retinanet import RetinaNet


def test_the_default_is_the_published_rule() -> None:
    assert build_assigner() == MaxIoUAssigner(0.5, 0.4)
    assert build_assigner(iou_thresholds=(0.7, 0.3)) == MaxIoUAssigner(0.7, 0.3)
    assert RetinaNet("mobilenet_v2", 1, channels=32).assigner == MaxIoUAssigner(0.5, 0.4)
    assert FasterRCNN("mobilenet_v2", 1, channels=32).rpn.assigner == MaxIoUAssigner(0.7, 0.3)


def test_each_option_reaches_the_assigner() -> None:
    assert build_assigner("nwd") == MaxIoUAssigner(0.7, 0.3, NWD(), every_object=True)
    assert build_assigner("dotd", 0, 0.6) == MaxIoUAssigner(0.7, 0.6, DotD(), every_object=True)
    assert build_assigner("iou", 3) == RankAssigner(IoU(), 3, 0.3)
    assert build_assigner("rfd", 1) == RankAssigner(RFD(), 1, 0.3)
    options = {"assign": "nwd", "assign_rank": 2, "assign_background": 0.8}
    for detector in (RetinaNet, FasterRCNN):
        built = detector("mobilenet_v2", 1, channels=32, **options)
        found = built.assigner if isinstance(built, RetinaNet) else built.rpn.assigner
        assert found == RankAssigner(NWD(), 2, 0.8)


def test_a_background_above_foreground_is_refused_where_thresholds_decide() -> None:
    wanted = "--assign-background 0.6 is above 0.5, from which an anchor learns an object by --assign iou; choose"
    with pytest.raises(ValueError, match=wanted):
        RetinaNetOptions(assign_background=0.6)
    assert FasterRCNNOptions(assign_background=0.6).thresholds == (0.7, 0.6)
    with pytest.raises(ValueError, match=r"--assign-background 0.75 is above 0.7, .* by --assign nwd"):
        FasterRCNNOptions(assign="nwd", assign_background=0.75)
    assert AssignOptions(assign="nwd", assign_rank=3, assign_background=0.95).thresholds[1] == 0.95


@pytest.mark.parametrize(
    ("option", "value", "rule"),
    [
        ("assign", "giou", "assign: expected one of iou, nwd, rfd, dotd, got 'giou'"),
        ("assign_rank", -1, "assign_rank: expected a whole number from 0 to 100, got"),
        ("assign_rank", 101, "assign_rank: expected a whole number from 0 to 100, got"),
        ("assign_rank", True, "assign_rank: expected"),
        ("assign_background", 0, "assign_background: expected a number above 0 and up to 1, got"),
        ("assign_background", 30, "assign_background: expected a number above 0 and up to 1, got '30'"),
    ],
)  # fmt: skip
def test_an_invalid_value_is_named_with_its_rule(option: str, value: object, rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        detector_options("retinanet", {option: value})


SIMD = SimD((6.13, 4.59))
FIELDS = (35.0, 91.0, 267.0, 427.0, 555.0)  # theoretical receptive fields of P2 to P6 in ResNet-50
SQUARES = AnchorDesign(shapes=tuple(((field / 2, field / 2),) for field in FIELDS))
RULES: dict[str, tuple[Assigner, AnchorDesign]] = {
    "threshold_faster_rcnn": (MaxIoUAssigner(0.7, 0.3, minimum=0.3), FASTER_RCNN),
    "threshold_best_of_every_object_faster_rcnn": (MaxIoUAssigner(0.7, 0.3), FASTER_RCNN),
    "threshold_retinanet": (MaxIoUAssigner(0.5, 0.4, minimum=0.4), RETINANET),
    "threshold_best_of_every_object_retinanet": (MaxIoUAssigner(0.5, 0.4), RETINANET),
    "rank1_faster_rcnn": (RankAssigner(IoU(), 1, ties=True, every_object=False), FASTER_RCNN),
    "rank2_faster_rcnn": (RankAssigner(IoU(), 2, ties=True, every_object=False), FASTER_RCNN),
    "rank3_faster_rcnn": (RankAssigner(IoU(), 3, ties=True, every_object=False), FASTER_RCNN),
    "rank2_retinanet": (RankAssigner(IoU(), 2, ties=True, every_object=False), RETINANET),
    "rank3_retinanet": (RankAssigner(IoU(), 3, ties=True, every_object=False), RETINANET),
    "hierarchical_points": (HierarchicalAssigner(), SQUARES),
}


def test_recorded_assignments_come_out(shared: Path) -> None:
    """Where objects compete for an anchor, the recorded rule gives it to the later one; here the more similar one."""
    for case in cases_of(shared, "assignment"):
        height, width = case["input"]["size"]
        boxes = torch.tensor(case["input"]["boxes"], dtype=torch.float32)
        for name, wanted in case["expected"].items():
            measure, rule = name.split("_", 1)
            similarity = {**SIMILARITIES, "simd": SIMD}[measure]
            assigner, design = RULES[rule]
            if rule != "hierarchical_points":
                assigner = replace(assigner, similarity=similarity)
            anchors = torch.cat([torch.from_numpy(level) for level in design.grid_anchors(height, width)])
            found = assigner(boxes, torch.zeros(len(boxes), dtype=torch.long), design, anchors, (height, width))
            owners = dict(zip(found.positive.tolist(), found.objects.tolist(), strict=True))
            recorded = dict(wanted["positive"])
            differing = owners.keys() ^ recorded.keys()
            for anchor in differing:  # as similar as another one of the object: float32 does not see that they tie
                object_ = {**recorded, **owners}[anchor]
                rivals = [each for each in recorded if recorded[each] == object_ and each != anchor]
                values = similarity.pairs(boxes[[object_] * (1 + len(rivals))], anchors[[anchor, *rivals]])
                assert torch.isclose(values[1:], values[0], rtol=3e-6, atol=0).any(), (name, anchor)
            assert set(found.ignored.tolist()) ^ set(wanted["ignored"]) <= differing, name
            for anchor in [each for each in owners.keys() & recorded.keys() if owners[each] != recorded[each]]:
                claims = similarity.pairs(boxes[[owners[anchor], recorded[anchor]]], anchors[[anchor, anchor]])
                assert claims[0] >= claims[1], (name, anchor)
