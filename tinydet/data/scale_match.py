"""`tinydet data scale-match`: pictures resized until their objects are as large as those of another data set.

Scale Match and Monotone Scale Match, for pre-training: of COCO, say, on the sizes of TinyPerson. Size is sqrt(width *
height). Source: `scale_match.py` of ucas-vg/TinyBenchmark; "Scale Match for Tiny Person Detection", WACV 2020.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tinydet.data.coco import Dataset, find_dataset, load_dataset
from tinydet.data.coco_file import Document, boxes_of, is_ignored, load_document, write_document
from tinydet.data.output_folder import add_source_arguments, choose_output, is_annotation_file
from tinydet.data.resample import FILTERS, Filter, resample
from tinydet.data.rescale import rescaled, write_rescaled
from tinydet.data.samples import Sample

BINS = 100
SCALE_RANGE = (0.1, 1.0)
DEFAULT_SCALE = 0.25
TRIES = 5
LEAST_SIDE = 2  # pixels

Sizes = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SizeHistogram:
    """How large the objects of a data set are.

    The smallest and the largest 1 % (with 100 bins) fill one bin each, so that a few giants do not widen the others,
    which are equally wide.

    Attributes:
        shares: (bins,) sum 1.
        edges: (bins + 1,) ascending, pixels.
    """

    shares: Sizes
    edges: Sizes

    @property
    def cumulative(self) -> Sizes:
        """(bins,) share of the objects up to the upper edge of each bin."""
        return np.cumsum(self.shares)


def size_histogram(sizes: Sizes, bins: int = BINS) -> SizeHistogram:
    """The histogram of sizes (N,).

    Raises:
        ValueError: without a size, for sizes that are not positive, for less than three bins.
    """
    if bins < 3:
        raise ValueError(f"a size histogram has at least 3 bins, two of them for the extremes, got {bins}")
    ordered = _ordered(sizes)
    # As the original writes it; a rounder formula would cut elsewhere.
    rate = 2.0 / bins
    head, rest = int(len(ordered) * rate / 2), int((1 - rate / 2) * len(ordered))
    counts, edges = np.histogram(ordered[head:rest] if head < rest else ordered, bins=bins - 2)
    if head >= rest:  # fewer than two objects for each percent
        head, rest = 0, len(ordered)
    shares = np.array([head, *counts, len(ordered) - rest]) / len(ordered)
    ends = ordered[0], ordered[-1]
    return SizeHistogram(shares, np.clip(np.array([ends[0], *edges, ends[1]]), *ends))


def matching_edges(sizes: Sizes, target: SizeHistogram) -> Sizes:
    """(bins + 1,) sizes between which the same shares of `sizes` (N,) lie as of the target between its edges."""
    ordered = _ordered(sizes)
    places = (target.cumulative[:-1] * len(ordered)).astype(int).clip(max=len(ordered) - 1)
    return np.array([ordered[0], *ordered[places], ordered[-1]])


@dataclass(frozen=True, eq=False)
class ScaleMatch:
    """Finds the scale of an image from its boxes; called with a sample, it resizes that (a `TrainingTiles.transform`).

    The size of an image is the geometric mean of its objects' sizes. Scale Match draws another from the target. The
    monotone kind, which has `source` edges, maps the size from its place in the source to the same place in the
    target, and draws nothing.

    Attributes:
        target: sizes to match.
        source: (bins + 1,) see `matching_edges`; None: not monotone.
        scale_range: a scale outside is drawn anew, up to five times, then dealt with; the monotone one is clipped.
        outside: what is done then: "clip", or "default" for `default_scale`.
        default_scale: of images without objects, or of whose objects none would be left.
        kind: how pictures are resampled, see `resample`.
    """

    target: SizeHistogram
    source: Sizes | None = None
    scale_range: tuple[float, float] = SCALE_RANGE
    outside: Literal["clip", "default"] = "clip"
    default_scale: float = DEFAULT_SCALE
    kind: Filter = "bilinear"

    def __post_init__(self) -> None:
        low, high = self.scale_range
        if not 0 < low < high < np.inf:
            raise ValueError(f"the range of scales rises from above 0, got {self.scale_range}")
        if not 0 < self.default_scale < np.inf:
            raise ValueError(f"the default scale is above 0, got {self.default_scale}")
        if self.outside not in ("clip", "default"):
            raise ValueError(f"scales outside the range are dealt with by 'clip' or 'default', got {self.outside!r}")

    def scale(self, boxes: NDArray[np.floating[Any]], rng: np.random.Generator) -> float:
        """The scale of an image whose objects are `boxes` (M, 4) xyxy."""
        sizes = sizes_of(boxes)
        sizes = sizes[sizes > 0]
        if not len(sizes):
            return self.default_scale
        size = float(np.exp(np.log(sizes).mean()))
        low, high = self.scale_range
        if self.source is not None:
            return float(np.clip(np.interp(size, self.source, self.target.edges) / size, low, high))
        for _ in range(TRIES):
            scale = self._draw(rng) / size
            if low < scale < high:
                return scale
        return self.default_scale if self.outside == "default" else float(np.clip(scale, low, high))

    def size(self, width: int, height: int, scale: float) -> tuple[int, int]:
        """Width and height of a picture after scaling, whole pixels."""
        return max(round(scale * width), 1), max(round(scale * height), 1)

    def plan(
        self, width: int, height: int, boxes: NDArray[np.floating[Any]], rng: np.random.Generator
    ) -> tuple[tuple[int, int], NDArray[np.bool_]]:
        """The new size of an image of `width` x `height` with objects (M, 4), and which of these stay objects (M,).

        An object that becomes smaller than two pixels goes. Where all would, the default scale is taken and all stay.
        """
        new = self.size(width, height, self.scale(boxes, rng))
        # In the original a box of w pixels ends at x + w - 1, so that its scaled width is (w - 1) * scale + 1.
        sides = np.maximum(boxes[:, 2:] - boxes[:, :2] - 1, 0) * (new[0] / width, new[1] / height) + 1
        kept = (sides >= LEAST_SIDE).all(axis=1)
        if not kept.any():
            return self.size(width, height, self.default_scale), np.ones(len(boxes), bool)
        return new, kept

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        height, width = sample.pixels.shape[:2]
        (new_width, new_height), kept = self.plan(width, height, sample.boxes, rng)
        factors = np.tile(np.array([new_width / width, new_height / height], np.float32), 2)
        return Sample(
            resample(sample.pixels, new_width, new_height, self.kind),
            sample.boxes[kept] * factors,
            sample.labels[kept],
            sample.regions * factors,
        )

    def _draw(self, rng: np.random.Generator) -> float:
        place = int(np.searchsorted(self.target.cumulative + 1e-6, rng.random()))
        low, high = self.target.edges[place : place + 2].tolist()
        return float(low + (high - low) * rng.random())


def match_document(document: Document, match: ScaleMatch, *, seed: int = 0) -> dict[str, Any]:
    """The annotation file for pictures resized by `match`; objects that become too small are removed.

    Ignore regions are scaled with their image and always stay. The draw of an image follows from the seed and its
    place in the file.
    """
    images = []
    factors: dict[int, tuple[float, float]] = {}
    gone: set[int] = set()
    for n, image in enumerate(document.images):
        objects = [entry for entry in document.annotations(image) if not is_ignored(entry)]
        width, height = int(image["width"]), int(image["height"])
        inside = boxes_of(objects).clip(0, np.tile((width, height), 2))
        (new_width, new_height), kept = match.plan(width, height, inside, np.random.default_rng((seed, n)))
        images.append({**image, "width": new_width, "height": new_height})
        factors[int(image["id"])] = new_width / width, new_height / height
        gone.update(int(objects[k]["id"]) for k in np.flatnonzero(~kept).tolist())
    left = [entry for entry in document.content["annotations"] if int(entry["id"]) not in gone]
    annotations = [rescaled(entry, *factors[int(entry["image_id"])]) for entry in left]
    return document.rewritten(images, annotations)


def object_sizes(dataset: Dataset) -> Sizes:
    """(M,) sizes of the objects of a data set, ignore regions aside."""
    return sizes_of(dataset.boxes[dataset.objects])


def sizes_of(boxes: NDArray[np.floating[Any]]) -> Sizes:
    """(M,) sqrt(width * height) of boxes (M, 4) xyxy."""
    sides = np.asarray(boxes, np.float64)
    sizes: Sizes = np.sqrt(np.prod(sides[:, 2:] - sides[:, :2], axis=1))
    return sizes


def size_distance(a: Sizes, b: Sizes) -> float:
    """The Kolmogorov-Smirnov distance: how far the cumulative distributions of two samples are apart at most.

    >>> size_distance(np.array([1.0, 2.0]), np.array([2.0, 3.0]))
    0.5
    """
    places = np.concatenate([a, b])
    below = [np.searchsorted(np.sort(sample), places, side="right") / len(sample) for sample in (a, b)]
    return float(np.abs(below[0] - below[1]).max())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    low, high = SCALE_RANGE
    parser.description = (
        "Resize each picture so that its objects become as large as those of another data set: Scale Match draws the "
        "size from the target, --monotone maps small to small and large to large."
    )
    parser.epilog = "example: tinydet data scale-match coco --target tiny_set_train.json --monotone --output coco-tiny"
    add_source_arguments(parser, "matched")
    parser.add_argument(
        "--target",
        type=Path,
        required=True,
        metavar="PATH",
        help="annotation file or COCO folder whose sizes to match; no default",
    )
    parser.add_argument(
        "--monotone", action="store_true", help="Monotone Scale Match; default: Scale Match, which draws at random"
    )
    parser.add_argument(
        "--source-sizes",
        type=Path,
        metavar="PATH",
        help="with --monotone, the data set whose sizes are the source's; default: SOURCE itself",
    )
    parser.add_argument("--bins", type=int, default=BINS, help=f"of the target's histogram; default: {BINS}")
    parser.add_argument(
        "--scale-range",
        type=_range,
        default=SCALE_RANGE,
        metavar="LOW,HIGH",
        help=f"of the resize factors; default: {low:g},{high:g}",
    )
    parser.add_argument(
        "--outside",
        choices=("clip", "default"),
        default="clip",
        help="a factor that stays outside after five draws is clipped or the default; default: clip",
    )
    parser.add_argument(
        "--default-scale",
        type=float,
        default=DEFAULT_SCALE,
        metavar="F",
        help=f"of pictures without objects; default: {DEFAULT_SCALE:g}",
    )
    parser.add_argument(
        "--filter", choices=FILTERS, default="bilinear", help="how pictures are resampled; default: bilinear"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other sizes; default: 0")


def run(args: argparse.Namespace) -> str:
    """Match as the arguments say; returns what was done, with the distance to the target before and after."""
    if args.source_sizes is not None and not args.monotone:
        raise ValueError("--source-sizes says what Monotone Scale Match starts from; add --monotone, or leave it out")
    if args.seed < 0:
        raise ValueError(f"--seed is a whole number from 0, got {args.seed}")
    document = load_document(args.source, args.images)
    output = choose_output(args.source, document.dataset, args.output, "matched")
    goal, before = object_sizes(_boxes_only(args.target)), object_sizes(document.dataset)
    target = size_histogram(goal, args.bins)
    source = before if args.source_sizes is None else object_sizes(_boxes_only(args.source_sizes))
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
        write_rescaled(document, content, output, kind=args.filter, form=args.format, quality=args.jpeg_quality)
    after = sizes_of(boxes_of([entry for entry in content["annotations"] if not is_ignored(entry)]))
    boxes = len(content["annotations"])
    gone = len(document.content["annotations"]) - boxes
    return (
        f"{output}: {len(content['images']):,} images, {boxes:,} boxes; {gone:,} objects became too small and went\n"
        f"median size {np.median(before):.1f} -> {np.median(after):.1f} px, of the target {np.median(goal):.1f} px; "
        f"KS distance to the target {size_distance(before, goal):.3f} -> {size_distance(after, goal):.3f}"
    )


def _boxes_only(path: Path) -> Dataset:
    """The boxes of an annotation file, or of the one in a COCO folder, whose pictures need not be there."""
    return load_dataset(find_dataset(path)[0] if path.is_dir() else path)


def _ordered(sizes: Sizes) -> Sizes:
    if not len(sizes) or not (sizes > 0).all():
        raise ValueError("sizes to match must be above 0, and at least one; name a data set that has objects")
    return np.sort(np.asarray(sizes, np.float64))


def _range(text: str) -> tuple[float, float]:
    try:
        low, high = (float(value) for value in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected LOW,HIGH as in 0.1,1, got {text!r}") from None
    return low, high
