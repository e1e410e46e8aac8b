"""The models that come with the package: taken by name, wherever a model file is asked for."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parents[1] / "bundled"
BUNDLED = {"thermal": "persons and cars on thermal frames from a drone"}
DEFAULT = "thermal"


def model_path(model: Path | str, suffix: str = ".onnx") -> Path:
    """The file of a bundled model where `model` is the name of one, unless a file of yours is called so; else the path.

    Args:
        suffix: `.onnx` to run it, `.pth` (weights stored in half precision) to train on from it.

    >>> model_path("thermal").name, model_path("my/model.onnx").name
    ('thermal.onnx', 'model.onnx')
    """
    path = Path(model)
    return FOLDER / f"{path.name}{suffix}" if str(model) in BUNDLED and not path.exists() else path
