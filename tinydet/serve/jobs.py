"""JobQueue: runs of `tinydet infer` over one scene each, one after the other, kept on disk.

A job is a folder with its request and state (`job.json`), the journal of its run and its results. Whatever ends the
process, the next one continues the jobs that were not finished, from their journals.
"""

from __future__ import annotations

import dataclasses
import logging
import secrets
import shutil
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from tinydet._internal.atomic import write_json
from tinydet._internal.console import plural
from tinydet._internal.json_files import checked, read_json
from tinydet.infer.jobs import Job, OutputOptions, RunPlan, plan_jobs
from tinydet.infer.progress import RunProgress
from tinydet.runtime.backends import Backend
from tinydet.runtime.detections import Detections
from tinydet.runtime.scan import BatchResult
from tinydet.runtime.scenes.sources import Source
from tinydet.runtime.writers import FORMATS
from tinydet.serve.admission import public
from tinydet.serve.errors import ServiceError, not_found
from tinydet.serve.inference import SilentProgress, is_expected, line_of, run_quietly
from tinydet.serve.job_options import JobOptions
from tinydet.serve.model import RecordedBackend, ServedModel
from tinydet.spec import ModelSpec

Status = Literal["accepted", "running", "successful", "failed", "dismissed"]  # of OGC API Processes
FINISHED = ("successful", "failed", "dismissed")
RECORD, DETECTIONS = "job.json", "detections.npz"
MOST_KEPT = 1_000_000  # boxes of a job in memory and for the viewer, the best; result files have all
GRACE = 0.7  # seconds in which a dismissed run may end by itself, before another thread takes its place

logger = logging.getLogger("tinydet.serve")


@dataclass(frozen=True)
class SceneFile:
    """The scene of a job.

    Attributes:
        id: of the scene in this service.
        path: of the file on this machine, which clients do not see.
        shown: its name in results: what the client called it.
        width, height: in pixels.
    """

    id: str
    path: str
    shown: str
    width: int
    height: int


@dataclass
class JobRecord:
    """A job, as it is kept on disk. Times are seconds since 1970.

    Attributes:
        model: SHA-256 of the model file.
        spec: description of the model, as JSON.
        message: why the job failed.
        scene_state: size and time of change of the scene when it was scanned.
        summary: what `tinydet infer --summary` says about the scene.
    """

    id: str
    scene: SceneFile
    options: dict[str, Any]
    model: str
    spec: str
    status: Status = "accepted"
    created: float = field(default_factory=time.time)
    updated: float = field(default_factory=time.time)
    started: float | None = None
    finished: float | None = None
    message: str = ""
    scene_state: tuple[int, int] | None = None
    tiles: int = 0
    tiles_done: int = 0
    detections: int = 0
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def progress(self) -> int:
        """Percent of the tiles that are finished; 100 only for a job that was successful."""
        if self.status == "successful":
            return 100
        return min(99, 100 * self.tiles_done // self.tiles) if self.tiles else 0

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Any, *, source: Path) -> JobRecord:
        """Return the job that `to_json` described.

        Raises:
            ValueError: it did not.
        """
        what, remedy = "job", "delete its folder"
        if not isinstance(value, dict):
            raise ValueError(f"{source}: not a {what}; {remedy}")
        scene = checked(SceneFile, value.get("scene"), source=source, what=what, remedy=remedy)
        return checked(cls, {**value, "scene": scene}, source=source, what=what, remedy=remedy)

    def copy(self) -> JobRecord:
        return dataclasses.replace(self)


