"""`python -m tinydet.train --salpha`: from annotated images to model.pth.

The fusion factors are counted from the annotations before training (Algorithm 1), live in the checkpoint, and
dissolve into the convolutions on export.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from tinydet._atomic import write_json
from tinydet._command import command
from tinydet.anchors import DESIGNS
from tinydet.backbone import Norm, load_pretrained
from tinydet.batch import collate
from tinydet.checkpoint import Checkpoint
from tinydet.data.coco import Dataset, find_dataset, load_dataset
from tinydet.data.scale_match import ScaleMatch, size_histogram, sizes_of
from tinydet.data.sub_images import benchmark_tiles
from tinydet.data.synthetic import embedded_dataset
from tinydet.data.training import TrainingTiles
from tinydet.data.transforms import Augment, Transform, chain
from tinydet.detector import DetectorConfig, build_detector
from tinydet.fpn import initialise_sigma_power
from tinydet.fusion import FusionStatistics
from tinydet.initial import Source, initialise, read_source
from tinydet.options import parser
from tinydet.origin import code_state, data_hash
from tinydet.plan import multiply_adds, training_bytes
from tinydet.processes import Processes, join_processes, leave_processes
from tinydet.recipe import NEW_OPTIONS, TrainConfig, config_of
from tinydet.salpha import statistics_of, statistics_of_tiles
from tinydet.selection import without_dense, without_empty
from tinydet.trainer import DivergedError, Schedule, Trainer
from tinydet.unusable import SkippingTiles
from tinydet.validation import Validation

NAMES = {"retinanet": "RetinaNet", "retinanet-p3p7": "RetinaNet on P3-P7", "faster_rcnn": "Faster R-CNN"}
LONG_MINUTES = 60  # beyond it the plan names the small preset


@command("train")
def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    config = config_of(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    processes, device = join_processes(torch.device(args.device))
    try:
        return run(args, config, processes, device)
    except RuntimeError as error:
        if processes.count == 1 or ("peer" not in str(error) and "NCCL" not in str(error)):
            raise
        raise ValueError(
            f"process {processes.rank} of {processes.count} lost another one, whose own message says why; "
            f"mend that and start torchrun again with --resume ({str(error).splitlines()[0][:120]})"
        ) from error
    finally:
        leave_processes()


def run(args: argparse.Namespace, config: TrainConfig, processes: Processes, device: torch.device) -> int:
    """One process of a run, from the data to the trained model."""
    torch.manual_seed(config.seed)

    train, val = load_data(config)
    tiles = training_tiles(config, train)
    statistics = count_objects(config, train, tiles) if config.salpha else None
    source = read_source(config.init, config.detector) if config.init else None
    alpha, alpha_source = choose_alpha(config, statistics, source)
    norm = choose_norm(config, source)
    detector_config = DetectorConfig(
        config.backbone,
        config.channels,
        config.head_convs,
        config.head_init,
        norm,
        len(train.classes),
        config.detector,
        config.fusion,
        config.straddling,
        config.roi_rule,
        config.canonical_scale,
    )
    detector = build_detector(detector_config, alpha)
    if config.sigma_power is not None:
        initialise_sigma_power(detector.fpn, config.sigma_power)
    taken = []
    if source is not None:
        taken = initialise(detector, source, train.classes)
    elif config.weights_backbone != "none":
        load_pretrained(detector.backbone, config.backbone, config.weights_backbone)
    if source is not None or config.weights_backbone != "none":
        detector.backbone.freeze(config.freeze)

    trainer = Trainer(
        detector=detector,
        tiles=tiles,
        schedule=Schedule(
            config.epochs,
            config.batch,
            config.lr,
            clip_norm=config.clip_norm,
            seed=config.seed,
            validate_every=config.validate_every,
            decay=config.decay,
            ema=config.ema,
            grouped=config.group_shapes,
        ),
        checkpoint=Checkpoint(
            detector=detector_config,
            weights={},
            classes=train.classes,
            category_ids=train.category_ids,
            tile=config.tile,
            object_sizes=object_sizes(train),
            alpha_source=alpha_source,
            statistics=statistics.to_json() if statistics else None,
            config=dataclasses.asdict(config),
            origin={"data": data_hash(train), "code": code_state()},
        ),
        output=args.output,
        device=device,
        autocast=use_bfloat16(config.precision, device),
        report=lambda line: print(line, flush=True),
        logdir=None if args.no_tensorboard else args.logdir / args.output.stem,
        processes=processes,
        new_options=NEW_OPTIONS,
    )
    if val is not None:
        validation = Validation(
            val, overlap=config.overlap, device=device, autocast=trainer.autocast, processes=processes
        )
        trainer.validate = lambda detector: validation(detector, trainer.checkpoint_spec())
        trainer.show = validation.show
    if args.resume:
        trainer.resume()
    elif trainer.state_path.exists() and processes.first:
        print(f"note: {trainer.state_path} is of an unfinished run; --resume goes on with it, this run replaces it")
    seconds = _seconds_per_step(trainer)
    if processes.first:
        _print_plan(config, trainer, train, val, statistics, alpha_source, taken, seconds)
    if args.dry_run:
        if processes.first:
            _print_costs(trainer)
        return 0
    try:
        trainer.fit()
    except KeyboardInterrupt:
        if not processes.first:
            return 130
        print(
            f"\nInterrupted. {args.output} can be used as it is; the same command with --resume goes on from "
            f"{trainer.state_path}."
        )
        return 130
    except DivergedError as error:
        if args.json and processes.first:
            write_json(args.json, run_record(trainer, diverged=str(error)))
        raise
    if processes.first:
        if args.json:
            write_json(args.json, run_record(trainer))
        _print_result(trainer, val)
    return 0


def load_data(config: TrainConfig) -> tuple[Dataset, Dataset | None]:
    """The training and the validation set; the embedded ones where none is named.

    Raises:
        ValueError: where a set is malformed or the two have different classes.
    """
    if config.annotations is None:
        train = _chosen(config, load_dataset(*find_dataset(embedded_dataset("train"))))
        return train, load_dataset(*find_dataset(embedded_dataset("val")))
    train = load_dataset(Path(config.annotations), _path(config.images), categories=config.categories)
    train = _chosen(config, train)
    if config.val_annotations is None:
        return train, None
    # By the names of the training classes, so that labels mean the same in both.
    val = load_dataset(Path(config.val_annotations), _path(config.val_images), categories=train.classes)
    return train, val


def training_tiles(config: TrainConfig, train: Dataset) -> TrainingTiles:
    """The tiles of a run, with all that is done to them."""
    transforms: list[Transform] = []
    if config.scale_match is not None:
        target = load_dataset(Path(config.scale_match))
        transforms.append(ScaleMatch(size_histogram(sizes_of(target.boxes[target.objects]))))
    if config.augment:
        transforms.append(Augment(config.augment, config.tile))
    benchmark = config.cut == "benchmark"
    options: dict[str, Any] = {
        "flip": config.flip,
        "cut": benchmark_tiles if benchmark else None,
        "slivers": "drop" if benchmark else "ignore",
        "transform": chain(transforms),
    }
    if config.skip_unreadable:
        tiles: TrainingTiles = SkippingTiles(train, config.tile, config.overlap, told=_warn, **options)
    else:
        tiles = TrainingTiles(train, config.tile, config.overlap, **options)
    if not config.empty_tiles:
        tiles.tiles = without_empty(tiles)
    return tiles


def count_objects(config: TrainConfig, train: Dataset, tiles: TrainingTiles) -> FusionStatistics:
    """The statistic of Algorithm 1 on the tiles that the network will see, before any augmentation."""
    design = DESIGNS[config.detector]
    if config.cut == "benchmark":
        return statistics_of_tiles(tiles, design, alpha_range=config.alpha_range)
    return statistics_of(train, design, tile=config.tile, overlap=config.overlap, alpha_range=config.alpha_range)


def choose_alpha(
    config: TrainConfig, statistics: FusionStatistics | None, source: Source | None = None
) -> tuple[tuple[float, ...] | None, str]:
    """Fusion factors, finest first, and in words where they come from.

    Weights were trained with the alpha that lies beside them: without a word about alpha, a run that starts from a
    checkpoint keeps its.
    """
    start = source.checkpoint if source else None
    edges = len(DESIGNS[config.detector].edges)
    if statistics is not None:
        alpha, told = tuple(statistics.alpha), "S-alpha: counted from the training boxes (Algorithm 1)"
    elif config.alpha is not None:
        alpha, told = config.alpha, "given with --alpha"
    elif config.fusion != "attention" and start is not None and len(start.alpha) == edges:
        alpha, told = start.alpha, f"kept from {config.init} ({start.alpha_source})"
    else:
        alpha, told = None, "1 everywhere (a conventional FPN)"
    if config.fusion != "fixed":
        told = f"{config.fusion}-alpha, learned; it started at {told}"
    if config.sigma_power is not None:
        told += f"; {config.sigma_power:g}-power initialisation"
    return alpha, told


def choose_norm(config: TrainConfig, source: Source | None) -> Norm:
    """How the backbone normalises: as asked for, else as the weights that it starts from were trained."""
    if config.norm != "auto":
        return config.norm
    if source is not None:
        return source.checkpoint.detector.norm if source.checkpoint else "frozen"
    return "batch" if config.weights_backbone == "none" else "frozen"


def object_sizes(dataset: Dataset) -> tuple[float, float, float]:
    """sqrt(w*h) of the objects at percentiles 1, 50 and 99, in pixels."""
    boxes = dataset.boxes[dataset.objects]
    if not len(boxes):
        raise ValueError(f"{dataset.source}: no object to learn from; choose other --categories or a higher --dense")
    sizes = np.sqrt(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1))
    low, middle, high = np.percentile(sizes, [1, 50, 99])
    return round(float(low), 2), round(float(middle), 2), round(float(high), 2)


def run_record(trainer: Trainer, *, diverged: str | None = None) -> dict[str, Any]:
    """How a run went, for other programs: `history` has the scores of each validation, -1 where there is no object."""
    return {
        "alpha": list(trainer.alpha),
        "alpha_source": trainer.checkpoint.alpha_source,
        "history": trainer.history,
        "diverged": diverged,
        "seconds": round(trainer.seconds, 1),
        "cpu_seconds": round(time.process_time(), 1),  # of this process: without earlier parts of a resumed run
    }


def use_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether to run convolutions in bfloat16: where asked for, or where the hardware gains from it."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _print_plan(
    config: TrainConfig,
    trainer: Trainer,
    train: Dataset,
    val: Dataset | None,
    statistics: FusionStatistics | None,
    alpha_source: str,
    taken: Sequence[str],
    seconds: float,
) -> None:
    low, middle, high = trainer.checkpoint.object_sizes or (0, 0, 0)
    clipped = f", {train.clipped} boxes clipped to their image" if train.clipped else ""
    _row("data", f"{len(train.images)} images, {int(train.objects.sum())} objects ({', '.join(train.classes)})")
    _row("", f"sizes at percentiles 1, 50, 99: {low:g}, {middle:g}, {high:g} px{clipped}")
    if val:
        _row("validate", f"{len(val.images)} images, after every {config.validate_every} epochs")
    else:
        _row("validate", "no; the last weights are kept (--val names a set that chooses the best)")
    alpha = ", ".join(f"{a:.3f}" for a in trainer.alpha) or "from the features"
    _row("alpha", f"{alpha} ({', '.join(trainer.detector.design.edges)}): {alpha_source}")
    for warning in statistics.warnings if statistics else ():
        _row("", warning)
    parameters = sum(p.numel() for p in trainer.detector.parameters()) / 1e6
    named = f"{NAMES[config.detector]}, {config.backbone} (weights: {config.init or config.weights_backbone})"
    _row("model", f"{named}, {config.channels} channels")
    for line in taken:
        _row("", line)
    precision = "bfloat16" if trainer.autocast else "float32"
    _row("", f"{parameters:.2f} M parameters, {precision} on {trainer.device}")
    minutes = seconds * trainer.steps_left / 60
    _row(
        "plan",
        f"{config.epochs} epochs of {trainer.steps_per_epoch} steps, {config.batch} tiles a step, lr {config.lr:g}",
    )
    _row("", f"about {_duration(minutes)} to go, and the validation")
    if minutes > LONG_MINUTES and config.preset != "small":
        _row("", f"that is long: --preset small trains many times faster than {config.preset}")
    sys.stdout.flush()


def _print_costs(trainer: Trainer) -> None:
    """What the plan costs, part by part."""
    design, batch = trainer.detector.design, trainer.schedule.batch
    tiles = [tile for _, tile in trainer.tiles.tiles]
    height, width = (-(-max(getattr(tile, side) for tile in tiles) // 32) * 32 for side in ("height", "width"))
    for n, (level, stride, shapes) in enumerate(zip(design.levels, design.strides, design.shapes, strict=True)):
        sides = sorted((w * h) ** 0.5 for w, h in shapes)
        spread = f"{sides[0]:.3g}" if sides[-1] - sides[0] < 0.01 else f"{sides[0]:.3g} to {sides[-1]:.3g}"
        _row("" if n else "anchors", f"{level}: every {stride} px {len(shapes)} anchors, sqrt(area) {spread} px")
    counts = multiply_adds(trainer.detector, (height, width))
    total = sum(counts.values())
    for n, (part, count) in enumerate(counts.items()):
        _row("" if n else "work", f"{part:<10} {count / 1e9:8.2f} G multiply-adds  {count / total:6.1%}")
    _row("", f"{'forward':<10} {total / 1e9:8.2f} G multiply-adds for a tile of {width}x{height}")
    memory = training_bytes(trainer.detector, -(-batch // trainer.processes.count), (height, width))
    _row("memory", f"about {memory / 2**30:.2f} GiB a step in float32, and what the loss needs")


def _row(name: str, text: str) -> None:
    print(f"{name:<9} {text}")


def _print_result(trainer: Trainer, val: Dataset | None) -> None:
    print(
        f"wrote {trainer.output} after {_duration(trainer.seconds / 60)}"
        + (f"; best AP50 {trainer.best:.3f} on the validation set, which also chose it" if val else "")
    )
    print(f"next: python -m tinydet.evaluate --model {trainer.output}   python export/to_trt.py {trainer.output}")


def _seconds_per_step(trainer: Trainer) -> float:
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
        seconds.append(time.perf_counter() - begun)
    return seconds[-1]


def _duration(minutes: float) -> str:
    return f"{minutes:.1f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def _chosen(config: TrainConfig, train: Dataset) -> Dataset:
    return without_dense(train, config.dense) if config.dense is not None else train


def _warn(line: str) -> None:
    tqdm.write(f"tinydet train: {line}", file=sys.stderr)


def _path(text: str | None) -> Path | None:
    return Path(text) if text is not None else None


if __name__ == "__main__":
    sys.exit(main())
