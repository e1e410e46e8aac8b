"""Check the external weight files of an ONNX model, which must be in its folder.

Recent versions of ONNX Runtime and OpenVINO check this too, older ones do not. The file is read as a protocol buffer,
field by field, because the package `onnx` is not part of the runtime.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tinydet._internal.input_files import read_file
from tinydet.runtime.backends.protobuf import fields

# For each message of onnx.proto, the fields that can contain tensors: number -> message.
_FIELDS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
_DEEPEST = 100  # nested messages


def check_external_data(path: Path) -> None:
    """Check that all weights are in the ONNX file, or in files in its folder.

    Raises:
        ValueError: the file is not a protocol buffer, or a file that it names is missing, a link to another folder, or
            named by an absolute path or through a parent folder. Names `path`.
        OSError: the file cannot be read.
    """
    external_files(path)


def external_files(path: Path) -> tuple[Path, ...]:
    """Return the files in the folder of an ONNX file that hold weights of it.

    Raises:
        ValueError, OSError: as `check_external_data`.
    """
    folder = path.resolve().parent
    try:
        locations = sorted(set(_locations(memoryview(read_file(path)), "model")))
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path}: not a valid ONNX file ({error}); export the model again") from error
    for location in locations:
        file = folder / location
        inside = not Path(location).is_absolute() and file.resolve().is_relative_to(folder)
        if not inside or not file.is_file():
            reason = "is missing" if inside else "is not in its folder"
            raise ValueError(f"{path}: its weights are in {location!r}, which {reason}; export the model again")
    return tuple(path.parent / location for location in locations)


def _locations(message: memoryview, kind: str, depth: int = 0) -> Iterator[str]:
    if depth > _DEEPEST:
        raise ValueError("nested too deeply")
    known = _FIELDS[kind]
    for number, content in fields(message):
        if number not in known:
            continue
        if known[number] == "entry":
            entry = dict(fields(content))
            if bytes(entry.get(1, b"")) == b"location":
                yield bytes(entry.get(2, b"")).decode()
        else:
            yield from _locations(content, known[number], depth + 1)
