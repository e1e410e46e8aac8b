"""Similarities in place of IoU: their values, their reach, and the max-IoU rule with them."""

from __future__ import annotations

import pytest
import torch
from designs import RETINANET
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from tinydet.geometry import similarity as in_numpy
from tinydet.models.assign import Similarity
from tinydet.models.assign.max_iou import MaxIoUAssigner
from tinydet.models.assign.similarity import NWD, SIMILARITIES, IoU, SimD

SIZE = (128, 160)
ALL: dict[str, Similarity] = {**SIMILARITIES, "simd": SimD((6.13, 4.59))}


def anchors_of() -> Tensor:
    return torch.cat([torch.from_numpy(level) for level in RETINANET.grid_anchors(*SIZE)])


def random_boxes(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    sides = torch.exp(torch.randn(count, 2, generator=generator) * 0.7 + 2.3)
    center = torch.rand(count, 2, generator=generator) * torch.tensor([SIZE[1], SIZE[0]])
    return torch.cat([center - sides / 2, center + sides / 2], dim=1)


def matrix(similarity: Similarity, boxes: Tensor, anchors: Tensor) -> Tensor:
    """(M, N) similarity of every object with every anchor."""
    pairs = similarity.pairs(boxes.repeat_interleave(len(anchors), dim=0), anchors.repeat(len(boxes), 1))
    return pairs.view(len(boxes), len(anchors))


def assigned(assigner: MaxIoUAssigner, boxes: Tensor) -> Tensor:
    """The matches of one image as torchvision codes them: index of the object, -1 background, -2 ignored."""
    anchors = anchors_of()
    matches = assigner(boxes, torch.zeros(len(boxes), dtype=torch.long), RETINANET, anchors, SIZE)
    coded = torch.full((len(anchors),), -1)
    coded[matches.ignored] = -2
    coded[matches.positive] = matches.objects
    return coded


@pytest.mark.parametrize(("foreground", "background"), [(0.5, 0.4), (0.7, 0.3), (0.8, 0.8)])
def test_an_object_alone_is_matched_as_on_the_dense_matrix(foreground: float, background: float) -> None:
    assigner = MaxIoUAssigner(foreground, background, NWD())
    matcher = Matcher(foreground, background, allow_low_quality_matches=True)
    for box in random_boxes(25, seed=1):
        dense = matcher(matrix(NWD(), box[None], anchors_of()))
        assert torch.equal(assigned(assigner, box[None]), dense), box


@pytest.mark.parametrize("seed", range(6))
def test_objects_in_a_crowd_are_matched_as_on_the_dense_matrix_except_that_a_best_anchor_stays_its_objects(
    seed: int,
) -> None:
    boxes = random_boxes(25, seed)
    similarity = matrix(NWD(), boxes, anchors_of())
    ours = assigned(MaxIoUAssigner(similarity=NWD()), boxes)
    dense = Matcher(0.5, 0.4, allow_low_quality_matches=True)(similarity)
    for anchor in (ours != dense).nonzero().flatten().tolist():
        owner = int(ours[anchor])
        assert owner >= 0 and dense[anchor] >= 0
        assert similarity[:, anchor].max() < 0.4
        assert similarity[owner, anchor] == similarity[owner].max()


def test_another_similarity_gives_other_matches() -> None:
    boxes = random_boxes(25, seed=0)
    ours, by_iou = (assigned(MaxIoUAssigner(similarity=each), boxes) for each in (NWD(), IoU()))
    assert (ours >= 0).sum() > 2 * (by_iou >= 0).sum()  # NWD falls slowly, so that more anchors learn


def test_iou_is_that_of_torchvision_to_the_bit() -> None:
    boxes, anchors = random_boxes(10, seed=2), anchors_of()[::37]
    assert torch.equal(matrix(IoU(), boxes, anchors), box_iou(boxes, anchors))


@pytest.mark.parametrize("name", ALL)
def test_torch_and_numpy_agree(name: str) -> None:
    boxes, anchors = random_boxes(10, seed=2), anchors_of()[::37]
    wanted = {**in_numpy.SIMILARITIES, "simd": lambda one, two: in_numpy.simd(one, two, (6.13, 4.59))}[name](
        boxes[:, None].double().numpy(), anchors.double().numpy()
    )
    found = matrix(ALL[name], boxes, anchors).double()
    torch.testing.assert_close(found, torch.from_numpy(wanted), rtol=1e-4, atol=1e-6)
    assert in_numpy.SIMILARITIES.keys() == SIMILARITIES.keys()


@pytest.mark.parametrize("name", ALL)
def test_no_anchor_beyond_the_reach_has_the_similarity(name: str) -> None:
    """What `Similarity.reach` promises: it may be too large, never too small. Objects of 1 px are among them."""
    boxes, anchors = random_boxes(20, seed=3), anchors_of()
    boxes[:5, 2:] = boxes[:5, :2] + 1
    found, shapes = matrix(ALL[name], boxes, anchors), anchors[:, 2:] - anchors[:, :2]
    apart = ((boxes[:, None, :2] + boxes[:, None, 2:]) - (anchors[:, :2] + anchors[:, 2:])).abs() / 2
    limits = torch.tensor([0.01, 0.3, 0.6, 0.9])
    for least in (*limits.view(-1, 1, 1).expand(-1, len(boxes), 1), found.amax(1, keepdim=True)):
        reach = ALL[name].reach((boxes[:, 2:] - boxes[:, :2])[:, None], shapes, least)
        assert reach.shape == (len(boxes), len(anchors), 2) and reach.dtype == torch.float64
        enough = found >= least
        assert enough.any() or float(least.min()) > 0.3
        assert (apart <= reach + 1e-3)[enough].all()


@pytest.mark.parametrize("name", ALL)
def test_the_reach_is_not_much_too_large(name: str) -> None:
    """At the edge of the reach along one axis the similarity is what was asked for."""
    boxes = random_boxes(50, seed=4)
    sides = boxes[:, 2:] - boxes[:, :2]
    reach = ALL[name].reach(sides[:, None], torch.tensor([[9.0, 11.0]]), torch.full((len(boxes), 1), 0.2))[:, 0]
    (possible,) = torch.where((reach >= 0).all(1))
    assert len(possible) > 10
    for axis in (0, 1):
        center = ((boxes[:, :2] + boxes[:, 2:]) / 2)[possible]
        center[:, axis] += reach[possible, axis].float()
        half = torch.tensor([4.5, 5.5])
        found = ALL[name].pairs(boxes[possible], torch.cat([center - half, center + half], dim=1))
        torch.testing.assert_close(found, torch.full_like(found, 0.2), rtol=2e-3, atol=0)


@pytest.mark.parametrize("name", ["nwd", "rfd", "dotd"])
def test_every_object_of_a_crowd_keeps_an_anchor(name: str) -> None:
    boxes = random_boxes(60, seed=6)
    boxes = torch.cat([boxes, boxes])  # each object twice: the first of two gets their anchors
    assigner = MaxIoUAssigner(0.7, 0.3, SIMILARITIES[name], every_object=True)
    plain = MaxIoUAssigner(0.7, 0.3, SIMILARITIES[name])
    found, without = assigned(assigner, boxes), assigned(plain, boxes)
    assert len(found[found >= 0].unique()) == len(boxes) > len(without[without >= 0].unique())
    added = found != without
    assert (without[added] < 0).all() and (found[added] >= 0).all()  # only free anchors are given


def test_an_object_whose_best_anchor_is_below_the_minimum_has_none() -> None:
    boxes = torch.tensor([[70.0, 60.0, 71.0, 61.0], [30.0, 30.0, 38.0, 38.0]])
    found = assigned(MaxIoUAssigner(0.5, 0.4, IoU(), minimum=0.3), boxes)
    assert set(found[found >= 0].tolist()) == {1}
    assert set(assigned(MaxIoUAssigner(0.5, 0.4, IoU()), boxes).tolist()) >= {0, 1}
