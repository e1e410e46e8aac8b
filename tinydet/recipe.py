"""What a training run can be told: presets, flags, and the frozen configuration that they become."""

from __future__ import annotations

import argparse
import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from tinydet.anchors import DESIGNS
from tinydet.backbone import BACKBONES, Norm
from tinydet.data.coco import find_dataset
from tinydet.detector import DETECTORS
from tinydet.faster_rcnn import CANONICAL_SCALE, ROI_ALIGN_RULES, RoIAlignRule
from tinydet.fpn import FUSIONS, Fusion
from tinydet.fusion import ALPHA_RANGE
from tinydet.retinanet import HeadInit


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


NEW_OPTIONS = {
    field.name: field.default for field in dataclasses.fields(TrainConfig) if field.default is not dataclasses.MISSING
}


def config_of(args: argparse.Namespace) -> TrainConfig:
    embedded = args.data is None and args.annotations is None
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
    preset = preset_of(name, args.detector)
    _refuse_foreign_options(args)
    if args.init and args.weights_backbone:
        raise ValueError("--init brings the backbone's weights too; leave --weights-backbone out")
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


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tinydet train",
        description="Train a detector for tiny objects; --salpha counts its fusion factors from the annotations "
        "first. Without --data it trains on the embedded synthetic scenes.",
        epilog="example: python -m tinydet.train --salpha --data my/train --val my/val --categories person",
    )
    data = parser.add_argument_group("data")
    data.add_argument("--data", type=Path, metavar="DIR", help="COCO folder: annotations.json[.gz] and images/")
    data.add_argument("--val", type=Path, metavar="DIR", help="COCO folder that chooses the best weights")
    data.add_argument("--annotations", type=Path, metavar="FILE", help="instead of --data: a COCO JSON file")
    data.add_argument("--images", type=Path, metavar="DIR", help="with --annotations: where its images are")
    data.add_argument("--val-annotations", type=Path, metavar="FILE", help="instead of --val")
    data.add_argument("--val-images", type=Path, metavar="DIR", help="with --val-annotations")
    data.add_argument("--categories", metavar="A,B", help="only these categories, by name")
    data.add_argument(
        "--tile",
        type=int,
        default=640,
        help="larger images are cut into tiles of this side, in pixels (default %(default)s)",
    )
    data.add_argument(
        "--overlap",
        type=int,
        default=128,
        metavar="PX",
        help="overlap of neighbouring tiles, in pixels (default %(default)s)",
    )
    data.add_argument("--no-flip", action="store_true", help="no random horizontal flips")
    fusion = parser.add_argument_group("fusion factor")
    fusion.add_argument(
        "--salpha", action="store_true", help="count alpha from the annotations (Algorithm 1 of the paper)"
    )
    fusion.add_argument(
        "--alpha",
        type=_alpha,
        metavar="A[,A,A]|NAME",
        help="fixed alpha: one value, or one for each edge, finest first; or learned: one, three, channel or "
        "attention, which start at 1, or with --salpha at what it counts; without either flag 1 everywhere",
    )
    fusion.add_argument(
        "--alpha-range",
        type=_range,
        default=ALPHA_RANGE,
        metavar="LOW,HIGH",
        help="clamp of --salpha (default: 0.2,2.0, as in the released code)",
    )
    fusion.add_argument(
        "--sigma-power",
        type=_positive_float,
        metavar="S",
        help="initialise the pyramid with powers of S (section 3.3 of the paper, 0.5 there)",
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "--detector",
        choices=DETECTORS,
        default="retinanet",
        help="retinanet: on P2-P6, the paper's with dagger; retinanet-p3p7: on the conventional levels, with anchors "
        "as small; faster_rcnn: on P2-P6 (default %(default)s)",
    )
    model.add_argument(
        "--preset",
        choices=sorted(PRESETS),
        help="paper: ResNet-50, 256 channels, the published recipe (default with data of yours); "
        "small: MobileNetV2, 64 channels (default on the embedded data)",
    )
    model.add_argument("--backbone", choices=BACKBONES, help=f"network that gives C2..C5 ({_presets('backbone')})")
    model.add_argument(
        "--weights-backbone",
        metavar="default|none|FILE",
        help="ImageNet weights: torchvision's download, none, or a file of them; "
        "without the flag default, but none on the embedded data",
    )
    model.add_argument(
        "--init",
        metavar="coco|FILE",
        help="start from a whole detector: torchvision's download for COCO, a file of its RetinaNet or Faster R-CNN "
        "weights, or a checkpoint, also one of other classes; what does not fit starts anew and is named",
    )
    model.add_argument(
        "--norm",
        choices=("auto", *get_args(Norm)),
        default="auto",
        help="normalisation of the backbone: frozen keeps the statistics of pretrained weights, batch learns, group "
        "is for small batches without pretrained weights (default auto: frozen with pretrained weights, else batch)",
    )
    model.add_argument(
        "--freeze",
        type=int,
        default=2,
        choices=(0, 1, 2),
        help="pretrained stages that stay as they are: 0 none, 1 the stem, 2 also the stage of C2 "
        "(default %(default)s)",
    )
    model.add_argument(
        "--channels", type=_positive, metavar="N", help=f"width of pyramid and head ({_presets('channels')})"
    )
    model.add_argument(
        "--head-convs",
        type=_positive,
        choices=(1, 2, 3, 4),
        help=f"convolutions in each head tower ({_presets('head_convs')})",
    )
    model.add_argument(
        "--head-init",
        choices=("paper", "he"),
        help="how the head towers start: N(0, 0.01) as in the paper, or He's rule, which thin towers need "
        f"({_presets('head_init')}); both are RetinaNet's",
    )
    two_stage = parser.add_argument_group("Faster R-CNN")
    two_stage.add_argument(
        "--straddling",
        action="store_true",
        help="anchors that cross the tile's border learn too, as in torchvision; by default they do not, as in the "
        "paper's code",
    )
    two_stage.add_argument(
        "--roi-align",
        choices=ROI_ALIGN_RULES,
        help="torchvision: pool as torchvision's detectors do; aligned: without their half-pixel shift, and without "
        "their smallest size of one cell (default torchvision)",
    )
    two_stage.add_argument(
        "--canonical-scale",
        type=_positive,
        metavar="PX",
        help="side of the proposals that are pooled from P4; all below half of it come from P2 "
        f"(default {CANONICAL_SCALE}, so all below 112 px do)",
    )
    run = parser.add_argument_group("run")
    run.add_argument("--epochs", type=_positive, metavar="N", help=f"passes over the tiles ({_presets('epochs')})")
    run.add_argument("--batch", type=_positive, metavar="N", help=f"tiles a step ({_presets('batch')})")
    run.add_argument(
        "--lr",
        type=_positive_float,
        metavar="R",
        help=f"learning rate of one step ({_presets('lr')}; paper with faster_rcnn: {FASTER_RCNN_LR})",
    )
    run.add_argument(
        "--clip-norm", type=float, metavar="G", help=f"largest gradient norm, 0: no limit ({_presets('clip_norm')})"
    )
    run.add_argument(
        "--validate-every", type=_positive, metavar="N", help="epochs between validations (default: a sixth of all)"
    )
    run.add_argument(
        "--precision",
        choices=("auto", "bf16", "fp32"),
        default="auto",
        help="auto: bfloat16 autocast where the hardware gains from it (default %(default)s)",
    )
    run.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="torch device (default: cuda where there is one, else cpu)",
    )
    run.add_argument("--threads", type=_positive, help="CPU threads; default: all cores")
    run.add_argument("--seed", type=int, default=0, help="of weights, order and flips (default %(default)s)")
    run.add_argument("--resume", action="store_true", help="go on with an interrupted run of the same arguments")
    run.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    run.add_argument(
        "--output", type=Path, default=Path("model.pth"), metavar="FILE", help="the trained model (default %(default)s)"
    )
    run.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="also write the scores by epoch and how the run ended; a class has its own where there are several",
    )
    run.add_argument(
        "--logdir",
        type=Path,
        default=Path("runs"),
        metavar="DIR",
        help="TensorBoard logs: tensorboard --logdir runs (default %(default)s)",
    )
    run.add_argument("--no-tensorboard", action="store_true", help="write no logs")
    return parser


def _presets(field: str) -> str:
    """The defaults of a flag, as its help says them."""
    return ", ".join(f"{name}: {getattr(preset, field)}" for name, preset in PRESETS.items())


def _alpha(text: str) -> tuple[float, ...] | Fusion:
    for name in FUSIONS:
        if text == name != "fixed":
            return name
    values = _floats(text)
    if not 1 <= len(values) <= 3 or not all(map(math.isfinite, values)):
        raise argparse.ArgumentTypeError(
            f"one number, or one for each edge, finest first, such as 0.5 or 0.37,0.39,0.37; or one, three, channel, "
            f"attention; got {text!r}"
        )
    return values


def _range(text: str) -> tuple[float, float]:
    values = _floats(text)
    if len(values) != 2 or not 0 <= values[0] <= values[1] < math.inf:
        raise argparse.ArgumentTypeError(f"two numbers, 0 <= LOW <= HIGH, such as 0.2,2.0; got {text!r}")
    return values[0], values[1]


def _floats(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        return ()


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 up, got {text!r}")
    return int(text)


def _positive_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"a number above 0, got {text!r}")
    return value
