"""Replace the attention of a detector by its mean factors on a dataset, which can be folded; measure the cost in AP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tinydet._internal.console import plural
from tinydet._internal.progress import Bar, track
from tinydet.data.coco import Dataset
from tinydet.data.samples import TrainingTiles
from tinydet.evaluate.protocols import choose_protocol
from tinydet.evaluate.score_model import detect_dataset, score_dataset
from tinydet.models.backend import TorchBackend
from tinydet.models.batch import collate
from tinydet.models.checkpoint import Checkpoint
from tinydet.models.detector import Detector
from tinydet.models.folding import freeze_attention
from tinydet.models.fpn import FPN
from tinydet.runtime.options import ScanOptions


@dataclass(frozen=True)
class Frozen:
    """A checkpoint with constant factors, and its scores.

    Attributes:
        alpha: mean factor of each edge over the tiles, finest first.
        deviation: standard deviation of each edge's factor over the tiles.
        tiles: number of tiles that the factors were measured on.
        before, after: AP on the validation data by name, as fractions; without size ranges that have no objects.
    """

    checkpoint: Checkpoint
    alpha: tuple[float, ...]
    deviation: tuple[float, ...]
    tiles: int
    before: dict[str, float]
    after: dict[str, float]


def freeze_checkpoint(checkpoint: Checkpoint, data: Dataset, val: Dataset, *, overlap: int = 128) -> Frozen:
    """Measure the factors on `data`, replace them by their mean, and score both detectors on `val`.

    Args:
        overlap: overlap of neighboring tiles in pixels, at most half a tile.

    Raises:
        ValueError: the checkpoint has no attention, or the data does not suit it.
    """
    require_attention(checkpoint)
    detector = checkpoint.build()
    overlap = min(overlap, checkpoint.tile // 2)
    factors = attention_factors(detector, TrainingTiles(data, checkpoint.tile, overlap, flip=False))
    alpha = tuple(factors.mean(dim=0).tolist())
    before = _score(detector, checkpoint, val, overlap)
    assert isinstance(detector.fpn, FPN)
    detector.fpn = freeze_attention(detector.fpn, alpha)
    after = _score(detector, checkpoint, val, overlap)
    costs = ", ".join(f"{name} {100 * before[name]:.2f} -> {100 * after[name]:.2f}" for name in before)
    source = f"attention, frozen at its mean on {plural(len(factors), 'tile')} ({costs})"
    config = replace(checkpoint.detector, fusion="fixed")
    frozen = replace(checkpoint, detector=config, weights=detector.state_dict(), alpha_source=source, statistics=None)
    return Frozen(frozen, alpha, tuple(factors.std(dim=0, correction=0).tolist()), len(factors), before, after)


def require_attention(checkpoint: Checkpoint) -> None:
    """Raise ValueError if the checkpoint has no attention to freeze."""
    if checkpoint.detector.fusion != "attention":
        raise ValueError(
            f"the fusion of this checkpoint is {checkpoint.detector.fusion}, not attention; its factors can be folded "
            "without freezing"
        )


@torch.inference_mode()
def attention_factors(detector: Detector, tiles: TrainingTiles) -> Tensor:
    """Return the factors that attention computes for every tile: (tiles, edges) float64, finest edge first."""
    assert isinstance(detector.fpn, FPN)
    factors: list[list[float]] = []

    def record(module: nn.Module, inputs: Sequence[Tensor], factor: Tensor) -> None:
        factors[-1].append(float(factor))

    hooks = [edge.register_forward_hook(record) for edge in detector.fpn.attention]
    cpu = torch.device("cpu")
    try:
        for i in track(range(len(tiles)), "tile", "factors"):
            factors.append([])
            # One tile at a time: padding to the size of another tile would change the means that attention computes.
            sample = tiles.sample(i, seed=0, epoch=0)
            batch = collate([sample], cpu, detector.backbone.pixels, multiple=detector.tile_multiple)
            features = detector.backbone(batch.images)
            detector.fpn(features[-len(detector.fpn.inner) :])  # a pyramid that starts at P3 does not use C2
    finally:
        for hook in hooks:
            hook.remove()
    return torch.tensor(factors, dtype=torch.float64).flip(1)  # the coarsest edge is computed first


def _score(detector: Detector, checkpoint: Checkpoint, val: Dataset, overlap: int) -> dict[str, float]:
    backend = TorchBackend(detector, checkpoint.spec())
    with Bar(len(val.images), "image", "AP") as bar:
        found = detect_dataset(backend, val, ScanOptions(overlap), progress=bar.update)
    precision = score_dataset(val, found, choose_protocol("coco")).precision
    assert precision is not None
    scores = {"AP50": precision["all"][0.5].ap, "AP50-tiny": precision["tiny"][0.5].ap}
    return {name: value for name, value in scores.items() if value >= 0}
