from __future__ import annotations

import itertools
import threading
from collections.abc import Callable

import numpy as np
import pytest

from tinydet.runtime.backends import TileOutputs
from tinydet.runtime.options import ScanOptions
from tinydet.runtime.plan import plan_tiles
from tinydet.runtime.scan import detect_scene
from tinydet.runtime.scenes import Image, Scene, open_scene


def scene_with(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    pixels = np.zeros((height, width, 3), np.uint8)
    for x1, y1, x2, y2 in np.asarray(boxes, int):
        pixels[y1:y2, x1:x2] = 255
    return pixels


def squares(seed: int, width: int, height: int, pitch: int = 23, largest: int = 12) -> np.ndarray:
    """Rectangles that do not touch, one in most cells of a lattice."""
    rng = np.random.default_rng(seed)
    boxes = []
    for y, x in itertools.product(range(0, height - pitch, pitch), range(0, width - pitch, pitch)):
        w, h = rng.integers(3, largest + 1, 2)
        dx, dy = rng.integers(0, pitch - largest, 2)
        if rng.uniform() < 0.8:
            boxes.append([x + dx, y + dy, x + dx + w, y + dy + h])
    return np.array(boxes)


def as_set(boxes: np.ndarray) -> set[tuple[float, ...]]:
    return set(map(tuple, np.asarray(boxes, float).tolist()))


@pytest.mark.parametrize(("width", "height"), [(64, 64), (200, 150), (333, 70), (40, 30), (300, 50), (65, 500)])
@pytest.mark.parametrize("batch", [1, 3, 100])
def test_every_object_of_a_scene_is_found_once_in_its_pixels(
    white_squares: Callable, width: int, height: int, batch: int
) -> None:
    truth = squares(0, width, height)
    result = detect_scene(
        white_squares(), open_scene(scene_with(truth, width, height)), ScanOptions(overlap=20, batch=batch)
    )
    assert as_set(result.detections.boxes) == as_set(truth)
    assert len(result.detections) == len(truth)
    sides = np.sort(truth[:, 2:] - truth[:, :2], axis=1)
    assert (result.detections.labels == 1).sum() == (sides[:, 1] >= 2 * sides[:, 0]).sum()
    assert result.saturated == 0


def test_detections_are_sorted_by_score_and_above_the_minimum(white_squares: Callable) -> None:
    scene = open_scene(scene_with(squares(0, 300, 300), 300, 300))
    everything = detect_scene(white_squares(), scene, ScanOptions(overlap=20)).detections
    assert (np.diff(everything.scores) <= 0).all()
    best = detect_scene(white_squares(), scene, ScanOptions(overlap=20, score=0.55)).detections
    assert best.boxes.tolist() == everything.boxes[everything.scores >= 0.55].tolist()
    assert 0 < len(best) < len(everything)


@pytest.mark.parametrize("scale", [0.5, 0.25, 2.0])
def test_detections_of_a_rescaled_scene_are_in_pixels_of_the_original(white_squares: Callable, scale: float) -> None:
    unit = max(1, round(1 / scale))
    truth = squares(0, 300, 200) * unit
    pixels = scene_with(truth, 300 * unit, 200 * unit)
    result = detect_scene(white_squares(), open_scene(pixels), ScanOptions(overlap=30, scale=scale))
    assert len(result.detections) == len(truth)
    found = result.detections.boxes
    distance = np.abs(found[:, None] - truth[None]).max(-1)
    assert distance.min(0).max() <= (0 if scale < 1 else 0.75)
    assert result.tiles == len(plan_tiles(300 * unit, 200 * unit, tile=64, overlap=30, scale=scale).grid)


def test_a_scale_without_whole_pixels_shifts_no_box(white_squares: Callable) -> None:
    truth = squares(3, 280, 200, 25, 12) * 3
    truth[:, 3] = truth[:, 1] + truth[:, 2] - truth[:, 0]  # squares, whose class does not depend on rounding
    result = detect_scene(white_squares(), open_scene(scene_with(truth, 840, 600)), ScanOptions(overlap=30, scale=0.37))
    assert len(result.detections) == len(truth)
    distance = np.abs(result.detections.boxes[:, None] - truth[None]).max(-1)
    assert distance.min(0).max() <= 1 / 0.37  # a pixel of the model's input


def test_all_batches_but_the_last_are_full_and_none_exceeds_the_model(white_squares: Callable) -> None:
    backend = white_squares(max_batch=4)
    result = detect_scene(backend, open_scene(np.zeros((300, 200, 3), np.uint8)), ScanOptions(overlap=20, batch=16))
    assert set(backend.batches[:-1]) == {4}
    assert sum(backend.batches) == result.tiles == 35


def test_pixels_beyond_the_scene_are_padding_without_detections(white_squares: Callable) -> None:
    backend = white_squares(pad=(255, 255, 255))
    for height, width in ((40, 64), (64, 50)):
        result = detect_scene(backend, open_scene(np.zeros((height, width, 3), np.uint8)), ScanOptions(overlap=8))
        assert len(result.detections) == 0
    truth = np.array([[3, 4, 9, 10]])
    backend = white_squares(pad=(7, 8, 9))
    run, inputs = backend.run, []
    backend.run = lambda images: (inputs.append(images.copy()), run(images))[1]
    result = detect_scene(backend, open_scene(scene_with(truth, 50, 40)), ScanOptions(overlap=8))
    assert (inputs[0][0, 40:] == (7, 8, 9)).all()
    assert (inputs[0][0, :, 50:] == (7, 8, 9)).all()
    assert as_set(result.detections.boxes) == as_set(truth)


def test_tiles_with_more_objects_than_slots_are_counted_as_saturated(white_squares: Callable) -> None:
    truth = squares(0, 256, 64, 12, 5)
    scene = open_scene(scene_with(truth, 256, 64))
    full = detect_scene(white_squares(max_detections=3), scene, ScanOptions(overlap=8))
    assert full.saturated == full.tiles
    assert detect_scene(white_squares(max_detections=50), scene, ScanOptions(overlap=8)).saturated == 0
    # A model may fill fewer slots than it has.
    few = detect_scene(white_squares(max_detections=50, grid_rois=3), scene, ScanOptions(overlap=8))
    assert (few.saturated, few.cut) == (full.saturated, full.cut)
    # Only boxes below the requested score were cut.
    assert detect_scene(white_squares(max_detections=3), scene, ScanOptions(overlap=8, score=0.9)).saturated == 0


def test_progress_counts_every_tile(white_squares: Callable) -> None:
    ticks: list[int] = []
    result = detect_scene(
        white_squares(), open_scene(np.zeros((300, 300, 3), np.uint8)), ScanOptions(overlap=20), progress=ticks.append
    )
    assert sum(ticks) == result.tiles
    assert result.seconds > 0


class Recording(Scene):
    """A scene that records which thread reads what, and can be damaged from a row on."""

    name, width, height = "recording", 640, 640

    def __init__(self, damaged_from: int = 10_000) -> None:
        self.reads: list[tuple[int, int]] = []
        self.threads: set[int] = set()
        self.damaged_from = damaged_from

    def _read(self, x: int, y: int, width: int, height: int, size: tuple[int, int]) -> Image:
        self.reads.append((x, y))
        self.threads.add(threading.get_ident())
        if y >= self.damaged_from:
            raise ValueError("recording: damaged")
        return np.zeros((size[1], size[0], 3), np.uint8)


def test_one_other_thread_reads_ahead_of_the_backend(white_squares: Callable) -> None:
    scene, backend = Recording(), white_squares()
    ahead: list[int] = []
    run = backend.run

    def slow(images: np.ndarray) -> TileOutputs:
        deadline = threading.Event()
        for _ in range(200):  # until the reader can read no further ahead
            if len(scene.reads) >= 4 * min(len(backend.batches) + 3, 25):
                break
            deadline.wait(0.01)
        outputs: TileOutputs = run(images)
        ahead.append(len(scene.reads) - sum(backend.batches))
        return outputs

    backend.run = slow
    grid = plan_tiles(640, 640, tile=64, overlap=0).grid
    detect_scene(backend, scene, ScanOptions(overlap=0))
    assert scene.reads == [(tile.x, tile.y) for tile in grid.tiles]
    assert scene.threads.isdisjoint({threading.get_ident()})
    assert len(scene.threads) == 1
    assert max(ahead) == 8  # two batches and no more: memory is bounded
    assert min(ahead[:-2]) == 8


def test_a_damaged_scene_ends_the_run_with_its_message_and_leaves_no_thread(white_squares: Callable) -> None:
    before = threading.active_count()
    with pytest.raises(ValueError, match="recording: damaged"):
        detect_scene(white_squares(), Recording(damaged_from=300), ScanOptions(overlap=0))
    assert threading.active_count() == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_run_leaves_no_thread(white_squares: Callable, error: type[BaseException]) -> None:
    def stop(_: int) -> None:
        raise error

    before = threading.active_count()
    scene = Recording()
    with pytest.raises(error):
        detect_scene(white_squares(), scene, ScanOptions(overlap=0), progress=stop)
    assert threading.active_count() == before
    assert len(scene.reads) <= 4 * 3


def test_a_model_that_returns_nan_is_refused(white_squares: Callable) -> None:
    backend = white_squares()
    run = backend.run
    for field in ("scores", "boxes"):

        def broken(images: np.ndarray, field: str = field) -> TileOutputs:
            outputs: TileOutputs = run(images)
            getattr(outputs, field)[0, 0] = np.nan
            outputs.labels[0, 0] = 0
            return outputs if field == "scores" else outputs._replace(scores=np.full_like(outputs.scores, 0.9))

        backend.run = broken
        with pytest.raises(ValueError, match="NaN"):
            detect_scene(backend, open_scene(np.zeros((64, 64, 3), np.uint8)), ScanOptions(overlap=8))
