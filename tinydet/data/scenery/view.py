"""Viewpoint and lighting of a synthetic scene."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tinydet.data.scenery.colors import Color


@dataclass(frozen=True)
class View:
    """Camera and sun of one scene. Lengths are in pixels."""

    width: int
    height: int
    unit: float  # stature of an adult at the center of the image
    perspective: float  # difference in stature between the bottom and the top of the image, as a fraction of `unit`
    vertical_scale: float  # foreshortening of vertical lengths: 1 from the side, 0 from above
    shadow_offset: tuple[float, float]  # shift (right, down) of a shadow per pixel of height above the ground
    sun: float  # strength of the direct sunlight: 0 overcast, 1 hard light
    tint: Color  # of the light, one factor per channel

    @property
    def depth_scale(self) -> float:
        """Foreshortening of ground lengths that point away from the camera."""
        return float(np.sqrt(1 - 0.9 * self.vertical_scale**2))

    @property
    def sun_side(self) -> int:
        """1 if the sun shines from the right, -1 if from the left."""
        return -1 if self.shadow_offset[0] > 0 else 1

    def stature(self, y: float) -> float:
        """Return the stature in pixels of an adult who stands at row `y`."""
        return self.unit * (1 + self.perspective * (y / self.height - 0.5))


def choose_view(rng: np.random.Generator, width: int, height: int) -> View:
    """Draw a random view for an image of `width` x `height` pixels."""
    vertical_scale = rng.uniform(0.45, 0.95)
    perspective = rng.uniform(0.1, 0.7) * vertical_scale
    unit = float(np.clip(rng.lognormal(np.log(16.5), 0.33), 7, 25)) / vertical_scale**0.5
    azimuth, shadow_length = rng.uniform(0, 2 * np.pi), rng.uniform(0.4, 1.8)
    across = shadow_length * np.cos(azimuth) / vertical_scale
    away = shadow_length * np.sin(azimuth) * np.sqrt(1 - 0.9 * vertical_scale**2) / vertical_scale
    away = np.copysign(max(abs(away), 0.2), away)
    sun = rng.choice([rng.uniform(0.05, 0.35), rng.uniform(0.5, 1.0)], p=[0.3, 0.7])
    warmth = rng.normal(0.01, 0.03) + 0.04 * sun * (shadow_length > 1.3)
    tint = (1 + warmth, 1.0, 1 - warmth)
    return View(width, height, unit, perspective, vertical_scale, (float(across), float(away)), float(sun), tint)
