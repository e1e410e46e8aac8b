from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tinydet.geometry.tiles import TileGrid
from tinydet.runtime.coarse import choose_coarse_pass
from tinydet.runtime.detections import Detections
from tinydet.runtime.options import ScanOptions
from tinydet.runtime.plan import plan_tiles
from tinydet.runtime.scan import detect_scene
from tinydet.runtime.scenes import open_scene
from tinydet.runtime.stitch import Stitcher

SIZES = (4.0, 12.0, 90.0)  # of the training objects; tiles of 64 share 32 pixels


def scene_with(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    pixels = np.zeros((400, 300, 3), np.uint8)
    for x1, y1, x2, y2 in boxes:
        pixels[y1:y2, x1:x2] = 255
    return pixels


def test_the_coarse_pass_finds_an_object_larger_than_a_tile_whole(white_squares: Callable) -> None:
    """Class-agnostic, because the parts of a square are bars."""
    boxes = [(70, 100, 160, 180), (20, 20, 28, 28), (200, 300, 210, 310)]
    scene = open_scene(scene_with(*boxes))
    found = detect_scene(white_squares(object_sizes=SIZES), scene, ScanOptions(overlap=32, agnostic=True)).detections
    large = found.passes == 1
    assert found.boxes[~large].tolist() == [[200, 300, 210, 310], [20, 20, 28, 28]]
    np.testing.assert_allclose(found.boxes[large], [[70, 100, 160, 180]], atol=5)  # a pixel of the coarse pass
    alone = detect_scene(white_squares(object_sizes=SIZES), scene, ScanOptions(overlap=32, coarse=None))
    assert alone.detections.passes.sum() == 0


def test_both_passes_are_counted_and_reported(white_squares: Callable) -> None:
    backend, ticks = white_squares(object_sizes=SIZES), []
    result = detect_scene(backend, open_scene(scene_with()), ScanOptions(overlap=32), progress=ticks.append)
    alone = detect_scene(backend, open_scene(scene_with()), ScanOptions(overlap=32, coarse=None))
    assert alone.tiles < result.tiles == sum(ticks)
    assert result.tiles < 1.3 * alone.tiles
    assert result.coarse == result.tiles - alone.tiles and alone.coarse == 0


def test_there_is_no_coarse_pass_if_objects_fit_the_overlap(white_squares: Callable) -> None:
    grid = TileGrid(300, 400, 64, 32)
    for sizes in (None, (4.0, 8.0, 20.0)):
        assert choose_coarse_pass(white_squares(object_sizes=sizes).spec, grid, overlap=32).coarse is None
    one_tile = TileGrid(64, 64, 64, 32)
    assert choose_coarse_pass(white_squares(object_sizes=SIZES).spec, one_tile, overlap=32).coarse is None


def test_the_coarse_scale_fits_the_largest_object_into_the_overlap(white_squares: Callable) -> None:
    choice = choose_coarse_pass(
        white_squares(object_sizes=SIZES).spec, TileGrid(300, 400, 64, 32), overlap=32, scale=2.0
    )
    assert choice.coarse is not None
    assert choice.coarse.scale * 90 / 2 == pytest.approx(32 - 12)  # 90 model pixels are 45 of the scene at scale 2
    assert choice.coarse.min_side * 2 == 32 - 12


@pytest.mark.parametrize("largest", [21.0, 24.0, 39.0, 60.0, 90.0])
def test_a_coarse_pass_of_a_large_scene_adds_few_tiles_however_large_the_objects_are(
    largest: float, white_squares: Callable
) -> None:
    grid = TileGrid(4000, 3000, 64, 32)
    coarse = choose_coarse_pass(white_squares(object_sizes=(4.0, 12.0, largest)).spec, grid, overlap=32).coarse
    assert coarse is not None and coarse.scale * largest <= 32 - 12
    added = plan_tiles(4000, 3000, tile=64, overlap=32, scale=coarse.scale)
    assert len(added.grid) < 0.27 * len(grid)


def test_the_coarse_pass_shows_no_object_smaller_than_the_learned_ones(white_squares: Callable) -> None:
    spec = white_squares(object_sizes=(15.0, 18.0, 22.0)).spec
    coarse = choose_coarse_pass(spec, TileGrid(300, 400, 64, 32), overlap=32).coarse
    assert coarse is not None and coarse.scale * coarse.min_side == pytest.approx(15)


def test_a_warning_says_what_to_do_if_the_overlap_is_too_small(white_squares: Callable) -> None:
    choice = choose_coarse_pass(white_squares(object_sizes=SIZES).spec, TileGrid(300, 400, 64, 8), overlap=8)
    assert choice.coarse is None
    assert "--overlap 103" in choice.warning


def coarse_boxes(boxes: list[list[float]], scores: list[float]) -> Detections:
    n = len(boxes)
    zeros = np.zeros(n, np.int32)
    return Detections(np.float32(boxes), np.float32(scores), zeros, {"tile": zeros + 5})


def stitched(boxes: list[list[float]], tiles: list[int], coarse: Detections, order: list[int]) -> Detections:
    stitcher = Stitcher(TileGrid(1152, 1152, 640, 128), nms_iou=None, coarse=coarse)
    corners, sources = np.array(boxes, float).reshape(-1, 4), np.array(tiles, np.int64)
    found = []
    for tile in order:
        own = sources == tile
        scores, labels = np.full(own.sum(), 0.9, np.float32), np.zeros(own.sum(), np.int32)
        found.append(stitcher.add([tile], Detections(corners[own], scores, labels, {"tile": sources[own]})))
    return Detections.concatenate(found).by_score()


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2]])
def test_a_coarse_box_suppresses_parts_whatever_their_score(order: list[int]) -> None:
    whole = [300.0, 300.0, 900.0, 900.0]
    parts = [[300, 300, 640, 640], [512, 300, 900, 640], [300, 512, 640, 900], [512, 512, 900, 900]]
    found = stitched(parts, [0, 1, 2, 3], coarse_boxes([whole], [0.4]), order)
    assert found.boxes.tolist() == [whole]
    assert (found.passes.tolist(), found.tiles.tolist()) == ([1], [5])


def test_a_whole_box_of_the_full_pass_suppresses_a_coarse_box() -> None:
    found = stitched([[100, 100, 300, 300]], [0], coarse_boxes([[104, 96, 310, 300]], [0.99]), [0, 1, 2, 3])
    assert found.boxes.tolist() == [[100, 100, 300, 300]]
    assert found.passes.tolist() == [0]


def test_coarse_boxes_do_not_suppress_each_other_and_none_is_lost() -> None:
    boxes = [[100.0, 100.0, 300.0, 300.0], [110.0, 100.0, 310.0, 300.0], [800.0, 1000.0, 1000.0, 1150.0]]
    found = stitched([], [], coarse_boxes(boxes, [0.9, 0.8, 0.7]), [0, 1, 2, 3])
    assert found.boxes.tolist() == boxes


def test_objects_beside_and_inside_a_coarse_box_stay() -> None:
    found = stitched(
        [[310, 100, 330, 120], [150, 150, 160, 160]], [0, 0], coarse_boxes([[100, 100, 300, 300]], [0.9]), [0, 1, 2, 3]
    )
    assert len(found) == 3
