from __future__ import annotations

import json

import numpy as np
import pytest

from tinydet.runtime.detections import Detections
from tinydet.runtime.writers import SceneDetections, open_writers
from tinydet.spec import ModelSpec


def some(scores: list[float], labels: list[int] | None = None) -> Detections:
    n = len(scores)
    boxes = np.arange(4 * n, dtype=np.float32).reshape(n, 4) + 0.25
    zeros = np.zeros(n, np.int32)
    return Detections(boxes, np.float32(scores), np.int32(labels or zeros), {"tile": zeros})


def test_coco_results_have_the_category_ids_of_the_dataset() -> None:
    rows = some([0.5, 0.25], [1, 0]).to_coco(12, (7, 0))
    assert rows == [
        {"image_id": 12, "category_id": 0, "bbox": [0.25, 1.25, 2.0, 2.0], "score": 0.5},
        {"image_id": 12, "category_id": 7, "bbox": [4.25, 5.25, 2.0, 2.0], "score": 0.25},
    ]


def test_a_written_file_holds_every_scene_exactly(tmp_path) -> None:
    detections = {3: some([0.1, 0.7]), 9: Detections.empty(), 4: some([1 / 3])}
    spec = ModelSpec(classes=("a", "b"), category_ids=(5, 6), detector="none", backbone="none", tile=64)
    scenes = [SceneDetections(f"{n}.jpg", n, 100, 100, found) for n, found in detections.items()]
    with open_writers([tmp_path / "dets.json"], spec) as write:
        for found in scenes:
            write(found)
    document = json.loads((tmp_path / "dets.json").read_text())
    keys = ("image_id", "category_id", "bbox", "score")
    rows = [{key: row[key] for key in keys} for row in document["annotations"]]
    assert rows == detections[3].to_coco(3, (5, 6)) + detections[4].to_coco(4, (5, 6))
    assert np.float32(rows[2]["score"]) == np.float32(1 / 3)
    assert [image["id"] for image in document["images"]] == list(detections)


def test_sorting_by_score_does_not_depend_on_the_previous_order() -> None:
    detections = some([0.5, 0.9, 0.5, 0.9])
    shuffled = detections[np.array([2, 1, 3, 0])]
    assert detections.by_score().boxes.tolist() == shuffled.by_score().boxes.tolist()
    assert shuffled.by_score().scores.tolist() == sorted(shuffled.scores.tolist(), reverse=True)


def test_selecting_and_concatenating_are_inverse() -> None:
    detections = some([0.1, 0.2, 0.3])
    parts = [detections[:1], detections[np.array([False, True, True])]]
    assert Detections.concatenate(parts).boxes.tolist() == detections.boxes.tolist()
    assert len(Detections.concatenate([])) == len(Detections.empty()) == 0


def test_arrays_of_different_lengths_are_refused() -> None:
    empty = Detections.empty()
    with pytest.raises(ValueError, match=r"boxes \(1, 4\)"):
        Detections(empty.boxes, np.zeros(1, np.float32), empty.labels)


def test_further_columns_are_selected_sorted_and_joined_with_the_boxes() -> None:
    detections = some([0.1, 0.3, 0.2])
    detections.data["track"] = np.array([[7, 0], [8, 1], [9, 2]])
    assert detections.by_score().data["track"][:, 0].tolist() == [8, 9, 7]
    joined = Detections.concatenate([detections[1:], Detections.empty(), detections[:1]])
    assert joined.data["track"][:, 0].tolist() == [8, 9, 7]
    assert joined.tiles.tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match=r"same columns, got \[\('tile',\), \('tile', 'track'\)\]"):
        Detections.concatenate([detections, some([0.5])])
    with pytest.raises(ValueError, match="'track': 2"):
        Detections(detections.boxes, detections.scores, detections.labels, {"track": np.zeros(2)})


def test_columns_that_were_not_set_have_defaults() -> None:
    found = some([0.5, 0.6])
    bare = Detections(found.boxes, found.scores, found.labels)
    assert (bare.tiles.tolist(), bare.passes.tolist(), bare.seam_distance.tolist()) == ([0, 0], [0, 0], [np.inf] * 2)
