"""The training loop: steps, validation, checkpoints and resuming. `run.py` decides what a run does."""

from __future__ import annotations

import functools
import itertools
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from tinydet._internal.atomic import remove_leftovers
from tinydet._internal.console import plural
from tinydet._internal.errors import reason
from tinydet._internal.extras import needs_extra
from tinydet._internal.interrupt import deferred_interrupt
from tinydet._internal.json_files import checked
from tinydet.data.samples import Sample, TrainingTiles, epoch_batches, stream
from tinydet.models.batch import Batch, collate
from tinydet.models.checkpoint import Checkpoint, fusion_factors, load_checkpoint, save_checkpoint
from tinydet.models.detector import Detector
from tinydet.models.distributed import Processes, sum_over_processes
from tinydet.models.losses import total
from tinydet.spec import ModelSpec
from tinydet.train.divergence import DivergedError, save_batch
from tinydet.train.sampling import grouped_batches, shapes_of
from tinydet.train.schedule import Schedule, parameter_groups

SAVE_EVERY = 120.0  # seconds between saved states
REPORT_EVERY = 30.0  # seconds between report lines if there is no progress bar
logger = logging.getLogger(__name__)

Validate = Callable[[Detector], dict[str, Any]]


@dataclass(frozen=True)
class TrainingState:
    """State of an interrupted run, apart from the weights.

    Attributes:
        optimizer, averaged: state dicts of the optimizer and of the moving average, None without one.
        epoch, done: finished epochs, and finished steps of the current one.
        best: the best AP50 so far; None before the first validation.
        history, seconds, kept_alpha, log_name: as in `Trainer`.
    """

    optimizer: dict[str, Any]
    averaged: dict[str, Any] | None
    epoch: int
    done: int
    best: float | None
    history: list[dict[str, int | float]]
    seconds: float
    kept_alpha: tuple[float, ...] | None
    log_name: str | None = None

    def __post_init__(self) -> None:
        if min(self.epoch, self.done, self.seconds) < 0:
            raise ValueError(
                f"epoch, done and seconds must be at least 0, not {self.epoch}, {self.done}, {self.seconds}"
            )
        if not all({"epoch", "AP50"} <= scores.keys() for scores in self.history):
            raise ValueError("every entry of the history needs an epoch and its AP50")


