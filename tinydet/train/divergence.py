"""A loss that is no longer finite, and the batch that led to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinydet._internal.atomic import atomic_path
from tinydet.data.samples import Sample


class DivergedError(ValueError):
    """The loss is no longer finite."""


def save_batch(path: Path, samples: Sequence[Sample], about: dict[str, Any]) -> None:
    """Save a batch for inspection with facts `about` it; `torch.load(path, weights_only=True)` reads it."""
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
