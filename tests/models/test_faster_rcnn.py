"""Faster R-CNN: the same weights give torchvision's proposals, detections and losses; what torchvision cannot do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from designs import torchvision_design
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import box_iou, roi_align
from torchvision_graph import TorchvisionGraph

from tinydet.data.samples import Sample
from tinydet.models import faster_rcnn, grid_rcnn
from tinydet.models.backbone import PixelNorm
from tinydet.models.backend import TorchBackend
from tinydet.models.batch import Batch, anchors_of, collate
from tinydet.models.build import DetectorConfig, build_detector
from tinydet.models.checkpoint import Checkpoint
from tinydet.models.faster_rcnn import AlignedRoIAlign, FasterRCNN, _centered_in, _outside_regions
from tinydet.models.losses import total

SIZE, CLASSES, CHANNELS = 128, 2, 16
CPU = torch.device("cpu")


class Pyramid(nn.Module):
    """Our backbone and pyramid as torchvision asks for them."""

    out_channels = CHANNELS

    def __init__(self, ours: FasterRCNN) -> None:
        super().__init__()
        self.ours = ours

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        levels = self.ours.fpn(self.ours.backbone(images))
        return dict(zip(("0", "1", "2", "3", "pool"), levels, strict=True))


def pair(**options) -> tuple[FasterRCNN, TorchvisionFasterRCNN]:
    """Ours with torchvision's anchors, and torchvision's with our weights."""
    torch.manual_seed(3)
    design = torchvision_design("faster_rcnn")
    ours = FasterRCNN("mobilenet_v2", CLASSES, channels=CHANNELS, alpha=(0.5, 0.7, 1.1), straddling=True,
                      design=design, score_floor=0.3, max_detections=50, **options)  # fmt: skip
    for weight in (ours.rpn.head.cls_logits.weight, ours.roi_heads.box_predictor.cls_score.weight):
        nn.init.normal_(weight, std=1.0)  # so that scores differ
    sizes, ratios = ((8.31,), (12.5,), (18.55,), (30.23,), (60.41,)), ((0.5, 1.3, 2.0),) * 5
    theirs = TorchvisionFasterRCNN(
        Pyramid(ours),
        min_size=SIZE,
        max_size=SIZE,
        image_mean=(0, 0, 0),
        image_std=(1, 1, 1),
        rpn_anchor_generator=AnchorGenerator(sizes, ratios),
        rpn_pre_nms_top_n_train=2000,
        rpn_post_nms_top_n_train=2000,
        box_head=type(ours.roi_heads.box_head)(CHANNELS * 49, 4 * CHANNELS),
        box_predictor=type(ours.roi_heads.box_predictor)(4 * CHANNELS, CLASSES + 1),
        box_score_thresh=0.3,
        box_detections_per_img=50,
    )
    theirs.rpn.load_state_dict(ours.rpn.state_dict())
    theirs.roi_heads.load_state_dict(ours.roi_heads.state_dict())
    return ours, theirs


def batch_of(regions: list[list[float]] | None = None, sizes=((SIZE, SIZE), (SIZE, SIZE))) -> Batch:
    generator = np.random.default_rng(1)
    empty = np.zeros((0, 4), np.float32)
    samples = []
    for i, (height, width) in enumerate(sizes):
        boxes = np.array([[8, 9, 22, 21], [50, 40, 58, 60], [60, 90, 69, 97]], np.float32)
        samples.append(Sample(
            generator.integers(0, 256, (height, width, 3), dtype=np.uint8),
            boxes if i == 0 else empty,
            np.array([0, 1, 1], np.int64) if i == 0 else np.zeros(0, np.int64),
            np.array(regions, np.float32) if regions and i == 0 else empty,
        ))  # fmt: skip
    return collate(samples, CPU, PixelNorm())


@torch.no_grad()
def test_proposals_and_detections_are_those_of_torchvisions_faster_rcnn() -> None:
    ours, theirs = pair()
    ours.eval(), theirs.eval()
    images = torch.randn(2, 3, SIZE, SIZE)
    wrapped = ImageList(images, [(SIZE, SIZE)] * 2)
    proposals, _ = ours.rpn(wrapped, ours.pyramid(images))
    wanted, _ = theirs.rpn(wrapped, theirs.backbone(images))
    assert all(len(p) > 100 for p in proposals)
    for one, other in zip(proposals, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    for found, other in zip(ours(images), theirs(list(images)), strict=True):
        assert len(found.boxes) == 50
        torch.testing.assert_close(found.boxes, other["boxes"], rtol=0, atol=0)
        torch.testing.assert_close(found.scores, other["scores"], rtol=0, atol=0)
        assert torch.equal(found.labels, other["labels"] - 1)


def test_losses_and_gradients_are_torchvisions_where_the_sampling_is() -> None:
    ours, theirs = pair()
    ours.train(), theirs.train()
    batch = batch_of()
    targets = [{"boxes": batch.boxes[batch.owner == i], "labels": batch.labels[batch.owner == i] + 1} for i in range(2)]
    torch.manual_seed(5)
    losses = ours.loss(batch)
    of_ours = torch.autograd.grad(total(losses), ours.fpn.inner[0].weight)[0]
    torch.manual_seed(5)
    # Without `GeneralizedRCNNTransform`, which draws a size from the same generator.
    features = theirs.backbone(batch.images)
    proposals, wanted = theirs.rpn(ImageList(batch.images, list(batch.sizes)), features, targets)
    wanted |= theirs.roi_heads(features, proposals, list(batch.sizes), targets)[1]
    of_theirs = torch.autograd.grad(sum(wanted.values()), ours.fpn.inner[0].weight)[0]
    names = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg")
    assert [x.item() for x in losses.values()] == [wanted[name].item() for name in names]
    assert all(x.item() > 0 for x in losses.values())
    torch.testing.assert_close(of_ours, of_theirs)


def labels_of(detector: FasterRCNN, batch: Batch, which: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    anchors = anchors_of(detector.design, batch.size, CPU)
    labels, _ = detector.rpn.assign_anchors(batch, anchors)
    return anchors, labels[which]


def crowd(seed: int) -> Batch:
    """Three tiles of different sizes, one without objects; the last has an ignore region."""
    generator = np.random.default_rng(seed)
    samples = []
    for count, (height, width) in ((12, (128, 128)), (0, (128, 128)), (25, (96, 100))):
        sides = np.exp(generator.normal(2.3, 0.7, (count, 2)))
        center = generator.uniform(0, (width, height), (count, 2))
        boxes = np.concatenate([center - sides / 2, center + sides / 2], axis=1).clip(0, [width, height] * 2)
        boxes = boxes[((boxes[:, 2:] - boxes[:, :2]) >= 1).all(1)].astype(np.float32)
        regions = np.array([[30.3, 20.1, 64, 70]] if count == 25 else np.zeros((0, 4)), np.float32)
        pixels = np.zeros((height, width, 3), np.uint8)
        samples.append(Sample(pixels, boxes, np.zeros(len(boxes), np.int64), regions))
    return collate(samples, CPU, PixelNorm())


@pytest.mark.parametrize("straddling", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_anchors_of_a_batch_learn_what_torchvision_lets_those_of_each_tile_learn(
    seed: int, straddling: bool
) -> None:
    """But for best anchors of tiny objects that overlap a neighbor more: they stay their object's."""
    detector = FasterRCNN("mobilenet_v2", 1, channels=8, straddling=straddling)
    batch = crowd(seed)
    anchors = anchors_of(detector.design, batch.size, CPU)
    labels, objects = detector.rpn.assign_anchors(batch, anchors)
    targets = [{"boxes": batch.boxes[batch.owner == i]} for i in range(3)]
    wanted, matched = RegionProposalNetwork.assign_targets_to_anchors(detector.rpn, [anchors] * 3, targets)
    for i, (height, width) in enumerate(batch.sizes):
        in_region = _centered_in(anchors, batch.regions[batch.region_owner == i])
        wanted[i][in_region & (wanted[i] == 0)] = -1
        if not straddling:
            inside = (anchors[:, :2] >= 0).all(1) & (anchors[:, 2] <= width) & (anchors[:, 3] <= height)
            wanted[i][~inside] = -1
    assert torch.equal(labels, torch.stack(wanted)) and {*labels.unique().tolist()} == {-1, 0, 1}
    learned = labels.flatten() == 1
    other = learned & (batch.boxes[objects] != torch.cat(matched)).any(1)
    for place in other.nonzero().flatten().tolist():
        image, anchor = divmod(place, len(anchors))
        iou = box_iou(batch.boxes[batch.owner == image], anchors)
        owner = int(objects[place] - (batch.owner < image).sum())
        assert iou[:, anchor].max() < 0.3 and iou[owner, anchor] == iou[owner].max()
    assert other.sum() < learned.sum() / 4


