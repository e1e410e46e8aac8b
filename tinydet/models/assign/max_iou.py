"""The max-IoU rule without the IoU matrix, for IoU and for similarities in its place.

An anchor of a level can reach the similarity that matters only from cells near the object. So for each object and
anchor shape the rows and columns that qualify are computed, and only those anchors are compared: a few dozen per object
instead of all 245 520 of a 640x512 tile. The result is that of torchvision's `Matcher` on the dense matrix, with one
exception: the best anchor of a tiny object, below the background threshold, may overlap a neighbor slightly more.
torchvision gives it to the neighbor, and no anchor learns the tiny object; here it learns the tiny object.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tinydet.geometry.anchors import AnchorDesign
from tinydet.models.assign import Matches, Similarity
from tinydet.models.assign.conflicts import give_one_to_each, resolve
from tinydet.models.assign.pairs import ROUNDING, Pairs, concatenate, kth_similarity, levels_of, similar_pairs
from tinydet.models.assign.similarity import IoU

IOU = IoU()


@dataclass(frozen=True)
class MaxIoUAssigner:
    """An anchor learns its most similar object if the similarity is at least `foreground`, or if it is its best anchor.

    Of equally similar objects it learns the first. Between the thresholds it is ignored; below `background` it is
    background.

    Attributes:
        minimum: least similarity of the best anchor of an object; below it the object may have no anchor.
        every_object: whether an object whose best anchors are more similar to others gets its most similar free one.
            torchvision leaves it without.

    Raises:
        ValueError: the thresholds are out of range or order.
    """

    foreground: float = 0.5
    background: float = 0.4
    similarity: Similarity = IOU
    minimum: float = 0.0
    every_object: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.background <= self.foreground <= 1:
            raise ValueError(
                "thresholds must satisfy 0 < background <= foreground <= 1, "
                f"got {self.background} and {self.foreground}"
            )

    def __call__(
        self, boxes: Tensor, owner: Tensor, design: AnchorDesign, anchors: Tensor, size: tuple[int, int]
    ) -> Matches:
        """See `Assigner`."""
        levels = levels_of(design, size)
        least = kth_similarity(boxes, design, anchors, levels, self.similarity) * (1 - ROUNDING)
        pairs = concatenate([*similar_pairs(boxes, least, design, anchors, levels, self.similarity)], boxes)
        best = boxes.new_zeros(len(boxes)).scatter_reduce_(0, pairs.objects, pairs.similarity, "amax")
        flat = pairs.anchors + owner[pairs.objects] * len(anchors)
        of_best = (pairs.similarity == best[pairs.objects]) & (best >= self.minimum)[pairs.objects]

        images = int(owner.max()) + 1 if len(owner) else 0
        learns, near = torch.zeros(2, images * len(anchors), dtype=torch.bool, device=boxes.device)
        learns[flat[of_best]] = True
        chunks = [Pairs(pairs.objects[of_best], flat[of_best], pairs.similarity[of_best])]
        least = torch.full_like(best, self.background)
        for found in similar_pairs(boxes, least, design, anchors, levels, self.similarity):
            flat = found.anchors + owner[found.objects] * len(anchors)
            near[flat] = True
            learns[flat[found.similarity >= self.foreground]] = True
            kept = learns[flat]  # others cannot own it
            chunks.append(Pairs(found.objects[kept], flat[kept], found.similarity[kept]))
        owners = resolve(concatenate(chunks, boxes), len(boxes))
        if self.every_object:
            wanting = best >= self.minimum
            owners = give_one_to_each(owners, wanting, boxes, owner, design, anchors, size, self.similarity)
        near[owners.anchors] = False
        return Matches(owners.anchors, owners.objects, near.nonzero().flatten())
