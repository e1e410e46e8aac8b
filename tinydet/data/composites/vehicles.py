"""Vehicles: cars, vans, pickups, trucks, buses, motorbikes and bicycles."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinydet.data.composites.mesh import Mesh, box, join, lathe, loft, polygons, tube
from tinydet.data.composites.people import cloth_color

CARS = ("sedan", "hatchback", "suv", "estate", "minivan", "pickup", "van", "truck", "semitrailer", "bus", "long bus")
CYCLES = ("motorbike", "scooter", "bicycle")
SHARES = {  # of the kinds in traffic
    "sedan": 0.27, "hatchback": 0.22, "suv": 0.19, "estate": 0.08, "minivan": 0.04, "pickup": 0.03, "van": 0.07,
    "truck": 0.05, "semitrailer": 0.01, "bus": 0.03, "long bus": 0.01,
}  # fmt: skip
_TIRE = (22.0, 22.0, 23.0)


class Vehicle(NamedTuple):
    """A vehicle that faces along x, and the ground that it covers."""

    mesh: Mesh
    length: float  # meters
    width: float


def paint(rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw the color of a car as new cars are sold: mostly white, black, gray and silver."""
    kind = rng.random()
    if kind < 0.26:
        color = np.full(3, rng.uniform(205, 246))
    elif kind < 0.47:
        color = np.full(3, rng.uniform(14, 44))
    elif kind < 0.74:
        color = np.full(3, rng.uniform(70, 190)) * (1, 1, rng.uniform(0.98, 1.05))
    elif kind < 0.83:
        color = np.array((34, 62, 122)) * rng.uniform(0.6, 1.7)
    elif kind < 0.92:
        color = np.array((150, 26, 28)) * rng.uniform(0.7, 1.4)
    elif kind < 0.95:
        color = np.array((168, 152, 124)) * rng.uniform(0.6, 1.2)
    else:
        color = cloth_color(rng)
    return np.asarray(np.clip(color + rng.normal(0, 3, 3), 8, 250))


def vehicle(rng: np.random.Generator, kind: str) -> Vehicle:
    """Return a vehicle of a kind of `CARS` or `CYCLES`."""
    if kind in CYCLES:
        return _cycle(rng, kind)
    if kind in ("truck", "semitrailer"):
        return _truck(rng, kind)
    if kind in ("bus", "long bus"):
        return _bus(rng, kind)
    return _car(rng, kind)


class _Shape(NamedTuple):
    """Dimensions of a car: lengths along x as fractions of its length, from the rear (0) to the front (1)."""

    length: float
    height: float
    belt: float  # height of the window sill, as a fraction of the height
    glass: tuple[float, float, float, float]  # rear window bottom and top, windshield top and bottom
    nose: float  # height of the front end, as a fraction of the belt


_SHAPES = {
    "sedan": _Shape(4.65, 1.45, 0.64, (0.12, 0.27, 0.52, 0.70), 0.72),
    "hatchback": _Shape(4.0, 1.48, 0.63, (0.03, 0.11, 0.53, 0.74), 0.72),
    "suv": _Shape(4.6, 1.70, 0.62, (0.03, 0.09, 0.55, 0.72), 0.82),
    "estate": _Shape(4.75, 1.48, 0.63, (0.03, 0.12, 0.54, 0.71), 0.72),
    "minivan": _Shape(4.6, 1.75, 0.58, (0.02, 0.07, 0.64, 0.85), 0.75),
    "pickup": _Shape(5.3, 1.80, 0.60, (0.36, 0.39, 0.57, 0.71), 0.88),
    "van": _Shape(5.6, 2.25, 0.50, (0.01, 0.02, 0.76, 0.88), 0.85),
}


