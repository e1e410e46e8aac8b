from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tinydet.infer.contrast_filter import ContrastFilter
from tinydet.infer.static_tiles import Stills
from tinydet.runtime.scan import detect
from tinydet.runtime.scenes import open_scene

GATE = ContrastFilter(
    threshold=30, size=8, tile=64, scale=1.0, recall=1, recall_bound=0.99, objects=9, tiles=9, saving=0.5, motion=15
)


def frame(index: int, noise: float = 0) -> np.ndarray:
    """One square rests, another goes right, a third is there from the fourth frame on."""
    pixels = np.full((256, 320, 3), 20, np.uint8)
    pixels[30:38, 40:48] = 255
    pixels[200:208, 8 * index + 4 : 8 * index + 12] = 255
    if index > 3:
        pixels[100:108, 280:288] = 255
    seen = pixels + np.random.default_rng(index).normal(0, noise, pixels.shape)
    return seen.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("noise", [0, 3])
@pytest.mark.parametrize("sizes", [None, (4.0, 8.0, 40.0)], ids=["one pass", "a coarse pass before"])
def test_nothing_is_lost_and_tiles_without_motion_are_not_run(
    white_squares: Callable, noise: float, sizes: tuple | None
) -> None:
    every, some = white_squares(object_sizes=sizes), white_squares(object_sizes=sizes)
    stills = Stills(GATE)
    for index in range(8):
        scene = open_scene(frame(index, noise))
        stills.look(scene, some.spec, overlap=16, scale=1.0)
        found = detect(some, scene, overlap=16, worth=GATE, journal=stills)
        expected = detect(every, scene, overlap=16)
        assert np.array_equal(found.detections.boxes, expected.detections.boxes)
        assert found.tiles == expected.tiles
    assert stills.tiles == sum(every.batches)
    assert sum(some.batches) == stills.tiles - stills.plain - stills.still
    assert stills.still > 8
    assert sum(some.batches) < 0.25 * sum(every.batches)


def test_a_slow_change_adds_up_until_the_tile_is_run(white_squares: Callable) -> None:
    backend, stills = white_squares(), Stills(GATE)
    runs = []
    for value in range(100, 160, 2):
        pixels = np.zeros((64, 64, 3), np.uint8)
        pixels[20:28, 20:28] = value
        scene = open_scene(pixels)
        stills.look(scene, backend.spec, overlap=16, scale=1.0)
        before = len(backend.batches)
        detect(backend, scene, overlap=16, worth=GATE, journal=stills)
        runs.append(len(backend.batches) - before)
    assert runs[0] == 1
    assert 2 <= sum(runs[1:]) <= 60 // GATE.motion


def test_frames_of_another_size_or_scale_are_looked_at_anew(white_squares: Callable) -> None:
    backend, stills = white_squares(), Stills(GATE)
    # Sizes that move tiles that are there in both, and one that changes the size of the only tile.
    for width, height, scale in ((120, 64, 1.0), (116, 64, 1.0), (40, 64, 1.0), (64, 40, 1.0), (64, 40, 0.5)):
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[20:28, 20:28] = 255
        scene = open_scene(pixels)
        found = {}
        for name, journal in (("again", stills), ("anew", None)):
            if journal is not None:
                stills.look(scene, backend.spec, overlap=16, scale=scale)
            found[name] = detect(backend, scene, overlap=16, scale=scale, journal=journal).detections.boxes
        assert np.array_equal(found["again"], found["anew"])
        assert stills.still == 0


def test_a_tile_that_moves_as_a_whole_is_run_each_time(white_squares: Callable) -> None:
    backend, stills = white_squares(), Stills(GATE)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 128, 3), dtype=np.uint8)
    for shift in range(5):
        scene = open_scene(np.ascontiguousarray(pixels[:, 8 * shift : 8 * shift + 64]))
        stills.look(scene, backend.spec, overlap=16, scale=1.0)
        detect(backend, scene, overlap=16, worth=GATE, journal=stills)
    assert backend.batches == [1] * 5
