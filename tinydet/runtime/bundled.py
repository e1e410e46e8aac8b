"""Models that ship with the package. Their names are accepted wherever a model file is expected."""

from __future__ import annotations

from pathlib import Path

from tinydet._internal.stores import to_path

FOLDER = Path(__file__).parents[1] / "bundled"
BUNDLED = {"thermal": "persons and cars in thermal images from a drone"}
DEFAULT = "thermal"


def model_path(model: Path | str, suffix: str = ".onnx") -> Path:
    """Return the file of a bundled model if `model` is its name and not an existing file; else `model` as a path.

    Args:
        suffix: `.onnx` to run the model, `.pth` (weights in half precision) to fine-tune it.

    >>> model_path("thermal").name, model_path("my/model.onnx").name
    ('thermal.onnx', 'model.onnx')
    """
    path = to_path(model)
    return FOLDER / f"{path.name}{suffix}" if str(model) in BUNDLED and not path.exists() else path
