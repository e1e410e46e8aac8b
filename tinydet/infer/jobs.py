"""Decide which files are written for each scene, and check them all before any work is done."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from tinydet._internal.input_files import hash_file
from tinydet._internal.outputs import check_folder, is_device
from tinydet._internal.shell import command_line
from tinydet._internal.stores import is_bucket, is_store, to_path
from tinydet.infer.annotated_video import check_video_path
from tinydet.runtime.image_output import check_image_path
from tinydet.runtime.scenes.sources import Source, is_stream, shortened, spread
from tinydet.runtime.writers import (
    CLASSES,
    FORMATS,
    Format,
    UnknownSuffixError,
    check_formats,
    check_georeference,
    check_output,
    format_of,
    paths_of,
)

SKIP_HINT = "; --skip-unreadable continues with the other scenes"
MARK = ".detections"  # in the names of output files; `find_sources` ignores files with it


@dataclass(frozen=True)
class OutputOptions:
    """Outputs requested by the user. By default, results and a drawing are written next to each scene.

    Attributes:
        output: one file for all scenes, or a folder (existing, or ending in a slash) for one file per scene.
        formats: keys of `FORMATS`; None for the format of `output`'s suffix, else a COCO file.
        draw: file for the scene with its detections drawn on it; a folder if there are several scenes.
        crops: file for the contact sheet; a folder if there are several scenes.
        summary: JSON file that describes the run, see `RunSummary`.
        journals: folder for the journals; None for next to the results.
        stac: file for the STAC item of the detections; a folder if there are several scenes.
    """

    output: str | None = None
    formats: tuple[str, ...] | None = None
    draw: str | None = None
    crops: str | None = None
    summary: Path | None = None
    journals: Path | None = None
    stac: str | None = None


@dataclass(frozen=True)
class Job:
    """One scene and the files to write for it.

    Attributes:
        source: the scene.
        results: files of detections that hold this scene only.
        drawing: the scene with its detections drawn on it, a video for a video; None if not requested.
        crops: the contact sheet; None if not requested.
        stac: the STAC item that lists the other files; None if not requested.
        journal: where progress is recorded, so that a run can resume; None if outputs go to a device.
        formats: keys of `FORMATS` that the suffixes of `results` choose from; None for all.
    """

    source: Source
    results: tuple[Path, ...]
    drawing: Path | None
    crops: Path | None
    journal: Path | None
    formats: tuple[str, ...] | None = None
    stac: Path | None = None

    @property
    def frames(self) -> Path | None:
        """The CSV table of a video's frames; None for other scenes."""
        if not self.source.moving or not self.results or is_device(self.results[0]):
            return None
        return self.results[0].with_name(f"{self.results[0].stem}.frames.csv")

    @property
    def outputs(self) -> tuple[Path, ...]:
        """All files that hold this scene only."""
        return (
            *self.results,
            *(path for path in (self.drawing, self.crops, self.frames, self.stac) if path is not None),
        )

    def written(self) -> dict[str, str]:
        """Return the hashes of the output files as they are now. A scene is done if its journal holds the same."""
        names = {"--image-id": str(self.source.image_id), "file_name": self.source.file_name}
        return {**(hashes(self.outputs) or {}), **names, "--format": ",".join(self.formats or ())}


@dataclass(frozen=True)
class RunPlan:
    """All jobs of a run, and the files that their scenes share.

    Attributes:
        shared: files of detections for all scenes; empty if each scene has its own.
        journals: folder of the journals of a run with shared files, or of all if it was named; None if each is next to
            the results of its scene, or results go to a device.
        formats: keys of `FORMATS` that the suffixes of `shared` choose from; None for all.
        classes: the `classes.txt` of YOLO labels; None without any.
    """

    jobs: list[Job]
    shared: tuple[Path, ...] = ()
    journals: Path | None = None
    formats: tuple[str, ...] | None = None
    classes: Path | None = None

    @property
    def resumable(self) -> bool:
        """Whether an interrupted run can continue."""
        return all(job.journal is not None for job in self.jobs)


