"""The training loop: schedule, resumption, interruption, divergence."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tinydet.data.coco import find_dataset, load_dataset
from tinydet.data.samples import TrainingTiles, epoch_batches, flip_horizontally, pad_together, stream
from tinydet.geometry.tiles import TileGrid
from tinydet.models.build import DetectorConfig, build_detector
from tinydet.models.checkpoint import Checkpoint, load_checkpoint
from tinydet.models.losses import total
from tinydet.runtime.options import ScanOptions
from tinydet.runtime.plan import plan_scan
from tinydet.spec import ModelSpec
from tinydet.train import trainer as trainer_module
from tinydet.train.report import run_record
from tinydet.train.schedule import Schedule, parameter_groups
from tinydet.train.trainer import Trainer, early_decay

HERE = Path(__file__).parent
CONFIG = DetectorConfig("tiny", channels=16, norm="frozen", options={"head_convs": 1, "head_init": "he"})


def tiles_of(squares: Path, cls: type[TrainingTiles] = TrainingTiles) -> TrainingTiles:
    return cls(load_dataset(*find_dataset(squares)), 96, 32)


def trainer(
    squares: Path, output: Path, tiles: TrainingTiles | None = None, config: DetectorConfig = CONFIG, **schedule
) -> Trainer:
    torch.manual_seed(7)
    values = {"epochs": 3, "batch": 3, "lr": 0.01, "clip_norm": 10.0, **schedule}
    return Trainer(
        detector=build_detector(config, (0.5, 0.4, 0.3)),
        tiles=tiles or tiles_of(squares),
        schedule=Schedule(**values),
        checkpoint=Checkpoint(config, {}, ("square",), (3,), tile=96, config={"run": 1}, origin={"data": "squares"}),
        output=output,
        device=torch.device("cpu"),
        autocast=False,
    )


@pytest.fixture(scope="module")
def uninterrupted(squares: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, torch.Tensor]]:
    """The weights that a run writes when nothing interrupts it, trained once for each set of options."""

    trained: dict[str, dict[str, torch.Tensor]] = {}

    def weights(**options) -> dict[str, torch.Tensor]:
        key = repr(options)
        if key not in trained:
            output = tmp_path_factory.mktemp("uninterrupted") / "model.pth"
            trainer(squares, output, **options).fit()
            trained[key] = load_checkpoint(output).weights
        return trained[key]

    return weights


def test_the_rate_warms_up_from_a_third_and_falls_to_a_tenth_twice() -> None:
    schedule = Schedule(epochs=12, batch=2, lr=0.005)
    steps = 12 * 1603
    assert schedule.rate(0, steps) == pytest.approx(0.005 / 3)
    assert schedule.rate(250, steps) == pytest.approx(0.005 * 2 / 3)
    assert schedule.rate(500, steps) == 0.005
    assert schedule.rate(9617, steps) == 0.005  # the released steps: 9618 and 16030 of 19236
    assert schedule.rate(9618, steps) == pytest.approx(0.0005)
    assert schedule.rate(16030, steps) == pytest.approx(0.00005)


def test_a_cosine_falls_from_the_rate_to_nothing_after_the_same_warm_up() -> None:
    schedule = Schedule(epochs=10, batch=1, lr=1.0, decay="cosine")
    assert schedule.rate(0, 1000) == pytest.approx(1 / 3) and schedule.rate(100, 1000) == 1.0
    assert schedule.rate(550, 1000) == pytest.approx(0.5) and schedule.rate(1000, 1000) == pytest.approx(0)


def test_biases_learn_twice_as_fast_and_do_not_decay_and_frozen_parameters_do_not_learn() -> None:
    detector = build_detector(CONFIG)
    detector.backbone.freeze(2)
    groups = parameter_groups(detector, 1e-4)
    biases = [g for g in groups if g["lr_factor"] == 2.0]
    assert len(biases) == 1 and biases[0]["weight_decay"] == 0.0
    assert {id(p) for p in biases[0]["params"]} == {
        id(p) for n, p in detector.named_parameters() if n.endswith("bias") and p.requires_grad
    }
    assert sum(len(g["params"]) for g in groups) == sum(p.requires_grad for p in detector.parameters())


def test_learned_alpha_does_not_decay() -> None:
    detector = build_detector(DetectorConfig("tiny", channels=16, fusion="three", options={"head_convs": 1}))
    owner = [g for g in parameter_groups(detector, 1e-4) if any(p is detector.fpn.alpha for p in g["params"])]
    assert [(g["weight_decay"], g["lr_factor"]) for g in owner] == [(0.0, 1.0)]


class StopsAt(TrainingTiles):
    """Tiles that press Ctrl-C at the n-th sample."""

    left = 0
    error: type[BaseException] = KeyboardInterrupt

    def sample(self, index: int, *, seed: int, epoch: int):
        self.left -= 1
        if self.left == 0:
            raise self.error
        return super().sample(index, seed=seed, epoch=epoch)


FASTER_RCNN = DetectorConfig("tiny", channels=8, norm="batch", detector="faster_rcnn")


@pytest.mark.parametrize(
    ("samples", "options"),
    [
        pytest.param(2, {}, marks=pytest.mark.slow),
        (8, {}),
        pytest.param(14, {}, marks=pytest.mark.slow),
        (14, {"config": replace(CONFIG, norm="batch"), "ema": 0.9, "decay": "cosine", "grouped": True}),
        (5, {"config": FASTER_RCNN}),
    ],
)
def test_an_interrupted_and_resumed_run_equals_an_uninterrupted_one_bit_for_bit(
    squares: Path, tmp_path: Path, uninterrupted: Callable, samples: int, options: dict
) -> None:
    stopping = tiles_of(squares, StopsAt)
    stopping.left = samples
    first = trainer(squares, tmp_path / "parts.pth", stopping, **options)
    with pytest.raises(KeyboardInterrupt):
        first.fit()
    load_checkpoint(tmp_path / "parts.pth").build()  # what Ctrl-C leaves can be used
    second = trainer(squares, tmp_path / "parts.pth", **options)
    second.resume()
    second.fit()
    ours, wanted = load_checkpoint(tmp_path / "parts.pth").weights, uninterrupted(**options)
    assert all(torch.equal(ours[k], wanted[k]) for k in wanted)
    assert not (tmp_path / "parts.resume.pth").exists()


def test_ctrl_c_in_the_middle_of_a_step_waits_for_its_end(
    squares: Path, tmp_path: Path, uninterrupted: Callable
) -> None:
    parts = trainer(squares, tmp_path / "parts.pth")
    loss, calls = parts.loss, iter(range(100))

    def pressed(samples):
        if next(calls) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return loss(samples)

    parts.loss = pressed
    with pytest.raises(KeyboardInterrupt):
        parts.fit()
    assert (parts.epoch, parts.done) == (1, 2)  # three steps an epoch: the fifth was finished
    resumed = trainer(squares, tmp_path / "parts.pth")
    resumed.resume()
    resumed.fit()
    ours, wanted = resumed.detector.state_dict(), uninterrupted()
    assert all(torch.equal(ours[k], wanted[k]) for k in wanted)


def test_training_lowers_the_loss(squares: Path, tmp_path: Path) -> None:
    run = trainer(squares, tmp_path / "model.pth", config=replace(CONFIG, norm="batch"), lr=0.05)
    samples = [run.tiles.sample(i, seed=0, epoch=0) for i in range(3)]
    before = float(total(run.loss(samples)).detach())
    run.fit()
    run.detector.train()
    assert float(total(run.loss(samples)).detach()) < 0.9 * before


def test_the_best_weights_on_validation_are_kept(squares: Path, tmp_path: Path) -> None:
    run = trainer(squares, tmp_path / "model.pth")
    scores, seen = iter([0.2, 0.6, 0.4]), []

    def validate(detector):
        seen.append({k: v.clone() for k, v in detector.state_dict().items()})
        return {"AP50": next(scores)}

    run.validate = validate
    run.fit()
    kept = load_checkpoint(tmp_path / "model.pth")
    assert all(torch.equal(kept.weights[k], seen[1][k]) for k in kept.weights)
    assert [entry["AP50"] for entry in run.history] == [0.2, 0.6, 0.4]


@pytest.mark.parametrize("pressed_at", [pytest.param(1, marks=pytest.mark.slow), 3])  # 3: of the last epoch
def test_a_validation_that_ctrl_c_ended_is_made_up_for_on_resuming(
    squares: Path, tmp_path: Path, pressed_at: int
) -> None:
    def scoring(run: Trainer, stop: int = 0):
        def validate(detector) -> dict[str, float]:
            if run.epoch == stop:
                raise KeyboardInterrupt
            return {"AP50": float(detector.state_dict()["head.regression_head.bbox_reg.bias"].abs().sum())}

        return validate

    straight, first, second = (trainer(squares, tmp_path / name) for name in ("straight.pth", "parts.pth", "parts.pth"))
    straight.validate = scoring(straight)
    straight.fit()
    first.validate, second.validate = scoring(first, stop=pressed_at), scoring(second)
    with pytest.raises(KeyboardInterrupt):
        first.fit()
    second.resume()
    second.fit()
    assert second.history == straight.history and second.best == straight.best
    ours, wanted = (load_checkpoint(tmp_path / name).weights for name in ("parts.pth", "straight.pth"))
    assert all(torch.equal(ours[k], wanted[k]) for k in wanted)


def press(*_: str) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("where", ["before", "after"])
def test_ctrl_c_next_to_a_validation_leaves_it_done_once(
    squares: Path, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (trainer(squares, tmp_path / "model.pth", epochs=1) for _ in range(2))
    first.validate = second.validate = lambda detector: {"AP50": 0.5}
    target, name = (first, "_alphas") if where == "before" else (trainer_module.logger, "info")
    with monkeypatch.context() as context:
        context.setattr(target, name, press)
        with pytest.raises(KeyboardInterrupt):
            first.fit()
    second.resume()
    second.fit()
    assert second.history == [{"epoch": 1, "AP50": 0.5}] and second.best == 0.5


def test_learned_factors_are_recorded_of_the_weights_that_were_kept(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, fusion="three", norm="batch")
    first, second = (trainer(squares, tmp_path / "model.pth", config=config, epochs=2, lr=0.1) for _ in range(2))

    for run in (first, second):
        run.validate = lambda detector, run=run: {"AP50": 1 / run.epoch}
    with monkeypatch.context() as context:
        context.setattr(trainer_module.logger, "info", press)  # called at the end of the first epoch
        with pytest.raises(KeyboardInterrupt):
            first.fit()
    second.resume()
    second.fit()
    kept = load_checkpoint(tmp_path / "model.pth").alpha
    record = run_record(second)
    assert record["alpha"] == list(kept) and kept != second.alpha
    assert record["precision"] == "float32"


def test_resuming_with_other_arguments_names_them(squares: Path, tmp_path: Path) -> None:
    stopping = tiles_of(squares, StopsAt)
    stopping.left = 5
    first = trainer(squares, tmp_path / "model.pth", stopping)
    with pytest.raises(KeyboardInterrupt):
        first.fit()
    other = trainer(squares, tmp_path / "model.pth")
    other.checkpoint.config["run"] = 2
    with pytest.raises(ValueError, match="another run"):
        other.resume()
    with pytest.raises(ValueError, match="no state to resume from"):
        trainer(squares, tmp_path / "elsewhere.pth").resume()


def test_a_loss_that_is_not_finite_stops_names_the_images_and_keeps_the_batch(squares: Path, tmp_path: Path) -> None:
    run = trainer(squares, tmp_path / "model.pth", lr=1e6, clip_norm=0.0)
    with pytest.raises(ValueError, match=r"no longer finite .*\d\.png.*--lr.*model\.diverged\.pth has the batch"):
        run.fit()
    kept = torch.load(tmp_path / "model.diverged.pth", weights_only=True)
    wanted = [run.tiles.sample(i, seed=0, epoch=kept["epoch"]) for i in kept["indices"]]
    for tile, sample in zip(kept["tiles"], wanted, strict=True):
        assert np.array_equal(tile["pixels"].numpy(), sample.pixels)
        assert np.array_equal(tile["boxes"].numpy(), sample.boxes)
    assert len(kept["images"]) == len(kept["indices"])
    assert not all(np.isfinite(list(kept["losses"].values())))
    assert all(w.isfinite().all() for w in run.detector.state_dict().values())  # the step was not taken


def test_what_is_kept_with_ema_is_the_moving_average_of_the_weights(squares: Path, tmp_path: Path) -> None:
    run = trainer(squares, tmp_path / "model.pth", epochs=1, ema=0.75)
    key = "head.regression_head.bbox_reg.bias"
    seen, step = [], run.step

    def watched(samples, rate):
        losses = step(samples, rate)
        seen.append(run.detector.state_dict()[key].clone())
        return losses

    run.step = watched
    run.fit()
    wanted = seen[0]  # the average begins at the first weights
    for decay, weights in zip((2 / 11, 3 / 12), seen[1:], strict=True):
        wanted = decay * wanted + (1 - decay) * weights
    assert len(seen) == 3 and not torch.allclose(wanted, seen[-1])
    torch.testing.assert_close(load_checkpoint(tmp_path / "model.pth").weights[key], wanted)


def test_the_average_of_a_short_run_forgets_its_first_weights() -> None:
    for steps in (30, 300, 3000):
        first = np.prod([early_decay(0.999, n) for n in range(1, steps)])
        assert first < 1e-7  # share of the first weights; 0.97, 0.74 and 0.05 with a constant decay
    assert early_decay(0.999, 9000) == early_decay(0.999, 10**6) == 0.999 and early_decay(0.1, 1) == 0.1


def test_with_ema_the_statistics_of_batch_normalization_are_averaged_like_the_weights(
    squares: Path, tmp_path: Path
) -> None:
    run = trainer(squares, tmp_path / "model.pth", config=replace(CONFIG, norm="batch"), epochs=1, ema=0.75)
    keys = [key for key in run.detector.state_dict() if key.endswith(("running_mean", "running_var"))]
    seen, step = [], run.step

    def watched(samples, rate):
        losses = step(samples, rate)
        seen.append({key: run.detector.state_dict()[key].clone() for key in keys})
        return losses

    run.step = watched
    run.fit()
    saved = load_checkpoint(tmp_path / "model.pth").weights
    assert len(keys) > 2 and len(seen) == 3
    for key in keys:
        wanted = seen[0][key]
        for decay, statistics in zip((2 / 11, 3 / 12), seen[1:], strict=True):
            wanted = decay * wanted + (1 - decay) * statistics[key]
        torch.testing.assert_close(saved[key], wanted)
        assert not torch.allclose(wanted, seen[-1][key])


@pytest.mark.parametrize(("fusion", "points"), [("fixed", 1), ("three", 4)])  # three steps and the end of the epoch
def test_tensorboard_shows_learned_factors_at_every_step(
    squares: Path, tmp_path: Path, fusion: str, points: int
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = replace(CONFIG, fusion=fusion, norm="batch")
    run = trainer(squares, tmp_path / "model.pth", config=config, epochs=1, lr=0.1)
    run.logdir = tmp_path / "runs"
    run.fit()
    events = EventAccumulator(str(tmp_path / "runs" / str(run.log_name))).Reload()
    shown = [event.value for event in events.Scalars("alpha/P4->P3")]
    assert len(shown) == points and shown[-1] == pytest.approx(run.alpha[1], abs=1e-6)
    assert (len(set(shown)) > 1) == (fusion == "three")


def test_a_run_does_not_resume_with_other_data(squares: Path, tmp_path: Path) -> None:
    stopping = tiles_of(squares, StopsAt)
    stopping.left = 5
    first = trainer(squares, tmp_path / "model.pth", stopping)
    first.checkpoint.origin["data"] = "before"
    with pytest.raises(KeyboardInterrupt):
        first.fit()
    second = trainer(squares, tmp_path / "model.pth")
    second.checkpoint.origin["data"] = "after"
    with pytest.raises(ValueError, match="the training data has changed since the run began"):
        second.resume()


def test_a_run_that_does_not_resume_with_another_option_of_the_detector_names_it(squares: Path, tmp_path: Path) -> None:
    runs = [trainer(squares, tmp_path / "model.pth") for _ in range(2)]
    for run, assign in zip(runs, ("iou", "nwd"), strict=True):
        run.checkpoint.config.update(lr=0.01, options={"assign": assign, "head_convs": 1})
    runs[0].save_state()
    with pytest.raises(ValueError, match="a run with another assign; resume with the options of that run"):
        runs[1].resume()


@pytest.mark.parametrize(("key", "resumes"), [("path", True), ("names", False)])
def test_a_run_resumes_when_its_data_have_moved_but_not_with_other_validation_images(
    squares: Path, tmp_path: Path, key: str, resumes: bool
) -> None:
    def run(value: str, tiles: TrainingTiles | None = None) -> Trainer:
        made = trainer(squares, tmp_path / "model.pth", tiles)
        record = {"path": "there", "names": {"count": 1, "sha256": "1f"}, key: value}
        made.checkpoint.config.update(val_data=record, train_data={"path": record["path"]})
        return made

    stopping = tiles_of(squares, StopsAt)
    stopping.left = 5
    with pytest.raises(KeyboardInterrupt):
        run("before", stopping).fit()
    with contextlib.nullcontext() if resumes else pytest.raises(ValueError, match="another val_data"):
        run("after").resume()


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from tinydet.train import trainer
sys.path[:0] = [{folder!r}, {support!r}]
import test_trainer
from toy_detector import TINY
from tinydet.models.backbone_registry import BACKBONES

BACKBONES["tiny"] = TINY
where, squares, output = sys.argv[1:]
trainer.SAVE_EVERY = -1.0  # after every step
run = test_trainer.trainer(Path(squares), Path(output))
step, save, calls = run.step, torch.save, [0, 0]

def stepping(samples, rate):
    calls[0] += 1
    if where == "step" and calls[0] == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(samples, rate)

def saving(values, path):
    calls[1] += 1
    save(values, path)
    if where == "write" and calls[1] == 5:
        os.truncate(path, os.path.getsize(path) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

run.step, torch.save = stepping, saving
run.fit()
"""