def _car(rng: np.random.Generator, kind: str) -> Vehicle:
    shape, color = _SHAPES[kind], paint(rng)
    length = shape.length * rng.uniform(0.93, 1.06)
    half = rng.uniform(0.86, 0.95) + 0.06 * (kind == "van")
    height, belt = shape.height * rng.uniform(0.96, 1.04), shape.height * shape.belt

    def at(fraction: float) -> float:
        return float((fraction - 0.5) * length)

    sill = 0.24
    # x as a fraction of the length, half width, height of the upper surface
    outline = (
        (0.0, 0.74 * half, 0.80 * belt), (0.02, 0.88 * half, 0.94 * belt), (0.10, 0.98 * half, belt),
        (0.30, half, belt), (0.70, 0.99 * half, belt), (0.86, 0.96 * half, (0.4 + 0.6 * shape.nose) * belt),
        (0.965, 0.86 * half, shape.nose * belt), (1.0, 0.64 * half, 0.82 * shape.nose * belt),
    )  # fmt: skip
    sections = [
        [(at(x), 0.0, z + 0.03), (at(x), 0.8 * width, z), (at(x), width, z - 0.12), (at(x), 0.97 * width, sill)]
        for x, width, z in outline
    ]
    hull = loft(sections, color)
    glass = np.array((34.0, 40, 46)) * rng.choice((rng.uniform(0.5, 1.3), rng.uniform(1.3, 2.6)))  # reflects the sky
    rear_low, rear_high, front_high, front_low = (at(x) for x in shape.glass)
    roof, waist = 0.74 * half, 0.92 * half
    solid = kind == "van" and rng.random() < 0.75  # no windows at the sides
    top = glass * 0.8 if kind != "van" and rng.random() < 0.12 else color  # a glass roof
    upper = np.array(((front_high, roof, height), (rear_high, roof, height)))
    lower = np.array(((front_low, waist, belt), (rear_low, waist, belt)))
    mirror = np.array((1, -1, 1))
    (fu, ru), (fl, rl) = upper, lower
    cabin = [
        polygons([[fl * mirror, fl, fu, fu * mirror]], glass * 1.15),  # windshield
        polygons([[rl, rl * mirror, ru * mirror, ru]], color if solid else glass),  # rear window
        polygons([[rl * mirror, fl * mirror, fu * mirror, ru * mirror], [fl, rl, ru, fu]],
                 color * 0.97 if solid else glass),
        polygons([[ru * mirror, fu * mirror, fu, ru]], top),
    ]  # fmt: skip
    edge = 0.10  # the pillars: a narrower roof with a rim in the color of the car
    if not solid and top is color:
        cabin += [box((rear_high + edge, front_high - edge), (s * roof - 0.05, s * roof + 0.05),
                      (height - 0.02, height + 0.02), color * rng.choice((0.6, 1.0))) for s in (-1, 1)]  # fmt: skip
    if top is color and rng.random() < 0.25:  # a sunroof
        cabin.append(box((front_high - 0.75, front_high - 0.2), (-0.4, 0.4), (height, height + 0.01), glass))
    lamps = [box((at(0.955), at(0.985)), (s * 0.66 * half - 0.13, s * 0.66 * half + 0.13),
                 (0.55 * belt, 0.80 * shape.nose * belt + 0.03), (226, 226, 220)) for s in (-1, 1)]  # fmt: skip
    lamps += [box((at(-0.002), at(0.02)), (s * 0.68 * half - 0.14, s * 0.68 * half + 0.14), (0.6 * belt, 0.92 * belt),
                  (150, 24, 24)) for s in (-1, 1)]  # fmt: skip
    details = [box((at(0.695), at(0.715)), (s * half - 0.02, s * half + 0.16), (belt, belt + 0.14), color)
               for s in (-1, 1)]  # fmt: skip  # mirrors
    details.append(box((at(0.72), at(0.725)), (-0.8 * half, 0.8 * half), (belt, belt + 0.035), color * 0.45))
    if kind == "pickup":
        inside = np.full(3, rng.uniform(30, 70))
        details.append(box((at(0.03), at(0.33)), (-0.78 * half, 0.78 * half), (belt, belt + 0.035), inside))
    if kind in ("suv", "estate", "van", "minivan") and rng.random() < 0.3:  # roof rails or a box
        details += [tube((rear_high + 0.2, s * roof * 0.9, height + 0.05), (front_high - 0.1, s * roof * 0.9, height
                    + 0.05), 0.03, (40, 40, 42)) for s in (-1, 1)]  # fmt: skip
    mesh = join([hull, *cabin, *lamps, *details, *_wheels((at(0.19), at(0.81)), half, 0.32)])
    return Vehicle(mesh, length, 2 * half)


