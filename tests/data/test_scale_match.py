"""Scale Match: properties of the mapping, and the distance between real size distributions after it."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tinydet.data.coco import load_dataset, read_pixels
from tinydet.data.coco_file import load_document
from tinydet.data.samples import Sample, TrainingTiles
from tinydet.data.scale_match import (
    DEFAULT_SCALE,
    ScaleMatch,
    add_arguments,
    match_document,
    matching_edges,
    object_sizes,
    run,
    size_distance,
    size_histogram,
    sizes_of,
)

FREE = (1e-3, 1e3)


def scale_match(*argv: str | Path) -> str:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([str(argument) for argument in argv]))


def log_normal(median: float, count: int, seed: int) -> Any:
    return median * np.exp(np.random.default_rng(seed).normal(0, 0.6, count))


def square(size: float) -> Any:
    return np.array([[5, 5, 5 + size, 5 + size]])


def test_the_extremes_have_one_bin_each_and_the_other_bins_equal_widths() -> None:
    sizes = np.random.default_rng(0).permutation(np.r_[np.full(10, 1.0), np.linspace(10, 20, 980), np.full(10, 500.0)])
    histogram = size_histogram(sizes)
    assert histogram.shares.shape == (100,) and histogram.edges.shape == (101,)
    assert histogram.shares.sum() == pytest.approx(1)
    assert histogram.shares[[0, -1]].tolist() == [0.01, 0.01]
    assert histogram.edges[[0, 1, -2, -1]].tolist() == [1, 10, 20, 500]
    assert np.allclose(np.diff(histogram.edges[1:-1]), 10 / 98)
    assert np.allclose(histogram.shares[1:-1], 0.01, atol=1e-12)


def test_a_histogram_counts_each_size_once() -> None:
    sizes = log_normal(12, 5000, 1)
    histogram = size_histogram(sizes, bins=10)  # 10 % in the first and in the last bin
    assert histogram.shares[[0, -1]].tolist() == [0.1, 0.1]
    expected, _ = np.histogram(np.sort(sizes)[500:4500], bins=8)
    assert (histogram.shares[1:-1] * 5000).round().astype(int).tolist() == expected.tolist()


@pytest.mark.parametrize("sizes", [[7.0], [7.0, 7.0, 7.0], [3.0, 9.0]])
def test_the_histogram_of_few_or_equal_sizes_stays_in_their_range(sizes: list[float]) -> None:
    histogram = size_histogram(np.array(sizes))
    assert histogram.shares.sum() == pytest.approx(1)
    assert histogram.edges.min() == min(sizes) and histogram.edges.max() == max(sizes)
    assert (np.diff(histogram.edges) >= 0).all()
    scale = ScaleMatch(histogram, scale_range=FREE).choose_scale(square(4), np.random.default_rng(0))
    assert min(sizes) / 4 - 1e-9 <= scale <= max(sizes) / 4 + 1e-9


@pytest.mark.parametrize("monotone", [False, True])
def test_images_with_one_object_get_the_sizes_of_the_target(monotone: bool) -> None:
    source, goal = log_normal(80, 4000, 2), log_normal(12, 3000, 3)
    target = size_histogram(goal)
    match = ScaleMatch(target, matching_edges(source, target) if monotone else None, scale_range=FREE)
    rng = np.random.default_rng(4)
    matched = np.array([size * match.choose_scale(square(size), rng) for size in source])
    assert size_distance(source, goal) > 0.8
    assert size_distance(matched, goal) < 0.03  # 95 % quantile for two samples of one distribution: 0.033


def test_monotone_scale_match_keeps_the_order_of_sizes_and_is_deterministic() -> None:
    source = log_normal(80, 500, 2)
    target = size_histogram(log_normal(12, 3000, 3))
    match = ScaleMatch(target, matching_edges(source, target), scale_range=FREE)
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    matched = [size * match.choose_scale(square(size), rng) for size in np.sort(source)]
    assert rng.bit_generator.state == before
    assert (np.diff(matched) >= -1e-9).all()
    assert (matched[0], matched[-1]) == pytest.approx((target.edges[0], target.edges[-1]))


def test_the_size_of_an_image_is_the_geometric_mean_of_its_objects() -> None:
    target = size_histogram(np.array([20.0]))
    boxes = np.array([[0, 0, 10, 10], [0, 0, 90, 90.0]])
    assert ScaleMatch(target, scale_range=FREE).choose_scale(boxes, np.random.default_rng(0)) == pytest.approx(20 / 30)


@pytest.mark.parametrize(
    ("outside", "size", "expected"), [("clip", 2.0, 1.0), ("clip", 2000.0, 0.1), ("default", 2.0, DEFAULT_SCALE)]
)
def test_a_scale_outside_the_range_is_clipped_or_replaced(outside: Any, size: float, expected: float) -> None:
    match = ScaleMatch(size_histogram(np.array([20.0])), outside=outside)
    assert match.choose_scale(square(size), np.random.default_rng(0)) == expected


def test_scale_match_draws_up_to_five_times() -> None:
    """Half of the target is too large: a draw fails with probability 1/2, five draws with 1/32."""
    target = size_histogram(np.r_[np.linspace(4, 6, 500), np.linspace(40, 60, 500)])
    match = ScaleMatch(target)
    rng = np.random.default_rng(0)
    scales = np.array([match.choose_scale(square(10), rng) for _ in range(4000)])
    assert (scales == 1.0).mean() == pytest.approx(1 / 32, abs=0.01)
    assert ((scales >= 0.39) & (scales < 0.7)).mean() == pytest.approx(31 / 32, abs=0.01)


def test_objects_below_two_pixels_are_removed_unless_all_would_be() -> None:
    match = ScaleMatch(size_histogram(np.array([3.0])), scale_range=FREE)
    rng = np.random.default_rng(0)
    boxes = np.array([[0, 0, 90, 90], [50, 50, 51, 51.0]])  # mean size 9.5, scale 0.316
    (width, _), kept = match.choose_size(1000, 1000, boxes, rng)
    assert (width, kept.tolist()) == (316, [True, False])
    edge = np.array([[0, 0, 90, 90], [0, 0, 4.1, 4.2], [0, 0, 4.3, 4.2]])  # (4.2 - 1) * 0.25 + 1 < 2 pixels
    fixed = ScaleMatch(
        size_histogram(np.array([0.25 * float(np.exp(np.log(sizes_of(edge)).mean()))])), scale_range=FREE
    )
    assert fixed.choose_size(1000, 1000, edge, rng)[1].tolist() == [True, False, False]
    assert fixed.choose_size(1000, 1000, edge * [1, 1, 1.2, 1.2], rng)[1].tolist() == [True, False, False]
    tiny = np.array([[0, 0, 1.5, 1.5]])
    small = ScaleMatch(size_histogram(np.array([0.3])), scale_range=FREE)
    (width, _), kept = small.choose_size(1000, 1000, tiny, rng)
    assert (width, kept.tolist()) == (250, [True])


def test_an_image_without_objects_gets_the_default_scale() -> None:
    match = ScaleMatch(size_histogram(np.array([3.0])))
    sample = Sample(np.full((40, 80, 3), 7, np.uint8), np.zeros((0, 4), np.float32), np.zeros(0, np.int64),
                    np.array([[0, 0, 40, 40]], np.float32))  # fmt: skip
    scaled = match(sample, np.random.default_rng(0))
    assert scaled.pixels.shape == (10, 20, 3)
    assert scaled.regions.tolist() == [[0, 0, 10, 10]]
    assert scaled.boxes.shape == (0, 4)


def test_matched_training_samples_are_deterministic(shared: Path) -> None:
    dataset = load_dataset(shared / "data" / "hituav-val", categories=["person"])
    target = size_histogram(log_normal(6, 500, 0))
    plain, matched = (TrainingTiles(dataset, 640, 128, transform=transform) for transform in (None, ScaleMatch(target)))
    found = 0
    for index in range(0, 40, 8):
        a, b = plain.sample(index, seed=3, epoch=1), matched.sample(index, seed=3, epoch=1)
        again = matched.sample(index, seed=3, epoch=1)
        assert np.array_equal(b.pixels, again.pixels) and np.array_equal(b.boxes, again.boxes)
        assert b.pixels.shape != matched.sample(index, seed=3, epoch=2).pixels.shape
        height, width = b.pixels.shape[:2]
        factors = np.tile([width / 640, height / 512], 2).astype(np.float32)
        assert abs(width / 640 - height / 512) < 0.01
        if len(a.boxes) == len(b.boxes) > 0:  # both flipped or both not
            assert np.allclose(b.boxes, a.boxes * factors, atol=1e-3)
            x1, y1, x2, y2 = (b.boxes[0] + [0, 0, 1, 1]).astype(int)
            here = a.pixels[int(a.boxes[0, 1]) : int(a.boxes[0, 3]) + 1, int(a.boxes[0, 0]) : int(a.boxes[0, 2]) + 1]
            assert abs(b.pixels[y1:y2, x1:x2].mean() - here.mean()) < 25
            found += 1
    assert found >= 2


@pytest.mark.parametrize(
    ("source", "target", "before", "after"),
    [
        ("citypersons_val.json", "tinyperson_156_frames_approx1920x1080.json", 0.7, 0.15),
        ("coco_val2014_100.json", "tinyperson_156_frames_approx1920x1080.json", 0.55, 0.2),
        ("caltech_ped_test.json", "tiny_citypersons_val.json", 0.45, 0.2),
    ],
)
def test_real_sizes_come_close_to_those_of_the_target(
    shared: Path, source: str, target: str, before: float, after: float
) -> None:
    folder = shared / "data" / "annotations"
    document, goal = load_document(folder / source), object_sizes(load_dataset(folder / target))
    histogram = size_histogram(goal)
    own = object_sizes(document.dataset)
    assert size_distance(own, goal) > before
    for edges in (None, matching_edges(own, histogram)):
        content = match_document(document, ScaleMatch(histogram, edges))
        bboxes = [a["bbox"] for a in content["annotations"] if not (a["ignore"] or a["iscrowd"])]
        matched = np.sqrt(np.prod(np.array(bboxes)[:, 2:], axis=1))
        assert size_distance(matched, goal) < after
        assert len(matched) > 0.97 * len(own)


def test_a_matched_folder_is_written_and_the_distance_reported(shared: Path, tmp_path: Path) -> None:
    images = shared / "data" / "aerialcars-kitais" / "images"
    document = json.loads((images.parent / "annotations.json").read_text())
    document["images"] = document["images"][:3]
    ids = {image["id"] for image in document["images"]}
    document["annotations"] = [entry for entry in document["annotations"] if entry["image_id"] in ids]
    (tmp_path / "three.json").write_text(json.dumps(document))
    target = shared / "data" / "annotations" / "tiny_citypersons_val.json"
    report = scale_match(
        tmp_path / "three.json", "--images", images, "--target", target, "--monotone", "--output", tmp_path / "new"
    )
    before, after = re.findall(r"KS distance to the target (\S+) -> (\S+)", report)[0]
    assert float(after) < float(before) - 0.1
    old, new = load_document(tmp_path / "three.json", images), load_document(tmp_path / "new")
    assert len(new.images) == len(old.images)
    for before, after in zip(old.images, new.images, strict=True):
        assert abs(after["width"] / before["width"] - after["height"] / before["height"]) < 0.03
        assert after["file_name"] == before["file_name"]
    assert read_pixels(new.dataset, 0).shape[:2] == (new.images[0]["height"], new.images[0]["width"])


def test_the_seed_determines_the_sizes(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data" / "annotations"
    texts = []
    for seed in (0, 0, 1):
        scale_match(folder / "coco_val2014_100.json", "--target", folder / "tiny_citypersons_val.json",
                    "--seed", str(seed), "--output", tmp_path / "new.json")  # fmt: skip
        texts.append((tmp_path / "new.json").read_text())
    assert texts[0] == texts[1] != texts[2]
    assert [a["id"] for a in json.loads(texts[0])["annotations"]] == sorted(
        (a["id"] for a in json.loads(texts[0])["annotations"]),
        key=[a["id"] for a in json.loads((folder / "coco_val2014_100.json").read_text())["annotations"]].index,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--source-sizes", "a.json"], "add --monotone"),
        (["--scale-range", "1,0.1"], "ascending and above 0"),
    ],
)
def test_invalid_options_are_rejected(shared: Path, arguments: list[str], message: str) -> None:
    source = shared / "data" / "annotations" / "coco_val2014_100.json"
    with pytest.raises(ValueError, match=message):
        scale_match(source, "--target", source, *arguments)


@pytest.mark.parametrize("sizes", [[], [3.0, 0.0]])
def test_a_target_without_objects_is_rejected(sizes: list[float]) -> None:
    with pytest.raises(ValueError, match="name a dataset that has objects"):
        size_histogram(np.array(sizes))
