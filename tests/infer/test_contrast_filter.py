"""The contrast filter and its calibration, on images whose contrasts are known."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest

from tinydet.evaluate.tile_filter import recall_bound
from tinydet.infer.contrast_calibration import (
    MARGIN,
    Contrasts,
    calibrate_contrast_filter,
    highest_threshold,
    measure_contrasts,
)
from tinydet.infer.contrast_filter import ContrastFilter, contrast, contrast_filter_path
from tinydet.spec import ModelSpec

SPEC = ModelSpec(("spot",), (1,), "d", "b", tile=64, object_sizes=(6.0, 8.0, 10.0))


def test_a_spot_has_contrast_wherever_it_is_and_a_gradient_has_none() -> None:
    for x in range(0, 56, 5):
        image = np.full((64, 64, 3), 100, np.uint8)
        image[x : x + 8, 20:28] = 140
        assert 25 <= contrast(image, 8) <= 40
    gradient = np.repeat(np.linspace(0, 120, 64).astype(np.uint8)[None, :, None], 64, 0).repeat(3, 2)
    assert contrast(gradient, 8) < 15


def test_thresholds_keep_the_requested_recall() -> None:
    rng = np.random.default_rng(0)
    for count in (1, 10, 199, 200, 1001):
        contrasts = Contrasts(8, [0, 255], rng.integers(2, 200, count).tolist(), rng.integers(2, 200, count).tolist())
        contrast_filter = calibrate_contrast_filter(contrasts, tile=64)
        assert contrasts.recall(contrast_filter.threshold) >= 0.995
        assert contrasts.recall(int(contrast_filter.threshold / MARGIN)) >= 0.995, (
            "objects fainter by the margin are kept too"
        )
        assert contrasts.recall(int((contrast_filter.threshold + 1) / MARGIN) + 1) < 0.995, "the highest such threshold"
        assert contrasts.motion_recall(contrast_filter.motion) >= 0.995
        assert contrast_filter.recall_bound <= contrast_filter.recall
    assert highest_threshold([5], 0.995) == 5
    assert recall_bound(1, 1) == 0


def test_an_appearing_object_changes_the_image_by_its_difference_from_the_background(tmp_path: Path) -> None:
    boxes = []
    image = np.full((256, 256, 3), 60, np.uint8)
    for i, brighter in enumerate((20, 40, 80)):
        image[100:108, 40 + 60 * i : 48 + 60 * i] += brighter
        boxes.append({"id": i, "image_id": 1, "category_id": 1, "bbox": [40 + 60 * i, 100, 8, 8]})
    cv2.imwrite(str(tmp_path / "a.png"), image)
    images = [{"id": 1, "file_name": "a.png", "width": 256, "height": 256}]
    document = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "square"}]}
    (tmp_path / "val.json").write_text(json.dumps(document))
    contrasts = measure_contrasts(SPEC, tmp_path / "val.json", overlap=16)
    assert contrasts.changes == pytest.approx([20, 40, 80], abs=2)
    assert len(contrasts.tiles) == 25
    halved = measure_contrasts(SPEC, tmp_path / "val.json", overlap=16, scale=0.5)
    assert halved.changes == pytest.approx([20, 40, 80], abs=12)


def test_a_filter_is_loaded_as_saved_and_other_files_raise(tmp_path: Path) -> None:
    contrast_filter = calibrate_contrast_filter(Contrasts(8, [3, 9], [7], [8]), tile=64, scale=0.5)
    path = contrast_filter_path(tmp_path / "model.onnx")
    contrast_filter.save(path)
    assert ContrastFilter.load(path) == contrast_filter
    contrast_filter.check(64, 0.5)
    with pytest.raises(ValueError, match="calibrated for tiles of 64 at scale 0.5, not for 32 at 0.5"):
        contrast_filter.check(32, 0.5)
    path.write_text(json.dumps({"format": 1, **dataclasses.asdict(contrast_filter)}))
    with pytest.raises(ValueError, match="not written by --calibrate-skip"):
        ContrastFilter.load(path)


def test_a_filter_is_calibrated_on_the_chosen_bands_and_refuses_others(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    pixels = np.full((4, 64, 64), 60, np.uint8)
    pixels[3, 20:28, 20:28] = 160
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the file has no geotransform
        with rasterio.open(
            tmp_path / "a.tif", "w", driver="GTiff", count=4, dtype="uint8", width=64, height=64
        ) as file:
            file.write(pixels)
    boxes = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [20, 20, 8, 8]}]
    images = [{"id": 1, "file_name": "a.tif", "width": 64, "height": 64}]
    document = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "square"}]}
    (tmp_path / "val.json").write_text(json.dumps(document))
    assert measure_contrasts(SPEC, tmp_path / "val.json", overlap=16).objects == [0]
    contrasts = measure_contrasts(SPEC, tmp_path / "val.json", overlap=16, bands=(4, 4, 4))
    assert contrasts.objects[0] > 50
    calibrate_contrast_filter(contrasts, tile=64).save(tmp_path / "model.skip.json")
    contrast_filter = ContrastFilter.load(tmp_path / "model.skip.json")
    contrast_filter.check(64, 1.0, (4, 4, 4))
    for bands, given in ((None, "no --bands"), ((1, 2, 3), "--bands 1,2,3")):
        with pytest.raises(ValueError, match=f"calibrated with --bands 4,4,4, not with {given}; calibrate it again"):
            contrast_filter.check(64, 1.0, bands)


@pytest.mark.slow
def test_a_filter_calibrated_on_training_images_holds_on_validation_images(shared: Path) -> None:
    data = shared / "data"
    spec = dataclasses.replace(SPEC, tile=256, object_sizes=(8.0, 15.0, 40.0))
    contrast_filter = calibrate_contrast_filter(
        measure_contrasts(spec, data / "hituav-train" / "annotations.json", overlap=64), tile=256
    )
    contrasts = measure_contrasts(spec, data / "hituav-val" / "annotations.json", overlap=64)
    assert contrasts.recall(contrast_filter.threshold) >= 0.995
    assert contrasts.motion_recall(contrast_filter.motion) >= 0.995
    assert contrasts.saving(contrast_filter.threshold) > 0.05
