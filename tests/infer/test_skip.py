"""What may be passed over, by hand."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest

from tinydet.infer.skip import Gate, contrast, gate_path
from tinydet.infer.skip_calibration import MARGIN, Looks, calibrate, highest_threshold, look_at, recall_bound
from tinydet.spec import ModelSpec

SPEC = ModelSpec(("spot",), (1,), "d", "b", tile=64, object_sizes=(6.0, 8.0, 10.0))


def test_a_spot_is_seen_by_its_contrast_wherever_it_lies_and_a_slope_is_not() -> None:
    for x in range(0, 56, 5):
        picture = np.full((64, 64, 3), 100, np.uint8)
        picture[x : x + 8, 20:28] = 140
        assert 25 <= contrast(picture, 8) <= 40
    slope = np.repeat(np.linspace(0, 120, 64).astype(np.uint8)[None, :, None], 64, 0).repeat(3, 2)
    assert contrast(slope, 8) < 15


def test_thresholds_hold_the_recall_that_was_asked_for() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 10, 199, 200, 1001):
        looks = Looks(8, [0, 255], rng.integers(2, 200, count).tolist(), rng.integers(2, 200, count).tolist())
        gate = calibrate(looks, tile=64)
        assert looks.recall(gate.threshold) >= 0.995
        assert looks.recall(int(gate.threshold / MARGIN)) >= 0.995, "objects that are fainter by the margin still count"
        assert looks.recall(int((gate.threshold + 1) / MARGIN) + 1) < 0.995, "the highest such threshold"
        assert looks.motion_recall(gate.motion) >= 0.995
        assert gate.recall_bound <= gate.recall
    assert highest_threshold([5], 0.995) == 5
    assert recall_bound(1, 1) == 0


def test_an_object_changes_its_place_by_what_it_differs_from_its_surroundings(tmp_path: Path) -> None:
    boxes = []
    picture = np.full((256, 256, 3), 60, np.uint8)
    for i, brighter in enumerate((20, 40, 80)):
        picture[100:108, 40 + 60 * i : 48 + 60 * i] += brighter
        boxes.append({"image_id": 1, "bbox": [40 + 60 * i, 100, 8, 8]})
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    document = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": boxes}
    (tmp_path / "val.json").write_text(json.dumps(document))
    looks = look_at(SPEC, tmp_path / "val.json", overlap=16)
    assert looks.changes == pytest.approx([20, 40, 80], abs=2)
    assert len(looks.tiles) == 25
    halved = look_at(SPEC, tmp_path / "val.json", overlap=16, scale=0.5)
    assert halved.changes == pytest.approx([20, 40, 80], abs=12)


def test_a_gate_is_read_as_it_was_written_and_no_other_file_is_one(tmp_path: Path) -> None:
    gate = calibrate(Looks(8, [3, 9], [7], [8]), tile=64, scale=0.5)
    path = gate_path(tmp_path / "model.onnx")
    gate.save(path)
    assert Gate.load(path) == gate
    gate.check(64, 0.5)
    with pytest.raises(ValueError, match="measured for tiles of 64 at scale 0.5, not for 32 at 0.5"):
        gate.check(32, 0.5)
    path.write_text(json.dumps({"format": 1, **dataclasses.asdict(gate)}))
    with pytest.raises(ValueError, match="not written by --calibrate-skip"):
        Gate.load(path)


def test_a_gate_is_measured_on_the_bands_that_are_asked_for_and_used_for_no_others(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    pixels = np.full((4, 64, 64), 60, np.uint8)
    pixels[3, 20:28, 20:28] = 160
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has no geotransform
        with rasterio.open(
            tmp_path / "a.tif", "w", driver="GTiff", count=4, dtype="uint8", width=64, height=64
        ) as file:
            file.write(pixels)
    boxes = [{"image_id": 1, "bbox": [20, 20, 8, 8]}]
    (tmp_path / "val.json").write_text(json.dumps({"images": [{"id": 1, "file_name": "a.tif"}], "annotations": boxes}))
    assert look_at(SPEC, tmp_path / "val.json", overlap=16).objects == [0]
    looks = look_at(SPEC, tmp_path / "val.json", overlap=16, bands=(4, 4, 4))
    assert looks.objects[0] > 50
    calibrate(looks, tile=64).save(tmp_path / "model.skip.json")
    gate = Gate.load(tmp_path / "model.skip.json")
    gate.check(64, 1.0, (4, 4, 4))
    for bands, said in ((None, "no --bands"), ((1, 2, 3), "--bands 1,2,3")):
        with pytest.raises(ValueError, match=f"measured with --bands 4,4,4, not with {said}; measure it again"):
            gate.check(64, 1.0, bands)


@pytest.mark.slow
def test_a_gate_of_the_training_images_holds_on_the_validation_images(shared: Path) -> None:
    data = shared / "data"
    spec = dataclasses.replace(SPEC, tile=256, object_sizes=(8.0, 15.0, 40.0))
    gate = calibrate(look_at(spec, data / "hituav-train" / "annotations.json", overlap=64), tile=256)
    looks = look_at(spec, data / "hituav-val" / "annotations.json", overlap=64)
    assert looks.recall(gate.threshold) >= 0.995
    assert looks.motion_recall(gate.motion) >= 0.995
    assert looks.saving(gate.threshold) > 0.05
