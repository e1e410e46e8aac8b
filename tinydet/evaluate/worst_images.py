"""Draw the images with the most errors: found and missed objects, and false positives."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import cv2
import numpy as np
from numpy.typing import NDArray

from tinydet.data.image_paths import image_file, image_name
from tinydet.evaluate.diagnosis import KINDS, Diagnosis
from tinydet.evaluate.tables import GroundTruth
from tinydet.runtime.captions import draw_text, text_size
from tinydet.runtime.image_output import save_image
from tinydet.runtime.scenes import Scene, open_scene

VIEW = (1600, 1200)  # pixels; of a larger image, the part of this size with the most errors is drawn
ENLARGE_BELOW = 900  # pixels; smaller views are drawn at twice their size, so that objects of a few pixels are visible
COLORS = {  # RGB
    "found": (40, 200, 80),
    "missed": (255, 40, 40),
    "duplicate": (190, 90, 255),
    "localization": (255, 160, 0),
    "background": (255, 235, 0),
    "ignored": (150, 150, 150),
}


def draw_worst(
    truth: GroundTruth, diagnosis: Diagnosis, image_dir: Path, folder: Path, *, count: int = 6
) -> list[Path]:
    """Write `worst-1-NAME.jpg`, … for the images with the most errors; an image without errors is not written.

    Args:
        truth: the ground truth that was scored.
        diagnosis: the errors to draw, at its score threshold.
        image_dir: folder that the file names of `truth` are relative to.
        folder: output folder; created if missing.
        count: the most images to write.

    Raises:
        ValueError: an unreadable image.
        OSError: a missing image, or a folder that cannot be written.
    """
    errors = diagnosis.errors_by_image(truth.image, len(truth.image_ids))
    worst = [n for n in np.argsort(-errors, kind="stable")[:count].tolist() if errors[n]]
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for place, n in enumerate(worst, 1):
        with open_scene(image_file(image_dir, truth.file_names[n])) as scene:
            image = _draw(scene, *_boxes(truth, diagnosis, n))
        paths.append(folder / f"worst-{place}-{PurePosixPath(image_name(truth.file_names[n])).stem}.jpg")
        save_image(paths[-1], image)
    return paths


def _boxes(truth: GroundTruth, diagnosis: Diagnosis, n: int) -> tuple[NDArray[np.float64], list[str]]:
    """Return the boxes to draw on image `n`, (B, 4) x, y, width, height, and the kind of each: annotations first."""
    boxes, kinds = [], []
    of_image = truth.image == n
    ignored = ~diagnosis.missed & ~diagnosis.found
    for kind, mask in (("ignored", ignored), ("found", diagnosis.found), ("missed", diagnosis.missed)):
        chosen = truth.boxes[of_image & mask]
        boxes.append(chosen)
        kinds += [kind] * len(chosen)
    for kind in KINDS[2:]:
        chosen = diagnosis.results.boxes[(diagnosis.results.image == n) & (diagnosis.kind == kind)]
        boxes.append(chosen)
        kinds += [kind] * len(chosen)
    return np.concatenate(boxes), kinds


def _draw(scene: Scene, boxes: NDArray[np.float64], kinds: list[str]) -> NDArray[np.uint8]:
    x, y, width, height = _view(scene, boxes[[kind not in ("found", "ignored") for kind in kinds]])
    zoom = 2 if max(width, height) < ENLARGE_BELOW else 1
    image = scene.read(x, y, width, height, (width * zoom, height * zoom)).copy()
    for (left, top, w, h), kind in zip(boxes.tolist(), kinds, strict=True):
        gap = 0 if kind == "ignored" else 2  # pixels between the object and its outline
        first = round((left - x) * zoom) - gap, round((top - y) * zoom) - gap
        last = round((left + w - x) * zoom) + gap, round((top + h - y) * zoom) + gap
        cv2.rectangle(image, first, last, COLORS[kind], 1)
    return np.concatenate([_legend(image.shape[1], kinds), image])


def _view(scene: Scene, errors: NDArray[np.float64]) -> tuple[int, int, int, int]:
    """Return x, y, width and height of the part of the scene with the most errors (E, 4)."""
    width, height = min(VIEW[0], scene.width), min(VIEW[1], scene.height)
    best, most = (0, 0), -1
    centers = errors[:, :2] + errors[:, 2:] / 2
    for y in range(0, scene.height - height + 1, max(height // 2, 1)):
        for x in range(0, scene.width - width + 1, max(width // 2, 1)):
            inside = ((centers >= (x, y)) & (centers < (x + width, y + height))).all(axis=1).sum()
            if inside > most:
                best, most = (x, y), int(inside)
    return (*best, width, height)


def _legend(width: int, kinds: list[str]) -> NDArray[np.uint8]:
    strip = np.full((24, width, 3), 30, np.uint8)
    x = 8
    for kind, color in COLORS.items():
        text = f"{kind} {kinds.count(kind)}"
        draw_text(strip, text, x, 17, 14, color)
        x += 12 + text_size(text, 14)[0]
    return strip
