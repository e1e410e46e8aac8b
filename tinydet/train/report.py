"""The report of a training run: its plan, its costs and its results, as lines to print."""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from tinydet._internal.console import plural
from tinydet._internal.progress import duration
from tinydet._internal.shell import tinydet_command
from tinydet.data.coco import Dataset
from tinydet.data.source import describe_hold_out
from tinydet.evaluate.report import format_ap
from tinydet.geometry.anchors import AnchorDesign, Pyramid
from tinydet.geometry.points import PointDesign
from tinydet.models.backend import TorchBackend
from tinydet.models.batch import collate
from tinydet.models.cost import multiply_adds, training_bytes
from tinydet.models.losses import total
from tinydet.models.registry import detector_info
from tinydet.runtime.options import ScanOptions
from tinydet.runtime.plan import plan_scan
from tinydet.salpha.factors import FusionStatistics
from tinydet.train.config import TrainConfig
from tinydet.train.trainer import Trainer
from tinydet.train.unreadable import SkippingTiles
from tinydet.train.validation import Validation

LONG_MINUTES = 60  # beyond it the plan suggests the small preset


def plan_lines(
    config: TrainConfig,
    trainer: Trainer,
    train: Dataset,
    val: Dataset | None,
    statistics: FusionStatistics | None,
    alpha_source: str,
    copied: Sequence[str],
    choices: Sequence[str],
    seconds: float,
    validation_seconds: float,
) -> Iterator[str]:
    """Yield the plan of a run.

    Args:
        copied: report on the weights it starts from.
        choices: defaults that the run chose, with their reasons.
        seconds: duration of a step; `validation_seconds`: of a validation, 0 without one.
    """
    low, middle, high = trainer.checkpoint.object_sizes or (0, 0, 0)
    clipped = f", {plural(train.clipped, 'box')} clipped to their image" if train.clipped else ""
    images, objects = plural(len(train.images), "image"), plural(int(train.objects.sum()), "object")
    yield _row("", f"{images}, {objects} ({', '.join(train.classes)})")
    yield _row("", f"sizes at percentiles 1, 50, 99: {low:g}, {middle:g}, {high:g} px{clipped}")
    for note in train.notes:
        yield _row("", note)
    if val:
        yield _row(
            "validate",
            f"{plural(len(val.images), 'image')}, after every "
            + ("epoch" if (config.validate_every or 1) == 1 else f"{config.validate_every} epochs"),
        )
        for note in val.notes:
            yield _row("", note)
    else:
        yield _row(
            "validate", "no; the last weights are kept. --val 0.2 holds out a fifth of the images and keeps the best"
        )
    alpha = ", ".join(f"{a:.3f}" for a in trainer.alpha) or "from the features"
    yield _row("alpha", f"{alpha} ({', '.join(trainer.detector.design.edges)}): {alpha_source}")
    for warning in statistics.notes if statistics else ():
        yield _row("", warning)
    for n, choice in enumerate(choices):
        yield _row("" if n else "defaults", choice)
    parameters = sum(p.numel() for p in trainer.detector.parameters()) / 1e6
    named = (
        f"{detector_info(config.network).label}, {config.backbone} (weights: {config.init or config.weights_backbone})"
    )
    yield _row("model", f"{named}, {config.channels} channels")
    for line in copied:
        yield _row("", line)
    precision = "bfloat16" if trainer.autocast else "float32"
    yield _row("", f"{parameters:.2f} M parameters, {precision} on {trainer.device}")
    validations = trainer.validations_left if val else 0
    minutes = (seconds * trainer.steps_left + validation_seconds * validations) / 60
    epochs, batch, lr = trainer.schedule.epochs, trainer.schedule.batch, trainer.schedule.lr
    steps = f"{plural(epochs, 'epoch')} of {plural(trainer.steps_per_epoch, 'step')}"
    scales = f" at scales {', '.join(f'{scale:g}' for scale in config.scales)}" if config.scales != (1.0,) else ""
    mean = f", saved weights: a moving average ({trainer.schedule.ema:g})" if trainer.schedule.ema else ""
    yield _row("plan", f"{steps}, {plural(batch, 'tile')}{scales} a step, lr {lr:g}{mean}")
    included = f", {duration(validation_seconds * validations)} of it for {plural(validations, 'validation')}"
    yield _row("", f"about {duration(60 * minutes)}{included if validations else ''}")
    if trainer.schedule.patience:
        stop = plural(trainer.schedule.patience, "validation")
        yield _row("", f"less if it stops early, after {stop} without a better AP50")
    if minutes > LONG_MINUTES and config.preset == "paper":
        yield _row("", f"to train many times faster than with {config.preset}: --preset small")
    elif minutes > LONG_MINUTES and (shorter := int(epochs * LONG_MINUTES / minutes)):
        yield _row("", f"to train for about an hour: --epochs {shorter}")


