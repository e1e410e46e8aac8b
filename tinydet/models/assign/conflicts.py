"""Anchors that several objects claim, and objects that get none."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tinydet.geometry.anchors import AnchorDesign
from tinydet.models.assign import Similarity
from tinydet.models.assign.pairs import Pairs, best_pairs, ranked

MOST_TRIED = 512  # anchors per object without one


class Owners(NamedTuple):
    """Anchors and the object that each may learn; anchors are distinct and ascending."""

    anchors: Tensor  # (P,) flat indices into the anchors of the batch
    objects: Tensor  # (P,)
    similarity: Tensor  # (P,)


def resolve(pairs: Pairs, objects: int) -> Owners:
    """Give each anchor to its most similar object, and of several such objects to the first.

    Args:
        pairs: anchors are flat indices into those of the batch.
        objects: number of objects in the batch.
    """
    anchors, inverse = pairs.anchors.unique(return_inverse=True)
    highest = pairs.similarity.new_zeros(len(anchors)).scatter_reduce_(0, inverse, pairs.similarity, "amax")
    first = pairs.objects.new_full((len(anchors),), objects)
    at_highest = pairs.similarity == highest[inverse]
    first.scatter_reduce_(0, inverse[at_highest], pairs.objects[at_highest], "amin")
    return Owners(anchors, first, highest)


def give_one_to_each(
    owners: Owners,
    wanting: Tensor,
    boxes: Tensor,
    owner: Tensor,
    design: AnchorDesign,
    anchors: Tensor,
    size: tuple[int, int],
    similarity: Similarity,
) -> Owners:
    """Give each object that has no anchor its most similar free one, the most similar pair first.

    An object whose `MOST_TRIED` most similar anchors are all taken gets none: that many objects are in the same place.

    Args:
        wanting: (M,) whether an object should have an anchor. The other arguments are those of `Assigner`.
    """
    has = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    has[owners.objects] = True
    (without,) = torch.where(wanting & ~has)
    if not len(without):
        return owners
    rank, most = 16, min(MOST_TRIED, len(anchors))
    while True:
        rank = min(rank, most)
        pairs = best_pairs(boxes[without], rank, design, anchors, size, similarity)
        flat = pairs.anchors + owner[without[pairs.objects]] * len(anchors)
        free = ~torch.isin(flat, owners.anchors) & (pairs.similarity > 0)
        given = _one_each(Pairs(pairs.objects[free], flat[free], pairs.similarity[free]))
        if len(given.objects) == len(without) or rank == most:
            break
        rank *= 4  # an object without an anchor may want one that another was given, so all are tried again
    joined = Owners(
        torch.cat([owners.anchors, given.anchors]),
        torch.cat([owners.objects, without[given.objects]]),
        torch.cat([owners.similarity, given.similarity]),
    )
    order = joined.anchors.argsort()
    return Owners(*(column[order] for column in joined))


def _one_each(pairs: Pairs) -> Pairs:
    """Choose pairs, the most similar first, so that each object and each anchor is in one at most."""
    pairs = ranked(pairs)
    order = pairs.similarity.argsort(descending=True, stable=True)
    chosen: list[int] = []
    objects: set[int] = set()
    anchors: set[int] = set()
    rows = zip(order.tolist(), pairs.objects[order].tolist(), pairs.anchors[order].tolist(), strict=True)
    for place, obj, anchor in rows:
        if obj not in objects and anchor not in anchors:
            chosen.append(place)
            objects.add(obj)
            anchors.add(anchor)
    kept = torch.tensor(chosen, dtype=torch.long, device=pairs.anchors.device)
    return Pairs(*(column[kept] for column in pairs))
