"""Assignment by rank without the similarity matrix gives what it gives on the matrix."""

from __future__ import annotations

import itertools

import pytest
import torch
from designs import FASTER_RCNN, RETINANET
from torch import Tensor

from tinydet.geometry.anchors import AnchorDesign
from tinydet.models.assign import Matches, Similarity
from tinydet.models.assign.rank import RankAssigner
from tinydet.models.assign.similarity import NWD, RFD, SIMILARITIES, DotD, IoU

POINTS = AnchorDesign(levels=("P3", "P4"), strides=(8, 16), shapes=(((16.0, 16.0),), ((32.0, 32.0),)))


def anchors_of(design: AnchorDesign, size: tuple[int, int]) -> Tensor:
    return torch.cat([torch.from_numpy(level) for level in design.grid_anchors(*size)])


def matrix(similarity: Similarity, boxes: Tensor, anchors: Tensor) -> Tensor:
    """(M, N) similarity of every object with every anchor."""
    pairs = similarity.pairs(boxes.repeat_interleave(len(anchors), dim=0), anchors.repeat(len(boxes), 1))
    return pairs.view(len(boxes), len(anchors))


def dense(assigner: RankAssigner, boxes: Tensor, anchors: Tensor) -> Tensor:
    """The rule of `RankAssigner`, object by object: (N,) index of an object, -1 background, -2 ignored."""
    found = matrix(assigner.similarity, boxes, anchors)
    claims: dict[int, list[tuple[float, int]]] = {}
    for number, row in enumerate(found):
        values = row.tolist()
        best = sorted(range(len(values)), key=lambda a: (-values[a], a))[: assigner.rank]
        if assigner.ties:
            best = [a for a, value in enumerate(values) if value >= values[best[-1]]]
        for anchor in best:
            if values[anchor] > 0:
                claims.setdefault(anchor, []).append((-values[anchor], number))
    coded = torch.where(found.amax(0) >= assigner.background, -2, -1)
    for anchor, claim in claims.items():
        coded[anchor] = min(claim)[1]
    without = [number for number in range(len(boxes)) if number not in set(coded.tolist())]
    if assigner.every_object:
        free = [a for a in range(len(anchors)) if a not in claims]
        pairs = [(-float(found[i, a]), i, a) for i, a in itertools.product(without, free) if found[i, a] > 0]
        for _, number, anchor in sorted(pairs):
            if number in without and coded[anchor] < 0:
                coded[anchor] = number
                without.remove(number)
    return coded


def coded(matches: Matches, anchors: int) -> Tensor:
    result = torch.full((anchors,), -1)
    result[matches.ignored] = -2
    assert (result[matches.positive] == -1).all()  # none is both
    result[matches.positive] = matches.objects
    return result


def assigned(assigner: RankAssigner, boxes: Tensor, design: AnchorDesign, size: tuple[int, int]) -> Tensor:
    anchors = anchors_of(design, size)
    return coded(assigner(boxes, torch.zeros(len(boxes), dtype=torch.long), design, anchors, size), len(anchors))


