"""The benchmark's grid and merge equal its recorded results, and its NMS equals the plain definition."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinydet.data.sub_images import sub_image_corners
from tinydet.evaluate import choose_protocol, score_detections
from tinydet.evaluate.sub_images import merge_sub_images, suppress_pixels


@pytest.fixture
def case11(shared: Path) -> dict[str, Any]:
    folder = shared / "cases" / "evaluation" / "case11"
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


def test_merging_gives_the_recorded_detections_in_their_order(case11: dict[str, Any]) -> None:
    assert merge_sub_images(case11["corner_gt"], case11["dt_sub"]) == case11["dt"]


def test_shifting_without_nms_gives_the_recorded_detections(case11: dict[str, Any]) -> None:
    assert merge_sub_images(case11["corner_gt"], case11["dt_sub"], suppress=False) == case11["dt_merged_no_nms"]


def test_merged_detections_score_as_recorded(case11: dict[str, Any]) -> None:
    merged = merge_sub_images(case11["corner_gt"], case11["dt_sub"])
    scores = score_detections(case11["gt"], merged, choose_protocol("tinyperson")).to_json()
    assert scores["AP"] == case11["expected"]["ap_tinybenchmark"]["AP"]
    assert scores["MR"] == case11["expected"]["mr"]["MR"]


def test_sub_images_are_those_of_the_benchmark(case11: dict[str, Any]) -> None:
    for image in case11["corner_gt"]["old_images"]:
        cut = [tuple(s["corner"]) for s in case11["corner_gt"]["images"] if s["file_name"] == image["file_name"]]
        assert sub_image_corners(image["width"], image["height"]) == cut


@pytest.mark.parametrize("width", [1, 49, 50, 51, 640, 641, 1230, 1231, 1920, 4000])
def test_sub_images_cover_every_pixel_and_lie_inside(width: int) -> None:
    corners = sub_image_corners(width, 700)
    covered = np.zeros((700, width), bool)
    for x1, y1, x2, y2 in corners:
        assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= 700
        assert (x2 - x1, y2 - y1) == (min(640, width), 512)
        covered[y1:y2, x1:x2] = True
    assert covered.all() and len(set(corners)) == len(corners)


@pytest.mark.parametrize("seed", range(20))
def test_suppression_equals_the_greedy_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(0, 120))
    corner, side = rng.integers(0, 60, (n, 2)) / 2, rng.integers(0, 30, (n, 2)) / 2
    boxes = np.c_[corner, corner + side].astype(np.float32)
    scores = rng.choice([0.2, 0.5, 0.5000001, 0.9], n).astype(np.float32)
    group = np.sort(rng.integers(0, 3, n))
    assert suppress_pixels(boxes, scores, group).tolist() == greedy(boxes, scores, group)


def greedy(boxes: Any, scores: Any, group: Any) -> list[int]:
    one, kept = np.float32(1), []
    for i in np.argsort(-scores, kind="stable").tolist():
        for j in kept:
            if group[i] == group[j]:
                (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = boxes[j], boxes[i]
                w = max(np.float32(0), min(ax2, bx2) - max(ax1, bx1) + one)
                h = max(np.float32(0), min(ay2, by2) - max(ay1, by1) + one)
                a, b = (ax2 - ax1 + one) * (ay2 - ay1 + one), (bx2 - bx1 + one) * (by2 - by1 + one)
                if w * h / (a + b - w * h) >= np.float32(0.5):
                    break
        else:
            kept.append(i)
    return sorted(kept)


def test_two_tiny_people_close_together_become_one() -> None:
    """4 x 4 boxes 1.5 pixels apart have an IoU of 0.4545 by coordinates, but 0.538 with pixel-inclusive sides."""
    boxes = np.array([[10, 10, 14, 14], [11.5, 10, 15.5, 14]], np.float32)
    assert suppress_pixels(boxes, np.array([0.9, 0.8], np.float32), np.zeros(2, np.int64)).tolist() == [0]


CORNERS: Any = {
    "images": [{"id": 1, "file_name": "a", "corner": [0, 0, 9, 9]}],
    "old_images": [{"id": 5, "file_name": "a"}],
}
FOUND: Any = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4], "score": 1}


@pytest.mark.parametrize(
    ("corner_file", "detections", "message"),
    [
        ({"images": []}, [], "no list 'old_images'"),
        ([], [], "no list 'images'"),
        ({"images": [{"id": 1, "file_name": "a"}], "old_images": [{"id": 5, "file_name": "a"}]}, [], "no 'corner'"),
        (
            {"images": [{"id": 1, "file_name": "b", "corner": [0, 0, 9, 9]}], "old_images": []},
            [],
            "not in 'old_images'",
        ),
        ({"images": [], "old_images": []}, [{"image_id": 3, "score": 1}], "is on image 3"),
        ({"images": [], "old_images": []}, [{"score": 3}], "entry 0 has no 'image_id'"),
        (CORNERS, [{**FOUND, "score": None}], "entry 0 has the score null"),
        (CORNERS, [{**FOUND, "bbox": [0, 0, 1, 10**400]}], "entry 0 has the bbox"),
        (CORNERS, [{**FOUND, "image_id": [1]}], r"entry 0 has the image_id \[1\]"),
        ({**CORNERS, "images": [{"id": [1], "file_name": "a", "corner": [0, 0, 9, 9]}]}, [], r"has the id \[1\]"),
        ({**CORNERS, "images": [{"id": 1, "file_name": "a", "corner": [0, 0, 9]}]}, [], "has the corner"),
        ({**CORNERS, "images": [{"id": 1, "file_name": ["a"], "corner": [0, 0, 9, 9]}]}, [], "has the file_name"),
        ({**CORNERS, "old_images": ["a"]}, [], "entry 0 of 'old_images' is a JSON string"),
        ({"images": [], "old_images": []}, {}, "expected a list"),
    ],
)
def test_malformed_input_is_rejected(corner_file: Any, detections: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        merge_sub_images(corner_file, detections)
