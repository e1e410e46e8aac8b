"""Verification: what is compared, which differences are tolerated, and which are faults."""

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
from tinydet.export.parity import TOLERANCES, compare, tolerance_of
from tinydet.export.verify import (
    _parity_faults,
    format_report,
    verification_tiles,
    verify,
    write_report,
)
from tinydet.runtime.backends import TileOutputs
from tinydet.spec import ModelSpec

SLOTS = 40
SPEC = ModelSpec(("square",), (3,), "squares", "none", tile=96, max_batch=4, max_detections=SLOTS)


class Squares:
    """Detects the bright squares of `squares`, with the given errors.

    Args:
        shift: added to all coordinates, in pixels.
        miss: miss every `miss`-th square of an image; 0 for none.
        wrong_batch: move the boxes of the last tile in batches of this size.
        unconverged: number of proposals whose suppression does not converge.
    """

    name = "squares"

    def __init__(
        self, shift: float = 0.0, miss: int = 0, wrong_batch: int = 0, unconverged: int = 0, **changes: Any
    ) -> None:
        self.spec = dataclasses.replace(SPEC, **changes)
        self.shift, self.miss, self.wrong_batch, self.unconverged = shift, miss, wrong_batch, unconverged
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
        if len(images) == self.wrong_batch:
            boxes[-1] += 20
        unconverged = np.zeros(len(images) if self.spec.nms_rounds else 0, np.int32)
        unconverged[-1:] = self.unconverged
        return TileOutputs(boxes, scores, np.where(scores > 0, 0, -1).astype(np.int32), candidates, unconverged)


@pytest.fixture(scope="module")
def data(squares: Path) -> Dataset:
    return load_dataset(squares / "annotations.json", squares / "images")


@pytest.fixture(scope="module")
def images(data: Dataset) -> list[Path]:
    return [data.image_path(i) for i in range(len(data.images))]


# --------------------------------------------------------------------------------------------------------- verify


def test_a_model_passes_against_itself(data: Dataset, images: list[Path], tmp_path: Path) -> None:
    candidate = Squares()
    result = verify(Squares(), candidate, images, data)
    assert result.passed and result.images == 7
    assert {1, 3, 4} <= set(candidate.batches)
    assert result.parity["real tiles, batch 1"].detections > 8
    assert result.parity["empty tile, batch 1"].detections == 0
    before, after = result.precision["tiny"]
    assert before == after > 0.5
    data_path, text_path = write_report(result, tmp_path / "model.onnx")
    assert json.loads(data_path.read_text())["precision"]["tiny"] == [before, after]
    text = text_path.read_text()
    assert (
        text.startswith("# Passed: squares, fp32")
        and f"| tiny | {100 * before:.2f} | {100 * after:.2f} | +0.00 |" in text
    )


def test_shifted_boxes_are_a_fault(images: list[Path]) -> None:
    result = verify(Squares(), Squares(shift=0.4), images)
    assert not result.passed and result.precision == {}
    assert any(fault.startswith("real tiles, batch 1: ") and "are unmatched" in fault for fault in result.faults)
    assert "# Failed" in format_report(result)


def test_a_fault_in_one_batch_size_is_found(images: list[Path]) -> None:
    result = verify(Squares(), Squares(wrong_batch=3), images)
    assert result.faults and all(fault.startswith("all of them, batch 3: ") for fault in result.faults)


def test_unconverged_suppression_is_a_fault_even_if_all_detections_match(images: list[Path]) -> None:
    assert verify(Squares(), Squares(nms_rounds=8), images).passed
    result = verify(Squares(), Squares(nms_rounds=8, unconverged=3), images)
    assert all(found.unmatched == 0 for found in result.parity.values())
    assert "empty tile, batch 1: 3 proposals still changed in the last of 8 rounds" in result.faults[1]
    assert len(result.faults) == len(result.parity) and "--nms-rounds 16" in result.faults[0]


def test_unconverged_suppression_on_the_images_of_ap_is_a_fault(data: Dataset, images: list[Path]) -> None:
    result = verify(Squares(), Squares(nms_rounds=8, unconverged=1), images, data)
    assert any(f.startswith("average precision: ") and "in the last of 8 rounds" in f for f in result.faults)


