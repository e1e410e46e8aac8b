"""`TrainConfig`: every training option, defined once. Parser, checkpoint and documentation are derived from it."""

from __future__ import annotations

import argparse
import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tinydet._internal.arguments import (
    batch_size,
    channels,
    float_range,
    floats,
    fraction,
    names,
    names_from,
    number,
    overlap,
    positive_float,
    positive_int,
    quoted,
    scale,
    seed,
    share,
    side,
    threads,
    whole,
)
from tinydet._internal.console import listed
from tinydet._internal.input_files import check_file
from tinydet._internal.options import add_options, check_values, declared, option, option_table
from tinydet._internal.outputs import check_folder
from tinydet._internal.parser import Parser
from tinydet._internal.plugins import add_plugin_option
from tinydet.geometry.tiles import MOST_TILES
from tinydet.models.backbone_registry import check_backbone
from tinydet.models.options import FUSIONS, NORMS, TORCHVISION_BACKBONES, Fusion
from tinydet.models.registry import (
    DETECTORS,
    check_option_names,
    detector_info,
    detector_options,
    merged_options,
    recommended_options,
)
from tinydet.runtime.bundled import BUNDLED, model_path
from tinydet.salpha.factors import ALPHA_RANGE

if TYPE_CHECKING:
    from tinydet.data.source import DataSource

MOST_FOLDS = 1000
DENSE = 200  # annotations; the authors' code leaves images with more out of training
LARGEST_ALPHA = 1000  # far beyond any use
AUGMENTATIONS = ("scale", "vflip", "rotate", "photometric", "gamma", "polarity", "sharpness", "noise")
# Names for several of them: what changes between two flights or cameras, for color and for thermal images.
BUNDLES = {
    "strong": ("scale", "photometric", "gamma", "sharpness", "noise"),
    "thermal": ("scale", "photometric", "gamma", "polarity", "sharpness", "noise"),
}
SMALL_AUGMENT = ("photometric",)  # of small datasets; measured in docs/training.md
DETECTOR, TILE, OVERLAP = "retinanet", 640, 128
PAPER_EPOCHS = 12
# The options that a tile filter has, too.
FILTER_OPTIONS = (
    *("filter", "filter_recall", "data", "val", "val_seed", "group_by", "annotations", "images", "val_annotations"),
    *("val_images", "tile", "overlap", "scales", "flip", "augment", "max_tiles", "skip_unreadable", "epochs", "batch"),
    *("lr", "seed", "device", "threads", "resume", "dry_run", "output"),
)

# The detector of a preset, where it is another one than DETECTOR; measured in docs/detectors.md.
PRESET_DETECTORS = {"small": "fcos", "nano": "fcos"}
# Other defaults that belong together. Detectors override some of them, see `DetectorInfo.recipe`.
PRESETS: dict[str, dict[str, Any]] = {
    # The authors' RetinaNet recipe.
    "paper": {"backbone": "resnet50", "channels": 256, "batch": 2, "lr": 0.005, "clip_norm": 0.0},
    # For CPUs and first tries: a thin pyramid and head, because P2 is three quarters of the work.
    "small": {"backbone": "mobilenet_v2", "channels": 64, "batch": 4, "lr": 0.02, "clip_norm": 10.0},
    # For fast inference on CPUs: pyramid and head are so thin that the backbone is most of the work.
    "nano": {"backbone": "mobilenet_v2", "channels": 32, "batch": 4, "lr": 0.02, "clip_norm": 10.0},
}


def _alpha(text: str) -> tuple[float, ...] | str:
    if text in FUSIONS and text != "fixed":
        return text
    try:
        values = floats(text)
    except argparse.ArgumentTypeError:
        values = ()
    if not 1 <= len(values) <= 3 or max(map(abs, values)) > LARGEST_ALPHA:
        raise argparse.ArgumentTypeError(
            "expected one number, or one per edge, finest first, such as 0.5 or 0.37,0.39,0.37; or "
            f"{', '.join(kind for kind in FUSIONS if kind != 'fixed')}; got {quoted(text)}"
        )
    return values


