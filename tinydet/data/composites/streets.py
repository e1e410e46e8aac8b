"""Drawn ground of a town: streets with markings, pavements, parking lots, squares, lawns, and the blocks between.

Streets run along the axes of the world; the direction of the camera is random.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from tinydet.data.composites.background import (
    BLOCKED,
    CROSSING,
    EARTH,
    GRASS,
    LOT,
    PAVEMENT,
    ROAD,
    Background,
    Building,
    Place,
)
from tinydet.data.composites.buildings import building
from tinydet.data.composites.camera import look
from tinydet.data.scenery.colors import Image
from tinydet.data.scenery.noise import smooth_noise

SOURCE = "streets"
ALTITUDES = (30.0, 150.0)  # meters
SCALES = (7.0, 42.0)  # pixels per meter
_LARGEST = 1500  # side of the drawn ground in pixels
_LANE, _STALL = 3.2, (2.5, 5.0)  # meters
_Rect = tuple[float, float, float, float]
_ASPHALT = ((92, 93, 96), (112, 111, 110), (134, 132, 128), (72, 73, 77))
_SLABS = ((164, 158, 150), (146, 142, 138), (182, 172, 156), (150, 130, 116), (128, 126, 126))
_CONTRAST = {  # of the noise of one pixel, of decimeters and of meters
    ROAD: (0.035, 0.025, 0.05), PAVEMENT: (0.03, 0.03, 0.05), LOT: (0.035, 0.03, 0.07), GRASS: (0.10, 0.08, 0.05),
    EARTH: (0.06, 0.05, 0.05), CROSSING: (0.035, 0.025, 0.05), BLOCKED: (0.04, 0.05, 0.05),
}  # fmt: skip


def draw_streets(rng: np.random.Generator, width: int, height: int, enlarged: float = 1.0) -> Background:
    """Draw a part of a town, seen by a camera of random altitude, pitch and direction.

    Args:
        enlarged: how many times the result will be enlarged.
    """
    altitude = float(np.exp(rng.uniform(*np.log(ALTITUDES))))
    scale = float(np.exp(rng.uniform(*np.log(SCALES)))) / enlarged
    roll = rng.random()
    depression = rng.uniform(82, 90) if roll < 0.55 else rng.uniform(62, 82) if roll < 0.8 else rng.uniform(42, 62)
    focal = scale * altitude / np.sin(np.radians(depression))
    off_axis = rng.uniform(-0.5, 0.5, 2) * focal * rng.choice((0.0, 0.6, 1.0))  # the crop of a wider photo
    if depression < 75:
        off_axis[1] = 0.3 * off_axis[1]
    middle = (width / 2 - float(off_axis[0]), height / 2 - float(off_axis[1]))
    camera = look(altitude, depression, rng.uniform(0, 360), focal, middle)
    corners = camera.ground(np.array(((0, 0), (width, 0), (width, height), (0, height)), float))
    low, high = corners.min(axis=0) - 1, corners.max(axis=0) + 1
    resolution = min(1.2 * scale, _LARGEST / float((high - low).max()))
    sheet = _Sheet(rng, (float(low[0]), float(low[1])), (float(high[0]), float(high[1])), resolution)
    _plan(sheet, altitude)
    color = sheet.finished()
    to_image = camera.homography() @ np.array(((1 / resolution, 0, low[0]), (0, 1 / resolution, low[1]), (0, 0, 1.0)))
    if resolution > 1.4 * scale:  # seen from afar: average before sampling
        color = np.asarray(cv2.GaussianBlur(color, (0, 0), 0.4 * resolution / scale), np.float32)
    image = cv2.warpPerspective(color, to_image, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    surface = cv2.warpPerspective(sheet.surface, to_image, (width, height), flags=cv2.INTER_NEAREST)
    return Background(
        np.asarray(image, np.float32), np.asarray(surface, np.uint8), camera, float(rng.uniform(0.8, 1.1)), SOURCE,
        places=sheet.places, buildings=sheet.buildings, drawn=True,
    )  # fmt: skip


@dataclass(eq=False)
class _Sheet:
    """The ground seen from straight above while it is drawn."""

    rng: np.random.Generator
    low: tuple[float, float]
    high: tuple[float, float]
    resolution: float  # pixels per meter
    places: list[Place] = field(default_factory=list)
    buildings: list[Building] = field(default_factory=list)

    def __post_init__(self) -> None:
        columns = int(np.ceil((self.high[0] - self.low[0]) * self.resolution))
        rows = int(np.ceil((self.high[1] - self.low[1]) * self.resolution))
        self.surface = np.full((rows, columns), GRASS, np.uint8)
        self.color: Image = np.zeros((rows, columns, 3), np.float32)
        self.lines = np.zeros((rows, columns), np.uint8)  # white paint
        self.yellow = np.zeros((rows, columns), np.uint8)

    def pixels(self, points: NDArray[np.float64]) -> NDArray[np.int32]:
        """Return points in meters as OpenCV's fixed-point coordinates with four fractional bits."""
        moved = (np.asarray(points, float) - self.low) * self.resolution - 0.5
        return np.rint(np.clip(moved, -4000, 8000) * 16).astype(np.int32)

    def window(self, rect: _Rect) -> tuple[slice, slice]:
        """Return the pixels of a rectangle."""
        xs = ((np.array((rect[0], rect[2])) - self.low[0]) * self.resolution).round().clip(0, self.color.shape[1])
        ys = ((np.array((rect[1], rect[3])) - self.low[1]) * self.resolution).round().clip(0, self.color.shape[0])
        return slice(int(ys[0]), int(ys[1])), slice(int(xs[0]), int(xs[1]))

    def fill(self, rect: _Rect, surface: int, color: NDArray[np.float64]) -> None:
        place = self.window(rect)
        self.surface[place] = surface
        self.color[place] = color

    def line(self, start: tuple[float, float], end: tuple[float, float], width: float = 0.13, *, yellow: bool = False
             ) -> None:  # fmt: skip
        """Paint a line on the ground."""
        a, b = np.array(start), np.array(end)
        along = (b - a) / max(float(np.linalg.norm(b - a)), 1e-6)
        side = np.array((-along[1], along[0])) * max(width / 2, 0.3 / self.resolution)
        quad = self.pixels(np.array((a + side, b + side, b - side, a - side)))
        cv2.fillConvexPoly(self.yellow if yellow else self.lines, quad, (255,), cv2.LINE_AA, 4)

    def dashes(self, start: tuple[float, float], end: tuple[float, float], dash: float, gap: float,
               width: float = 0.13) -> None:  # fmt: skip
        a, b = np.array(start), np.array(end)
        length = float(np.linalg.norm(b - a))
        for s in np.arange(self.rng.uniform(0, dash), length, dash + gap).tolist():
            p, q = a + (b - a) * s / length, a + (b - a) * min(s + dash, length) / length
            self.line((float(p[0]), float(p[1])), (float(q[0]), float(q[1])), width)

    def visible(self, rect: _Rect) -> bool:
        return rect[0] < self.high[0] and rect[2] > self.low[0] and rect[1] < self.high[1] and rect[3] > self.low[1]

    def finished(self) -> Image:
        """Return the color with texture, wear and paint."""
        rng, shape, resolution = self.rng, self.surface.shape, self.resolution
        noises = [rng.standard_normal(shape, np.float32), smooth_noise(rng, shape, 0.35 * resolution),
                  smooth_noise(rng, shape, rng.uniform(1.5, 6) * resolution)]  # fmt: skip
        contrast = np.zeros((max(_CONTRAST) + 1, 3), np.float32)
        for surface, values in _CONTRAST.items():
            contrast[surface] = values
        contrast *= np.float32(rng.uniform(0.2, 0.9))
        light = np.ones(shape, np.float32)
        for n, noise in enumerate(noises):
            light += contrast[:, n][self.surface] * noise
        light += 0.05 * smooth_noise(rng, shape, 25 * resolution)
        hue = np.where(self.surface == GRASS, 3.5, 1.0).astype(np.float32) * noises[2]
        self.color *= light[..., None]
        self.color[..., 0] += hue
        self.color[..., 2] -= 0.5 * hue
        worn = np.clip(rng.uniform(0.55, 0.95) + 0.16 * noises[1] + 0.12 * noises[0], 0, 1)
        for mask, paint in ((self.lines, (222, 222, 216)), (self.yellow, (206, 170, 70))):
            opacity = (mask.astype(np.float32) / 255 * worn)[..., None]
            self.color += opacity * (np.array(paint, np.float32) * rng.uniform(0.8, 1.0) - self.color)
        return np.clip(self.color, 4, 250, out=self.color)


