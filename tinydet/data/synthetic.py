"""Annotated scenes with tiny people, made rather than collected: the embedded data, and the tests' fixture.

A scene is a stretch of coast seen obliquely from the air: a sea, a beach, and bands of grass and paving behind it.
On it stand people of 3 to 24 pixels, and many things of their size that are none. Everything follows from the seed.
The layers, back to front: ground, shadows, things and people (nearer ones hide farther ones), camera.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from tinydet._atomic import atomic_path, write_json
from tinydet._command import command

VERSION = 1  # of the pictures; raised when the same seed draws others, for they are cached by it
EMBEDDED = {"train": (240, 1), "val": (60, 2)}  # images, seed
EMBEDDED_SIZE = 384  # pixels, square
DENSITY = 120.0  # people on a million pixels, in a data set on average
SCENE_DENSITY = 40.0  # and in one large scene: several hundred on 4096 x 4096
LARGEST = 16_384  # pixels, a side of a scene: drawing takes some 100 bytes for each pixel
HEIGHTS = (3.0, 24.0)  # pixels, of a person who stands free
MOSTLY_HIDDEN = 0.4  # a person of whom less is seen is an ignore region
FULLY_HIDDEN = 0.1  # and of whom less is seen is not annotated at all
CATEGORY = {"id": 1, "name": "person", "supercategory": "person"}

Image = NDArray[np.float32]
Colour = tuple[float, float, float]
_Point = Sequence[float] | NDArray[np.float64]
_Points = Sequence[_Point] | NDArray[np.float64]


class Person(NamedTuple):
    """The box around what is seen of a person, in pixels of the scene, and whether too little is seen to ask for it."""

    x: float
    y: float
    width: float
    height: float
    ignore: bool


def render_scene(
    width: int, height: int, *, seed: int | Sequence[int], density: float = DENSITY
) -> tuple[NDArray[np.uint8], list[Person]]:
    """Draw a scene.

    Args:
        density: people on a million pixels, on average. It changes the people only: ground, things and noise stay.

    Returns:
        (H, W, 3) RGB, and the people on it in no particular order.
    """
    if not 16 <= min(width, height) <= max(width, height) <= LARGEST:
        raise ValueError(f"a scene is 16 to {LARGEST} pixels wide and high, not {width}x{height}")
    if not 0 <= density <= 20_000:
        raise ValueError(f"density is 0 to 20000 people on a million pixels, not {density:g}")
    layout, ground_noise, thing_noise, people_noise, camera = np.random.default_rng(seed).spawn(5)
    view = _view(layout, width, height)
    ground = _ground(layout, ground_noise, view)
    sprites = _things(thing_noise, view, ground) + _people(people_noise, view, ground, density)
    sprites.sort(key=lambda sprite: (not sprite.flat, sprite.base[1]))  # nearer is lower in the picture
    people = _visible(sprites, view)
    image = ground.colour
    _shade(image, sprites, view)
    for sprite in sprites:
        _paste(image, sprite)
    return _photograph(camera, image, view), people


def write_dataset(folder: Path, *, count: int, width: int, height: int, seed: int, density: float = DENSITY) -> None:
    """Write a COCO folder of `count` scenes: `images/*.jpg` first, `annotations.json` last.

    From image to image the density varies around `density`, and some images are empty.

    Raises:
        ValueError: where the folder has something in it, or `count` is not positive.
    """
    if count < 1:
        raise ValueError(f"a data set needs at least one image, not {count}")
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty; name a new folder, or remove what is in it")
    (folder / "images").mkdir(parents=True, exist_ok=True)
    images, scenes = [], []
    for n in tqdm(range(count), desc="synthetic scenes", unit="image", disable=None):
        crowd = np.random.default_rng((seed, n)).gamma(1.6, density / 1.6) if n % 16 else 0.0
        pixels, people = render_scene(width, height, seed=(seed, n), density=crowd)
        name = f"{n:06d}.jpg"
        _write_image(folder / "images" / name, pixels)
        images.append({"id": n + 1, "file_name": name, "width": width, "height": height, "license": 1})
        scenes.append(people)
    write_json(folder / "annotations.json", _coco(images, scenes, seed))


def write_scene(path: Path, width: int, height: int, seed: int, *, density: float = SCENE_DENSITY) -> Path:
    """Write one scene to `path` (its suffix says the format), and its COCO annotations beside it.

    Returns:
        The annotation file, `NAME.annotations.json`.
    """
    path = Path(path)
    if not cv2.haveImageWriter(path.name):
        raise ValueError(f"{path}: no image format has the suffix {path.suffix!r}; name it .jpg, .png or .tif")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: the folder {path.parent} does not exist; create it or name another")
    annotations = path.with_name(f"{path.stem}.annotations.json")
    pixels, people = render_scene(width, height, seed=seed, density=density)
    _write_image(path, pixels)
    image = {"id": 1, "file_name": path.name, "width": width, "height": height, "license": 1}
    write_json(annotations, _coco([image], [people], seed))
    return annotations


def embedded_dataset(split: str) -> Path:
    """The COCO folder of the embedded data, "train" or "val", drawn on first use (some 15 seconds), then kept.

    It lies in $TINYDET_CACHE, else $XDG_CACHE_HOME/tinydet, else ~/.cache/tinydet. A folder is drawn under another
    name and renamed when it is whole, so that processes may race and may be killed.

    Raises:
        ValueError: for another split.
        OSError: where the cache cannot be written, naming the way out.
    """
    if split not in EMBEDDED:
        raise ValueError(f"the embedded data has the splits {' and '.join(EMBEDDED)}, not {split!r}")
    count, seed = EMBEDDED[split]
    folder = _cache() / f"synthetic-{VERSION}" / split
    if _whole(folder, count):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{split}.", dir=folder.parent))
    except OSError as error:
        raise OSError(
            f"{folder.parent} cannot be written ({error.strerror}); name a folder for it in TINYDET_CACHE"
        ) from error
    try:
        write_dataset(work / split, count=count, width=EMBEDDED_SIZE, height=EMBEDDED_SIZE, seed=seed)
        _move_in(work / split, folder, count)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


@command("synthetic")
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tinydet.data.synthetic",
        description="Draw annotated scenes with tiny people: a COCO folder, or one large scene.",
        epilog="example: python -m tinydet.data.synthetic scene.jpg --scene --size 4096x4096 --seed 7",
    )
    parser.add_argument("output", type=Path, help="new folder for images/ and annotations.json; with --scene an image")
    parser.add_argument("--images", type=int, default=100, metavar="N", help="images in the folder (default: 100)")
    parser.add_argument("--size", default="384x384", metavar="WxH", help="pixels of each image (default: 384x384)")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other scenes (default: 0)")
    parser.add_argument(
        "--density",
        type=float,
        help=f"people on a million pixels (default: {DENSITY:g}, with --scene {SCENE_DENSITY:g})",
    )
    parser.add_argument("--scene", action="store_true", help="draw one scene and OUTPUT's NAME.annotations.json")
    options = parser.parse_args(argv)
    width, height = _size(options.size)
    if options.seed < 0:
        raise ValueError(f"--seed is a whole number from 0, not {options.seed}")
    if options.scene:
        density = SCENE_DENSITY if options.density is None else options.density
        annotations = write_scene(options.output, width, height, options.seed, density=density)
        print(f"{options.output}  {annotations}")
    else:
        density = DENSITY if options.density is None else options.density
        size = {"width": width, "height": height}
        write_dataset(options.output, count=options.images, **size, seed=options.seed, density=density)
        print(options.output)
    return 0


# --- What is seen from where -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _View:
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


def _view(rng: np.random.Generator, width: int, height: int) -> _View:
    tilt = rng.uniform(0.45, 0.95)
    perspective = rng.uniform(0.1, 0.7) * tilt
    unit = float(np.clip(rng.lognormal(np.log(16.5), 0.33), 7, 25)) / tilt**0.5
    azimuth, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.4, 1.8)
    across, away = length * np.cos(azimuth) / tilt, length * np.sin(azimuth) * np.sqrt(1 - 0.9 * tilt**2) / tilt
    away = np.copysign(max(abs(away), 0.2), away)
    sun = rng.choice([rng.uniform(0.05, 0.35), rng.uniform(0.5, 1.0)], p=[0.3, 0.7])
    warmth = rng.normal(0.01, 0.03) + 0.04 * sun * (length > 1.3)
    tint = (1 + warmth, 1.0, 1 - warmth)
    return _View(width, height, unit, perspective, tilt, (float(across), float(away)), float(sun), tint)


# --- The ground --------------------------------------------------------------------------------------------------


class _Material(NamedTuple):
    """A surface: colour, then contrast of its texture at five scales (see `_SCALES`), then of its hue."""

    colour: Colour
    texture: tuple[float, float, float, float, float]
    hue: float
    natural: bool  # has frayed borders
    pull: float  # how much people like to be there


_SCALES = (0.0, 0.22, 0.6, 2.2, 9.0)  # size of a speck in statures; 0 is one pixel
_LAND = {
    "sand": _Material((207, 183, 146), (0.050, 0.040, 0.022, 0.022, 0.035), 1.5, True, 1.0),
    "grass": _Material((98, 116, 62), (0.110, 0.130, 0.070, 0.050, 0.070), 6.0, True, 0.5),
    "scrub": _Material((132, 130, 88), (0.110, 0.150, 0.120, 0.080, 0.060), 6.0, True, 0.2),
    "path": _Material((184, 168, 142), (0.040, 0.035, 0.030, 0.030, 0.030), 2.0, True, 1.5),
    "promenade": _Material((172, 164, 154), (0.022, 0.020, 0.015, 0.025, 0.030), 2.0, False, 1.4),
    "plaza": _Material((158, 152, 144), (0.022, 0.025, 0.020, 0.035, 0.040), 2.5, False, 1.2),
    "road": _Material((98, 99, 103), (0.035, 0.025, 0.015, 0.030, 0.060), 1.5, False, 0.15),
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
_SEAS: tuple[tuple[Colour, Colour, Colour], ...] = (  # shallow, middle, deep
    ((150, 192, 178), (62, 146, 146), (22, 78, 104)),
    ((128, 168, 140), (58, 126, 104), (24, 84, 78)),
    ((150, 158, 138), (96, 116, 108), (58, 78, 82)),
    ((138, 190, 196), (56, 138, 172), (20, 70, 120)),
)


@dataclass(frozen=True)
class _Ground:
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
        """What lies there: "water" or a key of `_LAND`."""
        inland = self.from_shore(x, y)
        return "water" if inland < 0 else self.bands[int(np.searchsorted(self.borders, inland))]


def _ground(layout: np.random.Generator, rng: np.random.Generator, view: _View) -> _Ground:
    unit, shape = view.unit, (view.height, view.width)
    extent = max(shape) / 2
    angle = layout.uniform(0, 2 * np.pi)
    centre = layout.uniform(-0.5, 0.9) * extent if layout.random() < 0.6 else layout.uniform(-20, 70) * unit
    x = (np.arange(view.width, dtype=np.float32) - view.width / 2)[None]
    y = (np.arange(view.height, dtype=np.float32) - view.height / 2)[:, None] / np.float32(max(view.ground, 0.5))
    inland = np.cos(angle, dtype=np.float32) * x + np.sin(angle, dtype=np.float32) * y + np.float32(centre)
    along = -np.sin(angle, dtype=np.float32) * x + np.cos(angle, dtype=np.float32) * y
    inland *= 1 + np.float32(0.3) * _noise(rng, shape, 150 * unit).clip(-2, 2)  # bands widen and narrow
    inland += _noise(rng, shape, 90 * unit) * (12 * unit)
    inland += _noise(rng, shape, 30 * unit) * (4 * unit) + _noise(rng, shape, 8 * unit) * (0.7 * unit)
    specks = [_noise(rng, shape, max(1.0, scale * unit)) for scale in _SCALES]

    bands, borders = ["sand"], [layout.uniform(*_WIDTHS["sand"]) * unit]
    while borders[-1] < inland.max() + unit:
        bands.append(str(layout.choice(_NEXT[bands[-1]])))
        borders.append(borders[-1] + layout.uniform(*_WIDTHS[bands[-1]]) * unit)

    # Everything that depends on the distance from the shore alone is tabulated over it, at half a pixel.
    start = float(inland.min()) - 2 * unit
    at = np.arange(start, float(inland.max()) + 2 * unit, 0.5)
    band = np.searchsorted(borders, at).clip(max=len(bands) - 1)
    fray = np.exp(-((at / (1.2 * unit)) ** 2)) * 0.35
    for border, (one, other) in zip(borders, pairwise(bands), strict=False):
        if _LAND[one].natural and _LAND[other].natural:
            fray += np.exp(-(((at - border) / (1.5 * unit)) ** 2)) * 0.6
    ragged = inland + _take(fray * unit, at, inland) * (specks[2] * 0.5 + specks[3])

    shade = 1 + layout.normal(0, 0.06, len(bands))[:, None] + layout.normal(0, 0.025, (len(bands), 3))
    colours = (np.array([_LAND[name].colour for name in bands]) * shade)[band]
    wet = 1 - 0.32 * np.exp(-((at.clip(0) / (layout.uniform(0.8, 3.0) * unit)) ** 2))[:, None]
    colours = np.where(at[:, None] < 0, _sea(layout, -at / unit), colours * wet)
    colours = np.asarray(cv2.blur(np.ascontiguousarray(colours), (1, 5)), np.float64)
    textures = np.where(at[:, None] < 0, 0.0, np.array([_LAND[name].texture for name in bands])[band])

    colour = np.stack([_take(colours[:, c], at, ragged) for c in range(3)], axis=-1)
    lightness = np.ones(shape, np.float32)
    for speck, contrast in zip(specks, textures.T, strict=True):
        lightness += _take(contrast, at, ragged) * speck
    colour *= lightness[..., None]
    hue = _take(np.where(at < 0, 3.0, np.array([_LAND[name].hue for name in bands])[band]), at, ragged)
    hue *= 0.7 * specks[3] + 0.7 * specks[4]
    colour[..., 0] += hue
    colour[..., 2] -= 0.4 * hue

    _mark_roads(colour, ragged, along, bands, borders, view)
    _tread_paths(layout, colour, ragged, bands, borders, view)
    _fill_sea(rng, colour, ragged, specks, view)
    _litter(rng, colour, view)
    return _Ground(colour, ragged, np.array(borders[:-1]), tuple(bands), float(angle + np.pi / 2))


def _noise(rng: np.random.Generator, shape: tuple[int, int], cell: float, stretch: float = 1.0) -> Image:
    """Smooth noise, mean 0 and deviation about 1, with bumps of `cell` pixels, `stretch` times wider than high."""
    if cell <= 1:
        return rng.standard_normal(shape, np.float32)
    height, width = shape
    spacing = max(1.0, cell / 2.5)  # of a coarse grid: blurred there, for a round bump, and enlarged
    sigma = cell / 2.5 / spacing
    size = (max(4, round(height / spacing)), max(4, round(width / spacing / stretch)))
    coarse = cv2.GaussianBlur(rng.standard_normal(size, np.float32), (0, 0), sigma)
    coarse *= 2 * np.pi**0.5 * sigma  # a deviation of 1 again
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)


def _take(values: NDArray[Any], at: NDArray[np.float64], where: Image) -> Image:
    """`values`, tabulated at the evenly spaced `at`, looked up."""
    index = ((where - np.float32(at[0])) * np.float32(1 / (at[1] - at[0]))).astype(np.int32)
    return values.astype(np.float32).take(index, mode="clip")


def _sea(rng: np.random.Generator, depth: NDArray[np.float64]) -> NDArray[np.float64]:
    """Colour of the water by its depth, both in statures from the shore."""
    colours = np.array(_SEAS[rng.integers(len(_SEAS))]) * (1 + rng.normal(0, 0.05, 3))
    reach = np.array([0.0, 1.0, 6.0, 40.0]) * rng.uniform(0.6, 1.8)
    known = np.stack([colours[0] * 0.6 + np.array([176, 152, 118]) * 0.4, colours[0], colours[1], colours[2]])
    return np.stack([np.interp(depth, reach, known[:, c]) for c in range(3)], axis=-1)


def _mark_roads(
    colour: Image, inland: Image, along: Image, bands: list[str], borders: list[float], view: _View
) -> None:
    """Kerbs, lane markings and the joints between slabs."""
    unit = view.unit
    for name, near, far in zip(bands, [0.0, *borders], borders, strict=False):
        if _LAND[name].natural:
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
    rng: np.random.Generator, colour: Image, inland: Image, bands: list[str], borders: list[float], view: _View
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
    takes = np.array([0.5 if name == "sand" else float(_LAND[name].natural) for name in bands])
    soft = _take(takes[np.searchsorted(borders, at).clip(max=len(bands) - 1)], at, inland) * (inland > 0)
    amount = strips.astype(np.float32) * soft * np.float32(1 / 255)
    earth = np.array(_LAND["path"].colour, np.float32) * rng.uniform(0.85, 1.0)
    rows, columns = np.nonzero(amount > 0.01)
    part = amount[rows, columns][:, None]
    grain = rng.normal(1, 0.04, (len(rows), 1)).astype(np.float32)
    colour[rows, columns] = colour[rows, columns] * (1 - part) + earth * grain * part


def _fill_sea(rng: np.random.Generator, colour: Image, inland: Image, specks: list[Image], view: _View) -> None:
    """Waves, glints, reefs, whitecaps, and the foam at the shore, in place."""
    unit = view.unit
    wind, chop = rng.uniform(0.3, 1.0), rng.uniform(2.0, 4.5)  # and how much wider than high a wave is
    breakers = int(rng.integers(0, 4))
    lines = np.concatenate([[0.15], np.cumsum(rng.uniform(1.5, 4.5, breakers)) + 0.5]).tolist()
    strengths = np.concatenate([[0.9], rng.uniform(0.35, 1.0, breakers)]).tolist()
    reef, glitter, swell = rng.uniform(0, 0.35) * (rng.random() < 0.5), rng.uniform(0, 1), rng.uniform(2.5, 6)

    wet = inland < 4 * unit
    rows, columns = np.flatnonzero(wet.any(axis=1)), np.flatnonzero(wet.any(axis=0))
    if not len(rows):
        return
    part = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    inland, specks = inland[part], [speck[part] for speck in specks]
    shape = (inland.shape[0], inland.shape[1])
    sea = np.clip(inland * np.float32(-3 / unit) + 1, 0, 1)  # 0 on land, 1 in the water

    ripple = _noise(rng, shape, max(1.0, 0.10 * unit), chop)
    wave = _noise(rng, shape, 0.34 * unit, chop)
    billow = _noise(rng, shape, 1.1 * unit, chop)
    ripple *= 0.045 + 0.05 * wind
    ripple += wave * np.float32(0.05 * wind) + billow * np.float32(0.04)
    crest = np.sin(inland * np.float32(2 * np.pi / (swell * unit)) + 2.0 * specks[3] + 2.5 * specks[4])
    ripple += crest * np.float32(0.035 * wind)
    if reef:
        ripple -= np.clip(specks[4] + 0.7 * specks[3] + 0.3 * specks[2] - 0.7, 0, 1) * np.float32(reef)
    light = 1 + ripple * sea
    sparkle = np.clip(ripple * np.float32(6.0) + 0.5 * specks[0] + 0.4 * billow - np.float32(2.6 - 1.0 * glitter), 0, 1)
    sparkle *= np.clip(0.2 + specks[4], 0, 1) * np.float32(1.2 * glitter * view.sun)

    bent = inland * np.float32(1 / unit) + 0.55 * specks[3] + 0.22 * specks[2]
    foam: Image = np.zeros(shape, np.float32)
    for line, strength in zip(lines, strengths, strict=True):
        offset = (bent + line) / (0.16 + 0.05 * line)
        ridge = np.exp(-np.square(np.where(offset > 0, offset * 0.45, offset)))
        foam = np.maximum(foam, ridge * np.clip(strength + 0.45 * specks[4] + 0.25 * specks[3], 0, 1))
    lace = np.clip(0.55 + 0.5 * specks[1] + 0.35 * specks[2], 0, 1)
    foam = np.clip(foam * (0.35 + 0.9 * lace) - 0.08, 0, 0.95)
    caps = np.clip(wave + 0.5 * billow + 0.7 * specks[4] - np.float32(3.6 - 1.1 * wind), 0, 1) * (lace * lace)
    foam = np.maximum(foam, caps * sea)
    foam = np.maximum(foam, sparkle * sea)
    light *= 1 - foam
    for band, white in enumerate((240, 244, 243)):
        colour[part][..., band] *= light
        colour[part][..., band] += foam * np.float32(white)


def _litter(rng: np.random.Generator, colour: Image, view: _View) -> None:
    """Leaves, stones, footprints, weed: specks that are nothing."""
    height, width = colour.shape[:2]
    amount = rng.poisson(width * height * rng.uniform(1e-4, 1.2e-3))
    at = rng.integers(0, (width, height), (amount, 2))
    sizes = rng.exponential(0.07 * view.unit, amount).clip(0, 0.18 * view.unit)
    factors = np.where(rng.random(amount) < 0.75, rng.uniform(0.55, 0.95, amount), rng.uniform(1.05, 1.35, amount))
    for (x, y), size, factor in zip(at.tolist(), sizes.tolist(), factors.tolist(), strict=True):
        reach = max(1, round(size))
        colour[y : y + max(1, round(size * 0.7)), x : x + reach] *= factor


# --- Shapes ------------------------------------------------------------------------------------------------------


class _Sprite(NamedTuple):
    """A drawn thing: where it is, how much of each pixel it covers, and its colour times that."""

    left: int
    top: int
    cover: Image  # (h, w), 0 to 1
    colour: Image  # (h, w, 3), 0 to 255
    base: tuple[float, float]  # where it stands
    outline: tuple[float, float, float, float]  # xyxy, exact to a part of a pixel
    flat: bool = False  # lies on the ground: no shadow, and nothing is behind it
    person: bool = False


class _Canvas:
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
            self.polygon(_lift(floor, low + part * (high - low)), _dim(colour, 0.85 + 0.15 * part))

    def cut_below(self, up: float) -> None:
        """Remove what is drawn lower than `up`."""
        row = max(0, int(self._corners([(0, up)])[0, 1]))
        self.mask[row:] = 0
        self.pixels[row:] = 0

    def sprite(self, view: _View, *, flat: bool = False, person: bool = False, opacity: float = 1.0) -> _Sprite:
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
        return _Sprite(self.left, self.top, cover, colour, self.base, outline, flat, person)


def _bytes(colour: Colour) -> tuple[int, int, int]:
    red, green, blue = (min(255, max(1, round(value))) for value in colour)
    return red, green, blue


def _window(sprite: _Sprite, height: int, width: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The part of a picture that a sprite covers, and the same part of the sprite; both empty when it is outside."""
    h, w = sprite.cover.shape
    top, left = max(0, sprite.top), max(0, sprite.left)
    bottom, right = max(top, min(height, sprite.top + h)), max(left, min(width, sprite.left + w))
    own = (slice(top - sprite.top, bottom - sprite.top), slice(left - sprite.left, right - sprite.left))
    return (slice(top, bottom), slice(left, right)), own


