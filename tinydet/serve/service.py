"""Service: the model, the uploads, the scenes and the jobs of one server. It knows nothing of HTTP."""

from __future__ import annotations

import errno
import functools
import hashlib
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tinydet._internal.locks import lock_path, locked
from tinydet.runtime.detections import Detections
from tinydet.runtime.scenes.folders import files_in
from tinydet.serve.admission import ImageInfo, admit, find_below
from tinydet.serve.errors import ServiceError, not_found
from tinydet.serve.inference import ImageDetector, without_messages
from tinydet.serve.job_options import JobOptions
from tinydet.serve.jobs import JobQueue, JobRecord, SceneFile
from tinydet.serve.model import ServedModel
from tinydet.serve.options import ServeOptions
from tinydet.serve.uploads import Uploads
from tinydet.spec import ModelSpec

MOST_LISTED = 1000  # files below each root
MOST_SECONDS = 10.0  # after which the roots are searched again


@dataclass(frozen=True)
class SceneEntry:
    """A scene that clients can see.

    Attributes:
        id: letters and digits.
        name: for people.
        path: of the file on this machine, which clients do not see.
        info: its header.
        jobs: ids of its jobs, the newest first.
    """

    id: str
    name: str
    path: Path
    info: ImageInfo
    jobs: tuple[str, ...] = ()


