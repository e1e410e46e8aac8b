"""Norms of the gradients that the loss of each pyramid level sends into the backbone features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinydet.models.batch import Batch
from tinydet.models.detector import Detector
from tinydet.models.fpn import FPN
from tinydet.models.losses import of_level


def can_measure(detector: Detector) -> bool:
    """Return whether a detector fuses C2 to C5 and reports its losses by pyramid level."""
    pixels = torch.zeros((1, 3, 64, 64))
    boxes, labels = torch.zeros((0, 4)), torch.zeros(0, dtype=torch.long)
    with torch.no_grad():
        losses = detector.loss(Batch(pixels, boxes, labels, labels, boxes, labels, ((64, 64),)))
    by_level = all(of_level(losses, name) is not None for name in detector.design.levels)
    return by_level and len(detector.design.edges) == 3


def measure(detector: Detector, alpha: Sequence[float] | None, batches: Sequence[Batch]) -> NDArray[np.float64]:
    """Measure the gradient that the loss of each level sends into C3, C4 and C5, through pyramid and backbone.

    Args:
        alpha: fusion factors to measure with, finest first; None: those of the model.

    Returns:
        (levels, 3): L2 norm over channels and positions, averaged over the batches; columns are C3, C4, C5.
    """
    fpn = detector.fpn
    assert isinstance(fpn, FPN)
    features: list[Tensor] = []
    hook = detector.backbone.register_forward_hook(lambda module, inputs, output: features.extend(output))
    kept = fpn.alpha.detach().clone()
    sums = np.zeros((len(detector.design.levels), 3))
    try:
        if alpha is not None:
            fpn.alpha.data = torch.tensor(alpha, dtype=kept.dtype)
        for batch in batches:
            # Gradients start at the pixels, which learn nothing: deeper levels reach C3 and C4 through the backbone.
            features.clear()
            losses = detector.loss(replace(batch, images=batch.images.detach().requires_grad_()))
            for level, name in enumerate(detector.design.levels):
                loss = of_level(losses, name)
                assert loss is not None
                found = torch.autograd.grad(loss, features[1:], retain_graph=True, allow_unused=True)
                sums[level] += [0.0 if g is None else float(g.norm()) for g in found]
    finally:
        fpn.alpha.data = kept
        hook.remove()
    result: NDArray[np.float64] = sums / len(batches)
    return result
