"""Run inference over many scenes, skipping those already completed.

Detections are written while a scene is scanned, so memory depends neither on the number of scenes nor on the number of
objects.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

from tqdm import tqdm

from tinydet._internal.atomic import write_json
from tinydet._internal.console import plural
from tinydet._internal.errors import is_outside_error, reason
from tinydet._internal.json_files import read_json
from tinydet._internal.outputs import created_folders
from tinydet.infer.auto_options import MANY, seconds_per_batch
from tinydet.infer.chunks import Best, Tally, chunks
from tinydet.infer.crops import crop_sheet
from tinydet.infer.drawing import draw
from tinydet.infer.jobs import SKIP_HINT, Job, RunPlan, hashes
from tinydet.infer.report import plan_lines, result_lines
from tinydet.infer.settings import Settings
from tinydet.infer.videos import scan_video
from tinydet.runtime.backends import Backend
from tinydet.runtime.image_output import longest_side, save_image
from tinydet.runtime.journal import Journal
from tinydet.runtime.plan import ScanPlan, plan_scan
from tinydet.runtime.scan import BatchResult, scan
from tinydet.runtime.scenes import DamagedSceneError, Scene, open_scene
from tinydet.runtime.scenes.camera_metadata import read_camera
from tinydet.runtime.scenes.footprint import photo_ground_sample_distance
from tinydet.runtime.scenes.georeference import Georeference, GeoreferenceError
from tinydet.runtime.scenes.pixels import BandsError
from tinydet.runtime.scenes.sources import Source
from tinydet.runtime.scenes.window import part_of
from tinydet.runtime.writers import SceneDetections, Write, camera_for, georeference_for, open_writers

logger = logging.getLogger("tinydet.infer")

DONE = "done.json"


class InferenceRun:
    """A run of one model over many scenes."""

    def __init__(self, backend: Backend, model_hash: str, settings: Settings) -> None:
        """
        Args:
            model_hash: SHA-256 of the model file; a journal belongs to one model.
        """
        self._backend, self._hash, self._settings = backend, model_hash, settings
        self._spec = backend.spec
        self._seconds_per_batch: float | None = None
        self._skipped: list[str] = []

    def run(self, plan: RunPlan) -> list[str]:
        """Process all jobs.

        Returns:
            For each skipped scene, its name and the reason.

        Raises:
            ValueError, OSError: a scene cannot be read and unreadable scenes are not skipped; a file cannot be written;
                the settings do not fit a scene or a journal.
        """
        folders = {path.parent for path in (*plan.shared, *(path for job in plan.jobs for path in job.outputs))}
        identity = self._identity(plan)
        try:
            with created_folders([*folders, *([] if plan.journals is None else [plan.journals])]):
                self._run_jobs(plan, identity)
        finally:
            if self._skipped:
                logger.warning(f"{len(self._skipped)} of {plural(len(plan.jobs), 'scene')} were skipped:")
                for line in self._skipped:
                    logger.warning(f"  {line}")
        return self._skipped

    def _run_jobs(self, plan: RunPlan, identity: dict[str, Any]) -> None:
        if plan.journals is not None and self._settings.resume and _is_complete(plan, identity):
            logger.info(f"{len(plan.jobs)} scenes: already complete, {', '.join(map(str, plan.shared))} unchanged")
            return
        with open_writers(plan.shared, self._spec) as write:
            for job in plan.jobs:
                self._run_job(job, plan, write if plan.shared else None)
        for path in plan.shared:
            logger.info(f"  {path}")
        self._finish_journals(plan, identity)

    def _run_job(self, job: Job, plan: RunPlan, shared: Write | None) -> None:
        written = 0

        def write_and_count(found: SceneDetections) -> None:
            nonlocal written
            assert shared is not None
            shared(found)
            written += len(found.detections)

        try:
            if job.source.moving:
                scan_video(self._backend, self._hash, job, self._settings)
                return
            with self._open(job) as scene:
                with _of_one_scene():
                    outputs = (*job.results, *plan.shared)
                    georeference = georeference_for(job.source.path, outputs, gps=self._settings.gps)
                    camera = camera_for(job.source.path, outputs)
                    if georeference is not None and job.source.corner is not None:
                        georeference = georeference.shifted(*job.source.corner[:2])
                self._process(job, scene, georeference, camera, None if shared is None else write_and_count)
        except DamagedSceneError as error:
            if not self._settings.skip_unreadable:
                raise DamagedSceneError(f"{error}{SKIP_HINT if len(plan.jobs) > 1 else ''}") from error
            left = f"; {written} of its boxes were already written" if written else ""
            logger.info(f"{job.source.label}: skipped: {error}{left}")
            named = job.source.label in str(error)
            self._skipped.append(f"{'' if named else f'{job.source.label}: '}{error}{left}")

    def _open(self, job: Job) -> Scene:
        source = job.source
        with _of_one_scene():
            scene = open_scene(source.path, stretch=self._spec.stretch, bands=self._settings.bands)
            if self._settings.needs_gsd and scene.gsd is None:
                scene.gsd = self._photo_gsd(source)
            return scene if source.size is None else part_of(scene, source.size, source.corner)

    def _photo_gsd(self, source: Source) -> float | None:
        """Return the ground sample distance that the metadata of a photo gives, and report it; None if it gives none.

        Raises:
            GeoreferenceError: the metadata of a drone photo lacks a value, or the photo is oblique.
        """
        camera = read_camera(source.path)
        if camera is None or camera.angles is None:
            return None
        try:
            gsd, origin = photo_ground_sample_distance(camera)
        except GeoreferenceError as error:
            raise GeoreferenceError(f"{error}; give the meters per pixel: --gsd 0.05") from error
        logger.info(f"{source.label}: {100 * gsd:.3g} cm per pixel on the ground, from its metadata ({origin})")
        return gsd

    def _process(
        self,
        job: Job,
        scene: Scene,
        georeference: Georeference | None,
        camera: tuple[float, float] | None,
        shared: Write | None,
    ) -> None:
        spec = self._spec
        with _of_one_scene() if self._settings.auto_scale else nullcontext():
            options = self._settings.options_for(scene, spec)
        plan = plan_scan(scene, spec, options)
        with ExitStack() as stack:
            journal = None
            if job.journal is not None:
                identity = self._scene_identity(job, scene, plan)
                journal = stack.enter_context(Journal(job.journal, identity, resume=self._settings.resume))
            if journal is not None and shared is None and journal.outputs == job.written():
                logger.info(f"{scene.name}: already complete, {', '.join(map(str, job.outputs))} unchanged")
                return
            from_journal = 0 if journal is None else journal.tiles()
            seconds = self._expected_seconds(plan.tiles - from_journal)
            for line in plan_lines(scene, spec, plan, from_journal=from_journal, seconds=seconds):
                logger.info(line)
            try:
                tally, best = self._scan_to_files(job, scene, plan, georeference, camera, journal, shared)
            except (KeyboardInterrupt, OSError):
                if journal is not None and journal.path.exists():
                    logger.info(
                        f"  {journal.tiles()} of {plan.tiles} tiles are kept in {journal.path}; --resume continues "
                        "from there"
                    )
                raise
            for path in job.results:
                logger.info(f"  {path}")
            counts = tally.by_class.tolist()
            if job.drawing is not None:
                side = longest_side(job.drawing)
                save_image(job.drawing, draw(scene, best.detections, spec.classes, counts, max_side=side))
                logger.info(f"  {job.drawing}")
            if job.crops is not None:
                save_image(job.crops, crop_sheet(scene, best.detections, spec.classes, total=best.total))
                logger.info(f"  {job.crops}")
            if journal is not None and shared is None:
                journal.finish(job.written())  # also without --resume: a later scene may be interrupted

    def _scan_to_files(
        self,
        job: Job,
        scene: Scene,
        plan: ScanPlan,
        georeference: Georeference | None,
        camera: tuple[float, float] | None,
        journal: Journal | None,
        shared: Write | None,
    ) -> tuple[Tally, Best]:
        """Scan a scene and write its files. Return the counts, and the detections to draw."""
        spec = self._spec
        tally, best, start = Tally.of(len(spec.classes)), Best(), time.perf_counter()
        draws = job.drawing is not None or job.crops is not None
        from_journal = 0 if journal is None else journal.tiles()
        with (
            open_writers(job.results, spec) as write,
            tqdm(total=plan.tiles, unit="tile", disable=None, leave=False, smoothing=0.05) as bar,
        ):

            def observe(result: BatchResult) -> None:
                tally.add(result)
                bar.update(result.tiles)

            results = scan(self._backend, scene, plan, tile_filter=self._settings.contrast_filter, journal=journal)
            for chunk in chunks(results, observe=observe):
                found = SceneDetections(
                    str(job.source.path), job.source.image_id, scene.width, scene.height, chunk, georeference, camera
                )
                write(found)
                if shared is not None:
                    shared(found)
                if draws:
                    best.add(chunk)
        for line in result_lines(tally, spec, from_journal=from_journal, seconds=time.perf_counter() - start):
            logger.info(line)
        return tally, best

    def _expected_seconds(self, tiles: int) -> float | None:
        """Return an upper bound of the duration for this number of tiles; None if there are few."""
        batch = self._settings.options.batch
        if tiles / batch <= MANY:
            return None
        if self._seconds_per_batch is None:
            self._seconds_per_batch = seconds_per_batch(self._backend, batch)
        return self._seconds_per_batch * tiles / batch

    def _scene_identity(self, job: Job, scene: Scene, plan: ScanPlan) -> dict[str, Any]:
        """Return what the journal of a scene depends on."""
        size, changed = job.source.state or (None, None)
        return {
            "model": self._hash,
            "scene": scene.name,
            "bytes": size,
            "changed": changed,
            "scale": plan.options.scale,
            **self._settings.identity(),
        }

    def _identity(self, plan: RunPlan) -> dict[str, Any]:
        """Return what the shared files depend on."""
        sources = [job.source for job in plan.jobs if plan.shared]
        scenes = [[source.image_id, source.label, source.corner, source.state] for source in sources]
        settings = {**self._settings.scale_identity(), **self._settings.identity()}
        identity: dict[str, Any] = json.loads(json.dumps({"model": self._hash, "scenes": scenes, **settings}))
        return identity

    def _finish_journals(self, plan: RunPlan, identity: dict[str, Any]) -> None:
        """Delete the journals. With --resume, keep them and record what the shared files contain."""
        done = None if plan.journals is None else plan.journals / DONE
        if not self._settings.resume:
            for path in (*(job.journal for job in plan.jobs), done):
                if path is not None:
                    path.unlink(missing_ok=True)
        elif done is not None and not self._skipped:
            outputs = hashes((*plan.shared, *(path for job in plan.jobs for path in job.outputs)))
            write_json(done, {"identity": identity, "outputs": outputs})


@contextmanager
def _of_one_scene() -> Iterator[None]:
    """Raise errors of the block as DamagedSceneError, because they affect only one scene."""
    try:
        yield
    except BandsError:
        raise  # the choice of bands is wrong, not the scene
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise DamagedSceneError(f"{error.filename or ''}: {error.strerror}".lstrip(": ")) from error
        if not isinstance(error, ValueError | OSError) and not is_outside_error(error):
            raise
        raise DamagedSceneError(reason(error) if is_outside_error(error) else str(error)) from error


def _is_complete(plan: RunPlan, identity: dict[str, Any]) -> bool:
    """Check whether an earlier run with the same settings wrote all files, and none has changed since."""
    assert plan.journals is not None
    try:
        done = read_json(plan.journals / DONE)
        outputs = (*plan.shared, *(path for job in plan.jobs for path in job.outputs))
        return bool(done["identity"] == identity and done["outputs"] == hashes(outputs))
    except (OSError, ValueError, KeyError, TypeError):
        return False
