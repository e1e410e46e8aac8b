"""Compare two runs of a model on the same tiles, as sets of detections."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinydet.geometry.boxes import iou_of_pairs
from tinydet.geometry.nms import conflicts, suppress
from tinydet.runtime.backends import TileOutputs
from tinydet.spec import ModelSpec


@dataclass(frozen=True)
class Tolerance:
    """When two detections match, and how many need not.

    Attributes:
        iou, score: two detections of a class match if their IoU is above `iou` and their scores differ by at most
            `score`.
        unmatched: how many may be unmatched, as a fraction of `Parity.judged`.
        candidates: allowed difference in the number of candidates of a tile, as a fraction.
    """

    iou: float
    score: float
    unmatched: float
    candidates: float


# INT8 may change single scores a lot; AP decides whether the model as a whole is good enough.
TOLERANCES = {
    "fp32": Tolerance(iou=0.9, score=1e-3, unmatched=0.0, candidates=0.01),
    "fp16": Tolerance(iou=0.9, score=0.03, unmatched=0.01, candidates=0.05),
    "int8": Tolerance(iou=0.5, score=0.25, unmatched=0.05, candidates=0.5),
}
# Of Grid R-CNN, whose boxes are at the maxima of heat maps. Where many cells are nearly equal, as on an empty tile or
# after little training, rounding decides which one it is.
UNMATCHED_HEAT_MAPS = 0.1


def tolerance_of(spec: ModelSpec, precision: str | None = None) -> Tolerance:
    """Return the tolerance of a model; `precision` replaces that of its file."""
    tolerance = TOLERANCES[precision or spec.precision]
    return replace(tolerance, unmatched=max(UNMATCHED_HEAT_MAPS, tolerance.unmatched)) if spec.grid_rois else tolerance


@dataclass(frozen=True)
class Parity:
    """Differences between two runs of a model on the same tiles, as sets of detections.

    Attributes:
        detections: number of detections of the reference.
        unmatched: detections of either side without a match within the tolerance. Detections whose score is within the
            tolerance of the score floor, or of the last of K slots, are exempt.
        score_difference, box_difference: largest difference of all matched pairs; box coordinates in pixels.
        candidates_difference: largest difference of all tiles, as a fraction of the tile's candidates.
        judged: detections of the reference that are not exempt.
        silent: whether the other side found nothing although the reference has a score above twice the floor.
        unconverged: proposals of all tiles whose suppression in the other side's graph had not converged.
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
    """Compare two runs on the same tiles as sets: the order within a tile does not matter.

    Args:
        nms_iou: also exempt unmatched boxes that NMS at this IoU removes from their own side. For models with
            proposals, where rounding decides which duplicates of an object become proposals.
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
    for pair in np.argsort(distance, kind="stable").tolist():  # nearest pairs first, each box at most once
        if not (matched[first[pair]] or matched[second[pair]]):
            matched[[first[pair], second[pair]]] = True
            pairs.append(pair)

    # The cutoff is that of the reference: a wrong model may fill its slots with high scores. In a full tile rounding
    # moves both a score and the K-th score of the other side, hence twice the tolerance.
    full = reference.labels[:, -1] >= 0
    cut = np.where(full, np.maximum(reference.scores[:, -1].astype(np.float64), score_floor), score_floor)
    cut += tolerance.score * (1 + (full | (other.labels[:, -1] >= 0)))
    exempt = scores <= cut[tile]
    if nms_iou is not None:
        removed = np.ones(len(boxes), np.bool_)
        removed[suppress(boxes, scores, nms_iou, same=2 * cells + side)] = False
        exempt |= removed
    candidates = np.abs(reference.candidates.astype(np.int64) - other.candidates) / np.maximum(
        reference.candidates, slots
    )
    return Parity(
        tiles=tiles,
        detections=count,
        unmatched=int((~matched & ~exempt).sum()),
        score_difference=float(np.abs(scores[first[pairs]] - scores[second[pairs]]).max(initial=0.0)),
        box_difference=float(distance[pairs].max(initial=0.0)),
        candidates_difference=float(candidates.max(initial=0.0)),
        judged=int((~exempt[:count]).sum()),
        silent=len(boxes) == count and bool((scores > 2 * score_floor).any()),
        unconverged=int(other.unconverged.sum()),
    )


def disagreement(reference: TileOutputs, other: TileOutputs) -> float:
    """Return how much two runs differ, from 0 (equal) to 1 (nothing in common).

    One minus intersection over union of the two sets of detections. The intersection sums, over matched pairs of a
    class, the smaller score times the IoU; the union sums the larger scores and the scores of unmatched detections.
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
    """Concatenate the filled slots of two runs.

    Returns:
        Boxes (D, 4) xyxy in tile pixels, scores (D,), tile numbers (D,), cells (D,) that number the pairs of tile and
        class, and sides (D,): 0 for the reference, 1 for the other.
    """
    sides = [_filled(reference), _filled(other)]
    boxes, scores, labels, tile = (np.concatenate(column) for column in zip(*sides, strict=True))
    cells = tile.astype(np.int64) * (int(labels.max(initial=0)) + 1) + labels
    return boxes, scores, tile, cells, np.repeat([0, 1], [len(of_side[1]) for of_side in sides])


def _filled(outputs: TileOutputs) -> tuple[NDArray[Any], ...]:
    """Return boxes, scores, labels and tile numbers of the filled slots."""
    filled = outputs.labels >= 0
    return outputs.boxes[filled], outputs.scores[filled], outputs.labels[filled], np.nonzero(filled)[0]