def _paste(image: Image, sprite: _Sprite) -> None:
    there, own = _window(sprite, image.shape[0], image.shape[1])
    image[there] *= 1 - sprite.cover[own][..., None]
    image[there] += sprite.colour[own]


def _visible(sprites: list[_Sprite], view: _View) -> list[Person]:
    """The people, by what the sprites after them in the list and the picture's border leave of them."""
    covered = np.zeros((view.height, view.width), np.float32)
    people = []
    for sprite in reversed(sprites):
        there, own = _window(sprite, view.height, view.width)
        seen = sprite.cover[own] * (1 - covered[there])
        covered[there] += seen
        if not sprite.person or not seen.size:
            continue
        part = float(seen.sum() / sprite.cover.sum())
        x1, y1, x2, y2 = sprite.outline
        if part < 0.98:  # what is hidden may be an edge of the outline
            rows, columns = (np.flatnonzero(seen.max(axis=axis) > 0.1) for axis in (1, 0))
            if part < FULLY_HIDDEN or not len(rows) or not len(columns):
                continue
            x, y = there[1].start, there[0].start
            x1, x2 = max(x1, float(x + columns[0])), min(x2, float(x + columns[-1] + 1))
            y1, y2 = max(y1, float(y + rows[0])), min(y2, float(y + rows[-1] + 1))
        x1, y1, x2, y2 = max(x1, 0.0), max(y1, 0.0), min(x2, float(view.width)), min(y2, float(view.height))
        if min(x2 - x1, y2 - y1) >= 0.5:
            people.append(Person(x1, y1, x2 - x1, y2 - y1, part < MOSTLY_HIDDEN))
    return people


