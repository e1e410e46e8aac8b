"""The loss against its formula, written out anchor by anchor."""

from __future__ import annotations

import math

import torch
from designs import RETINANET

from tinydet.models.assign import Matches
from tinydet.models.box_coder import encode
from tinydet.models.losses import retinanet_loss, total
from tinydet.models.retinanet import HeadOutputs

SIZE = (64, 64)
LEVELS = RETINANET.levels


def setting(classes: int = 2):
    levels = [torch.from_numpy(level) for level in RETINANET.grid_anchors(*SIZE)]
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(2, len(level), classes, generator=generator) for level in levels]
    deltas = [torch.randn(2, len(level), 4, generator=generator) for level in levels]
    return HeadOutputs(logits, deltas), torch.cat(levels)


def loss(outputs, anchors, matches, boxes, labels, ignored):
    deltas = torch.cat(outputs.deltas, 1).reshape(-1, 4)[matches.positive]
    return retinanet_loss(outputs.logits, deltas, anchors, matches, boxes, labels, ignored, LEVELS)


def of_kind(losses, kind):
    """(levels,) the losses of one kind, finest level first."""
    return torch.stack([losses[f"{kind}/{level}"] for level in LEVELS])


def by_hand(outputs, anchors, matches, boxes, labels, ignored):
    logits = torch.cat(outputs.logits, 1).reshape(-1, outputs.logits[0].shape[2]).double()
    deltas = torch.cat(outputs.deltas, 1).reshape(-1, 4).double()
    owner = dict(zip(matches.positive.tolist(), matches.objects.tolist(), strict=True))
    left_out = {*matches.ignored.tolist(), *ignored.tolist()} - owner.keys()
    focal = 0.0
    for anchor, row in enumerate(logits.tolist()):
        if anchor in left_out:
            continue
        for channel, x in enumerate(row):
            p = 1 / (1 + math.exp(-x))
            positive = anchor in owner and int(labels[owner[anchor]]) == channel
            focal -= 0.25 * (1 - p) ** 2 * math.log(p) if positive else 0.75 * p**2 * math.log(1 - p)
    box = 0.0
    for anchor, obj in owner.items():
        wanted = encode(boxes[obj][None], anchors[anchor % len(anchors)][None])[0]
        for d in (deltas[anchor] - wanted.double()).abs().tolist():
            box += 0.5 * d * d / 0.11 if d < 0.11 else d - 0.5 * 0.11
    return focal / (len(owner) + 2), box / (4 * max(len(owner), 1))


def test_loss_is_the_formula() -> None:
    outputs, anchors = setting()
    boxes = torch.tensor([[4.0, 5.0, 12.0, 21.0], [30.0, 30.0, 50.0, 44.0]])
    labels = torch.tensor([1, 0])
    matches = Matches(torch.tensor([3, 40, len(anchors) + 7]), torch.tensor([0, 0, 1]), torch.tensor([5, 6]))
    ignored = torch.tensor([6, 7, 40])  # 40 is positive: an object beside a region is still learned
    losses = loss(outputs, anchors, matches, boxes, labels, ignored)
    wanted = by_hand(outputs, anchors, matches, boxes, labels, ignored)
    assert math.isclose(float(of_kind(losses, "classification").sum()), wanted[0], rel_tol=1e-4)
    assert math.isclose(float(of_kind(losses, "regression").sum()), wanted[1], rel_tol=1e-4)


def test_images_without_objects_teach_background_only() -> None:
    outputs, anchors = setting()
    for level in (*outputs.logits, *outputs.deltas):
        level.requires_grad_()
    none = torch.empty(0, dtype=torch.long)
    losses = loss(outputs, anchors, Matches(none, none, none), torch.empty(0, 4), none, none)
    assert (of_kind(losses, "regression") == 0).all()
    total(losses).backward()
    assert all((level.grad > 0).all() for level in outputs.logits)  # every score is pushed down


def test_ignored_anchors_have_no_gradient() -> None:
    outputs, anchors = setting()
    for level in (*outputs.logits, *outputs.deltas):
        level.requires_grad_()
    none = torch.empty(0, dtype=torch.long)
    losses = loss(outputs, anchors, Matches(none, none, torch.tensor([0])), torch.empty(0, 4), none, torch.tensor([1]))
    total(losses).backward()
    gradient = outputs.logits[0].grad[0]
    assert (gradient[:2] == 0).all() and (gradient[2:] != 0).all()


def test_each_level_carries_the_loss_of_its_own_anchors() -> None:
    outputs, anchors = setting()
    boxes, labels = torch.tensor([[4.0, 5.0, 12.0, 21.0]]), torch.tensor([1])
    sizes = [level.shape[1] for level in outputs.logits]
    none = torch.empty(0, dtype=torch.long)
    for level, size in enumerate(sizes):
        first = sum(sizes[:level])
        for anchor in (first, first + size - 1):
            matches = Matches(torch.tensor([anchor + len(anchors)]), torch.tensor([0]), none)
            losses = loss(outputs, anchors, matches, boxes, labels, none)
            assert (of_kind(losses, "regression") > 0).nonzero().flatten().tolist() == [level]
    changed = HeadOutputs([outputs.logits[0] + 1, *outputs.logits[1:]], outputs.deltas)
    before, after = (
        of_kind(loss(o, anchors, matches, boxes, labels, none), "classification") for o in (outputs, changed)
    )
    assert after[0] > before[0]
    assert torch.equal(after[1:], before[1:])
