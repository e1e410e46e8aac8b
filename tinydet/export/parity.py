"""Two runs of one model on the same tiles, compared as sets of detections: what the parity gate is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinydet.geometry.boxes import iou_of_pairs
from tinydet.geometry.nms import conflicts, suppress
from tinydet.runtime.backends import TileOutputs


@dataclass(frozen=True)
class Tolerance:
    """When two detections are the same, and how many need not be.

    Attributes:
        iou, score: a pair of one class overlaps by more than `iou`, and its scores differ by at most `score`.
        unmatched: how many may lack a partner, as a fraction of the reference's detections that need one.
        candidates: difference of a tile's candidates, as a part of them.
    """

    iou: float
    score: float
    unmatched: float
    candidates: float


# Rounding moves a score near the decision boundary of a convolution; what INT8 does to the whole is for AP to say.
TOLERANCES = {
    "fp32": Tolerance(iou=0.9, score=1e-3, unmatched=0.0, candidates=0.01),
    "fp16": Tolerance(iou=0.9, score=0.03, unmatched=0.01, candidates=0.05),
    "int8": Tolerance(iou=0.5, score=0.25, unmatched=0.05, candidates=0.5),
}


@dataclass(frozen=True)
class Parity:
    """How far two runs of one model on the same tiles are apart, as sets of detections.

    Attributes:
        detections: of the reference.
        unmatched: boxes of either side without a partner within the tolerance; a box that close to where its tile was
            cut off (score floor, K) is forgiven.
        score_difference, box_difference: largest of all pairs; box coordinates in pixels.
        candidates_difference: largest of all tiles, as a part of the tile's candidates.
        judged: detections of the reference that are not forgiven.
        silent: whether the other side found nothing where the reference has a score over twice the floor.
        unconverged: proposals whose suppression inside the other side's graph had not settled, of all tiles.
    """

    tiles: int
    detections: int
    unmatched: int
    score_difference: float
    box_difference: float
    candidates_difference: float
    judged: int
    silent: bool
    unconverged: int = 0


def compare(
    reference: TileOutputs,
    other: TileOutputs,
    score_floor: float,
    tolerance: Tolerance = TOLERANCES["fp32"],
    *,
    nms_iou: float | None = None,
) -> Parity:
    """Two runs on the same tiles, as sets: the order within a tile means nothing.

    Args:
        nms_iou: forgive a box without a partner where suppression at this IoU removes it from its own side. For models
            with proposals: which duplicates of an object become proposals is for rounding to decide.
    """
    tiles, slots = reference.scores.shape
    boxes, scores, tile, cells, side = _both(reference, other)
    count = int((side == 0).sum())
    first, second = conflicts(boxes.astype(np.float64), tolerance.iou, same=cells, apart=side)
    close = np.abs(scores[first] - scores[second]) <= tolerance.score
    first, second = first[close], second[close]

    distance = np.abs(boxes[first] - boxes[second]).max(axis=1, initial=0.0)
    matched = np.zeros(len(boxes), np.bool_)
    pairs: list[int] = []
    for pair in np.argsort(distance, kind="stable").tolist():  # the nearest partner first, each box once
        if not (matched[first[pair]] or matched[second[pair]]):
            matched[[first[pair], second[pair]]] = True
            pairs.append(pair)

    # By the reference alone: a wrong model may fill its slots with high scores. Where K cuts off, rounding moves both a
    # score and the K-th of the other side.
    full = reference.labels[:, -1] >= 0
    cut = np.where(full, np.maximum(reference.scores[:, -1].astype(np.float64), score_floor), score_floor)
    cut += tolerance.score * (1 + (full | (other.labels[:, -1] >= 0)))
    forgiven = scores <= cut[tile]
    if nms_iou is not None:
        removed = np.ones(len(boxes), np.bool_)
        removed[suppress(boxes, scores, nms_iou, same=2 * cells + side)] = False
        forgiven |= removed
    candidates = np.abs(reference.candidates.astype(np.int64) - other.candidates) / np.maximum(
        reference.candidates, slots
    )
    return Parity(
        tiles=tiles,
        detections=count,
        unmatched=int((~matched & ~forgiven).sum()),
        score_difference=float(np.abs(scores[first[pairs]] - scores[second[pairs]]).max(initial=0.0)),
        box_difference=float(distance[pairs].max(initial=0.0)),
        candidates_difference=float(candidates.max(initial=0.0)),
        judged=int((~forgiven[:count]).sum()),
        silent=len(boxes) == count and bool((scores > 2 * score_floor).any()),
        unconverged=int(other.unconverged.sum()),
    )


def disagreement(reference: TileOutputs, other: TileOutputs) -> float:
    """How far two runs are apart, from 0 (equal) to 1 (nothing in common): one number for what rounding does.

    One minus the overlap of the two sets: over pairs of one class, the smaller score times IoU, against the larger
    scores and those without a partner.
    """
    boxes, scores, _, cells, side = _both(reference, other)
    first, second = conflicts(boxes.astype(np.float64), 0.3, same=cells, apart=side)
    common = np.minimum(scores[first], scores[second]) * iou_of_pairs(boxes[first], boxes[second])
    taken = np.zeros(len(boxes), np.bool_)
    shared = 0.0
    union = float(scores.sum())
    for pair in np.argsort(-common, kind="stable").tolist():
        a, b = first[pair], second[pair]
        if not (taken[a] or taken[b]):
            taken[[a, b]] = True
            shared += float(common[pair])
            union -= float(min(scores[a], scores[b]))
    return 1 - shared / union if union else 0.0


def _both(reference: TileOutputs, other: TileOutputs) -> tuple[NDArray[Any], ...]:
    """The filled slots of two runs, one behind the other.

    Returns:
        Boxes (D, 4) xyxy in pixels of the tile, scores (D,), the tile of each, its cell (a number for each tile and
        class), and its side: 0 for the reference, 1 for the other.
    """
    sides = [_filled(reference), _filled(other)]
    boxes, scores, labels, tile = (np.concatenate(column) for column in zip(*sides, strict=True))
    cells = tile.astype(np.int64) * (int(labels.max(initial=0)) + 1) + labels
    return boxes, scores, tile, cells, np.repeat([0, 1], [len(of_side[1]) for of_side in sides])


def _filled(outputs: TileOutputs) -> tuple[NDArray[Any], ...]:
    """Boxes, scores, labels and tile numbers of the slots that are filled."""
    filled = outputs.labels >= 0
    return outputs.boxes[filled], outputs.scores[filled], outputs.labels[filled], np.nonzero(filled)[0]