def plan_jobs(
    sources: Sequence[Source],
    options: OutputOptions,
    inputs: Sequence[Path] = (),
    *,
    check_scenes: bool = True,
    gps: bool = False,
) -> RunPlan:
    """Return a job for each scene.

    Args:
        inputs: other files that the run reads and must not overwrite.
        check_scenes: check that each scene has the georeference that its formats require. False skips scenes without
            one during the run.
        gps: place the detections of photos by their camera metadata.

    Raises:
        ValueError, OSError: an output that cannot be written, would be written twice or would overwrite an input; a
            format that cannot hold the results of these scenes.
    """
    several = len(sources) > 1
    check_formats(options.formats or ())
    output = None if options.output is None else to_path(options.output)
    folder = output if options.output is not None and _is_folder(options.output) else None
    for flag, path in (("--draw", options.draw), ("--crops", options.crops), ("--stac", options.stac)):
        if several and path is not None and not _is_folder(path):
            raise ValueError(
                f"{flag} must be a folder if there are several scenes (one ending in / is created), got {path}"
            )
    shared: tuple[Path, ...] = ()
    if output is not None and folder is None and several:
        if any(source.moving for source in sources):
            per_scene = command_line("--output", f"{output.with_suffix('')}/")
            raise ValueError(
                f"{output} cannot hold all scenes, because every frame of a video is an image; name a folder for one "
                f"file per scene: {per_scene}"
            )
        shared = _files_of(output, options.formats)
    jobs = _jobs(sources, options, folder, None if shared else output)
    classes = _classes_file(jobs, folder)
    targets = [path for job in jobs for path in job.outputs] + list(shared)
    targets += [path for path in (classes, options.summary) if path is not None]
    _check_targets(targets, sources, inputs)
    _check_formats(shared, options.formats, sources, check_scenes, gps=gps, alone=not several)
    for job in jobs:
        _check_formats(job.results, job.formats, [job.source], check_scenes, gps=gps, alone=not several)
        if job.drawing is not None:
            (check_video_path if job.source.moving else check_image_path)(job.drawing)
        if job.crops is not None:
            check_image_path(job.crops)
    journals = options.journals
    if journals is None and shared and not any(map(is_device, shared)):
        journals = shared[0].with_name(f"{shared[0].stem}.journals")
    if journals is not None:
        check_folder(journals)
    jobs = [_with_journal_in(job, journals) for job in jobs] if shared or journals is not None else jobs
    return RunPlan(jobs, shared, journals, options.formats, classes)


def hashes(paths: Sequence[Path]) -> dict[str, str] | None:
    """Return the SHA-256 of each file by its name; None if one is missing."""
    if not all(path.is_file() for path in paths):
        return None
    return {str(path): hash_file(path) for path in paths}


def _is_folder(text: str) -> bool:
    """Return whether an output is a folder: one that exists, or a name that ends in / or has no suffix."""
    path = to_path(text)
    return text.endswith(("/", os.sep)) or path.is_dir() or (not path.suffix and not path.exists())


