from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tinydet.infer.contrast_filter import ContrastFilter
from tinydet.infer.static_tiles import StaticTiles
from tinydet.runtime.options import ScanOptions
from tinydet.runtime.plan import plan_scan
from tinydet.runtime.scan import SceneResult, collect, detect_scene, scan
from tinydet.runtime.scenes import Scene, open_scene

FILTER = ContrastFilter(
    threshold=30, size=8, tile=64, scale=1.0, recall=1, recall_bound=0.99, objects=9, tiles=9, saving=0.5, motion=15
)
OPTIONS = ScanOptions(overlap=16)


def detect_moving(
    backend: Any, scene: Scene, tiles: StaticTiles, options: ScanOptions = OPTIONS, tile_filter: Any = FILTER
) -> SceneResult:
    """Process the next frame of a video."""
    plan = plan_scan(scene, backend.spec, options)
    tiles.start_frame(scene, plan)
    return collect(scan(backend, scene, plan, tile_filter=tile_filter, journal=tiles))


def frame(index: int, noise: float = 0) -> np.ndarray:
    """One square rests, another moves right, a third appears in the fifth frame."""
    pixels = np.full((256, 320, 3), 20, np.uint8)
    pixels[30:38, 40:48] = 255
    pixels[200:208, 8 * index + 4 : 8 * index + 12] = 255
    if index > 3:
        pixels[100:108, 280:288] = 255
    noisy = pixels + np.random.default_rng(index).normal(0, noise, pixels.shape)
    return noisy.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("noise", [0, 3])
@pytest.mark.parametrize("sizes", [None, (4.0, 8.0, 40.0)], ids=["one pass", "with a coarse pass"])
def test_nothing_is_lost_and_tiles_without_motion_are_not_run(
    white_squares: Callable, noise: float, sizes: tuple | None
) -> None:
    every, some = white_squares(object_sizes=sizes), white_squares(object_sizes=sizes)
    tiles = StaticTiles(FILTER)
    for index in range(8):
        scene = open_scene(frame(index, noise))
        found = detect_moving(some, scene, tiles)
        expected = detect_scene(every, scene, OPTIONS)
        assert np.array_equal(found.detections.boxes, expected.detections.boxes)
        assert found.tiles == expected.tiles
    assert tiles.tiles == sum(every.batches)
    assert sum(some.batches) == tiles.tiles - tiles.filtered - tiles.static
    assert tiles.static > 8
    assert sum(some.batches) < 0.25 * sum(every.batches)


def test_a_slow_change_adds_up_until_the_tile_is_run(white_squares: Callable) -> None:
    backend, tiles = white_squares(), StaticTiles(FILTER)
    runs = []
    for value in range(100, 160, 2):
        pixels = np.zeros((64, 64, 3), np.uint8)
        pixels[20:28, 20:28] = value
        before = len(backend.batches)
        detect_moving(backend, open_scene(pixels), tiles)
        runs.append(len(backend.batches) - before)
    assert runs[0] == 1
    assert 2 <= sum(runs[1:]) <= 60 // FILTER.motion


def test_frames_of_another_size_or_scale_reuse_nothing(white_squares: Callable) -> None:
    backend, tiles = white_squares(), StaticTiles(FILTER)
    # Sizes that move tiles that exist in both, and one that changes the size of the only tile.
    for width, height, scale in ((120, 64, 1.0), (116, 64, 1.0), (40, 64, 1.0), (64, 40, 1.0), (64, 40, 0.5)):
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[20:28, 20:28] = 255
        scene, options = open_scene(pixels), ScanOptions(overlap=16, scale=scale)
        found = detect_moving(backend, scene, tiles, options, tile_filter=None)
        expected = detect_scene(backend, scene, options)
        assert np.array_equal(found.detections.boxes, expected.detections.boxes)
        assert tiles.static == 0


def test_a_tile_that_moves_as_a_whole_is_run_each_time(white_squares: Callable) -> None:
    backend, tiles = white_squares(), StaticTiles(FILTER)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)
    for shift in range(5):
        scene = open_scene(np.ascontiguousarray(pixels[:, 8 * shift : 8 * shift + 64]))
        detect_moving(backend, scene, tiles)
    assert backend.batches == [1] * 5
