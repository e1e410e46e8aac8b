"""What a training run is: presets, and the frozen configuration that they and the flags become."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from tinydet.data.coco import find_dataset
from tinydet.data.erase import DENSE
from tinydet.geometry.anchors import DESIGNS
from tinydet.models.backbone import Norm
from tinydet.models.faster_rcnn import CANONICAL_SCALE, RoIAlignRule
from tinydet.models.fpn import FUSIONS, Fusion
from tinydet.models.retinanet import HeadInit


@dataclass(frozen=True)
class Preset:
    """Defaults that belong together; every one has a flag of its own."""

    backbone: str
    channels: int
    head_convs: int
    head_init: HeadInit
    epochs: int
    batch: int
    lr: float
    clip_norm: float


FASTER_RCNN_LR = 0.01  # with the preset `paper`: the released Faster R-CNN learns at twice RetinaNet's rate
PRESETS = {
    # The released RetinaNet recipe: 2 images a step at .005, 12 epochs, no clipping.
    "paper": Preset(
        "resnet50", channels=256, head_convs=4, head_init="paper", epochs=12, batch=2, lr=0.005, clip_norm=0.0
    ),
    # For CPUs and first tries: a thin pyramid and head, since P2 is three quarters of the work.
    "small": Preset(
        "mobilenet_v2", channels=64, head_convs=2, head_init="he", epochs=12, batch=4, lr=0.02, clip_norm=10.0
    ),
}


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides what a run computes; it is kept in the checkpoint. Paths are as the user gave them."""

    annotations: str | None  # None: the embedded data
    images: str | None
    val_annotations: str | None
    val_images: str | None
    categories: tuple[str, ...] | None
    preset: str
    backbone: str
    weights_backbone: str
    freeze: int
    channels: int
    head_convs: int
    head_init: HeadInit
    salpha: bool
    alpha: tuple[float, ...] | None
    fusion: Fusion
    sigma_power: float | None
    alpha_range: tuple[float, float]
    tile: int
    overlap: int
    flip: bool
    epochs: int
    batch: int
    lr: float
    clip_norm: float
    precision: str
    validate_every: int
    seed: int
    # Options that came later, each with what it meant before, so that older runs can be resumed.
    detector: str = "retinanet"
    straddling: bool = False
    roi_rule: RoIAlignRule = "torchvision"
    canonical_scale: int = CANONICAL_SCALE
    init: str | None = None
    norm: Norm | Literal["auto"] = "auto"
    cut: Literal["grid", "benchmark"] = "grid"
    empty_tiles: bool = True
    dense: int | None = None
    scale_match: str | None = None
    augment: tuple[str, ...] = ()
    group_shapes: bool = False
    decay: Literal["steps", "cosine"] = "steps"
    ema: float = 0.0
    skip_unreadable: bool = False


NEW_OPTIONS = {
    field.name: field.default for field in dataclasses.fields(TrainConfig) if field.default is not dataclasses.MISSING
}


