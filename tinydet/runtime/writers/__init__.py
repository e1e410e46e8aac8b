"""Files of detections, in the formats that other tools open. The suffix of a file says which.

    with open_writer(Path("found.geojson"), spec) as write:
        for ... in scenes:
            write(SceneDetections(...))

A file is whole or absent, and is written scene by scene: memory holds the boxes of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

from tinydet._extras import needs_extra
from tinydet.runtime.writers.geographic import write_geojson, write_geopackage
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
    "open_writer",
    "write_scenes",
]

Write = Callable[[SceneDetections], None]


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
    raise ValueError(f"{path}: no format has the suffix {path.suffix!r}; there are {known}")


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


def write_scenes(path: Path, scenes: Iterable[SceneDetections], spec: ModelSpec) -> None:
    """Write a file of detections by its suffix; a device or a pipe, such as /dev/stdout, takes COCO results.

    Raises:
        ValueError, OSError, ModuleNotFoundError: as `open_writer`.
    """
    with open_writer(path, spec, "coco" if is_device(path) else None) as write:
        for scene in scenes:
            write(scene)


def is_device(path: Path) -> bool:
    """Whether a path is a device or a pipe."""
    return path.exists() and not path.is_file() and not path.is_dir()
