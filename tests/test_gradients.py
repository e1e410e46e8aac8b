"""Eq. 3: gradients that pass a fused edge are weighed by alpha, those that do not are not."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tinydet.batch import collate
from tinydet.checkpoint import Checkpoint, save_checkpoint
from tinydet.data.coco import find_dataset, load_dataset
from tinydet.data.training import TrainingTiles
from tinydet.detector import DetectorConfig, build_detector
from tinydet.gradients import grid_of, main, measure

CONFIG = DetectorConfig("mobilenet_v2", channels=16, head_convs=1, head_init="he", norm="frozen")


@pytest.fixture
def batches(squares: Path):
    tiles = TrainingTiles(load_dataset(*find_dataset(squares)), 96, 32, flip=False)
    return [collate([tiles.sample(i, seed=0, epoch=0)], torch.device("cpu")) for i in (0, 1)]


def test_without_alpha_no_level_reaches_below_itself(batches) -> None:
    torch.manual_seed(0)
    detector = build_detector(CONFIG)
    strengths = measure(detector, (0.0, 0.0, 0.0), batches)
    reaches = strengths > 0  # levels P2..P6 by C3, C4, C5
    assert reaches.tolist() == [
        [False, False, False],
        [True, False, False],
        [False, True, False],
        [False, False, True],
        [False, False, True],
    ]


def test_what_passes_an_edge_grows_with_alpha_and_what_does_not_stays(batches) -> None:
    torch.manual_seed(0)
    detector = build_detector(CONFIG)
    for conv in (*detector.fpn.inner, *detector.fpn.layer):  # small weights: the logits hardly depend on alpha
        conv.weight.data *= 1e-6
    for branch in (detector.head.classification_head, detector.head.regression_head):
        branch.conv[0][0].bias.data.fill_(1.0)  # and no ReLU of the towers switches with it
    half, full = (measure(detector, (a, a, a), batches) for a in (0.5, 1.0))
    assert half[0, 0] / full[0, 0] == pytest.approx(0.5, rel=1e-2)  # P2 into C3 passes one edge
    assert half[0, 2] / full[0, 2] == pytest.approx(0.125, rel=1e-2)  # into C5 three
    assert half[2, 1] == pytest.approx(full[2, 1], rel=1e-2)  # P4 into C4 none
    assert detector.fpn.alpha.tolist() == [1.0, 1.0, 1.0]  # as it was


def test_the_command_writes_figures_and_a_picture(squares: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    torch.manual_seed(0)
    weights = build_detector(CONFIG, (0.5, 0.5, 0.5)).state_dict()
    model = tmp_path / "model.pth"
    whole = Checkpoint(CONFIG, weights, ("square",), (3,), tile=96)
    save_checkpoint(whole, model)
    flags = ["--data", str(squares), "--alpha", "0,1", "--tiles", "2", "--overlap", "32"]
    assert main([str(model), *flags]) == 0
    result = json.loads((tmp_path / "model.gradients.json").read_text())
    assert result["alpha"] == [0.0, 1.0] and result["model"]["alpha"] == [0.5, 0.5, 0.5]
    assert result["gradient"]["C4"]["P2"][0] == 0.0 < result["gradient"]["C4"]["P2"][1]
    assert (tmp_path / "model.gradients.png").stat().st_size > 1000
    attended = replace(CONFIG, fusion="attention")
    save_checkpoint(replace(whole, detector=attended, weights=build_detector(attended).state_dict()), model)
    assert main([str(model), *flags]) == 2


def test_a_grid_holds_both_ends() -> None:
    assert grid_of("0:1.1:0.1") == pytest.approx([i / 10 for i in range(12)])
    assert grid_of("0.5") == (0.5,) and grid_of("0,0.25,1") == (0.0, 0.25, 1.0)


@pytest.mark.parametrize("text", ["", "a", "0:1", "1:0:0.1", "0:1:0", "0:inf:1", "nan"])
def test_a_malformed_grid_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="got"):
        grid_of(text)
