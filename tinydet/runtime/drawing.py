"""Draw detections on their scene, readable however small the objects and however large the scene."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from tinydet.runtime.captions import class_labels, draw_text, legible, text_size
from tinydet.runtime.detections import Detections
from tinydet.runtime.image_output import MAX_SIDE
from tinydet.runtime.scenes import Scene
from tinydet.runtime.scenes.pixels import Image

MAX_PIXELS = 40_000_000  # scenes up to this size are drawn at full resolution
OVERVIEW = 16_000_000  # pixels to which a larger scene is reduced: a file of a few megabytes for any scene
MIN_BOX = 5  # pixels of the drawing: a smaller box is drawn with this side, around its center
MAX_SCORES = 300  # only the best detections are labeled with their score, where there is room
COLORS = (  # RGB by class; rare in nature and towns, and easy to tell apart
    (255, 230, 0),
    (255, 60, 160),
    (0, 230, 255),
    (255, 120, 0),
    (160, 255, 60),
    (190, 130, 255),
    (255, 255, 255),
    (80, 140, 255),
)


def draw(
    scene: Scene,
    detections: Detections,
    classes: Sequence[str],
    counts: Sequence[int] | None = None,
    *,
    legend: bool = True,
    max_side: int = MAX_SIDE,
) -> Image:
    """Return the scene with an outline around each detection; uint8 (H, W, 3) RGB.

    Outlines surround the objects and never cover them. A score is written next to its box only where it covers neither
    another box nor another score.

    Args:
        counts: detections per class for the legend, if `detections` holds only the best of them.
        legend: append classes and counts below the scene. Without it, each score has the name of its class, and the
            drawing has the size of the scene unless that is too large.
        max_side: the maximum width and height of the drawing, in pixels.
    """
    shrink = min(1.0, max_side / max(scene.width, scene.height))
    if scene.width * scene.height > MAX_PIXELS:
        shrink = min(shrink, (OVERVIEW / (scene.width * scene.height)) ** 0.5)
    if not legend:
        size = max(1, round(scene.width * shrink)), max(1, round(scene.height * shrink))
        image = scene.read(0, 0, scene.width, scene.height, size).copy()
        annotate(image, detections, shrink, class_labels(tuple(classes)))
        return image
    if counts is None:
        counts = np.bincount(detections.labels, minlength=len(classes)).tolist()
    while True:
        size = max(1, round(scene.width * shrink)), max(1, round(scene.height * shrink))
        strip = _legend(size[0], scene, classes, counts, len(detections), shrink)
        room = max(max_side - len(strip), max_side // 2)  # for the image; a taller legend is cropped
        if size[1] <= room:
            break
        shrink *= room / size[1]
    image = scene.read(0, 0, scene.width, scene.height, size).copy()
    annotate(image, detections, shrink)
    return np.concatenate([image, strip[: max_side - len(image)]])


def annotate(image: Image, detections: Detections, shrink: float = 1.0, names: Sequence[str] = ()) -> None:
    """Draw outlines and scores in place, on an image that shows the scene reduced by `shrink`.

    Tracked objects have their number in place of the score.

    Args:
        names: of the classes, to write before the scores; empty for scores alone.
    """
    line = max(1, round(max(image.shape[:2]) / 2000))
    boxes = _pixel_boxes(detections.boxes * shrink)
    for box in boxes.tolist():  # a dark rim first, so that the color is visible on any background
        outline(image, box, 0, 3 * line, (0, 0, 0))
    for box, label in zip(boxes.tolist(), detections.labels.tolist(), strict=True):
        outline(image, box, line, 2 * line, COLORS[label % len(COLORS)])
    _write_scores(image, boxes, detections, line, names)


def draw_trails(image: Image, detections: Detections, paths: Sequence[NDArray[np.float64]]) -> None:
    """Draw the paths of objects in place, in the colors of their classes; pixels of a detection stay as they are.

    Args:
        detections: in pixels of the image.
        paths: of each detection, (P, 2) x and y in pixels of the image.
    """
    line = max(1, round(max(image.shape[:2]) / 2000))
    boxes = np.clip(_pixel_boxes(detections.boxes), 0, None).tolist()
    objects = [image[y1:y2, x1:x2].copy() for x1, y1, x2, y2 in boxes]
    for path, label in zip(paths, detections.labels.tolist(), strict=True):
        points = np.round(path * 16).astype(np.int32)  # cv2 takes fractions of a pixel as fixed-point numbers
        cv2.polylines(image, [points], False, COLORS[label % len(COLORS)], line, cv2.LINE_AA, 4)
    for (x1, y1, x2, y2), pixels in zip(boxes, objects, strict=True):
        image[y1:y2, x1:x2] = pixels


def outline(image: Image, box: list[int], inner: int, outer: int, color: tuple[int, int, int]) -> None:
    """Color in place the ring from `inner` to `outer` pixels outside a box; the box itself is untouched."""
    x1, y1, x2, y2 = (max(v, 0) for v in (box[0] - outer, box[1] - outer, box[2] + outer, box[3] + outer))
    width = outer - inner
    for rows, columns in (
        (slice(y1, max(box[1] - inner, 0)), slice(x1, x2)),
        (slice(y2 - width, y2), slice(x1, x2)),
        (slice(y1, y2), slice(x1, max(box[0] - inner, 0))),
        (slice(y1, y2), slice(x2 - width, x2)),
    ):
        image[rows, columns] = color


def _pixel_boxes(boxes: NDArray[Any]) -> NDArray[np.int64]:
    """Round boxes outward to integer pixels, with sides of at least MIN_BOX."""
    center, half = (boxes[:, :2] + boxes[:, 2:]) / 2, np.maximum(boxes[:, 2:] - boxes[:, :2], MIN_BOX) / 2
    corners: NDArray[np.int64] = np.concatenate([np.floor(center - half), np.ceil(center + half)], axis=1).astype(int)
    return corners


def _write_scores(
    image: Image, boxes: NDArray[np.int64], detections: Detections, line: int, names: Sequence[str]
) -> None:
    """Write the best scores above or below their boxes, where no box and no other score is in the way."""
    size, cell, rim = 12 * line, 2, 3 * line + 1
    taken = np.zeros((-(-image.shape[0] // cell), -(-image.shape[1] // cell)), np.uint8)
    for x1, y1, x2, y2 in (np.maximum(boxes + np.array([-rim, -rim, rim, rim]), 0) // cell).tolist():
        taken[y1 : y2 + 1, x1 : x2 + 1] = 1
    best = np.argsort(-detections.scores, kind="stable")[:MAX_SCORES]
    for i in best.tolist():
        text = f"{detections.scores[i]:.2f}"
        if detections.tracks is not None:
            if detections.tracks[i] < 0:
                continue
            text = str(detections.tracks[i])
        if names:
            text = f"{names[int(detections.labels[i])]} {text}"
        width, height = text_size(text, size)
        x = int(boxes[i, 0])
        for baseline in (int(boxes[i, 1]) - rim - cell, int(boxes[i, 3]) + rim + cell + height):
            inside = x >= 0 and x + width < image.shape[1] and baseline - height >= 0 and baseline < image.shape[0]
            place = np.s_[(baseline - height) // cell : baseline // cell + 1, x // cell : (x + width) // cell + 1]
            if inside and not taken[place].any():
                taken[place] = 1
                color = COLORS[int(detections.labels[i]) % len(COLORS)]
                draw_text(image, text, x, baseline, size, color, rim=2 * line)
                break


def _legend(
    width: int, scene: Scene, classes: Sequence[str], counts: Sequence[int], drawn: int, shrink: float
) -> Image:
    """Return a strip to append below the image: each class with its color and count, then the scene."""
    unit = max(12, min(round(width / 60), 48))  # height of a line of text including its spacing
    items = [
        (f"{name} {count}", COLORS[i % len(COLORS)])
        for i, (name, count) in enumerate(zip(class_labels(tuple(classes)), counts, strict=True))
    ]
    shown = f", shown at {shrink:.2g}" if shrink < 1 else ""
    shown += f", the best {drawn}" if drawn < sum(counts) else ""
    items.append((f"{legible(scene.name)} {scene.width}x{scene.height}{shown}", (200, 200, 200)))
    font_size = round(0.9 * unit)
    rows: list[list[tuple[str, tuple[int, int, int], int]]] = [[]]
    x = unit
    for text, color in items:
        advance = text_size(text, font_size)[0] + 2 * unit
        if rows[-1] and x + advance > width:
            rows.append([])
            x = unit
        rows[-1].append((text, color, x))
        x += advance
    strip = np.full((round((1.5 * len(rows) + 0.5) * unit), width, 3), 24, np.uint8)
    for row, entries in enumerate(rows):
        baseline = round((1.5 * row + 1.4) * unit)
        for text, color, x in entries:
            draw_text(strip, text, x, baseline, font_size, color)
    return strip
