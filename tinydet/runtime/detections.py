"""Detections: boxes, scores and labels as parallel arrays, with further columns of data per box."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Detections:
    """N boxes of one image, the container from the backend to the file.

    Attributes:
        boxes: (N, 4) xyxy in pixels of a stated image (a tile or a scene). float32 in results; float64 while tiles are
            stitched, so that adding the position of a tile rounds nothing.
        scores: (N,) float32.
        labels: (N,) int32, index into the model's classes.
        data: further columns by name, each (N, ...). A scan sets `tile`, `pass` and `seam_distance`; see the properties
            `tiles`, `passes` and `seam_distance`, which also cover detections without these columns. Tracking sets
            `track`, see `tracks`.
    """

    boxes: NDArray[Any]
    scores: NDArray[np.float32]
    labels: NDArray[np.int32]
    data: dict[str, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.scores)
        shapes = {"boxes": self.boxes.shape, "scores": self.scores.shape, "labels": self.labels.shape}
        lengths = {name: len(column) for name, column in self.data.items()}
        expected = {"boxes": (count, 4), "scores": (count,), "labels": (count,)}
        if shapes != expected or any(length != count for length in lengths.values()):
            raise ValueError(f"expected boxes ({count}, 4) and {count} of each other array, got {shapes | lengths}")

    @classmethod
    def empty(cls) -> Detections:
        """Return zero detections, without further columns."""
        return cls(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))

    @classmethod
    def concatenate(cls, parts: Sequence[Detections]) -> Detections:
        """Join detections of one image. Parts without boxes are ignored, so only the others need the same columns.

        Raises:
            ValueError: the parts have different columns.
        """
        filled = [part for part in parts if len(part)]
        if len(filled) < 2:
            return (filled or [*parts, cls.empty()])[0]
        names = {tuple(sorted(part.data)) for part in filled}
        if len(names) > 1:
            raise ValueError(f"detections to join must have the same columns, got {sorted(names)}")
        return cls(
            np.concatenate([part.boxes for part in filled]),
            np.concatenate([part.scores for part in filled]),
            np.concatenate([part.labels for part in filled]),
            {name: np.concatenate([part.data[name] for part in filled]) for name in filled[0].data},
        )

    @property
    def tiles(self) -> NDArray[Any]:
        """(N,) index of the tile in which the box was found; for a box joined from parts, of its best part. Default 0.

        Each pass over the scene counts its own tiles.
        """
        return self._column("tile", np.int32(0))

    @property
    def passes(self) -> NDArray[Any]:
        """(N,) 0 for the pass over the scene at full scale, 1 for the coarse pass. Default 0."""
        return self._column("pass", np.int32(0))

    @property
    def seam_distance(self) -> NDArray[Any]:
        """(N,) pixels from the box to the nearest inner edge of its tile; inf if the tile has none. Default inf.

        Near 0, the tile may show only a part of the object.
        """
        return self._column("seam_distance", np.float32(np.inf))

    @property
    def tracks(self) -> NDArray[Any] | None:
        """(N,) number of the tracked object, -1 for a detection without one; None if objects are not tracked."""
        return self.data.get("track")

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, which: NDArray[Any] | slice) -> Detections:
        """Select detections by a boolean mask, an array of indices or a slice."""
        columns = {name: column[which] for name, column in self.data.items()}
        return Detections(self.boxes[which], self.scores[which], self.labels[which], columns)

    def by_score(self) -> Detections:
        """Sort by descending score. Ties are sorted by tile, then by position, so the order is reproducible."""
        x1, y1, x2, y2 = self.boxes.T
        return self[np.lexsort((self.labels, x2, y2, x1, y1, self.tiles, self.passes, -self.scores))]

    def to_coco(self, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
        """Convert to COCO results; those of a tracked object have its number as `track_id`.

        Args:
            category_ids: COCO category id of each class, in the order of the labels.
        """
        corners = self.boxes.astype(np.float64)
        corners[:, 2:] -= corners[:, :2]
        categories = np.asarray(category_ids, np.int64)[self.labels].tolist() if len(self) else []
        tracks = [-1] * len(self) if self.tracks is None else self.tracks.tolist()
        return [
            {"image_id": image_id, "category_id": category, "bbox": box, "score": score}
            | ({} if track < 0 else {"track_id": track})
            for category, box, score, track in zip(
                categories, corners.tolist(), self.scores.tolist(), tracks, strict=True
            )
        ]

    def _column(self, name: str, default: np.generic) -> NDArray[Any]:
        return self.data[name] if name in self.data else np.full(len(self), default)
