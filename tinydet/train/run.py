"""`python -m tinydet.train --salpha`, and `train()` from Python: from annotated images to model.pth.

The fusion factors are counted from the annotations before training (Algorithm 1), live in the checkpoint, and
dissolve into the convolutions on export.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from tinydet._internal.atomic import write_json
from tinydet.data.coco import Dataset, find_dataset, load_dataset
from tinydet.data.samples import TrainingTiles
from tinydet.data.scale_match import ScaleMatch, size_histogram, sizes_of
from tinydet.data.sub_images import benchmark_tiles
from tinydet.data.synthetic import embedded_dataset
from tinydet.geometry.anchors import DESIGNS
from tinydet.models.backbone import Norm, load_pretrained
from tinydet.models.checkpoint import Checkpoint
from tinydet.models.detector import DetectorConfig, build_detector
from tinydet.models.distributed import Processes, join_processes, leave_processes
from tinydet.models.fpn import initialise_sigma_power
from tinydet.models.pretrained import Source, initialise, read_source
from tinydet.salpha.dataset import statistics_of, statistics_of_tiles
from tinydet.salpha.factors import FusionStatistics
from tinydet.train.options import RaisingParser, TrainOptions, flags_of, parser
from tinydet.train.provenance import code_state, data_hash
from tinydet.train.recipe import NEW_OPTIONS, TrainConfig, config_of
from tinydet.train.report import cost_lines, plan_lines, result_lines, run_record, seconds_per_step
from tinydet.train.sampling import without_dense, without_empty
from tinydet.train.schedule import Schedule
from tinydet.train.trainer import DivergedError, Trainer
from tinydet.train.transforms import Augment, Transform, chain
from tinydet.train.unreadable import SkippingTiles
from tinydet.train.validation import Validation

if TYPE_CHECKING:
    from typing_extensions import Unpack


class StoppedError(KeyboardInterrupt):
    """Ctrl-C in the middle of a run whose state is saved; says how it goes on."""


@dataclass(frozen=True)
class Trained:
    """What a run came to.

    Attributes:
        output: the checkpoint: the best weights on the validation set, or the last ones where there is none.
        alpha: its fusion factors, finest first, empty for attention; `alpha_source`: where they come from, in words.
        history: the scores of each validation, with its epoch; -1 where there is no object.
        seconds: that the run took, with the earlier parts of a resumed one.
    """

    output: Path
    alpha: tuple[float, ...]
    alpha_source: str
    history: tuple[dict[str, Any], ...]
    seconds: float


def train(*, report: Callable[[str], None] | None = None, **options: Unpack[TrainOptions]) -> Trained:
    """Train a detector, as `tinydet train` does.

    Args:
        report: takes the plan and the news line by line, such as `print`; None: nobody.
        options: the flags of the command by their names, `validate_every=2` for `--validate-every 2`; what is left out
            has the command's default. Lists stand for what the command takes with commas.

    Raises:
        TypeError: for an option that there is not.
        ValueError: for what the command ends with a line for: options that do not go together, faults of the data, a
            loss that is not finite any more (`tinydet.train.trainer.DivergedError`).
        OSError: where a file cannot be read or written.
        KeyboardInterrupt: on Ctrl-C. The state is saved, and the same call with `resume=True` goes on.
    """
    if unknown := sorted(options.keys() - TrainOptions.__annotations__.keys()):
        raise TypeError(f"train() has no option {unknown[0]!r}; they are named as the flags of `tinydet train --help`")
    return _train(parser(RaisingParser).parse_args(flags_of(options)), report or (lambda line: None))


def _train(args: argparse.Namespace, say: Callable[[str], None]) -> Trained:
    config = config_of(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    processes, device = join_processes(torch.device(args.device))
    try:
        return run(args, config, processes, device, say if processes.first else lambda line: None)
    except RuntimeError as error:
        if processes.count == 1 or ("peer" not in str(error) and "NCCL" not in str(error)):
            raise
        raise ValueError(
            f"process {processes.rank} of {processes.count} lost another one, whose own message says why; "
            f"mend that and start torchrun again with --resume ({str(error).splitlines()[0][:120]})"
        ) from error
    finally:
        leave_processes()


def run(
    args: argparse.Namespace,
    config: TrainConfig,
    processes: Processes,
    device: torch.device,
    say: Callable[[str], None],
) -> Trained:
    """One process of a run, from the data to the trained model; with `args.dry_run` it ends with the plan."""
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
        report=say,
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
    elif trainer.state_path.exists():
        say(f"note: {trainer.state_path} is of an unfinished run; --resume goes on with it, this run replaces it")
    seconds = seconds_per_step(trainer)
    for line in plan_lines(config, trainer, train, val, statistics, alpha_source, taken, seconds):
        say(line)
    if args.dry_run:
        for line in cost_lines(trainer):
            say(line)
        return _trained(trainer)
    try:
        trainer.fit()
    except KeyboardInterrupt as pressed:
        told = f"Interrupted. {args.output} can be used as it is; the same command with --resume goes on from "
        raise StoppedError(f"{told}{trainer.state_path}." if processes.first else "") from pressed
    except DivergedError as error:
        if args.json and processes.first:
            write_json(args.json, run_record(trainer, diverged=str(error)))
        raise
    if args.json and processes.first:
        write_json(args.json, run_record(trainer))
    for line in result_lines(trainer, val):
        say(line)
    return _trained(trainer)


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
        "truncated": "drop" if benchmark else "ignore",
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
        if config.scale_match is not None:
            told += ", before Scale Match resizes them"
    elif config.alpha is not None:
        alpha, told = config.alpha, "given with --alpha"
    elif config.fusion != "attention" and start is not None and len(start.alpha) == edges:
        mean = "the mean over the channels of " if start.detector.fusion == "channel" else ""
        alpha, told = start.alpha, f"{mean}kept from {config.init} ({start.alpha_source})"
    else:
        alpha, told = None, "1 everywhere (a conventional FPN)"
        if start is not None and start.detector.fusion == "attention" != config.fusion:
            told += f"; the attention of {config.init} is left out"
    if config.fusion != "fixed":
        mean = "the mean of " if config.fusion == "one" and alpha is not None and len({*alpha}) > 1 else ""
        told = f"{config.fusion}-alpha, learned; it started at {mean}{told}"
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
    low, middle, high = np.percentile(sizes_of(boxes), [1, 50, 99])
    return round(float(low), 2), round(float(middle), 2), round(float(high), 2)


def use_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether to run convolutions in bfloat16: where asked for, or where the hardware gains from it."""
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


def _warn(line: str) -> None:
    tqdm.write(f"tinydet train: {line}", file=sys.stderr)


def _path(text: str | None) -> Path | None:
    return Path(text) if text is not None else None
