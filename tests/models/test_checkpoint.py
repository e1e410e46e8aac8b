"""Checkpoints: whole, honest about what they are, and harmless to open."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tinydet.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from tinydet.models.detector import DetectorConfig, build_detector

CONFIG = DetectorConfig("mobilenet_v2", channels=16, norm="batch", classes=2, options={"head_convs": 1})
ALPHA = (0.4, 0.3, 0.2)


def checkpoint() -> Checkpoint:
    torch.manual_seed(0)
    weights = build_detector(CONFIG, ALPHA).state_dict()
    return Checkpoint(CONFIG, weights, ("person", "car"), (1, 7), tile=256, object_sizes=(3.0, 9.0, 30.0))


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    written = checkpoint()
    save_checkpoint(written, path)
    read = load_checkpoint(path)
    assert read.detector == CONFIG and read.classes == ("person", "car") and read.category_ids == (1, 7)
    assert read.alpha == ALPHA
    assert read.spec().alpha == ALPHA and read.spec().tile == 256 and read.spec(tile=640).tile == 640
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(read.build()(images), written.build()(images))


def test_alpha_comes_from_the_weights_alone(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    save_checkpoint(checkpoint(), path)
    assert load_checkpoint(path).build().fpn.alpha.tolist() == pytest.approx(ALPHA)


class Executes:
    def __reduce__(self):  # what a malicious pickle does
        return (Path.touch, (Path("executed"),))


def foreign(kind: str, path: Path) -> None:
    match kind:
        case "code":
            torch.save({"format": "tinydet-1", "weights": Executes()}, path)
        case "pickle":
            path.write_bytes(pickle.dumps(Executes()))
        case "text":
            path.write_text("not a checkpoint")
        case "empty":
            path.write_bytes(b"")
        case "torn":
            save_checkpoint(checkpoint(), path)
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        case "state dict":
            torch.save({"conv.weight": torch.zeros(1)}, path)
        case "another format":
            torch.save({"format": "tinydet-999"}, path)
        case "a field too many":
            torch.save({"format": "tinydet-1", "detector": {"backbone": "resnet18", "wings": 2}}, path)
        case "a tensor missing":
            whole = checkpoint()
            weights = {k: v for k, v in whole.weights.items() if "cls_logits" not in k}
            save_checkpoint(replace(whole, weights=weights), path)
        case "a plain pyramid":
            whole = checkpoint()
            save_checkpoint(replace(whole, weights={k: v for k, v in whole.weights.items() if k != "fpn.alpha"}), path)
        case "missing":
            pass


@pytest.mark.parametrize(
    "kind",
    ["code", "pickle", "text", "empty", "torn", "state dict", "another format", "a field too many", "a tensor missing",
     "a plain pyramid", "missing"],
)  # fmt: skip
def test_a_foreign_or_torn_file_is_refused_in_one_line_and_executes_nothing(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pth"
    foreign(kind, path)
    with pytest.raises(ValueError, match="model.pth") as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)
    assert not Path("executed").exists()


def test_a_failed_write_leaves_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    save_checkpoint(checkpoint(), path)
    before = path.read_bytes()
    with pytest.raises(Exception, match="pickle|local object|lambda"):
        save_checkpoint(replace(checkpoint(), config={"no": lambda: None}), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.pth"]
