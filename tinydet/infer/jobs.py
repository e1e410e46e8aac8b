"""What becomes of each scene: which files are written, known to be good before any work is done."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tinydet.infer.annotated_video import check_video_path
from tinydet.infer.drawing import check_picture_path
from tinydet.runtime.scenes.georeference import georeference_of
from tinydet.runtime.scenes.sources import Source, is_stream
from tinydet.runtime.writers import FORMATS, check_output, format_of, is_device, nowhere_on_earth, paths_of

MARK = ".detections"  # in the names of what is written beside a scene; `find_sources` passes over it


@dataclass(frozen=True)
class Wanted:
    """What a user asks for. Where nothing is named, results and a picture lie beside each scene.

    Attributes:
        output: a file of all scenes, or a folder (it exists, or its name ends with a slash) for a file each.
        formats: keys of `FORMATS`; None for that of `output`'s suffix, else COCO results.
        draw, crops: a picture, and a sheet of crops; of several scenes a folder.
    """

    output: str | None = None
    formats: tuple[str, ...] | None = None
    draw: str | None = None
    crops: str | None = None


@dataclass(frozen=True)
class Job:
    """One scene and what becomes of it.

    Attributes:
        source: the scene.
        results: files of detections for it alone.
        picture: to be drawn, of a video another video; None where it is not wanted.
        crops: the sheet of crops; None where it is not wanted.
        journal: what was found so far; None where outputs go to a device.
    """

    source: Source
    results: tuple[Path, ...]
    picture: Path | None
    crops: Path | None
    journal: Path | None

    @property
    def frames(self) -> Path | None:
        """The table of a video's frames."""
        if not self.source.moving or not self.results or is_device(self.results[0]):
            return None
        return self.results[0].with_name(f"{self.results[0].stem}.frames.csv")

    @property
    def outputs(self) -> tuple[Path, ...]:
        """All files that are of this scene alone."""
        return (*self.results, *(path for path in (self.picture, self.crops, self.frames) if path is not None))

    def written(self) -> dict[str, str]:
        """What its files hold now, for its journal: a scene is done where that is as it was."""
        return {**(hashes(self.outputs) or {}), "--image-id": str(self.source.image_id)}


@dataclass(frozen=True)
class Plan:
    """All jobs, and the files of all their scenes together.

    Attributes:
        shared: empty where each scene has files of its own.
        journals: the folder of what is known of a run with shared files; None where there are none, or they go to a
            device.
    """

    jobs: list[Job]
    shared: tuple[Path, ...] = ()
    journals: Path | None = None


def plan_jobs(sources: Sequence[Source], wanted: Wanted, inputs: Sequence[Path] = ()) -> Plan:
    """A job for each scene.

    Args:
        inputs: what else the run reads, which it must not overwrite.

    Raises:
        ValueError, OSError: a place that cannot be written, would be written twice, or is read; a format that cannot
            hold what the scenes give.
    """
    several = len(sources) > 1
    output = None if wanted.output is None else Path(wanted.output)
    folder = output if wanted.output is not None and _is_folder(wanted.output) else None
    for flag, path in (("--draw", wanted.draw), ("--crops", wanted.crops)):
        if several and path is not None and not _is_folder(path):
            raise ValueError(
                f"{flag} names a folder where there are several scenes (with / at its end it is made), got {path}"
            )
    shared: tuple[Path, ...] = ()
    if output is not None and folder is None and several:
        if any(source.moving for source in sources):
            raise ValueError(
                f"{output} cannot hold all scenes: of a video each frame is an image of its own; name a folder for a "
                f"file each, --output {output.with_suffix('')}/"
            )
        shared = paths_of(output, wanted.formats)
    jobs = _jobs(sources, wanted, folder, None if shared else output)
    targets = [path for job in jobs for path in job.outputs] + list(shared)
    named = [text for text in (wanted.output, wanted.draw, wanted.crops) if text is not None and _is_folder(text)]
    _check_targets(targets, sources, set(map(Path, named)), inputs)
    _check_formats(shared, sources)
    for job in jobs:
        _check_formats(job.results, [job.source])
        if job.picture is not None:
            (check_video_path if job.source.moving else check_picture_path)(job.picture)
        if job.crops is not None:
            check_picture_path(job.crops)
    journals = None
    if shared and not any(map(is_device, shared)):
        journals = shared[0].with_name(f"{shared[0].stem}.journals")
    return Plan([_in_folder(job, journals) for job in jobs] if shared else jobs, shared, journals)


def hashes(paths: Sequence[Path]) -> dict[str, str] | None:
    """SHA-256 of each file by its name; None where one is missing."""
    if not all(path.is_file() for path in paths):
        return None
    return {str(path): hash_file(path) for path in paths}


def hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _is_folder(text: str) -> bool:
    return text.endswith(("/", os.sep)) or Path(text).is_dir()