def _plan(sheet: _Sheet, altitude: float) -> None:
    """Draw blocks, then the streets between them."""
    rng = sheet.rng
    step = float(np.exp(rng.uniform(np.log(28), np.log(130))))
    axes: list[list[tuple[float, float, int]]] = []  # per axis: middle, half width of the roadway, lanes per direction
    for axis in (0, 1):
        streets, position = [], sheet.low[axis] - rng.uniform(0, 1) * step
        while position < sheet.high[axis] + 20:
            lanes = int(rng.choice((1, 1, 2, 3)))
            streets.append((float(position), lanes * _LANE + float(rng.choice((0, 0.5, 2.2))), lanes))
            position += step * rng.uniform(0.6, 1.4)
        if axis == 1 and rng.random() < 0.25:
            streets = []  # no crossing streets
        axes.append(streets)
    asphalt = np.array(_ASPHALT[int(rng.integers(len(_ASPHALT)))]) * rng.uniform(0.8, 1.15)
    slabs = np.array(_SLABS[int(rng.integers(len(_SLABS)))]) * rng.uniform(0.8, 1.15)
    verge = rng.uniform(1.5, 5)
    edges = [_gaps(streets, sheet.low[axis], sheet.high[axis]) for axis, streets in enumerate(axes)]
    for x1, x2 in edges[0]:
        for y1, y2 in edges[1]:
            if sheet.visible((x1, y1, x2, y2)):
                _block(sheet, (x1, y1, x2, y2), slabs, asphalt, verge, altitude)
    for axis in (0, 1):
        for middle, half, _ in axes[axis]:
            rect = [sheet.low[0], sheet.low[1], sheet.high[0], sheet.high[1]]
            rect[axis], rect[axis + 2] = middle - half, middle + half
            sheet.fill((rect[0], rect[1], rect[2], rect[3]), ROAD, asphalt * rng.uniform(0.93, 1.07))
    for axis in (0, 1):
        for street in axes[axis]:
            _mark_street(sheet, axis, street, axes[1 - axis])
    _wear(sheet, asphalt)


