"""Training on a dataset with images that cannot be read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tinydet.data.samples import Sample, TrainingTiles
from tinydet.spec import PAD_VALUE


class SkippingTiles(TrainingTiles):
    """Training tiles that skip unreadable images, with one warning per image.

    Args:
        warn: called with the reason and the name of the image.

    Attributes:
        skipped: by image index, the reason why the image cannot be read.
    """

    def __init__(self, *args: Any, warn: Callable[[str], None], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.warn = warn
        self.skipped: dict[int, str] = {}

    def sample(self, index: int, *, seed: int, epoch: int) -> Sample:
        """Return tile `index`; an unreadable one is blank and one ignore region."""
        try:
            return super().sample(index, seed=seed, epoch=epoch)
        except (ValueError, OSError) as error:
            tile = self.tiles[index]
            image = tile.image
            if image not in self.skipped:
                self.skipped[image] = str(error)
                self.warn(f"skipped: {error}")
            pixels = np.empty((tile.height, tile.width, 3), np.uint8)
            pixels[:] = PAD_VALUE
            # Larger than the tile: anchors beyond its border must learn nothing either.
            region = np.array([[-1e4, -1e4, 1e4, 1e4]], np.float32)
            return Sample(pixels, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), region)
