"""Place the pixels of a drone photo on the ground: approximately, for photos taken straight down.

The ground is a horizontal plane below the camera at the altitude that the photo states, and the lens has no distortion.
Pixels are projected through the orientation of the camera onto this plane, whose coordinates are meters east and north
of the camera (an azimuthal equidistant projection, exact in distance and direction from the camera).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tinydet.runtime.scenes.camera_metadata import CameraMetadata, read_camera
from tinydet.runtime.scenes.georeference import Georeference, GeoreferenceError

NADIR = 10.0  # degrees; photos whose optical axis is farther from vertical are refused
# Standard errors of what a photo does not state.
POSITION_ERROR = 5.0  # m; of a satellite receiver without corrections
HEIGHT_ERROR = 0.05  # relative; of barometric altitude, and of ground that is not flat
LEAST_HEIGHT_ERROR = 1.0  # m
TILT_ERROR = 1.0  # degrees; of the optical axis
YAW_ERRORS = {"gimbal": 3.0, "other": 6.0}  # degrees; of a compass, and of an aircraft's yaw in place of the camera's


@dataclass(frozen=True)
class Footprint(Georeference):
    """The ground that a photo shows. Extends `Georeference`; `crs` is in meters around the point below the camera.

    Attributes:
        homography: 3 x 3, from pixels (column, row, 1) to homogeneous x and y in `crs`.
        height: of the camera above the ground, in meters.
        errors: standard errors of the position in meters, of the height and the focal length as fractions, of tilt and
            yaw in radians.
    """

    homography: tuple[tuple[float, float, float], ...] = ()
    height: float = 0.0
    errors: tuple[float, float, float, float, float] = (0.0, 0.0, 0.0, 0.0, 0.0)

    def shifted(self, x: int, y: int) -> Footprint:
        moved = np.array(self.homography) @ np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])
        return Footprint(self.transform, self.crs, _rows(moved), self.height, self.errors)

    def map_points(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        homogeneous = points @ np.array(self.homography)[:, :2].T + np.array(self.homography)[:, 2]
        return np.asarray(homogeneous[..., :2] / homogeneous[..., 2:])

    def position_errors(self, boxes: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the standard error of each box center in meters.

        It is the root of the sum of squares of five independent errors at the ground distance r from the point below
        the camera at height h: the position; r times the relative errors of height and focal length; (h² + r²) / h
        times the tilt; r times the yaw.
        """
        position, height, focal, tilt, yaw = self.errors
        r = np.linalg.norm(self.centers(boxes), axis=-1)
        oblique = (self.height**2 + r**2) / self.height
        errors = np.stack([np.full_like(r, position), r * height, r * focal, oblique * tilt, r * yaw])
        return np.asarray(np.sqrt((errors**2).sum(axis=0)))


def footprint_of(camera: CameraMetadata) -> Footprint:
    """Return the footprint of a photo.

    Raises:
        GeoreferenceError: the photo is oblique or cropped, or its metadata lacks a value. Names the photo and the
            reason.
    """
    if camera.lon_lat is None:
        raise GeoreferenceError(f"{camera.path}: its metadata has no GPS position")
    if abs(camera.lon_lat[1]) > 89.9:
        raise GeoreferenceError(f"{camera.path}: it was taken at a pole, where directions have no meaning")
    rotation, height, focal = _geometry(camera)
    right, down, axis = rotation.T / height  # the plane of the ground is at a distance of 1
    to_camera = np.array([[1.0, 0.0, -camera.size[0] / 2], [0.0, 1.0, -camera.size[1] / 2], [0.0, 0.0, focal]])
    # North, east, down -> east, north, homogeneous.
    stored = np.stack([right, down, axis], axis=1)[[1, 0, 2]] * [[height], [height], [1.0]] @ to_camera
    homography = stored @ _stored_pixels(camera.orientation, *camera.size)
    homography /= homography[2, 2]
    gsd = height / focal
    lon, lat = camera.lon_lat
    crs = f"+proj=aeqd +lat_0={lat:.12g} +lon_0={lon:.12g} +datum=WGS84 +units=m +no_defs"
    yaw = math.radians(YAW_ERRORS["gimbal" if camera.yaw_source not in ("flight yaw", "GPSImgDirection") else "other"])
    return Footprint(
        (gsd, 0.0, 0.0, 0.0, -gsd, 0.0),  # a pixel, as the tolerance of `lon_lat`
        crs,
        _rows(homography),
        height,
        (
            POSITION_ERROR if camera.position_error is None else camera.position_error,
            max(HEIGHT_ERROR, LEAST_HEIGHT_ERROR / height),
            camera.focal_error,
            math.radians(TILT_ERROR),
            yaw,
        ),
    )


