"""The detections of a scene in chunks, so that memory does not grow with their number."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tinydet.runtime.detections import Detections
from tinydet.runtime.scan import BatchResult, ScanCounts

CHUNK = 100_000  # boxes


@dataclass
class Tally:
    """Running counts of a scene.

    Attributes:
        by_class: number of boxes of each class.
        tiles: counts of tiles.
        doubtful: number of boxes that score close to the threshold.
        doubtful_below: the score below which a box is doubtful.
    """

    by_class: NDArray[np.int64]
    tiles: ScanCounts = field(default_factory=ScanCounts)
    doubtful: int = 0
    doubtful_below: float = 0.0

    @classmethod
    def of(cls, classes: int, *, doubtful_below: float = 0.0) -> Tally:
        """Return the counts before a scan with this number of classes."""
        return cls(np.zeros(classes, np.int64), doubtful_below=doubtful_below)

    def add(self, result: BatchResult | Detections) -> None:
        """Count the result of a batch, or detections alone."""
        if isinstance(result, BatchResult):
            self.tiles += result
            result = result.detections
        self.by_class += np.bincount(result.labels, minlength=len(self.by_class))
        self.doubtful += int(np.count_nonzero(result.scores < self.doubtful_below))


def chunks(
    results: Iterable[BatchResult], size: int = CHUNK, *, observe: Callable[[BatchResult], object] = lambda result: None
) -> Iterator[Detections]:
    """Yield the detections of a scan by descending score: all at once, or `size` at a time if there are more.

    Without detections, yield one empty chunk.

    The chunks do not depend on how the scan was divided into batches, or on what came from a journal.

    Args:
        observe: called with each result.
    """
    waiting: list[Detections] = []
    count, is_first = 0, True
    for result in results:
        observe(result)
        waiting.append(result.detections)
        count += len(result.detections)
        if count >= size:
            pool = Detections.concatenate(waiting)
            starts = range(0, count - size + 1, size)
            for start in starts:
                yield pool[start : start + size].by_score()
                is_first = False
            waiting = [pool[len(starts) * size :]]
            count = len(waiting[0])
    if count or is_first:
        yield Detections.concatenate(waiting).by_score()


class Best:
    """Keeps the best detections of a scene, for a drawing, and counts all of them.

    Attributes:
        detections: by descending score.
        total: number of all detections.
    """

    def __init__(self, limit: int = CHUNK) -> None:
        self._limit = limit
        self.detections = Detections.empty()
        self.total = 0

    def add(self, chunk: Detections) -> None:
        """Take a chunk of detections."""
        self.total += len(chunk)
        self.detections = Detections.concatenate([self.detections, chunk]).by_score()[: self._limit]
