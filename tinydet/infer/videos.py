"""Run inference over the frames of a video or a live stream."""

from __future__ import annotations

import csv
import dataclasses
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from tinydet._internal.atomic import atomic_path
from tinydet._internal.console import plural
from tinydet._internal.interrupt import deferred_interrupt
from tinydet.infer.annotated_video import open_video
from tinydet.infer.auto_options import MANY, seconds_per_batch
from tinydet.infer.chunks import Tally
from tinydet.infer.domain_warnings import DomainWarnings
from tinydet.infer.jobs import Job
from tinydet.infer.progress import RunProgress
from tinydet.infer.report import filter_lines, found, video_line
from tinydet.infer.settings import Settings
from tinydet.infer.static_tiles import StaticTiles
from tinydet.infer.summary import RunSummary, SceneCounts, earlier_counts
from tinydet.runtime.backends import Backend
from tinydet.runtime.detections import Detections
from tinydet.runtime.journal import FrameRecord, Journal
from tinydet.runtime.options import ScanOptions
from tinydet.runtime.plan import ScanPlan, Sized, plan_scan
from tinydet.runtime.read_ahead import TileFilter
from tinydet.runtime.scan import ScanCounts, collect, scan
from tinydet.runtime.scenes.video import Frame, LostStreamError, Video
from tinydet.runtime.score_calibration import minimum_scores
from tinydet.runtime.tracking import IDENTITY, CameraMotion, Tracker, weak_score
from tinydet.runtime.writers import SceneDetections, open_writers
from tinydet.spec import ModelSpec

logger = logging.getLogger("tinydet.infer")

MIN_INTERVAL = 0.001  # seconds between two frames of an annotated video
COLUMNS = ("image_id", "frame", "seconds", "clock", "detections")


def scan_video(
    backend: Backend,
    model_hash: str,
    job: Job,
    settings: Settings,
    summary: RunSummary,
    progress: RunProgress,
    warnings: DomainWarnings,
    tile_filter: TileFilter | None,
) -> None:
    """Process each frame as a scene. Image ids count all frames of the source, starting with the id of the job.

    Each frame's detections are written to the journal and to the files immediately. With `settings.resume`, frames in
    the journal are not run again; a live stream continues with its current frame.

    Args:
        warnings: shows how the first frame differs from the training images of the model.
        tile_filter: from `settings.open_filter`.

    Raises:
        ValueError, OSError: the source cannot be read, or breaks (for a live stream, after its files were written); or
            resuming a live stream would replace its annotated video.
        KeyboardInterrupt: again, after the files of a live stream were written. Ctrl-C is the way to end a stream.
    """
    with Video(job.source.location, every=settings.every, reconnect=settings.reconnect) as video, ExitStack() as stack:
        journal = None
        if job.journal is not None:
            identity = _identity(job, video, model_hash, settings, backend.spec)
            journal = stack.enter_context(Journal(job.journal, identity, resume=settings.resume))
        limit = {} if settings.frames is None else {"--frames": str(settings.frames)}
        if journal is not None and journal.outputs == {**job.written(), **limit}:
            counts, files = earlier_counts(journal), ", ".join(map(str, job.outputs))
            progress.say(f"{video.name}: already complete, {files} unchanged: {found(counts.tally, backend.spec)}")
            summary.add_unchanged(job, counts)
            progress.end(int(counts.tally.by_class.sum()))
            return
        continues = video.live and journal is not None and next(journal.frames(), None) is not None
        if continues and job.drawing is not None and job.drawing.exists():
            raise ValueError(
                f"{job.drawing} shows the frames before the interruption and would be replaced; move it away"
            )
        frames = _Frames(backend, job, video, settings, journal, warnings, tile_filter)
        count = frames.expected or 0
        seconds = seconds_per_batch(backend, settings.options.batch) if count > MANY else 0.0
        plan = None if settings.auto_scale else frames.plan(video, settings.options)
        progress.say(video_line(video, backend.spec, plan, frames=count, seconds_per_batch=seconds))
        try:
            stopped, counts = _write(frames, summary, progress)
        except (KeyboardInterrupt, OSError):
            if journal is not None and journal.path.exists():
                count = sum(1 for _ in journal.frames())
                progress.say(f"  {plural(count, 'frame')} are kept in {journal.path}; --resume continues from there")
            raise
        for path in job.outputs:
            if path.exists():  # a video of no frames is not written
                progress.say(f"  {path}")
        if journal is not None:
            if stopped is None:
                journal.finish({**job.written(), **limit}, counts.to_json())
            elif not settings.resume:
                journal.remove()
        if stopped is not None:
            raise stopped


