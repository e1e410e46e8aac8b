"""Things that are no people: most of a person's size, or of a person's shape, so that a detector has to look twice."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tinydet.data.scenery.colours import CLOTH, Colour, dim
from tinydet.data.scenery.ground import Ground
from tinydet.data.scenery.noise import smooth_noise
from tinydet.data.scenery.spot import Spot
from tinydet.data.scenery.sprites import Canvas, Sprite, lift
from tinydet.data.scenery.view import View


def place_things(rng: np.random.Generator, view: View, ground: Ground) -> list[Sprite]:
    """What stands and lies about, each where it belongs; most of it is of a person's size, or of a person's shape."""
    amount = rng.poisson(view.width * view.height / 1e6 * rng.uniform(60, 190))
    sprites: list[Sprite] = []
    for x, y in rng.uniform((0, 0), (view.width, view.height * 1.04), (amount, 2)).tolist():
        material = ground.material(x, y)
        if material == "water" and rng.random() > 0.15 + np.exp(ground.from_shore(x, y) / (14 * view.unit)):
            continue  # far out there is less
        draw = _BELONGS[material][int(rng.integers(len(_BELONGS[material])))]
        turn = ground.heading if material in ("road", "promenade") else float(rng.uniform(0, 2 * np.pi))
        stature = view.stature(y)
        for _ in range(1 if draw is _car or rng.random() < 0.7 else int(rng.integers(2, 5))):
            sprites += draw(Spot(rng, view, x, y, stature * float(rng.lognormal(0, 0.12)), turn))
            x, y = x + rng.normal(0, 1.2 * stature), y + rng.normal(0, 0.8 * stature)
    return sprites


def slab(at: Spot, length: float, width: float) -> Sprite:
    """A rectangle of cloth on the ground."""
    canvas = at.canvas(length, length, length)
    canvas.polygon(at.floor(length, width), at.pick(*CLOTH))
    return canvas.sprite(at.view, flat=True)


def board(at: Spot) -> list[Sprite]:
    """A surfboard, an airbed, a kayak."""
    length, wide, colour = at.between(0.5, 0.8), at.between(0.13, 0.22), at.pick(*CLOTH)
    canvas = at.canvas(1.2, 1.2, 1.2)
    canvas.disc((0, 0), length, wide, colour, np.degrees(at.turn))
    canvas.disc((0, 0), length * 0.6, wide * 0.45, at.pick(colour), np.degrees(at.turn))
    return [canvas.sprite(at.view, flat=True)]


def froth(at: Spot, reach: float, strength: float) -> Sprite:
    """Disturbed water around something."""
    reach *= at.tall
    half = int(np.ceil(1.3 * reach)) + 1
    left, top = round(at.x) - half, round(at.y) - half
    axis = np.arange(2 * half + 1, dtype=np.float32)
    far = ((axis[None] + left - at.x) / (1.3 * reach)) ** 2 + ((axis[:, None] + top - at.y) / (0.7 * reach)) ** 2
    bubbles = np.clip(0.5 + 0.8 * smooth_noise(at.rng, (len(axis), len(axis)), max(1.6, reach / 5)), 0, 1)
    cover = (np.clip(1 - far, 0, 1) * bubbles * strength).astype(np.float32)
    nowhere = (at.x, at.y, at.x, at.y)
    return Sprite(left, top, cover, cover[..., None] * np.float32(240), (at.x, at.y), nowhere, flat=True)


def _foliage(at: Spot, canvas: Canvas, up: float, across: float, high: float, colour: Colour) -> None:
    """Tufts in a round shape, lighter on the side of the sun and on top."""
    tufts = int(np.clip(5 * across * at.tall, 14, 300))
    angles, radii = at.rng.uniform(0, 2 * np.pi, tufts), np.sqrt(at.rng.random(tufts))
    places = np.stack([np.cos(angles) * radii, np.sin(angles) * radii], axis=1)
    lights = places @ np.array((0.18 * at.view.lit, 0.22))
    for n in np.argsort(lights + at.rng.normal(0, 0.07, tufts)).tolist():
        size, light = at.between(0.8, 1.7) * tufts**-0.5, 0.78 + lights[n] + at.rng.normal(0, 0.1)
        place = (places[n, 0] * across, up + places[n, 1] * high)
        canvas.disc(place, size * across, size * high, dim(colour, light))


def _tree(at: Spot) -> list[Sprite]:
    crown, trunk = at.between(0.9, 2.2), at.between(1.2, 2.2) * at.view.tilt
    canvas = at.canvas(1.5 * crown, trunk + 2.2 * crown, 0.2)
    canvas.stroke([(0, 0), (0.1 * crown, trunk)], 0.2, at.pick((88, 70, 52)))
    leaves = at.pick((70, 92, 44), (86, 104, 52), (58, 84, 50), (112, 108, 56))
    _foliage(at, canvas, trunk + 0.6 * crown, crown, 0.85 * crown, leaves)
    return [canvas.sprite(at.view)]


def _bush(at: Spot) -> list[Sprite]:
    size = at.between(0.25, 0.9)
    canvas = at.canvas(1.5 * size, 2.2 * size, 0.6 * size)
    leaves = at.pick((72, 92, 46), (96, 108, 60), (122, 118, 74))
    _foliage(at, canvas, 0.6 * size, size, size * at.between(0.6, 0.9), leaves)
    return [canvas.sprite(at.view)]


def _rock(at: Spot) -> list[Sprite]:
    size, grey = at.between(0.15, 0.6), at.between(55, 150)
    canvas = at.canvas(1.6 * size, 2 * size, 0.8 * size)
    angles = np.sort(at.rng.uniform(0, 2 * np.pi, 9))
    rim = np.stack([np.cos(angles), 0.6 * np.sin(angles)], axis=1) * at.rng.uniform(0.75, 1.15, (9, 1)) + (0, 0.4)
    canvas.polygon(rim * size, at.pick((grey * 0.75, grey * 0.72, grey * 0.68)))
    canvas.polygon((rim * 0.7 + (at.view.lit * 0.15, 0.35)) * size, at.pick((grey * 1.1, grey * 1.06, grey)))
    return [canvas.sprite(at.view)]


def _pole(at: Spot) -> list[Sprite]:
    high = at.between(0.7, 3.0) * at.view.tilt
    canvas = at.canvas(0.6, high + 0.3, 0.1)
    paint = at.pick((70, 72, 74), (120, 120, 118), (206, 204, 200), (96, 76, 56))
    canvas.stroke([(0, 0), (0.02, high)], at.between(0.05, 0.11), paint)
    if at.chance(0.5):
        canvas.disc((0.04, high), at.between(0.06, 0.14), 0.08, at.pick(*CLOTH))
    return [canvas.sprite(at.view)]


def _sign(at: Spot) -> list[Sprite]:
    """A panel on a post: a trunk on legs, from afar."""
    high, wide = at.between(0.75, 1.15) * at.view.tilt, at.between(0.1, 0.26)
    low = high * at.between(0.45, 0.75)
    canvas = at.canvas(0.5, high + 0.3, 0.1)
    canvas.stroke([(0, 0), (0, high)], 0.07, at.pick((110, 110, 108)))
    canvas.polygon([(-wide, low), (wide, low), (wide, high), (-wide, high)], at.pick(*CLOTH))
    if at.chance(0.4):
        canvas.polygon([(-wide, low), (wide, low), (wide, low + 0.1), (-wide, low + 0.1)], at.pick(*CLOTH))
    return [canvas.sprite(at.view)]


def _bollard(at: Spot) -> list[Sprite]:
    """A post, a bin, a parking meter: upright, in two colours."""
    wide, high = at.between(0.07, 0.2), at.between(0.35, 0.8) * at.view.tilt
    canvas = at.canvas(0.4, high + 0.3, 0.2)
    body = at.pick((58, 62, 60), (96, 98, 96), (64, 84, 66), (150, 146, 138), (48, 60, 92))
    canvas.polygon([(-wide, 0), (wide, 0), (wide, high), (-wide, high)], body)
    canvas.disc((0, 0), wide, wide * 0.4, body)
    canvas.disc((0, high), wide * 1.1, wide * 0.6, at.pick(*CLOTH) if at.chance(0.5) else at.pick(body))
    return [canvas.sprite(at.view)]


def _cone(at: Spot) -> list[Sprite]:
    high = at.between(0.3, 0.5)
    canvas = at.canvas(0.3, high, 0.2)
    canvas.disc((0, 0), 0.18, 0.085, (180, 84, 40))
    canvas.polygon([(-0.14, 0), (0.14, 0), (0.03, high), (-0.03, high)], at.pick((222, 100, 44)))
    canvas.stroke([(-0.06, 0.5 * high), (0.06, 0.5 * high)], 0.07, (235, 232, 228))
    return [canvas.sprite(at.view)]


def _umbrella(at: Spot) -> list[Sprite]:
    """A parasol, sometimes with the lounger that it is for."""
    wide, high = at.between(0.45, 0.8), at.between(1.0, 1.3) * at.view.tilt
    canvas = at.canvas(1.2 * wide, high + wide, 0.2)
    canvas.stroke([(0, 0), (0, high)], 0.06, (208, 204, 196))
    colours = (at.pick(*CLOTH), at.pick(*CLOTH) if at.chance(0.5) else (236.0, 234.0, 230.0))
    angles = np.linspace(0, 2 * np.pi, 17)
    rim = np.stack([np.cos(angles), np.sin(angles) * max(1 - at.view.tilt**2, 0.15) ** 0.5], axis=1) * wide
    rim = lift(rim, high - 0.06)
    for n in range(0, 16, 2):
        light = 1 - 0.12 * np.sin(angles[n]) * np.sign(at.view.shadow[1])
        canvas.polygon([(0, high + 0.12 * at.view.tilt), *rim[n : n + 3]], dim(colours[n // 2 % 2], light))
    lounger = [slab(at._replace(x=at.x + 0.4 * wide * at.tall), 1.1, 0.42)] if at.chance(0.5) else []
    return [*lounger, canvas.sprite(at.view)]


def _towel(at: Spot) -> list[Sprite]:
    return [slab(at, at.between(0.8, 1.15), at.between(0.35, 0.6)), *(_luggage(at) if at.chance(0.4) else [])]


def _luggage(at: Spot) -> list[Sprite]:
    wide, high, colour = at.between(0.08, 0.2), at.between(0.15, 0.45), at.pick(*CLOTH)
    canvas = at.canvas(0.4, high + 0.2, 0.2)
    canvas.polygon([(-wide, 0), (wide, 0), (0.9 * wide, high), (-0.9 * wide, high)], colour)
    canvas.disc((0, high), 0.9 * wide, 0.06, at.pick(colour))
    return [canvas.sprite(at.view)]


def _bench(at: Spot) -> list[Sprite]:
    wood = at.pick((128, 94, 62), (150, 146, 140), (96, 78, 62))
    canvas = at.canvas(0.9, 0.9, 0.9)
    seat = at.floor(at.between(0.9, 1.3), 0.3)
    canvas.polygon(seat, dim(wood, 0.5))
    canvas.polygon(lift(seat, 0.26 * at.view.tilt), wood)
    return [canvas.sprite(at.view)]


def _dog(at: Spot) -> list[Sprite]:
    at = at._replace(tall=at.tall * at.between(0.25, 0.5))
    coat, way = at.pick((60, 46, 36), (150, 116, 78), (220, 214, 204), (36, 34, 34)), at.side()
    canvas = at.canvas(1.2, 1.2, 0.3)
    for right in (-0.35, -0.25, 0.25, 0.38):
        canvas.stroke([(right, 0.3), (right, 0)], 0.12, coat)
    canvas.disc((0, 0.42), 0.5, 0.2, coat)
    canvas.disc((way * 0.55, 0.62), 0.19, 0.16, coat)
    return [canvas.sprite(at.view)]


def _bird(at: Spot) -> list[Sprite]:
    """A gull, on the ground or in flight."""
    at = at._replace(tall=at.tall * at.between(0.14, 0.34))
    colour = at.pick((236, 236, 234), (206, 208, 210), (64, 62, 62))
    canvas = at.canvas(1.6, 1.4, 0.8)
    canvas.disc((0, 0.3), 0.5, 0.24, colour, at.between(-30, 30))
    if at.chance(0.6):
        tip = 0.3 + at.between(-0.2, 0.7)
        canvas.stroke([(-1.3, tip), (-0.5, 0.5), (0, 0.3), (0.5, 0.5), (1.3, tip)], 0.22, colour)
    else:
        canvas.disc((0.5, 0.55), 0.16, 0.16, colour)
    return [canvas.sprite(at.view)]


def _buoy(at: Spot) -> list[Sprite]:
    """A float: a head that nobody has."""
    at = at._replace(tall=at.tall * at.between(0.10, 0.24))
    canvas = at.canvas(1.5, 4, 1)
    colour = at.pick((216, 92, 40), (226, 188, 60), (190, 48, 44), (234, 232, 228), (52, 48, 48), (150, 110, 80))
    canvas.disc((0, 0.3), 1, 0.9, colour)
    canvas.disc((0.3 * at.view.lit, 0.6), 0.4, 0.35, dim(colour, 1.3))
    if at.chance(0.3):
        canvas.stroke([(0, 1), (0, 3)], 0.4, at.pick(*CLOTH))
    canvas.cut_below(-0.2)
    return [froth(at, 1.8, at.between(0, 0.5)), canvas.sprite(at.view)]


def _boat(at: Spot) -> list[Sprite]:
    length = at.between(1.5, 4.5)
    bow, beam, deck = at.along(length / 2), at.across(length * at.between(0.13, 0.18)), 0.25 * at.view.tilt
    canvas = at.canvas(length, 1.6 * length, length)
    hull = at.pick((232, 232, 230), (208, 206, 200), (60, 74, 108), (150, 52, 46), (110, 84, 60))
    half = np.array(((1, 0), (0.55, 0.9), (-0.3, 1), (-1, 0.8)))  # stations from the bow: along, across
    plan = np.concatenate([half, half[:0:-1] * (1, -1)]) @ np.stack([bow, beam])
    canvas.polygon(plan, dim(hull, 0.55))
    canvas.polygon(lift(plan, deck), hull)
    inside = at.pick((176, 160, 134), (96, 92, 88), (214, 210, 202))
    canvas.polygon(lift(0.72 * plan, deck), inside)
    if at.chance(0.5):  # a cabin
        cabin = lift(plan * (0.35, 0.4) - 0.1 * bow, deck)
        canvas.polygon(cabin, (64, 72, 80))
        canvas.polygon(lift(cabin, 0.3 * at.view.tilt), at.pick(hull))
    elif at.chance(0.4):  # sails
        mast, boom = length * at.between(0.9, 1.3) * at.view.tilt, 0.4 * length * np.copysign(1, bow[0])
        canvas.polygon([(0, deck + 0.1 * mast), (-boom, deck + 0.13 * mast), (0, mast)], (238, 236, 230))
        canvas.polygon([(0.05 * boom, deck), (0.8 * boom, deck), (0, 0.9 * mast)], (220, 220, 218))
    behind = at._replace(x=at.x - 1.1 * bow[0] * at.tall, y=at.y + 1.1 * bow[1] * at.tall)
    wake = [froth(behind, 0.5 * length, at.between(0.3, 0.9))] if at.chance(0.4) else []
    return [*wake, _solid(canvas.sprite(at.view), plan, at.tall)]


def _driftwood(at: Spot) -> list[Sprite]:
    canvas, end = at.canvas(1, 1, 1), at.along(0.4)
    wood = at.pick((92, 74, 56), (140, 124, 104), (56, 50, 44))
    canvas.stroke([-end, (0, 0.05), end], at.between(0.06, 0.14), wood)
    return [canvas.sprite(at.view, flat=True)]


def _stain(at: Spot) -> list[Sprite]:
    """A manhole, a puddle, oil."""
    canvas, wide, grey = at.canvas(1, 1, 1), at.between(0.12, 0.4), at.between(40, 90)
    canvas.disc((0, 0), wide, wide * at.view.ground * at.between(0.7, 1), at.pick((grey, grey, grey)))
    return [canvas.sprite(at.view, flat=True, opacity=at.between(0.3, 0.85))]


def _car(at: Spot) -> list[Sprite]:
    length, waist, roof = at.between(2.3, 2.8), 0.42 * at.view.tilt, 0.82 * at.view.tilt
    paint = at.pick(
        (226, 226, 224), (180, 182, 184), (70, 72, 76), (34, 36, 40), (120, 34, 36), (44, 64, 104), (138, 130, 116)
    )
    canvas = at.canvas(length, length, length)
    floor, cabin = at.floor(length, 1.05), at.floor(0.58 * length, 0.9)
    canvas.raise_wall(floor, 0, waist, dim(paint, 0.55))
    canvas.polygon(lift(floor, waist), paint)
    canvas.raise_wall(cabin, waist, roof, (48, 54, 62))
    canvas.polygon(lift(0.82 * cabin, roof), paint)
    return [_solid(canvas.sprite(at.view), floor, at.tall)]


def _house(at: Spot) -> list[Sprite]:
    """A house with a pitched roof, or a kiosk; where there is no room for it, a bench."""
    if at.chance(0.6):
        return _bench(at)
    length, wide, wall = at.between(2.5, 7), at.between(2, 4), at.between(1.3, 2.6) * at.view.tilt
    canvas = at.canvas(length, length + 2 * wall, length)
    plaster = at.pick((206, 200, 188), (178, 160, 136), (150, 120, 104))
    tiles = at.pick((150, 84, 64), (96, 92, 94), (128, 116, 104), (84, 60, 54))
    floor = at.floor(length, wide)
    canvas.raise_wall(floor, 0, wall, dim(plaster, 0.75))
    eaves = lift(1.06 * floor, wall)
    ridge = lift(0.5 * (eaves[[0, 3]] + eaves[[1, 2]]), 0.28 * wide * at.view.tilt)
    slopes = [(eaves[[0, 3]], 1.12), (eaves[[1, 2]], 0.8)]
    for slope, light in sorted(slopes, key=lambda pair: -float(pair[0][:, 1].sum())):  # the farther one first
        canvas.polygon(np.concatenate([slope, ridge[::-1]]), dim(tiles, light))
    return [_solid(canvas.sprite(at.view), floor, at.tall)]


def _solid(sprite: Sprite, floor: NDArray[np.float64], unit: float) -> Sprite:
    """What stands on more than a point stands where its floor ends: whoever is on the floor is behind it."""
    x, y = sprite.base
    return sprite._replace(base=(x, y - float(floor[:, 1].min()) * unit))


_BELONGS: dict[str, tuple[Callable[[Spot], list[Sprite]], ...]] = {
    "water": (_buoy, _buoy, _buoy, _boat, board, _bird, _driftwood, _rock),
    "sand": (
        _umbrella, _umbrella, _towel, _towel, _rock, _rock, _pole, _bird, _luggage, _bollard, _driftwood, _sign, _dog,
        board,
    ),
    "grass": (_bush, _bush, _bush, _tree, _tree, _rock, _pole, _sign, _dog, _house, _bollard, _luggage, _bird),
    "scrub": (_bush, _bush, _bush, _rock, _tree, _driftwood),
    "path": (_pole, _sign, _bollard, _bench, _bush, _dog, _luggage),
    "promenade": (_pole, _sign, _bollard, _bollard, _bench, _luggage, _stain, _dog, _bush, _umbrella),
    "plaza": (_pole, _sign, _bollard, _bollard, _bench, _luggage, _stain, _stain, _umbrella, _cone, _tree, _bird),
    "road": (_car, _car, _car, _cone, _stain, _stain, _sign, _bollard),
}  # fmt: skip
