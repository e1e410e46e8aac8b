"""What a graph computes from the shape of its tiles is what the geometry of the designs says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import toy_detector
from torch import nn

from tinydet.geometry.anchors import AnchorDesign
from tinydet.geometry.points import PointDesign
from tinydet.models.build import DetectorConfig, build_detector
from tinydet.models.checkpoint import Checkpoint
from tinydet.models.graphs.inference import InferenceGraph
from tinydet.models.graphs.tile_shape import EMPTY, Priors, best, clipped
from tinydet.models.registry import DETECTORS

SIZES = [(32, 32), (64, 96), (192, 160), (640, 640)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", DETECTORS)
def test_priors_are_those_of_the_design_to_the_bit(name: str, size: tuple[int, int]) -> None:
    design = DETECTORS[name].design
    assert isinstance(design, AnchorDesign | PointDesign)
    wanted = design.grid_anchors(*size) if isinstance(design, AnchorDesign) else design.points(*size)
    found = Priors(design)(torch.zeros(1, 3, *size))
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == torch.float32
        np.testing.assert_array_equal(ours.numpy(), theirs)


def test_cells_of_another_rule_are_refused() -> None:
    with pytest.raises(ValueError, match="not those of the rule 'torchvision'"):
        Priors(DETECTORS["retinanet"].anchors.design("torchvision"))


def test_boxes_are_cut_to_the_border_of_each_axis() -> None:
    boxes = torch.tensor([[-5.0, -1, 100, 200], [3, 4, 5, 6]])
    assert clipped(boxes, torch.zeros(1, 3, 64, 96)).tolist() == [[0, 0, 96, 64], [3, 4, 5, 6]]


def test_the_best_of_too_few_are_followed_by_empty_ones() -> None:
    values = torch.tensor([[0.5, 3.0, -2.0], [1.0, 1.0, 7.0]])
    kept, index = best(values, 5)
    assert kept.tolist() == [[3.0, 0.5, -2.0, EMPTY, EMPTY], [7.0, 1.0, 1.0, EMPTY, EMPTY]]
    assert index[:, 3:].tolist() == [[0, 0], [0, 0]] and index[0, :3].tolist() == [1, 0, 2]
    assert torch.equal(values.gather(1, index)[:, :3], kept[:, :3])
    assert torch.equal(best(values, 2)[0], values.topk(2, dim=1).values)


@pytest.mark.parametrize("name", DETECTORS)
def test_a_graph_of_one_tile_is_that_of_another(name: str) -> None:
    """The spec's tile is a default: nothing in the graph depends on it."""
    with toy_detector.tiny_backbone():
        torch.manual_seed(0)
        info = DETECTORS[name]
        options = {"head_convs": 1} if "head_convs" in info.option_names else {}
        config = DetectorConfig("tiny", channels=16, norm="batch", classes=2, detector=name, options=options)
        detector = build_detector(config).eval()
        if rpn := getattr(detector, "rpn", None):
            rpn._pre_nms_top_n = rpn._post_nms_top_n = {"testing": 30}
    for layer in detector.modules():
        if isinstance(layer, nn.Conv2d) and layer.out_channels in (2, 6, 18):
            nn.init.normal_(layer.weight, std=0.5)
    checkpoint = Checkpoint(config, {}, ("person", "car"), (1, 3), tile=64)
    images = torch.randint(0, 256, (1, 128, 128, 3), dtype=torch.uint8)
    graphs = [InferenceGraph(detector, checkpoint.spec(tile=tile, max_detections=30)) for tile in (64, 128)]
    for state in graphs[0].state_dict(), graphs[1].state_dict():
        sizes = {key: value.numel() for key, value in state.items() if "priors" in key or "align" in key}
        assert max(sizes.values()) <= 36, sizes
    with torch.inference_mode():
        for ours, theirs in zip(*(graph(images) for graph in graphs), strict=True):
            assert torch.equal(ours, theirs)
