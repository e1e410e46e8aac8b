"""Read the description of an exported model without opening the model."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from tinydet._internal.input_files import read_file
from tinydet._internal.shell import tinydet_command
from tinydet.runtime.backends.onnx_spec import read_onnx_file
from tinydet.spec import METADATA_KEY, ModelSpec


def size_in_bytes(path: Path) -> int:
    """Return the size of a model file, together with the weights of an OpenVINO IR, which are in its `.bin`."""
    weights = path.with_suffix(".bin")
    return path.stat().st_size + (weights.stat().st_size if path.suffix == ".xml" and weights.exists() else 0)


def read_spec(path: Path) -> ModelSpec:
    """Return the ModelSpec of an ONNX file, of an adopted OpenVINO IR, or of an engine from the `.json` beside it.

    Raises:
        ValueError: the file is damaged, or was not exported by tinydet. Names it.
        OSError: it is missing or unreadable.
    """
    if path.suffix == ".xml":
        return _read_ir(path)
    if path.suffix not in (".engine", ".plan"):
        return read_onnx_file(path).spec
    sidecar = path.with_suffix(".json")
    if not sidecar.exists():
        raise ValueError(f"{path} lacks its description {sidecar}: copy it too, or build the engine again")
    return ModelSpec.from_json(read_file(sidecar), source=sidecar)


def _read_ir(path: Path) -> ModelSpec:
    try:
        found = ElementTree.fromstring(read_file(path)).find(f"rt_info/framework/{METADATA_KEY}")
    except ElementTree.ParseError as error:
        raise ValueError(f"{path}: not an OpenVINO IR ({error}); adopt the original again") from error
    text = None if found is None else found.get("value")
    if text is None:
        raise ValueError(
            f"{path} is not a model of tinydet; make one of it: {tinydet_command('export', 'adopt', path)}"
        )
    return ModelSpec.from_json(text, source=path)