def _jobs(sources: Sequence[Source], options: OutputOptions, folder: Path | None, output: Path | None) -> list[Job]:
    """Return the job of each scene with the files that hold this scene only.

    Args:
        folder: where to write the results, one file per scene and format; None for no such folder.
        output: the file of results if there is one scene; None if results go elsewhere.
    """
    default = options.output is None and options.draw is None and options.crops is None and options.stac is None
    next_to_scene = default or (options.output is None and options.formats is not None)
    formats = [FORMATS[kind] for kind in options.formats or ("coco",)]
    if next_to_scene and any(form.one_scene for form in formats):
        raise ValueError(
            "YOLO labels next to the images could replace labels of your own; name a folder for them: --output labels/"
        )
    names = _names(sources, lambda source: _folder_of(source) if next_to_scene else Path())
    jobs = []
    for source, name in zip(sources, names, strict=True):
        results: tuple[Path, ...] = ()
        drawing = _file_or_in_folder(options.draw, f"{name}{MARK}{'.mp4' if source.moving else '.jpg'}")
        crops = _file_or_in_folder(options.crops, f"{name}{MARK}.crops.jpg")
        if source.moving and crops is not None:
            if len(sources) == 1:
                raise ValueError(f"--crops needs a still image, and {source.label} is a video; leave it out")
            if options.output is None and options.draw is None and not next_to_scene:
                raise ValueError(
                    f"--crops needs a still image, and {source.label} is a video, so nothing would be written for "
                    "it; leave --crops out, or add --output or --draw"
                )
            crops = None
        if folder is not None:
            results = tuple(
                folder / (_label_name(source, name) if form.one_scene else _result_name(source, name, form))
                for form in formats
            )
            results = tuple(
                path.with_name(f"{path.name}{form.suffix}") for path, form in zip(results, formats, strict=True)
            )
        elif output is not None:
            results = _files_of(output, options.formats)
        elif next_to_scene:
            scene_folder = _folder_of(source)
            results = tuple(scene_folder / f"{name}{MARK}{form.suffix}" for form in formats)
            if default and not (source.moving and source.live):  # a stream may never end
                drawing = scene_folder / f"{name}{MARK}{'.mp4' if source.moving else '.jpg'}"
            if not is_store(scene_folder) and not os.access(scene_folder, os.W_OK):
                raise PermissionError(f"cannot write next to {source.label}; add --output FILE (and --draw FILE)")
        stac = None if source.moving else _file_or_in_folder(options.stac, f"{name}{MARK}.item.json")
        written = (*results, *(path for path in (drawing, crops, stac) if path is not None))
        journal = None
        if written and not any(map(is_device, written)):
            journal = written[0].with_name(f"{written[0].stem}.journal")
        jobs.append(Job(source, results, drawing, crops, journal, options.formats, stac))
    return jobs


def _result_name(source: Source, name: str, form: Format) -> str:
    """Return the name of a file of results, without suffix.

    That of a data set depends on the location of the scene, whatever else the run scans: a folder may hold the scenes
    of many runs.
    """
    if form is not FORMATS["geoparquet"]:
        return f"{name}{MARK}"
    place = _place(source) if is_store(source.location) else os.path.abspath(source.location)
    return f"{source.name}{MARK}.{_mark(source.part_name(place))}"


def _label_name(source: Source, name: str) -> Path:
    """Return the path of the YOLO labels of an image, without suffix: that of the image, to which they belong.

    Args:
        name: the name of other results, for an image outside the common folder of all images.
    """
    path = PurePosixPath(source.file_name)
    if path.is_absolute() or ".." in path.parts:
        return Path(name)
    return Path(*map(shortened, path.parent.parts), shortened(source.part_name(path.stem)))


def _files_of(output: Path, formats: tuple[str, ...] | None) -> tuple[Path, ...]:
    """Return the files of `--output`, as `paths_of`."""
    try:
        return paths_of(output, formats)
    except UnknownSuffixError as error:
        raise ValueError(f"{error}; end a folder with /, and use --draw or --crops for images") from error


def _classes_file(jobs: Sequence[Job], folder: Path | None) -> Path | None:
    """Return the file of class names for the YOLO labels of these jobs; None without labels.

    Raises:
        ValueError: two images have the same labels.
    """
    owners: dict[Path, Job] = {}
    for job in jobs:
        for path in job.results:
            if not is_device(path) and format_of(path, job.formats).one_scene:
                other = owners.setdefault(path, job)
                if other is not job:
                    raise ValueError(
                        f"{other.source.label} and {job.source.label} would have the same YOLO labels, {path}; rename "
                        "one of them, or give each folder its own run"
                    )
    if not owners:
        return None
    return (next(iter(owners)).parent if folder is None else folder) / CLASSES


def _file_or_in_folder(text: str | None, name: str) -> Path | None:
    """Return the path given to an option, with the file name of a scene appended if it is a folder."""
    if text is None:
        return None
    return to_path(text) / name if _is_folder(text) else to_path(text)


