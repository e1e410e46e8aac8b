"""Options of assignment become assigners; recorded cases come out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from designs import FASTER_RCNN, RETINANET

from tinydet.models.assign import Assigner
from tinydet.models.assign.build import build_assigner
from tinydet.models.assign.max_iou import MaxIoUAssigner
from tinydet.models.assign.rank import RankAssigner
from tinydet.models.assign.similarity import NWD, RFD, DotD, IoU, SimD
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


CASES: dict[str, tuple[Assigner, str]] = {
    "nwd_threshold_faster_rcnn": (MaxIoUAssigner(0.7, 0.3, NWD(), minimum=0.3), "faster_rcnn"),
    "dotd_threshold_faster_rcnn": (MaxIoUAssigner(0.7, 0.3, DotD(), minimum=0.3), "faster_rcnn"),
    "simd_threshold_faster_rcnn": (MaxIoUAssigner(0.7, 0.3, SimD((6.13, 4.59)), minimum=0.3), "faster_rcnn"),
    "simd_threshold_best_of_every_object_faster_rcnn": (MaxIoUAssigner(0.7, 0.3, SimD((6.13, 4.59))), "faster_rcnn"),
    "nwd_rank2_faster_rcnn": (build_assigner("nwd", 2), "faster_rcnn"),
    "nwd_rank3_retinanet": (build_assigner("nwd", 3), "retinanet"),
}


@pytest.mark.parametrize("name", CASES)
def test_recorded_assignments_come_out(name: str, shared: Path) -> None:
    path = shared / "cases" / "detectors" / "assignment.json"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    case = json.loads(path.read_text())
    assigner, detector = CASES[name]
    design = {"retinanet": RETINANET, "faster_rcnn": FASTER_RCNN}[detector]
    height, width = case["input"]["size"]
    boxes = torch.tensor(case["input"]["boxes"])
    anchors = torch.cat([torch.from_numpy(level) for level in design.grid_anchors(height, width)])
    found = assigner(boxes, torch.zeros(len(boxes), dtype=torch.long), design, anchors, (height, width))
    wanted = case["expected"][name]
    assert torch.stack([found.positive, found.objects], dim=1).tolist() == wanted["positive"]
    assert found.ignored.tolist() == wanted["ignored"]
