"""The ground: bands of land along a shore, with roads, beaten tracks and litter, and the sea in front of them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from tinydet.data.scenery.colours import Colour, Image
from tinydet.data.scenery.noise import smooth_noise
from tinydet.data.scenery.view import View
from tinydet.data.scenery.water import ROWS, colour_of_depth, fill_sea


class Material(NamedTuple):
    """A surface: colour, then contrast of its texture at five scales (see `_SCALES`), then of its hue."""

    colour: Colour
    texture: tuple[float, float, float, float, float]
    hue: float
    natural: bool  # has frayed borders
    pull: float  # how much people like to be there


_SCALES = (0.0, 0.22, 0.6, 2.2, 9.0)  # size of a speck in statures; 0 is one pixel
LAND = {
    "sand": Material((207, 183, 146), (0.050, 0.040, 0.022, 0.022, 0.035), 1.5, True, 1.0),
    "grass": Material((98, 116, 62), (0.110, 0.130, 0.070, 0.050, 0.070), 6.0, True, 0.5),
    "scrub": Material((132, 130, 88), (0.110, 0.150, 0.120, 0.080, 0.060), 6.0, True, 0.2),
    "path": Material((184, 168, 142), (0.040, 0.035, 0.030, 0.030, 0.030), 2.0, True, 1.5),
    "promenade": Material((172, 164, 154), (0.022, 0.020, 0.015, 0.025, 0.030), 2.0, False, 1.4),
    "plaza": Material((158, 152, 144), (0.022, 0.025, 0.020, 0.035, 0.040), 2.5, False, 1.2),
    "road": Material((98, 99, 103), (0.035, 0.025, 0.015, 0.030, 0.060), 1.5, False, 0.15),
}
_WIDTHS = {  # of a band, in statures
    "sand": (12, 40), "grass": (12, 45), "scrub": (4, 14), "path": (2, 4), "promenade": (4, 8), "plaza": (14, 40),
    "road": (7, 10),
}  # fmt: skip
_NEXT = {
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
    colour: Image  # (H, W, 3), lit by a plain sky, 0 to 255
    inland: Image  # (H, W), pixels from the shore, negative at sea
    borders: NDArray[np.float64]  # where one band of land ends and the next begins
    bands: tuple[str, ...]
    heading: float  # direction of the shore and the roads, radians

    def from_shore(self, x: float, y: float) -> float:
        """`inland` at a point, or at the nearest one of the picture."""
        height, width = self.inland.shape
        return float(self.inland[min(max(int(y), 0), height - 1), min(max(int(x), 0), width - 1)])

    def material(self, x: float, y: float) -> str:
        """What lies there: "water" or a key of `LAND`."""
        inland = self.from_shore(x, y)
        return "water" if inland < 0 else self.bands[int(np.searchsorted(self.borders, inland))]


def lay_ground(layout: np.random.Generator, rng: np.random.Generator, view: View) -> Ground:
    """Choose where the shore and the bands are (`layout`), and draw them in their unevenness (`rng`)."""
    unit, shape = view.unit, (view.height, view.width)
    extent = max(shape) / 2
    angle = layout.uniform(0, 2 * np.pi)
    centre = layout.uniform(-0.5, 0.9) * extent if layout.random() < 0.6 else layout.uniform(-20, 70) * unit
    x = (np.arange(view.width, dtype=np.float32) - view.width / 2)[None]
    y = (np.arange(view.height, dtype=np.float32) - view.height / 2)[:, None] / np.float32(max(view.ground, 0.5))
    inland = np.cos(angle, dtype=np.float32) * x + np.sin(angle, dtype=np.float32) * y + np.float32(centre)
    along = -np.sin(angle, dtype=np.float32) * x + np.cos(angle, dtype=np.float32) * y
    inland *= 1 + np.float32(0.3) * smooth_noise(rng, shape, 150 * unit).clip(-2, 2)  # bands widen and narrow
    inland += smooth_noise(rng, shape, 90 * unit) * (12 * unit)
    inland += smooth_noise(rng, shape, 30 * unit) * (4 * unit) + smooth_noise(rng, shape, 8 * unit) * (0.7 * unit)
    specks = [smooth_noise(rng, shape, max(1.0, scale * unit)) for scale in _SCALES]

    bands, borders = ["sand"], [layout.uniform(*_WIDTHS["sand"]) * unit]
    while borders[-1] < inland.max() + unit:
        bands.append(str(layout.choice(_NEXT[bands[-1]])))
        borders.append(borders[-1] + layout.uniform(*_WIDTHS[bands[-1]]) * unit)

    # Everything that depends on the distance from the shore alone is tabulated over it, at half a pixel.
    at = np.arange(float(inland.min()) - 2 * unit, float(inland.max()) + 2 * unit, 0.5)
    inland += _look_up(_fray(at, bands, borders, unit), at, inland) * (specks[2] * 0.5 + specks[3])
    colour = _paint(layout, at, inland, specks, bands, borders, unit)
    _mark_roads(colour, inland, along, bands, borders, view)
    del along  # a plane of a large scene counts
    _tread_paths(layout, colour, inland, bands, borders, view)
    fill_sea(rng, colour, inland, specks, view)
    _litter(rng, colour, view)
    return Ground(colour, inland, np.array(borders[:-1]), tuple(bands), float(angle + np.pi / 2))


def _fray(at: NDArray[np.float64], bands: list[str], borders: list[float], unit: float) -> NDArray[np.float64]:
    """How far borders are displaced: the shore, and those between natural bands."""
    fray = np.exp(-((at / (1.2 * unit)) ** 2)) * 0.35
    for border, (one, other) in zip(borders, pairwise(bands), strict=False):
        if LAND[one].natural and LAND[other].natural:
            fray += np.exp(-(((at - border) / (1.5 * unit)) ** 2)) * 0.6
    return np.asarray(fray * unit)


def _paint(
    rng: np.random.Generator,
    at: NDArray[np.float64],
    inland: Image,
    specks: list[Image],
    bands: list[str],
    borders: list[float],
    unit: float,
) -> Image:
    """The colour of each band, and of the water by its depth, with the texture of each."""
    band = np.searchsorted(borders, at).clip(max=len(bands) - 1)
    shade = 1 + rng.normal(0, 0.06, len(bands))[:, None] + rng.normal(0, 0.025, (len(bands), 3))
    colours = (np.array([LAND[name].colour for name in bands]) * shade)[band]
    wet = 1 - 0.32 * np.exp(-((at.clip(0) / (rng.uniform(0.8, 3.0) * unit)) ** 2))[:, None]
    colours = np.where(at[:, None] < 0, colour_of_depth(rng, -at / unit), colours * wet)
    colours = np.asarray(cv2.blur(np.ascontiguousarray(colours), (1, 5)), np.float64)
    textures = np.where(at[:, None] < 0, 0.0, np.array([LAND[name].texture for name in bands])[band])

    lightness = np.ones(inland.shape, np.float32)
    for speck, contrast in zip(specks, textures.T, strict=True):
        lightness += _look_up(contrast, at, inland) * speck
    hue = _look_up(np.where(at < 0, 3.0, np.array([LAND[name].hue for name in bands])[band]), at, inland)
    hue *= 0.7 * specks[3] + 0.7 * specks[4]
    colour: Image = np.empty((*inland.shape, 3), np.float32)
    for channel, sway in enumerate((1.0, 0.0, -0.4)):  # towards red, and away from blue
        colour[..., channel] = _look_up(colours[:, channel], at, inland) * lightness + sway * hue
    return colour


def _look_up(values: NDArray[Any], at: NDArray[np.float64], where: Image) -> Image:
    """`values`, tabulated at the evenly spaced `at`, looked up; some rows at a time, for indices take much room."""
    table, start, density = values.astype(np.float32), np.float32(at[0]), np.float32(1 / (at[1] - at[0]))
    found: Image = np.empty_like(where)
    for top in range(0, len(where), ROWS):
        index = ((where[top : top + ROWS] - start) * density).astype(np.intp)
        table.take(index, mode="clip", out=found[top : top + ROWS])
    return found


def _mark_roads(colour: Image, inland: Image, along: Image, bands: list[str], borders: list[float], view: View) -> None:
    """Kerbs, lane markings and the joints between slabs."""
    unit = view.unit
    for name, near, far in zip(bands, [0.0, *borders], borders, strict=False):
        if LAND[name].natural:
            continue
        rows, columns = np.nonzero((inland > near) & (inland < far))
        if not len(rows):
            continue
        across, forward = (inland[rows, columns] - near) / unit, along[rows, columns] / unit
        width = (far - near) / unit
        kerb = np.minimum(across, width - across) < 0.14
        if name == "road":
            dash = (np.abs(across - width / 2) < 0.09) & (forward % 3.2 < 1.5)
            side = np.abs(np.minimum(across, width - across) - 0.6) < 0.06
            colour[rows[dash | side], columns[dash | side]] = (214, 212, 204)
        else:
            joint = ((across % 1.1) < 0.09) | ((forward % 1.1) < 0.09)
            colour[rows[joint], columns[joint]] *= 0.95
        colour[rows[kerb], columns[kerb]] *= 1.12


def _tread_paths(
    rng: np.random.Generator, colour: Image, inland: Image, bands: list[str], borders: list[float], view: View
) -> None:
    """Beaten tracks over the natural ground, from one end of the picture to another."""
    unit, (height, width) = view.unit, inland.shape
    strips = np.zeros((height, width), np.uint8)
    for _ in range(rng.poisson(1.2 + 0.004 * max(width, height) / unit)):
        start, end = rng.uniform(-0.2, 1.2, (2, 2)) * (width, height)
        steps = np.linspace(0, 1, 24)[:, None]
        bend = rng.normal(0, 0.12, 2) * np.linalg.norm(end - start)
        curve = start + (end - start) * steps + np.sin(np.pi * steps) * bend
        curve += np.sin(3 * np.pi * steps) * bend[::-1] * 0.3
        worn, wide = int(rng.integers(90, 230)), max(1, round(rng.uniform(0.5, 2) * unit))
        cv2.polylines(strips, [curve.astype(np.int32)], False, worn, wide)
    strips = np.asarray(cv2.blur(strips, (max(3, round(unit * 0.5)),) * 2), np.uint8)
    at = np.arange(0, max(borders[-1], 1.0), 1.0)
    takes = np.array([0.5 if name == "sand" else float(LAND[name].natural) for name in bands])
    amount = _look_up(takes[np.searchsorted(borders, at).clip(max=len(bands) - 1)], at, inland)
    amount *= inland > 0
    amount *= strips
    amount *= np.float32(1 / 255)
    earth = np.array(LAND["path"].colour, np.float32) * rng.uniform(0.85, 1.0)
    rows, columns = np.nonzero(amount > 0.01)
    part = amount[rows, columns][:, None]
    grain = rng.normal(1, 0.04, (len(rows), 1)).astype(np.float32)
    colour[rows, columns] = colour[rows, columns] * (1 - part) + earth * grain * part


def _litter(rng: np.random.Generator, colour: Image, view: View) -> None:
    """Leaves, stones, footprints, weed: specks that are nothing."""
    height, width = colour.shape[:2]
    amount = rng.poisson(width * height * rng.uniform(1e-4, 1.2e-3))
    at = rng.integers(0, (width, height), (amount, 2))
    sizes = rng.exponential(0.07 * view.unit, amount).clip(0, 0.18 * view.unit)
    factors = np.where(rng.random(amount) < 0.75, rng.uniform(0.55, 0.95, amount), rng.uniform(1.05, 1.35, amount))
    for (x, y), size, factor in zip(at.tolist(), sizes.tolist(), factors.tolist(), strict=True):
        reach = max(1, round(size))
        colour[y : y + max(1, round(size * 0.7)), x : x + reach] *= factor
