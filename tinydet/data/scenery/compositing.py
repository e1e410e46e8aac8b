"""Composite sprites into a scene: occlusion, visible boxes of people, shadows."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from tinydet.data.scenery.colors import Image
from tinydet.data.scenery.sprites import Sprite
from tinydet.data.scenery.view import View

OBJECT_VISIBILITY = 0.4  # a person with a smaller visible fraction is an ignore region
LEAST_VISIBILITY = 0.1  # a person with a smaller visible fraction is not annotated


class Person(NamedTuple):
    """The box around the visible part of a person, in pixels of the scene; `ignore` if too little is visible."""

    x: float
    y: float
    width: float
    height: float
    ignore: bool


def visible_people(sprites: list[Sprite], view: View) -> list[Person]:
    """Return the people that are visible in the image.

    Args:
        sprites: all sprites of the scene, in drawing order: each is occluded by those after it.
    """
    occupied = np.zeros((view.height, view.width), np.float32)
    people = []
    for sprite in reversed(sprites):
        target, source = _window(sprite, view.height, view.width)
        visible = sprite.coverage[source] * (1 - occupied[target])
        occupied[target] += visible
        if not sprite.is_person or not visible.size:
            continue
        fraction = float(visible.sum() / sprite.coverage.sum())
        x1, y1, x2, y2 = sprite.box
        if fraction < 0.98:  # the box shrinks where its edges are occluded
            rows, columns = (np.flatnonzero(visible.max(axis=axis) > 0.1) for axis in (1, 0))
            if fraction < LEAST_VISIBILITY or not len(rows) or not len(columns):
                continue
            x, y = target[1].start, target[0].start
            x1, x2 = max(x1, float(x + columns[0])), min(x2, float(x + columns[-1] + 1))
            y1, y2 = max(y1, float(y + rows[0])), min(y2, float(y + rows[-1] + 1))
        x1, y1, x2, y2 = max(x1, 0.0), max(y1, 0.0), min(x2, float(view.width)), min(y2, float(view.height))
        if min(x2 - x1, y2 - y1) >= 0.5:
            people.append(Person(x1, y1, x2 - x1, y2 - y1, fraction < OBJECT_VISIBILITY))
    return people


def cast_shadows(image: Image, sprites: list[Sprite], view: View) -> None:
    """Darken the ground of `image` in place under the upright sprites.

    Each casts a shadow away from the sun and a short one at its base, where it blocks part of the sky.
    """
    shade = np.zeros(image.shape[:2], np.float32)
    for sprite in sprites:
        if not sprite.flat:
            for offset, strength in ((view.shadow_offset, 0.8 * view.sun), ((0.05, 0.16), 0.4)):
                shadow = _shadow(sprite, offset, strength)
                target, source = _window(shadow, view.height, view.width)
                np.maximum(shade[target], shadow.coverage[source], out=shade[target])
    for channel, darkening in enumerate((0.74, 0.68, 0.58)):  # what remains is blue light from the sky
        image[..., channel] *= 1 - shade * np.float32(darkening)


def paste(image: Image, sprite: Sprite) -> None:
    """Blend a sprite into `image` in place."""
    target, source = _window(sprite, image.shape[0], image.shape[1])
    image[target] *= 1 - sprite.coverage[source][..., None]
    image[target] += sprite.color[source]


def _shadow(sprite: Sprite, offset: tuple[float, float], strength: float) -> Sprite:
    """Return the shadow of an upright sprite: each pixel moves by `offset` (right, down) per pixel of height."""
    h, w = sprite.coverage.shape
    y = sprite.base[1] - sprite.top
    corners_x = [column + (y - row) * offset[0] for column in (0, w) for row in (0, h)]
    corners_y = [y + (y - row) * offset[1] for row in (0, h)]
    left, top = int(np.floor(min(corners_x))) - 1, int(np.floor(min(corners_y))) - 1
    size = (int(np.ceil(max(corners_x))) + 2 - left, int(np.ceil(max(corners_y))) + 2 - top)
    affine = np.array([[1, -offset[0], y * offset[0] - left], [0, -offset[1], y + y * offset[1] - top]], np.float64)
    coverage = cv2.warpAffine(sprite.coverage * np.float32(strength), affine, size, flags=cv2.INTER_LINEAR)
    coverage = cv2.blur(coverage, (3, 3) if max(size) < 60 else (5, 5))
    place = (left + sprite.left, top + sprite.top)
    return Sprite(*place, np.asarray(coverage, np.float32), sprite.color, sprite.base, sprite.box, flat=True)


def _window(sprite: Sprite, height: int, width: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Return the part of an image that a sprite overlaps, and the same part of the sprite; empty if it lies outside."""
    h, w = sprite.coverage.shape
    top, left = max(0, sprite.top), max(0, sprite.left)
    bottom, right = max(top, min(height, sprite.top + h)), max(left, min(width, sprite.left + w))
    source = (slice(top - sprite.top, bottom - sprite.top), slice(left - sprite.left, right - sprite.left))
    return (slice(top, bottom), slice(left, right)), source