@pytest.mark.parametrize("where", ["step", pytest.param("write", marks=pytest.mark.slow)])
def test_a_killed_run_resumes_bit_for_bit(squares: Path, tmp_path: Path, uninterrupted: Callable, where: str) -> None:
    program = KILLED.format(folder=str(HERE), support=str(HERE.parent / "support"))
    arguments = [where, str(squares), str(tmp_path / "parts.pth")]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    resumed = trainer(squares, tmp_path / "parts.pth")
    resumed.resume()
    assert resumed.steps_done in (3, 4)
    resumed.fit()
    ours, wanted = resumed.detector.state_dict(), uninterrupted()
    assert all(torch.equal(ours[k], wanted[k]) for k in wanted)


def test_samples_depend_on_seed_epoch_and_index_alone(squares: Path) -> None:
    tiles = tiles_of(squares)
    again = tiles_of(squares)
    for index in reversed(range(len(tiles))):
        one, other = tiles.sample(index, seed=1, epoch=2), again.sample(index, seed=1, epoch=2)
        assert np.array_equal(one.pixels, other.pixels) and np.array_equal(one.boxes, other.boxes)
    flips = {tiles.sample(0, seed=1, epoch=e).pixels.tobytes() for e in range(8)}
    assert len(flips) == 2


def test_boxes_lie_on_their_pixels_in_every_tile_flipped_or_not(squares: Path) -> None:
    tiles = tiles_of(squares)
    seen = 0
    for index in range(len(tiles)):
        for epoch in range(3):
            sample = tiles.sample(index, seed=0, epoch=epoch)
            for x0, y0, x1, y1 in sample.boxes.astype(int):
                assert (sample.pixels[y0:y1, x0:x1] == 230).all()
                seen += 1
    assert seen >= 60