def _backbone(text: str) -> str:
    try:
        return check_backbone(text)
    except (ValueError, ImportError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _val(text: str) -> Path | float:
    try:
        value = float(text)
    except ValueError:
        if text.endswith("%") and not Path(text).exists():
            share(text)  # raises, with a suggestion
        return Path(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(
            f"expected a dataset (./NAME if its name is a number), or a share between 0 and 1; got {quoted(text)}"
        )
    return value


def _scales(text: str) -> tuple[float, ...]:
    return tuple(dict.fromkeys(scale(part) for part in text.split(",")))


def _fold(text: str) -> tuple[int, int]:
    number, separator, count = text.partition("/" if "/" in text else ",")
    if separator and number.strip().isdecimal() and count.strip().isdecimal():
        fold = int(number), int(count)
        if 2 <= fold[1] <= MOST_FOLDS and 1 <= fold[0] <= fold[1]:
            return fold
    raise argparse.ArgumentTypeError(
        f"expected K/N, fold K of N folds, with 2 <= N <= {MOST_FOLDS} and 1 <= K <= N, such as 1/5; got {quoted(text)}"
    )


def _augmentations(text: str) -> tuple[str, ...]:
    return names_from((*AUGMENTATIONS, *BUNDLES))(text) if text not in ("", "none") else ()


def _alpha_range(text: str) -> tuple[float, float]:
    low, high = float_range(text)
    if not 0 <= low <= high <= LARGEST_ALPHA:
        raise argparse.ArgumentTypeError(
            f"expected two numbers, 0 <= LOW <= HIGH <= {LARGEST_ALPHA}, such as 0.2,2; got {quoted(text)}"
        )
    return low, high


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that a training run can be asked for, as values.

    Fields left at None get their default from the preset and the detector when the run starts. `options` are the
    detector's own options by name, such as {"head_convs": 2}.

    Raises:
        ValueError: a value is out of range.
    """

    data: Path | None = option(
        None,
        "dataset to train on: a folder, a data.yaml or a COCO file; its layout is recognized, and of several splits "
        "train is taken (default: the built-in dataset)",
        group="data",
        metavar="PATH",
        recorded=False,
    )
    val: Path | float | None = option(
        None,
        "dataset to validate on, or the share of the training images to hold out for it, such as 0.2; the weights with "
        "the best AP50 are kept (default: the split val of --data, if it has one)",
        group="data",
        metavar="PATH|SHARE",
        parse=_val,
        recorded=False,
    )
    val_seed: int = option(
        0,
        "seed of the choice that --val SHARE or --fold makes (default: %(default)s)",
        group="data",
        metavar="N",
        parse=seed,
        recorded=False,
    )
    fold: tuple[int, int] | None = option(
        None,
        "hold out fold K of N for validation, instead of --val; the N runs of a cross-validation hold out each image "
        "once, and images of one group never apart (tinydet crossval makes all runs)",
        group="data",
        metavar="K/N",
        parse=_fold,
        recorded=False,
    )
    group_by: str | None = option(
        None,
        "with --val SHARE or --fold, which images belong together and are held out together: a field of the COCO "
        "images, such as date_captured, or a regular expression on the file name, such as '^[^_]+' (default: videos, "
        "flights and folders by file name)",
        group="data",
        metavar="FIELD|REGEX",
        recorded=False,
    )
    annotations: Path | None = option(
        None, "COCO JSON file, instead of --data", group="data", metavar="FILE", recorded=False
    )
    images: Path | None = option(
        None, "image folder of --annotations or --data", group="data", metavar="DIR", recorded=False
    )
    val_annotations: Path | None = option(
        None, "COCO JSON file, instead of --val", group="data", metavar="FILE", recorded=False
    )
    val_images: Path | None = option(
        None, "image folder of --val-annotations or --val", group="data", metavar="DIR", recorded=False
    )
    categories: tuple[str, ...] | None = option(
        None,
        "train on these categories only, by name; for names with commas use --category (default: all)",
        group="data",
        metavar="A,B",
        parse=names,
    )
    tile: int | None = option(
        None,
        "side in pixels of the tiles that images are cut into, a multiple of 32 (Libra R-CNN: 64) (default: that "
        "of --init, else 640)",
        group="data",
        metavar="PX",
        parse=side,
    )
    overlap: int | None = option(
        None,
        "overlap of neighboring tiles in pixels (default: that of --init, else 128, at most half a tile)",
        group="data",
        metavar="PX",
        parse=overlap,
    )
    scales: tuple[float, ...] = option(
        (1.0,),
        "cut tiles at each of these scales of the images, such as 1,2, all of them in every epoch; 2 enlarges windows "
        "of half a tile, for objects of few pixels that infer --scale 2 shall find; validation uses the first one "
        "(default: 1)",
        group="data",
        metavar="S,S",
        parse=_scales,
    )
    flip: bool = option(True, "do not flip tiles horizontally at random", group="data")
    empty_tiles: bool = option(True, "do not train on tiles without objects, like the authors' code", group="data")
    dense: int | None = option(
        None,
        f"do not train on images with more than N annotations (default: no limit; --recipe tinyperson: {DENSE})",
        group="data",
        metavar="N",
    )
    scale_match: Path | None = option(
        None,
        "resize tiles at random to match the object sizes of this COCO file or folder (Scale Match)",
        group="data",
        metavar="PATH",
    )
    augment: tuple[str, ...] | None = option(
        None,
        "additional augmentations: scale (0.5 to 2, with a crop), vflip and rotate (by right angles; for images "
        "taken from straight above), photometric (brightness, contrast, color), gamma, polarity (white-hot and "
        "black-hot; for thermal images), sharpness (blur or sharpen), noise; "
        f"{'; '.join(f'{name}: {listed(kinds)}' for name, kinds in BUNDLES.items())}; or none (default: "
        f"{','.join(SMALL_AUGMENT)} for small datasets, else none)",
        group="data",
        metavar="A,B",
        parse=_augmentations,
    )
    group_shapes: bool = option(
        False, "batch wide tiles separately from the others, which needs less padding", group="data"
    )
    max_tiles: int = option(
        MOST_TILES,
        f"refuse datasets of more tiles before training (default: {MOST_TILES})",
        group="data",
        metavar="N",
        parse=positive_int,
        recorded=False,
    )
    skip_unreadable: bool = option(
        False, "skip images that cannot be read, with a warning (default: stop)", group="data"
    )

    salpha: bool = option(
        False,
        "compute alpha from the annotations before training (S-alpha, Algorithm 1 of the paper). The presets small and "
        "nano do so by themselves, unless --detector, --assign, --alpha, --sigma-power or --init is given",
        group="fusion factor",
    )
    alpha: tuple[float, ...] | float | str | None = option(
        None,
        "fixed alpha: one value, or one per edge, finest first; or learned alpha: one, three, channel or attention, "
        "which start at 1, at the value of --salpha, or at that of --init (default: 1 everywhere)",
        group="fusion factor",
        metavar="A[,A,A]|NAME",
        parse=_alpha,
    )
    alpha_range: tuple[float, float] = option(
        ALPHA_RANGE,
        "limits of the alpha that --salpha computes (default: %(default)s, as in the authors' code)",
        group="fusion factor",
        metavar="LOW,HIGH",
        parse=_alpha_range,
    )
    sigma_power: float | None = option(
        None,
        "initialize the pyramid with powers of S, as in section 3.3 of the paper, which uses 0.5 (default: off)",
        group="fusion factor",
        metavar="S",
        parse=positive_float,
    )

    detector: str | None = option(
        None,
        f"network: {', '.join(f'{name} ({info.label})' for name, info in DETECTORS.items())} (default: that of --init, "
        f"else that of the preset: {', '.join(f'{each}: {PRESET_DETECTORS.get(each, DETECTOR)}' for each in PRESETS)})",
        group="model",
        choices=DETECTORS.keys(),  # a view, so that a detector that registers itself later is accepted
    )
    preset: str | None = option(
        None,
        "paper: ResNet-50, 256 channels, the authors' recipe; small: MobileNetV2, 64 channels, for CPUs; nano: "
        "MobileNetV2, 32 channels, shorter heads, for fast inference (default: that of --init, else paper "
        "on a GPU, small on a CPU and for the built-in dataset)",
        group="model",
        choices=tuple(PRESETS),
    )
    backbone: str | None = option(
        None,
        f"backbone: {', '.join(TORCHVISION_BACKBONES)}; or a network of timm, such as timm:efficientnet_lite0 "
        "(default: that of --init, else %(default)s)",
        group="model",
        metavar="NAME",
        parse=_backbone,
    )
    weights_backbone: str | None = option(
        None,
        "ImageNet weights of the backbone: default downloads torchvision's or timm's, none starts from random weights, "
        "FILE loads a copy (default: default; none for the built-in dataset)",
        group="model",
        metavar="default|none|FILE",
    )
    init: str | None = option(
        None,
        "start from a whole detector: coco downloads torchvision's COCO weights, FILE is a checkpoint or a file of "
        "torchvision's weights, NAME a bundled model such as thermal; detector, backbone, channels, options and tile "
        "are those of the weights unless given; layers that do not fit are listed and start from random weights "
        "(default: none)",
        group="model",
        metavar="coco|FILE|NAME",
    )
    norm: str = option(
        "auto",
        "normalization of the backbone: frozen keeps pretrained statistics, batch learns them, group is for small "
        "batches without pretrained weights, auto is frozen with pretrained weights and else batch (default: "
        "%(default)s)",
        group="model",
        choices=("auto", *NORMS),
    )
    freeze: int = option(
        2,
        "pretrained stages that are not trained: 0 none, 1 the stem, 2 also the stage of C2 (default: %(default)s)",
        group="model",
        choices=(0, 1, 2),
        parse=whole(0, 2),
    )
    channels: int | None = option(
        None,
        "channels of pyramid and head (default: those of --init, else %(default)s)",
        group="model",
        metavar="N",
        parse=channels,
    )
    options: Mapping[str, Any] = field(default_factory=dict)

    filter: str | None = option(
        None,
        "train a tile filter for this detector (a checkpoint, an exported model or a bundled one) in place of a "
        "detector, for infer --skip learned; data, tile and scale are those of the checkpoint unless given, and --val "
        "calibrates the filter; written to MODEL.filter.pth unless --output is given (default: none)",
        group="tile filter",
        metavar="MODEL",
    )
    filter_recall: float = option(
        0.995,
        "share of the objects that the tile filter must keep, proven on the held-out images with 95 %% confidence "
        "(default: %(default)s)",
        group="tile filter",
        metavar="R",
        parse=fraction,
    )

    recipe: str | None = option(
        None,
        "tinyperson: the authors' recipe on the official files: preset paper, the benchmark's sub-images (640x512, "
        "50 px overlap), no tiles without objects, no dense images (default: none)",
        group="schedule",
        choices=("tinyperson",),
    )
    epochs: int | None = option(
        None,
        f"passes over the training tiles (default: {PAPER_EPOCHS}; more for small datasets)",
        group="schedule",
        metavar="N",
        parse=whole(1, 1_000_000),
    )
    batch: int | None = option(
        None, "tiles per step (default: %(default)s)", group="schedule", metavar="N", parse=batch_size
    )
    lr: float | None = option(
        None, "learning rate (default: %(default)s)", group="schedule", metavar="R", parse=number(0, 1e6, above=True)
    )
    decay: Literal["steps", "cosine"] = option(
        "steps",
        "learning rate schedule: steps divides by 10 at 6/12 and 10/12 of the run, cosine falls to 0 (default: "
        "%(default)s)",
        group="schedule",
        choices=("steps", "cosine"),
    )
    clip_norm: float | None = option(
        None,
        "clip the gradient norm at G, 0: no clipping (default: %(default)s)",
        group="schedule",
        metavar="G",
        parse=number(0, 1e9),
    )
    ema: float = option(
        0.0,
        "validate and keep a moving average of the weights, which spans the last 1/(1 - D) steps, such as 0.999, and "
        "at most about a tenth of the steps so far (default: off)",
        group="schedule",
        metavar="D",
        parse=fraction,
    )
    validate_every: int | None = option(
        None,
        "epochs between validations (default: a sixth of all epochs; with --patience a 24th)",
        group="schedule",
        metavar="N",
        parse=whole(1, 1_000_000),
    )
    patience: int | None = option(
        None,
        "stop early after N validations without a better AP50 (default: off, because scores often rise again when the "
        "learning rate falls)",
        group="schedule",
        metavar="N",
        parse=whole(1, 1_000_000),
    )
    seed: int = option(
        0, "seed of weights, order and augmentation (default: %(default)s)", group="schedule", metavar="N", parse=seed
    )

    precision: Literal["auto", "bf16", "fp32"] = option(
        "auto",
        "auto: bfloat16 autocast where the hardware is faster with it (default: %(default)s)",
        group="run",
        choices=("auto", "bf16", "fp32"),
    )
    device: str | None = option(
        None, "torch device (default: cuda if available, else cpu)", group="run", metavar="D", recorded=False
    )
    threads: int | None = option(
        None, "CPU threads (default: all cores)", group="run", metavar="N", parse=threads, recorded=False
    )
    resume: bool = option(
        False, "continue an interrupted run that was started with the same options", group="run", recorded=False
    )
    preview: Path | None = option(
        None,
        "write a PNG of 8 training tiles as the network receives them, with objects in green and ignore regions in "
        "orange; with --dry-run nothing else is written",
        group="run",
        metavar="FILE",
        recorded=False,
    )
    dry_run: bool = option(False, "print the plan and its costs, then stop", group="run", recorded=False)
    output: Path = option(
        Path("model.pth"),
        "where to write the trained model (default: %(default)s)",
        group="run",
        metavar="FILE",
        recorded=False,
    )
    json: Path | None = option(
        None,
        "also write the scores of every validation and how the run ended",
        group="run",
        metavar="FILE",
        recorded=False,
    )
    logdir: Path = option(
        Path("runs"),
        "TensorBoard logs; view with: tensorboard --logdir runs (default: %(default)s)",
        group="run",
        metavar="DIR",
        recorded=False,
    )
    tensorboard: bool = option(True, "write no TensorBoard logs", group="run", recorded=False)

    def __post_init__(self) -> None:
        check_values(self)
        if self.augment is not None:
            object.__setattr__(self, "augment", expand_bundles(self.augment))
        if not isinstance(self.options, Mapping) or not all(isinstance(name, str) for name in self.options):
            raise ValueError(f"options: expected a dict of option names and values, got {quoted(self.options)}")
        if self.detector or not self.init:  # otherwise the weights decide
            object.__setattr__(self, "options", self._checked_options())

    def _checked_options(self) -> dict[str, Any]:
        """Return the options as their types; without a preset yet, the values must suit one of the presets.

        Raises:
            ValueError: the detector has no such option, or a value is out of range or contradicts another.
        """
        errors = []
        for preset in [self.preset] if self.preset else PRESETS:
            detector = self.detector or PRESET_DETECTORS.get(preset, DETECTOR)
            try:
                check_option_names(detector, self.options)
                options = merged_options(recommended_options(detector, preset), self.options)
                checked = detector_options(detector, options)
                return {name: checked[name] for name in self.options}
            except ValueError as error:
                errors.append(error)
        raise errors[0]

    @property
    def filter_output(self) -> Path:
        """Where a tile filter is written: `output`, or next to the detector if that is left at its default."""
        if self.output != Path("model.pth") or self.filter is None:
            return self.output
        name = Path(self.filter)
        return Path(f"{name.stem}.filter.pth") if self.filter in BUNDLED else name.with_name(f"{name.stem}.filter.pth")

    @property
    def network(self) -> str:
        """Name of the detector."""
        return self.detector or PRESET_DETECTORS.get(self.preset or "", DETECTOR)

    @property
    def built_in(self) -> bool:
        """Whether it trains on the built-in dataset."""
        return self.data is None and self.annotations is None

    @property
    def fusion(self) -> Fusion:
        """Where the fusion factors come from: "fixed", or the name of a learned kind."""
        return next((kind for kind in FUSIONS if kind == self.alpha), "fixed")

    @property
    def given_alpha(self) -> tuple[float, ...] | None:
        """The factors given with `alpha`, one per edge, finest first; None: not given."""
        if self.alpha is None or isinstance(self.alpha, str):
            return None
        assert isinstance(self.alpha, tuple)  # a single number was converted
        return self.alpha * len(self.edges) if len(self.alpha) == 1 else self.alpha

    @property
    def edges(self) -> tuple[str, ...]:
        """Names of the detector's fused edges, finest first."""
        return detector_info(self.network).pyramid.edges

    def resolve(self) -> TrainConfig:
        """Return the configuration with its datasets found and the options of its recipe filled in.

        The defaults that depend on the device, on the data and on the weights of `init` follow in
        `tinydet.train.defaults`.

        Raises:
            ValueError: options contradict each other, or name places that cannot be written.
        """
        if self.filter is not None:
            self._check_filter(self.filter)
            return self
        if self.filter_recall != TrainConfig.filter_recall:
            raise ValueError("--filter-recall is for a tile filter; add --filter MODEL")
        tinyperson = self.recipe == "tinyperson"
        self._check(self.built_in)
        self.sources()  # refuses data that are not there
        self.scale_match_source()
        return dataclasses.replace(
            self,
            empty_tiles=self.empty_tiles and not tinyperson,
            dense=self.dense or (DENSE if tinyperson else None),
            group_shapes=self.group_shapes or tinyperson,
        )

    def sources(self) -> tuple[DataSource, DataSource | None]:
        """Return where the training data and the validation data are; None: train without validation.

        Raises:
            ValueError: a dataset does not exist or is not recognized.
        """
        # Reads images: too slow to import for --help.
        from tinydet.data.source import builtin_source, find_source, validation_of

        if self.data is None and self.annotations is None:
            return builtin_source("train"), builtin_source("val")
        train = find_source(self.data, self.annotations, self.images, prefer=("train",), needs_images=True)
        if self.fold is not None or isinstance(self.val, float):
            share = self.val if isinstance(self.val, float) else None
            parts = train.hold_out(share, self.val_seed, fold=self.fold, group_by=self.group_by)
            parts[1].held_groups()  # refuses groups that cannot be divided
            return parts
        if self.val is None and self.val_annotations is None:
            return train, validation_of(train)
        prefer = ("val", "test")
        return train, find_source(self.val, self.val_annotations, self.val_images, prefer=prefer, needs_images=True)

    def scale_match_source(self) -> DataSource | None:
        """Return the dataset whose object sizes Scale Match imitates; None without Scale Match.

        Raises:
            ValueError: it does not exist or is not recognized.
        """
        from tinydet.data.source import find_source

        return None if self.scale_match is None else find_source(self.scale_match, prefer=("train",))

    def record(self) -> dict[str, Any]:
        """Return what decides the results of a resolved configuration, as plain values for a checkpoint."""
        names = [each.name for each in dataclasses.fields(self) if each.metadata.get("recorded", True)]
        values = {name: getattr(self, name) for name in names}
        return {
            name: str(value) if isinstance(value, Path) else dict(value) if isinstance(value, Mapping) else value
            for name, value in values.items()
        }

    def _check(self, built_in: bool) -> None:
        """Refuse combinations that mean nothing."""
        if self.recipe == "tinyperson" and built_in:
            raise ValueError("--recipe tinyperson is for TinyPerson: name its files with --annotations and --images")
        if built_in and (self.val or self.val_annotations or self.fold):
            flag = "--fold" if self.fold else "--val"
            raise ValueError(f"{flag} needs training data of yours too: name it with --data or --annotations")
        if self.fold and (self.val is not None or self.val_annotations):
            raise ValueError("--fold holds images of --data out, --val gives other images; choose one")
        if self.group_by and not (self.fold or isinstance(self.val, float)):
            raise ValueError("--group-by groups the images to hold out; add --val SHARE or --fold K/N")
        if self.images is not None and built_in:
            raise ValueError("--images is the image folder of --annotations; name both")
        if self.val_images is not None and self.val_annotations is None and not isinstance(self.val, Path):
            raise ValueError("--val-images is the image folder of --val-annotations; name both")
        if self.salpha and self.given_alpha is not None:
            raise ValueError("--salpha computes alpha from the boxes, --alpha gives it; choose one")
        if self.salpha and self.alpha == "attention":
            raise ValueError("attention computes alpha from the features and starts at 1; leave --salpha out")
        if self.recipe == "tinyperson" and self.scales != (1.0,):
            raise ValueError("--recipe tinyperson has the benchmark's sub-images at scale 1; leave --scales out")
        if self.recipe == "tinyperson" and self.preset not in (None, "paper"):
            raise ValueError(f"--recipe tinyperson uses the preset paper; leave --preset {self.preset} out")
        self.check_tile()
        for flag, path in (("--output", self.output), ("--json", self.json), ("--preview", self.preview)):
            if path is not None and path.is_dir():
                raise ValueError(f"{path} is a folder; {flag} names a file")
            if path is not None:
                check_folder(path.parent, path)
        if self.preview is not None and self.preview.suffix.lower() != ".png":
            raise ValueError(f"--preview {self.preview}: the preview is a PNG image; name a file that ends in .png")
        check_folder(self.logdir)
        if self.init and self.weights_backbone:
            raise ValueError("--init brings the weights of the backbone too; leave --weights-backbone out")
        if self.weights_backbone not in (None, "default", "none") and not Path(self.weights_backbone).is_file():
            raise ValueError(
                f"{self.weights_backbone}: no such file; --weights-backbone takes default, none or a file of weights"
            )
        if self.init and self.sigma_power is not None:
            raise ValueError("--sigma-power initializes the pyramid, --init loads a trained one; choose one")
        if self.detector or not self.init:
            self.check_alpha()

    def _check_filter(self, model: str) -> None:
        """Refuse what a tile filter does not use, and paths that are wrong."""
        for each in dataclasses.fields(self):
            if each.name not in FILTER_OPTIONS and each.metadata and getattr(self, each.name) != each.default:
                raise ValueError(f"--{each.name.replace('_', '-')} is not an option of a tile filter; leave it out")
        if self.options:
            raise ValueError(f"--{next(iter(self.options)).replace('_', '-')} is an option of a detector; leave it out")
        path = model_path(model, ".pth")
        check_file(path, "--filter names the detector: a checkpoint, an exported model or a bundled one")
        if path.suffix not in (".pth", ".pt") and self.built_in:
            raise ValueError(f"{path} does not say where its training data are; name them with --data and --val")
        if self.built_in and (self.val or self.val_annotations or self.images):
            raise ValueError("--val and --images need training data of yours too: name them with --data")
        output = self.filter_output
        if output.is_dir():
            raise ValueError(f"{output} is a folder; --output names a file")
        if output.exists() and output.samefile(path):
            raise ValueError(f"{output} is the detector itself; name another --output")
        check_folder(output.parent, output)
        if not self.built_in:
            self.sources()

    def check_tile(self) -> None:
        """Raise ValueError if the detector does not take tiles of this size."""
        if self.tile is not None:
            detector_info(self.network).check_tile(self.tile, "--tile")

    def check_alpha(self) -> None:
        """Raise ValueError if `alpha` has another number of values than the detector has fused edges."""
        given, edges = self.given_alpha, self.edges
        if given is not None and len(given) != len(edges):
            raise ValueError(
                f"{self.network} has {len(edges)} fused edges ({', '.join(edges)}); --alpha takes one value for all "
                f"of them or one per edge, got {len(given)}"
            )


def expand_bundles(names: Sequence[str]) -> tuple[str, ...]:
    """Return augmentations with `BUNDLES` replaced by what they contain, in the order of `AUGMENTATIONS`.

    Raises:
        ValueError: unknown name.

    >>> expand_bundles(["strong", "vflip"])
    ('scale', 'vflip', 'photometric', 'gamma', 'sharpness', 'noise')
    """
    chosen = {kind for name in names for kind in BUNDLES.get(name, (name,))}
    if unknown := sorted(chosen.difference(AUGMENTATIONS)):
        known = ", ".join((*AUGMENTATIONS, *BUNDLES))
        raise ValueError(f"unknown augmentation {unknown[0]!r}; choose from {known}")
    return tuple(kind for kind in AUGMENTATIONS if kind in chosen)


def parser() -> Parser:
    """Return the parser of `tinydet train`: one flag per field of `TrainConfig` and per option of a detector."""
    parser = Parser(
        "train",
        positional="--data",
        examples=("my/train --val my/val --salpha", "my/train --val my/val --categories person --preset small"),
        description="Train a detector for tiny objects. With --salpha its fusion factors are computed from the "
        "annotations first. With no arguments, train uses a built-in synthetic dataset.",
    )
    add_options(parser, TrainConfig, defaults=_preset_defaults())
    model = next(group for group in parser._action_groups if group.title == "model")
    add_plugin_option(model)
    data = next(group for group in parser._action_groups if group.title == "data")
    data.add_argument(
        "--category",
        action="append",
        default=argparse.SUPPRESS,
        metavar="NAME",
        help="train on this category, by its exact name; can be repeated",
    )
    for options, owners in _detector_options().items():
        title = f"options of {listed(owners)}"
        add_options(parser, options, group=title, defaults=_preset_defaults(owners))
    return parser


def config_of(argv: Sequence[str] | None) -> TrainConfig:
    """Parse command-line arguments into a configuration."""
    values = vars(parser().parse_args(argv))
    values.pop("plugin", None)  # imported before the parser was made
    names = {each.name for each in dataclasses.fields(TrainConfig)}
    if exact := values.pop("category", None):
        values["categories"] = (*values.get("categories", ()), *exact)
    options = {name: values.pop(name) for name in list(values) if name not in names}
    return TrainConfig(**values, options=options)


def options_table() -> str:
    """Return all options as Markdown tables by group, for docs/training.md."""
    groups = dict.fromkeys(each.metadata["group"] for each in dataclasses.fields(TrainConfig) if each.metadata)
    parts = [
        f"### {group.capitalize()}\n\n{option_table(TrainConfig, _preset_defaults(), group=group)}" for group in groups
    ]
    for options, owners in _detector_options().items():
        defaults = _preset_defaults(owners)
        title = listed([f"`{name}`" for name in owners])
        parts.append(f"### Options of {title}\n\n{option_table(options, defaults)}")
    return "\n".join(parts)


def _detector_options() -> dict[type[Any], list[str]]:
    """Return the dataclasses that declare options of detectors, bases first, with the detectors that have them."""
    owners: dict[type[Any], list[str]] = {}
    for name, info in DETECTORS.items():
        for options in reversed(info.options.__mro__):
            if dataclasses.is_dataclass(options) and declared(options):
                owners.setdefault(options, []).append(name)
    return owners


def _preset_defaults(detectors: Sequence[str] = ()) -> dict[str, str]:
    """The text for defaults that depend on preset and detector, such as `paper: 0.005, small: 0.02`, by field.

    Args:
        detectors: those whose options are meant; empty: the fields of the presets.
    """
    texts = {}
    for name in DETECTORS[detectors[0]].option_names if detectors else PRESETS["paper"]:
        usual: dict[str, Any] = {}
        others: dict[tuple[Any, tuple[str, ...]], list[str]] = {}  # presets by value and detectors
        for preset, values in PRESETS.items():
            chosen = {}
            for key, info in DETECTORS.items():
                if not detectors:
                    chosen[key] = info.recipe.get(preset, {}).get(name, values[name])
                elif key in detectors and name in info.option_names:
                    chosen[key] = info.recipe.get(preset, {}).get(name, getattr(info.options(), name))
            usual[preset] = Counter(chosen.values()).most_common(1)[0][0] if detectors else values[name]
            for value in dict.fromkeys(chosen.values()):
                if value != usual[preset]:
                    who = tuple(key for key in chosen if chosen[key] == value)
                    others.setdefault((value, who), []).append(preset)
        if len(set(usual.values())) == 1:
            parts = [f"{usual['paper']}"]
        else:
            parts = [f"{preset}: {value}" for preset, value in usual.items()]
        for (value, who), presets in others.items():
            where = "" if len(presets) == len(PRESETS) else f"{listed(presets)} with "
            parts.append(f"{where}{listed(list(who))}: {value}")
        if not detectors or len(parts) > 1:
            texts[name] = ", ".join(parts)
    return texts
