"""Measure a tile filter on annotated images that did not train it, and choose its thresholds with a confidence bound.

The threshold for objects is an order statistic of the scores of the objects: the (k+1)-th lowest, with the largest k
for which the lower bound of Clopper and Pearson reaches the wanted recall. Such a bound holds for any distribution of
the scores. The limit of familiar tiles is chosen as in conformal prediction, which bounds the rate of false alarms.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.progress import Progress
from tinydet.data.coco import Dataset, open_image
from tinydet.runtime.backends import Backend
from tinydet.runtime.plan import plan_tiles
from tinydet.runtime.tile_filter import OBJECT, UNFAMILIAR, cell_scores, reduced
from tinydet.spec import FilterRecord

RECALL = 0.995  # of the objects
CONFIDENCE = 0.95  # of the bound of the recall
FALSE_ALARM = 0.01  # share of familiar tiles that are called unfamiliar
ROUNDING = 1e-5  # relative; what last bits of scores may differ by between two runs
OVERLAP = 64  # pixels; the least that is likely: with more, an object is in more tiles, and is kept more often


@dataclass(frozen=True)
class FilterScores:
    """What a tile filter says about annotated images.

    Attributes:
        objects: (M,) score of each object: the best of the tiles that contain it, the worst of the tile sizes.
        tiles: for each tile size, (N,) score of the best cell of each tile.
        unfamiliar: for each tile size, (N,) score of each tile.
    """

    objects: NDArray[np.float64]
    tiles: tuple[NDArray[np.float64], ...]
    unfamiliar: tuple[NDArray[np.float64], ...]


@dataclass(frozen=True)
class Threshold:
    """A threshold and what it guarantees.

    Attributes:
        value: what reaches it is kept.
        bound: lower confidence bound of the share that is kept.
        missed: number of the values below it.
    """

    value: float
    bound: float
    missed: int


def measure_filter(
    backends: Sequence[Backend],
    dataset: Dataset,
    *,
    reduction: int,
    scale: float = 1.0,
    progress: Progress | None = None,
) -> FilterScores:
    """Run a tile filter on all tiles of a dataset.

    Only the cells that an object touches count for it, not other reasons to keep its tile.

    Args:
        backends: the filter, opened for each tile size that it is to hold for.
        reduction: as in `FilterRecord`.
        scale: resize factor of the images.
        progress: called with 1 after each image.

    Raises:
        ValueError: an image cannot be read.
    """
    objects: list[float] = []
    tiles: list[list[float]] = [[] for _ in backends]
    unfamiliar: list[list[float]] = [[] for _ in backends]
    for i in range(len(dataset.images)):
        annotations = dataset.of_image(i)
        boxes = annotations.boxes[~annotations.ignore]
        worst = np.ones(len(boxes))
        with open_image(dataset, i, stretch=backends[0].spec.stretch) as scene:
            for number, backend in enumerate(backends):
                side = backend.spec.tile * reduction
                plan = plan_tiles(scene.width, scene.height, tile=side, overlap=min(OVERLAP, side // 2), scale=scale)
                bounds = plan.grid.bounds(np.arange(len(plan.grid)))
                best = np.zeros(len(boxes))
                for tile in plan.grid.tiles:
                    content = scene.read(tile.x, tile.y, tile.width, tile.height, plan.content_size)
                    found = backend.run(reduced(content, side, reduction)[None])
                    inside = _tiles_of(bounds, boxes)[:, tile.index]
                    local = (boxes[inside] - np.tile((tile.x, tile.y), 2)) * (plan.scale / reduction)
                    best[inside] = np.maximum(best[inside], cell_scores(found, 0, local))
                    for label, scores in ((OBJECT, tiles[number]), (UNFAMILIAR, unfamiliar[number])):
                        scores.append(float(found.scores[0][found.labels[0] == label].max(initial=0.0)))
                worst = np.minimum(worst, best)
        objects += worst.tolist()
        if progress is not None:
            progress(1)
    return FilterScores(np.array(objects), tuple(map(np.array, tiles)), tuple(map(np.array, unfamiliar)))


def calibrated(scores: FilterScores, record: FilterRecord) -> tuple[tuple[float, float], FilterRecord]:
    """Return the thresholds of the classes of a tile filter, and the record with what they keep.

    Args:
        record: with the wanted recall.

    Raises:
        ValueError: there are no objects.
    """
    if not len(scores.objects):
        raise ValueError(f"no objects of {', '.join(record.classes)} to calibrate a tile filter on; name other images")
    kept = keep_threshold(scores.objects, record.recall, record.confidence)
    limits = [alarm_threshold(each) for each in scores.unfamiliar]
    limit = min(max(value for value, _ in limits) * (1 + ROUNDING), 1.0)  # each tile size has its own scores
    value = kept.value * (1 - ROUNDING)
    strange = scores.unfamiliar[0] >= limit
    record = dataclasses.replace(
        record,
        bound=kept.bound if value > 0 else 0.0,
        objects=len(scores.objects),
        missed=kept.missed,
        held_out=len(strange),
        skipped=int(((scores.tiles[0] < value) & ~strange).sum()),
        unfamiliar=int(strange.sum()),
        false_alarm=max(rate for _, rate in limits),
    )
    return (value, limit), record


def keep_threshold(scores: NDArray[np.float64], recall: float = RECALL, confidence: float = CONFIDENCE) -> Threshold:
    """Return the highest threshold whose recall is proven; with too few scores, the lowest score and its bound.

    >>> few, many = keep_threshold(np.arange(1.0, 101.0), 0.99), keep_threshold(np.arange(1.0, 1001.0), 0.99)
    >>> few.value, few.missed, round(few.bound, 3), many.value, many.missed, round(many.bound, 3)
    (1.0, 0, 0.97, 5.0, 4, 0.991)
    """
    ordered = np.sort(scores)
    value = float(ordered[may_miss(len(ordered), recall, confidence)])
    missed = int((ordered < value).sum())
    return Threshold(value, recall_bound(missed, len(ordered), confidence), missed)


@functools.cache
def may_miss(count: int, recall: float, confidence: float = CONFIDENCE) -> int:
    """Return how many of `count` objects may be missed, so that the recall is still proven; 0 also if it never is.

    >>> may_miss(598, 0.995), may_miss(1000, 0.995), may_miss(10, 0.995)
    (0, 1, 0)
    """
    missed = 0
    while missed + 1 < count and recall_bound(missed + 1, count, confidence) >= recall:
        missed += 1
    return missed


def alarm_threshold(scores: NDArray[np.float64], rate: float = FALSE_ALARM) -> tuple[float, float]:
    """Return the threshold that one more score of the same kind exceeds with a probability of at most `rate`.

    With too few scores, it is the largest one. Also return the rate that they prove.

    >>> alarm_threshold(np.arange(199.0), 0.01), alarm_threshold(np.arange(9.0), 0.01)
    ((197.0, 0.01), (8.0, 0.1))
    """
    count = len(scores)
    rank = min(math.ceil((count + 1) * (1 - rate)), count)
    return float(np.sort(scores)[rank - 1]), max(rate, 1 / (count + 1))


def recall_bound(missed: int, count: int, confidence: float = CONFIDENCE) -> float:
    """Return the lower confidence bound of a recall when `missed` of `count` objects were missed (Clopper and Pearson).

    >>> round(recall_bound(0, 597), 4)
    0.995
    """
    if missed >= count:
        return 0.0

    def at_most_missed(rate: float) -> float:
        terms = (
            math.lgamma(count + 1) - math.lgamma(i + 1) - math.lgamma(count - i + 1)
            + i * math.log(rate) + (count - i) * math.log1p(-rate)
            for i in range(missed + 1)
        )  # fmt: skip
        return sum(map(math.exp, terms))

    low, high = 1e-12, 1 - 1e-12
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if at_most_missed(middle) > 1 - confidence else (low, middle)
    return 1 - low


def _tiles_of(bounds: NDArray[np.float64], boxes: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return (M, N): the tiles (N, 4) that contain a box (M, 4) whole; if there are none, those that overlap it."""
    box, tile = boxes[:, None], bounds[None]
    whole = np.all(tile[..., :2] <= box[..., :2], axis=2) & np.all(tile[..., 2:] >= box[..., 2:], axis=2)
    touched = np.all(tile[..., :2] < box[..., 2:], axis=2) & np.all(tile[..., 2:] > box[..., :2], axis=2)
    found: NDArray[np.bool_] = np.where(np.any(whole, axis=1, keepdims=True), whole, touched)
    return found