def test_tiles_are_those_of_inference_and_ignored_objects_are_regions(squares: Path) -> None:
    tiles = tiles_of(squares)
    assert len(tiles) == 6 + len(TileGrid(160, 96, 96, 32).tiles)
    last = tiles.sample(len(tiles) - 1, seed=0, epoch=0)
    assert len(last.boxes) == 0 and len(last.regions) == 4


@pytest.mark.parametrize("scale", [0.5, 1.5, 2.0])
def test_tiles_of_another_scale_are_as_many_as_at_inference_and_boxes_lie_on_them(squares: Path, scale: float) -> None:
    dataset = load_dataset(*find_dataset(squares))
    one, scaled, both = (TrainingTiles(dataset, 96, 32, scales=s) for s in ((1.0,), (scale,), (1.0, scale)))
    assert both.tiles == [*one.tiles, *scaled.tiles]
    spec = ModelSpec(("square",), (3,), "retinanet", "tiny", tile=96)
    plans = [plan_scan(image, spec, ScanOptions(overlap=32, scale=scale)) for image in dataset.images]
    assert len(scaled) == sum(plan.passes[0].grid.columns * plan.passes[0].grid.rows for plan in plans)
    seen = 0
    for index, tile in enumerate(scaled.tiles):
        sample = scaled.sample(index, seed=0, epoch=0)
        assert sample.pixels.shape[:2] == (tile.height, tile.width) and max(tile.width, tile.height) <= 96
        for x0, y0, x1, y1 in sample.boxes:
            inner = sample.pixels[int(np.ceil(y0)) + 1 : int(y1) - 1, int(np.ceil(x0)) + 1 : int(x1) - 1]
            assert (inner > 150).all()
            seen += inner.size > 0
    assert seen > 5