def random_boxes(count: int, seed: int, size: tuple[int, int], *, median: float = 8.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    sides = torch.exp(torch.randn(count, 2, generator=generator) * 0.8) * median
    center = torch.rand(count, 2, generator=generator) * torch.tensor([size[1], size[0]])
    return torch.cat([center - sides / 2, center + sides / 2], dim=1)


@pytest.mark.parametrize("name", SIMILARITIES)
@pytest.mark.parametrize(
    ("design", "size", "rank"),
    [(RETINANET, (64, 64), 3), (FASTER_RCNN, (70, 45), 2), (FASTER_RCNN, (33, 100), 1), (POINTS, (64, 96), 7)],
    ids=["retinanet", "faster_rcnn", "rank 1", "points"],
)
def test_a_crowd_is_assigned_as_on_the_matrix(
    name: str, design: AnchorDesign, size: tuple[int, int], rank: int
) -> None:
    """Centers lie up to the border and boxes beyond it, and sizes are no multiples of the strides."""
    boxes = random_boxes(20, rank, size)
    assigner = RankAssigner(SIMILARITIES[name], rank)
    anchors = anchors_of(design, size)
    assert torch.equal(assigned(assigner, boxes, design, size), dense(assigner, boxes, anchors))


@pytest.mark.parametrize(
    "boxes",
    [
        [[31.2, 30.9, 32.2, 31.9]],  # one pixel
        [[-40.0, -30.0, 130.0, 120.0]],  # larger than the image
        [[-0.5, -0.5, 0.5, 0.5], [63.5, 63.5, 64.5, 64.5], [0.0, 63.0, 3.0, 64.0]],  # in the corners
        [[20.0, 20.0, 26.0, 27.0]] * 12,  # the same object twelve times
        [[16.0 + i / 9, 16.0 - i / 7, 22.0 + i / 5, 22.0] for i in range(20)],  # many in a cell
        [[28.0, 28.0, 36.0, 36.0], [32.0, 28.0, 36.0, 36.0]],  # on the corner of four cells
    ],
)
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("name", ["nwd", "rfd", "iou"])
def test_odd_objects_are_assigned_as_on_the_matrix(name: str, boxes: list[list[float]], ties: bool) -> None:
    assigner = RankAssigner(SIMILARITIES[name], 3, ties=ties)
    anchors = anchors_of(FASTER_RCNN, (64, 64))
    found = assigned(assigner, torch.tensor(boxes), FASTER_RCNN, (64, 64))
    assert torch.equal(found, dense(assigner, torch.tensor(boxes), anchors))


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("similarity", [NWD(), RFD(), DotD(), IoU()])
def test_every_object_of_a_dense_crowd_has_an_anchor_and_none_has_more_than_its_rank(
    similarity: Similarity, rank: int
) -> None:
    boxes = random_boxes(300, seed=1, size=(128, 128), median=4.0)
    found = assigned(RankAssigner(similarity, rank), boxes, RETINANET, (128, 128))
    count = torch.bincount(found[found >= 0], minlength=len(boxes))
    assert count.min() == 1 and count.max() <= rank
    without = assigned(RankAssigner(similarity, rank, every_object=False), boxes, RETINANET, (128, 128))
    assert torch.bincount(without[without >= 0], minlength=len(boxes)).min() == 0


def test_a_rank_beyond_the_anchors_takes_all_of_them() -> None:
    boxes = torch.tensor([[3.0, 3.0, 9.0, 9.0]])
    size = (16, 16)
    assert (assigned(RankAssigner(NWD(), 100), boxes, POINTS, size) == 0).all()
    assert len(anchors_of(POINTS, size)) == 5


def test_a_batch_is_its_images_one_by_one() -> None:
    size, assigner = (64, 96), RankAssigner(NWD(), 2)
    first, second = (random_boxes(count, count, size) for count in (30, 20))
    anchors = anchors_of(FASTER_RCNN, size)
    owner = torch.tensor([0] * len(first) + [2] * len(second))  # image 1 is empty
    order = torch.randperm(len(owner), generator=torch.Generator().manual_seed(0))
    matches = assigner(torch.cat([first, second])[order], owner[order], FASTER_RCNN, anchors, size)
    matches = matches._replace(objects=order[matches.objects])
    one, empty, two = coded(matches, 3 * len(anchors)).view(3, -1)
    assert torch.equal(one, assigned(assigner, first, FASTER_RCNN, size))
    assert (empty == -1).all()
    wanted = assigned(assigner, second, FASTER_RCNN, size)
    assert torch.equal(two, torch.where(wanted >= 0, wanted + len(first), wanted))


def test_no_object_means_only_background() -> None:
    assert (assigned(RankAssigner(NWD()), torch.zeros(0, 4), RETINANET, (64, 64)) == -1).all()


@pytest.mark.parametrize(("rank", "background"), [(0, 0.3), (2, 0.0), (2, 1.5)])
def test_rank_and_background_have_bounds(rank: int, background: float) -> None:
    with pytest.raises(ValueError, match="rank must be at least 1 and background above 0 and up to 1, got"):
        RankAssigner(NWD(), rank, background)
