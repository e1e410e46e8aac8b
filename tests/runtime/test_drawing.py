from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from tinydet.runtime import drawing
from tinydet.runtime.detections import Detections
from tinydet.runtime.drawing import COLORS, draw
from tinydet.runtime.image_output import save_image
from tinydet.runtime.scenes import open_scene, read_image


def detections_of(boxes: np.ndarray, labels: np.ndarray | None = None) -> Detections:
    n = len(boxes)
    labels = np.zeros(n, np.int32) if labels is None else labels.astype(np.int32)
    scores = np.linspace(0.9, 0.3, n).astype(np.float32)
    return Detections(np.float32(boxes), scores, labels)


def grid_boxes(size: int, pitch: int, side: int) -> np.ndarray:
    y, x = np.mgrid[pitch : size - pitch : pitch, pitch : size - pitch : pitch].reshape(2, -1)
    return np.stack([x, y, x + side, y + side], 1)


@pytest.mark.parametrize(("size", "pitch"), [(400, 40), (3000, 200)])
def test_neither_outlines_nor_scores_cover_an_object(size: int, pitch: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    boxes = grid_boxes(size, pitch, 8)
    image = draw(open_scene(pixels), detections_of(boxes), ("person",))
    for x1, y1, x2, y2 in boxes:
        assert np.array_equal(image[y1:y2, x1:x2], pixels[y1:y2, x1:x2])


def test_every_object_is_outlined_in_the_color_of_its_class() -> None:
    boxes = grid_boxes(400, 40, 8)
    labels = np.arange(len(boxes)) % 3
    image = draw(open_scene(np.full((400, 400, 3), 90, np.uint8)), detections_of(boxes, labels), ("a", "b", "c"))
    for (x1, y1, x2, y2), label in zip(boxes, labels, strict=True):
        ring = image[y1 - 3 : y2 + 4, x1 - 3 : x2 + 4].reshape(-1, 3)
        assert (ring == COLORS[label]).all(1).sum() > 30
        for other in set(range(3)) - {label}:
            assert not (ring == COLORS[other]).all(1).any()


def test_an_object_of_one_pixel_is_visible_in_an_overview(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "MAX_PIXELS", 1_000_000)
    monkeypatch.setattr(drawing, "OVERVIEW", 90_000)
    image = draw(
        open_scene(np.zeros((3000, 3000, 3), np.uint8)), detections_of(np.array([[1500, 1500, 1501, 1501]])), ("a",)
    )
    assert image.shape[1] == 300
    marked = np.argwhere((image[:300] == COLORS[0]).all(-1))
    assert np.ptp(marked, axis=0).min() >= 5
    assert np.abs(marked.mean(0) - 150).max() < 8


def test_the_legend_is_below_the_image_and_shows_counts() -> None:
    pixels = np.zeros((600, 800, 3), np.uint8)
    empty = draw(open_scene(pixels), Detections.empty(), ("person", "car"))
    assert np.array_equal(empty[:600], pixels)
    assert empty.shape[0] > 600
    one = draw(open_scene(pixels), detections_of(np.array([[5, 5, 9, 9]])), ("person", "car"))
    assert not np.array_equal(empty[600:], one[600:])  # the count is 1 instead of 0


def test_a_legend_of_many_classes_has_more_rows() -> None:
    scene = open_scene(np.zeros((100, 500, 3), np.uint8))
    heights = [draw(scene, Detections.empty(), tuple(f"class {i}" for i in range(n))).shape[0] for n in (1, 10, 40)]
    assert heights == sorted(set(heights))


@pytest.mark.parametrize(("width", "height"), [(3000, 20), (20, 3000), (700, 690), (1, 3000), (900, 900)])
@pytest.mark.parametrize("classes", [1, 60])
def test_a_drawing_keeps_to_the_longest_side_with_its_legend(width: int, height: int, classes: int) -> None:
    scene = open_scene(np.zeros((height, width, 3), np.uint8))
    image = draw(scene, Detections.empty(), [f"class number {i}" for i in range(classes)], max_side=700)
    assert max(image.shape) <= 700
    assert max(image.shape) > 500


def test_names_that_differ_only_beyond_ascii_are_drawn_differently() -> None:
    scene = open_scene(np.zeros((64, 400, 3), np.uint8))
    drawings = [draw(scene, Detections.empty(), [name]) for name in ("bateau", "bâteau", "bäteau", "船", "?")]
    assert len({drawing.tobytes() for drawing in drawings}) == len(drawings)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_saved_image_shows_what_was_drawn(tmp_path: Path, suffix: str) -> None:
    pixels = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8), (0, 0), 5)
    save_image(tmp_path / f"out{suffix}", pixels)
    assert np.abs(read_image(tmp_path / f"out{suffix}").astype(int) - pixels).mean() < (0.1 if suffix == ".png" else 3)


@pytest.mark.parametrize("name", ["out", "out.txt"])
def test_an_unsupported_suffix_raises(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"use .jpg, .png or .webp"):
        save_image(tmp_path / name, np.zeros((2, 2, 3), np.uint8))
