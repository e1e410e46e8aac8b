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
        doubtful: number of boxes that score close to the threshold of their class.
        doubtful_scores: (2, C) a box is doubtful from the first score of its class to below the second.
    """

    by_class: NDArray[np.int64]
    tiles: ScanCounts = field(default_factory=ScanCounts)
    doubtful: int = 0
    doubtful_scores: NDArray[np.float64] | None = None

    @classmethod
    def of(cls, classes: int, *, doubtful: NDArray[np.float64] | None = None) -> Tally:
        """Return the counts before a scan with this number of classes.

        Args:
            doubtful: see `doubtful_scores`; None to count no box as doubtful.
        """
        return cls(np.zeros(classes, np.int64), doubtful_scores=doubtful)

    def add(self, result: BatchResult | Detections) -> None:
        """Count the result of a batch, or detections alone."""
        if isinstance(result, BatchResult):
            self.tiles += result
            result = result.detections
        self.by_class += np.bincount(result.labels, minlength=len(self.by_class))
        if self.doubtful_scores is not None:
            low, high = self.doubtful_scores[:, result.labels]
            self.doubtful += int(np.count_nonzero((result.scores >= low) & (result.scores < high)))


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
