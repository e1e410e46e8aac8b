"""Read the description of an exported model without opening the model."""

from __future__ import annotations

from pathlib import Path

from tinydet._internal.input_files import read_file
from tinydet.runtime.backends.onnx_spec import read_onnx_file
from tinydet.spec import ModelSpec


def read_spec(path: Path) -> ModelSpec:
    """Return the ModelSpec of an ONNX file, or of an engine from the `.json` of the same name.

    Raises:
        ValueError: the file is damaged, or was not exported by tinydet. Names it.
        OSError: it is missing or unreadable.
    """
    if path.suffix not in (".engine", ".plan"):
        return read_onnx_file(path).spec
    sidecar = path.with_suffix(".json")
    if not sidecar.exists():
        raise ValueError(f"{path} lacks its description {sidecar}: copy it too, or build the engine again")
    return ModelSpec.from_json(read_file(sidecar), source=sidecar)
