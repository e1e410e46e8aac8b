"""A run over many scenes: each is scanned, told about, written, and done before where an earlier run did it."""

from __future__ import annotations

import csv
import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tinydet._atomic import atomic_path
from tinydet.runtime.backends import Backend
from tinydet.runtime.choosing import choose_scale, expected_memory, object_pixels, seconds_per_batch
from tinydet.runtime.coarse import plan_coarse
from tinydet.runtime.detections import Detections
from tinydet.runtime.drawing import draw, save_picture
from tinydet.runtime.gate import Gate
from tinydet.runtime.georeference import georeference_of
from tinydet.runtime.jobs import Job, hashes
from tinydet.runtime.journal import Journal
from tinydet.runtime.pipeline import SceneResult, detect, plan_passes
from tinydet.runtime.scene import Scene, open_scene
from tinydet.runtime.stitch import Merge
from tinydet.runtime.video import Frame, Video
from tinydet.runtime.writers import SceneDetections, write_scenes

MANY = 16  # batches of a scene for which it is worth a batch to say how long it will take


@dataclass(frozen=True)
class Settings:
    """How scenes are scanned.

    Attributes:
        scale: resize factor; None for that of each scene by `object_size`.
        object_size: side of a typical object, see `choosing.object_pixels`.
        gsd: metres for each pixel; None for what a scene says.
        gate: which tiles are worth running; None for all.
        bands: of the scenes; None for those that call themselves red, green and blue.
        output: file of all scenes, its format by its suffix; None where each scene has its own COCO results.
        resume: go on from journals, and keep them.
        every, frames, reconnect: of a video, see `Video`; `frames` ends it.
        merge, agnostic: how the tiles' boxes become the scene's, see `pipeline.scan`.
    """

    overlap: int
    score: float
    batch: int
    readers: int
    scale: float | None = 1.0
    object_size: str = ""
    gsd: float | None = None
    gate: Gate | None = None
    bands: tuple[int, ...] | None = None
    output: Path | None = None
    resume: bool = False
    every: int = 1
    frames: int | None = None
    reconnect: float = 30.0
    merge: Merge = "seam"
    agnostic: bool = False


