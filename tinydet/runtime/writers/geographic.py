"""Write detections as map polygons: GeoJSON (RFC 7946) and GeoPackage, in longitude and latitude.

Each corner of a box is mapped through the geotransform, so the boxes of a rotated raster are rotated on the map.
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

DIGITS = 9  # decimals of a degree: a tenth of a millimeter
LAYER = "detections"
WKB_RING = np.dtype(  # a polygon of one closed ring around four corners, little-endian
    [("order", "u1"), ("kind", "<u4"), ("rings", "<u4"), ("points", "<u4"), ("ring", "<f8", (5, 2))]
)


@contextmanager
def write_geojson(path: Path, spec: ModelSpec) -> Iterator[Callable[[SceneDetections], None]]:
    """Write a FeatureCollection of all scenes, one line per box, with the columns of the table as properties."""
    with atomic_path(path, part=True) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        separator = "\n"

        def write(found: SceneDetections) -> None:
            nonlocal separator
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
                file.write(separator + json.dumps(feature, allow_nan=False, ensure_ascii=False))
                separator = ",\n"

        yield write
        file.write("\n]}\n")


@contextmanager
def write_geopackage(path: Path, spec: ModelSpec) -> Iterator[Callable[[SceneDetections], None]]:
    """Write all scenes into one layer, `detections`."""
    with needs_extra("geo"):
        import pyogrio.raw
        from pyogrio.errors import DataSourceError

    with ExitStack() as locks, atomic_path(path, part=True) as temporary, ExitStack() as cleanup:
        # GDAL creates its own file, which replaces the locked `temporary` once it is complete.
        gdal_file = temporary.with_name(f"{temporary.stem}.gdal{temporary.suffix}")
        sidecars = [gdal_file.with_name(f"{gdal_file.name}{end}") for end in ("-journal", "-wal", "-shm")]
        for file in (gdal_file, *sidecars):
            file.unlink(missing_ok=True)  # left by a killed process
            cleanup.callback(file.unlink, missing_ok=True)

        def save(rings: NDArray[np.float64], table: dict[str, NDArray[Any]], *, append: bool = True) -> None:
            if append and not gdal_file.exists():  # GDAL would silently start a new file
                raise OSError(f"{path} was not written ({gdal_file} was removed)")
            try:
                pyogrio.raw.write(
                    str(gdal_file),
                    geometry=_wkb(rings),
                    field_data=list(table.values()),
                    fields=list(table),
                    layer=LAYER,
                    driver="GPKG",
                    geometry_type="Polygon",
                    crs="EPSG:4326",  # stored longitude first in a GeoPackage
                    append=append,
                    promote_to_multi=False,
                )
            except DataSourceError as error:
                raise OSError(f"{path} was not written ({error})") from error

        def write(found: SceneDetections) -> None:
            save(_georeference(path, found).rings(found.detections.boxes), columns(found, spec))

        save(np.zeros((0, 5, 2)), columns(SceneDetections("", 0, 1, 1, Detections.empty()), spec), append=False)
        yield write
        # Lock the new file before it takes the temporary name, for which other processes look.
        fcntl.flock(locks.enter_context(gdal_file.open("rb")), fcntl.LOCK_EX)
        gdal_file.replace(temporary)


def missing_georeference_error(scene: str, path: Path) -> ValueError:
    """Return the error for a scene without a georeference in a map format."""
    return ValueError(
        f"{scene} has no georeference, which {path.name} requires; "
        "write .json, .csv or .parquet, or give the scene a geotransform and a CRS (gdal_edit, gdal_translate)"
    )


def _georeference(path: Path, found: SceneDetections) -> Georeference:
    if found.georeference is None:
        raise missing_georeference_error(found.scene, path)
    return found.georeference


def _wkb(rings: NDArray[np.float64]) -> NDArray[np.object_]:
    records = np.zeros(len(rings), WKB_RING)
    records["order"], records["kind"], records["rings"], records["points"] = 1, 3, 1, 5
    records["ring"] = rings
    result = np.empty(len(rings), object)
    result[:] = [record.tobytes() for record in records]
    return result
