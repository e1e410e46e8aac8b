"""Matching without the IoU matrix gives what matching with it gives."""

from __future__ import annotations

import pytest
import torch
from designs import RETINANET, torchvision_design
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from tinydet.models.assign.ignore_regions import ignored_by_regions
from tinydet.models.assign.max_iou import MaxIoUAssigner

HEIGHT, WIDTH = 192, 256
NONE = torch.empty((0, 4))


def anchors_of(design=RETINANET, size=(HEIGHT, WIDTH)) -> torch.Tensor:
    return torch.cat([torch.from_numpy(level) for level in design.grid_anchors(*size)])


def random_boxes(count: int, seed: int, *, whole_pixels: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = torch.exp(torch.randn(count, 2, generator=generator) * 0.9 + 2.6)
    center = torch.rand(count, 2, generator=generator) * torch.tensor([WIDTH, HEIGHT])
    boxes = torch.cat([center - size / 2, center + size / 2], dim=1)
    boxes[:, 0::2] = boxes[:, 0::2].clamp(0, WIDTH)
    boxes[:, 1::2] = boxes[:, 1::2].clamp(0, HEIGHT)
    if whole_pixels:
        boxes = boxes.round()
    return boxes[((boxes[:, 2:] - boxes[:, :2]) >= 1).all(1)]


def single(boxes: torch.Tensor, design=RETINANET) -> torch.Tensor:
    """One image's matches in torchvision's coding: object index, -1 background, -2 ignored."""
    anchors = anchors_of(design)
    found = MaxIoUAssigner()(boxes, torch.zeros(len(boxes), dtype=torch.long), design, anchors, (HEIGHT, WIDTH))
    coded = torch.full((len(anchors),), -1)
    coded[found.ignored] = -2
    coded[found.positive] = found.objects
    return coded


@pytest.mark.parametrize("whole_pixels", [False, True])
def test_an_object_alone_is_matched_as_torchvision_does(whole_pixels: bool) -> None:
    anchors = anchors_of()
    for box in random_boxes(60, seed=1, whole_pixels=whole_pixels):
        dense = Matcher(0.5, 0.4, allow_low_quality_matches=True)(box_iou(box[None], anchors))
        assert torch.equal(single(box[None]), dense), box


@pytest.mark.parametrize("seed", range(12))
def test_objects_in_a_crowd_are_matched_as_torchvision_does_except_that_a_best_anchor_stays_its_objects(
    seed: int,
) -> None:
    boxes = random_boxes(40, seed, whole_pixels=bool(seed % 2))
    anchors = anchors_of()
    iou = box_iou(boxes, anchors)
    ours, dense = single(boxes), Matcher(0.5, 0.4, allow_low_quality_matches=True)(iou)
    for anchor in (ours != dense).nonzero().flatten().tolist():
        owner = int(ours[anchor])
        assert owner >= 0 and dense[anchor] >= 0
        assert iou[:, anchor].max() < 0.4  # no object claims it by itself
        assert iou[owner, anchor] == iou[owner].max()  # and it is the best that its owner has


def test_anchors_of_other_code_bases_are_matched_too() -> None:
    design = torchvision_design("retinanet")
    anchors = anchors_of(design)
    for box in random_boxes(60, seed=4, whole_pixels=True):
        dense = Matcher(0.5, 0.4, allow_low_quality_matches=True)(box_iou(box[None], anchors))
        assert torch.equal(single(box[None], design), dense)


def test_every_object_apart_from_others_has_an_anchor_that_learns_it() -> None:
    boxes = random_boxes(60, seed=9, whole_pixels=False)
    apart = box_iou(boxes, boxes).fill_diagonal_(0).amax(1) < 0.05
    assert apart.sum() > 20
    assert set(single(boxes).tolist()) >= set(apart.nonzero().flatten().tolist())


def test_a_batch_is_its_images_one_by_one() -> None:
    first, second = random_boxes(20, 1, whole_pixels=False), random_boxes(25, 2, whole_pixels=False)
    anchors = anchors_of()
    owner = torch.tensor([0] * len(first) + [2] * len(second))  # image 1 is empty
    found = MaxIoUAssigner()(torch.cat([first, second]), owner, RETINANET, anchors, (HEIGHT, WIDTH))
    coded = torch.full((3 * len(anchors),), -1)
    coded[found.ignored] = -2
    coded[found.positive] = found.objects
    one, empty, two = coded.view(3, -1)
    assert torch.equal(one, single(first))
    assert (empty == -1).all()
    wanted = single(second)
    assert torch.equal(two, torch.where(wanted >= 0, wanted + len(first), wanted))


def test_no_object_means_only_background() -> None:
    found = MaxIoUAssigner()(NONE, torch.empty(0, dtype=torch.long), RETINANET, anchors_of(), (HEIGHT, WIDTH))
    assert len(found.positive) == len(found.objects) == len(found.ignored) == 0


def test_anchors_centered_in_an_ignore_region_and_no_others_are_ignored() -> None:
    anchors = anchors_of()
    region = torch.tensor([[30.0, 40.0, 77.0, 61.0]])
    center = (anchors[:, :2] + anchors[:, 2:]) / 2
    inside = ((center >= region[0, :2] - 1e-3) & (center < region[0, 2:] - 1e-3)).all(1)
    found = ignored_by_regions(region, torch.tensor([1]), RETINANET, (HEIGHT, WIDTH))
    assert found.tolist() == (inside.nonzero().flatten() + len(anchors)).tolist()


def test_no_region_ignores_nothing() -> None:
    assert len(ignored_by_regions(NONE, torch.empty(0, dtype=torch.long), RETINANET, (HEIGHT, WIDTH))) == 0
