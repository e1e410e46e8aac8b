"""The ModelSpec of an exported ONNX file, read without opening the model, and checked against its graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinydet._internal.errors import name_failures
from tinydet._internal.input_files import read_file
from tinydet._internal.shell import tinydet_command
from tinydet.runtime.backends.contract import INPUT, OUTPUT_TYPES, TileChoice, output_shapes, spec_for_tile
from tinydet.runtime.backends.protobuf import fields
from tinydet.spec import METADATA_KEY, ModelSpec

# ONNX Runtime's names of the types.
TENSOR_TYPES: dict[type[Any], str] = {
    np.uint8: "tensor(uint8)",
    np.float32: "tensor(float)",
    np.int32: "tensor(int32)",
}
AGAIN = "export the model again"


@dataclass(frozen=True)
class OnnxFile:
    """What an ONNX file says about itself.

    Attributes:
        spec: for the tile that the model is opened for.
        tile_axes: names of the free axes of the input for height and width; empty if the tile is fixed.
        takes_batches: whether the batch axis of the input is free.
    """

    path: Path
    spec: ModelSpec
    tile_axes: tuple[str, ...]
    takes_batches: bool = True

    def check(self, types: Mapping[str, str], input_shape: Sequence[Any]) -> None:
        """Check that the graph matches the spec.

        Args:
            types: types of all inputs and outputs by name, as in TENSOR_TYPES.
            input_shape: shape of the input once the tile is fixed; the batch axis is not checked.

        Raises:
            ValueError: it does not. Names `path`.
        """
        path, spec = self.path, self.spec
        expected = {INPUT: TENSOR_TYPES[np.uint8]}
        expected |= {name: TENSOR_TYPES[OUTPUT_TYPES[name]] for name in output_shapes(spec)}
        if types != expected:
            raise ValueError(f"{path}: expected inputs and outputs {expected}, got {types}; {AGAIN}")
        if list(input_shape[1:]) != [spec.tile, spec.tile, 3]:
            raise ValueError(
                f"{path}: its input is {list(input_shape)}, its description says tiles of {spec.tile}; export it again"
            )


def read_onnx_file(path: Path, tile: TileChoice = None) -> OnnxFile:
    """Read the description of an ONNX file.

    Args:
        tile: side of the tiles to open the model for; None: its default.

    Raises:
        ValueError: the file is damaged, was not exported by tinydet, or does not take this tile. Names `path`.
        OSError: the file cannot be read.
    """
    try:
        model = memoryview(read_file(path))
        metadata = {bytes(entry[1]): bytes(entry[2]) for entry in map(_strings, _parts(model, 14))}
        graph = next(_parts(model, 7), memoryview(b""))
        axes = next(_parts(graph, 11, 2, 1, 2), memoryview(b""))  # input, type, tensor type, shape
        names = [bytes(next(_parts(axis, 2), b"")).decode() for axis in _parts(axes, 1)]
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path}: not a valid ONNX file ({error}); {AGAIN}") from error
    text = metadata.get(METADATA_KEY.encode())
    if text is None:
        raise ValueError(
            f"{path} was not exported by tinydet (no {METADATA_KEY!r} in its metadata); adopt a detector of another "
            f"framework: {tinydet_command('export', 'adopt', path)}; or export a trained model: "
            f"{tinydet_command('export', 'onnx', 'model.pth')}"
        )
    with name_failures(path, "read", AGAIN):
        spec = ModelSpec.from_json(text, source=path)
    free = tuple(dict.fromkeys(filter(None, names[1:3]))) if spec.tile_multiple else ()
    return OnnxFile(path, spec_for_tile(spec, tile, path), free, bool(names and names[0]))


def _parts(message: memoryview, number: int, *deeper: int) -> Iterator[memoryview]:
    """Yield the fields of this number, or of this path of numbers, in a message."""
    for found, content in fields(message):
        if found == number:
            yield from _parts(content, *deeper) if deeper else (content,)


def _strings(message: memoryview) -> dict[int, memoryview]:
    return {1: memoryview(b""), 2: memoryview(b""), **dict(fields(message))}
