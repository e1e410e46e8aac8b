"""The parity gate: what it compares, what it forgives, and what it stops."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tinydet.data.coco import Dataset, load_dataset
from tinydet.export.parity import TOLERANCES, compare
from tinydet.export.verify import (
    _parity_faults,
    format_report,
    gate_tiles,
    verify,
    write_report,
)
from tinydet.runtime.backends import TileOutputs
from tinydet.spec import ModelSpec

SLOTS = 40
SPEC = ModelSpec(("square",), (3,), "squares", "none", tile=96, max_batch=4, max_detections=SLOTS)


class Squares:
    """Finds the bright squares of `squares`; `shift` moves its boxes, and it misses every `miss`-th one it meets."""

    name = "squares"

    def __init__(
        self, shift: float = 0.0, miss: int = 0, spoilt_batch: int = 0, unsettled: int = 0, **changes: Any
    ) -> None:
        self.spec = dataclasses.replace(SPEC, **changes)
        self.shift, self.miss, self.spoilt_batch, self.unsettled = shift, miss, spoilt_batch, unsettled
        self.batches: list[int] = []

    def run(self, images: np.ndarray) -> TileOutputs:
        self.batches.append(len(images))
        boxes = np.zeros((len(images), SLOTS, 4), np.float32)
        scores = np.zeros((len(images), SLOTS), np.float32)
        candidates = np.zeros(len(images), np.int32)
        for i, image in enumerate(images):
            _, _, found, _ = cv2.connectedComponentsWithStats((image[..., 0] > 200).astype(np.uint8))
            found = [row for n, row in enumerate(found[1:].tolist(), 1) if not self.miss or n % self.miss]
            candidates[i] = len(found)
            for k, (x, y, width, height, _) in enumerate(found[:SLOTS]):
                boxes[i, k] = np.array([x, y, x + width, y + height]) + self.shift
                scores[i, k] = 0.9 - 0.01 * k
        if len(images) == self.spoilt_batch:
            boxes[-1] += 20
        rest = np.zeros(len(images) if self.spec.nms_rounds else 0, np.int32)
        rest[-1:] = self.unsettled
        return TileOutputs(boxes, scores, np.where(scores > 0, 0, -1).astype(np.int32), candidates, rest)


@pytest.fixture(scope="module")
def data(squares: Path) -> Dataset:
    return load_dataset(squares / "annotations.json", squares / "images")


@pytest.fixture(scope="module")
def pictures(data: Dataset) -> list[Path]:
    return [data.image_path(i) for i in range(len(data.images))]


# ----------------------------------------------------------------------------------------------------------- gate


def test_a_model_equals_itself(data: Dataset, pictures: list[Path], tmp_path: Path) -> None:
    candidate = Squares()
    seen = verify(Squares(), candidate, pictures, data)
    assert seen.passed and seen.images == 7
    assert {1, 3, 4} <= set(candidate.batches)
    assert seen.parity["real tiles, batch 1"].detections > 8
    assert seen.parity["empty tile, batch 1"].detections == 0
    before, after = seen.precision["tiny"]
    assert before == after > 0.5
    data_path, text_path = write_report(seen, tmp_path / "model.onnx")
    assert json.loads(data_path.read_text())["precision"]["tiny"] == [before, after]
    text = text_path.read_text()
    assert (
        text.startswith("# Passed: squares, fp32")
        and f"| tiny | {100 * before:.2f} | {100 * after:.2f} | +0.00 |" in text
    )


def test_boxes_that_moved_are_stopped_and_named(pictures: list[Path]) -> None:
    seen = verify(Squares(), Squares(shift=0.4), pictures)
    assert not seen.passed and seen.precision == {}
    assert any(fault.startswith("real tiles, batch 1: ") and "no partner" in fault for fault in seen.faults)
    assert "# Failed" in format_report(seen)


def test_a_fault_of_one_batch_size_is_found(pictures: list[Path]) -> None:
    seen = verify(Squares(), Squares(spoilt_batch=3), pictures)
    assert seen.faults and all(fault.startswith("all of them, batch 3: ") for fault in seen.faults)


def test_suppression_that_did_not_settle_is_stopped_whatever_was_found(pictures: list[Path]) -> None:
    assert verify(Squares(), Squares(nms_rounds=8), pictures).passed
    seen = verify(Squares(), Squares(nms_rounds=8, unsettled=3), pictures)
    assert all(found.unmatched == 0 for found in seen.parity.values())
    assert "empty tile, batch 1: 3 proposals still changed in the last of 8 rounds" in seen.faults[1]
    assert len(seen.faults) == len(seen.parity) and "--nms-rounds 16" in seen.faults[0]


def test_suppression_that_did_not_settle_on_the_images_of_ap_is_stopped(data: Dataset, pictures: list[Path]) -> None:
    seen = verify(Squares(), Squares(nms_rounds=8, unsettled=1), pictures, data)
    assert any(f.startswith("average precision: ") and "in the last of 8 rounds" in f for f in seen.faults)


def test_int8_may_move_a_box_by_a_part_of_a_pixel_but_not_lose_precision(data: Dataset, pictures: list[Path]) -> None:
    moved = [verify(Squares(), Squares(shift=0.4, precision=name), pictures) for name in ("int8", "fp32")]
    assert [seen.parity["real tiles, batch 1"].unmatched > 0 for seen in moved] == [False, True]
    fewer = verify(Squares(), Squares(miss=12, precision="int8"), pictures, data, max_drop=0.5)
    assert fewer.precision["tiny"][0] == fewer.precision["tiny"][1]  # no image has twelve, so none is missed there
    worse = verify(Squares(), Squares(miss=2, precision="int8"), pictures, data)
    assert any("AP-tiny falls from" in fault and "by more than 0.5 points" in fault for fault in worse.faults)
    allowed = verify(Squares(), Squares(miss=2, precision="int8"), pictures, data, max_drop=0.99)
    assert not any("AP-tiny" in fault for fault in allowed.faults)


@pytest.mark.parametrize(("strongest", "passes"), [(0.25, False), (0.09, True)])
def test_a_model_that_finds_nothing_is_stopped_in_every_precision(strongest: float, passes: bool) -> None:
    """INT8 may move a score by more than most are high; where none is far from the floor nothing is proved."""
    found = compare(outputs(BOXES, [strongest, 0.08, 0.08], [0, 0, 1]), outputs([], [], []), FLOOR, TOLERANCES["int8"])
    assert found.unmatched == 0
    assert (_parity_faults("tiles", found, TOLERANCES["int8"], SPEC) == []) == passes


def test_int8_may_not_lose_most_candidates() -> None:
    many = np.arange(8)[:, None] * 10 + np.array([0, 0, 6, 6])
    reference, few = (outputs(many[:n], np.full(n, 0.2), np.zeros(n)) for n in (8, 3))
    faults = _parity_faults("tiles", compare(reference, few, FLOOR, TOLERANCES["int8"]), TOLERANCES["int8"], SPEC)
    assert faults == ["tiles: the numbers of candidates differ by up to 62.5%"]


def test_the_allowance_is_of_what_can_lack_a_partner_not_of_duplicates() -> None:
    """A hundred boxes are four objects; half of the objects lost is more than 1 %."""
    at = np.repeat(np.arange(4) * 20, 25)[:, None] + np.array([0, 0, 10, 10])
    reference = outputs(at, np.linspace(0.9, 0.8, 100), np.zeros(100), slots=120)
    half = outputs(at[:50], np.linspace(0.9, 0.85, 50), np.zeros(50), slots=120)
    found = compare(reference, half, FLOOR, TOLERANCES["fp16"], nms_iou=0.5)
    assert (found.unmatched, found.judged, found.detections) == (2, 4, 100)
    assert (
        "2 detections have no partner"
        in _parity_faults("tiles", found, replace(TOLERANCES["fp16"], unmatched=0.02), SPEC)[0]
    )


def test_the_crowded_tile_fills_a_model_that_found_something(pictures: list[Path]) -> None:
    reference = Squares()
    kinds = gate_tiles(reference, pictures[:1])
    assert [len(tiles) for tiles in kinds.values()] == [1, 1, 1]
    assert (kinds["empty tile"] == SPEC.pad).all()
    found = {kind: int(reference.run(tiles).candidates[0]) for kind, tiles in kinds.items()}
    assert found["crowded tile"] > found["real tiles"] > found["empty tile"] == 0


def test_a_reference_that_finds_nothing_meets_noise(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "dark.png"), np.zeros((96, 96, 3), np.uint8))
    kinds = gate_tiles(Squares(), [tmp_path / "dark.png"])
    assert kinds["crowded tile"].std() > 50


@pytest.mark.parametrize("changes", [{"tile": 64}, {"classes": ("circle",)}, {"score_floor": 0.1}])
def test_models_of_different_contracts_are_not_compared(pictures: list[Path], changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(changes))} is .* in the other"):
        verify(Squares(), Squares(**changes), pictures)


# -------------------------------------------------------------------------------------------------------- compare

FLOOR = 0.05


def outputs(boxes: Any, scores: Any, labels: Any, slots: int = 8) -> TileOutputs:
    """One tile with these detections; the other slots are empty."""
    count = len(scores)
    empty = slots - count
    return TileOutputs(
        np.pad(np.asarray(boxes, np.float32).reshape(-1, 4), ((0, empty), (0, 0)))[None],
        np.pad(np.asarray(scores, np.float32), (0, empty))[None],
        np.pad(np.asarray(labels, np.int32), (0, empty), constant_values=-1)[None],
        np.array([count], np.int32),
    )


BOXES = [[0, 0, 8, 8], [0.1, 0, 8.1, 8], [20, 20, 24, 26]]
REFERENCE = outputs(BOXES, [0.9, 0.8999, 0.6], [0, 0, 1])


def test_equal_runs_do_not_differ() -> None:
    parity = compare(REFERENCE, REFERENCE, FLOOR)
    assert (parity.tiles, parity.detections, parity.unmatched) == (1, 3, 0)
    assert parity.score_difference == parity.box_difference == parity.candidates_difference == 0


def test_the_order_of_neighbours_means_nothing() -> None:
    swapped = outputs([BOXES[1], BOXES[0], BOXES[2]], [0.9, 0.9, 0.6], [0, 0, 1])
    parity = compare(REFERENCE, swapped, FLOOR)
    assert parity.unmatched == 0
    assert parity.box_difference == 0
    assert parity.score_difference == pytest.approx(1e-4, rel=1e-2)


@pytest.mark.parametrize(
    "other",
    [
        outputs(BOXES, [0.9, 0.8999, 0.59], [0, 0, 1]),
        outputs(BOXES, [0.9, 0.8999, 0.6], [0, 0, 0]),
        outputs([*BOXES[:2], [21, 20, 25, 26]], [0.9, 0.8999, 0.6], [0, 0, 1]),
    ],
    ids=["score", "class", "box"],
)
def test_a_detection_that_differs_is_missed_on_both_sides(other: TileOutputs) -> None:
    assert compare(REFERENCE, other, FLOOR).unmatched == 2


def test_one_box_cannot_stand_for_two() -> None:
    other = outputs([BOXES[0], BOXES[2]], [0.9, 0.6], [0, 1])
    parity = compare(REFERENCE, other, FLOOR)
    assert parity.unmatched == 1
    assert parity.candidates_difference == pytest.approx(1 / 8)


def test_a_duplicate_that_suppression_removes_may_be_missing_and_what_it_keeps_may_not() -> None:
    """The first two are one object: without the second nothing is lost, without the third an object is."""
    fewer = outputs([BOXES[0], BOXES[2]], [0.9, 0.6], [0, 1])
    assert [compare(REFERENCE, fewer, FLOOR, nms_iou=iou).unmatched for iou in (None, 0.5, 0.99)] == [1, 0, 1]
    assert [compare(fewer, REFERENCE, FLOOR, nms_iou=iou).unmatched for iou in (None, 0.5, 0.99)] == [1, 0, 1]
    lost = outputs(BOXES[:2], [0.9, 0.8999], [0, 0])
    assert compare(REFERENCE, lost, FLOOR, nms_iou=0.5).unmatched == 1
    # The survivor may be the other one of a pair, as long as the first is there too.
    turned = outputs([BOXES[1], BOXES[0], BOXES[2]], [0.9, 0.8999, 0.6], [0, 0, 1])
    assert compare(REFERENCE, turned, FLOOR, nms_iou=0.5).unmatched == 0


def test_a_box_of_another_tile_does_not_count() -> None:
    empty = outputs([], [], [])
    two = [
        TileOutputs(*map(np.concatenate, zip(*pair, strict=True))) for pair in ((REFERENCE, empty), (empty, REFERENCE))
    ]
    assert compare(two[0], two[1], FLOOR).unmatched == 6


def test_a_box_at_the_score_floor_may_fall_either_way() -> None:
    ours = outputs(BOXES, [0.9, 0.8999, FLOOR + 5e-4], [0, 0, 1])
    theirs = outputs(BOXES[:2], [0.9, 0.8999], [0, 0])
    assert compare(ours, theirs, FLOOR).unmatched == 0
    assert compare(theirs, ours, FLOOR).unmatched == 0


def test_the_last_box_of_a_full_tile_may_fall_either_way() -> None:
    ours = outputs(BOXES, [0.9, 0.8999, 0.6], [0, 0, 1], slots=3)
    theirs = outputs([*BOXES[:2], [40, 40, 44, 44]], [0.9, 0.8999, 0.6001], [0, 0, 1], slots=3)
    assert compare(ours, theirs, FLOOR).unmatched == 0


def test_a_box_that_the_last_ones_crowd_out_is_forgiven_only_near_them() -> None:
    """A score and the K-th one may each move by the tolerance."""
    ours = outputs(BOXES, [0.9, 0.62, 0.6], [0, 0, 1], slots=3)
    theirs = outputs([BOXES[0], [40, 40, 44, 44], [60, 60, 64, 64]], [0.9, 0.61, 0.61], [0, 0, 1], slots=3)
    tolerances = [replace(TOLERANCES["fp32"], score=score) for score in (0.011, 0.009)]
    assert [compare(ours, theirs, FLOOR, tolerance).unmatched for tolerance in tolerances] == [0, 1]


def test_a_model_that_fills_its_slots_with_high_scores_is_not_forgiven() -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 80, (2, 100, 2))
    right, wrong = (np.concatenate([side, side + 6], axis=1) for side in corners)
    reference = outputs(right, np.linspace(0.95, 0.06, 100), np.zeros(100), slots=100)
    found = compare(reference, outputs(wrong, np.full(100, 0.999), np.zeros(100), slots=100), FLOOR)
    assert found.unmatched > 195 and found.judged == 99


def test_runs_that_find_nothing_can_be_compared() -> None:
    empty = outputs([], [], [])
    assert compare(empty, empty, FLOOR).detections == 0
    assert compare(empty, REFERENCE, FLOOR).unmatched == 3
