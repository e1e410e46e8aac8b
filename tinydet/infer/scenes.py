"""Run inference over many scenes, skipping those already completed.

Detections are written while a scene is scanned, so memory depends neither on the number of scenes nor on the number of
objects.
"""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tinydet._internal.atomic import write_json
from tinydet._internal.console import plural
from tinydet._internal.errors import is_outside_error, reason
from tinydet._internal.json_files import read_json
from tinydet._internal.outputs import created_folders
from tinydet._internal.stores import is_store
from tinydet.infer.auto_options import MANY, seconds_per_batch
from tinydet.infer.chunks import Best, Tally, chunks
from tinydet.infer.domain_warnings import DomainWarnings
from tinydet.infer.jobs import SKIP_HINT, Job, RunPlan, hashes
from tinydet.infer.opened_ahead import OpenedAhead
from tinydet.infer.progress import RunProgress
from tinydet.infer.report import found, plan_lines, result_lines, summary_lines
from tinydet.infer.settings import Settings
from tinydet.infer.stac import detections_item
from tinydet.infer.summary import RunSummary, SceneCounts, earlier_counts
from tinydet.infer.videos import scan_video
from tinydet.runtime.backends import Backend
from tinydet.runtime.crops import crop_sheet
from tinydet.runtime.drawing import draw
from tinydet.runtime.image_output import longest_side, save_image
from tinydet.runtime.journal import Journal, RecordStore, remove_journal
from tinydet.runtime.pieces import Piece
from tinydet.runtime.plan import ScanPlan, plan_scan
from tinydet.runtime.read_ahead import TileFilter
from tinydet.runtime.scan import BatchResult, SceneScan, scan_scenes
from tinydet.runtime.scenes import DamagedSceneError, Scene, open_scene
from tinydet.runtime.scenes.camera_metadata import read_camera
from tinydet.runtime.scenes.footprint import photo_ground_sample_distance
from tinydet.runtime.scenes.georeference import Georeference, GeoreferenceError
from tinydet.runtime.scenes.image_file import warn_once
from tinydet.runtime.scenes.pixels import BandsError, KeptLimits
from tinydet.runtime.scenes.sources import Source
from tinydet.runtime.scenes.window import part_of
from tinydet.runtime.writers import (
    SceneDetections,
    Write,
    camera_for,
    check_classes,
    georeference_for,
    open_writers,
    write_classes,
)

logger = logging.getLogger("tinydet.infer")

DONE = "done.json"
MOST_SKIPPED = 50  # lines about skipped scenes


