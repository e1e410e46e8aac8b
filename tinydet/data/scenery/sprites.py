"""Sprites and the canvas they are drawn on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from tinydet.data.scenery.colors import Color, Image, dim
from tinydet.data.scenery.view import View

_Point = Sequence[float] | NDArray[np.float64]
_Points = Sequence[_Point] | NDArray[np.float64]


class Sprite(NamedTuple):
    """A drawn object, ready to be pasted into a scene. Positions are in pixels of the scene."""

    left: int
    top: int
    coverage: Image  # (h, w), covered fraction of each pixel, 0 to 1
    color: Image  # (h, w, 3), 0 to 255, multiplied by `coverage`
    base: tuple[float, float]  # the point where it stands on the ground
    box: tuple[float, float, float, float]  # xyxy, to a fraction of a pixel
    flat: bool = False  # lies on the ground: drawn below all upright sprites, casts no shadow
    is_person: bool = False


class Canvas:
    """Draws shapes around a base point, supersampled 4 or 8 times.

    Points are (right, up) offsets from the base point; they and all other lengths are multiples of `unit` pixels.

    Args:
        x, y: the base point, in pixels of the scene.
        reach: extent of the canvas to the left and to the right.
        above, below: extent of the canvas upwards and downwards.
    """

    def __init__(self, x: float, y: float, unit: float, reach: float, above: float, below: float) -> None:
        self.base, self.unit = (x, y), unit
        self.left, self.top = int(np.floor(x - reach * unit)) - 1, int(np.floor(y - above * unit)) - 1
        self.width = int(np.ceil(x + reach * unit)) + 1 - self.left
        self.height = int(np.ceil(y + below * unit)) + 1 - self.top
        self.scale = 8 if max(self.width, self.height) <= 48 else 4
        size = (self.height * self.scale, self.width * self.scale)
        self.mask = np.zeros(size, np.uint8)
        self.pixels = np.zeros((*size, 3), np.uint8)

    def _to_pixels(self, points: _Points) -> NDArray[np.int32]:
        offset = np.array((self.base[0] - self.left, self.base[1] - self.top))
        corners = (np.array(points) * (self.unit, -self.unit) + offset) * self.scale
        return np.asarray(np.floor(corners), np.int32)

    def polygon(self, points: _Points, color: Color) -> None:
        """Fill a polygon."""
        corners = self._to_pixels(points)
        cv2.fillPoly(self.mask, [corners], 255)
        cv2.fillPoly(self.pixels, [corners], _to_uint8(color))

    def ellipse(self, center: _Point, half_width: float, half_height: float, color: Color, angle: float = 0.0) -> None:
        """Fill an ellipse, rotated clockwise by `angle` degrees."""
        (x, y), unit = self._to_pixels([center])[0].tolist(), self.unit * self.scale
        axes = (max(1, round(half_width * unit)), max(1, round(half_height * unit)))
        cv2.ellipse(self.mask, (x, y), axes, angle, 0, 360, 255, -1)
        cv2.ellipse(self.pixels, (x, y), axes, angle, 0, 360, _to_uint8(color), -1)

    def stroke(self, points: _Points, thickness: float, color: Color) -> None:
        """Draw a polyline."""
        width, corners = max(1, round(thickness * self.unit * self.scale)), self._to_pixels(points)
        cv2.polylines(self.mask, [corners], False, 255, width)
        cv2.polylines(self.pixels, [corners], False, _to_uint8(color), width)

    def extrude(self, footprint: NDArray[np.float64], low: float, high: float, color: Color) -> None:
        """Fill the walls between a footprint lifted to `low` and to `high`; they are darker at the bottom."""
        for fraction in np.linspace(0, 1, max(2, int((high - low) * self.unit * 2))).tolist():
            self.polygon(lift(footprint, low + fraction * (high - low)), dim(color, 0.85 + 0.15 * fraction))

    def erase_below(self, up: float) -> None:
        """Erase everything that is drawn lower than `up`."""
        row = max(0, int(self._to_pixels([(0, up)])[0, 1]))
        self.mask[row:] = 0
        self.pixels[row:] = 0

    def sprite(self, view: View, *, flat: bool = False, is_person: bool = False, opacity: float = 1.0) -> Sprite:
        """Return what is drawn so far, averaged down to the resolution of the scene.

        Upright sprites are brighter on the side towards the sun.
        """
        rows, columns = np.flatnonzero(self.mask.any(axis=1)), np.flatnonzero(self.mask.any(axis=0))
        size = (self.width, self.height)
        coverage = cv2.resize(self.mask, size, interpolation=cv2.INTER_AREA).astype(np.float32) * np.float32(
            opacity / 255
        )
        color = cv2.resize(self.pixels, size, interpolation=cv2.INTER_AREA).astype(np.float32) * np.float32(opacity)
        box = (0.0, 0.0, 0.0, 0.0)
        if len(rows):
            xs, ys = columns[[0, -1]] / self.scale + self.left, rows[[0, -1]] / self.scale + self.top
            right, bottom = float(xs[1]) + 1 / self.scale, float(ys[1]) + 1 / self.scale
            box = (float(xs[0]), float(ys[0]), right, bottom)
        if not flat and len(rows):
            side = np.linspace(-1, 1, self.width, dtype=np.float32) * view.sun_side
            color *= (1 + np.float32(0.22 * view.sun) * side)[:, None]
        return Sprite(self.left, self.top, coverage, color, self.base, box, flat, is_person)


def lift(points: NDArray[np.float64], up: float) -> NDArray[np.float64]:
    """Return the points moved up."""
    return np.asarray(points + np.array((0.0, up)))


def _to_uint8(color: Color) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(1, round(value))) for value in color)
    return red, green, blue