def _shade(image: Image, sprites: list[_Sprite], view: _View) -> None:
    """Darken the ground under the sprites' shadows: what stands on it keeps the sun off, and some of the sky."""
    shade = np.zeros(image.shape[:2], np.float32)
    for sprite in sprites:
        if not sprite.flat:
            for way, strength in ((view.shadow, 0.8 * view.sun), ((0.05, 0.16), 0.4)):  # the sun's, and at the foot
                shadow = _cast(sprite, way, strength)
                there, own = _window(shadow, view.height, view.width)
                np.maximum(shade[there], shadow.cover[own], out=shade[there])
    for band, dark in enumerate((0.74, 0.68, 0.58)):  # the sky's light, which is left, is blue
        image[..., band] *= 1 - shade * np.float32(dark)


def _cast(sprite: _Sprite, way: tuple[float, float], strength: float) -> _Sprite:
    """The shadow of an upright sprite: each pixel falls `way` times its height to the side and down."""
    h, w = sprite.cover.shape
    y = sprite.base[1] - sprite.top
    corners_x = [column + (y - row) * way[0] for column in (0, w) for row in (0, h)]
    corners_y = [y + (y - row) * way[1] for row in (0, h)]
    left, top = int(np.floor(min(corners_x))) - 1, int(np.floor(min(corners_y))) - 1
    size = (int(np.ceil(max(corners_x))) + 2 - left, int(np.ceil(max(corners_y))) + 2 - top)
    onto = np.array([[1, -way[0], y * way[0] - left], [0, -way[1], y + y * way[1] - top]], np.float64)
    cover = cv2.warpAffine(sprite.cover * np.float32(strength), onto, size, flags=cv2.INTER_LINEAR)
    cover = cv2.blur(cover, (3, 3) if max(size) < 60 else (5, 5))
    place = (left + sprite.left, top + sprite.top)
    return _Sprite(*place, np.asarray(cover, np.float32), sprite.colour, sprite.base, sprite.outline, flat=True)


