"""Divide a run among processes that share a folder: `--part i/n` scans a share, `--join` writes the outputs.

Each process computes its share from the list of scenes, see `runtime.pieces`, and appends the records of its tiles to
journals in the shared folder, one for each piece of a scene. The file of a part says what it has scanned. The join
stitches all records by the code that a single process runs, without the model, so the outputs are the same.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinydet._internal.arguments import quoted
from tinydet._internal.atomic import write_json
from tinydet._internal.console import listed, plural
from tinydet._internal.json_files import read_json
from tinydet._internal.locks import lock_path, locked
from tinydet._internal.outputs import created_folders, is_device, remove_empty
from tinydet._internal.stores import StorePath, to_path
from tinydet.infer.jobs import Job, OutputOptions, RunPlan
from tinydet.infer.progress import RunProgress
from tinydet.infer.scenes import InferenceRun, KnownRecords, OpenScene
from tinydet.infer.settings import Settings
from tinydet.runtime.backends import Backend
from tinydet.runtime.journal import BatchRecord, Journal, OtherRunError, StoredJournal
from tinydet.runtime.pieces import Piece, Span, divide, piece_of
from tinydet.runtime.plan import ScanPlan
from tinydet.runtime.scan import scan_scenes
from tinydet.runtime.scenes import DamagedSceneError
from tinydet.runtime.scenes.pixels import KeptLimits, Limits
from tinydet.runtime.scenes.sources import Source

logger = logging.getLogger("tinydet.infer")

MOST_PARTS = 100_000
NAMED = 8  # parts with their reasons in a message
WAIT = 0.2  # seconds between two looks at a measurement of another process
RUNNING, COMPLETE = "running", "complete"
VIDEO = "a video is not divided into parts, because its frames depend on each other; scan it without --part"


@dataclass(frozen=True)
class Part:
    """One of `count` parts of a run; `number` counts from 1.

    >>> str(Part(3, 8)), Part(3, 8).file_name
    ('3/8', '3-of-8.json')
    """

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def file_name(self) -> str:
        """Name of the file that describes the part."""
        return f"{self.number}-of-{self.count}.json"


def parse_part(text: str) -> Part:
    """Parse a part, an argument type.

    >>> parse_part("3/8")
    Part(number=3, count=8)
    """
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text, re.ASCII)
    part = Part(int(found[1]), int(found[2])) if found else Part(0, 0)
    if not 1 <= part.number <= part.count <= MOST_PARTS:
        counted = f"; parts count from 1: 1/{part.count} to {part.count}/{part.count}" if part.count else ""
        raise argparse.ArgumentTypeError(
            f"expected i/n, such as 1/8 to 8/8, with n of at most {MOST_PARTS}, got {quoted(text)}{counted}"
        )
    return part


def parts_folder(outputs: OutputOptions, sources: Sequence[Source]) -> Path:
    """Return the folder that all parts share: in the folder of journals, the output folder, or next to the output file.

    Raises:
        ValueError: the output is a device, or the folder is in a store, which has no locks.
    """
    text = outputs.output or outputs.draw or outputs.crops or outputs.stac
    if outputs.journals is not None:
        folder = outputs.journals / "parts"
    elif text is None:  # outputs next to the scenes
        parents = [source.path.parent for source in sources]
        stored = next((parent for parent in parents if isinstance(parent, StorePath)), None)
        folder = (stored or Path(os.path.commonpath([path.absolute() for path in parents]))) / "detections.parts"
    else:
        path = to_path(text)
        if is_device(path):
            raise ValueError(
                f"--part and --join keep journals next to the results, and {path} is a device; name a file"
            )
        to_folder = text.endswith(("/", os.sep)) or path.is_dir() or not path.suffix
        folder = path / "parts" if to_folder else path.with_name(f"{path.stem}.parts")
    if isinstance(folder, StorePath):
        raise ValueError(
            f"{folder}: parts lock their journals, and a store has no locks; name a folder that all processes share "
            "with --journals"
        )
    return folder


def images_only(jobs: Sequence[Job]) -> tuple[list[Job], list[Job]]:
    """Return the jobs of images, and those of videos, which are not divided.

    Raises:
        ValueError: all are videos.
    """
    images = [job for job in jobs if not job.source.moving]
    videos = [job for job in jobs if job.source.moving]
    if not images:
        raise ValueError(f"{videos[0].source.label}: {VIDEO}")
    return images, videos


class PartsFolder:
    """The folder that all parts of a run share.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path, jobs: Sequence[Job], settings: Settings, backend: Backend, model_hash: str) -> None:
        """
        Args:
            jobs: of all images of the run, the same in every process.
        """
        self.path, self._jobs = path, jobs
        self._settings = {"model": model_hash, **settings.scale_identity(), **settings.identity(backend.spec)}
        self._settings = json.loads(json.dumps(self._settings))
        self._backend = backend.name
        self._look = {"stretch": backend.spec.stretch, "bands": settings.bands}
        self._states = [job.source.state for job in jobs]
        self._shares: dict[int, list[list[Span]]] = {}

    def shares(self, count: int) -> list[list[Span]]:
        """Return the spans of scenes of each of `count` parts."""
        if count not in self._shares:
            self._shares[count] = divide([state[0] if state else 1 for state in self._states], count)
        return self._shares[count]

    def description(self, part: Part) -> dict[str, Any]:
        """Return everything that the results of a part depend on, as JSON values."""
        scenes = [
            [scene_key(self._jobs[span.scene]), self._states[span.scene], span.start, span.stop]
            for span in self.shares(part.count)[part.number - 1]
        ]
        described: dict[str, Any] = json.loads(json.dumps({"settings": self._settings, "scenes": scenes}))
        return described

    def journal(self, job: Job, piece: Piece) -> Path:
        """Return the journal of a piece of a scene."""
        return self.path / f"{_file_stem(job)}.{piece.start}-{piece.stop}.journal"

    def limits(self, job: Job) -> KeptLimits:
        """Return how the limits of a scene's stretch are found: one process measures them, the others read them."""
        identity = json.loads(json.dumps({"scene": scene_key(job), "state": job.source.state, **self._look}))
        return _StoredLimits(self.path / f"{_file_stem(job)}.limits.json", identity)

    @property
    def weight(self) -> int:
        """Bytes of all files."""
        return sum(state[0] for state in self._states if state)

    def store_limits(self, job: Job, limits: Limits) -> None:
        """Keep limits that another process has measured."""
        self.limits(job)(lambda: limits)

    def failures(self) -> dict[str, str]:
        """Return why scenes could not be read, by `scene_key`, as the workers of a cluster found."""
        return {key: why for content in self.stored().values() for key, why in content.get("failures", {}).items()}

    def unfinished(self, count: int) -> tuple[int, list[Part]]:
        """Return the number of parts, and those that are not complete or stale.

        Args:
            count: number of parts of a new run; one that continues has that of the stored parts.
        """
        stored = self.stored()
        count = next(iter(stored)).count if stored else count
        parts = [Part(number, count) for number in range(1, count + 1)]
        return count, [part for part in parts if self._why_not(part, stored.get(part))]

    @contextmanager
    def claimed(self, name: str) -> Iterator[None]:
        """Lock a part, or the whole run, against other processes for the duration of the block.

        Raises:
            OSError: another process has locked it.
        """
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(lock_path(self.path / name)))
            except BlockingIOError as error:
                what = "this run is" if name == "run" else f"part {name.removesuffix('.json').replace('-of-', '/')} is"
                raise OSError(f"{what} being run by another process ({self.path}); wait for it, or stop it") from error
            yield

    def remove(self) -> None:
        """Delete the files of all parts, and the folder if nothing else is in it."""
        for pattern in ("*-of-*.json", "*.journal", "*.limits.json"):
            for path in self.path.glob(pattern):
                path.unlink(missing_ok=True)
        remove_empty([self.path])

    def write(self, part: Part, status: str, more: Mapping[str, Any]) -> None:
        """Write the file of a part."""
        content = {"status": status, "backend": self._backend, **self.description(part), **more}
        write_json(self.path / part.file_name, content, indent=None)

    def stored(self) -> dict[Part, dict[str, Any]]:
        """Read the files of all parts. A file that another program wrote is left out."""
        found = {}
        for path in self.path.glob("*-of-*.json") if self.path.is_dir() else ():
            numbers = re.fullmatch(r"(\d{1,6})-of-(\d{1,6})\.json", path.name)
            content = read_json(path) if numbers else None
            if numbers and isinstance(content, dict) and isinstance(content.get("settings"), dict):
                found[Part(int(numbers[1]), int(numbers[2]))] = content
        return found

    def check_others(self, part: Part) -> None:
        """Check that the other parts in the folder belong to the same run.

        Raises:
            ValueError: they were run with other settings, or of another number of parts.
        """
        warned = False
        for other, content in sorted(self.stored().items(), key=lambda item: str(item[0])):
            if other == part:
                continue
            what = ""
            if other.count != part.count:
                what = f"belongs to a run of {other.count} parts, not {part.count}; use the same number"
            elif different := self._different(content):
                what = f"was run with other settings ({different}); use the same ones"
            if what:
                raise ValueError(f"part {other} in {self.path} {what}, or delete the folder to start again")
            if (name := content.get("backend")) != self._backend and not warned:
                logger.warning(f"part {other} ran with {name}, not {self._backend}; last digits of scores may differ")
                warned = True

    def check_all(self) -> int:
        """Check that all parts are complete and belong to this run; return their number.

        Raises:
            ValueError: a part is missing, interrupted or stale. Names all such parts.
        """
        stored = self.stored()
        if not stored:
            raise ValueError(
                f"{self.path} has no parts to join; run the same command with --part 1/n, --part 2/n ... in place of "
                "--join first, or name the outputs as the parts did"
            )
        counts = sorted({part.count for part in stored})
        if len(counts) > 1:
            numbers = listed([str(count) for count in counts])
            raise ValueError(
                f"{self.path} has parts of runs of {numbers} parts; delete the files *-of-n.json of all but one n"
            )
        parts = [Part(number, counts[0]) for number in range(1, counts[0] + 1)]
        settings = {self._different(content) for content in stored.values()}
        if len(settings) == 1 and (different := settings.pop()):
            raise ValueError(
                f"all parts in {self.path} were run with other settings ({different}); join with the same ones, or "
                "delete the folder and run all parts again"
            )
        reasons = {part: reason for part in parts if (reason := self._why_not(part, stored.get(part)))}
        if reasons:
            raise ValueError(_incomplete(self.path, reasons))
        return counts[0]

    def _why_not(self, part: Part, content: dict[str, Any] | None) -> str:
        """Say why a part cannot be joined; an empty text if it can."""
        if content is None:
            return "it was not run"
        if different := self._different(content):
            return f"it was run with other settings ({different})"
        if not {"scenes", "status"} <= set(content):
            return "its file is damaged"
        expected = {scene[0]: scene[1:] for scene in self.description(part)["scenes"]}
        known = {scene[0]: scene[1:] for scene in content["scenes"]}
        changed = [key for key in {**known, **expected} if known.get(key) != expected.get(key)]
        if changed:
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            return f"its scenes have changed since: {changed[0].partition(' ')[2]}{more}"
        if content["status"] != COMPLETE:
            return "it is still running or was interrupted"
        for name, size in content.get("journals", {}).items():
            path = self.path / name
            if not path.is_file() or path.stat().st_size != size:
                return f"its journal {name} is {'not complete' if path.is_file() else 'missing'}"
        return ""

    def _different(self, content: Mapping[str, Any]) -> str:
        """List the settings of a part that differ from those of this run."""
        written = content["settings"]
        keys = sorted(key for key in {**written, **self._settings} if written.get(key) != self._settings.get(key))
        return ", ".join(f"{key} was {_short(written.get(key))}" for key in keys)