class InferenceRun:
    """A run of one model over many scenes.

    Attributes:
        summary: what the run has done so far.
    """

    def __init__(
        self,
        backend: Backend,
        model_hash: str,
        settings: Settings,
        *,
        ahead: OpenedAhead | None = None,
        progress: RunProgress | None = None,
    ) -> None:
        """
        Args:
            model_hash: SHA-256 of the model file; a journal belongs to one model.
            ahead: an image that is already being opened.
            progress: is told what the run does, and may end it by an exception; None for the progress bar.
        """
        self._ahead = ahead or OpenedAhead(None, None)
        self._backend, self._hash, self._settings, self._progress = backend, model_hash, settings, progress
        self._spec = backend.spec
        self._seconds_per_batch: float | None = None
        self._shared: tuple[Path, ...] = ()
        self._unplaced = 0  # scenes whose longitude and latitude stay empty
        self._warnings = DomainWarnings(backend.spec, settings)
        self.summary = RunSummary(backend.spec, settings.tile_filter)

    def run(self, plan: RunPlan) -> list[str]:
        """Process all jobs.

        Returns:
            For each skipped scene, its name and the reason.

        Raises:
            ValueError, OSError: a scene cannot be read and unreadable scenes are not skipped; a file cannot be written;
                the settings do not fit a scene or a journal.
        """
        if plan.classes is not None:
            check_classes(plan.classes, self._spec)
        folders = {path.parent for path in (*plan.shared, *(path for job in plan.jobs for path in job.outputs))}
        identity, self._shared = self._identity(plan), plan.shared
        try:
            with created_folders([*folders, *([] if plan.journals is None else [plan.journals])]):
                self._run_jobs(plan, identity)
        finally:
            self._warnings.end(self.summary)
            if self._unplaced > 1:
                scenes = plural(len(plan.jobs), "scene")
                logger.warning(f"lon and lat are left empty for {self._unplaced} of {scenes}; the first is named above")
            self._warn_of_skipped(len(plan.jobs))
        return self.summary.skipped

    def _warn_of_skipped(self, count: int) -> None:
        """Log the skipped ones of `count` scenes with their reasons."""
        if skipped := self.summary.skipped:
            were = "was" if len(skipped) == 1 else "were"
            logger.warning(f"{len(skipped)} of {plural(count, 'scene')} {were} skipped:")
            for line in skipped[:MOST_SKIPPED]:
                logger.warning(f"  {line}")
            if more := len(skipped[MOST_SKIPPED:]):
                logger.warning(f"  and {plural(more, 'more scene')}; --summary FILE lists all with their reasons")

    def _run_jobs(self, plan: RunPlan, identity: dict[str, Any]) -> None:
        earlier = _completed(plan, identity) if plan.shared and plan.journals and self._settings.resume else None
        if earlier is not None:
            for job, counts in zip(plan.jobs, earlier, strict=True):
                self.summary.add_unchanged(job, counts)
            files, total = ", ".join(map(str, plan.shared)), found(self.summary.total, self._spec)
            logger.info(f"{len(plan.jobs)} scenes: already complete, {files} unchanged: {total}")
            return
        with self._progress or RunProgress(len(plan.jobs), verbose=self._settings.verbose) as progress:
            try:
                with open_writers(plan.shared, self._spec, plan.formats) as write:
                    shared = write if plan.shared else None
                    for moving, jobs in itertools.groupby(plan.jobs, key=lambda job: job.source.moving):
                        if moving:
                            for job in jobs:
                                with self._skipping(job, plan, progress):
                                    scan_video(
                                        self._backend,
                                        self._hash,
                                        job,
                                        self._settings,
                                        self.summary,
                                        progress,
                                        self._warnings,
                                        self._tile_filter,
                                    )
                        else:
                            self._run_scenes(jobs, plan, shared, progress)
            except (KeyboardInterrupt, OSError, ValueError):
                if len(plan.jobs) > 1 and plan.resumable and self.summary.complete:
                    done = f"{self.summary.complete} of {len(plan.jobs)} scenes"
                    logger.info(f"  {done} are complete; --resume continues from there")
                raise
        if plan.classes is not None:
            write_classes(plan.classes, self._spec)
        common = [path for path in (*plan.shared, plan.classes) if path is not None]
        if len(plan.jobs) > 1:
            for line in summary_lines(self.summary, self._spec, common, seconds=progress.seconds):
                logger.info(line)
        else:
            for path in common:
                logger.info(f"  {path}")
        self._finish_journals(plan, identity)

    def _run_scenes(self, jobs: Iterable[Job], plan: RunPlan, shared: Write | None, progress: RunProgress) -> None:
        """Process scenes that are not videos; the tiles of several share the batches of the model."""
        scans = scan_scenes(
            self._backend,
            jobs,
            lambda job: self._open(job, plan),
            self._settings.options,
        )
        with closing(scans):
            for job, results in scans:
                written = _Counted(shared)
                with self._skipping(job, plan, progress, written):
                    try:
                        scan = results.scan
                    except UnchangedScene as scene:
                        files, tally = ", ".join(map(str, job.outputs)), scene.counts.tally
                        progress.say(f"{scene}: already complete, {files} unchanged: {found(tally, self._spec)}")
                        self.summary.add_unchanged(job, scene.counts)
                        progress.end(int(tally.by_class.sum()))
                        continue
                    assert isinstance(scan, OpenScene)
                    self._process(job, scan, results, written, progress)

    @contextmanager
    def _skipping(
        self,
        job: Job,
        plan: RunPlan,
        progress: RunProgress,
        written: _Counted | None = None,
    ) -> Iterator[None]:
        """Skip a scene if it cannot be read, or say how to skip it."""
        try:
            yield
        except DamagedSceneError as error:
            if not self._settings.skip_unreadable:
                raise DamagedSceneError(f"{error}{SKIP_HINT if len(plan.jobs) > 1 else ''}") from error
            left = f"; {written.boxes} of its boxes were already written" if written and written.boxes else ""
            progress.say(f"{job.source.label}: skipped: {error}{left}")
            self.summary.add_skipped(job, f"{error}{left}")
            progress.end()

    def _open(self, job: Job, plan: RunPlan) -> OpenScene:
        """Open a scene with its journal. This runs ahead of the scan, in another thread."""
        with ExitStack() as stack:
            scene = stack.enter_context(self._open_image(job))
            with _of_one_scene():
                outputs, kinds = (*job.results, *plan.shared), job.formats
                georeference = self._georeference(job.source.path, outputs, kinds)
                camera = camera_for(job.source.path, outputs, kinds)
                if georeference is not None and job.source.corner is not None:
                    georeference = georeference.shifted(*job.source.corner[:2])
            with _of_one_scene() if self._settings.auto_scale else nullcontext():
                options = self._settings.options_for(scene, self._spec)
            scan_plan = plan_scan(scene, self._spec, options)
            records = self._records(job, scan_plan, self._scene_identity(job, scene, scan_plan), stack)
            if isinstance(records.store, Journal) and not plan.shared and records.store.outputs == job.written():
                raise UnchangedScene(scene.name, earlier_counts(records.store))
            unlike = records.unlike
            if unlike is None:
                unlike = self._warnings.check(scene, options.scale, job.source.path)
            return OpenScene(
                scene,
                scan_plan,
                records.store,
                stack.pop_all().close,
                records.piece,
                self._tile_filter,
                self._settings.filters_coarse,
                georeference=georeference,
                camera_lon_lat=camera,
                from_journal=records.tiles,
                unlike=unlike,
            )

    def _records(self, job: Job, plan: ScanPlan, identity: dict[str, Any], stack: ExitStack) -> KnownRecords:
        """Open the records of a scene: here its journal, if it has one.

        Args:
            identity: what the records depend on.
            stack: closes them with the scene.
        """
        if job.journal is None:
            return KnownRecords()
        journal = stack.enter_context(Journal(job.journal, identity, resume=self._settings.resume))
        return KnownRecords(journal, journal.tiles())

    @cached_property
    def _tile_filter(self) -> TileFilter | None:
        return self._settings.open_filter(self._spec.tile)

    def _limits(self, job: Job) -> KeptLimits:
        """Return how the limits of a stretch are found: here they are measured."""
        return lambda measure: measure()

    def _open_image(self, job: Job) -> Scene:
        source = job.source
        with _of_one_scene():
            stretch, bands = self._spec.stretch, self._settings.bands
            scene = self._ahead.take(source, stretch) or open_scene(
                source.path, stretch=stretch, bands=bands, limits=self._limits(job)
            )
            if self._settings.needs_gsd and scene.gsd is None:
                scene.gsd = self._photo_gsd(source)
            return scene if source.size is None else part_of(scene, source.size, source.corner)

    def _georeference(self, scene: Path, outputs: Sequence[Path], kinds: Sequence[str] | None) -> Georeference | None:
        """Return the georeference of a scene; None, and count it, if it cannot be placed and columns stay empty."""
        try:
            return georeference_for(scene, outputs, kinds, gps=self._settings.gps)
        except GeoreferenceError as error:
            if not self._unplaced:
                logger.warning(f"{error}; lon and lat are left empty")
            self._unplaced += 1
            return None

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
        self, job: Job, scan: OpenScene, results: Iterable[BatchResult], shared: _Counted, progress: RunProgress
    ) -> None:
        """Write the files of a scene while it is scanned."""
        scene, plan, journal, spec = scan.scene, scan.plan, scan.journal, self._spec
        if progress.details:
            expected = self._expected_seconds(plan.tiles - scan.from_journal)
            for line in plan_lines(scene, spec, plan, from_journal=scan.from_journal, seconds=expected):
                logger.info(line)
        elif plan.warning:
            warn_once(f"{plan.warning[0].upper()}{plan.warning[1:]}")
        self._warnings.show(scan.unlike)
        start = time.perf_counter()
        progress.begin(scene.name, plan.tiles, "tile", known=scan.from_journal)
        try:
            tally, best = self._scan_to_files(job, scan, results, shared, progress)
        except (KeyboardInterrupt, OSError):
            if isinstance(journal, Journal) and journal.path.exists():
                progress.say(
                    f"  {journal.tiles()} of {plan.tiles} tiles are kept in {journal.path}; --resume continues from "
                    "there"
                )
            raise
        seconds = time.perf_counter() - start
        if progress.details:
            alone = seconds if progress.alone else None
            record = self.summary.filter_record
            for line in result_lines(tally, spec, from_journal=scan.from_journal, seconds=alone, record=record):
                logger.info(line)
        counts = tally.by_class.tolist()
        if job.drawing is not None:
            side = longest_side(job.drawing)
            save_image(job.drawing, draw(scene, best.detections, spec.classes, counts, max_side=side))
        if job.crops is not None:
            save_image(job.crops, crop_sheet(scene, best.detections, spec.classes, total=best.total))
        if job.stac is not None:
            shared_files = () if job.results else self._shared
            item = detections_item(job, (*job.outputs[:-1], *shared_files), scan, tally, self._spec, self._hash)
            write_json(job.stac, item)
        for path in job.outputs:
            progress.say(f"  {path}")
        counted = SceneCounts(scene.width, scene.height, tally, unlike=scan.unlike)
        self.summary.add_scanned(job, counted, seconds, from_journal=scan.from_journal)
        progress.end()
        if isinstance(journal, Journal) and not shared:
            journal.finish(job.written(), counted.to_json())  # also without --resume: a later scene may be interrupted

    def _scan_to_files(
        self, job: Job, scan: OpenScene, results: Iterable[BatchResult], shared: _Counted, progress: RunProgress
    ) -> tuple[Tally, Best]:
        """Write the detections of a scene. Return the counts, and the detections to draw."""
        tally, best = Tally.of(len(self._spec.classes), doubtful=self._warnings.doubtful), Best()
        draws = job.drawing is not None or job.crops is not None

        def observe(result: BatchResult) -> None:
            tally.add(result)
            progress.add(result)

        with open_writers(job.results, self._spec, job.formats) as write:
            for chunk in chunks(results, observe=observe):
                part = SceneDetections(
                    job.source.shown or (job.source.label if is_store(job.source.location) else str(job.source.path)),
                    job.source.image_id,
                    scan.scene.width,
                    scan.scene.height,
                    chunk,
                    scan.georeference,
                    scan.camera_lon_lat,
                    file_name=job.source.file_name,
                    corner=job.source.corner,
                )
                write(part)
                shared(part)
                if draws:
                    best.add(chunk)
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
            **self._settings.identity(self._spec),
        }

    def _identity(self, plan: RunPlan) -> dict[str, Any]:
        """Return what the shared files depend on."""
        sources = [job.source for job in plan.jobs if plan.shared]
        scenes = [[source.image_id, source.label, source.file_name, source.corner, source.state] for source in sources]
        settings = {"formats": plan.formats, **self._settings.scale_identity()}
        settings |= self._settings.identity(self._spec)
        identity: dict[str, Any] = json.loads(json.dumps({"model": self._hash, "scenes": scenes, **settings}))
        return identity

    def _finish_journals(self, plan: RunPlan, identity: dict[str, Any]) -> None:
        """Delete the journals. With --resume, keep them and record what the shared files contain."""
        done = None if plan.journals is None or not plan.shared else plan.journals / DONE
        if not self._settings.resume:
            for path in (*(job.journal for job in plan.jobs), done):
                if path is not None:
                    remove_journal(path)
        elif done is not None and not self.summary.skipped:
            outputs = hashes((*plan.shared, *(path for job in plan.jobs for path in job.outputs)))
            counts = [counts.to_json() for counts in self.summary.counts]
            write_json(done, {"identity": identity, "outputs": outputs, "counts": counts})