@pytest.mark.parametrize("options", [{"assign": "nwd", "assign_rank": 2}, {"assign": "rfd"}, {"assign": "dotd"}])
def test_proposals_learn_by_another_assignment(options: dict[str, object]) -> None:
    detector = FasterRCNN("mobilenet_v2", 2, channels=8, **options).train()
    by_iou = FasterRCNN("mobilenet_v2", 2, channels=8)
    batch = batch_of()
    _, labels = labels_of(detector, batch)
    _, usual = labels_of(by_iou, batch)
    assert (labels == 1).sum() > (usual == 1).sum() and (labels[usual == 1] != 0).all()
    losses = detector.loss(batch)
    total(losses).backward()
    assert all(torch.isfinite(value) for value in losses.values())
    assert detector.rpn.head.bbox_pred.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("straddling", [False, True])
def test_anchors_that_cross_the_border_learn_only_where_asked_for(straddling: bool) -> None:
    detector = FasterRCNN("mobilenet_v2", 1, channels=8, straddling=straddling)
    batch = batch_of(sizes=((96, 100), (SIZE, SIZE)))
    for which, (height, width) in enumerate(batch.sizes):  # the tile's own border, not that of the padding
        anchors, labels = labels_of(detector, batch, which)
        inside = (anchors[:, 0] >= 0) & (anchors[:, 1] >= 0) & (anchors[:, 2] <= width) & (anchors[:, 3] <= height)
        assert bool((labels[~inside] == -1).all()) == (not straddling)
        assert bool((labels[inside] == 0).any())


