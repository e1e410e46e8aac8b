"""FreeAnchor against the formulas of its loss in float64, with every object and every anchor."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from designs import DESIGNS, RETINANET
from detector_cases import cases_of
from torch import Tensor

from tinydet.models import free_anchor
from tinydet.models.batch import Batch, anchors_of
from tinydet.models.box_coder import decode
from tinydet.models.build import DetectorConfig, build_detector
from tinydet.models.checkpoint import Checkpoint, save_checkpoint
from tinydet.models.free_anchor import (
    IOU,
    background_losses,
    bag_losses,
    bags_of,
    found_probability,
    free_anchor_loss,
    overlapping_pairs,
)
from tinydet.models.losses import total
from tinydet.models.pretrained import initialize, read_source


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    corner, end = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    common = (end - corner).clip(0).prod(2)
    return common / ((a[:, 2:] - a[:, :2]).prod(1)[:, None] + (b[:, 2:] - b[:, :2]).prod(1)[None] - common)


def offsets(box: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    center, size = (anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2:] - anchors[:, :2]
    return np.hstack([10 * ((box[:2] + box[2:]) / 2 - center) / size, 5 * np.log((box[2:] - box[:2]) / size)])


def moved(deltas: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    center, size = (anchors[:, :2] + anchors[:, 2:]) / 2, anchors[:, 2:] - anchors[:, :2]
    center, half = center + deltas[:, :2] / 10 * size, size * np.exp(deltas[:, 2:] / 5) / 2
    return np.hstack([center - half, center + half])


def expected(
    anchors: np.ndarray,
    logits: list[np.ndarray],
    deltas: list[np.ndarray],
    boxes: list[np.ndarray],
    labels: list[np.ndarray],
    k: int,
    spared: list[np.ndarray],
) -> tuple[float, float]:
    """The losses of a batch of images from the formulas, in float64; `spared` are anchors in ignore regions."""
    positive = negative = 0.0
    count = sum(map(len, boxes))
    for x, delta, objects, classes, free in zip(logits, deltas, boxes, labels, spared, strict=True):
        score = 1 / (1 + np.exp(-x))
        overlap = iou(objects, anchors)
        for i, (box, c) in enumerate(zip(objects, classes, strict=True)):
            bag = np.argsort(-overlap[i], kind="stable")[:k]
            distance = np.abs(delta[bag] - offsets(box, anchors[bag]))
            smooth = np.where(distance < 0.11, distance**2 / 0.22, distance - 0.055).sum(1)
            m = score[bag, c] * np.exp(-0.75 * smooth)
            v = 1 / np.maximum(1 - m, 1e-12)
            positive -= 0.5 * math.log((v * m).sum() / v.sum())
        found = np.zeros_like(score)
        for box, c in zip(objects, classes, strict=True):
            q = iou(box[None], moved(delta, anchors))[0]
            if q.max() > 0.6:
                found[:, c] = np.maximum(found[:, c], ((q - 0.6) / (q.max() - 0.6)).clip(0, 1))
        p = (score * (1 - found)).clip(1e-12, 1 - 1e-12)
        terms = p**2 * -np.log1p(-p)
        terms[free] = 0
        negative += 0.5 * terms.sum()
    return positive / max(1, count), negative / max(1, count * k)


def stacked(values: list[np.ndarray], width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.from_numpy(np.concatenate(values).reshape(-1, width)).to(dtype)


def test_the_numeric_cases_are_reproduced(shared: Path) -> None:
    for case in cases_of(shared, "free_anchor"):
        given: dict[str, Any] = {
            key: torch.tensor(case["input"][key], dtype=torch.float32)
            for key in ("anchors", "logits", "deltas", "boxes")
        }
        labels, k = torch.tensor(case["input"]["labels"]).long(), case["input"]["bag"]
        boxes, owner = given["boxes"].reshape(-1, 4), torch.zeros_like(labels)
        bags = torch.tensor(case["expected"]["bags"]).long().reshape(-1, k)
        losses = free_anchor_loss(
            [given["logits"][None]], [given["deltas"][None]], given["anchors"], bags, boxes, labels, owner,
            labels[:0], ["P2"], k,
        )  # fmt: skip
        for part, wanted in (("bags", "positive_loss"), ("background", "negative_loss")):
            tolerance = case["tolerance"]
            assert float(losses[f"{part}/P2"]) == pytest.approx(case["expected"][wanted], rel=tolerance, abs=tolerance)
        found = found_probability(
            decode(given["deltas"], given["anchors"])[None], boxes, labels, owner, given["logits"].shape[1]
        )
        np.testing.assert_allclose(found[0], np.array(case["expected"]["box_prob"]), atol=1e-4)


def crowd(generator: np.random.Generator, count: int, side: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    size = np.exp(generator.uniform(0, 4, (count, 2)))
    corner = generator.uniform(0, side - size.clip(max=side - 1))
    boxes = np.hstack([corner, np.minimum(corner + size, side)])
    return boxes.astype(np.float32).astype(np.float64), generator.integers(0, classes, count)


@pytest.mark.parametrize("seed", range(4))
def test_the_loss_is_that_of_the_formulas(seed: int) -> None:
    """A batch of three images, one without objects; predicted boxes near the objects, so that many find one."""
    generator = np.random.default_rng(seed)
    side, classes = 64, 3
    anchors = anchors_of(RETINANET, (side, side), torch.device("cpu"))
    exact = anchors.double().numpy()
    objects = [crowd(generator, count, side, classes) for count in (5, 0, 12)]
    logits = [generator.normal(-2, 2, (len(exact), classes)) for _ in objects]
    deltas = [generator.normal(0, 1, (len(exact), 4)) for _ in objects]
    for (boxes, _), delta in zip(objects, deltas, strict=True):
        for box in boxes:
            near = iou(box[None], exact)[0].argsort()[-40:]
            delta[near] = offsets(box, exact[near]) + generator.normal(0, 0.4, (40, 4))
    spared = [np.arange(30), np.arange(7, 9), np.arange(0)]
    boxes, owner = [b for b, _ in objects], np.repeat(np.arange(3), [len(b) for b, _ in objects])
    ignored = np.concatenate([free + image * len(exact) for image, free in enumerate(spared)])
    every = stacked(boxes, 4)
    sizes = [len(level) for level in RETINANET.grid_anchors(side, side)]
    losses = free_anchor_loss(
        stacked(logits, classes).view(3, -1, classes).split(sizes, dim=1),
        stacked(deltas, 4).view(3, -1, 4).split(sizes, dim=1),
        anchors,
        bags_of(every, 50, RETINANET, anchors, (side, side)),
        every,
        torch.from_numpy(np.concatenate([c for _, c in objects])),
        torch.from_numpy(owner),
        torch.from_numpy(ignored),
        RETINANET.levels,
    )
    wanted = expected(exact, logits, deltas, boxes, [c for _, c in objects], 50, spared)
    for part, value in zip(("bags", "background"), wanted, strict=True):
        ours = sum(float(loss) for name, loss in losses.items() if name.startswith(part))
        assert ours == pytest.approx(value, rel=2e-5)


def any_objects(seed: int, count: int, height: int, width: int) -> torch.Tensor:
    """Boxes from 1 pixel to the whole tile, also at its borders and of extreme shape; some on whole pixels."""
    generator = np.random.default_rng(seed)
    size = np.exp(generator.uniform(0, np.log([width, height]), (count, 2)))
    corner = generator.uniform(-0.1, 1.1, (count, 2)).clip(0, 1) * ([width, height] - size)
    boxes = np.hstack([corner, corner + size])
    boxes[::2] = boxes[::2].round()
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    return torch.from_numpy(boxes).float()


@pytest.mark.parametrize("design", sorted(DESIGNS))
@pytest.mark.parametrize(("height", "width", "k"), [(64, 96, 50), (160, 128, 50), (256, 64, 3), (32, 32, 400)])
def test_they_are_the_best_rows_of_the_matrix_ties_by_index(design: str, height: int, width: int, k: int) -> None:
    anchors = anchors_of(DESIGNS[design], (height, width), torch.device("cpu"))
    boxes = any_objects(height, 40, height, width)
    matrix = IOU.pairs(boxes.repeat_interleave(len(anchors), 0), anchors.repeat(len(boxes), 1)).view(len(boxes), -1)
    wanted = matrix.argsort(dim=1, descending=True, stable=True)[:, :k]
    assert torch.equal(bags_of(boxes, k, DESIGNS[design], anchors, (height, width)), wanted)


def test_a_bag_is_full_where_fewer_anchors_overlap_and_holds_all_where_there_are_fewer() -> None:
    design = DESIGNS["faster_rcnn"]
    anchors = anchors_of(design, (64, 64), torch.device("cpu"))
    far = torch.tensor([[500.0, 500, 510, 510], [3, 3, 4, 4]])
    bags = bags_of(far, 50, design, anchors, (64, 64))
    assert bags.shape == (2, 50) and all(len(row.unique()) == 50 for row in bags)
    overlap = IOU.pairs(far[1:].expand(len(anchors), 4), anchors)
    assert 0 < (overlap > 0).sum() < 50  # of the second object; fillers follow
    assert torch.equal(overlap[bags[1]], overlap.sort(descending=True).values[:50])
    every = bags_of(far, 10**6, design, anchors, (64, 64))
    assert torch.equal(every.sort(dim=1).values, torch.arange(len(anchors)).expand(2, -1))
    assert bags_of(far[:0], 50, design, anchors, (64, 64)).shape == (0, 50)


def detector() -> free_anchor.FreeAnchor:
    torch.manual_seed(1)
    built = build_detector(
        DetectorConfig("mobilenet_v2", 8, classes=2, norm="group", detector="free_anchor", options={"head_convs": 1})
    )
    assert isinstance(built, free_anchor.FreeAnchor)
    return built


def batch(boxes: list[list[float]], images: int = 2, side: int = 64, regions: list[list[float]] | None = None) -> Batch:
    """Noise with `boxes` in the first image and `regions` in the second, of class 0."""
    torch.manual_seed(2)
    several, ignore = torch.tensor(boxes).reshape(-1, 4), torch.tensor(regions or []).reshape(-1, 4)
    zeros = torch.zeros(len(several), dtype=torch.long)
    return Batch(
        torch.randn(images, 3, side, side), several, zeros, zeros, ignore, torch.ones(len(ignore), dtype=torch.long),
        ((side, side),) * images,
    )  # fmt: skip


def test_before_training_a_score_is_a_fiftieth_and_background_is_all_there_is() -> None:
    """306 900 anchors of a score of .02 give 1.24, over 1 without objects."""
    model = detector()
    with torch.no_grad():
        model.head.classification_head.cls_logits.weight.zero_()
        assert float(model(torch.zeros(1, 3, 64, 64)).logits[0].sigmoid().mean()) == pytest.approx(0.02)
        losses = model.loss(batch([]))
    anchors = 2 * 2 * len(anchors_of(RETINANET, (64, 64), torch.device("cpu")))  # two images, two classes
    assert float(total(losses)) == pytest.approx(anchors * 0.5 * 0.02**2 * -math.log(0.98), rel=1e-5)
    assert 306_900 * 0.5 * 0.02**2 * -math.log(0.98) == pytest.approx(1.24, abs=0.005)


def test_losses_are_named_by_level_and_a_bag_counts_for_the_level_of_its_best_anchor() -> None:
    losses = detector().loss(batch([[10.0, 10, 19, 19], [8, 8, 40, 40]]))
    assert set(losses) == {f"{part}/{level}" for part in ("bags", "background") for level in RETINANET.levels}
    of_bags = {name for name, loss in losses.items() if name.startswith("bags") and loss > 0}
    assert of_bags == {"bags/P2", "bags/P4"}


def test_anchors_in_an_ignore_region_are_not_background() -> None:
    model = detector()
    with torch.no_grad():
        whole, rest, alone = (
            total(model.loss(given))
            for given in (batch([]), batch([], regions=[[0.0, 0, 64, 64]]), batch([], images=1))
        )
    assert rest < whole
    torch.testing.assert_close(rest, alone, rtol=1e-3, atol=0)  # the second image has no anchor left


def test_the_losses_of_shares_of_a_batch_add_up_to_that_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(5)
    boxes, labels = crowd(generator, 5, 64, 2)
    owner, anchors = torch.tensor([0, 0, 0, 1, 1]), anchors_of(RETINANET, (64, 64), torch.device("cpu"))
    logits, deltas = torch.randn(2, len(anchors), 2) - 3, torch.randn(2, len(anchors), 4)

    def loss(images: list[int]) -> Tensor:
        mine = torch.isin(owner, torch.tensor(images))
        every = torch.from_numpy(boxes).float()[mine]
        bags = bags_of(every, 50, RETINANET, anchors, (64, 64))
        number = torch.searchsorted(torch.tensor(images), owner[mine])
        sizes = ["P2"]
        return total(
            free_anchor_loss(
                [logits[images]], [deltas[images]], anchors, bags, every, torch.from_numpy(labels)[mine], number,
                owner[:0], sizes,
            )
        )  # fmt: skip

    whole = loss([0, 1])
    monkeypatch.setattr(free_anchor, "sum_over_processes", lambda count: torch.full_like(count, len(boxes)))
    torch.testing.assert_close(loss([0]) + loss([1]), whole)


def test_an_object_that_no_box_reaches_spares_nothing_and_a_box_at_exactly_the_threshold_gives_no_nan() -> None:
    """In float32, .6 + 1e-12 is .6: a best IoU of exactly .6 would be 0 / 0."""
    found = torch.tensor([[0.0, 0, 10, 10]])
    at = torch.tensor([[0.0, 0, 6, 10], [0, 0, 5, 10], [50, 50, 60, 60]])
    assert float(IOU.pairs(found, at[:1])) == float(torch.tensor(0.6))
    zero = torch.zeros(1, dtype=torch.long)
    assert not found_probability(at[None], found, zero, zero, 1).any()
    better = torch.cat([at, torch.tensor([[0.0, 0, 10, 8], [0, 0, 7, 10]])])
    shares = found_probability(better[None], found, zero, zero, 1)[0, :, 0]
    assert shares.tolist() == pytest.approx([0, 0, 0, 1, 0.5], abs=1e-6)


def test_a_share_counts_for_the_class_and_the_image_of_its_object() -> None:
    box = torch.tensor([[0.0, 0, 10, 10]])
    shares = found_probability(box.expand(2, 1, 4), box, torch.tensor([2]), torch.tensor([1]), 3)
    assert shares.nonzero().tolist() == [[1, 0, 2]]


@pytest.mark.parametrize("threshold", [0.3, 0.6])
def test_the_pairs_are_those_of_the_matrix_however_they_are_divided(
    threshold: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(3)
    boxes = crowd(generator, 40, 128, 1)[0]
    near = boxes.repeat(30, 0) + generator.normal(0, 2, (1200, 4))
    near = np.hstack([near[:, :2], np.maximum(near[:, 2:], near[:, :2] + 1e-3)])
    predicted = torch.from_numpy(np.vstack([near, crowd(generator, 500, 128, 1)[0]])).float()
    every = torch.from_numpy(boxes).float()
    matrix = IOU.pairs(every.repeat_interleave(len(predicted), 0), predicted.repeat(40, 1)).view(40, -1)
    for most in (10, 1000, 1 << 20):
        monkeypatch.setattr(free_anchor, "MAX_PAIRS", most)
        objects, index, overlap = overlapping_pairs(every, predicted, threshold)
        sparse = torch.zeros_like(matrix)
        sparse[objects, index] = overlap
        assert torch.equal(sparse, torch.where(matrix > threshold, matrix, 0))


@pytest.mark.parametrize("logit", [-200.0, -30.0, 0.0, 16.0, 30.0, 200.0])
def test_no_score_gives_a_loss_or_a_gradient_that_is_not_finite(logit: float) -> None:
    for found in (0.0, 0.5, 1.0):
        x = torch.tensor([[logit]], requires_grad=True)
        loss = background_losses(x, torch.tensor([[found]]))
        loss.sum().backward()
        assert x.grad is not None and x.grad.isfinite() and 0 <= float(loss.detach()) <= 27.7
        p = min(1 / (1 + math.exp(-logit)) * (1 - found), 1 - 1e-12)
        assert float(loss.detach()) == pytest.approx(p**2 * -math.log1p(-p), rel=1e-4, abs=1e-9)
    for delta in (0.0, 30.0, 1000.0):
        x, deltas = torch.full((1, 50), logit, requires_grad=True), torch.full((1, 50, 4), delta, requires_grad=True)
        loss = bag_losses(x, deltas, torch.zeros(1, 50, 4))
        loss.sum().backward()
        for given in (x, deltas):
            assert given.grad is not None and given.grad.isfinite().all()
        assert loss.isfinite().all()


def test_a_hopeless_bag_still_learns() -> None:
    """A bag of probability 1e-300, which is 0 in float32, pulls its boxes towards the object."""
    deltas = torch.full((1, 50, 4), 100.0, requires_grad=True)
    bag_losses(torch.full((1, 50), -4.0), deltas, torch.zeros(1, 50, 4)).sum().backward()
    assert deltas.grad is not None and (deltas.grad > 0).all()


@pytest.mark.parametrize("kind", ["retinanet", "free_anchor"])
def test_weights_of_another_kind_of_detector_do_not_replace_the_class_bias(kind: str, tmp_path: Path) -> None:
    config = DetectorConfig("mobilenet_v2", 8, "group", 1, kind, options={"head_convs": 1})
    weights = {name: torch.randn_like(value) for name, value in build_detector(config).state_dict().items()}
    save_checkpoint(Checkpoint(config, weights, ("person",), (1,), tile=64), tmp_path / "model.pth")
    model = build_detector(replace(config, detector="free_anchor", options={"head_convs": 1}))
    report = initialize(model, read_source(str(tmp_path / "model.pth"), "free_anchor"), ("person",))
    name = "head.classification_head.cls_logits"
    state = model.state_dict()
    assert torch.equal(state[f"{name}.weight"], weights[f"{name}.weight"])
    if kind == "free_anchor":
        assert torch.equal(state[f"{name}.bias"], weights[f"{name}.bias"]) and len(report) == 1
    else:
        assert torch.equal(state[f"{name}.bias"], torch.full((9,), -math.log(49)))
        assert f"initialized as without --init: {name}.bias" in report and len(report) == 2
