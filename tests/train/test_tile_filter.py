"""Training of tile filters: what cells learn, and that a filter is calibrated, saved and refused as it should be."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tinydet.data.samples import Sample
from tinydet.models.backbone import PixelNorm
from tinydet.models.tile_filter import CLASSES, FilterGraph, TileFilterNetwork, filter_spec, folded, load_filter
from tinydet.runtime.tile_filter import CELL
from tinydet.spec import FilterRecord, ModelSpec
from tinydet.train.config import TrainConfig
from tinydet.train.tile_filter import cell_loss, prepare, train_filter

RECORD = FilterRecord(("square",), (64,), 1.0, 1, 0.9, 0.0, 0.95, 0, 0, 0, 0, 0, 0.0)
DETECTOR = ModelSpec(("square",), (3,), "cells", "none", 64, max_detections=50, nms_in_graph=True)


@pytest.fixture(scope="module")
def network() -> TileFilterNetwork:
    torch.manual_seed(0)
    network = TileFilterNetwork(PixelNorm()).eval()
    with torch.inference_mode():
        network.fit_familiar(network(torch.randint(0, 256, (80, 64, 64, 3), dtype=torch.uint8))[1])
    return network


def tiles(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_cells_learn_the_centers_of_objects_and_ignore_what_is_neither_object_nor_background() -> None:
    sample = Sample(
        np.zeros((64, 112, 3), np.uint8),
        np.array([[4, 4, 12, 12], [30, 20, 36, 28]], np.float32),  # the second lies in four cells
        np.zeros(2, np.int64),
        np.array([[80, 0, 90, 10]], np.float32),
    )
    image, cells = prepare(sample, 128, 1)
    assert image.shape == (128, 128, 3)
    expected = np.full((8, 8), -1)  # no content below row 4 and from column 7
    expected[:4, :7] = 0
    expected[1, 1:3], expected[0, 5] = -1, -1
    expected[0, 0], expected[1, 2] = 1, 1
    assert np.array_equal(cells, expected)


def test_ignored_cells_do_not_change_the_loss() -> None:
    targets = torch.tensor([[[1.0, 0.0, -1.0, 0.0]]])
    logits = torch.tensor([[[0.3, -0.2, 5.0, 0.1]]])
    other = logits.clone()
    other[0, 0, 2] = -7.0
    assert cell_loss(logits, targets) == cell_loss(other, targets)
    weights = torch.tensor([2.0, 1.0, 1.0])  # one cell with an object, two without
    losses = torch.nn.functional.softplus(torch.tensor([-0.3, -0.2, 0.1]))
    assert float(cell_loss(logits, targets)) == pytest.approx(float((weights * losses).sum() / 4))


def test_folding_changes_no_output(network: TileFilterNetwork) -> None:
    trained = folded(network)
    assert not [each for each in trained.modules() if isinstance(each, torch.nn.BatchNorm2d)]
    with torch.inference_mode():
        for one, other in zip(network(tiles(2, 64, 96)), trained(tiles(2, 64, 96)), strict=True):
            assert torch.allclose(one, other, atol=1e-4)


def test_after_a_calibration_both_classes_have_the_threshold_one_half(network: TileFilterNetwork) -> None:
    copied = folded(network)
    images = tiles(6, 64, 64)
    with torch.inference_mode():
        cells, features = copied(images)
        score, distance = float(cells.sigmoid().median()), float(copied.strangeness(features).median())
        copied.calibrate(score, distance)
        after, features = copied(images)
        assert torch.equal(after.sigmoid() >= 0.5, cells.sigmoid() >= score)
        spec = filter_spec(RECORD, 64, pad=(0, 0, 0), stretch=(0.5, 99.5), score_floor=1e-6)
        boxes, scores, labels, candidates = FilterGraph(copied, spec)(images)
    strange = copied.strangeness(features)
    assert torch.equal((scores.where(labels == 1, 0).max(1).values >= 0.5), strange >= 1)
    assert candidates.tolist() == [17] * 6  # all cells, and the tile
    assert (scores[:, :-1] >= scores[:, 1:]).all()
    whole = boxes[labels == 1]
    assert whole.tolist() == [[0, 0, 64, 64]] * 6
    assert {tuple(box) for box in boxes[labels == 0].tolist()} == {
        (x, y, x + CELL, y + CELL) for x in range(0, 64, CELL) for y in range(0, 64, CELL)
    }


def test_what_the_features_of_training_tiles_do_is_familiar(network: TileFilterNetwork) -> None:
    with torch.inference_mode():
        alike = network.strangeness(network(tiles(20, 64, 64))[1])
        flat = network.strangeness(network(torch.full((1, 64, 64, 3), 250, dtype=torch.uint8))[1])
    assert flat > 5 * alike.max()


def test_training_writes_a_filter_that_says_what_it_proves(
    squares: Path, tmp_path: Path, make_onnx: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    model = make_onnx(tmp_path / "m.onnx", spec=DETECTOR)
    config = TrainConfig(filter=str(model), data=squares, val=squares, epochs=1, threads=1)
    trained = train_filter(config)
    assert trained.output == tmp_path / "m.filter.pth"
    stored = load_filter(trained.output)
    record = stored.spec.tile_filter
    assert record == trained.record
    assert record is not None
    assert (record.classes, record.tiles, record.reduction, record.objects) == (("square",), (64, 32), 2, 20)
    assert (record.missed, record.bound) == (0, pytest.approx(0.05 ** (1 / 20)))
    assert (stored.spec.classes, stored.spec.tile, stored.spec.thresholds) == (CLASSES, 32, (0.5, 0.5))
    assert "20 held-out objects can prove a recall of 86.09 % only; 598 objects are needed" in caplog.text
    again = train_filter(dataclasses.replace(config, output=tmp_path / "again.pth"))
    assert again.record == trained.record
    for name, tensor in load_filter(again.output).weights.items():
        assert torch.equal(tensor, stored.weights[name]), "the same seed gives the same filter"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"salpha": True}, "--salpha is not an option of a tile filter"),
        ({"backbone": "resnet50"}, "--backbone is not an option of a tile filter"),
        ({"options": {"head_convs": 2}}, "--head-convs is an option of a detector"),
        ({"filter": "no.pth"}, "no.pth: no such file"),
        ({"data": None}, "does not say where its training data are"),
        ({"filter": None, "filter_recall": 0.9}, "add --filter MODEL"),
    ],
)
def test_options_that_mean_nothing_are_refused(
    squares: Path, tmp_path: Path, make_onnx: Callable[..., Path], changes: dict, message: str
) -> None:
    values = {"filter": str(make_onnx(tmp_path / "m.onnx", spec=DETECTOR)), "data": squares, **changes}
    with pytest.raises((ValueError, OSError), match=message):
        TrainConfig(**values).resolve()


@pytest.mark.slow
def test_an_interrupted_training_continues_to_the_same_filter(
    squares: Path, tmp_path: Path, make_onnx: Callable[..., Path]
) -> None:
    config = TrainConfig(filter=str(make_onnx(tmp_path / "m.onnx", spec=DETECTOR)), data=squares, val=squares,
                         epochs=30, threads=1)  # fmt: skip
    whole = train_filter(dataclasses.replace(config, output=tmp_path / "whole.pth"))
    state = tmp_path / "m.filter.state"

    def interrupt() -> None:
        while not state.exists():
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt, match=r"Interrupted after \d+ of 30 epochs. The same command with --resume"):
        train_filter(config)
    assert not (tmp_path / "m.filter.pth").exists()
    with pytest.raises(ValueError, match="belongs to a run with other options or data"):
        train_filter(dataclasses.replace(config, resume=True, seed=1))
    resumed = train_filter(dataclasses.replace(config, resume=True))
    assert resumed.record == whole.record
    assert not state.exists()
    weights = load_filter(whole.output).weights
    assert all(torch.equal(tensor, weights[name]) for name, tensor in load_filter(resumed.output).weights.items())
