"""Recommend tile, overlap, image scale and anchors for the objects of a dataset, each with its reason in numbers.

Scale and anchors are found by a search: the objects are matched with each candidate, and a candidate is scored by the
share of objects that have an anchor with an IoU high enough to be a positive in training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.console import plural
from tinydet._internal.options import option_words
from tinydet._internal.shell import tinydet_command
from tinydet.data.coco import Dataset, read_pixels
from tinydet.data.source import DataSource
from tinydet.geometry.anchors import AnchorDesign, Pyramid
from tinydet.geometry.tiles import TileGrid
from tinydet.models.registry import DETECTORS, DetectorInfo, detector_info
from tinydet.salpha.factors import FusionStatistics
from tinydet.salpha.parity import best_anchors
from tinydet.study.dataset_measures import DatasetMeasures
from tinydet.train.config import DETECTOR, PAPER_EPOCHS
from tinydet.train.defaults import epochs_of

POSITIVE_IOU = 0.5  # IoU from which an anchor is a positive in the training of RetinaNet
SCALES = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
SIZE_FACTORS = tuple(2 ** (k / 3) for k in range(-6, 4))  # of the anchor sizes: 0.25 to 2
TILES = (512, 640, 768, 1024)
DEFAULT_TILE = 640  # of training and inference
MIN_GAIN = 0.02  # smallest gain in the share of matched objects for which a default is changed
_SAMPLE = 4000  # number of objects to match; the standard error of a share is below one percent
VALIDATION_SHARE = 0.2  # of the images, if there is no validation split
_GRAY_IMAGES = 3  # images that are read
_STEP = 32  # the overlap is a multiple of this, in pixels


@dataclass(frozen=True)
class Advice:
    """A recommended value of one setting, with the reason."""

    setting: str
    value: Any
    reason: str

    def to_json(self) -> dict[str, Any]:
        return {"value": self.value, "reason": self.reason}


def advise(measures: DatasetMeasures, design: Pyramid, detector: DetectorInfo = DETECTORS[DETECTOR]) -> list[Advice]:
    """Recommend tile, overlap and, for a design with anchors, scale and anchors; an empty list without objects."""
    if not len(measures.sizes):
        return []
    overlap = advise_overlap(measures)
    matching = advise_matching(measures, design) if isinstance(design, AnchorDesign) else []
    return [advise_tile(measures, overlap.value, detector), overlap, *matching]


def advise_alpha(statistics: FusionStatistics, init: str) -> Advice:
    """Recommend S-alpha or alpha = 1, as `tinydet train --salpha` does on the same tiles.

    Args:
        init: the advised initial weights; those of a model keep its factors.
    """
    if init != "none":
        return Advice("alpha", "kept", f"{init} was trained with its own factors; with others it starts less accurate")
    return Advice("alpha", "S-alpha" if statistics.advice.salpha else "1", statistics.advice.text)


def advise_init(dataset: Dataset) -> Advice:
    """Recommend the bundled thermal model for gray images, else the usual weights of the backbone.

    A few images are read; without them the usual weights are recommended.
    """
    usual = "the ImageNet weights of the backbone, which train loads by default; --init FILE fine-tunes a model"
    if dataset.image_dir is None:
        return Advice("init", "none", usual)
    chosen = np.unique(np.linspace(0, len(dataset.images) - 1, _GRAY_IMAGES).round().astype(int)).tolist()
    try:
        gray = all(bool((np.ptp(read_pixels(dataset, i), axis=2) <= 2).all()) for i in chosen)
    except (ValueError, OSError):  # `tinydet data check` reports it
        return Advice("init", "none", usual)
    if gray:
        return Advice("init", "thermal", "the images are gray, like the thermal frames of the bundled model")
    return Advice("init", "none", usual)


def training_part(source: DataSource, dataset: Dataset, categories: Sequence[str] | None) -> tuple[Dataset, bool]:
    """Return the images that the advised command trains on, and whether it holds out the others.

    Args:
        dataset: all images of the source.
    """
    layout = source.layout
    if source.is_builtin or layout.validation is not None or any(split.name == "val" for split in layout.splits):
        return dataset, False
    try:
        training = source.hold_out(VALIDATION_SHARE)[0].load(categories=categories)
    except ValueError:  # a single image, or a single group, cannot be divided
        return dataset, False
    return training, True


def advise_epochs(training: Dataset, tile: int, overlap: int, images: int) -> Advice:
    """Recommend the number of epochs that `tinydet train` takes by default.

    Args:
        training: the images to train on.
        images: the number of images of the whole dataset.
    """
    tiles = sum(len(TileGrid(image.width, image.height, tile, overlap)) for image in training.images)
    epochs = epochs_of(max(tiles, 1))
    size = "a small dataset" if epochs > PAPER_EPOCHS else "the paper's number, for a dataset that is not small"
    held = images - len(training.images)
    where = f"of {plural(len(training.images), 'image')} to train on" + (f", {held} are held out" if held else "")
    return Advice("epochs", epochs, f"{plural(tiles, 'tile')} of {tile} px {where}: {size}")


def training_command(
    source: DataSource,
    advice: Sequence[Advice],
    *,
    holds_out: bool,
    detector: str,
    options: Mapping[str, Any],
    categories: Sequence[str] | None,
) -> str:
    """Return the command that trains as advised, for pasting into a shell.

    Args:
        holds_out: whether it holds out a share of the images for validation.
        options: of the detector, as given.
    """
    value = {setting.setting: setting.value for setting in advice}
    words: list[str | Path] = ["train"]
    if source.path is not None:
        words += ["--annotations", source.path, "--images", source.images] if source.images else ["--data", source.path]
    if holds_out:
        words += ["--val", str(VALIDATION_SHARE)]
    for name in categories or ():
        words += ["--category", name]
    if detector != DETECTOR:
        words += ["--detector", detector]
    words += option_words(detector_info(detector).options, options)
    words += ["--tile", str(value["tile"]), "--overlap", str(value["overlap"])]
    words += ["--salpha"] if value["alpha"] == "S-alpha" else []
    words += ["--init", value["init"]] if value["init"] != "none" else []
    return tinydet_command(*words, "--epochs", str(value["epochs"]))


def advise_overlap(measures: DatasetMeasures) -> Advice:
    """Recommend the smallest multiple of 32 pixels that is at least as long as 99.5 % of the objects."""
    longest = (measures.boxes[:, 2:] - measures.boxes[:, :2]).max(axis=1)
    quantile = float(np.quantile(longest, 0.995, method="inverted_cdf"))
    overlap = max(math.ceil(quantile / _STEP) * _STEP, _STEP)
    longer = int((longest > overlap).sum())
    reason = (
        f"an object no longer than the overlap is complete in at least one tile; 99.5 % of the objects are no "
        f"longer than {quantile:.0f} px, "
        + (f"{longer:,} are longer than {overlap} px (up to {longest.max():.0f})" if longer else "none is longer")
    )
    return Advice("overlap", overlap, reason)


def advise_tile(measures: DatasetMeasures, overlap: int, detector: DetectorInfo = DETECTORS[DETECTOR]) -> Advice:
    """Recommend a single tile if every image fits into 640 pixels, else the tile size with the fewest pixels to run.

    The default of 640 is kept if it needs at most 10 % more pixels than the best size of `TILES`.
    """
    largest = int(measures.image_sizes.max())
    if largest <= DEFAULT_TILE:
        tile = detector.fit_tile(largest)
        reason = f"every image fits into one tile: no side is longer than {largest} px, so there are no seams"
        return Advice("tile", tile, reason)
    sizes, images = np.unique(measures.image_sizes, axis=0, return_counts=True)
    pixels = float((sizes.prod(axis=1) * images).sum())
    costs: dict[int, float] = {}
    for tile in map(detector.fit_tile, TILES):
        if overlap <= tile / 2:
            tiles = [len(TileGrid(width, height, tile, overlap)) for width, height in sizes.tolist()]
            costs[tile] = float((np.array(tiles) * images).sum()) * tile**2 / pixels
    if not costs:
        reason = f"the overlap of {overlap} px needs tiles of at least twice that size; consider a smaller scale"
        return Advice("tile", detector.fit_tile(2 * overlap), reason)
    best = min(costs, key=costs.__getitem__)
    usual = detector.fit_tile(DEFAULT_TILE)
    if usual in costs and costs[usual] <= costs[best] * 1.1:
        best = usual
    listed = ", ".join(f"{tile}: {cost:.2f}" for tile, cost in costs.items())
    reason = f"pixels run per image pixel with an overlap of {overlap} px, by tile size: {listed}"
    return Advice("tile", best, reason)


def advise_matching(measures: DatasetMeasures, design: AnchorDesign) -> list[Advice]:
    """Recommend the image scale at which the anchors of `design` fit, and the anchors that fit at scale 1."""
    step = max(len(measures.boxes) // _SAMPLE, 1)
    boxes, index = measures.boxes[::step], measures.image_index[::step]
    used, index = np.unique(index, return_inverse=True)
    sizes = measures.image_sizes[used]

    by_scale = {scale: matched_share(boxes, sizes, index, design, scale) for scale in SCALES}
    highest = max(by_scale.values())
    good = [scale for scale in SCALES if by_scale[scale] >= highest - MIN_GAIN]
    scale = 1.0 if 1.0 in good else min(good)
    listed = ", ".join(f"{s:g}: {share:.1%}" for s, share in by_scale.items())
    scale_reason = (
        f"share of objects with an anchor of IoU {POSITIVE_IOU} or more, by resize factor of the images: {listed}"
    )

    ratios = data_ratios(measures.ratios)
    candidates = [(factor, chosen) for factor in SIZE_FACTORS for chosen in (None, ratios)]
    shares = [matched_share(boxes, sizes, index, scaled_design(design, *candidate)) for candidate in candidates]
    default = by_scale[1.0]
    best = int(np.argmax(shares))
    if shares[best] <= default + MIN_GAIN:
        best = candidates.index((1.0, None))
        gain = f"the best of {len(candidates) - 1} alternatives gains less than {MIN_GAIN:.0%}"
        reason = f"{default:.1%} of the objects have an anchor of IoU {POSITIVE_IOU} or more; {gain}"
    else:
        reason = (
            f"{shares[best]:.1%} of the objects have an anchor of IoU {POSITIVE_IOU} or more, "
            f"{default:.1%} with the default anchors"
        )
    chosen = scaled_design(design, *candidates[best])
    value = {
        "sizes": [[round(size, 2) for size in of_level] for of_level in _sizes(chosen)],
        "ratios": list(_ratios(chosen)),
    }
    return [Advice("scale", scale, scale_reason), Advice("anchors", value, reason)]


def matched_share(
    boxes: NDArray[np.float64],
    sizes: NDArray[np.int64],
    index: NDArray[np.int64],
    design: AnchorDesign,
    scale: float = 1.0,
) -> float:
    """Return the share of objects with an anchor of IoU `POSITIVE_IOU` or more after the images are resized.

    Args:
        boxes: (M, 4) xyxy, pixels of their images.
        sizes: (I, 2) width and height of the images.
        index: (M,) image of each box.
        scale: resize factor of the images.
    """
    rescaled = np.maximum(np.round(sizes * scale), 1).astype(np.int64)
    iou = best_anchors(boxes * np.tile((rescaled / sizes)[index], 2), rescaled, design, image_index=index).iou
    return float((iou >= POSITIVE_IOU).mean())


def data_ratios(ratios: NDArray[np.float64], count: int = 3) -> tuple[float, ...]:
    """Return aspect ratios (height / width) that represent the objects: the medians of `count` groups of equal size.

    >>> data_ratios(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    (1.67, 3.0, 4.33)
    """
    middles = (np.arange(count) + 0.5) / count
    return tuple(round(value, 2) for value in np.quantile(ratios, middles).tolist())


def scaled_design(design: AnchorDesign, factor: float, ratios: Sequence[float] | None = None) -> AnchorDesign:
    """Return a design whose anchor sizes are multiplied by `factor`; `ratios` replaces its aspect ratios."""
    sizes = [[size * factor for size in of_level] for of_level in _sizes(design)]
    return AnchorDesign.from_sizes(sizes, ratios or _ratios(design), design.levels, design.strides)


def _sizes(design: AnchorDesign) -> list[list[float]]:
    """Return the distinct anchor sizes of each level, in pixels."""
    return [sorted({round(math.sqrt(w * h), 6) for w, h in shapes}) for shapes in design.shapes]


def _ratios(design: AnchorDesign) -> tuple[float, ...]:
    return tuple(sorted({round(h / w, 6) for shapes in design.shapes for w, h in shapes}))
