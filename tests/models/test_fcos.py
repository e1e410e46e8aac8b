"""FCOS: its losses, its two configurations, and what torchvision's weights bring."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from detector_cases import cases_of
from torchvision.models.detection import fcos_resnet50_fpn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.resnet import resnet18
from torchvision.ops import FrozenBatchNorm2d, sigmoid_focal_loss
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from toy_detector import TINY

from tinydet.geometry.points import PointDesign, positive_points
from tinydet.models.backbone_registry import BACKBONES
from tinydet.models.batch import Batch
from tinydet.models.build import DetectorConfig, build_detector
from tinydet.models.checkpoint import Checkpoint
from tinydet.models.fcos import FCOS, FCOSP3P7, FCOSHead, PointOutputs, centerness_targets
from tinydet.models.graphs.points import PointInference
from tinydet.models.losses import focal_loss_by_level, total
from tinydet.models.pretrained import initialize, read_source
from tinydet.models.registry import detector_info
from tinydet.spec import ModelSpec
from tinydet.train import TrainConfig, train
from tinydet.train.defaults import choose_network

NAMES = ("fcos", "fcos-p3p7")


@functools.lru_cache(maxsize=4)
def detector(name: str, **options: object) -> FCOS:
    torch.manual_seed(0)
    config = DetectorConfig("mobilenet_v2", 32, "frozen", 2, name,
                            options={"head_convs": 2, "head_init": "he", **options})  # fmt: skip
    return build_detector(config)


def batch() -> Batch:
    boxes = torch.tensor([[3.0, 4, 15, 20], [90, 60, 96, 64], [40, 40, 60, 52], [8.5, 16.5, 9.5, 17.5]])
    return Batch(
        torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)),
        boxes,
        torch.tensor([0, 1, 1, 0]),
        torch.tensor([0, 0, 1, 1]),
        torch.tensor([[0.0, 0, 16, 16]]),
        torch.tensor([1]),
        ((64, 96), (64, 96)),
    )


@pytest.mark.parametrize("name", NAMES)
def test_there_is_one_prediction_per_point(name: str) -> None:
    network = detector(name)
    with torch.no_grad():
        outputs = network(torch.randn(2, 3, 64, 96))
    points = [len(each) for each in network.design.points(64, 96)]
    assert [tuple(x.shape) for x in outputs.logits] == [(2, count, 2) for count in points]
    assert [tuple(x.shape) for x in outputs.boxes] == [(2, count, 4) for count in points]
    assert [tuple(x.shape) for x in outputs.centerness] == [(2, count) for count in points]


def expected_losses(network: FCOS, given: Batch) -> dict[str, float]:
    """The losses by level from the outputs of all points, with a loop over the positive ones."""
    logits, raw, centerness = (torch.cat(each, 1) for each in network(given.images))
    counts = [len(each) for each in network.design.points(*given.size)]
    points = np.concatenate(network.design.points(*given.size))
    sizes = np.tile(given.size[::-1], (2, 1))
    found = positive_points(network.design, given.boxes.numpy(), sizes, given.owner.numpy(),
                            every_object=network.every_object)  # fmt: skip
    targets, learned = torch.zeros_like(logits), torch.ones(2, len(points))
    x, y = points.T
    for (x1, y1, x2, y2), image in zip(given.regions.tolist(), given.region_owner.tolist(), strict=True):
        learned[image, torch.from_numpy((x >= x1) & (x < x2) & (y >= y1) & (y < y2))] = 0
    parts = {name: [0.0] * 5 for name in ("regression", "centerness")}
    weights = 0.0
    for point, level, number in zip(*(each.tolist() for each in found), strict=True):
        image, place = divmod(point, len(points))
        targets[image, place, given.labels[number]], learned[image, place] = 1, 1
        left, top, right, bottom = network.distances(raw[image, place], network.head.scales[level],
                                                     network.design.strides[level]).tolist()  # fmt: skip
        x1, y1, x2, y2 = given.boxes[number].tolist()
        px, py = points[place].tolist()
        near, far = sorted((px - x1, x2 - px)), sorted((py - y1, y2 - py))
        inside = near[0] > 0 and far[0] > 0
        target = math.sqrt(near[0] / near[1] * far[0] / far[1]) if inside else 1.0  # outside only as an only point
        width = min(px + right, x2) - max(px - left, x1)
        height = min(py + bottom, y2) - max(py - top, y1)
        shared = max(width, 0) * max(height, 0)
        union = (left + right) * (top + bottom) + (x2 - x1) * (y2 - y1) - shared
        if isinstance(network, FCOSP3P7):
            loss = -math.log((shared + 1) / (union + 1))
        else:
            hull = (max(px + right, x2) - min(px - left, x1)) * (max(py + bottom, y2) - min(py - top, y1))
            loss = 1 - shared / union + (hull - union) / hull
        parts["regression"][level] += loss * target
        parts["centerness"][level] += float(F.binary_cross_entropy_with_logits(centerness[image, place],
                                                                               torch.tensor(target)))  # fmt: skip
        weights += target
    focal = (sigmoid_focal_loss(logits, targets) * learned[:, :, None]).sum((0, 2)).split(counts)
    positives = len(found.points)
    divisors = {"regression": weights, "centerness": positives}
    losses = {f"{name}/{level}": value / divisors[name] for name, values in parts.items()
              for level, value in zip(network.design.levels, values, strict=True)}  # fmt: skip
    classes = positives + 2 if isinstance(network, FCOSP3P7) else positives
    return losses | {f"classification/{level}": float(part.sum()) / classes
                     for level, part in zip(network.design.levels, focal, strict=True)}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_is_that_of_the_outputs_of_all_points(name: str) -> None:
    network, given = detector(name), batch()
    with torch.no_grad():
        losses, expected = network.loss(given), expected_losses(network, given)
    assert losses.keys() == expected.keys()
    for key, value in losses.items():
        assert value.dtype == torch.float32 and float(value) == pytest.approx(expected[key], rel=1e-4, abs=1e-6), key
    assert expected["regression/" + network.design.levels[0]] > 0


def test_an_object_without_a_point_is_learned_unless_switched_off() -> None:
    given = batch()
    learned = detector("fcos").matches(given)
    assert set(learned.objects.tolist()) == {0, 1, 2, 3}
    assert set(detector("fcos", without_point="none").matches(given).objects.tolist()) == {0, 1, 2}
    plain = [
        set(detector("fcos-p3p7", without_point=each).matches(given).objects.tolist()) for each in ("none", "nearest")
    ]
    assert plain == [{0, 2}, {0, 1, 2, 3}]
    assert (learned.distances[learned.objects == 3] < 0).any()  # the nearest point is outside of the object


@pytest.mark.parametrize("name", NAMES)
def test_by_rank_the_points_with_the_most_similar_squares_learn_an_object(name: str) -> None:
    network, given = detector(name, assign="nwd", assign_rank=3), batch()
    matches = network.matches(given)
    assert torch.bincount(matches.objects).tolist() == [3, 3, 3, 3]
    assert (len(matches.ignored) > 0) == (name == "fcos")  # no object is like the squares of P3, of 91 pixels
    points = torch.cat([torch.from_numpy(each) for each in network.design.points(64, 96)])
    sides = torch.tensor([shapes[0][0] for shapes in network.design.squares().shapes])
    level = torch.repeat_interleave(torch.arange(5), torch.tensor([len(x) for x in network.design.points(64, 96)]))
    for number, (box, image) in enumerate(zip(given.boxes, given.owner.tolist(), strict=True)):
        shift = ((points - (box[:2] + box[2:]) / 2) ** 2).sum(1)
        sizes = ((sides[level][:, None] - (box[2:] - box[:2])) ** 2).sum(1) / 4
        mine = matches.positive[matches.objects == number]
        assert (mine // len(points) == image).all()
        best = (shift + sizes).sort()[0][:3]  # the distance of Wasserstein; similarity falls with it
        torch.testing.assert_close((shift + sizes)[mine % len(points)].sort()[0], best)
        assert torch.equal(matches.level[matches.objects == number], level[mine % len(points)])
    assert torch.isfinite(total(network.loss(given)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"assign": "nwd"}, "--assign nwd needs the number of points that learn each object, such as --assign-rank 3"),
        ({"assign_rank": 3}, "--assign points uses neither --assign-rank nor --assign-background"),
        ({"assign_background": 0.2}, "leave them out, or choose a similarity, such as --assign nwd"),
    ],
)
def test_a_similarity_goes_with_a_rank(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(detector="fcos", preset="paper", options=options)
    with pytest.raises(ValueError, match="retinanet: assign: expected one of iou, nwd, rfd, dotd, got 'points'"):
        TrainConfig(detector="retinanet", options={"assign": "points"})


def test_the_center_region_can_be_switched_off_and_on() -> None:
    sampled, whole = detector("fcos"), detector("fcos", center_radius=0.0)
    assert sampled.design.radius == 1.5 and whole.design.radius is None
    assert len(whole.matches(batch()).positive) > len(sampled.matches(batch()).positive)
    assert detector("fcos-p3p7").design.radius is None


def test_centerness_is_one_at_the_only_point_outside_of_an_object() -> None:
    distances = torch.tensor([[5.0, 3, 5, 3], [2, 3, 8, 3], [-1, 2, 3, 2], [4, 2, -2, 2], [3, 3, -1, 3]])
    targets = centerness_targets(distances, torch.tensor([0, 0, 0, 1, 1]), 3)
    # The first object has points inside, so the one outside is worth almost nothing; the second has none inside.
    expected = [1, 0.5, math.sqrt(0.01 / 3), math.sqrt(0.01 / 4), 1]
    torch.testing.assert_close(targets, torch.tensor(expected))


def test_group_norm_has_32_groups_or_fewer_that_also_work_on_a_level_of_one_cell() -> None:
    for channels, groups in ((64, 32), (48, 16), (32, 16), (7, 1)):
        head = FCOSHead(channels, 1, 5, 4, group_norm=True)
        norms = [module for module in head.modules() if isinstance(module, torch.nn.GroupNorm)]
        assert len(norms) == 8 and {norm.num_groups for norm in norms} == {groups}
        head.train().classification_head.conv(torch.zeros(1, channels, 1, 1))
    assert not any(isinstance(module, torch.nn.GroupNorm) for module in detector("fcos").head.modules())


class TorchvisionFCOS(FCOSP3P7):
    """The mixture of torchvision: group norm, centerness on the box tower, distances in strides."""

    centerness_on_class_tower = False
    exponential = False


@functools.lru_cache(maxsize=1)
def torchvision_fcos() -> torch.nn.Module:
    torch.manual_seed(0)
    returned = {f"layer{i}": str(i - 2) for i in (2, 3, 4)}
    body = resnet18(norm_layer=FrozenBatchNorm2d)
    backbone = BackboneWithFPN(body, returned, [128, 256, 512], 64, extra_blocks=LastLevelP6P7(64, 64))
    network = torchvision.models.detection.FCOS(backbone, num_classes=91).eval()
    for parameter in (*network.head.parameters(), *backbone.fpn.parameters()):
        torch.nn.init.normal_(parameter, std=0.1)
    return network


@pytest.fixture
def weights(tmp_path: Path) -> str:
    torch.save(torchvision_fcos().state_dict(), tmp_path / "coco.pth")
    return str(tmp_path / "coco.pth")


@torch.no_grad()
def test_the_network_is_that_of_torchvision_under_its_traits() -> None:
    theirs, ours = torchvision_fcos(), TorchvisionFCOS("resnet18", 91, channels=64).eval()
    ours.backbone.body.load_state_dict(theirs.backbone.body.state_dict())
    for i in range(3):
        ours.fpn.inner[i].load_state_dict(theirs.backbone.fpn.inner_blocks[i][0].state_dict())
        ours.fpn.layer[i].load_state_dict(theirs.backbone.fpn.layer_blocks[i][0].state_dict())
    ours.fpn.top.load_state_dict(theirs.backbone.fpn.extra_blocks.state_dict())
    ours.head.load_state_dict({**theirs.head.state_dict(), "scales": torch.ones(5)})
    images = torch.randn(1, 3, 64, 96)
    wanted = theirs.head(list(theirs.backbone(images).values()))
    found = ours(images)
    torch.testing.assert_close(torch.cat(found.logits, 1), wanted["cls_logits"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.cat(found.centerness, 1), wanted["bbox_ctrness"][..., 0], rtol=1e-4, atol=1e-4)
    strides = torch.cat([torch.full((each.shape[1], 1), float(stride))
                         for each, stride in zip(found.boxes, ours.design.strides, strict=True)])  # fmt: skip
    distances = ours.distances(torch.cat(found.boxes, 1), 1.0, strides)
    torch.testing.assert_close(distances, wanted["bbox_regression"] * strides, rtol=1e-4, atol=1e-3)


def test_torchvision_weights_fit_the_plain_one_but_for_boxes_and_centerness(weights: str) -> None:
    source, theirs = read_source(weights, "fcos-p3p7"), torchvision_fcos()
    assert source.architecture is not None and source.architecture.detector == "fcos-p3p7"
    built = build_detector(DetectorConfig("resnet18", 64, classes=2, detector="fcos-p3p7"))
    fresh = {name: value.clone() for name, value in built.state_dict().items()}
    report = "\n".join(initialize(built, source, ("person", "zebra")))
    assert "randomly initialized: head, head.regression_head.bbox_ctrness, head.regression_head.bbox_reg" in report
    state, head = built.state_dict(), theirs.head.state_dict()
    for name, value in head.items():
        if ".conv." in name:
            assert torch.equal(state[f"head.{name}"], value)
    rows = [1, 24]  # person and zebra among COCO's 91 names
    layer = "classification_head.cls_logits.weight"
    assert torch.equal(state[f"head.{layer}"], head[layer][rows])
    for name in ("head.regression_head.bbox_reg.weight", "head.regression_head.bbox_ctrness.weight", "head.scales"):
        assert torch.equal(state[name], fresh[name])
    assert torch.equal(state["fpn.top.p7.weight"], theirs.backbone.fpn.extra_blocks.p7.weight)


def test_into_the_adaptive_one_go_backbone_and_pyramid_only(weights: str) -> None:
    built = build_detector(DetectorConfig("resnet18", 64, classes=2, detector="fcos"))
    fresh = {name: value.clone() for name, value in built.state_dict().items()}
    initialize(built, read_source(weights, "fcos"), ("person", "zebra"))
    state, theirs = built.state_dict(), torchvision_fcos()
    assert all(torch.equal(state[name], fresh[name]) for name in fresh if name.startswith("head."))
    assert torch.equal(state["fpn.layer.1.weight"], theirs.backbone.fpn.layer_blocks[0][0].weight)
    assert torch.equal(state["fpn.layer.0.weight"], fresh["fpn.layer.0.weight"])  # P2 is new
    assert torch.equal(state["backbone.body.layer4.1.conv2.weight"], theirs.backbone.body["layer4"][1].conv2.weight)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_learns_to_find_squares(name: str, squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKBONES, "tiny", TINY)
    trained = train(TrainConfig(detector=name, data=squares, val=squares, tile=96, overlap=32, alpha=0.5,
                                output=tmp_path / "model.pth", preset="small", backbone="tiny",
                                weights_backbone="none", norm="group", channels=32, precision="fp32", epochs=16,
                                augment=(), validate_every=16, lr=0.04, clip_norm=1.0,
                                tensorboard=False))  # fmt: skip
    assert trained.history[-1]["AP50"] > 0.3


@pytest.mark.slow
def test_the_published_architecture_is_recognized_and_fits(tmp_path: Path) -> None:
    torch.save(fcos_resnet50_fpn(weights=None, weights_backbone=None).state_dict(), tmp_path / "coco.pth")
    source = read_source(str(tmp_path / "coco.pth"), "fcos-p3p7")
    assert source.architecture is not None
    assert (source.architecture.detector, source.architecture.backbone, source.architecture.channels) == (
        "fcos-p3p7", "resnet50", 256)  # fmt: skip
    for name in NAMES:
        initialize(build_detector(DetectorConfig("resnet50", 256, detector=name)), source, ("person",))


@pytest.mark.parametrize("name", NAMES)
def test_overlapping_boxes_are_suppressed_at_the_threshold_of_fcos(name: str) -> None:
    config = DetectorConfig("mobilenet_v2", 16, detector=name)
    assert Checkpoint(config, {}, ("person",), (1,), 640).spec().nms_iou == detector_info(name).nms_iou == 0.6
    other = DetectorConfig("mobilenet_v2", 16)
    assert Checkpoint(other, {}, ("person",), (1,), 640).spec().nms_iou == 0.5


def test_the_released_rates_are_the_defaults() -> None:
    for name, lr, clip_norm in (("fcos", 0.005, 35.0), ("fcos-p3p7", 0.0025, 0.0)):
        filled, _ = choose_network(TrainConfig(detector=name, preset="paper"), device="cpu")
        assert (filled.lr, filled.clip_norm, filled.batch) == (lr, clip_norm, 2)
        assert choose_network(TrainConfig(detector=name, preset="small"), device="cpu")[0].options["head_convs"] == 2


def test_the_numeric_cases_of_targets(shared: Path) -> None:
    for case in cases_of(shared, "fcos_targets"):
        positives = case["expected"]["positives"]
        if not positives:
            continue
        column = {
            name: torch.tensor([p[name] for p in positives]) for name in ("point", "object", "centerness", "ltrb")
        }
        boxes, point, objects = torch.tensor(case["input"]["boxes"]).float(), column["point"].float(), column["object"]
        distances = torch.cat([point - boxes[objects, :2], boxes[objects, 2:] - point], dim=1)
        close = functools.partial(torch.testing.assert_close, rtol=case["tolerance"], atol=case["tolerance"])
        close(distances, column["ltrb"].float())
        close(centerness_targets(distances, objects, len(boxes)), column["centerness"])
        if case["input"]["divide_by_stride"]:
            strides = dict(zip(case["input"]["levels"], case["input"]["strides"], strict=True))
            stride = torch.tensor([strides[p["level"]] for p in positives])[:, None]
            regression = torch.tensor([p["regression"] for p in positives])
            close(detector("fcos").distances(regression, 1.0, stride), distances)


def test_the_numeric_cases_of_losses(shared: Path) -> None:
    for case in cases_of(shared, "fcos_loss"):
        given, expected = case["input"], case["expected"]
        positive = torch.tensor([i for i, label in enumerate(given["label"]) if label is not None]).long()
        labels = torch.tensor([label for label in given["label"] if label is not None]).long()
        logits = torch.tensor(given["logits"])[None]
        predicted, target = (torch.tensor(given[name])[positive] for name in ("ltrb", "ltrb_target"))
        centerness = centerness_targets(target, torch.arange(len(positive)), len(positive))
        focal = focal_loss_by_level([logits], positive, labels, positive[:0])
        logit = torch.tensor(given["centerness_logit"])[positive]
        close = functools.partial(pytest.approx, rel=case["tolerance"], abs=case["tolerance"])
        assert float(focal) == close(expected["focal_sum"])
        assert centerness.tolist() == close(expected["centerness_targets"])
        for name, rule in (("fcos-p3p7", "released"), ("fcos", "adapted")):
            network, wanted = detector(name), expected[rule]
            count = network.class_count(torch.tensor(float(len(positive))), torch.tensor(float(given["images"])))
            assert float(focal / count) == close(wanted["classification"])
            boxes = (network.box_loss(predicted, target) * centerness).sum() / centerness.sum().clamp(min=1e-6)
            assert float(boxes) == close(wanted["regression"])
            centered = F.binary_cross_entropy_with_logits(logit, centerness, reduction="sum") / max(len(positive), 1)
            assert float(centered) == close(wanted["centerness"])


def test_the_numeric_cases_of_decoding(shared: Path) -> None:
    for case in cases_of(shared, "fcos_decode"):
        given, expected = case["input"], case["expected"]
        raw, points = torch.tensor(given["raw"]), torch.tensor(given["points"])
        for name, key in (("fcos-p3p7", "boxes_released"), ("fcos", "boxes_adapted")):
            sides = detector(name).distances(raw, given["scale"], given["stride"])
            boxes = torch.cat([points - sides[:, :2], points + sides[:, 2:]], dim=1)
            torch.testing.assert_close(boxes, torch.tensor(expected[key]).float(), rtol=1e-4, atol=1e-4)


class Fixed(torch.nn.Module):
    """Outputs that are given."""

    def __init__(self, outputs: PointOutputs) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, images: torch.Tensor) -> PointOutputs:
        return self.outputs


def test_the_numeric_cases_of_scores(shared: Path) -> None:
    for case in cases_of(shared, "fcos_decode"):
        given, stride = case["input"], case["input"]["stride"]
        points = torch.tensor(given["points"])
        side = -(-(int(points.max()) // stride + 1) * stride // 64) * 64  # of a tile
        design = PointDesign(levels=("P",), strides=(stride,), ranges=((-1, math.inf),), unfused=0)
        cell = (points[:, 1] // stride) * -(-side // stride) + points[:, 0] // stride
        count = len(design.points(side, side)[0])
        logits = torch.full((1, count, len(given["logits"][0])), -20.0)
        raw, centerness = torch.zeros(1, count, 4), torch.zeros(1, count)
        logits[0, cell], raw[0, cell] = torch.tensor(given["logits"]), torch.tensor(given["raw"])
        centerness[0, cell] = torch.tensor(given["centerness_logit"])
        decode = functools.partial(detector("fcos-p3p7").distances, scale=given["scale"], stride=stride)
        classes = range(1, logits.shape[2] + 1)
        spec = ModelSpec(tuple(map(str, classes)), tuple(classes), "fcos", "tiny", tile=side, score_floor=0.01)
        graph = PointInference(Fixed(PointOutputs([logits], [raw], [centerness])), design, [decode], spec)
        _, scores, labels, _ = graph(torch.zeros(1, 3, side, side))
        inside = torch.tensor(case["expected"]["boxes_released"]).clamp(0, side)
        shown = (inside[:, 2:] - inside[:, :2]).amin(dim=1) >= 0.01
        last = {int(each): number for number, each in enumerate(cell)}  # a cell may be listed twice
        rows = [number for number in last.values() if shown[number]]
        best = [(max(case["expected"]["score_root"][row]), max(enumerate(given["logits"][row]), key=lambda x: x[1])[0])
                for row in rows]  # fmt: skip
        wanted = sorted((each for each in best if each[0] > 0.01), reverse=True)
        found = [(score, label) for score, label in zip(scores[0].tolist(), labels[0].tolist(), strict=True) if score]
        assert [label for _, label in found] == [label for _, label in wanted]
        assert [score for score, _ in found] == pytest.approx([score for score, _ in wanted], abs=case["tolerance"])