def config_of(args: argparse.Namespace) -> TrainConfig:
    embedded = args.data is None and args.annotations is None
    tinyperson = args.recipe == "tinyperson"
    if tinyperson and embedded:
        raise ValueError("--recipe tinyperson is for TinyPerson: name its files with --annotations and --images")
    if embedded and (args.val or args.val_annotations):
        raise ValueError("--val needs training data of yours too: name it with --data or --annotations")
    if args.data and args.annotations:
        raise ValueError(
            "--data names a folder with its own annotations; give either --data, or --annotations and --images"
        )
    if args.salpha and isinstance(args.alpha, tuple):
        raise ValueError("--salpha counts alpha from the boxes, --alpha gives it; choose one")
    if args.salpha and args.alpha == "attention":
        raise ValueError("attention makes its factors from the features and starts at 1; it has no use for --salpha")
    if args.tile % 32 or args.tile < 64:
        raise ValueError(f"--tile must be a multiple of 32 (the coarsest fused level) and at least 64, got {args.tile}")
    if not args.output.parent.is_dir() or args.output.is_dir():
        raise ValueError(f"{args.output}: --output must be a file in an existing folder")
    if args.json and (not args.json.parent.is_dir() or args.json.is_dir()):
        raise ValueError(f"{args.json}: --json must be a file in an existing folder")
    annotations, images = find_dataset(args.data) if args.data else (args.annotations, args.images)
    val_annotations, val_images = find_dataset(args.val) if args.val else (args.val_annotations, args.val_images)
    name = args.preset or ("small" if embedded else "paper")
    if tinyperson and name != "paper":
        raise ValueError(f"--recipe tinyperson is the preset paper; leave --preset {name} out")
    preset = preset_of(name, args.detector)
    _refuse_foreign_options(args)
    if args.init and args.weights_backbone:
        raise ValueError("--init brings the backbone's weights too; leave --weights-backbone out")
    if args.init and args.sigma_power is not None:
        raise ValueError("--sigma-power is how a pyramid starts anew, --init brings one that has learned; choose one")
    edges = DESIGNS[args.detector].edges
    given = args.alpha if isinstance(args.alpha, tuple) else None
    if given is not None and len(given) == 1:
        given *= len(edges)
    if given is not None and len(given) != len(edges):
        raise ValueError(
            f"{args.detector} has {len(edges)} fused edges ({', '.join(edges)}); --alpha takes one value for all of "
            f"them or one for each, got {len(given)}"
        )

    def chosen(flag: str) -> Any:
        return getattr(args, flag) if getattr(args, flag) is not None else getattr(preset, flag)

    learned = next((fusion for fusion in FUSIONS if fusion == args.alpha), None)
    return TrainConfig(
        annotations=str(annotations) if annotations else None,
        images=str(images) if images else None,
        val_annotations=str(val_annotations) if val_annotations else None,
        val_images=str(val_images) if val_images else None,
        categories=tuple(name.strip() for name in args.categories.split(",")) if args.categories else None,
        preset=name,
        backbone=chosen("backbone"),
        weights_backbone=args.weights_backbone
        or ("none" if args.init or (embedded and name == "small") else "default"),
        freeze=args.freeze,
        channels=chosen("channels"),
        head_convs=chosen("head_convs"),
        head_init=chosen("head_init"),
        salpha=args.salpha,
        alpha=given,
        fusion=learned or "fixed",
        sigma_power=args.sigma_power,
        alpha_range=args.alpha_range,
        tile=args.tile,
        overlap=args.overlap,
        flip=not args.no_flip,
        epochs=chosen("epochs"),
        batch=chosen("batch"),
        lr=chosen("lr"),
        clip_norm=chosen("clip_norm"),
        precision=args.precision,
        validate_every=args.validate_every or max(1, chosen("epochs") // 6),
        seed=args.seed,
        detector=args.detector,
        straddling=args.straddling,
        roi_rule=args.roi_align or "torchvision",
        canonical_scale=args.canonical_scale or CANONICAL_SCALE,
        init=args.init,
        norm=args.norm,
        cut="benchmark" if tinyperson else "grid",
        empty_tiles=not (args.no_empty_tiles or tinyperson),
        dense=args.dense or (DENSE if tinyperson else None),
        scale_match=str(args.scale_match) if args.scale_match else None,
        augment=args.augment,
        group_shapes=args.group_shapes or tinyperson,
        decay=args.decay,
        ema=args.ema,
        skip_unreadable=args.skip_unreadable,
    )


def preset_of(name: str, detector: str) -> Preset:
    """The defaults of a preset for a detector."""
    preset = PRESETS[name]
    if name == "paper" and detector == "faster_rcnn":
        return dataclasses.replace(preset, lr=FASTER_RCNN_LR)
    return preset


def _refuse_foreign_options(args: argparse.Namespace) -> None:
    """An option of another detector would do nothing, without a word."""
    two_stage = args.detector == "faster_rcnn"
    owner = "retinanet" if two_stage else "faster_rcnn"
    names = ("head_convs", "head_init") if two_stage else ("straddling", "roi_align", "canonical_scale")
    for name in names:
        if getattr(args, name):
            raise ValueError(f"--{name.replace('_', '-')} belongs to --detector {owner}, not to {args.detector}")
