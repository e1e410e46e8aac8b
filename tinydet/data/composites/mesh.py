"""Meshes of quads, and the shapes that objects are built from. Units are meters, z is up, x is forward."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Color = tuple[float, float, float] | NDArray[np.float64]


class Mesh(NamedTuple):
    """Quads, seen counterclockwise from outside; a triangle repeats a corner."""

    vertices: NDArray[np.float64]  # (V, 3)
    faces: NDArray[np.intp]  # (F, 4)
    colors: NDArray[np.float64]  # (F, 3) RGB, 0 to 255, before lighting

    def turned(self, heading: float) -> Mesh:
        """Return the mesh turned counterclockwise around the z axis by an angle in radians."""
        c, s = np.cos(heading), np.sin(heading)
        return self._replace(vertices=self.vertices @ np.array(((c, s, 0), (-s, c, 0), (0, 0, 1.0))))

    def tilted(self, roll: float) -> Mesh:
        """Return the mesh turned around the x axis by an angle in radians."""
        c, s = np.cos(roll), np.sin(roll)
        return self._replace(vertices=self.vertices @ np.array(((1.0, 0, 0), (0, c, s), (0, -s, c))))

    def moved(self, x: float, y: float, z: float = 0.0) -> Mesh:
        return self._replace(vertices=self.vertices + np.array((x, y, z)))


def join(meshes: Iterable[Mesh]) -> Mesh:
    """Return one mesh of all."""
    parts = list(meshes)
    starts = np.cumsum([0] + [len(part.vertices) for part in parts[:-1]])
    return Mesh(
        np.concatenate([part.vertices for part in parts]),
        np.concatenate([part.faces + start for part, start in zip(parts, starts, strict=True)]),
        np.concatenate([part.colors for part in parts]),
    )


def polygons(corners: Sequence[Sequence[Sequence[float]]], color: Color) -> Mesh:
    """Return a mesh of single quads or triangles of one color."""
    vertices = np.array([point for face in corners for point in face], float)
    starts = np.cumsum([0] + [len(face) for face in corners[:-1]])
    faces = [[start, start + 1, start + 2, start + len(face) - 1] for start, face in zip(starts, corners, strict=True)]
    return Mesh(vertices, np.array(faces, np.intp), np.tile(np.asarray(color, float), (len(faces), 1)))


def box(
    x: tuple[float, float], y: tuple[float, float], z: tuple[float, float], color: Color, top: Color | None = None
) -> Mesh:
    """Return a box between the limits on each axis; the bottom is left open."""
    corners = np.array([(i, j, k) for k in z for i, j in ((x[0], y[0]), (x[1], y[0]), (x[1], y[1]), (x[0], y[1]))])
    faces = np.array([(4, 5, 6, 7), (0, 1, 5, 4), (1, 2, 6, 5), (2, 3, 7, 6), (3, 0, 4, 7)], np.intp)
    colors = np.tile(np.asarray(color, float), (5, 1))
    if top is not None:
        colors[0] = top
    return Mesh(corners, faces, colors)


def lathe(profile: Sequence[tuple[float, float]], color: Color, sides: int = 10) -> Mesh:
    """Return the solid that a profile of (radius, height), from the bottom up, sweeps around the z axis."""
    angles = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    rings = [
        np.column_stack([radius * np.cos(angles), radius * np.sin(angles), np.full(sides, height)])
        for radius, height in profile
    ]
    rings.append(np.tile((0.0, 0.0, profile[-1][1]), (sides, 1)))  # the lid
    n = np.arange(sides)
    after = (n + 1) % sides
    faces = [
        np.column_stack([ring * sides + n, ring * sides + after, (ring + 1) * sides + after, (ring + 1) * sides + n])
        for ring in range(len(profile))
    ]
    quads = np.concatenate(faces)
    return Mesh(np.concatenate(rings), quads, np.tile(np.asarray(color, float), (len(quads), 1)))


def tube(start: Sequence[float], end: Sequence[float], radius: float, color: Color, sides: int = 6) -> Mesh:
    """Return an open tube between two points."""
    a, b = np.array(start, float), np.array(end, float)
    axis = (b - a) / max(float(np.linalg.norm(b - a)), 1e-9)
    side = np.cross(axis, (0.0, 0.0, 1.0) if abs(axis[2]) < 0.9 else (1.0, 0.0, 0.0))
    side /= np.linalg.norm(side)
    angles = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    ring = radius * (np.outer(np.cos(angles), side) + np.outer(np.sin(angles), np.cross(axis, side)))
    n = np.arange(sides)
    after = (n + 1) % sides
    faces = np.column_stack([n, after, after + sides, n + sides])
    return Mesh(np.concatenate([ring + a, ring + b]), faces, np.tile(np.asarray(color, float), (sides, 1)))


def loft(sections: Sequence[Sequence[tuple[float, float, float]]], color: Color) -> Mesh:
    """Return the surface through cross-sections, which have equally many points (x, y ≥ 0, z), mirrored at y = 0.

    Sections run from the rear to the front, their points from the top center downwards and outwards. Both ends are
    closed.
    """
    half = np.array(sections, float)  # (S, P, 3)
    other = half * (1.0, -1.0, 1.0)
    count, points = half.shape[:2]
    corners: list[list[NDArray[np.float64]]] = []
    for s in range(count - 1):
        for p in range(points - 1):
            a, b, c, d = half[s, p], half[s + 1, p], half[s + 1, p + 1], half[s, p + 1]
            corners.append([a, b, c, d])
            a, b, c, d = other[s, p], other[s + 1, p], other[s + 1, p + 1], other[s, p + 1]
            corners.append([d, c, b, a])
    for s, rear in ((0, True), (count - 1, False)):
        for p in range(points - 1):
            cap = [half[s, p], half[s, p + 1], other[s, p + 1], other[s, p]]
            corners.append(cap if rear else cap[::-1])
    return polygons(corners, color)  # type: ignore[arg-type]
