"""Train a detector: `train(TrainConfig(salpha=True, data="my/train", val="my/val"))`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tinydet.train.config import TrainConfig

if TYPE_CHECKING:
    from tinydet.train.run import Trained

__all__ = ["TrainConfig", "train"]


def train(config: TrainConfig) -> Trained:
    """Train a detector, as `tinydet train` does. The plan and the progress are logged to `tinydet.train`.

    Raises:
        ValueError: contradicting options, invalid data, or a loss that is no longer finite (`DivergedError`).
        OSError: a file cannot be read or written.
        KeyboardInterrupt: on Ctrl-C. The state is saved; the same configuration with `resume=True` continues.
    """
    from tinydet.train.run import train as run_training  # imports torch

    return run_training(config)