def test_an_object_that_a_smaller_scale_leaves_no_pixels_is_ignored(squares: Path) -> None:
    dataset = load_dataset(*find_dataset(squares))
    side = float(np.median(np.sqrt((dataset.boxes[:, 2:] - dataset.boxes[:, :2]).prod(axis=1))))
    tiles = TrainingTiles(dataset, 96, 32, scales=(1.9 / side,))
    samples = [tiles.sample(index, seed=0, epoch=0) for index in range(len(tiles))]
    kept = sum(len(sample.boxes) for sample in samples)
    assert kept + sum(len(sample.regions) for sample in samples) > 0 and kept < len(dataset.boxes)
    assert all((sample.boxes[:, 2:] - sample.boxes[:, :2] >= 2).all() for sample in samples)


def test_flipping_twice_changes_nothing(squares: Path) -> None:
    sample = tiles_of(squares).sample(0, seed=0, epoch=0)
    twice = flip_horizontally(flip_horizontally(sample))
    assert np.array_equal(twice.pixels, sample.pixels) and np.allclose(twice.boxes, sample.boxes)


def test_an_epoch_holds_every_sample_once_and_epochs_differ() -> None:
    first, second = (epoch_batches(10, 4, seed=0, epoch=e) for e in (0, 1))
    assert [len(b) for b in first] == [4, 4, 2]
    assert sorted(index for batch in first for index in batch) == list(range(10)) and first != second


