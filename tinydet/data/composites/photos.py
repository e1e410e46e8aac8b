"""A part of a real photo as the background of a composite."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tinydet.data.composites.background import BLOCKED, GRASS, LOT, Background, Real
from tinydet.data.composites.camera import Camera, Points, look
from tinydet.data.composites.manifest import Photo, Polygon, View
from tinydet.data.composites.streets import SCALES
from tinydet.data.scenery.colors import Image
from tinydet.runtime.scenes import open_scene

FOV = 70.0  # degrees, of a photo whose manifest says nothing
MOST_ENLARGED = 1.6  # a photo is not enlarged further
_TRIES = 8  # parts of a photo that are looked at for free ground
_FREE = 0.12  # fraction of the pixels
_FLATTEST = 22.0  # degrees below the horizon; nothing stands where the view is flatter


def part_of_photo(rng: np.random.Generator, photo: Photo, size: tuple[int, int]) -> Background:
    """Return a random part of a photo that becomes `size` (width, height) in the end.

    A part that is enlarged has the resolution of the photo; whoever draws on it enlarges the result.

    Raises:
        ValueError: the photo cannot be read. Names it.
    """
    pixels = _read(photo.path)
    mirrored = bool(rng.random() < 0.5)
    best = _cut(rng, photo, pixels, size, mirrored)
    for _ in range(_TRIES if photo.group.paste else 0):
        if _free(best) >= _FREE:
            break
        best = max(best, _cut(rng, photo, pixels, size, mirrored), key=_free)
    return best


def _free(background: Background) -> float:
    return float((background.surface != BLOCKED).mean())


def _cut(
    rng: np.random.Generator, photo: Photo, pixels: NDArray[np.uint8], size: tuple[int, int], mirrored: bool
) -> Background:
    view, (height, width) = photo.view, pixels.shape[:2]
    pitch = 90.0 if view.pitch is None else view.pitch
    gsd = _gsd(rng, view)
    least = max(size[0] / width, size[1] / height)  # the whole photo
    wanted = float(np.exp(rng.uniform(*np.log(SCALES)))) * gsd
    zoom = min(max(wanted, least), max(MOST_ENLARGED, least))
    shrunk = min(zoom, 1.0)
    out = (round(size[0] * shrunk / zoom), round(size[1] * shrunk / zoom))
    straight = 90.0 * int(rng.integers(4)) if pitch > 80 else 0.0
    angle = straight if photo.real else float(rng.uniform(-180, 180)) if pitch > 80 else float(rng.normal(0, 3))
    affine, fits = _placement(rng, (width, height), out, shrunk, angle)
    if not fits:
        affine, fits = _placement(rng, (width, height), out, shrunk, straight)
    if not fits:
        affine, _ = _placement(rng, (width, height), out, shrunk, 0.0)
    if mirrored:
        affine = affine @ np.array(((-1, 0, width), (0, 1, 0), (0, 0, 1.0)))
    if shrunk < 0.7:  # average before sampling
        pixels = np.asarray(cv2.resize(pixels, None, fx=shrunk, fy=shrunk, interpolation=cv2.INTER_AREA), np.uint8)
    sampled = affine @ np.diag((width / pixels.shape[1], height / pixels.shape[0], 1.0))
    color = cv2.warpAffine(pixels, sampled, out, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    image = color.astype(np.float32)
    focal = width / 2 / np.tan(np.radians((FOV if view.fov is None else view.fov) / 2))
    altitude = gsd * focal * np.sin(np.radians(pitch))
    camera = look(altitude, pitch, 90, focal, (width / 2, height / 2)).transformed(affine)
    surface = _surface(image, shrunk / gsd, view)
    _limit(surface, view, affine, (width, height))
    if pitch < 80:
        surface[~(_depression(camera, out) > _FLATTEST)] = BLOCKED
    near = np.array(((0, 0), (out[0], 0), (out[0], out[1]), (0, out[1])), float)
    if pitch < 80 and not np.isfinite(camera.ground(near)).any():
        surface[:] = BLOCKED
    real = [Real("", (x, y, x + w, y + h), True) for x, y, w, h in view.ignore]
    real = [_moved(each, affine, (width, height)) for each in (*photo.real, *real)]
    gain = _gain(image, surface) * float(rng.uniform(0.85, 1.1))
    sun, overcast = _sun(view, mirrored)
    return Background(image, surface, camera, gain, photo.group.name, photo.name, real=real, sun=sun,
                      overcast=overcast, pasted=photo.group.paste)  # fmt: skip


def _gain(image: Image, surface: NDArray[np.uint8]) -> float:
    """Estimate the brightness of a photo from its ground: asphalt is lighter than grass."""
    usual = np.array([112.0, 112.0, 112.0, 118.0, 84.0, 112.0, 112.0])[surface]
    free = surface != BLOCKED
    if not free.any():
        return 1.0
    return float(np.clip(np.median(image[free].mean(axis=1) / usual[free]), 0.5, 1.3))


def _sun(view: View, mirrored: bool) -> tuple[NDArray[np.float64] | None, bool | None]:
    """Return the direction to the sun in the world of the camera, and whether the sky is overcast."""
    if view.sun is None or view.sun == "overcast":
        return None, True if view.sun else None
    azimuth, high = np.radians(view.sun)
    east = np.sin(azimuth) * (-1 if mirrored else 1)
    return np.array((east * np.cos(high), np.cos(azimuth) * np.cos(high), np.sin(high))), False


def _depression(camera: Camera, size: tuple[int, int]) -> NDArray[np.float64]:
    """Return the angle of view below the horizon of each pixel, in degrees; NaN above the horizon."""
    step = 8
    x, y = np.meshgrid(np.arange(0, size[0], step), np.arange(0, size[1], step))
    ground = camera.ground(np.column_stack([x.ravel(), y.ravel()]).astype(float))
    away = np.linalg.norm(ground - camera.center[:2], axis=1).reshape(x.shape)
    angle = np.degrees(np.arctan2(camera.center[2], away))
    return np.asarray(angle[np.arange(size[1]) // step][:, np.arange(size[0]) // step])


def _gsd(rng: np.random.Generator, view: View) -> float:
    if view.gsd is None:
        return 0.05
    if isinstance(view.gsd, tuple):
        return float(np.exp(rng.uniform(np.log(view.gsd[0]), np.log(max(view.gsd)))))
    return view.gsd


def _placement(
    rng: np.random.Generator, photo: tuple[int, int], out: tuple[int, int], zoom: float, angle: float
) -> tuple[Points, bool]:
    """Return the affine map (2, 3) from the photo to a random part of it, and whether the part lies inside."""
    turn = np.radians(angle)
    reach = np.abs(((np.cos(turn), np.sin(turn)), (np.sin(turn), np.cos(turn)))) @ (np.array(out) / zoom / 2)
    room = np.array(photo) / 2 - reach
    middle = np.array(photo) / 2 + rng.uniform(-1, 1, 2) * np.maximum(room, 0)
    matrix = zoom * np.array(((np.cos(turn), -np.sin(turn)), (np.sin(turn), np.cos(turn))))
    return np.column_stack([matrix, np.array(out) / 2 - matrix @ middle]), bool((room >= 0).all())


@functools.lru_cache(maxsize=8)
def _read(path: Path) -> NDArray[np.uint8]:
    try:
        with open_scene(path) as scene:  # rejects incomplete files, whose missing part OpenCV fills with gray
            return scene.read(0, 0, scene.width, scene.height)
    except (OSError, ValueError) as error:
        raise ValueError(f"{error}; replace the photo, or remove it from the manifest") from error


def check_photos(photos: Sequence[Photo]) -> None:
    """Decode all photos.

    Raises:
        ValueError: a photo is damaged. Names it.
    """
    for photo in photos:
        _read(photo.path)


def _surface(color: Image, scale: float, view: View) -> NDArray[np.uint8]:
    """Estimate where the ground is free: smooth, and neither very dark nor the white of overexposed roofs.

    Leaves and roof edges are rough at the size of a foot; grass, asphalt and sand are not.
    """
    gray = color @ np.array((0.3, 0.59, 0.11), np.float32)
    side = max(3, int(0.5 * scale) | 1)
    mean = cv2.blur(gray, (side, side))
    spread = np.sqrt(np.maximum(cv2.blur(gray * gray, (side, side)) - mean * mean, 0)) / np.maximum(mean, 20)
    smooth = cv2.blur(spread, (2 * side + 1, 2 * side + 1))
    limit = view.roughness or min(max(float(np.percentile(smooth, 45)), 0.06), 0.13)
    bright = cv2.blur(gray, (4 * side + 1, 4 * side + 1))
    free = (smooth < limit) & (mean > 0.45 * float(np.median(gray))) & (mean < 244) & (bright > 28)
    kernel = np.ones((max(3, side), max(3, side)), np.uint8)
    free = cv2.morphologyEx(free.astype(np.uint8), cv2.MORPH_OPEN, kernel) > 0
    soft = cv2.blur(color, (side, side))
    high, low = soft.max(axis=2), soft.min(axis=2)
    gray_ground = (high - low) < 0.16 * high
    paved, unpaved = (LOT if "paved" in view.surfaces else BLOCKED, GRASS if "unpaved" in view.surfaces else BLOCKED)
    return np.where(free, np.where(gray_ground, paved, unpaved), BLOCKED).astype(np.uint8)


def _limit(surface: NDArray[np.uint8], view: View, affine: Points, photo: tuple[int, int]) -> None:
    """Apply the polygons of the manifest, in place."""
    for polygon in view.ground:
        cv2.fillPoly(surface, [_corners(polygon, affine, photo)], (LOT,))
    for polygon in view.blocked:
        cv2.fillPoly(surface, [_corners(polygon, affine, photo)], (BLOCKED,))


def _corners(polygon: Polygon, affine: Points, photo: tuple[int, int]) -> NDArray[np.int32]:
    points = np.array(polygon) * photo
    return np.rint(points @ affine[:, :2].T + affine[:, 2]).astype(np.int32)


def _moved(real: Real, affine: Points, photo: tuple[int, int]) -> Real:
    """Return an object of the photo in the part, with the box around its turned corners."""
    x1, y1, x2, y2 = np.array(real.box) * (*photo, *photo)
    middle = affine[:, :2] @ ((x1 + x2) / 2, (y1 + y2) / 2) + affine[:, 2]
    half = np.abs(affine[:, :2]) @ ((x2 - x1) / 2, (y2 - y1) / 2)
    return real._replace(box=(*(middle - half).tolist(), *(middle + half).tolist()))
