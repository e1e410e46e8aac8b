"""Write detections as a table, one row per box: CSV and Parquet."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.atomic import atomic_path
from tinydet._internal.extras import needs_extra
from tinydet._internal.names import public_location
from tinydet.runtime.detections import Detections
from tinydet.runtime.scenes.georeference import Georeference
from tinydet.runtime.scenes.window import Corner
from tinydet.spec import ModelSpec

ROW_GROUP = 10_000  # rows; with a row group per video frame, a file would be mostly metadata


@dataclass(frozen=True, eq=False)
class SceneDetections:
    """The detections of one scene.

    Attributes:
        scene: name or path of the scene, as written to the files: bytes that are not UTF-8 are escaped, and passwords
            are masked.
        image_id: its COCO image id.
        width, height: of the scene in pixels.
        detections: in pixels of the scene.
        georeference: of the scene; None without one.
        camera_lon_lat: position of the camera that took a photo, in degrees; None if the photo does not state it.
        file_name: name of the image in COCO files, relative to the folder of the images; default: the base name of
            `scene`. It is escaped like `scene`.
        frame: number of a video's frame in its source; else None.
        seconds: for a frame of a video, the time since its first frame; else None.
        corner: of a sub-image, the part of its image file; see `Corner`.
    """

    scene: str
    image_id: int
    width: int
    height: int
    detections: Detections
    georeference: Georeference | None = None
    camera_lon_lat: tuple[float, float] | None = None
    file_name: str = ""
    frame: int | None = None
    seconds: float | None = None
    corner: Corner | None = None

    def __post_init__(self) -> None:
        file_name = self.file_name or os.path.basename(self.scene) or self.scene
        object.__setattr__(self, "file_name", public_location(file_name))
        object.__setattr__(self, "scene", public_location(self.scene))


def columns(found: SceneDetections, spec: ModelSpec) -> dict[str, NDArray[Any]]:
    """Return the columns of the table, arrays of equal length.

    `lon` and `lat` are those of the box center; NaN if it has none. `position_error` is their standard error in meters,
    if it is known. `camera_lon` and `camera_lat` are where the camera was. `seam_distance` is NaN if the tile has no
    inner edge. Only tracked detections have the column `track_id`, masked where a detection has no track.
    """
    of = found.detections
    classes = np.array([encodable(name) for name in spec.classes], object)
    category_ids = np.asarray(spec.category_ids, np.int64)
    place, error = np.full((len(of), 2), np.nan), np.full(len(of), np.nan)
    if found.georeference is not None:
        place = found.georeference.lon_lat(found.georeference.centers(of.boxes))
        error = found.georeference.position_errors(of.boxes)
    camera = (np.nan, np.nan) if found.camera_lon_lat is None else found.camera_lon_lat
    x1, y1, x2, y2 = of.boxes.T
    tracks: dict[str, NDArray[Any]] = {}
    if of.tracks is not None:
        tracks["track_id"] = np.ma.masked_less(of.tracks.astype(np.int64), 0)
    return {
        "scene": np.full(len(of), found.scene, object),
        "image_id": np.full(len(of), found.image_id, np.int64),
        "class": classes[of.labels],
        "category_id": category_ids[of.labels],
        "score": of.scores,
        "x1": x1,
        "y1": y1,
        "x2": x2,
        "y2": y2,
        "lon": place[:, 0],
        "lat": place[:, 1],
        "position_error": error,
        "camera_lon": np.full(len(of), camera[0]),
        "camera_lat": np.full(len(of), camera[1]),
        "pass": of.passes,
        "tile": of.tiles,
        "seam_distance": np.where(np.isfinite(of.seam_distance), of.seam_distance, np.float32(np.nan)),
        **tracks,
    }


@contextmanager
def write_csv(path: Path, spec: ModelSpec) -> Iterator[Callable[[SceneDetections], None]]:
    """Write a CSV file with a header, the columns of the first scene; NaN is left empty."""
    with atomic_path(path, part=True) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        has_header = False

        def write(found: SceneDetections) -> None:
            nonlocal has_header
            table = columns(found, spec)
            if not has_header:
                rows.writerow(table)
                has_header = True
            # str() of a NumPy float32 is the shortest text that parses to the same float32.
            rows.writerows(zip(*([_text(value) for value in column] for column in table.values()), strict=True))

        yield write
        if not has_header:
            write(_NOTHING)


@contextmanager
def write_parquet(path: Path, spec: ModelSpec) -> Iterator[Callable[[SceneDetections], None]]:
    """Write a Parquet file in row groups of at least ROW_GROUP rows, with the columns of the first scene.

    NaN becomes null.
    """
    with open_table(path, spec) as write:
        yield write


Column = Callable[[SceneDetections], dict[str, Any]]


@contextmanager
def open_table(
    path: Path, spec: ModelSpec, more: Column | None = None, metadata: dict[str, str] | None = None
) -> Iterator[Callable[[SceneDetections], None]]:
    """Open a Parquet file; yield the function that writes a scene.

    Args:
        more: returns further columns of a scene as arrays of pyarrow.
        metadata: of the file.
    """
    with needs_extra("tables"):
        import pyarrow
        import pyarrow.parquet

    def table(found: SceneDetections) -> Any:
        arrays = {}
        for name, column in columns(found, spec).items():
            kind = pyarrow.string() if column.dtype == object else None
            arrays[name] = pyarrow.array(column, type=kind, from_pandas=True)
        arrays |= {} if more is None else more(found)
        return pyarrow.table(arrays, metadata=metadata)

    with (
        atomic_path(path, part=True) as temporary,
        temporary.open("wb") as sink,  # unlike a file of pyarrow's, it keeps the reason of an OSError
        ExitStack() as stack,
    ):
        file: Any = None
        pending: list[Any] = []

        def flush() -> None:
            if pending:
                file.write_table(pyarrow.concat_tables(pending))
            pending.clear()

        def write(found: SceneDetections) -> None:
            nonlocal file
            if file is None:
                file = stack.enter_context(pyarrow.parquet.ParquetWriter(sink, table(found).schema))
            if not len(found.detections):
                return
            pending.append(table(found))
            if sum(map(len, pending)) >= ROW_GROUP:
                flush()

        yield write
        if file is None:
            write(_NOTHING)
        flush()


def encodable(text: str) -> str:
    """Escape what UTF-8 or C strings cannot hold: unpaired surrogates and null characters."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def _text(value: Any) -> str:
    return "" if value is np.ma.masked or value != value else str(value)


_NOTHING = SceneDetections("", 0, 1, 1, Detections.empty())  # has the columns of any scene