# --- People ------------------------------------------------------------------------------------------------------

_SKIN = ((236, 196, 168), (222, 176, 144), (198, 150, 116), (160, 112, 82), (112, 76, 56), (78, 54, 42))
_HAIR = ((30, 26, 24), (46, 34, 26), (70, 50, 34), (104, 76, 48), (170, 136, 88), (176, 172, 168))
_CLOTH = (
    (238, 238, 236), (214, 214, 212), (128, 130, 134), (54, 56, 62), (30, 30, 34), (36, 52, 92), (58, 96, 156),
    (110, 150, 190), (176, 44, 44), (204, 92, 88), (216, 128, 54), (226, 196, 86), (62, 110, 74), (126, 140, 98),
    (196, 132, 156), (122, 74, 118), (188, 170, 140), (120, 92, 68),
)  # fmt: skip
_TROUSERS = ((34, 36, 44), (46, 56, 84), (74, 92, 126), (92, 90, 88), (164, 146, 116), (38, 38, 40), (214, 210, 202))


class _Spot(NamedTuple):
    """Where something is drawn, by which chance; `tall` is the stature of a person there, `turn` a direction."""

    rng: np.random.Generator
    view: _View
    x: float
    y: float
    tall: float
    turn: float

    def canvas(self, reach: float, above: float, below: float) -> _Canvas:
        return _Canvas(self.x, self.y, self.tall, reach, above, below)

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


def _people(rng: np.random.Generator, view: _View, ground: _Ground, density: float) -> list[_Sprite]:
    """Alone, in pairs and in groups, where people like to be: at the water's edge, on paths, not on the road."""
    wanted = int(rng.poisson(density * view.width * view.height / 1e6))
    sprites: list[_Sprite] = []
    while wanted > 0:
        places = rng.uniform(0, (view.width, view.height), (6, 2))
        pulls = np.array([_pull(ground, view, x, y) for x, y in places])
        middle = places[rng.choice(len(places), p=pulls / pulls.sum())]
        size = int(rng.choice(np.array((1, 2, rng.integers(3, 7), rng.integers(7, 16))), p=(0.55, 0.23, 0.17, 0.05)))
        spread = view.stature(middle[1]) * 0.45 * size**0.5 * rng.uniform(0.7, 1.6) * (size > 1)
        for x, y in (middle + rng.normal(0, spread, (size, 2)) * (1, max(view.ground, 0.5))).tolist()[:wanted]:
            wanted -= 1
            if -2 < x < view.width + 2 and -2 < y < view.height + view.stature(y) * view.tilt:
                sprites += _person(rng, view, ground, x, y)
    return sprites


def _pull(ground: _Ground, view: _View, x: float, y: float) -> float:
    inland = ground.from_shore(x, y) / view.unit
    if inland < 0:
        return 0.06 + 0.8 * float(np.exp(inland / 6))
    return _LAND[ground.material(x, y)].pull + 1.2 * float(np.exp(-inland / 3))


def _person(rng: np.random.Generator, view: _View, ground: _Ground, x: float, y: float) -> list[_Sprite]:
    """A person, and what lies under: a towel, a splash, a board."""
    material, depth = ground.material(x, y), -ground.from_shore(x, y) / view.unit
    child = rng.random() < 0.15
    tall = view.stature(y) * (rng.uniform(0.55, 0.8) if child else rng.normal(1, 0.06))
    at = _Spot(rng, view, x, y, tall, float(rng.uniform(0, 2 * np.pi)))
    if material == "water":
        pose = str(rng.choice(("wade", "swim") if depth < 2.2 else ("swim", "swim", "swim", "swim", "board")))
    elif material == "sand":
        pose = str(rng.choice(("stand", "walk", "reach", "sit", "lie"), p=(0.30, 0.28, 0.10, 0.19, 0.13)))
    else:
        pose = str(rng.choice(("stand", "walk", "reach", "sit"), p=(0.36, 0.48, 0.06, 0.10)))
    bare = material == "water" or (material == "sand" and at.chance(0.7))
    under: list[_Sprite] = []
    if pose == "lie" or (pose == "sit" and material == "sand" and at.chance(0.4)):
        under = [_slab(at, 1.15, 0.5)]
    elif pose == "board":
        under, pose = _board(at), str(rng.choice(("stand", "sit")))
    elif material == "water":
        under = [_froth(at, at.between(0.25, 0.6), at.between(0, 0.7 if pose == "swim" else 0.35))]

    look = int(rng.integers(2**62))  # the same person again, should another size be needed
    for _ in range(4):
        figure = _figure(at._replace(rng=np.random.default_rng(look)), pose, bare, depth)
        high = figure.outline[3] - figure.outline[1]
        if HEIGHTS[0] <= high <= HEIGHTS[1]:
            break
        fit = float(np.clip(high, HEIGHTS[0] + 0.2, HEIGHTS[1] - 0.2)) / max(high, 0.1)
        at = at._replace(tall=at.tall * fit)
    return [*under, figure]