def _gaps(streets: list[tuple[float, float, int]], low: float, high: float) -> list[tuple[float, float]]:
    """Return the intervals between streets."""
    ends = [low - 20.0]
    for middle, half, _ in streets:
        ends += [middle - half, middle + half]
    ends.append(high + 20.0)
    return [(a, b) for a, b in zip(ends[::2], ends[1::2], strict=True) if b - a > 1]


def _block(
    sheet: _Sheet, rect: _Rect, slabs: NDArray[np.float64], asphalt: NDArray[np.float64], verge: float, altitude: float
) -> None:
    """Draw a block: a pavement around, and inside a parking lot, a square, a lawn, earth or buildings."""
    rng = sheet.rng
    sheet.fill(rect, PAVEMENT, slabs)
    _slabs(sheet, rect, 0.04)
    kerb = np.clip(slabs * 1.15, 0, 235)
    for side in range(4):
        edge = list(rect)
        edge[(side + 2) % 4] = rect[side] + (0.18 if side < 2 else -0.18)
        low, high = sorted((edge[0], edge[2])), sorted((edge[1], edge[3]))
        place = sheet.window((low[0], high[0], low[1], high[1]))
        sheet.color[place] = kerb
    inner = (rect[0] + verge, rect[1] + verge, rect[2] - verge, rect[3] - verge)
    if inner[2] - inner[0] < 6 or inner[3] - inner[1] < 6:
        return
    kind = rng.choice(("lot", "square", "lawn", "earth", "buildings", "mixed"), p=(0.17, 0.2, 0.13, 0.06, 0.3, 0.14))
    if kind == "lot":
        _lot(sheet, inner, asphalt * rng.uniform(0.9, 1.2))
    elif kind == "square":
        _square(sheet, inner)
    elif kind in ("lawn", "mixed"):
        _lawn(sheet, inner)
    elif kind == "earth":
        sheet.fill(inner, EARTH, np.array((150, 128, 98)) * rng.uniform(0.7, 1.25))
    if kind in ("buildings", "mixed"):
        _buildings(sheet, inner, altitude, 0.75 if kind == "buildings" else 0.3)


