"""What a run has done: its scenes, files and counts, for the console and for `--summary`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

import tinydet
from tinydet._internal.atomic import write_json
from tinydet._internal.errors import reason
from tinydet._internal.interrupt import deferred_interrupt
from tinydet._internal.names import mask_secrets, printable, public_location
from tinydet.infer.chunks import Tally
from tinydet.infer.jobs import Job, RunPlan
from tinydet.runtime.backends import Backend
from tinydet.runtime.journal import Journal
from tinydet.runtime.scan import ScanCounts
from tinydet.runtime.tile_filter import FilterFile
from tinydet.spec import FilterRecord, ModelSpec

logger = logging.getLogger("tinydet.infer")

RUNNING = "running"  # status
PACKAGES = {  # distributions that read images and run models, by the module that shows that a run used them
    "cv2": ("opencv-python", "opencv-python-headless"),
    "PIL": ("pillow",),
    "rasterio": ("rasterio",),
    "av": ("av",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "trackers": ("trackers",),
    "tensorrt": ("tensorrt",),
    "tensorrt_rtx": ("tensorrt-rtx-cu13",),
}


@dataclass(frozen=True)
class SceneCounts:
    """What a scan found in an image or video. A journal keeps it, for the summary of a run that resumes.

    Attributes:
        width, height: of the scene in pixels.
        tally: counts of boxes and tiles.
        frames: number of frames of a video; None for an image.
        unlike: how it differs from the training images of the model; empty if it does not.
        tracks: number of objects of each class in a video; None if they were not tracked.
    """

    width: int
    height: int
    tally: Tally
    frames: int | None = None
    unlike: str = ""
    tracks: list[int] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return JSON values that `from_json` reads."""
        tiles = self.tally.tiles
        counts = {name: getattr(tiles, name) for name in ("tiles", "empty", "filtered", "unfamiliar", "saturated")}
        by_class = self.tally.by_class.tolist()
        tally = {"by_class": by_class, "tiles": counts, "doubtful": self.tally.doubtful}
        return {**dataclasses.asdict(self), "tally": tally}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> SceneCounts:
        """Return the counts that `to_json` described. Raise KeyError, TypeError or ValueError for other values."""
        counted = value["tally"]
        tally = Tally(np.array(counted["by_class"], np.int64), ScanCounts(**counted["tiles"]), counted["doubtful"])
        return cls(value["width"], value["height"], tally, value["frames"], value["unlike"], value["tracks"])


def earlier_counts(journal: Journal) -> SceneCounts:
    """Return what the run that completed a journal found.

    Raises:
        ValueError: another program wrote the journal.
    """
    try:
        return SceneCounts.from_json(journal.counts)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{journal.path}: damaged counts ({error!r}); start again without --resume") from error


