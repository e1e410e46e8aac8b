"""Compare a scene with the images that a model was trained on: color, brightness, detail, and the scale of objects.

A detector finds something in any picture. On pictures of another kind, such as color photos for a model of thermal
images, what it finds is meaningless, and its scores do not say so. A few windows of a scene are enough to notice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from tinydet.runtime.scenes.camera_metadata import CameraMetadata
from tinydet.runtime.scenes.footprint import photo_ground_sample_distance
from tinydet.runtime.scenes.georeference import GeoreferenceError
from tinydet.runtime.scenes.scene import Scene
from tinydet.spec import Domain, ModelSpec

WINDOWS, SIDE = 3, 128  # windows in each direction that are read of a scene, and the side of one in pixels
GRAY, COLOR = 3.0, 4.0  # chroma up to which an image is gray, and above which it is in color; codecs add up to 3
COLORFUL = 90  # percentile of the pixels; marks and legends that a camera draws into a gray image are fewer
# A value is unusual if it is this many times as far from an end of the scale as 95 % of the training images.
BRIGHTNESS, CONTRAST, DETAIL, GSD = 3.0, 3.0, 2.5, 2.0
# sqrt(width * height) in meters of an object that a drone or aircraft sees; generous, as postures and views vary.
LENGTHS = {
    **dict.fromkeys(("person", "pedestrian", "people", "human"), (0.4, 2.0)),
    **dict.fromkeys(("bicycle", "motorbike", "motorcycle", "motor"), (0.6, 2.2)),
    **dict.fromkeys(("car", "van", "vehicle"), (1.8, 6.0)),
    **dict.fromkeys(("truck", "bus"), (2.2, 14.0)),
}
FEWEST = 50  # detections, below which the share of doubtful ones says little
BAND = 0.3  # a score is doubtful if it is in this part of the range from the threshold to 1
LOWEST_THRESHOLD = 0.2  # lower ones are for measuring, and let doubtful boxes in on purpose
DOUBTFUL = 0.7  # share of doubtful scores


class Look(NamedTuple):
    """What an image looks like; see `Domain`."""

    chroma: float
    brightness: float
    contrast: float
    detail: float

    @property
    def in_color(self) -> bool | None:
        """Whether it is in color; None for images in between."""
        return True if self.chroma > COLOR else False if self.chroma <= GRAY else None


def look_at(scene: Scene) -> Look | None:
    """Measure a few windows of a scene; None if none of them has data.

    Pixels that are pure black or white are left out: they are borders or have no data.

    Raises:
        ValueError: the scene is damaged there.
    """
    chroma, values = np.zeros(256, np.int64), np.zeros(256, np.int64)  # histograms
    details = []
    for x, y, width, height in _windows(scene):
        if scene.is_empty(x, y, width, height):
            continue
        window = scene.read(x, y, width, height)
        red, green, blue = cv2.split(window)
        high, low = cv2.max(cv2.max(red, green), blue), cv2.min(cv2.min(red, green), blue)
        gray = cv2.cvtColor(window, cv2.COLOR_RGB2GRAY)
        kept = (high > 0) & (low < 255)
        chroma += np.bincount((high - low)[kept], minlength=256)
        values += np.bincount(gray[kept], minlength=256)
        details.append(float(np.abs(cv2.Laplacian(gray, cv2.CV_32F)).mean()))
    count = int(values.sum())
    if not count:
        return None
    levels = np.arange(256)
    colorful = int(np.searchsorted(np.cumsum(chroma), COLORFUL / 100 * count))
    mean = float(levels @ values) / count
    deviation = math.sqrt(float((levels - mean) ** 2 @ values) / count)
    return Look(float(colorful), mean, deviation, sum(details) / len(details))


def gsd_of(scene: Scene, camera: CameraMetadata | None) -> float | None:
    """Return the ground sample distance of a scene in meters per pixel; None if it is unknown.

    Args:
        camera: metadata of the file, which tell it for a photo that was taken straight down.
    """
    if scene.gsd is not None or camera is None or camera.angles is None:
        return scene.gsd
    try:
        return photo_ground_sample_distance(camera)[0]
    except GeoreferenceError:
        return None


def suits(domain: Domain, *, in_color: bool) -> bool:
    """Return whether a model was trained on images in color, or on gray ones; a model of both suits both."""
    return domain.chroma[2] > COLOR if in_color else domain.chroma[0] <= COLOR


def unlike_training(scene: Scene, spec: ModelSpec, *, gsd: float | None = None, scale: float = 1.0) -> str:
    """Say how a scene differs from the images that a model was trained on; an empty text if it does not, visibly.

    Args:
        gsd: of the scene, see `gsd_of`.
        scale: resize factor of the scan.
    """
    domain = spec.domain
    if domain is None:
        return ""
    try:
        look = look_at(scene)
    except ValueError:
        return ""  # the scan reports what is damaged
    found = [] if look is None else [*_look_differences(domain, look)]
    if gsd is not None:
        found += _scale_differences(domain, spec.classes, gsd, scale)
    return f"{scene.name} is unlike the training images of the model: {'; '.join(found)}" if found else ""


def doubtful_below(threshold: float) -> float:
    """Return the score below which a detection is doubtful; the threshold itself where it is low on purpose.

    >>> round(doubtful_below(0.3), 2), doubtful_below(0.05)
    (0.51, 0.05)
    """
    return threshold + BAND * (1 - threshold) if threshold >= LOWEST_THRESHOLD else threshold


def doubt(doubtful: int, detections: int, below: Sequence[float]) -> str:
    """Say that most detections of a run are doubtful; an empty text if they are not, or too few to tell.

    >>> doubt(80, 100, [0.51])[:58]
    '80 of 100 detections (80 %) score below 0.51, close to the'
    >>> doubt(50, 100, [0.51])
    ''

    Args:
        below: (C,) the score below which a detection of each class is doubtful, see `doubtful_below`.
    """
    if detections < FEWEST or doubtful < DOUBTFUL * detections:
        return ""
    low, high = f"{min(below):.2f}", f"{max(below):.2f}"
    limit = f"{low}, close to the threshold" if low == high else f"{low} to {high}, close to the threshold of the class"
    return (
        f"{doubtful} of {detections} detections ({round(100 * doubtful / detections)} %) score below {limit}; many may "
        "be wrong, as on images that the model was not trained for"
    )


def _windows(scene: Scene) -> list[tuple[int, int, int, int]]:
    """Return x, y, width and height of windows in the middle of the cells of a grid over the scene."""
    columns, rows = min(WINDOWS, scene.width), min(WINDOWS, scene.height)
    width, height = min(SIDE, scene.width // columns), min(SIDE, scene.height // rows)
    tops = [(2 * row + 1) * scene.height // (2 * rows) - height // 2 for row in range(rows)]
    if scene.in_order:
        tops = [0]
    lefts = [(2 * column + 1) * scene.width // (2 * columns) - width // 2 for column in range(columns)]
    return [(max(x, 0), max(y, 0), width, height) for y in tops for x in lefts]


def _look_differences(domain: Domain, look: Look) -> list[str]:
    found = []
    if look.in_color is not None and not suits(domain, in_color=look.in_color):
        found.append("it is in color, and they are gray" if look.in_color else "it is gray, and they are in color")
    low, _, high = domain.brightness
    if look.brightness < low / BRIGHTNESS:
        found.append(f"it is darker (mean {look.brightness:.0f}, {low:.0f} to {high:.0f} in training)")
    elif 255 - look.brightness < (255 - high) / BRIGHTNESS:
        found.append(f"it is brighter (mean {look.brightness:.0f}, {low:.0f} to {high:.0f} in training)")
    for name, (low, _, high), value, factor in (
        ("contrast", domain.contrast, look.contrast, CONTRAST),
        ("fine detail", domain.detail, look.detail, DETAIL),
    ):
        if value > high * factor:  # on a scene with less, there is little to find
            found.append(f"it has more {name} ({value:.1f}, {low:.1f} to {high:.1f} in training)")
    return found


def _scale_differences(domain: Domain, classes: Sequence[str], gsd: float, scale: float) -> list[str]:
    """Compare the size of objects: by the ground sample distance of training, else by lengths of well-known classes."""
    shown = gsd / scale
    scaled = "" if scale == 1 else f" at scale {scale:.3g}"
    if domain.gsd is not None:
        low, middle, high = domain.gsd
        if low / GSD <= shown <= high * GSD:
            return []
        return [
            f"a pixel{scaled} is {_meters(shown)} on the ground, and {_meters(low)} to {_meters(high)} in training"
            f"{_scale_advice(gsd / middle)}"
        ]
    factors, texts = [], []
    for name, sizes in zip(classes, domain.class_sizes, strict=False):
        lengths = LENGTHS.get(name.strip().lower())
        if lengths is None or sizes[2] == 0:
            continue
        low, high = lengths[0] / shown, lengths[1] / shown
        if high < sizes[0] or low > sizes[2]:
            texts.append(f"a {name} measures {low:.3g} to {high:.3g} px, and {sizes[0]:.3g} to {sizes[2]:.3g} px")
            factors.append(sizes[1] * gsd / math.sqrt(lengths[0] * lengths[1]))
    if not texts:
        return []
    advice = _scale_advice(float(np.exp(np.mean(np.log(factors)))))
    return [f"at {_meters(gsd)} per pixel{scaled}, {' and '.join(texts)} in training{advice}"]


def _scale_advice(factor: float) -> str:
    return f" (try --scale {factor:.2g})" if 1 / 16 <= factor <= 4 else ""


def _meters(value: float) -> str:
    return f"{value:.3g} m" if value >= 1 else f"{100 * value:.3g} cm"


def percentiles(
    values: Sequence[float] | NDArray[np.floating], which: tuple[float, float, float] = (5, 50, 95)
) -> tuple[float, float, float]:
    """Return three percentiles, rounded to four digits."""
    low, middle, high = (float(f"{value:.4g}") for value in np.percentile(values, which))
    return low, middle, high
