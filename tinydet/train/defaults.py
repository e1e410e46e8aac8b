"""Defaults of a training run that depend on the device, the data and the weights that it starts from.

Options that were given always win, and `--recipe tinyperson` and `--preset paper` are the authors' recipe whatever the
data. Each choice comes with its reason and the option that changes it, as lines to print.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from tinydet._internal.console import plural
from tinydet.models.options import Architecture
from tinydet.models.registry import detector_info, detector_options, merged_options, recommended_options
from tinydet.train.config import (
    DETECTOR,
    OVERLAP,
    PAPER_EPOCHS,
    PRESET_DETECTORS,
    PRESETS,
    SMALL_AUGMENT,
    TILE,
    TrainConfig,
)

# A dataset is small if the paper's epochs are fewer steps than this, in tiles: 500 steps of the preset small.
SMALL_TILE_VIEWS = 2000
MOST_EPOCHS = 50  # about as many as were measured (docs/training.md)


def choose_network(
    config: TrainConfig, *, device: str, start: Architecture | None = None
) -> tuple[TrainConfig, list[str]]:
    """Fill in preset, network, tile and optimizer of a configuration from `resolve()`; return it with the reasons.

    Args:
        device: type of the torch device, such as "cpu" or "cuda".
        start: network of the weights of `init`; None: no such weights, or unknown.

    Raises:
        ValueError: an option contradicts the weights of `init`.
    """
    _check_start(config, start)
    preset, why = _preset(config, device, start)
    # A preset for networks of another width: of the weights, only the backbone fits.
    width = config.channels or PRESETS[preset]["channels"]
    other = start is not None and config.preset in PRESET_DETECTORS and width != start.channels
    kept = None if other else start
    detector = config.detector or (kept.detector if kept else PRESET_DETECTORS.get(preset, DETECTOR))
    info = detector_info(detector)
    recipe = {**PRESETS[preset], **info.recipe.get(preset, {})}
    options = merged_options(recommended_options(detector, preset), config.options)
    chosen = dict(recipe)
    tile = TILE
    if start is not None:
        chosen |= {"backbone": start.backbone} | ({"channels": kept.channels} if kept else {})
        options |= merged_options(start.options, config.options) if start.detector == detector else {}
        tile = start.tile if start.tile and config.recipe is None else tile
    tile = config.tile or info.fit_tile(tile)
    overlap = start.overlap if start is not None and start.tile == tile and start.overlap is not None else OVERLAP
    given = {name: value for name in PRESETS[preset] if (value := getattr(config, name)) is not None}
    no_weights = config.init or (config.built_in and preset != "paper")
    given_otherwise = config.detector or "assign" in config.options or config.init or config.alpha or config.sigma_power
    by_itself = preset in PRESET_DETECTORS and not given_otherwise and not config.salpha
    values: dict[str, Any] = {
        **{name: chosen[name] for name in PRESETS[preset]},
        **given,
        "detector": detector,
        "salpha": config.salpha or by_itself,
        "preset": preset,
        "options": detector_options(detector, options),
        "tile": tile,
        "overlap": min(overlap, tile // 2) if config.overlap is None else config.overlap,
        "weights_backbone": config.weights_backbone or ("none" if no_weights else "default"),
    }
    filled = dataclasses.replace(config, **values)
    filled.check_tile()
    filled.check_alpha()
    lines = [f"preset {preset}: {why}"] if why else []
    if by_itself:
        lines.append(f"S-alpha: part of the preset {preset} (--alpha 1 switches it off)")
    if start is not None:
        lines.append(_network_line(config, filled, start))
    return filled, lines


def choose_schedule(config: TrainConfig, given: TrainConfig, tiles: int) -> tuple[TrainConfig, list[str]]:
    """Fill in epochs, augmentations and the interval of validations; return the configuration with the reasons.

    Args:
        config: from `choose_network`. `given`: the configuration before it.
        tiles: number of training tiles.
    """
    epochs = PAPER_EPOCHS
    augment: tuple[str, ...] = ()
    small = given.recipe is None and given.preset != "paper" and not given.built_in and epochs_of(tiles) > PAPER_EPOCHS
    lines = []
    if small:
        epochs = epochs_of(tiles)
        augment = SMALL_AUGMENT
        if given.epochs is None:
            lines.append(
                f"{epochs} epochs instead of {PAPER_EPOCHS}: a small dataset of {plural(tiles, 'tile')} "
                "(--epochs N chooses)"
            )
        if given.augment is None:
            lines.append(f"augmentation {','.join(augment)}: a small dataset (--augment none switches it off)")
    epochs = config.epochs or epochs
    every = config.validate_every or max(1, epochs // (24 if config.patience else 6))
    chosen = augment if config.augment is None else config.augment
    return dataclasses.replace(config, epochs=epochs, augment=chosen, validate_every=every), lines


def epochs_of(tiles: int) -> int:
    """Return the default number of epochs of a dataset: the paper's, or more if it has few tiles.

    >>> epochs_of(5000), epochs_of(100), epochs_of(5)
    (12, 20, 50)
    """
    return min(max(PAPER_EPOCHS, math.ceil(SMALL_TILE_VIEWS / max(tiles, 1))), MOST_EPOCHS)


def _check_start(config: TrainConfig, start: Architecture | None) -> None:
    if start is None:
        return
    if config.backbone not in (None, start.backbone):
        raise ValueError(
            f"--backbone {config.backbone}: the weights of --init {config.init} are of {start.backbone}; leave "
            "--backbone or --init out"
        )
    if config.preset and config.backbone is None and PRESETS[config.preset]["backbone"] != start.backbone:
        raise ValueError(
            f"--preset {config.preset} is {PRESETS[config.preset]['backbone']}, and the weights of --init "
            f"{config.init} are of {start.backbone}; leave --preset or --init out"
        )


def _preset(config: TrainConfig, device: str, start: Architecture | None) -> tuple[str, str]:
    """Return the preset and why; no reason if it was given."""
    if config.preset or config.recipe:
        return config.preset or "paper", ""
    if config.built_in:
        return "small", "the built-in dataset (--preset paper chooses ResNet-50)"
    if start is not None:
        known = (name for name, values in PRESETS.items() if values["backbone"] == start.backbone)
        if preset := start.preset if start.preset in PRESETS else next(known, None):
            return preset, f"that of {config.init}"
    if device == "cpu":
        return "small", "it trains on a CPU (--preset paper is for GPUs and takes many times longer)"
    return "paper", f"it trains on a GPU, {device} (--preset small is faster and smaller)"


def _network_line(given: TrainConfig, filled: TrainConfig, start: Architecture) -> str:
    """Return a line about what the weights of `init` decided, and what was given instead."""
    own = {"detector": start.detector, "backbone": start.backbone, "channels": start.channels, "tile": start.tile}
    taken = [f"{name} {getattr(filled, name)}" for name, value in own.items() if value == getattr(filled, name)]
    other = [
        f"{name} {getattr(filled, name)} instead of {value}"
        for name, value in own.items()
        if value is not None and value != getattr(filled, name)
    ]
    if filled.detector == start.detector:
        options = {name: value for name, value in start.options.items() if value is not None}
        taken += [f"{name} {value}" for name, value in options.items() if filled.options.get(name) == value]
    return f"from {given.init}: {', '.join(taken)}" + (f"; as given: {', '.join(other)}" if other else "")
