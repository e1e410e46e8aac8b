"""Checkpoints: saving and loading, invalid files, and that loading executes no code."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tinydet.models.build import DetectorConfig, build_detector
from tinydet.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

CONFIG = DetectorConfig("mobilenet_v2", channels=16, norm="batch", classes=2, options={"head_convs": 1})
ALPHA = (0.4, 0.3, 0.2)


def checkpoint() -> Checkpoint:
    torch.manual_seed(0)
    weights = build_detector(CONFIG, ALPHA).state_dict()
    return Checkpoint(CONFIG, weights, ("person", "car"), (1, 7), tile=256, object_sizes=(3.0, 9.0, 30.0))


def test_a_saved_checkpoint_is_loaded_with_equal_values(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    saved = checkpoint()
    save_checkpoint(saved, path)
    loaded = load_checkpoint(path)
    assert loaded.detector == CONFIG and loaded.classes == ("person", "car") and loaded.category_ids == (1, 7)
    assert loaded.alpha == ALPHA
    assert loaded.spec().alpha == ALPHA and loaded.spec().tile == 256 and loaded.spec(tile=640).tile == 640
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(loaded.build()(images), saved.build()(images))


@pytest.mark.parametrize(
    ("detector", "slots"), [("retinanet", 3840), ("fcos", 3840), ("faster_rcnn", 1000), ("grid_rcnn", 100)]
)
def test_slots_are_for_all_boxes_of_a_one_stage_detector_and_for_the_objects_of_the_others(
    detector: str, slots: int
) -> None:
    config = replace(CONFIG, detector=detector, options={})
    assert replace(checkpoint(), detector=config).spec().max_detections == slots
    assert replace(checkpoint(), detector=config).spec(max_detections=50).max_detections == 50


def test_alpha_is_stored_in_the_weights(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    save_checkpoint(checkpoint(), path)
    assert load_checkpoint(path).build().fpn.alpha.tolist() == pytest.approx(ALPHA)


class CreatesFile:
    """Executes code when it is unpickled."""

    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def write_invalid(kind: str, path: Path) -> None:
    match kind:
        case "code":
            torch.save({"format": "tinydet-1", "weights": CreatesFile()}, path)
        case "pickle":
            path.write_bytes(pickle.dumps(CreatesFile()))
        case "text":
            path.write_text("not a checkpoint")
        case "empty":
            path.write_bytes(b"")
        case "truncated":
            save_checkpoint(checkpoint(), path)
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        case "state dict":
            torch.save({"conv.weight": torch.zeros(1)}, path)
        case "another format":
            torch.save({"format": "tinydet-999"}, path)
        case "an unknown field":
            torch.save({"format": "tinydet-1", "detector": {"backbone": "resnet18", "wings": 2}}, path)
        case "a missing tensor":
            complete = checkpoint()
            weights = {k: v for k, v in complete.weights.items() if "cls_logits" not in k}
            save_checkpoint(replace(complete, weights=weights), path)
        case "a conventional pyramid":
            complete = checkpoint()
            weights = {k: v for k, v in complete.weights.items() if k != "fpn.alpha"}
            save_checkpoint(replace(complete, weights=weights), path)
        case "missing":
            pass


@pytest.mark.parametrize(
    "kind",
    ["code", "pickle", "text", "empty", "truncated", "state dict", "another format", "an unknown field",
     "a missing tensor", "a conventional pyramid", "missing"],
)  # fmt: skip
def test_an_invalid_file_is_a_one_line_error_and_executes_nothing(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pth"
    write_invalid(kind, path)
    with pytest.raises(ValueError, match="model.pth") as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)
    assert not Path("executed").exists()


def test_a_failed_write_keeps_the_existing_file(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    save_checkpoint(checkpoint(), path)
    before = path.read_bytes()
    with pytest.raises(Exception, match="pickle|local object|lambda"):
        save_checkpoint(replace(checkpoint(), config={"no": lambda: None}), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.pth"]
