"""People: poses, clothes and what they carry."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from tinydet.data.composites.body import PARTS, Body, turn
from tinydet.data.composites.mesh import Mesh, box, join, lathe, polygons, tube

Pose = dict[str, NDArray[np.float64]]
POSES = ("stand", "walk", "run", "bend", "squat", "seat", "ground", "lie", "ride")
_SKIN = ((236, 196, 168), (222, 176, 144), (198, 150, 116), (160, 112, 82), (112, 76, 56), (78, 54, 42))
_HAIR = ((28, 24, 22), (34, 28, 24), (62, 44, 30), (104, 76, 48), (176, 144, 96), (150, 146, 142))
_HANGING = 43  # degrees from the arms at rest to hanging arms


def person(
    rng: np.random.Generator, body: Body, level: int, pose: str, heading: float, *, umbrella: bool = False
) -> Mesh:
    """Return a person who stands, sits or lies at the origin and faces `heading`.

    Args:
        level: of detail, an index into `body.levels`.
        pose: one of `POSES`.
        umbrella: whether they hold one.
    """
    stature = rng.normal(1.70, 0.09) if rng.random() > 0.12 else rng.uniform(0.95, 1.5)
    bulk = rng.choice((0.004, 0.012, 0.022), p=(0.4, 0.35, 0.25))
    vertices = body.posed(level, _rotations(rng, pose), float(bulk) * rng.uniform(0.7, 1.3))
    vertices = vertices * stature * (1, 1, 1)
    vertices[:, :2] *= rng.uniform(0.94, 1.12)
    mesh = body.levels[level]
    colors = _outfit(rng, pose)
    shown = np.ones(len(mesh.faces), bool)
    long_hair = rng.random() < 0.28
    skirt = pose in ("stand", "walk") and rng.random() < 0.13
    for part, kept in (("long hair", long_hair), ("skirt", skirt)):
        if not kept:
            shown &= mesh.parts != PARTS.index(part)
    paint = colors[mesh.parts] * rng.normal(1, 0.05, (len(mesh.faces), 1))
    figure = Mesh(vertices, mesh.faces[shown], np.clip(paint[shown], 3, 250))
    figure = _grounded(rng, figure, pose)
    extras = _carried(rng, pose, stature)
    if umbrella:
        extras.append(_umbrella(rng, stature))
    return join([figure, *extras]).turned(heading)


def cloth_color(rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw the color of a garment: mostly dark, gray, white or blue, sometimes bright."""
    kind = rng.random()
    if kind < 0.34:
        base = np.full(3, rng.uniform(16, 58))
    elif kind < 0.46:
        base = np.full(3, rng.uniform(70, 150))
    elif kind < 0.60:
        base = np.full(3, rng.uniform(190, 240))
    elif kind < 0.74:
        base = np.array((34, 46, 78)) * rng.uniform(0.7, 1.9)
    elif kind < 0.82:
        base = np.array((176, 152, 116)) * rng.uniform(0.6, 1.2)
    else:
        hsv = np.array([[[rng.uniform(0, 180), rng.uniform(90, 220), rng.uniform(80, 235)]]], np.uint8)
        base = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0].astype(float)
    return np.asarray(np.clip(base + rng.normal(0, 5, 3), 6, 245))