class PartRun(InferenceRun):
    """Scans the share of one part, and writes journals in place of outputs."""

    def __init__(
        self, backend: Backend, model_hash: str, settings: Settings, part: Part, folder: Path, plan: RunPlan
    ) -> None:
        super().__init__(backend, model_hash, dataclasses.replace(settings, resume=True))
        self._part, self._plan = part, plan
        self._jobs, self._videos = images_only(plan.jobs)
        self._folder = PartsFolder(folder, self._jobs, settings, backend, model_hash)
        self._spans = {self._jobs[span.scene]: span for span in self._folder.shares(part.count)[part.number - 1]}
        self._journals: dict[str, int] = {}

    def run_part(self) -> list[str]:
        """Scan the tiles of the part that have no record yet.

        Returns:
            For each skipped scene, its name and the reason.

        Raises:
            ValueError, OSError: as `InferenceRun.run`; other parts were run with other settings; another process runs
                the same part.
        """
        part, folder = self._part, self._folder
        for job in self._videos[:NAMED]:
            logger.warning(f"{job.source.label} is left out: {VIDEO}")
        with created_folders([folder.path]), folder.claimed(part.file_name):
            folder.check_others(part)
            folder.write(part, RUNNING, {})
            try:
                self._scan_share()
            except (KeyboardInterrupt, OSError, ValueError):
                logger.info(f"  finished tiles of part {part} are kept in {folder.path}; the same command continues")
                raise
            finally:
                self._warn_of_skipped(len(self._spans))
            folder.write(part, COMPLETE, {"journals": self._journals, "skipped": self.summary.skipped})
        return self.summary.skipped

    def _scan_share(self) -> None:
        jobs, part = list(self._spans), self._part
        tiles = known = 0
        with RunProgress(len(jobs), verbose=self._settings.verbose) as progress:
            scans = scan_scenes(
                self._backend,
                jobs,
                lambda job: self._open(job, self._plan),
                self._settings.options,
            )
            with closing(scans):
                for job, results in scans:
                    with self._skipping(job, self._plan, progress):
                        scan = results.scan
                        assert isinstance(scan, OpenScene)
                        assert scan.piece is not None
                        self._warnings.show(scan.unlike)
                        progress.begin(scan.scene.name, len(scan.piece), "tile", known=scan.from_journal)
                        try:
                            for result in results:
                                progress.advance(result.tiles, result.tiles, len(result.detections))
                                tiles += result.tiles
                        except DamagedSceneError as error:
                            if isinstance(scan.journal, Journal):
                                scan.journal.fail(str(error))
                                self._note(scan.journal)
                            raise
                        known += scan.from_journal
                        if isinstance(scan.journal, Journal):
                            if scan.journal.outputs is None:
                                scan.journal.finish({}, {"unlike": scan.unlike})
                            self._note(scan.journal)
                        progress.end()
            seconds = progress.seconds
        before = f", {known} of them by an earlier run" if known else ""
        took = f" in {seconds:.1f} s" if seconds >= 1 else ""
        logger.info(
            f"part {part}: {plural(tiles, 'tile')} of {plural(len(jobs), 'scene')}{before}{took}; when all parts are "
            "complete, run the same command with --join in place of --part"
        )

    def _note(self, journal: Journal) -> None:
        self._journals[journal.path.name] = journal.path.stat().st_size

    def _records(self, job: Job, plan: ScanPlan, identity: dict[str, Any], stack: ExitStack) -> KnownRecords:
        piece = piece_of(self._spans[job], plan)
        if not len(piece):
            return KnownRecords(piece=piece, unlike="")
        path, identity = self._folder.journal(job, piece), {**identity, "piece": [piece.start, piece.stop]}
        try:
            journal = Journal(path, identity, resume=True)
        except OtherRunError:
            logger.info(
                f"{job.source.label}: the scene or settings have changed since part {self._part}; scanning it again"
            )
            journal = Journal(path, identity, resume=False)
        stack.enter_context(journal)
        unlike = None if piece.start == 0 else ""  # one part looks at the scene
        return KnownRecords(journal, journal.tiles(), piece, unlike)

    def _limits(self, job: Job) -> KeptLimits:
        return self._folder.limits(job)


