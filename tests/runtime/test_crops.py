from __future__ import annotations

import numpy as np
import pytest

from tinydet.runtime.crops import CAPTION, COLUMNS, GAP, MAX_CROPS, SIDE, crop_sheet
from tinydet.runtime.detections import Detections
from tinydet.runtime.scenes import open_scene


def detections_of(boxes: list[list[float]]) -> Detections:
    n = len(boxes)
    zeros = np.zeros(n, np.int32)
    scores = np.linspace(0.9, 0.3, n).astype(np.float32)
    return Detections(np.float32(boxes).reshape(-1, 4), scores, zeros)


def cell(sheet: np.ndarray, index: int, columns: int) -> np.ndarray:
    row, column = divmod(index, columns)
    y, x = CAPTION + GAP + row * (SIDE + CAPTION + GAP), GAP + column * (SIDE + GAP)
    return sheet[y : y + SIDE, x : x + SIDE]


def test_crops_show_enlarged_objects_best_first() -> None:
    pixels = np.zeros((400, 500, 3), np.uint8)
    pixels[100:108, 200:208] = (255, 0, 0)
    pixels[300:340, 400:440] = (0, 0, 255)
    sheet = crop_sheet(open_scene(pixels), detections_of([[200, 100, 208, 108], [400, 300, 440, 340]]), ["thing"])
    red, blue = cell(sheet, 0, 4), cell(sheet, 1, 4)
    middle = slice(SIDE // 2 - 4, SIDE // 2 + 4)
    assert (red[middle, middle] == (255, 0, 0)).all(), "8 of 48 pixels become 24 of 144, and no line is drawn on them"
    assert (blue[middle, middle] == (0, 0, 255)).all()
    assert abs((red[..., 0] > 128).sum() / SIDE**2 - (8 / 48) ** 2) < 0.06


def test_a_crop_at_the_scene_border_is_shifted_inside() -> None:
    pixels = np.zeros((100, 100, 3), np.uint8)
    pixels[92:, 92:] = 255
    crop = cell(crop_sheet(open_scene(pixels), detections_of([[92, 92, 100, 100]]), ["thing"]), 0, 4)
    assert (crop[-8:, -8:] == 255).all()


def test_the_sheet_has_a_fixed_size_and_shows_the_best_and_the_weakest() -> None:
    boxes = [[10.0 * (i % 50), 10.0 * (i // 50), 10.0 * (i % 50) + 8, 10.0 * (i // 50) + 8] for i in range(2000)]
    pixels = np.zeros((400, 500, 3), np.uint8)
    pixels[0:8, 0:8] = (255, 0, 0)  # the best
    pixels[390:398, 490:498] = (0, 0, 255)  # the weakest
    sheet = crop_sheet(open_scene(pixels), detections_of(boxes), ["thing"])
    assert sheet.shape[1] == COLUMNS * (SIDE + GAP) + GAP
    assert sheet.size < 3 * 3_000_000
    assert (cell(sheet, 0, COLUMNS)[4:12, 4:12] == (255, 0, 0)).all()
    assert (cell(sheet, MAX_CROPS - 1, COLUMNS)[-12:-9, -12:-9] == (0, 0, 255)).all()


def test_small_scenes_and_scenes_without_detections_have_a_sheet() -> None:
    small = open_scene(np.zeros((20, 30, 3), np.uint8))
    assert crop_sheet(small, detections_of([[2, 2, 9, 9]]), ["thing"]).shape[0] > SIDE
    assert crop_sheet(small, Detections.empty(), ["thing"]).shape[0] < SIDE
    with pytest.raises(ValueError, match="at least one"):
        crop_sheet(small, Detections.empty(), ["thing"], limit=0)