def test_reading_ahead_keeps_the_order(squares: Path) -> None:
    tiles = tiles_of(squares)
    batches = epoch_batches(len(tiles), 3, seed=0, epoch=0)
    for batch, samples in zip(batches, stream(tiles, batches, seed=0, epoch=0), strict=True):
        wanted = [tiles.sample(i, seed=0, epoch=0) for i in batch]
        assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(samples, wanted, strict=True))


def test_padding_is_right_and_below() -> None:
    images = [np.full((40, 64, 3), 7, np.uint8), np.full((64, 33, 3), 9, np.uint8)]
    batch = pad_together(images, (1, 2, 3), 32)
    assert batch.shape == (2, 64, 64, 3)
    assert (batch[0, :40] == 7).all() and (batch[0, 40:] == (1, 2, 3)).all()
    assert (batch[1, :, :33] == 9).all() and (batch[1, :, 33:] == (1, 2, 3)).all()


def test_a_small_cache_gives_the_same_samples(squares: Path) -> None:
    large, small = tiles_of(squares), TrainingTiles(load_dataset(*find_dataset(squares)), 96, 32, cache_bytes=1)
    for index in (0, 3, 4, 0, 6):
        one, other = large.sample(index, seed=0, epoch=0), small.sample(index, seed=0, epoch=0)
        assert np.array_equal(one.pixels, other.pixels)