@dataclass(frozen=True)
class KnownRecords:
    """The records of a scene that an earlier run wrote, and where to append more.

    Attributes:
        store: None if records are not kept.
        tiles: number of tiles with a record.
        piece: the tiles to run, see `SceneScan`; None for all.
        unlike: how the scene differs from the training images of the model; None if that is not known.
    """

    store: RecordStore | None = None
    tiles: int = 0
    piece: Piece | None = None
    unlike: str | None = None


@dataclass(frozen=True)
class OpenScene(SceneScan):
    """A scene with what is needed to write its files.

    Attributes:
        from_journal: number of tiles that an earlier run finished.
        unlike: how it differs from the training images of the model; empty if it does not.
    """

    georeference: Georeference | None = None
    camera_lon_lat: tuple[float, float] | None = None
    from_journal: int = 0
    unlike: str = ""


class UnchangedScene(Exception):
    """A scene that an earlier run completed; the message is its name."""

    def __init__(self, name: str, counts: SceneCounts) -> None:
        super().__init__(name)
        self.counts = counts


class _Counted:
    """Writes to the files that all scenes share, if there are any, and counts the boxes of one scene."""

    def __init__(self, write: Write | None) -> None:
        self._write, self.boxes = write, 0

    def __bool__(self) -> bool:
        return self._write is not None

    def __call__(self, found: SceneDetections) -> None:
        if self._write is not None:
            self._write(found)
            self.boxes += len(found.detections)


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


def _completed(plan: RunPlan, identity: dict[str, Any]) -> list[SceneCounts] | None:
    """Return the counts of each scene if an earlier run with the same settings wrote all files; None if one changed."""
    assert plan.journals is not None
    try:
        done = read_json(plan.journals / DONE)
        outputs = (*plan.shared, *(path for job in plan.jobs for path in job.outputs))
        if done["identity"] != identity or done["outputs"] != hashes(outputs):
            return None
        counts = [SceneCounts.from_json(each) for each in done["counts"]]
        return counts if len(counts) == len(plan.jobs) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