def _figure(at: _Spot, pose: str, bare: bool, depth: float) -> _Sprite:
    """Legs, trunk, arms and head, from the feet up. Lengths in statures, `f` of what stands upright."""
    rng, f, ground = at.rng, at.view.tilt, at.view.ground
    canvas = at.canvas(0.85, 1.25, 0.65)
    skin, hair, shirt, trousers = at.pick(*_SKIN), at.pick(*_HAIR), at.pick(*_CLOTH), at.pick(*_TROUSERS)
    trunk = skin if bare and at.chance(0.6) else shirt
    short = bare or at.chance(0.3)
    legs, seat = skin if short else trousers, at.pick(*_CLOTH) if bare else trousers
    sleeves = skin if bare or at.chance(0.45) else shirt
    sideways, build = at.chance(0.5), rng.normal(1, 0.12)
    shoulder, hip = (0.075 if sideways else 0.125) * build, (0.065 if sideways else 0.09) * build
    head, lean = at.between(0.081, 0.102), rng.normal(0, 0.03)

    if pose == "lie":
        for side in (-1, 1):
            foot, hand = at.across(side * at.between(0.03, 0.10)), at.along(at.between(-0.1, 0.5))
            canvas.stroke([at.along(0.02) + at.across(side * 0.04), foot - at.along(0.46)], 0.09, legs)
            canvas.stroke([at.along(0.3) + at.across(side * 0.1), hand + at.across(side * 0.18)], 0.06, sleeves)
        canvas.stroke([at.along(0), at.along(0.30)], 0.19, trunk)
        canvas.stroke([at.along(-0.03), at.along(0.04)], 0.18, seat)
        canvas.disc(at.along(0.43), head, head, hair if at.chance(0.6) else skin)
        return canvas.sprite(at.view, person=True)

    if pose == "swim":
        way = at.side()
        if at.chance(0.6):  # stretched out: the back shows
            canvas.disc((-way * 0.2, 0.02), 0.22, 0.07, trunk, rng.normal(0, 15))
        if at.chance(0.5):
            canvas.stroke([(0, 0.06), (way * at.between(0.15, 0.4), at.between(0, 0.25))], 0.065, skin)
        canvas.disc((0, 0.06), 1.4 * head, 0.9 * head, skin)
        canvas.disc((0, 0.06 + 1.1 * head), head, head, hair)
        if at.chance(0.5):
            canvas.disc((way * 0.35 * head, 0.06 + 0.8 * head), 0.6 * head, 0.6 * head, skin)
        return canvas.sprite(at.view, person=True)

    sunk = 0.0
    if pose == "wade":
        sunk = float(np.clip(0.1 + 0.25 * depth + rng.normal(0, 0.06), 0.06, 0.62)) * f
        pose = str(rng.choice(("stand", "walk", "reach")))
    if pose == "sit":
        bottom, top, knee = 0.06 * f, 0.42 * f, at.between(-0.38, 0.38)
        foot = np.array((knee, -at.between(0.02, 0.2) * ground))
        canvas.stroke([(0, bottom), (0.55 * knee, bottom + 0.16 * f), foot], 0.10, legs)
        canvas.stroke([(0, bottom), (0.25 * knee, bottom + 0.04 * f)], 0.14, seat)
        hip *= 1.2
    else:
        bottom, top = 0.47 * f - sunk, 0.80 * f - sunk
        stride = at.between(0.02, 0.07) if pose != "walk" else at.between(0.08, 0.20) if sideways else 0.05
        for side in (-1, 1):
            foot = np.array((side * stride, (at.between(0, 0.06) if pose == "walk" else 0.0) - sunk))
            canvas.stroke([(side * 0.5 * hip, bottom), foot], 0.085, legs)
            canvas.disc(foot, 0.055, 0.035, skin if bare else (42, 36, 34))
            if short:
                thigh = (side * (0.35 * hip + 0.4 * stride), 0.6 * bottom - 0.4 * sunk)
                canvas.stroke([(side * 0.5 * hip, bottom), thigh], 0.10, seat)
        if not short and at.chance(0.2):  # a skirt
            hem = bottom - 0.28 * f
            canvas.polygon([(-hip, bottom), (hip, bottom), (1.5 * hip, hem), (-1.5 * hip, hem)], trousers)

    for side in (-1, 1):
        if pose == "reach" and (side > 0 or at.chance(0.4)):
            elbow = (side * (shoulder + 0.08), top - 0.05 * f)
            hand = np.array((side * at.between(0.15, 0.42), top + at.between(-0.1, 0.3) * f))
        else:
            swing = at.between(0, 0.10 if pose == "walk" else 0.04)
            hand = np.array((side * (shoulder + swing) + lean, max(top - 0.34 * f, -0.02)))
            elbow = (side * (shoulder + 0.02 + 0.5 * swing) + lean, 0.5 * (top + hand[1]))
        canvas.stroke([(side * shoulder * 0.9 + lean, top), elbow, hand], 0.062, sleeves)
    canvas.polygon([(-hip, bottom), (hip, bottom), (shoulder + lean, top), (-shoulder + lean, top)], trunk)
    canvas.disc((lean, top), shoulder, 0.03 + 0.07 * (1 - f), trunk)  # seen from above, shoulders have a depth
    canvas.stroke([(-0.6 * hip, bottom + 0.01), (0.6 * hip, bottom + 0.01)], 0.08 * f, seat)
    extra = rng.random()
    if extra < 0.10:  # a backpack
        canvas.disc((lean + 0.09 * sideways, 0.5 * (top + bottom) + 0.03), 0.09, 0.15 * f, at.pick(*_CLOTH))
    elif extra < 0.18 and pose != "sit":  # a bag
        canvas.disc((shoulder + 0.05, max(bottom - 0.06 * f, 0.05)), 0.06, 0.08, at.pick(*_CLOTH))
    crown = top + 0.10 * f + 0.02 * (1 - f) + 0.2 * head
    away = at.chance(0.4)  # hair only, no face
    canvas.disc((1.3 * lean, crown), head, head * 1.1, skin)
    canvas.disc((1.3 * lean, crown + (0 if away else 0.4 * head)), head * 1.02, head * (1.05 if away else 0.75), hair)
    if at.chance(0.16):
        hat = at.pick(*_CLOTH)
        canvas.disc((1.3 * lean, crown + 0.35 * head), 1.7 * head, 0.65 * head, hat)
        canvas.disc((1.3 * lean, crown + 0.7 * head), head, 0.6 * head, hat)
    if sunk:
        canvas.cut_below(0.0)
    return canvas.sprite(at.view, person=True)


# --- Things that are no people -----------------------------------------------------------------------------------


def _things(rng: np.random.Generator, view: _View, ground: _Ground) -> list[_Sprite]:
    """What stands and lies about, each where it belongs; most of it is of a person's size, or of a person's shape."""
    amount = rng.poisson(view.width * view.height / 1e6 * rng.uniform(60, 190))
    sprites: list[_Sprite] = []
    for x, y in rng.uniform((0, 0), (view.width, view.height * 1.04), (amount, 2)).tolist():
        material = ground.material(x, y)
        if material == "water" and rng.random() > 0.15 + np.exp(ground.from_shore(x, y) / (14 * view.unit)):
            continue  # far out there is less
        draw = _BELONGS[material][int(rng.integers(len(_BELONGS[material])))]
        turn = ground.heading if material in ("road", "promenade") else float(rng.uniform(0, 2 * np.pi))
        stature = view.stature(y)
        for _ in range(1 if draw is _car or rng.random() < 0.7 else int(rng.integers(2, 5))):
            sprites += draw(_Spot(rng, view, x, y, stature * float(rng.lognormal(0, 0.12)), turn))
            x, y = x + rng.normal(0, 1.2 * stature), y + rng.normal(0, 0.8 * stature)
    return sprites