class JoinRun(InferenceRun):
    """Writes the outputs of a run from the records of all parts, without the model."""

    def __init__(self, backend: Backend, model_hash: str, settings: Settings, folder: Path, plan: RunPlan) -> None:
        super().__init__(backend, model_hash, dataclasses.replace(settings, resume=False))
        images, self._videos = images_only(plan.jobs)
        self._folder = PartsFolder(folder, images, settings, backend, model_hash)
        self._images = images
        self._plan = dataclasses.replace(plan, jobs=[dataclasses.replace(job, journal=None) for job in images])
        self._spans: dict[str, list[tuple[Part, Span]]] = {}
        self._failures: dict[str, str] = {}

    def run_join(self, *, keep: bool = True) -> list[str]:
        """Stitch the records of all parts to the outputs.

        Args:
            keep: the journals of the parts.

        Returns:
            For each skipped scene, its name and the reason.

        Raises:
            ValueError, OSError: a part is missing, interrupted or stale; or as `InferenceRun.run`.
        """
        count = self._folder.check_all()
        self._failures = self._folder.failures()
        for number, share in enumerate(self._folder.shares(count), 1):
            for span in share:
                self._spans.setdefault(scene_key(self._images[span.scene]), []).append((Part(number, count), span))
        for job in self._videos:
            self.summary.add_skipped(job, VIDEO)
        skipped = self.run(self._plan)
        if keep:
            logger.info(f"  {self._folder.path} keeps the journals of the parts; delete it when you no longer need it")
        else:
            self._folder.remove()
        return skipped

    def _records(self, job: Job, plan: ScanPlan, identity: dict[str, Any], stack: ExitStack) -> KnownRecords:
        journals = []
        done = np.zeros(plan.tiles, np.bool_)
        before = np.cumsum([0, *(len(tiling.grid) for tiling in plan.passes)])
        for part, span in self._spans[scene_key(job)]:
            piece = piece_of(span, plan)
            if not len(piece):
                continue
            path = self._folder.journal(job, piece)
            journal = StoredJournal(path, {**identity, "piece": [piece.start, piece.stop]})
            for index in range(len(plan.passes)):
                for record in journal.records(index):
                    done[before[index] + record.finished] = True
            left = len(piece) - int(done[piece.start : piece.stop].sum())
            if left and (why := journal.failure or self._failures.get(scene_key(job))):
                raise DamagedSceneError(why)
            if left:
                raise ValueError(
                    f"{job.source.label}: {left} of its tiles have no record, because the scene could not be read when "
                    f"part {part} was run. Run the same command with --part {part} again"
                )
            journals.append(journal)
        return KnownRecords(_Joined(journals), plan.tiles, unlike=str(journals[0].counts.get("unlike", "")))

    def _limits(self, job: Job) -> KeptLimits:
        return self._folder.limits(job)