def _outfit(rng: np.random.Generator, pose: str) -> NDArray[np.float64]:
    """Return the color of each part of the body, (len(PARTS), 3)."""
    skin = np.array(_SKIN[int(rng.integers(len(_SKIN)))]) + rng.normal(0, 6, 3)
    top, bottom, shoes = cloth_color(rng), cloth_color(rng), cloth_color(rng)
    if rng.random() < 0.45:  # jeans and dark trousers
        bottom = np.array((44, 54, 80)) * rng.uniform(0.5, 1.6)
    if rng.random() < 0.08:  # one color from head to foot
        bottom = top * rng.uniform(0.85, 1.1)
    hair = np.array(_HAIR[int(rng.integers(len(_HAIR)))]) + rng.normal(0, 5, 3)
    covered = cloth_color(rng) if rng.random() < (0.75 if pose == "ride" else 0.22) else hair  # a hat or a helmet
    sleeves = rng.random()
    bare = rng.random() < (0.35 if pose == "lie" else 0.04)
    legs = rng.random() < (0.5 if pose == "lie" else 0.22)
    by_part = {
        "torso": skin if bare else top, "head": skin, "hair": covered, "long hair": covered,
        "upper arm": skin if bare or sleeves < 0.07 else top, "forearm": skin if bare or sleeves < 0.4 else top,
        "hand": skin, "thigh": bottom, "shin": skin if legs else bottom, "foot": shoes, "skirt": bottom,
    }  # fmt: skip
    return np.array([by_part[part] for part in PARTS])


def _rotations(rng: np.random.Generator, pose: str) -> Pose:
    """Draw the rotations of the bones in a pose."""

    def vary(middle: float, spread: float) -> float:
        return float(rng.normal(middle, spread))

    found: Pose = {"neck01": turn(pitch=vary(0, 8), yaw=vary(0, 18)), "head": turn(pitch=vary(4, 10), yaw=vary(0, 12))}
    sides = (("L", -1), ("R", 1))
    for side, sign in sides:
        found[f"upperarm01.{side}"] = turn(pitch=vary(0, 8), roll=sign * vary(_HANGING, 6))
        found[f"lowerarm01.{side}"] = turn(pitch=-abs(vary(12, 12)))
    if pose in ("walk", "run"):
        stride, phase = vary(24, 6) if pose == "walk" else vary(42, 8), rng.choice((-1, 1)) * rng.uniform(0.2, 1)
        for side, sign in sides:
            swing = stride * phase * sign
            found[f"upperleg01.{side}"] = turn(pitch=-swing)
            found[f"lowerleg01.{side}"] = turn(pitch=max(0.0, -swing) * 0.9 + (25 if pose == "run" else 6))
            arm = turn(pitch=swing * rng.uniform(0.6, 1.2), roll=sign * vary(_HANGING - 3, 5))
            found[f"upperarm01.{side}"] = arm
            found[f"lowerarm01.{side}"] = turn(pitch=-vary(80 if pose == "run" else 22, 10))
        found["spine05"] = turn(pitch=vary(14 if pose == "run" else 3, 3))
    elif pose == "bend":
        found["spine05"] = turn(pitch=rng.uniform(35, 85))
        for side, sign in sides:
            found[f"upperarm01.{side}"] = turn(pitch=-rng.uniform(10, 60), roll=sign * _HANGING)
    elif pose in ("seat", "ground", "squat", "ride"):
        lift = {"seat": 84, "ground": 80, "squat": 105, "ride": 68}[pose]
        bent = {"seat": 80, "ground": rng.choice((8, 70)), "squat": 120, "ride": 70}[pose]
        spread = rng.uniform(2, 14)
        for side, sign in sides:
            pedal = sign * rng.uniform(8, 22) if pose == "ride" else 0
            found[f"upperleg01.{side}"] = turn(pitch=-vary(lift + pedal, 5), roll=-sign * spread)
            found[f"lowerleg01.{side}"] = turn(pitch=vary(float(bent) + pedal, 8))
            reach = rng.uniform(45, 65) if pose == "ride" else rng.uniform(5, 50)
            found[f"upperarm01.{side}"] = turn(pitch=-reach, roll=sign * (_HANGING - 5))
            found[f"lowerarm01.{side}"] = turn(pitch=-rng.uniform(10, 50))
        found["spine05"] = turn(pitch=rng.uniform(15, 42) if pose == "ride" else rng.uniform(-12, 25))
    elif pose == "lie":
        for side, sign in sides:
            found[f"upperleg01.{side}"] = turn(pitch=-rng.uniform(-5, 35), roll=-sign * rng.uniform(0, 18))
            found[f"lowerleg01.{side}"] = turn(pitch=rng.uniform(0, 55))
            found[f"upperarm01.{side}"] = turn(roll=sign * rng.uniform(-100, _HANGING))
            found[f"lowerarm01.{side}"] = turn(pitch=-rng.uniform(0, 60))
    elif rng.random() < 0.35:  # a raised arm: a phone, a wave, a bag on the shoulder
        side = str(rng.choice(("L", "R")))
        found[f"upperarm01.{side}"] = turn(
            pitch=-rng.uniform(20, 110), roll=(-1 if side == "L" else 1) * (_HANGING - 10)
        )
        found[f"lowerarm01.{side}"] = turn(pitch=-rng.uniform(40, 110))
    return found