class JobQueue:
    """Jobs on disk, and the thread that runs them. Methods may be called from any thread; records are copies.

    Attributes:
        folder: one folder for each job.
    """

    def __init__(self, folder: Path, model: ServedModel, *, limit: int, keep: int) -> None:
        """
        Args:
            limit: jobs that may wait.
            keep: finished jobs that are kept.

        Raises:
            OSError: another service uses the folder, or it cannot be written.
        """
        self.folder, self._model, self._limit, self._keep = folder, model, limit, keep
        self._changed = threading.Condition(threading.RLock())
        self._jobs: dict[str, _Job] = {}
        self._waiting: deque[_Job] = deque()
        self._running: _Job | None = None
        self._worker: threading.Thread | None = None
        self._retired: list[threading.Thread] = []
        self._closing = False
        folder.mkdir(parents=True, exist_ok=True)
        for record in _records(folder):
            job = self._jobs[record.id] = _Job(record, folder / record.id)
            if record.status not in FINISHED:
                record.status = "accepted"
                self._waiting.append(job)

    def start(self) -> None:
        """Run the jobs that are waiting, in another thread."""
        with self._changed:
            if self._waiting:
                logger.info(f"Continuing {plural(len(self._waiting), 'job')} of an earlier start")
            self._start_worker()

    def close(self) -> None:
        """Stop the running job, which the next service continues. Returns when the thread has ended."""
        with self._changed:
            self._closing = True
            if self._running is not None:
                self._running.stop.set()
            self._changed.notify_all()
            threads = [*self._retired, *([self._worker] if self._worker else [])]
        for thread in threads:
            thread.join()

    def add(self, scene: SceneFile, options: JobOptions) -> JobRecord:
        """Accept a job.

        Raises:
            ServiceError: 429 if the queue is full, 422 for options that do not fit.
        """
        options.settings(self._model.path, self._model.backend)
        with self._changed:
            if self._closing:
                raise ServiceError(503, "the service is stopping", {"Retry-After": "10"})
            if len(self._waiting) >= self._limit:
                seconds = str(self._seconds_left())
                raise ServiceError(
                    429, f"the queue is full ({plural(self._limit, 'job')}); try again later", {"Retry-After": seconds}
                )
            job_id = secrets.token_hex(8)
            record = JobRecord(job_id, scene, options.given(), self._model.sha256, self._model.spec.to_json())
            job = _Job(record, self.folder / job_id)
            try:
                job.folder.mkdir()
                write_json(job.folder / RECORD, record.to_json())
            except OSError as error:
                shutil.rmtree(job.folder, ignore_errors=True)
                raise ServiceError(507, f"the job cannot be stored ({error.strerror})") from error
            self._jobs[job_id] = job
            self._waiting.append(job)
            self._changed.notify_all()
            return record.copy()

    def records(self) -> list[JobRecord]:
        """Return all jobs, the newest first."""
        with self._changed:
            return sorted((job.record.copy() for job in self._jobs.values()), key=lambda each: -each.created)

    def record(self, job_id: str) -> JobRecord:
        """Return a job. Raises ServiceError 404 if there is none of this id."""
        with self._changed:
            return self._job(job_id).record.copy()

    @property
    def is_closing(self) -> bool:
        """Whether the service is stopping."""
        return self._closing

    @property
    def is_working(self) -> bool:
        """Whether the thread that runs jobs is alive."""
        return self._worker is not None and self._worker.is_alive()

    def counts(self) -> dict[str, int]:
        """Return the number of jobs of each status."""
        with self._changed:
            statuses = [job.record.status for job in self._jobs.values()]
        return {status: statuses.count(status) for status in get_args(Status)}

    def delete(self, job_id: str) -> JobRecord:
        """Dismiss a job that waits or runs, and remove its files; remove a finished one altogether.

        A run is told to stop. If it does not within 0.7 s, another thread takes the next job meanwhile.

        Raises:
            ServiceError: 404.
        """
        with self._changed:
            job = self._job(job_id)
            if is_finished := job.record.status in FINISHED:
                del self._jobs[job_id]
                job.record.status = "dismissed"
        if is_finished:
            with job.rendering:  # may take long, so nothing else waits for it
                shutil.rmtree(job.folder, ignore_errors=True)
            return job.record.copy()
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
            self._end(job, "dismissed", "dismissed by a client")
            job.stop.set()
            if job is self._running:
                end = time.monotonic() + GRACE
                while self._running is job and (left := end - time.monotonic()) > 0:
                    self._changed.wait(left)
                if self._running is job:
                    assert self._worker is not None
                    self._retired = [*filter(threading.Thread.is_alive, self._retired), self._worker]
                    self._running = None
                    self._start_worker()
            return job.record.copy()

    def detections(self, job_id: str) -> Detections:
        """Return what a job has found so far, by descending score; at most the best million boxes.

        Raises:
            ServiceError: 404.
        """
        with self._changed:
            job = self._job(job_id)
            if job.found is not None:
                return job.found.detections()
        return job.read_detections()

    def spec(self, job_id: str) -> ModelSpec:
        """Return the description of the model of a job."""
        with self._changed:
            return self._job(job_id).spec()

    def results(self, job_id: str, kind: str) -> Path:
        """Return the results of a job in a format, a file as `tinydet infer --format` writes it.

        The first request for a format writes the file, from the journal.

        Args:
            kind: a key of `FORMATS`.

        Raises:
            ServiceError: 404 if the job is not finished, 409 if it has no results or its scene changed, 422 if the
                format cannot hold them.
        """
        with self._changed:
            job = self._job(job_id)
            status, message = job.record.status, job.record.message
        if status in ("accepted", "running"):
            raise ServiceError(404, f"the job is {status}; its results are available once it is successful")
        if status != "successful":
            raise ServiceError(
                409, f"the job has no results; it {'failed: ' if status == 'failed' else 'was '}{message}"
            )
        with job.rendering:
            path = job.result(kind)
            if not path.is_file():
                if not job.folder.is_dir():
                    raise not_found("job", job_id)
                self._render(job, kind)
            return path

    # ------------------------------------------------------------------------------------------------ the thread

    def _start_worker(self) -> None:
        self._worker = threading.Thread(target=self._work, name="tinydet-jobs", daemon=True)
        self._worker.start()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closing and self._is_worker():
                    self._changed.wait()
                if self._closing or not self._is_worker():
                    return
                job = self._running = self._waiting.popleft()
                job.record.started = job.record.started or time.time()
                self._set(job, "running")
                job.found = _Found()
            job.save()
            try:
                self._run(job)
            finally:
                with self._changed:
                    if self._running is job:
                        self._running = None
                    job.found = None
                    self._changed.notify_all()
                    if job.record.status == "dismissed":
                        job.remove_files()

    def _is_worker(self) -> bool:
        return threading.current_thread() is self._worker

    def _run(self, job: _Job) -> None:
        """Run a job to its end, and store how it ended."""
        started = time.monotonic()
        try:
            if job.record.model != self._model.sha256:
                raise ValueError("the service now runs a different model; start the job again")
            job.record.scene_state = job.scene_state()
            summary = self._infer(job, "coco", self._model.backend, _JobProgress(self, job))
            assert job.found is not None
            job.write_detections(job.found.detections())
        except _Stopped:
            if job.record.status != "dismissed":
                logger.info(f"job {job.record.id}: stopped; the next start of the service continues it")
            return
        except Exception as error:
            known = is_expected(error)
            if not known:
                logger.exception(f"job {job.record.id}")
            message = job.public(line_of(error)) if known else "an internal error; see the log of the service"
            self._finish(job, "failed", message, time.monotonic() - started)
            return
        job.record.summary = summary
        self._finish(job, "successful", "", time.monotonic() - started)

    def _infer(self, job: _Job, kind: str, backend: Backend, progress: RunProgress) -> dict[str, Any]:
        """Run `tinydet infer` for one format. Return the entry of the scene in its summary."""
        settings = JobOptions(**job.record.options).settings(self._model.path, backend)
        plan = job.plan(kind)
        return run_quietly(backend, job.record.model, settings, plan, progress)

    def _render(self, job: _Job, kind: str) -> None:
        """Write the results of a finished job in another format."""
        if job.scene_state() != job.record.scene_state:
            raise ServiceError(409, "the scene was changed or removed after the job; start the job again")
        try:
            self._infer(job, kind, RecordedBackend(job.spec()), SilentProgress())
        except ServiceError:
            raise
        except Exception as error:
            if not is_expected(error):
                raise
            raise ServiceError(422, job.public(line_of(error))) from error

    def _finish(self, job: _Job, status: Status, message: str, seconds: float) -> None:
        with self._changed:
            if job.record.status == "dismissed":
                return
            self._end(job, status, message)
        found = f"{plural(job.record.detections, 'detection')}, " if status == "successful" else ""
        why = f": {message}" if message else ""
        logger.info(f"job {job.record.id}: {job.record.scene.shown}: {found}{status} after {seconds:.1f} s{why}")
        self._remove_oldest()

    def _end(self, job: _Job, status: Status, message: str) -> None:
        job.record.message, job.record.finished = message, time.time()
        self._set(job, status)
        job.save()

    def _set(self, job: _Job, status: Status) -> None:
        job.record.status = status
        self._update(job)

    def _update(self, job: _Job) -> None:
        job.record.updated = time.time()
        self._changed.notify_all()

    def _remove_oldest(self) -> None:
        finished = [record for record in self.records() if record.status in FINISHED]
        for record in finished[self._keep :]:
            self.delete(record.id)

    def _seconds_left(self) -> int:
        """Return about how long the running job still takes."""
        record = None if self._running is None else self._running.record
        if record is None or not record.tiles_done or record.started is None:
            return 30
        elapsed = time.time() - record.started
        return max(1, min(3600, round(elapsed * (record.tiles - record.tiles_done) / record.tiles_done)))

    def _job(self, job_id: str) -> _Job:
        if (job := self._jobs.get(job_id)) is None:
            raise not_found("job", job_id)
        return job

    def _count(self, job: _Job, result: BatchResult) -> None:
        """Take the result of a batch. Ends the run of a job that was dismissed."""
        if job.stop.is_set():
            raise _Stopped
        with self._changed:
            if job.found is not None:
                job.found.add(result.detections)
            job.record.tiles_done += result.tiles
            job.record.detections += len(result.detections)
            self._update(job)


