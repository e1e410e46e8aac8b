"""Write detections as GeoParquet 1.1: the table with polygons in longitude and latitude.

A folder of such files is one data set for DuckDB, GeoPandas and QGIS. Each scene has its own file there, whose name
depends on the location of the scene alone: scanning a scene again replaces its file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tinydet._internal.extras import needs_extra
from tinydet.runtime.writers.geographic import polygons_of, to_wkb, without_geometry
from tinydet.runtime.writers.table import SceneDetections, open_table
from tinydet.spec import ModelSpec

SIDES = ("xmin", "ymin", "xmax", "ymax")


@contextmanager
def write_geoparquet(path: Path, spec: ModelSpec) -> Iterator[Callable[[SceneDetections], None]]:
    """Write a GeoParquet file, with the bounds of each box in the column `bbox`."""
    with needs_extra("tables"):
        import pyarrow

    def geometry(found: SceneDetections) -> dict[str, Any]:
        outlines = list(count(polygons_of(path, found))) if len(found.detections) else []
        bounds = np.full((len(outlines), 4), np.nan)
        for number, polygons in enumerate(outlines):
            if polygons:
                points = np.concatenate(polygons)
                bounds[number] = *points.min(axis=0), *points.max(axis=0)
        sides = [pyarrow.array(side, from_pandas=True) for side in bounds.T]
        shapes = pyarrow.array([to_wkb(polygons) for polygons in outlines], type=pyarrow.binary())
        return {"bbox": pyarrow.StructArray.from_arrays(sides, SIDES), "geometry": shapes}

    # The same in every file, and in the schema from the start: readers of a data set take it from there.
    column = {
        "encoding": "WKB",
        "geometry_types": ["Polygon", "MultiPolygon"],
        "covering": {"bbox": {side: ["bbox", side] for side in SIDES}},
    }
    geo = json.dumps({"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}})
    with without_geometry(path) as count, open_table(path, spec, geometry, {"geo": geo}) as write:
        yield write
