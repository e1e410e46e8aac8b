from __future__ import annotations

import numpy as np
import pytest

from tinydet.data.composites.camera import look

VIEWS = [(90.0, 0.0), (80.0, 130.0), (45.0, -60.0), (60.0, 300.0)]


@pytest.mark.parametrize(("depression", "azimuth"), VIEWS)
def test_a_ground_point_is_seen_where_it_projects(depression: float, azimuth: float) -> None:
    camera = look(60, depression, azimuth, 900, (320, 240))
    pixels = np.array([(320, 240), (10, 470), (600, 300)], float)
    ground = camera.ground(pixels)
    again, depth = camera.project(np.column_stack([ground, np.zeros(3)]))
    np.testing.assert_allclose(again, pixels, atol=1e-6)
    assert (depth > 0).all()


def test_straight_down_the_scale_is_focal_length_over_altitude() -> None:
    camera = look(50, 90, 0, 1000, (320, 320))
    assert camera.scale(3, -7) == pytest.approx(20)
    (a, b), _ = camera.project(np.array([(0, 0, 0), (1, 0, 0)], float))
    assert np.linalg.norm(a - b) == pytest.approx(20)


def test_a_raised_point_leans_away_from_the_middle_of_a_photo_from_above() -> None:
    camera = look(50, 90, 90, 1000, (320, 320))
    (foot, top), _ = camera.project(np.array([(5, 2, 0), (5, 2, 10)], float))
    np.testing.assert_allclose((top - 320) / (foot - 320), 50 / 40)


def test_the_direction_of_view_is_up_in_the_image() -> None:
    camera = look(50, 60, 0, 1000, (320, 320))
    (near, far, left), _ = camera.project(np.array([(20, 0, 0), (40, 0, 0), (30, 5, 0)], float))
    assert far[1] < near[1]
    assert left[0] < 320


@pytest.mark.parametrize(("depression", "azimuth"), VIEWS)
def test_the_homography_of_a_plane_agrees_with_the_projection(depression: float, azimuth: float) -> None:
    camera = look(60, depression, azimuth, 900, (320, 240))
    points = np.array([(10, 20), (-15, 8), (3, 40)], float)
    mapped = np.column_stack([points, np.ones(3)]) @ camera.homography(4.0).T
    expected, _ = camera.project(np.column_stack([points, np.full(3, 4.0)]))
    np.testing.assert_allclose(mapped[:, :2] / mapped[:, 2:], expected)


def test_nothing_on_the_ground_is_seen_above_the_horizon() -> None:
    camera = look(60, 20, 0, 500, (320, 240))
    above, below = camera.ground(np.array([(320, 0), (320, 400)], float))
    assert np.isnan(above).all()
    assert np.isfinite(below).all()


def test_a_part_of_an_image_has_the_camera_of_the_image() -> None:
    camera = look(60, 70, 10, 900, (320, 240))
    affine = np.array(((0.5, 0.1, -20), (-0.1, 0.5, 30)))
    point = np.array([(4.0, 9.0, 1.0)])
    (pixel,), (moved,) = camera.project(point)[0], camera.transformed(affine).project(point)[0]
    np.testing.assert_allclose(moved, affine[:, :2] @ pixel + affine[:, 2])
