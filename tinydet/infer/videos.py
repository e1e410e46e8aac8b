"""A video, or a live stream, from its first frame to its files."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tinydet._internal.atomic import atomic_path
from tinydet._internal.interrupt import deferred_interrupt
from tinydet.infer.annotated_video import open_video
from tinydet.infer.auto_options import MANY, seconds_per_batch
from tinydet.infer.jobs import Job
from tinydet.infer.report import video_line
from tinydet.infer.settings import Settings
from tinydet.infer.static_tiles import Stills
from tinydet.runtime.backends import Backend
from tinydet.runtime.journal import FrameBoxes, Journal
from tinydet.runtime.scan import detect
from tinydet.runtime.scenes.video import Frame, LostStreamError, Video
from tinydet.runtime.writers import SceneDetections, open_writers

LEAST = 0.001  # seconds from a frame of a video that is drawn to the next
COLUMNS = ("image_id", "frame", "seconds", "clock", "detections")


def scan_video(backend: Backend, model_hash: str, job: Job, settings: Settings, say: Callable[[str], object]) -> None:
    """Look at each frame as a scene. Its image id counts the frames of the source from that of the job on, those left
    out too.

    What each frame gave goes to a journal at once, and to the files. With `settings.resume` frames that are in the
    journal are not run again; a live stream goes on where it is now.

    Raises:
        ValueError, OSError: the source cannot be read, or breaks; of a live stream after its files were written. Or its
            annotated video would be replaced by one of the frames from now on.
        KeyboardInterrupt: again, after the files of a live stream were written: Ctrl-C is the way to end it.
    """
    with Video(job.source.location, every=settings.every, reconnect=settings.reconnect) as video, ExitStack() as stack:
        journal = None
        if job.journal is not None:
            identity = _identity(job, video, model_hash, settings)
            journal = stack.enter_context(Journal(job.journal, identity, resume=settings.resume))
        limited = {} if settings.frames is None else {"--frames": str(settings.frames)}
        if journal is not None and journal.outputs == {**job.written(), **limited}:
            say(f"{video.name}: done before, {', '.join(map(str, job.outputs))} unchanged")
            return
        goes_on = video.live and journal is not None and next(journal.frames(), None) is not None
        if goes_on and job.picture is not None and job.picture.exists():
            raise ValueError(
                f"{job.picture} shows the frames before the interruption and would be replaced; move it away"
            )
        frames = min((limit for limit in (video.frames, settings.frames) if limit), default=0)
        seconds = seconds_per_batch(backend, settings.batch) if frames > MANY else 0.0
        say(
            video_line(
                video,
                backend.spec,
                overlap=settings.overlap,
                scale=settings.scale,
                batch=settings.batch,
                frames=frames,
                seconds=seconds,
            )
        )
        stopped = _write(_Watched(backend, job, video, settings, journal), say)
        for path in job.outputs:
            if path.exists():  # there is no video of no frames
                say(f"  {path}")
        if journal is not None:
            if stopped is None:
                journal.finish({**job.written(), **limited})
            elif not settings.resume:
                journal.remove()
        if stopped is not None:
            raise stopped


class _Watched:
    """The frames of a video with what each gave, those of earlier runs first.

    Attributes:
        known: how many frames earlier runs had looked at, so far.
        stills: what is taken over from frame to frame; None where all tiles are run.
    """

    def __init__(self, backend: Backend, job: Job, video: Video, settings: Settings, journal: Journal | None) -> None:
        self.job, self.video, self.settings = job, video, settings
        self.known = 0
        self.stills = None if settings.gate is None else Stills(settings.gate)
        self.backend, self._journal = backend, journal

    def __iter__(self) -> Iterator[tuple[FrameBoxes, Frame | None]]:
        """What a frame gave, and the frame; None for those of a stream that are over."""
        earlier = iter(()) if self._journal is None else self._journal.frames()
        index, seconds = 0, 0.0
        if self.video.live:
            first = last = None
            for found in earlier:
                first, last = first or found, found
                self.known += 1
                yield found, None
            if first is not None and last is not None:  # the clock goes on from the first frame of all
                index = last.index + 1
                gone = datetime.now().astimezone() - datetime.fromisoformat(first.clock)
                seconds = max(last.seconds, gone.total_seconds())
        for frame in self.video:
            record = None if self.video.live else next(earlier, None)
            if record is None:
                clock = "" if frame.clock is None else frame.clock.isoformat(timespec="milliseconds")
                record = FrameBoxes(frame.index + index, frame.seconds + seconds, clock, self._detect(frame))
                if self._journal is not None:
                    self._journal.append_frame(record)
            elif record.index != frame.index:
                raise ValueError(
                    f"{self.video.name}: frame {frame.index} comes where frame {record.index} was; "
                    "start anew without --resume"
                )
            else:
                self.known += 1
            yield record, frame

    def _detect(self, frame: Frame) -> Any:
        settings, backend = self.settings, self.backend
        scale = settings.scale_of(frame.scene, backend.spec)
        if self.stills is not None:
            self.stills.look(frame.scene, backend.spec, overlap=settings.overlap, scale=scale)
        return detect(
            backend,
            frame.scene,
            overlap=settings.overlap,
            scale=scale,
            score=settings.score,
            batch=settings.batch,
            merge=settings.merge,
            agnostic=settings.agnostic,
            readers=1,
            worth=settings.gate,
            journal=self.stills,
        ).detections


def _write(watched: _Watched, say: Callable[[str], object]) -> KeyboardInterrupt | LostStreamError | None:
    """Write the files of a video; what ended it, if it is a stream that did not end by itself."""
    job, video, settings = watched.job, watched.video, watched.settings
    stopped: KeyboardInterrupt | LostStreamError | None = None
    count, boxes, began = 0, 0, time.perf_counter()
    total = min((limit for limit in (video.frames, settings.frames) if limit), default=None)
    with ExitStack() as stack:
        write = stack.enter_context(open_writers(job.results, watched.backend.spec))
        picture, shown = None, -LEAST
        row = stack.enter_context(_table(job.frames))
        bar = stack.enter_context(tqdm(total=total, unit="frame", disable=None, leave=False))
        try:
            for found, frame in watched:
                image_id = job.source.image_id + found.index
                width, height = (
                    (video.width, video.height) if frame is None else (frame.scene.width, frame.scene.height)
                )
                with deferred_interrupt():
                    write(SceneDetections(f"{video.name}#{found.index}", image_id, width, height, found.detections))
                    row((image_id, found.index, f"{found.seconds:.3f}", found.clock, len(found.detections)))
                    count, boxes = count + 1, boxes + len(found.detections)
                if job.picture is not None and frame is not None:
                    if picture is None:  # only now it is known how a phone was held
                        picture = stack.enter_context(open_video(job.picture, width, height))
                    shown = max(found.seconds, shown + LEAST)  # sources repeat a time now and then
                    with deferred_interrupt():
                        picture(frame.scene, found.detections, shown)
                bar.update()
                if settings.frames is not None and count >= settings.frames:
                    break
        except LostStreamError as error:
            stopped = error
        except (KeyboardInterrupt, OSError) as error:
            if not video.live or not isinstance(error, KeyboardInterrupt):
                if job.journal is not None and job.journal.exists():
                    say(f"  {count} frames are kept in {job.journal}; --resume goes on from there")
                raise
            stopped = error
    rate = (count - watched.known) / (time.perf_counter() - began)
    say(
        f"  {boxes} detections in {count} frames, {rate:.1f} frames/s; {video.dropped} frames dropped, "
        f"{video.reconnects} reconnects"
    )
    if watched.known:
        say(f"  {watched.known} frames are known from an earlier run")
    stills = watched.stills
    if stills is not None and stills.tiles:
        for tiles, reason in ((stills.plain, "show nothing of an object's size"), (stills.still, "show no motion")):
            say(f"  {tiles} of {stills.tiles} tiles that {reason} were not run ({tiles / stills.tiles:.0%})")
    return stopped


@contextmanager
def _table(path: Path | None) -> Iterator[Callable[[Sequence[object]], object]]:
    """Takes the rows of a video's frames."""
    if path is None:
        yield lambda row: None
        return
    with atomic_path(path, part=True) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        yield rows.writerow


def _identity(job: Job, video: Video, model_hash: str, settings: Settings) -> dict[str, Any]:
    """What the frames in a journal depend on."""
    state = job.source.path.stat() if job.source.path.is_file() else None
    return {
        "model": model_hash,
        "scene": video.name,
        "bytes": None if state is None else state.st_size,
        "changed": None if state is None else state.st_mtime_ns,
        "every": settings.every,
        "scale": settings.scale,
        "object_size": settings.object_size,
        "gsd": settings.gsd,
        **settings.identity(),
    }
