"""Distractors: objects other than people, most of them of the size or the shape of a person."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tinydet.data.scenery.colors import CLOTH, Color, dim
from tinydet.data.scenery.ground import Ground
from tinydet.data.scenery.noise import smooth_noise
from tinydet.data.scenery.placement import Placement
from tinydet.data.scenery.sprites import Canvas, Sprite, lift
from tinydet.data.scenery.view import View


def place_distractors(rng: np.random.Generator, view: View, ground: Ground) -> list[Sprite]:
    """Draw a random number of distractors, each on a ground material that suits it, some in small groups."""
    amount = rng.poisson(view.width * view.height / 1e6 * rng.uniform(60, 190))
    sprites: list[Sprite] = []
    for x, y in rng.uniform((0, 0), (view.width, view.height * 1.04), (amount, 2)).tolist():
        material = ground.material(x, y)
        if material == "water" and rng.random() > 0.15 + np.exp(ground.shore_distance_at(x, y) / (14 * view.unit)):
            continue  # fewer far from the shore
        draw = _BY_MATERIAL[material][int(rng.integers(len(_BY_MATERIAL[material])))]
        heading = ground.heading if material in ("road", "promenade") else float(rng.uniform(0, 2 * np.pi))
        stature = view.stature(y)
        for _ in range(1 if draw is _car or rng.random() < 0.7 else int(rng.integers(2, 5))):
            sprites += draw(Placement(rng, view, x, y, stature * float(rng.lognormal(0, 0.12)), heading))
            x, y = x + rng.normal(0, 1.2 * stature), y + rng.normal(0, 0.8 * stature)
    return sprites


def cloth(place: Placement, length: float, width: float) -> Sprite:
    """Draw a rectangle of cloth on the ground."""
    canvas = place.canvas(length, length, length)
    canvas.polygon(place.rectangle(length, width), place.pick_color(*CLOTH))
    return canvas.sprite(place.view, flat=True)


def surfboard(place: Placement) -> list[Sprite]:
    """Draw an elongated board: a surfboard, an airbed or a kayak."""
    length, width, color = place.uniform(0.5, 0.8), place.uniform(0.13, 0.22), place.pick_color(*CLOTH)
    canvas = place.canvas(1.2, 1.2, 1.2)
    canvas.ellipse((0, 0), length, width, color, np.degrees(place.heading))
    canvas.ellipse((0, 0), length * 0.6, width * 0.45, place.pick_color(color), np.degrees(place.heading))
    return [canvas.sprite(place.view, flat=True)]


def foam(place: Placement, reach: float, strength: float) -> Sprite:
    """Draw disturbed water around an object, up to `reach` statures away."""
    reach *= place.stature
    half = int(np.ceil(1.3 * reach)) + 1
    left, top = round(place.x) - half, round(place.y) - half
    axis = np.arange(2 * half + 1, dtype=np.float32)
    x, y = (axis[None] + left - place.x) / (1.3 * reach), (axis[:, None] + top - place.y) / (0.7 * reach)
    bubbles = np.clip(0.5 + 0.8 * smooth_noise(place.rng, (len(axis), len(axis)), max(1.6, reach / 5)), 0, 1)
    coverage = (np.clip(1 - (x**2 + y**2), 0, 1) * bubbles * strength).astype(np.float32)
    empty_box = (place.x, place.y, place.x, place.y)
    return Sprite(left, top, coverage, coverage[..., None] * np.float32(240), (place.x, place.y), empty_box, flat=True)


def _foliage(place: Placement, canvas: Canvas, up: float, half_width: float, half_height: float, color: Color) -> None:
    """Draw tufts of leaves in an elliptical crown, brighter at the top and on the side of the sun."""
    tufts = int(np.clip(5 * half_width * place.stature, 14, 300))
    angles, radii = place.rng.uniform(0, 2 * np.pi, tufts), np.sqrt(place.rng.random(tufts))
    offsets = np.stack([np.cos(angles) * radii, np.sin(angles) * radii], axis=1)
    lights = offsets @ np.array((0.18 * place.view.sun_side, 0.22))
    for n in np.argsort(lights + place.rng.normal(0, 0.07, tufts)).tolist():
        size, light = place.uniform(0.8, 1.7) * tufts**-0.5, 0.78 + lights[n] + place.rng.normal(0, 0.1)
        center = (offsets[n, 0] * half_width, up + offsets[n, 1] * half_height)
        canvas.ellipse(center, size * half_width, size * half_height, dim(color, light))


def _tree(place: Placement) -> list[Sprite]:
    crown, trunk = place.uniform(0.9, 2.2), place.uniform(1.2, 2.2) * place.view.vertical_scale
    canvas = place.canvas(1.5 * crown, trunk + 2.2 * crown, 0.2)
    canvas.stroke([(0, 0), (0.1 * crown, trunk)], 0.2, place.pick_color((88, 70, 52)))
    leaves = place.pick_color((70, 92, 44), (86, 104, 52), (58, 84, 50), (112, 108, 56))
    _foliage(place, canvas, trunk + 0.6 * crown, crown, 0.85 * crown, leaves)
    return [canvas.sprite(place.view)]


def _bush(place: Placement) -> list[Sprite]:
    size = place.uniform(0.25, 0.9)
    canvas = place.canvas(1.5 * size, 2.2 * size, 0.6 * size)
    leaves = place.pick_color((72, 92, 46), (96, 108, 60), (122, 118, 74))
    _foliage(place, canvas, 0.6 * size, size, size * place.uniform(0.6, 0.9), leaves)
    return [canvas.sprite(place.view)]


def _rock(place: Placement) -> list[Sprite]:
    size, gray = place.uniform(0.15, 0.6), place.uniform(55, 150)
    canvas = place.canvas(1.6 * size, 2 * size, 0.8 * size)
    angles = np.sort(place.rng.uniform(0, 2 * np.pi, 9))
    rim = np.stack([np.cos(angles), 0.6 * np.sin(angles)], axis=1) * place.rng.uniform(0.75, 1.15, (9, 1)) + (0, 0.4)
    canvas.polygon(rim * size, place.pick_color((gray * 0.75, gray * 0.72, gray * 0.68)))
    lit = (rim * 0.7 + (place.view.sun_side * 0.15, 0.35)) * size
    canvas.polygon(lit, place.pick_color((gray * 1.1, gray * 1.06, gray)))
    return [canvas.sprite(place.view)]


def _pole(place: Placement) -> list[Sprite]:
    height = place.uniform(0.7, 3.0) * place.view.vertical_scale
    canvas = place.canvas(0.6, height + 0.3, 0.1)
    paint = place.pick_color((70, 72, 74), (120, 120, 118), (206, 204, 200), (96, 76, 56))
    canvas.stroke([(0, 0), (0.02, height)], place.uniform(0.05, 0.11), paint)
    if place.chance(0.5):
        canvas.ellipse((0.04, height), place.uniform(0.06, 0.14), 0.08, place.pick_color(*CLOTH))
    return [canvas.sprite(place.view)]


def _sign(place: Placement) -> list[Sprite]:
    """A panel on a post; from afar it looks like a torso on legs."""
    height, width = place.uniform(0.75, 1.15) * place.view.vertical_scale, place.uniform(0.1, 0.26)
    low = height * place.uniform(0.45, 0.75)
    canvas = place.canvas(0.5, height + 0.3, 0.1)
    canvas.stroke([(0, 0), (0, height)], 0.07, place.pick_color((110, 110, 108)))
    canvas.polygon([(-width, low), (width, low), (width, height), (-width, height)], place.pick_color(*CLOTH))
    if place.chance(0.4):
        canvas.polygon([(-width, low), (width, low), (width, low + 0.1), (-width, low + 0.1)], place.pick_color(*CLOTH))
    return [canvas.sprite(place.view)]


def _bollard(place: Placement) -> list[Sprite]:
    """An upright object in two colors: a post, a bin, a parking meter."""
    width, height = place.uniform(0.07, 0.2), place.uniform(0.35, 0.8) * place.view.vertical_scale
    canvas = place.canvas(0.4, height + 0.3, 0.2)
    body = place.pick_color((58, 62, 60), (96, 98, 96), (64, 84, 66), (150, 146, 138), (48, 60, 92))
    canvas.polygon([(-width, 0), (width, 0), (width, height), (-width, height)], body)
    canvas.ellipse((0, 0), width, width * 0.4, body)
    top = place.pick_color(*CLOTH) if place.chance(0.5) else place.pick_color(body)
    canvas.ellipse((0, height), width * 1.1, width * 0.6, top)
    return [canvas.sprite(place.view)]


def _cone(place: Placement) -> list[Sprite]:
    height = place.uniform(0.3, 0.5)
    canvas = place.canvas(0.3, height, 0.2)
    canvas.ellipse((0, 0), 0.18, 0.085, (180, 84, 40))
    canvas.polygon([(-0.14, 0), (0.14, 0), (0.03, height), (-0.03, height)], place.pick_color((222, 100, 44)))
    canvas.stroke([(-0.06, 0.5 * height), (0.06, 0.5 * height)], 0.07, (235, 232, 228))
    return [canvas.sprite(place.view)]


def _umbrella(place: Placement) -> list[Sprite]:
    """A parasol, sometimes with a lounger."""
    width, height = place.uniform(0.45, 0.8), place.uniform(1.0, 1.3) * place.view.vertical_scale
    canvas = place.canvas(1.2 * width, height + width, 0.2)
    canvas.stroke([(0, 0), (0, height)], 0.06, (208, 204, 196))
    colors = (place.pick_color(*CLOTH), place.pick_color(*CLOTH) if place.chance(0.5) else (236.0, 234.0, 230.0))
    angles = np.linspace(0, 2 * np.pi, 17)
    depth_scale = max(1 - place.view.vertical_scale**2, 0.15) ** 0.5
    rim = np.stack([np.cos(angles), np.sin(angles) * depth_scale], axis=1) * width
    rim = lift(rim, height - 0.06)
    tip = (0, height + 0.12 * place.view.vertical_scale)
    for n in range(0, 16, 2):
        light = 1 - 0.12 * np.sin(angles[n]) * np.sign(place.view.shadow_offset[1])
        canvas.polygon([tip, *rim[n : n + 3]], dim(colors[n // 2 % 2], light))
    lounger = [cloth(place._replace(x=place.x + 0.4 * width * place.stature), 1.1, 0.42)] if place.chance(0.5) else []
    return [*lounger, canvas.sprite(place.view)]


def _towel(place: Placement) -> list[Sprite]:
    towel = cloth(place, place.uniform(0.8, 1.15), place.uniform(0.35, 0.6))
    return [towel, *(_luggage(place) if place.chance(0.4) else [])]


def _luggage(place: Placement) -> list[Sprite]:
    width, height, color = place.uniform(0.08, 0.2), place.uniform(0.15, 0.45), place.pick_color(*CLOTH)
    canvas = place.canvas(0.4, height + 0.2, 0.2)
    canvas.polygon([(-width, 0), (width, 0), (0.9 * width, height), (-0.9 * width, height)], color)
    canvas.ellipse((0, height), 0.9 * width, 0.06, place.pick_color(color))
    return [canvas.sprite(place.view)]


def _bench(place: Placement) -> list[Sprite]:
    wood = place.pick_color((128, 94, 62), (150, 146, 140), (96, 78, 62))
    canvas = place.canvas(0.9, 0.9, 0.9)
    seat = place.rectangle(place.uniform(0.9, 1.3), 0.3)
    canvas.polygon(seat, dim(wood, 0.5))
    canvas.polygon(lift(seat, 0.26 * place.view.vertical_scale), wood)
    return [canvas.sprite(place.view)]


def _dog(place: Placement) -> list[Sprite]:
    place = place._replace(stature=place.stature * place.uniform(0.25, 0.5))
    coat, direction = place.pick_color((60, 46, 36), (150, 116, 78), (220, 214, 204), (36, 34, 34)), place.random_side()
    canvas = place.canvas(1.2, 1.2, 0.3)
    for right in (-0.35, -0.25, 0.25, 0.38):
        canvas.stroke([(right, 0.3), (right, 0)], 0.12, coat)
    canvas.ellipse((0, 0.42), 0.5, 0.2, coat)
    canvas.ellipse((direction * 0.55, 0.62), 0.19, 0.16, coat)
    return [canvas.sprite(place.view)]


def _bird(place: Placement) -> list[Sprite]:
    """A gull, on the ground or in flight."""
    place = place._replace(stature=place.stature * place.uniform(0.14, 0.34))
    color = place.pick_color((236, 236, 234), (206, 208, 210), (64, 62, 62))
    canvas = place.canvas(1.6, 1.4, 0.8)
    canvas.ellipse((0, 0.3), 0.5, 0.24, color, place.uniform(-30, 30))
    if place.chance(0.6):
        tip = 0.3 + place.uniform(-0.2, 0.7)
        canvas.stroke([(-1.3, tip), (-0.5, 0.5), (0, 0.3), (0.5, 0.5), (1.3, tip)], 0.22, color)
    else:
        canvas.ellipse((0.5, 0.55), 0.16, 0.16, color)
    return [canvas.sprite(place.view)]


def _buoy(place: Placement) -> list[Sprite]:
    """A float on the water, similar to the head of a swimmer."""
    place = place._replace(stature=place.stature * place.uniform(0.10, 0.24))
    canvas = place.canvas(1.5, 4, 1)
    color = place.pick_color(
        (216, 92, 40), (226, 188, 60), (190, 48, 44), (234, 232, 228), (52, 48, 48), (150, 110, 80)
    )
    canvas.ellipse((0, 0.3), 1, 0.9, color)
    canvas.ellipse((0.3 * place.view.sun_side, 0.6), 0.4, 0.35, dim(color, 1.3))
    if place.chance(0.3):
        canvas.stroke([(0, 1), (0, 3)], 0.4, place.pick_color(*CLOTH))
    canvas.erase_below(-0.2)
    return [foam(place, 1.8, place.uniform(0, 0.5)), canvas.sprite(place.view)]


def _boat(place: Placement) -> list[Sprite]:
    length = place.uniform(1.5, 4.5)
    bow, beam = place.along(length / 2), place.across(length * place.uniform(0.13, 0.18))
    deck = 0.25 * place.view.vertical_scale
    canvas = place.canvas(length, 1.6 * length, length)
    hull = place.pick_color((232, 232, 230), (208, 206, 200), (60, 74, 108), (150, 52, 46), (110, 84, 60))
    side = np.array(((1, 0), (0.55, 0.9), (-0.3, 1), (-1, 0.8)))  # half of the outline, from the bow: along, across
    plan = np.concatenate([side, side[:0:-1] * (1, -1)]) @ np.stack([bow, beam])
    canvas.polygon(plan, dim(hull, 0.55))
    canvas.polygon(lift(plan, deck), hull)
    inside = place.pick_color((176, 160, 134), (96, 92, 88), (214, 210, 202))
    canvas.polygon(lift(0.72 * plan, deck), inside)
    if place.chance(0.5):  # a cabin
        cabin = lift(plan * (0.35, 0.4) - 0.1 * bow, deck)
        canvas.polygon(cabin, (64, 72, 80))
        canvas.polygon(lift(cabin, 0.3 * place.view.vertical_scale), place.pick_color(hull))
    elif place.chance(0.4):  # sails
        mast, boom = length * place.uniform(0.9, 1.3) * place.view.vertical_scale, 0.4 * length * np.copysign(1, bow[0])
        canvas.polygon([(0, deck + 0.1 * mast), (-boom, deck + 0.13 * mast), (0, mast)], (238, 236, 230))
        canvas.polygon([(0.05 * boom, deck), (0.8 * boom, deck), (0, 0.9 * mast)], (220, 220, 218))
    behind = place._replace(x=place.x - 1.1 * bow[0] * place.stature, y=place.y + 1.1 * bow[1] * place.stature)
    wake = [foam(behind, 0.5 * length, place.uniform(0.3, 0.9))] if place.chance(0.4) else []
    return [*wake, _with_footprint(canvas.sprite(place.view), plan, place.stature)]


def _driftwood(place: Placement) -> list[Sprite]:
    canvas, end = place.canvas(1, 1, 1), place.along(0.4)
    wood = place.pick_color((92, 74, 56), (140, 124, 104), (56, 50, 44))
    canvas.stroke([-end, (0, 0.05), end], place.uniform(0.06, 0.14), wood)
    return [canvas.sprite(place.view, flat=True)]


def _stain(place: Placement) -> list[Sprite]:
    """A dark spot on the ground: a manhole cover, a puddle, oil."""
    canvas, width, gray = place.canvas(1, 1, 1), place.uniform(0.12, 0.4), place.uniform(40, 90)
    height = width * place.view.depth_scale * place.uniform(0.7, 1)
    canvas.ellipse((0, 0), width, height, place.pick_color((gray, gray, gray)))
    return [canvas.sprite(place.view, flat=True, opacity=place.uniform(0.3, 0.85))]


def _car(place: Placement) -> list[Sprite]:
    length, waist, roof = place.uniform(2.3, 2.8), 0.42 * place.view.vertical_scale, 0.82 * place.view.vertical_scale
    paint = place.pick_color(
        (226, 226, 224), (180, 182, 184), (70, 72, 76), (34, 36, 40), (120, 34, 36), (44, 64, 104), (138, 130, 116)
    )
    canvas = place.canvas(length, length, length)
    footprint, cabin = place.rectangle(length, 1.05), place.rectangle(0.58 * length, 0.9)
    canvas.extrude(footprint, 0, waist, dim(paint, 0.55))
    canvas.polygon(lift(footprint, waist), paint)
    canvas.extrude(cabin, waist, roof, (48, 54, 62))
    canvas.polygon(lift(0.82 * cabin, roof), paint)
    return [_with_footprint(canvas.sprite(place.view), footprint, place.stature)]


def _house(place: Placement) -> list[Sprite]:
    """A house with a pitched roof, or (more often) a bench."""
    if place.chance(0.6):
        return _bench(place)
    length, width = place.uniform(2.5, 7), place.uniform(2, 4)
    wall = place.uniform(1.3, 2.6) * place.view.vertical_scale
    canvas = place.canvas(length, length + 2 * wall, length)
    plaster = place.pick_color((206, 200, 188), (178, 160, 136), (150, 120, 104))
    tiles = place.pick_color((150, 84, 64), (96, 92, 94), (128, 116, 104), (84, 60, 54))
    footprint = place.rectangle(length, width)
    canvas.extrude(footprint, 0, wall, dim(plaster, 0.75))
    eaves = lift(1.06 * footprint, wall)
    ridge = lift(0.5 * (eaves[[0, 3]] + eaves[[1, 2]]), 0.28 * width * place.view.vertical_scale)
    slopes = [(eaves[[0, 3]], 1.12), (eaves[[1, 2]], 0.8)]
    for slope, light in sorted(slopes, key=lambda pair: -float(pair[0][:, 1].sum())):  # the farther slope first
        canvas.polygon(np.concatenate([slope, ridge[::-1]]), dim(tiles, light))
    return [_with_footprint(canvas.sprite(place.view), footprint, place.stature)]


def _with_footprint(sprite: Sprite, footprint: NDArray[np.float64], unit: float) -> Sprite:
    """Move the base of a sprite to the front edge of its footprint: it then occludes whoever stands on it."""
    x, y = sprite.base
    return sprite._replace(base=(x, y - float(footprint[:, 1].min()) * unit))


_BY_MATERIAL: dict[str, tuple[Callable[[Placement], list[Sprite]], ...]] = {
    "water": (_buoy, _buoy, _buoy, _boat, surfboard, _bird, _driftwood, _rock),
    "sand": (
        _umbrella, _umbrella, _towel, _towel, _rock, _rock, _pole, _bird, _luggage, _bollard, _driftwood, _sign, _dog,
        surfboard,
    ),
    "grass": (_bush, _bush, _bush, _tree, _tree, _rock, _pole, _sign, _dog, _house, _bollard, _luggage, _bird),
    "scrub": (_bush, _bush, _bush, _rock, _tree, _driftwood),
    "path": (_pole, _sign, _bollard, _bench, _bush, _dog, _luggage),
    "promenade": (_pole, _sign, _bollard, _bollard, _bench, _luggage, _stain, _dog, _bush, _umbrella),
    "plaza": (_pole, _sign, _bollard, _bollard, _bench, _luggage, _stain, _stain, _umbrella, _cone, _tree, _bird),
    "road": (_car, _car, _car, _cone, _stain, _stain, _sign, _bollard),
}  # fmt: skip
