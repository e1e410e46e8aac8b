"""From where a scene is seen, and in which light."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tinydet.data.scenery.colours import Colour


@dataclass(frozen=True)
class View:
    """Camera and sun of one scene. Lengths in pixels; `up` is the image's vertical, seen foreshortened."""

    width: int
    height: int
    unit: float  # stature of an adult in the middle of the picture
    perspective: float  # how much larger people are at the bottom than at the top, as a part of `unit`
    tilt: float  # seen part of an upright length: 1 from the side, 0 from above
    shadow: tuple[float, float]  # where the shadow of a point falls, for each pixel that it stands above the ground
    sun: float  # 0 overcast, 1 hard light
    tint: Colour  # of the light

    @property
    def ground(self) -> float:
        """Seen part of a length on the ground that points away from the camera."""
        return float(np.sqrt(1 - 0.9 * self.tilt**2))

    @property
    def lit(self) -> int:
        """The side from which the sun shines: 1 from the right, -1 from the left."""
        return -1 if self.shadow[0] > 0 else 1

    def stature(self, y: float) -> float:
        return self.unit * (1 + self.perspective * (y / self.height - 0.5))


def choose_view(rng: np.random.Generator, width: int, height: int) -> View:
    tilt = rng.uniform(0.45, 0.95)
    perspective = rng.uniform(0.1, 0.7) * tilt
    unit = float(np.clip(rng.lognormal(np.log(16.5), 0.33), 7, 25)) / tilt**0.5
    azimuth, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.4, 1.8)
    across, away = length * np.cos(azimuth) / tilt, length * np.sin(azimuth) * np.sqrt(1 - 0.9 * tilt**2) / tilt
    away = np.copysign(max(abs(away), 0.2), away)
    sun = rng.choice([rng.uniform(0.05, 0.35), rng.uniform(0.5, 1.0)], p=[0.3, 0.7])
    warmth = rng.normal(0.01, 0.03) + 0.04 * sun * (length > 1.3)
    tint = (1 + warmth, 1.0, 1 - warmth)
    return View(width, height, unit, perspective, tilt, (float(across), float(away)), float(sun), tint)
