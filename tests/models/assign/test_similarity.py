"""An assigner takes any similarity: the normalized Gaussian Wasserstein distance (NWD) in place of IoU."""

from __future__ import annotations

import pytest
import torch
from designs import RETINANET
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from tinydet.models.assign.max_iou import MaxIoUAssigner
from tinydet.models.assign.similarity import IoU

SIZE = (128, 160)
SCALE = 12.7  # pixels; the mean object size of AI-TOD, where NWD was introduced (Wang et al., 2021)


class NWD:
    """exp(-W2 / SCALE), W2 being the Wasserstein distance of the Gaussians that two boxes stand for."""

    def pairs(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        centers = ((boxes[:, :2] + boxes[:, 2:]) - (anchors[:, :2] + anchors[:, 2:])) / 2
        sides = ((boxes[:, 2:] - boxes[:, :2]) - (anchors[:, 2:] - anchors[:, :2])) / 2
        return torch.exp(-torch.cat([centers, sides], dim=1).square().sum(dim=1).sqrt() / SCALE)

    def reach(self, sizes: Tensor, shapes: Tensor, least: Tensor) -> Tensor:
        distance = -SCALE * least.double().log()
        return distance[:, :, None].expand(len(sizes), len(shapes), 2) + 1e-3


def anchors_of() -> Tensor:
    return torch.cat([torch.from_numpy(level) for level in RETINANET.grid_anchors(*SIZE)])


def random_boxes(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    sides = torch.exp(torch.randn(count, 2, generator=generator) * 0.7 + 2.3)
    center = torch.rand(count, 2, generator=generator) * torch.tensor([SIZE[1], SIZE[0]])
    return torch.cat([center - sides / 2, center + sides / 2], dim=1)


def matrix(similarity: NWD | IoU, boxes: Tensor, anchors: Tensor) -> Tensor:
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
    for box in random_boxes(60, seed=1):
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


@pytest.mark.parametrize("similarity", [IoU(), NWD()], ids=["IoU", "NWD"])
def test_no_anchor_beyond_the_reach_has_the_similarity(similarity: NWD | IoU) -> None:
    """What `Similarity.reach` promises: it may be too large, never too small."""
    boxes, anchors = random_boxes(20, seed=3), anchors_of()
    found, shapes = matrix(similarity, boxes, anchors), anchors[:, 2:] - anchors[:, :2]
    apart = ((boxes[:, None, :2] + boxes[:, None, 2:]) - (anchors[:, :2] + anchors[:, 2:])).abs() / 2
    for least in (0.05, 0.3, 0.6, 0.9):
        reach = similarity.reach((boxes[:, 2:] - boxes[:, :2])[:, None], shapes, torch.full((len(boxes), 1), least))
        assert reach.shape == (len(boxes), len(anchors), 2)
        enough = found >= least
        assert enough.any() or least > 0.5
        assert (apart <= reach + 1e-3)[enough].all()