def source_lines(config: TrainConfig, train: Dataset, val: Dataset | None) -> Iterator[str]:
    """Yield where the data are, and what was held out of them."""
    train_source, val_source = config.sources()
    yield _row("data", train_source.describe())
    if val_source is not None and val is not None and not val_source.is_builtin:
        held_out = val_source.part is not None
        yield _row("", describe_hold_out(val_source, train, val) if held_out else val_source.describe())


def cost_lines(trainer: Trainer) -> Iterator[str]:
    """Yield the costs of the plan: anchors or points, multiply-adds and memory."""
    design, batch = trainer.detector.design, trainer.schedule.batch
    tiles, multiple = trainer.tiles.tiles, trainer.detector.tile_multiple
    largest = (max(getattr(tile, side) for tile in tiles) for side in ("height", "width"))
    height, width = (-(-side // multiple) * multiple for side in largest)
    for n, line in enumerate(prior_lines(design)):
        yield _row("" if n else "points" if isinstance(design, PointDesign) else "anchors", line)
    counts = multiply_adds(trainer.detector, (height, width))
    whole = sum(counts.values())
    for n, (part, count) in enumerate(counts.items()):
        yield _row("" if n else "work", f"{part:<10} {count / 1e9:8.2f} G multiply-adds  {count / whole:6.1%}")
    yield _row("", f"{'forward':<10} {whole / 1e9:8.2f} G multiply-adds for a tile of {width}x{height}")
    memory = training_bytes(trainer.detector, -(-batch // trainer.processes.count), (height, width))
    yield _row("memory", f"about {memory / 2**30:.2f} GiB per step in float32, without the loss")


def prior_lines(design: Pyramid) -> Iterator[str]:
    """Describe the anchors, or the points, of each level; nothing for a pyramid without them."""
    if isinstance(design, PointDesign):
        for level, stride, ((side, _),) in zip(design.levels, design.strides, design.squares().shapes, strict=True):
            yield f"{level}: every {stride} px, for objects with a longer side of about {side:.3g} px"
    elif isinstance(design, AnchorDesign):
        for level, stride, shapes in zip(design.levels, design.strides, design.shapes, strict=True):
            sides = sorted((w * h) ** 0.5 for w, h in shapes)
            spread = f"{sides[0]:.3g}" if sides[-1] - sides[0] < 0.01 else f"{sides[0]:.3g} to {sides[-1]:.3g}"
            yield f"{level}: every {stride} px {len(shapes)} anchors, sqrt(area) {spread} px"


def result_lines(trainer: Trainer, validation: Validation | None) -> Iterator[str]:
    """Yield the results of a run, the images that were skipped, and the next commands."""
    if isinstance(trainer.tiles, SkippingTiles) and trainer.tiles.skipped:
        yield f"{plural(len(trainer.tiles.skipped), 'image')} of {len(trainer.tiles.dataset.images)} skipped:"
        yield from (f"  {line}" for line in trainer.tiles.skipped.values())
    if validation is not None and trainer.history:
        yield from _validation_lines(trainer, validation)
    yield f"wrote {trainer.output} after {duration(trainer.seconds)}"
    evaluate = tinydet_command("evaluate", "--model", trainer.output)
    if validation is None:
        yield f"next: {evaluate} --data DIR  # labeled images that it was not trained on"
    else:
        yield f"next: {evaluate}"
    form = "engine" if trainer.device.type == "cuda" else "onnx"
    yield f"next: {tinydet_command('export', form, trainer.output)}"


def _validation_lines(trainer: Trainer, validation: Validation) -> Iterator[str]:
    """Yield the scores of the saved weights by class, and why these weights were saved."""
    best, last = max(reversed(trainer.history), key=lambda entry: entry["AP50"]), trainer.history[-1]
    start = best["epoch"] == 0
    yield f"on the validation set, {'before the first step' if start else 'epoch ' + str(best['epoch'])}, percent:"
    yield from (f"  {line}" for line in format_ap(validation.objects, best))
    trained = set(trainer.tiles.dataset.labels[trainer.tiles.dataset.objects].tolist())
    for label, (name, objects, _) in enumerate(validation.objects):
        if objects and label not in trained:
            yield f"  {name} has no objects in the training data, so it cannot be found; its AP is in the mean"
    if best["AP50"] == 0:
        yield (
            f"  it finds none of the objects yet: {plural(trainer.steps_done, 'step')} may be too few "
            f"(--epochs N trains longer), or the learning rate too high (--lr {trainer.schedule.lr / 2:g} halves it); "
            f"{tinydet_command('data', 'check')} finds faults of annotations"
        )
    if start:
        yield (
            f"saved the weights that it started from: training did not improve their AP50, epoch {last['epoch']} has "
            f"{100 * last['AP50']:.2f}; a lower --lr changes them less"
        )
        return
    if best is last:
        why = "the last validation has the best AP50"
    else:
        why = f"the best AP50 of {len(trainer.history)} validations; epoch {last['epoch']} has {100 * last['AP50']:.2f}"
    yield f"saved the weights of epoch {best['epoch']} of {trainer.schedule.epochs}: {why}"


def run_record(trainer: Trainer, *, diverged: str | None = None) -> dict[str, Any]:
    """Return how a run went, for other programs: `history` has the scores of each validation, -1 without objects."""
    return {
        "alpha": list(trainer.kept_alpha or trainer.alpha),  # of the saved weights
        "alpha_source": trainer.checkpoint.alpha_source,
        "precision": "bfloat16" if trainer.autocast else "float32",
        "history": trainer.history,
        "diverged": diverged,
        "seconds": round(trainer.seconds, 1),
        "cpu_seconds": round(time.process_time(), 1),  # of this process, without earlier parts of a resumed run
    }


def seconds_per_step(trainer: Trainer) -> float:
    """Measure a forward and backward pass on a copy of the detector: the faster of two, as other programs may run."""
    probe = copy.deepcopy(trainer.detector).train()
    indices = trainer.processes.shard(range(max(trainer.schedule.batch, trainer.processes.count)))
    samples = [trainer.tiles.sample(i % len(trainer.tiles), seed=0, epoch=0) for i in indices]
    seconds = []
    for _ in range(3):  # the first includes setting up kernels
        begun = time.perf_counter()
        batch = collate(samples, trainer.device, trainer.pixels, trainer.layout, multiple=probe.tile_multiple)
        with torch.autocast(trainer.device.type, torch.bfloat16, enabled=trainer.autocast):
            losses = probe.loss(batch)
        total(losses).backward()
        if trainer.device.type == "cuda":
            torch.cuda.synchronize(trainer.device)
        seconds.append(time.perf_counter() - begun)
    return min(seconds[1:])


def seconds_per_validation(trainer: Trainer, val: Dataset, scale: float = 1.0) -> float:
    """Estimate the duration of a validation from that of one tile, without reading images."""
    spec = trainer.checkpoint_spec()
    backend = TorchBackend(copy.deepcopy(trainer.detector), spec, device=str(trainer.device))
    tile = np.zeros((1, spec.tile, spec.tile, 3), np.uint8)
    backend.run(tile)  # sets up kernels
    begun = time.perf_counter()
    backend.run(tile)
    seconds = time.perf_counter() - begun
    images = {(image.width, image.height): image for image in val.images}
    counts = Counter((image.width, image.height) for image in val.images)
    options = ScanOptions(scale=scale)
    tiles = sum(plan_scan(image, spec, options).tiles * counts[size] for size, image in images.items())
    return seconds * tiles / trainer.processes.count


def _row(name: str, text: str) -> str:
    return f"{name:<9} {text}"
