"""A sheet of crops: what was found, enlarged, from the best to the weakest. Small, however large the scene."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from tinydet.infer.drawing import COLOURS, FONT, frame
from tinydet.runtime.detections import Detections
from tinydet.runtime.scenes import Scene
from tinydet.runtime.scenes.pixels import Image

MOST = 60  # crops of a sheet
COLUMNS = 10
SIDE = 144  # pixels of the sheet for each crop
CAPTION = 20  # below it
GAP = 4
LEAST_WINDOW = 48  # pixels of the scene: a smaller object is shown with its surroundings
SURROUNDINGS = 3.0  # a crop's side, in sides of the box
GROUND = 24


def crop_sheet(
    scene: Scene, detections: Detections, classes: Sequence[str], most: int = MOST, *, total: int | None = None
) -> Image:
    """Crops of a scene's detections, best first, row by row; uint8 (H, W, 3) RGB.

    Of more than `most` detections those are shown that are evenly spread over their order by score: so that one look
    says down to which score they are right. Each crop is enlarged from the pixels of the scene, with its score and
    its class, and the place of its middle in the scene.

    Args:
        total: how many there are, where the detections are only the best of them.
    """
    if most < 1:
        raise ValueError(f"a sheet has at least one crop, got {most}")
    ranked = detections.by_score()
    shown = ranked[np.unique(np.linspace(0, len(ranked) - 1, min(most, len(ranked))).round().astype(np.int64))]
    columns = min(COLUMNS, max(len(shown), 4))
    rows = -(-len(shown) // columns)
    cell = np.array((SIDE + CAPTION + GAP, SIDE + GAP))
    sheet = np.full((rows * cell[0] + GAP + CAPTION, columns * cell[1] + GAP, 3), GROUND, np.uint8)
    _caption(sheet, GAP, CAPTION - GAP, _title(scene, len(shown), len(detections), total), (200, 200, 200))
    for i in range(len(shown)):
        y, x = np.array(divmod(i, columns)) * cell + (CAPTION + GAP, GAP)
        label = int(shown.labels[i])
        colour = COLOURS[label % len(COLOURS)]
        sheet[y : y + SIDE, x : x + SIDE] = _crop(scene, shown.boxes[i].astype(np.float64), colour)
        middle_x, middle_y = (shown.boxes[i, :2] + shown.boxes[i, 2:]) / 2
        text = f"{shown.scores[i]:.2f} {classes[label][:8]} {middle_x:.0f},{middle_y:.0f}"
        _caption(sheet, x, y + SIDE + CAPTION - 2 * GAP, text, colour)
    return sheet


def _title(scene: Scene, shown: int, known: int, total: int | None) -> str:
    of = f"{known}" if total is None or total == known else f"the best {known} of {total}"
    return f"{scene.name}: {shown} of {of}"


def _crop(scene: Scene, box: np.ndarray, colour: tuple[int, int, int]) -> Image:
    side = min(max(round(SURROUNDINGS * float((box[2:] - box[:2]).max())), LEAST_WINDOW), scene.width, scene.height)
    middle = (box[:2] + box[2:]) / 2
    left, top = (
        int(np.clip(round(float(centre) - side / 2), 0, length - side))
        for centre, length in zip(middle, (scene.width, scene.height), strict=True)
    )
    crop = scene.read(left, top, side, side)
    enlarged = cv2.resize(crop, (SIDE, SIDE), interpolation=cv2.INTER_AREA if side > SIDE else cv2.INTER_CUBIC)
    picture = np.ascontiguousarray(enlarged, np.uint8)
    placed = (box - (left, top, left, top)) * (SIDE / side)
    whole = [*np.floor(placed[:2]).astype(int).tolist(), *np.ceil(placed[2:]).astype(int).tolist()]
    frame(picture, whole, 2, 5, (0, 0, 0))
    frame(picture, whole, 3, 4, colour)
    return picture


def _caption(sheet: Image, x: int, y: int, text: str, colour: tuple[int, int, int]) -> None:
    scale = 0.36
    while cv2.getTextSize(text, FONT, scale, 1)[0][0] > max(SIDE, sheet.shape[1] - x if y < CAPTION else 0):
        text = text[:-1]
    cv2.putText(sheet, text, (int(x), int(y)), FONT, scale, colour, 1, cv2.LINE_AA)