def _wheels(positions: tuple[float, ...], half: float, radius: float) -> list[Mesh]:
    return [box((x - radius, x + radius), (s * (half - 0.1) - 0.12, s * (half - 0.1) + 0.12), (0, 2 * radius), _TIRE)
            for x in positions for s in (-1, 1)]  # fmt: skip


def _truck(rng: np.random.Generator, kind: str) -> Vehicle:
    long = kind == "semitrailer"
    length = rng.uniform(14, 16.5) if long else rng.uniform(6.2, 10)
    half, cab = 1.24, rng.uniform(1.8, 2.3)
    color, front = paint(rng), length / 2
    glass = np.array((30.0, 36, 42)) * rng.uniform(0.6, 1.5)
    high = rng.uniform(2.5, 3.3)
    parts = [
        box((front - cab, front), (-half, half), (0.5, high), color),
        polygons([[(front + 0.02, -0.9 * half, 0.55 * high), (front + 0.02, 0.9 * half, 0.55 * high),
                   (front + 0.02, 0.9 * half, 0.9 * high), (front + 0.02, -0.9 * half, 0.9 * high)]], glass),
        *[box((front - 0.15, front), (s * half - 0.03, s * half + 0.28), (0.6 * high, 0.8 * high), (40, 40, 42))
          for s in (-1, 1)],
    ]  # fmt: skip
    rear, start = -front, front - cab - (0.9 if long else 0.15)
    load, roll = paint(rng), rng.random()
    if roll < 0.6:  # a closed body
        roof = load * rng.uniform(0.85, 1.0)
        tall = rng.uniform(2.8, 3.8)
        parts.append(box((rear, start), (-half, half), (1.0, tall), load, roof))
        ribs = np.linspace(rear + 0.6, start - 0.6, int(rng.integers(0, 9)))
        parts += [box((x, x + 0.05), (-half, half), (tall, tall + 0.01), roof * 0.82) for x in ribs.tolist()]
    elif roll < 0.85:  # an open body with a load
        parts.append(box((rear, start), (-half, half), (0.9, 1.7), load))
        parts.append(box((rear + 0.12, start - 0.12), (-half + 0.12, half - 0.12), (1.5, rng.uniform(1.55, 1.9)),
                         np.array((126, 108, 84)) * rng.uniform(0.4, 1.4)))  # fmt: skip
    else:  # a tank
        ring = [(0.0, 1.0), (0.5, 0.87), (0.87, 0.5), (1.0, 0.0), (0.87, -0.5)]
        parts.append(loft([[(x, y * half * 0.95, 2.1 + z * 1.05) for y, z in ring] for x in (rear, start)], load))
    parts.append(box((rear + 0.3, front - 0.3), (-0.5, 0.5), (0.5, 1.0), (44, 44, 46)))
    axles = (rear + 1.0, rear + 2.2, rear + 3.4, front - 1.2) if long else (rear + 1.3, front - 1.0)
    return Vehicle(join([*parts, *_wheels(axles, half, 0.48)]), length, 2 * half)


