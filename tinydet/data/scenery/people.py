"""The people: where they are, what they do, and how they look from afar."""

from __future__ import annotations

import numpy as np

from tinydet.data.scenery.colours import CLOTH
from tinydet.data.scenery.ground import LAND, Ground
from tinydet.data.scenery.spot import Spot
from tinydet.data.scenery.sprites import Sprite
from tinydet.data.scenery.things import board, froth, slab
from tinydet.data.scenery.view import View

HEIGHTS = (3.0, 24.0)  # pixels, of a person who stands free
_SKIN = ((236, 196, 168), (222, 176, 144), (198, 150, 116), (160, 112, 82), (112, 76, 56), (78, 54, 42))
_HAIR = ((30, 26, 24), (46, 34, 26), (70, 50, 34), (104, 76, 48), (170, 136, 88), (176, 172, 168))
_TROUSERS = ((34, 36, 44), (46, 56, 84), (74, 92, 126), (92, 90, 88), (164, 146, 116), (38, 38, 40), (214, 210, 202))


def place_people(rng: np.random.Generator, view: View, ground: Ground, density: float) -> list[Sprite]:
    """Alone, in pairs and in groups, where people like to be: at the water's edge, on paths, not on the road."""
    wanted = int(rng.poisson(density * view.width * view.height / 1e6))
    sprites: list[Sprite] = []
    while wanted > 0:
        places = rng.uniform(0, (view.width, view.height), (6, 2))
        pulls = np.array([_pull(ground, view, x, y) for x, y in places])
        middle = places[rng.choice(len(places), p=pulls / pulls.sum())]
        size = int(rng.choice(np.array((1, 2, rng.integers(3, 7), rng.integers(7, 16))), p=(0.55, 0.23, 0.17, 0.05)))
        spread = view.stature(middle[1]) * 0.45 * size**0.5 * rng.uniform(0.7, 1.6) * (size > 1)
        for x, y in (middle + rng.normal(0, spread, (size, 2)) * (1, max(view.ground, 0.5))).tolist()[:wanted]:
            wanted -= 1
            if -2 < x < view.width + 2 and -2 < y < view.height + view.stature(y) * view.tilt:
                sprites += _person(rng, view, ground, x, y)
    return sprites


def _pull(ground: Ground, view: View, x: float, y: float) -> float:
    inland = ground.from_shore(x, y) / view.unit
    if inland < 0:
        return 0.06 + 0.8 * float(np.exp(inland / 6))
    return LAND[ground.material(x, y)].pull + 1.2 * float(np.exp(-inland / 3))


def _person(rng: np.random.Generator, view: View, ground: Ground, x: float, y: float) -> list[Sprite]:
    """A person, and what lies under: a towel, a splash, a board."""
    material, depth = ground.material(x, y), -ground.from_shore(x, y) / view.unit
    child = rng.random() < 0.15
    tall = view.stature(y) * (rng.uniform(0.55, 0.8) if child else rng.normal(1, 0.06))
    at = Spot(rng, view, x, y, tall, float(rng.uniform(0, 2 * np.pi)))
    if material == "water":
        pose = str(rng.choice(("wade", "swim") if depth < 2.2 else ("swim", "swim", "swim", "swim", "board")))
    elif material == "sand":
        pose = str(rng.choice(("stand", "walk", "reach", "sit", "lie"), p=(0.30, 0.28, 0.10, 0.19, 0.13)))
    else:
        pose = str(rng.choice(("stand", "walk", "reach", "sit"), p=(0.36, 0.48, 0.06, 0.10)))
    bare = material == "water" or (material == "sand" and at.chance(0.7))
    under: list[Sprite] = []
    if pose == "lie" or (pose == "sit" and material == "sand" and at.chance(0.4)):
        under = [slab(at, 1.15, 0.5)]
    elif pose == "board":
        under, pose = board(at), str(rng.choice(("stand", "sit")))
    elif material == "water":
        under = [froth(at, at.between(0.25, 0.6), at.between(0, 0.7 if pose == "swim" else 0.35))]

    look = int(rng.integers(2**62))  # the same person again, should another size be needed
    for _ in range(4):
        figure = _figure(at._replace(rng=np.random.default_rng(look)), pose, bare, depth)
        high = figure.outline[3] - figure.outline[1]
        if HEIGHTS[0] <= high <= HEIGHTS[1]:
            break
        fit = float(np.clip(high, HEIGHTS[0] + 0.2, HEIGHTS[1] - 0.2)) / max(high, 0.1)
        at = at._replace(tall=at.tall * fit)
    return [*under, figure]