def _jobs(sources: Sequence[Source], wanted: Wanted, folder: Path | None, output: Path | None) -> list[Job]:
    """Args:
    folder: for results, one file a scene and format.
    output: of the only scene.
    """
    nothing = wanted.output is None and wanted.draw is None and wanted.crops is None
    beside = nothing or (wanted.output is None and wanted.formats is not None)
    suffixes = [FORMATS[kind].suffix for kind in wanted.formats or ("coco",)]
    names = _names(sources, lambda source: _place(source) if beside else Path())
    jobs = []
    for source, name in zip(sources, names, strict=True):
        results: tuple[Path, ...] = ()
        picture = _of_scene(wanted.draw, f"{name}{MARK}{'.mp4' if source.moving else '.jpg'}")
        crops = _of_scene(wanted.crops, f"{name}{MARK}.crops.jpg")
        if source.moving and crops is not None:
            if len(sources) == 1:
                raise ValueError(f"--crops shows one picture, and {source.location} has frames; leave it out")
            if wanted.output is None and wanted.draw is None and not beside:
                raise ValueError(
                    f"--crops shows one picture, and {source.location} has frames, of which nothing would be written; "
                    "leave it out, or name --output or --draw too"
                )
            crops = None
        if folder is not None:
            results = tuple(folder / f"{name}{MARK}{suffix}" for suffix in suffixes)
        elif output is not None:
            results = paths_of(output, wanted.formats)
        elif beside:
            place = _place(source)
            results = tuple(place / f"{name}{MARK}{suffix}" for suffix in suffixes)
            if nothing and not (source.moving and source.live):  # a stream has no end, and the video would have none
                picture = place / f"{name}{MARK}{'.mp4' if source.moving else '.jpg'}"
            if not os.access(place, os.W_OK):
                raise PermissionError(f"cannot write beside {source.location}; name --output FILE (and --draw FILE)")
        written = (*results, *(path for path in (picture, crops) if path is not None))
        journal = None
        if written and not any(map(is_device, written)):
            journal = written[0].with_name(f"{written[0].stem}.journal")
        jobs.append(Job(source, results, picture, crops, journal))
    return jobs


def _of_scene(text: str | None, name: str) -> Path | None:
    """The file that a flag names, or that of a scene in the folder that it names."""
    if text is None:
        return None
    return Path(text) / name if _is_folder(text) else Path(text)


def _place(source: Source) -> Path:
    """The folder that a scene lies in; of a stream the current one."""
    return source.path.parent if source.path.is_file() else Path()


def _names(sources: Sequence[Source], place: Callable[[Source], Path]) -> list[str]:
    """A name for the files of each scene that no other scene in its place has.

    Its own, without folder and suffix, where that is enough; then with its suffix, then with the folders that it lies
    in: `100MEDIA-DJI_0001.JPG`.
    """
    places = [place(source) for source in sources]
    names = [source.name for source in sources]
    for depth in range(1, 9):
        counts = Counter(zip(places, names, strict=True))
        names = [
            name
            if counts[at, name] == 1 or is_stream(source.location)
            else "-".join(source.path.parts[-depth:]).strip("/")
            for source, at, name in zip(sources, places, names, strict=True)
        ]
    return names


def _in_folder(job: Job, journals: Path | None) -> Job:
    """With its journal in a folder with the others, under a name that lasts when scenes are added."""
    if journals is None:
        return Job(job.source, job.results, job.picture, job.crops, None)
    mark = hashlib.sha256(job.source.location.encode()).hexdigest()[:8]
    journal = journals / f"{job.source.name[:80]}.{mark}.journal"
    return Job(job.source, job.results, job.picture, job.crops, journal)


def _check_targets(
    targets: Sequence[Path], sources: Sequence[Source], folders: set[Path], inputs: Sequence[Path]
) -> None:
    """Args:
    folders: that the user named as such; of these a missing one is made.
    """
    scenes = {Path(source.location).resolve() for source in sources}
    others = {path.resolve() for path in inputs}
    counts = Counter(targets)
    for target in targets:
        folder = target.parent
        if target.is_dir():
            raise IsADirectoryError(f"{target} is a folder; name a file to write")
        if not folder.is_dir() and (folder not in folders or folder.exists() or not folder.parent.is_dir()):
            raise FileNotFoundError(f"{target}: the folder {folder} does not exist; create it or name another")
        if target.resolve() in scenes:
            raise ValueError(f"{target} is a scene and would be overwritten; name another --draw or --output")
        if target.resolve() in others:
            raise ValueError(f"{target} is read by this run and would be overwritten; name another --output or --draw")
        if counts[target] > 1:
            raise ValueError(f"{target} would be written twice; name another --output, --draw or --crops")


def _check_formats(paths: Sequence[Path], sources: Sequence[Source]) -> None:
    """Refuse files that cannot hold what these scenes give, before the work rather than after it."""
    for path in paths:
        if is_device(path):
            continue
        form = format_of(path)
        check_output(path, len(sources))
        for source in sources:
            if source.moving and (form.one_scene or form.placed):
                raise ValueError(f"{path} cannot hold the frames of {source.location}; write .json, .csv or .parquet")
            if form.placed and georeference_of(source.path) is None:
                raise nowhere_on_earth(source.location, path)
