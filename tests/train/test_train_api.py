"""`tinydet.train.train`: the command from Python."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tinydet.models.checkpoint import load_checkpoint
from tinydet.train.__main__ import main
from tinydet.train.options import TrainOptions, flags_of, parser
from tinydet.train.run import train

QUICK: TrainOptions = {"preset": "small", "weights_backbone": "none", "channels": 8, "head_convs": 1, "epochs": 1,
                       "tile": 96, "overlap": 32, "precision": "fp32", "no_tensorboard": True}  # fmt: skip


def test_every_flag_is_an_option_but_the_dry_run() -> None:
    flags = {action.dest for action in parser()._actions if action.dest != "help"}
    assert TrainOptions.__annotations__.keys() == flags - {"dry_run"}


def test_python_trains_what_the_command_trains_and_says_nothing(
    squares: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: TrainOptions = {**QUICK, "data": squares, "val": squares, "alpha": [0.5, 0.4, 0.3], "lr": 1e-3}
    trained = train(**options, output=tmp_path / "python.pth")
    assert capsys.readouterr().out == ""
    assert trained.output == tmp_path / "python.pth" and trained.alpha == (0.5, 0.4, 0.3)
    assert [entry["epoch"] for entry in trained.history] == [1] and 0 <= trained.history[0]["AP50"] <= 1
    assert main(flags_of({**options, "output": tmp_path / "command.pth"})) == 0
    ours, theirs = (load_checkpoint(tmp_path / name).weights for name in ("python.pth", "command.pth"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_news_go_to_whom_it_was_told_to(squares: Path, tmp_path: Path) -> None:
    told: list[str] = []
    train(**QUICK, data=squares, output=tmp_path / "model.pth", report=told.append)
    assert told[0].startswith("data ") and any(line.startswith("wrote ") for line in told)


def test_what_the_command_refuses_is_raised(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="no option 'epoch'"):
        train(epoch=3)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="--tile must be a multiple of 32"):
        train(tile=100, output=tmp_path / "model.pth")
    with pytest.raises(ValueError, match="whole number from 1 up"):
        train(epochs=0)
    assert list(tmp_path.iterdir()) == []
