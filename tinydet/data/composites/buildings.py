"""Buildings with windows, shop fronts and roofs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tinydet.data.composites.background import Building
from tinydet.data.composites.mesh import Mesh, box, join, polygons
from tinydet.data.composites.people import cloth_color

_WALLS = ((176, 166, 150), (200, 190, 176), (150, 92, 74), (136, 130, 126), (214, 208, 200), (170, 140, 104))
_FLAT = ((96, 96, 98), (66, 66, 70), (150, 148, 144), (190, 188, 184), (120, 112, 102))
_TILES = ((150, 74, 54), (128, 62, 48), (92, 72, 64), (84, 86, 92), (110, 104, 98))
_MOST_WINDOWS = 260  # of a wall


def building(rng: np.random.Generator, footprint: tuple[float, float, float, float], height: float) -> Building:
    """Return a building on a rectangle (x1, y1, x2, y2) of the ground."""
    x1, y1, x2, y2 = footprint
    wall = np.array(_WALLS[int(rng.integers(len(_WALLS)))]) * rng.uniform(0.75, 1.15)
    glass = np.array((40, 46, 54)) * rng.uniform(0.7, 1.8)
    parts = [box((x1, x2), (y1, y2), (0, height), wall)]
    width, gap, floor = rng.uniform(0.8, 1.8), rng.uniform(0.6, 1.8), rng.uniform(2.8, 3.5)
    shops = rng.random() < 0.5
    for start, along, out in (
        ((x1, y1), (1, 0), (0, -1)), ((x2, y1), (0, 1), (1, 0)),
        ((x2, y2), (-1, 0), (0, 1)), ((x1, y2), (0, -1), (-1, 0)),
    ):  # fmt: skip
        length = x2 - x1 if along[0] else y2 - y1
        at = np.array(start), np.array(along), np.array(out) * 0.03
        columns, sills = np.arange(gap, length - width, width + gap), np.arange(floor + 0.8, height - 1.6, floor)
        panes = _panes(at, columns, width, sills, 1.5)
        if panes:
            parts.append(polygons(panes[:_MOST_WINDOWS], glass))
        if shops and length > 6:
            starts = np.arange(0.8, length - 3, rng.uniform(4, 7))
            parts.append(polygons(_panes(at, starts, 2.6, np.array((0.4,)), 2.0), glass * 1.3))
            for s in starts.tolist():
                board = _panes(at, np.array((s,)), 2.6, np.array((2.55,)), 0.5)
                parts.append(polygons(board, cloth_color(rng)))
                if rng.random() < 0.3:  # an awning
                    parts.append(_awning(at, s, cloth_color(rng)))
    pitched = rng.random() < 0.35 and height < 14 and min(x2 - x1, y2 - y1) < 16
    roof, hull = (_gable if pitched else _flat_roof)(rng, footprint, height)
    mesh = join([*parts, roof])
    return Building(footprint, mesh, join([parts[0], hull]))


def _panes(
    at: tuple[NDArray[np.float64], ...],
    starts: NDArray[np.float64],
    width: float,
    sills: NDArray[np.float64],
    height: float,
) -> list[list[tuple[float, float, float]]]:
    """Return rectangles on a wall that begins at `at[0]`, runs along `at[1]` and faces `at[2]`."""
    start, along, out = at
    found = []
    for low in sills.tolist():
        for s in starts.tolist():
            (ax, ay), (bx, by) = (start + along * s + out).tolist(), (start + along * (s + width) + out).tolist()
            found.append([(ax, ay, low), (bx, by, low), (bx, by, low + height), (ax, ay, low + height)])
    return found


def _awning(at: tuple[NDArray[np.float64], ...], start: float, color: NDArray[np.float64]) -> Mesh:
    (a, b) = at[0] + at[1] * start, at[0] + at[1] * (start + 2.8)
    reach = at[2] / 0.03 * 1.5
    (ax, ay), (bx, by), (cx, cy), (dx, dy) = a.tolist(), b.tolist(), (b + reach).tolist(), (a + reach).tolist()
    return polygons([[(dx, dy, 2.6), (cx, cy, 2.6), (bx, by, 3.1), (ax, ay, 3.1)]], color)


def _flat_roof(rng: np.random.Generator, footprint: tuple[float, float, float, float], z: float) -> tuple[Mesh, Mesh]:
    """Return a flat roof of sheets with a rim, hatches and air conditioning, and what casts its shadow."""
    x1, y1, x2, y2 = footprint
    base = np.array(_FLAT[int(rng.integers(len(_FLAT)))], float) * rng.uniform(0.8, 1.15)
    nx, ny = max(1, int((x2 - x1) / rng.uniform(1.0, 6))), max(1, int((y2 - y1) / rng.uniform(2, 9)))
    nx, ny = min(nx, 24), min(ny, 24)
    xs, ys = np.linspace(x1, x2, nx + 1).tolist(), np.linspace(y1, y2, ny + 1).tolist()
    sheets = [[(xs[i], ys[j], z), (xs[i + 1], ys[j], z), (xs[i + 1], ys[j + 1], z), (xs[i], ys[j + 1], z)]
              for i in range(nx) for j in range(ny)]  # fmt: skip
    mesh = polygons(sheets, base)
    mesh.colors[:] = np.clip(mesh.colors * rng.normal(1, 0.035, (len(sheets), 1)), 0, 250)
    rim = 0.3
    edges = [
        box(xr, yr, (z, z + 0.5), base * 1.15)
        for xr, yr in (
            ((x1, x2), (y1, y1 + rim)),
            ((x1, x2), (y2 - rim, y2)),
            ((x1, x1 + rim), (y1, y2)),
            ((x2 - rim, x2), (y1, y2)),
        )
    ]
    units = []
    for _ in range(int(rng.poisson((x2 - x1) * (y2 - y1) / 60))):
        w, d, h = rng.uniform(0.3, 2.2) / 2, rng.uniform(0.3, 2.2) / 2, rng.uniform(0.2, 1.6)
        x, y = rng.uniform(x1 + 1, max(x1 + 1.1, x2 - 1)), rng.uniform(y1 + 1, max(y1 + 1.1, y2 - 1))
        color = np.full(3, rng.choice((60, 110, 170, 215))) * rng.uniform(0.85, 1.1)
        units.append(box((x - w, x + w), (y - d, y + d), (z, z + h), color, color * rng.uniform(0.7, 1.1)))
    return join([mesh, *edges, *units]), join([box((x1, x2), (y1, y2), (z, z + 0.5), base), *units])


def _gable(rng: np.random.Generator, footprint: tuple[float, float, float, float], z: float) -> tuple[Mesh, Mesh]:
    """Return a gable roof with rows of tiles and chimneys."""
    x1, y1, x2, y2 = footprint
    base = np.array(_TILES[int(rng.integers(len(_TILES)))], float) * rng.uniform(0.8, 1.2)
    across_x = x2 - x1 < y2 - y1  # the ridge runs along the longer side
    half = (x2 - x1 if across_x else y2 - y1) / 2
    rise, rows = half * rng.uniform(0.45, 0.9), int(np.clip(half / 0.45, 3, 20))
    eave = 0.4
    quads, shades = [], []
    for side in (-1, 1):
        for n in range(rows):
            near, far = (half + eave) * (1 - n / rows), (half + eave) * (1 - (n + 1) / rows)
            low, high = z + rise * n / rows, z + rise * (n + 1) / rows
            if across_x:
                c = (x1 + x2) / 2
                quad = [(c + side * near, y1, low), (c + side * near, y2, low), (c + side * far, y2, high),
                        (c + side * far, y1, high)]  # fmt: skip
                quads.append(quad if side > 0 else quad[::-1])
            else:
                c = (y1 + y2) / 2
                quad = [(x1, c + side * near, low), (x2, c + side * near, low), (x2, c + side * far, high),
                        (x1, c + side * far, high)]  # fmt: skip
                quads.append(quad if side < 0 else quad[::-1])
            shades.append(rng.normal(1, 0.05))
    slopes = polygons(quads, base)
    slopes.colors[:] *= np.array(shades)[:, None]
    ends = []
    for side in (-1, 1):
        if across_x:
            y, c = (y1, y2)[side > 0], (x1 + x2) / 2
            tri = [(x1, y, z), (x2, y, z), (c, y, z + rise)]
            ends.append(tri if side < 0 else tri[::-1])
        else:
            x, c = (x1, x2)[side > 0], (y1 + y2) / 2
            tri = [(x, y1, z), (x, y2, z), (x, c, z + rise)]
            ends.append(tri if side > 0 else tri[::-1])
    parts = [polygons(ends, (190, 184, 174)), slopes]
    for _ in range(int(rng.integers(0, 4))):
        x, y = rng.uniform(x1 + 0.8, x2 - 0.8), rng.uniform(y1 + 0.8, y2 - 0.8)
        if rng.random() < 0.5:  # a chimney
            parts.append(box((x - 0.3, x + 0.3), (y - 0.3, y + 0.3), (z, z + rise + 0.8), (140, 100, 86)))
        else:  # a skylight, lying on the slope
            up = rise * (1 - abs((x if across_x else y) - _ridge(footprint, across_x)) / (half + eave)) + z + 0.1
            parts.append(box((x - 0.5, x + 0.5), (y - 0.5, y + 0.5), (up - 0.3, up), (70, 84, 100)))
    mesh = join(parts)
    return mesh, mesh


def _ridge(footprint: tuple[float, float, float, float], across_x: bool) -> float:
    """Return the position of the ridge."""
    x1, y1, x2, y2 = footprint
    return (x1 + x2) / 2 if across_x else (y1 + y2) / 2
