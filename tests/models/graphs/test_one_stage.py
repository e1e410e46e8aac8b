"""The inference graph keeps the contract of an exported model, whatever the detector predicts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tinydet.models.backbone import PIXEL_MEAN, PIXEL_STD
from tinydet.models.box_coder import decode
from tinydet.models.build import DetectorConfig, build_detector
from tinydet.models.graphs.inference import InferenceGraph
from tinydet.spec import ModelSpec

TILE, K = 128, 50


def detector(alpha=(0.4, 0.3, 0.2), classes: int = 2):
    torch.manual_seed(1)
    built = build_detector(
        DetectorConfig("mobilenet_v2", channels=16, norm="batch", classes=classes, options={"head_convs": 1}), alpha
    ).eval()
    built.head.classification_head.cls_logits.bias.data.fill_(-2.0)  # so that an untrained head detects something
    torch.nn.init.normal_(built.head.classification_head.cls_logits.weight, std=0.5)
    return built


def spec(**changes) -> ModelSpec:
    plain = ModelSpec(
        classes=("person", "car"),
        category_ids=(1, 2),
        detector="retinanet",
        backbone="mobilenet_v2",
        tile=TILE,
        max_detections=K,
    )
    return replace(plain, **changes)


def tiles(count: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (count, TILE, TILE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


def test_shapes_types_and_order_are_those_of_the_contract() -> None:
    boxes, scores, labels, candidates = InferenceGraph(detector(), spec())(tiles(3))
    assert boxes.shape == (3, K, 4) and boxes.dtype == torch.float32
    assert scores.shape == (3, K) and scores.dtype == torch.float32
    assert labels.shape == (3, K) and labels.dtype == torch.int32
    assert candidates.shape == (3,) and candidates.dtype == torch.int32
    assert (scores[:, :-1] >= scores[:, 1:]).all()


def test_the_best_boxes_are_kept_with_the_class_that_scores_highest() -> None:
    built = detector()
    image = tiles(1)
    boxes, scores, labels, candidates = InferenceGraph(built, spec())(image)
    normalized = (image.permute(0, 3, 1, 2).float() - torch.tensor(PIXEL_MEAN).view(3, 1, 1)) / torch.tensor(
        PIXEL_STD
    ).view(3, 1, 1)
    with torch.no_grad():
        outputs = built(normalized)
    probability, label = torch.cat(outputs.logits, 1)[0].sigmoid().max(1)
    anchors = torch.cat([torch.from_numpy(a) for a in built.design.grid_anchors(TILE, TILE)])
    every = decode(torch.cat(outputs.deltas, 1)[0], anchors)
    order = probability.argsort(descending=True, stable=True)[:K]
    assert int(candidates) == int((probability > 0.05).sum()) > K
    torch.testing.assert_close(scores[0], probability[order], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(boxes[0], every[order], rtol=1e-4, atol=1e-3)
    assert (labels[0] == label[order]).all()


def test_empty_slots_are_marked() -> None:
    silent = detector()
    silent.head.classification_head.cls_logits.bias.data.fill_(-30.0)
    boxes, scores, labels, candidates = InferenceGraph(silent, spec())(tiles())
    assert (labels == -1).all() and (scores == 0).all() and (boxes == 0).all() and (candidates == 0).all()


def test_a_tile_with_fewer_boxes_than_slots_fills_the_rest_with_empty_slots() -> None:
    built = detector()
    full, small = (InferenceGraph(built, spec(tile=64, max_detections=k)) for k in (K, 3200))
    images = tiles()[:, :64, :64]
    assert sum(len(level) for level in built.design.grid_anchors(64, 64)) < 3200
    wanted, found = full(images), small(images)
    assert found[0].shape == (2, 3200, 4) and found[1].shape == found[2].shape == (2, 3200)
    for one, other in zip(found[:3], wanted[:3], strict=True):
        torch.testing.assert_close(one[:, :K], other, rtol=1e-5, atol=1e-5)
    assert torch.equal(found[3], wanted[3]) and ((found[2] >= 0).sum(dim=1) == found[3]).all()
    assert (found[2][:, -50:] == -1).all() and not found[0][:, -50:].any() and not found[1][:, -50:].any()


def test_folding_changes_no_detection() -> None:
    built = detector((0.368, 0.387, 0.367))
    folded, plain = InferenceGraph(built, spec()), InferenceGraph(built, spec(), fold=False)
    for ours, theirs in zip(folded(tiles()), plain(tiles()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)
    assert not hasattr(folded.network.detector.fpn, "alpha")


def test_a_tile_does_not_depend_on_its_batch() -> None:
    graph = InferenceGraph(detector(), spec())
    batch = tiles(3)
    for i, output in enumerate(graph(batch)[0]):
        torch.testing.assert_close(output, graph(batch[i : i + 1])[0][0], rtol=1e-4, atol=1e-3)


def test_the_detector_is_left_as_it_was() -> None:
    built = detector().train()
    InferenceGraph(built, spec())(tiles(1))
    assert built.training and built.fpn.alpha.tolist() == pytest.approx((0.4, 0.3, 0.2))
    assert all(p.requires_grad for p in built.fpn.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"tile": 100}, "multiple of 32"), ({"tile": 32}, "at least 64")],
)
def test_unsupported_shapes_are_refused(changes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InferenceGraph(detector(), spec(**changes))
