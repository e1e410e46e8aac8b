"""Detections: boxes, scores and labels as parallel arrays, with the tile that each came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Detections:
    """N boxes of one stated image.

    Attributes:
        boxes: (N, 4) float32, xyxy in pixels of the stated image (a tile or a scene).
        scores: (N,) float32.
        labels: (N,) int32, index into the model's classes.
        tiles: (N,) int32, index of the tile that saw the box; of the best piece where it was joined from several.
        seam_distance: (N,) float32, pixels from the box to the nearest inner edge of its tile; inf where its tile
            has none. Near 0 the tile may have seen a part of the object only.
        passes: (N,) int32, 0 for the pass over the scene at full scale, 1 for the coarse one, whose tiles are counted
            by themselves. All 0 where it is not given.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int32]
    tiles: NDArray[np.int32]
    seam_distance: NDArray[np.float32]
    passes: NDArray[np.int32] = None  # type: ignore[assignment]  # filled in below

    def __post_init__(self) -> None:
        if self.passes is None:
            object.__setattr__(self, "passes", np.zeros(len(self.scores), np.int32))
        shapes = {field.name: getattr(self, field.name).shape for field in fields(self)}
        count = len(self.scores)
        if shapes.pop("boxes") != (count, 4) or any(shape != (count,) for shape in shapes.values()):
            raise ValueError(
                f"expected boxes ({count}, 4) and {count} of each other array, got {self.boxes.shape}, {shapes}"
            )

    @classmethod
    def empty(cls) -> Detections:
        return cls(
            np.zeros((0, 4), np.float32),
            np.zeros(0, np.float32),
            np.zeros(0, np.int32),
            np.zeros(0, np.int32),
            np.zeros(0, np.float32),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Detections]) -> Detections:
        if not parts:
            return cls.empty()
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def __len__(self) -> int:
        return len(self.scores)

    def __getitem__(self, which: NDArray[Any] | slice) -> Detections:
        """Those that a boolean mask, an array of indices or a slice selects."""
        return Detections(*(getattr(self, field.name)[which] for field in fields(self)))

    def by_score(self) -> Detections:
        """Best first; ties by tile, then by place, so that the order says nothing about timing."""
        boxes = self.boxes
        places = boxes[:, 2], boxes[:, 3], boxes[:, 0], boxes[:, 1]
        order = np.lexsort((self.labels, *places, self.tiles, self.passes, -self.scores))
        return self[order]

    def to_coco(self, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
        """COCO results; `category_ids` holds the COCO id of each class, in the order of the labels."""
        corners = self.boxes.astype(np.float64)
        corners[:, 2:] -= corners[:, :2]
        categories = np.asarray(category_ids, np.int64)[self.labels].tolist() if len(self) else []
        return [
            {"image_id": image_id, "category_id": category, "bbox": box, "score": score}
            for category, box, score in zip(categories, corners.tolist(), self.scores.tolist(), strict=True)
        ]
