"""Position, scale and random choices of one object that is drawn into a scene."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinydet.data.scenery.colors import Color
from tinydet.data.scenery.sprites import Canvas
from tinydet.data.scenery.view import View


class Placement(NamedTuple):
    """Where and how large an object is drawn, and the generator for its random details.

    The methods that return points give (right, up) offsets in statures, as `Canvas` expects them.
    """

    rng: np.random.Generator
    view: View
    x: float
    y: float
    stature: float  # of a person at this position, in pixels
    heading: float  # direction on the ground, radians

    def canvas(self, reach: float, above: float, below: float) -> Canvas:
        """Return a canvas around this position. Its extents are in statures, see `Canvas`."""
        return Canvas(self.x, self.y, self.stature, reach, above, below)

    def uniform(self, low: float, high: float) -> float:
        """Draw a number between `low` and `high`."""
        return float(self.rng.uniform(low, high))

    def chance(self, probability: float) -> bool:
        """Return True with the given probability."""
        return bool(self.rng.random() < probability)

    def random_side(self) -> int:
        """Draw 1 (right) or -1 (left)."""
        return 1 if self.chance(0.5) else -1

    def pick_color(self, *colors: Color) -> Color:
        """Draw one of the colors and vary it slightly."""
        color = np.array(colors[int(self.rng.integers(len(colors)))])
        red, green, blue = (color * self.rng.normal(1, 0.07) + self.rng.normal(0, 5, 3)).tolist()
        return red, green, blue

    def along(self, length: float) -> NDArray[np.float64]:
        """Return (right, up) of a ground vector of this length in the direction `heading`."""
        return np.array((np.cos(self.heading), -np.sin(self.heading) * self.view.depth_scale)) * length

    def across(self, length: float) -> NDArray[np.float64]:
        """Return (right, up) of a ground vector of this length perpendicular to `heading`."""
        return np.array((-np.sin(self.heading), -np.cos(self.heading) * self.view.depth_scale)) * length

    def rectangle(self, length: float, width: float) -> NDArray[np.float64]:
        """Return the four corners (4, 2) of a ground rectangle centered here, `length` along `heading`."""
        along, across = self.along(length / 2), self.across(width / 2)
        return np.array((along + across, along - across, -along - across, across - along))
