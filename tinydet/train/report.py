"""What a training run says: its plan before it begins, what that costs, and how it went. Lines, for whoever prints."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from tinydet.data.coco import Dataset
from tinydet.models.batch import collate
from tinydet.models.cost import multiply_adds, training_bytes
from tinydet.salpha.factors import FusionStatistics
from tinydet.train.recipe import TrainConfig
from tinydet.train.trainer import Trainer

NAMES = {"retinanet": "RetinaNet", "retinanet-p3p7": "RetinaNet on P3-P7", "faster_rcnn": "Faster R-CNN"}
LONG_MINUTES = 60  # beyond it the plan names the small preset


def plan_lines(
    config: TrainConfig,
    trainer: Trainer,
    train: Dataset,
    val: Dataset | None,
    statistics: FusionStatistics | None,
    alpha_source: str,
    taken: Sequence[str],
    seconds: float,
) -> Iterator[str]:
    """The plan of a run; `taken` says what came of the weights it starts from, `seconds` what a step takes."""
    low, middle, high = trainer.checkpoint.object_sizes or (0, 0, 0)
    clipped = f", {train.clipped} boxes clipped to their image" if train.clipped else ""
    yield _row("data", f"{len(train.images)} images, {int(train.objects.sum())} objects ({', '.join(train.classes)})")
    yield _row("", f"sizes at percentiles 1, 50, 99: {low:g}, {middle:g}, {high:g} px{clipped}")
    if val:
        yield _row("validate", f"{len(val.images)} images, after every {config.validate_every} epochs")
    else:
        yield _row("validate", "no; the last weights are kept (--val names a set that chooses the best)")
    alpha = ", ".join(f"{a:.3f}" for a in trainer.alpha) or "from the features"
    yield _row("alpha", f"{alpha} ({', '.join(trainer.detector.design.edges)}): {alpha_source}")
    for warning in statistics.warnings if statistics else ():
        yield _row("", warning)
    parameters = sum(p.numel() for p in trainer.detector.parameters()) / 1e6
    named = f"{NAMES[config.detector]}, {config.backbone} (weights: {config.init or config.weights_backbone})"
    yield _row("model", f"{named}, {config.channels} channels")
    for line in taken:
        yield _row("", line)
    precision = "bfloat16" if trainer.autocast else "float32"
    yield _row("", f"{parameters:.2f} M parameters, {precision} on {trainer.device}")
    minutes = seconds * trainer.steps_left / 60
    yield _row(
        "plan",
        f"{config.epochs} epochs of {trainer.steps_per_epoch} steps, {config.batch} tiles a step, lr {config.lr:g}",
    )
    yield _row("", f"about {duration(minutes)} to go, and the validation")
    if minutes > LONG_MINUTES and config.preset != "small":
        yield _row("", f"that is long: --preset small trains many times faster than {config.preset}")


def cost_lines(trainer: Trainer) -> Iterator[str]:
    """What the plan costs, part by part."""
    design, batch = trainer.detector.design, trainer.schedule.batch
    tiles = [tile for _, tile in trainer.tiles.tiles]
    height, width = (-(-max(getattr(tile, side) for tile in tiles) // 32) * 32 for side in ("height", "width"))
    for n, (level, stride, shapes) in enumerate(zip(design.levels, design.strides, design.shapes, strict=True)):
        sides = sorted((w * h) ** 0.5 for w, h in shapes)
        spread = f"{sides[0]:.3g}" if sides[-1] - sides[0] < 0.01 else f"{sides[0]:.3g} to {sides[-1]:.3g}"
        yield _row("" if n else "anchors", f"{level}: every {stride} px {len(shapes)} anchors, sqrt(area) {spread} px")
    counts = multiply_adds(trainer.detector, (height, width))
    total = sum(counts.values())
    for n, (part, count) in enumerate(counts.items()):
        yield _row("" if n else "work", f"{part:<10} {count / 1e9:8.2f} G multiply-adds  {count / total:6.1%}")
    yield _row("", f"{'forward':<10} {total / 1e9:8.2f} G multiply-adds for a tile of {width}x{height}")
    memory = training_bytes(trainer.detector, -(-batch // trainer.processes.count), (height, width))
    yield _row("memory", f"about {memory / 2**30:.2f} GiB a step in float32, and what the loss needs")


def result_lines(trainer: Trainer, val: Dataset | None) -> Iterator[str]:
    """What came of a run, and what can be done with it."""
    yield (
        f"wrote {trainer.output} after {duration(trainer.seconds / 60)}"
        + (f"; best AP50 {trainer.best:.3f} on the validation set, which also chose it" if val else "")
    )
    yield (f"next: python -m tinydet.evaluate --model {trainer.output}   python export/to_trt.py {trainer.output}")


def run_record(trainer: Trainer, *, diverged: str | None = None) -> dict[str, Any]:
    """How a run went, for other programs: `history` has the scores of each validation, -1 where there is no object."""
    return {
        "alpha": list(trainer.kept_alpha or trainer.alpha),  # of the weights that were kept
        "alpha_source": trainer.checkpoint.alpha_source,
        "precision": "bfloat16" if trainer.autocast else "float32",
        "history": trainer.history,
        "diverged": diverged,
        "seconds": round(trainer.seconds, 1),
        "cpu_seconds": round(time.process_time(), 1),  # of this process: without earlier parts of a resumed run
    }


def seconds_per_step(trainer: Trainer) -> float:
    """Time of one forward and backward pass, on a copy, so that measuring changes nothing."""
    probe = copy.deepcopy(trainer.detector).train()
    indices = trainer.processes.share(range(max(trainer.schedule.batch, trainer.processes.count)))
    samples = [trainer.tiles.sample(i % len(trainer.tiles), seed=0, epoch=0) for i in indices]
    seconds = []
    for _ in range(2):  # the first also pays for setting up kernels
        begun = time.perf_counter()
        batch = collate(samples, trainer.device, trainer.layout)
        with torch.autocast(trainer.device.type, torch.bfloat16, enabled=trainer.autocast):
            losses = probe.loss(batch)
        losses.total().backward()
        if trainer.device.type == "cuda":
            torch.cuda.synchronize(trainer.device)
        seconds.append(time.perf_counter() - begun)
    return seconds[-1]


def duration(minutes: float) -> str:
    """In minutes, or in hours where that reads better."""
    return f"{minutes:.1f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def _row(name: str, text: str) -> str:
    return f"{name:<9} {text}"