def test_what_lies_in_an_ignore_region_is_no_background_and_objects_in_it_are_learned() -> None:
    detector = FasterRCNN("mobilenet_v2", 1, channels=8, straddling=True)
    region = [[0.0, 0.0, 64.0, 64.0]]
    anchors, labels = labels_of(detector, batch_of(region))
    _, without = labels_of(detector, batch_of())
    center = (anchors[:, :2] + anchors[:, 2:]) / 2
    inside = ((center >= 0) & (center < 64)).all(1)
    assert (labels[inside] != 0).all() and torch.equal(labels[~inside], without[~inside])
    assert torch.equal(labels == 1, without == 1) and (labels == 1).any()
    proposals = torch.tensor([[8.0, 9, 22, 20], [30, 30, 40, 40], [63, 63, 80, 80]])
    kept = _outside_regions(proposals, torch.tensor(region), torch.tensor([[8.0, 9, 22, 21]]))
    assert kept.tolist() == [[8, 9, 22, 20], [63, 63, 80, 80]]


def test_tiles_that_are_ignored_whole_teach_nothing_and_break_nothing() -> None:
    detector = FasterRCNN("mobilenet_v2", 1, channels=8).train()
    empty = np.zeros((0, 4), np.float32)
    region = np.array([[-99, -99, 199, 199]], np.float32)
    sample = Sample(np.zeros((64, 64, 3), np.uint8), empty, np.zeros(0, np.int64), region)
    losses = detector.loss(collate([sample], CPU, PixelNorm()))
    assert [x.item() for x in losses.values()] == [0, 0, 0, 0]
    total(losses).backward()


def test_centers_on_a_regions_lower_edge_belong_to_it_and_on_its_upper_do_not() -> None:
    regions = torch.tensor([[10.0, 10, 20, 20]])
    boxes = torch.tensor([[9.0, 9, 11, 11], [19, 19, 21, 21], [19, 9, 20, 11]])
    assert _centered_in(boxes, regions).tolist() == [True, False, True]
    assert _centered_in(boxes, regions[:0]).tolist() == [False] * 3


