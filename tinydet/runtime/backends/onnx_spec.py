"""The ModelSpec of an exported ONNX file, checked against the inputs and outputs of its graph."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tinydet._internal.shell import tinydet_command
from tinydet.runtime.backends.contract import INPUT, OUTPUT_TYPES, output_shapes
from tinydet.spec import METADATA_KEY, ModelSpec

# ONNX Runtime's names of the types.
TENSOR_TYPES: dict[type[Any], str] = {
    np.uint8: "tensor(uint8)",
    np.float32: "tensor(float)",
    np.int32: "tensor(int32)",
}


def checked_spec(path: Path, text: str | None, types: Mapping[str, str], input_shape: list[Any]) -> ModelSpec:
    """Parse the ModelSpec of an ONNX file and check that the graph matches it.

    Args:
        text: the metadata under METADATA_KEY; None if the file has none.
        types: types of all inputs and outputs by name, as in TENSOR_TYPES.
        input_shape: shape of the input; the batch axis is not checked.

    Raises:
        ValueError: the file was not exported by tinydet, or its graph does not match its ModelSpec. Names `path`.
    """
    if text is None:
        raise ValueError(
            f"{path} was not exported by tinydet (no {METADATA_KEY!r} in its metadata); "
            f"export a trained model: {tinydet_command('export', 'onnx', 'model.pth')}"
        )
    spec = ModelSpec.from_json(text, source=path)
    expected = {INPUT: TENSOR_TYPES[np.uint8]}
    expected |= {name: TENSOR_TYPES[OUTPUT_TYPES[name]] for name in output_shapes(spec)}
    if types != expected:
        raise ValueError(f"{path}: expected inputs and outputs {expected}, got {types}; export the model again")
    if input_shape[1:] != [spec.tile, spec.tile, 3]:
        raise ValueError(
            f"{path}: its input is {input_shape}, its description says tiles of {spec.tile}; export it again"
        )
    return spec
