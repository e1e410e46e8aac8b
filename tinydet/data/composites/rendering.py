"""Render meshes as sprites: faces from far to near, supersampled, lit by the sun and the sky."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from tinydet.data.composites.camera import Camera
from tinydet.data.composites.mesh import Mesh
from tinydet.data.scenery.colors import Image

LARGEST = 4096  # width or height of a sprite in subpixels
_SHIFT = 4  # fractional bits of the corners that OpenCV draws


@dataclass(frozen=True, eq=False)
class Light:
    """Light of a scene: one sun, and a sky that lights every surface."""

    sun: NDArray[np.float64]  # (3,) unit vector towards the sun
    direct: float  # brightness that the sun adds to a surface that faces it; 0: overcast
    sky: float  # brightness of a horizontal surface in the shadow
    tint: NDArray[np.float64]  # (3,) color of the sunlight

    def of(self, normals: NDArray[np.float64], shaded: bool) -> NDArray[np.float64]:
        """Return the brightness (F, 3) of faces with these unit normals; a horizontal one in the open is about 1."""
        sky = self.sky * (0.72 + 0.28 * normals[:, 2])
        sun = 0.0 if shaded else self.direct * np.clip(normals @ self.sun, 0, 1)
        light: NDArray[np.float64] = sky[:, None] * (1 - 0.25 * (self.tint - 1)) + np.multiply(sun, 1.0)[..., None] * (
            self.tint
        )
        return light

    def shadow(self) -> NDArray[np.float64]:
        """Return the brightness (3,) that full shadow leaves on the ground, relative to the open."""
        ground = self.of(np.array([(0.0, 0.0, 1.0)]), shaded=False)
        return np.asarray(self.of(np.array([(0.0, 0.0, 1.0)]), shaded=True)[0] / ground[0])


class Sprite(NamedTuple):
    """A rendered object. Positions are pixels of the image."""

    left: int
    top: int
    coverage: Image  # (h, w), covered fraction of each pixel, 0 to 1
    color: Image  # (h, w, 3), 0 to 255, multiplied by `coverage`


class Mask(NamedTuple):
    """A part of the image and how far it is covered; shadows."""

    left: int
    top: int
    coverage: Image


def render(
    mesh: Mesh, camera: Camera, light: Light, shaded: bool, size: tuple[int, int], *, ordered: bool = False
) -> Sprite | None:
    """Return the sprite of a mesh; None if it lies outside the image, behind the camera or is too large.

    Args:
        shaded: whether it stands in a shadow.
        size: width and height of the image.
        ordered: whether the faces that face the camera are in drawing order (default: draw them from far to near).
    """
    pixels, depth = camera.project(mesh.vertices)
    if depth.min() < 0.5:
        return None
    window = _window(pixels, size)
    if window is None:
        return None
    corners = mesh.vertices[mesh.faces]
    normals = np.cross(corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12
    middles = corners.mean(axis=1)
    front = np.flatnonzero(np.einsum("ij,ij->i", normals, camera.center - middles) > 0)
    if not len(front):
        return None
    colors = np.clip(mesh.colors[front] * light.of(normals[front], shaded), 1, 255)
    distance = np.linalg.norm(middles[front] - camera.center, axis=1)
    order = np.arange(len(front)) if ordered else np.argsort(-distance, kind="stable")
    left, top, width, height = window
    zoom = _zoom(width, height)
    if max(width, height) * zoom > LARGEST:
        return None
    canvas = np.zeros((height * zoom, width * zoom, 4), np.uint8)
    shapes = _to_fixed(pixels, left, top, zoom)[mesh.faces[front]]
    paints = np.column_stack([np.rint(colors), np.full(len(front), 255)]).tolist()
    for n in order.tolist():
        cv2.fillConvexPoly(canvas, shapes[n], paints[n], cv2.LINE_8, _SHIFT)
    small = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
    return Sprite(left, top, small[..., 3] / np.float32(255), small[..., :3])


def shadow_of(mesh: Mesh, camera: Camera, light: Light, size: tuple[int, int]) -> Mask | None:
    """Return the shadow of a mesh on the ground; None if it lies outside the image."""
    ground = mesh.vertices - mesh.vertices[:, 2:] / light.sun[2] * light.sun
    ground[:, 2] = 0
    pixels, depth = camera.project(ground)
    if depth.min() < 0.5:
        return None
    window = _window(pixels, size)
    if window is None:
        return None
    left, top, width, height = window
    zoom = min(2, _zoom(width, height))
    canvas = np.zeros((height * zoom, width * zoom), np.uint8)
    shapes = _to_fixed(pixels, left, top, zoom)[mesh.faces]
    first, second = shapes[:, 2] - shapes[:, 0], shapes[:, 3] - shapes[:, 1]
    facing = first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0] != 0
    for shape in shapes[facing]:
        cv2.fillConvexPoly(canvas, shape, (255,), cv2.LINE_8, _SHIFT)
    small = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
    return Mask(left, top, small / np.float32(255))


def overlap(left: int, top: int, shape: tuple[int, ...], size: tuple[int, int]) -> tuple[tuple[slice, slice], ...]:
    """Return the part of the image that a sprite of this shape (h, w) covers, and the same part of the sprite."""
    x1, y1 = max(0, left), max(0, top)
    x2, y2 = max(x1, min(size[0], left + shape[1])), max(y1, min(size[1], top + shape[0]))
    return (slice(y1, y2), slice(x1, x2)), (slice(y1 - top, y2 - top), slice(x1 - left, x2 - left))


def _window(pixels: NDArray[np.float64], size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """Return left, top, width and height of the pixels around points, cut to the image and a margin around it."""
    low, high = np.floor(pixels.min(axis=0)).astype(int) - 1, np.ceil(pixels.max(axis=0)).astype(int) + 1
    if (high <= 0).any() or low[0] >= size[0] or low[1] >= size[1]:
        return None
    margin = 64  # the cut must lie outside the image
    low = np.maximum(low, -margin)
    high = np.minimum(high, (size[0] + margin, size[1] + margin))
    return int(low[0]), int(low[1]), int(high[0] - low[0]), int(high[1] - low[1])


def _zoom(width: int, height: int) -> int:
    """Return how many subpixels a pixel is wide."""
    extent = max(width, height)
    return 5 if extent <= 40 else 4 if extent <= 100 else 2


def _to_fixed(pixels: NDArray[np.float64], left: int, top: int, zoom: int) -> NDArray[np.int32]:
    """Return points as OpenCV's fixed-point coordinates on a supersampled canvas."""
    moved = (np.clip(pixels, -4096, 8192) - (left, top)) * zoom - 0.5
    return np.rint(moved * (1 << _SHIFT)).astype(np.int32)