def _slabs(sheet: _Sheet, rect: _Rect, contrast: float) -> None:
    """Draw the joints and the shades of paving slabs."""
    rng = sheet.rng
    size = rng.choice((0.3, 0.5, 0.8, 1.2, 2.4))
    place = sheet.window(rect)
    rows, columns = sheet.color[place].shape[:2]
    if rows < 2 or columns < 2:
        return
    y = np.arange(rows) / sheet.resolution
    x = np.arange(columns) / sheet.resolution
    j, i = (y / size).astype(np.intp), (x / (size * rng.choice((1, 1, 2)))).astype(np.intp)
    shade = 1 + rng.normal(0, contrast, (j.max() + 1, i.max() + 1)).astype(np.float32)
    if size * sheet.resolution > 4:
        joint = (np.diff(j, prepend=-1) > 0)[:, None] | (np.diff(i, prepend=-1) > 0)[None]
        sheet.color[place] *= np.where(joint, np.float32(1 - 2 * contrast), np.float32(1))[..., None]
    sheet.color[place] *= shade[j][:, i][..., None]


def _square(sheet: _Sheet, rect: _Rect) -> None:
    """Draw a paved square with bands and rings of other stone."""
    rng = sheet.rng
    base = np.array(_SLABS[int(rng.integers(len(_SLABS)))]) * rng.uniform(0.8, 1.2)
    sheet.fill(rect, PAVEMENT, base)
    other = base * rng.uniform(0.75, 1.2) + rng.normal(0, 6, 3)
    if rng.random() < 0.5:
        spacing, wide = rng.uniform(4, 14), rng.uniform(0.3, 1.2)
        for x in np.arange(rect[0], rect[2], spacing).tolist():
            sheet.fill((x, rect[1], min(x + wide, rect[2]), rect[3]), PAVEMENT, other)
        if rng.random() < 0.6:
            for y in np.arange(rect[1], rect[3], spacing).tolist():
                sheet.fill((rect[0], y, rect[2], min(y + wide, rect[3])), PAVEMENT, other)
    if rng.random() < 0.3:
        center = np.array(((rect[0] + rect[2]) / 2, (rect[1] + rect[3]) / 2))
        for radius in np.arange(rng.uniform(3, 8), 30, rng.uniform(3, 8)).tolist():
            if radius * 2 > min(rect[2] - rect[0], rect[3] - rect[1]):
                break
            x, y = sheet.pixels(center[None])[0].tolist()
            thick = max(1, int(rng.uniform(0.3, 1) * sheet.resolution))
            cv2.circle(sheet.color, (x, y), int(radius * sheet.resolution * 16), other.tolist(), thick, cv2.LINE_8, 4)
    _slabs(sheet, rect, float(rng.choice((0.015, 0.03, 0.06))))


def _lawn(sheet: _Sheet, rect: _Rect) -> None:
    """Draw a lawn with stripes and footpaths."""
    rng = sheet.rng
    green = np.array(((98, 116, 60), (84, 110, 54), (126, 124, 76), (110, 128, 70))[int(rng.integers(4))], float)
    sheet.fill(rect, GRASS, green * rng.uniform(0.75, 1.15))
    if rng.random() < 0.35:
        wide = rng.uniform(0.6, 2.2)
        for n, x in enumerate(np.arange(rect[0], rect[2], wide).tolist()):
            if n % 2:
                sheet.color[sheet.window((x, rect[1], min(x + wide, rect[2]), rect[3]))] *= 1.06
    for _ in range(int(rng.integers(0, 3))):
        a, b = rng.uniform(rect[:2], rect[2:], (2, 2))
        _path(sheet, a, a + (b - a) * 3, rng.uniform(1, 2.6))


def _path(sheet: _Sheet, a: NDArray[np.float64], b: NDArray[np.float64], width: float) -> None:
    bend = sheet.rng.normal(0, 0.12, 2) * np.linalg.norm(b - a)
    t = np.linspace(-0.5, 1.2, 30)[:, None]
    curve = a + (b - a) * t + np.sin(np.pi * t) * bend
    mask = np.zeros(sheet.surface.shape, np.uint8)
    cv2.polylines(mask, [sheet.pixels(curve)], False, (255,), max(1, int(width * sheet.resolution)), cv2.LINE_8, 4)
    inside = (mask > 0) & (sheet.surface == GRASS)
    sheet.surface[inside] = PAVEMENT
    sheet.color[inside] = np.array((176, 160, 134)) * sheet.rng.uniform(0.75, 1.1)


