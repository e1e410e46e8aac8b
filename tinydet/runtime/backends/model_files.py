"""What a model file says about itself, read without opening the model."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from tinydet._internal.errors import name_failures
from tinydet._internal.input_files import check_file, read_file
from tinydet._internal.shell import tinydet_command
from tinydet.runtime.backends.onnx_spec import read_onnx_file
from tinydet.spec import METADATA_KEY, ModelSpec


def read_spec(path: Path) -> ModelSpec:
    """Return the description of an ONNX file, of an engine with its `.json`, or of an adopted OpenVINO IR (`.xml`).

    Raises:
        ValueError: the file is damaged, or is not an exported model. Names it.
        OSError: it cannot be read.
    """
    check_file(path, "name an exported model")
    if path.suffix in (".engine", ".plan"):
        sidecar = path.with_suffix(".json")
        return ModelSpec.from_json(read_file(sidecar, "an engine needs its description next to it"), source=sidecar)
    if path.suffix == ".xml":
        return _spec_of_ir(path)
    if path.suffix in (".pth", ".pt"):
        raise ValueError(f"{path} is a training checkpoint; export it first: {tinydet_command('export', 'onnx', path)}")
    return read_onnx_file(path).spec


def _spec_of_ir(path: Path) -> ModelSpec:
    text = read_file(path)
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
        raise ValueError(f"{path}: XML with a document type is not read; export the model again")
    with name_failures(path, "read", "export the model again"):
        try:
            entry = ElementTree.fromstring(text).find(f"./rt_info/framework/{METADATA_KEY}")
        except ElementTree.ParseError as error:
            raise ValueError(f"{path}: not a valid OpenVINO IR ({error}); export the model again") from error
    if entry is None or "value" not in entry.attrib:
        raise ValueError(f"{path} is not a model of tinydet; make one: {tinydet_command('export', 'adopt', path)}")
    return ModelSpec.from_json(entry.attrib["value"], source=path)