def test_int8_may_move_boxes_by_a_fraction_of_a_pixel_but_not_lose_ap(data: Dataset, images: list[Path]) -> None:
    moved = [verify(Squares(), Squares(shift=0.4, precision=name), images) for name in ("int8", "fp32")]
    assert [result.parity["real tiles, batch 1"].unmatched > 0 for result in moved] == [False, True]
    fewer = verify(Squares(), Squares(miss=12, precision="int8"), images, data, max_drop=0.5)
    assert fewer.precision["tiny"][0] == fewer.precision["tiny"][1]  # no image has twelve squares, so none is missed
    worse = verify(Squares(), Squares(miss=2, precision="int8"), images, data)
    assert any("AP-tiny drops from" in fault and "by more than 0.5 points" in fault for fault in worse.faults)
    allowed = verify(Squares(), Squares(miss=2, precision="int8"), images, data, max_drop=0.99)
    assert not any("AP-tiny" in fault for fault in allowed.faults)


@pytest.mark.parametrize(("strongest", "passes"), [(0.25, False), (0.09, True)])
def test_a_model_without_detections_fails_in_every_precision(strongest: float, passes: bool) -> None:
    """The tolerance of INT8 exceeds most scores. Only a reference score well above the floor makes silence a fault."""
    found = compare(outputs(BOXES, [strongest, 0.08, 0.08], [0, 0, 1]), outputs([], [], []), FLOOR, TOLERANCES["int8"])
    assert found.unmatched == 0
    assert (_parity_faults("tiles", found, TOLERANCES["int8"], SPEC) == []) == passes


def test_int8_may_not_lose_most_candidates() -> None:
    many = np.arange(8)[:, None] * 10 + np.array([0, 0, 6, 6])
    reference, few = (outputs(many[:n], np.full(n, 0.2), np.zeros(n)) for n in (8, 3))
    faults = _parity_faults("tiles", compare(reference, few, FLOOR, TOLERANCES["int8"]), TOLERANCES["int8"], SPEC)
    assert faults == ["tiles: the numbers of candidates differ by up to 62.5%"]


@pytest.mark.parametrize(("moved", "faults"), [(0, [0, 0]), (1, [1, 0]), (2, [1, 1])])
def test_rounding_may_move_one_box_of_twenty_of_a_grid_branch(moved: int, faults: list[int]) -> None:
    """A moved box is unmatched on both sides."""
    at = np.arange(20)[:, None] * 10 + np.array([0, 0, 6, 6])
    elsewhere = np.where(np.arange(20)[:, None] < moved, at + 300, at)
    both = [outputs(boxes, np.linspace(0.9, 0.6, 20), np.zeros(20), slots=30) for boxes in (at, elsewhere)]
    for spec, count in zip((SPEC, replace(SPEC, grid_rois=30)), faults, strict=True):
        for precision in ("fp32", "fp16"):
            tolerance = tolerance_of(spec, precision)
            found = compare(*both, FLOOR, tolerance)
            assert len(_parity_faults("tiles", found, tolerance, spec)) == count


def test_the_allowed_fraction_does_not_count_duplicates() -> None:
    """A hundred boxes are four objects, so two lost objects are half of them, not 2 %."""
    at = np.repeat(np.arange(4) * 20, 25)[:, None] + np.array([0, 0, 10, 10])
    reference = outputs(at, np.linspace(0.9, 0.8, 100), np.zeros(100), slots=120)
    half = outputs(at[:50], np.linspace(0.9, 0.85, 50), np.zeros(50), slots=120)
    found = compare(reference, half, FLOOR, TOLERANCES["fp16"], nms_iou=0.5)
    assert (found.unmatched, found.judged, found.detections) == (2, 4, 100)
    assert (
        "2 detections are unmatched"
        in _parity_faults("tiles", found, replace(TOLERANCES["fp16"], unmatched=0.02), SPEC)[0]
    )


def test_the_crowded_tile_has_more_candidates_than_the_real_ones(images: list[Path]) -> None:
    reference = Squares()
    kinds = verification_tiles(reference, images[:1])
    assert [len(tiles) for tiles in kinds.values()] == [1, 1, 1]
    assert (kinds["empty tile"] == SPEC.pad).all()
    found = {kind: int(reference.run(tiles).candidates[0]) for kind, tiles in kinds.items()}
    assert found["crowded tile"] > found["real tiles"] > found["empty tile"] == 0


def test_the_crowded_tile_is_noise_if_the_reference_finds_nothing(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "dark.png"), np.zeros((96, 96, 3), np.uint8))
    kinds = verification_tiles(Squares(), [tmp_path / "dark.png"])
    assert kinds["crowded tile"].std() > 50


@pytest.mark.parametrize("changes", [{"tile": 64}, {"classes": ("circle",)}, {"score_floor": 0.1}])
def test_models_with_different_inputs_or_outputs_cannot_be_compared(
    images: list[Path], changes: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(changes))} is .* in the other"):
        verify(Squares(), Squares(**changes), images)


# -------------------------------------------------------------------------------------------------------- compare

FLOOR = 0.05


