"""The hierarchical rule of RFLA (Xu et al., ECCV 2022): by rank, then once more with smaller anchors."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tinydet.geometry.anchors import AnchorDesign
from tinydet.models.assign import Matches, Similarity
from tinydet.models.assign.conflicts import Owners, resolve
from tinydet.models.assign.pairs import Pairs, best_pairs, near_anchors
from tinydet.models.assign.similarity import RFD

RECEPTIVE_FIELD = RFD()


@dataclass(frozen=True)
class HierarchicalAssigner:
    """Each object is learned by the `rank` anchors most similar to it, and by its best free one of smaller anchors.

    For the second step all anchors shrink about their centers, so that a finer level may be the most similar one. The
    smaller anchors also decide what is background: those below `background`. Anchors as similar as the last of a rank
    learn the object too. The authors shrink the anchors that boxes are encoded from; here those keep their size.
    """

    similarity: Similarity = RECEPTIVE_FIELD
    rank: int = 3
    shrink: float = 0.9
    background: float = 0.8

    def __call__(
        self, boxes: Tensor, owner: Tensor, design: AnchorDesign, anchors: Tensor, size: tuple[int, int]
    ) -> Matches:
        """See `Assigner`."""
        shapes = tuple(tuple((w * self.shrink, h * self.shrink) for w, h in level) for level in design.shapes)
        smaller, half = replace(design, shapes=shapes), (anchors[:, 2:] - anchors[:, :2]) / 2
        center = anchors[:, :2] + half
        shrunken = torch.cat([center - half * self.shrink, center + half * self.shrink], dim=1)

        def owners_of(rank: int, design: AnchorDesign, anchors: Tensor) -> Owners:
            best = best_pairs(boxes, rank, design, anchors, size, self.similarity, ties=True)
            flat = best.anchors + owner[best.objects] * len(anchors)
            return resolve(Pairs(best.objects, flat, best.similarity), len(boxes))

        first, second = owners_of(self.rank, design, anchors), owners_of(1, smaller, shrunken)
        free = ~torch.isin(second.anchors, first.anchors)
        positive, order = torch.cat([first.anchors, second.anchors[free]]).sort()
        objects = torch.cat([first.objects, second.objects[free]])[order]
        near = near_anchors(boxes, owner, self.background, smaller, shrunken, size, self.similarity)
        near[positive] = False
        return Matches(positive, objects, near.nonzero().flatten())
