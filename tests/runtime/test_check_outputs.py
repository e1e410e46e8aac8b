"""The outputs of a backend are checked where they enter, before boxes are clipped to the tile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tinydet.runtime import Model
from tinydet.runtime.backends import TileOutputs, check_outputs
from tinydet.spec import ModelSpec

SPEC = ModelSpec(classes=("a", "b"), category_ids=(1, 2), detector="retinanet", backbone="resnet18", tile=64)


def outputs(count: int = 2, slots: int = 3) -> TileOutputs:
    """One box in the first slot of each tile; the other slots are empty."""
    boxes = np.zeros((count, slots, 4), np.float32)
    boxes[:, 0] = 10, 10, 20, 20
    scores = np.zeros((count, slots), np.float32)
    scores[:, 0] = 0.9
    labels = np.full((count, slots), -1, np.int32)
    labels[:, 0] = 1
    return TileOutputs(boxes, scores, labels, np.ones(count, np.int32))


def check(found: TileOutputs) -> None:
    check_outputs(found, SPEC, 2, name="my backend")


@pytest.mark.parametrize("box", [(10, 10, np.inf, np.inf), (10, 10, np.nan, 20), (-np.inf, 10, 20, 20)])
def test_a_box_that_is_not_finite_is_refused(box: tuple[float, ...]) -> None:
    found = outputs()
    found.boxes[1, 0] = box
    with pytest.raises(ValueError, match="my backend, retinanet resnet18 fp32: .* boxes that are NaN or infinite"):
        check(found)


def test_a_scan_never_clips_an_infinite_box_to_the_size_of_the_tile(white_squares: Callable) -> None:
    backend = white_squares()
    run = backend.run

    def diverged(images: np.ndarray) -> TileOutputs:
        found: TileOutputs = run(images)
        found.boxes[0, 0], found.scores[0, 0], found.labels[0, 0] = (10, 10, np.inf, np.inf), 0.9, 0
        return found

    backend.run = diverged
    with pytest.raises(ValueError, match="white squares, .* infinite; export it again and check it with"):
        Model(backend, overlap=8).detect(np.zeros((100, 100, 3), np.uint8))


@pytest.mark.parametrize(("score", "slot"), [(np.nan, 0), (np.nan, 2), (np.inf, 0)])
def test_a_score_that_is_not_a_number_is_refused(score: float, slot: int) -> None:
    found = outputs()
    found.scores[0, slot] = score
    with pytest.raises(ValueError, match="scores that are NaN or infinite"):
        check(found)


def test_a_label_without_a_class_is_refused() -> None:
    found = outputs()
    found.labels[0, 0] = 2
    with pytest.raises(ValueError, match="labels above 1, its last class"):
        check(found)


def test_empty_slots_may_hold_any_box() -> None:
    found = outputs()
    found.boxes[:, 1:] = np.nan, np.inf, -np.inf, 1e30
    found.scores[:, 1:] = -np.inf
    check(found)


def test_any_number_of_slots_is_accepted() -> None:
    for slots in (1, 5, 1000):
        check(outputs(slots=slots))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": np.zeros((2, 3), np.float32)}, r"expected boxes float32 \(2, 3, 4\), got float32 \(2, 3\)"),
        ({"boxes": np.zeros((2, 4, 4), np.float32)}, r"got float32 \(2, 4, 4\)"),
        ({"boxes": np.zeros((2, 3, 4))}, r"got float64 \(2, 3, 4\)"),
        ({"scores": np.zeros((2, 3), np.float16)}, r"expected scores float32 \(2, 3\), got float16"),
        ({"scores": np.zeros(2, np.float32)}, r"expected .* got float32"),
        ({"labels": np.zeros((2, 3), np.int64)}, r"expected labels int32 \(2, 3\), got int64"),
        ({"candidates": np.zeros((2, 1), np.int32)}, r"expected candidates int32 \(2,\), got int32 \(2, 1\)"),
        ({"unconverged": np.zeros(1, np.int32)}, r"expected unconverged int32 \(2,\), got int32 \(1,\)"),
    ],
)
def test_a_wrong_shape_or_type_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(outputs()._replace(**changes))


def test_outputs_for_another_number_of_tiles_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected boxes float32 \(2, 3, 4\), got float32 \(4, 3, 4\)"):
        check(outputs(count=4))


def test_outputs_without_a_slot_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected boxes float32 \(2, 1000, 4\), got float32 \(2, 0, 4\)"):
        check(TileOutputs(*(array[:, :0] for array in outputs()[:3]), np.zeros(2, np.int32)))
