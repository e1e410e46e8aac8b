"""The people of a scene: positions, poses and appearance from afar."""

from __future__ import annotations

import numpy as np

from tinydet.data.scenery.colors import CLOTH
from tinydet.data.scenery.distractors import cloth, foam, surfboard
from tinydet.data.scenery.ground import LAND, Ground
from tinydet.data.scenery.placement import Placement
from tinydet.data.scenery.sprites import Sprite
from tinydet.data.scenery.view import View

BOX_HEIGHTS = (3.0, 24.0)  # pixels, lowest and highest box of an unoccluded person
_SKIN = ((236, 196, 168), (222, 176, 144), (198, 150, 116), (160, 112, 82), (112, 76, 56), (78, 54, 42))
_HAIR = ((30, 26, 24), (46, 34, 26), (70, 50, 34), (104, 76, 48), (170, 136, 88), (176, 172, 168))
_TROUSERS = ((34, 36, 44), (46, 56, 84), (74, 92, 126), (92, 90, 88), (164, 146, 116), (38, 38, 40), (214, 210, 202))


def place_people(rng: np.random.Generator, view: View, ground: Ground, density: float) -> list[Sprite]:
    """Draw people alone, in pairs and in groups, most of them at the shore and on paths, few on roads.

    Args:
        density: people per million pixels, on average.
    """
    remaining = int(rng.poisson(density * view.width * view.height / 1e6))
    sprites: list[Sprite] = []
    while remaining > 0:
        places = rng.uniform(0, (view.width, view.height), (6, 2))
        weights = np.array([_attraction(ground, view, x, y) for x, y in places])
        middle = places[rng.choice(len(places), p=weights / weights.sum())]
        size = int(rng.choice(np.array((1, 2, rng.integers(3, 7), rng.integers(7, 16))), p=(0.55, 0.23, 0.17, 0.05)))
        spread = view.stature(middle[1]) * 0.45 * size**0.5 * rng.uniform(0.7, 1.6) * (size > 1)
        for x, y in (middle + rng.normal(0, spread, (size, 2)) * (1, max(view.depth_scale, 0.5))).tolist()[:remaining]:
            remaining -= 1
            if -2 < x < view.width + 2 and -2 < y < view.height + view.stature(y) * view.vertical_scale:
                sprites += _person(rng, view, ground, x, y)
    return sprites


def _attraction(ground: Ground, view: View, x: float, y: float) -> float:
    """Return the weight of a position when people are placed."""
    shore_distance = ground.shore_distance_at(x, y) / view.unit
    if shore_distance < 0:
        return 0.06 + 0.8 * float(np.exp(shore_distance / 6))
    return LAND[ground.material(x, y)].attraction + 1.2 * float(np.exp(-shore_distance / 3))


def _person(rng: np.random.Generator, view: View, ground: Ground, x: float, y: float) -> list[Sprite]:
    """Draw a person, and below it a towel, foam or a board."""
    material, depth = ground.material(x, y), -ground.shore_distance_at(x, y) / view.unit
    child = rng.random() < 0.15
    stature = view.stature(y) * (rng.uniform(0.55, 0.8) if child else rng.normal(1, 0.06))
    place = Placement(rng, view, x, y, stature, float(rng.uniform(0, 2 * np.pi)))
    if material == "water":
        pose = str(rng.choice(("wade", "swim") if depth < 2.2 else ("swim", "swim", "swim", "swim", "board")))
    elif material == "sand":
        pose = str(rng.choice(("stand", "walk", "reach", "sit", "lie"), p=(0.30, 0.28, 0.10, 0.19, 0.13)))
    else:
        pose = str(rng.choice(("stand", "walk", "reach", "sit"), p=(0.36, 0.48, 0.06, 0.10)))
    bare = material == "water" or (material == "sand" and place.chance(0.7))
    props: list[Sprite] = []
    if pose == "lie" or (pose == "sit" and material == "sand" and place.chance(0.4)):
        props = [cloth(place, 1.15, 0.5)]
    elif pose == "board":
        props, pose = surfboard(place), str(rng.choice(("stand", "sit")))
    elif material == "water":
        props = [foam(place, place.uniform(0.25, 0.6), place.uniform(0, 0.7 if pose == "swim" else 0.35))]

    figure_seed = int(rng.integers(2**62))  # to redraw the same person in another size
    for _ in range(4):
        figure = _figure(place._replace(rng=np.random.default_rng(figure_seed)), pose, bare, depth)
        height = figure.box[3] - figure.box[1]
        if BOX_HEIGHTS[0] <= height <= BOX_HEIGHTS[1]:
            break
        fit = float(np.clip(height, BOX_HEIGHTS[0] + 0.2, BOX_HEIGHTS[1] - 0.2)) / max(height, 0.1)
        place = place._replace(stature=place.stature * fit)
    return [*props, figure]