def _folder_of(source: Source) -> Path:
    """Return the folder of a scene; for a stream or a file on a web server the current folder."""
    if is_store(source.location):
        return source.path.parent if is_bucket(source.location) else Path()
    return source.path.parent if source.path.is_file() else Path()


def _names(sources: Sequence[Source], folder_of: Callable[[Source], Path]) -> list[str]:
    """Return a name for the files of each scene, unique among the scenes whose files go to the same folder.

    The name is the scene's without folder and suffix if that is unique, else with its suffix, else also with as many of
    its folders as needed: `100MEDIA-DJI_0001.JPG`. Remaining duplicates are numbered, such as two streams
    whose addresses differ only in the password.
    """
    folders = [folder_of(source) for source in sources]
    names = [source.name for source in sources]
    for depth in range(1, 9):
        counts = Counter(zip(folders, names, strict=True))
        names = [
            name
            if counts[folder, name] == 1 or (is_stream(source.location) and not is_store(source.location))
            else shortened(source.part_name("-".join(source.path.parts[-depth:]).strip("/")))
            for source, folder, name in zip(sources, folders, names, strict=True)
        ]
    taken: set[tuple[Path, str]] = set()
    for n, (folder, name) in enumerate(zip(folders, names, strict=True)):
        number = 1
        while (folder, names[n]) in taken:
            number += 1
            names[n] = f"{name}-{number}"
        taken.add((folder, names[n]))
    return names


def _with_journal_in(job: Job, journals: Path | None) -> Job:
    """Return the job with its journal moved to a common folder, under a name that is stable when scenes are added."""
    if journals is None:
        return replace(job, journal=None)
    mark = _mark(job.source.part_name(_place(job.source)))
    return replace(job, journal=journals / f"{job.source.name}.{mark}.journal")


def _mark(text: str) -> str:
    """Return eight digits that stand for a text in the names of files."""
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:8]


def _place(source: Source) -> str:
    """Return the location of a scene without what changes from run to run: the signature of an address."""
    return source.label if is_store(source.location) else source.location


def _check_targets(targets: Sequence[Path], sources: Sequence[Source], inputs: Sequence[Path]) -> None:
    """Raise an error if a file cannot be written, would be written twice or would overwrite an input."""
    scenes = {os.path.realpath(source.path) for source in sources}
    others = {os.path.realpath(path) for path in inputs}
    counts = Counter(targets)
    for target in targets:
        if not is_store(target) and target.is_dir():
            raise IsADirectoryError(f"{target} is a folder; name a file to write")
        check_folder(target.parent, target)
        if os.path.realpath(target) in scenes:
            raise ValueError(f"{target} is a scene and would be overwritten; choose another --draw or --output")
        if os.path.realpath(target) in others:
            raise ValueError(f"{target} is an input and would be overwritten; choose another --output or --draw")
        if counts[target] > 1:
            raise ValueError(f"{target} would be written twice; choose another --output, --draw or --crops")


def _check_formats(
    paths: Sequence[Path],
    kinds: Sequence[str] | None,
    sources: Sequence[Source],
    check_scenes: bool,
    *,
    gps: bool,
    alone: bool,
) -> None:
    """Raise ValueError for a file that cannot hold the results of these scenes. Call it before the work, not after."""
    looked_at = spread(sources)  # of those in a store, of which there may be very many
    for path in paths:
        if is_device(path):
            continue
        form = format_of(path, kinds)
        check_output(path, len(sources), kinds)
        for source in sources:
            if source.moving and (form.one_scene or form.placed):
                raise ValueError(f"{path} cannot hold the frames of {source.label}; write .json, .csv or .parquet")
            if form.placed and check_scenes and (not is_store(source.location) or source in looked_at):
                try:
                    check_georeference(source.path, path, gps=gps)
                except ValueError as error:
                    raise ValueError(f"{error}{'' if alone else SKIP_HINT}") from error
