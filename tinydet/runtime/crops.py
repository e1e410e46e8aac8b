"""A contact sheet: enlarged crops of the detections, best first. Its size does not depend on the scene."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from tinydet.runtime.captions import class_labels, draw_text, legible, text_size
from tinydet.runtime.detections import Detections
from tinydet.runtime.drawing import COLORS, outline
from tinydet.runtime.scenes import Scene
from tinydet.runtime.scenes.pixels import Image

MAX_CROPS = 60
COLUMNS = 10
SIDE = 144  # of a crop, in pixels of the sheet, as are CAPTION and GAP
CAPTION = 20  # height of the text below a crop
FONT_SIZE = 11
GAP = 4
MIN_WINDOW = 48  # pixels of the scene: the smallest side of a crop, however small the object
CONTEXT = 3.0  # side of a crop relative to the longer side of the box
BACKGROUND = 24  # gray value


def crop_sheet(
    scene: Scene, detections: Detections, classes: Sequence[str], limit: int = MAX_CROPS, *, total: int | None = None
) -> Image:
    """Return crops of a scene's detections, best first, row by row; uint8 (H, W, 3) RGB.

    If there are more than `limit` detections, the sheet shows `limit` of them, evenly spaced in the order of their
    scores, to show at a glance down to which score they are right. Each crop is enlarged from the pixels of the scene
    and captioned with the score, the class and the center of the box in scene pixels.

    Args:
        limit: maximum number of crops.
        total: number of detections in the scene, if `detections` holds only the best of them.
    """
    if limit < 1:
        raise ValueError(f"a sheet has at least one crop, got limit={limit}")
    ranked = detections.by_score()
    labels = class_labels(tuple(classes))
    shown = ranked[np.unique(np.linspace(0, len(ranked) - 1, min(limit, len(ranked))).round().astype(np.int64))]
    columns = min(COLUMNS, max(len(shown), 4))
    rows = -(-len(shown) // columns)
    cell = np.array((SIDE + CAPTION + GAP, SIDE + GAP))
    sheet = np.full((rows * cell[0] + GAP + CAPTION, columns * cell[1] + GAP, 3), BACKGROUND, np.uint8)
    _caption(sheet, GAP, CAPTION - GAP, _title(scene, len(shown), len(detections), total), (200, 200, 200))
    for i in range(len(shown)):
        y, x = np.array(divmod(i, columns)) * cell + (CAPTION + GAP, GAP)
        label = int(shown.labels[i])
        color = COLORS[label % len(COLORS)]
        sheet[y : y + SIDE, x : x + SIDE] = _crop(scene, shown.boxes[i].astype(np.float64), color)
        center_x, center_y = (shown.boxes[i, :2] + shown.boxes[i, 2:]) / 2
        text = f"{shown.scores[i]:.2f} {labels[label][:8]} {center_x:.0f},{center_y:.0f}"
        _caption(sheet, x, y + SIDE + CAPTION - 2 * GAP, text, color)
    return sheet


def _title(scene: Scene, shown: int, held: int, total: int | None) -> str:
    of = f"{held}" if total is None or total == held else f"the best {held} of {total}"
    return f"{legible(scene.name)}: {shown} of {of}"


def _crop(scene: Scene, box: np.ndarray, color: tuple[int, int, int]) -> Image:
    side = min(max(round(CONTEXT * float((box[2:] - box[:2]).max())), MIN_WINDOW), scene.width, scene.height)
    left, top = (
        int(np.clip(round(float(center) - side / 2), 0, length - side))
        for center, length in zip((box[:2] + box[2:]) / 2, (scene.width, scene.height), strict=True)
    )
    crop = scene.read(left, top, side, side)
    enlarged = cv2.resize(crop, (SIDE, SIDE), interpolation=cv2.INTER_AREA if side > SIDE else cv2.INTER_CUBIC)
    image = np.ascontiguousarray(enlarged, np.uint8)
    in_crop = (box - (left, top, left, top)) * (SIDE / side)
    corners = [*np.floor(in_crop[:2]).astype(int).tolist(), *np.ceil(in_crop[2:]).astype(int).tolist()]
    outline(image, corners, 2, 5, (0, 0, 0))
    outline(image, corners, 3, 4, color)
    return image


def _caption(sheet: Image, x: int, y: int, text: str, color: tuple[int, int, int]) -> None:
    while text_size(text, FONT_SIZE)[0] > max(SIDE, sheet.shape[1] - x if y < CAPTION else 0):
        text = text[:-1]
    draw_text(sheet, text, x, y, FONT_SIZE, color)
