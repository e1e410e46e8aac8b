"""Sprites on the ground: what hides what, what is left to see of people, and the shadows."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from tinydet.data.scenery.colours import Image
from tinydet.data.scenery.sprites import Sprite
from tinydet.data.scenery.view import View

MOSTLY_HIDDEN = 0.4  # a person of whom less is seen is an ignore region
FULLY_HIDDEN = 0.1  # and of whom less is seen is not annotated at all


class Person(NamedTuple):
    """The box around what is seen of a person, in pixels of the scene, and whether too little is seen to ask for it."""

    x: float
    y: float
    width: float
    height: float
    ignore: bool


def visible_people(sprites: list[Sprite], view: View) -> list[Person]:
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


def cast_shadows(image: Image, sprites: list[Sprite], view: View) -> None:
    """Darken the ground under the sprites' shadows: what stands on it keeps the sun off, and some of the sky."""
    shade = np.zeros(image.shape[:2], np.float32)
    for sprite in sprites:
        if not sprite.flat:
            for way, strength in ((view.shadow, 0.8 * view.sun), ((0.05, 0.16), 0.4)):  # the sun's, and at the foot
                shadow = _shadow(sprite, way, strength)
                there, own = _window(shadow, view.height, view.width)
                np.maximum(shade[there], shadow.cover[own], out=shade[there])
    for band, dark in enumerate((0.74, 0.68, 0.58)):  # the sky's light, which is left, is blue
        image[..., band] *= 1 - shade * np.float32(dark)


def paste(image: Image, sprite: Sprite) -> None:
    there, own = _window(sprite, image.shape[0], image.shape[1])
    image[there] *= 1 - sprite.cover[own][..., None]
    image[there] += sprite.colour[own]


def _shadow(sprite: Sprite, way: tuple[float, float], strength: float) -> Sprite:
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
    return Sprite(*place, np.asarray(cover, np.float32), sprite.colour, sprite.base, sprite.outline, flat=True)


def _window(sprite: Sprite, height: int, width: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The part of a picture that a sprite covers, and the same part of the sprite; both empty when it is outside."""
    h, w = sprite.cover.shape
    top, left = max(0, sprite.top), max(0, sprite.left)
    bottom, right = max(top, min(height, sprite.top + h)), max(left, min(width, sprite.left + w))
    own = (slice(top - sprite.top, bottom - sprite.top), slice(left - sprite.left, right - sprite.left))
    return (slice(top, bottom), slice(left, right)), own