def scored(*scores: float) -> Callable[..., dict[str, float]]:
    """A validation with these scores in turn."""
    left = iter(scores)
    return lambda detector: {"AP50": next(left)}


@pytest.mark.parametrize(
    ("patience", "scores", "epochs", "best"),
    [
        (2, [0.1, 0.3, 0.2, 0.3, 0.9], 4, 4),  # an equal score does not end the waiting, and the later weights are kept
        (1, [0.2, 0.1, 0.9], 2, 1),
        (2, [0.1, 0.05, 0.2, 0.1, 0.3], 5, 5),
        (1, [0.0, 0.0, -1.0, 0.1, 0.05], 5, 4),  # scores of 0 are those of a young detector
        (None, [0.3, 0.2, 0.2, 0.1, 0.1], 5, 1),
    ],
)
def test_patience_counts_validations_without_a_better_score(
    squares: Path, tmp_path: Path, patience: int | None, scores: list[float], epochs: int, best: int
) -> None:
    run = trainer(squares, tmp_path / "model.pth", patience=patience)
    for epoch, score in enumerate(scores, 1):
        assert not run.stopped_early
        run.history.append({"epoch": epoch, "AP50": score})
        if run.stopped_early:
            break
    assert (epoch, run.best_epoch) == (epochs, best)


