"""Write detections as map polygons: GeoJSON (RFC 7946) and GeoPackage, in longitude and latitude.

Each corner of a box is mapped through the geotransform, so the boxes of a rotated raster are rotated on the map. A box
that crosses the antimeridian is cut there into a MultiPolygon. A box with a corner that has no longitude and latitude
has no geometry.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.atomic import atomic_path, not_written
from tinydet._internal.console import plural
from tinydet._internal.errors import is_outside_error
from tinydet._internal.extras import needs_extra
from tinydet.runtime.detections import Detections
from tinydet.runtime.writers.table import SceneDetections, columns
from tinydet.spec import ModelSpec

DIGITS = 9  # decimals of a degree: a tenth of a millimeter
LAYER = "detections"
WRITTEN = "1970-01-01T00:00:00.000Z"  # in the metadata of a GeoPackage, so that equal results are equal files
CHUNK = 10_000  # features that are copied at once

logger = logging.getLogger("tinydet.runtime")

Polygons = list[NDArray[np.float64]]  # of one box, see `Georeference.polygons`


@contextmanager
def write_geojson(path: Path, spec: ModelSpec) -> Iterator[Callable[[SceneDetections], None]]:
    """Write a FeatureCollection of all scenes, one line per box, with the columns of the table as properties."""
    with (
        without_geometry(path) as count,
        atomic_path(path, part=True) as temporary,
        temporary.open("w", encoding="utf-8") as file,
    ):
        file.write('{"type": "FeatureCollection", "features": [')
        separator = "\n"

        def write(found: SceneDetections) -> None:
            nonlocal separator
            if not len(found.detections):
                return
            table = columns(found, spec)
            names, values = list(table), (column.tolist() for column in table.values())
            outlines = count(polygons_of(path, found))
            for polygons, row in zip(outlines, zip(*values, strict=True), strict=True):
                feature = {
                    "type": "Feature",
                    "geometry": _geometry([np.round(ring, DIGITS).tolist() for ring in polygons]),
                    # JSON has no NaN
                    "properties": {
                        name: None if value != value else value for name, value in zip(names, row, strict=True)
                    },
                }
                file.write(separator + json.dumps(feature, allow_nan=False, ensure_ascii=False))
                separator = ",\n"

        yield write
        file.write("\n]}\n")


@contextmanager
def write_geopackage(path: Path, spec: ModelSpec) -> Iterator[Callable[[SceneDetections], None]]:
    """Write all scenes into one layer, `detections`.

    Its geometry type is Polygon, or MultiPolygon if any box is cut at the antimeridian.
    """
    with needs_extra("geo"):
        import pyogrio.raw
    pyogrio.set_gdal_config_options({"OGR_CURRENT_DATE": WRITTEN})

    with ExitStack() as stack:
        count = stack.enter_context(without_geometry(path))
        temporary = stack.enter_context(atomic_path(path, part=True))
        # GDAL creates its own file, which replaces `temporary` once it is complete.
        gdal_file, copy = (temporary.with_name(f"{temporary.stem}.{word}{temporary.suffix}") for word in ("gdal", "2"))
        for file in (gdal_file, copy):
            for end in ("", "-journal", "-wal", "-shm"):
                sidecar = file.with_name(f"{file.name}{end}")
                sidecar.unlink(missing_ok=True)  # left by a killed process
                stack.callback(sidecar.unlink, missing_ok=True)
        geometry_type, boxes, shapes = "Polygon", 0, 0

        def save(file: Path, geometry: Sequence[bytes | None], table: dict[str, NDArray[Any]], *, append: bool) -> None:
            if append and not file.exists():  # GDAL would silently start a new file
                raise OSError(f"{file} was removed")
            encoded = np.empty(len(geometry), object)
            encoded[:] = geometry
            pyogrio.raw.write(
                str(file),
                geometry=encoded,
                field_data=list(table.values()),
                fields=list(table),
                layer=LAYER,
                driver="GPKG",
                geometry_type=geometry_type,
                crs="EPSG:4326",  # stored longitude first in a GeoPackage
                append=append,
                promote_to_multi=geometry_type == "MultiPolygon",
            )

        def promote() -> None:
            """Copy the boxes written so far to a layer of MultiPolygons."""
            nonlocal geometry_type
            geometry_type = "MultiPolygon"
            save(copy, [], empty, append=False)
            for start in range(0, pyogrio.read_info(gdal_file)["features"], CHUNK):
                meta, _, polygons, values = pyogrio.raw.read(gdal_file, skip_features=start, max_features=CHUNK)
                save(copy, polygons, dict(zip(meta["fields"], values, strict=True)), append=True)
            copy.replace(gdal_file)

        def write(found: SceneDetections) -> None:
            nonlocal boxes, shapes
            if not len(found.detections):
                return
            outlines = list(count(polygons_of(path, found)))
            boxes, shapes = boxes + len(outlines), shapes + sum(map(bool, outlines))
            with _gdal_errors(path, gdal_file):
                if geometry_type == "Polygon" and any(len(polygons) > 1 for polygons in outlines):
                    promote()
                table = columns(found, spec)  # without the column of tracks: frames of a video are on no map
                save(
                    gdal_file,
                    [to_wkb(polygons) for polygons in outlines],
                    {name: table[name] for name in empty},
                    append=True,
                )

        empty = columns(SceneDetections("", 0, 1, 1, Detections.empty()), spec)
        with _gdal_errors(path, gdal_file):
            save(gdal_file, [], empty, append=False)
        yield write
        with _gdal_errors(path, gdal_file):
            _check_complete(gdal_file, boxes, shapes)
        gdal_file.replace(temporary)


def missing_georeference_error(scene: str, path: Path, *, has_camera: bool = False) -> ValueError:
    """Return the error for a scene without a georeference in a map format.

    Args:
        has_camera: whether the scene is a photo that states the position of its camera.
    """
    if has_camera:
        return ValueError(
            f"{scene} has no georeference, which {path.name} requires, only the GPS position of its camera; --gps "
            "places the detections of a photo taken straight down approximately, on flat ground; .csv and .parquet "
            "have the position of the camera"
        )
    return ValueError(
        f"{scene} has no georeference, which {path.name} requires; "
        "write .json, .csv or .parquet, or give the scene a geotransform and a CRS (gdal_edit, gdal_translate)"
    )


@contextmanager
def _gdal_errors(path: Path, file: Path) -> Iterator[None]:
    """Raise errors of GDAL and SQLite with `file` as OSError that names `path`."""
    try:
        yield
    except Exception as error:
        if not is_outside_error(error) and not isinstance(error, OSError):
            raise
        raise not_written(path, file, error) from error


def _check_complete(file: Path, boxes: int, shapes: int) -> None:
    """Check the numbers of features and of entries in the spatial index: GDAL does not report all failures to write."""
    with needs_extra("geo"):
        import pyogrio
    with closing(sqlite3.connect(file)) as connection:
        (indexed,) = connection.execute(f"SELECT count(*) FROM rtree_{LAYER}_geom").fetchone()
    if (pyogrio.read_info(file)["features"], indexed) != (boxes, shapes):
        raise OSError(f"{boxes} boxes were written, but the file is incomplete")


@contextmanager
def without_geometry(path: Path) -> Iterator[Callable[[Iterator[Polygons]], Iterator[Polygons]]]:
    """Count the boxes without a polygon, and warn about them at the end."""
    number = 0

    def count(outlines: Iterator[Polygons]) -> Iterator[Polygons]:
        nonlocal number
        for polygons in outlines:
            number += not polygons
            yield polygons

    yield count
    if number:
        logger.warning(f"{path}: no geometry for {plural(number, 'box')} whose corners have no longitude and latitude")


def polygons_of(path: Path, found: SceneDetections) -> Iterator[Polygons]:
    """Yield the polygons of each box, see `Georeference.polygons`. Raise ValueError without a georeference."""
    if found.georeference is None:
        raise missing_georeference_error(found.scene, path)
    return found.georeference.polygons(found.detections.boxes)


def _geometry(rings: list[list[list[float]]]) -> dict[str, Any] | None:
    """Return a GeoJSON geometry of polygons with one ring each; None for no polygons."""
    if not rings:
        return None
    if len(rings) == 1:
        return {"type": "Polygon", "coordinates": rings}
    return {"type": "MultiPolygon", "coordinates": [[ring] for ring in rings]}


def to_wkb(polygons: Polygons) -> bytes | None:
    """Return polygons as well-known binary, little-endian; None for no polygons."""
    parts = [struct.pack("<BIII", 1, 3, 1, len(ring)) + ring.astype("<f8").tobytes() for ring in polygons]
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else struct.pack("<BII", 1, 6, len(parts)) + b"".join(parts)
