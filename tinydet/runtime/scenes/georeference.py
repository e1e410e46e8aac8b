"""Map pixels to map coordinates with the geotransform of a raster, and to longitude and latitude."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.extras import needs_extra

LON_LAT = "OGC:CRS84"  # WGS 84, longitude first, as in GeoJSON (RFC 7946)


@dataclass(frozen=True)
class Georeference:
    """The position of a raster on the earth.

    Attributes:
        transform: (a, b, c, d, e, f) of the affine map x = a * column + b * row + c, y = d * column + e * row + f from
            pixel corners to `crs`. b and d are 0 for a north-up raster.
        crs: the coordinate reference system of x and y, as WKT.
    """

    transform: tuple[float, float, float, float, float, float]
    crs: str

    def corners(self, boxes: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the corners (N, 4, 2) of boxes (N, 4), xyxy in pixels, as x and y in `crs`.

        The order starts down the left side, which is counterclockwise on the map unless the raster is mirrored.
        """
        x1, y1, x2, y2 = boxes.astype(np.float64).T
        a, b, c, d, e, f = self.transform
        column, row = np.stack([x1, x1, x2, x2], axis=1), np.stack([y1, y2, y2, y1], axis=1)
        return np.stack([a * column + b * row + c, d * column + e * row + f], axis=-1)

    def lon_lat(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Convert points (..., 2) in `crs` to longitude and latitude in degrees.

        Raises:
            ValueError: a point has none, for example outside the area of the reference system.
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
        converted = np.stack([np.asarray(lon, np.float64), np.asarray(lat, np.float64)], axis=-1)
        if not np.isfinite(converted).all():
            raise ValueError("the raster's coordinates have no longitude and latitude; check its geotransform and CRS")
        return converted.reshape(points.shape)

    def rings(self, boxes: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return closed counterclockwise rings (N, 5, 2) around boxes (N, 4), as longitude and latitude."""
        corners = self.lon_lat(self.corners(boxes))
        following = np.roll(corners, -1, axis=1)
        doubled_area = (corners[..., 0] * following[..., 1] - following[..., 0] * corners[..., 1]).sum(axis=1)
        corners[doubled_area < 0] = corners[doubled_area < 0, ::-1]
        return np.concatenate([corners, corners[:, :1]], axis=1)


def georeference_of(path: Path) -> Georeference | None:
    """Read the georeference of a raster file; None if it has no geotransform or CRS, and without rasterio.

    Also None if the file has an EXIF orientation, as its geotransform refers to the pixels before rotation.
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
                rotated = file.tags().get("EXIF_Orientation", "1") != "1"
                if file.crs is None or file.transform.is_identity or rotated:
                    return None
                return Georeference(tuple(file.transform)[:6], file.crs.to_wkt())
    except rasterio.errors.RasterioError:
        return None