def _figure(place: Placement, pose: str, bare: bool, depth: float) -> Sprite:
    """Draw legs, torso, arms and head, from the feet up.

    Lengths are in statures. `f` is the foreshortening of vertical lengths.

    Args:
        bare: swimwear.
        depth: distance from the shore in statures; determines how deep a wading person stands in the water.
    """
    rng, f, depth_scale = place.rng, place.view.vertical_scale, place.view.depth_scale
    canvas = place.canvas(0.85, 1.25, 0.65)
    skin, hair = place.pick_color(*_SKIN), place.pick_color(*_HAIR)
    shirt, trousers = place.pick_color(*CLOTH), place.pick_color(*_TROUSERS)
    torso = skin if bare and place.chance(0.6) else shirt
    short = bare or place.chance(0.3)
    legs, seat = skin if short else trousers, place.pick_color(*CLOTH) if bare else trousers
    sleeves = skin if bare or place.chance(0.45) else shirt
    sideways, build = place.chance(0.5), rng.normal(1, 0.12)
    shoulder, hip = (0.075 if sideways else 0.125) * build, (0.065 if sideways else 0.09) * build
    head, lean = place.uniform(0.081, 0.102), rng.normal(0, 0.03)

    if pose == "lie":
        for side in (-1, 1):
            foot, hand = place.across(side * place.uniform(0.03, 0.10)), place.along(place.uniform(-0.1, 0.5))
            canvas.stroke([place.along(0.02) + place.across(side * 0.04), foot - place.along(0.46)], 0.09, legs)
            shoulder_end, hand_end = place.along(0.3) + place.across(side * 0.1), hand + place.across(side * 0.18)
            canvas.stroke([shoulder_end, hand_end], 0.06, sleeves)
        canvas.stroke([place.along(0), place.along(0.30)], 0.19, torso)
        canvas.stroke([place.along(-0.03), place.along(0.04)], 0.18, seat)
        canvas.ellipse(place.along(0.43), head, head, hair if place.chance(0.6) else skin)
        return canvas.sprite(place.view, is_person=True)

    if pose == "swim":
        direction = place.random_side()
        if place.chance(0.6):  # stretched out: the back is visible
            canvas.ellipse((-direction * 0.2, 0.02), 0.22, 0.07, torso, rng.normal(0, 15))
        if place.chance(0.5):
            canvas.stroke([(0, 0.06), (direction * place.uniform(0.15, 0.4), place.uniform(0, 0.25))], 0.065, skin)
        canvas.ellipse((0, 0.06), 1.4 * head, 0.9 * head, skin)
        canvas.ellipse((0, 0.06 + 1.1 * head), head, head, hair)
        if place.chance(0.5):
            canvas.ellipse((direction * 0.35 * head, 0.06 + 0.8 * head), 0.6 * head, 0.6 * head, skin)
        return canvas.sprite(place.view, is_person=True)

    sunk = 0.0
    if pose == "wade":
        sunk = float(np.clip(0.1 + 0.25 * depth + rng.normal(0, 0.06), 0.06, 0.62)) * f
        pose = str(rng.choice(("stand", "walk", "reach")))
    if pose == "sit":
        bottom, top, knee = 0.06 * f, 0.42 * f, place.uniform(-0.38, 0.38)
        foot = np.array((knee, -place.uniform(0.02, 0.2) * depth_scale))
        canvas.stroke([(0, bottom), (0.55 * knee, bottom + 0.16 * f), foot], 0.10, legs)
        canvas.stroke([(0, bottom), (0.25 * knee, bottom + 0.04 * f)], 0.14, seat)
        hip *= 1.2
    else:
        bottom, top = 0.47 * f - sunk, 0.80 * f - sunk
        stride = place.uniform(0.02, 0.07) if pose != "walk" else place.uniform(0.08, 0.20) if sideways else 0.05
        for side in (-1, 1):
            foot = np.array((side * stride, (place.uniform(0, 0.06) if pose == "walk" else 0.0) - sunk))
            canvas.stroke([(side * 0.5 * hip, bottom), foot], 0.085, legs)
            canvas.ellipse(foot, 0.055, 0.035, skin if bare else (42, 36, 34))
            if short:
                thigh = (side * (0.35 * hip + 0.4 * stride), 0.6 * bottom - 0.4 * sunk)
                canvas.stroke([(side * 0.5 * hip, bottom), thigh], 0.10, seat)
        if not short and place.chance(0.2):  # a skirt
            hem = bottom - 0.28 * f
            canvas.polygon([(-hip, bottom), (hip, bottom), (1.5 * hip, hem), (-1.5 * hip, hem)], trousers)

    for side in (-1, 1):
        if pose == "reach" and (side > 0 or place.chance(0.4)):
            elbow = (side * (shoulder + 0.08), top - 0.05 * f)
            hand = np.array((side * place.uniform(0.15, 0.42), top + place.uniform(-0.1, 0.3) * f))
        else:
            swing = place.uniform(0, 0.10 if pose == "walk" else 0.04)
            hand = np.array((side * (shoulder + swing) + lean, max(top - 0.34 * f, -0.02)))
            elbow = (side * (shoulder + 0.02 + 0.5 * swing) + lean, 0.5 * (top + hand[1]))
        canvas.stroke([(side * shoulder * 0.9 + lean, top), elbow, hand], 0.062, sleeves)
    canvas.polygon([(-hip, bottom), (hip, bottom), (shoulder + lean, top), (-shoulder + lean, top)], torso)
    canvas.ellipse((lean, top), shoulder, 0.03 + 0.07 * (1 - f), torso)  # from above, shoulders have depth
    canvas.stroke([(-0.6 * hip, bottom + 0.01), (0.6 * hip, bottom + 0.01)], 0.08 * f, seat)
    extra = rng.random()
    if extra < 0.10:  # a backpack
        canvas.ellipse((lean + 0.09 * sideways, 0.5 * (top + bottom) + 0.03), 0.09, 0.15 * f, place.pick_color(*CLOTH))
    elif extra < 0.18 and pose != "sit":  # a bag
        canvas.ellipse((shoulder + 0.05, max(bottom - 0.06 * f, 0.05)), 0.06, 0.08, place.pick_color(*CLOTH))
    crown = top + 0.10 * f + 0.02 * (1 - f) + 0.2 * head
    from_behind = place.chance(0.4)  # seen from behind: hair only, no face
    canvas.ellipse((1.3 * lean, crown), head, head * 1.1, skin)
    hair_up, hair_height = (0, 1.05) if from_behind else (0.4 * head, 0.75)
    canvas.ellipse((1.3 * lean, crown + hair_up), head * 1.02, head * hair_height, hair)
    if place.chance(0.16):
        hat = place.pick_color(*CLOTH)
        canvas.ellipse((1.3 * lean, crown + 0.35 * head), 1.7 * head, 0.65 * head, hat)
        canvas.ellipse((1.3 * lean, crown + 0.7 * head), head, 0.6 * head, hat)
    if sunk:
        canvas.erase_below(0.0)
    return canvas.sprite(place.view, is_person=True)
