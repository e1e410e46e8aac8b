"""Statistics of datasets on whole images, tiles, resized and mirrored images; real annotation files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from coco_files import random_coco, write_coco
from designs import FASTER_RCNN, RETINANET, released_design, torchvision_design
from torchvision.ops import box_iou

from tinydet.data.coco import Dataset, load_dataset
from tinydet.models.registry import anchors_of
from tinydet.runtime.plan import plan_tiles
from tinydet.salpha.counting import count_levels
from tinydet.salpha.dataset import statistics_of
from tinydet.salpha.detectors import anchor_counting, counting_of
from tinydet.salpha.factors import estimate_alpha
from tinydet.salpha.parity import best_anchors, count_distinct_anchors

COUNTING = anchor_counting(RETINANET)
REAL = ["tinyperson_156_frames_approx1920x1080", "tiny_citypersons_val", "hituav_six_flight_dates", "coco_val2014_100"]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return load_dataset(random_coco(tmp_path / "random.json", [(640, 512), (300, 200), (640, 512), (1000, 700)]))


def test_objects_are_counted_and_ignore_regions_are_not(tmp_path: Path) -> None:
    file = write_coco(
        tmp_path / "a.json",
        [(640, 512), (640, 512)],
        [
            {"bbox": [100, 100, 8, 8]},
            {"bbox": [200, 100, 9, 8], "image_id": 2},
            {"bbox": [300, 100, 20, 20], "category_id": 7},
            {"bbox": [300, 200, 20, 20], "iscrowd": 1},
            {"bbox": [300, 300, 100, 100], "ignore": 1},
        ],
    )
    assert statistics_of(load_dataset(file), COUNTING).counts == (2, 1, 0, 0, 0)
    assert statistics_of(load_dataset(file, categories=["person"]), COUNTING).counts == (
        2,
        0,
        0,
        0,
        0,
    )


@pytest.mark.parametrize(("detector", "rank"), [("retinanet", 0), ("fcos", 3)])
def test_a_measure_of_centers_alone_is_no_reason_for_s_alpha(dataset: Dataset, detector: str, rank: int) -> None:
    """Whatever it counts: it gives objects of all sizes the same level."""
    for kind, said in (("dotd", True), ("nwd", False)):
        found = statistics_of(dataset, counting_of(detector, {"assign": kind, "assign_rank": rank}))
        assert any("say nothing about sizes" in warning for warning in found.warnings) == said
        assert not (said and found.advice.salpha)
    if detector == "fcos":
        by_size = counting_of(detector, {"assign": "dotd", "assign_rank": rank}, rule="gt")
        assert statistics_of(dataset, by_size).sizes


def test_statistics_are_the_counts_of_the_images(dataset: Dataset) -> None:
    sizes = [(image.width, image.height) for image in dataset.images]
    for design in (RETINANET, FASTER_RCNN, torchvision_design("retinanet")):
        for rule, count in (("gt", count_levels), ("anchor", count_distinct_anchors)):
            found = statistics_of(dataset, anchor_counting(design, rule))
            expected = count(dataset.boxes, sizes, design, image_index=dataset.image_index)
            assert found.counts == expected
            assert found.alpha == estimate_alpha(expected)
            assert (found.boxes, found.images) == (800, 4)


@pytest.mark.parametrize(
    ("tile", "overlap", "scale"), [(256, 64, 1.0), (128, 0, 0.5), (200, 60, 0.7), (1024, 128, 1.0)]
)
def test_tiled_counts_are_sums_over_the_tiles_of_inference(
    dataset: Dataset, tile: int, overlap: int, scale: float
) -> None:
    expected, shown, tiles = np.zeros(5, int), 0, 0
    for n, image in enumerate(dataset.images):
        plan = plan_tiles(image.width, image.height, tile=tile, overlap=overlap, scale=scale)
        for piece in plan.grid.tiles:
            tiles += 1
            boxes = []
            for x1, y1, x2, y2 in dataset.of_image(n).boxes:
                left, right = max(x1 - piece.x, 0), min(x2 - piece.x, piece.width)
                top, bottom = max(y1 - piece.y, 0), min(y2 - piece.y, piece.height)
                visible = max(right - left, 0) * max(bottom - top, 0)
                if (visible / ((x2 - x1) * (y2 - y1))) ** 0.5 >= 0.7:
                    boxes.append([side * plan.scale for side in (left, top, right, bottom)])
            expected += count_levels(boxes, (tile, tile), RETINANET)
            shown += len(boxes)
    found = statistics_of(dataset, COUNTING, tile=tile, overlap=overlap, scale=scale)
    assert found.counts == tuple(expected)
    assert (found.boxes, found.images) == (shown, tiles)


def test_one_tile_of_the_image_size_changes_nothing(tmp_path: Path) -> None:
    square = load_dataset(random_coco(tmp_path / "square.json", [(512, 512)] * 3))
    whole, tiled = (
        statistics_of(square, COUNTING),
        statistics_of(square, COUNTING, tile=512, overlap=128),
    )
    assert (whole.counts, whole.boxes, whole.images) == (tiled.counts, tiled.boxes, tiled.images)


def test_every_object_no_larger_than_the_overlap_is_counted_in_some_tile(dataset: Dataset) -> None:
    for n in range(len(dataset.boxes)):
        alone = dataclasses.replace(
            dataset,
            **{name: getattr(dataset, name)[n : n + 1] for name in ("boxes", "labels", "image_index", "ignore")},
        )
        found = statistics_of(alone, COUNTING, tile=200, overlap=80)
        assert sum(found.counts) == found.boxes >= 1


def test_scale_one_half_equals_a_dataset_of_half_the_size(dataset: Dataset, tmp_path: Path) -> None:
    half = write_coco(
        tmp_path / "half.json",
        [(image.width // 2, image.height // 2) for image in dataset.images],
        [
            {"image_id": int(n) + 1, "bbox": [x1 / 2, y1 / 2, (x2 - x1) / 2, (y2 - y1) / 2]}
            for n, (x1, y1, x2, y2) in zip(dataset.image_index, dataset.boxes.tolist(), strict=True)
        ],
    )
    rescaled, written = (
        statistics_of(dataset, COUNTING, scale=0.5),
        statistics_of(load_dataset(half), COUNTING),
    )
    assert rescaled.counts == written.counts != statistics_of(dataset, COUNTING).counts


def test_flip_adds_the_counts_of_the_mirror_images(tmp_path: Path) -> None:
    sizes = [(637, 512), (301, 200)]  # not a whole number of cells, so that the mirror image differs
    plain = load_dataset(random_coco(tmp_path / "plain.json", sizes))
    mirror = load_dataset(random_coco(tmp_path / "mirror.json", sizes, mirror=True))
    for design in (RETINANET, torchvision_design("retinanet"), released_design("retinanet")):
        once, other = (statistics_of(d, anchor_counting(design, "anchor")) for d in (plain, mirror))
        assert once.counts != other.counts
        for flipped in (statistics_of(d, anchor_counting(design, "anchor"), flip=True) for d in (plain, mirror)):
            assert flipped.counts == tuple(np.add(once.counts, other.counts))
            assert (flipped.boxes, flipped.images) == (once.boxes + other.boxes, 4)


def test_anchors_by_name_and_layout() -> None:
    assert anchors_of("retinanet").design() == RETINANET and anchors_of("faster_rcnn").design() == FASTER_RCNN
    with pytest.raises(ValueError, match="unknown detector 'yolo'"):
        anchors_of("yolo")
    with pytest.raises(ValueError, match="unknown anchor layout 'darknet'"):
        anchors_of("retinanet").design("darknet")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", REAL)
def test_real_annotations_are_counted_like_the_dense_computation(name: str, shared: Path) -> None:
    dataset = load_dataset(shared / "data" / "annotations" / f"{name}.json")
    statistics = statistics_of(dataset, COUNTING)
    assert sum(statistics.counts) == statistics.boxes == dataset.objects.sum()
    tried = 0
    for n, image in enumerate(dataset.images):
        boxes = dataset.of_image(n).boxes[~dataset.of_image(n).ignore][:10].astype(np.float32)
        anchors = np.concatenate(RETINANET.grid_anchors(image.height, image.width))
        dense = box_iou(torch.from_numpy(boxes), torch.from_numpy(anchors)).numpy()
        found = best_anchors(boxes, (image.width, image.height), RETINANET)
        np.testing.assert_array_equal(found.anchor, dense.argmax(axis=1))
        np.testing.assert_array_equal(found.iou, dense.max(axis=1, initial=0))
        tried += len(found.iou)
        if tried >= 40:
            break


def test_tiny_datasets_have_small_factors_and_coco_does_not(shared: Path) -> None:
    def raw(name: str) -> tuple[float | None, ...]:
        return statistics_of(load_dataset(shared / "data" / "annotations" / f"{name}.json"), COUNTING).alpha_raw

    for tiny in REAL[:2]:
        assert all(factor is not None and factor < 0.6 for factor in raw(tiny))
    assert any(factor is not None and factor > 1 for factor in raw("coco_val2014_100"))


@pytest.mark.slow
def test_every_object_of_every_real_annotation_file_is_counted(shared: Path) -> None:
    files = sorted((shared / "data" / "annotations").iterdir())
    assert len(files) > 10
    for file in files:
        dataset = load_dataset(file)
        for design in (RETINANET, FASTER_RCNN):
            assert sum(statistics_of(dataset, anchor_counting(design)).counts) == dataset.objects.sum()
            tiled = statistics_of(dataset, anchor_counting(design), tile=640, overlap=320)
            assert sum(tiled.counts) == tiled.boxes
