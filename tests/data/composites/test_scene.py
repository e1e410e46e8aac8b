"""Boxes, shadows and occlusion on scenes whose result can be worked out by hand."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.support.stick_figure import write_stick_figure
from tinydet.data.composites.background import LOT, Background, Building, Real
from tinydet.data.composites.body import Body, load_body
from tinydet.data.composites.camera import look
from tinydet.data.composites.layout import Item
from tinydet.data.composites.mesh import Mesh, box
from tinydet.data.composites.people import POSES, person
from tinydet.data.composites.rendering import Light, shadow_of
from tinydet.data.composites.scene import _draw, _in_order, compose
from tinydet.data.composites.streets import draw_streets

GRAY = (90.0, 90.0, 90.0)


@pytest.fixture(scope="module")
def body(tmp_path_factory: pytest.TempPathFactory) -> Body:
    return load_body(write_stick_figure(tmp_path_factory.mktemp("mesh")))


def light(azimuth: float = 0.0, height: float = 45.0, direct: float = 0.6) -> Light:
    a, h = np.radians((azimuth, height))
    sun = np.array((np.cos(h) * np.cos(a), np.cos(h) * np.sin(a), np.sin(h)))
    return Light(sun, direct, 0.5, np.ones(3))


def ground(depression: float = 90.0, real: list[Real] | None = None) -> Background:
    """A gray plane, 10 pixels per meter from 100 m above."""
    focal = 1000 / np.sin(np.radians(depression))
    camera = look(100, depression, 90, focal, (100, 100))
    color = np.full((200, 200, 3), 150, np.float32)
    return Background(color, np.full((200, 200), LOT, np.uint8), camera, 1.0, "test", real=real or [])


def item(mesh: Mesh, x: float, y: float, category: str = "vehicle", **more: bool) -> Item:
    return Item(category, "box", mesh.moved(x, y), None, x, y, **more)


def slab(length: float, width: float, height: float = 0.001) -> Mesh:
    return box((-length / 2, length / 2), (-width / 2, width / 2), (0, height), GRAY)


def test_the_box_is_that_of_the_covered_pixels() -> None:
    _, labels = _draw(ground(), [item(slab(4, 2), 0, 0)], light())
    assert [(label.category, label.ignore) for label in labels] == [("vehicle", False)]
    np.testing.assert_allclose(labels[0].box, (80, 90, 40, 20), atol=1)  # 4 m along x, 2 m along y, around (100, 100)


@pytest.mark.parametrize("depression", [90.0, 60.0, 45.0])
def test_only_pixels_inside_the_box_change(depression: float) -> None:
    background = ground(depression)
    middle = background.camera.ground(np.array([(100.0, 100.0)]))[0]
    thing = item(slab(3, 1.8, 1.5).turned(0.6), *middle.tolist())
    before, _ = _draw(background, [], light())
    after, (label,) = _draw(background, [thing], light())
    rows, columns = np.nonzero(np.abs(after - before).max(axis=2) > 25)
    x, y, w, h = label.box
    assert abs(columns.min() - x) <= 1 and abs(columns.max() + 1 - x - w) <= 1
    assert abs(rows.min() - y) <= 1 and abs(rows.max() + 1 - y - h) <= 1


def test_the_box_shrinks_to_what_is_visible() -> None:
    background = ground(45)
    x, y = background.camera.ground(np.array([(100.0, 100.0)]))[0].tolist()
    thing, wall = item(slab(4, 1), x, y), item(slab(2, 0.2, 3), x + 1, y - 1, "")
    _, (label,) = _draw(background, [thing, wall], light())
    left, right = label.box[0], label.box[0] + label.box[2]
    assert (left, right) == pytest.approx((80, 100), abs=2)  # the wall hides the right half
    assert not label.ignore


def test_an_object_that_is_mostly_hidden_is_an_ignore_region_and_a_hidden_one_has_no_label() -> None:
    background = ground(45)
    x, y = background.camera.ground(np.array([(100.0, 100.0)]))[0].tolist()
    thing = item(slab(4, 1), x, y)
    _, (label,) = _draw(background, [thing, item(slab(4, 0.2, 3), x + 1, y - 1, "")], light())
    assert label.ignore
    _, labels = _draw(background, [thing, item(slab(6, 0.2, 3), x, y - 1, "")], light())
    assert labels == []


def test_a_crown_hides_who_stands_below_it() -> None:
    crown = box((-2, 2), (-2, 2), (5, 6), GRAY).moved(1, 0)
    tree = Item("", "tree", crown, None, 1.0, 0.0, static=True)
    _, labels = _draw(ground(), [item(slab(0.5, 0.5, 1.7), 0.3, 0.2, "person"), tree], light())
    assert labels == []


def test_a_building_hides_who_stands_behind_it_and_not_who_stands_before_it() -> None:
    background = ground(45)
    x, y = background.camera.ground(np.array([(100.0, 100.0)]))[0].tolist()
    hull = box((x - 6, x + 6), (y - 2, y + 2), (0, 12), (200, 200, 200))
    background.buildings.append(Building((x - 6, y - 2, x + 6, y + 2), hull, hull))
    before, behind = item(slab(1, 1, 1), x, y - 4), item(slab(1, 1, 1), x, y + 4)
    _, labels = _draw(background, [behind, before], light())
    assert len(labels) == 1
    assert labels[0].box[1] > 100  # the camera looks towards y, so what is nearer is lower


def test_everything_behind_a_building_is_drawn_before_it() -> None:
    eye = np.array((0.0, 0.0, 50.0))
    hull = slab(1, 1)
    houses = [Building((x, 4, x + 6, 8), hull, hull) for x in (-8, 2)]
    rng = np.random.default_rng(0)
    things = [item(hull, *rng.uniform((-12, 0), (12, 14)).tolist()) for _ in range(200)]
    ordered = _in_order(things, houses, eye)
    numbers = {id(each): n for n, each in enumerate(ordered)}
    for house in houses:
        x1, y1, x2, y2 = house.footprint
        for thing in things:
            steps = np.linspace(0, 1, 400)[:, None] * (thing.x, thing.y)
            inside = ((steps > (x1, y1)) & (steps < (x2, y2))).all(axis=1)
            if inside.sum() > 2:
                assert numbers[id(thing)] < numbers[id(house)]


@pytest.mark.parametrize("azimuth", [0.0, 90.0, 200.0])
def test_a_shadow_points_away_from_the_sun_and_is_as_long_as_the_object_is_high_at_45_degrees(azimuth: float) -> None:
    mask = shadow_of(slab(0.4, 0.4, 5), ground().camera, light(azimuth), (200, 200))
    assert mask is not None
    rows, columns = np.nonzero(mask.coverage > 0.5)
    points = np.column_stack([columns + mask.left, rows + mask.top]) - 100
    away = -np.array((np.cos(np.radians(azimuth)), -np.sin(np.radians(azimuth))))  # y is up in the world
    assert (points @ away).max() == pytest.approx(50, abs=4)
    assert np.abs(points @ (-away[1], away[0])).max() < 6


def test_shadows_darken_the_ground_by_the_share_of_the_sun() -> None:
    thing = item(slab(1, 1, 6), 0, 0)._replace(shadow=slab(1, 1, 6))
    image, _ = _draw(ground(), [thing], light())
    shadow = image[98:102, 65:75].mean() / 150  # the sun is at +x
    assert shadow == pytest.approx(0.5 / (0.5 + 0.6 * np.sin(np.radians(45))), abs=0.02)


def test_real_objects_keep_their_boxes() -> None:
    real = Real("vehicle", (10.0, 20.0, 40.0, 30.0), False)
    _, (label,) = _draw(ground(real=[real]), [], light())
    assert label[:3] == ("vehicle", (10.0, 20.0, 30.0, 10.0), False)


@pytest.mark.parametrize("pose", POSES)
def test_people_have_the_size_of_people(body: Body, pose: str) -> None:
    rng = np.random.default_rng(3)
    heights = []
    for _ in range(12):
        low, high = (bound(person(rng, body, 0, pose, 0.3).vertices, axis=0) for bound in (np.min, np.max))
        heights.append(high[2] - max(low[2], 0))
        assert np.ptp((low[:2], high[:2]), axis=0).max() < 3
    if pose in ("stand", "walk"):
        assert min(heights) > 0.8 and max(heights) < 2.3
    if pose == "lie":
        assert np.median(heights) < 0.8


def test_the_seed_and_the_number_determine_the_image(body: Body) -> None:
    first, second = (compose((4, 11), (160, 128), [], 1.0, body) for _ in range(2))
    assert first.jpeg == second.jpeg
    assert first.labels == second.labels
    assert compose((4, 12), (160, 128), [], 1.0, body).jpeg != first.jpeg


@pytest.mark.parametrize("n", range(6))
def test_labels_lie_inside_the_image(body: Body, n: int) -> None:
    composite = compose((0, n), (192, 160), [], 1.0, body)
    pixels = cv2.imdecode(np.frombuffer(composite.jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert pixels.shape == (160, 192, 3)
    for label in composite.labels:
        x, y, w, h = label.box
        assert x >= 0 and y >= 0 and w > 0 and h > 0 and x + w <= 192 and y + h <= 160


def test_vehicles_stand_on_roads_and_in_parking_lots() -> None:
    for seed in range(4):
        background = draw_streets(np.random.default_rng(seed), 96, 96)
        assert background.surface.shape == (96, 96)
        assert np.isfinite(background.color).all()
        for place in background.places:
            assert np.isfinite((place.x, place.y, place.heading)).all()


def test_the_real_mesh_looks_like_a_person_from_above(shared: Path) -> None:
    folder = shared / "data" / "makehuman-cc0"
    if not folder.is_dir():
        pytest.skip(f"needs the mesh in {folder}")
    mesh = load_body(folder)
    rng = np.random.default_rng(0)
    for level in range(len(mesh.levels)):
        figure = person(rng, mesh, level, "stand", 0.0)
        low, high = figure.vertices.min(axis=0), figure.vertices.max(axis=0)
        assert high[2] - low[2] == pytest.approx(1.7, abs=0.9)
        assert np.isfinite(figure.vertices).all()
        assert (high - low)[:2].max() < 1.9
    assert len(mesh.levels[0].faces) > 2 * len(mesh.levels[1].faces) > 2 * len(mesh.levels[2].faces)
