"""Write detections in the formats that other tools read. The suffix of a file selects its format.

    with open_writer(Path("found.geojson"), spec) as write:
        for ... in scenes:
            write(SceneDetections(...))

Files are written atomically. The detections of a scene may be written in several parts, to bound memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tinydet._internal.extras import needs_extra
from tinydet._internal.outputs import is_device
from tinydet.runtime.scenes.camera_metadata import read_camera
from tinydet.runtime.scenes.footprint import read_footprint
from tinydet.runtime.scenes.georeference import Georeference, GeoreferenceError, read_georeference
from tinydet.runtime.writers.geographic import missing_georeference_error, write_geojson, write_geopackage
from tinydet.runtime.writers.geoparquet import write_geoparquet
from tinydet.runtime.writers.table import SceneDetections, write_csv, write_parquet
from tinydet.runtime.writers.text import (
    CLASSES,
    check_classes,
    write_classes,
    write_coco,
    write_coco_results,
    write_mot,
    write_yolo,
)
from tinydet.spec import ModelSpec

__all__ = [
    "CLASSES",
    "FORMATS",
    "Format",
    "SceneDetections",
    "UnknownSuffixError",
    "Write",
    "camera_for",
    "check_classes",
    "check_formats",
    "check_georeference",
    "check_output",
    "format_of",
    "georeference_for",
    "open_writer",
    "open_writers",
    "paths_of",
    "write_classes",
]

Write = Callable[[SceneDetections], None]
CHUNK = 10_000  # boxes that are converted to text at once


class UnknownSuffixError(ValueError):
    """No format has this suffix."""


class Format(NamedTuple):
    """A file format.

    Attributes:
        suffix: of its files.
        write: context manager that opens a file and yields the function that writes a scene.
        summary: short description for help texts.
        one_scene: whether a file holds a single scene, as YOLO labels do. Their folder has a `classes.txt`.
        placed: whether it holds map coordinates rather than pixels.
        located: whether it holds longitude and latitude if a scene has them.
        tracked: whether it holds tracked objects of a video only.
    """

    suffix: str
    write: Callable[[Path, ModelSpec], AbstractContextManager[Write]]
    summary: str
    one_scene: bool = False
    placed: bool = False
    located: bool = False
    tracked: bool = False


FORMATS = {
    "coco": Format(".json", write_coco, "COCO file with images, categories and scored annotations"),
    "coco-results": Format(".json", write_coco_results, "COCO results, the list of detections alone"),
    "geojson": Format(".geojson", write_geojson, "polygons in longitude and latitude", placed=True),
    "gpkg": Format(".gpkg", write_geopackage, "GeoPackage, for QGIS and other GIS", placed=True),
    "csv": Format(".csv", write_csv, "one row per box, with tile, pass and distance to the seam", located=True),
    "parquet": Format(".parquet", write_parquet, "the same columns as a typed table", located=True),
    "geoparquet": Format(".parquet", write_geoparquet, "GeoParquet, polygons with the same columns", placed=True),
    "yolo": Format(".txt", write_yolo, "YOLO labels", one_scene=True),
    "yolo-conf": Format(".txt", partial(write_yolo, scores=True), "YOLO labels with scores", one_scene=True),
    "mot": Format(".txt", write_mot, "tracks of a video in the format of MOTChallenge", tracked=True),
}


def format_of(path: Path, kinds: Sequence[str] | None = None) -> Format:
    """Return the format of a file by its suffix; for a device, the first of `kinds`.

    Args:
        kinds: the formats to choose from, keys of `FORMATS`; None for all, the first of each suffix.

    Raises:
        ValueError: a format is unknown, or the suffix is not that of one of `kinds`.
        UnknownSuffixError: no format has this suffix; lists those that there are.
    """
    for kind in kinds or ():
        if kind not in FORMATS:
            raise ValueError(f"the format is one of {', '.join(FORMATS)}, got {kind!r}")
    chosen = [FORMATS[kind] for kind in kinds or FORMATS]
    if is_device(path):
        return chosen[0]
    for form in chosen:
        if path.suffix.lower() == form.suffix:
            return form
    if kinds:
        raise ValueError(
            f"{path} has the suffix of none of the requested formats ({', '.join(kinds)}); name it "
            f"{path.with_suffix(chosen[0].suffix)}, or {path}/ for a folder"
        )
    suffixes = {form.suffix: form for form in reversed(FORMATS.values())}
    known = ", ".join(f"{suffix} ({form.summary})" for suffix, form in reversed(suffixes.items()))
    raise UnknownSuffixError(f"{path}: no format has the suffix {path.suffix!r}; there are {known}")


def paths_of(path: Path, kinds: Sequence[str] | None = None) -> tuple[Path, ...]:
    """Return the files of one name in several formats, `path` first.

    >>> [str(file) for file in paths_of(Path("all.json"), ["coco", "csv"])]
    ['all.json', 'all.csv']

    Args:
        kinds: keys of `FORMATS`; None for the format of the suffix.

    Raises:
        ValueError: the suffix belongs to no format, or to none of `kinds`.
    """
    if is_device(path):
        if kinds is not None and (len(kinds) > 1 or kinds[0] not in ("coco", "coco-results")):
            raise ValueError(f"{path} takes --format coco or coco-results; leave out --format")
        return (path,)
    own = format_of(path, kinds)
    if kinds is None:
        return (path,)
    check_formats(kinds)
    return (path, *(path.with_suffix(FORMATS[kind].suffix) for kind in kinds if FORMATS[kind] is not own))


def check_formats(kinds: Sequence[str]) -> None:
    """Check that no two formats have the same suffix, as their files would have the same name.

    Raises:
        ValueError: two have.
    """
    first: dict[str, str] = {}
    for kind in kinds:
        suffix = FORMATS[kind].suffix
        if (other := first.setdefault(suffix, kind)) != kind:
            raise ValueError(f"{other} and {kind} are both written to {suffix} files; choose one of them per run")


def check_output(path: Path, scenes: int, kinds: Sequence[str] | None = None) -> None:
    """Check that a file can be written, before the work that produces it.

    Args:
        scenes: number of scenes that the file will hold.
        kinds: the formats to choose from, see `format_of`.

    Raises:
        ValueError: the suffix is unknown, or the format holds one scene only.
        ModuleNotFoundError: the format needs a package that is not installed.
    """
    form = format_of(path, kinds)
    if form.one_scene and scenes > 1:
        raise ValueError(
            f"{path} is to hold {scenes} scenes, but a {form.suffix} file holds one; "
            "name a folder, and the format with --format, to write a file for each"
        )
    if form.placed:
        with needs_extra("geo"):
            import pyogrio  # noqa: F401
            import rasterio  # noqa: F401
    if form.suffix == ".parquet":
        with needs_extra("tables"):
            import pyarrow  # noqa: F401


def check_georeference(scene: Path, path: Path, *, gps: bool = False) -> Georeference:
    """Return the georeference of a scene for a map format, which requires one.

    Args:
        gps: take the footprint of a photo from its camera metadata if it has no georeference.

    Raises:
        ValueError: the scene has none, or none that gives longitude and latitude. Names the scene and the reason.
    """
    try:
        found = _georeference(scene, gps)
    except GeoreferenceError as error:
        joint = ", or" if ";" in str(error) else ";"
        raise ValueError(f"{error}{joint} write .json, .csv or .parquet in place of {path.name}") from error
    if found is None:
        raise missing_georeference_error(str(scene), path, has_camera=_camera_lon_lat(scene) is not None)
    return found


def georeference_for(
    scene: Path, paths: Sequence[Path], kinds: Sequence[str] | None = None, *, gps: bool = False
) -> Georeference | None:
    """Return the georeference of a scene for its output files; None if it has none.

    Args:
        kinds: the formats to choose from, see `format_of`.
        gps: as for `check_georeference`.

    Raises:
        ValueError: as `check_georeference`, for a map format.
        GeoreferenceError: the georeference gives no longitude and latitude, and only tables want them, whose columns
            can stay empty.
    """
    forms = {path: format_of(path, kinds) for path in paths if not is_device(path)}
    for path, form in forms.items():
        if form.placed:
            return check_georeference(scene, path, gps=gps)
    return _georeference(scene, gps) if any(form.located for form in forms.values()) else None


def camera_for(scene: Path, paths: Sequence[Path], kinds: Sequence[str] | None = None) -> tuple[float, float] | None:
    """Return longitude and latitude of the camera that took a photo; None if no output file has columns for them."""
    forms = [format_of(path, kinds) for path in paths if not is_device(path)]
    return _camera_lon_lat(scene) if any(form.placed or form.located for form in forms) else None


def _georeference(scene: Path, gps: bool) -> Georeference | None:
    found = read_georeference(scene)
    return read_footprint(scene) if found is None and gps else found


def _camera_lon_lat(scene: Path) -> tuple[float, float] | None:
    camera = read_camera(scene)
    return None if camera is None else camera.lon_lat


def open_writer(path: Path, spec: ModelSpec, kind: str | None = None) -> AbstractContextManager[Write]:
    """Open a file of detections. Inside the block, call the yielded function with each scene.

    Args:
        spec: of the model, for the names and ids of its classes.
        kind: a key of `FORMATS`, whatever the suffix; None for the format of the suffix.

    Raises:
        ValueError: the format or suffix is unknown, or, while writing, the format cannot hold a scene.
        OSError: the file cannot be written.
        ModuleNotFoundError: the format needs a package that is not installed.
    """
    if kind in FORMATS:
        return FORMATS[kind].write(path, spec)
    return format_of(path, None if kind is None else [kind]).write(path, spec)


@contextmanager
def open_writers(paths: Sequence[Path], spec: ModelSpec, kinds: Sequence[str] | None = None) -> Iterator[Write]:
    """Open several files at once. Suffixes select the formats; devices receive a COCO file.

    Large scenes are written in chunks, to bound the text in memory. Write a scene without detections, too: a COCO file
    lists it.

    Args:
        kinds: the formats to choose from, see `format_of`.

    Raises:
        ValueError, OSError, ModuleNotFoundError: as `open_writer`.
    """
    with ExitStack() as stack:
        writers = [stack.enter_context(format_of(path, kinds).write(path, spec)) for path in paths]

        def write(found: SceneDetections) -> None:
            for start in range(0, max(len(found.detections), 1), CHUNK):
                chunk = replace(found, detections=found.detections[start : start + CHUNK])
                for write_chunk in writers:
                    write_chunk(chunk)

        yield write
