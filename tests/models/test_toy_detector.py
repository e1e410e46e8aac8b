"""A detector is one file and one registry row: nothing else has to know it to train, export and run it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import toy_detector
from toy_detector import ROW, Toy

from tinydet.__main__ import main as tinydet
from tinydet.data.coco import find_dataset, load_dataset
from tinydet.evaluate.__main__ import main as evaluate
from tinydet.models.checkpoint import load_checkpoint
from tinydet.models.registry import DETECTORS
from tinydet.runtime import load
from tinydet.train import TrainConfig, train
from tinydet.train.config import config_of


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DETECTORS, "toy", ROW)


def config(squares: Path, output: Path, **changes: object) -> TrainConfig:
    values = {"detector": "toy", "data": squares, "tile": 96, "overlap": 32, "alpha": 0.5, "output": output,
              "preset": "small", "weights_backbone": "none", "norm": "group", "channels": 32, "precision": "fp32",
              "epochs": 12, "augment": (), "validate_every": 12, "lr": 0.04, "clip_norm": 1.0,
              "tensorboard": False}  # fmt: skip
    return TrainConfig(**{**values, **changes})


def test_it_is_written_in_fewer_than_80_lines() -> None:
    source = "@dataclass" + toy_detector.SOURCE.partition("@dataclass")[2]
    assert len([line for line in source.splitlines() if line.strip()]) < 80


@pytest.mark.slow  # the export takes 15 s
def test_it_learns_is_exported_verified_and_finds_the_squares(
    squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = train(config(squares, tmp_path / "model.pth", val=squares, options={"prior": 0.05}))
    checkpoint = load_checkpoint(tmp_path / "model.pth")
    assert isinstance(checkpoint.build(), Toy) and checkpoint.detector.options == {"prior": 0.05}
    assert trained.alpha == (0.5, 0.5, 0.5) and trained.history[-1]["AP50"] > 0.3

    assert tinydet(["export", "onnx", str(tmp_path / "model.pth"), "--data", str(squares)]) == 0
    printed = capsys.readouterr().out
    assert "operators added by it: 0" in printed and " detections compared, 0 unmatched; " in printed

    model = load(tmp_path / "model.onnx", score=0.3, overlap=32)
    assert model.spec.detector == "toy"
    found = model.detect(squares / "images" / "3.png")
    wanted = load_dataset(*find_dataset(squares)).of_image(3).boxes
    errors = np.abs(found.boxes[:, None] - wanted).max(axis=2).min(axis=0)  # pixels, of the best box of each square
    assert (errors < 4).sum() >= 2
    assert evaluate(["--model", str(tmp_path / "model.onnx"), "--data", str(squares)]) == 0


def test_the_command_line_and_the_plan_know_it(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert config_of(["--detector", "toy", "--prior", "0.2"]).options == {"prior": 0.2}
    with pytest.raises(ValueError, match="--prior is not an option of retinanet, but of toy"):
        config_of(["--prior", "0.2"])
    with caplog.at_level("INFO", "tinydet.train"):
        train(config(squares, tmp_path / "model.pth", dry_run=True))
    lines = caplog.messages
    assert any("Toy, mobilenet_v2" in line for line in lines)
    assert [line.split()[1] for line in lines if " head " in line or line.split()[0] == "head"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fusion", ["three", "channel", "attention"])
def test_its_pyramid_learns_alpha(squares: Path, tmp_path: Path, fusion: str) -> None:
    train(config(squares, tmp_path / "model.pth", alpha=fusion, epochs=1))
    assert load_checkpoint(tmp_path / "model.pth").detector.fusion == fusion


def test_its_loss_is_split_by_level(squares: Path, tmp_path: Path) -> None:
    from tinydet.data.samples import TrainingTiles
    from tinydet.models.backbone import PixelNorm
    from tinydet.models.batch import collate

    tiles = TrainingTiles(load_dataset(*find_dataset(squares)), 96, 32, flip=False)
    batch = collate([tiles.sample(i, seed=0, epoch=0) for i in range(3)], torch.device("cpu"), PixelNorm())
    losses = Toy("mobilenet_v2", 1, channels=8).loss(batch)
    assert all(loss > 0 for name, loss in losses.items() if name.startswith("classification"))
    assert losses["regression/P2"] > 0 == losses["regression/P3"]  # squares have sides of 12 pixels


def test_salpha_counts_the_levels_that_the_detector_names(squares: Path, tmp_path: Path) -> None:
    train(config(squares, tmp_path / "model.pth", alpha=None, salpha=True, epochs=1))
    statistics = load_checkpoint(tmp_path / "model.pth").statistics
    assert statistics is not None and statistics["counts"]["P2"] == sum(statistics["counts"].values())