def _bus(rng: np.random.Generator, kind: str) -> Vehicle:
    length = rng.uniform(17, 18.5) if kind == "long bus" else rng.uniform(6.5, 12.5)
    half, high = rng.uniform(1.15, 1.27), rng.uniform(2.8, 3.2)
    color = paint(rng) if rng.random() < 0.6 else cloth_color(rng)
    roof = np.clip(color * 0.4 + rng.uniform(90, 140), 0, 245) if rng.random() < 0.6 else color
    glass = np.array((34.0, 40, 46)) * rng.uniform(0.6, 1.5)
    front = length / 2
    ring = ((0.0, high), (0.8, high - 0.02), (0.97, high - 0.16), (1.0, 1.3), (1.0, 0.35))
    ends = ((-front, 0.94), (-front + 0.15, 1.0), (front - 0.3, 1.0), (front, 0.9))
    hull = loft([[(x, y * half * narrow, z) for y, z in ring] for x, narrow in ends], color)
    hull.colors[hull.vertices[hull.faces][..., 2].min(axis=1) > high - 0.2] = roof
    parts = [hull]
    windows = np.arange(-front + 0.5, front - 1.3, 1.45)
    for x in windows.tolist():
        for s in (-1, 1):
            y = s * (half + 0.015)
            pane = [(x, y, 1.35), (x + 1.25, y, 1.35), (x + 1.25, y, high - 0.45), (x, y, high - 0.45)]
            parts.append(polygons([pane if s < 0 else pane[::-1]], glass))
    parts.append(polygons([[(front + 0.02, -0.85 * half, 1.2), (front + 0.02, 0.85 * half, 1.2),
                            (front + 0.02, 0.85 * half, high - 0.35), (front + 0.02, -0.85 * half, high - 0.35)]],
                          glass))  # fmt: skip
    for _ in range(int(rng.integers(1, 4))):  # hatches and air conditioning
        x, reach, wide = rng.uniform(-front + 1.2, front - 1.6), rng.uniform(0.3, 1.1), rng.uniform(0.3, 0.8)
        shade = np.full(3, rng.choice((40, 90, 200, 235)) * rng.uniform(0.9, 1.05))
        parts.append(box((x - reach, x + reach), (-wide, wide), (high, high + rng.uniform(0.03, 0.3)), shade))
    if kind == "long bus":  # the joint
        parts.append(box((-0.6, 0.6), (-half - 0.01, half + 0.01), (0.4, high + 0.01), (52, 52, 54)))
    axles = (-front + 2.2, front - 2.4)
    return Vehicle(join([*parts, *_wheels(axles, half, 0.48)]), length, 2 * half)


def _cycle(rng: np.random.Generator, kind: str) -> Vehicle:
    """Return a motorbike, a scooter or a bicycle without its rider."""
    engine = kind != "bicycle"
    reach = {"motorbike": 0.72, "scooter": 0.62, "bicycle": 0.53}[kind]
    radius, thick = (0.31, 0.075) if engine else (0.34, 0.024)
    if kind == "scooter":
        radius = 0.23
    color = paint(rng) if engine else cloth_color(rng)
    parts = []
    for x in (-reach, reach):
        wheel = lathe(((radius, -thick), (radius, thick)), _TIRE, sides=12)
        parts.append(wheel.tilted(np.pi / 2).moved(x, 0.0, radius))
    bar = rng.uniform(0.3, 0.38)
    handle = 1.0 if engine else 0.98
    parts.append(tube((reach - 0.28, -bar, handle), (reach - 0.28, bar, handle), 0.03, (34, 34, 36)))
    parts.append(tube((reach, 0, radius), (reach - 0.28, 0, handle), 0.03 if engine else 0.02, (60, 60, 62)))
    if engine:
        parts.append(box((-0.15, reach - 0.3), (-0.17, 0.17), (0.35, 0.86), color))  # tank and engine
        parts.append(box((-reach - 0.12, -0.1), (-0.14, 0.14), (0.5, 0.82), (30, 30, 32)))  # seat
        if kind == "scooter":
            parts.append(box((reach - 0.34, reach - 0.2), (-0.22, 0.22), (0.3, 1.0), color))
        if rng.random() < 0.35:
            parts.append(box((-reach - 0.3, -reach + 0.1), (-0.2, 0.2), (0.8, 1.15), cloth_color(rng)))  # a top case
    else:
        for start, end in (((-0.12, 0.85), (reach - 0.25, 0.85)), ((-0.12, 0.85), (-0.05, 0.3)),
                           ((-0.05, 0.3), (reach - 0.2, 0.8)), ((-0.05, 0.3), (-reach, radius)),
                           ((-0.12, 0.8), (-reach, radius))):  # fmt: skip
            parts.append(tube((start[0], 0, start[1]), (end[0], 0, end[1]), 0.022, color, sides=4))
        parts.append(box((-0.3, -0.05), (-0.07, 0.07), (0.93, 0.98), (26, 26, 28)))  # saddle
        if rng.random() < 0.3:
            parts.append(box((-reach - 0.1, -reach + 0.3), (-0.17, 0.17), (0.72, 0.98), cloth_color(rng)))  # basket
    return Vehicle(join(parts), 2 * (reach + radius), 2 * bar)
