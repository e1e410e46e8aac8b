"""The schedule of a run: learning rate per step and weight decay per parameter, as in the authors' recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

WARMUP_STEPS, WARMUP_START = 500, 1 / 3
DECAY_AT = (6 / 12, 10 / 12)  # of all steps; the rate is divided by 10 at each


@dataclass(frozen=True)
class Schedule:
    """SGD as in the authors' recipe.

    Attributes:
        lr: learning rate for steps of `batch` tiles.
        clip_norm: largest gradient norm over all parameters; 0: no clipping.
        validate_every: epochs between validations.
        decay: "steps" divides the rate by 10 twice, "cosine" lets it fall to 0 along half a cosine.
        ema: decay of a moving average of the weights, which is validated and saved; 0: no average.
        grouped: batch wide tiles separately from the others.
        patience: stop after this many validations without a better score; None: never.
    """

    epochs: int
    batch: int
    lr: float
    momentum: float = 0.9
    weight_decay: float = 1e-4
    clip_norm: float = 0.0
    seed: int = 0
    validate_every: int = 1
    decay: Literal["steps", "cosine"] = "steps"
    ema: float = 0.0
    grouped: bool = False
    patience: int | None = None

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of a step: linear warm-up from a third, then the decay."""
        warmup = min(WARMUP_STEPS, steps // 10)
        if self.decay == "cosine":
            factor = (1 + math.cos(math.pi * max(step - warmup, 0) / max(steps - warmup, 1))) / 2
        else:
            factor = 0.1 ** sum(step >= milestone * steps for milestone in DECAY_AT)
        if step < warmup:
            factor *= WARMUP_START + (1 - WARMUP_START) * step / warmup
        return self.lr * factor


def parameter_groups(detector: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Group parameters: biases learn at twice the rate without decay, as released; norms and alpha without decay."""
    weights, undecayed, biases = [], [], []
    for module in detector.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            if isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm) or name == "alpha":
                undecayed.append(parameter)
            elif name == "bias":
                biases.append(parameter)
            else:
                weights.append(parameter)
    groups = [
        {"params": weights, "weight_decay": weight_decay, "lr_factor": 1.0},
        {"params": undecayed, "weight_decay": 0.0, "lr_factor": 1.0},
        {"params": biases, "weight_decay": 0.0, "lr_factor": 2.0},
    ]
    return [group for group in groups if group["params"]]
