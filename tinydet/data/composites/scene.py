"""Compose one image: a background, what stands on it, its shadows, and the boxes of what is visible."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from tinydet.data.composites.background import Background, Building
from tinydet.data.composites.body import Body
from tinydet.data.composites.camera import Points
from tinydet.data.composites.layout import LEAST_SCALE, Item, plan
from tinydet.data.composites.manifest import Photo
from tinydet.data.composites.photos import part_of_photo
from tinydet.data.composites.rendering import Light, Mask, Sprite, overlap, render, shadow_of
from tinydet.data.composites.sensor import develop
from tinydet.data.composites.streets import draw_streets
from tinydet.data.scenery.colors import Image
from tinydet.data.scenery.noise import smooth_noise

OBJECT_VISIBILITY = 0.35  # an object with a smaller visible fraction is an ignore region
LEAST_VISIBILITY = 0.08  # an object with a smaller visible fraction is not annotated
LEAST_SIDE = 2.0  # pixels; a smaller object is an ignore region


class Label(NamedTuple):
    """The box (x, y, width, height) around the visible part of an object, in pixels."""

    category: str  # empty: any, for an ignore region
    box: tuple[float, float, float, float]
    ignore: bool
    kind: str


@dataclass(frozen=True, eq=False)
class Composite:
    """A finished image."""

    jpeg: bytes
    labels: list[Label]
    source: str  # name of the set, or `streets`
    photo: str  # empty for drawn streets
    scale: float  # pixels per meter at the center


def compose(seed: tuple[int, int], size: tuple[int, int], photos: list[Photo], streets: float, body: Body) -> Composite:
    """Compose the image that `seed` determines.

    Args:
        size: width and height.
        streets: share of images with drawn streets; the others are parts of `photos`, by the weight of their set.

    Raises:
        ValueError: a photo cannot be read.
    """
    choice, ground, objects, camera = np.random.default_rng(seed).spawn(4)
    if not photos or choice.random() < streets:
        softness = float(choice.choice((1.0, 1.0, choice.uniform(1.0, 1.5))))
        background = draw_streets(ground, round(size[0] / softness), round(size[1] / softness), softness)
    else:
        background = part_of_photo(ground, _choose(choice, photos), size)
    light = _light(objects, background)
    items = plan(objects, background, body)
    image, labels = _draw(background, items, light)
    haze = _haze(camera, background)
    factor = size[0] / background.size[0]
    jpeg = develop(camera, image, size, haze)
    middle = background.camera.ground(np.array(background.size, float)[None] / 2)[0]
    scale = background.camera.scale(float(middle[0]), float(middle[1])) * factor if np.isfinite(middle).all() else 0.0
    finished = [_enlarged(label, factor, size) for label in labels]
    return Composite(jpeg, [label for label in finished if label is not None], background.source, background.photo,
                     round(scale, 2))  # fmt: skip


def _choose(rng: np.random.Generator, photos: list[Photo]) -> Photo:
    """Draw a photo: a set by its weight, then one of its photos."""
    groups = {photo.group.name: photo.group.weight for photo in photos}
    weights = np.array(list(groups.values()))
    name = list(groups)[int(rng.choice(len(groups), p=weights / weights.sum()))]
    members = [photo for photo in photos if photo.group.name == name]
    return members[int(rng.integers(len(members)))]


def _light(rng: np.random.Generator, background: Background) -> Light:
    """Draw the sun and the sky, or take what is known of the photo."""
    overcast = bool(rng.random() < 0.35) if background.overcast is None else background.overcast
    high, azimuth = np.radians(rng.uniform(22, 72)), rng.uniform(0, 2 * np.pi)
    sun = np.array((np.cos(high) * np.cos(azimuth), np.cos(high) * np.sin(azimuth), np.sin(high)))
    if background.sun is not None:
        sun = background.sun
    sky = rng.uniform(0.82, 0.97) if overcast else rng.uniform(0.32, 0.58)
    direct = (1 - sky) / max(float(sun[2]), 0.45)
    tint = np.array((1.05, 1.0, 0.93)) if not overcast else np.ones(3)
    return Light(sun, background.gain * direct, background.gain * sky, tint)


def _draw(background: Background, items: list[Item], light: Light) -> tuple[Image, list[Label]]:
    """Draw everything, from far to near, and return the image and the labels in its pixels."""
    size, camera = background.size, background.camera
    image = background.color * np.float32(background.gain if background.drawn else 1.0)
    static = np.zeros((size[1], size[0]), np.float32)
    for hull in (each.hull for each in background.buildings):
        _darken(static, shadow_of(hull, camera, light, size))
    for item in items:
        if item.static and item.shadow is not None:
            _darken(static, shadow_of(item.shadow, camera, light, size))
    shade = static.copy()
    for item in items:
        if not item.static and item.shadow is not None:
            _darken(shade, shadow_of(item.shadow, camera, light, size))
    middle = camera.ground(np.array(size, float)[None] / 2)[0]
    scale = camera.scale(*middle.tolist()) if np.isfinite(middle).all() else 10.0
    shade = np.asarray(cv2.GaussianBlur(shade, (0, 0), max(0.5, 0.04 * scale)), np.float32)
    for channel, left in enumerate(light.shadow().tolist()):
        image[..., channel] *= 1 - shade * np.float32(1 - left)

    sprites: list[tuple[Item | None, Sprite]] = []
    for thing in _in_order(items, background.buildings, camera.center):
        if isinstance(thing, Building):
            sprite = render(thing.mesh, camera, light, False, size, ordered=True)
            if sprite is not None:
                sprites.append((None, sprite))
        elif camera.scale(thing.x, thing.y) >= LEAST_SCALE:
            shaded = _at(static, camera.project(np.array([(thing.x, thing.y, 0.0)]))[0])
            sprite = render(thing.mesh, camera, light, shaded, size)
            if sprite is not None:
                sprites.append((thing, sprite))
    for _, sprite in sprites:
        place, part = overlap(sprite.left, sprite.top, sprite.coverage.shape, size)
        image[place] *= 1 - sprite.coverage[part][..., None]
        image[place] += sprite.color[part]
    labels = _visible(sprites, size)
    labels += [Label(real.category, (x1, y1, x2 - x1, y2 - y1), real.ignore, "real") for real in background.real
               for x1, y1, x2, y2 in (real.box,)]  # fmt: skip
    return image, labels


def _darken(shade: Image, mask: Mask | None) -> None:
    if mask is not None:
        place, part = overlap(mask.left, mask.top, mask.coverage.shape, (shade.shape[1], shade.shape[0]))
        np.maximum(shade[place], mask.coverage[part], out=shade[place])


def _at(mask: Image, pixel: NDArray[np.float64]) -> bool:
    """Return whether a mask covers the pixel nearest to a point."""
    column, row = pixel[0]
    return bool(mask[min(max(int(row), 0), len(mask) - 1), min(max(int(column), 0), mask.shape[1] - 1)] > 0.5)


def _in_order(items: list[Item], buildings: list[Building], eye: Points) -> list[Item | Building]:
    """Return everything in drawing order: flat things, then from far to near; a building hides what is behind it."""

    def distance(x: float, y: float) -> float:
        return float(np.hypot(x - eye[0], y - eye[1]))

    def order(item: Item) -> float:
        overhang = 0.0  # a crown or a roof hides who stands below it, on the near side too
        if item.static:
            overhang = float(np.abs(item.mesh.vertices[:, :2] - (item.x, item.y)).max())
        return overhang - distance(item.x, item.y)

    flat = [item for item in items if item.flat]
    rest = sorted((item for item in items if not item.flat), key=order)
    houses = sorted(buildings, key=lambda each: -_nearest(each.footprint, eye))
    before: list[list[Item | Building]] = [[] for _ in range(len(houses) + 1)]
    for item in rest:
        hidden = [n for n, house in enumerate(houses) if _crosses(house.footprint, eye, (item.x, item.y))]
        before[hidden[0] if hidden else len(houses)].append(item)
    ordered: list[Item | Building] = [*flat]
    for n, house in enumerate(houses):
        ordered += [*before[n], house]
    return ordered + before[-1]


def _nearest(footprint: tuple[float, float, float, float], eye: Points) -> float:
    x, y = np.clip(eye[0], footprint[0], footprint[2]), np.clip(eye[1], footprint[1], footprint[3])
    return float(np.hypot(x - eye[0], y - eye[1]))


def _crosses(footprint: tuple[float, float, float, float], eye: Points, point: tuple[float, float]) -> bool:
    """Return whether the line on the ground from below the camera to a point crosses a rectangle."""
    low, high = 0.0, 1.0
    for axis in (0, 1):
        start, step = float(eye[axis]), point[axis] - float(eye[axis])
        if abs(step) < 1e-9:
            if not footprint[axis] <= start <= footprint[axis + 2]:
                return False
            continue
        a, b = sorted(((footprint[axis] - start) / step, (footprint[axis + 2] - start) / step))
        low, high = max(low, a), min(high, b)
    return low <= high


def _visible(sprites: list[tuple[Item | None, Sprite]], size: tuple[int, int]) -> list[Label]:
    """Return the labels of what is visible; later sprites hide earlier ones."""
    covered = np.zeros((size[1], size[0]), np.float32)
    labels = []
    for item, sprite in reversed(sprites):
        place, part = overlap(sprite.left, sprite.top, sprite.coverage.shape, size)
        seen = sprite.coverage[part] * (1 - covered[place])
        covered[place] += seen
        if item is None or not item.category or not seen.size:
            continue
        total = float(sprite.coverage.sum())
        fraction = float(seen.sum()) / max(total, 1e-6)
        least = min(0.35, 0.6 * float(sprite.coverage.max()))
        rows, columns = (np.flatnonzero(seen.max(axis=axis) > least) for axis in (1, 0))
        if fraction < LEAST_VISIBILITY or not len(rows) or not len(columns):
            continue
        x, y = place[1].start + int(columns[0]), place[0].start + int(rows[0])
        box = (float(x), float(y), float(columns[-1] - columns[0] + 1), float(rows[-1] - rows[0] + 1))
        labels.append(Label(item.category, box, fraction < OBJECT_VISIBILITY, item.kind))
    return labels[::-1]


def _enlarged(label: Label, factor: float, size: tuple[int, int]) -> Label | None:
    """Return a label in the pixels of the finished image, clipped to it; None outside."""
    x, y, w, h = (value * factor for value in label.box)
    x1, y1, x2, y2 = max(x, 0.0), max(y, 0.0), min(x + w, float(size[0])), min(y + h, float(size[1]))
    if x2 - x1 < 0.5 or y2 - y1 < 0.5:
        return None
    cut = (x2 - x1) * (y2 - y1) < OBJECT_VISIBILITY * w * h
    small = min(x2 - x1, y2 - y1) < LEAST_SIDE
    box = (round(x1, 2), round(y1, 2), round(x2 - x1, 2), round(y2 - y1, 2))
    return label._replace(box=box, ignore=label.ignore or cut or small)


def _haze(rng: np.random.Generator, background: Background) -> Image | None:
    """Return the haze: an even veil, denser at a distance; None on a clear day."""
    if rng.random() < 0.6:
        return None
    size = background.size
    veil = np.full((size[1], size[0]), rng.uniform(0.0, 0.22), np.float32)
    edges = background.camera.ground(np.array(((size[0] / 2, 1.0), (size[0] / 2, size[1] - 1.0))))
    if np.isfinite(edges).all():
        far, near = (float(np.linalg.norm(edge - background.camera.center[:2])) for edge in edges)
        if far > near > 0:
            veil *= np.linspace(1.0, near / far, size[1], dtype=np.float32)[:, None]
    return np.asarray(veil * (1 + 0.1 * smooth_noise(rng, (size[1], size[0]), 200)).clip(0, 2), np.float32)
