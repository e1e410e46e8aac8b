"""Attention's factors replaced by their mean on a data set: then they fold. What that costs is measured in AP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from tqdm import tqdm

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
    """A checkpoint with constant factors, and what became of its scores.

    Attributes:
        alpha: mean of each edge's factor over the tiles, finest first; `deviation`: its standard deviation, which is
            what the mean leaves out.
        before, after: AP of the validation data by name; fractions, without ranges that have no objects.
    """

    checkpoint: Checkpoint
    alpha: tuple[float, ...]
    deviation: tuple[float, ...]
    tiles: int
    before: dict[str, float]
    after: dict[str, float]


def freeze_checkpoint(checkpoint: Checkpoint, data: Dataset, val: Dataset, *, overlap: int = 128) -> Frozen:
    """Measure the factors on `data`, fix them at their mean, and score both detectors on `val`.

    Raises:
        ValueError: the checkpoint has no attention, or the data do not suit it.
    """
    refuse_without_attention(checkpoint)
    detector = checkpoint.build()
    overlap = min(overlap, checkpoint.tile // 2)
    factors = factors_on(detector, TrainingTiles(data, checkpoint.tile, overlap, flip=False))
    alpha = tuple(factors.mean(dim=0).tolist())
    before = _score(detector, checkpoint, val, overlap)
    assert isinstance(detector.fpn, FPN)
    detector.fpn = freeze_attention(detector.fpn, alpha)
    after = _score(detector, checkpoint, val, overlap)
    costs = ", ".join(f"{name} {100 * before[name]:.2f} -> {100 * after[name]:.2f}" for name in before)
    source = f"attention, frozen at its mean on {len(factors)} tiles ({costs})"
    config = replace(checkpoint.detector, fusion="fixed")
    frozen = replace(checkpoint, detector=config, weights=detector.state_dict(), alpha_source=source, statistics=None)
    return Frozen(frozen, alpha, tuple(factors.std(dim=0, correction=0).tolist()), len(factors), before, after)


def refuse_without_attention(checkpoint: Checkpoint) -> None:
    """Raise ValueError for a checkpoint that has nothing to freeze."""
    if checkpoint.detector.fusion != "attention":
        raise ValueError(
            f"the factors of this checkpoint are {checkpoint.detector.fusion}, not attention; they fold as they are"
        )


@torch.inference_mode()
def factors_on(detector: Detector, tiles: TrainingTiles) -> Tensor:
    """What attention gives for every tile: (tiles, edges), float64, finest edge first."""
    assert isinstance(detector.fpn, FPN)
    found: list[list[float]] = []

    def keep(module: nn.Module, inputs: Sequence[Tensor], factor: Tensor) -> None:
        found[-1].append(float(factor))

    # The pyramid is built from its coarse end, so that edges are met in reverse.
    hooks = [edge.register_forward_hook(keep) for edge in detector.fpn.attention]
    try:
        for i in tqdm(range(len(tiles)), desc="factors", unit="tile", disable=None):
            found.append([])
            # One by one: padding to the size of a neighbour would change the means that attention looks at.
            features = detector.backbone(collate([tiles.sample(i, seed=0, epoch=0)], torch.device("cpu")).images)
            detector.fpn(features[-len(detector.fpn.inner) :])  # a pyramid from P3 on leaves out C2
    finally:
        for hook in hooks:
            hook.remove()
    return torch.tensor(found, dtype=torch.float64).flip(1)


def _score(detector: Detector, checkpoint: Checkpoint, val: Dataset, overlap: int) -> dict[str, float]:
    backend = TorchBackend(detector, checkpoint.spec())
    found = detect_dataset(backend, val, ScanOptions(overlap), progress=True)
    precision = score_dataset(val, found, choose_protocol("coco")).precision
    assert precision is not None
    scores = {"AP50": precision["all"][0.5].ap, "AP50-tiny": precision["tiny"][0.5].ap}
    return {name: value for name, value in scores.items() if value >= 0}
