"""A run over many scenes: each is scanned, told about, written, and done before where an earlier run did it.

Detections go to the files while they are found; what memory holds depends on neither the number of scenes nor that of
objects.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from tqdm import tqdm

from tinydet._internal.atomic import write_json
from tinydet.infer.auto_options import MANY, seconds_per_batch
from tinydet.infer.chunks import Best, Tally, portions
from tinydet.infer.crops import crop_sheet
from tinydet.infer.drawing import draw, save_picture
from tinydet.infer.jobs import Job, Plan, hashes
from tinydet.infer.report import plan_lines, result_lines
from tinydet.infer.settings import Settings
from tinydet.infer.videos import scan_video
from tinydet.runtime.backends import Backend
from tinydet.runtime.journal import Journal
from tinydet.runtime.scan import Step, plan_passes, scan
from tinydet.runtime.scenes import DamagedSceneError, Scene, open_scene
from tinydet.runtime.scenes.georeference import georeference_of
from tinydet.runtime.scenes.pixels import BandsError
from tinydet.runtime.writers import SceneDetections, Write, open_writers

DONE = "done.json"


class Survey:
    """All that is the same for every scene of a run."""

    def __init__(self, backend: Backend, model_hash: str, settings: Settings, say: Callable[[str], object]) -> None:
        """
        Args:
            model_hash: SHA-256 of the model file; a journal belongs to one model.
            say: takes lines for people.
        """
        self._backend, self._hash, self._settings, self._say = backend, model_hash, settings, say
        self._spec = backend.spec
        self._seconds_per_batch: float | None = None
        self._unreadable: list[str] = []

    def run(self, plan: Plan) -> None:
        """Do all jobs.

        Raises:
            ValueError, OSError: a scene that cannot be read, unless such are to be skipped; a file that cannot be
                written; settings that do not fit a scene, or a journal.
        """
        for path in (*plan.shared, *(path for job in plan.jobs for path in job.outputs)):
            path.parent.mkdir(exist_ok=True)
        if plan.journals is not None:
            plan.journals.mkdir(exist_ok=True)
        identity = self._identity(plan)
        try:
            self._do_all(plan, identity)
        finally:
            if plan.journals is not None:
                with contextlib.suppress(OSError):  # where journals lie in it
                    plan.journals.rmdir()
        if self._unreadable:
            self._say(
                f"{len(self._unreadable)} of {len(plan.jobs)} scenes were skipped, for they cannot be read, first "
                f"{self._unreadable[0]}"
            )

    def _do_all(self, plan: Plan, identity: dict[str, Any]) -> None:
        if plan.journals is not None and self._settings.resume and _is_done(plan, identity):
            self._say(f"{len(plan.jobs)} scenes: done before, {', '.join(map(str, plan.shared))} unchanged")
            return
        with open_writers(plan.shared, self._spec) as write:
            for job in plan.jobs:
                self._do(job, write if plan.shared else None, len(plan.jobs) > 1)
        for path in plan.shared:
            self._say(f"  {path}")
        self._close(plan, identity)

    def _do(self, job: Job, shared: Write | None, several: bool) -> None:
        written = 0

        def counted(found: SceneDetections) -> None:
            nonlocal written
            assert shared is not None
            shared(found)
            written += len(found.detections)

        try:
            if job.source.moving:
                scan_video(self._backend, self._hash, job, self._settings, self._say)
                return
            with self._opened(job) as scene:
                self._scan(job, scene, None if shared is None else counted)
        except DamagedSceneError as error:
            if not self._settings.skip_unreadable:
                hint = "; --skip-unreadable goes on with the other scenes" if several else ""
                raise DamagedSceneError(f"{error}{hint}") from error
            left = f"; {written} of its boxes were written before" if written else ""
            self._say(f"{job.source.location}: skipped: {error}{left}")
            self._unreadable.append(job.source.location)

    def _opened(self, job: Job) -> Scene:
        try:
            return open_scene(job.source.path, stretch=self._spec.stretch, bands=self._settings.bands)
        except BandsError:
            raise  # the choice is at fault, not the scene
        except (ValueError, OSError) as error:
            raise DamagedSceneError(str(error)) from error

    def _scan(self, job: Job, scene: Scene, shared: Write | None) -> None:
        settings, spec = self._settings, self._spec
        scale = settings.scale_of(scene, spec)
        passes = plan_passes(scene, spec, overlap=settings.overlap, scale=scale)
        tiles = sum(len(plan.grid) for plan, _ in passes)
        with ExitStack() as stack:
            journal = None
            if job.journal is not None:
                journal = stack.enter_context(
                    Journal(job.journal, self._scene_identity(job, scene, scale), resume=settings.resume)
                )
            if journal is not None and shared is None and journal.outputs == job.written():
                self._say(f"{scene.name}: done before, {', '.join(map(str, job.outputs))} unchanged")
                return
            known = 0 if journal is None else journal.tiles()
            for line in plan_lines(
                scene, spec, overlap=settings.overlap, scale=scale, score=settings.score, batch=settings.batch,
                known=known, seconds=self._seconds(tiles - known),
            ):  # fmt: skip
                self._say(line)
            try:
                tally, best = self._write(job, scene, scale, tiles, journal, shared)
            except (KeyboardInterrupt, OSError):
                if journal is not None and journal.path.exists():
                    self._say(
                        f"  {journal.tiles()} of {tiles} tiles are kept in {journal.path}; --resume goes on from there"
                    )
                raise
            for path in job.results:
                self._say(f"  {path}")
            counts = tally.counts.tolist()
            if job.picture is not None:
                save_picture(job.picture, draw(scene, best.detections, spec.classes, counts))
                self._say(f"  {job.picture}")
            if job.crops is not None:
                save_picture(job.crops, crop_sheet(scene, best.detections, spec.classes, total=best.total))
                self._say(f"  {job.crops}")
            if journal is not None and shared is None:
                journal.finish(job.written())  # also without --resume: a later scene may be interrupted

    def _write(
        self, job: Job, scene: Scene, scale: float, tiles: int, journal: Journal | None, shared: Write | None
    ) -> tuple[Tally, Best]:
        """Scan a scene into its files. The counts, and the detections that a picture shows."""
        settings, spec = self._settings, self._spec
        place = georeference_of(job.source.path)
        tally, best, began = Tally.of(len(spec.classes)), Best(), time.perf_counter()
        pictured = job.picture is not None or job.crops is not None
        known = 0 if journal is None else journal.tiles()
        with (
            open_writers(job.results, spec) as write,
            tqdm(total=tiles, unit="tile", disable=None, leave=False, smoothing=0.05) as bar,
        ):
            steps = scan(
                self._backend,
                scene,
                overlap=settings.overlap,
                scale=scale,
                score=settings.score,
                batch=settings.batch,
                readers=settings.readers,
                merge=settings.merge,
                agnostic=settings.agnostic,
                worth=settings.gate,
                journal=journal,
            )

            def told(step: Step) -> None:
                tally.add(step)
                bar.update(step.tiles)

            for portion in portions(steps, told=told):
                found = SceneDetections(
                    str(job.source.path), job.source.image_id, scene.width, scene.height, portion, place
                )
                write(found)
                if shared is not None:
                    shared(found)
                if pictured:
                    best.add(portion)
        for line in result_lines(tally, spec, known=known, seconds=time.perf_counter() - began):
            self._say(line)
        return tally, best

    def _seconds(self, tiles: int) -> float | None:
        """That so many tiles will take at most; None where they are few."""
        batch = self._settings.batch
        if tiles / batch <= MANY:
            return None
        if self._seconds_per_batch is None:
            self._seconds_per_batch = seconds_per_batch(self._backend, batch)
        return self._seconds_per_batch * tiles / batch

    def _scene_identity(self, job: Job, scene: Scene, scale: float) -> dict[str, Any]:
        state = job.source.path.stat()
        return {
            "model": self._hash,
            "scene": scene.name,
            "bytes": state.st_size,
            "changed": state.st_mtime_ns,
            "scale": scale,
            **self._settings.identity(),
        }

    def _identity(self, plan: Plan) -> dict[str, Any]:
        """What shared files depend on."""
        scenes = []
        for source in (job.source for job in plan.jobs if plan.shared):
            state = source.path.stat()
            scenes.append([source.image_id, source.location, state.st_size, state.st_mtime_ns])
        asked = {"scale": self._settings.scale, "object_size": self._settings.object_size, "gsd": self._settings.gsd}
        identity: dict[str, Any] = json.loads(
            json.dumps({"model": self._hash, "scenes": scenes, **asked, **self._settings.identity()})
        )
        return identity

    def _close(self, plan: Plan, identity: dict[str, Any]) -> None:
        """Let the journals go, all being written; with --resume they stay, and it is noted what shared files hold."""
        done = None if plan.journals is None else plan.journals / DONE
        if not self._settings.resume:
            for path in (*(job.journal for job in plan.jobs), done):
                if path is not None:
                    path.unlink(missing_ok=True)
        elif done is not None and not self._unreadable:
            outputs = hashes((*plan.shared, *(path for job in plan.jobs for path in job.outputs)))
            write_json(done, {"identity": identity, "outputs": outputs})


def _is_done(plan: Plan, identity: dict[str, Any]) -> bool:
    """Whether an earlier run wrote just this, and it is still there."""
    assert plan.journals is not None
    try:
        done = json.loads((plan.journals / DONE).read_text(encoding="utf-8"))
        outputs = (*plan.shared, *(path for job in plan.jobs for path in job.outputs))
        return bool(done["identity"] == identity and done["outputs"] == hashes(outputs))
    except (OSError, ValueError, KeyError, TypeError):
        return False