def _figure(at: Spot, pose: str, bare: bool, depth: float) -> Sprite:
    """Legs, trunk, arms and head, from the feet up. Lengths in statures, `f` of what stands upright."""
    rng, f, ground = at.rng, at.view.tilt, at.view.ground
    canvas = at.canvas(0.85, 1.25, 0.65)
    skin, hair, shirt, trousers = at.pick(*_SKIN), at.pick(*_HAIR), at.pick(*CLOTH), at.pick(*_TROUSERS)
    trunk = skin if bare and at.chance(0.6) else shirt
    short = bare or at.chance(0.3)
    legs, seat = skin if short else trousers, at.pick(*CLOTH) if bare else trousers
    sleeves = skin if bare or at.chance(0.45) else shirt
    sideways, build = at.chance(0.5), rng.normal(1, 0.12)
    shoulder, hip = (0.075 if sideways else 0.125) * build, (0.065 if sideways else 0.09) * build
    head, lean = at.between(0.081, 0.102), rng.normal(0, 0.03)

    if pose == "lie":
        for side in (-1, 1):
            foot, hand = at.across(side * at.between(0.03, 0.10)), at.along(at.between(-0.1, 0.5))
            canvas.stroke([at.along(0.02) + at.across(side * 0.04), foot - at.along(0.46)], 0.09, legs)
            canvas.stroke([at.along(0.3) + at.across(side * 0.1), hand + at.across(side * 0.18)], 0.06, sleeves)
        canvas.stroke([at.along(0), at.along(0.30)], 0.19, trunk)
        canvas.stroke([at.along(-0.03), at.along(0.04)], 0.18, seat)
        canvas.disc(at.along(0.43), head, head, hair if at.chance(0.6) else skin)
        return canvas.sprite(at.view, person=True)

    if pose == "swim":
        way = at.side()
        if at.chance(0.6):  # stretched out: the back shows
            canvas.disc((-way * 0.2, 0.02), 0.22, 0.07, trunk, rng.normal(0, 15))
        if at.chance(0.5):
            canvas.stroke([(0, 0.06), (way * at.between(0.15, 0.4), at.between(0, 0.25))], 0.065, skin)
        canvas.disc((0, 0.06), 1.4 * head, 0.9 * head, skin)
        canvas.disc((0, 0.06 + 1.1 * head), head, head, hair)
        if at.chance(0.5):
            canvas.disc((way * 0.35 * head, 0.06 + 0.8 * head), 0.6 * head, 0.6 * head, skin)
        return canvas.sprite(at.view, person=True)

    sunk = 0.0
    if pose == "wade":
        sunk = float(np.clip(0.1 + 0.25 * depth + rng.normal(0, 0.06), 0.06, 0.62)) * f
        pose = str(rng.choice(("stand", "walk", "reach")))
    if pose == "sit":
        bottom, top, knee = 0.06 * f, 0.42 * f, at.between(-0.38, 0.38)
        foot = np.array((knee, -at.between(0.02, 0.2) * ground))
        canvas.stroke([(0, bottom), (0.55 * knee, bottom + 0.16 * f), foot], 0.10, legs)
        canvas.stroke([(0, bottom), (0.25 * knee, bottom + 0.04 * f)], 0.14, seat)
        hip *= 1.2
    else:
        bottom, top = 0.47 * f - sunk, 0.80 * f - sunk
        stride = at.between(0.02, 0.07) if pose != "walk" else at.between(0.08, 0.20) if sideways else 0.05
        for side in (-1, 1):
            foot = np.array((side * stride, (at.between(0, 0.06) if pose == "walk" else 0.0) - sunk))
            canvas.stroke([(side * 0.5 * hip, bottom), foot], 0.085, legs)
            canvas.disc(foot, 0.055, 0.035, skin if bare else (42, 36, 34))
            if short:
                thigh = (side * (0.35 * hip + 0.4 * stride), 0.6 * bottom - 0.4 * sunk)
                canvas.stroke([(side * 0.5 * hip, bottom), thigh], 0.10, seat)
        if not short and at.chance(0.2):  # a skirt
            hem = bottom - 0.28 * f
            canvas.polygon([(-hip, bottom), (hip, bottom), (1.5 * hip, hem), (-1.5 * hip, hem)], trousers)

    for side in (-1, 1):
        if pose == "reach" and (side > 0 or at.chance(0.4)):
            elbow = (side * (shoulder + 0.08), top - 0.05 * f)
            hand = np.array((side * at.between(0.15, 0.42), top + at.between(-0.1, 0.3) * f))
        else:
            swing = at.between(0, 0.10 if pose == "walk" else 0.04)
            hand = np.array((side * (shoulder + swing) + lean, max(top - 0.34 * f, -0.02)))
            elbow = (side * (shoulder + 0.02 + 0.5 * swing) + lean, 0.5 * (top + hand[1]))
        canvas.stroke([(side * shoulder * 0.9 + lean, top), elbow, hand], 0.062, sleeves)
    canvas.polygon([(-hip, bottom), (hip, bottom), (shoulder + lean, top), (-shoulder + lean, top)], trunk)
    canvas.disc((lean, top), shoulder, 0.03 + 0.07 * (1 - f), trunk)  # seen from above, shoulders have a depth
    canvas.stroke([(-0.6 * hip, bottom + 0.01), (0.6 * hip, bottom + 0.01)], 0.08 * f, seat)
    extra = rng.random()
    if extra < 0.10:  # a backpack
        canvas.disc((lean + 0.09 * sideways, 0.5 * (top + bottom) + 0.03), 0.09, 0.15 * f, at.pick(*CLOTH))
    elif extra < 0.18 and pose != "sit":  # a bag
        canvas.disc((shoulder + 0.05, max(bottom - 0.06 * f, 0.05)), 0.06, 0.08, at.pick(*CLOTH))
    crown = top + 0.10 * f + 0.02 * (1 - f) + 0.2 * head
    away = at.chance(0.4)  # hair only, no face
    canvas.disc((1.3 * lean, crown), head, head * 1.1, skin)
    canvas.disc((1.3 * lean, crown + (0 if away else 0.4 * head)), head * 1.02, head * (1.05 if away else 0.75), hair)
    if at.chance(0.16):
        hat = at.pick(*CLOTH)
        canvas.disc((1.3 * lean, crown + 0.35 * head), 1.7 * head, 0.65 * head, hat)
        canvas.disc((1.3 * lean, crown + 0.7 * head), head, 0.6 * head, hat)
    if sunk:
        canvas.cut_below(0.0)
    return canvas.sprite(at.view, person=True)
