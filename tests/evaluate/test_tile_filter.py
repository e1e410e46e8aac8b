"""The calibration of tile filters: the bounds hold for any distribution, and objects are scored by their tiles."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from tinydet.data.coco import load_dataset
from tinydet.evaluate.tile_filter import (
    FilterScores,
    alarm_threshold,
    calibrated,
    keep_threshold,
    measure_filter,
    recall_bound,
)
from tinydet.runtime.backends import TileOutputs
from tinydet.spec import FilterRecord, ModelSpec

RECORD = FilterRecord(("square",), (64, 32), 1.0, 2, 0.9, 0.0, 0.95, 0, 0, 0, 0, 0, 0.0)


@pytest.mark.parametrize(("missed", "count"), [(0, 10), (1, 10), (3, 900), (9, 10)])
def test_the_bound_is_the_recall_at_which_so_few_misses_have_a_probability_of_five_percent(
    missed: int, count: int
) -> None:
    rate = 1 - recall_bound(missed, count)
    few = sum(math.comb(count, i) * rate**i * (1 - rate) ** (count - i) for i in range(missed + 1))
    assert few == pytest.approx(0.05, rel=1e-6)


@pytest.mark.parametrize("count", [60, 300, 1000])
def test_the_proven_recall_holds_in_95_of_100_calibrations(count: int) -> None:
    """The scores are uniform, so the recall of a threshold is 1 minus the threshold."""
    rng = np.random.default_rng(count)
    found = [keep_threshold(rng.random(count), 0.98) for _ in range(400)]
    held = np.mean([1 - each.value >= each.bound for each in found])
    assert held >= 0.95 - 2.5 * math.sqrt(0.05 * 0.95 / 400)
    bounds = {each.bound for each in found}
    assert len(bounds) == 1  # known before the scores are
    assert (bounds.pop() >= 0.98) is (count > 150)


def test_one_miss_more_would_not_be_proven() -> None:
    scores = np.random.default_rng(0).permutation(np.arange(1000.0))
    found = keep_threshold(scores, 0.99)
    assert (scores < found.value).sum() == found.missed == int(found.value)
    assert recall_bound(found.missed, 1000) >= 0.99 > recall_bound(found.missed + 1, 1000)


def test_false_alarms_are_as_rare_as_stated() -> None:
    rng = np.random.default_rng(1)
    alarms = [rng.random(50) > alarm_threshold(rng.random(299), 0.02)[0] for _ in range(200)]
    assert np.mean(alarms) <= 0.02 + 3 * 0.14 / math.sqrt(10_000)
    assert alarm_threshold(np.arange(9.0), 0.02) == (8.0, 0.1)  # nine tiles prove no less than one in ten


def test_a_calibration_states_what_its_thresholds_do() -> None:
    scores = FilterScores(
        np.array([0.3, 0.6, 0.9]), (np.array([0.1, 0.2, 0.5, 0.9]), np.zeros(2)), (np.arange(4) / 10, np.zeros(2))
    )
    (value, limit), record = calibrated(scores, RECORD)
    assert value == pytest.approx(0.3, rel=1e-4)
    assert limit == pytest.approx(0.3, rel=1e-4)
    assert (record.objects, record.missed, record.held_out, record.skipped, record.unfamiliar) == (3, 0, 4, 2, 0)
    assert record.bound == pytest.approx(0.05 ** (1 / 3))
    assert record.false_alarm == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="no objects of square"):
        calibrated(dataclasses.replace(scores, objects=np.zeros(0)), RECORD)


class Brightness:
    """A tile filter with one cell: it scores the mean brightness of a tile, twice as high on small tiles."""

    name = "brightness"

    def __init__(self, tile: int) -> None:
        self.spec = ModelSpec(("object", "unfamiliar"), (1, 2), "tile_filter", "none", tile, max_detections=2)

    def run(self, images: np.ndarray) -> TileOutputs:
        side = self.spec.tile
        scores = np.array([[min(float(images.mean()) / 255 * (32 / side), 1.0), 0.01 * side]], np.float32)
        boxes = np.array([[[0, 0, side, side]] * 2], np.float32)
        return TileOutputs(boxes, scores, np.array([[0, 1]], np.int32), np.zeros(1, np.int32))


def test_an_object_counts_with_the_worst_of_its_tile_sizes_and_the_best_of_its_tiles(squares: Path) -> None:
    dataset = load_dataset(squares / "annotations.json", squares / "images")
    small, large = ([Brightness(side)] for side in (16, 32))
    alone = [measure_filter(each, dataset, reduction=2) for each in (small, large)]
    both = measure_filter([*small, *large], dataset, reduction=2)
    assert len(both.objects) == dataset.objects.sum() == 20  # an object of an ignore region does not count
    assert np.array_equal(both.objects, np.minimum(alone[0].objects, alone[1].objects))
    assert np.array_equal(both.tiles[1], alone[1].tiles[0])
    assert set(both.unfamiliar[0]) == {np.float32(0.16)}
    assert (alone[1].objects > alone[1].tiles[0].min()).all()