class _Frames:
    """The frames of a video with their detections; first those that earlier runs processed.

    Attributes:
        expected: number of frames to process; None if unknown.
        from_journal: number of frames so far whose detections came from the journal.
        counts: counts of tiles of the frames that were scanned.
        static_tiles: reuses boxes from frame to frame; None if all tiles are run.
        tracker, camera: number the objects, and estimate the motion of the camera; None if objects are not tracked.
        unlike: how the first scanned frame differs from the training images of the model; empty if it does not.
    """

    def __init__(
        self,
        backend: Backend,
        job: Job,
        video: Video,
        settings: Settings,
        journal: Journal | None,
        warnings: DomainWarnings,
        tile_filter: TileFilter | None,
    ) -> None:
        self.job, self.video, self.settings = job, video, settings
        self.expected = min((limit for limit in (video.frames, settings.frames) if limit), default=None)
        self.from_journal = 0
        self.counts = ScanCounts()
        self.static_tiles = None if settings.contrast_filter is None else StaticTiles(settings.contrast_filter)
        self.backend, self._journal, self._tile_filter = backend, journal, tile_filter
        self.tracker = Tracker(minimum_scores(backend.spec, settings.options.score)) if settings.track else None
        self.camera = CameraMotion() if settings.track else None
        self.warnings, self.unlike = warnings, ""
        self._is_first = True
        self._plans: dict[tuple[int, int, ScanOptions], ScanPlan] = {}

    def plan(self, frame: Sized, options: ScanOptions) -> ScanPlan:
        """Return the plan for a frame. Frames of one size share it, and one thread reads a frame: it is in memory."""
        key = frame.width, frame.height, options
        if key not in self._plans:
            self._plans[key] = plan_scan(frame, self.backend.spec, dataclasses.replace(options, readers=1))
        return self._plans[key]

    def __iter__(self) -> Iterator[tuple[FrameRecord, Frame | None]]:
        """Yield the record of each frame, and the frame; None for frames of a stream that earlier runs processed."""
        earlier = iter(()) if self._journal is None else self._journal.frames()
        index, seconds = 0, 0.0
        if self.video.live:
            first = last = None
            for record in earlier:
                first, last = first or record, record
                self.from_journal += 1
                yield self._tracked(record), None
            if first is not None and last is not None:  # time counts from the first frame of all runs
                index = last.index + 1
                elapsed = datetime.now().astimezone() - datetime.fromisoformat(first.clock)
                seconds = max(last.seconds, elapsed.total_seconds())
        for frame in self.video:
            stored = None if self.video.live else next(earlier, None)
            if stored is None:
                clock = "" if frame.clock is None else frame.clock.isoformat(timespec="milliseconds")
                boxes = self._detect(frame)
                motion = None if self.camera is None else self.camera.update(frame.scene, boxes.boxes)
                record = FrameRecord(frame.index + index, frame.seconds + seconds, clock, boxes, motion)
                if self._journal is not None:
                    self._journal.append_frame(record)
                yield self._tracked(record), frame
            elif stored.index != frame.index:
                raise ValueError(
                    f"{self.video.name}: expected frame {stored.index} of the journal, got frame {frame.index}; "
                    "start again without --resume"
                )
            else:
                self.from_journal += 1
                if self.camera is not None:  # for the motion of the next frame
                    self.camera.update(frame.scene, stored.detections.boxes)
                yield self._tracked(stored), frame

    def _tracked(self, record: FrameRecord) -> FrameRecord:
        """Return the record with numbered objects. The journal has those without, so a resumed run numbers alike."""
        if self.tracker is None:
            return record
        motion = IDENTITY if record.motion is None else record.motion
        tracked = self.tracker.update(record.detections, record.seconds, motion)
        return dataclasses.replace(record, detections=tracked)

    def _detect(self, frame: Frame) -> Detections:
        scene, settings = frame.scene, self.settings
        options = settings.options_for(scene, self.backend.spec)
        if self.tracker is not None:
            options = dataclasses.replace(options, score=weak_score(self.backend.spec, options))
        plan = self.plan(scene, options)
        if self._is_first:
            self._is_first, self.unlike = False, self.warnings.check(scene, plan.options.scale)
            self.warnings.show(self.unlike)
        if self.static_tiles is not None:
            self.static_tiles.start_frame(scene, plan)
        results = scan(
            self.backend,
            scene,
            plan,
            tile_filter=self._tile_filter,
            filters_coarse=settings.filters_coarse,
            journal=self.static_tiles,
        )
        result = collect(results)
        self.counts += result
        return result.detections