class _Joined:
    """The records of all pieces of a scene, in the order of its tiles."""

    def __init__(self, journals: Sequence[StoredJournal]) -> None:
        self._journals = journals

    def records(self, pass_index: int = 0) -> Iterator[BatchRecord]:
        for journal in self._journals:
            yield from journal.records(pass_index)

    def append(self, record: BatchRecord) -> None:
        raise AssertionError("all tiles have a record")


class _StoredLimits:
    """Limits that one process measures and writes to a file, from which the others read them."""

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self._path, self._identity = path, identity

    def __call__(self, measure: Any) -> Limits:
        while True:
            if (limits := self._read()) is not None:
                return limits
            try:
                with locked(lock_path(self._path)):
                    limits = self._read()
                    if limits is None:
                        limits = measure()
                        write_json(self._path, {**self._identity, "low": limits.low, "high": limits.high})
                    return limits
            except BlockingIOError:  # another process measures them
                time.sleep(WAIT)

    def _read(self) -> Limits | None:
        try:
            content = read_json(self._path)
            if {key: content[key] for key in self._identity} == self._identity:
                return Limits(tuple(map(float, content["low"])), tuple(map(float, content["high"])))
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return None


def scene_key(job: Job) -> str:
    """Return what identifies a scene in all processes, which may see the shared folder at other paths."""
    source = job.source
    return f"{source.image_id} {source.part_name(source.file_name)}"


def _file_stem(job: Job) -> str:
    return f"{job.source.name}.{hashlib.sha256(os.fsencode(scene_key(job))).hexdigest()[:8]}"


def _incomplete(folder: Path, reasons: Mapping[Part, str]) -> str:
    """Describe the parts that cannot be joined."""
    count = next(iter(reasons)).count
    lines = [f"part {part}: {reason}" for part, reason in list(reasons.items())[:NAMED]]
    if more := len(list(reasons)[NAMED:]):
        lines.append(f"and {plural(more, 'more part')}")
    numbers = ",".join(str(part.number) for part in reasons)
    return (
        f"{folder} has {count - len(reasons)} of {count} parts; {'; '.join(lines)}. Run the same command with --part "
        f"i/{count} for i = {numbers}"
    )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 40 else f"{text[:37]}..."