class RunSummary:
    """What a run has done so far.

    Attributes:
        scenes: an entry of the JSON for each scene that was scanned, skipped or unchanged since an earlier run.
        counts: of each scene that was not skipped.
        skipped: for each skipped scene, its name and the reason.
        total: counts over all scenes and videos.
        images, videos, unchanged: number of images, of videos, and of those that an earlier run had completed.
        frames: number of frames of the videos.
        from_journal: number of tiles of the images that an earlier run had finished.
        warnings: about all detections of the run.
    """

    def __init__(self, spec: ModelSpec, tile_filter: FilterFile | None = None) -> None:
        """
        Args:
            tile_filter: the learned filter of the run, if it has one.
        """
        self.scenes: list[dict[str, Any]] = []
        self.counts: list[SceneCounts] = []
        self.skipped: list[str] = []
        self.total = Tally.of(len(spec.classes))
        self.images = self.videos = self.unchanged = self.frames = self.from_journal = 0
        self.warnings: list[str] = []
        self._spec, self._filter = spec, tile_filter

    @property
    def filter_record(self) -> FilterRecord | None:
        """How well the learned filter of the run keeps objects; None without one."""
        return None if self._filter is None else self._filter.record

    @property
    def complete(self) -> int:
        """Number of scenes whose files are complete."""
        return self.images + self.videos

    @property
    def outputs(self) -> list[str]:
        """Files that hold one scene only."""
        return [path for entry in self.scenes for path in entry["outputs"]]

    def add_scanned(self, job: Job, counts: SceneCounts, seconds: float, *, from_journal: int = 0) -> None:
        """Add a scene or video that was scanned.

        Args:
            seconds: duration of the scan.
            from_journal: number of tiles that an earlier run had finished.
        """
        self.from_journal += from_journal
        self._add(job, {"status": "done", **self._count(counts), "seconds": round(seconds, 3)})

    def add_unchanged(self, job: Job, counts: SceneCounts) -> None:
        """Add a scene that an earlier run completed, with the counts of that run."""
        self.unchanged += 1
        self.from_journal += counts.tally.tiles.tiles
        self._add(job, {"status": "unchanged", **self._count(counts)})

    def add_skipped(self, job: Job, why: str) -> None:
        """Add a scene that could not be read."""
        self.skipped.append(why if job.source.label in why else f"{job.source.label}: {why}")
        self._add(job, {"status": "skipped", "reason": mask_secrets(printable(why))})

    def to_json(self, plan: RunPlan, *, complete: bool) -> dict[str, Any]:
        """Return the scenes, the files that were written, and the totals.

        Args:
            complete: whether the run came to its end, where the files that all scenes share are written.
        """
        shared = [str(path) for path in (*plan.shared, plan.classes) if path is not None and complete]
        total: dict[str, Any] = {"scenes": len(plan.jobs), "done": self.complete - self.unchanged}
        total |= {"unchanged": self.unchanged, "skipped": len(self.skipped)}
        total["not_finished"] = len(plan.jobs) - len(self.scenes)
        total["tiles"] = sum(entry.get("tiles", 0) for entry in self.scenes)
        total |= {"detections": int(self.total.by_class.sum()), "by_class": self._by_class(self.total)}
        total |= {"doubtful": self.total.doubtful}
        written = {"scenes": self.scenes, "outputs": [*shared, *self.outputs], "total": total}
        if self._filter is not None:
            written["tile_filter"] = self._filter_entry(self._filter)
        return {**written, "warnings": self.warnings}

    def _filter_entry(self, file: FilterFile) -> dict[str, Any]:
        record, tiles = file.record, self.total.tiles
        return {
            "path": public_location(file.path),
            "sha256": file.sha256,
            "skipped_tiles": tiles.filtered,
            "unfamiliar_tiles": tiles.unfamiliar,
            "expected_missed": round(record.missed / max(record.objects, 1), 6),
            "missed_at_most": round(1 - record.bound, 6),
            "confidence": record.confidence,
        }

    def _count(self, counts: SceneCounts) -> dict[str, Any]:
        """Add counts to the totals. Return those of the scene as JSON values."""
        tally, tiles = counts.tally, counts.tally.tiles
        self.counts.append(counts)
        self.total.by_class += tally.by_class
        self.total.doubtful += tally.doubtful
        self.total.tiles += tiles
        entry: dict[str, Any] = {"width": counts.width, "height": counts.height}
        if counts.frames is None:
            self.images += 1
        else:
            self.videos += 1
            self.frames += counts.frames
            entry["frames"] = counts.frames
        # Of a video, the tiles of the frames that its last run scanned.
        entry |= {"tiles": tiles.tiles, "skipped_tiles": tiles.empty + tiles.filtered}
        entry |= {"unfamiliar_tiles": tiles.unfamiliar, "saturated_tiles": tiles.saturated}
        entry |= {"detections": int(tally.by_class.sum()), "by_class": self._by_class(tally)}
        if counts.tracks is not None:
            entry["tracks"] = dict(zip(self._spec.classes, counts.tracks, strict=True))
        return {**entry, "warnings": [counts.unlike] if counts.unlike else []}

    def _by_class(self, tally: Tally) -> dict[str, int]:
        return dict(zip(self._spec.classes, tally.by_class.tolist(), strict=True))

    def _add(self, job: Job, entry: dict[str, Any]) -> None:
        source = job.source
        names = {"scene": source.label, "file_name": public_location(source.file_name), "image_id": source.image_id}
        outputs = [] if entry["status"] == "skipped" else [str(path) for path in job.outputs]
        self.scenes.append({**names, **entry, "outputs": outputs})


@contextmanager
def summary_written(
    path: Path | None,
    summary: RunSummary,
    plan: RunPlan,
    backend: Backend,
    model: tuple[Path | str, str],
    args: argparse.Namespace,
) -> Iterator[None]:
    """Write the summary when the block ends, also by an error or Ctrl-C, which it states. None writes nothing.

    From the start of the block, the file says that the run has not ended, which is what a killed process leaves behind.

    Args:
        model: path of the model file, or address of a served model; and its SHA-256.

    Raises:
        OSError: the file cannot be written. After an error in the block, only a warning is logged.
    """
    if path is None:
        yield
        return
    started = datetime.now().astimezone()

    def write(status: str, error: BaseException | None = None) -> None:
        ended = datetime.now().astimezone()
        content: dict[str, Any] = {"status": status}
        if error is not None:
            content["error"] = mask_secrets(reason(error))
        content["started"] = started.isoformat(timespec="seconds")
        if status != RUNNING:
            content["ended"] = ended.isoformat(timespec="seconds")
            content["seconds"] = round((ended - started).total_seconds(), 3)
        content |= summary.to_json(plan, complete=status == "complete")
        content |= {"model": _model(*model, backend), "options": _options(args), "versions": _versions()}
        with deferred_interrupt():
            write_json(path, content)

    write(RUNNING)
    try:
        yield
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        try:
            write("interrupted" if interrupted else "failed", None if interrupted else error)
        except OSError as failure:
            logger.warning(str(failure))
        raise
    write("complete")
    logger.info(f"  {path}")


def _model(path: Path | str, sha256: str, backend: Backend) -> dict[str, Any]:
    spec = backend.spec
    return {
        "path": public_location(path),
        "sha256": sha256,
        "detector": spec.detector,
        "backbone": spec.backbone,
        "precision": spec.precision,
        "tile": spec.tile,
        "classes": list(spec.classes),
        "thresholds": list(spec.thresholds),
        "operating_point": spec.operating_point,
        "calibration": [list(line) for line in spec.calibration],
        "backend": backend.name,
    }


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options by name, with passwords masked."""

    def plain(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return public_location(value) if isinstance(value, str | Path) else value

    return {name: plain(value) for name, value in vars(args).items()}


def _versions() -> dict[str, str]:
    versions = {"tinydet": tinydet.__version__, "python": platform.python_version(), "numpy": np.__version__}
    for module, names in PACKAGES.items():
        for name in names if module in sys.modules else ():
            with contextlib.suppress(metadata.PackageNotFoundError):
                versions[name] = metadata.version(name)
    return versions
