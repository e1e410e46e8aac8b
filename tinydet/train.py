"""`python -m tinydet.train --salpha`: from annotated images to model.pth.

The fusion factors are counted from the annotations before training (Algorithm 1), live in the checkpoint, and
dissolve into the convolutions on export.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tinydet._atomic import write_json
from tinydet._command import command
from tinydet.anchors import DESIGNS
from tinydet.backbone import Norm, load_pretrained
from tinydet.checkpoint import Checkpoint
from tinydet.data.coco import Dataset, find_dataset, load_dataset
from tinydet.data.synthetic import embedded_dataset
from tinydet.data.training import TrainingTiles
from tinydet.detector import Detector, DetectorConfig, build_detector
from tinydet.evaluation.backend import detect_dataset, score_dataset
from tinydet.evaluation.protocols import choose_protocol
from tinydet.fpn import initialise_sigma_power
from tinydet.fusion import FusionStatistics
from tinydet.initial import Source, initialise, read_source
from tinydet.recipe import NEW_OPTIONS, TrainConfig, config_of, parser
from tinydet.salpha import statistics_of
from tinydet.torch_backend import TorchBackend
from tinydet.trainer import DivergedError, Schedule, Trainer, Validate

NAMES = {"retinanet": "RetinaNet", "retinanet-p3p7": "RetinaNet on P3-P7", "faster_rcnn": "Faster R-CNN"}
LONG_MINUTES = 60  # beyond it the plan names the small preset


@command("train")
def main(argv: Sequence[str] | None = None) -> int:
    args = parser().parse_args(argv)
    config = config_of(args)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    torch.manual_seed(config.seed)

    train, val = load_data(config)
    statistics = count_objects(config, train) if config.salpha else None
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
        tiles=TrainingTiles(train, config.tile, config.overlap, flip=config.flip),
        schedule=Schedule(
            config.epochs,
            config.batch,
            config.lr,
            clip_norm=config.clip_norm,
            seed=config.seed,
            validate_every=config.validate_every,
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
        ),
        output=args.output,
        device=device,
        autocast=use_bfloat16(config.precision, device),
        report=lambda line: print(line, flush=True),
        logdir=None if args.no_tensorboard else args.logdir / args.output.stem,
        new_options=NEW_OPTIONS,
    )
    if val is not None:
        trainer.validate = _validation(trainer, val, config.overlap)
    if args.resume:
        trainer.resume()
    elif trainer.state_path.exists():
        print(f"note: {trainer.state_path} is of an unfinished run; --resume goes on with it, this run replaces it")
    _print_plan(config, trainer, train, val, statistics, alpha_source, taken)
    if args.dry_run:
        return 0
    try:
        trainer.fit()
    except KeyboardInterrupt:
        print(
            f"\nInterrupted. {args.output} can be used as it is; the same command with --resume goes on from "
            f"{trainer.state_path}."
        )
        return 130
    except DivergedError as error:
        if args.json:
            write_json(args.json, run_record(trainer, diverged=str(error)))
        raise
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
        train = load_dataset(*find_dataset(embedded_dataset("train")))
        return train, load_dataset(*find_dataset(embedded_dataset("val")))
    train = load_dataset(Path(config.annotations), _path(config.images), categories=config.categories)
    if config.val_annotations is None:
        return train, None
    # By the names of the training classes, so that labels mean the same in both.
    val = load_dataset(Path(config.val_annotations), _path(config.val_images), categories=train.classes)
    return train, val


def count_objects(config: TrainConfig, train: Dataset) -> FusionStatistics:
    """The statistic of Algorithm 1 on the tiles that the network will see."""
    return statistics_of(
        train, DESIGNS[config.detector], tile=config.tile, overlap=config.overlap, alpha_range=config.alpha_range
    )


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


def _validation(trainer: Trainer, val: Dataset, overlap: int) -> Validate:
    def validate(detector: Detector) -> dict[str, Any]:
        spec = trainer.checkpoint_spec()
        backend = TorchBackend(detector, spec, device=str(trainer.device), autocast=trainer.autocast)
        found = detect_dataset(backend, val, overlap=overlap, progress=True)
        scores = score_dataset(val, found, choose_protocol("coco"))
        assert scores.precision is not None
        everything, tiny = scores.precision["all"], scores.precision["tiny"]
        metrics = {"AP50": everything[0.5].ap, "AP50-tiny": tiny[0.5].ap, "AP25-tiny": tiny[0.25].ap}
        names = scores.truth.category_names
        if len(names) > 1:
            metrics |= {f"AP50/{name}": ap for name, ap in zip(names, everything[0.5].by_class, strict=True)}
        return metrics

    return validate


def _print_plan(
    config: TrainConfig,
    trainer: Trainer,
    train: Dataset,
    val: Dataset | None,
    statistics: FusionStatistics | None,
    alpha_source: str,
    taken: Sequence[str],
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
    minutes = _seconds_per_step(trainer) * trainer.steps_left / 60
    _row(
        "plan",
        f"{config.epochs} epochs of {trainer.steps_per_epoch} steps, {config.batch} tiles a step, lr {config.lr:g}",
    )
    _row("", f"about {_duration(minutes)} to go, and the validation")
    if minutes > LONG_MINUTES and config.preset != "small":
        _row("", f"that is long: --preset small trains many times faster than {config.preset}")
    sys.stdout.flush()


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
    probe = dataclasses.replace(trainer, detector=copy.deepcopy(trainer.detector))
    samples = [trainer.tiles.sample(i, seed=0, epoch=0) for i in range(min(trainer.schedule.batch, len(trainer.tiles)))]
    probe.detector.train()
    seconds = []
    for _ in range(2):  # the first also pays for setting up kernels
        begun = time.perf_counter()
        probe.loss(samples).total().backward()
        seconds.append(time.perf_counter() - begun)
    return seconds[-1]


def _duration(minutes: float) -> str:
    return f"{minutes:.1f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def _path(text: str | None) -> Path | None:
    return Path(text) if text is not None else None


if __name__ == "__main__":
    sys.exit(main())