def _lot(sheet: _Sheet, rect: _Rect, asphalt: NDArray[np.float64]) -> None:
    """Draw a parking lot: pairs of rows of stalls with aisles between."""
    rng = sheet.rng
    sheet.fill(rect, LOT, asphalt)
    along_x = rng.random() < 0.5
    (u1, u2), (v1, v2) = (
        ((rect[0], rect[2]), (rect[1], rect[3])) if along_x else ((rect[1], rect[3]), (rect[0], rect[2]))
    )
    wide, deep = _STALL[0] * rng.uniform(0.95, 1.1), _STALL[1]
    aisle, fullness, yellow = rng.uniform(5.5, 7), rng.choice((0.1, 0.5, 0.85)), rng.random() < 0.15

    def at(u: float, v: float) -> tuple[float, float]:
        return (u, v) if along_x else (v, u)

    v = v1
    while v + deep <= v2:
        for low in (v, v + deep + aisle):
            if low + deep > v2:
                continue
            toward = np.pi / 2 if along_x else 0.0
            for u in np.arange(u1, u2 + 0.01, wide).tolist():
                sheet.line(at(u, low), at(u, low + deep), 0.1, yellow=yellow)
                if u + wide <= u2 and rng.random() < fullness:
                    x, y = at(u + wide / 2 + rng.normal(0, 0.1), low + deep / 2 + rng.normal(0, 0.2))
                    sheet.places.append(Place(x, y, toward + np.pi * int(rng.integers(2)) + rng.normal(0, 0.02), True))
        if rng.random() < 0.7:
            sheet.line(at(u1, v + 2 * deep + aisle), at(u2, v + 2 * deep + aisle), 0.1, yellow=yellow)
        v += 2 * deep + aisle


def _buildings(sheet: _Sheet, rect: _Rect, altitude: float, density: float) -> None:
    """Place buildings on a grid of plots, and yards between them."""
    rng = sheet.rng
    if rng.random() < 0.5:
        _lawn(sheet, rect)
    plot = rng.uniform(9, 34)
    floors = int(rng.integers(1, 8))
    for x in np.arange(rect[0], rect[2] - 4, plot).tolist():
        for y in np.arange(rect[1], rect[3] - 4, plot).tolist():
            if rng.random() > density:
                continue
            left, top, right, bottom = (rng.uniform(0, 4, 4) * (plot > 14)).tolist()
            foot = (x + left, y + top, min(x + plot - right, rect[2]), min(y + plot - bottom, rect[3]))
            if (
                foot[2] - foot[0] < 4
                or foot[3] - foot[1] < 4
                or not sheet.visible((foot[0] - 25, foot[1] - 25, foot[2] + 25, foot[3] + 25))
            ):
                continue
            height = min(3.2 * max(1, floors + int(rng.integers(-1, 2))) + 0.6, 0.45 * altitude)
            sheet.fill(foot, BLOCKED, np.array((70, 70, 70)))
            sheet.buildings.append(building(rng, foot, height))


def _mark_street(
    sheet: _Sheet, axis: int, street: tuple[float, float, int], crossing: list[tuple[float, float, int]]
) -> None:
    """Paint the lane markings, zebra crossings and stop lines of a street, and place its traffic."""
    rng = sheet.rng
    middle, half, lanes = street
    style, yellow = rng.random(), rng.random() < 0.12
    density = rng.choice((0.015, 0.04, 0.11))  # vehicles per meter and lane
    parked = 2.0 if half > lanes * _LANE + 1.5 else 0.0

    def at(u: float, v: float) -> tuple[float, float]:  # u along the street, v across
        return (v, u) if axis == 0 else (u, v)

    for start, end in _gaps(crossing, sheet.low[1 - axis], sheet.high[1 - axis]):
        if end - start < 4:
            continue
        if style < 0.3:
            sheet.dashes(at(start, middle), at(end, middle), 3, 4)
        elif style < 0.8:
            for offset in (-0.12, 0.12)[: 1 if style < 0.5 else 2]:
                sheet.line(at(start, middle + offset), at(end, middle + offset), yellow=yellow)
        for n in range(1, lanes):
            for side in (-1, 1):
                sheet.dashes(at(start, middle + side * n * _LANE), at(end, middle + side * n * _LANE), 2.5, 4.5)
        if rng.random() < 0.4:
            for side in (-1, 1):
                v = middle + side * (lanes * _LANE - 0.1)
                sheet.line(at(start, v), at(end, v), 0.12)
        for near, inward in ((start, 1), (end, -1)):
            if near in (start, end) and rng.random() < 0.65 and sheet.low[1 - axis] < near < sheet.high[1 - axis]:
                low, high = sorted((near + inward * 1.2, near + inward * 4.4))
                for v in np.arange(middle - half + 0.4, middle + half - 0.4, 1.0).tolist():
                    sheet.line(at(low, v), at(high, v), 0.5)
                a, b = at(low, middle - half), at(high, middle + half)
                place = sheet.window((min(a[0], b[0]), min(a[1], b[1]), max(a[0], b[0]), max(a[1], b[1])))
                sheet.surface[place] = CROSSING
                stop = near + inward * 5.6
                side = inward if axis == 0 else -inward
                sheet.line(at(stop, middle), at(stop, middle + side * lanes * _LANE), 0.4)
        for n in range(lanes):
            for side in (-1, 1):  # traffic keeps right
                v = middle + side * (n + 0.5) * _LANE
                heading = (np.pi / 2 if side > 0 else -np.pi / 2) if axis == 0 else (np.pi if side > 0 else 0.0)
                u = start + rng.exponential(1 / density)
                while u < end:
                    x, y = at(u, v + rng.normal(0, 0.2))
                    sheet.places.append(Place(x, y, heading + rng.normal(0, 0.03), False))
                    if rng.random() < 0.08:
                        tip = at(u + 8, v)
                        _arrow(sheet, tip, heading)
                    u += 7 + rng.exponential(1 / density)
        if parked:
            for side in (-1, 1):
                v, full = middle + side * (half - 1.1), rng.choice((0.3, 0.9))
                sheet.dashes(at(start + 8, v - side * 1.1), at(end - 8, v - side * 1.1), 1, 1, 0.1)
                for u in np.arange(start + 8, end - 8, 6.0).tolist():
                    if rng.random() < full:
                        x, y = at(u + rng.normal(0, 0.4), v + rng.normal(0, 0.08))
                        turn = np.pi * int(rng.integers(2)) + (np.pi / 2 if axis == 0 else 0)
                        sheet.places.append(Place(x, y, turn + rng.normal(0, 0.03), True))


