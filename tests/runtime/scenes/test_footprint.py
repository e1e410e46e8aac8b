"""Places on the ground are compared with closed forms: similar triangles, and the curvature of the ellipsoid."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.ExifTags import Base

from tests.support.drone_photos import LENS, NADIR, gps, write_photo, xmp
from tinydet.runtime.scenes.camera_metadata import CameraMetadata, read_camera
from tinydet.runtime.scenes.footprint import Footprint, footprint_of, photo_ground_sample_distance, read_footprint
from tinydet.runtime.scenes.georeference import GeoreferenceError

pytest.importorskip("rasterio")
WIDTH, HEIGHT, ABOVE, FOCAL = 600, 400, 100.0, 500.0
CENTER = np.array([[WIDTH / 2, HEIGHT / 2, WIDTH / 2, HEIGHT / 2]])


def camera(**changes: Any) -> CameraMetadata:
    values: dict[str, Any] = {
        "path": Path("photo.jpg"),
        "size": (WIDTH, HEIGHT),
        "lon_lat": (8.25, 47.5),
        "height": ABOVE,
        "angles": (0.0, -90.0, 0.0),
        "yaw_source": "GimbalYawDegree",
        "focal": FOCAL,
        "focal_error": 0.04,
    }
    return CameraMetadata(**{**values, **changes})


def meters_from(lon_lat: tuple[float, float], places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Meters east and north of a position for places (N, 2) close to it, by the radii of curvature of WGS 84."""
    a, e2 = 6378137.0, 6.69437999014e-3
    lat = math.radians(lon_lat[1])
    w = math.sqrt(1 - e2 * math.sin(lat) ** 2)
    meridian, prime = a * (1 - e2) / w**3, a / w
    offset = np.radians((places - lon_lat + 180) % 360 - 180)
    # The radius of the parallel changes on the way: take it halfway.
    halfway = np.cos(lat + offset[:, 1] / 2)
    return np.stack([offset[:, 0] * prime * halfway, offset[:, 1] * meridian], axis=1)


@pytest.mark.parametrize("yaw", [0.0, 37.1, -90.0, 180.0, 400.0])
@pytest.mark.parametrize("lon_lat", [(8.25, 47.5), (-70.0, -33.0), (0.0001, 0.0), (25.0, 78.0)])
def test_a_nadir_photo_is_a_rotated_rectangle_of_known_size(yaw: float, lon_lat: tuple[float, float]) -> None:
    boxes = np.array([[x, y, x, y] for x, y in ((0, 0), (WIDTH, 0), (WIDTH, HEIGHT), (300, 200), (411, 37))], float)
    footprint = footprint_of(camera(angles=(yaw, -90.0, 0.0), lon_lat=lon_lat))
    found = meters_from(lon_lat, footprint.lon_lat(footprint.centers(boxes)))
    right, up = (boxes[:, 0] - WIDTH / 2) * ABOVE / FOCAL, (HEIGHT / 2 - boxes[:, 1]) * ABOVE / FOCAL
    turn = math.radians(yaw)  # clockwise from north
    east = right * math.cos(turn) + up * math.sin(turn)
    north = -right * math.sin(turn) + up * math.cos(turn)
    np.testing.assert_allclose(found, np.stack([east, north], axis=1), atol=2e-3)


@pytest.mark.parametrize("tilt", [-8.0, -3.0, 5.0])
def test_a_tilted_axis_meets_the_ground_ahead_of_the_camera(tilt: float) -> None:
    footprint = footprint_of(camera(angles=(90.0, -90.0 + tilt, 0.0)))
    east, north = footprint.centers(CENTER)[0]
    assert (east, north) == pytest.approx((ABOVE * math.tan(math.radians(tilt)), 0.0), abs=1e-9)
    x, y = WIDTH / 2, HEIGHT / 2 - 150
    ahead = footprint.centers(np.array([[x, y, x, y]]))[0, 0]
    assert ahead == pytest.approx(ABOVE * math.tan(math.radians(tilt) + math.atan(150 / FOCAL)))


def test_the_pitch_of_a_mounted_camera_counts_from_straight_down() -> None:
    axis, mount = (
        footprint_of(camera(angles=(20.0, pitch, 0.0), convention=convention))
        for pitch, convention in ((-86.0, "axis"), (4.0, "mount"))
    )
    np.testing.assert_allclose(axis.homography, mount.homography, atol=1e-12)
    rolled = footprint_of(camera(angles=(0.0, 0.0, 5.0), convention="mount"))
    east, north = rolled.centers(CENTER)[0]  # the right wing is down, so that the camera looks to the left
    assert (east, north) == pytest.approx((-ABOVE * math.tan(math.radians(5)), 0.0), abs=1e-9)


