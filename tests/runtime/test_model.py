from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from tinydet.runtime import Model, Prediction, ScanOptions, detect, load, open_scene
from tinydet.runtime.scan import detect_scene


def image(*corners: tuple[int, int]) -> np.ndarray:
    pixels = np.zeros((100, 150, 3), np.uint8)
    for x, y in corners:
        pixels[y : y + 10, x : x + 10] = 255
    return pixels


@pytest.fixture
def model(white_squares: Callable) -> Model:
    return Model(white_squares(), overlap=16)


def test_a_path_an_array_and_an_open_scene_give_the_same_result(model: Model, tmp_path: Path) -> None:
    pixels = image((20, 30), (120, 80))
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), pixels)
    with open_scene(path) as scene:
        found = [model.detect(source) for source in (path, str(path), pixels, scene)]
        expected = detect_scene(model.backend, scene, ScanOptions(overlap=16, score=0.3)).detections
    for one in found:
        assert one.boxes.tolist() == expected.boxes.tolist() == [[20, 30, 30, 40], [120, 80, 130, 90]]
        assert (one.width, one.height, one.class_names) == (150, 100, ["square", "square"])
    assert [one.scene for one in found] == [str(path), str(path), "array", "a.png"]


def test_options_reach_the_scan(white_squares: Callable) -> None:
    pixels = image((20, 30), (120, 80))
    assert len(Model(white_squares(), overlap=16, score=0.7).detect(pixels)) == 0
    backend = white_squares()
    Model(backend, overlap=16, batch=1).detect(pixels)
    assert set(backend.batches) == {1}
    with pytest.raises(ValueError, match="seam, nms"):
        Model(white_squares(), overlap=16, merge="best").detect(pixels)  # type: ignore[arg-type]


def test_a_stream_takes_scenes_and_folders_and_is_lazy(model: Model, tmp_path: Path) -> None:
    for name in ("b.png", "a.png"):
        cv2.imwrite(str(tmp_path / name), image((20, 30)))
    assert [found.scene for found in model.stream(tmp_path)] == [str(tmp_path / name) for name in ("a.png", "b.png")]
    assert len(list(model.stream(image((20, 30))))) == 1
    mixed = list(model.stream([image(), str(tmp_path), tmp_path / "b.png"]))
    assert [found.image_id for found in mixed] == [1, 2, 3, 4]
    assert [len(found) for found in mixed] == [0, 1, 1, 1]
    lazy = model.stream([tmp_path / "a.png", tmp_path / "missing.png"])
    assert len(next(lazy)) == 1
    with pytest.raises(FileNotFoundError, match="missing"):
        next(lazy)


def test_each_frame_of_a_video_is_a_scene_with_its_time(model: Model, tmp_path: Path) -> None:
    pytest.importorskip("av")
    writer = cv2.VideoWriter(str(tmp_path / "a.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (150, 100))
    for i in range(3):
        writer.write(image((20 + 30 * i, 30)))
    writer.release()
    found = list(model.stream(tmp_path / "a.avi"))
    assert [one.seconds for one in found] == pytest.approx([0, 0.1, 0.2], abs=0.02)
    for i, one in enumerate(found):
        np.testing.assert_allclose(one.boxes, [[20 + 30 * i, 30, 30 + 30 * i, 40]], atol=1.5)


@pytest.fixture
def some(model: Model) -> Prediction:
    pixels = image((20, 30), (120, 80))
    pixels[60:90, 50:58] = 255  # a bar
    return model.detect(pixels, image_id=5)


def test_coco_results_have_the_ids_of_the_scene_and_of_the_dataset(some: Prediction, tmp_path: Path) -> None:
    assert [(row["image_id"], row["category_id"]) for row in some.to_coco()] == [(5, 0), (5, 7), (5, 7)]
    some.save(tmp_path / "found.json", "coco-results")
    assert json.loads((tmp_path / "found.json").read_text()) == some.to_coco()


def test_a_data_frame_has_one_row_per_box(some: Prediction) -> None:
    pytest.importorskip("pandas")
    frame = some.to_pandas()
    assert frame["class"].tolist() == ["bar", "square", "square"]
    assert frame[["x1", "y1", "x2", "y2"]].to_numpy().tolist() == some.boxes.tolist()


def test_a_prediction_converts_to_supervision(some: Prediction) -> None:
    supervision = pytest.importorskip("supervision")
    detections = some.to_supervision()
    assert isinstance(detections, supervision.Detections)
    assert detections.xyxy.tolist() == some.boxes.tolist()
    assert detections[detections.class_id == 1].data["class_name"].tolist() == ["bar"]
    blank = image()
    drawn = supervision.BoxAnnotator().annotate(blank.copy(), detections)
    assert (drawn != blank).any()


def test_a_prediction_converts_to_fiftyone(some: Prediction) -> None:
    fiftyone = pytest.importorskip("fiftyone", reason="fiftyone brings another OpenCV: a venv of its own")
    field = some.to_fiftyone()
    assert isinstance(field, fiftyone.Detections)
    assert [one.label for one in field.detections] == ["bar", "square", "square"]
    for one, (x1, y1, x2, y2) in zip(field.detections, some.boxes.tolist(), strict=True):
        assert one.bounding_box == pytest.approx([x1 / 150, y1 / 100, (x2 - x1) / 150, (y2 - y1) / 100])


def test_a_file_is_loaded_and_used_in_one_call(make_onnx: Callable[..., Path], tmp_path: Path) -> None:
    path = make_onnx(tmp_path / "model.onnx")
    pixels = np.zeros((64, 64), np.uint8)
    pixels[8:16, 16:24] = 255
    assert detect(path, pixels, overlap=16).boxes.tolist() == [[16, 8, 24, 16]]
    model = load(path, overlap=16)
    assert detect(model, pixels).boxes.tolist() == [[16, 8, 24, 16]]
    with pytest.raises(ValueError, match=r"load\(\.\.\., score=\.\.\.\)"):
        detect(model, pixels, score=0.5)