def outputs(boxes: Any, scores: Any, labels: Any, slots: int = 8) -> TileOutputs:
    """Outputs for one tile with these detections; the other slots are empty."""
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


def test_equal_runs_have_no_differences() -> None:
    parity = compare(REFERENCE, REFERENCE, FLOOR)
    assert (parity.tiles, parity.detections, parity.unmatched) == (1, 3, 0)
    assert parity.score_difference == parity.box_difference == parity.candidates_difference == 0


def test_the_order_of_detections_does_not_matter() -> None:
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
def test_a_detection_that_differs_is_unmatched_on_both_sides(other: TileOutputs) -> None:
    assert compare(REFERENCE, other, FLOOR).unmatched == 2


def test_a_box_matches_at_most_one_other() -> None:
    other = outputs([BOXES[0], BOXES[2]], [0.9, 0.6], [0, 1])
    parity = compare(REFERENCE, other, FLOOR)
    assert parity.unmatched == 1
    assert parity.candidates_difference == pytest.approx(1 / 8)


def test_with_nms_a_missing_duplicate_is_exempt_and_a_missing_object_is_not() -> None:
    """The first two boxes are one object: losing the second loses nothing, losing the third loses an object."""
    fewer = outputs([BOXES[0], BOXES[2]], [0.9, 0.6], [0, 1])
    assert [compare(REFERENCE, fewer, FLOOR, nms_iou=iou).unmatched for iou in (None, 0.5, 0.99)] == [1, 0, 1]
    assert [compare(fewer, REFERENCE, FLOOR, nms_iou=iou).unmatched for iou in (None, 0.5, 0.99)] == [1, 0, 1]
    lost = outputs(BOXES[:2], [0.9, 0.8999], [0, 0])
    assert compare(REFERENCE, lost, FLOOR, nms_iou=0.5).unmatched == 1
    # NMS may keep the other box of the pair, as long as both are there.
    turned = outputs([BOXES[1], BOXES[0], BOXES[2]], [0.9, 0.8999, 0.6], [0, 0, 1])
    assert compare(REFERENCE, turned, FLOOR, nms_iou=0.5).unmatched == 0


def test_boxes_of_different_tiles_do_not_match() -> None:
    empty = outputs([], [], [])
    two = [
        TileOutputs(*map(np.concatenate, zip(*pair, strict=True))) for pair in ((REFERENCE, empty), (empty, REFERENCE))
    ]
    assert compare(two[0], two[1], FLOOR).unmatched == 6


def test_a_box_near_the_score_floor_may_be_missing_on_either_side() -> None:
    ours = outputs(BOXES, [0.9, 0.8999, FLOOR + 5e-4], [0, 0, 1])
    theirs = outputs(BOXES[:2], [0.9, 0.8999], [0, 0])
    assert compare(ours, theirs, FLOOR).unmatched == 0
    assert compare(theirs, ours, FLOOR).unmatched == 0


def test_the_last_box_of_a_full_tile_may_differ() -> None:
    ours = outputs(BOXES, [0.9, 0.8999, 0.6], [0, 0, 1], slots=3)
    theirs = outputs([*BOXES[:2], [40, 40, 44, 44]], [0.9, 0.8999, 0.6001], [0, 0, 1], slots=3)
    assert compare(ours, theirs, FLOOR).unmatched == 0


def test_a_box_pushed_out_of_the_slots_is_exempt_only_within_the_tolerance() -> None:
    """A score and the K-th score may each change by the tolerance."""
    ours = outputs(BOXES, [0.9, 0.62, 0.6], [0, 0, 1], slots=3)
    theirs = outputs([BOXES[0], [40, 40, 44, 44], [60, 60, 64, 64]], [0.9, 0.61, 0.61], [0, 0, 1], slots=3)
    tolerances = [replace(TOLERANCES["fp32"], score=score) for score in (0.011, 0.009)]
    assert [compare(ours, theirs, FLOOR, tolerance).unmatched for tolerance in tolerances] == [0, 1]


def test_a_model_that_fills_its_slots_with_wrong_boxes_is_not_exempt() -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 80, (2, 100, 2))
    right, wrong = (np.concatenate([side, side + 6], axis=1) for side in corners)
    reference = outputs(right, np.linspace(0.95, 0.06, 100), np.zeros(100), slots=100)
    found = compare(reference, outputs(wrong, np.full(100, 0.999), np.zeros(100), slots=100), FLOOR)
    assert found.unmatched > 195 and found.judged == 99


def test_runs_without_detections_can_be_compared() -> None:
    empty = outputs([], [], [])
    assert compare(empty, empty, FLOOR).detections == 0
    assert compare(empty, REFERENCE, FLOOR).unmatched == 3