def _grounded(rng: np.random.Generator, figure: Mesh, pose: str) -> Mesh:
    """Return the figure with its lowest point on the ground, or on the seat that it sits on."""
    if pose == "lie":
        back = -90 if rng.random() < 0.6 else 90
        figure = figure._replace(vertices=figure.vertices @ turn(pitch=back).T)
        if rng.random() < 0.25:  # on one side
            figure = figure.tilted(float(np.radians(rng.choice((-80, 80)))))
    seat = {"seat": 0.0, "ride": 0.42}.get(pose, 0.0)
    x, y = figure.vertices[:, 0].mean(), figure.vertices[:, 1].mean()
    return figure.moved(-x, -y, seat - figure.vertices[:, 2].min())


def _carried(rng: np.random.Generator, pose: str, stature: float) -> list[Mesh]:
    """Return bags and other luggage of an upright person."""
    if pose not in ("stand", "walk"):
        return []
    kind, color, z = rng.random(), cloth_color(rng), 0.55 * stature
    if kind < 0.11:  # a backpack
        return [box((-0.33, -0.10), (-0.15, 0.15), (z + 0.1, z + 0.5), color)]
    side = rng.choice((-1, 1))
    if kind < 0.2:  # a bag at the side
        y = side * 0.3
        return [box((-0.16, 0.16), (min(y, y + side * 0.13), max(y, y + side * 0.13)), (0.3, 0.62), color)]
    if kind < 0.23:  # a suitcase or a trolley
        return [box((-0.75, -0.5), (side * 0.2 - 0.2, side * 0.2 + 0.2), (0.05, 0.65), color)]
    if kind < 0.25:  # a pram
        return [box((0.45, 1.15), (-0.24, 0.24), (0.35, 0.62), color * 0.6, color),
                box((0.45, 0.72), (-0.25, 0.25), (0.6, 0.98), color)]  # fmt: skip
    return []


def _umbrella(rng: np.random.Generator, stature: float) -> Mesh:
    """Return an open umbrella over the head of a person."""
    radius, top = rng.uniform(0.48, 0.62), stature + rng.uniform(0.12, 0.3)
    color, other = cloth_color(rng), cloth_color(rng)
    canopy = lathe(((radius, top - 0.2), (0.75 * radius, top - 0.07), (0.1, top)), color, sides=8)
    if rng.random() < 0.25:  # two colors
        canopy.colors[np.arange(len(canopy.colors)) % 2 == 0] = other
    stick = tube((0.18, 0.1, 0.7 * stature), (0.05, 0.0, top), 0.015, (50, 50, 52))
    lean = rng.uniform(-0.15, 0.15, 2)
    return join([canopy.moved(float(lean[0]), float(lean[1])), stick])


def towel(rng: np.random.Generator, heading: float) -> Mesh:
    """Return a towel or blanket on the ground."""
    length, width = rng.uniform(1.5, 2.1) / 2, rng.uniform(0.7, 1.5) / 2
    flat = polygons([[(-length, -width, 0.01), (length, -width, 0.01), (length, width, 0.01), (-length, width, 0.01)]],
                    cloth_color(rng))  # fmt: skip
    return flat.turned(heading)