def _dim(colour: Colour, factor: float) -> Colour:
    return colour[0] * factor, colour[1] * factor, colour[2] * factor


def _lift(points: NDArray[np.float64], up: float) -> NDArray[np.float64]:
    return np.asarray(points + np.array((0.0, up)))


def _slab(at: _Spot, length: float, width: float) -> _Sprite:
    """A rectangle of cloth on the ground."""
    canvas = at.canvas(length, length, length)
    canvas.polygon(at.floor(length, width), at.pick(*_CLOTH))
    return canvas.sprite(at.view, flat=True)


def _solid(sprite: _Sprite, floor: NDArray[np.float64], unit: float) -> _Sprite:
    """What stands on more than a point stands where its floor ends: whoever is on the floor is behind it."""
    x, y = sprite.base
    return sprite._replace(base=(x, y - float(floor[:, 1].min()) * unit))


def _froth(at: _Spot, reach: float, strength: float) -> _Sprite:
    """Disturbed water around something."""
    reach *= at.tall
    half = int(np.ceil(1.3 * reach)) + 1
    left, top = round(at.x) - half, round(at.y) - half
    axis = np.arange(2 * half + 1, dtype=np.float32)
    far = ((axis[None] + left - at.x) / (1.3 * reach)) ** 2 + ((axis[:, None] + top - at.y) / (0.7 * reach)) ** 2
    bubbles = np.clip(0.5 + 0.8 * _noise(at.rng, (len(axis), len(axis)), max(1.6, reach / 5)), 0, 1)
    cover = (np.clip(1 - far, 0, 1) * bubbles * strength).astype(np.float32)
    nowhere = (at.x, at.y, at.x, at.y)
    return _Sprite(left, top, cover, cover[..., None] * np.float32(240), (at.x, at.y), nowhere, flat=True)


def _foliage(at: _Spot, canvas: _Canvas, up: float, across: float, high: float, colour: Colour) -> None:
    """Tufts in a round shape, lighter on the side of the sun and on top."""
    tufts = int(np.clip(5 * across * at.tall, 14, 300))
    angles, radii = at.rng.uniform(0, 2 * np.pi, tufts), np.sqrt(at.rng.random(tufts))
    places = np.stack([np.cos(angles) * radii, np.sin(angles) * radii], axis=1)
    lights = places @ np.array((0.18 * at.view.lit, 0.22))
    for n in np.argsort(lights + at.rng.normal(0, 0.07, tufts)).tolist():
        size, light = at.between(0.8, 1.7) * tufts**-0.5, 0.78 + lights[n] + at.rng.normal(0, 0.1)
        place = (places[n, 0] * across, up + places[n, 1] * high)
        canvas.disc(place, size * across, size * high, _dim(colour, light))


def _tree(at: _Spot) -> list[_Sprite]:
    crown, trunk = at.between(0.9, 2.2), at.between(1.2, 2.2) * at.view.tilt
    canvas = at.canvas(1.5 * crown, trunk + 2.2 * crown, 0.2)
    canvas.stroke([(0, 0), (0.1 * crown, trunk)], 0.2, at.pick((88, 70, 52)))
    leaves = at.pick((70, 92, 44), (86, 104, 52), (58, 84, 50), (112, 108, 56))
    _foliage(at, canvas, trunk + 0.6 * crown, crown, 0.85 * crown, leaves)
    return [canvas.sprite(at.view)]


def _bush(at: _Spot) -> list[_Sprite]:
    size = at.between(0.25, 0.9)
    canvas = at.canvas(1.5 * size, 2.2 * size, 0.6 * size)
    leaves = at.pick((72, 92, 46), (96, 108, 60), (122, 118, 74))
    _foliage(at, canvas, 0.6 * size, size, size * at.between(0.6, 0.9), leaves)
    return [canvas.sprite(at.view)]


def _rock(at: _Spot) -> list[_Sprite]:
    size, grey = at.between(0.15, 0.6), at.between(55, 150)
    canvas = at.canvas(1.6 * size, 2 * size, 0.8 * size)
    angles = np.sort(at.rng.uniform(0, 2 * np.pi, 9))
    rim = np.stack([np.cos(angles), 0.6 * np.sin(angles)], axis=1) * at.rng.uniform(0.75, 1.15, (9, 1)) + (0, 0.4)
    canvas.polygon(rim * size, at.pick((grey * 0.75, grey * 0.72, grey * 0.68)))
    canvas.polygon((rim * 0.7 + (at.view.lit * 0.15, 0.35)) * size, at.pick((grey * 1.1, grey * 1.06, grey)))
    return [canvas.sprite(at.view)]


def _pole(at: _Spot) -> list[_Sprite]:
    high = at.between(0.7, 3.0) * at.view.tilt
    canvas = at.canvas(0.6, high + 0.3, 0.1)
    paint = at.pick((70, 72, 74), (120, 120, 118), (206, 204, 200), (96, 76, 56))
    canvas.stroke([(0, 0), (0.02, high)], at.between(0.05, 0.11), paint)
    if at.chance(0.5):
        canvas.disc((0.04, high), at.between(0.06, 0.14), 0.08, at.pick(*_CLOTH))
    return [canvas.sprite(at.view)]


def _sign(at: _Spot) -> list[_Sprite]:
    """A panel on a post: a trunk on legs, from afar."""
    high, wide = at.between(0.75, 1.15) * at.view.tilt, at.between(0.1, 0.26)
    low = high * at.between(0.45, 0.75)
    canvas = at.canvas(0.5, high + 0.3, 0.1)
    canvas.stroke([(0, 0), (0, high)], 0.07, at.pick((110, 110, 108)))
    canvas.polygon([(-wide, low), (wide, low), (wide, high), (-wide, high)], at.pick(*_CLOTH))
    if at.chance(0.4):
        canvas.polygon([(-wide, low), (wide, low), (wide, low + 0.1), (-wide, low + 0.1)], at.pick(*_CLOTH))
    return [canvas.sprite(at.view)]


def _bollard(at: _Spot) -> list[_Sprite]:
    """A post, a bin, a parking meter: upright, in two colours."""
    wide, high = at.between(0.07, 0.2), at.between(0.35, 0.8) * at.view.tilt
    canvas = at.canvas(0.4, high + 0.3, 0.2)
    body = at.pick((58, 62, 60), (96, 98, 96), (64, 84, 66), (150, 146, 138), (48, 60, 92))
    canvas.polygon([(-wide, 0), (wide, 0), (wide, high), (-wide, high)], body)
    canvas.disc((0, 0), wide, wide * 0.4, body)
    canvas.disc((0, high), wide * 1.1, wide * 0.6, at.pick(*_CLOTH) if at.chance(0.5) else at.pick(body))
    return [canvas.sprite(at.view)]


def _cone(at: _Spot) -> list[_Sprite]:
    high = at.between(0.3, 0.5)
    canvas = at.canvas(0.3, high, 0.2)
    canvas.disc((0, 0), 0.18, 0.085, (180, 84, 40))
    canvas.polygon([(-0.14, 0), (0.14, 0), (0.03, high), (-0.03, high)], at.pick((222, 100, 44)))
    canvas.stroke([(-0.06, 0.5 * high), (0.06, 0.5 * high)], 0.07, (235, 232, 228))
    return [canvas.sprite(at.view)]


