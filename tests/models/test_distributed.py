"""Training with several processes gives the result of a single process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tinydet.models.checkpoint import load_checkpoint
from tinydet.models.distributed import Processes, join_processes, sum_over_processes
from tinydet.train.__main__ import main

QUICK = ["--preset", "small", "--weights-backbone", "none", "--norm", "group", "--channels", "16", "--head-convs", "1",
         "--epochs", "2", "--batch", "3", "--tile", "96", "--overlap", "32", "--precision", "fp32", "--threads", "1",
         "--device", "cpu"]  # fmt: skip


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, "-m", "tinydet.train", *arguments], capture_output=True, text=True, timeout=300, env=environment
    )


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_shards_partition_a_batch_and_differ_in_size_by_at_most_one(count: int) -> None:
    shards = [Processes(rank, count).shard(range(8)) for rank in range(count)]
    assert sorted(i for shard in shards for i in shard) == list(range(8))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_a_single_process_needs_no_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    single, device = join_processes(torch.device("cpu"))
    assert (single, device) == (Processes(0, 1), torch.device("cpu")) and single.first
    assert single.gather(3) == [3] and single.broadcast(4) == 4
    values = torch.ones(2)
    assert sum_over_processes(values) is values


SHARING = """
import torch
from tinydet.models.distributed import join_processes, leave_processes

processes, _ = join_processes(torch.device("cpu"))
norm = torch.nn.BatchNorm1d(2)
norm.running_mean.fill_(processes.rank + 3)
norm.num_batches_tracked.fill_(processes.rank + 5)
processes.share_buffers(norm)
assert norm.running_mean.tolist() == [3, 3] and norm.num_batches_tracked == 5
leave_processes()
"""


@pytest.mark.slow
def test_shared_buffers_are_those_of_the_first_process(tmp_path: Path) -> None:
    (tmp_path / "sharing.py").write_text(SHARING)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*command, str(tmp_path / "sharing.py")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--lr", "0.002", "--clip-norm", "0"], ["--ema", "0.9", "--clip-norm", "1"]])
def test_two_processes_give_the_weights_losses_and_scores_of_one(
    options: list[str], squares: Path, tmp_path: Path
) -> None:
    def flags(name: str) -> list[str]:
        paths = ["--output", str(tmp_path / f"{name}.pth"), "--logdir", str(tmp_path / name)]
        return ["--data", str(squares), "--val", str(squares), "--salpha", *QUICK, *options, *paths]

    done = torchrun(*flags("two"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote ") == 1  # only one process prints
    assert main(flags("one")) == 0
    one, two = (load_checkpoint(tmp_path / f"{name}.pth") for name in ("one", "two"))
    assert two.progress["step"] == one.progress["step"] == 6
    for key, value in one.weights.items():
        torch.testing.assert_close(two.weights[key], value, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(two.progress["history"], one.progress["history"], strict=True):
        assert ours == pytest.approx(theirs, abs=0.02)
    curves = [losses_in(tmp_path / name) for name in ("one", "two")]
    assert len(curves[0]) == 6 and curves[1] == pytest.approx(curves[0], rel=1e-4)


def losses_in(logdir: Path) -> list[float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = {file.parent for file in logdir.rglob("events*")}
    events = EventAccumulator(str(folder))
    events.Reload()
    return [event.value for event in events.Scalars("loss")]


@pytest.mark.slow
def test_a_process_that_fails_ends_the_run_with_its_error(squares: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(squares, broken)
    (broken / "images" / "2.png").write_bytes(b"no image")
    done = torchrun("--data", str(broken), *QUICK, "--no-tensorboard", "--output", str(tmp_path / "model.pth"))
    assert done.returncode != 0
    assert "2.png" in done.stderr and "tinydet train: error" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("detector", ["faster_rcnn", "grid_rcnn"])
def test_two_processes_train_a_two_stage_detector(detector: str, squares: Path, tmp_path: Path) -> None:
    output = tmp_path / "model.pth"
    at = QUICK.index("--head-convs")  # an option of RetinaNet only
    flags = [*QUICK[:at], *QUICK[at + 2 :], "--no-tensorboard", "--output", str(output)]
    done = torchrun("--detector", detector, "--data", str(squares), *flags)
    assert done.returncode == 0, done.stderr
    assert load_checkpoint(output).progress["step"] == 6