def read_footprint(path: Path) -> Footprint:
    """Read the footprint of a photo.

    Raises:
        GeoreferenceError: as `footprint_of`; also for a file without camera metadata.
    """
    camera = read_camera(path)
    if camera is None:
        raise GeoreferenceError(f"{path}: it has no camera metadata (EXIF or XMP)")
    return footprint_of(camera)


def photo_ground_sample_distance(camera: CameraMetadata) -> tuple[float, str]:
    """Return the meters per pixel at the center of a photo that was taken straight down, and where they are from.

    Raises:
        GeoreferenceError: the photo is oblique or cropped, or its metadata lacks a value. Names the photo and the
            reason.
    """
    rotation, height, focal = _geometry(camera)
    return height / rotation[2, 2] / focal, f"altitude {height:g} m above take-off, {camera.focal_source}"


def _geometry(camera: CameraMetadata) -> tuple[NDArray[np.float64], float, float]:
    """Return the rotation from image right, image down and optical axis to north, east, down; height; focal length."""
    if camera.cropped:
        raise GeoreferenceError(f"{camera.path}: {camera.cropped}; use the file of the camera")
    if camera.angles is None:
        raise GeoreferenceError(f"{camera.path}: its metadata has no pitch and yaw of the camera")
    if camera.height is None or camera.height <= 0:
        stated = "no altitude" if camera.height is None else f"an altitude of {camera.height:g} m"
        raise GeoreferenceError(f"{camera.path}: its metadata states {stated} above the take-off point")
    if camera.focal is None:
        raise GeoreferenceError(f"{camera.path}: its metadata has no focal length with a size of the sensor")
    rotation = _rotation(*camera.angles, camera.convention)
    off_nadir = math.degrees(math.acos(min(max(rotation[2, 2], -1.0), 1.0)))
    if off_nadir > NADIR:
        raise GeoreferenceError(
            f"{camera.path}: an oblique photo, {off_nadir:.0f}° from straight down, where at most {NADIR:.0f}° can be "
            "placed on the ground"
        )
    return rotation, camera.height, camera.focal


def _rotation(yaw: float, pitch: float, roll: float, convention: str) -> NDArray[np.float64]:
    """Return the matrix whose columns are image right, image down and optical axis in the frame north, east, down."""
    y, p, r = (math.radians(angle) for angle in (yaw, pitch, roll))
    about_z = np.array([[math.cos(y), -math.sin(y), 0.0], [math.sin(y), math.cos(y), 0.0], [0.0, 0.0, 1.0]])
    about_y = np.array([[math.cos(p), 0.0, math.sin(p)], [0.0, 1.0, 0.0], [-math.sin(p), 0.0, math.cos(p)]])
    about_x = np.array([[1.0, 0.0, 0.0], [0.0, math.cos(r), -math.sin(r)], [0.0, math.sin(r), math.cos(r)]])
    ahead, right, below = (about_z @ about_y @ about_x).T
    columns = (right, below, ahead) if convention == "axis" else (right, -ahead, below)
    return np.stack(columns, axis=1)


def _stored_pixels(orientation: int, width: int, height: int) -> NDArray[np.float64]:
    """Return the matrix from upright pixels, after the EXIF orientation was applied, to pixels as stored."""
    w, h = float(width), float(height)
    rows = {
        1: ((1, 0, 0), (0, 1, 0)),
        2: ((-1, 0, w), (0, 1, 0)),
        3: ((-1, 0, w), (0, -1, h)),
        4: ((1, 0, 0), (0, -1, h)),
        5: ((0, 1, 0), (1, 0, 0)),
        6: ((0, 1, 0), (-1, 0, h)),
        7: ((0, -1, w), (-1, 0, h)),
        8: ((0, -1, w), (1, 0, 0)),
    }[orientation]
    return np.array([*rows, (0, 0, 1)], np.float64)


def _rows(matrix: NDArray[np.float64]) -> tuple[tuple[float, float, float], ...]:
    return tuple((float(a), float(b), float(c)) for a, b, c in matrix)
