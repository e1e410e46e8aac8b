"""Sprites, and the canvas on which they are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from tinydet.data.scenery.colours import Colour, Image, dim
from tinydet.data.scenery.view import View

_Point = Sequence[float] | NDArray[np.float64]
_Points = Sequence[_Point] | NDArray[np.float64]


class Sprite(NamedTuple):
    """A drawn thing: where it is, how much of each pixel it covers, and its colour times that."""

    left: int
    top: int
    cover: Image  # (h, w), 0 to 1
    colour: Image  # (h, w, 3), 0 to 255
    base: tuple[float, float]  # where it stands
    outline: tuple[float, float, float, float]  # xyxy, exact to a part of a pixel
    flat: bool = False  # lies on the ground: no shadow, and nothing is behind it
    person: bool = False


class Canvas:
    """Shapes about a base point, drawn enlarged and averaged down. Points are (right, up) of it, in `unit` pixels."""

    def __init__(self, x: float, y: float, unit: float, reach: float, above: float, below: float) -> None:
        self.base, self.unit = (x, y), unit
        self.left, self.top = int(np.floor(x - reach * unit)) - 1, int(np.floor(y - above * unit)) - 1
        self.width = int(np.ceil(x + reach * unit)) + 1 - self.left
        self.height = int(np.ceil(y + below * unit)) + 1 - self.top
        self.scale = 8 if max(self.width, self.height) <= 48 else 4
        size = (self.height * self.scale, self.width * self.scale)
        self.mask = np.zeros(size, np.uint8)
        self.pixels = np.zeros((*size, 3), np.uint8)

    def _corners(self, points: _Points) -> NDArray[np.int32]:
        offset = np.array((self.base[0] - self.left, self.base[1] - self.top))
        corners = (np.array(points) * (self.unit, -self.unit) + offset) * self.scale
        return np.asarray(np.floor(corners), np.int32)

    def polygon(self, points: _Points, colour: Colour) -> None:
        corners = self._corners(points)
        cv2.fillPoly(self.mask, [corners], 255)
        cv2.fillPoly(self.pixels, [corners], _bytes(colour))

    def disc(self, centre: _Point, across: float, high: float, colour: Colour, turn: float = 0.0) -> None:
        """An ellipse; `across` and `high` are its half axes, `turn` is in degrees, clockwise."""
        (x, y), enlarged = self._corners([centre])[0].tolist(), self.unit * self.scale
        axes = (max(1, round(across * enlarged)), max(1, round(high * enlarged)))
        cv2.ellipse(self.mask, (x, y), axes, turn, 0, 360, 255, -1)
        cv2.ellipse(self.pixels, (x, y), axes, turn, 0, 360, _bytes(colour), -1)

    def stroke(self, points: _Points, thickness: float, colour: Colour) -> None:
        width, corners = max(1, round(thickness * self.unit * self.scale)), self._corners(points)
        cv2.polylines(self.mask, [corners], False, 255, width)
        cv2.polylines(self.pixels, [corners], False, _bytes(colour), width)

    def raise_wall(self, floor: NDArray[np.float64], low: float, high: float, colour: Colour) -> None:
        """What a floor covers when it is moved up from `low` to `high`; darker at the foot."""
        for part in np.linspace(0, 1, max(2, int((high - low) * self.unit * 2))).tolist():
            self.polygon(lift(floor, low + part * (high - low)), dim(colour, 0.85 + 0.15 * part))

    def cut_below(self, up: float) -> None:
        """Remove what is drawn lower than `up`."""
        row = max(0, int(self._corners([(0, up)])[0, 1]))
        self.mask[row:] = 0
        self.pixels[row:] = 0

    def sprite(self, view: View, *, flat: bool = False, person: bool = False, opacity: float = 1.0) -> Sprite:
        rows, columns = np.flatnonzero(self.mask.any(axis=1)), np.flatnonzero(self.mask.any(axis=0))
        size = (self.width, self.height)
        cover = cv2.resize(self.mask, size, interpolation=cv2.INTER_AREA).astype(np.float32) * np.float32(opacity / 255)
        colour = cv2.resize(self.pixels, size, interpolation=cv2.INTER_AREA).astype(np.float32) * np.float32(opacity)
        outline = (0.0, 0.0, 0.0, 0.0)
        if len(rows):
            first, last = columns[[0, -1]] / self.scale + self.left, rows[[0, -1]] / self.scale + self.top
            outline = (
                float(first[0]),
                float(last[0]),
                float(first[1]) + 1 / self.scale,
                float(last[1]) + 1 / self.scale,
            )
        if not flat and len(rows):  # the side towards the sun is brighter
            side = np.linspace(-1, 1, self.width, dtype=np.float32) * view.lit
            colour *= (1 + np.float32(0.22 * view.sun) * side)[:, None]
        return Sprite(self.left, self.top, cover, colour, self.base, outline, flat, person)


def lift(points: NDArray[np.float64], up: float) -> NDArray[np.float64]:
    return np.asarray(points + np.array((0.0, up)))


def _bytes(colour: Colour) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(1, round(value))) for value in colour)
    return red, green, blue
