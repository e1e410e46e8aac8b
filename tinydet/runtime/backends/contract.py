"""The contract of a backend: its input and outputs, with their names, types and shapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.arguments import quoted
from tinydet._internal.shell import tinydet_command
from tinydet.spec import LARGEST_TILE, ModelSpec

INPUT = "images"  # (N, T, T, 3) uint8 RGB
OUTPUT_TYPES: dict[str, type[Any]] = {
    "boxes": np.float32,
    "scores": np.float32,
    "labels": np.int32,
    "candidates": np.int32,
    "unconverged": np.int32,
}


TileChoice = int | None | Callable[[ModelSpec], int]  # what `open_model` takes as the tile; see `spec_for_tile`


class TileOutputs(NamedTuple):
    """Outputs of an exported model for N tiles, with K detection slots per tile.

    Attributes:
        boxes: (N, K, 4) float32, xyxy in tile pixels.
        scores: (N, K) float32, descending.
        labels: (N, K) int32, index into the classes; -1 marks an empty slot.
        candidates: (N,) int32, number of boxes above the score floor before the cut to K.
        unconverged: (N,) int32, number of proposals that the last round of suppression still changed, for a model that
            suppresses proposals in its graph (`ModelSpec.nms_rounds` above 0). Other models: (0,).
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int32]
    candidates: NDArray[np.int32]
    unconverged: NDArray[np.int32] = np.zeros(0, np.int32)


class Backend(Protocol):
    """A model that is ready to run.

    A backend that waits for something else than this machine, such as a server, may also have the integer `in_flight`:
    a scan then has so many calls of `run` in progress at a time, in threads of its own; and a method `cancel`, which
    makes the calls that are in progress fail when the scan is given up.
    """

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def name(self) -> str:
        """Runtime, version and device, for messages."""
        ...

    def run(self, images: NDArray[np.uint8]) -> TileOutputs:
        """Run the model on tiles (N, T, T, 3), uint8 RGB, with N up to `spec.max_batch`."""
        ...


def spec_for_tile(spec: ModelSpec, tile: TileChoice, path: Path) -> ModelSpec:
    """Return the spec of a model that is opened for tiles of `tile` pixels.

    Args:
        tile: None: the default tile of the model. A function chooses one for the model.
        path: of the model, for the message.

    Raises:
        ValueError: the model does not take tiles of this size. Names those that it takes, and the way to others.
    """
    if callable(tile):
        tile = tile(spec)
    if tile is None or (tile in spec.tiles and not isinstance(tile, bool)):
        return dataclasses.replace(spec, tile=tile or spec.tile)
    if isinstance(tile, bool) or not isinstance(tile, int) or not 1 <= tile <= LARGEST_TILE:
        raise ValueError(f"the tile is a number of pixels from 1 to {LARGEST_TILE}, got {quoted(tile)}")
    if step := spec.tile_multiple:
        if tile % step == 0:
            return dataclasses.replace(spec, tile=tile)
        near = " and ".join(str(each) for each in (tile // step * step, -(-tile // step) * step) if each)
        raise ValueError(f"{path} takes tiles of any multiple of {step} pixels, not {tile}; the nearest: {near}")
    known = ", ".join(map(str, spec.tiles))
    if spec.engine:
        sizes = ",".join(map(str, (*spec.tiles, tile)))  # the default tile stays the first
        graph = path.with_name(str(spec.engine.get("onnx") or path.with_suffix(".onnx").name))
        command = tinydet_command("export", "engine", graph, "--tile", sizes, "--output", path)
        raise ValueError(f"{path} was built for tiles of {known}, not {tile}; build it for {tile} too: {command}")
    if spec.is_adopted:
        raise ValueError(
            f"{path} takes only tiles of {known}, not {tile}, because its original has an input of fixed size; export "
            "the original for that size, or with dynamic height and width, and adopt that file"
        )
    checkpoint = path.with_suffix(".pth")
    command = tinydet_command("export", "onnx", checkpoint if checkpoint.is_file() else "model.pth")
    raise ValueError(f"{path} takes only tiles of {known}, not {tile}; export it again, for any tile: {command}")


def output_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Shapes of the model's outputs without the batch axis, in the order of the outputs. Types: `OUTPUT_TYPES`."""
    slots = spec.max_detections
    shapes: dict[str, tuple[int, ...]] = {
        "boxes": (slots, 4),
        "scores": (slots,),
        "labels": (slots,),
        "candidates": (),
    }
    return {**shapes, "unconverged": ()} if spec.nms_rounds else shapes


def check_tiles(images: NDArray[np.uint8], spec: ModelSpec) -> None:
    """Check the input of a backend.

    Raises:
        ValueError: the shape or type is not (N, T, T, 3) uint8 with N up to `spec.max_batch`.
    """
    tile, largest = spec.tile, spec.max_batch
    if images.dtype != np.uint8 or images.shape[1:] != (tile, tile, 3) or len(images) > largest:
        raise ValueError(
            f"expected uint8 tiles (N, {tile}, {tile}, 3) with N <= {largest}, got {images.dtype} {images.shape}"
        )


def check_outputs(outputs: TileOutputs, spec: ModelSpec, count: int, *, name: str) -> None:
    """Check the outputs of a backend, before anything is clipped. Empty slots may hold any box.

    Args:
        spec: of the model.
        count: number of tiles that were run.
        name: of the backend, for the message.

    Raises:
        ValueError: the outputs have a wrong shape or type, a label is not a class of the model, a score is NaN, or a
            box or score in a filled slot is NaN or infinite.
    """
    model = f"{name}, {spec.detector} {spec.backbone} {spec.precision}"
    slots = (outputs.scores.shape[1] if outputs.scores.ndim == 2 else 0) or spec.max_detections
    shapes: dict[str, tuple[int, ...]] = {
        "boxes": (count, slots, 4),
        "scores": (count, slots),
        "labels": (count, slots),
        "candidates": (count,),
        "unconverged": (count,) if outputs.unconverged.size else (0,),
    }
    for output, array in outputs._asdict().items():
        if array.shape != shapes[output] or array.dtype != OUTPUT_TYPES[output]:
            raise ValueError(
                f"{model}: expected {output} {np.dtype(OUTPUT_TYPES[output])} {shapes[output]}, got {array.dtype} "
                f"{array.shape}; export the model again, or correct what `run` of the backend returns"
            )
    filled = outputs.labels >= 0
    faults = {
        "scores that are NaN or infinite": np.isnan(outputs.scores).any() or np.isinf(outputs.scores[filled]).any(),
        "boxes that are NaN or infinite": not np.isfinite(outputs.boxes[filled]).all(),
        f"labels above {len(spec.classes) - 1}, its last class": (outputs.labels >= len(spec.classes)).any(),
    }
    for fault, present in faults.items():
        if present:
            again = "export the original again and adopt it" if spec.is_adopted else "export it again"
            raise ValueError(
                f"{model}: the model returned {fault}; {again} and check it with "
                f"`{tinydet_command('export', 'verify')}`"
            )