class _Stopped(BaseException):
    """Ends the run of a job."""


class _JobProgress(SilentProgress):
    """Tells a job what its run does."""

    def __init__(self, queue: JobQueue, job: _Job) -> None:
        super().__init__()
        self._queue, self._job = queue, job

    def begin(self, name: str, total: int | None, unit: str, *, known: int = 0) -> None:
        record = self._job.record
        record.tiles, record.tiles_done, record.detections = total or 0, 0, 0

    def add(self, result: BatchResult) -> None:
        self._queue._count(self._job, result)


class _Found:
    """The detections of a job so far; the best of them if there are more than MOST_KEPT."""

    def __init__(self) -> None:
        self._parts: list[Detections] = []
        self._count = 0

    def add(self, detections: Detections) -> None:
        self._parts.append(detections)
        self._count += len(detections)
        if self._count > 2 * MOST_KEPT:
            self.detections()

    def detections(self) -> Detections:
        best = Detections.concatenate(self._parts).by_score()[:MOST_KEPT]
        self._parts, self._count = [best], len(best)
        return best


@dataclass(eq=False)
class _Job:
    """A job in memory.

    Attributes:
        stop: ends its run.
        rendering: held while its results are written or removed.
        found: of a job that runs.
    """

    record: JobRecord
    folder: Path
    stop: threading.Event = field(default_factory=threading.Event)
    rendering: threading.Lock = field(default_factory=threading.Lock)
    found: _Found | None = None

    def save(self) -> None:
        """Write the record. If that fails, the job goes on, and the next start of the service finds an older state."""
        try:
            write_json(self.folder / RECORD, self.record.to_json())
        except OSError as error:
            logger.error(f"job {self.record.id}: its state cannot be stored ({error.strerror or error})")

    def spec(self) -> ModelSpec:
        return ModelSpec.from_json(self.record.spec, source=self.folder / RECORD)

    def scene_state(self) -> tuple[int, int] | None:
        """Return size and time of change of the scene; None if it is gone."""
        return Source(self.record.scene.path, 1).state

    def result(self, kind: str) -> Path:
        """Return the path of the results in a format."""
        return self.folder / "results" / f"{kind}{FORMATS[kind].suffix}"

    def plan(self, kind: str) -> RunPlan:
        scene = self.record.scene
        arguments = JobOptions(**self.record.options).arguments()
        path = Path(scene.path)
        source = Source(scene.path, arguments.image_id, file_name=path.name, shown=scene.shown)
        options = OutputOptions(str(self.result(kind)), (kind,))
        plan = plan_jobs([source], options, gps=arguments.gps)
        jobs: list[Job] = [dataclasses.replace(plan.jobs[0], journal=self.folder / "tiles.journal")]
        return dataclasses.replace(plan, jobs=jobs)

    def public(self, message: str) -> str:
        """Return a message without paths of this machine."""
        for path, shown in ((Path(self.record.scene.path), self.record.scene.shown), (self.folder, "the job")):
            message = public(message, path, shown)
        return message

    def remove_files(self) -> None:
        """Remove what a run has written, and keep the record."""
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if path.name != RECORD:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    def write_detections(self, found: Detections) -> None:
        columns = {"boxes": found.boxes, "scores": found.scores, "labels": found.labels}
        columns |= {"tile": found.tiles, "pass": found.passes, "seam_distance": found.seam_distance}
        with (self.folder / DETECTIONS).open("wb") as file:
            np.savez(file, **columns)  # type: ignore[arg-type]

    def read_detections(self) -> Detections:
        try:
            with np.load(self.folder / DETECTIONS, allow_pickle=False) as columns:
                rest = {name: columns[name] for name in ("tile", "pass", "seam_distance")}
                return Detections(columns["boxes"], columns["scores"], columns["labels"], rest)
        except (OSError, KeyError, ValueError):  # not finished, failed or dismissed
            return Detections.empty()


def _records(folder: Path) -> Iterator[JobRecord]:
    """Yield the jobs of a folder, the oldest first. Folders without a readable record are left out."""
    found = []
    for path in folder.glob(f"*/{RECORD}"):
        try:
            record = JobRecord.from_json(read_json(path), source=path)
        except (ValueError, OSError, TypeError) as error:
            logger.warning(f"job skipped: {error}")
            continue
        if record.id == path.parent.name:
            found.append(record)
    yield from sorted(found, key=lambda record: record.created)