def test_aligned_pooling_is_roi_align_aligned_level_by_level() -> None:
    torch.manual_seed(0)
    features = {f"P{i}": torch.randn(2, 4, SIZE >> i, SIZE >> i) for i in range(2, 6)}
    align = AlignedRoIAlign(["P2", "P3", "P4", "P5"], 7, 2, canonical_scale=32)
    boxes = [torch.tensor([[5.0, 5, 9, 8], [10, 20, 40, 52]]), torch.tensor([[0.0, 0, 127, 127]])]
    pooled = align(features, boxes, [(SIZE, SIZE)] * 2)
    # 4 * 3 px: P2. 30 * 32: just below P4's 32. 127 * 127: P4 + 1.
    for row, (image, box, level) in enumerate([(0, boxes[0][:1], 2), (0, boxes[0][1:], 3), (1, boxes[1], 5)]):
        feature = features[f"P{level}"][image : image + 1]
        wanted = roi_align(feature, [box], 7, 1 / 2**level, 2, aligned=True)
        torch.testing.assert_close(pooled[row : row + 1], wanted)


def test_the_rules_of_pooling_differ_and_an_unknown_one_is_named() -> None:
    images = torch.randn(1, 3, 64, 64)
    found = []
    for rule in ("torchvision", "aligned"):
        torch.manual_seed(1)
        detector = FasterRCNN("mobilenet_v2", 1, channels=8, roi_rule=rule, score_floor=0.0).eval()
        with torch.no_grad():
            found.append(detector(images)[0].boxes)
    assert found[0].shape != found[1].shape or not torch.allclose(found[0], found[1])
    with pytest.raises(ValueError, match="unknown RoIAlign rule 'exact'; choose one of: torchvision, aligned"):
        FasterRCNN("mobilenet_v2", 1, roi_rule="exact")


def test_under_autocast_boxes_stay_in_float32() -> None:
    detector = FasterRCNN("mobilenet_v2", 1, channels=8, score_floor=0.0).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = detector(images)[0]
    assert found.boxes.dtype == torch.float32
    assert not torch.equal(found.boxes, found.boxes.bfloat16().float())


@pytest.mark.parametrize(("bias", "label"), [(99.0, 0), (-99.0, -1)], ids=["full tile", "empty tile"])
def test_the_torch_backend_keeps_the_contract_of_an_exported_model(bias: float, label: int) -> None:
    config = DetectorConfig("mobilenet_v2", channels=8, detector="faster_rcnn")
    spec = Checkpoint(config, {}, ("person",), (1,), tile=64).spec(max_detections=4)
    assert not spec.nms_in_graph  # overlaps are left to the runtime, as RetinaNet does
    detector = build_detector(config)
    torch.nn.init.constant_(detector.roi_heads.box_predictor.cls_score.bias[1:], bias)
    outputs = TorchBackend(detector, spec).run(np.zeros((2, 64, 64, 3), np.uint8))
    assert outputs.labels.tolist() == [[label] * 4] * 2 and outputs.labels.dtype == np.int32
    assert outputs.boxes.shape == (2, 4, 4) and outputs.boxes.dtype == outputs.scores.dtype == np.float32
    if label == 0:
        assert (outputs.candidates > 4).all()  # more than there are slots: the tile is seen to be full
        assert (outputs.scores == 1).all() and (outputs.boxes[..., 2:] > outputs.boxes[..., :2]).all()
    else:
        assert not outputs.candidates.any() and not outputs.boxes.any() and not outputs.scores.any()


def test_folding_alpha_changes_no_detection_but_for_rounding() -> None:
    torch.manual_seed(0)
    config = DetectorConfig("mobilenet_v2", channels=16, detector="faster_rcnn")
    detector = build_detector(config, (0.5, 0.25, 2.0)).eval()  # powers of two fold exactly
    spec = Checkpoint(config, {}, ("person",), (1,), tile=64).spec()
    graph = TorchvisionGraph(detector, spec)
    assert not hasattr(graph.detector.fpn, "alpha")
    tiles = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8)
    boxes, _, _, candidates = graph(tiles)
    detector.roi_heads.detections_per_img, detector.roi_heads.nms_thresh = None, 1.0
    found = detector(graph.pixels(tiles))[0]
    kept = min(int(candidates), 1000)
    assert kept > 0 and len(found.scores) == int(candidates)
    torch.testing.assert_close(boxes[0, :kept], found.boxes[:kept], rtol=0, atol=1e-3)


