"""What a run survives: a full disk, a truncated state, the remains of a killed run."""

from __future__ import annotations

import contextlib
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tinydet._internal.atomic import claim
from tinydet.models.checkpoint import load_checkpoint
from tinydet.train import TrainConfig, train
from tinydet.train.__main__ import main
from tinydet.train.run import StoppedError
from tinydet.train.trainer import Trainer

QUICK = ["--preset", "small", "--backbone", "tiny", "--weights-backbone", "none", "--channels", "8",
         "--head-convs", "1", "--epochs", "2", "--tile", "96", "--overlap", "32",
         "--precision", "fp32", "--no-tensorboard"]  # fmt: skip


@contextlib.contextmanager
def full_disk(room: int) -> Iterator[None]:
    """No file can grow beyond `room` bytes, as on a disk that is nearly full."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, usual[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)


@pytest.fixture(scope="module")
def stopped_run(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder and the flags of a run that was stopped after its first epoch and has written its state."""
    folder = tmp_path_factory.mktemp("stopped")
    flags = ["--data", str(squares), *QUICK]

    def ending(self: Trainer, writer: object, bar: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(Trainer, "_end_of_epoch", ending)
        assert main(flags) == 130
    return folder, flags


@pytest.fixture
def stopped(stopped_run: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The flags of a stopped run, whose files are in the working directory."""
    folder, flags = stopped_run
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return flags


def test_a_second_run_with_the_same_output_ends_before_it_writes(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--data", str(squares), *QUICK, "--output", "m.pth"]
    with claim(Path("m.pth")):
        assert main(flags) == 2
        lines = capsys.readouterr().err.splitlines()
        assert lines == [
            "tinydet train: error: another run is writing m.pth; wait for it, stop it, or name another output"
        ]
        assert [path.name for path in tmp_path.iterdir()] == [".m.pth.lock"]
        assert main([*flags, "--dry-run"]) == 0  # writes nothing
    assert main([*flags, "--epochs", "1"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["m.pth"]


STATES: dict[str, Any] = {
    "no dict": [],
    "a text as epoch": {"epoch": "1"},
    "beyond the end": {"epoch": 99},
    "negative": {"done": -1},
    "NaN": {"seconds": float("nan")},
    "a history without scores": {"history": [{}]},
    "an empty optimizer": {"optimizer": {}},
    "an optimizer of texts": {"optimizer": {"state": "", "param_groups": "ab"}},
    "a list": {"kept_alpha": "a"},
}


@pytest.mark.parametrize("fault", STATES)
def test_an_altered_state_is_refused_in_one_line_and_kept(
    stopped: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    path = tmp_path / "model.resume.pth"
    values = torch.load(path, weights_only=True)
    values["training_state"] = {**values["training_state"], **STATES[fault]} if STATES[fault] else STATES[fault]
    torch.save(values, path)
    before = path.read_bytes()
    capsys.readouterr()
    assert main([*stopped, "--resume"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "model.resume.pth: not a usable " in line
    assert path.read_bytes() == before


def test_a_momentum_of_another_shape_is_refused(
    stopped: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.resume.pth"
    values = torch.load(path, weights_only=True)
    values["training_state"]["optimizer"]["state"][0] = {"momentum_buffer": torch.zeros(1)}
    torch.save(values, path)
    capsys.readouterr()
    assert main([*stopped, "--resume"]) == 2
    assert "not a usable training state (a momentum of (1,) for" in capsys.readouterr().err


def test_on_a_full_disk_the_last_state_and_model_survive_and_can_be_resumed(
    stopped: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert before.keys() == {"model.pth", "model.resume.pth"}
    capsys.readouterr()
    with full_disk(200_000):
        assert main([*stopped, "--resume"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("tinydet train: error: ") and "was not written" in error and "older file" in error
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert main([*stopped, "--resume"]) == 0
    assert load_checkpoint(tmp_path / "model.pth").progress["epoch"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]


def test_a_truncated_state_is_named_and_the_model_is_kept(
    stopped: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state, model = tmp_path / "model.resume.pth", (tmp_path / "model.pth").read_bytes()
    state.write_bytes(state.read_bytes()[:-1000])
    assert main([*stopped, "--resume"]) == 2
    error = capsys.readouterr().err
    assert "model.resume.pth" in error and "truncated" in error
    assert (tmp_path / "model.pth").read_bytes() == model


def test_half_written_files_of_a_killed_run_are_removed_and_no_others(stopped: list[str], tmp_path: Path) -> None:
    torn = [tmp_path / ".model.resume.0123abcd.pth", tmp_path / ".model.89abcdef.pth"]
    others = [tmp_path / name for name in (".model.pth", ".other.0123abcd.pth", ".model.0123abcd.json")]
    for path in (*torn, *others):
        path.write_bytes(b"half")
    assert main([*stopped, "--resume"]) == 0
    assert not any(path.exists() for path in torn) and all(path.exists() for path in others)


def test_ctrl_c_is_an_exception_of_its_own_that_says_how_to_continue(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pressed(self: Trainer, samples: object, rate: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "step", pressed)
    output = tmp_path / "model.pth"
    config = TrainConfig(data=squares, preset="small", weights_backbone="none", channels=8, tile=96, overlap=32,
                         precision="fp32", tensorboard=False, output=output)  # fmt: skip
    with pytest.raises(StoppedError, match=r"after 0 of \d+ steps.* --resume continues from .*model\.resume\.pth"):
        train(config)
    assert load_checkpoint(output).progress["step"] == 0 and torch.load(output, weights_only=True)
