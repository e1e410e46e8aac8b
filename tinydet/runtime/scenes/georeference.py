"""Map pixels to map coordinates with the geotransform of a raster, and to longitude and latitude."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.errors import is_outside_error, reason
from tinydet._internal.extras import needs_extra
from tinydet.runtime.scenes.raster_access import open_raster

LON_LAT = "OGC:CRS84"  # WGS 84, longitude first, as in GeoJSON (RFC 7946)
METERS_PER_DEGREE = 111_320.0  # of latitude
SPHERE = 0.02  # a larger relative difference is not due to the earth's flattening, nor to the scale of a map
FARTHEST = 1e12  # in any unit of a reference system; PROJ would subtract turns from larger numbers for hours
POLE = 90 - 1e-9  # degrees; the longitude of a point beyond is arbitrary


class GeoreferenceError(ValueError):
    """A raster's georeference does not give longitude and latitude."""


@dataclass(frozen=True)
class Georeference:
    """The position of a raster on the earth.

    Attributes:
        transform: (a, b, c, d, e, f) of the affine map x = a * column + b * row + c, y = d * column + e * row + f from
            pixel corners to `crs`. b and d are 0 for a north-up raster.
        crs: the coordinate reference system of x and y, as WKT or in another form that PROJ reads.
    """

    transform: tuple[float, float, float, float, float, float]
    crs: str

    def shifted(self, x: int, y: int) -> Georeference:
        """Return the georeference of a part of the raster whose upper left corner is (x, y), in pixels."""
        a, b, c, d, e, f = self.transform
        return Georeference((a, b, a * x + b * y + c, d, e, d * x + e * y + f), self.crs)

    def map_points(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Convert points (..., 2), column and row in pixels, to x and y in `crs`."""
        a, b, c, d, e, f = self.transform
        column, row = points[..., 0], points[..., 1]
        return np.stack([a * column + b * row + c, d * column + e * row + f], axis=-1)

    def corners(self, boxes: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the corners (N, 4, 2) of boxes (N, 4), xyxy in pixels, as x and y in `crs`.

        The order starts down the left side, which is counterclockwise on the map unless the raster is mirrored.
        """
        x1, y1, x2, y2 = boxes.astype(np.float64).T
        column, row = np.stack([x1, x1, x2, x2], axis=1), np.stack([y1, y2, y2, y1], axis=1)
        return self.map_points(np.stack([column, row], axis=-1))

    def centers(self, boxes: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the centers (N, 2) of boxes (N, 4), xyxy in pixels, as x and y in `crs`."""
        of = boxes.astype(np.float64)
        return self.map_points((of[:, :2] + of[:, 2:]) / 2)

    def position_errors(self, boxes: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the standard error of each box center (N,) in meters; NaN, as a raster does not state it."""
        return np.full(len(boxes), np.nan)

    def lon_lat(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Convert points (..., 2) in `crs` to longitude, -180 to 180, and latitude in degrees.

        Both are NaN for a point that cannot be converted, lies beyond a pole, or does not survive a round
        trip. Rasters may continue for up to one turn beyond the antimeridian (0 to 360 degrees).
        """
        flat = points.reshape(-1, 2).astype(np.float64)
        found = _convert(self.crs, LON_LAT, flat)
        found[:, 0] = _wrap(found[:, 0])
        found[np.abs(found[:, 1]) > 90] = np.nan
        offset = flat - _convert(LON_LAT, self.crs, found)
        # 360 degrees in units of x, if x is proportional to the longitude.
        turn = 360 * np.diff(_convert(LON_LAT, self.crs, np.array([[0.0, 0.0], [1.0, 0.0]])), axis=0)[0, 0]
        if np.isfinite(turn) and turn:
            offset[:, 0] -= turn * np.clip(np.round(offset[:, 0] / turn), -1, 1)
        a, b, _, d, e, _ = self.transform
        tolerance = abs(a * e - b * d) ** 0.5 + 1e-8 * np.abs(flat)  # a pixel, and the accuracy of inverse projections
        found[~(np.abs(offset) <= tolerance).all(axis=1)] = np.nan
        return found.reshape(points.shape)

    def polygons(self, boxes: NDArray[np.floating]) -> Iterator[list[NDArray[np.float64]]]:
        """Yield the polygons around each of the boxes (N, 4), xyxy in pixels.

        Each polygon is one closed counterclockwise ring (P, 2) of longitude and latitude. A box that crosses the
        antimeridian is cut there and has two (RFC 7946, 3.1.9). A box with a corner that has no longitude and latitude
        has none.
        """
        corners = self.lon_lat(self.corners(boxes))
        lon, lat = corners[..., 0], corners[..., 1]
        known = np.asarray(np.isfinite(lon).all(axis=1))
        special = np.asarray((np.ptp(lon, axis=1) >= 180) | ((np.abs(lat) > POLE).sum(axis=1) == 1))
        for box, ring, is_known, is_special in zip(corners, _closed(corners), known, special, strict=True):
            yield (_cut(box) if is_special else [ring]) if is_known else []


def read_georeference(path: Path) -> Georeference | None:
    """Read the georeference of a raster file; None if it has none or rasterio is not installed.

    Raises:
        GeoreferenceError: it has one that gives no longitude and latitude: ground control points in place of a
            geotransform, a local reference system, coordinates outside the area of the reference system, an EXIF
            orientation (the geotransform refers to the pixels before rotation). Names the file and the reason.
    """
    try:
        with open_raster(path) as file:
            return _georeference(path, file)
    except ModuleNotFoundError:
        return None
    except Exception as error:
        if isinstance(error, GeoreferenceError) or not (isinstance(error, ValueError) or is_outside_error(error)):
            raise
        return None  # not a raster, or one that refers to other files


def georeference_of(path: Path) -> Georeference | None:
    """Return the georeference of a raster file; None if it has none, or one without longitude and latitude."""
    try:
        return read_georeference(path)
    except GeoreferenceError:
        return None


def ground_sample_distance(file: Any) -> float | None:
    """Return the meters per pixel of an open raster at its center; None if its georeference does not state them.

    The units of the reference system are trusted if they agree with longitude and latitude. In Web Mercator, for
    example, meters are shorter on the ground.
    """
    if file.crs is None or file.transform.is_identity or not file.transform.determinant:
        return None
    try:
        crs, unit = file.crs.to_wkt(), float(file.crs.linear_units_factor[1]) if file.crs.is_projected else None
        georeference = Georeference(tuple(file.transform)[:6], crs)
        x, y = file.width / 2, file.height / 2
        corners = georeference.lon_lat(georeference.corners(np.array([[x - 0.5, y - 0.5, x + 0.5, y + 0.5]])))[0]
    except Exception as error:
        if not is_outside_error(error):
            raise
        return None
    corners[:, 0] = _wrap(corners[:, 0] - corners[0, 0])
    flat = (corners - corners[0]) * (np.cos(np.radians(corners[:, 1].mean())), 1)
    ground = METERS_PER_DEGREE * abs(_doubled_area(flat) / 2) ** 0.5
    stated = np.nan if unit is None else unit * abs(file.transform.determinant) ** 0.5
    if np.isnan(stated) or (np.ptp(corners[:, 0]) < 1 and abs(ground / stated - 1) > SPHERE):  # meridians meet at poles
        return float(ground) if ground > 0 else None
    return float(stated) if 0 < stated < np.inf else None


def _georeference(path: Path, file: Any) -> Georeference | None:
    points = len(file.gcps[0])
    if file.transform.is_identity:
        if points or file.rpcs is not None:
            what = f"{points} ground control points" if points else "RPCs"
            raise GeoreferenceError(f"{path} has {what} in place of a geotransform; rectify it (gdalwarp)")
        return None
    if file.crs is None:
        return None
    where = f"{path}: its coordinates have no longitude and latitude"
    if file.tags().get("EXIF_Orientation", "1") != "1":
        raise GeoreferenceError(f"{where} (its EXIF orientation rotates the pixels, but not the geotransform)")
    if not (np.isfinite(tuple(file.transform)).all() and file.transform.determinant):
        raise GeoreferenceError(f"{where} (its geotransform maps all pixels to a line); correct it (gdal_edit)")
    if not (file.crs.is_projected or file.crs.is_geographic):
        raise GeoreferenceError(f"{where} (its reference system is local, not on the earth); correct it (gdal_edit)")
    try:
        georeference = Georeference(tuple(file.transform)[:6], file.crs.to_wkt())
    except Exception as error:
        if not is_outside_error(error):
            raise
        raise GeoreferenceError(f"{where} ({reason(error)}); correct its reference system (gdal_edit)") from error
    columns, rows = np.meshgrid(np.linspace(0, file.width, 5), np.linspace(0, file.height, 5))
    samples = np.stack([columns.ravel(), rows.ravel()] * 2, axis=1)  # as boxes without area
    if not np.isfinite(georeference.lon_lat(georeference.corners(samples)[:, 0])).any():
        raise GeoreferenceError(f"{where} (its reference system has none there); correct it (gdal_edit)")
    return georeference


def _convert(source: str, target: str, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convert points (N, 2) between reference systems; NaN where that is not possible."""
    with needs_extra("geo"):
        import rasterio.warp
    found = np.full(points.shape, np.nan)
    finite = np.flatnonzero((np.abs(points) < FARTHEST).all(axis=1))
    pending = [finite] if len(finite) else []
    while pending:
        part = pending.pop()
        try:
            found[part] = np.transpose(rasterio.warp.transform(source, target, points[part, 0], points[part, 1]))
        except Exception as error:
            if not is_outside_error(error):
                raise
            if len(part) > 1:  # one point that fails discards all
                pending += np.array_split(part, 2)
    found[~np.isfinite(found).all(axis=1)] = np.nan
    return found


def _wrap(degrees: NDArray[np.float64]) -> NDArray[np.float64]:
    """Wrap angles to -180 to 180."""
    return np.where(np.abs(degrees) <= 180, degrees, (degrees + 180) % 360 - 180)


def _closed(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return closed counterclockwise rings (..., P + 1, 2) of polygons (..., P, 2)."""
    ordered = np.where(_doubled_area(corners)[..., None, None] < 0, corners[..., ::-1, :], corners)
    return np.concatenate([ordered, ordered[..., :1, :]], axis=-2)


def _doubled_area(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return twice the areas of polygons (..., P, 2), negative for clockwise ones."""
    following = np.roll(corners, -1, axis=-2)
    areas: NDArray[np.float64] = (corners[..., 0] * following[..., 1] - following[..., 0] * corners[..., 1]).sum(
        axis=-1
    )
    return areas


def _cut(corners: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Return the rings of a box (4, 2) that crosses the antimeridian, or touches or contains a pole."""
    path = corners.copy()
    at_pole = np.flatnonzero(np.abs(corners[:, 1]) > POLE)
    if len(at_pole) == 1:  # the two sides that meet at the pole are meridians
        i = int(at_pole[0])
        path = np.insert(path, i, path[i], axis=0)
        path[[i, i + 1], 0] = corners[[i - 1, (i + 1) % 4], 0]
    steps = _wrap(np.diff(path[:, 0], append=path[0, 0]))
    if abs(steps.sum()) > 180:  # once around: the pole is inside
        path = path[np.argsort(path[:, 0], kind="stable")]
        (first, south), (last, north) = path[0], path[-1]
        height = np.interp(180, [last, first + 360], [north, south])
        pole = np.copysign(90, path[:, 1].mean())
        border = [[180, height], [180, pole], [-180, pole], [-180, height]]
        return [_closed(_distinct(np.concatenate([path, border])))]
    path[1:, 0] = path[0, 0] + np.cumsum(steps[:-1])
    antimeridian = 180 if path[:, 0].max() > 180 else -180
    rings = []
    for side in (1, -1):
        part = _distinct(_clip(path, antimeridian, side))
        if side * antimeridian > 0:
            part[:, 0] -= 2 * antimeridian
        if len(part) > 2 and np.ptp(part[:, 0]) > 0:
            rings.append(_closed(part))
    return rings


def _distinct(path: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a polygon without repeated corners."""
    repeated: NDArray[np.bool_] = (path == np.roll(path, 1, axis=0)).all(axis=1)
    return path[~repeated]


def _clip(path: NDArray[np.float64], border: float, side: int) -> NDArray[np.float64]:
    """Return the part of a polygon (P, 2) where side * x >= side * border."""
    kept: list[tuple[float, float]] = []
    for (x1, y1), (x2, y2) in zip(path.tolist(), np.roll(path, -1, axis=0).tolist(), strict=True):
        if side * x1 >= side * border:
            kept.append((x1, y1))
        if (x1 - border) * (x2 - border) < 0:
            kept.append((border, y1 + (y2 - y1) * (border - x1) / (x2 - x1)))
    return np.array(kept, np.float64).reshape(-1, 2)
