"""Detections of one scene as a page asks for them: by view, score and class, best first; densities and histograms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinydet.geometry.tiles import TileGrid
from tinydet.runtime.detections import Detections

MAX_PAGE = 5000  # detections of one answer
MAX_GRID = 256  # cells per side of a density
SCORE_BINS = 100
SIZES = np.float32(2.0) ** (np.arange(0, 25) / 2).astype(np.float32)  # pixels, 1 to 4096: edges of the size histogram

Corners = tuple[float, float, float, float]


@dataclass(frozen=True)
class Result:
    """The detections of one job, or of one file, on a scene.

    Attributes:
        name: for the user.
        classes: names by label.
        category_ids: COCO ids by label.
        load: returns the detections, in pixels of the scene.
        complete: False while the job still runs.
        tilings: how the scene was tiled, the full pass first; empty if unknown.
        formats: formats in which the result can be downloaded.
        details: provenance such as the model, to show as text.
    """

    name: str
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    load: Callable[[], Detections]
    complete: bool = True
    tilings: tuple[TileGrid, ...] = ()
    formats: tuple[str, ...] = ()
    details: dict[str, str] = field(default_factory=dict)


class Found:
    """Detections sorted by descending score. The id of a detection is its place in this order."""

    def __init__(self, detections: Detections) -> None:
        self.detections = of = detections.by_score()
        self.boxes = of.boxes.astype(np.float32)
        sides = np.maximum(self.boxes[:, 2:] - self.boxes[:, :2], 0)
        self.sizes: NDArray[np.float32] = np.sqrt(sides[:, 0] * sides[:, 1])

    def __len__(self) -> int:
        return len(self.detections)

    def select(
        self, corners: Corners | None = None, score: float = 0.0, labels: Sequence[int] | None = None
    ) -> NDArray[np.intp]:
        """Return the ids of the detections that touch a rectangle, have at least a score and one of some classes.

        Args:
            corners: x1, y1, x2, y2 in pixels of the scene; None for the whole scene.
            labels: None for all classes.
        """
        of = self.detections
        # Scores descend, so those from the threshold on come first.
        end = int(np.searchsorted(-of.scores, -np.float32(score), side="right"))
        kept = np.ones(end, bool)
        if corners is not None:
            x1, y1, x2, y2 = self.boxes[:end].T
            kept &= (x2 >= corners[0]) & (x1 <= corners[2]) & (y2 >= corners[1]) & (y1 <= corners[3])
        if labels is not None:
            kept &= np.isin(of.labels[:end], np.asarray(labels, np.int64))
        return np.flatnonzero(kept)

    def columns(self, ids: NDArray[np.intp]) -> dict[str, list[Any]]:
        """Return the columns of some detections as JSON values; an unknown seam distance is null."""
        of = self.detections
        seams = np.round(of.seam_distance[ids].astype(np.float64), 2)
        return {
            "ids": ids.tolist(),
            "boxes": np.round(self.boxes[ids].astype(np.float64), 3).tolist(),
            "scores": np.round(of.scores[ids].astype(np.float64), 6).tolist(),
            "labels": of.labels[ids].tolist(),
            "sizes": np.round(self.sizes[ids].astype(np.float64), 2).tolist(),
            "tiles": of.tiles[ids].tolist(),
            "passes": of.passes[ids].tolist(),
            "seam_distance": [value if np.isfinite(value) else None for value in seams.tolist()],
        }

    def density(self, ids: NDArray[np.intp], corners: Corners, cells: int) -> list[list[int]]:
        """Count the centers of detections in `cells` x `cells` cells of a rectangle, row by row."""
        centers = (self.boxes[ids, :2] + self.boxes[ids, 2:]) / 2
        x1, y1, x2, y2 = corners
        place = (centers - (x1, y1)) / (max(x2 - x1, 1e-9), max(y2 - y1, 1e-9)) * cells
        inside = ((place >= 0) & (place < cells)).all(axis=1)
        column, row = place[inside].astype(np.int64).T
        return np.bincount(row * cells + column, minlength=cells * cells).reshape(cells, cells).tolist()

    def score_edges(self) -> NDArray[np.float32]:
        """Return the edges of the bins of scores: 0 to 1, or the range of the scores if they leave it."""
        scores = self.detections.scores
        low, high = (float(scores[-1]), float(scores[0])) if len(scores) else (0.0, 1.0)
        if low >= 0 and high <= 1:
            low, high = 0.0, 1.0
        return (low + (high - low) * np.arange(SCORE_BINS + 1) / SCORE_BINS).astype(np.float32)

    def summary(self, classes: int, score: float = 0.0) -> dict[str, Any]:
        """Return counts by class and score, and by class and size of the detections from a score on."""
        of, edges = self.detections, self.score_edges()
        bins = np.clip(np.searchsorted(edges, of.scores, side="right") - 1, 0, SCORE_BINS - 1)
        counts = np.bincount(of.labels * SCORE_BINS + bins, minlength=classes * SCORE_BINS)
        ids = self.select(score=score)
        last = len(SIZES) - 2
        size = np.clip(np.searchsorted(SIZES, self.sizes[ids], side="right") - 1, 0, last)
        sizes = np.bincount(of.labels[ids] * (last + 1) + size, minlength=classes * (last + 1))
        return {
            "total": len(self),
            "score_edges": np.round(edges.astype(np.float64), 6).tolist(),
            "counts": counts.reshape(classes, SCORE_BINS).tolist(),
            "size_edges": np.round(SIZES.astype(np.float64), 2).tolist(),
            "sizes": sizes.reshape(classes, last + 1).tolist(),
            "has_seams": bool(np.isfinite(of.seam_distance).any()) or "tile" in of.data,
        }
