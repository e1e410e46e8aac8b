"""Every detector trains on what real data bring: empty images, single pixels, ignore regions, several processes, kills.

The tests are for every row of the registry.
"""

from __future__ import annotations

import functools
import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, variance
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from tinydet.data import synthetic
from tinydet.models.backbone import Backbone, GroupNorm
from tinydet.models.backbone_registry import BACKBONES, register_backbone
from tinydet.models.batch import Batch
from tinydet.models.build import DetectorConfig, build_detector
from tinydet.models.checkpoint import load_checkpoint
from tinydet.models.detector import Detector
from tinydet.models.losses import total
from tinydet.models.registry import BUILT_IN, DETECTORS
from tinydet.train.__main__ import main
from tinydet.train.trainer import resume_path

SIDE, CLASSES = 128, 2
CHANNELS = (8, 16, 32, 64)  # the narrowest that a detector can be built with
Boxes = list[tuple[float, float, float, float]]

SIZES: Boxes = [(20, 20, 24, 25), (50, 40, 62, 50), (10, 60, 40, 85), (60, 60, 120, 122), (2, 2, 126, 120)]
CORNER: Boxes = [(127, 127, 128, 128)]
WHOLE: Boxes = [(0, 0, SIDE, SIDE)]
# Objects and ignore regions of each of two images.
CASES: dict[str, tuple[tuple[Boxes, Boxes], tuple[Boxes, Boxes]]] = {
    "objects of all sizes": ((SIZES, []), (SIZES[::2], [])),
    "no object": (([], []), ([], [])),
    "an empty image": ((SIZES[:3], []), ([], [])),
    "an object of a pixel": (([(41, 37, 42, 38)], []), (CORNER, [])),
    "only ignore regions": (([], WHOLE), ([], WHOLE)),
    "an object in an ignore region": (([(50, 40, 62, 50)], WHOLE), ([], [])),
}


class Narrow(Backbone):
    """Four strided convolutions."""

    def __init__(self, *, norm: str) -> None:
        super().__init__((8, 8, 16, 16))
        widths = itertools.pairwise((3, *self.channels))
        strides = (4, 2, 2, 2)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 2 * stride - 1, stride, stride - 1), GroupNorm(b), nn.ReLU())
            for (a, b), stride in zip(widths, strides, strict=True)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        return [images := stage(images) for stage in self.stages]


@pytest.fixture(autouse=True, scope="module")
def narrow() -> Iterator[None]:
    register_backbone("narrow", lambda: Narrow)
    yield
    del BACKBONES["narrow"]


@functools.cache
def config_of(name: str, backbone: str = "narrow") -> DetectorConfig:
    """The narrowest network of a detector."""
    options = {"head_convs": 1} if "head_convs" in DETECTORS[name].option_names else {}
    for channels in CHANNELS:
        config = DetectorConfig(backbone, channels, "group", CLASSES, name, fusion="three", options=options)
        try:
            build_detector(config)
        except ValueError as error:
            refusal = error
        else:
            return config
    raise refusal


@functools.cache
def detector_of(name: str) -> Detector:
    torch.manual_seed(1)
    detector = build_detector(config_of(name)).train()
    for value in detector.parameters():
        if value.requires_grad and not value.any():  # a layer that starts at 0 lets no gradient pass
            nn.init.normal_(value, std=0.01)
    return detector


def batch_of(images: tuple[tuple[Boxes, Boxes], ...], seed: int = 2) -> Batch:
    torch.manual_seed(seed)

    def together(which: int) -> tuple[Tensor, Tensor]:
        counts = torch.tensor([len(image[which]) for image in images])
        flat = [box for image in images for box in image[which]]
        return torch.tensor(flat).float().reshape(-1, 4), torch.arange(len(images)).repeat_interleave(counts)

    (boxes, owner), (regions, region_owner) = together(0), together(1)
    pixels = torch.randn(len(images), 3, SIDE, SIDE)
    labels = torch.arange(len(boxes)) % CLASSES
    return Batch(pixels, boxes, labels, owner, regions, region_owner, ((SIDE, SIDE),) * len(images))


