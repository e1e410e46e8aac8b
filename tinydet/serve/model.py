"""ServedModel: the one model of a service, with what jobs, tiles and descriptions need of it."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tinydet.infer.__main__ import chosen_model, infer_parser
from tinydet.runtime.backends import MODEL_FILES, Backend, TileOutputs
from tinydet.runtime.bundled import DEFAULT
from tinydet.spec import ModelSpec

AT_ONCE = 2  # requests for single images or tiles that run at once, beside the job


@dataclass(frozen=True)
class ServedModel:
    """A model file that is open. `backend.run` may be called from several threads.

    Attributes:
        path, sha256: of the file; a journal belongs to one model.
        requests: held by a request while it runs the model, so that many clients do not slow the job to a halt.
    """

    path: Path | None
    sha256: str
    backend: CountingBackend
    requests: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(AT_ONCE))

    @property
    def spec(self) -> ModelSpec:
        return self.backend.spec


def open_served_model(
    model: Path | None, *, backend: str = "auto", tile: int | None = None, threads: int | None = None
) -> ServedModel:
    """Open a model as `tinydet infer` does; without one here, the default bundled model.

    Raises:
        ValueError, OSError, ImportError: as `open_model`.
    """
    if model is None and not any(Path(name).exists() for name in MODEL_FILES):
        model = Path(DEFAULT)
    args = infer_parser().from_values({"backend": backend})
    args.model, args.tile, args.threads = model, tile, threads
    chosen = chosen_model(args, [])
    return ServedModel(chosen.path, chosen.sha256, CountingBackend(chosen.backend))


class CountingBackend:
    """Runs a backend, and counts tiles and seconds.

    Attributes:
        tiles, seconds: since the start; the seconds of calls that overlap are added.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend, self._lock = backend, threading.Lock()
        self.tiles, self.seconds = 0, 0.0

    @property
    def spec(self) -> ModelSpec:
        return self._backend.spec

    @property
    def name(self) -> str:
        return self._backend.name

    def run(self, images: NDArray[np.uint8]) -> TileOutputs:
        start = time.perf_counter()
        outputs = self._backend.run(images)
        seconds = time.perf_counter() - start
        with self._lock:
            self.tiles += len(images)
            self.seconds += seconds
        return outputs


class RecordedBackend:
    """Stands for the model of a finished job, whose journal has the records of all tiles."""

    name = "a finished job"

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec

    def run(self, images: NDArray[np.uint8]) -> TileOutputs:
        raise ValueError("the journal of this job lacks tiles; delete the job and start it again")