class Survey:
    """What is open and what was found. `finish` is called after the last scene."""

    def __init__(self, backend: Backend, model_hash: str, settings: Settings, say: Callable[[str], object]) -> None:
        """
        Args:
            model_hash: SHA-256 of the model file; a journal belongs to one model.
            say: takes lines for people.
        """
        self._backend, self._hash, self._settings, self._say = backend, model_hash, settings, say
        self._spec = backend.spec
        self._found: list[SceneDetections] = []
        self._journals: list[tuple[Journal, Job]] = []
        self._seconds_per_batch: float | None = None

    def scan_scene(self, job: Job) -> None:
        with open_scene(job.source.path, stretch=self._spec.stretch, bands=self._settings.bands) as scene:
            scale = self._scale(scene)
            overlap = self._settings.overlap
            tiles = sum(len(plan.grid) for plan, _ in plan_passes(scene, self._spec, overlap=overlap, scale=scale))
            journal = self._journal(job, scene, scale)
            known = 0 if journal is None else journal.tiles()
            done = journal is not None and journal.outputs is not None and journal.outputs == hashes(job.outputs)
            if done and (job.results is not None or self._settings.output is None):
                self._say(f"{scene.name}: done before, {', '.join(map(str, job.outputs))} unchanged")
                return
            self._print_plan(scene, scale, known, tiles)
            try:
                with tqdm(total=tiles, unit="tile", disable=None, leave=False, smoothing=0.05) as bar:
                    result = detect(
                        self._backend,
                        scene,
                        overlap=overlap,
                        scale=scale,
                        score=self._settings.score,
                        batch=self._settings.batch,
                        readers=self._settings.readers,
                        merge=self._settings.merge,
                        agnostic=self._settings.agnostic,
                        worth=self._settings.gate,
                        journal=journal,
                        progress=bar.update,
                    )
            except KeyboardInterrupt:
                if journal is not None and journal.path.exists():
                    self._say(
                        f"  {journal.tiles()} of {tiles} tiles are kept in {journal.path}; --resume goes on from there"
                    )
                raise
            self._print_result(result, known)
            found = SceneDetections(
                str(job.source.path),
                job.source.image_id,
                scene.width,
                scene.height,
                result.detections,
                georeference_of(job.source.path),
            )
            self._found.append(found)
            if done:
                return
            if job.results is not None:
                write_scenes(job.results, [found], self._spec)
                self._say(f"  {job.results}")
            if job.picture is not None:
                save_picture(job.picture, draw(scene, result.detections, self._spec.classes))
                self._say(f"  {job.picture}")
        if self._settings.output is None:
            self._close(job)

    def scan_video(self, job: Job) -> None:
        """Each frame as a scene. Its image id counts the frames of the source, those left out too."""
        settings, stopped = self._settings, False
        found: list[SceneDetections] = []
        rows: list[tuple[object, ...]] = []
        with Video(job.source.location, every=settings.every, reconnect=settings.reconnect) as video:
            self._say(
                f"{video.name}: {video.width}x{video.height}, {float(video.rate):.4g} frames/s, "
                f"{video.frames or 'unknown number of'} frames to look at{', live' if video.live else ''}"
            )
            total = min(video.frames or settings.frames or 0, settings.frames or video.frames or 0) or None
            began = time.perf_counter()
            try:
                with tqdm(total=total, unit="frame", disable=None, leave=False) as bar:
                    for frame in video:
                        image_id = job.source.image_id + frame.index
                        seen = self._of_frame(frame)
                        found.append(
                            SceneDetections(f"{video.name}#{frame.index}", image_id, video.width, video.height, seen)
                        )
                        clock = "" if frame.clock is None else frame.clock.isoformat(timespec="milliseconds")
                        rows.append((image_id, frame.index, f"{frame.seconds:.3f}", clock, len(seen)))
                        bar.update()
                        if settings.frames is not None and len(rows) >= settings.frames:
                            break
            except KeyboardInterrupt:  # the way to end a stream: what was found is written first
                stopped = True
            rate = len(rows) / (time.perf_counter() - began)
            self._say(
                f"  {sum(len(one.detections) for one in found)} detections in {len(rows)} frames, {rate:.1f} frames/s; "
                f"{video.dropped} frames dropped, {video.reconnects} reconnects"
            )
        target = job.results or settings.output
        assert target is not None  # `plan_jobs` refuses to draw a video
        write_scenes(target, found, self._spec)
        times = target.with_name(f"{target.stem}.frames.csv")
        with atomic_path(times) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("image_id", "frame", "seconds", "clock", "detections"), *rows])
        self._say(f"  {target}\n  {times}")
        if stopped:
            raise KeyboardInterrupt

    def _of_frame(self, frame: Frame) -> Detections:
        settings = self._settings
        return detect(
            self._backend,
            frame.scene,
            overlap=settings.overlap,
            scale=self._scale(frame.scene),
            score=settings.score,
            batch=settings.batch,
            merge=settings.merge,
            agnostic=settings.agnostic,
            readers=1,
            worth=settings.gate,
        ).detections

    def finish(self) -> None:
        """Write the file of all scenes, unless it is there already, and let the journals go or keep them as done."""
        output: Path | None = self._settings.output
        if output is None or not self._found:
            return
        current = [
            journal.outputs is not None and journal.outputs == hashes(job.outputs) for journal, job in self._journals
        ]
        if current and all(current):
            self._say(f"  {output} unchanged")
        else:
            write_scenes(output, self._found, self._spec)
            self._say(f"  {output}")
        for _, job in list(self._journals):
            self._close(job)

    def _close(self, job: Job) -> None:
        """Let the journal of a scene go; with --resume it stays, and says what was written."""
        for entry in [entry for entry in self._journals if entry[1] is job]:
            self._journals.remove(entry)
            journal, written = entry[0], hashes(job.outputs)
            if not self._settings.resume:
                journal.remove()
            elif written is not None and written != journal.outputs:
                journal.finish(written)
            journal.close()

    def _journal(self, job: Job, scene: Scene, scale: float) -> Journal | None:
        if job.journal is None:
            return None
        state = job.source.path.stat()
        settings, gate = self._settings, self._settings.gate
        identity = {
            "model": self._hash,
            "scene": scene.name,
            "bytes": state.st_size,
            "changed": state.st_mtime_ns,
            "image_id": job.source.image_id,
            "bands": self._settings.bands,
            "overlap": settings.overlap,
            "scale": scale,
            "score": settings.score,
            "merge": settings.merge,
            "agnostic": settings.agnostic,
            "skip": None if gate is None else dataclasses.asdict(gate),
        }
        journal = Journal(job.journal, identity, resume=self._settings.resume)
        self._journals.append((journal, job))
        return journal

    def _scale(self, scene: Scene) -> float:
        scale = self._settings.scale
        if scale is None:
            gsd = self._settings.gsd if self._settings.gsd is not None else scene.gsd
            scale = choose_scale(self._spec, object_pixels(self._settings.object_size, gsd, scene.name))
        if self._settings.gate is not None:
            self._settings.gate.check(self._spec.tile, scale)
        return scale

    def _print_plan(self, scene: Scene, scale: float, known: int, tiles: int) -> None:
        settings, spec = self._settings, self._spec
        passes = plan_passes(scene, spec, overlap=settings.overlap, scale=scale)
        plan, _ = passes[-1]
        grid = plan.grid
        scaled = "" if plan.scale == 1 else f" at scale {plan.scale:.4g}"
        batches = sum(-(-len(one.grid) // settings.batch) for one, _ in passes)
        eta = ""
        if (tiles - known) / settings.batch > MANY:
            if self._seconds_per_batch is None:
                self._seconds_per_batch = seconds_per_batch(self._backend, settings.batch)
            eta = f", {duration(self._seconds_per_batch * (tiles - known) / settings.batch)} at most"
        self._say(
            f"{scene.name}: {scene.width}x{scene.height}{scaled}, {grid.columns}x{grid.rows} = {len(grid)} tiles of "
            f"{plan.tile}, overlap {settings.overlap}, {batches} batches of {settings.batch}, about "
            f"{expected_memory(scene, spec, settings.batch) / 2**20:.0f} MiB{eta}"
        )
        if len(passes) > 1:
            coarse, least = passes[0]
            self._say(
                f"  before, {len(coarse.grid)} tiles at scale {coarse.scale:.3g}, for objects above {least:.0f} pixels"
            )
        if known:
            self._say(f"  {known} of {tiles} tiles are known from an earlier run")
        if settings.score < spec.score_floor:
            self._say(f"  The model itself leaves out what scores below {spec.score_floor}")
        if warning := plan_coarse(spec, grid, overlap=settings.overlap, scale=scale).warning:
            self._say(f"  {warning[0].upper()}{warning[1:]}")

    def _print_result(self, result: SceneResult, known: int) -> None:
        spec, labels = self._spec, result.detections.labels
        counts = np.bincount(labels, minlength=len(spec.classes)).tolist()
        classes = ", ".join(f"{name} {count}" for name, count in zip(spec.classes, counts, strict=True))
        run = result.tiles - known
        self._say(
            f"  {len(labels)} detections ({classes}) in {result.tiles} tiles, {result.seconds:.1f} s, "
            f"{run / result.seconds:.1f} tiles/s; {result.saturated or 'no'} tiles saturated"
        )
        for count, reason in ((result.empty, "without data"), (result.plain, "that show nothing of an object's size")):
            if count:
                self._say(f"  {count} tiles {reason} were passed over ({count / result.tiles:.0%})")
        if result.saturated:
            self._say(
                f"  A saturated tile has more boxes than the model's {spec.max_detections} slots; the weakest are "
                f"lost. Raise --score, or use smaller tiles: python export/to_onnx.py model.pth --tile {spec.tile // 2}"
            )


def duration(seconds: float) -> str:
    """In the unit that a person would take.

    >>> duration(42), duration(300), duration(9000)
    ('42 s', '5 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
