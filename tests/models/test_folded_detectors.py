"""Folding alpha changes no detection of any registered detector."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toy_detector import TINY

from tinydet.models.backbone_registry import BACKBONES
from tinydet.models.build import DetectorConfig, build_detector
from tinydet.models.detector import Detector
from tinydet.models.graphs.inference import InferenceGraph
from tinydet.models.registry import DETECTORS
from tinydet.spec import ModelSpec

TILE = 128
ALPHA = (0.37, 1.3, 0.61)


@pytest.fixture(autouse=True)
def tiny_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKBONES, "tiny", TINY)


def detector_of(name: str) -> Detector:
    """A detector whose weights are all random and large enough that scores differ."""
    torch.manual_seed(0)
    edges = len(DETECTORS[name].pyramid.edges)
    detector = build_detector(DetectorConfig("tiny", 64, "group", 2, name), ALPHA[:edges])
    for parameter in detector.parameters():
        if parameter.ndim > 1:
            nn.init.kaiming_normal_(parameter, nonlinearity="linear")
    return detector.eval()


@pytest.mark.parametrize("name", DETECTORS)
def test_the_graph_finds_the_same_with_alpha_folded(name: str) -> None:
    detector = detector_of(name)
    spec = ModelSpec(
        classes=("a", "b"), category_ids=(1, 2), detector=name, backbone="tiny", tile=TILE, max_detections=20,
        score_floor=0.001, nms_rounds=DETECTORS[name].nms_rounds, grid_rois=min(20, DETECTORS[name].grid_rois),
    )  # fmt: skip
    images = torch.randint(0, 256, (1, TILE, TILE, 3), dtype=torch.uint8)
    with torch.no_grad():
        boxes, scores, labels, *_ = InferenceGraph(detector, spec, fold=False)(images)
        folded_boxes, folded_scores, folded_labels, *_ = InferenceGraph(detector, spec)(images)
    assert (scores > spec.score_floor).any() and scores.std() > 1e-4
    torch.testing.assert_close(folded_scores, scores, rtol=0, atol=2e-6)
    torch.testing.assert_close(folded_boxes, boxes, rtol=0, atol=2e-6 * TILE)
    assert torch.equal(folded_labels, labels)
