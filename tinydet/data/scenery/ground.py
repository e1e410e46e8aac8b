"""The ground of a scene: the sea, and bands of land along the shore with roads, trails and litter."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from tinydet.data.scenery.colors import Color, Image
from tinydet.data.scenery.noise import smooth_noise
from tinydet.data.scenery.view import View
from tinydet.data.scenery.water import STRIP_ROWS, draw_sea, water_colors


class Material(NamedTuple):
    """A surface of the land."""

    color: Color
    texture: tuple[float, float, float, float, float]  # contrast at each of `_SCALES`
    hue: float  # contrast of the hue
    natural: bool  # borders between natural materials are irregular
    attraction: float  # weight of a position when people are placed


_SCALES = (0.0, 0.22, 0.6, 2.2, 9.0)  # sizes of the texture noise in statures; 0 is one pixel
LAND = {
    "sand": Material((207, 183, 146), (0.050, 0.040, 0.022, 0.022, 0.035), 1.5, True, 1.0),
    "grass": Material((98, 116, 62), (0.110, 0.130, 0.070, 0.050, 0.070), 6.0, True, 0.5),
    "scrub": Material((132, 130, 88), (0.110, 0.150, 0.120, 0.080, 0.060), 6.0, True, 0.2),
    "path": Material((184, 168, 142), (0.040, 0.035, 0.030, 0.030, 0.030), 2.0, True, 1.5),
    "promenade": Material((172, 164, 154), (0.022, 0.020, 0.015, 0.025, 0.030), 2.0, False, 1.4),
    "plaza": Material((158, 152, 144), (0.022, 0.025, 0.020, 0.035, 0.040), 2.5, False, 1.2),
    "road": Material((98, 99, 103), (0.035, 0.025, 0.015, 0.030, 0.060), 1.5, False, 0.15),
}
_WIDTHS = {  # of a band, in statures: lowest and highest
    "sand": (12, 40), "grass": (12, 45), "scrub": (4, 14), "path": (2, 4), "promenade": (4, 8), "plaza": (14, 40),
    "road": (7, 10),
}  # fmt: skip
_NEXT = {  # the bands that may follow inland
    "sand": ("scrub", "promenade", "grass", "promenade"),
    "scrub": ("grass", "path", "promenade"),
    "grass": ("path", "promenade", "plaza", "path"),
    "path": ("grass", "grass", "scrub", "plaza"),
    "promenade": ("road", "grass", "plaza", "grass"),
    "plaza": ("road", "grass", "grass"),
    "road": ("promenade", "promenade", "grass"),
}


@dataclass(frozen=True)
class Ground:
    """The drawn ground and its layout. Lengths are in pixels."""

    color: Image  # (H, W, 3), 0 to 255, before shadows and the effects of the camera
    shore_distance: Image  # (H, W), negative at sea
    borders: NDArray[np.float64]  # shore distances at which one band ends and the next begins
    bands: tuple[str, ...]  # keys of `LAND`, from the shore inland
    heading: float  # direction of the shore and the roads, radians

    def shore_distance_at(self, x: float, y: float) -> float:
        """Return `shore_distance` at a point, or at the nearest pixel for a point outside the image."""
        height, width = self.shore_distance.shape
        return float(self.shore_distance[min(max(int(y), 0), height - 1), min(max(int(x), 0), width - 1)])

    def material(self, x: float, y: float) -> str:
        """Return "water" or a key of `LAND`."""
        distance = self.shore_distance_at(x, y)
        return "water" if distance < 0 else self.bands[int(np.searchsorted(self.borders, distance))]


def draw_ground(layout: np.random.Generator, rng: np.random.Generator, view: View) -> Ground:
    """Draw the ground of a scene.

    Frees each full-size plane as soon as possible, because large scenes need the memory.

    Args:
        layout: generator for the position of the shore and the sequence of the bands.
        rng: generator for the noise.
    """
    unit, shape = view.unit, (view.height, view.width)
    extent = max(shape) / 2
    angle = layout.uniform(0, 2 * np.pi)
    center = layout.uniform(-0.5, 0.9) * extent if layout.random() < 0.6 else layout.uniform(-20, 70) * unit
    x = (np.arange(view.width, dtype=np.float32) - view.width / 2)[None]
    y = (np.arange(view.height, dtype=np.float32) - view.height / 2)[:, None] / np.float32(max(view.depth_scale, 0.5))
    shore_distance = np.cos(angle, dtype=np.float32) * x + np.sin(angle, dtype=np.float32) * y + np.float32(center)
    along = -np.sin(angle, dtype=np.float32) * x + np.cos(angle, dtype=np.float32) * y
    # Low frequencies vary the width of the bands, high ones roughen their borders.
    shore_distance *= 1 + np.float32(0.3) * smooth_noise(rng, shape, 150 * unit).clip(-2, 2)
    shore_distance += smooth_noise(rng, shape, 90 * unit) * (12 * unit)
    medium, fine = smooth_noise(rng, shape, 30 * unit), smooth_noise(rng, shape, 8 * unit)
    shore_distance += medium * (4 * unit) + fine * (0.7 * unit)
    del medium, fine
    noises = [smooth_noise(rng, shape, max(1.0, scale * unit)) for scale in _SCALES]

    bands, borders = ["sand"], [layout.uniform(*_WIDTHS["sand"]) * unit]
    while borders[-1] < shore_distance.max() + unit:
        bands.append(str(layout.choice(_NEXT[bands[-1]])))
        borders.append(borders[-1] + layout.uniform(*_WIDTHS[bands[-1]]) * unit)

    # Whatever depends only on the shore distance is tabulated over `grid`, in steps of half a pixel.
    grid = np.arange(float(shore_distance.min()) - 2 * unit, float(shore_distance.max()) + 2 * unit, 0.5)
    displacement = _look_up(_border_displacement(grid, bands, borders, unit), grid, shore_distance)
    shore_distance += displacement * (noises[2] * 0.5 + noises[3])
    del displacement
    color = _paint_bands(layout, grid, shore_distance, noises, bands, borders, unit)
    _draw_roads(color, shore_distance, along, bands, borders, view)
    del along
    _draw_trails(layout, color, shore_distance, bands, borders, view)
    draw_sea(rng, color, shore_distance, noises, view)
    _draw_litter(rng, color, view)
    return Ground(color, shore_distance, np.array(borders[:-1]), tuple(bands), float(angle + np.pi / 2))


def _border_displacement(
    grid: NDArray[np.float64], bands: list[str], borders: list[float], unit: float
) -> NDArray[np.float64]:
    """Return how far, in pixels, noise displaces the shore and the borders between natural bands."""
    displacement = np.exp(-((grid / (1.2 * unit)) ** 2)) * 0.35
    for border, (near, far) in zip(borders, pairwise(bands), strict=False):
        if LAND[near].natural and LAND[far].natural:
            displacement += np.exp(-(((grid - border) / (1.5 * unit)) ** 2)) * 0.6
    return np.asarray(displacement * unit)


def _paint_bands(
    rng: np.random.Generator,
    grid: NDArray[np.float64],
    shore_distance: Image,
    noises: list[Image],
    bands: list[str],
    borders: list[float],
    unit: float,
) -> Image:
    """Return the textured colors of the bands, and of the water by its depth."""
    band = np.searchsorted(borders, grid).clip(max=len(bands) - 1)
    shade = 1 + rng.normal(0, 0.06, len(bands))[:, None] + rng.normal(0, 0.025, (len(bands), 3))
    colors = (np.array([LAND[name].color for name in bands]) * shade)[band]
    wet = 1 - 0.32 * np.exp(-((grid.clip(0) / (rng.uniform(0.8, 3.0) * unit)) ** 2))[:, None]
    colors = np.where(grid[:, None] < 0, water_colors(rng, -grid / unit), colors * wet)
    colors = np.asarray(cv2.blur(np.ascontiguousarray(colors), (1, 5)), np.float64)
    textures = np.where(grid[:, None] < 0, 0.0, np.array([LAND[name].texture for name in bands])[band])

    lightness = np.ones(shore_distance.shape, np.float32)
    for noise, contrast in zip(noises, textures.T, strict=True):
        lightness += _look_up(contrast, grid, shore_distance) * noise
    hue = _look_up(np.where(grid < 0, 3.0, np.array([LAND[name].hue for name in bands])[band]), grid, shore_distance)
    hue *= 0.7 * noises[3] + 0.7 * noises[4]
    color: Image = np.empty((*shore_distance.shape, 3), np.float32)
    for channel, shift in enumerate((1.0, 0.0, -0.4)):  # towards red and away from blue
        color[..., channel] = _look_up(colors[:, channel], grid, shore_distance) * lightness + shift * hue
    return color


def _look_up(values: NDArray[Any], grid: NDArray[np.float64], where: Image) -> Image:
    """Look up `values`, tabulated at the evenly spaced points `grid`, at each pixel of `where`.

    Works on strips of rows: the indices of a whole large scene would need too much memory.
    """
    table, start, density = values.astype(np.float32), np.float32(grid[0]), np.float32(1 / (grid[1] - grid[0]))
    found: Image = np.empty_like(where)
    for top in range(0, len(where), STRIP_ROWS):
        index = ((where[top : top + STRIP_ROWS] - start) * density).astype(np.intp)
        table.take(index, mode="clip", out=found[top : top + STRIP_ROWS])
    return found


def _draw_roads(
    color: Image, shore_distance: Image, along: Image, bands: list[str], borders: list[float], view: View
) -> None:
    """Draw curbs, lane markings and joints between paving slabs, in place."""
    unit = view.unit
    for name, near, far in zip(bands, [0.0, *borders], borders, strict=False):
        if LAND[name].natural:
            continue
        rows, columns = np.nonzero((shore_distance > near) & (shore_distance < far))
        if not len(rows):
            continue
        across, forward = (shore_distance[rows, columns] - near) / unit, along[rows, columns] / unit
        width = (far - near) / unit
        curb = np.minimum(across, width - across) < 0.14
        if name == "road":
            dash = (np.abs(across - width / 2) < 0.09) & (forward % 3.2 < 1.5)
            side = np.abs(np.minimum(across, width - across) - 0.6) < 0.06
            color[rows[dash | side], columns[dash | side]] = (214, 212, 204)
        else:
            joint = ((across % 1.1) < 0.09) | ((forward % 1.1) < 0.09)
            color[rows[joint], columns[joint]] *= 0.95
        color[rows[curb], columns[curb]] *= 1.12


def _draw_trails(
    rng: np.random.Generator, color: Image, shore_distance: Image, bands: list[str], borders: list[float], view: View
) -> None:
    """Draw worn trails over the natural ground, in place."""
    unit, (height, width) = view.unit, shore_distance.shape
    trails = np.zeros((height, width), np.uint8)
    for _ in range(rng.poisson(1.2 + 0.004 * max(width, height) / unit)):
        start, end = rng.uniform(-0.2, 1.2, (2, 2)) * (width, height)
        steps = np.linspace(0, 1, 24)[:, None]
        bend = rng.normal(0, 0.12, 2) * np.linalg.norm(end - start)
        curve = start + (end - start) * steps + np.sin(np.pi * steps) * bend
        curve += np.sin(3 * np.pi * steps) * bend[::-1] * 0.3
        opacity, thickness = int(rng.integers(90, 230)), max(1, round(rng.uniform(0.5, 2) * unit))
        cv2.polylines(trails, [curve.astype(np.int32)], False, opacity, thickness)
    trails = np.asarray(cv2.blur(trails, (max(3, round(unit * 0.5)),) * 2), np.uint8)
    grid = np.arange(0, max(borders[-1], 1.0), 1.0)
    wear = np.array([0.5 if name == "sand" else float(LAND[name].natural) for name in bands])
    amount = _look_up(wear[np.searchsorted(borders, grid).clip(max=len(bands) - 1)], grid, shore_distance)
    amount *= shore_distance > 0
    amount *= trails
    amount *= np.float32(1 / 255)
    earth = np.array(LAND["path"].color, np.float32) * rng.uniform(0.85, 1.0)
    rows, columns = np.nonzero(amount > 0.01)
    blend = amount[rows, columns][:, None]
    grain = rng.normal(1, 0.04, (len(rows), 1)).astype(np.float32)
    color[rows, columns] = color[rows, columns] * (1 - blend) + earth * grain * blend


def _draw_litter(rng: np.random.Generator, color: Image, view: View) -> None:
    """Draw leaves, stones, footprints and weeds as small specks, in place."""
    height, width = color.shape[:2]
    amount = rng.poisson(width * height * rng.uniform(1e-4, 1.2e-3))
    positions = rng.integers(0, (width, height), (amount, 2))
    sizes = rng.exponential(0.07 * view.unit, amount).clip(0, 0.18 * view.unit)
    factors = np.where(rng.random(amount) < 0.75, rng.uniform(0.55, 0.95, amount), rng.uniform(1.05, 1.35, amount))
    for (x, y), size, factor in zip(positions.tolist(), sizes.tolist(), factors.tolist(), strict=True):
        reach = max(1, round(size))
        color[y : y + max(1, round(size * 0.7)), x : x + reach] *= factor