def _arrow(sheet: _Sheet, tip: tuple[float, float], heading: float) -> None:
    along, side = np.array((np.cos(heading), np.sin(heading))), np.array((-np.sin(heading), np.cos(heading)))
    head = np.array(tip)
    sheet.line(tuple((head - 4 * along).tolist()), tuple((head - 1.2 * along).tolist()), 0.2)
    triangle = np.array((head, head - 1.4 * along + 0.45 * side, head - 1.4 * along - 0.45 * side))
    cv2.fillConvexPoly(sheet.lines, sheet.pixels(triangle), (255,), cv2.LINE_AA, 4)


def _wear(sheet: _Sheet, asphalt: NDArray[np.float64]) -> None:
    """Draw patches, cracks, stains and tire tracks on the roads and lots."""
    rng = sheet.rng
    layer = np.ones(sheet.surface.shape, np.float32)
    area = (sheet.high[0] - sheet.low[0]) * (sheet.high[1] - sheet.low[1])

    def spots(density: float) -> NDArray[np.float64]:
        return rng.uniform(sheet.low, sheet.high, (int(rng.poisson(min(area * density, 120))), 2))

    for point in spots(0.004):
        w, h = rng.uniform(0.5, 5), rng.uniform(0.3, 1.5)
        w, h = (w, h) if rng.random() < 0.5 else (h, w)
        place = sheet.window((point[0], point[1], point[0] + w, point[1] + h))
        layer[place] *= rng.choice((0.8, 0.88, 1.1))
    for point in spots(0.01):
        steps = rng.normal(0, 0.35, (14, 2)) + rng.normal(0, 0.3, 2)
        cv2.polylines(layer, [sheet.pixels(point + np.cumsum(steps, axis=0))], False, (float(rng.uniform(0.6, 0.85)),),
                      max(1, int(0.04 * sheet.resolution)), cv2.LINE_8, 4)  # fmt: skip
    for point in spots(0.012):
        x, y = sheet.pixels(point[None])[0].tolist()
        radius = (np.maximum(rng.uniform(0.1, 0.7, 2) * sheet.resolution, 1) * 16).astype(int).tolist()
        cv2.ellipse(layer, (x, y), radius, float(rng.uniform(0, 180)), 0, 360, (float(rng.uniform(0.7, 0.95)),), -1,
                    cv2.LINE_8, 4)  # fmt: skip
    layer = np.asarray(cv2.GaussianBlur(layer, (0, 0), max(0.5, 0.05 * sheet.resolution)), np.float32)
    paved = np.isin(sheet.surface, (ROAD, LOT, CROSSING, PAVEMENT))
    sheet.color *= np.where(paved, layer, 1)[..., None]