@pytest.mark.slow  # the tests of `train` do so with RetinaNet, and those of the graph with this detector
def test_a_checkpoint_is_trained_and_evaluated(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tinydet.__main__ import main

    monkeypatch.chdir(tmp_path)
    quick = ["--preset", "small", "--weights-backbone", "none", "--channels", "8", "--epochs", "1", "--tile", "96",
             "--overlap", "32", "--precision", "fp32", "--no-tensorboard"]  # fmt: skip
    flags = ["--detector", "faster_rcnn", "--salpha", "--roi-align", "aligned", "--canonical-scale", "32"]
    assert main(["train", *flags, "--data", str(squares), *quick]) == 0
    assert "Faster R-CNN" in capsys.readouterr().out
    assert main(["evaluate", "--model", "model.pth", "--data", str(squares)]) == 0


def tiles_of(images: Tensor, boxes: list[Tensor], regions: list[Tensor]) -> Batch:
    def joined(parts: list[Tensor]) -> tuple[Tensor, Tensor]:
        return torch.cat(parts), torch.repeat_interleave(torch.tensor([len(each) for each in parts]))

    (objects, owner), (ignored, region_owner) = joined(boxes), joined(regions)
    labels = torch.zeros(len(objects), dtype=torch.long)
    return Batch(images, objects, labels, owner, ignored, region_owner, ((64, 64),) * len(images))


@pytest.mark.parametrize("ignored", [32.0, 64.0], ids=["half a tile", "a tile"])
@pytest.mark.parametrize("name", ["faster_rcnn", "libra_rcnn", "grid_rcnn"])
def test_shares_of_processes_with_different_numbers_of_samples_add_up_to_the_whole_batch(
    name: str, ignored: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    detector = build_detector(DetectorConfig("mobilenet_v2", channels=8, detector=name)).eval()
    assert isinstance(detector, FasterRCNN)
    monkeypatch.setattr(detector.rpn, "fg_bg_sampler", lambda all: ([x == 1 for x in all], [x == 0 for x in all]))
    monkeypatch.setattr(detector, "draw", lambda candidates: torch.arange(len(candidates.boxes)))
    monkeypatch.setattr(grid_rcnn, "jittered", lambda boxes, size: boxes)
    boxes = [torch.tensor([[10.0, 10, 22, 24], [40, 40, 52, 50]]), torch.zeros(0, 4)]
    regions, images = [torch.zeros(0, 4), torch.tensor([[0.0, 0, 64, ignored]])], torch.randn(2, 3, 64, 64)
    own = [tiles_of(images[i : i + 1], boxes[i : i + 1], regions[i : i + 1]) for i in range(2)]

    def losses(batch: Batch, sums: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        for module in (faster_rcnn, grid_rcnn):
            monkeypatch.setattr(module, "sum_over_processes", sums)
        return detector.loss(batch)

    counts: list[list[Tensor]] = [[], []]
    for batch, of_process in zip(own, counts, strict=True):
        losses(batch, lambda count, of=of_process: (of.append(count), count)[1])
    totals = [a + b for a, b in zip(*counts, strict=True)]  # both processes sum as many values
    shares = []
    for batch in own:
        left = iter(totals)
        shares.append(losses(batch, lambda _, left=left: next(left)))
    for loss, value in losses(tiles_of(images, boxes, regions), lambda count: count).items():
        torch.testing.assert_close(shares[0][loss] + shares[1][loss], value, rtol=1e-5, atol=1e-6, msg=loss)


def test_the_best_overlaps_of_a_crowd_are_those_of_the_whole_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    corners = torch.rand(90, 2) * 60
    boxes = torch.cat([corners, corners + 2 + 12 * torch.rand(90, 2)], dim=1).round()
    monkeypatch.setattr(faster_rcnn, "IOU_PAIRS", 100)
    pairs = []
    monkeypatch.setattr(faster_rcnn, "box_iou", lambda a, b: (pairs.append(len(a) * len(b)), box_iou(a, b))[1])
    found = faster_rcnn._best_overlap(boxes, boxes[:40])
    for one, other in zip(found, box_iou(boxes[:40], boxes).max(dim=0), strict=True):
        assert torch.equal(one, other)
    assert max(pairs) <= 100
