"""Tiles of several scenes share batches, and each scene gets the results that it would get alone."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pytest

from tinydet.runtime import scan as scan_module
from tinydet.runtime.backends import TileOutputs
from tinydet.runtime.detections import Detections
from tinydet.runtime.journal import Journal
from tinydet.runtime.options import ScanOptions
from tinydet.runtime.plan import plan_scan
from tinydet.runtime.scan import SceneScan, collect, detect_scene, detect_scenes, scan_scenes
from tinydet.runtime.scenes import ArrayScene, Scene
from tinydet.runtime.scenes.pixels import Image

SIZES = [(64, 64), (40, 30), (300, 200), (64, 64), (9, 70), (129, 64), (64, 64), (64, 64), (500, 90), (64, 50)]
OPTIONS = ScanOptions(overlap=20, batch=4)


def pixels_of(n: int) -> np.ndarray:
    rng = np.random.default_rng(n)
    width, height = SIZES[n % len(SIZES)]
    pixels = np.zeros((height, width, 3), np.uint8)
    for x, y in rng.integers(0, (max(width - 8, 1), max(height - 8, 1)), (width * height // 500, 2)):
        pixels[y : y + 6, x : x + 8] = 255
    return pixels


def scene_of(n: int) -> Scene:
    return ArrayScene(f"scene {n}", pixels_of(n))


def same(one: Detections, other: Detections) -> bool:
    names = ("boxes", "scores", "labels", "tiles", "passes", "seam_distance")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)


class Counted(ArrayScene):
    """Counts the scenes that are open, with their pixels."""

    open: list[Scene]
    most = 0

    def __init__(self, n: int, counter: type[Counted]) -> None:
        super().__init__(f"scene {n}", pixels_of(n))
        self.counter = counter
        counter.open.append(self)
        counter.most = max(counter.most, sum(scene.width * scene.height for scene in counter.open))

    def close(self) -> None:
        self.counter.open.remove(self)


@pytest.fixture
def counted() -> type[Counted]:
    return type("Own", (Counted,), {"open": []})


class Torn(Counted):
    """Cannot be read from the row 60 on."""

    def _read(self, x: int, y: int, width: int, height: int, size: tuple[int, int]) -> Image:
        if y + height > 64:
            raise ValueError(f"{self.name}: torn")
        return super()._read(x, y, width, height, size)


@pytest.mark.parametrize("sizes", [None, (4.0, 10.0, 30.0)], ids=["one pass", "with a coarse pass"])
@pytest.mark.parametrize(("batch", "readers"), [(1, 1), (3, 2), (4, 5), (100, 2)])
def test_each_scene_gets_the_results_that_it_gets_alone(
    white_squares: Callable, sizes: tuple | None, batch: int, readers: int
) -> None:
    options = ScanOptions(overlap=20, batch=batch, readers=readers)
    alone = [detect_scene(white_squares(object_sizes=sizes), scene_of(n), options) for n in range(30)]
    backend = white_squares(object_sizes=sizes, max_batch=16)
    pooled = list(detect_scenes(backend, map(scene_of, range(30)), options))
    assert len(pooled) == len(alone)
    for one, other in zip(pooled, alone, strict=True):
        assert same(one.detections, other.detections)
        assert (one.tiles, one.saturated, one.empty) == (other.tiles, other.saturated, other.empty)
    assert set(backend.batches[:-1]) <= {min(batch, 16)}
    assert sum(backend.batches) == sum(result.tiles for result in alone)


def test_functions_open_their_scenes_ahead_and_these_are_closed(
    white_squares: Callable, counted: type[Counted]
) -> None:
    found = detect_scenes(white_squares(), [lambda n=n: counted(n, counted) for n in range(30)], OPTIONS)
    assert len(next(found).detections) == len(detect_scene(white_squares(), scene_of(0), OPTIONS).detections)
    assert len(counted.open) > 1
    assert len(list(found)) == 29
    assert counted.open == []


@pytest.mark.parametrize("limit", [1, 20_000, 10**9])
def test_scenes_in_memory_have_few_pixels_or_there_is_only_one(
    white_squares: Callable, counted: type[Counted], monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(scan_module, "OPEN_PIXELS", limit)
    assert (
        len(list(detect_scenes(white_squares(), [lambda n=n: counted(n, counted) for n in range(30)], OPTIONS))) == 30
    )
    largest = max(width * height for width, height in SIZES)
    assert counted.most <= max(limit, 0) + largest
    if limit == 1:
        assert counted.most == largest


def scans(
    backend: object,
    counted: type[Counted],
    count: int,
    torn: set[int] = frozenset(),
    unreadable: set[int] = frozenset(),
) -> Iterator:
    def open_scan(n: int) -> SceneScan:
        if n in unreadable:
            raise OSError(f"scene {n}: gone")
        scene = (Torn if n in torn else Counted)(n, counted)
        return SceneScan(scene, plan_scan(scene, backend.spec, OPTIONS), close=scene.close)  # type: ignore[attr-defined]

    return scan_scenes(backend, range(count), open_scan, OPTIONS)  # type: ignore[arg-type]


def test_an_error_of_a_scene_is_raised_at_its_turn_and_the_others_are_complete(
    white_squares: Callable, counted: type[Counted]
) -> None:
    torn, unreadable = {0, 2, 12}, {1, 7, 29}  # of the torn scenes, 0 is too small to reach the damage
    order, failed = [], []
    for n, results in scans(white_squares(), counted, 30, torn, unreadable):
        order.append(n)
        try:
            found = collect(results).detections
        except (ValueError, OSError) as error:
            failed.append(str(error))
            continue
        assert same(found, detect_scene(white_squares(), scene_of(n), OPTIONS).detections)
    assert order == list(range(30))
    assert failed == ["scene 1: gone", "scene 2: torn", "scene 7: gone", "scene 12: torn", "scene 29: gone"]
    assert counted.open == []


def test_a_scene_whose_results_are_not_requested_is_left_out(white_squares: Callable, counted: type[Counted]) -> None:
    backend = white_squares()
    for n, results in scans(backend, counted, 20):
        if n % 3:
            assert same(collect(results).detections, detect_scene(white_squares(), scene_of(n), OPTIONS).detections)
    assert counted.open == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_run_closes_all_scenes_and_leaves_no_thread(
    white_squares: Callable, counted: type[Counted], error: type[BaseException]
) -> None:
    before = threading.active_count()
    backend = white_squares()
    run = backend.run

    def stops(images: np.ndarray) -> TileOutputs:
        if len(backend.batches) == 5:
            raise error
        outputs: TileOutputs = run(images)
        return outputs

    backend.run = stops
    with closing(scans(backend, counted, 30)) as found, pytest.raises(error):
        collections.deque((collect(results) for _, results in found), maxlen=0)
    assert threading.active_count() == before
    assert counted.open == []


def test_interrupted_runs_over_scenes_resume_without_running_a_tile_twice(
    white_squares: Callable, tmp_path: Path
) -> None:
    backend = white_squares(object_sizes=(4.0, 10.0, 30.0))
    expected = [detect_scene(backend, scene_of(n), OPTIONS) for n in range(12)]
    backend.batches.clear()
    run = backend.run

    def stops(images: np.ndarray) -> TileOutputs:
        if len(backend.batches) - before == 3:
            raise KeyboardInterrupt
        outputs: TileOutputs = run(images)
        return outputs

    backend.run = stops
    found: list = []
    for _ in range(60):
        before, found = len(backend.batches), []
        with ExitStack() as stack:

            def open_scan(n: int, stack: ExitStack = stack) -> SceneScan:
                scene = scene_of(n)
                journal = stack.enter_context(Journal(tmp_path / f"{n}.journal", {"scene": n}, resume=True))
                return SceneScan(scene, plan_scan(scene, backend.spec, OPTIONS), journal)

            stream = stack.enter_context(closing(scan_scenes(backend, range(12), open_scan, OPTIONS)))
            try:
                for _, results in stream:
                    found.append(collect(results))
                break
            except KeyboardInterrupt:
                continue
    assert sum(backend.batches) == sum(result.tiles for result in expected)
    for one, other in zip(found, expected, strict=True):
        assert same(one.detections, other.detections)
        assert one.tiles == other.tiles
