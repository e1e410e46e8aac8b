"""Grid R-CNN: what its branch learns, the loss, detections in torch, weights of Faster R-CNN, and its cost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tinydet.data.samples import Sample
from tinydet.models import grid_rcnn
from tinydet.models.backbone import PixelNorm
from tinydet.models.batch import Batch, collate
from tinydet.models.build import DetectorConfig, build_detector
from tinydet.models.checkpoint import Checkpoint
from tinydet.models.cost import multiply_adds, training_bytes
from tinydet.models.faster_rcnn import FasterRCNN, Proposals
from tinydet.models.grid_branch import grid_targets
from tinydet.models.grid_rcnn import GRID_WEIGHT, GridRCNN, jittered, trained_rois
from tinydet.models.losses import total
from tinydet.models.pretrained import Source, initialize
from tinydet.models.registry import DETECTORS

CPU = torch.device("cpu")
CONFIG = DetectorConfig("mobilenet_v2", channels=8, classes=2, detector="grid_rcnn")
NOTHING = np.zeros((0, 4), np.float32)


def grid_rcnn_of(config: DetectorConfig = CONFIG) -> GridRCNN:
    torch.manual_seed(3)
    built = build_detector(config)
    assert isinstance(built, GridRCNN)
    return built


def batch_of(boxes: list[list[float]], size: tuple[int, int] = (96, 64)) -> Batch:
    """A tile with the boxes, of alternating classes, and one without."""
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    full = np.array(boxes, np.float32).reshape(-1, 4)
    return collate([
        Sample(pixels, full, np.arange(len(full), dtype=np.int64) % 2, NOTHING),
        Sample(pixels[:64], NOTHING, np.zeros(0, np.int64), NOTHING),
    ], CPU, PixelNorm())  # fmt: skip


@pytest.mark.parametrize("boxes", [[], [[8, 9, 22, 21]]], ids=["no object", "one"])
def test_only_objects_teach_the_branch(boxes: list[list[float]]) -> None:
    losses = grid_rcnn_of().train().loss(batch_of(boxes))
    assert list(losses) == ["objectness", "proposal_regression", "classification", "grid"]
    assert (losses["grid"] > 0) == bool(boxes)


def test_the_same_seed_gives_the_same_losses_and_gradients() -> None:
    found = []
    for _ in range(2):
        detector = grid_rcnn_of().train()
        torch.manual_seed(7)
        losses = detector.loss(batch_of([[8, 9, 22, 21], [40, 40, 48, 60]]))
        total(losses).backward()
        found.append([*losses.values(), detector.grid_branch.convs[0].weight.grad, detector.fpn.inner[0].weight.grad])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_the_loss_is_that_of_both_heat_maps_over_the_cells_of_the_trained_rois(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = grid_rcnn_of().train()
    rois, objects = (
        torch.tensor([[8.0, 9, 22, 20], [40, 41, 49, 60]]),
        torch.tensor([[8.0, 9, 22, 21], [40, 40, 48, 60]]),
    )
    owner = torch.tensor([0, 1])
    monkeypatch.setattr(grid_rcnn, "trained_rois", lambda sampled: (rois, objects, owner))
    features = detector.pyramid(torch.randn(2, 3, 96, 64))
    proposals = [Proposals(rois, torch.tensor([1, 0]), objects, (96, 64))] * 2
    found = detector.head_losses(features, proposals, (96, 64))["grid"]
    pooled = torch.cat([
        detector.grid_roi_pool({k: v[i : i + 1] for k, v in features.items()}, [rois[i : i + 1]], [(96, 64)])
        for i in range(2)
    ])  # fmt: skip
    targets = grid_targets(rois, objects)
    fused, unfused = detector.grid_branch.training_logits(pooled)
    wanted = sum(F.binary_cross_entropy_with_logits(each, targets) for each in (fused, unfused))
    torch.testing.assert_close(found, GRID_WEIGHT * wanted)


def test_shares_of_two_processes_add_up_to_the_loss_of_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = grid_rcnn_of().eval()
    rois = torch.tensor([[8.0, 9, 22, 20], [40, 41, 49, 60], [4, 5, 12, 30], [30, 31, 44, 39]])
    tiles = [Proposals(part, torch.ones(len(part)), part + 1, (96, 64)) for part in rois.split([3, 1])]

    def positives(sampled: list[Proposals]) -> tuple[torch.Tensor, ...]:
        owner = torch.cat([torch.full((len(each.boxes),), i) for i, each in enumerate(sampled)])
        return torch.cat([each.boxes for each in sampled]), torch.cat([each.objects for each in sampled]), owner

    monkeypatch.setattr(grid_rcnn, "trained_rois", positives)
    features = detector.pyramid(torch.randn(2, 3, 96, 64))
    whole = detector._grid_loss(features, tiles, (96, 64))
    monkeypatch.setattr(grid_rcnn, "sum_over_processes", lambda count: count * 0 + len(rois))
    parts = [
        detector._grid_loss({k: v[i : i + 1] for k, v in features.items()}, [tile], (96, 64))
        for i, tile in enumerate(tiles)
    ]
    torch.testing.assert_close(sum(parts), whole)
    assert parts[0] > 2 * parts[1]  # three of the four RoIs


def test_positives_are_moved_and_scaled_by_up_to_fifteen_percent_within_their_tile() -> None:
    torch.manual_seed(0)
    boxes = torch.tensor([[100.0, 200, 120, 240]]).expand(2000, 4)
    moved = jittered(boxes, (400, 400))
    center, sides = (moved[:, :2] + moved[:, 2:]) / 2, moved[:, 2:] - moved[:, :2]
    for axis, (middle, side) in enumerate(((110, 20), (220, 40))):
        shift, stretch = (center[:, axis] - middle) / side, sides[:, axis] / side - 1
        for each in (shift, stretch):
            assert each.abs().max() <= 0.1501 and each.std() == pytest.approx(0.3 / 12**0.5, rel=0.05)
    at_the_edge = jittered(torch.tensor([[50.0, 80, 64, 96]]).expand(500, 4), (96, 64))
    assert at_the_edge.amax(dim=0)[2:].tolist() == [63, 95]  # the last pixel
    assert jittered(boxes[:0], (400, 400)).shape == (0, 4)


def test_at_most_192_positives_of_a_batch_are_trained_each_with_its_object_and_tile() -> None:
    def tile(count: int, x: float) -> Proposals:
        boxes = torch.tensor([[x, 10.0, x + 10, 30]]).repeat(count, 1)
        labels = (torch.arange(count) % 2) + (torch.arange(count) % 4 == 1)  # half are background
        return Proposals(boxes, labels, boxes + 1, (400, 400))

    torch.manual_seed(1)
    rois, objects, owner = trained_rois([tile(300, 50), tile(4, 150), tile(200, 250)])
    assert len(rois) == len(objects) == 192 and owner.tolist() == sorted(owner.tolist())
    assert 90 < (owner == 0).sum() < 140  # of 150, 2 and 100
    assert (objects[:, 0] == 51 + 100 * owner).all() and ((rois[:, 0] - objects[:, 0]).abs() < 5).all()
    rois, objects, owner = trained_rois([tile(4, 50), tile(0, 50), tile(2, 250)])
    assert len(rois) == 3 and owner.tolist() == [0, 0, 2]
    assert not len(trained_rois([tile(1, 50)])[0])


@torch.no_grad()
def test_detections_have_their_best_class_a_score_above_the_floor_and_a_box_in_the_image() -> None:
    detector = grid_rcnn_of().eval()
    torch.nn.init.normal_(detector.roi_heads.box_predictor.cls_score.weight, std=0.5)
    torch.nn.init.normal_(detector.grid_branch.deconv2.weight, std=0.5)
    images = torch.randn(2, 3, 64, 96)
    for found in detector(images):
        assert 0 < len(found.boxes) <= 100
        assert (found.scores > 0.05).all() and (found.scores[:-1] >= found.scores[1:]).all()
        assert (found.boxes >= 0).all() and (found.boxes <= torch.tensor([96.0, 64, 96, 64])).all()
        assert (found.boxes[:, 2:] > found.boxes[:, :2]).all()
    torch.nn.init.constant_(detector.roi_heads.box_predictor.cls_score.bias[:1], 99.0)
    assert [len(found.boxes) for found in detector(images)] == [0, 0]


def test_weights_of_faster_rcnn_fit_but_for_the_box_regression() -> None:
    torch.manual_seed(1)
    theirs = FasterRCNN("mobilenet_v2", 2, channels=8)
    names = ("__background__", "person", "car")
    ours = grid_rcnn_of()
    report = initialize(ours, Source("coco.pth", theirs.state_dict(), names, 0), ("person", "car"))
    left_out = [name for name in theirs.state_dict() if name not in ours.state_dict()]
    assert left_out == ["roi_heads.box_predictor.bbox_pred.weight", "roi_heads.box_predictor.bbox_pred.bias"]
    copied = {name: torch.equal(value, ours.state_dict()[name]) for name, value in theirs.state_dict().items()
              if name not in left_out and not name.startswith("fpn.alpha")}  # fmt: skip
    assert all(copied.values())
    assert "randomly initialized: grid_branch" in report[1] and "cls_score" not in report[1]
    assert DETECTORS["grid_rcnn"].coco_weights == DETECTORS["faster_rcnn"].coco_weights


def test_the_branch_counts_for_the_cost_of_inference_and_training(monkeypatch: pytest.MonkeyPatch) -> None:
    detectors = [build_detector(DetectorConfig("mobilenet_v2", channels=64, detector=name))
                 for name in ("grid_rcnn", "faster_rcnn")]  # fmt: skip
    grid, faster = (multiply_adds(each, (64, 64))["box head"] for each in detectors)
    without_regression = faster - 1000 * 256 * 8
    points, cells = 144, 49
    convs = cells * 9 * (64 * points + 7 * points**2)
    fusion = 2 * 24 * cells * (16 * 25 + 16 * 16)
    deconvs = cells * points * 16 * 16 + 14 * 14 * points * 16
    assert grid - without_regression == 100 * (convs + fusion + deconvs)  # 72 million a RoI
    memory = [training_bytes(each, 1, (64, 64)) for each in detectors]
    assert memory[0] > memory[1] + 192 * 4 * 8 * cells * points


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({}, (100, 100)),
        ({"grid_rois": 300}, (300, 300)),
        ({"max_detections": 20}, (20, 20)),
        ({"max_detections": 500}, (500, 100)),
        ({"max_detections": 500, "grid_rois": 400}, (500, 400)),
    ],
)
def test_slots_follow_the_rois_of_the_branch_where_they_are_not_given(
    asked: dict[str, int], found: tuple[int, int]
) -> None:
    spec = Checkpoint(CONFIG, {}, ("person", "car"), (1, 2), tile=64).spec(**asked)
    assert (spec.max_detections, spec.grid_rois) == found and spec.boxes_per_tile == found[1]


@pytest.mark.parametrize(
    ("config", "asked", "message"),
    [
        (CONFIG, {"max_detections": 20, "grid_rois": 30}, r"grid_rois must be 0 to max_detections \(20\), not 30"),
        (
            DetectorConfig("mobilenet_v2", classes=2, detector="faster_rcnn"),
            {"grid_rois": 30},
            "faster_rcnn has no grid",
        ),
    ],
)
def test_rois_that_do_not_suit_are_refused(config: DetectorConfig, asked: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Checkpoint(config, {}, ("person", "car"), (1, 2), tile=64).spec(**asked)


def test_other_detectors_have_no_rois() -> None:
    spec = Checkpoint(DetectorConfig("mobilenet_v2"), {}, ("person",), (1,), tile=64).spec()
    assert (spec.max_detections, spec.grid_rois, spec.boxes_per_tile) == (3840, 0, 3840)
