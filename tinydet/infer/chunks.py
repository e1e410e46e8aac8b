"""The detections of a scene in portions, so that memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from tinydet.runtime.detections import Detections
from tinydet.runtime.scan import Step

PORTION = 100_000  # boxes


@dataclass
class Tally:
    """What was counted so far in a scene, or in several.

    Attributes:
        counts: boxes of each class.
        tiles, empty, plain, saturated, unconverged: see `pipeline.SceneResult`.
    """

    counts: np.ndarray
    tiles: int = 0
    empty: int = 0
    plain: int = 0
    saturated: int = 0
    unconverged: int = 0

    @classmethod
    def of(cls, classes: int) -> Tally:
        return cls(np.zeros(classes, np.int64))

    def add(self, step: Step) -> None:
        self.counts += np.bincount(step.detections.labels, minlength=len(self.counts))
        self.tiles, self.empty, self.plain = self.tiles + step.tiles, self.empty + step.empty, self.plain + step.plain
        self.saturated += step.saturated
        self.unconverged += step.unconverged


def portions(
    steps: Iterable[Step], size: int = PORTION, *, told: Callable[[Step], object] = lambda step: None
) -> Iterator[Detections]:
    """The detections of a scan, best first: all at once, or `size` of them at a time where there are more.

    The portions are the same however the scan was cut into batches, and whatever of it came from a journal.

    Args:
        told: called with each step.
    """
    waiting: list[Detections] = []
    count = 0
    for step in steps:
        told(step)
        waiting.append(step.detections)
        count += len(step.detections)
        if count >= size:
            pool = Detections.concatenate(waiting)
            cuts = range(0, count - size + 1, size)
            for start in cuts:
                yield pool[start : start + size].by_score()
            waiting = [pool[len(cuts) * size :]]
            count = len(waiting[0])
    if count:
        yield Detections.concatenate(waiting).by_score()


class Best:
    """Keeps the best detections of a scene, for a picture; the others are counted only.

    Attributes:
        detections: best first.
        total: of all.
    """

    def __init__(self, most: int = PORTION) -> None:
        self._most = most
        self.detections = Detections.empty()
        self.total = 0

    def add(self, portion: Detections) -> None:
        self.total += len(portion)
        self.detections = Detections.concatenate([self.detections, portion]).by_score()[: self._most]
