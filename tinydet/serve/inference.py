"""Run `tinydet infer` inside the service, without its messages, and on single images."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tinydet._internal.errors import is_outside_error, reason
from tinydet._internal.names import mask_secrets, printable
from tinydet.infer.jobs import OutputOptions, RunPlan, plan_jobs
from tinydet.infer.progress import RunProgress
from tinydet.infer.scenes import InferenceRun
from tinydet.infer.settings import Settings
from tinydet.runtime.backends import Backend
from tinydet.runtime.scan import BatchResult
from tinydet.runtime.scenes.sources import Source
from tinydet.runtime.writers import FORMATS
from tinydet.serve.admission import admit, public
from tinydet.serve.errors import ServiceError
from tinydet.serve.job_options import JobOptions
from tinydet.serve.model import ServedModel

MOST_WAITING = 64  # requests for single images or tiles
THREADS = 2 * MOST_WAITING  # of such requests: some are left to answer 429, and none of other requests are taken
PATIENCE = 60.0  # seconds that a request waits for its turn

_quiet = threading.local()


class SilentProgress(RunProgress):
    """Progress that is not shown."""

    def __init__(self) -> None:
        super().__init__(1)

    def __enter__(self) -> SilentProgress:
        self.details = False
        return self

    def begin(self, name: str, total: int | None, unit: str, *, known: int = 0) -> None:
        pass

    def add(self, result: BatchResult) -> None:
        pass

    def end(self, earlier: int = 0) -> None:
        pass


def run_quietly(
    backend: Backend, model_hash: str, settings: Settings, plan: RunPlan, progress: RunProgress
) -> dict[str, Any]:
    """Run `tinydet infer` over one scene. Return the entry of the scene in its summary, with all warnings.

    Raises:
        ValueError, OSError, ImportError: as `InferenceRun.run`.
    """
    run = InferenceRun(backend, model_hash, settings, progress=progress)
    with without_messages("tinydet.infer"):
        run.run(plan)
    summary = run.summary.to_json(plan, complete=True)
    scene = {name: value for name, value in summary["scenes"][0].items() if name != "outputs"}
    return {**scene, "warnings": [*scene["warnings"], *summary["warnings"]], "doubtful": summary["total"]["doubtful"]}


def is_expected(error: BaseException) -> bool:
    """Return whether an error is one that the command would show as a line; any other is a bug."""
    return isinstance(error, ValueError | OSError | ImportError) or is_outside_error(error)


def line_of(error: BaseException) -> str:
    """Return an expected error as the line that the command would show."""
    return reason(error) if is_outside_error(error) else printable(mask_secrets(" ".join(str(error).split())))


class ImageDetector:
    """Runs `tinydet infer` on the bytes of single images, a few at a time.

    Attributes:
        threads: in which requests wait for the model, apart from the threads of all other requests.
    """

    def __init__(self, model: ServedModel, folder: Path, *, max_pixels: int) -> None:
        """
        Args:
            folder: of the images while they are processed.
            max_pixels: of an image.
        """
        self._model, self._folder, self._max_pixels = model, folder, max_pixels
        self._lock, self._waiting = threading.Lock(), 0
        self.threads = ThreadPoolExecutor(THREADS, "model")
        shutil.rmtree(folder, ignore_errors=True)  # what a killed process left behind
        folder.mkdir(parents=True)

    def detect(self, data: bytes, name: str, options: JobOptions, kind: str) -> bytes:
        """Return the results for an image, as `tinydet infer NAME --format KIND` writes them.

        Args:
            data: the image file.
            name: of the image in the results.
            kind: a key of `FORMATS`.

        Raises:
            ServiceError: 413, 415 or 422 for the image or the options, 429 if too many requests wait.
        """
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            path = Path(folder) / name
            path.write_bytes(data)
            return self.detect_file(path, name, options, kind)

    def detect_file(self, path: Path, name: str, options: JobOptions, kind: str) -> bytes:
        """Return the results for an image file, as `detect`."""
        admit(path, name=name, max_pixels=self._max_pixels)
        settings = options.settings(self._model.path, self._model.backend)
        image_id = options.arguments().image_id
        source = Source(str(path), image_id, file_name=Path(name).name, shown=name)
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            output = Path(folder) / f"{Path(name).stem}.detections{FORMATS[kind].suffix}"
            try:
                plan = plan_jobs([source], OutputOptions(str(output), (kind,)), gps=settings.gps)
                plan = dataclasses.replace(plan, jobs=[dataclasses.replace(plan.jobs[0], journal=None)])
                with self.turn():
                    run_quietly(self._model.backend, self._model.sha256, settings, plan, SilentProgress())
            except ServiceError:
                raise
            except Exception as error:
                if not is_expected(error):
                    raise
                raise ServiceError(422, public(public(line_of(error), path, name), output, output.name)) from error
            return output.read_bytes()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the model for a request. Jobs are not held up.

        Raises:
            ServiceError: 429 if too many requests wait, or this one waited too long.
        """
        retry = {"Retry-After": "1"}
        with self._lock:
            if self._waiting >= MOST_WAITING:
                raise ServiceError(429, "too many requests wait for the model; try again later", retry)
            self._waiting += 1
        try:
            if not self._model.requests.acquire(timeout=PATIENCE):
                raise ServiceError(429, "the model is busy; try again later", retry)
        finally:
            with self._lock:
                self._waiting -= 1
        try:
            yield
        finally:
            self._model.requests.release()


@contextmanager
def without_messages(name: str) -> Iterator[None]:
    """Drop what a logger gets from this thread: a request has its own answer, and a job its warnings."""
    log = logging.getLogger(name)
    if _drop not in log.filters:
        log.addFilter(_drop)
    before: bool = getattr(_quiet, "on", False)
    _quiet.on = True
    try:
        yield
    finally:
        _quiet.on = before


def _drop(record: logging.LogRecord) -> bool:
    return not getattr(_quiet, "on", False)
