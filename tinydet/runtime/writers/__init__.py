"""Files of detections, in the formats that other tools open. The suffix of a file says which.

    with open_writer(Path("found.geojson"), spec) as write:
        for ... in scenes:
            write(SceneDetections(...))

A file is whole or absent. It may be given a scene in several portions, so that memory holds those of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from tinydet._internal.extras import needs_extra
from tinydet.runtime.writers.geographic import nowhere_on_earth, write_geojson, write_geopackage
from tinydet.runtime.writers.table import SceneDetections, write_csv, write_parquet
from tinydet.runtime.writers.text import write_coco_results, write_yolo
from tinydet.spec import ModelSpec

__all__ = [
    "FORMATS",
    "SceneDetections",
    "Write",
    "check_output",
    "format_of",
    "is_device",
    "nowhere_on_earth",
    "open_writer",
    "open_writers",
    "paths_of",
]

Write = Callable[[SceneDetections], None]
PIECE = 10_000  # boxes that are made to text at once


class Format(NamedTuple):
    """A kind of file.

    Attributes:
        suffix: that its files have.
        write: opens a file, gives the function that takes a scene, and closes it.
        summary: for people.
        one_scene: whether a file holds one scene only.
        placed: whether it holds places on the earth rather than pixels.
    """

    suffix: str
    write: Callable[[Path, ModelSpec], AbstractContextManager[Write]]
    summary: str
    one_scene: bool = False
    placed: bool = False


FORMATS = {
    "coco": Format(".json", write_coco_results, "COCO results"),
    "geojson": Format(".geojson", write_geojson, "polygons in longitude and latitude", placed=True),
    "gpkg": Format(".gpkg", write_geopackage, "GeoPackage, for QGIS and others", placed=True),
    "csv": Format(".csv", write_csv, "a line a box, with its tile, pass and distance to the seam"),
    "parquet": Format(".parquet", write_parquet, "the same as a typed table"),
    "yolo": Format(".txt", write_yolo, "YOLO labels with scores", one_scene=True),
}


def format_of(path: Path, kind: str | None = None) -> Format:
    """The format of a file, by its suffix, or as `kind` names it.

    Raises:
        ValueError: naming the suffixes that there are.
    """
    if kind is not None:
        if kind not in FORMATS:
            raise ValueError(f"the format is one of {', '.join(FORMATS)}, got {kind!r}")
        return FORMATS[kind]
    for form in FORMATS.values():
        if path.suffix.lower() == form.suffix:
            return form
    known = ", ".join(f"{form.suffix} ({form.summary})" for form in FORMATS.values())
    raise ValueError(
        f"{path}: no format has the suffix {path.suffix!r}; there are {known}; a folder's name ends with /, and what "
        "shows pixels is another option (--draw, --crops)"
    )


def paths_of(path: Path, kinds: Sequence[str] | None = None) -> tuple[Path, ...]:
    """The files of one name in several formats, `path` the first of them.

    >>> [str(one) for one in paths_of(Path("all.json"), ["coco", "csv"])]
    ['all.json', 'all.csv']

    Args:
        kinds: keys of `FORMATS`; None for that of the suffix.

    Raises:
        ValueError: the suffix is of no format, or of none of these.
    """
    if is_device(path):
        if kinds not in (None, ("coco",)):
            raise ValueError(f"{path} takes COCO results only; leave out --format")
        return (path,)
    own = format_of(path)
    if kinds is None:
        return (path,)
    chosen = [format_of(path, kind) for kind in kinds]
    if own not in chosen:
        raise ValueError(
            f"{path} is {own.summary}, which is none of the formats asked for ({', '.join(kinds)}); call it "
            f"{path.with_suffix(chosen[0].suffix)}"
        )
    return (path, *(path.with_suffix(form.suffix) for form in chosen if form is not own))


def check_output(path: Path, scenes: int, kind: str | None = None) -> None:
    """Refuse what cannot be written, before the work rather than after it.

    Args:
        scenes: how many the file is to hold.

    Raises:
        ValueError: an unknown suffix, or several scenes for a format that holds one.
        ModuleNotFoundError: the format needs a package that is not installed.
    """
    form = format_of(path, kind)
    if form.one_scene and scenes > 1:
        raise ValueError(
            f"{path} is to hold {scenes} scenes, but a {form.suffix} file holds one; "
            "name a folder, and the format beside it, for a file each"
        )
    if form.placed:
        with needs_extra("geo"):
            import pyogrio  # noqa: F401
            import rasterio  # noqa: F401
    elif form is FORMATS["parquet"]:
        with needs_extra("tables"):
            import pyarrow  # noqa: F401


def open_writer(path: Path, spec: ModelSpec, kind: str | None = None) -> AbstractContextManager[Write]:
    """Open a file of detections; inside the block, call what it gives with each scene.

    Args:
        spec: of the model, for the names and ids of its classes.
        kind: one of `FORMATS`; None by the suffix.

    Raises:
        ValueError: an unknown suffix; later, a scene that the format cannot hold.
        OSError: the file cannot be written.
        ModuleNotFoundError: the format needs a package that is not installed.
    """
    return format_of(path, kind).write(path, spec)


@contextmanager
def open_writers(paths: Sequence[Path], spec: ModelSpec) -> Iterator[Write]:
    """Several files as one; each by its suffix, a device as COCO results.

    Large scenes are written in pieces, so that no writer makes all of its text at once.

    Raises:
        ValueError, OSError, ModuleNotFoundError: as `open_writer`.
    """
    with ExitStack() as stack:
        writers = [stack.enter_context(open_writer(path, spec, "coco" if is_device(path) else None)) for path in paths]

        def write(found: SceneDetections) -> None:
            for start in range(0, len(found.detections), PIECE):
                piece = replace(found, detections=found.detections[start : start + PIECE])
                for to_file in writers:
                    to_file(piece)

        yield write


def is_device(path: Path) -> bool:
    """Whether a path is a device or a pipe."""
    return path.exists() and not path.is_file() and not path.is_dir()
