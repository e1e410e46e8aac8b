"""`tinydet export freeze`: attention becomes constant factors, and the loss in AP is reported."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from designs import DESIGNS
from torch import nn

from tinydet.__main__ import main
from tinydet.data.coco import find_dataset, load_dataset
from tinydet.data.samples import TrainingTiles
from tinydet.export.freeze import attention_factors
from tinydet.models.backbone import PixelNorm
from tinydet.models.batch import collate
from tinydet.models.build import DetectorConfig, build_detector
from tinydet.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from tinydet.models.folding import FoldedFPN, fold_alpha
from tinydet.models.fpn import FPN


def checkpoint_of(fusion: str, *, trained: bool) -> Checkpoint:
    """A small detector; `trained`: its attention no longer gives 1 everywhere, as at the start of training."""
    torch.manual_seed(4)
    config = DetectorConfig("mobilenet_v2", 16, "batch", 1, fusion=fusion, options={"head_convs": 1, "head_init": "he"})
    detector = build_detector(config)
    nn.init.constant_(detector.head.classification_head.cls_logits.bias, 0.0)  # gives detections without training
    for module in detector.modules():
        if trained and isinstance(module, nn.Linear):
            nn.init.normal_(module.weight)
    return Checkpoint(config, detector.state_dict(), ("square",), (3,), tile=96)


@pytest.mark.parametrize("trained", [False, True])
def test_factors_are_measured_on_each_tile_finest_edge_first(squares: Path, trained: bool) -> None:
    detector = checkpoint_of("attention", trained=trained).build()
    tiles = TrainingTiles(load_dataset(*find_dataset(squares)), 96, 32, flip=False)
    factors = attention_factors(detector, tiles)
    assert factors.shape == (len(tiles), 3)
    assert bool((factors == 1).all()) != trained
    fpn = detector.fpn
    assert isinstance(fpn, FPN)
    with torch.no_grad():
        c = detector.backbone(collate([tiles.sample(2, seed=0, epoch=0)], torch.device("cpu"), PixelNorm()).images)
        laterals = [inner(feature) for inner, feature in zip(fpn.inner, c, strict=True)]
        merged, expected = laterals[3], []
        for i in (2, 1, 0):
            deeper = nn.functional.interpolate(merged, scale_factor=2.0)
            factor = fpn.attention[i](laterals[i], deeper)
            merged = laterals[i] + factor * deeper
            expected.insert(0, float(factor))
    assert factors[2].tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("detector", ["retinanet-p3p7", pytest.param("faster_rcnn", marks=pytest.mark.slow)])
def test_other_detectors_can_be_frozen_and_the_output_names_their_edges(
    squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], detector: str
) -> None:
    torch.manual_seed(4)
    config = DetectorConfig("mobilenet_v2", 16, "batch", 1, detector, "attention")
    weights = build_detector(config).state_dict()
    save_checkpoint(Checkpoint(config, weights, ("square",), (3,), tile=96), tmp_path / "model.pth")
    assert main(["export", "freeze", str(tmp_path / "model.pth"), "--data", str(squares), "--val", str(squares)]) == 0
    edges = DESIGNS[detector].edges
    assert f"({', '.join(edges)})" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "model.frozen.pth").alpha == (1.0,) * len(edges)


def test_a_frozen_checkpoint_has_the_mean_factors_folds_and_records_the_loss(
    squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(checkpoint_of("attention", trained=True), tmp_path / "model.pth")
    assert main(["export", "freeze", str(tmp_path / "model.pth"), "--data", str(squares), "--val", str(squares)]) == 0
    printed = capsys.readouterr().out
    frozen = load_checkpoint(tmp_path / "model.frozen.pth")
    trained = load_checkpoint(tmp_path / "model.pth")
    factors = attention_factors(
        trained.build(), TrainingTiles(load_dataset(*find_dataset(squares)), 96, 48, flip=False)
    )
    assert frozen.alpha == pytest.approx(factors.mean(dim=0).tolist(), abs=1e-6)
    assert frozen.detector.fusion == "fixed" and isinstance(fold_alpha(frozen.build().fpn), FoldedFPN)
    assert re.search(r"AP50 +\d+\.\d\d with attention, \d+\.\d\d frozen: [+-]\d+\.\d\d", printed)
    assert f"frozen at its mean on {len(factors)} tiles (AP50 " in frozen.alpha_source
    for key, value in trained.weights.items():
        assert key.startswith("fpn.attention") or torch.equal(frozen.weights[key], value)


def test_attention_that_gives_one_everywhere_costs_nothing(
    squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(checkpoint_of("attention", trained=False), tmp_path / "model.pth")
    assert main(["export", "freeze", str(tmp_path / "model.pth"), "--data", str(squares), "--val", str(squares)]) == 0
    assert "frozen: +0.00" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "model.frozen.pth").alpha == (1.0, 1.0, 1.0)


def test_a_checkpoint_without_attention_is_refused(
    squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(checkpoint_of("three", trained=False), tmp_path / "model.pth")
    assert main(["export", "freeze", str(tmp_path / "model.pth"), "--data", str(squares), "--val", str(squares)]) == 2
    assert "three, not attention; its factors can be folded without freezing" in capsys.readouterr().err
    assert not (tmp_path / "model.frozen.pth").exists()
