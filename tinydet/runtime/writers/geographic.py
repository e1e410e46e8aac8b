"""Polygons on the earth: GeoJSON (RFC 7946) and GeoPackage, in longitude and latitude.

The corners of a box go through the geotransform one by one, so that boxes of a rotated raster are rotated on the map.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.atomic import atomic_path
from tinydet._internal.extras import needs_extra
from tinydet.runtime.detections import Detections
from tinydet.runtime.scenes.georeference import Georeference
from tinydet.runtime.writers.table import SceneDetections, columns
from tinydet.spec import ModelSpec

DIGITS = 9  # of a degree: a tenth of a millimetre
LAYER = "detections"
WKB_RING = np.dtype(  # a polygon of one closed ring around four corners, little-endian
    [("order", "u1"), ("kind", "<u4"), ("rings", "<u4"), ("points", "<u4"), ("ring", "<f8", (5, 2))]
)


@contextmanager
def write_geojson(path: Path, spec: ModelSpec) -> Iterator[Callable[[SceneDetections], None]]:
    """A FeatureCollection for all scenes; a line a box, with the columns of the table as its properties."""
    with atomic_path(path, part=True) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        before = "\n"

        def write(found: SceneDetections) -> None:
            nonlocal before
            rings = np.round(_georeference(path, found).rings(found.detections.boxes), DIGITS).tolist()
            table = columns(found, spec)
            names, values = list(table), (column.tolist() for column in table.values())
            for ring, row in zip(rings, zip(*values, strict=True), strict=True):
                feature = {
                    "type": "Feature",
                    "geometry": {"type": "Polygon", "coordinates": [ring]},
                    # JSON has no NaN
                    "properties": {
                        name: None if value != value else value for name, value in zip(names, row, strict=True)
                    },
                }
                file.write(before + json.dumps(feature, allow_nan=False, ensure_ascii=False))
                before = ",\n"

        yield write
        file.write("\n]}\n")


@contextmanager
def write_geopackage(path: Path, spec: ModelSpec) -> Iterator[Callable[[SceneDetections], None]]:
    """One layer, `detections`, for all scenes."""
    with needs_extra("geo"):
        import pyogrio.raw
        from pyogrio.errors import DataSourceError

    with ExitStack() as held, atomic_path(path, part=True) as temporary, ExitStack() as of_gdal:
        # GDAL makes its file itself; `temporary`, which is locked, lies there until it is whole.
        own = temporary.with_name(f"{temporary.stem}.gdal{temporary.suffix}")
        remains = [own, *(own.with_name(f"{own.name}{more}") for more in ("-journal", "-wal", "-shm"))]
        for one in remains:
            one.unlink(missing_ok=True)  # of a killed process
            of_gdal.callback(one.unlink, missing_ok=True)

        def save(rings: NDArray[np.float64], table: dict[str, NDArray[Any]], *, append: bool = True) -> None:
            if append and not own.exists():  # GDAL would begin anew
                raise OSError(f"{path} was not written ({own} vanished)")
            try:
                pyogrio.raw.write(
                    str(own),
                    geometry=_wkb(rings),
                    field_data=list(table.values()),
                    fields=list(table),
                    layer=LAYER,
                    driver="GPKG",
                    geometry_type="Polygon",
                    crs="EPSG:4326",  # a GeoPackage holds it longitude first
                    append=append,
                    promote_to_multi=False,
                )
            except DataSourceError as error:
                raise OSError(f"{path} was not written ({error})") from error

        def write(found: SceneDetections) -> None:
            save(_georeference(path, found).rings(found.detections.boxes), columns(found, spec))

        save(np.zeros((0, 5, 2)), columns(SceneDetections("", 0, 1, 1, Detections.empty()), spec), append=False)
        yield write
        fcntl.flock(held.enter_context(own.open("rb")), fcntl.LOCK_EX)  # before it has a name that others look for
        own.replace(temporary)


def nowhere_on_earth(scene: str, path: Path) -> ValueError:
    """What a user is told whose scene cannot be put on a map."""
    return ValueError(
        f"{scene} does not say where it lies on the earth, which {path.name} is to hold; "
        "write .json, .csv or .parquet, or give the scene a geotransform and a CRS (gdal_edit, gdal_translate)"
    )


def _georeference(path: Path, found: SceneDetections) -> Georeference:
    if found.georeference is None:
        raise nowhere_on_earth(found.scene, path)
    return found.georeference


def _wkb(rings: NDArray[np.float64]) -> NDArray[np.object_]:
    records = np.zeros(len(rings), WKB_RING)
    records["order"], records["kind"], records["rings"], records["points"] = 1, 3, 1, 5
    records["ring"] = rings
    result = np.empty(len(rings), object)
    result[:] = [record.tobytes() for record in records]
    return result
