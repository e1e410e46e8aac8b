"""`tinydet data scale-match`: resize images so that their objects match the object sizes of another dataset.

Scale Match and Monotone Scale Match prepare a dataset for pretraining, for example COCO with the sizes of TinyPerson.
The size of an object is sqrt(width * height).

Source: Yu et al., "Scale Match for Tiny Person Detection", WACV 2020, and `scale_match.py` of ucas-vg/TinyBenchmark.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tinydet._internal.arguments import float_range, scale, seed, whole
from tinydet._internal.console import plural
from tinydet._internal.outputs import check_output_files
from tinydet.data.coco import Dataset
from tinydet.data.coco_file import Document, boxes_of, is_ignored, write_document
from tinydet.data.dataset_arguments import add_source_arguments, source_of
from tinydet.data.output_folder import choose_output, is_annotation_file
from tinydet.data.resample import FILTERS, Filter, resample
from tinydet.data.rescale import by_factor, resize_document, write_rescaled
from tinydet.data.samples import Sample
from tinydet.data.source import find_source
from tinydet.geometry.boxes import area

BINS = 100
SCALE_RANGE = (0.1, 1.0)
DEFAULT_SCALE = 0.25
MAX_DRAWS = 5  # of a scale inside the range
MIN_SIDE = 2  # pixels; smaller objects are removed

Sizes = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SizeHistogram:
    """Histogram of the object sizes of a dataset.

    The smallest and the largest 1% of the objects (with 100 bins) have a bin of their own, so that a few very large
    objects do not widen the other bins, which have equal widths.

    Attributes:
        shares: (bins,) fraction of the objects in each bin; they sum to 1.
        edges: (bins + 1,) ascending, pixels.
    """

    shares: Sizes
    edges: Sizes

    @property
    def cumulative(self) -> Sizes:
        """(bins,) fraction of the objects up to the upper edge of each bin."""
        return np.cumsum(self.shares)


def size_histogram(sizes: Sizes, bins: int = BINS) -> SizeHistogram:
    """Return the histogram of sizes (N,).

    Raises:
        ValueError: no sizes, sizes that are not positive, or fewer than three bins.
    """
    if bins < 3:
        raise ValueError(f"a size histogram needs at least 3 bins, two of them for the extremes, got {bins}")
    ordered = _sorted_sizes(sizes)
    # Written as in the original: a simplified formula would round to other indices.
    rate = 2.0 / bins
    head, rest = int(len(ordered) * rate / 2), int((1 - rate / 2) * len(ordered))
    counts, edges = np.histogram(ordered[head:rest] if head < rest else ordered, bins=bins - 2)
    if head >= rest:  # too few objects for bins at the extremes
        head, rest = 0, len(ordered)
    shares = np.array([head, *counts, len(ordered) - rest]) / len(ordered)
    ends = ordered[0], ordered[-1]
    return SizeHistogram(shares, np.clip(np.array([ends[0], *edges, ends[1]]), *ends))


def matching_edges(sizes: Sizes, target: SizeHistogram) -> Sizes:
    """Return edges (bins + 1,) that divide `sizes` (N,) into the same shares as the bins of the target."""
    ordered = _sorted_sizes(sizes)
    inner = (target.cumulative[:-1] * len(ordered)).astype(int).clip(max=len(ordered) - 1)
    return np.array([ordered[0], *ordered[inner], ordered[-1]])


@dataclass(frozen=True, eq=False)
class ScaleMatch:
    """Chooses the scale of an image from its boxes. Calling it resizes a sample, as a `TrainingTiles.transform`.

    The size of an image is the geometric mean of the sizes of its objects. Scale Match draws a new size from the
    target. Monotone Scale Match (with `source`) maps the size to the same quantile of the target, without randomness.

    Attributes:
        target: sizes to match.
        source: (bins + 1,) result of `matching_edges`; None for Scale Match.
        scale_range: lowest and highest scale. Scale Match draws up to five times until a scale lies inside; Monotone
            Scale Match clips.
        outside: what Scale Match does after five failed draws: "clip" the last scale, or use `default_scale`.
        default_scale: scale of images without objects, and of images that would lose all of their objects.
        filter: resampling filter, see `resample`.
    """

    target: SizeHistogram
    source: Sizes | None = None
    scale_range: tuple[float, float] = SCALE_RANGE
    outside: Literal["clip", "default"] = "clip"
    default_scale: float = DEFAULT_SCALE
    filter: Filter = "bilinear"

    def __post_init__(self) -> None:
        low, high = self.scale_range
        if not 0 < low < high < np.inf:
            raise ValueError(f"the scale range must be ascending and above 0, got {self.scale_range}")
        if not 0 < self.default_scale < np.inf:
            raise ValueError(f"the default scale must be above 0, got {self.default_scale}")
        if self.outside not in ("clip", "default"):
            raise ValueError(f"outside must be 'clip' or 'default', got {self.outside!r}")

    def choose_scale(self, boxes: NDArray[np.floating[Any]], rng: np.random.Generator) -> float:
        """Return the scale of an image with the objects `boxes` (M, 4) xyxy."""
        sizes = sizes_of(boxes)
        sizes = sizes[sizes > 0]
        if not len(sizes):
            return self.default_scale
        size = float(np.exp(np.log(sizes).mean()))
        low, high = self.scale_range
        if self.source is not None:
            return float(np.clip(np.interp(size, self.source, self.target.edges) / size, low, high))
        for _ in range(MAX_DRAWS):
            scale = self._draw_size(rng) / size
            if low < scale < high:
                return scale
        return self.default_scale if self.outside == "default" else float(np.clip(scale, low, high))

    def choose_size(
        self, width: int, height: int, boxes: NDArray[np.floating[Any]], rng: np.random.Generator
    ) -> tuple[tuple[int, int], NDArray[np.bool_]]:
        """Choose the new size of an image.

        Objects with a side below two pixels are removed. If this would remove all, the image gets the default scale
        and keeps all.

        Args:
            boxes: (M, 4) xyxy, the objects of the image.

        Returns:
            New width and height, and which objects to keep (M,).
        """
        new = by_factor(self.choose_scale(boxes, rng))(width, height)
        # In the original, a box w pixels wide ends at x + w - 1, so its scaled width is (w - 1) * scale + 1.
        sides = np.maximum(boxes[:, 2:] - boxes[:, :2] - 1, 0) * (new[0] / width, new[1] / height) + 1
        kept = (sides >= MIN_SIDE).all(axis=1)
        if not kept.any():
            return by_factor(self.default_scale)(width, height), np.ones(len(boxes), bool)
        return new, kept

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        height, width = sample.pixels.shape[:2]
        (new_width, new_height), kept = self.choose_size(width, height, sample.boxes, rng)
        factors = np.tile(np.array([new_width / width, new_height / height], np.float32), 2)
        return Sample(
            resample(sample.pixels, new_width, new_height, self.filter),
            sample.boxes[kept] * factors,
            sample.labels[kept],
            sample.regions * factors,
        )

    def _draw_size(self, rng: np.random.Generator) -> float:
        bin = int(np.searchsorted(self.target.cumulative + 1e-6, rng.random()))
        low, high = self.target.edges[bin : bin + 2].tolist()
        return float(low + (high - low) * rng.random())


def match_document(document: Document, match: ScaleMatch, *, seed: int = 0) -> dict[str, Any]:
    """Return the annotation file for images resized by `match`, without the objects that become too small.

    Ignore regions are always kept. The random draw of an image depends on the seed and its position in the file.
    """
    sizes = []
    removed: set[int] = set()
    for n, image in enumerate(document.images):
        objects = [entry for entry in document.annotations(image) if not is_ignored(entry)]
        width, height = image["width"], image["height"]
        inside = boxes_of(objects).clip(0, np.tile((width, height), 2))
        size, kept = match.choose_size(width, height, inside, np.random.default_rng((seed, n)))
        sizes.append(size)
        removed.update(objects[k]["id"] for k in np.flatnonzero(~kept).tolist())
    return resize_document(document, sizes, removed=removed)


def object_sizes(dataset: Dataset) -> Sizes:
    """Return the sizes (M,) of the objects of a dataset, without ignore regions."""
    return sizes_of(dataset.boxes[dataset.objects])


def sizes_of(boxes: NDArray[np.floating[Any]]) -> Sizes:
    """Return sqrt(width * height) (M,) of boxes (M, 4) xyxy."""
    sizes: Sizes = np.sqrt(area(np.asarray(boxes, np.float64)))
    return sizes


def size_distance(a: Sizes, b: Sizes) -> float:
    """Return the Kolmogorov-Smirnov distance: the largest gap between the cumulative distributions of two samples.

    >>> size_distance(np.array([1.0, 2.0]), np.array([2.0, 3.0]))
    0.5
    """
    points = np.concatenate([a, b])
    below = [np.searchsorted(np.sort(sample), points, side="right") / len(sample) for sample in (a, b)]
    return float(np.abs(below[0] - below[1]).max())


EXAMPLES = ("coco --target tiny_set_train.json --monotone --output coco-tiny",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    low, high = SCALE_RANGE
    parser.description = (
        "Resize images so that their objects match the object sizes of another dataset. Scale Match draws a size from "
        "the target dataset for each image; Monotone Scale Match (--monotone) maps small to small and large to large."
    )
    add_source_arguments(parser, "matched")
    parser.add_argument(
        "--target",
        type=Path,
        required=True,
        metavar="PATH",
        help="annotation file or COCO folder with the object sizes to match",
    )
    parser.add_argument(
        "--monotone",
        action="store_true",
        help="use Monotone Scale Match (default: Scale Match, which draws sizes at random)",
    )
    parser.add_argument(
        "--source-sizes",
        type=Path,
        metavar="PATH",
        help="with --monotone, annotation file or COCO folder that gives the source sizes (default: SOURCE)",
    )
    parser.add_argument(
        "--bins",
        type=whole(3, 100_000),
        default=BINS,
        metavar="N",
        help=f"bins of the size histogram, at least 3 (default: {BINS})",
    )
    parser.add_argument(
        "--scale-range",
        type=float_range,
        default=SCALE_RANGE,
        metavar="LOW,HIGH",
        help=f"lowest and highest resize factor (default: {low:g},{high:g})",
    )
    parser.add_argument(
        "--outside",
        choices=("clip", "default"),
        default="clip",
        help="if five draws give no factor in the range, clip the last one or use --default-scale (default: clip)",
    )
    parser.add_argument(
        "--default-scale",
        type=scale,
        default=DEFAULT_SCALE,
        metavar="F",
        help="resize factor of images without objects, and of those that would lose all of their objects; "
        f"default: {DEFAULT_SCALE:g}",
    )
    parser.add_argument("--filter", choices=FILTERS, default="bilinear", help="resampling filter (default: bilinear)")
    parser.add_argument(
        "--seed", type=seed, default=0, metavar="N", help="seed of the random draws, 0 or more (default: 0)"
    )


def run(args: argparse.Namespace) -> str:
    """Match the dataset and return a summary with the distance to the target before and after."""
    if args.source_sizes is not None and not args.monotone:
        raise ValueError("--source-sizes has an effect only in Monotone Scale Match; add --monotone, or leave it out")
    data = source_of(args, images=args.images)
    document = data.load_document()
    output = choose_output(data.path or data.annotations, document.dataset, args.output, "matched")
    if is_annotation_file(output):
        check_output_files((output,), (args.target, args.source_sizes))
    target_sizes, before = object_sizes(_load_boxes(args.target)), object_sizes(document.dataset)
    target = size_histogram(target_sizes, args.bins)
    source = before if args.source_sizes is None else object_sizes(_load_boxes(args.source_sizes))
    match = ScaleMatch(
        target,
        matching_edges(source, target) if args.monotone else None,
        scale_range=args.scale_range,
        outside=args.outside,
        default_scale=args.default_scale,
    )
    content = match_document(document, match, seed=args.seed)
    if is_annotation_file(output):
        write_document(output, content)
    else:
        write_rescaled(document, content, output, filter=args.filter, form=args.format, quality=args.jpeg_quality)
    after = sizes_of(boxes_of([entry for entry in content["annotations"] if not is_ignored(entry)]))
    boxes = len(content["annotations"])
    removed = len(document.content["annotations"]) - boxes
    ks_before, ks_after = (size_distance(sizes, target_sizes) for sizes in (before, after))
    return (
        f"{output}: {plural(len(content['images']), 'image', ',')}, {plural(boxes, 'box', ',')}; "
        f"{plural(removed, 'object', ',')} removed as too small\n"
        f"median size {np.median(before):.1f} -> {np.median(after):.1f} px (target {np.median(target_sizes):.1f} px); "
        f"KS distance to the target {ks_before:.3f} -> {ks_after:.3f}"
    )


def _load_boxes(path: Path) -> Dataset:
    """Load an annotation file, or the one of a COCO folder, without its images."""
    return find_source(path, prefer=("train",)).load(boxes_only=True)


def _sorted_sizes(sizes: Sizes) -> Sizes:
    if not len(sizes) or not (sizes > 0).all():
        raise ValueError("matching needs at least one object, and sizes above 0; name a dataset that has objects")
    return np.sort(np.asarray(sizes, np.float64))
