"""Assignment by rank: each object is learned by its K most similar anchors, however small it is.

NWD-RKA (Xu et al., 2022) with one difference: where objects claim one anchor, the more similar one gets it, not the
later one, and an object that loses all its anchors gets its best free one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tinydet.geometry.anchors import AnchorDesign
from tinydet.models.assign import Matches, Similarity
from tinydet.models.assign.conflicts import give_one_to_each, resolve
from tinydet.models.assign.pairs import Pairs, best_pairs, near_anchors


@dataclass(frozen=True)
class RankAssigner:
    """Each object is learned by the `rank` anchors most similar to it, of equal ones by the first.

    Anchors that learn no object are background if their similarity to every object is below `background`, else ignored.
    An anchor of similarity 0 never learns an object.

    Attributes:
        ties: whether anchors as similar as the `rank`-th learn the object too.
        every_object: whether an object that loses all its anchors to others gets its most similar free one.

    Raises:
        ValueError: rank or background is out of range.
    """

    similarity: Similarity
    rank: int = 3
    background: float = 0.3
    ties: bool = False
    every_object: bool = True

    def __post_init__(self) -> None:
        if self.rank < 1 or not 0 < self.background <= 1:
            raise ValueError(
                f"rank must be at least 1 and background above 0 and up to 1, got {self.rank} and {self.background}"
            )

    def __call__(
        self, boxes: Tensor, owner: Tensor, design: AnchorDesign, anchors: Tensor, size: tuple[int, int]
    ) -> Matches:
        """See `Assigner`."""
        best = best_pairs(boxes, self.rank, design, anchors, size, self.similarity, ties=self.ties)
        flat = best.anchors + owner[best.objects] * len(anchors)
        owners = resolve(Pairs(best.objects, flat, best.similarity), len(boxes))
        if self.every_object:
            wanting = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
            owners = give_one_to_each(owners, wanting, boxes, owner, design, anchors, size, self.similarity)
        near = near_anchors(boxes, owner, self.background, design, anchors, size, self.similarity)
        near[owners.anchors] = False
        return Matches(owners.anchors, owners.objects, near.nonzero().flatten())
