from __future__ import annotations

import numpy as np
import pytest

from tinydet.geometry.tiles import TileGrid
from tinydet.runtime.detections import Detections
from tinydet.runtime.stitch import Stitcher


def iou(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    inner = area(
        np.concatenate(
            [np.maximum(one[:, None, :2], two[None, :, :2]), np.minimum(one[:, None, 2:], two[None, :, 2:])], -1
        )
    )
    return inner / (area(one)[:, None] + area(two)[None] - inner)


def area(boxes: np.ndarray) -> np.ndarray:
    return np.maximum(boxes[..., 2:] - boxes[..., :2], 0).prod(-1)


def boxes_of(tiles: np.ndarray, boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> Detections:
    """Boxes of one or more tiles, in scene pixels."""
    return Detections(boxes, scores, labels, {"tile": tiles})


def objects(
    seed: int, size: int, count: int, smallest: float, largest: float, spread: float | None = None
) -> np.ndarray:
    """Boxes inside a scene, in groups of 30 (normal, `spread` pixels) or anywhere; no two have an IoU of 0.5."""
    rng = np.random.default_rng(seed)
    found = np.zeros((0, 4))
    while len(found) < count:
        center = (
            rng.uniform(0, size, (1, 2)) if spread is None else rng.uniform(0, size, 2) + rng.normal(0, spread, (30, 2))
        )
        side = rng.uniform(smallest, largest, (len(center), 1)) * np.exp(
            rng.uniform(-0.25, 0.25, (len(center), 1)) * [1, -1]
        )
        for box in np.concatenate([center - side / 2, center + side / 2], 1):
            if box.min() >= 0 and box.max() <= size and not (iou(box[None], found) >= 0.5).any():
                found = np.concatenate([found, box[None]])
    return found


def stitched(
    truth: np.ndarray,
    grid: TileGrid,
    *,
    jitter: float = 0.4,
    visible: float = 0.3,
    order: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    **options: object,
) -> tuple[Detections, int]:
    """Stitch what a perfect detector finds: every object that a tile shows more than `visible` of, cut at its edges.

    Return the detections of the scene, and the largest number of boxes that had to wait at a time.
    """
    stitcher = Stitcher(grid, **{"nms_iou": None, "enough": 0, **options})
    found, held = [], 0
    for index in range(len(grid)) if order is None else order.tolist():
        tile = grid.tiles[index]
        rng = np.random.default_rng((1, index))
        bounds = np.array([tile.x, tile.y, tile.x + tile.width, tile.y + tile.height], float)
        shown = np.concatenate([np.maximum(truth[:, :2], bounds[:2]), np.minimum(truth[:, 2:], bounds[2:])], 1)
        share = area(shown) / area(truth)
        which = np.flatnonzero(share > visible)
        boxes = np.clip(
            shown[which] + rng.normal(0, jitter, (len(which), 4)), np.tile(bounds[:2], 2), np.tile(bounds[2:], 2)
        )
        scores = (rng.uniform(0.5, 1, len(which)) * (0.5 + 0.5 * share[which])).astype(np.float32)
        classes = np.zeros(len(which), np.int32) if labels is None else labels[which].astype(np.int32)
        found.append(stitcher.add([index], boxes_of(np.full(len(which), index), boxes, scores, classes)))
        held = max(held, len(stitcher._pool))
    assert len(stitcher._pool) == 0
    return Detections.concatenate(found), held


def recall_and_extra(truth: np.ndarray, detections: Detections) -> tuple[float, float]:
    """Return the share of objects with their own box of IoU 0.5, matched by score, and the other boxes per object."""
    overlap = iou(detections.boxes.astype(float), truth)
    free = np.ones(len(truth), bool)
    for i in np.argsort(-detections.scores, kind="stable"):
        best = int(np.where(free, overlap[i], 0).argmax())
        free[best] &= overlap[i, best] < 0.5
    return float((~free).mean()), (len(detections) - int((~free).sum())) / len(truth)


@pytest.mark.parametrize(
    ("smallest", "largest", "spread", "count"),
    [(8, 20, 12, 1000), (8, 20, None, 700), (20, 100, 30, 300)],
    ids=["tight crowd", "scattered", "crowd of larger ones"],
)
def test_a_perfect_tile_detector_gives_a_perfect_scene(
    smallest: float, largest: float, spread: float | None, count: int
) -> None:
    results = []
    for seed in range(2):
        truth = objects(seed, 1700, count, smallest, largest, spread)
        detections, _ = stitched(truth, TileGrid(1700, 1700, 640, 128))
        results.append(recall_and_extra(truth, detections))
    recall, extra = np.mean(results, axis=0)
    assert recall >= 0.999
    assert extra <= 0.001


@pytest.mark.parametrize(("smallest", "largest", "count", "minimum"), [(150, 400, 60, 0.995), (400, 900, 15, 0.8)])
def test_a_crowd_of_objects_larger_than_the_overlap_stays_separate(
    smallest: float, largest: float, count: int, minimum: float
) -> None:
    results = []
    for seed in range(4):
        truth = objects(seed, 3000, count, smallest, largest)
        results.append(recall_and_extra(truth, stitched(truth, TileGrid(3000, 3000, 640, 128))[0]))
    recall, extra = np.mean(results, axis=0)
    assert recall >= minimum
    assert extra <= 1 - minimum


def test_plain_nms_loses_and_duplicates_objects_of_the_same_crowd() -> None:
    truth = objects(0, 1700, 1000, 8, 20, 12)
    detections, _ = stitched(truth, TileGrid(1700, 1700, 640, 128), merge="nms")
    recall, extra = recall_and_extra(truth, detections)
    assert recall < 0.995
    assert extra > 0.01


@pytest.mark.parametrize(
    "largest", [130, 400, 900], ids=["just larger than the overlap", "up to a tile", "larger than a tile"]
)
def test_an_object_larger_than_the_overlap_is_found_once_and_whole(largest: float) -> None:
    """One object at a time, in every kind of position: inside a tile, across an edge, a corner, or three tiles."""
    grid = TileGrid(2600, 2200, 640, 128)
    rng = np.random.default_rng(0)
    for _ in range(40):
        side = rng.uniform(110, largest, 2)
        corner = rng.uniform(0, [2600, 2200] - side)
        truth = np.concatenate([corner, corner + side])[None]
        detections, _ = stitched(truth, grid, visible=0.2)  # a tile that shows less than a fifth finds nothing
        assert len(detections) == 1, truth
        assert iou(detections.boxes.astype(float), truth)[0, 0] > 0.5, truth


def test_a_detector_that_finds_every_part_gives_every_object_to_the_pixel() -> None:
    grid = TileGrid(2600, 2200, 640, 128)
    rng = np.random.default_rng(1)
    for _ in range(40):
        side = np.exp(rng.uniform(np.log(3), np.log(1500), 2))
        corner = rng.uniform(0, [2600, 2200] - side)
        truth = np.concatenate([corner, corner + side])[None]
        detections, _ = stitched(truth, grid, jitter=0, visible=0)
        np.testing.assert_allclose(detections.boxes, truth, atol=1e-3)


@pytest.mark.parametrize("overlap", [0, 5, 16, 64])
def test_no_object_is_lost_whatever_the_overlap(overlap: int) -> None:
    grid = TileGrid(700, 500, 128, overlap)
    rng = np.random.default_rng(overlap)
    for _ in range(40):
        side = rng.uniform(3, 200, 2)
        corner = rng.uniform(0, [700, 500] - side)
        truth = np.concatenate([corner, corner + side])[None]
        detections, _ = stitched(truth, grid, visible=0.2, jitter=0.3)
        assert len(detections) >= 1, truth


def test_adjacent_objects_larger_than_the_overlap_are_not_joined() -> None:
    truth = np.array([[400, 100, 700, 200], [400, 210, 700, 310], [710, 100, 1000, 200], [710, 210, 1000, 310]], float)
    detections, _ = stitched(truth, TileGrid(1152, 640, 640, 128), jitter=0)
    assert recall_and_extra(truth, detections) == (1, 0)


def test_a_part_at_an_edge_is_dropped_if_the_next_tile_has_room_for_it() -> None:
    """The next tile found nothing there, so the edge itself caused the detection."""
    stitcher = Stitcher(TileGrid(1152, 640, 640, 128), nms_iou=None)
    boxes = np.array([[630, 300, 640, 320], [300, 300, 310, 320]], float)
    found = stitcher.add([0, 1], boxes_of(np.zeros(2, np.int64), boxes, np.float32([0.9, 0.8]), np.zeros(2, np.int32)))
    assert found.boxes.tolist() == [[300, 300, 310, 320]]


def test_a_box_at_the_border_of_the_scene_stays() -> None:
    stitcher = Stitcher(TileGrid(1152, 640, 640, 128), nms_iou=None)
    boxes = np.array([[0, 0, 9, 9], [1143, 631, 1152, 640]], float)
    found = stitcher.add([0, 1], boxes_of(np.array([0, 1]), boxes, np.float32([0.9, 0.8]), np.zeros(2, np.int32)))
    assert sorted(found.boxes.tolist()) == sorted(boxes.tolist())


def test_two_boxes_of_one_tile_never_suppress_each_other_across_tiles() -> None:
    stitcher = Stitcher(TileGrid(1152, 640, 640, 128), nms_iou=None)
    boxes = np.array([[540, 300, 560, 320], [543, 300, 563, 320], [540, 300, 560, 320]], float)  # IoU 0.74
    found = stitcher.add(
        [0, 1], boxes_of(np.array([0, 0, 1]), boxes, np.float32([0.9, 0.8, 0.7]), np.zeros(3, np.int32))
    )
    assert found.boxes.tolist() == boxes[:2].tolist()
    assert found.tiles.tolist() == [0, 0]


def test_a_box_suppresses_only_the_most_similar_one_of_another_tile() -> None:
    """Tile 1 separates two objects; the box of tile 0 resembles both and scores higher."""
    boxes = np.array([[542, 300, 562, 320], [540, 300, 560, 320], [548, 300, 568, 320]], float)  # IoU 0.82, 0.54
    found = pair(boxes, [0, 1, 1])
    assert found.boxes.tolist() == boxes[[0, 2]].tolist()


def test_two_views_of_a_three_pixel_object_are_one_despite_a_low_iou() -> None:
    assert len(pair(np.array([[540, 300, 543, 303], [541, 301, 544, 304]], float), [0, 1])) == 1  # IoU 0.29
    assert len(pair(np.array([[540, 300, 543, 303], [542, 302, 545, 305]], float), [0, 1])) == 2  # 2 pixels off


def test_jitter_cannot_make_both_tiles_drop_an_object() -> None:
    """120 pixels: both views nearly touch the inner edges of both tiles; each tile assumes room in the other."""
    assert len(pair(np.array([[517.5, 300, 636.5, 400], [515.5, 300, 635, 400]], float), [0, 1])) == 1


def test_a_whole_box_suppresses_its_part_even_if_the_part_scores_higher() -> None:
    boxes = np.array([[518, 300, 640, 400], [517, 300, 700, 400]], float)  # no room for the part in tile 1
    assert pair(boxes, [0, 1]).boxes.tolist() == boxes[1:].tolist()


def test_parts_of_different_classes_are_not_joined() -> None:
    boxes = np.array([[400, 300, 640, 400], [512, 300, 700, 400]] * 2, float)
    found = pair(boxes, [0, 1, 0, 1], [0, 0, 1, 1])
    assert found.labels.tolist() == [0, 1]
    assert found.boxes.tolist() == [[400, 300, 700, 400]] * 2


def test_distances_are_in_pixels_of_the_models_input() -> None:
    """6 scene pixels from an edge of tile 0, where tile 1 has room: at half scale, the box touches the edge."""
    boxes = np.array([[600, 300, 634, 320]], float)
    assert len(pair(boxes, [0])) == 1
    assert len(pair(boxes, [0], pixel=2)) == 0


def pair(boxes: np.ndarray, tiles: list[int], labels: list[int] | None = None, **options: object) -> Detections:
    """Stitch boxes of two tiles that share x = 512 to 640; scores fall from 0.9."""
    stitcher = Stitcher(TileGrid(1152, 640, 640, 128), **{"nms_iou": None, **options})
    scores = np.float32(0.9 - 0.1 * np.arange(len(boxes)))
    return stitcher.add(
        [0, 1], boxes_of(np.array(tiles), boxes, scores, np.int32(labels or [0] * len(boxes)))
    ).by_score()


def test_nms_within_a_tile_is_per_class_and_only_for_models_without_nms() -> None:
    boxes = np.array([[100, 300, 120, 320], [101, 300, 121, 320], [102, 300, 122, 320]], float)
    arguments = [0, 1], boxes_of(np.zeros(3, np.int64), boxes, np.float32([0.9, 0.8, 0.7]), np.int32([0, 0, 1]))
    grid = TileGrid(1152, 640, 640, 128)
    assert Stitcher(grid, nms_iou=0.5).add(*arguments).labels.tolist() == [0, 1]
    assert len(Stitcher(grid, nms_iou=None).add(*arguments)) == 3


def test_classes_do_not_affect_each_other_at_seams() -> None:
    truth = np.repeat(objects(0, 1700, 200, 8, 300), 2, axis=0)
    labels = np.arange(len(truth)) % 2
    detections, _ = stitched(truth, TileGrid(1700, 1700, 640, 128), labels=labels)
    for label in (0, 1):
        chosen = truth[labels == label]
        recall, extra = recall_and_extra(chosen, detections[detections.labels == label])
        assert recall >= 0.98
        assert extra <= 0.01


def test_neither_the_order_of_tiles_nor_the_rows_that_are_stitched_at_once_change_the_result() -> None:
    truth = np.concatenate([objects(0, 1500, 300, 3, 20, 12), objects(1, 1500, 40, 100, 400)])
    grid = TileGrid(1500, 1500, 256, 64)
    expected = stitched(truth, grid, nms_iou=0.5)[0].by_score()
    for seed, enough in enumerate((0, 60, 1024, 0)):
        order = np.random.default_rng(seed).permutation(len(grid))
        found = stitched(truth, grid, nms_iou=0.5, order=order, enough=enough)[0].by_score()
        assert found.boxes.tolist() == expected.boxes.tolist()
        assert found.tiles.tolist() == expected.tiles.tolist()


def test_the_number_of_waiting_boxes_does_not_grow_with_the_height_of_the_scene() -> None:
    held = []
    for height in (2000, 8000):
        rng = np.random.default_rng(0)
        center = rng.uniform(20, [980, height - 20], (height // 4, 2))
        truth = np.concatenate([center - 8, center + 8], 1)
        _, most = stitched(truth, TileGrid(1000, height, 256, 64))
        held.append(most)
    assert 0 < held[1] < 1.5 * held[0]


@pytest.mark.parametrize("enough", [0, 3])
def test_boxes_are_final_as_soon_as_their_rows_are_complete_and_have_enough_boxes(enough: int) -> None:
    grid = TileGrid(256, 2000, 256, 64)
    stitcher = Stitcher(grid, nms_iou=None, enough=enough)
    left = []
    for index, tile in enumerate(grid.tiles):
        box = np.array([[100, tile.y + 70, 110, tile.y + 80]], float)  # above all of the next row
        left.append(
            len(stitcher.add([index], boxes_of(np.array([index]), box, np.float32([0.9]), np.zeros(1, np.int32))))
        )
    assert len(grid) == 11 and left == ([0, 0, 3] * 3 + [0, 2] if enough else [1] * 11)


def test_each_box_has_the_index_of_its_tile_and_the_distance_to_its_edge() -> None:
    grid = TileGrid(1152, 640, 640, 128)
    stitcher = Stitcher(grid, nms_iou=None)
    boxes = np.array([[10, 10, 30, 30], [600, 10, 620, 30]], float)
    found = stitcher.add([0, 1], boxes_of(np.array([0, 1]), boxes, np.float32([0.9, 0.8]), np.zeros(2, np.int32)))
    assert found.tiles.tolist() == [0, 1]
    assert found.seam_distance.tolist() == [610, 88]  # to x = 640, the right edge of tile 0; to 512, the left of tile 1
    alone = Stitcher(TileGrid(600, 600, 640, 128), nms_iou=None)
    found = alone.add([0], boxes_of(np.zeros(1, np.int64), boxes[:1], np.float32([0.9]), np.zeros(1, np.int32)))
    assert found.seam_distance.tolist() == [np.inf]


def test_boxes_that_are_nan_are_refused() -> None:
    stitcher = Stitcher(TileGrid(64, 64, 64, 8), nms_iou=None)
    with pytest.raises(ValueError, match="NaN"):
        stitcher.add(
            [0], boxes_of(np.zeros(1, np.int64), np.full((1, 4), np.nan), np.float32([0.9]), np.zeros(1, np.int32))
        )
