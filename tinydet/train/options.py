"""The flags of `tinydet train`, with their defaults."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, TypedDict, get_args

import torch

from tinydet._internal.arguments import positive_float, positive_int
from tinydet.data.erase import DENSE
from tinydet.models.backbone import BACKBONES, Norm
from tinydet.models.detector import DETECTORS
from tinydet.models.faster_rcnn import CANONICAL_SCALE, ROI_ALIGN_RULES
from tinydet.models.fpn import FUSIONS, Fusion
from tinydet.salpha.factors import ALPHA_RANGE
from tinydet.train.recipe import FASTER_RCNN_LR, PRESETS
from tinydet.train.transforms import AUGMENTATIONS


class TrainOptions(TypedDict, total=False):
    """The flags as options of `tinydet.train.train`, for those who check types."""

    data: str | Path
    val: str | Path
    annotations: str | Path
    images: str | Path
    val_annotations: str | Path
    val_images: str | Path
    categories: Sequence[str]
    tile: int
    overlap: int
    no_flip: bool
    no_empty_tiles: bool
    dense: int
    scale_match: str | Path
    augment: Sequence[str]
    group_shapes: bool
    skip_unreadable: bool
    salpha: bool
    alpha: float | Sequence[float] | str
    alpha_range: tuple[float, float]
    sigma_power: float
    detector: str
    preset: str
    backbone: str
    weights_backbone: str | Path
    init: str | Path
    norm: str
    freeze: int
    channels: int
    head_convs: int
    head_init: str
    straddling: bool
    roi_align: str
    canonical_scale: int
    recipe: str
    decay: str
    ema: float
    epochs: int
    batch: int
    lr: float
    clip_norm: float
    validate_every: int
    precision: str
    device: str
    threads: int
    seed: int
    resume: bool
    output: str | Path
    json: str | Path
    logdir: str | Path
    no_tensorboard: bool


class RaisingParser(argparse.ArgumentParser):
    """One that raises ValueError in place of ending the program."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def flags_of(options: TrainOptions) -> list[str]:
    """The command's arguments for some options.

    >>> flags_of({"salpha": True, "epochs": 3, "no_flip": False, "categories": ["person", "car"]})
    ['--salpha', '--epochs=3', '--categories=person,car']
    """
    flags = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            flags.append(flag)
        elif value is not None and value is not False:
            together = isinstance(value, Sequence) and not isinstance(value, str)
            flags.append(f"{flag}={','.join(map(str, value)) if together else value}")  # type: ignore[call-overload]
    return flags


def parser(kind: type[argparse.ArgumentParser] = argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser = kind(
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
    data.add_argument(
        "--no-empty-tiles",
        action="store_true",
        help="leave tiles without an object out of training, as the paper's code does",
    )
    data.add_argument(
        "--dense",
        type=positive_int,
        metavar="N",
        help="leave images with more than N annotations out of training (default: none is left out; "
        f"with --recipe tinyperson {DENSE})",
    )
    data.add_argument(
        "--scale-match",
        type=Path,
        metavar="PATH",
        help="resize each tile so that its objects become as large as those of this annotation file or COCO folder",
    )
    data.add_argument(
        "--augment",
        type=_augmentations,
        default=(),
        metavar="A,B",
        help="beyond the paper, some of: scale (0.5 to 2, with a crop), vflip and rotate (quarter turns) for pictures "
        "from straight above, photometric (default: none)",
    )
    data.add_argument(
        "--group-shapes", action="store_true", help="keep wide tiles and others in batches apart, which pads less"
    )
    data.add_argument(
        "--skip-unreadable",
        action="store_true",
        help="name an image that does not open and go on without it; by default the run stops there",
    )
    fusion = parser.add_argument_group("fusion factor")
    fusion.add_argument(
        "--salpha", action="store_true", help="count alpha from the annotations (Algorithm 1 of the paper)"
    )
    fusion.add_argument(
        "--alpha",
        type=_alpha,
        metavar="A[,A,A]|NAME",
        help="fixed alpha: one value, or one for each edge, finest first; or learned: one, three, channel or "
        "attention, which start at 1, with --salpha at what it counts (one at the mean), with --init at its own; "
        "without any of these flags 1 everywhere",
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
        type=positive_float,
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
        metavar="coco|FILE|NAME",
        help="start from a whole detector: torchvision's download for COCO, a file of its RetinaNet or Faster R-CNN "
        "weights, a checkpoint, also one of other classes, or a bundled model, as thermal; what does not fit starts "
        "anew and is named",
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
        "--channels", type=positive_int, metavar="N", help=f"width of pyramid and head ({_presets('channels')})"
    )
    model.add_argument(
        "--head-convs",
        type=positive_int,
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
        type=positive_int,
        metavar="PX",
        help="side of the proposals that are pooled from P4; all below half of it come from P2 "
        f"(default {CANONICAL_SCALE}, so all below 112 px do)",
    )
    run = parser.add_argument_group("run")
    run.add_argument(
        "--recipe",
        choices=("tinyperson",),
        help="tinyperson: the published recipe on the official files: preset paper, the benchmark's sub-images "
        "(640x512, 50 px overlap), no tiles without objects, no dense images",
    )
    run.add_argument(
        "--decay",
        choices=("steps", "cosine"),
        default="steps",
        help="of the learning rate: a tenth at 6/12 and at 10/12 of the run, or half a cosine (default %(default)s)",
    )
    run.add_argument(
        "--ema",
        type=_decay_rate,
        default=0.0,
        metavar="D",
        help="validate and keep a moving average of the weights with this decay, such as 0.999 (default: none)",
    )
    run.add_argument("--epochs", type=positive_int, metavar="N", help=f"passes over the tiles ({_presets('epochs')})")
    run.add_argument("--batch", type=positive_int, metavar="N", help=f"tiles a step ({_presets('batch')})")
    run.add_argument(
        "--lr",
        type=positive_float,
        metavar="R",
        help=f"learning rate of one step ({_presets('lr')}; paper with faster_rcnn: {FASTER_RCNN_LR})",
    )
    run.add_argument(
        "--clip-norm", type=float, metavar="G", help=f"largest gradient norm, 0: no limit ({_presets('clip_norm')})"
    )
    run.add_argument(
        "--validate-every", type=positive_int, metavar="N", help="epochs between validations (default: a sixth of all)"
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
    run.add_argument("--threads", type=positive_int, help="CPU threads; default: all cores")
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


def _augmentations(text: str) -> tuple[str, ...]:
    kinds = tuple(part.strip() for part in text.split(","))
    unknown = [kind for kind in kinds if kind not in AUGMENTATIONS]
    if unknown:
        raise argparse.ArgumentTypeError(f"some of {', '.join(AUGMENTATIONS)}; got {unknown[0]!r}")
    return kinds


def _decay_rate(text: str) -> float:
    values = _floats(text)
    if len(values) != 1 or not 0 <= values[0] < 1:
        raise argparse.ArgumentTypeError(f"a number from 0 up and below 1, such as 0.999; got {text!r}")
    return values[0]


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