def test_a_run_that_stops_early_says_which_epoch_it_kept(
    squares: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = trainer(squares, tmp_path / "model.pth", epochs=3, batch=8, patience=1)
    run.validate = scored(0.3, 0.2)
    with caplog.at_level("INFO", "tinydet.train"):
        run.fit()
    assert run.epoch == 2 and load_checkpoint(tmp_path / "model.pth").progress["epoch"] == 1
    (line,) = [line for line in caplog.messages if "stopped early" in line]
    assert "at epoch 2 of 3" in line and "the weights of epoch 1 with AP50 30.0" in line
    assert not run.state_path.exists()  # it is finished


def test_a_resumed_run_stops_where_an_uninterrupted_one_does(squares: Path, tmp_path: Path) -> None:
    scores = [0.3, 0.1, 0.25, 0.9]
    whole = trainer(squares, tmp_path / "whole.pth", epochs=4, batch=8, patience=2)
    whole.validate = scored(*scores)
    whole.fit()

    class Stops(Exception):
        pass

    def interrupt(detector: object) -> dict[str, float]:
        if len(first.history) == 2:
            raise Stops
        return {"AP50": scores[len(first.history)]}

    first = trainer(squares, tmp_path / "parts.pth", epochs=4, batch=8, patience=2)
    first.validate = interrupt
    with pytest.raises(Stops):
        first.fit()  # the last state is that after the second epoch
    second = trainer(squares, tmp_path / "parts.pth", epochs=4, batch=8, patience=2)
    second.validate = scored(*scores[2:])
    second.resume()
    second.fit()
    assert second.epoch == whole.epoch == 3 and second.history == whole.history
    weights = [load_checkpoint(tmp_path / name).weights for name in ("whole.pth", "parts.pth")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_runs_in_tensorboard_are_apart_and_a_resumed_run_continues_its_own(
    squares: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    names = []
    for output in ("a/model.pth", "b/model.pth"):
        run = trainer(squares, Path(output), epochs=1)
        run.logdir = tmp_path / "runs"
        run.fit()
        names.append(str(run.log_name))
    assert [name.rpartition("/")[0] for name in names] == ["a/model", "b/model"]
    stopping = tiles_of(squares, StopsAt)
    stopping.left, stopping.error = 14, MemoryError  # in the second epoch, whose steps are logged but not saved
    first = trainer(squares, Path("a/model.pth"), stopping, epochs=2)
    first.logdir = tmp_path / "runs"
    with pytest.raises(MemoryError):
        first.fit()
    second = trainer(squares, Path("a/model.pth"), epochs=2)
    second.logdir = tmp_path / "runs"
    second.resume()
    second.fit()
    assert second.log_name == first.log_name
    events = EventAccumulator(str(tmp_path / "runs" / str(second.log_name))).Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 2 * second.steps_per_epoch + 1))
