"""The learned tile filter in a scan, with a filter that sees white pixels and does not know gray ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tinydet.runtime.backends import TileOutputs
from tinydet.runtime.coarse import CoarsePass
from tinydet.runtime.journal import Journal
from tinydet.runtime.options import ScanOptions
from tinydet.runtime.plan import plan_scan
from tinydet.runtime.scan import SceneResult, collect, scan
from tinydet.runtime.scenes import ArrayScene
from tinydet.runtime.tile_filter import FilterFile, LearnedFilter, cell_scores, filter_path, reduced
from tinydet.spec import FilterRecord, ModelSpec

RECORD = FilterRecord(("square", "bar"), (64, 32), 1.0, 2, 0.995, 0.995, 0.95, 900, 1, 100, 60, 1, 0.01)


class WhiteCells:
    """A tile filter: a cell that holds white scores by how much, and a tile with gray is unfamiliar."""

    name = "white cells"

    def __init__(self) -> None:
        self.spec = ModelSpec(
            ("object", "unfamiliar"), (1, 2), "tile_filter", "none", 32, max_detections=5, thresholds=(0.02, 0.5)
        )

    def run(self, images: np.ndarray) -> TileOutputs:
        (image,) = images
        white = (image[..., 0] > 180).reshape(2, 16, 2, 16).mean((1, 3)).ravel()
        gray = float(((image > 90) & (image < 110)).any())
        corners = np.array([(x, y, x + 16, y + 16) for y in (0, 16) for x in (0, 16)] + [(0, 0, 32, 32)], np.float32)
        scores, labels = np.array([*white, gray], np.float32), np.array([0, 0, 0, 0, 1], np.int32)
        order = np.argsort(-scores, kind="stable")
        counts = np.zeros(1, np.int32)
        return TileOutputs(corners[order][None], scores[order][None], labels[order][None], counts)


def scene_of(seed: int, gray: bool = False) -> ArrayScene:
    """A black scene with a cluster of white squares, and a gray corner."""
    rng, pixels = np.random.default_rng(seed), np.zeros((500, 700, 3), np.uint8)
    for x, y in rng.integers((100, 90), (300, 250), (12, 2)):
        pixels[y : y + 9, x : x + 9] = 255
    if gray:
        pixels[420:, 600:] = 100
    return ArrayScene("scene", pixels)


def same(one: SceneResult, other: SceneResult) -> bool:
    return all(
        np.array_equal(getattr(one.detections, name), getattr(other.detections, name))
        for name in ("boxes", "scores", "labels")
    )


@pytest.mark.parametrize("options", [ScanOptions(24, batch=1, readers=1), ScanOptions(24, batch=4, readers=3)])
def test_a_filter_that_sees_every_object_changes_no_detection(white_squares: Callable, options: ScanOptions) -> None:
    for seed in range(3):
        scene, backend = scene_of(seed), white_squares()
        plan = plan_scan(scene, backend.spec, options)
        dense = collect(scan(backend, scene, plan))
        found = collect(scan(backend, scene, plan, tile_filter=LearnedFilter(WhiteCells(), 2)))
        assert len(dense.detections) > 2
        assert same(found, dense)
        assert found.filtered > found.tiles / 3
        assert sum(backend.batches) == 2 * dense.tiles - found.filtered
        assert all(size == options.batch for size in backend.batches[-3:-1]), "kept tiles fill the batches"


def test_unfamiliar_tiles_are_scanned_and_counted_also_by_a_resumed_run(
    white_squares: Callable, tmp_path: Path
) -> None:
    scene, backend = scene_of(4, gray=True), white_squares()
    plan = plan_scan(scene, backend.spec, ScanOptions(24))
    learned = LearnedFilter(WhiteCells(), 2)
    whole = collect(scan(backend, scene, plan, tile_filter=learned))
    grid = plan.full.grid
    expected = sum(tile.x + 64 > 600 and tile.y + 64 > 420 for tile in grid.tiles)
    assert whole.unfamiliar == expected > 0
    with Journal(tmp_path / "a.journal", {}, resume=False) as journal:
        for _, _ in zip(range(5), scan(backend, scene, plan, tile_filter=learned, journal=journal), strict=False):
            pass
    with Journal(tmp_path / "a.journal", {}, resume=True) as journal:
        assert 0 < journal.tiles() < len(grid)
        resumed = collect(scan(backend, scene, plan, tile_filter=learned, journal=journal))
    assert same(resumed, whole)
    assert (resumed.filtered, resumed.unfamiliar) == (whole.filtered, whole.unfamiliar)


def test_the_coarse_pass_runs_on_all_tiles(white_squares: Callable) -> None:
    scene, backend = scene_of(5), white_squares()
    plan = plan_scan(scene, backend.spec, ScanOptions(24, coarse=CoarsePass(0.5, 24.0)))
    assert plan.coarse is not None
    learned = LearnedFilter(WhiteCells(), 2)
    found = collect(scan(backend, scene, plan, tile_filter=learned, filters_coarse=False))
    full = collect(scan(backend, scene, plan_scan(scene, backend.spec, ScanOptions(24)), tile_filter=learned))
    assert found.coarse == len(plan.coarse.grid)
    assert found.filtered == full.filtered > 0


def test_a_tile_beyond_the_scene_is_continued_by_reflection() -> None:
    content = np.random.default_rng(0).integers(0, 256, (40, 24, 3), dtype=np.uint8)
    seen = reduced(content, 64, 1)
    assert np.array_equal(seen[:40, :24], content)
    assert np.array_equal(seen[40:, :24], content[::-1][:24])
    assert np.array_equal(seen[:40, 24:48], content[:, ::-1])
    halved = reduced(np.repeat(np.repeat(seen[:32, :32], 2, 0), 2, 1), 64, 2)
    assert np.array_equal(halved, seen[:32, :32])
    assert reduced(content[:1, :1], 64, 4).shape == (16, 16, 3)


def test_an_object_scores_as_the_best_cell_that_it_touches() -> None:
    image = np.zeros((32, 32, 3), np.uint8)
    image[:16, :16], image[20:24, 20:24] = 255, 255
    found = WhiteCells().run(image[None])
    boxes = np.array([(2, 2, 6, 6), (14, 14, 18, 18), (17, 17, 30, 30), (17, 2, 30, 12)], float)
    assert cell_scores(found, 0, boxes) == [1.0, 1.0, 1 / 16, 0.0]


@pytest.mark.parametrize(
    ("changes", "record", "message"),
    [
        ({"classes": ("square", "ball")}, {}, "was trained for the classes square, bar, and the model finds square, b"),
        ({"tile": 16}, {}, "was calibrated for tiles of 32 pixels or more, in steps of 32, not for 16"),
        ({"tile": 80}, {}, "in steps of 32, not for 80"),
        ({}, {"scale": 0.5}, "was calibrated at scale 0.5, not 1; use --scale 0.5"),
        ({}, {"precision": "int8"}, "was calibrated as int8, and its graph is fp32"),
    ],
)
def test_a_filter_of_another_model_is_refused(
    white_squares: Callable, changes: dict, record: dict, message: str
) -> None:
    file = FilterFile(Path("a.filter.onnx"), "", dataclasses.replace(RECORD, **record), "fp32", (0.5, 0.5))
    FilterFile(Path("a"), "", RECORD, "fp32", (0.5, 0.5)).check(white_squares().spec, 1.0)
    with pytest.raises(ValueError, match=message):
        file.check(dataclasses.replace(white_squares().spec, **changes), 1.0)


def test_conversions_and_engines_of_a_model_share_its_filter(tmp_path: Path) -> None:
    (tmp_path / "a.filter.onnx").touch()
    for name in ("a.onnx", "a.int8.onnx", "a.engine", "a.xml"):
        assert filter_path(tmp_path / name) == tmp_path / "a.filter.onnx"
    assert filter_path(tmp_path / "b.onnx") == tmp_path / "b.filter.onnx"
