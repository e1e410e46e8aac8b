"""What becomes of each scene: which files are written, known to be good before any work is done."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tinydet.runtime.drawing import check_picture_path
from tinydet.runtime.sources import Source
from tinydet.runtime.writers import check_output, is_device


@dataclass(frozen=True)
class Job:
    """One scene and what becomes of it.

    Attributes:
        source: the scene.
        picture, results: to be written for it alone; None where they are not wanted.
        journal: what was found so far; None where outputs go to a device.
        outputs: all files that the scene is in, the one of all scenes with them.
    """

    source: Source
    picture: Path | None
    results: Path | None
    journal: Path | None
    outputs: tuple[Path, ...]


def plan_jobs(sources: Sequence[Source], output: Path | None, draw: Path | None) -> list[Job]:
    """A job for each scene. Without `output` and `draw`, results and a picture lie beside the scene.

    Args:
        output: file of all scenes; its suffix says the format.
        draw: a picture; of several scenes a folder.

    Raises:
        ValueError, OSError: a place that cannot be written, would be written twice, or is a scene.
    """
    several = len(sources) > 1
    if several and draw is not None and not draw.is_dir():
        raise ValueError(f"--draw names a folder that exists where there are several scenes, got {draw}")
    if several and output is not None and any(source.moving for source in sources):
        raise ValueError("--output holds one video, for each frame is an image of its own; run the scenes one by one")
    jobs = [_job(source, output, draw, several) for source in sources]
    targets = [path for job in jobs for path in (job.picture, job.results) if path is not None]
    if output is not None:
        targets.append(output)
    scenes = {Path(source.location).resolve() for source in sources}
    for target in targets:
        if target.is_dir():
            raise IsADirectoryError(f"{target} is a folder; name a file to write")
        if not target.parent.is_dir():
            raise FileNotFoundError(f"{target}: the folder {target.parent} does not exist; create it or name another")
        if target.resolve() in scenes:
            raise ValueError(f"{target} is a scene and would be overwritten; name another --draw or --output")
        if targets.count(target) > 1:
            raise ValueError(f"two scenes would be written to {target}; give scenes of one name one at a time")
    if output is not None and not is_device(output):
        check_output(output, len(sources))
    for job in jobs:
        if job.picture is not None:
            check_picture_path(job.picture)
    return jobs


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


def _job(source: Source, output: Path | None, draw: Path | None, several: bool) -> Job:
    picture, results = draw, None
    if draw is not None and draw.is_dir():
        picture = draw / f"{source.name}.detections.jpg"
    if output is None and draw is None:
        place = Path(source.location) if Path(source.location).is_file() else Path(source.name)
        picture, results = (place.with_name(f"{source.name}.detections{suffix}") for suffix in (".jpg", ".json"))
        if not os.access(place.parent, os.W_OK):
            raise PermissionError(f"cannot write beside {place}; name --output FILE (and --draw FILE)")
        if source.moving:
            picture = None
    elif source.moving and draw is not None:
        raise ValueError(
            f"--draw: {source.location} is a video or a stream, of which no picture is drawn; leave it out"
        )
    written = tuple(path for path in (results or output, picture) if path is not None)
    journal = None
    if not source.moving and not any(path.exists() and not path.is_file() for path in written):
        first = written[0]
        number = f".{source.image_id}" if several and results is None and output is not None else ""
        journal = first.with_name(f"{first.stem}{number}.journal")
    return Job(source, picture, results, journal, written)
