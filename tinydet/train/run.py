"""One training run, from the data to the trained model.

The fusion factors are computed from the annotations before training (Algorithm 1), saved in the checkpoint, and folded
into the convolutions at export.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from tinydet._internal.atomic import claim, write_json
from tinydet.data.coco import Dataset
from tinydet.data.domain import measure_domain
from tinydet.data.samples import TrainingTiles
from tinydet.data.scale_match import ScaleMatch, size_histogram, sizes_of
from tinydet.data.sub_images import benchmark_tiles
from tinydet.geometry.tiles import MORE_TILES
from tinydet.models.backbone_registry import TIMM, build_backbone
from tinydet.models.build import DetectorConfig, build_detector
from tinydet.models.checkpoint import Checkpoint
from tinydet.models.contract import check_contract
from tinydet.models.device import torch_device
from tinydet.models.distributed import Processes, join_processes, leave_processes
from tinydet.models.fpn import initialize_sigma_power
from tinydet.models.options import TORCHVISION_BACKBONES, Norm
from tinydet.models.pretrained import Source, initialize, read_source
from tinydet.models.registry import BUILT_IN
from tinydet.salpha.dataset import statistics_of, statistics_of_tiles
from tinydet.salpha.detectors import counting_of
from tinydet.salpha.factors import FusionStatistics
from tinydet.train.config import TrainConfig
from tinydet.train.defaults import choose_network, choose_schedule
from tinydet.train.divergence import DivergedError
from tinydet.train.preview import write_preview
from tinydet.train.provenance import code_state, data_hash
from tinydet.train.report import (
    cost_lines,
    plan_lines,
    result_lines,
    run_record,
    seconds_per_step,
    seconds_per_validation,
    source_lines,
)
from tinydet.train.sampling import without_dense, without_empty
from tinydet.train.schedule import Schedule
from tinydet.train.trainer import Trainer
from tinydet.train.transforms import Augment, Transform, chain
from tinydet.train.unreadable import SkippingTiles
from tinydet.train.validation import Validation

logger = logging.getLogger(__name__)


class StoppedError(KeyboardInterrupt):
    """Ctrl-C during a run whose state is saved; the message says how to continue."""


@dataclass(frozen=True)
class Trained:
    """The result of a run.

    Attributes:
        output: the checkpoint: the best weights on the validation set, or the last ones without one.
        alpha: its fusion factors, finest first; empty for attention. `alpha_source`: how they were chosen.
        history: the scores of each validation, with its epoch; -1 where there are no objects.
        seconds: duration, including earlier parts of a resumed run.
    """

    output: Path
    alpha: tuple[float, ...]
    alpha_source: str
    history: tuple[dict[str, Any], ...]
    seconds: float


def train(config: TrainConfig) -> Trained:
    """Run a training in this process, or take part in one that torchrun distributes; see `tinydet.train.train`."""
    config = config.resolve()
    if config.threads:
        torch.set_num_threads(min(config.threads, os.cpu_count() or 1))
    processes, device = join_processes(torch_device(config.device))
    try:
        outputs = (config.output, config.json) if processes.first and not config.dry_run else ()
        outputs = (*outputs, config.preview) if processes.first else ()
        starts = [Path(name) for name in (config.init, config.weights_backbone) if name]
        data = [source.path for source in config.sources() if source is not None]
        inputs = [*data, config.scale_match, *starts]
        with claim(*outputs, inputs=inputs):
            return run(config, processes, device)
    except RuntimeError as error:
        if processes.count == 1 or ("peer" not in str(error) and "NCCL" not in str(error)):
            raise
        raise ValueError(
            f"process {processes.rank} of {processes.count} lost its connection to another process; see "
            f"that process's message, and start torchrun again with --resume ({str(error).splitlines()[0][:120]})"
        ) from error
    finally:
        leave_processes()


def run(config: TrainConfig, processes: Processes, device: torch.device) -> Trained:
    """Run one process of a training; with `config.dry_run` it ends with the plan.

    Args:
        config: resolved.
    """
    report = logger.info if processes.first else _no_report
    torch.manual_seed(config.seed)
    given = config
    source = read_source(config.init, config.network) if config.init else None
    start = source.architecture if source else None
    config, reasons = choose_network(given, device=device.type, start=start)
    check_network(config, source, device)
    train, val = load_data(config)
    if config.patience and val is None:
        raise ValueError("--patience counts validations; name a dataset to validate on with --val")
    for line in source_lines(config, train, val):
        report(line)
    tiles = training_tiles(config, train)
    config, more = choose_schedule(config, given, len(tiles))
    tiles.transform = transform_of(config)
    if config.preview and processes.first:
        write_preview(tiles, config.preview, seed=config.seed)
        report(f"wrote {config.preview}")
    statistics = count_objects(config, train, tiles) if config.salpha else None
    alpha, alpha_source = choose_alpha(config, statistics, source)
    detector_config = DetectorConfig(
        backbone=config.backbone or "",
        channels=config.channels or 0,
        norm=choose_norm(config, source),
        classes=len(train.classes),
        detector=config.network,
        fusion=config.fusion,
        options=config.options,
    )
    detector = build_detector(detector_config, alpha)
    if config.sigma_power is not None:
        initialize_sigma_power(detector.fpn, config.sigma_power)
    copied = []
    if source is not None:
        copied = initialize(detector, source, train.classes)
    elif config.weights_backbone != "none":
        detector.backbone.load_weights(config.weights_backbone or "default")
    if source is not None or config.weights_backbone != "none":
        detector.backbone.freeze(config.freeze)

    trainer = Trainer(
        detector=detector,
        tiles=tiles,
        schedule=schedule_of(config),
        checkpoint=Checkpoint(
            detector=detector_config,
            weights={},
            classes=train.classes,
            category_ids=train.category_ids,
            tile=tiles_of(config)[0],
            object_sizes=object_sizes(train, config.scales),
            alpha_source=alpha_source,
            statistics=statistics.to_json() if statistics else None,
            config={**config.record(), **record_sources(config, train, val)},
            origin={"data": data_hash(train), "code": code_state()},
        ),
        output=config.output,
        device=device,
        autocast=use_bfloat16(config.precision, device),
        logdir=config.logdir if config.tensorboard else None,
        processes=processes,
        validate_start=source is not None and not {*train.classes}.isdisjoint(source.classes or ()),
    )
    validation: Validation | None = None
    if val is not None:
        score = validation = Validation(val, device=device, processes=processes, scale=config.scales[0])
        trainer.validate = lambda detector: score(detector, trainer.checkpoint_spec())
        trainer.show = validation.show
    if config.resume:
        trainer.resume()
    elif trainer.state_path.exists() and not config.dry_run:
        report(f"note: {trainer.state_path} belongs to an unfinished run; --resume continues it, this run replaces it")
    seconds = seconds_per_step(trainer)
    validation_seconds = seconds_per_validation(trainer, val, config.scales[0]) if val else 0.0
    for line in plan_lines(
        config, trainer, train, val, statistics, alpha_source, copied, [*reasons, *more], seconds, validation_seconds
    ):
        report(line)
    if config.dry_run:
        for line in cost_lines(trainer):
            report(line)
        return _trained(trainer)
    if processes.first:  # which writes the checkpoint
        trainer.checkpoint = replace(trainer.checkpoint, domain=measure_domain(train))
    try:
        trainer.fit()
    except KeyboardInterrupt as pressed:
        message = (
            f"Interrupted after {trainer.steps_done} of {trainer.steps_done + trainer.steps_left} steps. "
            f"The same command with --resume continues from {trainer.state_path}; until then, {config.output} has the "
            "weights so far."
        )
        raise StoppedError(message if processes.first else "") from pressed
    except DivergedError as error:
        if config.json and processes.first:
            write_json(config.json, run_record(trainer, diverged=str(error)))
        raise
    if config.json and processes.first:
        write_json(config.json, run_record(trainer))
    for line in result_lines(trainer, validation):
        report(line)
    return _trained(trainer)


def tiles_of(config: TrainConfig) -> tuple[int, int]:
    """Return side and overlap of the tiles of a complete configuration, in pixels."""
    assert config.tile is not None and config.overlap is not None
    return config.tile, config.overlap


def check_network(config: TrainConfig, source: Source | None, device: torch.device) -> None:
    """Refuse a backbone that does not suit, or a detector or backbone that breaks its contract, before the work.

    Raises:
        ValueError: the backbone is unknown, or does not suit a pyramid; a rule of the contract is broken.
    """
    backbone, norm = config.backbone or "", choose_norm(config, source)
    if config.network in BUILT_IN and (backbone in TORCHVISION_BACKBONES or backbone.startswith(TIMM)):
        with torch.device("meta"):
            build_backbone(backbone, norm=norm)
        return
    network = DetectorConfig(
        backbone, config.channels or 0, norm, 2, config.network, fusion=config.fusion, options=config.options
    )
    check_contract(network, device)


def schedule_of(config: TrainConfig) -> Schedule:
    """Return the schedule of a complete configuration."""
    assert config.epochs and config.batch and config.lr and config.clip_norm is not None and config.validate_every
    return Schedule(
        config.epochs,
        config.batch,
        config.lr,
        clip_norm=config.clip_norm,
        seed=config.seed,
        validate_every=config.validate_every,
        decay=config.decay,
        ema=config.ema,
        grouped=config.group_shapes,
        patience=config.patience,
    )


def load_data(config: TrainConfig) -> tuple[Dataset, Dataset | None]:
    """Load the training and the validation dataset; without one, the built-in dataset.

    Raises:
        ValueError: a dataset is malformed, or the two have different classes.
    """
    train_source, val_source = config.sources()
    train = _chosen(config, train_source.load(categories=config.categories))
    if val_source is None:
        return train, None
    # By the names of the training classes, so that labels mean the same in both.
    return train, val_source.load(categories=train.classes, allow_absent=True)


def record_sources(config: TrainConfig, train: Dataset, val: Dataset | None) -> dict[str, Any]:
    """Return the records of the training and the validation data for the checkpoint; None: no validation."""
    folder = config.output.parent
    train_source, val_source = config.sources()
    chosen = None if config.dense is not None else train  # `train` lacks the dense images
    return {
        "train_data": train_source.to_json(folder, chosen),
        "val_data": None if val_source is None else val_source.to_json(folder, val),
    }


def training_tiles(config: TrainConfig, train: Dataset) -> TrainingTiles:
    """Return the training tiles of a run, with the flip but without `transform_of`."""
    benchmark = config.recipe == "tinyperson"  # the benchmark's own sub-images
    options: dict[str, Any] = {
        "flip": config.flip,
        "cut": partial(benchmark_tiles, max_tiles=config.max_tiles) if benchmark else None,
        "truncated": "drop" if benchmark else "ignore",
        "scales": config.scales,
        "max_tiles": config.max_tiles,
        "remedy": MORE_TILES,
    }
    if config.skip_unreadable:
        tiles: TrainingTiles = SkippingTiles(train, *tiles_of(config), warn=logger.warning, **options)
    else:
        tiles = TrainingTiles(train, *tiles_of(config), **options)
    if not config.empty_tiles:
        tiles.tiles = without_empty(tiles)
    return tiles


def transform_of(config: TrainConfig) -> Transform | None:
    """Return what a complete configuration does to a sample before the flip."""
    transforms: list[Transform] = []
    if (source := config.scale_match_source()) is not None:
        target = source.load(boxes_only=True)
        transforms.append(ScaleMatch(size_histogram(sizes_of(target.boxes[target.objects]))))
    if config.augment:
        transforms.append(Augment(config.augment, tiles_of(config)[0]))
    return chain(transforms)


def count_objects(config: TrainConfig, train: Dataset, tiles: TrainingTiles) -> FusionStatistics:
    """Count what each level learns on the tiles that the network will see, before any augmentation."""
    counting = counting_of(config.network, config.options)
    tile, overlap = tiles_of(config)
    if config.recipe == "tinyperson" or config.scales != (1.0,):
        return statistics_of_tiles(tiles, counting, alpha_range=config.alpha_range)
    return statistics_of(
        train,
        counting,
        tile=tile,
        overlap=overlap,
        alpha_range=config.alpha_range,
        max_tiles=config.max_tiles,
    )


def choose_alpha(
    config: TrainConfig, statistics: FusionStatistics | None, source: Source | None = None
) -> tuple[tuple[float, ...] | None, str]:
    """Return the fusion factors, finest first, and a description of how they were chosen.

    A run that starts from a checkpoint keeps its alpha, with which the weights were trained, unless an option sets it.
    """
    start = source.checkpoint if source else None
    edges = len(config.edges)
    if statistics is not None:
        alpha, text = tuple(statistics.alpha), f"S-alpha: computed from the training boxes ({statistics.text})"
        if config.scale_match is not None:
            text += ", before Scale Match resizes them"
    elif config.given_alpha is not None:
        alpha, text = config.given_alpha, "given with --alpha"
    elif config.fusion != "attention" and start is not None and len(start.alpha) == edges:
        mean = "the mean over the channels of " if start.detector.fusion == "channel" else ""
        alpha, text = start.alpha, f"{mean}kept from {config.init} ({start.alpha_source})"
    else:
        alpha, text = None, "1 everywhere (a conventional FPN)"
        if start is not None and start.detector.fusion == "attention" != config.fusion:
            text += f"; the attention of {config.init} is dropped"
    if start is not None and start.alpha and alpha is not None and alpha != start.alpha:
        text += f"; the weights of {config.init} were trained with {', '.join(f'{a:.3g}' for a in start.alpha)}"
    if config.fusion != "fixed":
        mean = "the mean of " if config.fusion == "one" and alpha is not None and len({*alpha}) > 1 else ""
        text = f"{config.fusion}-alpha, learned; started at {mean}{text}"
    if config.sigma_power is not None:
        text += f"; {config.sigma_power:g}-power initialization"
    return alpha, text


def choose_norm(config: TrainConfig, source: Source | None) -> Norm:
    """Return the normalization of the backbone: as configured, else as its initial weights were trained."""
    if config.norm != "auto":
        return cast(Norm, config.norm)
    if source is not None:
        return source.checkpoint.detector.norm if source.checkpoint else "frozen"
    return "batch" if config.weights_backbone == "none" else "frozen"


def object_sizes(dataset: Dataset, scales: Sequence[float] = (1.0,)) -> tuple[float, float, float]:
    """Return sqrt(w*h) of the objects at percentiles 1, 50 and 99, in pixels at all of the scales."""
    boxes = dataset.boxes[dataset.objects]
    if not len(boxes):
        raise ValueError(f"{dataset.source}: no objects to train on; choose other --categories or a higher --dense")
    sizes = np.concatenate([scale * sizes_of(boxes) for scale in scales])
    low, middle, high = np.percentile(sizes, [1, 50, 99])
    return round(float(low), 2), round(float(middle), 2), round(float(high), 2)


def use_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether to run convolutions in bfloat16: if requested, or if the hardware is faster with it."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _trained(trainer: Trainer) -> Trained:
    source, history = trainer.checkpoint.alpha_source, tuple(trainer.history)
    return Trained(trainer.output, trainer.kept_alpha or trainer.alpha, source, history, round(trainer.seconds, 1))


def _chosen(config: TrainConfig, train: Dataset) -> Dataset:
    return without_dense(train, config.dense) if config.dense is not None else train


def _no_report(line: str) -> None:
    """Only the first process reports."""