def gradients(detector: Detector, losses: dict[str, Tensor]) -> dict[str, Tensor | None]:
    detector.zero_grad(set_to_none=True)
    total(losses).backward()
    return {name: value.grad for name, value in detector.named_parameters() if value.requires_grad}


# What bfloat16 could break: sums over many objects and over none.
PRECISIONS = [*((case, "float32") for case in CASES), *((case, "bfloat16") for case in list(CASES)[:2])]


@pytest.mark.parametrize(("case", "precision"), PRECISIONS)
@pytest.mark.parametrize("name", BUILT_IN)
def test_the_loss_is_finite_and_every_parameter_has_a_gradient(name: str, case: str, precision: str) -> None:
    detector, batch = detector_of(name), batch_of(CASES[case])
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        losses = detector.loss(batch)
    assert all(loss.dtype == torch.float32 and loss.shape == () for loss in losses.values())
    assert {loss: value.item() for loss, value in losses.items() if not value.isfinite()} == {}
    found = gradients(detector, losses)
    assert [key for key, gradient in found.items() if gradient is None] == []
    assert [key for key, gradient in found.items() if gradient is not None and not gradient.isfinite().all()] == []
    if case == "objects of all sizes":
        assert [key for key, gradient in found.items() if gradient is not None and not gradient.any()] == []


SHARE = """
import sys
import torch
import torch.distributed as dist

sys.path[:0] = [{folder!r}, {support!r}]
import test_robustness as here

rank, count, rendezvous, output = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method="file://" + rendezvous, rank=rank, world_size=count)
here.register_backbone("narrow", lambda: here.Narrow)
torch.save({{name: tuple(here.share(name, rank, count)) for name in here.BUILT_IN}}, output + str(rank))
"""
DRAWS = 24
SOME, FEW, NONE = CASES["objects of all sizes"][0], CASES["objects of all sizes"][1], ([], [])
UNEQUAL, EQUAL = (SOME, FEW, NONE, FEW), (SOME, SOME, NONE, NONE)  # processes take every other image


class Share(NamedTuple):
    """Losses by seed of the images of one process; their gradients if the detector does not sample at random."""

    losses: list[dict[str, float]]
    gradients: dict[str, Tensor]


