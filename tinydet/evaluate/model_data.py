"""The model of a checkpoint or an exported file, and the validation set that it was trained with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tinydet._internal.errors import reason
from tinydet._internal.suggestions import did_you_mean, did_you_mean_path
from tinydet.evaluate.score_model import scoring_spec
from tinydet.runtime.bundled import BUNDLED, model_path

if TYPE_CHECKING:
    from tinydet.data.source import DataSource
    from tinydet.runtime.backends import Backend, TileChoice

BUILTIN = "builtin"  # the value of --data for the built-in scenes
NAME_DATA = f"name the data to score on: --data DIR, or --data {BUILTIN} for the built-in scenes"


@dataclass(frozen=True)
class ModelData:
    """The data that a model is scored on.

    Attributes:
        role: what these data are to the model, for messages; empty if the user named them.
        classes: the classes that validation during training scored; None for all.
    """

    source: DataSource
    role: str = ""
    classes: tuple[str, ...] | None = None


def validation_data(model: Path) -> ModelData:
    """Return the validation set that a model was trained with, as its checkpoint records it.

    Args:
        model: a checkpoint, or an exported model with its checkpoint in the same folder, under the same name.

    Raises:
        ValueError: there is no checkpoint, it was trained without validation, or the data are gone.
    """
    path = checkpoint_of(model)
    from tinydet.models.checkpoint import load_checkpoint  # imports torch

    checkpoint = load_checkpoint(path)
    try:
        source = checkpoint.val_source(path)
    except ValueError as error:
        raise ValueError(f"{path}: its validation set is gone ({reason(error)}); {NAME_DATA}") from error
    if source is None:
        fault = (
            "was trained without validation" if "val_data" in checkpoint.config else "does not name a validation set"
        )
        raise ValueError(f"{path} {fault}; {NAME_DATA}")
    if path != model:
        _check_same_classes(model, path, checkpoint.classes)
    return ModelData(source, f"the validation set of {path}: ", checkpoint.classes)


def existing_model(model: str | Path) -> Path:
    """Return the file of a model: its path, or that of a bundled model with this name.

    Raises:
        ValueError: there is no such file.
    """
    path = model_path(model)
    if not path.is_file():
        meant = did_you_mean(str(model), BUNDLED) or did_you_mean_path(model)
        raise ValueError(
            f"{model}: no such model; name a .pth or .onnx file, or a bundled one: {', '.join(BUNDLED)}{meant}"
        )
    return path


def checkpoint_of(model: Path) -> Path:
    """Return the checkpoint of a model: the file itself, or that in the same folder under the same name.

    Raises:
        ValueError: there is none.
    """
    if model.suffix == ".pth":
        return model
    path = model.with_suffix(".pth")
    if not path.is_file():
        raise ValueError(f"{model} does not know its validation set, and there is no checkpoint {path}; {NAME_DATA}")
    return path


def open_for_scoring(model: Path | None, device: str | None, tile: TileChoice = None, backend: str = "auto") -> Backend:
    """Open a checkpoint with torch, any other model with a backend of the runtime.

    A checkpoint keeps more boxes of a tile than its export does, see `scoring_spec`.

    Args:
        model: None for the model of a server.
        device: of torch, for a checkpoint only; None for the CPU.
        tile: side of the tiles, see `open_model`; of a checkpoint any that its detector takes.
        backend: of an exported model, see `open_model`.

    Raises:
        ValueError: the model cannot be used, does not take the tile, or a device is given for an exported model.
    """
    if model is not None and model.suffix == ".pth" and backend == "auto":
        from tinydet.models.backend import TorchBackend  # imports torch, which only a checkpoint needs
        from tinydet.models.checkpoint import load_checkpoint
        from tinydet.models.device import torch_device
        from tinydet.models.registry import detector_info
        from tinydet.runtime.backends.contract import spec_for_tile

        usable = torch_device("cpu" if device is None else device)
        checkpoint = load_checkpoint(model)
        multiple = detector_info(checkpoint.detector.detector).tile_multiple
        spec = spec_for_tile(dataclasses.replace(checkpoint.spec(), tile_multiple=multiple), tile, model)
        return TorchBackend(checkpoint.build(), scoring_spec(spec), device=str(usable))
    if device is not None:
        raise ValueError(f"--device is for a checkpoint (.pth); {model or backend} runs where its runtime can")
    from tinydet.runtime.backends import open_model

    return open_model(None if model is None else model_path(model), backend, tile=tile)


def check_builtin_classes(model: Path | str, classes: Sequence[str], builtin: Sequence[str]) -> None:
    """Check that a model was trained on the classes of the built-in scenes.

    Raises:
        ValueError: it was not.
    """
    if set(classes) != set(builtin):
        raise ValueError(
            f"{model} finds {', '.join(classes)}, and the built-in scenes have {', '.join(builtin)}: they say nothing "
            "about this model; name data with its classes: --data DIR"
        )


def _check_same_classes(model: Path, path: Path, classes: tuple[str, ...]) -> None:
    from tinydet.runtime.backends import open_model

    found = open_model(model_path(model)).spec.classes
    if found != classes:
        raise ValueError(
            f"{path} is not the checkpoint of {model}: it finds {', '.join(classes)}, not {', '.join(found)}; "
            f"{NAME_DATA}"
        )