@dataclass
class Trainer:
    """Train `detector` on `tiles`, keep the best weights at `output` and a state to resume from next to it.

    Args:
        checkpoint: everything known about the run; weights and progress are filled in when it is saved.
        logdir: folder of TensorBoard logs, with a folder `log_name` for this run; None: no logs.
        log_name: None: from the output and the time.
        show: writes the results of the last validation to a TensorBoard writer, at a step.
        validate: scores the detector; its `AP50` chooses the best weights. None: the last weights are kept.
        validate_start: also score the weights before the first step, as epoch 0.
        processes: each takes its share of every batch; only the first one writes files.
    """

    detector: Detector
    tiles: TrainingTiles
    schedule: Schedule
    checkpoint: Checkpoint
    output: Path
    device: torch.device
    autocast: bool
    validate: Validate | None = None
    validate_start: bool = False
    show: Callable[[Any, int], None] | None = None
    logdir: Path | None = None
    log_name: str | None = None
    epoch: int = 0
    done: int = 0  # finished steps of the current epoch
    best: float = -math.inf
    history: list[dict[str, Any]] = field(default_factory=list)
    processes: Processes = field(default_factory=Processes)
    seconds: float = 0.0  # spent in earlier parts of a resumed run
    kept_alpha: tuple[float, ...] | None = None  # alpha of the weights at `output`; None: not saved yet

    def __post_init__(self) -> None:
        self.detector.to(self.device, memory_format=self.layout)  # type: ignore[call-overload]
        self.pixels = self.detector.backbone.pixels
        self.optimizer = torch.optim.SGD(
            parameter_groups(self.detector, self.schedule.weight_decay),
            lr=self.schedule.lr,
            momentum=self.schedule.momentum,
        )
        # Averages the gradients of all processes while the backward pass is still running.
        objective = _Objective(self.detector)
        self.objective: nn.Module = objective if self.processes.count == 1 else DistributedDataParallel(objective)
        self.averaged: AveragedModel | None = None
        if self.schedule.ema > 0:
            self.averaged = AveragedModel(self.detector, multi_avg_fn=functools.partial(_average, self.schedule.ema))

    @property
    def layout(self) -> torch.memory_format:
        """Channels last, except on a CPU without AVX-512, where convolutions would train a quarter slower."""
        old_cpu = self.device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"
        return torch.contiguous_format if old_cpu else torch.channels_last

    @property
    def state_path(self) -> Path:
        return resume_path(self.output)

    @functools.cached_property
    def steps_per_epoch(self) -> int:
        return len(self.batches())  # the same in every epoch

    @property
    def evaluated(self) -> Detector:
        """The detector that is validated and saved: the trained one, or its moving average."""
        if self.averaged is None:
            return self.detector
        return cast(Detector, self.averaged.module)

    def batches(self) -> list[list[int]]:
        """Return the sample indices of each step of the epoch, without a last batch of fewer tiles than processes."""
        seed, epoch, batch = self.schedule.seed, self.epoch, self.schedule.batch
        if self.schedule.grouped:
            batches = grouped_batches(shapes_of(self.tiles), batch, seed=seed, epoch=epoch)
        else:
            batches = epoch_batches(len(self.tiles), batch, seed=seed, epoch=epoch)
        return [batch for batch in batches if len(batch) >= self.processes.count]

    @property
    def alpha(self) -> tuple[float, ...]:
        """The current fusion factors, finest first; empty for attention."""
        return fusion_factors(getattr(self.evaluated.fpn, "alpha", None), len(self.detector.design.edges))

    @property
    def validations_left(self) -> int:
        every, epochs = self.schedule.validate_every, self.schedule.epochs
        return -(-epochs // every) - self.epoch // every + (self.validate_start and not self.history)

    @property
    def best_epoch(self) -> int | None:
        """The epoch of the weights at `output`; None before the first validation."""
        best = max((scores["AP50"] for scores in self.history), default=0.0)
        return next((scores["epoch"] for scores in reversed(self.history) if scores["AP50"] == best), None)

    @property
    def stopped_early(self) -> bool:
        """Whether the last `schedule.patience` validations brought no better score.

        A function of the history alone, so that a resumed run stops where an uninterrupted one does. Scores of 0, from
        the first epochs of a run with random weights, do not count.
        """
        best, waited = 0.0, 0
        for scores in self.history:
            waited = 0 if scores["AP50"] > best or best == 0 else waited + 1
            best = max(best, scores["AP50"])
        return self.schedule.patience is not None and waited >= self.schedule.patience

    @property
    def steps_left(self) -> int:
        return self.schedule.epochs * self.steps_per_epoch - self.steps_done

    def fit(self) -> None:
        """Train to the end of the schedule; on Ctrl-C save the state and raise KeyboardInterrupt.

        Raises:
            DivergedError: the loss is no longer finite; names the images, and the batch is saved for inspection.
        """
        if self.processes.first:
            for path in (self.output, self.state_path):
                remove_leftovers(path)  # of a run that was killed while writing
        if self.log_name is None:
            self.log_name = log_name(self.output, self.logdir)
        if self.steps_done == 0:
            self.save_state()  # so that a run killed before the next state can be resumed
        steps = self.schedule.epochs * self.steps_per_epoch
        writer = self._tensorboard()
        learned = isinstance(getattr(self.detector.fpn, "alpha", None), nn.Parameter)
        started = saved = reported = time.monotonic() - self.seconds
        quiet = None if self.processes.first else True
        bar = tqdm(total=steps, initial=self.steps_done, unit="step", dynamic_ncols=True, disable=quiet, smoothing=0.05)
        try:
            if self.validate_start and self.steps_done == 0 and not self.history:
                self._end_of_epoch(writer, bar)
                self.save_state()
            while self.epoch < self.schedule.epochs and not self.stopped_early:
                self.detector.train()
                batches = [self.processes.shard(batch) for batch in self.batches()[self.done :]]
                seed, epoch = self.schedule.seed, self.epoch
                for batch, samples in zip(batches, stream(self.tiles, batches, seed=seed, epoch=epoch), strict=True):
                    begun = time.monotonic()
                    rate = self.schedule.rate(self.steps_done, steps)
                    with deferred_interrupt():
                        losses = self.step(samples, rate)
                        loss = float(total(losses))
                        if not math.isfinite(loss):
                            raise DivergedError(self._diverged(batch, samples, losses, rate))
                        self.done += 1
                    now = time.monotonic()
                    self.seconds = now - started
                    speed = len(samples) * self.processes.count / (now - begun)
                    bar.update()
                    bar.set_description_str(f"epoch {epoch + 1}/{self.schedule.epochs}", refresh=False)
                    bar.set_postfix_str(f"loss {loss:.3f} lr {rate:.2g} {speed:.1f} img/s")
                    if self.processes.first and bar.disable and now - reported > REPORT_EVERY:
                        reported = now
                        logger.info(self._line(loss, rate, speed, steps))
                    if writer is not None:
                        scalars = {"loss": loss, "lr": rate, "images per second": speed}
                        scalars |= {name: float(value) for name, value in losses.items()}
                        if learned:
                            scalars |= self._alphas()
                        _write(writer, self.steps_done, scalars)
                    if now - saved > SAVE_EVERY:
                        saved = now
                        self.save_state()
                try:
                    self.epoch, self.done = epoch + 1, 0
                    self._end_of_epoch(writer, bar)
                except KeyboardInterrupt:
                    if not self.history or self.history[-1]["epoch"] <= epoch:
                        # All steps of the epoch are done, its validation is not: a resumed run starts there.
                        self.epoch, self.done = epoch, self.steps_per_epoch
                    raise
                self.save_state()
        except KeyboardInterrupt:
            self.save_state()
            if not self.history or not self.output.exists():
                self.save_model()
            raise
        finally:
            bar.close()
            if writer is not None:
                writer.close()
        if self.processes.first:
            if self.stopped_early and self.epoch < self.schedule.epochs:
                logger.info(
                    f"stopped early at epoch {self.epoch} of {self.schedule.epochs}: no better AP50 in "
                    f"{plural(self.schedule.patience or 0, 'validation')}; the weights of epoch {self.best_epoch} with "
                    f"AP50 {100 * self.best:.1f} are kept"
                )
            self.state_path.unlink(missing_ok=True)  # a finished run has nothing to resume

    def step(self, samples: Sequence[Sample], rate: float) -> dict[str, torch.Tensor]:
        """Run one step of SGD on this process's samples; return the losses of all processes, on the CPU.

        Random draws depend on (process, seed, step) only.
        """
        torch.manual_seed(((self.processes.rank << 56) + (self.schedule.seed << 32) + self.steps_done) % 2**63)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_factor"]
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.loss(samples)
        # Gradients are averaged over the processes, losses are summed.
        (total(losses) * self.processes.count).backward()
        if self.schedule.clip_norm > 0:
            nn.utils.clip_grad_norm_(self.detector.parameters(), self.schedule.clip_norm)
        summed = sum_over_processes(torch.stack([value.detach() for value in losses.values()]))
        if torch.isfinite(summed.sum()):
            self.optimizer.step()
            if self.averaged is not None:
                update_average(self.averaged, self.detector, self.schedule.ema)
        return dict(zip(losses, summed.cpu().unbind(), strict=True))

    def loss(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        """Return the losses of one batch of tiles: this process's share of them."""
        batch = collate(samples, self.device, self.pixels, self.layout, multiple=self.detector.tile_multiple)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            return cast(dict[str, torch.Tensor], self.objective(batch))

    def checkpoint_spec(self) -> ModelSpec:
        """Return the spec of a deployed form of the current weights."""
        return self._snapshot(self.evaluated).spec()

    def save_model(self) -> None:
        """Write the current weights to `output`."""
        self.kept_alpha = self.alpha
        if not self.processes.first:
            return
        save_checkpoint(replace(self._snapshot(self.evaluated), training_state=None), self.output)

    def save_state(self) -> None:
        """Write everything that a resumed run needs next to `output`."""
        if not self.processes.first:
            return
        state = TrainingState(
            optimizer=self.optimizer.state_dict(),
            averaged=None if self.averaged is None else self.averaged.state_dict(),
            epoch=self.epoch,
            done=self.done,
            best=None if self.best == -math.inf else self.best,
            history=self.history,
            seconds=self.seconds,
            kept_alpha=self.kept_alpha,
            log_name=self.log_name,
        )
        values = {each.name: getattr(state, each.name) for each in fields(state)}
        save_checkpoint(replace(self._snapshot(self.detector), training_state=values), self.state_path)

    def resume(self) -> None:
        """Continue from the state next to `output`.

        Raises:
            ValueError: there is none, it is damaged, or it belongs to another configuration or other data.
        """
        if not self.state_path.exists():
            raise ValueError(f"{self.state_path}: no state to resume from; start the run without --resume")
        saved = load_checkpoint(self.state_path)
        before, now = (_without_places(each.config) for each in (saved, self.checkpoint))
        if before != now or saved.training_state is None:
            changed = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
            why = f"written by a run with another {', '.join(changed)}" if changed else "not a saved training state"
            raise ValueError(
                f"{self.state_path}: {why}; resume with the options of that run, or start over without --resume"
            )
        if saved.origin.get("data") != self.checkpoint.origin["data"]:
            raise ValueError(
                f"{self.state_path}: the training data has changed since the run began; "
                "restore it, or start over without --resume"
            )
        what, remedy = "training state", "start over without --resume"
        state = checked(TrainingState, saved.training_state, source=self.state_path, what=what, remedy=remedy)
        try:
            if state.epoch > self.schedule.epochs or state.done > self.steps_per_epoch:
                raise ValueError(f"epoch {state.epoch}, step {state.done} is beyond the end of the run")
            self.detector.load_state_dict(saved.weights)
            self._load_optimizer(state.optimizer)
            if self.averaged is not None:
                self.averaged.load_state_dict(state.averaged or {})
        except (ValueError, RuntimeError, KeyError, TypeError, AttributeError, IndexError) as error:  # torch's
            raise ValueError(f"{self.state_path}: not a usable {what} ({reason(error)}); {remedy}") from error
        self.epoch, self.done, self.best = state.epoch, state.done, -math.inf if state.best is None else state.best
        self.history, self.seconds, self.kept_alpha = state.history, state.seconds, state.kept_alpha
        self.log_name = state.log_name

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        """Load the state of the optimizer. Torch checks the number of parameters only."""
        ours = self.optimizer.state_dict()["param_groups"]
        for group, given in zip(ours, state["param_groups"], strict=True):
            if {name: type(value) for name, value in group.items()} != {k: type(v) for k, v in given.items()}:
                raise ValueError("the parameters of the optimizer have other options")
        self.optimizer.load_state_dict(state)
        for parameter, buffers in self.optimizer.state.items():
            momentum = buffers.get("momentum_buffer")
            if momentum is not None and momentum.shape != parameter.shape:
                raise ValueError(f"a momentum of {tuple(momentum.shape)} for a weight of {tuple(parameter.shape)}")

    @property
    def steps_done(self) -> int:
        return self.epoch * self.steps_per_epoch + self.done

    def _alphas(self) -> dict[str, float]:
        """Return the fusion factors by TensorBoard tag; none for attention."""
        edges = self.detector.design.edges
        return {f"alpha/{edge}": alpha for edge, alpha in zip(edges, self.alpha, strict=False)}

    def _tensorboard(self) -> Any:
        """Open the logs of this run. A resumed run continues its own: its steps after the saved state are dropped."""
        if self.logdir is None or self.log_name is None or not self.processes.first:
            return None
        with needs_extra("train"):
            from torch.utils.tensorboard import SummaryWriter
        return SummaryWriter(
            str(self.logdir / self.log_name), purge_step=self.steps_done + 1 if self.steps_done else None
        )

    def _end_of_epoch(self, writer: Any, bar: Any) -> None:
        last = self.epoch == self.schedule.epochs
        _write(writer, self.steps_done, self._alphas())
        if self.validate is None:
            if last:
                with deferred_interrupt():
                    self.save_model()
            return
        if not last and self.epoch % self.schedule.validate_every:
            return
        self.processes.share_buffers(self.evaluated)
        metrics = self.validate(self.evaluated)
        with deferred_interrupt():
            self.history.append({"epoch": self.epoch, **metrics})
            note = ""
            if metrics["AP50"] >= self.best:
                self.best, note = metrics["AP50"], "  best, saved"
                self.save_model()
        _write(writer, self.steps_done, {f"validation/{name}": value for name, value in metrics.items() if value >= 0})
        if writer is not None and self.show is not None:
            self.show(writer, self.steps_done)
        shown = "  ".join(
            f"{name} {100 * value:.1f}" for name, value in metrics.items() if value >= 0 and "/" not in name
        )
        bar.clear()
        if self.processes.first:
            logger.info(f"epoch {self.epoch:>3}/{self.schedule.epochs}  {shown}{note}")

    def _snapshot(self, detector: Detector) -> Checkpoint:
        weights = {k: v.detach().cpu().contiguous().clone() for k, v in detector.state_dict().items()}
        progress = {
            "epoch": self.epoch,
            "step": self.steps_done,
            "seconds": round(self.seconds, 1),
            "history": self.history,
        }
        return replace(self.checkpoint, weights=weights, progress=progress)

    def _diverged(
        self, batch: Sequence[int], samples: Sequence[Sample], losses: dict[str, torch.Tensor], rate: float
    ) -> str:
        """Save the batch that led to a loss that is not finite; return the error message."""
        names = [self.tiles.dataset.images[self.tiles.tiles[i].image].file_name for i in batch]
        about = {"epoch": self.epoch, "step": self.done, "lr": rate, "images": names, "indices": list(batch)}
        rank = f"-{self.processes.rank}" if self.processes.rank else ""
        kept = self.output.with_suffix(f".diverged{rank}{self.output.suffix}")
        save_batch(kept, samples, {**about, "losses": {name: float(value) for name, value in losses.items()}})
        return (
            f"the loss is no longer finite at epoch {self.epoch + 1}, step {self.done + 1} (learning rate "
            f"{rate:.2g}, images {', '.join(sorted(set(names)))}); train with a lower --lr or with --clip-norm 10. "
            f"{kept} has the batch; {self.output}, if written, has the best weights so far"
        )

    def _line(self, loss: float, rate: float, speed: float, steps: int) -> str:
        left = self.seconds / max(self.steps_done, 1) * (steps - self.steps_done)
        step = f"step {self.steps_done}/{steps}"
        return f"{step}  loss {loss:.3f}  lr {rate:.2g}  {speed:.1f} img/s  {left / 60:.0f} min left"


class _Objective(nn.Module):
    """A detector whose forward pass is its loss, as `DistributedDataParallel` needs it."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        return self.detector.loss(batch)


@torch.no_grad()
def update_average(averaged: AveragedModel, model: nn.Module, decay: float) -> None:
    """Update a moving average of weights, and average the statistics of its batch normalizations likewise.

    `AveragedModel` copies buffers, so the averaged weights would be used with the statistics of the last few batches
    of other weights.
    """
    steps = int(averaged.n_averaged)
    pairs = [
        (mine, theirs)
        for mine, theirs in zip(averaged.module.modules(), model.modules(), strict=True)
        if isinstance(mine, nn.modules.batchnorm._NormBase) and mine.running_mean is not None
    ]
    names = ("running_mean", "running_var")
    before = [getattr(mine, name).clone() for mine, _ in pairs for name in names]
    averaged.update_parameters(model)
    if steps > 0:
        decay = early_decay(decay, steps)
        for old, now in zip(before, (getattr(mine, name) for mine, _ in pairs for name in names), strict=True):
            now.copy_(torch.lerp(old, now, 1 - decay))


def early_decay(decay: float, steps: int) -> float:
    """Return the decay of a moving average of the weights of `steps` steps.

    It grows with the steps, so that the average spans about the last tenth of them and never more than the last
    1 / (1 - decay). With a constant decay, the average of a short run would remain close to its first weights.

    >>> [round(early_decay(0.999, steps), 3) for steps in (1, 80, 890, 9000)]
    [0.182, 0.9, 0.99, 0.999]
    """
    return min(decay, (1 + steps) / (10 + steps))


def _average(decay: float, averaged: Any, weights: Any, steps: torch.Tensor) -> None:
    get_ema_multi_avg_fn(early_decay(decay, int(steps)))(averaged, weights, steps)


def log_name(output: Path, logdir: Path | None) -> str:
    """Return the name of a new run in TensorBoard: the path of its output and the time, such as
    `a/model/20261130-120102`.

    The path is relative to the working folder if the output is inside.
    """
    path = output.resolve().with_suffix("")
    inside = path.is_relative_to(Path.cwd())
    parts = path.relative_to(Path.cwd() if inside else path.anchor)
    name = f"{parts.as_posix()}/{time.strftime('%Y%m%d-%H%M%S')}"
    names = itertools.chain([name], (f"{name}-{n}" for n in itertools.count(2)))  # two runs in one second
    return next(each for each in names if logdir is None or not (logdir / each).exists())


def _without_places(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration, options of the detector among the others, without the places of the data.

    Those may have moved; of validation data, which images counts.
    """
    val = config.get("val_data")
    names = {"val_data": val.get("names")} if isinstance(val, dict) else {}
    options = config.get("options") or {}
    return {**config, **options, **names, "options": None, "train_data": None}


def resume_path(output: Path) -> Path:
    """Return the path of the state of an unfinished run: model.pth -> model.resume.pth."""
    return output.with_suffix(".resume" + output.suffix)


def _write(writer: Any, step: int, scalars: dict[str, float]) -> None:
    if writer is not None:
        for name, value in scalars.items():
            writer.add_scalar(name, value, step)