def _write(
    frames: _Frames, summary: RunSummary, progress: RunProgress
) -> tuple[KeyboardInterrupt | LostStreamError | None, SceneCounts]:
    """Write the files of a video, and add it to the summary.

    Returns:
        What ended a stream before its regular end, and what was found.
    """
    job, video, settings = frames.job, frames.video, frames.settings
    stopped: KeyboardInterrupt | LostStreamError | None = None
    tally = Tally.of(len(frames.backend.spec.classes), doubtful=frames.warnings.doubtful)
    count, start = 0, time.perf_counter()
    with ExitStack() as stack:
        write = stack.enter_context(open_writers(job.results, frames.backend.spec, job.formats))
        draw, shown = None, -MIN_INTERVAL
        write_row = stack.enter_context(_table(job.frames))
        progress.begin(video.name, frames.expected, "frame")
        try:
            tiles_before = 0
            for record, frame in frames:
                image_id = job.source.image_id + record.index
                size: Sized = video if frame is None else frame.scene
                boxes = record.detections
                named = SceneDetections(
                    f"{video.name}#{record.index}",
                    image_id,
                    size.width,
                    size.height,
                    boxes,
                    file_name=f"{job.source.file_name}#{record.index}",
                    frame=record.index,
                    seconds=record.seconds,
                )
                with deferred_interrupt():
                    write(named)
                    write_row((image_id, record.index, f"{record.seconds:.3f}", record.clock, len(boxes)))
                    count += 1
                    tally.add(boxes)
                if job.drawing is not None and frame is not None:
                    if draw is None:  # the first frame shows how the phone was held
                        draw = stack.enter_context(open_video(job.drawing, size.width, size.height))
                    shown = max(record.seconds, shown + MIN_INTERVAL)  # some sources repeat a timestamp
                    with deferred_interrupt():
                        draw(frame.scene, boxes, shown, record.motion)
                progress.advance(1, frames.counts.tiles - tiles_before, len(boxes))
                tiles_before = frames.counts.tiles
                if settings.frames is not None and count >= settings.frames:
                    break
        except LostStreamError as error:
            stopped = error
        except KeyboardInterrupt as error:
            if not video.live:
                raise
            stopped = error
    elapsed = time.perf_counter() - start
    tally.tiles += frames.counts
    tracks = None if frames.tracker is None else frames.tracker.counts.tolist()
    counts = SceneCounts(video.width, video.height, tally, count, frames.unlike, tracks)
    summary.add_scanned(job, counts, elapsed)
    progress.end()
    rate = (count - frames.from_journal) / elapsed
    line = f"  {found(tally, frames.backend.spec)}{_of_tracks(tracks)} in {plural(count, 'frame')}, {rate:.1f} frames/s"
    if video.live:
        line += f"; {plural(video.dropped, 'frame')} dropped, {plural(video.reconnects, 'reconnect')}"
    progress.say(line)
    if frames.camera is not None and frames.camera.failed:
        progress.say(
            f"  The motion of the camera is unknown in {plural(frames.camera.failed, 'frame')}: too few features of "
            "the ground match the frame before. There, objects may get new numbers, or the number of another object"
        )
    if frames.from_journal:
        progress.say(f"  {frames.from_journal} frames were finished by an earlier run")
    tiles = frames.static_tiles
    if tiles is not None and tiles.tiles:
        for skipped, reason in ((tiles.filtered, "anything of an object's size"), (tiles.static, "motion")):
            progress.say(
                f"  {skipped} of {tiles.tiles} tiles without {reason} were skipped ({skipped / tiles.tiles:.0%})"
            )
    if (of_filter := summary.filter_record) is not None:
        for line in filter_lines(frames.counts, of_filter):
            progress.say(line)
    return stopped, counts


def _of_tracks(tracks: list[int] | None) -> str:
    return "" if tracks is None else f" of {plural(sum(tracks), 'track')}"


@contextmanager
def _table(path: Path | None) -> Iterator[Callable[[Sequence[object]], object]]:
    """Open the table of a video's frames; yield the function that writes a row."""
    if path is None:
        yield lambda row: None
        return
    with atomic_path(path, part=True) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        yield rows.writerow


def _identity(job: Job, video: Video, model_hash: str, settings: Settings, spec: ModelSpec) -> dict[str, Any]:
    """Return what the frames in a journal depend on."""
    size, changed = job.source.state or (None, None)
    return {
        "model": model_hash,
        "scene": video.name,
        "bytes": size,
        "changed": changed,
        "every": settings.every,
        **({"track": True} if settings.track else {}),
        **settings.scale_identity(),
        **settings.identity(spec),
    }
