"""A picture that shows a person what was found, however small the objects and large the scene."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from tinydet._internal.atomic import atomic_path
from tinydet.runtime.detections import Detections
from tinydet.runtime.scenes import Scene
from tinydet.runtime.scenes.pixels import Image

MAX_PIXELS = 40_000_000  # a scene of so many is drawn as it is
OVERVIEW = 16_000_000  # pixels of the picture of a larger one: a few megabytes, whatever the scene
MAX_SIDE = 30_000  # JPEG ends at 65535
LEAST_BOX = 5  # pixels of the picture: a smaller one is drawn as large as this, around its centre
LABELLED = 300  # the best ones, where there is room
FONT = cv2.FONT_HERSHEY_SIMPLEX
COLOURS = (  # RGB that neither nature nor towns are made of, each apart from the others
    (255, 230, 0),
    (255, 60, 160),
    (0, 230, 255),
    (255, 120, 0),
    (160, 255, 60),
    (190, 130, 255),
    (255, 255, 255),
    (80, 140, 255),
)


def draw(scene: Scene, detections: Detections, classes: Sequence[str], counts: Sequence[int] | None = None) -> Image:
    """The scene with a box around each detection, and a legend below it; uint8 (H, W, 3) RGB.

    Boxes lie around the objects and never on them. A score stands beside a box only where it covers no other.

    Args:
        counts: of each class, for the legend, where the detections are only the best of them.
    """
    shrink = min(1.0, MAX_SIDE / max(scene.width, scene.height))
    if scene.width * scene.height > MAX_PIXELS:
        shrink = min(shrink, (OVERVIEW / (scene.width * scene.height)) ** 0.5)
    size = max(1, round(scene.width * shrink)), max(1, round(scene.height * shrink))
    picture = scene.read(0, 0, scene.width, scene.height, size).copy()
    annotate(picture, detections, shrink)
    found = np.bincount(detections.labels, minlength=len(classes)).tolist()
    legend = _legend(size[0], scene, classes, found if counts is None else counts, len(detections), shrink)
    return np.concatenate([picture, legend])


def annotate(picture: Image, detections: Detections, shrink: float = 1.0) -> None:
    """Draw the boxes on a picture that shows their scene at `shrink`; the picture is changed."""
    line = max(1, round(max(picture.shape[:2]) / 2000))
    boxes = _surroundings(detections.boxes * shrink)
    for box in boxes.tolist():  # a dark rim below, so that the colour shows on any ground
        frame(picture, box, 0, 3 * line, (0, 0, 0))
    for box, label in zip(boxes.tolist(), detections.labels.tolist(), strict=True):
        frame(picture, box, line, 2 * line, COLOURS[label % len(COLOURS)])
    _write_scores(picture, boxes, detections, line)


def save_picture(path: Path, picture: Image) -> None:
    """Write RGB pixels; the suffix chooses the format.

    Raises:
        ValueError: for a suffix that OpenCV does not write.
        OSError: where the file cannot be written.
    """
    check_picture_path(path)
    ok, encoded = cv2.imencode(path.suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    if not ok:
        raise ValueError(
            f"{path}: OpenCV cannot write {picture.shape[1]}x{picture.shape[0]} pixels as {path.suffix}; use .png"
        )
    with atomic_path(path) as temporary:
        temporary.write_bytes(encoded.tobytes())


def check_picture_path(path: Path) -> None:
    """Refuse a suffix that OpenCV does not write, before the work rather than after it."""
    if not path.suffix or not cv2.haveImageWriter(f"x{path.suffix}"):
        raise ValueError(f"{path}: cannot write a picture as {path.suffix!r}; use .jpg, .png or .webp")


def _surroundings(boxes: NDArray[np.float32]) -> NDArray[np.int64]:
    """Whole pixels that hold each box, and at least LEAST_BOX of them."""
    centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, np.maximum(boxes[:, 2:] - boxes[:, :2], LEAST_BOX) / 2
    corners: NDArray[np.int64] = np.concatenate([np.floor(centre - half), np.ceil(centre + half)], axis=1).astype(int)
    return corners


def frame(picture: Image, box: list[int], inner: int, outer: int, colour: tuple[int, int, int]) -> None:
    """Colour what is more than `inner` and up to `outer` pixels outside of a box; nothing of the box itself."""
    x1, y1, x2, y2 = (max(v, 0) for v in (box[0] - outer, box[1] - outer, box[2] + outer, box[3] + outer))
    width = outer - inner
    for rows, columns in (
        (slice(y1, max(box[1] - inner, 0)), slice(x1, x2)),
        (slice(y2 - width, y2), slice(x1, x2)),
        (slice(y1, y2), slice(x1, max(box[0] - inner, 0))),
        (slice(y1, y2), slice(x2 - width, x2)),
    ):
        picture[rows, columns] = colour


def _write_scores(picture: Image, boxes: NDArray[np.int64], detections: Detections, line: int) -> None:
    """Scores above (or below) the best boxes, where neither a box nor another score is."""
    scale, cell, rim = 0.4 * line, 2, 3 * line + 1
    taken = np.zeros((-(-picture.shape[0] // cell), -(-picture.shape[1] // cell)), np.uint8)
    for x1, y1, x2, y2 in (np.maximum(boxes + np.array([-rim, -rim, rim, rim]), 0) // cell).tolist():
        taken[y1 : y2 + 1, x1 : x2 + 1] = 1
    best = np.argsort(-detections.scores, kind="stable")[:LABELLED]
    for i in best.tolist():
        text = f"{detections.scores[i]:.2f}"
        (width, height), _ = cv2.getTextSize(text, FONT, scale, line)
        x = int(boxes[i, 0])
        for y in (int(boxes[i, 1]) - rim - cell, int(boxes[i, 3]) + rim + cell + height):  # of the text's base line
            inside = x >= 0 and x + width < picture.shape[1] and y - height >= 0 and y < picture.shape[0]
            place = np.s_[(y - height) // cell : y // cell + 1, x // cell : (x + width) // cell + 1]
            if inside and not taken[place].any():
                taken[place] = 1
                colour = COLOURS[int(detections.labels[i]) % len(COLOURS)]
                cv2.putText(picture, text, (x, y), FONT, scale, (0, 0, 0), 3 * line, cv2.LINE_AA)
                cv2.putText(picture, text, (x, y), FONT, scale, colour, line, cv2.LINE_AA)
                break


def _legend(
    width: int, scene: Scene, classes: Sequence[str], counts: Sequence[int], drawn: int, shrink: float
) -> Image:
    """A strip below the picture, so that it hides nothing: each class with its colour and count, then the scene."""
    unit = max(12, min(round(width / 60), 48))  # height of a line of text with its space
    items = [
        (f"{name} {count}", COLOURS[i % len(COLOURS)])
        for i, (name, count) in enumerate(zip(classes, counts, strict=True))
    ]
    shown = f", shown at {shrink:.2g}" if shrink < 1 else ""
    shown += f", the best {drawn}" if drawn < sum(counts) else ""
    items.append((f"{scene.name} {scene.width}x{scene.height}{shown}", (200, 200, 200)))
    scale, line = unit / 34, max(1, unit // 16)
    rows: list[list[tuple[str, tuple[int, int, int], int]]] = [[]]
    x = unit
    for text, colour in items:
        advance = cv2.getTextSize(text, FONT, scale, line)[0][0] + 2 * unit
        if rows[-1] and x + advance > width:
            rows.append([])
            x = unit
        rows[-1].append((text, colour, x))
        x += advance
    strip = np.full((round((1.5 * len(rows) + 0.5) * unit), width, 3), 24, np.uint8)
    for row, entries in enumerate(rows):
        base = round((1.5 * row + 1.4) * unit)
        for text, colour, x in entries:
            cv2.putText(strip, text, (x, base), FONT, scale, colour, line, cv2.LINE_AA)
    return strip
