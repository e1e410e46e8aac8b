"""ServiceScenes: the scenes and jobs of a service, for the page and its routes."""

from __future__ import annotations

import functools
from pathlib import Path

from tinydet.geometry.tiles import TileGrid
from tinydet.runtime.plan import plan_scan
from tinydet.runtime.scenes import Scene, open_scene
from tinydet.runtime.scenes.sources import Source
from tinydet.runtime.writers import FORMATS
from tinydet.serve.admission import public
from tinydet.serve.errors import ServiceError
from tinydet.serve.found import Result
from tinydet.serve.job_options import JobOptions
from tinydet.serve.jobs import JobRecord
from tinydet.serve.model import RecordedBackend
from tinydet.serve.scenes_api import SceneStore
from tinydet.serve.service import SceneEntry, Service


class ServiceScenes(SceneStore):
    """The scenes of a service, with the results of its running and successful jobs."""

    def __init__(self, service: Service) -> None:
        super().__init__()
        self._service = service
        self._shown: dict[str, tuple[str, int]] = {}  # status and number of detections of each job in the store
        self._tilings: dict[str, tuple[TileGrid, ...]] = {}

    def update(self) -> None:
        entries = self._service.scenes()
        for gone in set(self.scene_ids()) - {entry.id for entry in entries}:
            self.drop_scene(gone)
        for entry in entries:
            self._add(entry)

    def update_scene(self, scene_id: str) -> None:
        try:
            entry = self._service.scene(scene_id)
        except ServiceError:
            self.drop_scene(scene_id)
            return
        self._add(entry)
        jobs = {}
        for job in reversed(entry.jobs):  # the newest last
            try:
                record = self._service.jobs.record(job)
            except ServiceError:  # deleted meanwhile
                continue
            if record.status == "successful" or (record.status == "running" and record.tiles):
                jobs[job] = record
        known = set(self.job_ids(scene_id))
        for gone in known - jobs.keys():
            self.drop_result(gone)
            self._shown.pop(gone, None)
        for job, record in jobs.items():
            state = record.status, record.detections
            if self._shown.get(job) != state or job not in known:
                self._shown[job] = state
                self.set_result(scene_id, job, self._result(entry, record))

    def _add(self, entry: SceneEntry) -> None:
        info = entry.info
        self.add_scene(
            entry.id,
            entry.name,
            functools.partial(self._open, entry.path),
            georeferenced=info.georeferenced,
            size=(info.width, info.height),
            state=Source(str(entry.path), 1).state,
        )

    def public(self, scene_id: str, message: str) -> str:
        try:
            entry = self._service.scene(scene_id)
        except ServiceError:
            return "the scene cannot be read"
        return public(message, entry.path, entry.name)

    def _open(self, path: Path) -> Scene:
        return open_scene(path, stretch=self._service.model.spec.stretch)

    def _result(self, entry: SceneEntry, record: JobRecord) -> Result:
        spec = self._service.job_spec(record.id)
        options = ", ".join(f"{name} {value}" for name, value in record.options.items())
        formats = (
            name for name, form in FORMATS.items() if not form.tracked if not form.placed or entry.info.georeferenced
        )
        return Result(
            f"{record.id[:6]}{f' ({options})' if options else ''}",
            spec.classes,
            spec.category_ids,
            functools.partial(self._service.detections, record.id),
            complete=record.status == "successful",
            tilings=self._tiling(entry, record),
            formats=tuple(formats),
            details={
                "Detector": f"{spec.detector}, {spec.backbone}",
                "Model": record.model[:12],
                "Options": options or "defaults",
                "Tile": f"{spec.tile} px",
            },
        )

    def _tiling(self, entry: SceneEntry, record: JobRecord) -> tuple[TileGrid, ...]:
        """Return the tiles of a job, the full pass first; none if the options no longer fit the model."""
        if record.id not in self._tilings:
            backend = RecordedBackend(self._service.job_spec(record.id))
            try:
                settings = JobOptions(**record.options).settings(self._service.model.path, backend)
                with self._open(entry.path) as scene:
                    plan = plan_scan(scene, backend.spec, settings.options_for(scene, backend.spec))
                tilings = [plan.full.grid, *([] if plan.coarse is None else [plan.coarse.grid])]
            except (ValueError, OSError):
                tilings = []
            self._tilings[record.id] = tuple(tilings)
        return self._tilings[record.id]