class Service:
    """A model with its queue of jobs, uploads and scenes.

    Attributes:
        options: limits and places.
        model: the one that all requests use.
        jobs: the queue.
        uploads: files that clients sent.
        images: detects on single images at once.
    """

    def __init__(self, model: ServedModel, options: ServeOptions) -> None:
        """
        Raises:
            OSError: another service uses the folder, or it cannot be written.
        """
        self.options, self.model = options, model
        self._lock = ExitStack()
        options.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.enter_context(locked(lock_path(options.folder / "service")))
        except BlockingIOError as error:
            raise OSError(errno.EBUSY, "another service uses this folder; choose another --folder",
                          str(options.folder)) from error  # fmt: skip
        self.uploads = Uploads(options.folder / "uploads", limit=options.max_upload, quota=options.quota)
        self.jobs = JobQueue(options.folder / "jobs", model, limit=options.queue, keep=options.keep_jobs)
        self.images = ImageDetector(model, options.folder / "images", max_pixels=options.max_detect_pixels)
        self._admit = functools.lru_cache(4096)(self._admitted)
        self._upload_lock = threading.Lock()
        self._listed: tuple[float, list[tuple[Path, str]]] = -MOST_SECONDS, []

    def start(self) -> None:
        """Continue the jobs that an earlier service did not finish."""
        self.jobs.start()

    def close(self) -> None:
        """Stop the running job, which the next service continues."""
        self.jobs.close()
        self._lock.close()

    # -------------------------------------------------------------------------------------------------- scenes

    def scenes(self) -> list[SceneEntry]:
        """Return the uploads, the scenes of jobs and the images below the roots, each once."""
        found: dict[str, tuple[Path, str]] = {}
        for path in self.uploads.paths():
            found[scene_id(path)] = path, path.name
        for path, name in self._below_roots():
            found.setdefault(scene_id(path), (path, name))
        jobs: dict[str, list[str]] = {}
        for record in self.jobs.records():
            path = Path(record.scene.path)
            found.setdefault(record.scene.id, (path, self._name(path)))
            jobs.setdefault(record.scene.id, []).append(record.id)
        entries = []
        for path, name in found.values():
            try:
                id = scene_id(path)
                entries.append(SceneEntry(id, name, path, self._info(path, name), tuple(jobs.get(id, ()))))
            except (ServiceError, OSError):  # not an image, or removed
                continue
        return entries

    def scene(self, id: str) -> SceneEntry:
        """Return a scene.

        Raises:
            ServiceError: 404 if there is no scene of this id.
        """
        for path in self.uploads.paths():
            if scene_id(path) == id:
                return self._entry(path, path.name)
        for record in self.jobs.records():
            if record.scene.id == id:
                try:
                    path = Path(record.scene.path)
                    return self._entry(path, self._name(path))
                except OSError as error:
                    raise not_found("scene", id) from error
        for entry in self.scenes():
            if entry.id == id:
                return entry
        raise not_found("scene", id)

    def detections(self, job_id: str) -> Detections:
        """Return what a job has found so far, by descending score; at most the best million boxes."""
        return self.jobs.detections(job_id)

    def job_spec(self, job_id: str) -> ModelSpec:
        """Return the description of the model of a job."""
        return self.jobs.spec(job_id)

    # ---------------------------------------------------------------------------------------------------- jobs

    def scene_file(self, *, scene: str | None = None, upload: str | None = None, path: str | None = None) -> SceneFile:
        """Return a scene that is named by its id, as an upload, or by a path below a root.

        Raises:
            ServiceError: 4xx, see `admit` and `find_below`; 422 if it is not named in one way.
        """
        if sum(each is not None for each in (scene, upload, path)) != 1:
            raise ServiceError(422, "name one scene: by its id (scene), as an upload (upload) or by its path (path)")
        if scene is not None:
            entry = self.scene(scene)
            file, shown, info = entry.path, entry.name, entry.info
        else:
            file = find_below(self.options.roots, path) if path is not None else self.uploads.path(upload or "")
            shown = str(Path(path)) if path is not None else file.name
            info = self._info(file, shown)
        return SceneFile(scene_id(file), str(file), shown, info.width, info.height)

    def add_job(
        self, options: JobOptions, *, scene: str | None = None, upload: str | None = None, path: str | None = None
    ) -> JobRecord:
        """Accept a job over a scene, see `scene_file`.

        Raises:
            ServiceError: 4xx, as `scene_file` and `JobQueue.add`.
        """
        with self._upload_lock:  # an upload is not removed meanwhile
            return self.jobs.add(self.scene_file(scene=scene, upload=upload, path=path), options)

    def admit_upload(self, path: Path, name: str) -> ImageInfo:
        """Check a file that was received; see `admit`."""
        return admit(path, name=name, max_pixels=self.options.max_pixels)

    def check_replaceable(self, name: str) -> None:
        """Check that no job needs an upload.

        Raises:
            ServiceError: 409 if one does.
        """
        path = str(self.uploads.folder / name / name)
        for record in self.jobs.records():
            if record.scene.path == path:
                raise ServiceError(409, f"{name} is the scene of the job {record.id}; delete its jobs first")

    def delete_upload(self, name: str) -> None:
        """Remove an upload.

        Raises:
            ServiceError: 404 if there is none, 409 if a job needs it.
        """
        self.uploads.path(name)
        with self._upload_lock:
            self.check_replaceable(name)
            self.uploads.delete(name)

    # ------------------------------------------------------------------------------------------------- private

    def _below_roots(self) -> list[tuple[Path, str]]:
        """Return the images below the roots with their names, at most 10 s old."""
        listed, found = self._listed
        if time.monotonic() > listed + MOST_SECONDS:
            found = []
            for root in self.options.roots:
                base = root.resolve()
                with without_messages("tinydet.runtime"):
                    paths = files_in(root)[:MOST_LISTED]
                for path in paths:
                    real = path.resolve()
                    if real.is_relative_to(base):
                        found.append((real, str(path.relative_to(root))))
            self._listed = time.monotonic(), found
        return found

    def _name(self, path: Path) -> str:
        """Return the name of a scene: its path below a root, or that of the upload."""
        for root in self.options.roots:
            if path.is_relative_to(base := root.resolve()):
                return str(path.relative_to(base))
        return path.name

    def _entry(self, path: Path, name: str) -> SceneEntry:
        id = scene_id(path)
        jobs = tuple(record.id for record in self.jobs.records() if record.scene.id == id)
        return SceneEntry(id, name, path, self._info(path, name), jobs)

    def _info(self, path: Path, name: str) -> ImageInfo:
        state = path.stat()
        return self._admit(path, name, state.st_size, state.st_mtime_ns)

    def _admitted(self, path: Path, name: str, size: int, changed: int) -> ImageInfo:
        is_upload = path.is_relative_to(self.uploads.folder)
        allow_vrt = self.options.allow_vrt and not is_upload
        return admit(path, name=name, max_pixels=self.options.max_pixels, allow_vrt=allow_vrt)


def scene_id(path: Path) -> str:
    """Return the id of a scene: the same for the same file, and without its path."""
    return hashlib.sha256(bytes(path.absolute())).hexdigest()[:16]


def check_roots(roots: Sequence[Path]) -> None:
    """Check that the roots are folders.

    Raises:
        NotADirectoryError: one is not.
    """
    for root in roots:
        if not root.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "not a folder; name folders with scenes", f"--root {root}")
