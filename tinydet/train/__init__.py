"""Train a detector: configuration, trainer, schedule, sampling and validation."""
