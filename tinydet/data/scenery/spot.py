"""Where one thing is drawn, and the chances by which it differs from the next of its kind."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinydet.data.scenery.colours import Colour
from tinydet.data.scenery.sprites import Canvas
from tinydet.data.scenery.view import View


class Spot(NamedTuple):
    """Where something is drawn, by which chance; `tall` is the stature of a person there, `turn` a direction."""

    rng: np.random.Generator
    view: View
    x: float
    y: float
    tall: float
    turn: float

    def canvas(self, reach: float, above: float, below: float) -> Canvas:
        return Canvas(self.x, self.y, self.tall, reach, above, below)

    def between(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def side(self) -> int:
        return 1 if self.chance(0.5) else -1

    def pick(self, *colours: Colour) -> Colour:
        """One of them, not quite."""
        colour = np.array(colours[int(self.rng.integers(len(colours)))])
        red, green, blue = (colour * self.rng.normal(1, 0.07) + self.rng.normal(0, 5, 3)).tolist()
        return red, green, blue

    def along(self, length: float) -> NDArray[np.float64]:
        """(right, up) of a step on the ground in the direction `turn`."""
        return np.array((np.cos(self.turn), -np.sin(self.turn) * self.view.ground)) * length

    def across(self, length: float) -> NDArray[np.float64]:
        """And of one at a right angle to it."""
        return np.array((-np.sin(self.turn), -np.cos(self.turn) * self.view.ground)) * length

    def floor(self, length: float, width: float) -> NDArray[np.float64]:
        """The four corners of a rectangle on the ground."""
        along, across = self.along(length / 2), self.across(width / 2)
        return np.array((along + across, along - across, -along - across, across - along))
