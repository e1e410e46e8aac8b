"""The sea: water color by depth, waves, reflections and foam."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinydet.data.scenery.colors import Color, Image
from tinydet.data.scenery.noise import smooth_noise
from tinydet.data.scenery.view import View

STRIP_ROWS = 32  # rows computed at a time, because intermediate results of a whole large scene need too much memory
_SEAS: tuple[tuple[Color, Color, Color], ...] = (  # shallow, middle, deep
    ((150, 192, 178), (62, 146, 146), (22, 78, 104)),
    ((128, 168, 140), (58, 126, 104), (24, 84, 78)),
    ((150, 158, 138), (96, 116, 108), (58, 78, 82)),
    ((138, 190, 196), (56, 138, 172), (20, 70, 120)),
)


def water_colors(rng: np.random.Generator, distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return colors (N, 3) of the water at distances (N,) from the shore, in statures, for a random sea.

    The color fades from shallow to deep with the distance.
    """
    colors = np.array(_SEAS[rng.integers(len(_SEAS))]) * (1 + rng.normal(0, 0.05, 3))
    stops = np.array([0.0, 1.0, 6.0, 40.0]) * rng.uniform(0.6, 1.8)
    stop_colors = np.stack([colors[0] * 0.6 + np.array([176, 152, 118]) * 0.4, colors[0], colors[1], colors[2]])
    return np.stack([np.interp(distance, stops, stop_colors[:, c]) for c in range(3)], axis=-1)


def draw_sea(rng: np.random.Generator, color: Image, shore_distance: Image, noises: list[Image], view: View) -> None:
    """Draw waves, sparkles, reefs, whitecaps and the foam at the shore into `color`, in place.

    Args:
        shore_distance: (H, W), pixels from the shore, negative at sea.
        noises: the five noise images of the ground, finest first. Shared, so that water and land match along the shore.
    """
    weather = _choose_weather(rng)
    wet = shore_distance < 4 * view.unit
    rows, columns = np.flatnonzero(wet.any(axis=1)), np.flatnonzero(wet.any(axis=0))
    if not len(rows):
        return
    part = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    color, shore_distance, noises = color[part], shore_distance[part], [noise[part] for noise in noises]
    shape = (shore_distance.shape[0], shore_distance.shape[1])
    waves = [smooth_noise(rng, shape, max(1.0, size * view.unit), weather.chop) for size in (0.10, 0.34, 1.1)]
    for top in range(0, shape[0], STRIP_ROWS):
        strip = slice(top, top + STRIP_ROWS)
        noise_strips, wave_strips = [noise[strip] for noise in noises], [wave[strip] for wave in waves]
        light, foam = _surface(weather, shore_distance[strip], noise_strips, wave_strips, view)
        for channel, white in enumerate((240, 244, 243)):
            color[strip][..., channel] *= light
            color[strip][..., channel] += foam * np.float32(white)


class _Weather(NamedTuple):
    wind: float  # strength, 0 to 1
    chop: float  # width of a wave / its height
    breakers: list[tuple[float, float]]  # lines of foam: distance from the shore in statures, strength
    reef: float  # darkness of the reefs
    glitter: float  # amount of sparkles, 0 to 1
    swell: float  # wavelength in statures


def _choose_weather(rng: np.random.Generator) -> _Weather:
    wind, chop = rng.uniform(0.3, 1.0), rng.uniform(2.0, 4.5)
    amount = int(rng.integers(0, 4))
    lines = np.concatenate([[0.15], np.cumsum(rng.uniform(1.5, 4.5, amount)) + 0.5]).tolist()
    strengths = np.concatenate([[0.9], rng.uniform(0.35, 1.0, amount)]).tolist()
    reef, glitter, swell = rng.uniform(0, 0.35) * (rng.random() < 0.5), rng.uniform(0, 1), rng.uniform(2.5, 6)
    return _Weather(wind, chop, list(zip(lines, strengths, strict=True)), reef, glitter, swell)


def _surface(
    weather: _Weather, shore_distance: Image, noises: list[Image], waves: list[Image], view: View
) -> tuple[Image, Image]:
    """Return the brightness of the water and the opacity of its foam, per pixel."""
    unit, wind, glitter = view.unit, weather.wind, weather.glitter
    sea = np.clip(shore_distance * np.float32(-3 / unit) + 1, 0, 1)  # 0 on land, 1 in the water

    ripple, wave, billow = waves
    ripple = ripple * np.float32(0.045 + 0.05 * wind)
    ripple += wave * np.float32(0.05 * wind) + billow * np.float32(0.04)
    crest = np.sin(shore_distance * np.float32(2 * np.pi / (weather.swell * unit)) + 2.0 * noises[3] + 2.5 * noises[4])
    ripple += crest * np.float32(0.035 * wind)
    if weather.reef:
        ripple -= np.clip(noises[4] + 0.7 * noises[3] + 0.3 * noises[2] - 0.7, 0, 1) * np.float32(weather.reef)
    light: Image = 1 + ripple * sea
    sparkle = np.clip(ripple * np.float32(6.0) + 0.5 * noises[0] + 0.4 * billow - np.float32(2.6 - 1.0 * glitter), 0, 1)
    sparkle *= np.clip(0.2 + noises[4], 0, 1) * np.float32(1.2 * glitter * view.sun)

    warped = shore_distance * np.float32(1 / unit) + 0.55 * noises[3] + 0.22 * noises[2]
    foam: Image = np.zeros(shore_distance.shape, np.float32)
    for line, strength in weather.breakers:
        offset = (warped + line) / (0.16 + 0.05 * line)
        ridge = np.exp(-np.square(np.where(offset > 0, offset * 0.45, offset)))
        foam = np.maximum(foam, ridge * np.clip(strength + 0.45 * noises[4] + 0.25 * noises[3], 0, 1))
    lace = np.clip(0.55 + 0.5 * noises[1] + 0.35 * noises[2], 0, 1)
    foam = np.clip(foam * (0.35 + 0.9 * lace) - 0.08, 0, 0.95)
    caps = np.clip(wave + 0.5 * billow + 0.7 * noises[4] - np.float32(3.6 - 1.1 * wind), 0, 1) * (lace * lace)
    foam = np.maximum(foam, caps * sea)
    foam = np.maximum(foam, sparkle * sea)
    light *= 1 - foam
    return light, foam
