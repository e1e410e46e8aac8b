"""Which images verify a model, and which calibrate INT8: its own, in this order, and never the same ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tinydet.data.source import find_source
from tinydet.export.verification_images import (
    OwnData,
    VerificationImages,
    choose_images,
    own_data_of_checkpoint,
    own_data_of_report,
    with_calibration,
)
from tinydet.export.verify import report_paths
from tinydet.models.build import DetectorConfig
from tinydet.models.checkpoint import Checkpoint

CLASSES = ("light",)


def coco_folder(folder: Path, count: int) -> Path:
    """Write a COCO folder of dark images with one bright cell each."""
    (folder / "images").mkdir(parents=True)
    document: dict[str, Any] = {"categories": [{"id": 4, "name": "light"}], "images": [], "annotations": []}
    for n in range(count):
        image = np.full((64, 64), 20, np.uint8)
        image[8:12, 16:20] = 150 + n
        cv2.imwrite(str(folder / "images" / f"{n:02}.png"), image)
        document["images"].append({"id": n, "file_name": f"{n:02}.png", "width": 64, "height": 64})
        document["annotations"].append({"id": n, "image_id": n, "category_id": 4, "bbox": [16, 8, 4, 4]})
    (folder / "annotations.json").write_text(json.dumps(document))
    return folder


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with training images, validation images, and room for a model."""
    coco_folder(tmp_path / "project" / "train", 6)
    coco_folder(tmp_path / "project" / "val", 4)
    return tmp_path / "project"


def trained(project: Path, *, val: bool = True) -> Checkpoint:
    """Return a checkpoint, without weights, of a run on the data of the project."""
    sources = {"train_data": find_source(project / "train"), "val_data": find_source(project / "val") if val else None}
    config = {name: None if source is None else source.to_json(project) for name, source in sources.items()}
    return Checkpoint(DetectorConfig(), {}, CLASSES, (4,), tile=64, config=config)


def chosen(own: OwnData, limit: int = 50, *, data: Path | None = None) -> VerificationImages:
    return choose_images(CLASSES, None, data, own, limit=limit)


def folders(images: list[Path]) -> set[str]:
    return {path.resolve().parent.parent.name for path in images}


def test_validation_images_verify_and_training_images_calibrate(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = own_data_of_checkpoint(trained(project), project / "model.pth")
    found = with_calibration(chosen(own), None)
    assert found.calibration is not None
    assert folders(found.images) == {"val"} and len(found.images) == 4 and found.dataset is not None
    assert folders(found.calibration.images) == {"train"} and len(found.calibration.images) == 6
    assert "validation images of" in found.source and "training images of" in found.calibration.source
    assert not caplog.messages


def test_data_that_moved_with_the_checkpoint_are_found(project: Path, tmp_path: Path) -> None:
    checkpoint = trained(project)
    shutil.move(project, tmp_path / "elsewhere")
    found = chosen(own_data_of_checkpoint(checkpoint, tmp_path / "elsewhere" / "model.pth"))
    assert len(found.images) == 4 and all(path.is_file() for path in found.images)


def test_an_exported_model_knows_its_data_by_its_report(project: Path) -> None:
    found = with_calibration(chosen(own_data_of_checkpoint(trained(project), project / "model.pth")), None)
    model = project / "model.onnx"
    record = found.record(project)
    report_paths(model)[0].write_text(json.dumps(record))
    again = with_calibration(chosen(own_data_of_report(model)), None)
    assert [path.resolve() for path in again.images] == [path.resolve() for path in found.images]
    assert record["images_used"]["verified_on"] == [str(path) for path in found.images]
    assert len(record["images_used"]["calibrated_on"]) == 6


@pytest.mark.parametrize("limit", [1, 3, 5, 6, 50])
@pytest.mark.parametrize(
    ("val", "gone"), [(True, ()), (True, ("train",)), (True, ("val",)), (False, ()), (False, ("val",))]
)
def test_no_image_verifies_and_calibrates(project: Path, limit: int, val: bool, gone: tuple[str, ...]) -> None:
    checkpoint = trained(project, val=val)
    for name in gone:
        shutil.rmtree(project / name)
    found = with_calibration(chosen(own_data_of_checkpoint(checkpoint, project / "model.pth"), limit), None)
    assert found.calibration is not None
    verifying = {path.resolve() for path in found.images}
    calibrating = {path.resolve() for path in found.calibration.images}
    assert verifying and calibrating and not verifying & calibrating
    assert len(verifying) <= limit


def test_without_validation_images_training_images_verify(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = chosen(own_data_of_checkpoint(trained(project, val=False), project / "model.pth"))
    assert folders(found.images) == {"train"} and "training images of" in found.source and not caplog.messages


def test_validation_data_that_are_gone_are_named_with_what_is_used_instead(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = trained(project)
    shutil.rmtree(project / "val")
    found = chosen(own_data_of_checkpoint(checkpoint, project / "model.pth"))
    assert folders(found.images) == {"train"}
    (line,) = caplog.messages
    assert line.startswith("warning: the validation data of ") and str(project / "val") in line
    assert "verifying on the training images" in line and "--data" in line and "\n" not in line


@pytest.mark.parametrize("recorded", [True, False])
def test_images_of_another_kind_are_never_used_without_saying_so(
    project: Path, recorded: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    foreign = find_source(coco_folder(tmp_path / "foreign", 4))
    monkeypatch.setattr("tinydet.export.verification_images.builtin_source", lambda split: foreign)
    own = own_data_of_report(project / "model.onnx")
    if recorded:
        checkpoint = trained(project)
        shutil.rmtree(project)
        own = own_data_of_checkpoint(checkpoint, project / "model.pth")
    found = chosen(own)
    assert folders(found.images) == {"foreign"} and "not data of this model" in found.source
    (line,) = caplog.messages
    assert line.startswith("warning: ") and "not data of this model" in line and "--data" in line
    assert ("are gone" in line) == recorded
    with_calibration(found, None)
    assert "INT8 is calibrated on 2 images that do not verify" in caplog.messages[1]


def test_the_record_of_data_that_are_gone_is_kept(project: Path) -> None:
    checkpoint = trained(project)
    shutil.move(project / "val", project / "away")
    report_paths(project / "model.onnx")[0].write_text(
        json.dumps(chosen(own_data_of_checkpoint(checkpoint, project / "model.pth")).record(project))
    )
    assert "val" in own_data_of_report(project / "model.onnx").gone
    shutil.move(project / "away", project / "val")
    assert folders(chosen(own_data_of_report(project / "model.onnx")).images) == {"val"}


def test_a_calibration_folder_may_not_have_only_the_images_that_verify(project: Path) -> None:
    found = chosen(own_data_of_checkpoint(trained(project), project / "model.pth"))
    with pytest.raises(ValueError, match="all of its images verify the model; name others with --calibration"):
        with_calibration(found, project / "val" / "images")
    other = with_calibration(found, project / "train" / "images").calibration
    assert other is not None and len(other.images) == 6


def test_a_single_image_cannot_verify_and_calibrate(project: Path) -> None:
    image = project / "val" / "images" / "00.png"
    found = choose_images(CLASSES, [image], None, OwnData(), limit=50)
    with pytest.raises(ValueError, match="--calibration"):
        with_calibration(found, None)


def test_data_without_a_class_of_the_model_are_refused(project: Path) -> None:
    with pytest.raises(ValueError, match="light"):
        choose_images(("person",), None, project / "val", OwnData(), limit=50)
