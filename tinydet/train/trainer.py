"""The training loop: steps, schedule, validation, checkpoints. What a run does is decided in train.py."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from tinydet._internal.atomic import remove_leftovers
from tinydet._internal.extras import needs_extra
from tinydet._internal.interrupt import deferred_interrupt
from tinydet.data.samples import Sample, TrainingTiles, epoch_batches, stream
from tinydet.models.batch import Batch, collate
from tinydet.models.checkpoint import Checkpoint, fusion_factors, load_checkpoint, save_checkpoint
from tinydet.models.detector import Detector
from tinydet.models.distributed import Processes, over_all
from tinydet.models.losses import DetectorLosses
from tinydet.spec import ModelSpec
from tinydet.train.sampling import grouped_batches, shapes_of
from tinydet.train.schedule import Schedule, parameter_groups
from tinydet.train.unreadable import save_batch

SAVE_EVERY = 120.0  # seconds between states to resume from
REPORT_EVERY = 60.0  # seconds between lines of news where there is no progress bar
Validate = Callable[[Detector], dict[str, Any]]


class DivergedError(ValueError):
    """The loss is not finite any more."""


def _silent(line: str) -> None:
    """Where nobody listens."""


@dataclass
class Trainer:
    """Trains `detector` on `tiles`, keeps the best weights at `output` and a state to resume from beside it.

    Args:
        checkpoint: what is known of the run; weights and progress are filled in whenever it is saved.
        report: takes a line of news now and then.
        show: writes what the last validation saw to a TensorBoard writer, at this step.
        validate: scores the detector; its `AP50` chooses the best weights. None: the last ones are kept.
        processes: of which this one takes its part of each batch; the first one alone writes.
        new_options: what an option meant before it existed, for states that lack it.
    """

    detector: Detector
    tiles: TrainingTiles
    schedule: Schedule
    checkpoint: Checkpoint
    output: Path
    device: torch.device
    autocast: bool
    validate: Validate | None = None
    report: Callable[[str], None] = _silent
    show: Callable[[Any, int], None] | None = None
    logdir: Path | None = None
    epoch: int = 0
    done: int = 0  # steps of the current epoch
    best: float = -math.inf
    history: list[dict[str, Any]] = field(default_factory=list)
    processes: Processes = field(default_factory=Processes)
    new_options: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0  # spent in earlier parts of a resumed run
    kept_alpha: tuple[float, ...] | None = None  # of the weights at `output`; None: nothing was saved there yet

    def __post_init__(self) -> None:
        self.detector.to(self.device, memory_format=self.layout)  # type: ignore[call-overload]
        self.optimizer = torch.optim.SGD(
            parameter_groups(self.detector, self.schedule.weight_decay),
            lr=self.schedule.lr,
            momentum=self.schedule.momentum,
        )
        # The gradients of all processes, averaged while the backward pass still runs.
        objective = _Objective(self.detector)
        self.objective: nn.Module = objective if self.processes.count == 1 else DistributedDataParallel(objective)
        self.averaged: AveragedModel | None = None
        if self.schedule.ema > 0:
            self.averaged = AveragedModel(self.detector, multi_avg_fn=get_ema_multi_avg_fn(self.schedule.ema))

    @property
    def layout(self) -> torch.memory_format:
        """Channels last, but on a CPU without AVX-512, where convolutions then train a quarter slower."""
        old_cpu = self.device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"
        return torch.contiguous_format if old_cpu else torch.channels_last

    @property
    def state_path(self) -> Path:
        return resume_path(self.output)

    @functools.cached_property
    def steps_per_epoch(self) -> int:
        return len(self.batches())  # as many in every epoch

    @property
    def judged(self) -> Detector:
        """The detector that is validated and kept: as it is, or its moving average."""
        if self.averaged is None:
            return self.detector
        return cast(Detector, self.averaged.module)

    def batches(self) -> list[list[int]]:
        """The sample indices of each step of the current epoch; a last one with fewer tiles than processes is left
        out."""
        seed, epoch, batch = self.schedule.seed, self.epoch, self.schedule.batch
        if self.schedule.grouped:
            batches = grouped_batches(shapes_of(self.tiles), batch, seed=seed, epoch=epoch)
        else:
            batches = epoch_batches(len(self.tiles), batch, seed=seed, epoch=epoch)
        return [batch for batch in batches if len(batch) >= self.processes.count]

    @property
    def alpha(self) -> tuple[float, ...]:
        """Fusion factors as they are now, finest first; empty for attention."""
        return fusion_factors(getattr(self.judged.fpn, "alpha", None), len(self.detector.design.edges))

    @property
    def steps_left(self) -> int:
        return self.schedule.epochs * self.steps_per_epoch - self._step

    def fit(self) -> None:
        """Train from where the run stands to its end; on Ctrl-C save and raise KeyboardInterrupt.

        Raises:
            DivergedError: where the loss is not finite any more, naming the images; the batch is kept for inspection.
        """
        if self.processes.first:
            for path in (self.output, self.state_path):
                remove_leftovers(path)  # of a run that was killed while it wrote
        if self._step == 0:
            self.save_state()  # a run that is killed before the next one can be resumed too
        steps = self.schedule.epochs * self.steps_per_epoch
        writer = _tensorboard(self.logdir if self.processes.first else None)
        learned = isinstance(getattr(self.detector.fpn, "alpha", None), nn.Parameter)
        started = saved = reported = time.monotonic() - self.seconds
        quiet = None if self.processes.first else True
        bar = tqdm(total=steps, initial=self._step, unit="step", dynamic_ncols=True, disable=quiet, smoothing=0.05)
        try:
            while self.epoch < self.schedule.epochs:
                self.detector.train()
                batches = [self.processes.share(batch) for batch in self.batches()[self.done :]]
                seed, epoch = self.schedule.seed, self.epoch
                for batch, samples in zip(batches, stream(self.tiles, batches, seed=seed, epoch=epoch), strict=True):
                    begun = time.monotonic()
                    rate = self.schedule.rate(self._step, steps)
                    with deferred_interrupt():
                        losses = self.step(samples, rate)
                        loss = float(losses.total())
                        if not math.isfinite(loss):
                            raise DivergedError(self._diverged(batch, samples, losses, rate))
                        self.done += 1
                    now = time.monotonic()
                    self.seconds = now - started
                    speed = len(samples) * self.processes.count / (now - begun)
                    bar.update()
                    bar.set_postfix_str(f"loss {loss:.3f} lr {rate:.2g} {speed:.1f} img/s")
                    if self.processes.first and bar.disable and now - reported > REPORT_EVERY:
                        reported = now
                        self.report(self._line(loss, rate, speed, steps))
                    if writer is not None:
                        scalars = {"loss": loss, "lr": rate, "images per second": speed}
                        scalars |= losses.scalars(self.detector.design.levels)
                        if learned:
                            scalars |= self._alphas()
                        _write(writer, self._step, scalars)
                    if now - saved > SAVE_EVERY:
                        saved = now
                        self.save_state()
                try:
                    self.epoch, self.done = epoch + 1, 0
                    self._end_of_epoch(writer, bar)
                except KeyboardInterrupt:
                    if not self.history or self.history[-1]["epoch"] <= epoch:
                        # All steps of the epoch are done, its end is not: that is where a resumed run goes on.
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
            self.state_path.unlink(missing_ok=True)  # a finished run has nothing to resume

    def step(self, samples: Sequence[Sample], rate: float) -> DetectorLosses:
        """One step of SGD on this process's samples; returns the losses of all of them, without a graph.

        What is drawn in it depends on (process, seed, step) alone.
        """
        torch.manual_seed(((self.processes.rank << 56) + (self.schedule.seed << 32) + self._step) % 2**63)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_factor"]
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.loss(samples)
        (losses.total() * self.processes.count).backward()  # the mean of these is the gradient of the sum of all shares
        if self.schedule.clip_norm > 0:
            nn.utils.clip_grad_norm_(self.detector.parameters(), self.schedule.clip_norm)
        losses = type(losses)(*(over_all(part.detach()) for part in losses))
        if torch.isfinite(losses.total()):
            self.optimizer.step()
            if self.averaged is not None:
                self.averaged.update_parameters(self.detector)
        return type(losses)(*(part.cpu() for part in losses))

    def loss(self, samples: Sequence[Sample]) -> DetectorLosses:
        """The loss of one batch of tiles; of many processes, this one's share of it."""
        batch = collate(samples, self.device, self.layout)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            return cast(DetectorLosses, self.objective(batch))

    def checkpoint_spec(self) -> ModelSpec:
        """How the current weights would be deployed."""
        return self._snapshot(self.judged).spec()

    def save_model(self) -> None:
        """Write the current weights to `output`."""
        self.kept_alpha = self.alpha
        if not self.processes.first:
            return
        save_checkpoint(replace(self._snapshot(self.judged), training_state=None), self.output)

    def save_state(self) -> None:
        """Write all that a resumed run needs beside `output`."""
        if not self.processes.first:
            return
        state = {
            "optimizer": self.optimizer.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "epoch": self.epoch,
            "done": self.done,
            "best": self.best,
            "history": self.history,
            "seconds": self.seconds,
            "kept_alpha": self.kept_alpha,
        }
        save_checkpoint(replace(self._snapshot(self.detector), training_state=state), self.state_path)

    def resume(self) -> None:
        """Continue from the state beside `output`.

        Raises:
            ValueError: where there is none, or it belongs to another configuration.
        """
        if not self.state_path.is_file():
            raise ValueError(f"{self.state_path}: no state to resume from; start the run without --resume")
        saved = load_checkpoint(self.state_path)
        before = {**self.new_options, **saved.config}
        if before != self.checkpoint.config or saved.training_state is None:
            changed = sorted(
                k for k in {*before, *self.checkpoint.config} if before.get(k) != self.checkpoint.config.get(k)
            )
            raise ValueError(
                f"{self.state_path}: written by a run with another {', '.join(changed) or 'purpose'}; "
                "resume with the arguments of that run, or start anew without --resume"
            )
        data, now = saved.origin.get("data"), self.checkpoint.origin.get("data")
        if data is not None and data != now:
            raise ValueError(
                f"{self.state_path}: the training data is not what it was when the run began; "
                "put it back as it was, or start anew without --resume"
            )
        state = saved.training_state
        self.detector.load_state_dict(saved.weights)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        self.epoch, self.done, self.best = state["epoch"], state["done"], state["best"]
        self.history, self.seconds = state["history"], state["seconds"]
        self.kept_alpha = state.get("kept_alpha")  # older states lack it

    @property
    def _step(self) -> int:
        return self.epoch * self.steps_per_epoch + self.done

    def _alphas(self) -> dict[str, float]:
        """The fusion factors by name, as TensorBoard shows them; none for attention."""
        edges = self.detector.design.edges
        return {f"alpha/{edge}": alpha for edge, alpha in zip(edges, self.alpha, strict=False)}

    def _end_of_epoch(self, writer: Any, bar: Any) -> None:
        last = self.epoch == self.schedule.epochs
        _write(writer, self._step, self._alphas())
        if self.validate is None:
            if last:
                with deferred_interrupt():
                    self.save_model()
            return
        if not last and self.epoch % self.schedule.validate_every:
            return
        metrics = self.validate(self.judged)
        with deferred_interrupt():
            self.history.append({"epoch": self.epoch, **metrics})
            note = ""
            if metrics["AP50"] >= self.best:
                self.best, note = metrics["AP50"], "  best, saved"
                self.save_model()
        _write(writer, self._step, {f"validation/{name}": value for name, value in metrics.items() if value >= 0})
        if writer is not None and self.show is not None:
            self.show(writer, self._step)
        shown = "  ".join(f"{name} {value:.3f}" for name, value in metrics.items() if value >= 0 and "/" not in name)
        bar.clear()
        if self.processes.first:
            self.report(f"epoch {self.epoch:>3}/{self.schedule.epochs}  {shown}{note}")

    def _snapshot(self, detector: Detector) -> Checkpoint:
        weights = {k: v.detach().cpu().contiguous().clone() for k, v in detector.state_dict().items()}
        progress = {"epoch": self.epoch, "step": self._step, "seconds": round(self.seconds, 1), "history": self.history}
        return replace(self.checkpoint, weights=weights, progress=progress)

    def _diverged(self, batch: Sequence[int], samples: Sequence[Sample], losses: DetectorLosses, rate: float) -> str:
        """Keep the batch that led to no finite loss, and say so."""
        names = [self.tiles.dataset.images[self.tiles.tiles[i][0]].file_name for i in batch]
        about = {"epoch": self.epoch, "step": self.done, "lr": rate, "images": names, "indices": list(batch)}
        rank = f"-{self.processes.rank}" if self.processes.rank else ""
        kept = self.output.with_suffix(f".diverged{rank}{self.output.suffix}")
        save_batch(kept, samples, {**about, "losses": losses.scalars(self.detector.design.levels)})
        return (
            f"the loss is not finite any more at epoch {self.epoch + 1}, step {self.done + 1} (learning rate "
            f"{rate:.2g}, images {', '.join(sorted(set(names)))}); train with a lower --lr or with --clip-norm 10. "
            f"{kept} holds the batch; {self.output}, if written, the best weights so far"
        )

    def _line(self, loss: float, rate: float, speed: float, steps: int) -> str:
        left = self.seconds / max(self._step, 1) * (steps - self._step)
        return f"step {self._step}/{steps}  loss {loss:.3f}  lr {rate:.2g}  {speed:.1f} img/s  {left / 60:.0f} min left"


class _Objective(nn.Module):
    """A detector whose forward pass is its loss: what `DistributedDataParallel` wants to wrap."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, batch: Batch) -> DetectorLosses:
        return self.detector.loss(batch)


def resume_path(output: Path) -> Path:
    """Where the state of an unfinished run lies: model.pth -> model.resume.pth."""
    return output.with_suffix(".resume" + output.suffix)


def _tensorboard(logdir: Path | None) -> Any:
    if logdir is None:
        return None
    with needs_extra("train"):
        from torch.utils.tensorboard import SummaryWriter
    return SummaryWriter(str(logdir))


def _write(writer: Any, step: int, scalars: dict[str, float]) -> None:
    if writer is not None:
        for name, value in scalars.items():
            writer.add_scalar(name, value, step)