def _umbrella(at: _Spot) -> list[_Sprite]:
    """A parasol, sometimes with the lounger that it is for."""
    wide, high = at.between(0.45, 0.8), at.between(1.0, 1.3) * at.view.tilt
    canvas = at.canvas(1.2 * wide, high + wide, 0.2)
    canvas.stroke([(0, 0), (0, high)], 0.06, (208, 204, 196))
    colours = (at.pick(*_CLOTH), at.pick(*_CLOTH) if at.chance(0.5) else (236.0, 234.0, 230.0))
    angles = np.linspace(0, 2 * np.pi, 17)
    rim = np.stack([np.cos(angles), np.sin(angles) * max(1 - at.view.tilt**2, 0.15) ** 0.5], axis=1) * wide
    rim = _lift(rim, high - 0.06)
    for n in range(0, 16, 2):
        light = 1 - 0.12 * np.sin(angles[n]) * np.sign(at.view.shadow[1])
        canvas.polygon([(0, high + 0.12 * at.view.tilt), *rim[n : n + 3]], _dim(colours[n // 2 % 2], light))
    lounger = [_slab(at._replace(x=at.x + 0.4 * wide * at.tall), 1.1, 0.42)] if at.chance(0.5) else []
    return [*lounger, canvas.sprite(at.view)]


def _towel(at: _Spot) -> list[_Sprite]:
    return [_slab(at, at.between(0.8, 1.15), at.between(0.35, 0.6)), *(_luggage(at) if at.chance(0.4) else [])]


def _luggage(at: _Spot) -> list[_Sprite]:
    wide, high, colour = at.between(0.08, 0.2), at.between(0.15, 0.45), at.pick(*_CLOTH)
    canvas = at.canvas(0.4, high + 0.2, 0.2)
    canvas.polygon([(-wide, 0), (wide, 0), (0.9 * wide, high), (-0.9 * wide, high)], colour)
    canvas.disc((0, high), 0.9 * wide, 0.06, at.pick(colour))
    return [canvas.sprite(at.view)]


def _bench(at: _Spot) -> list[_Sprite]:
    wood = at.pick((128, 94, 62), (150, 146, 140), (96, 78, 62))
    canvas = at.canvas(0.9, 0.9, 0.9)
    seat = at.floor(at.between(0.9, 1.3), 0.3)
    canvas.polygon(seat, _dim(wood, 0.5))
    canvas.polygon(_lift(seat, 0.26 * at.view.tilt), wood)
    return [canvas.sprite(at.view)]


def _dog(at: _Spot) -> list[_Sprite]:
    at = at._replace(tall=at.tall * at.between(0.25, 0.5))
    coat, way = at.pick((60, 46, 36), (150, 116, 78), (220, 214, 204), (36, 34, 34)), at.side()
    canvas = at.canvas(1.2, 1.2, 0.3)
    for right in (-0.35, -0.25, 0.25, 0.38):
        canvas.stroke([(right, 0.3), (right, 0)], 0.12, coat)
    canvas.disc((0, 0.42), 0.5, 0.2, coat)
    canvas.disc((way * 0.55, 0.62), 0.19, 0.16, coat)
    return [canvas.sprite(at.view)]


def _bird(at: _Spot) -> list[_Sprite]:
    """A gull, on the ground or in flight."""
    at = at._replace(tall=at.tall * at.between(0.14, 0.34))
    colour = at.pick((236, 236, 234), (206, 208, 210), (64, 62, 62))
    canvas = at.canvas(1.6, 1.4, 0.8)
    canvas.disc((0, 0.3), 0.5, 0.24, colour, at.between(-30, 30))
    if at.chance(0.6):
        tip = 0.3 + at.between(-0.2, 0.7)
        canvas.stroke([(-1.3, tip), (-0.5, 0.5), (0, 0.3), (0.5, 0.5), (1.3, tip)], 0.22, colour)
    else:
        canvas.disc((0.5, 0.55), 0.16, 0.16, colour)
    return [canvas.sprite(at.view)]


def _buoy(at: _Spot) -> list[_Sprite]:
    """A float: a head that nobody has."""
    at = at._replace(tall=at.tall * at.between(0.10, 0.24))
    canvas = at.canvas(1.5, 4, 1)
    colour = at.pick((216, 92, 40), (226, 188, 60), (190, 48, 44), (234, 232, 228), (52, 48, 48), (150, 110, 80))
    canvas.disc((0, 0.3), 1, 0.9, colour)
    canvas.disc((0.3 * at.view.lit, 0.6), 0.4, 0.35, _dim(colour, 1.3))
    if at.chance(0.3):
        canvas.stroke([(0, 1), (0, 3)], 0.4, at.pick(*_CLOTH))
    canvas.cut_below(-0.2)
    return [_froth(at, 1.8, at.between(0, 0.5)), canvas.sprite(at.view)]


def _board(at: _Spot) -> list[_Sprite]:
    """A surfboard, an airbed, a kayak."""
    length, wide, colour = at.between(0.5, 0.8), at.between(0.13, 0.22), at.pick(*_CLOTH)
    canvas = at.canvas(1.2, 1.2, 1.2)
    canvas.disc((0, 0), length, wide, colour, np.degrees(at.turn))
    canvas.disc((0, 0), length * 0.6, wide * 0.45, at.pick(colour), np.degrees(at.turn))
    return [canvas.sprite(at.view, flat=True)]


def _boat(at: _Spot) -> list[_Sprite]:
    length = at.between(1.5, 4.5)
    bow, beam, lift = at.along(length / 2), at.across(length * at.between(0.13, 0.18)), 0.25 * at.view.tilt
    canvas = at.canvas(length, 1.6 * length, length)
    hull = at.pick((232, 232, 230), (208, 206, 200), (60, 74, 108), (150, 52, 46), (110, 84, 60))
    half = np.array(((1, 0), (0.55, 0.9), (-0.3, 1), (-1, 0.8)))  # stations from the bow: along, across
    plan = np.concatenate([half, half[:0:-1] * (1, -1)]) @ np.stack([bow, beam])
    canvas.polygon(plan, _dim(hull, 0.55))
    canvas.polygon(_lift(plan, lift), hull)
    inside = at.pick((176, 160, 134), (96, 92, 88), (214, 210, 202))
    canvas.polygon(_lift(0.72 * plan, lift), inside)
    if at.chance(0.5):  # a cabin
        cabin = _lift(plan * (0.35, 0.4) - 0.1 * bow, lift)
        canvas.polygon(cabin, (64, 72, 80))
        canvas.polygon(_lift(cabin, 0.3 * at.view.tilt), at.pick(hull))
    elif at.chance(0.4):  # sails
        mast, boom = length * at.between(0.9, 1.3) * at.view.tilt, 0.4 * length * np.copysign(1, bow[0])
        canvas.polygon([(0, lift + 0.1 * mast), (-boom, lift + 0.13 * mast), (0, mast)], (238, 236, 230))
        canvas.polygon([(0.05 * boom, lift), (0.8 * boom, lift), (0, 0.9 * mast)], (220, 220, 218))
    behind = at._replace(x=at.x - 1.1 * bow[0] * at.tall, y=at.y + 1.1 * bow[1] * at.tall)
    wake = [_froth(behind, 0.5 * length, at.between(0.3, 0.9))] if at.chance(0.4) else []
    return [*wake, _solid(canvas.sprite(at.view), plan, at.tall)]


def _driftwood(at: _Spot) -> list[_Sprite]:
    canvas, end = at.canvas(1, 1, 1), at.along(0.4)
    wood = at.pick((92, 74, 56), (140, 124, 104), (56, 50, 44))
    canvas.stroke([-end, (0, 0.05), end], at.between(0.06, 0.14), wood)
    return [canvas.sprite(at.view, flat=True)]


def _stain(at: _Spot) -> list[_Sprite]:
    """A manhole, a puddle, oil."""
    canvas, wide, grey = at.canvas(1, 1, 1), at.between(0.12, 0.4), at.between(40, 90)
    canvas.disc((0, 0), wide, wide * at.view.ground * at.between(0.7, 1), at.pick((grey, grey, grey)))
    return [canvas.sprite(at.view, flat=True, opacity=at.between(0.3, 0.85))]


def _car(at: _Spot) -> list[_Sprite]:
    length, waist, roof = at.between(2.3, 2.8), 0.42 * at.view.tilt, 0.82 * at.view.tilt
    paint = at.pick(
        (226, 226, 224), (180, 182, 184), (70, 72, 76), (34, 36, 40), (120, 34, 36), (44, 64, 104), (138, 130, 116)
    )
    canvas = at.canvas(length, length, length)
    floor, cabin = at.floor(length, 1.05), at.floor(0.58 * length, 0.9)
    canvas.raise_wall(floor, 0, waist, _dim(paint, 0.55))
    canvas.polygon(_lift(floor, waist), paint)
    canvas.raise_wall(cabin, waist, roof, (48, 54, 62))
    canvas.polygon(_lift(0.82 * cabin, roof), paint)
    return [_solid(canvas.sprite(at.view), floor, at.tall)]


def _house(at: _Spot) -> list[_Sprite]:
    """A house with a pitched roof, or a kiosk; where there is no room for it, a bench."""
    if at.chance(0.6):
        return _bench(at)
    length, wide, wall = at.between(2.5, 7), at.between(2, 4), at.between(1.3, 2.6) * at.view.tilt
    canvas = at.canvas(length, length + 2 * wall, length)
    plaster = at.pick((206, 200, 188), (178, 160, 136), (150, 120, 104))
    tiles = at.pick((150, 84, 64), (96, 92, 94), (128, 116, 104), (84, 60, 54))
    floor = at.floor(length, wide)
    canvas.raise_wall(floor, 0, wall, _dim(plaster, 0.75))
    eaves = _lift(1.06 * floor, wall)
    ridge = _lift(0.5 * (eaves[[0, 3]] + eaves[[1, 2]]), 0.28 * wide * at.view.tilt)
    slopes = [(eaves[[0, 3]], 1.12), (eaves[[1, 2]], 0.8)]
    for slope, light in sorted(slopes, key=lambda pair: -float(pair[0][:, 1].sum())):  # the farther one first
        canvas.polygon(np.concatenate([slope, ridge[::-1]]), _dim(tiles, light))
    return [_solid(canvas.sprite(at.view), floor, at.tall)]


_BELONGS: dict[str, tuple[Callable[[_Spot], list[_Sprite]], ...]] = {
    "water": (_buoy, _buoy, _buoy, _boat, _board, _bird, _driftwood, _rock),
    "sand": (
        _umbrella, _umbrella, _towel, _towel, _rock, _rock, _pole, _bird, _luggage, _bollard, _driftwood, _sign, _dog,
        _board,
    ),
    "grass": (_bush, _bush, _bush, _tree, _tree, _rock, _pole, _sign, _dog, _house, _bollard, _luggage, _bird),
    "scrub": (_bush, _bush, _bush, _rock, _tree, _driftwood),
    "path": (_pole, _sign, _bollard, _bench, _bush, _dog, _luggage),
    "promenade": (_pole, _sign, _bollard, _bollard, _bench, _luggage, _stain, _dog, _bush, _umbrella),
    "plaza": (_pole, _sign, _bollard, _bollard, _bench, _luggage, _stain, _stain, _umbrella, _cone, _tree, _bird),
    "road": (_car, _car, _car, _cone, _stain, _stain, _sign, _bollard),
}  # fmt: skip


# --- The camera --------------------------------------------------------------------------------------------------


def _photograph(rng: np.random.Generator, image: Image, view: _View) -> NDArray[np.uint8]:
    """Haze, exposure, lens, sensor and compression."""
    far = np.linspace(1, 0, view.height, dtype=np.float32)[:, None] ** 2
    haze = far * np.float32(rng.uniform(0, 0.16) * view.tilt)
    clouds = _noise(rng, (view.height, view.width), 60 * view.unit) * np.float32(0.05 * (1 - 0.5 * view.sun))
    light = (1 + clouds) * (1 - haze) * np.float32(rng.normal(1.0, 0.07))
    for band, (tint, white) in enumerate(zip(view.tint, (206, 214, 222), strict=True)):
        image[..., band] *= light * np.float32(tint)
        image[..., band] += haze * np.float32(white)
    grey, vivid = image @ np.array((0.3, 0.59, 0.11), np.float32), np.float32(1 + rng.normal(0.05, 0.12))
    for band in range(3):
        image[..., band] = grey + (image[..., band] - grey) * vivid
    image = np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.65)), np.float32)
    strength = np.float32(rng.uniform(1.0, 5.0))
    grain = rng.standard_normal(image.shape[:2], np.float32)
    for band in range(3):
        image[..., band] += (grain + np.float32(0.4) * rng.standard_normal(image.shape[:2], np.float32)) * strength
    pixels = np.clip(image, 0, 255, out=image).astype(np.uint8)
    _, file = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(72, 96))])
    developed = np.asarray(cv2.imdecode(file, cv2.IMREAD_COLOR), np.uint8)
    return np.ascontiguousarray(developed[..., ::-1])