def test_a_roll_of_180_degrees_straight_down_is_half_a_turn() -> None:
    rolled, turned = footprint_of(camera(angles=(30.0, -90.0, 180.0))), footprint_of(camera(angles=(210.0, -90.0, 0.0)))
    np.testing.assert_allclose(rolled.homography, turned.homography, atol=1e-12)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_yaw_refers_to_the_sensor_whatever_the_orientation(tmp_path: Path, orientation: int) -> None:
    """A mark on the sensor has one place, wherever the orientation moves it in the upright picture."""
    pixels = Image.new("L", (60, 40))
    pixels.putpixel((50, 5), 255)
    path = write_photo(tmp_path / "a.png", pixels=pixels, orientation=orientation)
    with Image.open(path) as stored:
        upright = np.asarray(ImageOps.exif_transpose(stored))
    row, column = np.argwhere(upright == 255)[0]
    footprint = read_footprint(path)
    found = footprint.centers(np.array([[column, row, column + 1, row + 1]]))[0]
    found_camera = read_camera(path)
    assert found_camera is not None
    assert found_camera.focal is not None
    gsd = ABOVE / found_camera.focal
    np.testing.assert_allclose(found, [(50.5 - 30) * gsd, (20 - 5.5) * gsd])


def test_a_part_of_a_photo_keeps_its_place() -> None:
    footprint = footprint_of(camera(angles=(12.0, -84.0, 1.0)))
    box = np.array([[120.0, 130.0, 140.0, 135.0]])
    part = footprint.shifted(100, 90)
    assert isinstance(part, Footprint)
    np.testing.assert_allclose(part.corners(box - [100, 90, 100, 90]), footprint.corners(box))
    np.testing.assert_allclose(part.position_errors(box - [100, 90, 100, 90]), footprint.position_errors(box))


def test_the_error_is_the_root_of_the_sum_of_squares_of_its_parts() -> None:
    """Each part is found by moving one value of the metadata by its error, far from the center and alone."""
    box = np.array([[570.0, 200.0, 570.0, 200.0]])
    exact = camera()
    place = footprint_of(exact).centers(box)
    r = (570 - 300) * ABOVE / FOCAL

    def moved(**changes: Any) -> float:
        return float(np.linalg.norm(footprint_of(camera(**changes)).centers(box) - place))

    parts = [
        5.0,
        moved(height=ABOVE * 1.05),
        moved(focal=FOCAL / 1.04),
        moved(angles=(3.0, -90.0, 0.0)),
        # The tilt toward the box; a pitch across it moves it less.
        ABOVE * (math.tan(math.atan(r / ABOVE) + math.radians(1.0)) - r / ABOVE),
    ]
    stated = footprint_of(exact).position_errors(box)[0]
    assert stated == pytest.approx(math.sqrt(sum(part**2 for part in parts)), rel=0.01)


def test_the_error_below_the_camera_is_that_of_position_and_tilt() -> None:
    errors = footprint_of(camera(position_error=0.05)).position_errors(CENTER)
    assert errors[0] == pytest.approx(math.hypot(0.05, ABOVE * math.radians(1)))


def test_a_footprint_across_the_antimeridian_is_cut() -> None:
    lon_lat = (179.99999, -17.0)
    (polygons,) = footprint_of(camera(lon_lat=lon_lat)).polygons(np.array([[250.0, 150.0, 350.0, 250.0]]))
    assert len(polygons) == 2
    signs = {float(np.sign(ring[:, 0]).max()) for ring in polygons if np.abs(ring[:, 0]).min() > 179.99}
    assert signs == {1.0, -1.0}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"angles": (0.0, -45.0, 0.0)}, "an oblique photo, 45° from straight down, where at most 10° can be placed"),
        ({"angles": (0.0, 0.0, 0.0)}, "an oblique photo, 90°"),
        ({"angles": None}, "no pitch and yaw"),
        ({"lon_lat": None}, "no GPS position"),
        ({"height": None}, "states no altitude above the take-off point"),
        ({"height": -3.5}, "states an altitude of -3.5 m"),
        ({"focal": None}, "no focal length"),
        ({"cropped": "it is cropped"}, "it is cropped; use the file of the camera"),
        ({"lon_lat": (0.0, 90.0)}, "at a pole"),
    ],
)
def test_a_photo_without_a_footprint_is_refused_with_its_reason(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(GeoreferenceError, match=f"^photo.jpg: .*{reason}"):
        footprint_of(camera(**changes))


def test_a_file_without_metadata_has_no_footprint(tmp_path: Path) -> None:
    Image.new("RGB", (60, 40)).save(tmp_path / "a.jpg")
    with pytest.raises(GeoreferenceError, match=r"a\.jpg: it has no camera metadata \(EXIF or XMP\)"):
        read_footprint(tmp_path / "a.jpg")


def test_the_ground_sample_distance_is_altitude_over_focal_length(tmp_path: Path) -> None:
    lens = {**LENS, Base.FocalLengthIn35mmFilm: 36}
    found = read_camera(write_photo(tmp_path / "a.jpg", lens=lens, position=gps(1, 1), packet=xmp(NADIR)))
    assert found is not None
    gsd, origin = photo_ground_sample_distance(found)
    assert gsd == pytest.approx(100 * 36 / 36 / 600)  # 3:2 as film: a lens of 36 mm sees 100 m from 100 m
    assert origin == "altitude 100 m above take-off, FocalLengthIn35mmFilm 36 mm"
    with pytest.raises(GeoreferenceError, match="an oblique photo, 30°"):
        photo_ground_sample_distance(camera(angles=(0.0, -60.0, 0.0)))