def share(name: str, rank: int, count: int) -> Share:
    """Compute the share of one process in `UNEQUAL`, or in `EQUAL` with many seeds if the detector samples."""
    detector = detector_of(name)

    def losses_of(images: Sequence[tuple[Boxes, Boxes]], seed: int) -> dict[str, Tensor]:
        batch, mine = batch_of(tuple(images)), torch.arange(len(images)) % count == rank
        kept = mine[batch.owner]
        owner = (mine.cumsum(0) - 1)[batch.owner[kept]]
        part = replace(batch, images=batch.images[mine], boxes=batch.boxes[kept], labels=batch.labels[kept],
                       owner=owner, sizes=batch.sizes[rank::count])  # fmt: skip
        torch.manual_seed(1000 * rank + seed)
        return detector.loss(part)

    def numbers(losses: dict[str, Tensor]) -> dict[str, float]:
        return {loss: value.item() for loss, value in losses.items()}

    first, second = losses_of(UNEQUAL, 0), losses_of(UNEQUAL, 1)
    if numbers(first) == numbers(second):
        found = gradients(detector, first)
        return Share([numbers(first)], {key: value for key, value in found.items() if value is not None})
    with torch.no_grad():
        return Share([numbers(losses_of(EQUAL, seed)) for seed in range(DRAWS)], {})


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Share]]:
    """What two processes compute that share a batch of four images."""
    folder = tmp_path_factory.mktemp("processes")
    here = Path(__file__).parent
    program = SHARE.format(folder=str(here), support=str(here.parent / "support"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", program]
    running = [
        subprocess.Popen(
            [*command, str(rank), "2", str(folder / "rendezvous"), str(folder / "share")],
            stderr=subprocess.PIPE, text=True, env=environment,
        )
        for rank in range(2)
    ]  # fmt: skip
    for process in running:
        _, errors = process.communicate(timeout=900)
        assert process.returncode == 0, errors
    shares = [torch.load(folder / f"share{rank}", weights_only=True) for rank in range(2)]
    return [{name: Share(*values) for name, values in each.items()} for each in shares]


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILT_IN)
def test_the_shares_of_two_processes_add_up_to_the_whole_batch(name: str, halves: list[dict[str, Share]]) -> None:
    """Losses and gradients, up to rounding.

    The losses of a detector that samples are means over its samples: their mean over seeds adds up if each process
    draws equally many.
    """
    whole, (first, second) = share(name, 0, 1), (half[name] for half in halves)
    assert len(whole.losses) == len(first.losses) == len(second.losses) in (1, DRAWS)
    for loss in whole.losses[0]:
        ones = [losses[loss] for losses in whole.losses]
        twos = [a[loss] + b[loss] for a, b in zip(first.losses, second.losses, strict=True)]
        spread = ((variance(ones) + variance(twos)) / DRAWS) ** 0.5 if len(ones) > 1 else 0.0
        assert mean(twos) == pytest.approx(mean(ones), rel=1e-4, abs=4 * spread + 1e-6)
    steepest = max((float(gradient.abs().max()) for gradient in whole.gradients.values()), default=0.0)
    for key, gradient in whole.gradients.items():
        both = first.gradients[key] + second.gradients[key]
        torch.testing.assert_close(both, gradient, rtol=1e-3, atol=1e-5 * steepest)


KILLED = """
import os, signal, sys

sys.path[:0] = [{folder!r}, {support!r}]
import test_robustness as here
from tinydet.train import trainer

here.register_backbone("narrow", lambda: here.Narrow)
trainer.SAVE_EVERY = -1.0  # after every step
step, steps = trainer.Trainer.step, []

def stepping(self, samples, rate):
    steps.append(rate)
    if len(steps) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, samples, rate)

trainer.Trainer.step = stepping
here.main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILT_IN)
def test_a_killed_run_resumes_bit_for_bit(name: str, squares: Path, tmp_path: Path) -> None:
    def flags(output: str) -> list[str]:
        config = config_of(name)
        thin = ["--head-convs", "1"] if "head_convs" in config.options else []
        return ["--detector", name, "--backbone", "narrow", "--channels", str(config.channels), *thin,
                "--preset", "small", "--weights-backbone", "none", "--norm", "group", "--data", str(squares),
                "--tile", "128", "--overlap", "32", "--epochs", "3", "--batch", "3", "--precision", "fp32",
                "--threads", "1", "--device", "cpu", "--salpha", "--no-tensorboard",
                "--output", str(tmp_path / f"{output}.pth")]  # fmt: skip

    here = Path(__file__).parent
    program = KILLED.format(folder=str(here), support=str(here.parent / "support"))
    done = subprocess.run([sys.executable, "-c", program, *flags("parts")], capture_output=True, text=True, timeout=600)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert resume_path(tmp_path / "parts.pth").is_file() and not (tmp_path / "parts.pth").exists()
    assert main([*flags("parts"), "--resume"]) == 0
    assert main(flags("whole")) == 0
    parts, whole = (load_checkpoint(tmp_path / f"{which}.pth").weights for which in ("parts", "whole"))
    assert parts.keys() == whole.keys() and all(torch.equal(parts[key], whole[key]) for key in whole)


@pytest.fixture(scope="module")
def few_scenes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The built-in dataset with three steps of training images and two to validate on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINYDET_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(synthetic, "BUILTIN", {"train": (12, 0), "val": (2, 1)})
        yield


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILT_IN)
def test_the_defaults_of_a_detector_train_on_the_built_in_data(name: str, few_scenes: None, tmp_path: Path) -> None:
    output = tmp_path / "model.pth"
    assert main(["--detector", name, "--epochs", "1", "--output", str(output), "--logdir", str(tmp_path)]) == 0
    assert load_checkpoint(output).detector.detector == name