# --- Files -------------------------------------------------------------------------------------------------------


def _coco(images: list[dict[str, Any]], scenes: list[list[Person]], seed: int) -> dict[str, Any]:
    annotations: list[dict[str, Any]] = []
    for image, people in zip(images, scenes, strict=True):
        for person in people:
            box = [round(value, 3) for value in person[:4]]
            flags = {"iscrowd": 0, "ignore": int(person.ignore)}
            entry = {"id": len(annotations) + 1, "image_id": image["id"], "category_id": CATEGORY["id"], "bbox": box}
            annotations.append(entry | {"area": round(box[2] * box[3], 3)} | flags)
    info = {
        "description": "Synthetic coasts with tiny people, drawn by tinydet.data.synthetic",
        "version": str(VERSION),
        "seed": seed,
        "licence": "generated",
    }
    licences = [{"id": 1, "name": "generated", "url": ""}]
    return {"info": info, "licenses": licences, "categories": [CATEGORY], "images": images, "annotations": annotations}


def _write_image(path: Path, pixels: NDArray[np.uint8]) -> None:
    quality = [cv2.IMWRITE_JPEG_QUALITY, 92] if path.suffix.lower() in (".jpg", ".jpeg") else []
    _, content = cv2.imencode(path.suffix, pixels[..., ::-1], quality)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.tobytes())


def _move_in(drawn: Path, folder: Path, count: int) -> None:
    """Rename `drawn` to `folder`, unless another process was first; one that lost files makes way."""
    while True:
        try:
            drawn.rename(folder)
            return
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        if _whole(folder, count):
            return
        with contextlib.suppress(FileNotFoundError):  # another process moved it away first
            folder.rename(Path(tempfile.mkdtemp(dir=drawn.parent)) / "damaged")


def _cache() -> Path:
    if named := os.environ.get("TINYDET_CACHE"):
        return Path(named).expanduser()
    if named := os.environ.get("XDG_CACHE_HOME"):
        return Path(named).expanduser() / "tinydet"
    return Path.home() / ".cache" / "tinydet"


def _whole(folder: Path, count: int) -> bool:
    """Nothing was removed from a folder that was whole when it came here."""
    images = folder / "images"
    return (folder / "annotations.json").is_file() and images.is_dir() and len(os.listdir(images)) == count


def _size(text: str) -> tuple[int, int]:
    width, times, height = text.lower().partition("x")
    if not times or not (width.isascii() and width.isdigit() and height.isascii() and height.isdigit()):
        raise ValueError(f"--size is WIDTHxHEIGHT in pixels, such as 4096x4096, not {text!r}")
    return int(width), int(height)


if __name__ == "__main__":
    sys.exit(main())
