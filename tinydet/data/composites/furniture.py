"""Street furniture and plants: objects that are neither people nor vehicles, many of the size of a person."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tinydet.data.composites.mesh import Mesh, box, join, lathe, polygons, tube
from tinydet.data.composites.people import cloth_color


def lamp(rng: np.random.Generator) -> Mesh:
    """A street lamp: a pole with one or two arms, or a ball on a post."""
    gray = np.full(3, rng.uniform(70, 200))
    if rng.random() < 0.3:
        high = rng.uniform(3, 4.5)
        ball = lathe(((0.06, high), (0.22, high + 0.12), (0.24, high + 0.3), (0.08, high + 0.45)), (226, 226, 218))
        return join([tube((0, 0, 0), (0, 0, high), 0.06, gray), ball])
    high, reach = rng.uniform(5.5, 10), rng.uniform(0.8, 2.4)
    parts = [tube((0, 0, 0), (0, 0, high), 0.09, gray)]
    for side in (1,) if rng.random() < 0.7 else (1, -1):
        parts.append(tube((0, 0, high), (side * reach, 0, high + 0.3), 0.05, gray))
        x = sorted((side * reach, side * (reach + 0.7)))
        parts.append(box((x[0], x[1]), (-0.14, 0.14), (high + 0.24, high + 0.36), gray * 1.1))
    return join(parts)


def sign(rng: np.random.Generator) -> Mesh:
    """A traffic sign, an advertisement or a traffic light on a post."""
    high, color = rng.uniform(2.2, 3.2), cloth_color(rng)
    post = tube((0, 0, 0), (0, 0, high), 0.04, np.full(3, rng.uniform(90, 170)))
    kind = rng.random()
    if kind < 0.5:
        wide = rng.uniform(0.25, 0.5)
        return join([post, box((-0.03, 0.03), (-wide, wide), (high - 2 * wide, high), color)])
    if kind < 0.75:
        wide = rng.uniform(0.6, 1.6)
        return join([post, box((-0.08, 0.08), (-wide, wide), (0.6, high), color)])
    return join([post, box((-0.15, 0.15), (-0.17, 0.17), (high - 0.5, high + 0.5), (34, 36, 34))])


def bin(rng: np.random.Generator) -> Mesh:
    """A bin, a bollard, a hydrant or a parking meter."""
    radius, high = rng.uniform(0.07, 0.35), rng.uniform(0.5, 1.25)
    color = cloth_color(rng)
    parts = [lathe(((radius, 0), (radius * rng.uniform(0.85, 1.1), high)), color)]
    if rng.random() < 0.5:
        parts.append(lathe(((radius * 0.75, high), (radius * 0.6, high + 0.02)), cloth_color(rng)))
    if rng.random() < 0.4:
        parts.append(lathe(((radius * 1.05, 0.7 * high), (radius * 1.05, 0.85 * high)), cloth_color(rng)))
    return join(parts)


def bench(rng: np.random.Generator) -> Mesh:
    """A bench, often with a back or with blocks at its ends."""
    length, color = rng.uniform(1.3, 2.6) / 2, np.array((110, 84, 60)) * rng.uniform(0.5, 1.3)
    parts = [box((-0.22 + 0.11 * n, -0.14 + 0.11 * n), (-length, length), (0.4, 0.45), color) for n in range(4)]
    if rng.random() < 0.5:
        parts.append(box((-0.3, -0.24), (-length, length), (0.5, 0.9), color))
    shade = np.full(3, rng.uniform(60, 230))
    parts += [box((-0.25, 0.25), (y - 0.12, y + 0.12), (0, 0.45), shade) for y in (-length, length)]
    return join(parts)


def planter(rng: np.random.Generator) -> Mesh:
    """A tub or a box with plants."""
    radius, high = rng.uniform(0.3, 0.8), rng.uniform(0.4, 0.8)
    rim = np.full(3, rng.uniform(90, 225)) * (1, rng.uniform(0.95, 1.05), rng.uniform(0.85, 1))
    tub = lathe(((0.8 * radius, 0), (radius, high)), rim)
    leaves = [_leaf(rng, radius * 0.8, high, rng.uniform(0.15, 0.35)) for _ in range(14)]
    return join([tub, *leaves])


def _leaf(rng: np.random.Generator, reach: float, z: float, size: float) -> Mesh:
    angle, distance = rng.uniform(0, 2 * np.pi), reach * np.sqrt(rng.random())
    color = np.array((64, 92, 42)) * rng.uniform(0.5, 1.5)
    if rng.random() < 0.12:
        color = cloth_color(rng)  # flowers
    blob = lathe(((0.7 * size, z), (size, z + 0.4 * size), (0.4 * size, z + size)), color, sides=5)
    return blob.moved(distance * np.cos(angle), distance * np.sin(angle))


def parasol(rng: np.random.Generator) -> Mesh:
    """A large sunshade over a table, in one or two colors."""
    radius, high = rng.uniform(1.1, 2.1), rng.uniform(2.2, 2.7)
    canopy = lathe(((radius, high - 0.45), (0.08, high)), cloth_color(rng), sides=int(rng.choice((4, 6, 8))))
    if rng.random() < 0.3:
        canopy.colors[::2] = cloth_color(rng)
    table = lathe(((0.4, 0.7), (0.4, 0.74)), np.full(3, rng.uniform(60, 220)))
    return join([table, canopy])


def table(rng: np.random.Generator) -> Mesh:
    """A table with chairs."""
    parts = [lathe(((0.05, 0), (0.45, 0.71), (0.45, 0.75)), np.full(3, rng.uniform(60, 225)))]
    color = cloth_color(rng)
    for angle in np.arange(int(rng.integers(2, 5))) * np.pi / 2 + rng.normal(0, 0.2):
        chair = join([box((-0.2, 0.2), (-0.2, 0.2), (0.4, 0.46), color), box((0.17, 0.22), (-0.2, 0.2), (0.46, 0.85),
                                                                           color)])  # fmt: skip
        parts.append(chair.moved(0.75, 0).turned(float(angle)))
    return join(parts)


def crate(rng: np.random.Generator) -> Mesh:
    """A box: a switch cabinet, a container, a pallet, a dumpster, a kiosk."""
    x, y, z = rng.choice(((0.5, 0.35, 1.1), (0.7, 0.5, 0.6), (1.2, 0.8, 0.2), (1.4, 1.0, 1.2), (2.6, 2.4, 2.6)))
    color, scale = cloth_color(rng), rng.uniform(0.8, 1.25)
    x, y, z = x * scale / 2, y * scale / 2, z * scale
    lid = box((-0.9 * x, 0.9 * x), (-0.9 * y, 0.9 * y), (z, z + 0.03), color * rng.uniform(0.6, 1.3))
    return join([box((-x, x), (-y, y), (0, z), color), lid])


def cone(rng: np.random.Generator) -> Mesh:
    """A traffic cone or a barrier."""
    if rng.random() < 0.6:
        return join([box((-0.17, 0.17), (-0.17, 0.17), (0, 0.04), (40, 40, 40)),
                     lathe(((0.13, 0.04), (0.09, 0.3)), (220, 90, 36)), lathe(((0.09, 0.3), (0.03, 0.65)),
                                                                           (228, 222, 214))])  # fmt: skip
    parts = [box((-0.04, 0.04), (y, y + 0.4), (0.6, 0.95), (214, 60, 44) if n % 2 else (230, 228, 224))
             for n, y in enumerate(np.arange(-1.2, 1.2, 0.4).tolist())]  # fmt: skip
    return join(parts)


def shelter(rng: np.random.Generator) -> Mesh:
    """A bus shelter or a market stall."""
    long, deep = rng.uniform(1.2, 2.4), rng.uniform(0.6, 1.2)
    roof = cloth_color(rng)
    parts = [box((-deep, deep), (-long, long), (2.3, 2.45), roof)]
    parts.append(box((-deep, -deep + 0.05), (-long, long), (0.2, 2.3), (120, 134, 140)))
    return join(parts)


def tree(rng: np.random.Generator) -> Mesh:
    """A tree with a crown of tufts; a bare trunk shows only from the side."""
    radius, high = rng.uniform(1.2, 3.6), rng.uniform(3.5, 10)
    color = np.array(((62, 88, 40), (84, 104, 48), (52, 76, 44), (118, 104, 52))[int(rng.integers(4))], float)
    parts = [tube((0, 0, 0), (0, 0, high - radius * 0.6), 0.16, (84, 68, 54))]
    count = int(50 + 45 * radius)
    directions = rng.normal(size=(count, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    reach = radius * rng.uniform(0.35, 1.0, count) ** 0.5
    for (x, y, z), r in zip(directions.tolist(), reach.tolist(), strict=True):
        size = radius * rng.uniform(0.1, 0.24)
        shade = color * rng.uniform(0.8, 1.5) * (0.85 + 0.25 * z)
        tuft = lathe(((0.7 * size, -0.4 * size), (size, 0.1 * size), (0.5 * size, 0.7 * size)), shade, sides=6)
        parts.append(tuft.moved(x * r, y * r, high + 0.75 * z * r))
    return join(parts)


def bush(rng: np.random.Generator) -> Mesh:
    """A bush, or a part of a hedge."""
    radius = rng.uniform(0.3, 1.1)
    return join([_leaf(rng, radius, 0.1, radius * rng.uniform(0.3, 0.55)) for _ in range(26)])


def manhole(rng: np.random.Generator) -> Mesh:
    """A lid, a drain, a patch or a piece of litter, flat on the ground."""
    size, shade = rng.uniform(0.1, 0.45), np.full(3, rng.choice((45, 70, 110, 190))) * rng.uniform(0.8, 1.2)
    if rng.random() < 0.5:
        return lathe(((size, 0.0), (size, 0.005)), shade, sides=14)
    other = size * rng.uniform(0.4, 1)
    return polygons([[(-size, -other, 0.01), (size, -other, 0.01), (size, other, 0.01), (-size, other, 0.01)]], shade)


Draw = Callable[[np.random.Generator], Mesh]
PAVED: dict[Draw, float] = {  # shares on paved ground
    lamp: 2.0, sign: 2.0, bin: 3.0, bench: 1.5, planter: 1.5, parasol: 0.8, table: 1.0, crate: 1.2, cone: 0.8,
    shelter: 0.4, manhole: 3.0, bush: 0.5, tree: 0.6,
}  # fmt: skip
UNPAVED: dict[Draw, float] = {  # and elsewhere
    lamp: 0.3, sign: 0.8, bin: 0.7, bench: 0.7, table: 0.3, crate: 0.6, manhole: 1.0, bush: 3.0, tree: 2.0,
    parasol: 0.3, cone: 0.2,
}  # fmt: skip
