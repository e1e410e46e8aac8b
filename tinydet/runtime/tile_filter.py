"""The learned tile filter: decide with a small network which tiles of a scene the detector must run on.

The decision about a tile depends on its pixels alone, and the filter runs on one tile at a time, so the results of a
scan depend neither on batches and threads nor on how it is divided or interrupted. A tile that is unlike the training
images is always run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tinydet._internal.console import plural
from tinydet._internal.input_files import check_file, hash_file
from tinydet._internal.shell import tinydet_command
from tinydet._internal.stores import StorePath
from tinydet.runtime.backends import Backend, TileOutputs, open_model
from tinydet.runtime.backends.server_address import is_address
from tinydet.runtime.bundled import FOLDER
from tinydet.runtime.model_files import ENGINES, local_model, read_spec
from tinydet.runtime.read_ahead import Outcome
from tinydet.runtime.scenes.pixels import Image
from tinydet.spec import FilterRecord, ModelSpec

OBJECT, UNFAMILIAR = 0, 1  # labels
CELL = 16  # pixels of a reduced tile; sides of reduced tiles are multiples of it


@dataclass(frozen=True)
class FilterFile:
    """A tile filter that is not open: small, and the same in every process of a run.

    Attributes:
        path: an exported tile filter: an ONNX file or an engine.
        sha256: of the file.
        record: what it was made for, and how well it keeps objects.
        precision: of its graph.
        thresholds: scores from which on a cell or an unfamiliar tile counts.
        backend: that runs it, as for `open_model`.
    """

    path: Path
    sha256: str
    record: FilterRecord
    precision: str
    thresholds: tuple[float, ...]
    backend: str = "auto"

    @classmethod
    def of(cls, path: Path, backend: str = "auto") -> FilterFile:
        """Read what a file says about itself.

        Args:
            backend: of the detector; it runs the filter, too, if it runs files of its kind on this machine.

        Raises:
            ValueError: the file is not a tile filter. OSError: it cannot be read.
        """
        path = local_model(path)
        check_file(path, f"train one: {tinydet_command('train', '--filter', 'model.pth')}")
        spec = read_spec(path)
        if spec.tile_filter is None or len(spec.thresholds) != len(spec.classes):
            train = tinydet_command("train", "--filter", "model.pth")
            raise ValueError(f"{path} is a detector, not a tile filter; train one: {train}")
        suits = not is_address(backend) and (backend == "tensorrt") == (path.suffix in ENGINES)
        return cls(
            path,
            hash_file(path),
            spec.tile_filter,
            spec.precision,
            spec.thresholds,
            backend if suits else "auto",
        )

    def check(self, spec: ModelSpec, scale: float) -> None:
        """Raise ValueError if the filter does not suit a detector and the way it is run.

        Args:
            spec: of the detector, for the tile that it is opened for.
            scale: resize factor of the scan.
        """
        path, record = self.path, self.record
        again = f"train one for it: {tinydet_command('train', '--filter', 'model.pth')}"
        if sorted(record.classes) != sorted(spec.classes):
            raise ValueError(
                f"{path} was trained for the classes {', '.join(record.classes)}, and the model finds "
                f"{', '.join(spec.classes)}; {again}"
            )
        smallest, step = min(record.tiles), CELL * record.reduction
        if spec.tile < smallest or spec.tile % step:
            raise ValueError(
                f"{path} was calibrated for tiles of {smallest} pixels or more, in steps of {step}, not for "
                f"{spec.tile}; choose another --tile, or {again}"
            )
        if not math.isclose(scale, record.scale, rel_tol=0.02):
            raise ValueError(
                f"{path} was calibrated at scale {record.scale:g}, not {scale:g}; use --scale {record.scale:g}, or "
                f"{again}"
            )
        if self.precision != record.precision:
            raise ValueError(
                f"{path} was calibrated as {record.precision}, and its graph is {self.precision}; convert the "
                f"{record.precision} file again with {tinydet_command('export', 'onnx')}, which calibrates the result"
            )

    def open(self, tile: int, threads: int = 1) -> LearnedFilter:
        """Open the filter.

        Args:
            tile: side of the detector's tiles.
            threads: that call it at the same time.

        Raises:
            ValueError: the file has changed, or does not take this tile.
            OSError, ImportError: it cannot run here.
        """
        if hash_file(self.path) != self.sha256:
            raise ValueError(f"{self.path} has changed since the run started, or differs on this machine")
        side = tile // self.record.reduction
        return LearnedFilter(open_model(self.path, self.backend, tile=side, threads=threads), self.record.reduction)

    def identity(self) -> dict[str, Any]:
        """Return what the results of a scan depend on, as JSON values."""
        return {"sha256": self.sha256, "thresholds": list(self.thresholds)}


class LearnedFilter:
    """A tile filter that is ready to run; it may be called from several threads."""

    def __init__(self, backend: Backend, reduction: int) -> None:
        """
        Args:
            backend: an exported tile filter, opened for reduced tiles.
            reduction: by which tiles are reduced for it.
        """
        self._backend, self._reduction = backend, reduction
        self._limits = np.array(backend.spec.thresholds, np.float32)

    def __call__(self, content: Image) -> Outcome:
        """Decide about a tile by its content (H, W, 3), without padding."""
        tile = self._backend.spec.tile * self._reduction
        found = self._backend.run(reduced(content, tile, self._reduction)[None])
        scores, labels = found.scores[0], found.labels[0]
        if (scores[labels == UNFAMILIAR] >= self._limits[UNFAMILIAR]).any():
            return "unfamiliar"
        return "read" if (scores[labels == OBJECT] >= self._limits[OBJECT]).any() else "filtered"


def reduced(content: Image, tile: int, reduction: int) -> Image:
    """Return the content (H, W, 3) of a tile as a tile filter sees it: (tile / reduction, tile / reduction, 3).

    Content that is smaller than the tile is continued by reflection, so that no border looks like an object.
    """
    height, width = content.shape[:2]
    if (height, width) != (tile, tile):
        content = np.asarray(
            cv2.copyMakeBorder(content, 0, tile - height, 0, tile - width, cv2.BORDER_REFLECT), np.uint8
        )
    side = tile // reduction
    return np.asarray(cv2.resize(content, (side, side), interpolation=cv2.INTER_AREA), np.uint8)


def cell_scores(found: TileOutputs, index: int, boxes: np.ndarray[Any, np.dtype[np.float64]]) -> list[float]:
    """Return for each box (M, 4) xyxy, in pixels of the reduced tile `index`, the highest score of a cell it touches.

    It is 0 where the cells that a box touches score below the floor.
    """
    cells = found.labels[index] == OBJECT
    corners, scores = found.boxes[index][cells], found.scores[index][cells]
    best = []
    for box in boxes:
        touched = (corners[:, :2] < box[2:]).all(1) & (corners[:, 2:] > box[:2]).all(1)
        best.append(float(scores[touched].max(initial=0.0)))
    return best


def filter_path(model: Path) -> Path:
    """Return the tile filter of a model: `model.filter.onnx` next to `model.onnx`.

    The engine and the conversions of a model (`model.int8.onnx`) use the same filter. That of a bundled model may be in
    the current folder.
    """
    names = dict.fromkeys(f"{stem}.filter.onnx" for stem in (model.stem, model.name.partition(".")[0]))
    found = [model.with_name(name) for name in names]
    if model.parent == FOLDER:
        found += [Path(name) for name in names]
    return next((path for path in found if not isinstance(path, StorePath) and path.is_file()), found[-1])


def describe(record: FilterRecord) -> str:
    """Say how well a tile filter keeps objects.

    >>> describe(FilterRecord(("a",), (640,), 1.0, 2, 0.995, 0.995, 0.95, 900, 1, 100, 60, 1, 0.01))
    'keeps at least 99.5 % of the objects on images like its held-out ones (95 % confidence; 1 of 900 objects missed)'
    """
    bound = math.floor(1000 * record.bound) / 10
    return (
        f"keeps at least {bound:g} % of the objects on images like its held-out ones ({100 * record.confidence:g} % "
        f"confidence; {record.missed} of {plural(record.objects, 'object')} missed)"
    )
