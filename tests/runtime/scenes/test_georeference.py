"""Boxes on the earth: the antimeridian, the poles, and reference systems without longitude and latitude."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinydet.runtime.scenes import open_scene
from tinydet.runtime.scenes.georeference import Georeference, GeoreferenceError, georeference_of, read_georeference

rasterio = pytest.importorskip("rasterio")
pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")

Transform = tuple[float, float, float, float, float, float]
NORTH_POLE = Georeference((1, 0, -500, 0, -1, 500), "EPSG:3413")
SOUTH_POLE = Georeference((1, 0, -500, 0, -1, 500), "EPSG:3031")
FIJI = Georeference((0.1, 0, 819_400, 0, -0.1, 8_118_000), "EPSG:32760")  # crosses 180 degrees
LOCAL = 'LOCAL_CS["site grid",UNIT["metre",1],AXIS["Easting",EAST],AXIS["Northing",NORTH]]'
FULL_DISK = "+proj=geos +h=35785831 +lon_0=0 +sweep=y"  # a geostationary satellite's view


def raster(path: Path, crs: Any, transform: Transform | None, **options: Any) -> Path:
    affine = {} if transform is None else {"transform": rasterio.Affine(*transform)}
    shape = {"width": 40, "height": 30, "count": 1, "dtype": "uint8"}
    with rasterio.open(path, "w", driver="GTiff", crs=crs, **affine, **shape, **options) as file:
        file.write(np.zeros((1, 30, 40), np.uint8))
    return path


def lon_lat(georeference: Georeference, x: float, y: float) -> tuple[float, float]:
    """Longitude and latitude of a pixel position, by rasterio."""
    a, b, c, d, e, f = georeference.transform
    (lon,), (lat,) = rasterio.warp.transform(georeference.crs, "OGC:CRS84", [a * x + b * y + c], [d * x + e * y + f])
    return lon, lat


def contains(ring: np.ndarray, lon: float, lat: float) -> bool:
    """Whether a point is in a polygon, by the even-odd rule."""
    (x1, y1), (x2, y2) = ring[:-1].T, ring[1:].T
    crossed = (y1 > lat) != (y2 > lat)
    at = x1 + (x2 - x1) * (lat - y1) / np.where(crossed, y2 - y1, 1)
    return bool((crossed & (lon < at)).sum() % 2)


@pytest.mark.parametrize("size", [1e30, 1e300])
def test_coordinates_beyond_all_measure_have_no_longitude_and_take_no_time(tmp_path: Path, size: float) -> None:
    path = raster(tmp_path / "a.tif", "EPSG:3857", (size, 0, size, 0, -size, size))
    with open_scene(path) as scene:
        assert (scene.width, scene.height) == (40, 30)
    assert georeference_of(path) is None


@pytest.mark.parametrize(
    ("georeference", "spread", "side"), [(FIJI, 700, 60), (NORTH_POLE, 1000, 400), (SOUTH_POLE, 1000, 400)]
)
def test_polygons_contain_their_box_and_stay_within_180_degrees(
    georeference: Georeference, spread: int, side: int
) -> None:
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, spread - side, (60, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(side / 9, side, (60, 2))], axis=1)
    cut = around = 0
    for box, rings in zip(boxes, georeference.polygons(boxes), strict=True):
        for ring in rings:
            assert (ring[0] == ring[-1]).all()
            assert (np.abs(ring) <= (180, 90)).all()
            area = (ring[:-1, 0] * ring[1:, 1] - ring[1:, 0] * ring[:-1, 1]).sum()
            assert area > 0, "RFC 7946: an outer ring runs counterclockwise"
        has_pole = georeference is not FIJI and (box[:2] < 500).all() and (box[2:] > 500).all()
        widths = [float(np.ptp(ring[:, 0])) for ring in rings]
        if has_pole:
            assert widths == [360]
        else:
            assert max(widths) < 180
            assert len(rings) <= 2
        inner = lon_lat(georeference, *(box[:2] + box[2:]) / 2)
        if (
            georeference is FIJI or has_pole
        ):  # elsewhere near a pole, straight sides are curves of longitude and latitude
            assert sum(contains(ring, *inner) for ring in rings) == 1
        cut, around = cut + (len(rings) == 2), around + has_pole
    assert cut
    assert around or georeference is FIJI


@pytest.mark.parametrize(("georeference", "latitude"), [(NORTH_POLE, 90), (SOUTH_POLE, -90)])
def test_a_box_with_a_corner_at_the_pole_ends_in_its_two_meridians(georeference: Georeference, latitude: int) -> None:
    ((ring,),) = georeference.polygons(np.array([[500, 500, 510, 510]]))
    at_pole = ring[:-1][ring[:-1, 1] == latitude]
    assert len(at_pole) == 2
    assert np.ptp(at_pole[:, 0]) == pytest.approx(90)
    assert contains(ring, *lon_lat(georeference, 505, 503))


@pytest.mark.parametrize("turn", [-360, 0])
def test_longitudes_of_another_turn_are_brought_to_180(turn: int) -> None:
    boxes = np.random.default_rng(1).uniform(0, 90, (20, 2))
    boxes = np.concatenate([boxes, boxes + 5], axis=1)
    expected = Georeference((0.1, 0, 175, 0, -0.1, 10), "EPSG:4326")
    shifted = Georeference((0.1, 0, 175 + turn, 0, -0.1, 10), "EPSG:4326")
    for rings, others in zip(expected.polygons(boxes), shifted.polygons(boxes), strict=True):
        assert len(rings) == len(others)
        for ring, other in zip(rings, others, strict=True):
            np.testing.assert_allclose(ring, other, atol=1e-9)


def test_web_mercator_may_continue_beyond_the_antimeridian() -> None:
    world = 20037508.342789244
    georeference = Georeference((10, 0, world - 100, 0, -10, 0), "EPSG:3857")
    assert [len(rings) for rings in georeference.polygons(np.array([[0, 0, 5, 5], [5, 0, 15, 5], [15, 0, 20, 5]]))] == [
        1, 2, 1
    ]  # fmt: skip
    found = georeference.lon_lat(np.array([[world + 1000, 0]]))
    assert found[0, 0] == pytest.approx(-180 + 1000 / world * 180)


@pytest.mark.parametrize(
    ("crs", "point"),
    [
        ("EPSG:4326", (10, 90.5)),
        ("EPSG:4326", (1000, 10)),
        ("EPSG:4267", (10, -150)),
        ("EPSG:32633", (5e8, 5e8)),
        ("EPSG:3857", (1e9, 0)),
        ("EPSG:3857", (0, 1e9)),
        ("EPSG:4807", (5, 150)),
        (FULL_DISK, (5.5e6, 5.5e6)),
        ("EPSG:32633", (np.nan, 5e6)),
        ("EPSG:32633", (np.inf, 5e6)),
    ],
)
def test_a_point_without_longitude_and_latitude_is_nan_and_spares_the_others(
    crs: str, point: tuple[float, float]
) -> None:
    georeference = Georeference((1, 0, 0, 0, -1, 0), crs)
    good = rasterio.warp.transform("OGC:CRS84", crs, [10.0], [40.0])
    points = np.array([point, *np.transpose(good), point])
    found = georeference.lon_lat(points)
    assert np.isnan(found[[0, 2]]).all()
    assert found[1] == pytest.approx((10, 40), abs=1e-6)


NORTH_UP = (0.1, 0, 5e5, 0, -0.1, 5e6)


@pytest.mark.parametrize(
    ("crs", "transform", "reason"),
    [
        (LOCAL, NORTH_UP, "local"),
        ("EPSG:4978", NORTH_UP, "local"),  # geocentric
        ("EPSG:32633", (0.1, 0, 5e8, 0, -0.1, 5e8), "has none there"),
        ("EPSG:4326", (1e-6, 0, 10, 0, -1e-6, 150), "has none there"),
        ("EPSG:4326", NORTH_UP, "has none there"),
        ("IAU_2015:49910", NORTH_UP, "has none there"),  # Mars
        ("EPSG:32633", (0.1, 0.1, 5e5, 0.1, 0.1, 5e6), "to a line"),
    ],
)
def test_an_unusable_georeference_is_an_error_that_names_the_file(
    crs: str, transform: Transform, reason: str, tmp_path: Path
) -> None:
    try:
        path = raster(tmp_path / "a.tif", crs, transform)
    except rasterio.errors.CRSError:
        pytest.skip("this PROJ has no such reference system")
    with pytest.raises(GeoreferenceError, match=rf"a\.tif.*{reason}"):
        read_georeference(path)
    assert georeference_of(path) is None


def test_ground_control_points_and_rpcs_are_named(tmp_path: Path) -> None:
    corners = [(0, 0, 10, 50), (0, 40, 11, 50), (30, 0, 10, 49), (30, 40, 11, 49)]
    points = [rasterio.control.GroundControlPoint(*corner) for corner in corners]
    with pytest.raises(GeoreferenceError, match=r"4 ground control points.*gdalwarp"):
        read_georeference(raster(tmp_path / "gcps.tif", "EPSG:4326", None, gcps=points))
    zeros = [0.0] * 20
    rpcs = rasterio.rpc.RPC(0, 1, 50, 1, zeros, zeros, 0, 1, 10, 1, zeros, zeros, 0, 1, 0, 1)
    with pytest.raises(GeoreferenceError, match=r"RPCs.*gdalwarp"):
        read_georeference(raster(tmp_path / "rpcs.tif", None, None, rpcs=rpcs))


def test_a_raster_that_is_partly_off_the_earth_is_read(tmp_path: Path) -> None:
    path = raster(tmp_path / "disk.tif", FULL_DISK, (3e5, 0, -6e6, 0, -4e5, 6e6))
    georeference = read_georeference(path)
    assert georeference is not None
    counts = [len(rings) for rings in georeference.polygons(np.array([[0, 0, 2, 2], [20, 15, 21, 16]]))]
    assert counts == [0, 1]


@pytest.mark.parametrize("crs", ["EPSG:4979", "EPSG:32633+5773", "EPSG:7415", "EPSG:31468", "EPSG:2393"])
def test_the_horizontal_part_counts_and_x_comes_first(crs: str, tmp_path: Path) -> None:
    """Some of these name their northing first, or have heights; the geotransform of a raster is x, y."""
    (x,), (y,) = rasterio.warp.transform("OGC:CRS84", crs, [12.0], [52.0])
    pixel = 1e-6 if abs(x) < 360 else 0.1
    georeference = read_georeference(raster(tmp_path / "a.tif", crs, (pixel, 0, x, 0, -pixel, y)))
    assert georeference is not None
    ((ring,),) = georeference.polygons(np.array([[0, 0, 10, 10]]))
    assert ring[0] == pytest.approx((12, 52), abs=1e-4)
    assert ring[2, 0] > ring[0, 0]  # to the right is east
    assert ring[1, 1] < ring[0, 1]  # down is south


@pytest.mark.parametrize(
    ("crs", "transform", "expected"),
    [
        ("EPSG:32633", NORTH_UP, 0.1),
        ("EPSG:2263", (1, 0, 1e6, 0, -1, 2e5), 0.3048006),  # US survey feet
        ("EPSG:3857", (0.1, 0, 1e6, 0, -0.1, 8_399_738), 0.05),  # Web Mercator at 60 degrees
        ("EPSG:4326", (1e-6, 0, 10, 0, -1e-6, 60), 0.0787),
        ("EPSG:4807", (1e-6, 0, 10, 0, -1e-6, 54), 0.0815),  # grads from Paris
        ("EPSG:3413", (1, 0, -20, 0, -1, 15), 1.0),  # the pole in the middle
        ("EPSG:4326", (1e-6, 0, 10, 0, -1e-6, 150), None),
        ("EPSG:32633", (0.1, 0.1, 5e5, 0.1, 0.1, 5e6), None),
        (LOCAL, NORTH_UP, None),
    ],
)
def test_the_ground_sample_distance_is_in_meters_on_the_ground(
    crs: str, transform: Transform, expected: float | None, tmp_path: Path
) -> None:
    with open_scene(raster(tmp_path / "a.tif", crs, transform)) as scene:
        assert scene.gsd == (None if expected is None else pytest.approx(expected, rel=1e-3))


def test_a_part_of_a_raster_keeps_its_place_on_the_earth() -> None:
    turned = Georeference((0.5, -0.2, 400_000, -0.2, -0.5, 5_000_000), "EPSG:32633")
    boxes = np.array([[3.0, 4, 10, 12], [0, 0, 1, 1]])
    part = turned.shifted(7, 20)
    assert np.allclose(part.corners(boxes), turned.corners(boxes + np.array([7, 20, 7, 20])), rtol=0, atol=1e-6)
