"""From pixels to places: the geotransform of a raster, north-up or rotated, and longitude and latitude."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.extras import needs_extra

LON_LAT = "OGC:CRS84"  # WGS 84, longitude first, as GeoJSON has it (RFC 7946)


@dataclass(frozen=True)
class Georeference:
    """Where the pixels of a raster lie.

    Attributes:
        transform: (a, b, c, d, e, f): x = a * column + b * row + c and y = d * column + e * row + f, of the corner of
            a pixel that is first in its row and column. b and d are 0 where north is up.
        crs: the coordinate reference system of x and y, as WKT.
    """

    transform: tuple[float, float, float, float, float, float]
    crs: str

    def corners(self, boxes: NDArray[np.floating]) -> NDArray[np.float64]:
        """The corners (N, 4, 2) of boxes (N, 4) xyxy in pixels, as x and y of the reference system.

        Down the left side first: counterclockwise on the map, unless the raster is mirrored.
        """
        x1, y1, x2, y2 = boxes.astype(np.float64).T
        a, b, c, d, e, f = self.transform
        column, row = np.stack([x1, x1, x2, x2], axis=1), np.stack([y1, y2, y2, y1], axis=1)
        return np.stack([a * column + b * row + c, d * column + e * row + f], axis=-1)

    def lon_lat(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points (..., 2) of the reference system as longitude and latitude in degrees.

        Raises:
            ValueError: where a point has none, as outside of the system's area.
        """
        with needs_extra("geo"):
            import rasterio.warp
        if not points.size:
            return points
        flat = points.reshape(-1, 2)
        try:
            lon, lat = rasterio.warp.transform(self.crs, LON_LAT, flat[:, 0], flat[:, 1])
        except rasterio.errors.RasterioError as error:
            raise ValueError(f"the raster's coordinates have no longitude and latitude ({error})") from error
        placed = np.stack([np.asarray(lon, np.float64), np.asarray(lat, np.float64)], axis=-1)
        if not np.isfinite(placed).all():
            raise ValueError("the raster's coordinates have no longitude and latitude; check its geotransform and CRS")
        return placed.reshape(points.shape)

    def rings(self, boxes: NDArray[np.floating]) -> NDArray[np.float64]:
        """Closed rings (N, 5, 2) around boxes (N, 4), longitude and latitude, counterclockwise."""
        corners = self.lon_lat(self.corners(boxes))
        following = np.roll(corners, -1, axis=1)
        doubled_area = (corners[..., 0] * following[..., 1] - following[..., 0] * corners[..., 1]).sum(axis=1)
        corners[doubled_area < 0] = corners[doubled_area < 0, ::-1]
        return np.concatenate([corners, corners[:, :1]], axis=1)


def georeference_of(path: Path) -> Georeference | None:
    """Of a raster file with a geotransform and a reference system; None for every other file, and without rasterio.

    None, too, for one that is to be shown turned (EXIF): its geotransform is of the pixels as they are stored.
    """
    try:
        with needs_extra("geo"):
            import rasterio
    except ModuleNotFoundError:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.open(path) as file:
                turned = file.tags().get("EXIF_Orientation", "1") != "1"
                if file.crs is None or file.transform.is_identity or turned:
                    return None
                return Georeference(tuple(file.transform)[:6], file.crs.to_wkt())
    except rasterio.errors.RasterioError:
        return None
