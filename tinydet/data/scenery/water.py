"""The sea: its colour by depth, and what moves on it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinydet.data.scenery.colours import Colour, Image
from tinydet.data.scenery.noise import smooth_noise
from tinydet.data.scenery.view import View

ROWS = 32  # are computed at a time: a large scene has no room for all that lies between noise and colour
_SEAS: tuple[tuple[Colour, Colour, Colour], ...] = (  # shallow, middle, deep
    ((150, 192, 178), (62, 146, 146), (22, 78, 104)),
    ((128, 168, 140), (58, 126, 104), (24, 84, 78)),
    ((150, 158, 138), (96, 116, 108), (58, 78, 82)),
    ((138, 190, 196), (56, 138, 172), (20, 70, 120)),
)


def colour_of_depth(rng: np.random.Generator, depth: NDArray[np.float64]) -> NDArray[np.float64]:
    """Colour of the water by its depth, both in statures from the shore."""
    colours = np.array(_SEAS[rng.integers(len(_SEAS))]) * (1 + rng.normal(0, 0.05, 3))
    reach = np.array([0.0, 1.0, 6.0, 40.0]) * rng.uniform(0.6, 1.8)
    known = np.stack([colours[0] * 0.6 + np.array([176, 152, 118]) * 0.4, colours[0], colours[1], colours[2]])
    return np.stack([np.interp(depth, reach, known[:, c]) for c in range(3)], axis=-1)


def fill_sea(rng: np.random.Generator, colour: Image, inland: Image, specks: list[Image], view: View) -> None:
    """Waves, glints, reefs, whitecaps, and the foam at the shore, in place.

    Args:
        inland: (H, W), pixels from the shore, negative at sea.
        specks: the five noises of the ground, finest first, so that ground and water fray alike.
    """
    weather = _choose_weather(rng)
    chop = weather.chop
    wet = inland < 4 * view.unit
    rows, columns = np.flatnonzero(wet.any(axis=1)), np.flatnonzero(wet.any(axis=0))
    if not len(rows):
        return
    part = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    colour, inland, specks = colour[part], inland[part], [speck[part] for speck in specks]
    shape = (inland.shape[0], inland.shape[1])
    waves = [smooth_noise(rng, shape, max(1.0, size * view.unit), chop) for size in (0.10, 0.34, 1.1)]
    for top in range(0, shape[0], ROWS):
        band = slice(top, top + ROWS)
        light, foam = _surface(weather, inland[band], [s[band] for s in specks], [w[band] for w in waves], view)
        for channel, white in enumerate((240, 244, 243)):
            colour[band][..., channel] *= light
            colour[band][..., channel] += foam * np.float32(white)


class _Weather(NamedTuple):
    wind: float
    chop: float  # how much wider than high a wave is
    breakers: list[tuple[float, float]]  # lines of foam: statures from the shore, and strength
    reef: float  # how dark reefs are
    glitter: float
    swell: float  # statures from crest to crest


def _choose_weather(rng: np.random.Generator) -> _Weather:
    wind, chop = rng.uniform(0.3, 1.0), rng.uniform(2.0, 4.5)
    amount = int(rng.integers(0, 4))
    lines = np.concatenate([[0.15], np.cumsum(rng.uniform(1.5, 4.5, amount)) + 0.5]).tolist()
    strengths = np.concatenate([[0.9], rng.uniform(0.35, 1.0, amount)]).tolist()
    reef, glitter, swell = rng.uniform(0, 0.35) * (rng.random() < 0.5), rng.uniform(0, 1), rng.uniform(2.5, 6)
    return _Weather(wind, chop, list(zip(lines, strengths, strict=True)), reef, glitter, swell)


def _surface(
    weather: _Weather, inland: Image, specks: list[Image], waves: list[Image], view: View
) -> tuple[Image, Image]:
    """What is left of the water's own light, and how white its foam is; each pixel by itself."""
    unit, wind, glitter = view.unit, weather.wind, weather.glitter
    sea = np.clip(inland * np.float32(-3 / unit) + 1, 0, 1)  # 0 on land, 1 in the water

    ripple, wave, billow = waves
    ripple = ripple * np.float32(0.045 + 0.05 * wind)
    ripple += wave * np.float32(0.05 * wind) + billow * np.float32(0.04)
    crest = np.sin(inland * np.float32(2 * np.pi / (weather.swell * unit)) + 2.0 * specks[3] + 2.5 * specks[4])
    ripple += crest * np.float32(0.035 * wind)
    if weather.reef:
        ripple -= np.clip(specks[4] + 0.7 * specks[3] + 0.3 * specks[2] - 0.7, 0, 1) * np.float32(weather.reef)
    light: Image = 1 + ripple * sea
    sparkle = np.clip(ripple * np.float32(6.0) + 0.5 * specks[0] + 0.4 * billow - np.float32(2.6 - 1.0 * glitter), 0, 1)
    sparkle *= np.clip(0.2 + specks[4], 0, 1) * np.float32(1.2 * glitter * view.sun)

    bent = inland * np.float32(1 / unit) + 0.55 * specks[3] + 0.22 * specks[2]
    foam: Image = np.zeros(inland.shape, np.float32)
    for line, strength in weather.breakers:
        offset = (bent + line) / (0.16 + 0.05 * line)
        ridge = np.exp(-np.square(np.where(offset > 0, offset * 0.45, offset)))
        foam = np.maximum(foam, ridge * np.clip(strength + 0.45 * specks[4] + 0.25 * specks[3], 0, 1))
    lace = np.clip(0.55 + 0.5 * specks[1] + 0.35 * specks[2], 0, 1)
    foam = np.clip(foam * (0.35 + 0.9 * lace) - 0.08, 0, 0.95)
    caps = np.clip(wave + 0.5 * billow + 0.7 * specks[4] - np.float32(3.6 - 1.1 * wind), 0, 1) * (lace * lace)
    foam = np.maximum(foam, caps * sea)
    foam = np.maximum(foam, sparkle * sea)
    light *= 1 - foam
    return light, foam
