"""What training cannot use: pictures that do not open, and batches that lead to no finite loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinydet._internal.atomic import atomic_path
from tinydet.data.samples import Sample, TrainingTiles
from tinydet.spec import PAD_VALUE


class SkippingTiles(TrainingTiles):
    """Tiles of which those that cannot be read teach nothing; each such image is told once.

    Args:
        told: takes the reason, with the image's name.
    """

    def __init__(self, *args: Any, told: Callable[[str], None], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.told = told
        self.skipped: set[int] = set()

    def sample(self, index: int, *, seed: int, epoch: int) -> Sample:
        """Tile `index`; one that cannot be read is blank, and an ignore region as a whole."""
        try:
            return super().sample(index, seed=seed, epoch=epoch)
        except ValueError as error:
            image, tile = self.tiles[index]
            if image not in self.skipped:
                self.skipped.add(image)
                self.told(f"skipped: {error}")
            pixels = np.empty((tile.height, tile.width, 3), np.uint8)
            pixels[:] = PAD_VALUE
            # Wider than the tile: anchors beyond its border learn nothing either.
            region = np.array([[-1e4, -1e4, 1e4, 1e4]], np.float32)
            return Sample(pixels, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), region)


def save_batch(path: Path, samples: Sequence[Sample], about: dict[str, Any]) -> None:
    """Keep a batch for inspection, beside what is known `about` it; `torch.load(path, weights_only=True)` reads it."""
    tiles = [
        {
            "pixels": torch.from_numpy(np.ascontiguousarray(sample.pixels)),
            "boxes": torch.from_numpy(sample.boxes.copy()),
            "labels": torch.from_numpy(sample.labels.copy()),
            "regions": torch.from_numpy(sample.regions.copy()),
        }
        for sample in samples
    ]
    with atomic_path(path) as temporary:
        torch.save({**about, "tiles": tiles}, temporary)
